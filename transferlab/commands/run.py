"""`transferlab run`: find data and weights, execute copies of the notebooks, show what came out."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..artifacts import new_stamp, prepare_out_dir, seconds_text
from ..backbones import build_from_state
from ..data import find_dataset
from ..datasets import FACES, INSECTS, Dataset
from ..described import Given, write_summary
from ..download import DownloadError
from ..errors import UserError
from ..notebook import NotYet
from ..pretrained import (
    BACKBONES,
    FoundWeights,
    check_weights_place,
    find_pretrained,
    read_found_weights,
)
from ..records import StudyRecord, from_plain, read_plain
from ..train import Settings
from .options import add_out, add_seed, add_views, add_weights, positive


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """A notebook of the study."""

    number: str
    stem: str  # of its file
    dataset: Dataset
    backbones: tuple[str, ...]  # by the study's names
    skips_missing: bool = False  # whether it goes on without a backbone that has no weights


NOTEBOOKS = {
    one.number: one
    for one in (
        Notebook(
            number="01",
            stem="01_resnet50_ani_fine_tune",
            dataset=FACES,
            backbones=("resnet50",),
        ),
        Notebook(
            number="02",
            stem="02_densenet121_ani_fine_tune",
            dataset=FACES,
            backbones=("densenet121", "resnet50"),
        ),
        Notebook(
            number="03",
            stem="03_advanced_hymenoptera_analysis",
            dataset=INSECTS,
            backbones=("efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"),
            skips_missing=True,
        ),
    )
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "one notebook, e.g. --only 01"
    parser.add_argument("--only", default="", choices=tuple(NOTEBOOKS), help=text)
    text = "a folder of images, e.g. --data ~/images (default: data/, a download, drawn pictures)"
    parser.add_argument("--data", default="", help=text)
    add_weights(parser)
    add_out(parser)
    text = "at most so many, e.g. --epochs 2 for a quick look (default: 30)"
    parser.add_argument("--epochs", type=positive, default=30, help=text)
    add_views(parser, str(Settings().views))
    add_seed(parser, 42)


# ---- what a notebook is given ----------------------------------------------------------------


def find_data(dataset: Dataset, data: str, data_root: Path) -> Path:
    """The image folder for a notebook: the user's, of several in it the dataset's own; else
    `data_root`, else a download, else (offline) a drawn stand-in.

    Raises:
        UserError: the user's folder holds no images; what was downloaded is wrong.
    """
    if data:
        return find_dataset(data, dataset.name)
    if dataset.fetch is None or dataset.draw is None:
        raise UserError(f"{dataset.name} can be neither fetched nor drawn: give --data")
    try:
        return dataset.fetch(data_root)
    except DownloadError as error:
        folder = data_root / f"synthetic_{dataset.name}"
        print(error)
        print(f"-> no {dataset.name}: using drawn pictures instead, {folder}")
        print("   (marked synthetic everywhere)")
        return dataset.draw(folder)


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a link to `source`; a copy where links are not possible."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def place_weights(name: str, found: FoundWeights, path: Path, folder: Path) -> None:
    """Puts NAME.safetensors into `folder`, from the file `path` that was found, and NAME.json,
    which says where it comes from.

    Raises:
        UserError: the file is damaged or does not fit the backbone, which is better said here, by
            its own name, than by the notebook; `folder` cannot be written.
    """
    timm_name = BACKBONES.get(name, name)
    model = build_from_state(timm_name, read_found_weights(found), path)
    note = {"source": found.source, "label": found.label, "kind": found.kind}
    target = folder / f"{name}.safetensors"
    try:
        if path.suffix == ".safetensors":
            link_file(path, target)
        else:
            save_file(model.state_dict(), target)
        target.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {target}: {error}") from error


def why_missing(found: FoundWeights) -> str:
    """Why no weights were found: what the source of random ones has in parentheses."""
    return found.source.partition("(")[2].removesuffix(")")


def gather_weights(
    names: Sequence[str], weights: str, folder: Path, *, skips_missing: bool = False
) -> str:
    """Gathers the weights of a notebook's backbones in `folder` -> the notebook's `weights`: that
    folder, or "none".

    It is "none" where nothing was found, and without `skips_missing` also where one is missing, so
    that no pretrained backbone is compared with a random one. What is missing is printed.

    Raises:
        UserError: as `find_pretrained` and `place_weights`.
    """
    if weights == "none":
        return weights
    found = {name: find_pretrained(name, weights) for name in names}
    missing = [name for name in names if found[name].path is None]
    is_random = len(missing) == len(names) if skips_missing else bool(missing)
    follows = "random initialisation" if is_random else "left out"
    for name in missing:
        print(f"no weights for {name} ({why_missing(found[name])}): {follows}", flush=True)
    if is_random:
        listed = ", ".join(names)
        print(f"-> {listed}: ALL AT RANDOM, MEASURES NO TRANSFER; give --weights DIR", flush=True)
        return "none"
    folder.mkdir(exist_ok=True)
    for name, one in found.items():
        if one.path:
            place_weights(name, one, one.path, folder)
    return str(folder)


def weight_parameters(one: Notebook, weights: str, folder: Path) -> dict[str, Any]:
    """The parameters of a notebook that say what its backbones compute with; `folder` is filled,
    and must stay until it is executed.

    Raises:
        UserError: as `gather_weights`.
    """
    place = gather_weights(one.backbones, weights, folder, skips_missing=one.skips_missing)
    parameters: dict[str, Any] = {"weights": place}
    if one.skips_missing:
        parameters["random_backbones"] = place == "none"
    return parameters


# ---- execution -------------------------------------------------------------------------------


def run_notebook(source: Path, copy: Path, parameters: dict[str, Any]) -> None:
    """Executes a notebook as `copy`, its printed output shown as it comes.

    Raises:
        UserError: papermill is missing, or a cell fails; the copy holds everything up to there.
    """
    try:
        import papermill
    except ImportError:
        raise UserError("running the notebooks needs papermill: pip install papermill") from None
    try:
        papermill.execute_notebook(
            str(source),
            str(copy),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=str(copy.parent),
        )
    except papermill.PapermillExecutionError as error:
        kinds: set[type] = {UserError, NotYet, *UserError.__subclasses__()}
        ours = {kind.__name__ for kind in kinds}
        message = error.evalue if error.ename in ours else f"{error.ename}: {error.evalue}"
        done = f"executed as far as that: {copy}"
        raise UserError(f"{source.name} stopped: {message} ({done})") from error


# ---- what came out ---------------------------------------------------------------------------


def summarise(one: Notebook, written: set[Path], parameters: dict[str, Any]) -> None:
    """Writes the study's record of every run that a notebook has saved.

    Raises:
        UserError: as `write_summary`.
    """
    given = Given(
        folder=Path(parameters["data_dir"]),
        weights=parameters["weights"],
        augmentation=one.dataset.augmentation(224),
    )
    for model in sorted(path for path in written if path.match("*_best_*.safetensors")):
        write_summary(model, given)


def list_outputs(out: Path) -> set[Path]:
    """All files in model/, result/ and img/ of `out`."""
    return {path for name in ("model", "result", "img") for path in (out / name).iterdir()}


def result_row(record: StudyRecord) -> dict[str, str]:
    """A run as a row of the table for the terminal."""
    drawn = " (synthetic)" if record.dataset.synthetic else ""
    nothing = "" if record.backbone.measures_transfer else ": measures no transfer"
    return {
        "model": record.model,
        "accuracy": f"{record.best.val_acc:.1%}",
        "best epoch/epochs": f"{record.best.epoch}/{record.epochs_run}",
        "seconds": seconds_text(record),
        "data": f"{record.dataset.name}{drawn}",
        "weights": f"{record.backbone.source}{nothing}",
    }


def result_table(records: Sequence[StudyRecord]) -> str:
    """The runs as a table for the terminal."""
    table = pd.DataFrame([result_row(record) for record in records])
    return table.to_string(index=False, justify="left")


def read_records(written: Sequence[Path]) -> list[StudyRecord]:
    """The records among the files that were written, the first first."""
    summaries = [path for path in written if "_summary_" in path.name]
    records = [from_plain(StudyRecord, read_plain(path)) for path in summaries]
    return sorted(records, key=lambda record: record.stamp)


# ---- the command -----------------------------------------------------------------------------


def find_notebooks(only: str, root: Path) -> dict[str, Path]:
    """The files of the notebooks that are to be run, by number.

    Raises:
        UserError: one of them is not there.
    """
    numbers = [only] if only else list(NOTEBOOKS)
    found = {}
    for number in numbers:
        path = root / f"{NOTEBOOKS[number].stem}.ipynb"
        if not path.is_file():
            advice = f"run from a clone of the repository, one of {list(NOTEBOOKS)}"
            raise UserError(f"no notebook {number} in {root}: {advice}")
        found[number] = path
    return found


def run(options: argparse.Namespace) -> int:
    """Executes the notebooks (all, or the one that is named) as copies under OUT/result and prints
    a table of the runs.

    Raises:
        UserError: as `find_notebooks`, `find_data`, `check_weights_place`, `weight_parameters` and
            `run_notebook`.
    """
    sources = find_notebooks(options.only, Path(__file__).resolve().parents[2])
    weights = check_weights_place(options.weights)
    out = prepare_out_dir(options.out).resolve()
    before = list_outputs(out)
    stamp = new_stamp(out)
    common = {"epochs": options.epochs, "seed": options.seed, "out_dir": str(out)}
    if options.views is not None:
        common["views"] = options.views
    with tempfile.TemporaryDirectory(prefix="transferlab_") as scratch:
        given = {}  # all is found before any time is spent
        for number in sources:
            one = NOTEBOOKS[number]
            folder = find_data(one.dataset, options.data, Path("data")).resolve()
            own = weight_parameters(one, weights, Path(scratch) / number)
            given[number] = common | {"data_dir": str(folder)} | own
        for number, source in sources.items():
            copy = out / "result" / f"{source.stem}_{stamp}.ipynb"
            print(f"\n== {source.stem} on {given[number]['data_dir']} -> {copy}", flush=True)
            earlier = list_outputs(out)
            run_notebook(source, copy, given[number])
            summarise(NOTEBOOKS[number], list_outputs(out) - earlier, given[number])
    written = sorted(list_outputs(out) - before)
    print(f"\n{result_table(read_records(written))}\n\n{len(written)} files written:")
    for path in written:
        print(f"  {path.relative_to(out)}")
    return 0

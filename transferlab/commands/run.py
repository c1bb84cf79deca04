"""`transferlab run`: find data and weights, execute copies of the notebooks, show what came out."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import new_stamp, prepare_out_dir, seconds_text
from ..data import find_image_folder
from ..datasets import FACES, INSECTS, Dataset
from ..download import DownloadError
from ..errors import UserError
from ..pretrained import check_weights_place
from ..records import StudyRecord, from_plain, read_plain
from ..store import cache_bound, kept_files, open_store, trim_to_bound
from ..train import Settings
from .options import add_cache, add_out, add_seed, add_views, add_weights, positive


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """A notebook of the study."""

    number: str
    stem: str  # of its file
    dataset: Dataset


NOTEBOOKS = {
    one.number: one
    for one in (
        Notebook(number="01", stem="01_resnet50_ani_fine_tune", dataset=FACES),
        Notebook(number="02", stem="02_densenet121_ani_fine_tune", dataset=FACES),
        Notebook(number="03", stem="03_advanced_hymenoptera_analysis", dataset=INSECTS),
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
    add_cache(parser)


def find_data(dataset: Dataset, data: str, data_root: Path) -> Path:
    """The image folder for a notebook: the user's, else `data_root`, else a download, else
    (offline) a drawn stand-in.

    Raises:
        UserError: the user's folder holds no images; what was downloaded is wrong.
    """
    if data:
        return find_image_folder(data, prefer=dataset.name)
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
        known = error.ename == "UserError"
        message = error.evalue if known else f"{error.ename}: {error.evalue}"
        done = f"executed as far as that: {copy}"
        raise UserError(f"{source.name} stopped: {message} ({done})") from error


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
        UserError: as `find_notebooks`, `find_data`, `check_weights_place`, `run_notebook` and
            `cache_bound`.
    """
    sources = find_notebooks(options.only, Path(__file__).resolve().parents[2])
    cache_bound()
    store = open_store(options.cache_dir)
    if store.folder:
        kept_files(store.folder)  # an unusable one is said before any time is spent
    out = prepare_out_dir(options.out).resolve()
    before = list_outputs(out)
    stamp = new_stamp(out)
    parameters = {
        "weights": check_weights_place(options.weights),
        "epochs": options.epochs,
        "seed": options.seed,
        "out_dir": str(out),
        "cache_dir": str(store.folder or ""),
    }
    if options.views is not None:
        parameters["views"] = options.views
    folders = {}  # all are found before any time is spent
    for number in sources:
        found = find_data(NOTEBOOKS[number].dataset, options.data, Path("data"))
        folders[number] = found.resolve()
    try:
        for number, source in sources.items():
            copy = out / "result" / f"{source.stem}_{stamp}.ipynb"
            print(f"\n== {source.stem} on {folders[number]} -> {copy}", flush=True)
            run_notebook(source, copy, parameters | {"data_dir": str(folders[number])})
    finally:
        trim_to_bound(store)
    written = sorted(list_outputs(out) - before)
    print(f"\n{result_table(read_records(written))}\n\n{len(written)} files written:")
    for path in written:
        print(f"  {path.relative_to(out)}")
    return 0

"""Executes the notebooks in place and names their runs in report/runs.toml (`make publish`).

    python tools/publish.py --data DIR --weights DIR [--only 01]
    python tools/publish.py --benchmark views_20260101_120000

The second form names the files that a benchmark, `transferlab compare` or `transferlab audit` wrote
under that name and stamp. After the notebooks, what was measured with other weights than theirs is
named no longer. Pictures of a dataset never enter a committed notebook: cells tagged `shows-images`
get the output of a second run on drawn pictures, which ends at the last such cell. Result files of
runs that are no longer named are deleted.
"""

import argparse
import hashlib
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from build_notebooks import read_notebook, store_outputs, tagged, write_text
from nbformat import NotebookNode

from transferlab.artifacts import prepare_out_dir
from transferlab.commands.run import (
    NOTEBOOKS,
    Notebook,
    find_data,
    run_notebook,
    summarise,
    weight_parameters,
)
from transferlab.errors import UserError
from transferlab.files import replace_whole, scratch_folder
from transferlab.finished import held_stamps, publish_outputs
from transferlab.heldout import ComparisonRecord
from transferlab.pretrained import check_weights_place
from transferlab.published import read_record
from transferlab.records import RunRecord

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "report" / "runs.toml"
STAMP = "YYYYmmdd_HHMMSS"
OPENING = "# Written by `make publish`. The report speaks of these files and no others.\n"

MADE_FROM = {"enough_views": "views"}  # benchmarks that measure nothing, and what they read

Named = dict[str, list[Path]]  # by notebook or benchmark: the files that it wrote


def draw_pictures(
    one: Notebook, source: Path, folder: Path, weights: dict[str, Any]
) -> NotebookNode:
    """Executes a notebook up to its last `shows-images` cell on drawn pictures, in `folder`, with
    the weights that those parameters name.

    Raises:
        UserError: pictures like its dataset's cannot be drawn; a cell fails.
    """
    dataset = one.dataset
    if dataset.draw is None:
        raise UserError(f"{dataset.name} cannot be drawn, so {one.stem} cannot be published")
    notebook = nbformat.read(source, as_version=4)
    shown = [i for i, cell in enumerate(notebook.cells) if tagged(cell, "shows-images")]
    notebook.cells = notebook.cells[: max(shown) + 1]
    short = folder / f"short_{one.number}.ipynb"
    nbformat.write(notebook, short)
    data = dataset.draw(folder / f"synthetic_{dataset.name}")
    copy = folder / f"pictures_{one.number}.ipynb"
    parameters = {"data_dir": str(data.resolve()), "out_dir": str(folder)}
    run_notebook(short, copy, parameters | weights)
    return nbformat.read(copy, as_version=4)


def publish_notebook(number: str, data: str, weights: str) -> list[Path]:
    """Executes one notebook at the study's settings and stores its outputs in place.

    Returns the files that it wrote, sorted.
    """
    one = NOTEBOOKS[number]
    target = ROOT / f"{one.stem}.ipynb"
    with scratch_folder(ROOT / "result") as scratch:
        folder = find_data(one.dataset, data, ROOT / "data")
        gathered = weight_parameters(one, weights, scratch / "weights")
        parameters = {"data_dir": str(folder.resolve())} | gathered
        own = prepare_out_dir(scratch / "out")
        copy = own / "result" / target.name
        run_notebook(target, copy, parameters | {"out_dir": ".."})
        summarise(one, own, parameters)
        pictures = draw_pictures(one, target, prepare_out_dir(scratch / "pictures"), gathered)
        with held_stamps(own, ROOT) as stamp:
            stamped = copy.with_name(f"{copy.stem}_{stamp}.ipynb")
            executed = nbformat.read(stamped, as_version=4)
            stamped.unlink()  # what it holds goes into the notebook itself
            stored = store_outputs(read_notebook(target), executed, pictures)
            written = publish_outputs(own, ROOT)
            write_whole(target, write_text(stored))
    return [path for path in written if path.parent.name != "model"]


def write_whole(path: Path, text: str) -> None:
    """Writes a text over another, whole or not at all."""
    with scratch_folder(path.parent) as scratch:
        temporary = scratch / path.name
        temporary.write_text(text, encoding="utf-8", newline="\n")
        replace_whole(temporary, path)


def name_benchmark(name: str) -> tuple[str, list[Path]]:
    """Returns what a benchmark is named by, and its files, by its name and stamp.

    The files are result/benchmarks/NAME*_STAMP.* and img/NAME_STAMP.png. A comparison or an audit
    has its files in result/ and is named with its dataset: compare/hymenoptera_data; one by the
    study's head study_head/hymenoptera_data.

    Raises:
        UserError: it wrote none.
    """
    stamp = name[-len(STAMP) :]
    kind = name[: -len(f"_{STAMP}")]
    is_command = kind in ("compare", "audit")
    place = ROOT / ("result" if is_command else "result/benchmarks")
    tables = place.glob(f"{kind}*_{stamp}.*")
    figures = (ROOT / "img").glob(f"{name}.png")
    files = sorted([*tables, *figures])
    if not files:
        remedy = "give the name and stamp of what has finished"
        raise UserError(f"no files of {name} in {place.relative_to(ROOT)}: {remedy}")
    if is_command:
        of_kind = ComparisonRecord if kind == "compare" else RunRecord
        record = read_record(place / f"{kind}_summary_{stamp}.json", of_kind)
        by_study = isinstance(record, ComparisonRecord) and record.head == "study"
        kind = f"{'study_head' if by_study else kind}/{record.data[0].name}"
    return kind, files


def weights_of(files: Iterable[Path]) -> dict[str, str]:
    """Returns {backbone: its weights' hash, or their description} of the benchmarks among `files`.

    "" where one names no backbone. Random weights are told as that: their hash is another on
    another processor, and nothing was measured of them.
    """
    found = {}
    for path in files:
        if path.suffix == ".json":
            for info in read_record(path, RunRecord).weights:
                told = info.sha256 or info.source
                found[info.name] = told if info.measures_transfer else info.kind
    return found


def current_weights(files: Named) -> dict[str, set[str]]:
    """Returns {backbone: hash and description of its weights} of the notebooks; "" for all."""
    current = {}
    for number in NOTEBOOKS:
        for path in files.get(number, []):
            if path.suffix == ".json":
                backbone = read_record(path, RunRecord).weights[0]
                current[backbone.name] = {backbone.sha256, backbone.source}
                if not backbone.measures_transfer:
                    current[backbone.name] = {backbone.kind}
    current[""] = set().union(*current.values())
    return current


def is_outdated(files: Iterable[Path], current: dict[str, set[str]]) -> bool:
    """Tells whether files speak of other weights than the `current` ones of the same backbone."""
    told = weights_of(files)
    return any(told[name] not in current[name] for name in told.keys() & current.keys())


def drop_outdated(files: Named) -> list[str]:
    """Drops those benchmarks that were measured with weights unlike the notebooks'.

    Their weights' hashes tell, or where an older one has only kept a description, that. Returns the
    names of what was dropped.
    """
    current = current_weights(files)
    benchmarks = {name: named for name, named in files.items() if name not in NOTEBOOKS}
    outdated = [name for name, named in benchmarks.items() if is_outdated(named, current)]
    for name, source in MADE_FROM.items():
        if name in benchmarks and source in outdated:
            outdated.append(name)
    for name in outdated:
        del files[name]
    return outdated


def write_runs(files: Named) -> None:
    """Writes report/runs.toml: what the report may speak of, each file with its SHA-256."""
    entries = [OPENING]
    for number in sorted(files):
        for path in files[number]:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = path.relative_to(ROOT).as_posix()
            place = f'notebook = "{number}"\npath = "{name}"'
            entries.append(f'[[files]]\n{place}\nsha256 = "{digest}"\n')
    write_whole(RUNS, "\n".join(entries))


def read_runs() -> Named:
    """Returns the files that report/runs.toml names; none where there is no such file."""
    files = {}
    if RUNS.is_file():
        runs = tomllib.loads(RUNS.read_text(encoding="utf-8"))
        for entry in runs["files"]:
            named = files.setdefault(entry["notebook"], [])
            named.append(ROOT / entry["path"])
    return files


def publish(options: argparse.Namespace) -> Iterator[tuple[str, list[Path]]]:
    """Yields each notebook, or the benchmark, that was asked for, with the files it wrote.

    A notebook is executed when its turn comes.
    """
    if options.benchmark:
        yield name_benchmark(options.benchmark)
        return
    weights = check_weights_place(options.weights)
    numbers = [options.only] if options.only else NOTEBOOKS
    for number in numbers:
        yield number, publish_notebook(number, options.data, weights)


def replace_files(files: Named, number: str, new: list[Path]) -> None:
    """Names the `new` files of a notebook or benchmark; deletes what nothing names any more."""
    old = files.get(number, [])
    files[number] = new
    write_runs(files)
    kept = {path for named in files.values() for path in named}
    for path in set(old) - kept:
        path.unlink(missing_ok=True)


def parse_options() -> argparse.Namespace:
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--data", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--only", default="", choices=("", *NOTEBOOKS))
    parser.add_argument("--benchmark", default="", metavar="NAME_STAMP")
    return parser.parse_args()


def main() -> int:
    """Publishes all notebooks, one, or a benchmark; returns the exit code."""
    options = parse_options()
    try:
        prepare_out_dir(ROOT)
        files = read_runs()
        for number, new in publish(options):
            replace_files(files, number, new)
        outdated = drop_outdated(files)
        if outdated:
            write_runs(files)
            reason = "since it was measured with other weights"
            print(f"no longer named, {reason}: {', '.join(outdated)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    paths = [str(path.relative_to(ROOT)) for named in files.values() for path in named]
    print(f"named in {RUNS.relative_to(ROOT)}; now: make report, then: git add --all, and")
    print("git add --force", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Executes the notebooks in place on given data and weights, and names their runs in report/runs.toml (`make publish`).

    python tools/publish.py --data DIR --weights DIR [--only 01]
    python tools/publish.py --benchmark views_20260101_120000

The second form names the files that a benchmark, `transferlab compare` or `transferlab audit` wrote under that name and stamp. After
the notebooks, what was measured with other weights than theirs is named no longer. Pictures of a dataset never enter a
committed notebook: cells tagged `shows-images` get the output of a second run on drawn pictures, which ends at the last such
cell. Result files of runs that are no longer named are deleted.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from build_notebooks import read_notebook, store_outputs, write_text

from transferlab.artifacts import new_stamp, prepare_out_dir
from transferlab.errors import UserError
from transferlab.run import (
    DATASETS,
    NOTEBOOKS,
    find_data,
    find_run_weights,
    list_outputs,
    run_notebook,
)

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "report" / "runs.toml"


def draw_pictures(number, source, folder):
    """Executes a notebook up to its last `shows-images` cell on drawn pictures -> executed notebook."""
    notebook = nbformat.read(source, as_version=4)
    last = max(
        i
        for i, cell in enumerate(notebook.cells)
        if "shows-images" in cell.metadata.get("tags", [])
    )
    notebook.cells = notebook.cells[: last + 1]
    short, copy = folder / f"short_{number}.ipynb", folder / f"pictures_{number}.ipynb"
    nbformat.write(notebook, short)
    name, _, draw = DATASETS[number]
    run_notebook(
        short,
        copy,
        {
            "data_dir": str(draw(folder / f"synthetic_{name}")),
            "out_dir": str(folder),
            "weights": "none",
        },
    )
    return nbformat.read(copy, as_version=4)


def publish_notebook(number, data, weights, cache_dir):
    """Executes one notebook at the study's settings and stores its outputs in place -> the files it wrote, sorted."""
    target, before = ROOT / f"{NOTEBOOKS[number]}.ipynb", list_outputs(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        copy = scratch / f"executed_{number}.ipynb"
        parameters = {
            "data_dir": str(find_data(number, data, ROOT / "data").resolve()),
            "weights": weights,
        }
        parameters |= {"out_dir": str(ROOT), "cache_dir": cache_dir}
        run_notebook(target, copy, parameters)
        pictures = draw_pictures(number, target, prepare_out_dir(scratch / "pictures"))
        executed = nbformat.read(copy, as_version=4)
        target.write_text(
            write_text(store_outputs(read_notebook(target), executed, pictures)),
            encoding="utf-8",
            newline="\n",
        )
    return sorted(path for path in list_outputs(ROOT) - before if path.parent.name != "model")


def name_benchmark(name):
    """A benchmark's name and its files, by name and stamp: result/benchmarks/NAME*_STAMP.* and img/NAME_STAMP.png. A comparison
    or an audit has its files in result/ and is named with its dataset: compare/hymenoptera_data; one of more than two backbones
    architectures/hymenoptera_data.

    Raises:
        UserError: it wrote none.
    """
    kind, stamp = name[: -len("_YYYYmmdd_HHMMSS")], name[-len("YYYYmmdd_HHMMSS") :]
    place = ROOT / ("result" if kind in ("compare", "audit") else "result/benchmarks")
    files = [*place.glob(f"{kind}*_{stamp}.*"), *(ROOT / "img").glob(f"{name}.png")]
    if not files:
        raise UserError(
            f"no files of {name} in {place.relative_to(ROOT)}: give the name and stamp of what has finished"
        )
    if kind in ("compare", "audit"):
        summary = json.loads((place / f"{kind}_summary_{stamp}.json").read_text(encoding="utf-8"))
        kind = (
            f"{'architectures' if len(summary.get('weights', ())) > 2 else kind}/{summary['data']}"
        )
    return kind, sorted(files)


def weights_of(files):
    """{backbone: its weights' hash, or their description} of the benchmarks among `files`; "" where one names no backbone."""
    found = {}
    for path in (path for path in files if path.suffix == ".json"):
        described = json.loads(path.read_text(encoding="utf-8"))
        weights = described.get("weights", {})
        weights = weights if isinstance(weights, dict) else {"": weights}
        weights = (
            {weights["name"]: weights} if "sha256" in weights else weights
        )  # of one backbone alone
        found |= {
            name: info["sha256"] if isinstance(info, dict) else info
            for name, info in weights.items()
        }
    return found


def drop_outdated(files):
    """Of {notebook or benchmark: its files} those benchmarks that were measured with weights unlike the notebooks' -> their names.

    Their weights' hashes tell, or where an older one has only kept a description, that.
    """
    paths = [
        path for number in NOTEBOOKS for path in files.get(number, []) if path.suffix == ".json"
    ]
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    current = {run["model"]: {run["weights"]["sha256"], run["weights"]["source"]} for run in runs}
    current[""] = set().union(*current.values())
    outdated = [
        name
        for name, named in files.items()
        if name not in NOTEBOOKS
        and any(told not in current.get(model, {told}) for model, told in weights_of(named).items())
    ]
    for name in outdated:
        del files[name]
    return outdated


def write_runs(files):
    """Writes report/runs.toml from {notebook or benchmark: its files}: what the report may speak of, each file with its SHA-256."""
    lines = ["# Written by `make publish`. The report speaks of these files and no others.\n"]
    for number in sorted(files):
        for path in files[number]:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = path.relative_to(ROOT).as_posix()
            lines.append(
                f'[[files]]\nnotebook = "{number}"\npath = "{name}"\nsha256 = "{digest}"\n'
            )
    RUNS.write_text("\n".join(lines), encoding="utf-8")


def read_runs():
    """{notebook or benchmark: its files} of report/runs.toml; empty where there is none."""
    files = {}
    for entry in tomllib.loads(RUNS.read_text(encoding="utf-8"))["files"] if RUNS.is_file() else []:
        files.setdefault(entry["notebook"], []).append(ROOT / entry["path"])
    return files


def main():
    """Publishes all notebooks, one, or a benchmark -> exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--only", default="", choices=("", *NOTEBOOKS))
    parser.add_argument(
        "--cache-dir",
        default="",
        help="an empty folder that keeps the features, to measure the exercises with",
    )
    parser.add_argument("--benchmark", default="", metavar="NAME_STAMP")
    options = parser.parse_args()
    try:
        new_stamp(prepare_out_dir(ROOT))
        files = read_runs()
        if options.benchmark:
            found = [name_benchmark(options.benchmark)]
        else:
            weights = find_run_weights(options.weights, ROOT / "weights")
            numbers = [options.only] if options.only else NOTEBOOKS
            found = (
                (number, publish_notebook(number, options.data, weights, options.cache_dir))
                for number in numbers
            )
        for number, new in found:
            old, files[number] = files.get(number, []), new
            write_runs(files)
            for path in set(old) - {kept for named in files.values() for kept in named}:
                path.unlink(missing_ok=True)
        if outdated := drop_outdated(files):
            write_runs(files)
            print(
                f"no longer named, since it was measured with other weights: {', '.join(outdated)}"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"named in {RUNS.relative_to(ROOT)}; now: make report, then: git add --all, and")
    print(
        "git add --force "
        + " ".join(str(p.relative_to(ROOT)) for named in files.values() for p in named)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

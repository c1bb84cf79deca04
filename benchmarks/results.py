"""What the benchmarks share: points measured once and kept while unfinished, what a finished one leaves, how each is run."""

import argparse
import hashlib
import json
import sys
import textwrap
from pathlib import Path

import pandas as pd

from transferlab.artifacts import machine, new_stamp, write_new
from transferlab.data import load_images
from transferlab.errors import UserError

FACES, INSECTS = "manga_facial_expressions", "hymenoptera_data"  # the study's datasets


def make_parser(description, *, data, weights):
    """The parser of a benchmark with what all of them take; `data` and `weights` say which folders are needed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help=data)
    parser.add_argument("--weights", required=True, help=weights)
    parser.add_argument(
        "--out", default=".", help="where result/benchmarks and img go (default: here)"
    )
    return parser


def load_dataset(data, name):
    """The images of one of the study's datasets -> ImageSet.

    Raises:
        UserError: `data` lacks it; as `load_images`.
    """
    image_set = load_images(data, prefer=name)
    if image_set.name != name:
        raise UserError(
            f"{data} holds no {name}, but {image_set.name}: give the folder that holds it"
        )
    return image_set


def list_sources(infos):
    """Where the weights of {backbone: WeightsInfo} come from, a line each, for a figure's title."""
    return "\n".join(
        f"{name}: {textwrap.shorten(info.source, 110, placeholder=' ...')}"
        for name, info in infos.items()
    )


def unfinished_folder(out, name, used):
    """Makes the folder for the points of benchmark `name` under `out` -> Path. Points measured with another `used` (plain
    values: data, weights, settings), on another machine or by other code lie in another folder, and are not taken.

    Raises:
        UserError: it cannot be written.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256(json.dumps([used, machine()]).encode())
    for path in sorted([*root.glob("transferlab/*.py"), *root.glob("benchmarks/*.py")]):
        digest.update(path.read_bytes())
    folder = Path(out) / f"result/benchmarks/{name}_unfinished" / digest.hexdigest()[:12]
    try:
        for needed in (folder, Path(out) / "img"):
            needed.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error}): give another --out") from error
    return folder


def measure_or_read(path, measure):
    """What `measure()` gives, plain values, kept in `path` (.json): read from there where an interrupted run has measured it."""
    if not path.is_file():
        found = json.dumps(measure())
        write_new(path, lambda temporary: temporary.write_text(found, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(out, name, rows, described, figure, points):
    """Writes result/benchmarks/NAME_{stamp}.csv (`rows`, dicts or a data frame), .json (`described` and the machine) and
    img/NAME_{stamp}.png; then deletes the files `points`, which have gone into them, so that the next run measures anew."""
    out, stamp = Path(out), new_stamp(Path(out) / "result")
    text = json.dumps(described | machine(), indent=1, ensure_ascii=False) + "\n"
    write_new(
        out / f"result/benchmarks/{name}_{stamp}.csv",
        lambda path: pd.DataFrame(rows).to_csv(path, index=False),
    )
    write_new(
        out / f"result/benchmarks/{name}_{stamp}.json",
        lambda path: path.write_text(text, encoding="utf-8"),
    )
    write_new(
        out / f"img/{name}_{stamp}.png", lambda path: figure.savefig(path, dpi=120, format="png")
    )
    for point in points:
        point.unlink()
    print(f"written: result/benchmarks/{name}_{stamp}.csv, .json and img/{name}_{stamp}.png")


def run_command(main):
    """Runs a benchmark's `main` and ends the process with its exit code, or with 2 after a `UserError`, whose line goes to stderr."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

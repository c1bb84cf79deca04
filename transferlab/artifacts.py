"""Writing to model/, result/ and img/: each file whole, none over another, under a new stamp."""

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from .errors import UserError
from .features import FROM_DISK
from .records import StudyRecord

OUT_FOLDERS = ("model", "result", "img")


def prepare_out_dir(out_dir: str | Path) -> Path:
    """Makes model/, result/ and img/ in `out_dir` before any time is spent.

    Raises:
        UserError: they cannot be written.
    """
    out_dir = Path(out_dir).expanduser()
    try:
        for name in OUT_FOLDERS:
            folder = out_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        advice = "give a folder of yours (--out, or out_dir in a notebook)"
        raise UserError(f"cannot write to {out_dir} ({error}): {advice}") from error
    return out_dir


def new_stamp(out_dir: str | Path) -> str:
    """A time stamp YYYYmmdd_HHMMSS that no file in `out_dir` carries yet."""
    while True:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        if not any(Path(out_dir).glob(f"*/*_{stamp}.*")):
            return stamp
        time.sleep(0.2)


def write_new(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write(temporary)` and renames that to `path`, so that no half-written file is ever
    seen; returns the path.

    Raises:
        UserError: `path` exists already.
    """
    if path.exists():
        advice = "move it or choose another out_dir"
        raise UserError(f"{path} exists already and is not overwritten: {advice}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:  # gone in any case
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_new` for a text.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """`write_new` for a table, as CSV without its index.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: table.to_csv(temporary, index=False))


def write_figure(path: Path, figure: plt.Figure) -> Path:
    """`write_new` for a figure, as PNG.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def seconds_text(record: StudyRecord) -> str:
    """The seconds of a run, and whether an earlier run has computed its features (then they
    compare with no other run's)."""
    note = f" ({FROM_DISK})" if FROM_DISK in record.timings else ""
    return f"{record.seconds:.0f}{note}"


def save_figure(figure: plt.Figure, out_dir: str | Path, name: str, *, stamp: str) -> Path:
    """Writes a figure as img/NAME_STAMP.png."""
    path = Path(out_dir) / "img" / re.sub(r"[^\w.-]", "_", f"{name}_{stamp}.png")

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")

    return write_new(path, write)

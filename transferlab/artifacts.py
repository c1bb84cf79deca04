"""Writing to model/, result/ and img/: each file whole, none over another, under a new stamp."""

import errno
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from .errors import UserError
from .features import FROM_DISK
from .files import (
    list_names,
    process_mark,
    publish,
    require_regular,
    scratch_folder,
    sweep_folder,
    sweep_scratch,
)
from .records import StudyRecord

OUT_FOLDERS = ("model", "result", "img")
HELD_STAMP = re.compile(r"\.\d{8}_\d{6}")
NAMELESS_SECONDS = 60  # a stamp is held by an empty folder for an instant
OWNER_FILE = "pid"  # in the folder that holds a stamp: the `process_mark` of who holds it
# With these, spreadsheets begin a formula; the last four as some East Asian ones do.
FORMULA_STARTS = "=+\\-@\t\r\n＝＋－＠"
# Where a cell begins: for spreadsheets that separate by ";" or tabs, which do not know the quotes
# around what stands between commas, also inside.
FORMULA = re.compile(f'(?:^|(?<=[;\t\n])"*)(?=[{FORMULA_STARTS}])')


# ---- the folder and the stamp ----------------------------------------------------------------


def prepare_out_dir(out_dir: str | Path) -> Path:
    """Makes model/, result/ and img/ in `out_dir` before any time is spent, and removes what
    killed runs left there.

    Raises:
        UserError: they cannot be written.
    """
    try:
        out_dir = Path(out_dir).expanduser()
        for name in OUT_FOLDERS:
            folder = out_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            sweep_scratch(folder)
    except (OSError, RuntimeError, ValueError) as error:  # of the disk; no such user; a NUL byte
        advice = "give a folder of yours (--out, or out_dir in a notebook)"
        raise UserError(f"cannot write to {out_dir} ({error}): {advice}") from error
    sweep_stamps(out_dir)
    return out_dir


def refuse_inside(place: str | Path, *folders: str | Path) -> None:
    """Makes sure that nothing will be written into folders of images, where figures would be read
    as pictures of one more class.

    Raises:
        UserError: `place` is one of them, or lies in it.
    """
    inner = Path(os.path.realpath(os.path.expanduser(place)))
    above = [one for one in (inner, *inner.parents) if os.path.exists(one)]
    for folder in folders:
        own = os.path.expanduser(folder)
        if os.path.exists(own) and any(one.samefile(own) for one in above):
            told = f"{inner} lies in the images of {folder}, which nothing is written into"
            raise UserError(f"{told}: give --out and --cache-dir elsewhere")


def sweep_stamps(out_dir: Path) -> None:
    """Frees the stamps that killed runs hold; never fails."""
    for name in list_names(out_dir):
        if not HELD_STAMP.fullmatch(name):
            continue
        held = out_dir / name
        sweep_folder(held, read_owner(held))
        with suppress(OSError):  # its owner was killed before it could say who it is
            if time.time() - held.lstat().st_mtime > NAMELESS_SECONDS:
                held.rmdir()  # which only goes where it is empty


def read_owner(held: Path) -> str:
    """The `process_mark` of who holds a stamp; "" where it does not say."""
    owner = held / OWNER_FILE
    try:
        require_regular(owner)
        return owner.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def is_carried(out_dir: Path, stamp: str) -> bool:
    """Whether a file of `out_dir` has the stamp in its name."""
    # Unlike a Path's, this does not mind folders that another process removes meanwhile.
    patterns = (f"*/*_{stamp}.*", f"result/*/*_{stamp}.*")
    return any(glob.glob(pattern, root_dir=out_dir) for pattern in patterns)


@contextmanager
def reserved_stamp(out_dir: str | Path, wanted: str = "") -> Iterator[str]:
    """A time stamp YYYYmmdd_HHMMSS that no file in `out_dir` carries yet, and that nobody else gets
    meanwhile: the hidden folder of its name says that it is taken. `wanted`, where that is free.

    Raises:
        UserError: `out_dir` cannot be written.
    """
    out_dir = Path(out_dir)
    sweep_stamps(out_dir)
    held = hold_stamp(out_dir, wanted)
    try:
        yield held.name[1:]
    finally:
        shutil.rmtree(held, ignore_errors=True)


def hold_stamp(out_dir: Path, wanted: str = "") -> Path:
    """Makes the hidden folder of `wanted`, or else of the first stamp from now on that is free.

    Raises:
        UserError: `out_dir` cannot be written.
    """
    while True:
        stamp = wanted or time.strftime("%Y%m%d_%H%M%S")
        wanted = ""
        held = out_dir / f".{stamp}"
        try:
            held.mkdir()
        except FileExistsError:  # somebody holds it: the next second is another
            time.sleep(0.1)
            continue
        except OSError as error:
            raise cannot_write(out_dir, error) from error
        try:
            (held / OWNER_FILE).write_text(process_mark(), encoding="utf-8")
        except OSError as error:
            shutil.rmtree(held, ignore_errors=True)
            raise cannot_write(out_dir, error) from error
        if not is_carried(out_dir, stamp):
            return held
        shutil.rmtree(held, ignore_errors=True)
        time.sleep(0.1)


# ---- files -----------------------------------------------------------------------------------


def cannot_write(path: Path, error: OSError) -> UserError:
    """The disk's refusal, and what to do."""
    remedy = "its folder is gone: begin again" if error.errno == errno.ENOENT else "make room there"
    advice = f"{remedy}, or give another folder (--out, or out_dir in a notebook)"
    return UserError(f"cannot write {path} ({error.strerror or error}): {advice}")


def write_new(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write(temporary)` and gives that its name, so that no half-written file is ever seen;
    returns the path.

    Raises:
        UserError: `path` exists already, or the disk refuses it.
    """
    try:
        with scratch_folder(path.parent) as folder:
            temporary = folder / path.name
            write(temporary)
            return publish(temporary, path)
    except FileExistsError as error:
        advice = "move it or choose another out_dir"
        raise UserError(f"{path} exists already and is not overwritten: {advice}") from error
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> Path:
    """`write_new` for a text.

    Raises:
        UserError: as `write_new`.
    """

    def write(temporary: Path) -> None:  # halves of characters, as broken names have, are spelt out
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    return write_new(path, write)


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def without_formula(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: one that begins like it, and is no number,
    gets an apostrophe in front, as does what begins like it inside, where some separate cells; a
    carriage return, which would end its line, is spelt out."""
    if not isinstance(value, str):
        return value
    harmless = value if is_number(value) else FORMULA.sub(r"'\g<0>", value)
    return harmless.replace("\r", r"\r")


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """`write_new` for a table, as CSV without its index, names in it harmless to spreadsheets.

    Raises:
        UserError: as `write_new`.
    """
    harmless = table.rename(columns=without_formula)
    for number in range(harmless.shape[1]):
        column = harmless.iloc[:, number]
        if not pd.api.types.is_numeric_dtype(column):
            harmless.isetitem(number, column.map(without_formula))

    def write(temporary: Path) -> None:
        harmless.to_csv(temporary, index=False, errors="backslashreplace")

    return write_new(path, write)


def write_figure(path: Path, figure: plt.Figure, *, tight: bool = False) -> Path:
    """`write_new` for a figure, as PNG; `tight`: cut to what is drawn.

    Raises:
        UserError: as `write_new`.
    """
    box = "tight" if tight else None

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=120, format="png", bbox_inches=box)

    return write_new(path, write)


def seconds_text(record: StudyRecord) -> str:
    """The seconds of a run, and whether an earlier run has computed its features (then they
    compare with no other run's)."""
    note = f" ({FROM_DISK})" if FROM_DISK in record.timings else ""
    return f"{record.seconds:.0f}{note}"


def save_figure(figure: plt.Figure, out_dir: str | Path, name: str, *, stamp: str) -> Path:
    """Writes a figure as img/NAME_STAMP.png."""
    path = Path(out_dir) / "img" / re.sub(r"[^\w.-]", "_", f"{name}_{stamp}.png")
    return write_figure(path, figure, tight=True)


# ---- all or none -----------------------------------------------------------------------------


def is_file(path: Path, status: os.stat_result) -> bool:
    """Whether a path names the file that has this status."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def publish_all(drafts: Sequence[Path]) -> list[Path]:
    """Gives files in hidden folders their names beside these, one right after the other -> the
    names; where one cannot have its name, none has. With the last they stand, whatever comes.

    Raises:
        OSError: as `publish`.
    """
    targets = {draft.parent.parent / draft.name: draft.stat() for draft in drafts}
    try:
        for draft, target in zip(drafts, targets, strict=True):
            publish(draft, target)
    except BaseException:  # a signal too, which may come when a name is just given
        published = [target for target, status in targets.items() if is_file(target, status)]
        if len(published) < len(targets):
            for target in published:
                target.unlink(missing_ok=True)
        raise
    return list(targets)


def write_together(out: Path, write: Callable[[Path, Path, str], Sequence[Path]]) -> list[Path]:
    """Writes all files of a result or none -> their paths. `write(tables, figures, stamp)` writes
    them into two hidden folders; the last is the record, which stands for the whole.

    Raises:
        UserError: one of them cannot be written.
    """
    try:
        with (
            reserved_stamp(out) as stamp,
            scratch_folder(out / "result") as tables,
            scratch_folder(out / "img") as figures,
        ):
            return publish_all(write(tables, figures, stamp))
    except OSError as error:
        raise cannot_write(out, error) from error

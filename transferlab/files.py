"""Files that appear whole under their name or not at all, and what killed processes leave."""

import contextlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ABANDONED_SECONDS = 24 * 3600  # what is hidden and as long unchanged belongs to nobody any more
MOST_LOOKED_AT = 10_000  # of the names in a hidden folder: what holds more stays
LARGEST_JSON = 50 * 2**20  # bytes of a record's file
CLOCK_SECONDS = 60  # by which the time of a folder and that of a process may differ
SCRATCH_NAME = re.compile(r"\.transferlab-(?P<mark>.+-\d+)-[^-]+")
PID_NAMESPACE = Path("/proc/self/ns/pid")  # only Linux has it


# ---- whose a leftover is ---------------------------------------------------------------------


def host_mark() -> str:
    """This machine's name; on Linux also the space that its process numbers belong to, since
    containers of one name may share a folder."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    try:
        return f"{host}_{PID_NAMESPACE.stat().st_ino}"
    except OSError:
        return host


def process_mark() -> str:
    """HOST-PID of this process."""
    return f"{host_mark()}-{os.getpid()}"


def number_of(mark: str) -> int | None:
    """The number of a `process_mark`'s process; None for one of another machine."""
    host, _, number = mark.rpartition("-")
    is_here = host == host_mark() and re.fullmatch(r"\d{1,9}", number, re.ASCII)
    return int(number) if is_here else None


def has_ended(mark: str, since: float = float("inf")) -> bool:
    """Whether a `process_mark` is of a process that has ended; False where nothing tells, as for
    one of another machine. A process that was born after `since` (seconds) has only its number."""
    number = number_of(mark)
    if number is None:
        return False
    try:
        process = psutil.Process(number)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def last_change(folder: Path) -> float:
    """When a folder, or anything in it at any depth, was last changed, in seconds since 1970;
    infinity where it holds too much to look at. What cannot be looked at does not count."""
    newest = folder.lstat().st_mtime
    looked_at = 0
    for place, folders, names in os.walk(folder):
        looked_at += len(folders) + len(names)
        if looked_at > MOST_LOOKED_AT:
            return float("inf")
        for name in (*folders, *names):
            with contextlib.suppress(OSError):  # its owner has just removed it
                newest = max(newest, os.lstat(os.path.join(place, name)).st_mtime)
    return newest


def is_abandoned(folder: Path, mark: str) -> bool:
    """Whether the owner `mark` of a hidden folder has ended; of one on another machine, whether
    nothing in the folder has changed for a day. Never fails."""
    try:
        status = folder.lstat()
    except OSError:  # another process has just finished with it
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    if number_of(mark) is None:
        with contextlib.suppress(OSError):  # gone, as above
            return time.time() - last_change(folder) > ABANDONED_SECONDS
        return False
    return has_ended(mark, since=status.st_mtime + CLOCK_SECONDS)


def sweep_folder(folder: Path, mark: str) -> None:
    """Removes a hidden folder that its owner `mark` has abandoned; never fails."""
    if is_abandoned(folder, mark):
        shutil.rmtree(folder, ignore_errors=True)


def list_names(folder: Path) -> list[str]:
    """The names in a folder; none where it is missing, or cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def sweep_scratch(folder: Path) -> None:
    """Removes the scratch folders in `folder` that their processes have abandoned; never fails."""
    for name in list_names(folder):
        matched = SCRATCH_NAME.fullmatch(name)
        if matched:
            sweep_folder(folder / name, matched["mark"])


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `parent`, removed at the end in any case; what killed processes
    left there goes first.

    Raises:
        OSError: `parent` is missing, or cannot be written.
    """
    sweep_scratch(parent)
    prefix = f".transferlab-{process_mark()}-"
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


# ---- whole or not at all ---------------------------------------------------------------------


def let_others_read(path: Path) -> None:
    """Gives a file the permissions that a new one has here: safetensors writes for its owner alone,
    and parts of a comparison are merged by others. Where a disk knows none, nothing."""
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~mask)


def flush_file(path: Path) -> None:
    """Has the system write a file's contents to the disk now.

    Raises:
        OSError: it cannot.
    """
    for_flushing = os.O_RDONLY if os.name == "posix" else os.O_RDWR
    number = os.open(path, for_flushing)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def flush_folder(folder: Path) -> None:
    """Has the system write a folder's names to the disk now, where it can do that for folders."""
    with contextlib.suppress(OSError):  # not on Windows, nor on some network drives
        flush_file(folder)


def replace_reserved(temporary: Path, target: Path) -> None:
    """Renames where there are no hard links: reserves the name first, so that what is replaced is
    an empty file of one's own.

    Raises:
        FileExistsError: `target` is taken.
        OSError: as the disk says.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        os.replace(temporary, target)
    except BaseException:  # a signal may come just after the rename, which then stands
        if temporary.exists():
            target.unlink(missing_ok=True)
        raise


def publish(temporary: Path, target: Path) -> Path:
    """Gives a whole file its name, never over another; returns the name.

    Raises:
        FileExistsError: `target` is taken, be it by a link to nowhere.
        OSError: as the disk says; nothing is then under the name.
    """
    let_others_read(temporary)
    flush_file(temporary)
    try:
        os.link(temporary, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # no hard links here, as on Google Drive and exFAT
        replace_reserved(temporary, target)
    else:
        temporary.unlink()
    flush_folder(target.parent)
    return target


def replace_whole(temporary: Path, target: Path) -> Path:
    """Gives a whole file its name, over another where one is there: for what is computed once, and
    may be again.

    Raises:
        OSError: as the disk says; what was there is then untouched.
    """
    let_others_read(temporary)
    flush_file(temporary)
    os.replace(temporary, target)
    flush_folder(target.parent)
    return target


def read_json(path: str | Path, *, largest: int = LARGEST_JSON) -> Any:
    """The plain values of a file of JSON of at most `largest` bytes.

    Raises:
        OSError, ValueError: it is missing, damaged, no regular file, too large or too deep.
    """
    path = Path(path)
    require_regular(path)
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"{size / 2**20:.0f} MB are too many, {largest // 2**20} the most")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply to be read") from error


def require_regular(path: Path) -> None:
    """Makes sure that a path leads to a file that ends: opening a pipe would wait for ever.

    Raises:
        ValueError: it is a folder, a pipe, a device or a socket.
        OSError: it is missing, or cannot be looked at.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("no regular file")

"""What notebooks have finished: published whole, remembered, and not done again.

A notebook is executed with an out folder of its own, so a run knows its own files. When it has
ended, the folder gets a journal and is renamed to a pending one, in one step; from then on its
files are published one by one, by this process or, where that is killed, by the next run.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .artifacts import reserved_stamp
from .data import Layout
from .files import (
    flush_file,
    is_abandoned,
    process_mark,
    publish,
    replace_whole,
    require_regular,
    scratch_folder,
)
from .records import from_plain

FINISHED_FOLDER = "result/run_finished"  # of an out folder
PENDING_NAME = re.compile(r"\.pending-(?P<mark>.+-\d+)-[^-]+")
JOURNAL = "journal.json"  # in a pending folder; becomes the record of what is finished
STAMPED = re.compile(r"_(\d{8}_\d{6})\.")


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that a notebook has left."""

    path: str  # in the out folder, with forward slashes
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A notebook that was executed to its end."""

    notebook: str  # its file's stem
    stamp: str  # of its executed copy
    depends_on: dict[str, Any]  # all that decides what comes out, as plain values
    files: tuple[OutputFile, ...]  # in the order in which they are published


# ---- what a result depends on ----------------------------------------------------------------


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        ValueError: it is no regular file.
        OSError: it cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_plain(value: Any) -> str:
    """SHA-256 (hex) of plain values, whatever the order of their mappings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_images(layout: Layout) -> str:
    """SHA-256 (hex) of a folder's parts, classes, names and bytes, undecoded."""
    lines = [f"synthetic: {(layout.folder / 'SYNTHETIC').exists()}"]
    for part, classes in sorted(layout.parts.items()):
        for name, paths in sorted(classes.items()):
            for path in paths:
                try:
                    digest = hash_file(path)
                except (OSError, ValueError):  # which the notebook leaves out, and says so
                    digest = "unreadable"
                lines.append(json.dumps([part, name, str(path.relative_to(layout.folder)), digest]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_weights(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of gathered weights and of what is said of them."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir())}


# ---- the record ------------------------------------------------------------------------------


def record_path(out: Path, notebook: str, depends_on: dict[str, Any]) -> Path:
    """Where what a notebook has finished under these circumstances is remembered."""
    return out / FINISHED_FOLDER / f"{notebook}_{hash_plain(depends_on)[:16]}.json"


def write_journal(path: Path, finished: Finished) -> None:
    """Writes a record with its checksum; it may be half there after a kill."""
    plain = asdict(finished)
    text = json.dumps({"sha256": hash_plain(plain), "finished": plain}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def read_journal(path: Path) -> Finished:
    """A record as it was written.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or none of these; the message says so.
    """
    try:
        require_regular(path)
        plain = json.loads(path.read_text(encoding="utf-8"))
        finished = from_plain(Finished, plain["finished"])
        intact = plain["sha256"] == hash_plain(asdict(finished))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no record that can be read ({error!r:.100})") from error
    places = [PurePosixPath(one.path) for one in finished.files]
    if not intact or any(place.is_absolute() or ".." in place.parts for place in places):
        raise ValueError(f"{path.name} is damaged")
    return finished


def read_finished(out: Path, notebook: str, depends_on: dict[str, Any]) -> Finished | None:
    """What a notebook has finished under these circumstances, all of its files still there; None
    where it has not.

    Raises:
        ValueError: a record speaks of it, but is damaged or another's, or a file is missing or has
            changed; the message says which.
    """
    path = record_path(out, notebook, depends_on)
    try:
        finished = read_journal(path)
    except FileNotFoundError:
        return None
    if (finished.notebook, finished.depends_on) != (notebook, depends_on):
        raise ValueError(f"{path.name} is the record of another run")
    for one in finished.files:
        if not is_intact(out / one.path, one):
            raise ValueError(f"{one.path} is missing, or has changed")
    return finished


def forget(out: Path, notebook: str, depends_on: dict[str, Any]) -> None:
    """Has a notebook run again; its files stay.

    Raises:
        OSError: as the disk says.
    """
    record_path(out, notebook, depends_on).unlink(missing_ok=True)


def is_intact(path: Path, described: OutputFile) -> bool:
    """Whether a file is there as it was published."""
    try:
        return path.stat().st_size == described.size and hash_file(path) == described.sha256
    except (OSError, ValueError):
        return False


# ---- stamps and names ------------------------------------------------------------------------


def output_files(folder: Path) -> list[Path]:
    """All files in a folder, at any depth, relative to it; none that are hidden."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))


def rename_stamp(folder: Path, old: str, new: str) -> None:
    """Gives the files of one stamp another one: in their names, and where a text names it."""
    for place in output_files(folder):
        path = folder / place
        if path.suffix in (".json", ".ipynb"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(old, new), encoding="utf-8")
        path.rename(path.with_name(path.name.replace(f"_{old}.", f"_{new}.")))


def tell_place(notebook: Path, place: Path) -> None:
    """Has an executed copy say where it lies, in place of where it was executed."""
    plain = json.loads(notebook.read_text(encoding="utf-8"))
    told = plain.get("metadata", {}).get("papermill", {})
    if "output_path" in told:
        told["output_path"] = str(place)
        text = json.dumps(plain, indent=1, ensure_ascii=False)
        notebook.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def held_stamps(own: Path, out: Path) -> Iterator[str]:
    """Holds the stamps of what a notebook has written into its `own` folder in `out` too; yields
    the first.

    Where somebody took one of them there meanwhile, the files get others. A file without a stamp,
    such as the executed copy, gets the first.

    Raises:
        UserError: `out` cannot be written.
    """
    matched = [STAMPED.search(place.name) for place in output_files(own)]
    stamps = sorted({one[1] for one in matched if one})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(reserved_stamp(out, wanted)) for wanted in stamps or [""]]
        held.sort()
        # Each is later than the one it replaces, if any: from the last one on none meets another.
        for old, new in reversed(list(zip(stamps, held, strict=False))):
            if old != new:
                rename_stamp(own, old, new)
        for place in output_files(own):
            if not STAMPED.search(place.name):
                path = own / place
                renamed = path.with_name(f"{path.stem}_{held[0]}{path.suffix}")
                path.rename(renamed)
                if renamed.suffix == ".ipynb":
                    tell_place(renamed, out / renamed.relative_to(own))
        yield held[0]


# ---- publishing ------------------------------------------------------------------------------


def in_order(places: list[Path]) -> list[Path]:
    """Files as they are published: descriptions before the weights that they describe."""
    return sorted(places, key=lambda place: (place.suffix == ".safetensors", place))


def bring(source: Path, target: Path) -> None:
    """Publishes a file, also into a folder that lies on another disk.

    Raises:
        FileExistsError: `target` is taken.
        OSError: as the disk says.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with scratch_folder(target.parent) as folder:
            publish(Path(shutil.copyfile(source, folder / target.name)), target)


def publish_outputs(own: Path, out: Path) -> list[Path]:
    """Publishes what a notebook has written into its `own` folder, whose stamps are held in `out`
    -> the files, sorted.

    Raises:
        OSError: `out` cannot be written.
    """
    places = in_order(output_files(own))
    for place in places:
        bring(own / place, out / place)
    return sorted(out / place for place in places)


def describe_file(folder: Path, place: Path) -> OutputFile:
    """A file as a record tells it."""
    path = folder / place
    return OutputFile(path=place.as_posix(), size=path.stat().st_size, sha256=hash_file(path))


def pending_folder(out: Path) -> Path:
    """A new name for a pending folder of this process."""
    return out / FINISHED_FOLDER / f".pending-{process_mark()}-{secrets.token_hex(4)}"


def publish_finished(own: Path, out: Path, notebook: str, depends_on: dict[str, Any]) -> Finished:
    """Publishes what a notebook has written into its `own` folder, which is gone then, and
    remembers it.

    Raises:
        UserError, OSError: `out` cannot be written; the next run publishes what is left.
    """
    with held_stamps(own, out) as stamp:
        finished = Finished(
            notebook=notebook,
            stamp=stamp,
            depends_on=depends_on,
            files=tuple(describe_file(own, place) for place in in_order(output_files(own))),
        )
        write_journal(own / JOURNAL, finished)
        flush_file(own / JOURNAL)
        pending = pending_folder(out)
        pending.parent.mkdir(parents=True, exist_ok=True)
        os.rename(own, pending)
        publish_pending(pending, out, finished)
    return finished


def publish_pending(pending: Path, out: Path, finished: Finished) -> None:
    """Publishes what of a pending folder is not published yet, and remembers it.

    Raises:
        ValueError: a name is taken by another file.
        OSError: as the disk says.
    """
    for one in finished.files:
        source = pending / one.path
        target = out / one.path
        if not source.exists():
            continue  # published before a kill
        try:
            bring(source, target)
        except FileExistsError:
            if target.is_file() and target.stat().st_size == 0:
                replace_whole(source, target)  # a name that was only reserved before a kill
            elif not is_intact(target, one):
                raise ValueError(f"{target} is another's") from None
    record = record_path(out, finished.notebook, finished.depends_on)
    replace_whole(pending / JOURNAL, record)
    shutil.rmtree(pending, ignore_errors=True)


def finish_pending(out: Path) -> None:
    """Publishes what killed runs had finished, but not published to the end.

    Raises:
        OSError: as the disk says.
    """
    for pending in sorted((out / FINISHED_FOLDER).glob(".pending-*")):
        matched = PENDING_NAME.fullmatch(pending.name)
        if not matched or not is_abandoned(pending, matched["mark"]):
            continue
        claimed = pending_folder(out)
        try:
            os.rename(pending, claimed)  # only one process can
        except FileNotFoundError:
            continue
        try:
            finished = read_journal(claimed / JOURNAL)
            for one in finished.files:
                if not is_intact(claimed / one.path, one) and not is_intact(out / one.path, one):
                    raise ValueError(f"{one.path} is damaged")  # the disk lost it, as after a crash
            publish_pending(claimed, out, finished)
        except (FileNotFoundError, ValueError):  # what is not whole is run again
            shutil.rmtree(claimed, ignore_errors=True)

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .artifacts import reserved_stamp
from .data import Layout
from .errors import UserError, printable
from .files import (
    flush_file,
    is_abandoned,
    process_mark,
    publish,
    read_json,
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
        plain = read_json(path)
        finished = from_plain(Finished, plain["finished"])
        intact = plain["sha256"] == hash_plain(asdict(finished))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no record that can be read ({error!r:.100})") from error
    places = [PurePosixPath(one.path) for one in finished.files]
    is_named = re.fullmatch(r"[\w.-]{1,100}", finished.notebook)
    is_outside = any(place.is_absolute() or ".." in place.parts for place in places)
    if not intact or not is_named or is_outside:
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
    record = record_path(out, notebook, depends_on)
    if not record.is_dir():  # which is no record
        record.unlink(missing_ok=True)


def prepare_records(out: Path) -> None:
    """Makes the folder of records in `out`, and makes sure that what is finished can be moved
    there.

    Raises:
        UserError: it cannot.
    """
    records = out / FINISHED_FOLDER
    try:
        records.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out / "result") as scratch:
            probe = scratch / "probe"
            probe.mkdir()
            moved = pending_folder(out)
            os.rename(probe, moved)
            moved.rmdir()
    except OSError as error:
        advice = "move away what has that name, allow it there, or give another --out"
        reason = error.strerror or error
        raise UserError(f"cannot keep records in {records} ({reason}): {advice}") from error


def remember(journal: Path, record: Path) -> None:
    """Gives a journal the name of its record; says so where a folder has that name.

    Raises:
        OSError: as the disk says.
    """
    try:
        replace_whole(journal, record)
    except OSError:
        if not record.is_dir():
            raise
        what = "is a folder: what was finished is published, but will be run again; move it away"
        print(printable(f"{record} {what}"), flush=True)


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


def stamped_name(name: str, new_of: Mapping[str, str], first: str) -> str:
    """A file's name with other stamps; with the `first` where it has none."""
    if not STAMPED.search(name):
        return f"{Path(name).stem}_{first}{Path(name).suffix}"
    return STAMPED.sub(lambda found: f"_{new_of[found[1]]}.", name)


def change_texts(folder: Path, new_of: Mapping[str, str]) -> None:
    """Has the texts in a folder name other stamps, all at once."""
    changed = {old.encode(): new.encode() for old, new in new_of.items() if old != new}
    if not changed:
        return
    pattern = re.compile(b"|".join(changed))
    for place in output_files(folder):
        if place.suffix in (".json", ".ipynb"):
            path = folder / place
            path.write_bytes(pattern.sub(lambda found: changed[found[0]], path.read_bytes()))


def rename_all(folder: Path, wanted: Mapping[Path, Path]) -> None:
    """Renames files of a folder, none over another: all go aside first, since the new name of one
    may be the old name of another.

    Raises:
        UserError: two would get one name, or it is taken; nothing is renamed.
    """
    given: dict[Path, Path] = {}
    for old, new in wanted.items():
        if new in given or (new not in wanted and os.path.lexists(folder / new)):
            other = given.get(new, new)
            raise UserError(f"{old} and {other} would both be called {new}: have one called else")
        given[new] = old
    aside = {old: old.with_name(f".{number}~") for number, old in enumerate(wanted)}
    for old, hidden in aside.items():
        (folder / old).rename(folder / hidden)
    for old, hidden in aside.items():
        (folder / hidden).rename(folder / wanted[old])


def tell_place(notebook: Path, place: Path) -> None:
    """Has an executed copy say where it lies, in place of where it was executed; any other file
    stays as it is."""
    try:
        plain = read_json(notebook)
        plain["metadata"]["papermill"] |= {"output_path": str(place)}
    except (ValueError, KeyError, TypeError):
        return
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    notebook.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def held_stamps(own: Path, out: Path) -> Iterator[str]:
    """Holds the stamps of what a notebook has written into its `own` folder in `out` too; yields
    the first.

    Where somebody took one of them there meanwhile, the files get others. A file without a stamp,
    such as the executed copy, gets the first.

    Raises:
        UserError: `out` cannot be written; as `rename_all`.
    """
    places = output_files(own)
    stamps = sorted({stamp for place in places for stamp in STAMPED.findall(place.name)})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(reserved_stamp(out, wanted)) for wanted in stamps or [""]]
        held.sort()  # in their order, so that what was written later stays the later
        new_of = dict(zip(stamps, held, strict=False))
        change_texts(own, new_of)
        wanted = {one: one.with_name(stamped_name(one.name, new_of, held[0])) for one in places}
        rename_all(own, wanted)
        for place in places:
            if place.suffix == ".ipynb" and not STAMPED.search(place.name):
                tell_place(own / wanted[place], out / wanted[place])
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
        UserError, OSError: `out` cannot be written, or a name is taken; the next run publishes
            what is left.
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
        try:
            publish_pending(pending, out, finished)
        except UserError as error:
            raise UserError(f"{error}: move it and run again") from error
    return finished


def require_ours(target: Path, described: OutputFile) -> None:
    """Makes sure that a name is free, only reserved, or has got its file already.

    Raises:
        UserError: it is taken by another file.
    """
    reserved = target.is_file() and target.stat().st_size == 0
    if os.path.lexists(target) and not reserved and not is_intact(target, described):
        raise UserError(f"{target} is another's and is not overwritten")


def publish_pending(pending: Path, out: Path, finished: Finished) -> None:
    """Publishes what of a pending folder is not published yet, and remembers it.

    Raises:
        UserError: a name is taken by another file.
        OSError: as the disk says.
    """
    for one in finished.files:  # before any more is published
        require_ours(out / one.path, one)
    for one in finished.files:
        source = pending / one.path
        target = out / one.path
        if not source.exists():
            continue  # published before a kill
        try:
            bring(source, target)
        except FileExistsError:
            require_ours(target, one)
            if not is_intact(target, one):
                replace_whole(source, target)  # a name that was only reserved before a kill
    record = record_path(out, finished.notebook, finished.depends_on)
    remember(pending / JOURNAL, record)
    shutil.rmtree(pending, ignore_errors=True)


def read_pending(pending: Path, out: Path) -> Finished:
    """The journal of a pending folder, each of whose files is whole there, or published.

    Raises:
        ValueError: it is damaged, or a file is, as after a crash of the machine.
    """
    finished = read_journal(pending / JOURNAL)
    for one in finished.files:
        if not is_intact(pending / one.path, one) and not is_intact(out / one.path, one):
            raise ValueError(f"{one.path} is damaged")
    return finished


def lay_aside(folder: Path, out: Path, reason: Exception) -> None:
    """Keeps finished work that cannot be published where anyone sees it, and says why.

    Raises:
        OSError: as the disk says.
    """
    kept = out / "result" / f"unpublished_{secrets.token_hex(4)}"
    os.rename(folder, kept)
    what = "what a run had finished is not published"
    print(printable(f"{what} ({reason}): what is left of it lies in {kept}"), flush=True)


def finish_pending(out: Path) -> None:
    """Publishes what killed runs had finished, but not published to the end; what is damaged, or
    whose names are taken, is laid aside and told.

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
        if not os.path.lexists(claimed / JOURNAL):  # it is the record: all is published
            shutil.rmtree(claimed, ignore_errors=True)
            continue
        try:
            publish_pending(claimed, out, read_pending(claimed, out))
        except (UserError, ValueError) as error:
            lay_aside(claimed, out, error)

"""Fetch the study's two image sets, whole or not at all.

Everything comes down in a hidden folder beside its target, is checked there, and is renamed last:
what lies at the target is whole, whatever interrupted an earlier run. An interrupted download
starts again from its beginning.
"""

import errno
import importlib.util
import io
import os
import queue
import socket
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.request import urlopen

from tqdm import tqdm

from .errors import DataError, UserError, printable
from .files import scratch_folder, sweep_scratch

HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
# Files, not usable images: one of train/ants is a "not found" placeholder, which is dropped when
# the images are read.
HYMENOPTERA_COUNTS = {"train/ants": 124, "train/bees": 121, "val/ants": 70, "val/bees": 83}
# The pin is to be checked online; it could not be checked yet. The class counts decide.
MANGA_FACE_HANDLE = "mertkkl/manga-facial-expressions/versions/1"
MANGA_FACE_URL = "https://www.kaggle.com/datasets/mertkkl/manga-facial-expressions"
MANGA_FACE_COUNTS = {
    "angry": 53,
    "crying": 55,
    "embarrassed": 66,
    "happy": 86,
    "pleased": 37,
    "sad": 56,
    "shock": 102,
}
COUNTED_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
CONNECT_SECONDS = 12  # without a word from the other side
DOWNLOAD_SECONDS = 1800  # in all: a server that trickles is given up too
LARGEST_DOWNLOAD = 10**9  # bytes; the data are 47 MB
LARGEST_UNPACKED = 10**9  # bytes: a small archive may hold very much of nothing
MOST_MEMBERS = 100_000
# What unpacking fails with where the archive is at fault, not the disk. Without a number: bz2's.
ARCHIVE_FAULTS = (None, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)


class DownloadError(DataError):
    """The data cannot be had where they are published; wrong data are a plain `UserError`."""


def by_hand(url: str, target: Path) -> str:
    """The end of every message here: how to get the data without this code."""
    return (
        f"By hand: get {url} and unpack it as {target}, "
        "or as any folder, named in the parameter data_dir"
    )


def read_in_background(url: str) -> queue.Queue[Any]:
    """What `url` serves, as it comes: its length (None: not told), its blocks, then b"", or the
    error that ended it. A thread reads, since a trickling server holds up whoever waits for it."""
    arriving: queue.Queue[Any] = queue.Queue(maxsize=16)

    def read() -> None:
        try:
            with urlopen(url, timeout=CONNECT_SECONDS) as response:
                arriving.put(response.length)
                while block := response.read1(1 << 18):
                    arriving.put(block)
                arriving.put(b"")
        except Exception as error:  # is raised where it is waited for
            arriving.put(error)

    threading.Thread(target=read, daemon=True).start()
    return arriving


def next_arriving(arriving: queue.Queue[Any], deadline: float) -> Any:
    """What comes next, waited for until `deadline`, in seconds of `time.monotonic`.

    Raises:
        DownloadError: nothing more has come, or an error.
    """
    try:
        arrived = arriving.get(timeout=max(deadline - time.monotonic(), 0))
    except queue.Empty:
        raise DownloadError(f"not whole after {DOWNLOAD_SECONDS} s") from None
    if isinstance(arrived, Exception):
        reason = " ".join(str(arrived).split()) or type(arrived).__name__
        raise DownloadError(printable(reason)) from arrived
    return arrived


def write_arriving(arriving: queue.Queue[Any], path: Path) -> None:
    """Writes all that comes to `path`, with a progress bar.

    Raises:
        DownloadError: it breaks off, is too large, or takes longer than `DOWNLOAD_SECONDS`.
        OSError: the disk refuses it.
    """
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    total = next_arriving(arriving, deadline)
    shown = {"unit": "B", "unit_scale": True, "file": sys.stdout, "ascii": True}
    with open(path, "wb") as file, tqdm(desc=path.name, total=total, **shown) as bar:
        while block := next_arriving(arriving, deadline):
            bar.update(file.write(block))
            if bar.n > LARGEST_DOWNLOAD:
                raise DownloadError(f"it is larger than {LARGEST_DOWNLOAD / 1e6:.0f} MB")
        if total is not None and bar.n != total:
            raise DownloadError(f"the connection ended after {bar.n} of {total} bytes")


def fetch_url(url: str, path: Path, advice: str) -> None:
    """Writes what `url` serves to `path`, with a progress bar.

    Raises:
        DownloadError: no answer, HTTP 4xx or 5xx, a stall, and as `write_arriving`.
        OSError: the disk refuses it.
    """
    try:
        write_arriving(read_in_background(url), path)
    except DownloadError as error:
        raise DownloadError(f"Cannot fetch {url}: {error}. {advice}") from error


def is_safe_member(name: str, file_type: int) -> bool:
    """Says whether a member of an archive is a file or folder that lies where it is unpacked."""
    linked = file_type not in (0, 4, 8)  # of Unix: unknown, folder, file
    has_root = name.startswith("/") or ":" in name
    return not linked and not has_root and ".." not in name.split("/")


def check_members(members: zipfile.ZipFile) -> None:
    """Looks at all names, kinds and sizes of an archive before anything of it is written.

    Raises:
        UserError: a member that is a link or would lie elsewhere; more than there should be.
    """
    listed = members.infolist()
    for member in listed:
        # As stored: zipfile mends some names silently.
        name = member.orig_filename.replace("\\", "/")
        if not is_safe_member(name, member.external_attr >> 28):
            raise UserError(f"unsafe member {printable(name)!r:.200}")
    size = sum(member.file_size for member in listed)  # zipfile never unpacks more than is said
    if size > LARGEST_UNPACKED or len(listed) > MOST_MEMBERS:
        most = f"at most {LARGEST_UNPACKED / 1e6:.0f} MB in {MOST_MEMBERS} files are expected"
        raise UserError(f"it unpacks to {size / 1e6:.0f} MB in {len(listed)} files, {most}")


def unpack_zip(archive: Path, folder: Path, advice: str) -> None:
    """Unpacks `archive` into `folder`.

    All names, kinds and sizes are checked before the first write, CRCs as the members are read.

    Raises:
        UserError: not a whole zip file, or as `check_members`.
        OSError: the disk refuses it.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            check_members(members)
            members.extractall(folder)
    except UserError as error:
        raise UserError(f"{archive.name}: {error}, nothing was unpacked. {advice}") from error
    except Exception as error:  # zipfile's, zlib's, lzma's, bz2's, struct's, of names
        if isinstance(error, OSError) and error.errno not in ARCHIVE_FAULTS:
            raise
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise UserError(
            f"{archive.name} came down damaged: {reason}. Run again. {advice}"
        ) from error


def count_images(folder: Path) -> Counter[str]:
    """The number of image files in each folder below `folder`, hidden ones left out."""
    counts: Counter[str] = Counter()
    for path in folder.rglob("*"):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if below.suffix.lower() in COUNTED_SUFFIXES and not hidden:
            counts[below.parent.as_posix()] += 1
    return counts


def describe_counts(counts: Mapping[str, int]) -> str:
    """The counts in one line, by name."""
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


def check_counts(folder: Path, expected: Mapping[str, int], advice: str) -> None:
    """Counts the image files in each folder below `folder`, hidden ones left out.

    Raises:
        UserError: the counts are not exactly `expected`, {"folder": n}.
    """
    found = count_images(folder)
    if found != expected:
        wanted = describe_counts(expected)
        got = describe_counts(found) or "no images"
        raise UserError(f"What came down is not the data expected: {wanted}; found {got}. {advice}")


@contextmanager
def folder_to_become(target: Path) -> Iterator[Path]:
    """Yields a new hidden folder beside `target`, removed at the end; what killed downloads left
    goes first.

    Raises:
        UserError: the disk is full, or the place cannot be written (network errors are
            `DownloadError` by then).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            yield folder
    except BrokenPipeError:  # of the progress bar's reader
        raise
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error}. Make room or go elsewhere") from error


def put_in_place(images: Path, target: Path) -> None:
    """Renames a whole folder; one that another download has put there meanwhile stays.

    Raises:
        OSError: as the disk says.
    """
    try:
        images.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def download_hymenoptera(data_root: str | Path) -> Path:
    """Returns `data_root/hymenoptera_data`, the PyTorch tutorial's ants and bees.

    They are fetched where they are not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: what came down is damaged, unsafe or other data, or the disk refuses it.
    """
    target = Path(data_root) / "hymenoptera_data"
    sweep_scratch(target.parent)
    if target.is_dir():
        return target
    advice = by_hand(HYMENOPTERA_URL, target)
    with folder_to_become(target) as folder:
        archive = folder / "hymenoptera_data.zip"
        fetch_url(HYMENOPTERA_URL, archive, advice)
        unpacked = folder / "unpacked"
        unpack_zip(archive, unpacked, advice)
        images = unpacked / target.name
        check_counts(images, HYMENOPTERA_COUNTS, advice)
        put_in_place(images, target)
    return target


def fetch_from_kaggle(handle: str, advice: str, seconds: float = 1800) -> Path:
    """Kaggle's dataset where kagglehub keeps it, downloaded where it is missing.

    Raises:
        DataError: kagglehub is missing; Kaggle cannot be reached, refuses (a login may be
            required), breaks off, sends damaged files, or is not done within `seconds`.
    """
    try:
        import kagglehub  # which waits for minutes where nothing answers: hence the connection

        if not Path(kagglehub.config.get_cache_folder(), "datasets", handle).is_dir():
            socket.create_connection(("api.kaggle.com", 443), timeout=12).close()
        return Path(ThreadPool(1).apply_async(kagglehub.dataset_download, [handle]).get(seconds))
    except Exception as error:  # requests', zipfile's, its own: all mean that nothing came
        raise DataError(f"cannot fetch {handle} from Kaggle: {error!r:.200}. {advice}") from error


def fetch_zip(url: str, target: Path, seconds: float = 1800) -> Path:
    """The archive at `url`, its folder of that name unpacked as `target`, which appears whole.

    Raises:
        DataError: it cannot be fetched within `seconds`, or unpacked.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".transferlab-nb-0-", dir=target.parent) as folder:
            coming = ThreadPool(1).apply_async(lambda: urlopen(url, timeout=12).read(2**28))
            archive = zipfile.ZipFile(io.BytesIO(coming.get(timeout=seconds)))
            if sum(member.file_size for member in archive.infolist()) > 10**9:
                raise ValueError("it unpacks to more than 1 GB")
            archive.extractall(folder)
            return Path(folder, target.name).rename(target)
    except Exception as error:  # the network's, zipfile's, zlib's, the disk's
        raise DataError(f"cannot fetch {url} ({error!r:.200}): unpack it as {target}") from error


def download_manga_faces(data_root: str | Path) -> Path:
    """Returns `data_root/manga_facial_expressions`, Kaggle's seven classes of faces.

    They are fetched where they are not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: kagglehub is missing, what came down is other data, or the disk refuses it.
    """
    target = Path(data_root) / "manga_facial_expressions"
    sweep_scratch(target.parent)
    if target.is_dir():
        return target
    advice = by_hand(MANGA_FACE_URL, target)
    if importlib.util.find_spec("kagglehub") is None:
        raise UserError(f"Kaggle's data needs kagglehub: pip install kagglehub. {advice}")
    with folder_to_become(target) as folder:
        # The mounts of Colab and Kaggle are passed over: they are read-only, lie elsewhere, and are
        # waited for endlessly.
        environment = {
            "KAGGLEHUB_CACHE": str(folder),
            "DISABLE_COLAB_CACHE": "1",
            "DISABLE_KAGGLE_CACHE": "1",
        }
        try:
            with patch.dict(os.environ, environment):
                fetch_from_kaggle(MANGA_FACE_HANDLE, advice)
        except DataError as error:
            raise DownloadError(str(error)) from error
        # The archive may have folders of its own, below kagglehub's
        # (datasets/OWNER/NAME/versions/1).
        classes = [path for path in sorted(folder.rglob("angry")) if "__MACOSX" not in path.parts]
        images = classes[0].parent if classes else folder
        check_counts(images, MANGA_FACE_COUNTS, advice)
        put_in_place(images, target)
    return target

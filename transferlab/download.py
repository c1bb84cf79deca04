"""Fetch the study's two image sets, whole or not at all.

Everything comes down in a hidden folder beside its target, is checked there, and is renamed last:
what lies at the target is whole, whatever interrupted an earlier run. An interrupted download
starts again from its beginning.
"""

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

from tqdm import tqdm

from .errors import DataError, UserError

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
CONNECT_SECONDS = 12


class DownloadError(DataError):
    """The data cannot be had where they are published; wrong data are a plain `UserError`."""


def by_hand(url: str, target: Path) -> str:
    """The end of every message here: how to get the data without this code."""
    return (
        f"By hand: get {url} and unpack it as {target}, "
        "or as any folder, named in the parameter data_dir"
    )


def fetch_url(url: str, path: Path, advice: str) -> None:
    """Writes what `url` serves to `path`, with a progress bar.

    Raises:
        DownloadError: no answer, HTTP 4xx or 5xx, a stall, or a body that ends too early.
    """
    try:
        with urlopen(url, timeout=CONNECT_SECONDS) as response, open(path, "wb") as file:
            total = response.length
            with tqdm(
                desc=path.name,
                total=total,
                unit="B",
                unit_scale=True,
                file=sys.stdout,
                ascii=True,
            ) as bar:
                while block := response.read(1 << 18):
                    bar.update(file.write(block))
            if total is not None and bar.n != total:
                raise HTTPException(f"the connection ended after {bar.n} of {total} bytes")
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"Cannot fetch {url}: {error}. {advice}") from error


def is_safe_member(name: str, file_type: int) -> bool:
    """Says whether a member of an archive is a file or folder that lies where it is unpacked."""
    linked = file_type not in (0, 4, 8)  # of Unix: unknown, folder, file
    has_root = name.startswith("/") or ":" in name
    return not linked and not has_root and ".." not in name.split("/")


def unpack_zip(archive: Path, folder: Path, advice: str) -> None:
    """Unpacks `archive` into `folder`.

    All names and kinds are checked before the first write, CRCs as the members are read.

    Raises:
        UserError: not a whole zip file, or a member that is a link or would lie outside `folder`.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                # As stored: zipfile mends some names silently.
                name = member.orig_filename.replace("\\", "/")
                if not is_safe_member(name, member.external_attr >> 28):
                    raise UserError(
                        f"{archive.name}: unsafe member {name!r}, nothing was unpacked. {advice}"
                    )
            members.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{archive.name} came down damaged: {error}. Run again. {advice}"
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
    """Yields a new hidden folder beside `target`, removed at the end.

    Raises:
        UserError: the disk is full, or the place cannot be written (network errors are
            `DownloadError` by then).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error}. Make room or go elsewhere") from error


def download_hymenoptera(data_root: str | Path) -> Path:
    """Returns `data_root/hymenoptera_data`, the PyTorch tutorial's ants and bees.

    They are fetched where they are not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: what came down is damaged, unsafe or other data, or the disk refuses it.
    """
    target = Path(data_root) / "hymenoptera_data"
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
        images.rename(target)
    return target


def fetch_from_kaggle(handle: str, advice: str) -> Path:
    """Kaggle's dataset where kagglehub keeps it, downloaded where it is missing.

    Raises:
        DataError: kagglehub is missing; Kaggle cannot be reached, refuses (a login may be
            required), breaks off or sends damaged files.
    """
    try:
        import kagglehub  # which waits for minutes where nothing answers: hence the next line

        socket.create_connection(("api.kaggle.com", 443), timeout=12).close()
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # requests', zipfile's, its own: all mean that nothing came
        raise DataError(f"cannot fetch {handle} from Kaggle: {error!r:.200}. {advice}") from error


def fetch_zip(url: str, target: Path) -> Path:
    """The archive at `url`, its folder of that name unpacked as `target`, which appears whole.

    Raises:
        DataError: it cannot be fetched or unpacked.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
            archive = Path(folder, "archive.zip")
            with urlopen(url, timeout=12) as response, archive.open("wb") as file:
                shutil.copyfileobj(response, file)
            shutil.unpack_archive(archive, folder)
            return Path(folder, target.name).rename(target)
    except Exception as error:  # the network's, zipfile's, zlib's, the disk's
        raise DataError(f"cannot fetch {url} ({error}): unpack it as {target}") from error


def download_manga_faces(data_root: str | Path) -> Path:
    """Returns `data_root/manga_facial_expressions`, Kaggle's seven classes of faces.

    They are fetched where they are not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: kagglehub is missing, what came down is other data, or the disk refuses it.
    """
    target = Path(data_root) / "manga_facial_expressions"
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
        images.rename(target)
    return target

"""Fetch the study's two image sets, whole or not at all.

Everything comes down in a hidden folder beside its target, is checked there, and is renamed last: what lies at the
target is whole, whatever interrupted an earlier run. An interrupted download starts again from its beginning.
"""

import os
import socket
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

from tqdm import tqdm

from .errors import UserError

HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
# Files, not usable images: one of train/ants is a "not found" placeholder, which is dropped when the images are read.
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
KAGGLE_ADDRESS = ("api.kaggle.com", 443)
COUNTED_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
CONNECT_SECONDS = 12


class DownloadError(UserError):
    """The data cannot be had from where they are published; what came down wrong is a plain `UserError`."""


def by_hand(url, target):
    """The end of every message here: how to get the data without this code."""
    return f"By hand: get {url} and unpack it as {target}, or as any folder, named in the parameter data_dir"


def fetch_url(url, path, advice):
    """Writes what `url` serves to `path`, with a progress bar.

    Raises:
        DownloadError: no answer, HTTP 4xx or 5xx, a stall, or a body that ends too early.
    """
    try:
        with urlopen(url, timeout=CONNECT_SECONDS) as response, open(path, "wb") as file:
            total = response.length
            with tqdm(
                desc=path.name, total=total, unit="B", unit_scale=True, file=sys.stdout, ascii=True
            ) as bar:
                while block := response.read(1 << 18):
                    bar.update(file.write(block))
            if total is not None and bar.n != total:
                raise HTTPException(f"the connection ended after {bar.n} of {total} bytes")
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"Cannot fetch {url}: {error}. {advice}") from error


def unpack_zip(archive, folder, advice):
    """Unpacks `archive` into `folder`; all names and kinds are checked before the first write, CRCs as they are read.

    Raises:
        UserError: not a whole zip file, or a member that is a link or would lie outside `folder`.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                name = member.orig_filename.replace(
                    "\\", "/"
                )  # as stored: zipfile mends some names silently
                linked = member.external_attr >> 28 not in (
                    0,
                    4,
                    8,
                )  # Unix file types: unknown, folder, file
                if linked or name.startswith("/") or ".." in name.split("/") or ":" in name:
                    raise UserError(
                        f"{archive.name}: unsafe member {name!r}, nothing was unpacked. {advice}"
                    )
            members.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{archive.name} came down damaged: {error}. Run again. {advice}"
        ) from error


def check_counts(folder, expected, advice):
    """Counts the image files in each folder below `folder`, hidden ones left out.

    Raises:
        UserError: the counts are not exactly `expected`, a dict {"folder": n}.
    """
    files = [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in COUNTED_SUFFIXES
    ]
    found = Counter(
        path.parent.as_posix()
        for path in files
        if not any(part.startswith(".") for part in path.parts)
    )
    if found != expected:
        wanted, got = (
            ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
            for counts in (expected, found)
        )
        raise UserError(
            f"What came down is not the data expected: {wanted}; found {got or 'no images'}. {advice}"
        )


@contextmanager
def folder_to_become(target):
    """Yields a new hidden folder beside `target`, removed at the end.

    Raises:
        UserError: the disk is full, or the place cannot be written (network errors are `DownloadError` by then).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error}. Make room or go elsewhere") from error


def download_hymenoptera(data_root):
    """Returns `data_root/hymenoptera_data`, the PyTorch tutorial's ants and bees, fetched where it is not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: what came down is damaged, unsafe or other data, or the disk refuses it.
    """
    target = Path(data_root) / "hymenoptera_data"
    if target.is_dir():
        return target
    advice = by_hand(HYMENOPTERA_URL, target)
    with folder_to_become(target) as folder:
        fetch_url(HYMENOPTERA_URL, folder / "hymenoptera_data.zip", advice)
        unpack_zip(folder / "hymenoptera_data.zip", folder / "unpacked", advice)
        check_counts(folder / "unpacked" / target.name, HYMENOPTERA_COUNTS, advice)
        (folder / "unpacked" / target.name).rename(target)
    return target


def fetch_from_kaggle(handle, folder, advice):
    """Lets kagglehub download and unpack `handle` somewhere under `folder`; it shows its own progress.

    Raises:
        DownloadError: Kaggle cannot be reached, refuses (a login may be required), breaks off or sends damaged files.
        UserError: kagglehub is missing.
    """
    try:
        import kagglehub
    except ImportError:
        raise UserError(
            f"Downloading from Kaggle needs kagglehub: pip install kagglehub. {advice}"
        ) from None
    try:  # asked first whether it answers: kagglehub alone would wait for minutes
        socket.create_connection(KAGGLE_ADDRESS, timeout=CONNECT_SECONDS).close()
        # The mounts of Colab and Kaggle are passed over: they are read-only, lie elsewhere, and are waited for endlessly.
        with patch.dict(
            os.environ,
            {
                "KAGGLEHUB_CACHE": str(folder),
                "DISABLE_COLAB_CACHE": "1",
                "DISABLE_KAGGLE_CACHE": "1",
            },
        ):
            kagglehub.dataset_download(handle)
    except (
        Exception
    ) as error:  # requests', zipfile's, kagglehub's own: all mean that Kaggle did not deliver
        raise DownloadError(
            f"Cannot fetch {handle} from Kaggle: {' '.join(str(error).split())}. {advice}"
        ) from error


def download_manga_faces(data_root):
    """Returns `data_root/manga_facial_expressions`, Kaggle's seven classes of faces, fetched where it is not there yet.

    Raises:
        DownloadError: it cannot be fetched.
        UserError: kagglehub is missing, what came down is other data, or the disk refuses it.
    """
    target = Path(data_root) / "manga_facial_expressions"
    if target.is_dir():
        return target
    advice = by_hand(MANGA_FACE_URL, target)
    with folder_to_become(target) as folder:
        fetch_from_kaggle(MANGA_FACE_HANDLE, folder, advice)
        # The archive may have folders of its own, below kagglehub's (datasets/OWNER/NAME/versions/1).
        places = [
            path.parent for path in sorted(folder.rglob("angry")) if "__MACOSX" not in path.parts
        ]
        check_counts(places[0] if places else folder, MANGA_FACE_COUNTS, advice)
        places[0].rename(target)
    return target

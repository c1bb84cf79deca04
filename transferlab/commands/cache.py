"""`transferlab cache`: list or clear the features that are kept on disk."""

import argparse
import time
from typing import Any

import pandas as pd

from ..errors import UserError, printable
from ..store import KeptFile, cache_bound, kept_files, kept_key, open_store, trim_store
from .options import add_cache

COLUMNS = ["model", "view", "precision", "images", "data", "MB", "used"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "delete them all, e.g. cache --clear"
    parser.add_argument("--clear", action="store_true", help=text)
    add_cache(parser)


def described_key(key: dict[str, Any]) -> dict[str, str]:
    """What the list shows of a key.

    Raises:
        Exception: of many kinds, where it is no key of features or predictions.
    """
    return {
        "model": printable(str(key["model"])),
        "view": printable(str(key.get("view", ""))),
        "precision": printable(key["precision"].removeprefix("torch.")),
        "images": str(len(key.get("indices", ()))),
        "data": printable(key["data"][:8]),
    }


def time_text(seconds: float) -> str:
    """A time since 1970 to the minute; "" for one that is no date."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OSError, OverflowError, ValueError):
        return ""


def describe_kept(file: KeptFile) -> dict[str, Any]:
    """A row of the list; of a damaged file what is wrong with it."""
    try:
        row: dict[str, Any] = dict(described_key(kept_key(file.path)))
    except Exception as error:  # a damaged header fails in many ways; each is shown as what it is
        row = {"model": f"unreadable ({type(error).__name__})"}
    return row | {"MB": file.size / 1e6, "used": time_text(file.used)}


def run(options: argparse.Namespace) -> int:
    """Prints what lies in the store, or clears it.

    Raises:
        UserError: none is named, it is no folder, or cannot be written.
    """
    folder = open_store(options.cache_dir).folder
    if folder is None:
        raise UserError("--cache-dir is empty: name the folder of kept features")
    shown = printable(str(folder))
    if options.clear:
        trimmed = trim_store(folder)
        print(f"{trimmed.files} files, {trimmed.size / 1e6:.1f} MB deleted from {shown}")
        return 0
    files = kept_files(folder)
    rows = [describe_kept(file) for file in reversed(files)]
    if rows:
        table = pd.DataFrame(rows, columns=COLUMNS)
        print(table.to_string(index=False, na_rep="", float_format="%.2f"))
    total = sum(file.size for file in files) / 1e6
    bound = cache_bound() / 1e6
    print(f"{len(files)} files, {total:.1f} MB of at most {bound:.0f} MB in {shown}")
    return 0

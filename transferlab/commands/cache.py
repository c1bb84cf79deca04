"""`transferlab cache`: list or clear the features that are kept on disk."""

import argparse
import time
from typing import Any

import pandas as pd

from ..errors import UserError
from ..store import KeptFile, cache_bound, kept_files, kept_key, open_store, trim_store
from .options import add_cache


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "delete them all, e.g. cache --clear"
    parser.add_argument("--clear", action="store_true", help=text)
    add_cache(parser)


def describe_kept(file: KeptFile) -> dict[str, Any]:
    """A row of the list; of a damaged file what is wrong with it."""
    row: dict[str, Any] = {}
    try:
        key = kept_key(file.path)
        row["model"] = key["model"]
        row["view"] = key.get("view", "")
        row["precision"] = key["precision"].removeprefix("torch.")
        row["images"] = len(key.get("indices", ()))
        row["data"] = key["data"][:8]
    except Exception as error:  # a damaged header fails in many ways; each is shown as what it is
        row["model"] = f"unreadable ({type(error).__name__})"
    row["MB"] = file.size / 1e6
    row["used"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.used))
    return row


def run(options: argparse.Namespace) -> int:
    """Prints what lies in the store, or clears it.

    Raises:
        UserError: none is named, it is no folder, or cannot be written.
    """
    folder = open_store(options.cache_dir).folder
    if folder is None:
        raise UserError("--cache-dir is empty: name the folder of kept features")
    if options.clear:
        trimmed = trim_store(folder)
        print(f"{trimmed.files} files, {trimmed.size / 1e6:.1f} MB deleted from {folder}")
        return 0
    files = kept_files(folder)
    rows = [describe_kept(file) for file in reversed(files)]
    if rows:
        table = pd.DataFrame(rows)
        print(table.to_string(index=False, na_rep="", float_format="%.2f"))
    total = sum(file.size for file in files) / 1e6
    bound = cache_bound() / 1e6
    print(f"{len(files)} files, {total:.1f} MB of at most {bound:.0f} MB in {folder}")
    return 0

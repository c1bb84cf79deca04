"""Features on disk: a run that asks again for what an earlier one computed reads it instead.

A notebook holds `load_or_extract` only; bounds, locking, listing and clearing are for the commands.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .backbones import tensor_hash
from .errors import UserError

MAX_CACHE_GB = 10
ABANDONED_SECONDS = 24 * 3600  # a temporary folder this old belongs to a process that was killed


def load_or_extract(cache_dir, key, compute):
    """Returns `compute()`, a float32 tensor, kept in `cache_dir` ("" = not kept) under the hash of `key`, a dict of plain
    values that must hold all that the features depend on. A damaged file is computed again, with a warning.
    """
    if not cache_dir:
        return compute()
    path = (
        Path(cache_dir).expanduser()
        / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.safetensors"
    )
    try:
        with safe_open(path, framework="pt") as file:
            features, wanted = (
                file.get_tensor("features").clone(),
                file.metadata()["sha256"],
            )  # as aligned as when computed
        if tensor_hash(features) != wanted:
            raise ValueError("wrong checksum")
        return features
    except Exception as error:  # no such file is the usual miss; a damaged one fails in many ways, and each is a miss
        if not isinstance(error, FileNotFoundError):
            warnings.warn(
                f"kept features {path.name} are damaged ({error}): computed again", stacklevel=2
            )
    features = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".kept-", dir=path.parent
        ) as folder:  # renamed when whole: nobody reads half a file
            metadata = {"sha256": tensor_hash(features), "key": json.dumps(key)}
            save_file(
                {"features": features.contiguous()}, Path(folder) / path.name, metadata=metadata
            )
            os.replace(Path(folder) / path.name, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"features are not kept: {cache_dir} cannot be written ({error})", stacklevel=2
        )
    return features


def default_cache():
    """$TRANSFERLAB_CACHE, else $XDG_CACHE_HOME/transferlab, else ~/.cache/transferlab."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.environ.get("TRANSFERLAB_CACHE") or str(Path(home) / "transferlab")


def cache_bound():
    """How many bytes the features on disk may take: $TRANSFERLAB_CACHE_GB, else 10 GB.

    Raises:
        UserError: the variable holds no positive number.
    """
    text = os.environ.get("TRANSFERLAB_CACHE_GB") or str(MAX_CACHE_GB)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise UserError(f"TRANSFERLAB_CACHE_GB is {text!r}: give a size in GB, such as 10")
    return int(float(text) * 1e9)


def kept_files(cache_dir):
    """The files of features in a folder, the one used longest ago first -> list of (seconds since 1970, bytes, Path).

    A file that another process deletes meanwhile is left out. Where the system notes when files are read (most do, once a
    day), a file counts as used then.

    Raises:
        UserError: `cache_dir` is no folder, or cannot be read.
    """
    folder, files = Path(cache_dir).expanduser(), []
    try:
        paths = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UserError(
            f"the cache {folder} is no folder that can be read ({error.strerror}): give another --cache-dir"
        ) from error
    for path in paths:
        if re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    return sorted(files)


def describe_features(path):
    """What a file of features says of itself -> dict of model, view, precision, images, data; only `model` where it says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            key = json.loads(file.metadata()["key"])
        names = {
            "model": key["model"],
            "view": key["view"],
            "precision": key["precision"].removeprefix("torch."),
        }
        return names | {"images": len(key["indices"]), "data": key["data"][:8]}
    except Exception as error:  # a damaged header fails in many ways; each is shown as what it is
        return {"model": f"unreadable ({type(error).__name__})"}


def list_cache(cache_dir):
    """The features on disk, the latest used first -> list of dicts: model, view, precision, images, data, MB, used."""
    return [
        describe_features(path)
        | {"MB": size / 1e6, "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(used))}
        for used, size, path in reversed(kept_files(cache_dir))
    ]


@contextmanager
def cache_lock(folder):
    """Lets one process at a time delete in a cache; readers and writers need no lock, since files are renamed when whole."""
    with open(folder / ".lock", "w") as file:
        if (
            os.name == "posix"
        ):  # elsewhere two trimmings at once may delete more than needed, never anything in use
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_cache(cache_dir, keep_bytes=0):
    """Deletes features, those used longest ago first, until at most `keep_bytes` are left -> (files, bytes) deleted.

    Only what `load_or_extract` has written is touched; folders that it left when it was killed go too. A process that
    reads a deleted file at that moment goes on reading it.

    Raises:
        UserError: `cache_dir` is no folder, or cannot be written.
    """
    folder = Path(cache_dir).expanduser()
    if not kept_files(folder) and not folder.is_dir():
        return 0, 0
    try:
        with cache_lock(folder):
            for left in folder.glob(".kept-*"):
                try:
                    age = time.time() - left.stat().st_mtime
                except FileNotFoundError:  # another process has just finished with it
                    continue
                if age > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            files = kept_files(folder)
            total, count, freed = sum(size for _, size, _ in files), 0, 0
            for _, size, path in files:
                if total - freed <= keep_bytes:
                    break
                path.unlink(missing_ok=True)
                count, freed = count + 1, freed + size
    except OSError as error:
        raise UserError(f"cannot delete in the cache {folder}: {error}") from error
    return count, freed

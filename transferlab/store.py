"""Computed once: what a key has given is kept on disk and given back for that key alone."""

import hashlib
import json
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import UserError, printable
from .files import replace_whole, require_regular, scratch_folder, sweep_scratch
from .pretrained import tensor_hash

MAX_CACHE_GB = 10
LOCK_SECONDS = 30  # trimming takes less; a process that was suspended may hold the lock for ever
KEPT_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


# ---- keys ------------------------------------------------------------------------------------


def key_text(key: Any) -> str:
    """A key, a frozen dataclass of plain values that must hold all that its value depends on, as
    text: the same for equal keys, whatever the order of their mappings."""
    parts = {"kind": type(key).__name__} | asdict(key)
    return json.dumps(parts, sort_keys=True)


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names and contents."""
    listed = [f"{name} {tensor_hash(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def pack(value: Any) -> dict[str, torch.Tensor]:
    """Plain JSON values as a store keeps them."""
    text = json.dumps(value, ensure_ascii=False)
    return {"json": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def unpack(tensors: dict[str, torch.Tensor]) -> Any:
    """The plain JSON values that were packed."""
    return json.loads(tensors["json"].numpy().tobytes())


# ---- reading and writing ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder of values that were computed once."""

    folder: Path | None = None  # None: nothing is kept

    def path(self, key: Any) -> Path:
        """Where the value of a key lies, or would."""
        if self.folder is None:
            raise ValueError("this store keeps nothing")
        digest = hashlib.sha256(key_text(key).encode()).hexdigest()
        return self.folder.expanduser() / f"{digest}.safetensors"

    def has(self, key: Any) -> bool:
        """Whether a file lies there for the key; whether it is whole, reading tells."""
        return self.folder is not None and self.path(key).is_file()

    def read(self, key: Any) -> dict[str, torch.Tensor] | None:
        """What is kept for the key; None where nothing is, or with a warning something damaged,
        something else, or no regular file."""
        if self.folder is None:
            return None
        path = self.path(key)
        try:
            return read_kept(path, key_text(key))
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged files fail in many ways; each is a miss
            message = f"{path.name} is damaged ({error}): computed again"
            warnings.warn(message, stacklevel=3)
            return None

    def write(self, key: Any, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps a value; where the folder cannot be written, a warning says so."""
        if self.folder is None:
            return
        path = self.path(key)
        metadata = {"key": key_text(key), "sha256": checksum(tensors)}
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(path.parent) as folder:
                temporary = folder / path.name
                save_file(whole, temporary, metadata=metadata)
                replace_whole(temporary, path)
        except (OSError, SafetensorError) as error:
            message = f"not kept: {self.folder} cannot be written ({error})"
            warnings.warn(message, stacklevel=3)

    def tensors(
        self, key: Any, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What `compute()` gives, read where it is kept already."""
        found = self.read(key)
        if found is None:
            found = compute()
            self.write(key, found)
        return found


NO_STORE = Store()


def read_kept(path: Path, wanted: str) -> dict[str, torch.Tensor]:
    """The tensors of a kept file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no regular file, holds what another key has given, or has changed; and
            what safetensors raises for a damaged one.
    """
    require_regular(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if metadata.get("key") != wanted:
        raise ValueError("it was kept for another key")
    if metadata.get("sha256") != checksum(tensors):
        raise ValueError("wrong checksum")
    return tensors


def open_store(folder: str | Path) -> Store:
    """The store in a folder, swept of what killed writers left; "" keeps nothing.

    Raises:
        UserError: no folder can have such a name.
    """
    if not folder:
        return NO_STORE
    try:
        place = Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop; no such user; a NUL byte
        raise UserError(f"the cache {folder}: {error}: give another --cache-dir") from error
    sweep_scratch(place)
    return Store(folder=place)


# ---- the bound -------------------------------------------------------------------------------


def default_cache() -> str:
    """$TRANSFERLAB_CACHE, else $XDG_CACHE_HOME/transferlab, else ~/.cache/transferlab; "", none,
    for a user without a home."""
    named = os.environ.get("TRANSFERLAB_CACHE")
    if named:
        return named
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return ""
    return str(Path(home) / "transferlab")


def cache_bound() -> int:
    """How many bytes the store of features may take: $TRANSFERLAB_CACHE_GB, else 10 GB.

    Raises:
        UserError: the variable holds no positive number, or an endless one.
    """
    text = os.environ.get("TRANSFERLAB_CACHE_GB") or str(MAX_CACHE_GB)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0 < float(text) < 1e9:
        raise UserError(f"TRANSFERLAB_CACHE_GB is {text!r}: give a size in GB, such as 10")
    return int(float(text) * 1e9)


@dataclass(frozen=True, kw_only=True, order=True)
class KeptFile:
    """A file of a store."""

    used: float  # seconds since 1970, when it was last read or written
    size: int  # bytes
    path: Path


def kept_files(folder: Path) -> list[KeptFile]:
    """What has the name of a kept file, but for folders, the one used longest ago first.

    A file that another process deletes meanwhile is left out; a link counts as itself. Where the
    system notes when files are read (most do, once a day), a file counts as used then.

    Raises:
        UserError: `folder` is no folder, or cannot be read.
    """
    folder = folder.expanduser()
    try:
        paths = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        reason = f"is no folder that can be read ({error.strerror})"
        raise UserError(f"the cache {folder} {reason}: give another --cache-dir") from error
    files = []
    for path in paths:
        if not KEPT_NAME.fullmatch(path.name):
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            continue
        used = max(status.st_atime, status.st_mtime)
        files.append(KeptFile(used=used, size=status.st_size, path=path))
    return sorted(files)


def kept_key(path: Path) -> dict[str, Any]:
    """The key that a kept file states.

    Raises:
        Exception: of many kinds, where the file is damaged.
    """
    require_regular(path)
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["key"])


def wait_for_lock(number: int) -> None:
    """Locks an open file, waiting for whoever has it.

    Raises:
        OSError: it is still held after `LOCK_SECONDS`, or files cannot be locked here.
    """
    if os.name != "posix":  # there two at once may delete more than needed, nothing in use
        return
    import fcntl

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has held its lock for {LOCK_SECONDS} s"
                ) from error
            time.sleep(0.02)


@contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time delete in a store; readers and writers need no lock, since files
    are renamed when whole.

    Raises:
        OSError: it cannot be had, as where .lock is a link, a pipe or a folder.
    """
    path = folder / ".lock"
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"{path} is no regular file: remove it")
    # Never emptied, and no link that has just been put there is followed.
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        wait_for_lock(number)
        yield
    finally:
        os.close(number)


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """What trimming a store has deleted."""

    files: int = 0
    size: int = 0  # bytes


def trim_store(folder: Path, keep_bytes: int = 0) -> Trimmed:
    """Deletes what was used longest ago until at most `keep_bytes` are left.

    Only what a store has written is touched; folders that it left when it was killed go too. A
    process that reads a deleted file at that moment goes on reading it.

    Raises:
        UserError: `folder` is no folder, or cannot be written.
    """
    folder = folder.expanduser()
    if not kept_files(folder) and not folder.is_dir():
        return Trimmed()
    count = 0
    freed = 0
    try:
        with cache_lock(folder):
            sweep_scratch(folder)
            files = kept_files(folder)
            total = sum(file.size for file in files)
            for file in files:
                if total - freed <= keep_bytes:
                    break
                file.path.unlink(missing_ok=True)
                count += 1
                freed += file.size
    except OSError as error:
        raise UserError(f"cannot delete in the cache {folder}: {error}") from error
    return Trimmed(files=count, size=freed)


def trim_to_bound(store: Store) -> None:
    """Keeps a store within its bound; where that fails, the run that has just been made is not
    lost for it."""
    if store.folder is None:
        return
    try:
        trim_store(store.folder, keep_bytes=cache_bound())
    except UserError as error:
        print(printable(f"warning: {error}"))


def damage(path: Path) -> str:
    """What is wrong with a kept file, read under the key that it states itself; "" where it is
    whole."""
    try:
        read_kept(path, json.dumps(kept_key(path), sort_keys=True))
    except Exception as error:  # damaged files fail in many ways
        return f"{type(error).__name__}: {error}"
    return ""


def copy_into(folder: Path, path: Path) -> None:
    """Copies a kept file into a store's folder, under its name only when it is whole."""
    with scratch_folder(folder) as place:
        copied = shutil.copyfile(path, place / path.name)
        replace_whole(copied, folder / path.name)


def merge_store(store: Store, other: Path) -> int:
    """Takes over the whole files of another store's folder that this one lacks -> how many.

    Raises:
        UserError: `other` holds no kept files, this store keeps nothing, or it cannot be written.
    """
    other = other.expanduser()
    files = kept_files(other) if other.is_dir() else []
    if store.folder is None:
        raise UserError(f"cannot merge {other}: nothing is kept here")
    if not files:
        advice = "give a folder that holds finished parts, as a share names it at its end"
        raise UserError(f"cannot merge {other}: {advice}")
    target = store.folder.expanduser()
    taken = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            own = target / file.path.name
            if own.is_file() and not damage(own):
                continue
            reason = damage(file.path)
            if reason:
                warnings.warn(f"{file.path} is damaged ({reason}): not merged", stacklevel=2)
                continue
            copy_into(target, file.path)
            taken += 1
    except OSError as error:
        raise UserError(f"cannot merge {other} into {target}: {error}") from error
    return taken

"""Kept values: a hit is exactly what was kept under exactly this key; everything else is computed
again."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import warnings
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transferlab import store as store_module
from transferlab.__main__ import main
from transferlab.commands.cache import describe_kept
from transferlab.errors import UserError
from transferlab.files import process_mark
from transferlab.store import (
    NO_STORE,
    Store,
    Trimmed,
    cache_bound,
    default_cache,
    kept_files,
    kept_key,
    merge_store,
    open_store,
    pack,
    trim_store,
    trim_to_bound,
    unpack,
)


@dataclass(frozen=True, kw_only=True)
class Key:
    """Stands for the keys of features and predictions."""

    data: str = "d"
    views: tuple[str, ...] = ("a", "b")
    seed: int = 1
    indices: tuple[int, ...] = (0, 1, 2)
    versions: dict[str, str]
    precision: str = "torch.float32"


@dataclass(frozen=True, kw_only=True)
class OtherKey(Key):
    """Of another kind, with the same fields."""


@dataclass(frozen=True, kw_only=True)
class LongerKey(Key):
    """One field more."""

    new: int = 1


@dataclass(frozen=True, kw_only=True)
class ShorterKey:
    """The seed is missing."""

    data: str = "d"
    views: tuple[str, ...] = ("a", "b")
    indices: tuple[int, ...] = (0, 1, 2)
    versions: dict[str, str]
    precision: str = "torch.float32"


KEY = Key(versions={"torch": "2", "timm": "1"})
KEPT = torch.arange(12.0).reshape(3, 4) / 7


def dead_mark():
    """The mark of a process that has just ended."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process_mark().replace(f"-{os.getpid()}", f"-{process.pid}")


def keep(folder, key=KEY, value=KEPT):
    """The tensor that is kept in a folder for a key; `value` is kept where nothing is."""
    store = Store(folder=Path(folder))
    return store.tensors(key, lambda: {"x": value})["x"]


def hit(folder, key=KEY):
    """The tensor that is kept for a key; computing it is a failure."""
    return Store(folder=Path(folder)).tensors(key, pytest.fail)["x"]


def kept_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_a_hit_is_bit_for_bit_what_was_kept(tmp_path):
    assert keep(tmp_path, value=KEPT.T) is not None  # not contiguous: kept all the same
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The order of a key's entries is no matter.
        found = hit(tmp_path, replace(KEY, versions={"timm": "1", "torch": "2"}))
    assert torch.equal(found, KEPT.T) and found.dtype == torch.float32


def test_any_change_of_the_key_is_a_miss(tmp_path):
    keep(tmp_path)
    others = [replace(KEY, **{name: "other"}) for name in vars(KEY)]
    others += [kind(versions=KEY.versions) for kind in (OtherKey, LongerKey, ShorterKey)]
    others.append(replace(KEY, versions={"torch": "3", "timm": "1"}))
    others += [replace(KEY, indices=(0, 2, 1)), replace(KEY, seed="1")]
    for number, other in enumerate(others):
        assert keep(tmp_path, other, torch.full((1,), float(number))).item() == number
    assert torch.equal(hit(tmp_path), KEPT)


def test_off_computes_each_time_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    for store in (NO_STORE, open_store("")):
        store.tensors(KEY, lambda: calls.append(1) or {"x": KEPT})
        assert not store.has(KEY) and store.read(KEY) is None
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_the_home_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    keep("~/kept")
    assert kept_file(tmp_path / "kept").is_file()
    assert open_store("~/kept").folder == (tmp_path / "kept").resolve()


def test_no_single_damaged_byte_gives_a_wrong_feature(tmp_path):
    keep(tmp_path)
    path = kept_file(tmp_path)
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = keep(tmp_path)
        assert torch.equal(found, KEPT) and found.shape == KEPT.shape, position
        # A miss speaks.
        spoken = any("computed again" in str(w.message) for w in caught)
        assert found is not KEPT or spoken, position
    for length in range(0, len(good), 9):
        path.write_bytes(good[:length])
        with pytest.warns(UserWarning, match=f"{path.name} is damaged .*computed again"):
            assert keep(tmp_path) is KEPT


@pytest.mark.parametrize("metadata", [None, {"sha256": "0" * 64}, {"other": "x"}])
def test_a_whole_file_without_its_right_checksum_is_a_miss(metadata, tmp_path):
    keep(tmp_path)
    save_file({"x": KEPT + 1}, kept_file(tmp_path), metadata=metadata)
    with pytest.warns(UserWarning, match="computed again"):
        assert keep(tmp_path) is KEPT
    assert torch.equal(hit(tmp_path), KEPT)  # mended


def test_a_file_that_was_kept_for_another_key_is_a_miss(tmp_path):
    """Whatever it is called: whole, its checksum right."""
    keep(tmp_path)
    other = replace(KEY, seed=2)
    shutil.copyfile(kept_file(tmp_path), Store(folder=tmp_path).path(other))
    with pytest.warns(UserWarning, match="kept for another key.*computed again"):
        assert keep(tmp_path, other, KEPT + 1)[0, 1] == KEPT[0, 1] + 1


@pytest.mark.skipif(os.name != "posix", reason="only there are named pipes files")
def test_a_pipe_is_a_miss_and_not_waited_for(tmp_path):
    os.mkfifo(Store(folder=tmp_path).path(KEY))
    with pytest.warns(UserWarning, match="no regular file"):
        assert Store(folder=tmp_path).read(KEY) is None


@pytest.mark.skipif(os.name != "posix", reason="only there are they files")
@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "link to a device", "loop"])
def test_what_is_no_regular_file_is_a_miss_and_is_replaced(kind, tmp_path):
    path = Store(folder=tmp_path / "c").path(KEY)
    path.parent.mkdir()
    os.mkfifo(tmp_path / "pipe")
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, chdir(path.parent):
            listener.bind(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        place = {"link to a pipe": "../pipe", "link to a device": "/dev/zero"}
        path.symlink_to(place.get(kind, path.name))
    assert not Store(folder=tmp_path / "c").has(KEY)
    with pytest.warns(UserWarning, match="computed again"):
        assert keep(tmp_path / "c") is KEPT
    assert torch.equal(hit(tmp_path / "c"), KEPT) and not path.is_symlink()
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_to_a_kept_file_is_read_and_one_to_nowhere_is_replaced(tmp_path):
    keep(tmp_path / "a")
    real = kept_file(tmp_path / "a")
    link = tmp_path / "b" / real.name
    link.parent.mkdir()
    link.symlink_to(real)
    assert torch.equal(hit(tmp_path / "b"), KEPT)
    real.unlink()
    assert keep(tmp_path / "b") is KEPT and not link.is_symlink() and not real.exists()


def test_a_folder_in_place_of_a_kept_file_loses_nothing(tmp_path):
    store = Store(folder=tmp_path)
    (store.path(KEY) / "mine").mkdir(parents=True)
    with pytest.warns(UserWarning) as caught:
        assert keep(tmp_path) is KEPT
    assert [str(one.message).split()[0] for one in caught] == [store.path(KEY).name, "not"]
    assert not store.has(KEY) and (store.path(KEY) / "mine").is_dir()
    assert not kept_files(tmp_path) and trim_store(tmp_path) == Trimmed()
    assert not list(tmp_path.glob(".transferlab-*"))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_a_lock_that_is_no_regular_file_is_named_and_left_alone(kind, tmp_path, capsys):
    fill(tmp_path / "c", 1)
    lock = tmp_path / "c" / ".lock"
    (tmp_path / "precious").write_text("mine")
    make = {
        "link": lambda: lock.symlink_to(tmp_path / "precious"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "device": lambda: lock.symlink_to("/dev/null"),
    }
    make[kind]()
    with pytest.raises(UserError, match=r"\.lock is no regular file: remove it"):
        trim_store(tmp_path / "c")
    assert len(kept_files(tmp_path / "c")) == 1
    assert (tmp_path / "precious").read_text() == "mine"
    assert main(["cache", "--clear", "--cache-dir", str(tmp_path / "c")]) == 2
    assert "remove it" in capsys.readouterr().err


def test_a_lock_is_never_emptied_nor_followed(tmp_path, monkeypatch):
    fill(tmp_path, 1)
    (tmp_path / ".lock").write_text("mine")
    assert trim_store(tmp_path).files == 1
    assert (tmp_path / ".lock").read_text() == "mine"
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    fill(tmp_path, 1)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it has just been put there
    with pytest.raises(UserError, match="cannot delete"):
        trim_store(tmp_path)


def test_a_lock_that_a_stopped_process_holds_is_not_waited_for_without_end(tmp_path, monkeypatch):
    fill(tmp_path, 1)
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.05)
    held = pytest.raises(UserError, match="another process has held its lock")
    with store_module.cache_lock(tmp_path), held:
        trim_store(tmp_path)
    assert trim_store(tmp_path).files == 1


def test_what_killed_writers_left_goes_when_the_store_is_opened(tmp_path):
    mark = dead_mark()
    left = tmp_path / f".transferlab-{mark}-abc"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    open_store(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["a\0b", "~no-such-user/x"])
def test_a_folder_that_cannot_be_is_one_clear_error(place, capsys):
    with pytest.raises(UserError, match="give another --cache-dir"):
        open_store(place)
    with pytest.raises(SystemExit, match="2"):
        main(["cache", "--cache-dir", place])
    assert capsys.readouterr().err.count("\n") == 1


def test_strange_files_are_listed_and_cleared(tmp_path, capsys):
    """Keys of another shape, deeply nested ones, escapes in names, links, pipes, odd dates."""
    named = {"model": "a\x1b[31m\nb", "view": {"x": "\x1b"}, "precision": "fp32", "data": "\x07"}
    keys = [named, [], {}, {"model": 1}, {"model": "m", "precision": 3, "data": "d"}, "text", None]
    texts = [json.dumps(key) for key in keys] + ["[" * 100_000, "{"]
    for number, text in enumerate(texts):
        save_file({"x": KEPT}, tmp_path / f"{number:064x}.safetensors", metadata={"key": text})
    files = [tmp_path / f"{100 + number:064x}.safetensors" for number in range(5)]
    files[0].symlink_to("nowhere")
    os.mkfifo(files[1])
    files[2].mkdir()
    save_file({"x": KEPT}, files[3])
    os.utime(files[3], (2**62, 2**33))
    files[4].write_bytes(b"")
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed
    assert printed.count("unreadable") == len(texts) - 1 + 4
    assert f"{len(texts) + 4} files" in printed
    assert main(["cache", "--clear", "--cache-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", files[2].name]


def test_without_a_home_nothing_is_kept(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("TRANSFERLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache() == ""
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == "/x/transferlab"


@pytest.mark.parametrize("text", ["0", "-1", "much", "1e3", "9" * 400, "inf", "nan"])
def test_a_bound_that_is_none_is_one_clear_error(text, monkeypatch):
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", text)
    with pytest.raises(UserError, match="give a size in GB"):
        cache_bound()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_half_a_write_leaves_no_file_and_a_full_disk_loses_no_features(
    failure, tmp_path, monkeypatch
):
    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        raise failure

    full = isinstance(failure, OSError)
    warned = (
        pytest.warns(UserWarning, match="not kept.*No space left")
        if full
        else pytest.raises(KeyboardInterrupt)
    )
    with monkeypatch.context() as patched, warned:
        patched.setattr(store_module, "save_file", half)
        assert keep(tmp_path) is KEPT
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing_that_counts(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store_module, "save_file", interrupt)
        keep(tmp_path / "c", value=torch.ones(2))
    assert torch.equal(keep(tmp_path / "c", value=torch.zeros(2)), torch.zeros(2))


def test_two_writers_of_the_same_key_do_not_meet(tmp_path, monkeypatch):
    inner = []

    def slow(tensors, path, metadata):
        if not inner:  # while the first writes, a second starts and ends
            inner.append(path)
            keep(tmp_path)
            assert torch.equal(hit(tmp_path), KEPT)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(store_module, "save_file", slow)
    assert torch.equal(keep(tmp_path), KEPT)
    assert torch.equal(hit(tmp_path), KEPT) and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_computed_is_not_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Store(folder=tmp_path).tensors(KEY, lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_copied_elsewhere_still_hits(tmp_path):
    keep(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert torch.equal(hit(tmp_path / "b", Key(versions=dict(KEY.versions))), KEPT)


def test_plain_values_come_back_as_they_were(tmp_path):
    store = Store(folder=tmp_path)
    value = {"points": [1, 2.5, None, True], "name": "ä 図"}
    assert unpack(store.tensors(KEY, lambda: pack(value))) == value
    assert unpack(store.tensors(KEY, pytest.fail)) == value
    assert unpack(NO_STORE.tensors(KEY, lambda: pack(value))) == value


# ---- bounds, listing, clearing ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FullKey:
    """What the list shows of a key."""

    model: str = "resnet50"
    view: int = 1
    precision: str = "torch.bfloat16"
    indices: tuple[int, ...] = (3, 4, 5)
    data: str = "0123456789abcdef"


def fill(folder, count, size=1000):
    """Keeps `count` tensors of `size` floats, a second apart in their times -> their files, oldest
    first."""
    files = []
    for number in range(count):
        key = FullKey(view=number)
        keep(folder, key, torch.zeros(size))
        files.append(Store(folder=folder).path(key))
        os.utime(files[-1], (1e9 + number, 1e9 + number))
    return files


def test_what_was_used_longest_ago_goes_first(tmp_path):
    files = fill(tmp_path, 4)
    size = files[0].stat().st_size
    os.utime(files[0], (2e9, 1e9))  # read since
    assert trim_store(tmp_path, keep_bytes=2 * size) == Trimmed(files=2, size=2 * size)
    assert [path.is_file() for path in files] == [True, False, False, True]
    assert trim_store(tmp_path, keep_bytes=2 * size) == Trimmed(files=0, size=0)


def test_clearing_touches_only_what_was_kept_here(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    old, new = (tmp_path / f".transferlab-elsewhere-1-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (1, 1))
    assert trim_store(tmp_path).files == 2
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.txt", "mine.safetensors", new.name, ".lock"}
    missing = tmp_path / "missing"
    assert trim_store(missing) == Trimmed(files=0, size=0) and not missing.exists()


def test_a_store_is_kept_within_its_bound(tmp_path, monkeypatch, capsys):
    files = fill(tmp_path, 3)
    size = files[0].stat().st_size
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", f"{2.5 * size / 1e9:.9f}")
    trim_to_bound(Store(folder=tmp_path))
    assert [path.is_file() for path in files] == [False, True, True]
    trim_to_bound(NO_STORE)
    assert main(["cache", "--clear", "--cache-dir", ""]) == 2
    assert "name the folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    trim_to_bound(Store(folder=tmp_path / "file"))  # the run that was made is not lost for it
    assert capsys.readouterr().out.startswith("warning: the cache")


def test_the_list_says_what_is_kept(tmp_path):
    files = fill(tmp_path, 2)
    files[0].write_bytes(b"damaged")
    os.utime(files[0], (1, 1))
    old, new = (describe_kept(file) for file in kept_files(tmp_path))
    assert (new["model"], new["view"], new["precision"], new["images"], new["data"]) == (
        "resnet50",
        "1",
        "bfloat16",
        "3",
        "01234567",
    )
    assert new["MB"] == files[1].stat().st_size / 1e6 and old["model"].startswith("unreadable")
    assert hit(tmp_path, FullKey(view=1)).shape == (1000,)
    assert kept_key(files[1])["view"] == 1


PROCESS = """
import random, sys, torch
from dataclasses import dataclass
from pathlib import Path
from transferlab.store import Store, trim_store

@dataclass(frozen=True)
class View:
    view: int

folder = Path(sys.argv[1])
random.seed(int(sys.argv[2]))
for _ in range(60):
    view = random.randrange(12)
    expected = torch.full((500,), float(view))
    found = Store(folder=folder).tensors(View(view), lambda: {"x": expected})["x"]
    assert torch.equal(found, expected)
    trim_store(folder, keep_bytes=10_000)
"""


@pytest.mark.slow
def test_two_processes_share_a_cache(tmp_path):
    """Each asks for twelve features in another order while the other writes, reads and trims: every
    answer is right."""
    command = [sys.executable, "-W", "error", "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(seed)]) for seed in (1, 2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert sum(file.size for file in kept_files(tmp_path)) <= 10_000


def test_the_command_lists_and_clears(tmp_path, capsys, monkeypatch):
    fill(tmp_path, 2)
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "0.5")
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "resnet50" in printed and "2 files, 0.0 MB of at most 500 MB" in printed
    assert main(["cache", "--clear", "--cache-dir", str(tmp_path)]) == 0
    assert "2 files" in capsys.readouterr().out and not kept_files(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert main(["cache", "--cache-dir", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "much")
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 2
    assert "give a size in GB" in capsys.readouterr().err


# ---- merging ------------------------------------------------------------------------------------


def test_merging_takes_over_what_is_whole_and_missing(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    mine = replace(KEY, seed=1)
    keep(here, mine, KEPT)
    for seed, value in ((1, KEPT + 1), (2, KEPT + 2), (3, KEPT + 3)):
        keep(there, replace(KEY, seed=seed), value)
    (there / "notes.txt").write_text("no part")
    damaged = Store(folder=there).path(replace(KEY, seed=3))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged .*not merged"):
        assert merge_store(Store(folder=here), there) == 1
    assert torch.equal(hit(here, mine), KEPT)  # what was there stays
    assert torch.equal(hit(here, replace(KEY, seed=2)), KEPT + 2)
    assert len(list(here.iterdir())) == 2
    assert merge_store(Store(folder=here / "not yet there"), here) == 2


def test_what_cannot_be_merged_is_one_clear_error(tmp_path):
    keep(tmp_path / "there")
    for store, other in ((NO_STORE, tmp_path / "there"), (Store(folder=tmp_path), tmp_path / "no")):
        with pytest.raises(UserError, match="holds finished parts|nothing is kept"):
            merge_store(store, other)

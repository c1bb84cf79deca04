"""Kept features: a hit is exactly what was kept under exactly this key; everything else is computed again."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import save_file

from transferlab import cache, cli
from transferlab.cache import load_or_extract

KEY = {
    "data": "d",
    "views": ["a", "b"],
    "seed": 1,
    "indices": [0, 1, 2],
    "versions": {"torch": "2"},
    "precision": "torch.float32",
}
KEPT = torch.arange(12.0).reshape(3, 4) / 7


def kept_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_a_hit_is_bit_for_bit_what_was_kept(tmp_path):
    assert (
        load_or_extract(tmp_path, KEY, lambda: KEPT.T) is not None
    )  # not contiguous: kept all the same
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hit = load_or_extract(
            tmp_path, dict(reversed(KEY.items())), pytest.fail
        )  # the order of a key's entries is no matter
    assert torch.equal(hit, KEPT.T) and hit.dtype == torch.float32


def test_any_change_of_the_key_is_a_miss(tmp_path):
    load_or_extract(tmp_path, KEY, lambda: KEPT)
    others = [KEY | {name: "other"} for name in KEY] + [
        KEY | {"new": 1},
        {k: v for k, v in KEY.items() if k != "seed"},
    ]
    nested = copy.deepcopy(KEY)
    nested["versions"]["torch"] = "3"
    for number, other in enumerate(
        [*others, nested, KEY | {"indices": [0, 2, 1]}, KEY | {"seed": "1"}]
    ):
        assert (
            load_or_extract(tmp_path, other, lambda: torch.full((1,), float(number))).item()
            == number
        )
    assert torch.equal(load_or_extract(tmp_path, KEY, pytest.fail), KEPT)


def test_off_computes_each_time_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    for _ in range(2):
        load_or_extract("", KEY, lambda: calls.append(1) or KEPT)
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_the_home_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    load_or_extract("~/kept", KEY, lambda: KEPT)
    assert kept_file(tmp_path / "kept").is_file()


def test_no_single_damaged_byte_gives_a_wrong_feature(tmp_path):
    load_or_extract(tmp_path, KEY, lambda: KEPT)
    path = kept_file(tmp_path)
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = load_or_extract(tmp_path, KEY, lambda: KEPT)
        assert torch.equal(found, KEPT) and found.shape == KEPT.shape, position
        assert found is not KEPT or any("computed again" in str(w.message) for w in caught), (
            position
        )  # a miss speaks
    for length in range(0, len(good), 9):
        path.write_bytes(good[:length])
        with pytest.warns(UserWarning, match=f"{path.name} are damaged .*computed again"):
            assert load_or_extract(tmp_path, KEY, lambda: KEPT) is KEPT


@pytest.mark.parametrize("metadata", [None, {"sha256": "0" * 64}, {"other": "x"}])
def test_a_whole_file_without_its_right_checksum_is_a_miss(metadata, tmp_path):
    load_or_extract(tmp_path, KEY, lambda: KEPT)
    save_file({"features": KEPT + 1}, kept_file(tmp_path), metadata=metadata)
    with pytest.warns(UserWarning, match="computed again"):
        assert load_or_extract(tmp_path, KEY, lambda: KEPT) is KEPT
    assert torch.equal(load_or_extract(tmp_path, KEY, pytest.fail), KEPT)  # mended


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
        patched.setattr(cache, "save_file", half)
        assert load_or_extract(tmp_path, KEY, lambda: KEPT) is KEPT
    assert not list(tmp_path.iterdir())


def test_two_writers_of_the_same_key_do_not_meet(tmp_path, monkeypatch):
    inner = []

    def slow(tensors, path, metadata):
        if not inner:  # while the first writes, a second starts and ends
            inner.append(path)
            load_or_extract(tmp_path, KEY, lambda: KEPT)
            assert torch.equal(load_or_extract(tmp_path, KEY, pytest.fail), KEPT)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(cache, "save_file", slow)
    assert torch.equal(load_or_extract(tmp_path, KEY, lambda: KEPT), KEPT)
    assert (
        torch.equal(load_or_extract(tmp_path, KEY, pytest.fail), KEPT)
        and len(list(tmp_path.iterdir())) == 1
    )


def test_what_cannot_be_computed_is_not_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load_or_extract(tmp_path, KEY, lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_copied_elsewhere_still_hits(tmp_path):
    load_or_extract(tmp_path / "a", KEY, lambda: KEPT)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert torch.equal(
        load_or_extract(tmp_path / "b", json.loads(json.dumps(KEY)), pytest.fail), KEPT
    )


# ---- bounds, listing, clearing ---------------------------------------------------------------------------------------


def fill(folder, count, size=1000):
    """Keeps `count` tensors of `size` floats, a second apart in their times -> their files, oldest first."""
    files = []
    for number in range(count):
        load_or_extract(folder, full_key(view=number), lambda: torch.zeros(size))
        files.append(next(path for path in folder.glob("*.safetensors") if path not in files))
        os.utime(files[-1], (1e9 + number, 1e9 + number))
    return files


def full_key(**changed):
    key = {
        "model": "resnet50",
        "view": 1,
        "precision": "torch.bfloat16",
        "indices": [3, 4, 5],
        "data": "0123456789abcdef",
    }
    return key | changed


def test_what_was_used_longest_ago_goes_first(tmp_path):
    files = fill(tmp_path, 4)
    size = files[0].stat().st_size
    os.utime(files[0], (2e9, 1e9))  # read since
    assert cache.clear_cache(tmp_path, keep_bytes=2 * size) == (2, 2 * size)
    assert [path.is_file() for path in files] == [True, False, False, True]
    assert cache.clear_cache(tmp_path, keep_bytes=2 * size) == (0, 0)


def test_clearing_touches_only_what_was_kept_here(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    for name, age in ((".kept-old", 2 * cache.ABANDONED_SECONDS), (".kept-new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert cache.clear_cache(tmp_path)[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        "mine.safetensors",
        ".kept-new",
        ".lock",
    }
    assert cache.clear_cache(tmp_path / "missing") == (0, 0) and not (tmp_path / "missing").exists()


def test_the_list_says_what_is_kept(tmp_path):
    files = fill(tmp_path, 2)
    files[0].write_bytes(b"damaged")
    os.utime(files[0], (1, 1))
    new, old = cache.list_cache(tmp_path)
    assert (new["model"], new["view"], new["precision"], new["images"], new["data"]) == (
        "resnet50",
        1,
        "bfloat16",
        3,
        "01234567",
    )
    assert new["MB"] == files[1].stat().st_size / 1e6 and old["model"].startswith("unreadable")
    assert load_or_extract(tmp_path, full_key(view=1), pytest.fail).shape == (1000,)


def test_two_processes_share_a_cache(tmp_path):
    """Each asks for twelve features in another order while the other writes, reads and trims: every answer is right."""
    code = f"""
import random, sys, torch
from transferlab.cache import clear_cache, load_or_extract
random.seed(int(sys.argv[1]))
for _ in range(60):
    view = random.randrange(12)
    features = load_or_extract({str(tmp_path)!r}, {{"view": view}}, lambda: torch.full((500,), float(view)))
    assert torch.equal(features, torch.full((500,), float(view)))
    clear_cache({str(tmp_path)!r}, keep_bytes=10_000)
"""
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(seed)]) for seed in (1, 2)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert sum(size for _, size, _ in cache.kept_files(tmp_path)) <= 10_000


def test_the_command_lists_and_clears(tmp_path, capsys, monkeypatch):
    fill(tmp_path, 2)
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "0.5")
    assert cli.main(["cache", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "resnet50" in printed and "2 files, 0.0 MB of at most 500 MB" in printed
    assert cli.main(["cache", "--clear", "--cache-dir", str(tmp_path)]) == 0
    assert "2 files" in capsys.readouterr().out and not cache.kept_files(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert cli.main(["cache", "--cache-dir", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "much")
    assert cli.main(["cache", "--cache-dir", str(tmp_path)]) == 2
    assert "give a size in GB" in capsys.readouterr().err

"""Kept features: a hit is exactly what was kept under exactly this key; everything else is computed again."""

import copy
import json
import os
import shutil
import warnings

import pytest
import torch
from safetensors.torch import save_file

from transferlab import cache
from transferlab.cache import load_or_extract

KEY = {"data": "d", "views": ["a", "b"], "seed": 1, "indices": [0, 1, 2], "versions": {"torch": "2"}, "precision": "torch.float32"}
KEPT = torch.arange(12.0).reshape(3, 4) / 7


def kept_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_a_hit_is_bit_for_bit_what_was_kept(tmp_path):
    assert load_or_extract(tmp_path, KEY, lambda: KEPT.T) is not None  # not contiguous: kept all the same
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hit = load_or_extract(tmp_path, dict(reversed(KEY.items())), pytest.fail)  # the order of a key's entries is no matter
    assert torch.equal(hit, KEPT.T) and hit.dtype == torch.float32


def test_any_change_of_the_key_is_a_miss(tmp_path):
    load_or_extract(tmp_path, KEY, lambda: KEPT)
    others = [KEY | {name: "other"} for name in KEY] + [KEY | {"new": 1}, {k: v for k, v in KEY.items() if k != "seed"}]
    nested = copy.deepcopy(KEY)
    nested["versions"]["torch"] = "3"
    for number, other in enumerate([*others, nested, KEY | {"indices": [0, 2, 1]}, KEY | {"seed": "1"}]):
        assert load_or_extract(tmp_path, other, lambda: torch.full((1,), float(number))).item() == number
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
        assert found is not KEPT or any("computed again" in str(w.message) for w in caught), position  # a miss speaks
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


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_half_a_write_leaves_no_file(failure, tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        raise failure

    with monkeypatch.context() as patched, pytest.raises(failure):
        patched.setattr(cache, "save_file", half)
        load_or_extract(tmp_path, KEY, lambda: KEPT)
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
    assert torch.equal(load_or_extract(tmp_path, KEY, pytest.fail), KEPT) and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_computed_is_not_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load_or_extract(tmp_path, KEY, lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_copied_elsewhere_still_hits(tmp_path):
    load_or_extract(tmp_path / "a", KEY, lambda: KEPT)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert torch.equal(load_or_extract(tmp_path / "b", json.loads(json.dumps(KEY)), pytest.fail), KEPT)

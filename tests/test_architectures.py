"""More than a dozen architectures from timm: each builds, is cut, trains, is saved and loads back,
the same throughout."""

import copy
import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save

from transferlab import artifacts
from transferlab.artifacts import load_model, save_run
from transferlab.backbones import (
    build_model,
    create_backbone,
    fold_batchnorm,
    make_head,
    normalize,
    set_head,
    split_at,
)
from transferlab.pretrained import state_hash
from transferlab.study import freeze_backbone, train_study
from transferlab.train import Settings, TrainData, train

# timm's name -> (pixels a side, what makes it take so few): the smallest input that it takes.
SMALL = {
    "vgg16.tv_in1k": (32, {}),
    "resnet18.tv_in1k": (32, {}),
    "resnet50.tv_in1k": (32, {}),
    "densenet121.tv_in1k": (32, {}),
    "efficientnet_b0.ra_in1k": (32, {}),
    "efficientnet_b3.ra2_in1k": (32, {}),
    "tf_efficientnet_lite0.in1k": (32, {}),
    "tf_efficientnet_lite1.in1k": (32, {}),
    "tf_efficientnet_lite2.in1k": (32, {}),
    "mobilenetv3_large_100.ra_in1k": (32, {}),
    "convnext_tiny.fb_in1k": (32, {}),
    "vit_small_patch16_224.augreg_in21k_ft_in1k": (32, {"img_size": 32}),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": (32, {"img_size": 32}),
    "vit_small_patch14_dinov2.lvd142m": (28, {"img_size": 28}),
    "swin_tiny_patch4_window7_224.ms_in1k": (56, {"img_size": 56}),
}


def stages(name):
    """The names of an architecture's stages, as timm lists them, without building its weights."""
    with torch.device("meta"):
        return [info["module"] for info in timm.create_model(name, pretrained=False).feature_info]


def small_model(name):
    """The model with a head for 3 classes, in eval mode, and four images that it takes."""
    size, options = SMALL[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, **options)
    set_head(model, make_head(model.head_hidden_size, 3, hidden=8, dropout=0.0)).eval()
    return model, torch.randint(
        0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@torch.inference_mode()
def check_cut(name, cut):
    model, x = small_model(name)
    expected = model(normalize(model, x))
    lower, upper = split_at(model, cut)
    assert torch.allclose(
        upper.eval()(lower(x)), expected, atol=1e-4 * max(1, expected.abs().max())
    )
    parts = [{id(tensor) for tensor in part.parameters()} for part in (lower, upper, model)]
    assert parts[0] | parts[1] == parts[2] and not parts[0] & parts[1]
    if cut == "features":
        features = lower(x)
        assert features.shape == (4, model.head_hidden_size)
        assert torch.allclose(fold_batchnorm(lower)(x), features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_the_cut_before_the_last_stage(name):
    check_cut(name, stages(name)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_other_cut(name):
    for cut in [*stages(name)[:-1], "features", "input"]:
        check_cut(name, cut)


@pytest.fixture
def record(study):
    """A run of the study, with timm's smallest test model."""
    frozen = freeze_backbone("test_resnet.r160_in1k", study, weights="none")
    return train_study(frozen, study, progress=False)[1]


@pytest.mark.parametrize("name", SMALL)
def test_it_trains_and_comes_back(name, tmp_path, monkeypatch, record):
    """Above its features, one epoch; what is saved, loaded again, gives the same logits, and the
    backbone is what it was."""
    model, x = small_model(name)
    labels = torch.tensor([0, 1, 2, 0])
    lower, upper = split_at(model, "features")
    before, first = state_hash(lower), copy.deepcopy(upper.state_dict())
    with torch.inference_mode():
        features = lower(x)
    data = TrainData(
        view_of=lambda epoch: features,
        labels=labels,
        clean_x=features,
        val_x=features,
        val_y=labels,
    )
    result = train(upper, data, Settings(epochs=1, batch_size=2))
    assert state_hash(lower) == before and not torch.equal(first["0.weight"], upper[0].weight)
    for part in ("model", "result"):
        (tmp_path / part).mkdir()
    described = replace(
        record,
        data=(replace(record.dataset, classes=("a", "b", "c")),),
        weights=(replace(record.backbone, name=name, timm_name=name),),
        head=replace(record.head, in_features=model.head_hidden_size, hidden=8, dropout=0.0),
    )
    path = save_run(tmp_path, model, result, described, stamp="20260101_000000").model
    monkeypatch.setattr(
        artifacts, "build_model", lambda timm_name: build_model(timm_name, **SMALL[name][1])
    )
    again = load_model(path).model
    model.eval()
    with torch.inference_mode():
        expected = model(normalize(model, x))  # in channels_last, so sums come in another order
        assert torch.allclose(
            again(normalize(again, x)),
            expected,
            rtol=1e-3,
            atol=1e-4 * max(1, expected.abs().max()),
        )
    assert all(
        torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items()
    )


def test_a_tagger_from_the_hub(hub):
    """A repository of someone else's, with its own classes, mean and std, as
    `hf-hub:SmilingWolf/wd-vit-tagger-v3` is one."""
    torch.manual_seed(0)
    options = {"img_size": 160, "class_token": False, "global_pool": "avg"}
    config = {
        "architecture": "test_vit",
        "num_classes": 11,
        "num_features": 64,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "classifier": "head",
            "num_classes": 11,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
        },
    }
    there = timm.create_model("test_vit", num_classes=11, **options)
    place = "/someone/tagger/resolve/main"
    hub.files |= {
        f"{place}/config.json": json.dumps(config).encode(),
        f"{place}/model.safetensors": save(there.state_dict()),
    }
    model, info = create_backbone("hf-hub:someone/tagger")
    assert (info.kind, info.source, model.num_classes) == ("hub", "hub: someone/tagger", 11)
    assert tuple(model.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    x = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    lower, upper = split_at(model, "blocks.3")
    with torch.inference_mode():
        assert torch.allclose(
            upper.eval()(lower(x)), there.eval()((x / 255 - 0.5) / 0.5), atol=1e-5
        )

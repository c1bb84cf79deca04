"""More than a dozen architectures from timm: each builds, is cut, trains, is saved and loads back,
the same throughout."""

import functools
import json

import pytest
import timm
import torch
from safetensors.torch import save

from transferlab.backbones import (
    build_model,
    create_backbone,
    fold_batchnorm,
    make_head,
    normalize,
    set_head,
    split_at,
)
from transferlab.data import load_images
from transferlab.described import load_model
from transferlab.notebook import FrozenBackbone, save_run, train_head
from transferlab.pretrained import state_hash
from transferlab.views import faces_augmentation, render_view

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


LARGE = ("vgg16.tv_in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k")  # 138 and 87 million


def slow_if_large(name):
    """A large one takes up to a quarter of a minute, for it is built and written twice."""
    return pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name


@pytest.mark.parametrize("name", [slow_if_large(name) for name in SMALL])
def test_it_trains_and_comes_back(name, image_folder, tmp_path, monkeypatch):
    """One epoch above its frozen features, as a notebook does; what it saves, loaded again, gives
    the same logits, and the backbone is what it was."""
    size, options = SMALL[name]
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **options))
    monkeypatch.setattr(FrozenBackbone, "kept", {})
    images = load_images(image_folder)
    augmentation = faces_augmentation(size)
    what = {"image_set": images, "augmentation": augmentation, "seed": 0}
    frozen = FrozenBackbone(name, name, "none", **what)
    first = frozen.new_head(hidden=8).state_dict()
    run = train_head(frozen, epochs=1, views=0, report=lambda row: None, hidden=8)
    assert state_hash(frozen.lower) == frozen.hash
    assert not torch.equal(first["0.weight"], run.head[0].weight)
    again = load_model(save_run(run, tmp_path, {})["model_best.safetensors"]).model
    shown = {"view": 0, "seed": 0, "indices": frozen.fold.val}
    with torch.inference_mode():
        logits = again(render_view(images, augmentation.clean, **shown))
    expected = run.logits.cpu()  # in channels_last, so sums come in another order
    atol = 1e-4 * max(1, expected.abs().max())
    assert torch.allclose(logits, expected, rtol=1e-3, atol=atol)
    state = again.body.state_dict()
    body = frozen.lower.body.state_dict()
    assert all(torch.equal(tensor.cpu(), state[key]) for key, tensor in body.items())
    assert len(state) == len(body) + 4  # weights and biases of the head's two layers


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

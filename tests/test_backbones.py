"""Backbones: parity with torchvision, the head, the cut, folded normalisation."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from transferlab.backbones import (
    FrozenFeatures,
    build_from_state,
    build_model,
    check_picture_size,
    classifier_name,
    count_parameters,
    create_backbone,
    estimate_batchnorm,
    fold_batchnorm,
    input_size,
    make_head,
    normalize,
    set_head,
    split_at,
    split_features,
)
from transferlab.errors import UserError, WeightsError
from transferlab.pretrained import BACKBONES, state_hash
from transferlab.study import freeze_backbone
from transferlab.train import Settings, TrainData, train

TINY = "test_resnet.r160_in1k"


def images(n=4, size=64):
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_parity_with_torchvision(name, tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    # Statistics that matter, else normalisation would be a no-op.
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    save_file(reference.state_dict(), tmp_path / f"{name}.safetensors")
    model, info = create_backbone(name, str(tmp_path))
    assert info.kind == "file" and info.timm_name == BACKBONES[name]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.inference_mode():
        expected = reference((images(2) / 255 - mean) / std)
        logits = model.eval()(normalize(model, images(2)))
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert model.head_hidden_size == (2048 if name == "resnet50" else 1024)


def test_the_registrys_names_are_timms():
    for name in BACKBONES.values():
        config = timm.get_pretrained_cfg(name)
        assert (
            config.hf_hub_id == f"timm/{name}" and config.classifier and config.mean and config.std
        )


def test_the_cut_gives_the_whole_model_and_freezes_the_lower_part(tiny_file):
    model, _ = create_backbone("test_resnet", str(tiny_file))
    set_head(model, make_head(model.head_hidden_size, 3, hidden=8))
    lower, upper = split_at(model, "features")
    model.eval()
    with torch.inference_mode():
        assert torch.allclose(upper(lower(images())), model(normalize(model, images())), atol=1e-6)
    assert not any(p.requires_grad for p in lower.parameters()) and all(
        p.requires_grad for p in upper.parameters()
    )
    before = state_hash(lower)
    model.train()
    assert not lower.training
    lower(images())
    assert state_hash(lower) == before
    with torch.no_grad():
        upper[0].weight.add_(1)
    assert (
        torch.equal(model.get_classifier()[0].weight, upper[0].weight)
        and state_hash(lower) == before
    )
    with pytest.raises(UserError, match='no module "layer9".*layer4'):
        split_at(model, "layer9")


def test_a_classifier_of_another_size_is_fine_and_half_precision_is_cast(tiny_file):
    state = {
        k: v.half() if v.is_floating_point() else v
        for k, v in timm.create_model(TINY, num_classes=5).state_dict().items()
    }
    save_file(state, tiny_file)
    model, _ = create_backbone("test_resnet", str(tiny_file))
    assert model.num_classes == 5 and {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1[0].weight, state["conv1.0.weight"].float())


@pytest.mark.parametrize("classes", [1000, 5])
def test_weights_of_another_class_count_load_whole_or_not_at_all(classes):
    """The classifier becomes as large as theirs; all else must fit."""
    state = timm.create_model(TINY, num_classes=classes).state_dict()
    model = build_from_state(TINY, state, "x.safetensors")
    assert model.num_classes == classes and model.get_classifier().out_features == classes
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())
    key = "layer1.0.conv1.weight"
    for wrong in (
        {k: v for k, v in state.items() if k != key},
        state | {"surplus.weight": torch.zeros(2)},
        state | {key: torch.zeros(2, 2)},
        state | {key: state[key].to(torch.int8)},
    ):
        with pytest.raises(WeightsError, match="weights file x.safetensors does not fit"):
            build_from_state(TINY, wrong, "x.safetensors")


def test_a_body_without_classifier_gives_the_features_of_the_cut():
    """As a notebook builds it, which never has the classifier."""
    model = with_statistics(build_model("test_resnet"))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    body = timm.create_model("test_resnet", num_classes=0)
    body.load_state_dict(state)
    body.to(memory_format=torch.channels_last)
    own = FrozenFeatures(body).eval()
    lower, _ = split_features(model)
    assert own.body is body and isinstance(lower, FrozenFeatures)
    with torch.inference_mode():
        features = own(images())
        assert torch.equal(features, lower(images()))
    assert features.shape == (4, body.head_hidden_size)
    assert state_hash(own) == state_hash(lower)


def test_random_initialisation_is_live_and_reproducible():
    model, info = create_backbone("resnet18", "none")
    torch.manual_seed(0)
    expected = timm.create_model("resnet18", zero_init_last=False)
    assert state_hash(model) == state_hash(expected) == info.sha256
    estimate_batchnorm(model, images(8).split(4), device="cpu")
    x = model.conv1(normalize(model, images(8)))
    assert torch.allclose(model.bn1.running_mean, x.mean((0, 2, 3)), atol=1e-4)
    assert model.bn1.momentum is not None


@pytest.mark.parametrize(
    "name", ["no_such_model", "resnet50.no_such_tag", "hf-hub:no name!", "local-dir:no_such_folder"]
)
def test_unknown_names_of_every_kind(name):
    with pytest.raises(UserError, match="cannot build"):
        create_backbone(name, "auto")


@pytest.mark.parametrize("name", BACKBONES)
def test_the_registrys_models_keep_timms_contract(name):
    with torch.device("meta"):
        model = build_model(BACKBONES[name])
        head = nn.Sequential(
            nn.Linear(
                model.head_hidden_size
                if hasattr(model, "head_hidden_size")
                else model.num_features,
                3,
            )
        )
        set_head(model, head)
    assert model.get_submodule(classifier_name(model)) is head
    assert len(model.pretrained_cfg["mean"]) == len(model.pretrained_cfg["std"]) == 3


def test_the_parts_share_the_models_tensors(tiny_file):
    model, _ = create_backbone("test_resnet", str(tiny_file))
    lower, upper = split_at(model, "features")
    of_model = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert {
        id(tensor) for part in (lower, upper) for tensor in (*part.parameters(), *part.buffers())
    } == of_model
    model.train()
    assert not any(module.training for module in lower.modules())


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "mobilenetv3_small_050"])
def test_the_cut_fits_other_architectures(name):
    model = build_model(name).eval()
    lower, upper = split_at(model, "features")
    x = images(2, model.pretrained_cfg["input_size"][-1])
    with torch.inference_mode():
        assert torch.allclose(upper(lower(x)), model(normalize(model, x)), atol=1e-5)


# ---- cuts inside a model, and folded normalisation --------------------------------------------


def with_statistics(model, size=32):
    """Gives a random model a head for 3 classes and BatchNorm statistics and scales that matter."""
    generator = torch.Generator().manual_seed(0)
    set_head(model, make_head(model.head_hidden_size, 3, hidden=8, dropout=0.0))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.weight.data += 0.3 * torch.rand(module.weight.shape, generator=generator)
            module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator)
            module.running_mean = 0.1 * torch.randn(module.bias.shape, generator=generator)
            module.running_var = 0.5 + torch.rand(module.bias.shape, generator=generator)
    return model.eval()


CUTS = [
    ("test_resnet", ["conv1", "layer1", "layer4"]),
    ("test_efficientnet", ["conv_stem", "blocks.0", "blocks.3", "conv_head"]),
    ("test_vit", ["patch_embed", "blocks", "blocks.3"]),
    ("test_convnext", ["stem", "stages.3", "head"]),
    ("densenet121", ["features.conv0", "transition2", "denseblock4"]),
]
CUTS = [(name, cut) for name, cuts in CUTS for cut in cuts + ["features", "input"]]
CUTS += [
    ("resnet50", "layer4"),
    *((f"efficientnet_{kind}", "blocks.6") for kind in ("lite0", "b0", "b3")),
    ("vit", "blocks.11"),
]


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_every_cut_gives_the_whole_model(name, cut):
    model = with_statistics(build_model(BACKBONES.get(name, name)))
    x = images(2, 224 if name == "vit" else 160 if name.startswith("test_") else 64)
    with torch.inference_mode():
        expected = model(normalize(model, x))
    lower, upper = split_at(model, cut)
    with torch.inference_mode():
        kept = lower(x)
        assert torch.allclose(
            upper.eval()(kept), expected, atol=1e-5 * max(1, expected.abs().max())
        )  # random ones grow large
    assert not any(p.requires_grad for p in lower.parameters()) and all(
        p.requires_grad for p in upper.parameters()
    )
    tensors = [{id(tensor) for tensor in part.parameters()} for part in (lower, upper, model)]
    assert tensors[0] | tensors[1] == tensors[2] and not tensors[0] & tensors[1]
    model.train()
    assert not any(module.training for module in lower.modules())
    assert kept.dtype == (torch.uint8 if cut == "input" else torch.float32)


def test_training_above_a_cut_is_fine_tuning_with_the_rest_frozen():
    """Adam on the whole model, its lower part frozen and in eval mode, against kept activations:
    BatchNorm above learns too."""
    model = with_statistics(build_model("test_resnet"))
    reference, x, labels = (
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        images(12, 64),
        torch.arange(12) % 3,
    )
    frozen = [reference.conv1, reference.bn1, reference.layer1, reference.layer2, reference.layer3]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(
        [*reference.layer4.parameters(), *reference.fc.parameters()], lr=1e-3, fused=True
    )
    reference.train()
    for part in frozen:
        part.eval().requires_grad_(False)
    for batch in order.split(4):
        loss = nn.functional.cross_entropy(reference(normalize(reference, x[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lower, upper = split_at(model, "layer4")
    # The same forward batches, so the same rounding, which Adam's first steps would magnify.
    with torch.inference_mode():
        kept = torch.cat([lower(x[batch]) for batch in order.split(4)])[order.argsort()]
        kept = kept.contiguous(memory_format=torch.channels_last)
    data = TrainData(
        view_of=lambda epoch: kept, labels=labels, clean_x=kept, val_x=kept, val_y=labels
    )
    result = train(upper, data, Settings(epochs=1, batch_size=4, lr=1e-3), seed=0)
    assert result.best_epoch == 1
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), tensor.float(), atol=1e-6), name
    moved = with_statistics(build_model("test_resnet")).layer4.state_dict()
    assert any(
        not torch.allclose(moved[name], tensor)
        for name, tensor in model.layer4.state_dict().items()
    )


def test_an_earlier_cut_does_not_stay_frozen():
    model = with_statistics(build_model("test_resnet"))
    split_at(model, "features")
    upper = split_at(model, "layer4")[1]
    assert (
        all(p.requires_grad for p in upper.parameters())
        and not model.layer1[0].conv1.weight.requires_grad
    )


def test_cuts_that_cannot_be_are_refused():
    model = with_statistics(build_model("test_resnet"))
    with pytest.raises(UserError, match='cannot be cut before "layer4.0.bn2"|tensors flow'):
        split_at(model, "layer4.0.conv2")  # the shortcut passes it by

    class Untraceable(nn.Module):
        pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}

        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="cannot be cut inside"):
        split_at(Untraceable(), "layer4")
    assert type(fold_batchnorm(Untraceable())) is Untraceable


@pytest.mark.parametrize(
    ("name", "folded"),
    [("test_resnet", 15), ("test_efficientnet", 13), ("densenet121", 59), ("test_vit", 0)],
)
def test_folded_normalisation_computes_the_same(name, folded):
    model = with_statistics(build_model(name))
    lower, _ = split_at(model, "features")
    before, x = state_hash(lower), images(2, 160 if name.startswith("test_") else 64)
    quick = fold_batchnorm(lower)
    with torch.inference_mode():
        assert torch.allclose(quick(x), lower(x), rtol=1e-4, atol=1e-5)
    left = [sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()) for part in (lower, quick)]
    assert left[0] - left[1] == folded and state_hash(lower) == before


def test_a_convolution_that_is_used_twice_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first, self.second = (
                nn.Conv2d(3, 3, 1),
                nn.BatchNorm2d(3),
                nn.BatchNorm2d(3),
            )

        def forward(self, x):
            return self.second(self.conv(self.first(self.conv(x))))

    shared = Shared().eval()
    shared.first.running_mean += 1
    x = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        assert torch.allclose(fold_batchnorm(shared)(x), shared(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", "several classifiers"),
        ("resnetv2_50", "ends in Conv2d"),
        ("caformer_s18", "computes on behind its pooled features"),
    ],
)
def test_models_that_a_head_does_not_fit_are_refused(name, reason):
    with torch.device("meta"):
        model = build_model(name)
    with pytest.raises(UserError, match=reason):
        set_head(model, make_head(model.head_hidden_size, 3))


def test_an_encoder_without_pooled_features_is_refused():
    names = [name for name in timm.list_models("*_enc") if name.startswith("mobilenetv5")]
    if not names:
        pytest.skip("this timm has none")
    with torch.device("meta"), pytest.raises(UserError, match="gives no pooled features"):
        build_model(names[0])


def test_the_cut_behind_the_features_has_a_name_of_its_own(tiny_file):
    model, _ = create_backbone("test_resnet", str(tiny_file))
    lower, upper = split_features(model)
    assert upper is split_at(model, "features")[1]
    assert count_parameters(lower) + count_parameters(upper) == count_parameters(model)


# ---- the size of the pictures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 224) for name in BACKBONES),  # B3 too, as the study had it
        ("efficientnet_b3.ra2_in1k", 288),
        ("tf_efficientnet_lite1", 240),
        ("vit_tiny_patch16_384", 384),
        ("swinv2_tiny_window8_256", 256),
        ("vit_small_patch14_dinov2.lvd142m", 518),
        ("eva02_tiny_patch14_336.mim_in22k_ft_in1k", 336),
        (TINY, 160),
    ],
)
def test_every_model_gets_pictures_of_its_own_size(name, size):
    assert input_size(name) == size


def test_pictures_that_are_not_square_are_refused():
    if "vit_base_patch16_sapiens2" not in timm.list_models():
        pytest.skip("this timm has none")
    with pytest.raises(UserError, match=r"takes pictures of \(3, 1024, 768\)"):
        input_size("vit_base_patch16_sapiens2")


# The smallest of their kind that timm has; made smaller still where it lets one.
FIXED = {
    "vit_tiny_patch16_384": {"depth": 1},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 1, 1)},
    "vit_small_patch14_dinov2.lvd142m": {"depth": 1},
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": {"depth": 1},
    "test_vit": {},
    "deit3_small_patch16_384": {"depth": 1},
    "lambda_resnet26t": {},  # not to be laid out channel by channel
}


@pytest.mark.parametrize(("name", "options"), FIXED.items())
def test_models_of_a_fixed_size_take_a_head_and_are_cut_at_that_size(name, options):
    size = input_size(name)
    model = build_model(name, **options)
    set_head(model, make_head(model.head_hidden_size, 3, hidden=8))
    lower, upper = split_features(model.eval())
    check_picture_size(lower, size)
    x = images(1, size)
    with torch.inference_mode():
        expected = model(normalize(model, x))
        features = lower(x)
        assert torch.allclose(upper.eval()(features), expected, rtol=1e-4, atol=1e-4)
    assert features.shape == (1, model.head_hidden_size)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "swinv2_tiny_window8_256"])
def test_pictures_of_another_size_are_one_line(name):
    lower, _ = split_features(build_model(name))
    before = state_hash(lower)
    with pytest.raises(UserError, match=f"takes no pictures of 224 x 224 .*{input_size(name)}"):
        check_picture_size(lower, 224)
    assert state_hash(lower) == before and next(lower.parameters()).device.type == "cpu"


def test_a_study_at_a_size_that_the_model_does_not_take_says_so(study):
    with pytest.raises(UserError, match="takes no pictures of 32 x 32 pixels, but of 384"):
        freeze_backbone("vit_tiny_patch16_384", study, weights="none")


def test_models_that_take_every_size_are_not_asked_for_theirs():
    lower, _ = split_features(build_model(TINY))
    for size in (32, 224):
        check_picture_size(lower, size)


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ResNet50", "resnet50"),
        ("resnet-50", "resnet50"),
        ("densnet121", "densenet121"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("EfficientNet_Lite0", "efficientnet_lite0"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("ViT-B/16", "vit_base_patch16_224"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("efficientnet_v2_s", "efficientnetv2_s"),
        ("dinov2_vits14", "vit_small_patch14_dinov2"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("resnet50.tv", "resnet50.tv_in1k"),
        ("resnet50.no_such_tag", "resnet50"),
        ("hf_hub:x/y", "hf-hub:x/y"),
        ("hf-hub/x/y", "hf-hub:x/y"),
        ("someone/model", "hf-hub:someone/model"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
    ],
)
def test_near_names_are_suggested(name, meant):
    for ask in (input_size, create_backbone):
        with pytest.raises(UserError, match=r"cannot build .* did you mean ") as told:
            ask(name)
        suggested = str(told.value).rpartition("did you mean ")[2].removesuffix("?").split(", ")
        assert meant in suggested and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["", "zzzzzzzz", "x", "%s", "../.."])
def test_names_that_are_like_none_are_one_line(name):
    with pytest.raises(UserError, match=r"see timm.list_models\(\)"):
        input_size(name)

"""Features: rendered ahead, computed once, kept in memory and on disk."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from transferlab.backbones import create_backbone, fold_batchnorm, make_head, split_at
from transferlab.cache import load_or_extract
from transferlab.data import load_images
from transferlab.features import extract, extract_large, feature_drawer, one_ahead, view_blocks
from transferlab.synthetic import draw_insects
from transferlab.train import evaluate, train
from transferlab.views import hymenoptera_views, render_view

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Stands for a frozen backbone: mean of each channel, and how many images it has seen."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(1)), 0

    def forward(self, images):
        self.seen += len(images)
        return images.float().mean((2, 3)) * self.scale


def test_extract_is_lower_of_the_images_in_order(study):
    images = render_view(study.image_set, study.views.val, view=0, seed=0)
    lower = Counting()
    expected = images.float().mean((2, 3))
    for views in (images, images.split(5), (part for part in images.split(1))):
        features = extract(lower, views, device=CPU, precision=torch.float32)
        assert torch.allclose(features, expected) and features.dtype == torch.float32


def test_an_error_while_rendering_surfaces():
    def blocks():
        yield torch.zeros(1)
        raise ZeroDivisionError("while rendering")

    with pytest.raises(ZeroDivisionError):
        list(one_ahead(blocks()))


def test_blocks_are_rendered_once_for_all_backbones(study, monkeypatch):
    blocks, index = (
        view_blocks(study.image_set, study.views, seed=3, keep=9),
        study.indices["train"],
    )
    first = torch.cat(list(blocks(1, index)))
    assert torch.equal(
        first, render_view(study.image_set, study.views.train, view=1, seed=3, indices=index)
    )
    monkeypatch.setattr("transferlab.features.render_view", pytest.fail)
    assert torch.equal(torch.cat(list(blocks(1, index))), first)


def test_each_view_is_drawn_once_and_only_when_asked(study, tmp_path):
    def drawer(lower, timings, key={"data": "x"}):
        return feature_drawer(
            lower, study.blocks, study.indices, key, cache_dir=tmp_path / "kept", timings=timings
        )

    lower, timings = Counting(), {}
    draw = drawer(lower, timings)
    assert lower.seen == 0
    n_train, n_val = len(study.indices["train"]), len(study.indices["val"])
    first = draw("train", 1)
    assert (
        draw("train", 1) is first and lower.seen == n_train and draw("val", 0).shape == (n_val, 3)
    )
    assert not torch.equal(draw("train", 2), first) and set(timings) == {
        "training views",
        "validation images",
    }
    again, timings = Counting(), {}
    assert (
        torch.equal(drawer(again, timings)("train", 1), first)
        and again.seen == 0
        and set(timings) == {"features from disk"}
    )
    drawer(again, {}, key={"data": "other"})("train", 1)
    assert again.seen == n_train
    with torch.no_grad():
        again.scale.mul_(2)
    assert torch.equal(drawer(again, {})("train", 1), 2 * first)  # other weights are other features


def test_what_is_kept_on_disk_is_right_or_a_miss(tmp_path):
    key, value = {"view": 1, "versions": {"torch": "2"}}, torch.randn(3, 4)
    assert load_or_extract(tmp_path / "c", key, lambda: value) is value
    assert torch.equal(load_or_extract(tmp_path / "c", key, pytest.fail), value)
    other = load_or_extract(tmp_path / "c", key | {"view": 2}, lambda: value + 1)
    assert torch.equal(other, value + 1)
    assert load_or_extract("", key, lambda: 5) == 5
    (path, _) = sorted((tmp_path / "c").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    good = path.read_bytes()
    for damage in (good[:-3], good[:-1] + bytes([good[-1] ^ 1]), b"", b"\xff" * 30):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="computed again"):
            assert load_or_extract(tmp_path / "c", key, lambda: value) is value
        assert torch.equal(load_or_extract(tmp_path / "c", key, pytest.fail), value)


def test_an_interrupted_write_leaves_nothing_that_counts(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "transferlab.cache.save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        load_or_extract(tmp_path / "c", {"a": 1}, lambda: torch.ones(2))
    assert torch.equal(
        load_or_extract(tmp_path / "c", {"a": 1}, lambda: torch.zeros(2)), torch.zeros(2)
    )


def test_drawing_leaves_the_random_state_as_it_was(study):
    state = torch.get_rng_state()
    list(one_ahead(study.blocks(1, study.indices["train"])))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_the_frozen_part_ends_the_rendering_thread(study):
    def lower(images):
        raise MemoryError("in the frozen part")

    rendered = []
    blocks = (
        rendered.append(1) or images
        for images in render_view(study.image_set, study.views.val, view=0, seed=0).split(1)
    )
    with pytest.raises(MemoryError):
        extract(lower, blocks, device=CPU, precision=torch.float32)
    assert len(rendered) <= 2  # one in hand, one ahead


@pytest.mark.parametrize("free", [10**12, 1])
def test_large_activations_are_mapped_from_disk_where_memory_is_short(
    study, tmp_path, monkeypatch, free
):
    """The same numbers either way, and training reads them as any others; the file leaves no trace."""
    monkeypatch.setattr(
        "transferlab.features.psutil.virtual_memory", lambda: SimpleNamespace(available=free)
    )
    mapped, from_file = [], torch.from_file
    monkeypatch.setattr(
        torch,
        "from_file",
        lambda *given, **named: mapped.append(given) or from_file(*given, **named),
    )
    torch.manual_seed(0)
    lower = nn.Sequential(Scaled(), nn.Conv2d(3, 5, 3, stride=2)).eval()
    index = torch.arange(len(study.image_set.labels))
    expected = extract(lower, study.blocks(1, index), device=CPU, precision=torch.float32)
    kept = extract_large(
        lower, study.blocks(1, index), len(index), tmp_path, device=CPU, precision=torch.float32
    )
    assert (
        torch.equal(kept, expected) and len(mapped) == (free == 1) and not list(tmp_path.iterdir())
    )
    upper = nn.Sequential(nn.Flatten(), nn.Linear(expected[0].numel(), 2))
    result = train(
        upper,
        lambda epoch: kept,
        study.image_set.labels,
        kept,
        study.image_set.labels,
        clean_x=kept,
        epochs=1,
    )
    assert result.history[0]["train_loss"] > 0


class Scaled(nn.Module):
    def forward(self, images):
        return images.float() / 255


def test_bf16_features_stay_close_and_flip_few_predictions(tmp_path):
    """EfficientNet-Lite0 with ImageNet weights on drawn insects: the centred relative error and the flipped predictions.

    Most of the error comes from rounding the weights. On the real images (see the log of experiments) it is 5 to 7 % for this
    backbone, 0.6 to 0.9 % for ResNet50; drawn insects differ less from one another, so that the same rounding weighs more.
    """
    weights = os.environ.get("TRANSFERLAB_TEST_WEIGHTS")
    if not weights:
        pytest.skip(
            "TRANSFERLAB_TEST_WEIGHTS is not set: a folder with tf_efficientnet_lite0.safetensors"
        )
    image_set = load_images(draw_insects(tmp_path / "insects", per_class=30))
    lower = fold_batchnorm(
        split_at(create_backbone("efficientnet_lite0", weights)[0], "features")[0]
    )
    images = render_view(image_set, hymenoptera_views().val, view=0, seed=0)
    exact, rounded = (
        extract(lower, images, device=CPU, precision=kind)
        for kind in (torch.float32, torch.bfloat16)
    )
    error = (rounded - exact).norm() / (exact - exact.mean(0)).norm()
    assert 0 < error < 0.15
    head = make_head(exact.shape[1], 2)
    train(
        head,
        lambda epoch: rounded,
        image_set.labels,
        exact,
        image_set.labels,
        clean_x=exact,
        epochs=5,
    )
    predictions = [evaluate(head, x, image_set.labels)["predictions"] for x in (exact, rounded)]
    assert (predictions[0] != predictions[1]).float().mean() <= 0.05

"""The study protocol end to end on drawn images and a tiny backbone, pinned to the ordinary
loop."""

import copy
import time
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from transferlab import features
from transferlab.backbones import create_backbone, fold_batchnorm, normalize
from transferlab.data import Fold, everything_fold, load_images, split_images
from transferlab.errors import UserError
from transferlab.machine import this_machine
from transferlab.pretrained import state_hash
from transferlab.store import NO_STORE, Store
from transferlab.study import Study, check_backbone, freeze_backbone, train_study
from transferlab.train import Settings
from transferlab.views import Renderer, faces_augmentation, render_view

TINY = "test_resnet.r160_in1k"
# What is compared to the bit is computed in fp32 on the CPU, also on a machine that could do
# otherwise.
CPU = replace(this_machine(), device="cpu", precision="torch.float32")


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory):
    """Drawn polygons with 3 to 9 corners, 4 of each."""
    folder = tmp_path_factory.mktemp("polygons")
    for corners in range(3, 10):
        (folder / f"{corners} corners").mkdir()
        for i in range(4):
            image = Image.new("RGB", (48, 40 + i), (30 * i, 20 * corners, 90))
            ImageDraw.Draw(image).regular_polygon(
                (24, 20, 15), corners, rotation=11 * i, fill="white"
            )
            image.save(folder / f"{corners} corners" / f"{i}.png")
    return load_images(folder)


class Recorded(Renderer):
    """Says what it was asked for: (view, how many images)."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.asked = []

    def blocks(self, view, indices):
        self.asked.append((view, len(indices)))
        return super().blocks(view, indices)


def make_study(image_set, size=32, store=NO_STORE, **settings):
    sizes = {"epochs": 5, "patience": 0, "batch_size": 4, "lr": 1e-2, "hidden": 8, "dropout": 0.5}
    sizes |= {"views": 2}
    return Study(
        renderer=Recorded(image_set, faces_augmentation(size), seed=2),
        fold=split_images(image_set, val_size=0.35, seed=2),
        settings=Settings(**(sizes | settings)),
        machine=CPU,
        seed=2,
        store=store,
    )


def without_seconds(result):
    return [replace(row, seconds=None) for row in result.history]


@torch.no_grad()
def forward_by_eights(lower, images):
    """The frozen part over uint8 images, in the batches that `extract` takes on a CPU."""
    return torch.cat(
        [lower(part.contiguous(memory_format=torch.channels_last)) for part in images.split(8)]
    )


def ordinary_loop(lower, head, study):
    """The loop that everybody writes: each epoch renders its view afresh and runs the frozen
    backbone over it again.

    Returns the validation loss and the head's weights after each epoch.
    """
    s, train, val = study.settings, study.fold.train, study.fold.val
    images, augmentation = study.image_set, study.renderer.augmentation
    y, val_y = images.labels[train], images.labels[val]
    lower.eval()
    # The same kernels, so the same rounding.
    optimizer = torch.optim.Adam(head.parameters(), lr=s.lr, fused=True)
    torch.manual_seed(study.seed)
    shuffle = torch.Generator().manual_seed(study.seed)
    losses, weights = [], []
    everything = torch.arange(len(images.labels))
    for epoch in range(s.epochs):
        clean = forward_by_eights(
            lower,
            render_view(images, augmentation.clean, view=0, seed=study.seed, indices=everything),
        )
        view = s.view_of(epoch)
        x = clean[train]
        if view:
            x = forward_by_eights(
                lower,
                render_view(images, augmentation.train, view=view, seed=study.seed, indices=train),
            )
        head.train()
        for batch in torch.randperm(len(train), generator=shuffle).split(s.batch_size):
            loss = F.cross_entropy(head(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            losses.append(F.cross_entropy(head(clean[val]), val_y).item())
        weights.append(copy.deepcopy(head.state_dict()))
    return losses, weights


@pytest.mark.parametrize(
    ("rule", "views"),
    [("cycle", 1), ("cycle", 2), ("cycle", 5), ("clean+cycle", 0), ("clean+cycle", 2)],
)
def test_a_study_is_the_ordinary_loop_with_views_that_cycle(seven_classes, rule, views):
    """Equal to the bit, since both put the same images into the same forward batches; only the loop
    does so every epoch.

    Both run the folded backbone: what folding itself rounds is bounded in tests/test_backbones.py.
    """
    study = make_study(seven_classes, views=views, rule=rule)
    frozen = freeze_backbone(TINY, study, weights="none")
    losses, weights = ordinary_loop(
        fold_batchnorm(frozen.lower), copy.deepcopy(frozen.upper), study
    )
    result = train_study(frozen, study)
    assert [row.val_loss for row in result.history] == losses
    assert result.best_epoch == 1 + losses.index(min(losses))
    expected = weights[result.best_epoch - 1]
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in frozen.upper.state_dict().items()
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.state.items())


@pytest.mark.parametrize(("views", "epochs"), [(2, 5), (4, 3)])
def test_no_view_is_drawn_twice_or_before_it_is_asked_for(seven_classes, views, epochs):
    study = make_study(seven_classes, views=views, epochs=epochs, rule="cycle")
    frozen = freeze_backbone(TINY, study, weights="none")
    asked = study.renderer.asked
    asked.clear()
    train_study(frozen, study)
    n, n_train = len(seven_classes.labels), len(study.fold.train)
    assert asked == [(0, n), *((1 + k, n_train) for k in range(min(views, epochs)))]


@pytest.mark.parametrize(("views", "random"), [(0, []), (2, [1, 2]), (9, [1, 2, 3, 4])])
def test_view_0_is_trained_on_without_being_drawn_again(seven_classes, views, random):
    study = make_study(seven_classes, views=views)
    frozen = freeze_backbone(TINY, study, weights="none")
    study.renderer.asked.clear()
    train_study(frozen, study)
    n, n_train = len(seven_classes.labels), len(study.fold.train)
    assert study.renderer.asked == [(0, n), *((view, n_train) for view in random)]
    assert torch.equal(frozen.features.train(0), frozen.features.clean[study.fold.train])


def test_numbers_do_not_depend_on_when_views_are_drawn(seven_classes):
    lazy, early = make_study(seven_classes, views=3), make_study(seven_classes, views=3)
    frozen = [freeze_backbone(TINY, study, weights="none") for study in (lazy, early)]
    state = torch.get_rng_state()
    for view in (3, 1, 2):
        frozen[1].features.train(view)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    results = [train_study(f, study) for f, study in zip(frozen, (lazy, early))]
    assert without_seconds(results[0]) == without_seconds(results[1])
    assert all(
        torch.equal(a, b)
        for a, b in zip(frozen[0].upper.parameters(), frozen[1].upper.parameters())
    )


def test_the_frozen_part_keeps_every_bit_and_the_head_moves(seven_classes):
    study = make_study(seven_classes)
    frozen = freeze_backbone(TINY, study, weights="none")
    before = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    train_study(frozen, study)
    assert state_hash(frozen.lower) == frozen.frozen_hash
    changed = {
        name
        for name, tensor in frozen.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {f"fc.{name}" for name in frozen.upper.state_dict()}
    statistics = [tensor for name, tensor in before.items() if name.endswith("running_mean")]
    assert statistics and all(
        tensor.any() for tensor in statistics
    )  # estimated, since the weights are random


def test_a_study_tells_its_seconds_by_phase(seven_classes):
    study = make_study(seven_classes)
    started = time.perf_counter()
    frozen = freeze_backbone(TINY, study, weights="none")
    train_study(frozen, study)
    seconds = time.perf_counter() - started
    assert set(frozen.clock.seconds) == {"weights", "clean view", "training views", "head"}
    assert all(value >= 0 for value in frozen.clock.seconds.values())
    assert 0 < sum(frozen.clock.seconds.values()) <= seconds
    assert frozen.info.kind == "random" and frozen.info.timm_name == TINY


def test_the_whole_model_says_what_its_head_says(seven_classes):
    """With its best weights in place, which train; the backbone's do not."""
    study = make_study(seven_classes, size=64)
    frozen = freeze_backbone(TINY, study, weights="none")
    result = train_study(frozen, study)
    with torch.inference_mode():
        images = torch.cat(list(study.renderer.blocks(0, study.fold.val)))
        logits = frozen.model.eval()(normalize(frozen.model, images))
        head = frozen.upper.eval()(frozen.features.clean[study.fold.val])
    assert torch.equal(logits.argmax(dim=1), head.argmax(dim=1))
    labels = study.labels(study.fold.val)
    accuracy = (head.argmax(dim=1) == labels).double().mean().item()
    assert result.best.val_acc == accuracy
    assert result.best.val_loss == pytest.approx(F.cross_entropy(head, labels).item())
    trained = {name for name, p in frozen.model.named_parameters() if p.requires_grad}
    assert trained == {f"fc.{name}" for name, _ in frozen.upper.named_parameters()}


def test_the_same_study_twice_gives_the_same_numbers(seven_classes):
    results = []
    for _ in range(2):
        study = make_study(seven_classes)
        results.append(train_study(freeze_backbone(TINY, study, weights="none"), study))
    one, other = results
    assert without_seconds(one) == without_seconds(other)
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


def test_features_kept_on_disk_change_no_number(seven_classes, tmp_path, monkeypatch):
    results = []
    for store in (NO_STORE, Store(folder=tmp_path), Store(folder=tmp_path)):
        study = make_study(seven_classes, store=store)
        frozen = freeze_backbone(TINY, study, weights="none")
        if results[1:]:
            monkeypatch.setattr(features, "extract_ahead", pytest.fail)
        results.append(without_seconds(train_study(frozen, study)))
    assert results[0] == results[1] == results[2]


def test_the_same_tensors_under_another_mean_are_other_features(seven_classes, tmp_path):
    """Both names build the same tensors; one is fed with another mean and pads otherwise."""
    names = ("efficientnet_lite0.ra_in1k", "tf_efficientnet_lite0.in1k")
    model, _ = create_backbone(names[0], "none")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    study, weights = make_study(seven_classes), str(tmp_path / "weights.pth")
    kept = replace(study, store=Store(folder=tmp_path / "kept"))
    both = [freeze_backbone(name, kept, weights=weights) for name in names]
    assert both[0].frozen_hash == both[1].frozen_hash
    assert both[0].model.pretrained_cfg["mean"] != both[1].model.pretrained_cfg["mean"]
    first, second = (frozen.features.clean for frozen in both)
    alone = freeze_backbone(names[1], study, weights=weights).features.clean
    assert torch.equal(second, alone) and not torch.equal(first, second)


def test_batchnorm_of_a_random_backbone_counts_every_image_alike_and_never_holds_them_all(
    seven_classes,
):
    """40 images go in blocks of 20, not of 32 and 8; when one is rendered, only the one before it
    is still there."""
    study, sizes, alive, seen = make_study(seven_classes), [], [], []
    longer = study.fold.train.repeat(2)[:31]  # with 9 validation images 40
    fold = replace(study.fold, train=longer)

    class Watched(Renderer):
        def blocks(self, view, indices):
            for block in super().blocks(view, indices):
                alive.append(sum(reference() is not None for reference in seen))
                seen.append(weakref.ref(block))
                sizes.append(len(block))
                yield block

    augmentation = study.renderer.augmentation
    watched = replace(study, fold=fold, renderer=Watched(seven_classes, augmentation, seed=2))
    frozen = freeze_backbone(TINY, watched, weights="none")
    assert sizes == [20, 20] and max(alive) <= 1
    norm = next(
        module for module in frozen.model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    )
    everything = torch.cat([fold.train, fold.val])
    x = normalize(
        frozen.model,
        render_view(seven_classes, augmentation.clean, view=0, seed=2, indices=everything),
    )
    assert torch.allclose(norm.running_mean, frozen.model.conv1[0](x).mean((0, 2, 3)), atol=1e-4)


def test_settings_without_an_epoch_are_refused_before_any_time_is_spent(seven_classes):
    for settings in ({"epochs": 0}, {"views": 0, "rule": "cycle"}):
        with pytest.raises(UserError, match=f"{next(iter(settings))} is 0"):
            freeze_backbone("no_such_model", make_study(seven_classes, **settings))


def test_a_study_on_a_fold_takes_its_rows(seven_classes):
    study = make_study(seven_classes)
    assert study.on(study.fold).fold is study.fold and study.on(study.fold).features is None
    whole = replace(study, fold=everything_fold(seven_classes))
    frozen = freeze_backbone(TINY, whole, weights="none")
    fold = Fold(train=torch.tensor([9, 0, 4]), val=torch.tensor([1]))
    inner = replace(whole, features=frozen.features).on(fold)
    assert torch.equal(inner.features.train(1), frozen.features.train(1)[[9, 0, 4]])
    assert torch.equal(inner.features.clean, frozen.features.clean)
    assert inner.classes == 7 and inner.labels(fold.train).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vit_tiny_patch16_384",
            224,
            "takes no pictures of 224 x 224 pixels, but of 384",
        ),
        ("deit_tiny_distilled_patch16_224", 224, "several classifiers"),
    ],
)
def test_a_backbone_that_cannot_be_studied_is_known_before_any_time_is_spent(name, size, message):
    model, _ = create_backbone(name, "none")
    with pytest.raises(UserError, match=f"^{name}: .*{message}"):
        check_backbone(model, name, size)


def test_a_backbone_that_can_be_studied_passes():
    model, _ = create_backbone(TINY, "none")
    check_backbone(model, TINY, 32)

"""The study protocol end to end on drawn images and a tiny backbone, pinned to the ordinary loop."""

import copy
import json
import time
import weakref

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F

from transferlab import features, plots
from transferlab import study as study_module
from transferlab.backbones import create_backbone, fold_batchnorm, normalize
from transferlab.data import load_images, split_images
from transferlab.features import view_blocks
from transferlab.study import Study, freeze_backbone, train_study
from transferlab.views import anime_views, render_view

TINY = "test_resnet.r160_in1k"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fp32_on_the_cpu(monkeypatch):
    """What is compared to the bit is computed in fp32 on the CPU, also on a machine that could do otherwise."""
    for module in (features, study_module):
        monkeypatch.setattr(module, "choose_precision", lambda device: torch.float32)
    monkeypatch.setattr(study_module, "choose_device", lambda: CPU)


@pytest.fixture(scope="module")
def seven_classes(tmp_path_factory):
    """Drawn polygons with 3 to 9 corners, 4 of each, with the mark of a stand-in and one file that is no image."""
    folder = tmp_path_factory.mktemp("polygons")
    (folder / "SYNTHETIC").write_text("drawn by a test\n")
    for corners in range(3, 10):
        (folder / f"{corners} corners").mkdir()
        for i in range(4):
            image = Image.new("RGB", (48, 40 + i), (30 * i, 20 * corners, 90))
            ImageDraw.Draw(image).regular_polygon(
                (24, 20, 15), corners, rotation=11 * i, fill="white"
            )
            image.save(folder / f"{corners} corners" / f"{i}.png")
    (folder / "3 corners" / "bad.png").write_bytes(b"no image")
    return load_images(folder)


def make_study(image_set, size=32, **settings):
    views, indices = (
        anime_views(size),
        dict(zip(("train", "val"), split_images(image_set, val_size=0.35, seed=2))),
    )
    settings = {
        "epochs": 5,
        "patience": 0,
        "batch_size": 4,
        "lr": 1e-2,
        "views": 2,
        "hidden": 8,
        "dropout": 0.5,
    } | settings
    return Study(image_set, views, indices, view_blocks(image_set, views, seed=2), settings, 2)


def without_seconds(result):
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in result.history
    ]


@torch.no_grad()
def forward_by_eights(lower, images):
    """The frozen part over uint8 images, in the batches that `extract` takes on a CPU."""
    return torch.cat(
        [lower(part.contiguous(memory_format=torch.channels_last)) for part in images.split(8)]
    )


def ordinary_loop(lower, head, study):
    """The loop that everybody writes: each epoch renders its view afresh and runs the frozen backbone over it again.

    Returns the validation loss and the head's weights after each epoch.
    """
    s, train, val = study.settings, study.indices["train"], study.indices["val"]
    y, val_y = study.image_set.labels[train], study.image_set.labels[val]
    lower.eval()
    optimizer = torch.optim.Adam(
        head.parameters(), lr=s["lr"], fused=True
    )  # the same kernels, so the same rounding
    torch.manual_seed(study.seed)
    shuffle = torch.Generator().manual_seed(study.seed)
    losses, weights = [], []
    for epoch in range(s["epochs"]):
        view = 1 + epoch % s["views"]
        x = forward_by_eights(
            lower,
            render_view(
                study.image_set, study.views.train, view=view, seed=study.seed, indices=train
            ),
        )
        head.train()
        for batch in torch.randperm(len(train), generator=shuffle).split(s["batch_size"]):
            loss = F.cross_entropy(head(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        val_x = forward_by_eights(
            lower,
            render_view(study.image_set, study.views.val, view=0, seed=study.seed, indices=val),
        )
        with torch.no_grad():
            losses.append(F.cross_entropy(head(val_x), val_y).item())
        weights.append(copy.deepcopy(head.state_dict()))
    return losses, weights


@pytest.mark.parametrize("views", [1, 2, 5])
def test_a_study_is_the_ordinary_loop_with_views_that_cycle(seven_classes, views):
    """Equal to the bit, since both put the same images into the same forward batches; only the loop does so every epoch.

    Both run the folded backbone: what folding itself rounds is bounded in tests/test_backbones.py.
    """
    study = make_study(seven_classes, views=views)
    frozen = freeze_backbone(TINY, study, weights="none")
    losses, weights = ordinary_loop(
        fold_batchnorm(frozen.lower), copy.deepcopy(frozen.upper), study
    )
    result, _ = train_study(frozen, study, progress=False)
    assert [row["val_loss"] for row in result.history] == losses
    assert result.best_epoch == 1 + losses.index(min(losses))
    expected = weights[result.best_epoch - 1]
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in frozen.upper.state_dict().items()
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.state.items())


@pytest.mark.parametrize(("views", "epochs"), [(2, 5), (4, 3)])
def test_no_view_is_drawn_twice_or_before_it_is_asked_for(seven_classes, views, epochs):
    study, asked = make_study(seven_classes, views=views, epochs=epochs), []

    def blocks(view, indices):
        asked.append((view, len(indices)))
        return study.blocks(view, indices)

    counted = study._replace(blocks=blocks)
    frozen = freeze_backbone(TINY, counted, weights="none")
    asked.clear()
    train_study(frozen, counted, progress=False)
    n_train, n_val = len(study.indices["train"]), len(study.indices["val"])
    assert asked == [
        (0, n_val),
        (0, n_train),
        *((1 + k, n_train) for k in range(min(views, epochs))),
    ]


def test_numbers_do_not_depend_on_when_views_are_drawn(seven_classes):
    lazy, early = make_study(seven_classes, views=3), make_study(seven_classes, views=3)
    frozen = [freeze_backbone(TINY, study, weights="none") for study in (lazy, early)]
    state = torch.get_rng_state()
    for view in (3, 1, 2):
        frozen[1].draw("train", view)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    results = [train_study(f, study, progress=False)[0] for f, study in zip(frozen, (lazy, early))]
    assert without_seconds(results[0]) == without_seconds(results[1])
    assert all(
        torch.equal(a, b)
        for a, b in zip(frozen[0].upper.parameters(), frozen[1].upper.parameters())
    )


def test_the_frozen_part_keeps_every_bit_and_the_head_moves(seven_classes):
    study = make_study(seven_classes)
    frozen = freeze_backbone(TINY, study, weights="none")
    before = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    _, provenance = train_study(frozen, study, progress=False)
    assert provenance["frozen_hash_before"] == provenance["frozen_hash_after"] == frozen.frozen_hash
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


def test_a_study_says_what_it_was(seven_classes):
    study = make_study(seven_classes, size=64)
    started = time.perf_counter()
    frozen = freeze_backbone(TINY, study, weights="none")
    result, provenance = train_study(frozen, study, progress=False)
    seconds = time.perf_counter() - started
    assert all(value >= 0 for value in provenance["timings"].values())
    assert 0 < sum(provenance["timings"].values()) <= seconds
    assert json.loads(json.dumps(provenance, allow_nan=False)).keys() == provenance.keys()
    wanted = {
        "data_digest",
        "split_hash",
        "weights",
        "frozen_hash_before",
        "frozen_hash_after",
        "settings",
        "seed",
        "device",
        "precision",
        "timings",
        "synthetic",
        "protocol",
        "classes",
        "transforms",
        "head",
        "mean",
        "std",
        "timm_name",
    }
    assert wanted <= provenance.keys()
    assert provenance["synthetic"] and [path for path, _ in provenance["rejected"]] == [
        "3 corners/bad.png"
    ]
    assert provenance["weights"]["kind"] == "random" and (
        provenance["n_train"],
        provenance["n_val"],
    ) == (19, 9)
    labels = study.image_set.labels[study.indices["val"]]
    best = result.history[result.best_epoch - 1]
    assert accuracy_score(labels, provenance["val_predictions"]) == pytest.approx(
        best["val_acc"], abs=1e-12
    )
    assert provenance["macro_f1"] == pytest.approx(
        f1_score(labels, provenance["val_predictions"], average="macro")
    )
    low, high = provenance["accuracy_interval"]
    assert 0 <= low <= best["val_acc"] <= high <= 1
    with torch.inference_mode():  # the whole model, its best weights in place, says the same
        images = torch.cat(list(study.blocks(0, study.indices["val"])))
        assert (
            frozen.model.eval()(normalize(frozen.model, images)).argmax(dim=1).tolist()
            == provenance["val_predictions"]
        )
    assert provenance["trainable_parameters"] == sum(
        p.numel() for p in frozen.model.parameters() if p.requires_grad
    )


def test_features_kept_on_disk_change_no_number(seven_classes, tmp_path, monkeypatch):
    results = []
    for cache_dir in ("", tmp_path, tmp_path):
        study = make_study(seven_classes)
        frozen = freeze_backbone(TINY, study, weights="none", cache_dir=cache_dir)
        if results[1:]:
            monkeypatch.setattr(features, "extract", pytest.fail)
        results.append(without_seconds(train_study(frozen, study, progress=False)[0]))
    assert results[0] == results[1] == results[2]


def test_the_same_tensors_under_another_mean_are_other_features(seven_classes, tmp_path):
    """Both names build the same tensors; one is fed with another mean and pads otherwise."""
    names = ("efficientnet_lite0.ra_in1k", "tf_efficientnet_lite0.in1k")
    model, _ = create_backbone(names[0], "none")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    study = make_study(seven_classes)
    options = {"weights": tmp_path / "weights.pth"}
    both = [freeze_backbone(name, study, cache_dir=tmp_path / "kept", **options) for name in names]
    assert both[0].frozen_hash == both[1].frozen_hash
    assert both[0].model.pretrained_cfg["mean"] != both[1].model.pretrained_cfg["mean"]
    first, second = (frozen.draw("val", 0) for frozen in both)
    assert torch.equal(
        second, freeze_backbone(names[1], study, **options).draw("val", 0)
    ) and not torch.equal(first, second)


def test_figures_of_seven_classes(seven_classes):
    study = make_study(seven_classes, epochs=1)
    frozen = freeze_backbone(TINY, study, weights="none")
    result, provenance = train_study(frozen, study, progress=False)
    summary, labels = (
        provenance | {"best": result.history[0]},
        study.image_set.labels[study.indices["val"]],
    )
    drawn = [
        plots.plot_class_counts(seven_classes, study.indices),
        plots.plot_timings([summary]),
        plots.plot_models([summary]),
        plots.plot_confusion(labels, torch.tensor(provenance["val_predictions"]), provenance),
        plots.plot_images(
            [*seven_classes.images][:9], list("abcdefghi"), columns=7, heading="two rows"
        ),
        *(
            plots.plot_history(result, provenance, kind)
            for kind in ("loss", "accuracy", "combined")
        ),
    ]
    for figure in drawn:
        assert isinstance(figure, plt.Figure)
        figure.canvas.draw()
    assert [len(figure.axes) for figure in drawn[-3:]] == [1, 1, 2]
    assert (
        "synthetic" in drawn[-1].get_suptitle()
        and "random initialisation" in drawn[-1].get_suptitle()
    )
    plt.close("all")


def test_batchnorm_of_a_random_backbone_counts_every_image_alike_and_never_holds_them_all(
    seven_classes, monkeypatch
):
    """40 images go in blocks of 20, not of 32 and 8; when one is rendered, only the one before it is still there."""
    study, sizes, alive, seen = make_study(seven_classes), [], [], []
    study.indices["train"] = study.indices["train"].repeat(2)[:31]  # with 9 validation images 40

    def blocks(view, indices):
        for block in view_blocks(study.image_set, study.views, seed=2)(view, indices):
            alive.append(sum(reference() is not None for reference in seen))
            seen.append(weakref.ref(block))
            sizes.append(len(block))
            yield block

    frozen = freeze_backbone(TINY, study._replace(blocks=blocks), weights="none")
    assert sizes == [20, 20] and max(alive) <= 1
    norm = next(
        module for module in frozen.model.modules() if isinstance(module, torch.nn.BatchNorm2d)
    )
    everything = torch.cat([*study.indices.values()])
    x = normalize(
        frozen.model,
        render_view(study.image_set, study.views.val, view=0, seed=2, indices=everything),
    )
    assert torch.allclose(norm.running_mean, frozen.model.conv1[0](x).mean((0, 2, 3)), atol=1e-4)

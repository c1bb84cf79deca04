"""Techniques by what defines them: which parameters move, at which rates, in which phases."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from transferlab import techniques
from transferlab.backbones import build_model, create_backbone, estimate_batchnorm, split_at
from transferlab.errors import UserError
from transferlab.techniques import (
    FROZEN,
    TUNED,
    Task,
    layer_rates,
    linear_head,
    stages,
    steps_of,
    study_head,
    warmup_cosine,
)
from transferlab.train import evaluate, train, train_one_epoch

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def task(study):
    return Task(
        study.blocks, study.image_set.labels, study.indices, classes=2, epochs=4, views=3, seed=0
    )


@pytest.fixture
def model(study):
    model, _ = create_backbone(TINY, "none")
    estimate_batchnorm(model, [*study.blocks(0, torch.arange(16))], device=torch.device("cpu"))
    return model


def moved(model, task, technique):
    """The names of the parameters, and of the buffers, that a technique has changed, the new head's left out; its results. The head
    is checked here: it moves in every technique."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = technique(model, task)
    new = (
        study_head if technique in {*FROZEN.values()} - {FROZEN["linear probe"]} else linear_head
    )(copy.deepcopy(model), task)
    assert all(
        not torch.equal(a, b)
        for a, b in zip(model.fc.parameters(), new.fc.parameters(), strict=True)
    )
    changed = {
        name
        for name, tensor in model.state_dict().items()
        if name in before and not name.startswith("fc.")
    }
    changed = {name for name in changed if not torch.equal(model.state_dict()[name], before[name])}
    parameters = {name for name, _ in model.named_parameters()}
    return changed & parameters, changed - parameters, results


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_backbone_stays_to_the_bit(name, model, task):
    parameters, buffers, (result,) = moved(model, task, FROZEN[name])
    assert not parameters and not buffers and len(result.history) == 4


TOP = {
    "last stage": "layer4",
    "gradual unfreezing": "layer2",
}  # the lowest stage that ever trains; else all of it


def statistics_above(model, stage):
    """The names of the BatchNorm layers from `stage` on: their statistics move, as in ordinary fine-tuning."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return {name for name in names if not stage or name.startswith("layer") and name >= stage}


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "last stage": lambda name, module: name.startswith("layer4."),
        "LP-FT": lambda name, module: True,
        "layer-wise rates": lambda name, module: True,
        "MixUp": lambda name, module: True,
        "CutMix": lambda name, module: True,
        "full fine-tuning": lambda name, module: True,
        "gradual unfreezing": lambda name, module: name.startswith(
            ("layer2.", "layer3.", "layer4.")
        ),
        "normalisation only": lambda name, module: isinstance(module, nn.BatchNorm2d),
        "biases only": lambda name, module: name.endswith(".bias"),
    }.items(),
)
def test_what_moves_is_what_the_technique_says(name, expected, model, task):
    wanted = {key for key, _ in model.named_parameters() if not key.startswith("fc.")}
    wanted = {key for key in wanted if expected(key, model.get_submodule(key.rpartition(".")[0]))}
    parameters, buffers, results = moved(model, task._replace(epochs=8), TUNED[name])
    assert parameters == wanted
    phases = {"LP-FT": 2, "gradual unfreezing": 4}.get(name, 1)
    assert len(results) == phases and sum(len(result.history) for result in results) <= 8
    statistics = set() if name == "LP-FT" else statistics_above(model, TOP.get(name, ""))
    assert {key.rpartition(".")[0] for key in buffers} == statistics


@pytest.fixture
def fits(monkeypatch):
    """What techniques ask `fit` for, as (cut, epochs, number of the first epoch, options); nothing is trained."""
    asked = []

    def record(model, cut, task, *, first=0, trains=None, **options):
        asked.append((cut, task.epochs, first, options))
        return "result"

    monkeypatch.setattr(techniques, "fit", record)
    return asked


def test_phases_follow_each_other_and_go_on_with_the_views(model, task, fits):
    assert TUNED["LP-FT"](model, task._replace(epochs=9)) == ["result"] * 2
    assert fits == [
        ("features", 4, 0, {}),
        ("input", 5, 4, {"lr": 1e-4, "stay_eval": nn.modules.batchnorm._BatchNorm}),
    ]
    fits.clear()
    TUNED["gradual unfreezing"](model, task._replace(epochs=10))
    assert [(cut, epochs, first) for cut, epochs, first, _ in fits] == [
        ("features", 2, 0),
        ("layer4", 2, 2),
        ("layer3", 2, 4),
        ("layer2", 4, 6),
    ]
    assert [options["lr"] for *_, options in fits] == [1e-3, 1e-4, 1e-4, 1e-4]
    fits.clear()
    for name in ("LP-FT", "gradual unfreezing"):
        TUNED[name](model, task._replace(epochs=1))
    assert [epochs for _, epochs, *_ in fits] == [1] * 6


def test_labels_are_smoothed(model, task, fits):
    FROZEN["label smoothing"](model, task)
    assert fits == [("features", 4, 0, {"label_smoothing": 0.1})]


def rates_of(options, model):
    """{name of a parameter: its rate} of what a technique asks `train` for."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: group.get("lr", 1e-3)
        for group in options["parameters"]
        for p in group["params"]
    }


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("last stage", "layer4"),
        *((name, "input") for name in ("full fine-tuning", "MixUp", "CutMix")),
    ],
)
def test_a_head_that_starts_at_random_goes_ten_times_as_fast(name, cut, model, task, fits):
    TUNED[name](model, task)
    ((asked, epochs, first, options),) = fits
    assert (asked, epochs, first) == (cut, 4, 0)
    assert rates_of(options, model) == {
        name: 1e-3 if name.startswith("fc.") else 1e-4 for name, _ in model.named_parameters()
    }


def test_rates_of_the_technique_fall_with_every_stage(model, task, fits):
    TUNED["layer-wise rates"](model, task)
    rates = rates_of(fits[0][3], model)
    for place, module in enumerate(["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]):
        assert {rate for name, rate in rates.items() if name.startswith(f"{module}.")} == {
            1e-3 * 0.65**place
        }, module


def test_mixing_and_schedule_are_asked_for(model, task, fits):
    for name in ("MixUp", "CutMix", "cosine schedule"):
        (FROZEN | TUNED)[name](model, task)
    mixup, cutmix, cosine = (options for *_, options in fits)
    assert type(mixup["mix"]) is v2.MixUp and mixup["mix"].alpha == 0.2
    assert type(cutmix["mix"]) is v2.CutMix and cutmix["mix"].alpha == 1.0
    assert (
        cosine["patience"] == 0
        and cosine["schedule"](0) == 1
        and cosine["schedule"](steps_of(task) - 1) < 0.5
    )


def test_lp_ft_goes_on_from_the_head_that_the_probe_has_found(model, task, monkeypatch):
    """With nothing to learn in its second phase it ends at the probe's head."""
    real, probed = techniques.fit, copy.deepcopy(model)
    techniques.linear_probe(probed, task._replace(epochs=2))
    given = {"lr": 0.0}
    monkeypatch.setattr(
        techniques,
        "fit",
        lambda model, cut, task, **options: real(
            model, cut, task, **options | (given if cut == "input" else {})
        ),
    )
    TUNED["LP-FT"](model, task)
    assert torch.equal(model.fc[0].weight, probed.fc[0].weight)


def test_a_later_phase_goes_on_with_other_views(model, task, monkeypatch):
    seen = []
    watched = task._replace(
        blocks=lambda view, indices: seen.append(view) or task.blocks(view, indices),
        views=30,
        epochs=4,
    )
    TUNED["LP-FT"](model, watched)
    assert [view for view in seen if view] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", [f"layer{i}" for i in range(1, 5)]),
        ("densenet121", [f"features.denseblock{i}" for i in range(1, 5)]),
        ("tf_efficientnet_lite0", [f"blocks.{i}" for i in range(7)]),
        ("vit_small_patch16_224", [f"blocks.{i}" for i in range(12)]),
        ("convnext_tiny", [f"stages.{i}" for i in range(4)]),
        ("swin_tiny_patch4_window7_224", [f"layers.{i}" for i in range(4)]),
    ],
)
def test_stages_and_their_rates_in_every_family(name, expected, task):
    with torch.device("meta"):
        model = build_model(name)
        assert stages(model) == expected
        groups = layer_rates(model, lr=1.0, decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for place, stage in enumerate([*expected[::-1]], 1):
        assert {rates[id(p)] for p in model.get_submodule(stage).parameters()} == {0.5**place}, (
            stage
        )
    assert rates[id(next(model.parameters()))] == 0.5 ** (len(expected) + 1)
    assert len(rates) == sum(1 for _ in model.parameters())


def test_a_model_without_stages_is_refused():
    with torch.device("meta"), pytest.raises(UserError, match="no stages"):
        stages(build_model("vgg16"))


def test_rates_fall_from_the_head_to_the_stem(model, task):
    groups = layer_rates(linear_head(model, task), lr=1e-3, decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(1 for _ in model.parameters())
    for place, module in enumerate(["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]):
        assert {rates[id(p)] for p in model.get_submodule(module).parameters()} == {
            1e-3 * 0.5**place
        }, module


def test_the_schedule_warms_up_and_falls_to_nothing(task):
    schedule = warmup_cosine(100, 10)
    factors = [schedule(step) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1 and factors[-1] < 1e-3
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(
        factors[10:], reverse=True
    )
    assert factors[55] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    assert steps_of(task, batch_size=4) == 4 * -(-len(task.indices["train"]) // 4)


def test_a_scheduled_run_steps_with_every_batch():
    torch.manual_seed(0)
    x, y, seen = torch.randn(10, 4), torch.arange(10) % 2, []
    head = nn.Linear(4, 2)
    before = head.weight.clone()
    train(
        head,
        lambda epoch: x,
        y,
        x,
        y,
        clean_x=x,
        epochs=3,
        batch_size=4,
        schedule=lambda step: seen.append(step) or 0.0,
    )
    assert seen == [*range(1 + 3 * 3)]  # once at the start, then after every step
    assert torch.equal(head.weight, before)  # the factor was 0


def test_groups_weights_mixing_and_eval_mode_reach_a_run():
    """Each of `train`'s options changes what it says: a group at rate 0 stays, the others end elsewhere than without it."""
    x, y = (
        torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(24) % 2,
    )

    def run(**options):
        torch.manual_seed(0)
        upper = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        start = copy.deepcopy(upper)
        if "still" in options:
            options = {
                "parameters": [
                    {"params": upper[0].parameters(), "lr": 0.0},
                    {"params": upper[3].parameters()},
                ]
            }
        train(upper, lambda epoch: x, y, x, y, clean_x=x, epochs=2, batch_size=8, **options)
        return start, upper

    start, plain = run()
    start, still = run(still=True)
    assert torch.equal(still[0].weight, start[0].weight) and torch.equal(
        still[1].weight, start[1].weight
    )
    assert not torch.equal(still[3].weight, start[3].weight)
    for options in (
        {"class_weights": torch.tensor([1.0, 3.0])},
        {"mix": v2.MixUp(alpha=1.0, num_classes=2)},
    ):
        assert not torch.equal(run(**options)[1][3].weight, plain[3].weight), options
    fixed = run(stay_eval=nn.BatchNorm2d)[1]
    assert torch.equal(fixed[1].running_mean, start[1].running_mean) and not torch.equal(
        plain[1].running_mean, start[1].running_mean
    )
    assert not torch.equal(fixed[1].weight, start[1].weight)


def test_mixing_and_weights_reach_the_loss():
    """One step on mixed targets is cross-entropy against them; accuracy stays that of the labels."""
    torch.manual_seed(0)
    x, y, head = torch.randn(8, 4), torch.arange(8) % 3, nn.Linear(4, 3)
    weights, mixed = (
        torch.tensor([1.0, 2.0, 0.5]),
        F.one_hot(y, 3) * 0.6 + F.one_hot(y.flip(0), 3) * 0.4,
    )
    expected = F.cross_entropy(head(x), mixed, weight=weights, label_smoothing=0.1).item()
    right = (head(x).argmax(1) == y).double().mean().item()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
    loss, accuracy = train_one_epoch(
        head,
        optimizer,
        x.flip(0),
        y,
        torch.arange(8),
        8,
        mix=lambda given, y: (given.flip(0), mixed),
        weight=weights,
        label_smoothing=0.1,
    )
    assert (loss, accuracy) == (pytest.approx(expected), pytest.approx(right))


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixed_runs_report_a_training_accuracy(name, model, task):
    """That of the clean images, not 0: one that the mixed targets, which no class equals, would give."""
    (result,) = TUNED[name](model, task._replace(epochs=6))
    images, labels = (
        torch.cat([*task.blocks(0, task.indices["train"])]),
        task.labels[task.indices["train"]],
    )
    upper = split_at(model, "input")[1]
    best = result.history[result.best_epoch - 1]["train_acc_clean"]
    assert best == evaluate(upper, images, labels)["accuracy"] and best >= 0.5
    assert any(row["train_acc"] > 0 for row in result.history)


def test_weights_of_classes_are_their_inverse_share(task, monkeypatch, model):
    given = {}
    monkeypatch.setattr(
        techniques, "head_on_frozen", lambda model, task, **options: given.update(options)
    )
    rare = task._replace(
        labels=torch.cat([torch.zeros(12), torch.ones(4)]).long(),
        indices={"train": torch.arange(16)},
    )
    FROZEN["class weights"](model, rare)
    assert given["class_weights"].tolist() == pytest.approx([16 / 24, 16 / 8])

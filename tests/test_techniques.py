"""Techniques by what defines them: which parameters move, at which rates, in which phases."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from transferlab import techniques
from transferlab.backbones import build_model, create_backbone, estimate_batchnorm, split_at
from transferlab.data import Fold
from transferlab.errors import UserError
from transferlab.study import Study
from transferlab.techniques import (
    FROZEN,
    TUNED,
    changed,
    layer_rates,
    linear_head,
    stages,
    steps_of,
    study_head,
    warmup_cosine,
)
from transferlab.train import Loop, Recipe, Settings, TrainData, evaluate, train
from transferlab.views import Renderer

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def task(study):
    """The study that techniques work on."""
    return replace(study, settings=Settings(epochs=4, views=3), seed=0)


@pytest.fixture
def model(study):
    model, _ = create_backbone(TINY, "none")
    blocks = study.renderer.blocks(0, torch.arange(16))
    estimate_batchnorm(model, blocks, device="cpu")
    return model


def moved(model, task, technique):
    """The names of the parameters, and of the buffers, that a technique has changed, the new head's
    left out; its results. The head is checked here: it moves in every technique."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = technique(model, task)
    with_study_head = {*FROZEN.values()} - {FROZEN["linear probe"]}
    put_head = study_head if technique in with_study_head else linear_head
    new = put_head(copy.deepcopy(model), task)
    heads = zip(model.fc.parameters(), new.fc.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in heads)
    state = model.state_dict()
    kept = [name for name in state if name in before and not name.startswith("fc.")]
    different = {name for name in kept if not torch.equal(state[name], before[name])}
    parameters = {name for name, _ in model.named_parameters()}
    return different & parameters, different - parameters, results


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_backbone_stays_to_the_bit(name, model, task):
    parameters, buffers, (result,) = moved(model, task, FROZEN[name])
    assert not parameters and not buffers and len(result.history) == 4


# The lowest stage that ever trains; else all of it.
TOP = {"last stage": "layer4", "gradual unfreezing": "layer2"}


def statistics_above(model, stage):
    """The names of the BatchNorm layers from `stage` on: their statistics move, as in ordinary
    fine-tuning."""
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
    parameters, buffers, results = moved(model, changed(task, epochs=8), TUNED[name])
    assert parameters == wanted
    phases = {"LP-FT": 2, "gradual unfreezing": 4}.get(name, 1)
    assert len(results) == phases and sum(len(result.history) for result in results) <= 8
    statistics = set() if name == "LP-FT" else statistics_above(model, TOP.get(name, ""))
    assert {key.rpartition(".")[0] for key in buffers} == statistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What a technique asks `fit` for."""

    cut: str
    study: Study
    first: int
    recipe: Recipe

    @property
    def options(self):
        """What it says beside the cut, the epochs and the first one."""
        usual = Settings(epochs=self.study.settings.epochs, views=3)
        told = different_fields(self.study.settings, usual)
        return told | different_fields(self.recipe, Recipe())

    @property
    def phase(self):
        """(cut, epochs, number of the first epoch)."""
        return self.cut, self.study.settings.epochs, self.first


def different_fields(one, other):
    """{name of a field: its value in `one`} where the two differ."""
    values = vars(one)
    return {name: values[name] for name in values if values[name] != getattr(other, name)}


@pytest.fixture
def fits(monkeypatch):
    """What techniques ask `fit` for; nothing is trained."""
    asked = []

    def record(model, cut, study, *, first=0, trains=None, recipe=None):
        asked.append(Fit(cut=cut, study=study, first=first, recipe=recipe or Recipe()))
        return "result"

    monkeypatch.setattr(techniques, "fit", record)
    return asked


def test_phases_follow_each_other_and_go_on_with_the_views(model, task, fits):
    assert TUNED["LP-FT"](model, changed(task, epochs=9)) == ["result"] * 2
    assert [(*one.phase, one.options) for one in fits] == [
        ("features", 4, 0, {}),
        ("input", 5, 4, {"lr": 1e-4, "stay_eval": (nn.modules.batchnorm._BatchNorm,)}),
    ]
    fits.clear()
    TUNED["gradual unfreezing"](model, changed(task, epochs=10))
    assert [one.phase for one in fits] == [
        ("features", 2, 0),
        ("layer4", 2, 2),
        ("layer3", 2, 4),
        ("layer2", 4, 6),
    ]
    assert [one.study.settings.lr for one in fits] == [1e-3, 1e-4, 1e-4, 1e-4]
    fits.clear()
    for name in ("LP-FT", "gradual unfreezing"):
        TUNED[name](model, changed(task, epochs=1))
    assert [one.study.settings.epochs for one in fits] == [1] * 6


def test_labels_are_smoothed(model, task, fits):
    FROZEN["label smoothing"](model, task)
    (one,) = fits
    assert (*one.phase, one.options) == ("features", 4, 0, {"label_smoothing": 0.1})


def rates_of(one, model):
    """{name of a parameter: its rate} of what a technique asks `train` for."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for group in one.recipe.parameters:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group.get("lr", one.study.settings.lr)
    return rates


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("last stage", "layer4"),
        *((name, "input") for name in ("full fine-tuning", "MixUp", "CutMix")),
    ],
)
def test_a_head_that_starts_at_random_goes_ten_times_as_fast(name, cut, model, task, fits):
    TUNED[name](model, task)
    (one,) = fits
    assert one.phase == (cut, 4, 0)
    assert rates_of(one, model) == {
        name: 1e-3 if name.startswith("fc.") else 1e-4 for name, _ in model.named_parameters()
    }


def test_rates_of_the_technique_fall_with_every_stage(model, task, fits):
    TUNED["layer-wise rates"](model, task)
    rates = rates_of(fits[0], model)
    for place, module in enumerate(["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]):
        assert {rate for name, rate in rates.items() if name.startswith(f"{module}.")} == {
            1e-3 * 0.65**place
        }, module


def test_mixing_and_schedule_are_asked_for(model, task, fits):
    for name in ("MixUp", "CutMix", "cosine schedule"):
        (FROZEN | TUNED)[name](model, task)
    mixup, cutmix, cosine = fits
    assert type(mixup.recipe.mix) is v2.MixUp and mixup.recipe.mix.alpha == 0.2
    assert type(cutmix.recipe.mix) is v2.CutMix and cutmix.recipe.mix.alpha == 1.0
    schedule = cosine.recipe.schedule
    assert cosine.study.settings.patience == 0
    assert schedule(0) == 1 and schedule(steps_of(task) - 1) < 0.5


def test_lp_ft_goes_on_from_the_head_that_the_probe_has_found(model, task, monkeypatch):
    """With nothing to learn in its second phase it ends at the probe's head."""
    real = techniques.fit
    probed = copy.deepcopy(model)
    techniques.linear_probe(probed, changed(task, epochs=2))

    def fit(model, cut, study, **options):
        return real(model, cut, changed(study, lr=0.0) if cut == "input" else study, **options)

    monkeypatch.setattr(techniques, "fit", fit)
    TUNED["LP-FT"](model, task)
    assert torch.equal(model.fc[0].weight, probed.fc[0].weight)


class Watched(Renderer):
    """Notes which views are drawn."""

    def __init__(self, image_set, augmentation, *, seed):
        super().__init__(image_set, augmentation, seed=seed)
        self.seen = []

    def blocks(self, view, indices):
        self.seen.append(view)
        return super().blocks(view, indices)


def test_a_later_phase_goes_on_with_other_views(model, task):
    renderer = Watched(task.image_set, task.renderer.augmentation, seed=1)
    watched = changed(replace(task, renderer=renderer), views=30, epochs=4)
    TUNED["LP-FT"](model, watched)
    assert [view for view in renderer.seen if view] == [1, 2, 3]


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
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    assert steps_of(changed(task, batch_size=4)) == 4 * -(-len(task.fold.train) // 4)


def same_data(x, y):
    """Trains and validates on the same x, which is its own clean view."""
    return TrainData(view_of=lambda epoch: x, labels=y, clean_x=x, val_x=x, val_y=y)


def test_a_scheduled_run_steps_with_every_batch():
    torch.manual_seed(0)
    x, y, seen = torch.randn(10, 4), torch.arange(10) % 2, []
    head = nn.Linear(4, 2)
    before = head.weight.clone()
    recipe = Recipe(schedule=lambda step: seen.append(step) or 0.0)
    train(head, same_data(x, y), Settings(epochs=3, batch_size=4), recipe=recipe)
    assert seen == [*range(1 + 3 * 3)]  # once at the start, then after every step
    assert torch.equal(head.weight, before)  # the factor was 0


def test_groups_weights_mixing_and_eval_mode_reach_a_run():
    """Each of `train`'s options changes what it says: a group at rate 0 stays, the others end
    elsewhere than without it."""
    x = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 2

    def run(still=False, **options):
        torch.manual_seed(0)
        upper = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        start = copy.deepcopy(upper)
        if still:
            first = {"params": upper[0].parameters(), "lr": 0.0}
            options = {"parameters": [first, {"params": upper[3].parameters()}]}
        train(upper, same_data(x, y), Settings(epochs=2, batch_size=8), recipe=Recipe(**options))
        return start, upper

    start, plain = run()
    start, still = run(still=True)
    assert torch.equal(still[0].weight, start[0].weight)
    assert torch.equal(still[1].weight, start[1].weight)
    assert not torch.equal(still[3].weight, start[3].weight)
    for options in (
        {"class_weights": torch.tensor([1.0, 3.0])},
        {"mix": v2.MixUp(alpha=1.0, num_classes=2)},
    ):
        assert not torch.equal(run(**options)[1][3].weight, plain[3].weight), options
    fixed = run(stay_eval=(nn.BatchNorm2d,))[1]
    assert torch.equal(fixed[1].running_mean, start[1].running_mean)
    assert not torch.equal(plain[1].running_mean, start[1].running_mean)
    assert not torch.equal(fixed[1].weight, start[1].weight)


def test_mixing_and_weights_reach_the_loss():
    """One step on mixed targets is cross-entropy against them; accuracy stays that of the
    labels."""
    torch.manual_seed(0)
    x, y, head = torch.randn(8, 4), torch.arange(8) % 3, nn.Linear(4, 3)
    weights = torch.tensor([1.0, 2.0, 0.5])
    mixed = F.one_hot(y, 3) * 0.6 + F.one_hot(y.flip(0), 3) * 0.4
    expected = F.cross_entropy(head(x), mixed, weight=weights, label_smoothing=0.1).item()
    right = (head(x).argmax(1) == y).double().mean().item()
    recipe = Recipe(
        mix=lambda given, y: (given.flip(0), mixed), class_weights=weights, label_smoothing=0.1
    )
    loop = Loop(head, Settings(batch_size=8, lr=0.0), recipe)
    loss, accuracy = loop.epoch(x.flip(0), y, torch.arange(8))
    assert (loss, accuracy) == (pytest.approx(expected), pytest.approx(right))


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixed_runs_report_a_training_accuracy(name, model, task):
    """That of the clean images, not 0: one that the mixed targets, which no class equals, would
    give."""
    (result,) = TUNED[name](model, changed(task, epochs=6))
    images = torch.cat([*task.renderer.blocks(0, task.fold.train)])
    labels = task.labels(task.fold.train)
    upper = split_at(model, "input")[1]
    best = result.best.train_acc_clean
    assert best == evaluate(upper, images, labels).accuracy and best >= 0.5
    assert any(row.train_acc > 0 for row in result.history)


def test_weights_of_classes_are_their_inverse_share(task, monkeypatch, model):
    given = []
    monkeypatch.setattr(
        techniques, "head_on_frozen", lambda model, study, recipe: given.append(recipe)
    )
    labels = torch.cat([torch.zeros(12), torch.ones(4)]).long()
    images = replace(task.image_set, labels=labels)
    everything = Fold(train=torch.arange(16), val=torch.arange(0))
    renderer = Renderer(images, task.renderer.augmentation, seed=1)
    FROZEN["class weights"](model, replace(task, renderer=renderer, fold=everything))
    assert given[0].class_weights.tolist() == pytest.approx([16 / 24, 16 / 8])

"""Transfer techniques: what trains, at which rates, in which phases. Each is a few lines on
`split_at` and `train`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from .backbones import classifier_name, fold_batchnorm, set_head, split_at
from .errors import UserError
from .features import extract_ahead
from .study import Study, seeded_head
from .train import Recipe, TrainData, TrainResult, train

BATCHNORM = (nn.modules.batchnorm._BatchNorm,)
NORMALISATION = (*BATCHNORM, nn.LayerNorm, nn.GroupNorm)
TUNING_RATE = 1e-4  # of a pretrained backbone; a head starts at random and takes ten times that


# ---- what techniques are made of -------------------------------------------------------------


def stages(model: nn.Module) -> list[str]:
    """The names of a timm model's stages, the first first, e.g. ["layer1", "layer2", "layer3",
    "layer4"]; of a ViT its blocks.

    They are the parts of several layers beside the one that gives the last feature map.

    Raises:
        UserError: the model has none (a VGG is one flat row of layers).
    """
    place = model.feature_info[-1]["module"].rpartition(".")[0]
    found = []
    for child_name, child in model.get_submodule(place).named_children():
        name = f"{place}.{child_name}".removeprefix(".")
        layers = [part for part in child.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        if len(layers) > 1 and name != classifier_name(model):
            found.append(name)
    if not found:
        advice = "choose a technique that trains the head or all of it"
        raise UserError(f"this model has no stages: {advice}")
    return found


def linear_head(model: nn.Module, study: Study) -> nn.Module:
    """Puts one linear layer in place of the classifier -> model."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(study.seed)
        head = nn.Sequential(nn.Linear(model.head_hidden_size, study.classes))
    return set_head(model, head)


def study_head(model: nn.Module, study: Study) -> nn.Module:
    """Puts the study's head in place of the classifier -> model."""
    return set_head(model, seeded_head(model.head_hidden_size, study))


def changed(study: Study, **settings: Any) -> Study:
    """The same study with some of its settings changed."""
    return replace(study, settings=replace(study.settings, **settings))


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """What a frozen part gives for the images of a fold; at the cut "input" the images."""

    lower: nn.Module | None  # BatchNorm folded; None at the cut "input"
    study: Study

    def of(self, index: torch.Tensor, view: int) -> torch.Tensor:
        """A view of those images [n, ...]: the clean one in fp32, others in the precision of the
        machine."""
        machine = self.study.machine
        blocks = self.study.renderer.blocks(view, index)
        if self.lower is None:
            return torch.cat([*blocks])
        precision = machine.precision_of(view)
        return extract_ahead(self.lower, blocks, machine=machine, precision=precision)


def activations_at(lower: nn.Module, cut: str, study: Study, first: int) -> TrainData:
    """What is trained on at a cut, computed as it is asked for; at "features" what is kept."""
    fold = study.fold
    settings = study.settings
    if cut == "features" and study.features is not None:
        kept = study.features
        return TrainData(
            view_of=lambda epoch: kept.train(settings.view_of(first + epoch)),
            labels=study.labels(fold.train),
            clean_x=kept.train(0),
            val_x=kept.clean[fold.val],
            val_y=study.labels(fold.val),
        )
    folded = None if cut == "input" else fold_batchnorm(lower)
    activations = Activations(lower=folded, study=study)
    clean = activations.of(fold.train, 0)

    def view_of(epoch: int) -> torch.Tensor:
        view = settings.view_of(first + epoch)
        return activations.of(fold.train, view) if view else clean

    return TrainData(
        view_of=view_of,
        labels=study.labels(fold.train),
        clean_x=clean,
        val_x=activations.of(fold.val, 0),
        val_y=study.labels(fold.val),
    )


def fit(
    model: nn.Module,
    cut: str,
    study: Study,
    *,
    first: int = 0,
    trains: Callable[[str], bool] | None = None,
    recipe: Recipe | None = None,
) -> TrainResult:
    """Cuts the model at `cut` and trains what lies above on the activations there.

    Epoch e takes the view of epoch `first` + e, so that a later phase goes on where the one before
    has ended. `trains(name)` says of a parameter of the model whether it trains (default: all
    above the cut).
    """
    lower, upper = split_at(model.to(study.machine.device), cut)
    if trains:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and trains(name))
    data = activations_at(lower, cut, study, first)
    return train(upper, data, study.settings, seed=study.seed, recipe=recipe)


def warmup_cosine(total: int, warmup: int) -> Callable[[int], float]:
    """A schedule over `total` steps: up to 1 in `warmup` of them, then down to 0 by a half cosine
    (Loshchilov & Hutter 2017)."""
    falling = max(1, total - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        turn = math.pi * (step - warmup) / falling
        return (1 + math.cos(turn)) / 2

    return factor


def steps_of(study: Study) -> int:
    """The steps of all epochs of a study."""
    settings = study.settings
    batches = math.ceil(len(study.fold.train) / settings.batch_size)
    return settings.epochs * batches


def layer_rates(model: nn.Module, *, lr: float, decay: float) -> list[dict[str, Any]]:
    """Groups of parameters: `lr` for the head, times `decay` for every stage further down (Howard &
    Ruder 2018, ACL, section 3.2), the stem lowest."""
    names = stages(model)
    top = len(names) + 1
    head = f"{classifier_name(model)}."
    groups: dict[int, list[nn.Parameter]] = {}
    depth = 0
    for name, parameter in model.named_parameters():
        if name.startswith(head):
            depth = top
        for place, stage in enumerate(names, 1):
            if name.startswith(f"{stage}."):
                depth = max(depth, place)
        groups.setdefault(depth, []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay ** (top - depth)}
        for depth, parameters in groups.items()
    ]


def two_rates(model: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters: the head, which starts at random, at the study's own rate, the rest at
    a tenth of that."""
    head = [*model.get_classifier().parameters()]
    in_head = {id(parameter) for parameter in head}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_head]
    return [{"params": head}, {"params": rest, "lr": TUNING_RATE}]


def head_or(
    model: nn.Module, kinds: tuple[type[nn.Module], ...] = (), names: tuple[str, ...] = ()
) -> Callable[[str], bool]:
    """Makes `trains(name)` for `fit`: true of the head, of parameters of modules of these `kinds`,
    of those that end in `names`."""
    head = f"{classifier_name(model)}."
    chosen = set()
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            chosen |= {f"{name}.{key}" for key, _ in module.named_parameters()}

    def trains(name: str) -> bool:
        return name.startswith(head) or name in chosen or name.endswith(names)

    return trains


# ---- the techniques: (model, study) -> list of TrainResult, one a phase; the model ends trained --

Technique = Callable[[nn.Module, Study], list[TrainResult]]


def linear_probe(model: nn.Module, study: Study) -> list[TrainResult]:
    """A linear layer on frozen features."""
    return [fit(linear_head(model, study), "features", study)]


def head_on_frozen(
    model: nn.Module, study: Study, recipe: Recipe | None = None
) -> list[TrainResult]:
    """The study's: two layers and dropout on frozen features."""
    return [fit(study_head(model, study), "features", study, recipe=recipe)]


def smoothed_labels(model: nn.Module, study: Study) -> list[TrainResult]:
    """The study's head, its targets smoothed by 0.1 (Szegedy et al. 2016, CVPR, section 7)."""
    return head_on_frozen(model, study, Recipe(label_smoothing=0.1))


def weighted_classes(model: nn.Module, study: Study) -> list[TrainResult]:
    """The study's head, every class counting the same in the loss: weights are the inverse of its
    share of the training images."""
    labels = study.labels(study.fold.train)
    counts = torch.bincount(labels, minlength=study.classes)
    class_weights = counts.sum() / (study.classes * counts)
    recipe = Recipe(class_weights=class_weights.to(study.machine.device))
    return head_on_frozen(model, study, recipe)


def cosine_schedule(model: nn.Module, study: Study) -> list[TrainResult]:
    """The study's head, its rate warmed up over a tenth of all steps, then falling to 0; all
    epochs."""
    total = steps_of(study)
    schedule = warmup_cosine(total, max(1, total // 10))
    return head_on_frozen(model, changed(study, patience=0), Recipe(schedule=schedule))


def last_stage(model: nn.Module, study: Study) -> list[TrainResult]:
    """The last stage and a linear head train together."""
    linear_head(model, study)
    cut = stages(model)[-1]
    return [fit(model, cut, study, recipe=Recipe(parameters=two_rates(model)))]


def probe_then_tune(model: nn.Module, study: Study) -> list[TrainResult]:
    """LP-FT: half of the epochs the linear probe, then all of it from there, so that good features
    are not distorted (Kumar et al. 2022, ICLR); as there, BatchNorm keeps its statistics, else the
    features would change at the first step already."""
    epochs = study.settings.epochs
    half = max(1, epochs // 2)
    probed = linear_probe(model, changed(study, epochs=half))
    rest = changed(study, epochs=max(1, epochs - half), lr=TUNING_RATE)
    return [*probed, fit(model, "input", rest, first=half, recipe=Recipe(stay_eval=BATCHNORM))]


def gradual_unfreezing(model: nn.Module, study: Study) -> list[TrainResult]:
    """The head alone, then one more stage from the top in each of three more phases (after Howard &
    Ruder 2018, ACL, section 3.3, who go on to the bottom); the last phase takes what epochs remain,
    each at least one."""
    linear_head(model, study)
    from_top = stages(model)[::-1]
    cuts = ["features", *from_top[:3]]
    epochs = study.settings.epochs
    share = max(1, epochs // len(cuts))
    results = []
    for number, cut in enumerate(cuts):
        first = number * share
        last = cut == cuts[-1]
        phase = changed(study, epochs=max(1, epochs - first) if last else share)
        if cut != "features":
            phase = changed(phase, lr=TUNING_RATE)
        results.append(fit(model, cut, phase, first=first))
    return results


def full_tuning(model: nn.Module, study: Study, recipe: Recipe | None = None) -> list[TrainResult]:
    """All of it, the backbone at a low rate."""
    linear_head(model, study)
    recipe = replace(recipe or Recipe(), parameters=two_rates(model))
    return [fit(model, "input", study, recipe=recipe)]


def full_with_layer_rates(model: nn.Module, study: Study) -> list[TrainResult]:
    """All of it, the head at 1e-3, each stage further down at 0.65 of the rate of the one above
    (Howard & Ruder: 1 / 2.6)."""
    linear_head(model, study)
    recipe = Recipe(parameters=layer_rates(model, lr=1e-3, decay=0.65))
    return [fit(model, "input", study, recipe=recipe)]


def normalisation_only(model: nn.Module, study: Study) -> list[TrainResult]:
    """Scales and shifts of the normalisation layers, and a linear head (after Frankle et al. 2021,
    ICLR: the rest random there)."""
    trains = head_or(linear_head(model, study), kinds=NORMALISATION)
    return [fit(model, "input", study, trains=trains)]


def biases_only(model: nn.Module, study: Study) -> list[TrainResult]:
    """Biases and a linear head (BitFit: Ben Zaken et al. 2022, ACL); of convolutions without any,
    the shifts of BatchNorm."""
    trains = head_or(linear_head(model, study), names=(".bias",))
    return [fit(model, "input", study, trains=trains)]


def mixed_up(model: nn.Module, study: Study) -> list[TrainResult]:
    """All of it on convex combinations of images and labels (MixUp: Zhang et al. 2018, ICLR)."""
    return full_tuning(model, study, Recipe(mix=v2.MixUp(alpha=0.2, num_classes=study.classes)))


def cut_and_mixed(model: nn.Module, study: Study) -> list[TrainResult]:
    """All of it on images into which a piece of another is pasted (CutMix: Yun et al. 2019,
    ICCV)."""
    return full_tuning(model, study, Recipe(mix=v2.CutMix(alpha=1.0, num_classes=study.classes)))


FROZEN: dict[str, Technique] = {  # the backbone stays frozen
    "linear probe": linear_probe,
    "study's head": head_on_frozen,
    "label smoothing": smoothed_labels,
    "class weights": weighted_classes,
    "cosine schedule": cosine_schedule,
}
TUNED: dict[str, Technique] = {
    "last stage": last_stage,
    "LP-FT": probe_then_tune,
    "gradual unfreezing": gradual_unfreezing,
    "full fine-tuning": full_tuning,
    "layer-wise rates": full_with_layer_rates,
    "normalisation only": normalisation_only,
    "biases only": biases_only,
    "MixUp": mixed_up,
    "CutMix": cut_and_mixed,
}

"""Transfer techniques: what trains, at which rates, in which phases. Each is a few lines on `split_at` and `train`."""

import math
from collections import namedtuple

import pandas as pd
import torch
from torch import nn
from torchvision.transforms import v2

from .backbones import (
    choose_device,
    choose_precision,
    classifier_name,
    fold_batchnorm,
    make_head,
    set_head,
    split_at,
)
from .errors import UserError
from .features import extract
from .metrics import accuracy_interval, corrected_resampled_t, verdicts
from .train import train

# What a technique works on. blocks(view, indices): as `view_blocks` makes it; labels int64 [N] of all images; indices: {"train":
# int64, "val": int64}; classes: how many; epochs: of the whole technique; views: used in turn; seed: of the head, the order and
# the dropout; draw(part, view): features at the cut "features", as `feature_drawer` makes it, or None: they are computed then.
Task = namedtuple("Task", "blocks labels indices classes epochs views seed draw", defaults=(None,))


def stages(model):
    """The names of a timm model's stages, the first first, e.g. ["layer1", "layer2", "layer3", "layer4"]; of a ViT its blocks.

    They are the parts of several layers beside the one that gives the last feature map.

    Raises:
        UserError: the model has none (a VGG is one flat row of layers).
    """
    place = model.feature_info[-1]["module"].rpartition(".")[0]
    children = [
        (f"{place}.{name}".removeprefix("."), child)
        for name, child in model.get_submodule(place).named_children()
    ]
    layers = {
        name: sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in child.modules())
        for name, child in children
    }
    found = [name for name, count in layers.items() if count > 1 and name != classifier_name(model)]
    if not found:
        raise UserError(
            "this model has no stages: choose a technique that trains the head or all of it"
        )
    return found


def linear_head(model, task):
    """Puts one linear layer in place of the classifier -> model."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.seed)
        head = nn.Sequential(nn.Linear(model.head_hidden_size, task.classes))
    return set_head(model, head)


def study_head(model, task):
    """Puts the study's head in place of the classifier -> model."""
    return set_head(model, make_head(model.head_hidden_size, task.classes, seed=task.seed))


def fit(model, cut, task, *, first=0, trains=None, **options):
    """Cuts the model at `cut` and trains what lies above on the activations there -> TrainResult.

    Epoch e takes view 1 + (first + e) % views, so that a later phase goes on where the one before has ended. `trains(name)` says
    of a parameter of the model whether it trains (default: all above the cut); `options` are those of `train`. Training views
    are computed in the precision of the machine, the others in fp32.
    """
    device, labels = (
        choose_device(),
        {part: task.labels[index] for part, index in task.indices.items()},
    )
    lower, upper = split_at(model.to(device), cut)
    draw = task.draw if cut == "features" else None
    folded = None if draw else fold_batchnorm(lower)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and (trains is None or trains(name)))

    def activations(part, view, precision=torch.float32):
        if draw:
            return draw(part, view)
        blocks = task.blocks(view, task.indices[part])
        return (
            torch.cat([*blocks])
            if cut == "input"
            else extract(folded, blocks, device=device, precision=precision)
        )

    def view_of(epoch):
        return activations("train", 1 + (first + epoch) % task.views, choose_precision(device))

    options = {
        "epochs": task.epochs,
        "seed": task.seed,
        "clean_x": activations("train", 0),
    } | options
    return train(upper, view_of, labels["train"], activations("val", 0), labels["val"], **options)


def warmup_cosine(total, warmup):
    """A schedule over `total` steps: up to 1 in `warmup` of them, then down to 0 by a half cosine (Loshchilov & Hutter 2017)."""
    falling = max(1, total - warmup)
    return lambda step: (
        (step + 1) / warmup
        if step < warmup
        else (1 + math.cos(math.pi * (step - warmup) / falling)) / 2
    )


def steps_of(task, batch_size=32):
    """The steps of all epochs of a task."""
    return task.epochs * -(-len(task.indices["train"]) // batch_size)


def layer_rates(model, *, lr, decay):
    """Groups of parameters for `train`: `lr` for the head, times `decay` for every stage further down (Howard & Ruder 2018,
    ACL, section 3.2), the stem lowest."""
    groups, depth, names = {}, 0, stages(model)
    for name, parameter in model.named_parameters():
        found = [place for place, stage in enumerate(names, 1) if name.startswith(f"{stage}.")]
        depth = (
            len(names) + 1
            if name.startswith(f"{classifier_name(model)}.")
            else max([depth, *found])
        )
        groups.setdefault(depth, []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay ** (len(names) + 1 - depth)}
        for depth, parameters in groups.items()
    ]


def two_rates(model):
    """Groups of parameters for `train`: the head, which starts at random, at `train`'s own rate, the rest at a tenth of that."""
    head = [*model.get_classifier().parameters()]
    return [
        {"params": head},
        {
            "params": [p for p in model.parameters() if all(p is not one for one in head)],
            "lr": 1e-4,
        },
    ]


def head_or(model, kinds=(), names=()):
    """Makes `trains(name)` for `fit`: true of the head, of parameters of modules of these `kinds`, of those that end in `names`."""
    modules = [
        (name, module) for name, module in model.named_modules() if isinstance(module, kinds)
    ]
    chosen = {f"{name}.{key}" for name, module in modules for key, _ in module.named_parameters()}
    head = f"{classifier_name(model)}."
    return lambda name: (
        name.startswith(head) or name in chosen or name.endswith(tuple(names) or "\0")
    )


# ---- the techniques: (model, task) -> list of TrainResult, one a phase; the model ends trained ---------------------------------


def linear_probe(model, task, **options):
    """A linear layer on frozen features."""
    return [fit(linear_head(model, task), "features", task, **options)]


def head_on_frozen(model, task, **options):
    """The study's: two layers and dropout on frozen features."""
    return [fit(study_head(model, task), "features", task, **options)]


def smoothed_labels(model, task):
    """The study's head, its targets smoothed by 0.1 (Szegedy et al. 2016, CVPR, section 7)."""
    return head_on_frozen(model, task, label_smoothing=0.1)


def weighted_classes(model, task):
    """The study's head, every class counting the same in the loss: weights are the inverse of its share of the training images."""
    counts = torch.bincount(task.labels[task.indices["train"]], minlength=task.classes)
    return head_on_frozen(
        model, task, class_weights=(counts.sum() / (task.classes * counts)).to(choose_device())
    )


def cosine_schedule(model, task):
    """The study's head, its rate warmed up over a tenth of all steps, then falling to 0; all epochs."""
    total = steps_of(task)
    return head_on_frozen(
        model, task, schedule=warmup_cosine(total, max(1, total // 10)), patience=0
    )


def last_stage(model, task):
    """The last stage and a linear head train together."""
    return [fit(linear_head(model, task), stages(model)[-1], task, parameters=two_rates(model))]


def probe_then_tune(model, task):
    """LP-FT: half of the epochs the linear probe, then all of it from there, so that good features are not distorted (Kumar et al.
    2022, ICLR); as there, BatchNorm keeps its statistics, else the features would change at the first step already."""
    half, fixed = max(1, task.epochs // 2), {"stay_eval": nn.modules.batchnorm._BatchNorm}
    probed = linear_probe(model, task._replace(epochs=half))
    return [
        *probed,
        fit(
            model,
            "input",
            task._replace(epochs=max(1, task.epochs - half)),
            first=half,
            lr=1e-4,
            **fixed,
        ),
    ]


def gradual_unfreezing(model, task):
    """The head alone, then one more stage from the top in each of three more phases (after Howard & Ruder 2018, ACL, section 3.3,
    who go on to the bottom); the last phase takes what epochs remain, each at least one."""
    cuts, results = ["features", *stages(linear_head(model, task))[::-1][:3]], []
    share = max(1, task.epochs // len(cuts))
    for number, cut in enumerate(cuts):
        epochs = max(1, task.epochs - number * share) if cut == cuts[-1] else share
        lr = 1e-3 if cut == "features" else 1e-4
        results.append(fit(model, cut, task._replace(epochs=epochs), first=number * share, lr=lr))
    return results


def full_tuning(model, task, **options):
    """All of it, the backbone at a low rate."""
    return [fit(linear_head(model, task), "input", task, parameters=two_rates(model), **options)]


def full_with_layer_rates(model, task):
    """All of it, the head at 1e-3, each stage further down at 0.65 of the rate of the one above (Howard & Ruder: 1 / 2.6)."""
    return [
        fit(
            linear_head(model, task),
            "input",
            task,
            parameters=layer_rates(model, lr=1e-3, decay=0.65),
        )
    ]


def normalisation_only(model, task):
    """Scales and shifts of the normalisation layers, and a linear head (after Frankle et al. 2021, ICLR: the rest random there)."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [fit(model, "input", task, trains=head_or(linear_head(model, task), kinds))]


def biases_only(model, task):
    """Biases and a linear head (BitFit: Ben Zaken et al. 2022, ACL); of convolutions without any, the shifts of BatchNorm."""
    return [fit(model, "input", task, trains=head_or(linear_head(model, task), names=(".bias",)))]


def mixed_up(model, task):
    """All of it on convex combinations of images and labels (MixUp: Zhang et al. 2018, ICLR)."""
    return full_tuning(model, task, mix=v2.MixUp(alpha=0.2, num_classes=task.classes))


def cut_and_mixed(model, task):
    """All of it on images into which a piece of another is pasted (CutMix: Yun et al. 2019, ICCV)."""
    return full_tuning(model, task, mix=v2.CutMix(alpha=1.0, num_classes=task.classes))


FROZEN = {  # the backbone stays frozen
    "linear probe": linear_probe,
    "study's head": head_on_frozen,
    "label smoothing": smoothed_labels,
    "class weights": weighted_classes,
    "cosine schedule": cosine_schedule,
}
TUNED = {
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


def summarise_techniques(table):
    """A row a technique and pair of dataset and model from a row a fold (benchmarks.techniques): accuracy over the test images of all
    folds with its 95 % Wilson interval, mean macro-F1 and median seconds of a fold, how many parameters trained."""
    grouped = table.groupby(["kind", "dataset", "model", "technique"], sort=False)
    columns = {
        "correct": ("correct", "sum"),
        "n": ("n", "sum"),
        "folds": ("fold", "count"),
        "macro_f1": ("macro_f1", "mean"),
    }
    summary = grouped.agg(
        **columns, seconds=("seconds", "median"), trainable=("trainable", "first")
    ).reset_index()
    intervals = [accuracy_interval(int(row.correct), int(row.n)) for row in summary.itertuples()]
    lows, highs = zip(*intervals)
    return summary.assign(accuracy=summary.correct / summary.n, low=lows, high=highs)


# What a technique adds to: it is tested against that as well as against the linear probe.
ADDS_TO = {
    "label smoothing": "study's head",
    "class weights": "study's head",
    "cosine schedule": "study's head",
    "LP-FT": "full fine-tuning",
    "layer-wise rates": "full fine-tuning",
    "MixUp": "full fine-tuning",
    "CutMix": "full fine-tuning",
}


def paired_tests(table):
    """Every technique less the linear probe of its pair, and less what it adds to, on the same folds: corrected resampled t over
    folds, Holm over all tests of a pair, and the verdict in words -> data frame, a row a pair, technique and reference; techniques
    that lack a fold are left out."""
    rows = []
    for names, part in table.groupby(["kind", "dataset", "model"], sort=False):
        accuracies = (
            (part.correct / part.n)
            .groupby([part.technique, part.fold], sort=False)
            .first()
            .unstack()
            .dropna()
        )
        asked = [
            (technique, reference)
            for technique in accuracies.index
            for reference in ("linear probe", ADDS_TO.get(technique))
        ]
        asked = (
            [(a, b) for a, b in asked if a != b and b in accuracies.index]
            if accuracies.shape[1] > 1
            else []
        )
        share = 1 / (accuracies.shape[1] - 1) if asked else 0  # of test images to training images
        tests = [
            corrected_resampled_t((accuracies.loc[a] - accuracies.loc[b]).to_numpy(), share)
            for a, b in asked
        ]
        for (technique, reference), test, (adjusted, verdict) in zip(asked, tests, verdicts(tests)):
            place = dict(
                zip(("kind", "dataset", "model"), names), technique=technique, reference=reference
            )
            rows.append(place | test | {"p_holm": adjusted, "verdict": verdict})
    return pd.DataFrame(rows)

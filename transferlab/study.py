"""The study protocol for one backbone, start to end: freeze it, keep its features, train the head, describe the run."""

from collections import namedtuple

import torch
from sklearn.metrics import f1_score

from .artifacts import split_hash
from .backbones import (
    choose_device,
    choose_precision,
    create_backbone,
    estimate_batchnorm,
    make_head,
    set_head,
    split_features,
    state_hash,
)
from .errors import UserError
from .features import feature_drawer, timed
from .metrics import accuracy_interval
from .train import evaluate, train

# What all backbones of one study share. views: `Views`; indices: {"train": int64 [N], "val": int64 [M]}; blocks(view,
# indices): as `view_blocks` makes it; settings: epochs, patience, batch_size, lr, views, hidden, dropout.
Study = namedtuple("Study", "image_set views indices blocks settings seed")

# The study's settings, but for the number of views.
STUDY_SETTINGS = {
    "epochs": 30,
    "patience": 5,
    "batch_size": 32,
    "lr": 1e-3,
    "hidden": 512,
    "dropout": 0.5,
}

# One backbone, frozen: the whole model, its two parts, `draw(part, view)` for its features, and the seconds by phase.
Frozen = namedtuple("Frozen", "model lower upper info draw frozen_hash timings")


def freeze_backbone(name, study, *, weights="auto", cache_dir=""):
    """Creates a backbone with the study's head on it and freezes all but the head -> Frozen.

    Raises:
        UserError: as `create_backbone`; fewer than one epoch or view.
    """
    if min(study.settings["epochs"], study.settings["views"]) < 1:
        raise UserError(
            f"epochs is {study.settings['epochs']} and views {study.settings['views']}: give 1 or more of each"
        )
    timings, settings, device = {}, study.settings, choose_device()
    sizes = {"hidden": settings["hidden"], "dropout": settings["dropout"], "seed": study.seed}
    with timed(timings, "weights"):
        model, info = create_backbone(name, weights)
        set_head(
            model, make_head(model.head_hidden_size, len(study.image_set.classes), **sizes)
        ).to(device)
        if info.kind == "random":  # on all clean images: no label is seen
            everything = torch.cat([*study.indices.values()])
            parts = everything.tensor_split(
                -(-len(everything) // 32)
            )  # of one size: each counts the same
            estimate_batchnorm(
                model, (block for part in parts for block in study.blocks(0, part)), device=device
            )
        lower, upper = split_features(model)
    key = {
        "data": study.image_set.digest,
        "views": [*map(repr, study.views)],
        "seed": study.seed,
        "model": info.timm_name,
    }
    draw = feature_drawer(
        lower, study.blocks, study.indices, key, cache_dir=cache_dir, timings=timings
    )
    return Frozen(model, lower, upper, info, draw, state_hash(lower), timings)


def train_study(frozen, study, *, progress=True):
    """Trains the head of a frozen backbone by the study protocol -> (TrainResult, provenance).

    Epoch e trains on view 1 + e % views, drawn when first asked for. The default of 30 is a fresh view every epoch: with fewer,
    no accuracy was shown to stay within 1 point of it (benchmarks.views). The model of `frozen` ends with its best weights.
    """
    draw, timings, settings = frozen.draw, frozen.timings, study.settings
    labels = {part: study.image_set.labels[index] for part, index in study.indices.items()}

    def view_of(epoch):
        return draw("train", 1 + epoch % settings["views"])

    val_x = draw("val", 0)
    if (
        choose_device().type == "cpu" and "validation images" in timings
    ):  # they may have come from disk
        seconds = (
            timings["validation images"]
            * len(labels["train"])
            / len(val_x)
            * (min(settings["views"], settings["epochs"]) + 1)
        )
        print(
            f"{frozen.info.name}: the training views will take {seconds:.0f} s at most on this CPU"
        )
    clean_x = draw("train", 0)
    before = sum(timings.values())
    with timed(timings, "head"):
        options = {name: settings[name] for name in ("epochs", "patience", "batch_size", "lr")} | {
            "seed": study.seed
        }
        result = train(
            frozen.upper,
            view_of,
            labels["train"],
            val_x,
            labels["val"],
            clean_x=clean_x,
            progress=progress,
            **options,
        )
    timings["head"] -= (
        sum(seconds for phase, seconds in timings.items() if phase != "head") - before
    )  # views drawn meanwhile
    return result, describe_study(
        frozen, study, evaluate(frozen.upper, val_x, labels["val"]), labels["val"]
    )


def describe_study(frozen, study, val, val_labels):
    """The provenance of a run: data, split, weights, settings, scores on validation, whether the frozen part stayed so."""
    image_set, head = study.image_set, frozen.upper
    correct, device = (
        int((val["predictions"] == val_labels).sum()),
        next(frozen.lower.parameters()).device,
    )
    return {
        "model": frozen.info.name,
        "timm_name": frozen.info.timm_name,
        "weights": frozen.info._asdict(),
        "protocol": "study",
        "data": image_set.name,
        "data_digest": image_set.digest,
        "synthetic": image_set.synthetic,
        "rejected": image_set.rejected,
        "classes": image_set.classes,
        "split_hash": split_hash(image_set, *study.indices.values()),
        "n_train": len(study.indices["train"]),
        "n_val": len(val_labels),
        "settings": study.settings,
        "seed": study.seed,
        "head": {
            "in_features": head[0].in_features,
            "hidden": head[0].out_features,
            "dropout": head[2].p,
        },
        "transforms": {name: repr(transform) for name, transform in study.views._asdict().items()},
        "mean": frozen.model.pretrained_cfg["mean"],
        "std": frozen.model.pretrained_cfg["std"],
        "parameters": sum(p.numel() for p in frozen.model.parameters()),
        "trainable_parameters": sum(p.numel() for p in head.parameters()),
        "frozen_hash_before": frozen.frozen_hash,
        "frozen_hash_after": state_hash(frozen.lower),
        "device": device.type,
        "accuracy_interval": accuracy_interval(correct, len(val_labels)),
        "val_predictions": val["predictions"].tolist(),
        "val_labels": val_labels.tolist(),
        "macro_f1": float(f1_score(val_labels, val["predictions"], average="macro")),
        "precision": str(choose_precision(device)),
        "timings": dict(frozen.timings),
    }

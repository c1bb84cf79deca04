"""The study protocol for one backbone: freeze it, keep its features, train the head."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .backbones import (
    check_picture_size,
    create_backbone,
    estimate_batchnorm,
    make_head,
    set_head,
    split_features,
)
from .data import Fold, ImageSet
from .errors import UserError
from .features import Features, FoldFeatures, features_of
from .machine import Clock, Machine
from .pretrained import WeightsInfo
from .store import NO_STORE, Store
from .train import Settings, TrainData, TrainResult, train
from .views import BLOCK, Renderer


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What all backbones of one study share."""

    renderer: Renderer  # the images, the augmentation, and the seed of the views
    fold: Fold
    settings: Settings
    machine: Machine
    seed: int  # of the head, the order and the dropout
    store: Store = NO_STORE  # keeps features between runs
    features: Features | FoldFeatures | None = None  # at the cut "features", where they are kept

    @property
    def image_set(self) -> ImageSet:
        """The decoded images."""
        return self.renderer.image_set

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.image_set.classes)

    def labels(self, index: torch.Tensor) -> torch.Tensor:
        """The labels of those images, int64 [n]."""
        return self.image_set.labels[index]

    def on(self, fold: Fold) -> "Study":
        """The same on a fold of its training images."""
        features = self.features.on(fold) if isinstance(self.features, Features) else None
        return replace(self, fold=fold, features=features)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """One backbone with the study's head on it, all but the head frozen."""

    model: nn.Module  # the whole
    lower: nn.Module  # its frozen part
    upper: nn.Module  # its head
    info: WeightsInfo
    features: Features
    frozen_hash: str  # of the frozen part, before any training
    clock: Clock


def seeded_head(in_features: int, study: Study) -> nn.Sequential:
    """The head as the study's settings and seed say: always the same one."""
    return make_head(
        in_features,
        study.classes,
        hidden=study.settings.hidden,
        dropout=study.settings.dropout,
        seed=study.seed,
    )


def settle_batchnorm(model: nn.Module, study: Study) -> None:
    """Estimates a random backbone's BatchNorm statistics on all clean images: no label is seen."""
    everything = torch.cat([study.fold.train, study.fold.val])
    parts = everything.tensor_split(-(-len(everything) // BLOCK))  # of one size: each counts alike
    blocks = (block for part in parts for block in study.renderer.blocks(0, part))
    estimate_batchnorm(model, blocks, device=study.machine.device)


def check_backbone(model: nn.Module, name: str, size: int) -> None:
    """Makes sure, before any time is spent, that a head fits a backbone and that it takes pictures
    of `size` pixels a side. The model's classifier is lost.

    Raises:
        UserError: no head fits it, or it takes no such pictures.
    """
    try:
        set_head(model, make_head(model.head_hidden_size, 2))
        lower, _ = split_features(model)
        check_picture_size(lower, size)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def freeze_backbone(name: str, study: Study, *, weights: str = "auto") -> Frozen:
    """Creates a backbone with the study's head on it and freezes all but the head.

    Raises:
        UserError: as `create_backbone`; fewer than one epoch or view.
    """
    study.settings.check()
    clock = Clock()
    with clock.phase("weights"):
        model, info = create_backbone(name, weights)
        set_head(model, seeded_head(model.head_hidden_size, study))
        model.to(study.machine.device)
        if not info.measures_transfer:
            settle_batchnorm(model, study)
        lower, upper = split_features(model)
    features = features_of(
        lower,
        study.renderer,
        study.fold.train,
        model=info.timm_name,
        machine=study.machine,
        clock=clock,
        store=study.store,
    )
    return Frozen(
        model=model,
        lower=lower,
        upper=upper,
        info=info,
        features=features,
        frozen_hash=features.weights,
        clock=clock,
    )


def train_study(frozen: Frozen, study: Study) -> TrainResult:
    """Trains the head of a frozen backbone by the study protocol, from its seeded start.

    Epoch e trains on the view that `Settings.view_of` names, drawn when first asked for. The model
    of `frozen` ends with its best weights.
    """
    features = frozen.features
    fold = study.fold
    start = seeded_head(frozen.model.head_hidden_size, study)
    frozen.upper.load_state_dict(start.state_dict())
    data = TrainData(
        view_of=lambda epoch: features.train(study.settings.view_of(epoch)),
        labels=study.labels(fold.train),
        clean_x=features.train(0),
        val_x=features.clean[fold.val],
        val_y=study.labels(fold.val),
    )
    with frozen.clock.phase("head"):
        return train(frozen.upper, data, study.settings, seed=study.seed)

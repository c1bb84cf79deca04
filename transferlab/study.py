"""The study protocol for one backbone: freeze it, keep its features, train the head, record it."""

from dataclasses import dataclass, replace

import torch
from sklearn.metrics import f1_score
from torch import nn

from .backbones import (
    count_parameters,
    create_backbone,
    estimate_batchnorm,
    make_head,
    set_head,
    split_features,
)
from .data import Fold, ImageSet
from .features import Features, FoldFeatures, features_of
from .machine import Clock, Machine
from .metrics import accuracy_interval
from .pretrained import WeightsInfo, state_hash
from .records import (
    HeadInfo,
    StudyRecord,
    data_info,
    hash_of_split,
    highest_epoch,
)
from .store import NO_STORE, Store
from .train import Settings, TrainData, TrainResult, evaluate, train
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
        frozen_hash=state_hash(lower),
        clock=clock,
    )


def announce_time(frozen: Frozen, study: Study) -> None:
    """Says how long the random views will take at most, where that is known and long."""
    seconds = frozen.clock.seconds.get("clean view")  # absent where it has come from disk
    settings = study.settings
    asked = {settings.view_of(epoch) for epoch in range(settings.epochs)} - {0}
    if seconds is None or not asked or study.machine.device.type != "cpu":
        return
    share = len(study.fold.train) / len(study.image_set.labels)
    longest = seconds * share * len(asked)
    name = frozen.info.name
    print(f"{name}: the training views will take {longest:.0f} s at most on this CPU")


def train_study(
    frozen: Frozen, study: Study, *, progress: bool = True
) -> tuple[TrainResult, StudyRecord]:
    """Trains the head of a frozen backbone by the study protocol, from its seeded start.

    Epoch e trains on the view that `Settings.view_of` names, drawn when first asked for. The model
    of `frozen` ends with its best weights.
    """
    features = frozen.features
    fold = study.fold
    start = seeded_head(frozen.model.head_hidden_size, study)
    frozen.upper.load_state_dict(start.state_dict())
    clean = features.clean
    announce_time(frozen, study)
    data = TrainData(
        view_of=lambda epoch: features.train(study.settings.view_of(epoch)),
        labels=study.labels(fold.train),
        clean_x=features.train(0),
        val_x=clean[fold.val],
        val_y=study.labels(fold.val),
    )
    with frozen.clock.phase("head"):
        result = train(frozen.upper, data, study.settings, seed=study.seed, progress=progress)
    return result, describe_study(frozen, study, result)


def describe_study(frozen: Frozen, study: Study, result: TrainResult) -> StudyRecord:
    """The record of a run: data, split, weights, settings, scores on validation, whether the
    frozen part stayed so."""
    fold = study.fold
    head = frozen.upper
    val_labels = study.labels(fold.val)
    val = evaluate(head, frozen.features.clean[fold.val], val_labels)
    correct = int((val.predictions == val_labels).sum())
    macro_f1 = f1_score(val_labels, val.predictions, average="macro")
    config = frozen.model.pretrained_cfg
    return StudyRecord(
        data=(data_info(study.image_set, study.renderer.augmentation),),
        weights=(frozen.info,),
        machine=study.machine.info(),
        settings=study.settings,
        seed=study.seed,
        split_hash=hash_of_split(study.image_set, fold),
        n_train=len(fold.train),
        n_val=len(fold.val),
        head=HeadInfo(
            in_features=head[0].in_features, hidden=head[0].out_features, dropout=head[2].p
        ),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        parameters=count_parameters(frozen.model),
        trainable_parameters=count_parameters(head),
        frozen_hash_before=frozen.frozen_hash,
        frozen_hash_after=state_hash(frozen.lower),
        val_labels=tuple(val_labels.tolist()),
        val_predictions=tuple(val.predictions.tolist()),
        accuracy_interval=accuracy_interval(correct, len(val_labels)),
        macro_f1=float(macro_f1),
        timings=dict(frozen.clock.seconds),
        epochs_run=len(result.history),
        best=result.best,
        last=result.history[-1],
        highest=highest_epoch(result),
    )

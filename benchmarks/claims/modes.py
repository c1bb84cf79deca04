"""The claim about `model.train()` on a "frozen" backbone: trained in both modes on the study's
split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.claims.judged import LEVEL, UNDECIDED, Claim, judge
from benchmarks.common import check_weights, freeze_planned
from transferlab.backbones import classifier_name, create_backbone, split_at
from transferlab.datasets import FACES
from transferlab.machine import Machine, autocast
from transferlab.metrics import mcnemar_p
from transferlab.pretrained import WeightsInfo
from transferlab.study import Study, train_study
from transferlab.techniques import study_head
from transferlab.train import Epoch, TrainData, evaluate, train


class Casted(nn.Module):
    """A model whose forward runs in the precision of the machine."""

    def __init__(self, model: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.model = model
        self.machine = machine

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.machine, self.machine.precision_of(1)):
            return self.model(images).float()


@dataclass(frozen=True, kw_only=True)
class Modes:
    """A frozen backbone in eval mode ("eval"), and under `model.train()` as published ("train")."""

    correct: dict[str, tuple[bool, ...]]  # by mode: of the validation images
    history: dict[str, tuple[Epoch, ...]]  # by mode
    # Entries of the backbone's state, without the head's, that the second has changed.
    moved: tuple[str, ...]


def image_data(study: Study) -> TrainData:
    """What a model is trained on that takes whole images."""
    renderer = study.renderer
    fold = study.fold

    def images(view: int, index: torch.Tensor) -> torch.Tensor:
        return torch.cat([*renderer.blocks(view, index)])

    return TrainData(
        view_of=lambda epoch: images(study.settings.view_of(epoch), fold.train),
        labels=study.labels(fold.train),
        clean_x=images(0, fold.train),
        val_x=images(0, fold.val),
        val_y=study.labels(fold.val),
    )


def changed_entries(model: nn.Module, before: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The names of a state's entries, without the head's, that differ from those `before`."""
    head = f"{classifier_name(model)}."
    changed = []
    for name, tensor in model.state_dict().items():
        if not name.startswith(head) and not torch.equal(tensor, before[name]):
            changed.append(name)
    return tuple(changed)


def train_in_both_modes(planned: WeightsInfo, study: Study, weights: str) -> Modes:
    """A frozen backbone in both modes on the study's split.

    Both train the same head on the same views in the same order. Validation is in eval mode, so the
    second meets statistics there that have moved.

    Raises:
        UserError: as `freeze_planned`.
    """
    frozen = freeze_planned(planned, study, weights=weights)
    in_eval = train_study(frozen, study)
    val_labels = study.labels(study.fold.val)
    scored = evaluate(frozen.upper, frozen.features.clean[study.fold.val], val_labels)
    right_in_eval = tuple((scored.predictions == val_labels).tolist())
    model, info = create_backbone(planned.name, weights)
    check_weights(info, planned)
    study_head(model, study)
    whole = split_at(model.to(study.machine.device), "input")[1].requires_grad_(False)
    model.get_submodule(classifier_name(model)).requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    casted = Casted(whole, study.machine)
    data = image_data(study)
    in_train = train(casted, data, study.settings, seed=study.seed)
    right = evaluate(casted, data.val_x, data.val_y).predictions == data.val_y
    return Modes(
        correct={"eval": right_in_eval, "train": tuple(right.tolist())},
        history={"eval": in_eval.history, "train": in_train.history},
        moved=changed_entries(model, before),
    )


def judge_modes(correct: Mapping[str, Sequence[bool]]) -> Claim:
    """What `model.train()` does to a "frozen" backbone: accuracy in eval mode less that in train
    mode, on the same validation images; the verdict by the exact McNemar test."""
    in_eval = torch.tensor(correct["eval"])
    in_train = torch.tensor(correct["train"])
    p = mcnemar_p(in_eval, in_train)
    difference = in_eval.double().mean() - in_train.double().mean()
    value = difference.item()
    return Claim(
        claim='model.train() on a "frozen" backbone costs accuracy',
        test="accuracy in eval mode less that in train mode, on the study's split",
        data=FACES.name,
        model="resnet50",
        value=value,
        over="images, exact McNemar",
        p=p,
        alone=judge(value, value) if p < LEVEL else UNDECIDED,
    )

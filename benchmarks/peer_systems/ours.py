"""This library: each view goes through the frozen backbone once, and the head or the probe is
fitted on the features kept."""

from collections.abc import Callable
from dataclasses import replace

import torch

from transferlab.data import Folds
from transferlab.decoded import load_folder
from transferlab.heldout import predict_with_probes, study_of_all
from transferlab.machine import Machine, for_probes
from transferlab.study import Study, freeze_backbone, train_study
from transferlab.train import Settings
from transferlab.views import Renderer

from .common import (
    HeldOutScore,
    PeerEpoch,
    Record,
    Task,
    crossed_folds,
    split_study,
    study_folds,
)

FP32 = "torch.float32"


def run(task: Task, record: Record) -> None:
    """The study as notebook 01 runs it, with the views of task.settings; nothing is kept on disk.

    After each epoch it also evaluates the clean training images, as the notebook does and nobody
    else here.
    """
    image_set = load_folder(task.folder)
    fold = split_study(image_set.labels)
    study = Study(
        renderer=Renderer(image_set, task.augmentation, seed=task.seed),
        fold=fold,
        settings=task.settings,
        machine=task.machine,
        seed=task.seed,
    )
    frozen = freeze_backbone(task.model, study, weights=task.weights)
    record.backbone = frozen.lower
    record.frozen_hash = frozen.frozen_hash
    result = train_study(frozen, study)
    rows = []
    end = record.seconds()
    for epoch in reversed(result.history):
        row = PeerEpoch(
            val_loss=epoch.val_loss,
            val_acc=epoch.val_acc,
            seen=len(fold.train),
            evaluated=len(fold.val),
            end=end,
        )
        rows.append(row)
        end -= epoch.seconds
    record.rows = rows[::-1]


def run_fp32(task: Task, record: Record) -> None:
    """The same with every view in fp32, also where the machine could do otherwise."""
    run(replace(task, machine=replace(task.machine, precision=FP32)), record)


# ---- probes ----------------------------------------------------------------------------------


def fit_probes(
    task: Task, record: Record, machine: Machine, folds_of: Callable[[torch.Tensor], Folds]
) -> None:
    """The probe of `transferlab compare` on the folds that `folds_of` cuts from the labels; nothing
    is kept on disk."""
    image_set = load_folder(task.folder)
    study = study_of_all(image_set, task.augmentation, Settings(), seed=task.seed, machine=machine)
    frozen = freeze_backbone(task.model, study, weights=task.weights)
    record.backbone = frozen.lower
    record.frozen_hash = frozen.frozen_hash
    folds = folds_of(image_set.labels)
    clean = frozen.features.clean
    found = predict_with_probes(clean, image_set, folds, precision=machine.precision_of(0))
    correct = 0
    predicted = 0
    for fold in folds:
        answers = found.probabilities[fold.repeat, fold.test].argmax(1)
        correct += int((answers == image_set.labels[fold.test].numpy()).sum())
        predicted += len(answers)
    record.held_out = HeldOutScore(correct=correct, predicted=predicted)


def exact(machine: Machine) -> Machine:
    """The machine computing every view in fp32."""
    return replace(machine, precision=FP32, clean_precision=FP32)


def run_probe(task: Task, record: Record) -> None:
    """A probe on each of the 5 x 5 folds."""
    fit_probes(task, record, for_probes(task.machine), crossed_folds)


def run_probe_fp32(task: Task, record: Record) -> None:
    """The same in fp32."""
    fit_probes(task, record, exact(task.machine), crossed_folds)


def run_split(task: Task, record: Record) -> None:
    """One probe, on the study's split."""
    fit_probes(task, record, for_probes(task.machine), study_folds)


def run_split_fp32(task: Task, record: Record) -> None:
    """The same in fp32."""
    fit_probes(task, record, exact(task.machine), study_folds)

"""fastai: a `Learner` made of what `vision_learner` makes it of, on the study's model.

`vision_learner` itself (docs.fast.ai/vision.learner.html) takes no body cut by its user: it accepts
`cut` and does not hand it on (fastai 2.8). Body and head are the two groups of `default_split`; the
Learner's own `freeze` freezes the body. By default fastai trains the BatchNorm layers of what it
freezes and updates their statistics: `train_bn=False` stops the one, a callback like its `BnFreeze`
(docs.fast.ai/callback.training.html) the other. Nothing in a frozen body asks for a gradient, so
autograd records nothing there. fastai's Adam differs from PyTorch's (eps 1e-5, second moment 0.99,
weight decay 0.01), so PyTorch's runs in its `OptimWrapper`; `fit` keeps the learning rate constant.
No progress bar, no log.
"""

import tempfile
from collections.abc import Sequence
from functools import partial

import torch
from fastai.vision.all import (
    Callback,
    ChannelsLast,
    CrossEntropyLossFlat,
    DataLoaders,
    Learner,
    MixedPrecision,
    OptimWrapper,
    TrainEvalCallback,
    accuracy,
    default_split,
    set_seed,
)
from torch import nn

from transferlab.machine import Machine, autocast

from .common import (
    Datasets,
    Record,
    Task,
    decoded_once,
    files_each_epoch,
    frozen_backbone,
    make_loaders,
)


class BodyInEvalMode(Callback):
    """Does to the whole frozen body what fastai's BnFreeze does to its BatchNorm layers, after
    training mode is set."""

    run_after = TrainEvalCallback

    def before_train(self) -> None:
        self.model[0].eval()


class EpochRecord(Callback):
    """Tells the record of each epoch, after fastai's Recorder (order 50) has its values: training
    loss, loss, accuracy."""

    order = 60

    def __init__(self, record: Record) -> None:
        self.record = record

    def after_epoch(self) -> None:
        *_, loss, accuracy = self.recorder.values[-1]
        self.record.epoch(loss, accuracy)


class MixedPrecisionAnywhere(MixedPrecision):
    """fastai's mixed precision asks for CUDA's autocast whatever the device (callback/fp16.py),
    which does nothing on a CPU."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("fp16" if machine.precision_of(1) == torch.float16 else "bf16")
        self.machine = machine

    def before_fit(self) -> None:
        super().before_fit()
        self.autocast = autocast(self.machine, self.machine.precision_of(1))


def fit(
    parts: nn.Sequential,
    dls: DataLoaders,
    task: Task,
    record: Record,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains the head with fastai's own loop, the body frozen; `parts` are the two."""
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            dls,
            parts,
            loss_func=CrossEntropyLossFlat(),
            metrics=accuracy,
            splitter=default_split,
            opt_func=partial(OptimWrapper, opt=torch.optim.Adam),
            train_bn=False,
            path=folder,
            cbs=[BodyInEvalMode(), EpochRecord(record), *callbacks],
        )
        learner.freeze()
        with learner.no_bar(), learner.no_logging():
            learner.fit(task.settings.epochs, task.settings.lr)


def train_as_written(
    backbone: nn.Module, head: nn.Module, datasets: Datasets, task: Task, record: Record
) -> None:
    """fastai's own DataLoaders with two workers, fp32; the last, smaller batch is kept."""
    set_seed(task.seed)
    dls = DataLoaders.from_dsets(
        datasets.train,
        datasets.val,
        device=task.machine.device,
        bs=task.settings.batch_size,
        num_workers=task.workers,
        drop_last=False,
    )
    fit(nn.Sequential(backbone, head), dls, task, record)


def run(task: Task, record: Record) -> None:
    """As its users write it, over ImageFolder."""
    backbone, head = frozen_backbone(task, record)
    train_as_written(backbone, head, files_each_epoch(task, backbone), task, record)


def run_tuned(task: Task, record: Record) -> None:
    """Mixed precision where the hardware computes in it, channels_last, images decoded in memory,
    and PyTorch's DataLoader (fastai takes either), since fastai's starts new workers in every epoch
    whatever `persistent_workers` says."""
    set_seed(task.seed)
    machine = task.machine
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders = make_loaders(decoded_once(task), task, persistent=True)
    callbacks = [ChannelsLast()]
    if machine.precision_of(1) != torch.float32:
        callbacks.append(MixedPrecisionAnywhere(machine))
    dls = DataLoaders(loaders.train, loaders.val, device=machine.device)
    fit(nn.Sequential(backbone, head), dls, task, record, callbacks)

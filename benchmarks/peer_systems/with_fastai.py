"""fastai: a `Learner` made of what `vision_learner` makes it of (docs.fast.ai/vision.learner.html), on the study's model.

`vision_learner` itself takes no body cut by its user: it accepts `cut` and does not hand it on (fastai 2.8). Body and head
are the two groups of `default_split`; the Learner's own `freeze` freezes the body. By default fastai trains the BatchNorm
layers of what it freezes and updates their statistics: `train_bn=False` stops the one, a callback like its `BnFreeze`
(docs.fast.ai/callback.training.html) the other. Nothing in a frozen body asks for a gradient, so autograd records nothing
there. fastai's Adam differs from PyTorch's (eps 1e-5, second moment 0.99, weight decay 0.01), so PyTorch's runs in its
`OptimWrapper`; `fit` keeps the learning rate constant. No progress bar, no log.
"""

import tempfile
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
)
from torch import nn

from transferlab.backbones import choose_device, choose_precision

from .common import WORKERS, decoded_once, files_each_epoch, frozen_backbone, make_loaders


class BodyInEvalMode(Callback):
    """Does to the whole frozen body what fastai's BnFreeze does to its BatchNorm layers, after training mode is set."""

    run_after = TrainEvalCallback

    def before_train(self):
        self.model[0].eval()


class EpochRecord(Callback):
    """Tells the record of each epoch, after fastai's Recorder (order 50) has its values: training loss, loss, accuracy."""

    order = 60

    def __init__(self, record):
        self.record = record

    def after_epoch(self):
        self.record.epoch(*self.recorder.values[-1][-2:])


class MixedPrecisionAnywhere(MixedPrecision):
    """fastai's mixed precision asks for CUDA's autocast whatever the device (callback/fp16.py), which does nothing on a CPU."""

    def __init__(self, device, precision):
        super().__init__("fp16" if precision == torch.float16 else "bf16")
        self.device, self.precision = device, precision

    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast(self.device.type, dtype=self.precision)


def fit(backbone, head, dls, task, record, callbacks=()):
    """Trains the head with fastai's own loop, the body frozen."""
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            dls,
            nn.Sequential(backbone, head),
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
            learner.fit(task.settings["epochs"], task.settings["lr"])


def run(task, record):
    """As its users write it: its own DataLoaders over ImageFolder with two workers, fp32; the last, smaller batch is kept."""
    torch.manual_seed(task.seed)
    backbone, head = frozen_backbone(task, record)
    datasets = files_each_epoch(task, backbone)
    sizes = {"bs": task.settings["batch_size"], "num_workers": WORKERS, "drop_last": False}
    fit(
        backbone,
        head,
        DataLoaders.from_dsets(datasets["train"], datasets["val"], device=choose_device(), **sizes),
        task,
        record,
    )


def run_tuned(task, record):
    """Mixed precision where the hardware computes in it, channels_last, images decoded in memory, and PyTorch's DataLoader
    (fastai takes either), since fastai's starts new workers in every epoch whatever `persistent_workers` says."""
    torch.manual_seed(task.seed)
    device = choose_device()
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders, precision = (
        make_loaders(decoded_once(task), task, persistent=True),
        choose_precision(device),
    )
    reduced = [MixedPrecisionAnywhere(device, precision)] if precision != torch.float32 else []
    dls = DataLoaders(loaders["train"], loaders["val"], device=device)
    fit(backbone, head, dls, task, record, [ChannelsLast(), *reduced])

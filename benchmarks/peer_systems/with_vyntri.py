"""Vyntri (pypi.org/project/vyntri): a closed-form projection and ridge classifier on features of a
frozen backbone, on the study's split, as its README does it.

Its views are its own (the short side to 256 px, the middle 224), and so is all behind the features.
It takes no file of weights: its registry's entry `resnet50` is made to give timm's model with the
weights that all others have. Its cache on disk is off, since nobody else keeps anything there.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from vyntri import Vyntri
from vyntri.backbones import registry
from vyntri.data import FolderDataset

from transferlab.backbones import create_backbone

from .common import HeldOutScore, Record, Task, split_study

ENTRY = "resnet50"


def registered(task: Task, record: Record) -> registry.BackboneInfo:
    """The registry's entry, which gives the task's backbone."""
    model, _ = create_backbone(task.model, task.weights)
    model.reset_classifier(0)
    model.eval()
    record.freeze(model)

    def factory() -> nn.Module:
        return model

    original = registry.backbone_info(ENTRY)
    return replace(original, feature_dim=model.num_features, factory=factory)


def run(task: Task, record: Record) -> None:
    """Fits on the training images, and is evaluated on the others."""
    images = ImageFolder(task.folder)
    paths = [Path(path).relative_to(task.folder).as_posix() for path, _ in images.samples]
    fold = split_study(images.targets)

    def part(index: torch.Tensor) -> FolderDataset:
        return FolderDataset.from_ids(str(task.folder), [paths[i] for i in index.tolist()])

    entry = {ENTRY: registered(task, record)}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(registry._BACKBONES, entry),
    ):
        model = Vyntri(backbone=ENTRY, cache_dir=folder, cache_enabled=False)
        model.fit(train=part(fold.train), progress=False)
        found = model.evaluate(part(fold.val))
    correct = int(np.trace(found.confusion_matrix))
    record.held_out = HeldOutScore(correct=correct, predicted=found.n_samples)

"""This library: each view goes through the frozen backbone once, the head trains on the features kept."""

from unittest.mock import patch

import torch

from transferlab.data import load_images
from transferlab.features import view_blocks
from transferlab.study import Study, freeze_backbone, train_study

from .common import split_study


def run(task, record):
    """The study as notebook 01 runs it, task.settings["views"] views of every training image; nothing is kept on disk.

    After each epoch it also evaluates the clean training images, as the notebook does and nobody else here.
    """
    image_set = load_images(task.folder)
    indices = {part: torch.tensor(index) for part, index in split_study(image_set.labels).items()}
    blocks = view_blocks(image_set, task.views, seed=task.seed)
    study = Study(image_set, task.views, indices, blocks, task.settings, task.seed)
    frozen = freeze_backbone(task.model, study, weights=task.weights, cache_dir="")
    record.backbone, record.frozen_hash = frozen.lower, frozen.frozen_hash
    result, _ = train_study(frozen, study, progress=False)
    n_train, n_val = (len(index) for index in indices.values())
    end = record.seconds()
    for row in reversed(result.history):
        counts = {"seen": n_train, "evaluated": n_val}
        record.rows.insert(
            0, {"val_loss": row["val_loss"], "val_acc": row["val_acc"], "end": end} | counts
        )
        end -= row["seconds"]


def run_fp32(task, record):
    """The same with every view in fp32, also where the machine could do otherwise."""
    with patch("transferlab.features.choose_precision", lambda device: torch.float32):
        run(task, record)

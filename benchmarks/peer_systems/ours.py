"""This library: each view goes through the frozen backbone once, and the head trains on the
features kept."""

from dataclasses import replace

from transferlab.decoded import load_folder
from transferlab.study import Study, freeze_backbone, train_study
from transferlab.views import Renderer

from .common import PeerEpoch, Record, Task, split_study


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
    run(replace(task, machine=replace(task.machine, precision="torch.float32")), record)

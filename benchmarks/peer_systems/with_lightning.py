"""Lightning, after "Transfer Learning" in its documentation
(lightning.ai/docs/pytorch/stable/advanced/pretrained.html).

Since 2.2 the Trainer leaves submodules in the mode in which they are when `fit` begins, so the
backbone stays in eval mode. Logger, checkpoints, progress bar, model summary and the sanity check
before training are off: each would cost it time.
"""

import logging

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F

from .common import (
    Datasets,
    Loaders,
    Record,
    Task,
    decoded_once,
    files_each_epoch,
    frozen_backbone,
    make_loaders,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
FP32 = "32-true"
PRECISIONS = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", torch.float32: FP32}


class FrozenClassifier(lightning.LightningModule):
    """A frozen backbone and a head that trains with Adam."""

    def __init__(self, backbone: nn.Module, head: nn.Module, lr: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.lr = lr

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        correct = logits.argmax(1) == labels
        scores = {
            "val_loss": F.cross_entropy(logits, labels),
            "val_acc": correct.float().mean(),
        }
        self.log_dict(scores, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.head.parameters(), lr=self.lr)


class EpochRecord(Callback):
    """Tells the record of each epoch; validation is over by the end of the training epoch."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        scores = trainer.callback_metrics
        self.record.epoch(scores["val_loss"], scores["val_acc"])


def fit(
    model: FrozenClassifier, loaders: Loaders, task: Task, record: Record, precision: str
) -> None:
    """Trains the head with Lightning's Trainer."""
    trainer = lightning.Trainer(
        max_epochs=task.settings.epochs,
        accelerator="auto",
        devices=1,
        precision=precision,
        callbacks=[EpochRecord(record)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, loaders.train, loaders.val)


def train_as_written(
    backbone: nn.Module, head: nn.Module, datasets: Datasets, task: Task, record: Record
) -> None:
    """A DataLoader with two workers, fp32."""
    lightning.seed_everything(task.seed, verbose=False)
    loaders = make_loaders(datasets, task, persistent=False)
    fit(FrozenClassifier(backbone, head, task.settings.lr), loaders, task, record, FP32)


def run(task: Task, record: Record) -> None:
    """As its users write it, over ImageFolder."""
    backbone, head = frozen_backbone(task, record)
    train_as_written(backbone, head, files_each_epoch(task, backbone), task, record)


def run_tuned(task: Task, record: Record) -> None:
    """Its mixed precision where the hardware computes in it, persistent workers, images decoded in
    memory, channels_last."""
    lightning.seed_everything(task.seed, verbose=False)
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders = make_loaders(decoded_once(task), task, persistent=True)
    precision = PRECISIONS[task.machine.precision_of(1)]
    fit(FrozenClassifier(backbone, head, task.settings.lr), loaders, task, record, precision)

"""Lightning, after "Transfer Learning" in its documentation (lightning.ai/docs/pytorch/stable/advanced/pretrained.html).

Since 2.2 the Trainer leaves submodules in the mode in which they are when `fit` begins, so the backbone stays in eval mode.
Logger, checkpoints, progress bar, model summary and the sanity check before training are off: each would cost it time.
"""

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from transferlab.backbones import choose_device, choose_precision

from .common import decoded_once, files_each_epoch, frozen_backbone, make_loaders

PRECISIONS = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", torch.float32: "32-true"}


class FrozenClassifier(lightning.LightningModule):
    """A frozen backbone and a head that trains with Adam."""

    def __init__(self, backbone, head, lr):
        super().__init__()
        self.backbone, self.head, self.lr = backbone, head, lr

    def forward(self, images):
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        scores = {
            "val_loss": F.cross_entropy(logits, labels),
            "val_acc": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(scores, batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=self.lr)


class EpochRecord(Callback):
    """Tells the record of each epoch; validation is over by the end of the training epoch."""

    def __init__(self, record):
        self.record = record

    def on_train_epoch_end(self, trainer, module):
        self.record.epoch(trainer.callback_metrics["val_loss"], trainer.callback_metrics["val_acc"])


def fit(backbone, head, loaders, task, record, precision):
    trainer = lightning.Trainer(
        max_epochs=task.settings["epochs"],
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
    trainer.fit(
        FrozenClassifier(backbone, head, task.settings["lr"]), loaders["train"], loaders["val"]
    )


def run(task, record):
    """As its users write it: ImageFolder and a DataLoader with two workers, fp32."""
    lightning.seed_everything(task.seed, verbose=False)
    backbone, head = frozen_backbone(task, record)
    fit(
        backbone,
        head,
        make_loaders(files_each_epoch(task, backbone), task, persistent=False),
        task,
        record,
        "32-true",
    )


def run_tuned(task, record):
    """Its mixed precision where the hardware computes in it, persistent workers, images decoded in memory, channels_last."""
    lightning.seed_everything(task.seed, verbose=False)
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders = make_loaders(decoded_once(task), task, persistent=True)
    fit(backbone, head, loaders, task, record, PRECISIONS[choose_precision(choose_device())])

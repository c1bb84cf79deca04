"""Hugging Face's Trainer, after "Image classification" in its documentation
(huggingface.co/docs/transformers/tasks/image_classification).

The Trainer puts the model into training mode before every step: the model keeps its backbone in eval mode by overriding
`train`. A learning rate that falls and gradients cut at norm 1, the Trainer's defaults, are off: the study has neither.
Checkpoints, logs and progress bars are off.
"""

import tempfile

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from transferlab.backbones import choose_device, choose_precision

from .common import WORKERS, decoded_once, files_each_epoch, frozen_backbone


class FrozenClassifier(nn.Module):
    """A frozen backbone and a head, with the arguments and outputs that the Trainer asks for."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values, labels):
        with torch.no_grad():
            features = self.backbone(pixel_values)
        logits = self.head(features)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class EpochRecord(TrainerCallback):
    """Tells the record of each epoch, when the Trainer has evaluated it."""

    def __init__(self, record):
        self.record = record

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.record.epoch(metrics["eval_loss"], metrics["eval_accuracy"])


def collate(examples):
    images, labels = zip(*examples)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(predicted):
    return {"accuracy": (predicted.predictions.argmax(1) == predicted.label_ids).mean()}


def fit(backbone, head, datasets, task, record, **options):
    """Trains the head with the Trainer, Adam at a constant learning rate, evaluating after every epoch."""
    batch, gpu = task.settings["batch_size"], torch.cuda.is_available()
    optimizer = torch.optim.Adam(head.parameters(), lr=task.settings["lr"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=task.settings["epochs"],
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            seed=task.seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=WORKERS,
            dataloader_pin_memory=gpu,
            remove_unused_columns=False,
            use_cpu=not gpu,
            **options,
        )
        Trainer(
            FrozenClassifier(backbone, head),
            arguments,
            data_collator=collate,
            train_dataset=datasets["train"],
            eval_dataset=datasets["val"],
            compute_metrics=accuracy,
            optimizers=(optimizer, None),
            callbacks=[EpochRecord(record)],
        ).train()


def run(task, record):
    """As its users write it: a dataset that reads and transforms, two workers, fp32."""
    torch.manual_seed(task.seed)
    backbone, head = frozen_backbone(task, record)
    fit(backbone, head, files_each_epoch(task, backbone), task, record)


def run_tuned(task, record):
    """Its mixed precision where the hardware computes in it, persistent workers, images decoded in memory, channels_last."""
    torch.manual_seed(task.seed)
    backbone, head = frozen_backbone(task, record, uint8=True)
    reduced = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}}.get(
        choose_precision(choose_device()), {}
    )
    fit(
        backbone,
        head,
        decoded_once(task),
        task,
        record,
        dataloader_persistent_workers=True,
        **reduced,
    )

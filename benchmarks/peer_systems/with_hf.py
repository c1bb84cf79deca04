"""Hugging Face's Trainer, after "Image classification" in its documentation
(huggingface.co/docs/transformers/tasks/image_classification).

The Trainer puts the model into training mode before every step: the model keeps its backbone in
eval mode by overriding `train`. A learning rate that falls and gradients cut at norm 1, the
Trainer's defaults, are off: the study has neither. Checkpoints, logs and progress bars are off.
"""

import tempfile
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .common import (
    Datasets,
    Record,
    Task,
    decoded_once,
    files_each_epoch,
    frozen_backbone,
)


class FrozenClassifier(nn.Module):
    """A frozen backbone and a head, with the arguments and outputs that the Trainer asks for."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def train(self, mode: bool = True) -> "FrozenClassifier":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            features = self.backbone(pixel_values)
        logits = self.head(features)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class EpochRecord(TrainerCallback):
    """Tells the record of each epoch, when the Trainer has evaluated it."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        self.record.epoch(metrics["eval_loss"], metrics["eval_accuracy"])


def collate(examples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Examples as a batch of the model's arguments."""
    images, labels = zip(*examples)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The accuracy as the Trainer asks for it."""
    correct = predicted.predictions.argmax(1) == predicted.label_ids
    return {"accuracy": correct.mean()}


def fit(
    model: FrozenClassifier, datasets: Datasets, task: Task, record: Record, **options: Any
) -> None:
    """Trains the head with the Trainer, Adam at a constant learning rate, evaluating after every
    epoch."""
    settings = task.settings
    gpu = task.machine.device == "cuda"
    optimizer = torch.optim.Adam(model.head.parameters(), lr=settings.lr)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            seed=task.seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=task.workers,
            dataloader_pin_memory=gpu,
            remove_unused_columns=False,
            use_cpu=not gpu,
            **options,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=datasets.train,
            eval_dataset=datasets.val,
            compute_metrics=accuracy,
            optimizers=(optimizer, None),
            callbacks=[EpochRecord(record)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def train_as_written(
    backbone: nn.Module, head: nn.Module, datasets: Datasets, task: Task, record: Record
) -> None:
    """A dataset that reads and transforms, two workers, fp32."""
    torch.manual_seed(task.seed)
    fit(FrozenClassifier(backbone, head), datasets, task, record)


def run(task: Task, record: Record) -> None:
    """As its users write it."""
    backbone, head = frozen_backbone(task, record)
    train_as_written(backbone, head, files_each_epoch(task, backbone), task, record)


def run_tuned(task: Task, record: Record) -> None:
    """Its mixed precision where the hardware computes in it, persistent workers, images decoded in
    memory, channels_last."""
    torch.manual_seed(task.seed)
    backbone, head = frozen_backbone(task, record, uint8=True)
    fit(
        FrozenClassifier(backbone, head),
        decoded_once(task),
        task,
        record,
        dataloader_persistent_workers=True,
        bf16=task.machine.precision_of(1) == torch.bfloat16,
        fp16=task.machine.precision_of(1) == torch.float16,
    )

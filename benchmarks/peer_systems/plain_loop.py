"""The loop everybody writes in PyTorch: as the study published it, and as good as it gets without
keeping features."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from transferlab.machine import autocast

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

Forward = Callable[[torch.Tensor], torch.Tensor]  # images -> features [N, D] of the frozen backbone


def validate(
    forward: Forward, head: nn.Module, loader: DataLoader, device: str
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 to 1) over a loader."""
    head.eval()
    answers = []
    expected = []
    with torch.inference_mode():
        for images, labels in loader:
            features = forward(images.to(device))
            answers.append(head(features))
            expected.append(labels.to(device))
    logits = torch.cat(answers)
    labels = torch.cat(expected)
    correct = logits.argmax(1) == labels
    return F.cross_entropy(logits, labels).item(), correct.float().mean().item()


def train_epoch(
    forward: Forward,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    device: str,
) -> None:
    """One pass over a loader, a step of the optimizer a batch."""
    head.train()
    for images, labels in loader:
        with torch.no_grad():
            features = forward(images.to(device))
        loss = F.cross_entropy(head(features), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(forward: Forward, head: nn.Module, loaders: Loaders, task: Task, record: Record) -> None:
    """Trains the head on what `forward` gives; restores the best epoch's weights."""
    settings = task.settings
    device = task.machine.device
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr, fused=True)
    best = float("inf")
    state = head.state_dict()
    for _ in range(settings.epochs):
        train_epoch(forward, head, optimizer, loaders.train, device)
        loss, accuracy = validate(forward, head, loaders.val, device)
        record.epoch(loss, accuracy)
        if loss < best:
            best = loss
            state = copy.deepcopy(head.state_dict())
    head.load_state_dict(state)


def train_as_written(
    backbone: nn.Module, head: nn.Module, datasets: Datasets, task: Task, record: Record
) -> None:
    """fp32; two workers, started anew for each epoch."""
    torch.manual_seed(task.seed)
    device = task.machine.device
    loaders = make_loaders(datasets, task, persistent=False)
    train(backbone.to(device), head.to(device), loaders, task, record)


def run_study(task: Task, record: Record) -> None:
    """The same on files that are read, decoded, transformed and normalised in each epoch."""
    backbone, head = frozen_backbone(task, record)
    train_as_written(backbone, head, files_each_epoch(task, backbone), task, record)


def run_tuned(task: Task, record: Record) -> None:
    """Reduced precision where the hardware computes in it (validation too), channels_last, images
    decoded and resized once in memory, bytes from persistent workers; the head in fp32."""
    torch.manual_seed(task.seed)
    machine = task.machine
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders = make_loaders(decoded_once(task), task, persistent=True)
    backbone.to(machine.device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(machine, machine.precision_of(1)):
            return backbone(images).float()

    train(forward, head.to(machine.device), loaders, task, record)

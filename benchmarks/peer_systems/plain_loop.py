"""The loop that everybody writes in PyTorch: as the study published it, and as good as it gets without keeping features."""

import copy
import functools

import torch
from torch.nn import functional as F

from transferlab.backbones import choose_device, choose_precision

from .common import decoded_once, files_each_epoch, frozen_backbone, make_loaders


def validate(forward, head, loader, device):
    """Mean cross-entropy (nats) and accuracy (0 to 1) over a loader."""
    head.eval()
    with torch.inference_mode():
        answers = [
            (head(forward(images.to(device))), labels.to(device)) for images, labels in loader
        ]
    logits, labels = (torch.cat(parts) for parts in zip(*answers))
    return F.cross_entropy(logits, labels).item(), (
        logits.argmax(1) == labels
    ).float().mean().item()


def train_epoch(forward, head, optimizer, loader, device):
    head.train()
    for images, labels in loader:
        with torch.no_grad():
            features = forward(images.to(device))
        loss = F.cross_entropy(head(features), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(forward, head, loaders, task, record, device):
    """Trains the head on `forward(images)`, features [N, D] of the frozen backbone; restores the best epoch's weights.

    With a patience it stops when so many epochs in a row bring no lower validation loss.
    """
    optimizer = torch.optim.Adam(head.parameters(), lr=task.settings["lr"], fused=True)
    best, since = float("inf"), 0
    for _ in range(task.settings["epochs"]):
        train_epoch(forward, head, optimizer, loaders["train"], device)
        loss, accuracy = validate(forward, head, loaders["val"], device)
        record.epoch(loss, accuracy)
        since += 1
        if loss < best:
            best, since, state = loss, 0, copy.deepcopy(head.state_dict())
        if task.settings["patience"] and since >= task.settings["patience"]:
            break
    head.load_state_dict(state)


def run_study(task, record):
    """fp32; files read, decoded, transformed and normalised in two workers, anew for each epoch."""
    torch.manual_seed(task.seed)
    device = choose_device()
    backbone, head = frozen_backbone(task, record)
    loaders = make_loaders(files_each_epoch(task, backbone), task, persistent=False)
    train(backbone.to(device), head.to(device), loaders, task, record, device)


def run_tuned(task, record):
    """Reduced precision where the hardware computes in it (validation too), channels_last, images decoded and resized once in
    memory, bytes from persistent workers; the head in fp32."""
    torch.manual_seed(task.seed)
    device = choose_device()
    backbone, head = frozen_backbone(task, record, uint8=True)
    loaders = make_loaders(decoded_once(task), task, persistent=True)
    forward = functools.partial(
        reduced_forward, backbone.to(device), choose_precision(device), device
    )
    train(forward, head.to(device), loaders, task, record, device)


def reduced_forward(backbone, precision, device, images):
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        return backbone(images).float()

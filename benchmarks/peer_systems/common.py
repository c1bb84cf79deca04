"""What all systems share: the task, the backbone and its head, the images, the record of a run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from transferlab.backbones import create_backbone, make_head, normalize
from transferlab.data import Fold, Folds, HeldOutFold, find_layout, split_indices
from transferlab.decoded import load_folder
from transferlab.heldout import inner_split, make_folds
from transferlab.machine import Machine
from transferlab.pretrained import state_hash
from transferlab.train import Settings
from transferlab.views import Augmentation

WORKERS = 2
VAL_SIZE = 0.35  # 296 and 159 of the 455 faces
SPLIT_SEED = 42  # in every round

Transform = Callable[[Any], Any]  # a view of a Pillow image or a tensor


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every system does."""

    folder: Path  # one sub-folder for each class
    weights: str  # as `create_backbone` takes them
    model: str
    augmentation: Augmentation
    settings: Settings | None  # of the head; a probe has none
    seed: int  # of head, order, dropout and views
    machine: Machine
    workers: int = WORKERS  # processes that load images, where a system has any


@dataclass(frozen=True, kw_only=True)
class PeerEpoch:
    """What an epoch of any system came to."""

    val_loss: float  # mean, in nats
    val_acc: float  # 0 to 1
    seen: int  # images that the head trained on
    evaluated: int  # images that were validated
    end: float  # seconds since the run began


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """How a probe does on images that it was not fitted on."""

    correct: int
    predicted: int  # images, each as often as there are repeats


@dataclass(kw_only=True, eq=False)
class Record:
    """What a run has done, and when: an epoch after the other, in seconds since it was made."""

    rows: list[PeerEpoch] = field(default_factory=list)
    seen: int = 0  # images since the last epoch
    evaluated: int = 0
    held_out: HeldOutScore | None = None  # of a probe
    backbone: nn.Module | None = None
    frozen_hash: str = ""  # of the backbone, before any training
    started: float = field(default_factory=time.perf_counter)
    untimed_seconds: float = 0.0

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What its block takes (checks, which nobody's users pay for) is counted in no seconds."""
        started = time.perf_counter()
        yield
        self.untimed_seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """The seconds since it was made that count."""
        return time.perf_counter() - self.started - self.untimed_seconds

    def watch(self, backbone: nn.Module, head: nn.Module) -> None:
        """Counts the images whose features reach the head, in training and in validation; remembers
        what is frozen."""

        def count(head: nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
            if head.training:
                self.seen += len(logits)
            else:
                self.evaluated += len(logits)

        head.register_forward_hook(count)
        self.freeze(backbone)

    def freeze(self, backbone: nn.Module) -> None:
        """Remembers what is frozen."""
        with self.untimed():
            self.backbone = backbone
            self.frozen_hash = state_hash(backbone)

    def epoch(self, val_loss: float | torch.Tensor, val_acc: float | torch.Tensor) -> None:
        """Ends an epoch: the mean loss (nats) and the accuracy (0 to 1) on validation, and the
        images since the last one."""
        row = PeerEpoch(
            val_loss=float(val_loss),
            val_acc=float(val_acc),
            seen=self.seen,
            evaluated=self.evaluated,
            end=self.seconds(),
        )
        self.rows.append(row)
        self.seen = 0
        self.evaluated = 0

    def check_epochs(self, n_train: int, n_val: int) -> None:
        """Each epoch has trained on all images once and validated all.

        Raises:
            RuntimeError: it has not: what was measured is not the task.
        """
        for row in self.rows:
            if row.seen != n_train or row.evaluated != n_val:
                counts = f"{row.seen} images and validated {row.evaluated}"
                raise RuntimeError(f"an epoch took {counts}, not {n_train} and {n_val}")

    def check_held_out(self, expected: int) -> None:
        """So many images were predicted.

        Raises:
            RuntimeError: they were not.
        """
        predicted = self.held_out.predicted if self.held_out else 0
        if predicted != expected:
            raise RuntimeError(f"{predicted} images were predicted, not {expected}")

    def check_frozen(self) -> None:
        """The backbone is the same to the bit.

        Raises:
            RuntimeError: it is not.
        """
        if state_hash(self.backbone) != self.frozen_hash:
            raise RuntimeError("the backbone has changed: it was not frozen")


# ---- backbone and head -----------------------------------------------------------------------


class NormalizedBackbone(nn.Module):
    """A timm model without classifier for uint8 images [N, 3, H, W] -> [N, D].

    Bytes travel from the workers, in fewer copies than floats; they are normalised and laid out
    channels_last here, a batch at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.pretrained_cfg = model.pretrained_cfg

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        laid_out = images.contiguous(memory_format=torch.channels_last)
        return self.model(normalize(self, laid_out))


def frozen_backbone(
    task: Task, record: Record, *, uint8: bool = False
) -> tuple[nn.Module, nn.Sequential]:
    """The study's backbone in eval mode, no parameter of it trained, and its head: images ->
    [N, D] -> logits [N, C].

    The backbone takes normalised floats, or with `uint8` images as they are (channels_last).
    """
    model, _ = create_backbone(task.model, task.weights)
    classes = find_layout(task.folder).classes
    head = make_head(
        model.head_hidden_size,
        len(classes),
        hidden=task.settings.hidden,
        dropout=task.settings.dropout,
        seed=task.seed,
    )
    model.reset_classifier(0)
    backbone = NormalizedBackbone(model) if uint8 else model
    backbone.eval().requires_grad_(False)
    record.watch(backbone, head)
    return backbone, head


# ---- images ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Datasets:
    """The images to train on and those to validate, each with its label."""

    train: Dataset
    val: Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaders:
    """The same in batches."""

    train: DataLoader
    val: DataLoader


def split_study(labels: Sequence[int] | torch.Tensor) -> Fold:
    """The study's split of labels [N]."""
    train, val = split_indices(torch.as_tensor(labels), val_size=VAL_SIZE, seed=SPLIT_SEED)
    return Fold(train=train, val=val)


def study_folds(labels: torch.Tensor) -> Folds:
    """The study's split as one fold: a probe's strength is chosen inside the training images, the
    validation images are predicted once."""
    fold = split_study(labels)
    inner, val = inner_split(labels[fold.train], seed=SPLIT_SEED)
    held_out = HeldOutFold(train=fold.train[inner], val=fold.train[val], test=fold.val)
    return Folds(folds=(held_out,), k=1, repeats=1)


def crossed_folds(labels: torch.Tensor) -> Folds:
    """The folds of `transferlab compare`, a probe's strength chosen inside each."""
    return make_folds(labels, k=5, repeats=5, seed=0)


def folder_through(task: Task, view: Transform, backbone: nn.Module) -> ImageFolder:
    """The images as torchvision's users load them.

    Each is read and decoded by Pillow whenever it is asked for, transformed as a Pillow image
    (which is the faster way for files), then float32 [3, H, W], normalised with the backbone's mean
    and std.
    """
    config = backbone.pretrained_cfg
    steps = (
        view,
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(config["mean"], config["std"]),
        v2.ToPureTensor(),
    )
    return ImageFolder(task.folder, transform=v2.Compose(steps))


def files_each_epoch(task: Task, backbone: nn.Module) -> Datasets:
    """The images read anew in each epoch, as `folder_through`."""
    train = folder_through(task, task.augmentation.train, backbone)
    val = folder_through(task, task.augmentation.clean, backbone)
    fold = split_study(train.targets)
    return Datasets(
        train=Subset(train, fold.train.tolist()),
        val=Subset(val, fold.val.tolist()),
    )


class DecodedViews(Dataset):
    """Images in memory as uint8 [3, H, W], already resized (the study's first step, the same each
    time); each with its label."""

    def __init__(self, images: list[torch.Tensor], labels: list[int], augment: Transform) -> None:
        self.images = images
        self.labels = labels
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.augment(self.images[index]), self.labels[index]


def decoded_once(task: Task) -> Datasets:
    """The same images, decoded and resized once: uint8 [3, H, W]."""
    image_set = load_folder(task.folder)
    fold = split_study(image_set.labels)
    resize = task.augmentation.clean  # which is all of the clean view
    after_resizing = task.augmentation.train.transforms[1:]

    def resized(index: torch.Tensor, augment: Transform) -> DecodedViews:
        images = [resize(image_set.images[i]) for i in index.tolist()]
        labels = image_set.labels[index]
        return DecodedViews(images, labels.tolist(), augment)

    augment = v2.Compose([nn.Identity(), *after_resizing])
    return Datasets(train=resized(fold.train, augment), val=resized(fold.val, nn.Identity()))


def make_loaders(datasets: Datasets, task: Task, *, persistent: bool) -> Loaders:
    """PyTorch's DataLoader over both datasets, the training images shuffled under the task's
    seed."""
    options = {
        "batch_size": task.settings.batch_size,
        "num_workers": task.workers,
        "persistent_workers": persistent,
        "pin_memory": task.machine.device == "cuda",
    }
    order = torch.Generator().manual_seed(task.seed)
    worker_seeds = torch.Generator().manual_seed(task.seed)
    return Loaders(
        train=DataLoader(datasets.train, shuffle=True, generator=order, **options),
        val=DataLoader(datasets.val, generator=worker_seeds, **options),
    )

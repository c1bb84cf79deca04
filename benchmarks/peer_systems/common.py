"""What all systems share: the task, the frozen backbone and its head, the images as datasets, and the record of a run."""

import time
from collections import namedtuple
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from transferlab.backbones import create_backbone, make_head, normalize, state_hash
from transferlab.data import class_folders, load_images, split_indices

WORKERS = 2
SPLIT = {"val_size": 0.35, "seed": 42}  # 296 and 159 of the 455 faces, in every round

# folder: a Path with one sub-folder for each class; weights and model: as `create_backbone` takes them; views: `Views`; settings: as
# `Study` takes them (epochs patience batch_size lr views hidden dropout); seed: of head, order, dropout and views.
Task = namedtuple("Task", "folder weights model views settings seed")


class Record:
    """What a run has done, and when: `rows`, one for each epoch, with seconds since the record was made."""

    def __init__(self):
        self.rows, self.seen, self.evaluated, self.backbone = [], 0, 0, None
        self.started, self.untimed_seconds = time.perf_counter(), 0.0

    @contextmanager
    def untimed(self):
        """What its block takes (checks, which nobody's users pay for) is counted in no seconds."""
        started = time.perf_counter()
        yield
        self.untimed_seconds += time.perf_counter() - started

    def seconds(self):
        return time.perf_counter() - self.started - self.untimed_seconds

    def watch(self, backbone, head):
        """Counts the images whose features reach the head, in training and in validation; remembers what is frozen."""

        def count(head, inputs, logits):
            if head.training:
                self.seen += len(logits)
            else:
                self.evaluated += len(logits)

        head.register_forward_hook(count)
        with self.untimed():
            self.backbone, self.frozen_hash = backbone, state_hash(backbone)

    def epoch(self, val_loss, val_acc):
        """Ends an epoch: the mean loss (nats) and the accuracy (0 to 1) on validation, and the images since the last one."""
        row = {
            "val_loss": float(val_loss),
            "val_acc": float(val_acc),
            "seen": self.seen,
            "evaluated": self.evaluated,
        }
        self.rows.append(row | {"end": self.seconds()})
        self.seen = self.evaluated = 0

    def check(self, n_train, n_val):
        """Each epoch has trained on all images once and validated all; the backbone is the same to the bit.

        Raises:
            RuntimeError: it has not, or is not: what was measured is not the task.
        """
        wrong = [row for row in self.rows if (row["seen"], row["evaluated"]) != (n_train, n_val)]
        if wrong:
            counts = f"{wrong[0]['seen']} images and validated {wrong[0]['evaluated']}"
            raise RuntimeError(f"an epoch took {counts}, not {n_train} and {n_val}")
        if state_hash(self.backbone) != self.frozen_hash:
            raise RuntimeError("the backbone has changed: it was not frozen")


class NormalizedBackbone(nn.Module):
    """A timm model without classifier for uint8 images [N, 3, H, W] -> [N, D]: bytes travel from the workers, in fewer copies
    than floats; they are normalised and laid out channels_last here, a batch at a time."""

    def __init__(self, model):
        super().__init__()
        self.model, self.pretrained_cfg = (
            model.to(memory_format=torch.channels_last),
            model.pretrained_cfg,
        )

    def forward(self, images):
        return self.model(normalize(self, images.contiguous(memory_format=torch.channels_last)))


def frozen_backbone(task, record, *, uint8=False):
    """The study's backbone in eval mode, no parameter of it trained, and its head: images -> [N, D] -> logits [N, C].

    The backbone takes normalised floats, or with `uint8` images as they are (channels_last).
    """
    model, _ = create_backbone(task.model, task.weights)
    sizes = {
        "hidden": task.settings["hidden"],
        "dropout": task.settings["dropout"],
        "seed": task.seed,
    }
    head = make_head(model.head_hidden_size, len(class_folders(task.folder)), **sizes)
    model.reset_classifier(0)
    backbone = (NormalizedBackbone(model) if uint8 else model).eval().requires_grad_(False)
    record.watch(backbone, head)
    return backbone, head


def split_study(labels):
    """The study's split of labels [N] -> {"train": list of indices, "val": list of indices}."""
    return {
        part: index.tolist()
        for part, index in zip(("train", "val"), split_indices(torch.as_tensor(labels), **SPLIT))
    }


def files_each_epoch(task, backbone):
    """The images as torchvision's users load them -> {"train": Dataset, "val": Dataset}.

    Each is read and decoded by Pillow whenever it is asked for, transformed as a Pillow image (which is the faster way for
    files), then float32 [3, H, W], normalised with the backbone's mean and std.
    """
    mean, std = (backbone.pretrained_cfg[key] for key in ("mean", "std"))
    to_float = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
        v2.ToPureTensor(),
    ]
    folders = {
        part: ImageFolder(task.folder, transform=v2.Compose([view, *to_float]))
        for part, view in task.views._asdict().items()
    }
    return {
        part: Subset(folders[part], index)
        for part, index in split_study(folders["train"].targets).items()
    }


class DecodedViews(Dataset):
    """Images in memory as uint8 [3, H, W], already resized (the study's first step, the same each time); each with its label."""

    def __init__(self, images, labels, augment):
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.augment(self.images[index]), self.labels[index]


def decoded_once(task):
    """The same images, decoded and resized once -> {"train": Dataset, "val": Dataset} of uint8 [3, H, W]."""
    image_set, datasets = load_images(task.folder), {}
    augment = {
        "train": v2.Compose([nn.Identity(), *task.views.train.transforms[1:]]),
        "val": nn.Identity(),
    }
    for part, index in split_study(image_set.labels).items():
        resized = [
            task.views.val(image_set.images[i]) for i in index
        ]  # which is all of the clean view
        datasets[part] = DecodedViews(resized, image_set.labels[index].tolist(), augment[part])
    return datasets


def make_loaders(datasets, task, *, persistent):
    """PyTorch's DataLoader over both datasets, the training images shuffled under the task's seed -> {"train": …, "val": …}."""
    options = {
        "batch_size": task.settings["batch_size"],
        "num_workers": WORKERS,
        "persistent_workers": persistent,
    }
    options["pin_memory"] = torch.cuda.is_available()
    order = torch.Generator().manual_seed(task.seed)
    return {
        "train": DataLoader(datasets["train"], shuffle=True, generator=order, **options),
        "val": DataLoader(
            datasets["val"], generator=torch.Generator().manual_seed(task.seed), **options
        ),
    }

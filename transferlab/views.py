"""Views: the study's transforms (torchvision v2), and their rendering to uint8, the same for every backbone."""

import hashlib
from collections import namedtuple

import torch
from torchvision.transforms import v2

# train draws a random view of a uint8 image [3, H, W], val the clean one (view 0); both give uint8 [3, size, size].
Views = namedtuple("Views", "train val")


def anime_views(size=224):
    """The study's transforms for the faces; normalisation belongs to the model, so pixels stay uint8."""
    train = [
        v2.Resize((size, size)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(15),
        v2.ColorJitter(0.2, 0.2, 0.2),
    ]
    return Views(train=v2.Compose(train), val=v2.Compose([v2.Resize((size, size))]))


def hymenoptera_views(size=224):
    """The study's transforms for ants and bees; the clean view is the tutorial's Resize(256), CenterCrop(224)."""
    train = [
        v2.RandomResizedCrop(size),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(30),
        v2.ColorJitter(0.2, 0.2, 0.2),
    ]
    train.append(v2.RandomAffine(0, translate=(0.1, 0.1)))
    return Views(
        train=v2.Compose(train), val=v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    )


VIEWS = {"faces": anime_views, "photos": hymenoptera_views}


def kind_of_views(dataset):
    """Which of the study's views a dataset gets by its name: "faces" (whole pictures) for its manga faces, else "photos"."""
    return "faces" if dataset == "manga_facial_expressions" else "photos"


def views_of(dataset, size=224):
    """The study's views for a dataset by its name -> Views."""
    return VIEWS[kind_of_views(dataset)](size)


def view_seed(seed, view, path):
    """The seed of one image's view, hashed from (seed, view, path), so that it depends on nothing else."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{view}/{path}".encode()).digest()[:7], "little"
    )  # torch takes < 2**63


def render_view(image_set, transform, *, view, seed, indices=None):
    """Renders one view of the images (all, or those of `indices`) -> uint8 [N, 3, H, W].

    The global random state is left as it was.
    """
    chosen = range(len(image_set.images)) if indices is None else [int(index) for index in indices]
    rendered = []
    with torch.random.fork_rng(devices=[]):
        for index in chosen:
            torch.default_generator.manual_seed(view_seed(seed, view, image_set.paths[index]))
            rendered.append(transform(image_set.images[index]))
    return torch.stack(rendered)

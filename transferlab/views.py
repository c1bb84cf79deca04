"""Augmentations (torchvision v2) and their rendering to uint8, the same for every backbone."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torchvision.transforms import v2

from .data import ImageSet

BLOCK = 32  # images that are rendered at once

Transform = Callable[[torch.Tensor], torch.Tensor]  # uint8 [3, H, W] -> uint8 [3, size, size]


@dataclass(frozen=True, kw_only=True)
class AugmentationInfo:
    """What a record says of an augmentation. By name, version and size it is found again."""

    name: str
    version: int
    size: int
    train: str  # the transforms as they print themselves
    clean: str


def printed(transform: Transform) -> str:
    """A transform as it prints itself, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are drawn. Its identity is what it states: name, version and size.

    Transforms cannot be compared (not all print their parameters), so the author of an augmentation
    states a new version whenever it draws something else. One without a name has no identity:
    nothing that was computed with it is kept on disk.
    """

    name: str = ""
    version: int = 1
    size: int  # of the pictures it gives, in pixels
    train: Transform  # draws a random view
    clean: Transform  # gives the clean view, view 0

    def info(self) -> AugmentationInfo:
        """The augmentation as a record says it."""
        return AugmentationInfo(
            name=self.name,
            version=self.version,
            size=self.size,
            train=printed(self.train),
            clean=printed(self.clean),
        )


def faces_augmentation(size: int = 224) -> Augmentation:
    """The study's for the faces: whole pictures.

    Normalisation belongs to the model, so pixels stay uint8.
    """
    train = v2.Compose(
        [
            v2.Resize((size, size)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15),
            v2.ColorJitter(0.2, 0.2, 0.2),
        ]
    )
    clean = v2.Compose([v2.Resize((size, size))])
    return Augmentation(name="faces", version=1, size=size, train=train, clean=clean)


def photos_augmentation(size: int = 224) -> Augmentation:
    """The study's for ants and bees: random crops. The clean view is the tutorial's Resize(256),
    CenterCrop(224)."""
    train = v2.Compose(
        [
            v2.RandomResizedCrop(size),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(30),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.RandomAffine(0, translate=(0.1, 0.1)),
        ]
    )
    clean = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    return Augmentation(name="photos", version=1, size=size, train=train, clean=clean)


def view_seed(seed: int, view: int, path: str) -> int:
    """The seed of one image's view, hashed from (seed, view, path), so that it depends on nothing
    else."""
    digest = hashlib.sha256(f"{seed}/{view}/{path}".encode()).digest()
    return int.from_bytes(digest[:7], "little")  # torch takes < 2**63


def render_view(
    image_set: ImageSet,
    transform: Transform,
    *,
    view: int,
    seed: int,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Renders one view of the images (all, or those of `indices`) -> uint8 [N, 3, H, W].

    The global random state is left as it was.
    """
    chosen = torch.arange(len(image_set.labels)) if indices is None else indices
    rendered = []
    with torch.random.fork_rng(devices=[]):
        for index in chosen.tolist():
            own_seed = view_seed(seed, view, image_set.paths[index])
            torch.default_generator.manual_seed(own_seed)
            rendered.append(transform(image_set.images[index]))
    return torch.stack(rendered)


class Renderer:
    """Draws the views of an image set, a block of images at a time."""

    def __init__(
        self, image_set: ImageSet, augmentation: Augmentation, *, seed: int, keep: int = 0
    ) -> None:
        """`keep`: so many blocks, the last ones rendered for one backbone, are kept for the next
        (5 MB each at 224 px)."""
        self.image_set = image_set
        self.augmentation = augmentation
        self.seed = seed
        self._block = functools.lru_cache(maxsize=keep)(self._render)

    def _render(self, view: int, indices: tuple[int, ...]) -> torch.Tensor:
        transform = self.augmentation.train if view else self.augmentation.clean
        chosen = torch.tensor(indices)
        return render_view(self.image_set, transform, view=view, seed=self.seed, indices=chosen)

    def blocks(self, view: int, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields a view of those images, uint8 [<= 32, 3, H, W] at a time."""
        for part in indices.split(BLOCK):
            yield self._block(view, tuple(part.tolist()))

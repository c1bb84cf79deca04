"""Augmentations (torchvision v2) and their rendering to uint8, the same for every backbone."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from .data import ImageSet
from .progress import Progress

BLOCK = 32  # images that are rendered at once


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are drawn. Its identity is what it states, name, version and size, and its
    parameters (`identity_of`).

    The author of an augmentation states a new version whenever its code draws something else (other
    parameters are noticed). One without a name has no identity: nothing that was computed with it
    is kept on disk.
    """

    name: str = ""
    version: int = 1
    size: int  # of the pictures it gives, in pixels
    train: Callable[[Tensor], Tensor]  # uint8 [3, H, W] -> a random view, [3, size, size]
    clean: Callable[[Tensor], Tensor]  # -> the clean view, view 0


def printed(transform: object) -> str:
    """A transform as it prints itself, without addresses in memory."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(transform))


def content_of(value: Any) -> str:
    """What a transform is made of, its parameters too, not all of which it prints.

    Raises:
        TypeError: that cannot be told: it holds something else than plain values, tensors, modules
            and PyTorch's functions. Other functions, and classes of a notebook, are known by their
            names alone, whatever they do.
    """
    if value is None or isinstance(value, str | int | float | Enum):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, Mapping):
        return repr({str(key): content_of(inner) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return repr([content_of(inner) for inner in value])
    named = value if isinstance(value, type | FunctionType | BuiltinFunctionType) else type(value)
    is_torch = str(named.__module__).startswith("torch")
    is_known = is_torch or (isinstance(value, type | nn.Module) and named.__module__ != "__main__")
    if not is_known:
        raise TypeError(f"{value!r} is known by its name alone")
    name = f"{named.__module__}.{named.__qualname__}"
    if named is value:
        return name
    own = vars(value).keys() - (vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"})
    return f"{name} {content_of({key: vars(value)[key] for key in sorted(own)})}"


def identity_of(augmentation: Augmentation) -> str:
    """SHA-256 (hex) of what an augmentation states and of what it is made of; "" where it has no
    name, or its content cannot be told: then nothing that is computed with it is kept on disk."""
    if not augmentation.name:
        return ""
    try:
        content = content_of([augmentation.train, augmentation.clean])
    except (TypeError, RecursionError):
        return ""
    stated = f"{augmentation.name} {augmentation.version} {augmentation.size}"
    return hashlib.sha256(f"{stated} {content}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class AugmentationInfo:
    """What a record says of an augmentation. By name, version and size it is found again."""

    name: str
    version: int
    size: int
    train: str  # the transforms as they print themselves
    clean: str


def info_of(augmentation: Augmentation) -> AugmentationInfo:
    """An augmentation as a record says it."""
    return AugmentationInfo(
        name=augmentation.name,
        version=augmentation.version,
        size=augmentation.size,
        train=printed(augmentation.train),
        clean=printed(augmentation.clean),
    )


def faces_augmentation(size: int = 224) -> Augmentation:
    """The study's for the faces: whole pictures, flipped, turned a little, in another light.

    Normalisation belongs to the model, so pixels stay uint8.
    """
    resize = v2.Resize((size, size))
    light = v2.ColorJitter(0.2, 0.2, 0.2)
    train = v2.Compose([resize, v2.RandomHorizontalFlip(), v2.RandomRotation(15), light])
    clean = v2.Compose([resize])
    return Augmentation(name="faces", version=1, size=size, train=train, clean=clean)


def photos_augmentation(size: int = 224) -> Augmentation:
    """The study's for ants and bees: random crops, turned, in another light and place.

    The clean view is the tutorial's Resize(256), CenterCrop(224).
    """
    crop = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.RandomRotation(30)]
    shift = v2.RandomAffine(0, translate=(0.1, 0.1))
    train = v2.Compose([*crop, v2.ColorJitter(0.2, 0.2, 0.2), shift])
    clean = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    return Augmentation(name="photos", version=1, size=size, train=train, clean=clean)


def render_view(
    image_set: ImageSet,
    transform: Callable[[Tensor], Tensor],
    *,
    view: int,
    seed: int,
    indices: Tensor,
) -> Tensor:
    """One view of the images of those indices, uint8 [N, 3, H, W].

    What is drawn of an image depends on (seed, view, path) alone. The global random state is left
    as it was.
    """
    rendered = []
    with torch.random.fork_rng(devices=[]):
        for index in indices.tolist():
            name = f"{seed}/{view}/{image_set.paths[index]}"
            digest = hashlib.sha256(name.encode()).digest()  # torch takes seeds below 2**63
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
            rendered.append(transform(image_set.images[index]))
    return torch.stack(rendered)


class Renderer:
    """Draws the views of an image set, a block of images at a time."""

    def __init__(
        self,
        image_set: ImageSet,
        augmentation: Augmentation,
        *,
        seed: int,
        keep: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """`keep`: so many blocks, the last ones rendered for one backbone, are kept for the next
        (5 MB each at 224 px). `progress` is told of every block."""
        self.image_set = image_set
        self.augmentation = augmentation
        self.seed = seed
        self.progress = progress or Progress()
        self._block = functools.lru_cache(maxsize=keep)(self._render)

    def _render(self, view: int, indices: tuple[int, ...]) -> Tensor:
        transform = self.augmentation.train if view else self.augmentation.clean
        chosen = torch.tensor(indices)
        return render_view(self.image_set, transform, view=view, seed=self.seed, indices=chosen)

    def blocks(self, view: int, indices: Tensor) -> Iterator[Tensor]:
        """Yields a view of those images, uint8 [<= 32, 3, H, W] at a time."""
        for part in indices.split(BLOCK):
            yield self._block(view, tuple(part.tolist()))
            self.progress.images(len(part))

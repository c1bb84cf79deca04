"""The frozen part over views: computed once, kept, and handed to the epochs."""

import functools
import itertools
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from .backbones import check_picture_size, fold_batchnorm
from .data import Fold
from .errors import UserError
from .machine import Clock, Machine, choose_batch_size, one_core_threads
from .pretrained import state_hash
from .store import NO_STORE, Store
from .views import BLOCK, AugmentationInfo, Renderer, identity_of, info_of

FEATURES_REVISION = 2  # of rendering and folding: raised whenever they compute something else
FROM_DISK = "features from disk"


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """All that features on disk depend on."""

    data: str  # digest
    augmentation: AugmentationInfo
    content: str  # of the augmentation, as `identity_of` gives it
    seed: int  # of the views
    model: str  # timm's name
    weights: str  # hash of the frozen part
    cut: str
    view: int
    indices: tuple[int, ...]  # of the images
    device: str
    precision: str
    versions: dict[str, str]
    revision: int = FEATURES_REVISION


def one_ahead(blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yields what `blocks` yields, the next one prepared in a second thread, on one core,
    meanwhile."""
    source = iter(blocks)
    with one_core_threads(1) as pool:
        coming = pool.submit(next, source, None)
        while True:
            block = coming.result()
            if block is None:
                return
            coming = pool.submit(next, source, None)
            yield block


def as_blocks(views: Iterable[torch.Tensor] | torch.Tensor) -> Iterable[torch.Tensor]:
    """Blocks of images as they are; one tensor of all images cut into blocks."""
    return views.split(BLOCK) if isinstance(views, torch.Tensor) else views


@torch.no_grad()
def extract(
    lower: nn.Module, images: Iterable[Tensor], *, device: str, precision: torch.dtype, size: int
) -> Tensor:
    """Blocks of uint8 images [n, 3, H, W] through a frozen part, `size` images at once -> features
    [N, ...] on the device: fp32, whatever `precision` is."""
    features = []
    for block in images:
        for batch in block.to(device, memory_format=torch.channels_last).split(size):
            with torch.autocast(device, precision, enabled=precision != torch.float32):
                features.append(lower(batch).float())
    return torch.cat(features)


def extract_ahead(
    lower: nn.Module,
    views: Iterable[torch.Tensor] | torch.Tensor,
    *,
    machine: Machine,
    precision: torch.dtype,
) -> torch.Tensor:
    """As `extract`, of blocks of images or one tensor of all, on the CPU: the next block is
    rendered while the model computes."""
    blocks = one_ahead(as_blocks(views))
    first = next(blocks)
    size = choose_batch_size(machine.device, first[0, 0].numel())
    images = itertools.chain([first], blocks)
    return extract(lower, images, device=machine.device, precision=precision, size=size).cpu()


def extract_large(
    lower: nn.Module,
    views: Iterable[torch.Tensor] | torch.Tensor,
    count: int,
    folder: str | Path,
    *,
    machine: Machine,
    precision: torch.dtype,
) -> torch.Tensor:
    """As `extract`, for the activations [count, ...] at a deep cut: where they would take more than
    half of the memory that is free, they are written to a file in `folder` as they come, and mapped
    into memory. It vanishes with the tensor.

    Raises:
        UserError: the file cannot be written.
    """
    blocks = one_ahead(as_blocks(views))

    def activations(block: torch.Tensor) -> torch.Tensor:
        return extract_ahead(lower, block, machine=machine, precision=precision)

    first = activations(next(blocks))
    needed = first[0].nbytes * count
    if needed < psutil.virtual_memory().available / 2:
        rest = [activations(block) for block in blocks]
        return torch.cat([first, *rest])
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            written = file.write(first.contiguous().numpy())
            for block in blocks:
                written += file.write(activations(block).contiguous().numpy())
            file.flush()
            size = written // first.element_size()
            kept = torch.from_file(file.name, shared=True, size=size)
    except OSError as error:
        advice = "make room, or cut later"
        reason = f"activations cannot be written to {folder} ({error.strerror})"
        raise UserError(f"{reason}: {advice}") from error
    return kept.view(count, *first.shape[1:])


def are_features(kept: dict[str, torch.Tensor], count: int) -> bool:
    """Whether what was kept are finite fp32 features of `count` images."""
    features = kept.get("features")
    if features is None or features.dtype != torch.float32 or features.ndim < 2:
        return False
    return len(features) == count and bool(features.isfinite().all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a frozen part gives for the images of a study, every view of them computed once.

    The clean view is computed once for all images, and is what is trained on as view 0 too; random
    views are computed for the training images; each in the precision that the machine has for it.
    """

    lower: nn.Module  # the frozen part, BatchNorm folded
    renderer: Renderer
    train_index: torch.Tensor  # int64 [n]: the images that random views are drawn of
    model: str  # timm's name
    weights: str  # hash of the frozen part
    machine: Machine
    clock: Clock
    store: Store = NO_STORE
    _views: dict[int, torch.Tensor] = field(default_factory=dict, init=False)  # random, by number

    @functools.cached_property
    def clean(self) -> torch.Tensor:
        """View 0 of all images, fp32 [N, ...]."""
        everything = torch.arange(len(self.renderer.image_set.labels))
        return self._draw(0, everything, "clean view")

    @functools.cached_property
    def clean_train(self) -> torch.Tensor:
        """View 0 of the training images, fp32 [n, ...]: the very tensor where these are all."""
        everything = torch.arange(len(self.clean))
        if torch.equal(self.train_index, everything):
            return self.clean
        return self.clean[self.train_index]

    def train(self, view: int) -> torch.Tensor:
        """One view of the training images, fp32 [n, ...]; always the same tensor."""
        if view == 0:
            return self.clean_train
        if view not in self._views:
            self._views[view] = self._draw(view, self.train_index, "training views")
        return self._views[view]

    def on(self, fold: Fold) -> "FoldFeatures":
        """The same for a fold of all images.

        Raises:
            ValueError: the training images are not all images, so that a fold's would be others.
        """
        if self.clean_train is not self.clean:
            raise ValueError("features of some training images alone cannot be cut into folds")
        return FoldFeatures(features=self, fold=fold)

    def _draw(self, view: int, indices: torch.Tensor, phase: str) -> torch.Tensor:
        """Computes a view of those images, or reads it; its seconds go to the phase, or to that of
        what came from disk."""
        precision = self.machine.precision_of(view)

        def compute() -> dict[str, torch.Tensor]:
            with self.clock.phase(phase):
                blocks = self.renderer.blocks(view, indices)
                drawn = extract_ahead(self.lower, blocks, machine=self.machine, precision=precision)
                return {"features": drawn}

        if not identity_of(self.renderer.augmentation):  # never kept on disk
            return compute()["features"]
        key = self._key(view, indices)
        if self.store.has(key):
            with self.clock.phase(FROM_DISK):
                kept = self.store.read(key)
            if kept is not None and are_features(kept, len(indices)):
                return kept["features"]
            if kept is not None:
                message = f"{self.store.path(key)} holds no features: computed again"
                warnings.warn(message, stacklevel=3)
        drawn = compute()
        self.store.write(key, drawn)
        return drawn["features"]

    def _key(self, view: int, indices: torch.Tensor) -> FeatureKey:
        return FeatureKey(
            data=self.renderer.image_set.digest,
            augmentation=info_of(self.renderer.augmentation),
            content=identity_of(self.renderer.augmentation),
            seed=self.renderer.seed,
            model=self.model,
            weights=self.weights,
            cut="features",
            view=view,
            indices=tuple(indices.tolist()),
            device=self.machine.device,
            precision=str(self.machine.precision_of(view)),
            versions=self.machine.versions,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldFeatures:
    """`Features` of all images, for one fold of them."""

    features: Features  # whose training images are all images
    fold: Fold

    @property
    def clean(self) -> torch.Tensor:
        """View 0 of all images, fp32 [N, ...]."""
        return self.features.clean

    def train(self, view: int) -> torch.Tensor:
        """One view of the fold's training images, fp32 [n, ...]."""
        return self.features.train(view)[self.fold.train]


def features_of(
    lower: nn.Module,
    renderer: Renderer,
    train_index: torch.Tensor,
    *,
    model: str,
    machine: Machine,
    clock: Clock,
    store: Store = NO_STORE,
) -> Features:
    """The features that a frozen part of the timm model `model` gives, nothing computed yet.

    Raises:
        UserError: it takes no pictures of the augmentation's size.
    """
    check_picture_size(lower, renderer.augmentation.size)
    return Features(
        lower=fold_batchnorm(lower),
        renderer=renderer,
        train_index=train_index,
        model=model,
        weights=state_hash(lower),
        machine=machine,
        clock=clock,
        store=store,
    )

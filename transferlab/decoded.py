"""A folder's images, decoded on several cores. Beyond memory: the first stay decoded, later ones
are read when asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .data import SPLITS, ImageSet, load_images, read_image
from .errors import DataError, UserError
from .machine import one_core_threads

# So much of a folder stays decoded: the study's faces take 0.1 GB, its ants and bees 0.2 GB.
DECODED_BYTES = 500_000_000
READERS = 4  # threads at most: each may hold an image of 0.4 GB


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image that is decoded anew whenever it is asked for."""

    path: Path
    digest: bytes  # SHA-256 of the file when it was loaded


class DecodedImages:
    """A folder's images, uint8 [3, H, W] each: the first `room` bytes of them stay decoded, later
    ones are read when asked for."""

    def __init__(self, room: int = DECODED_BYTES) -> None:
        self.white: dict[str, int] = {}  # as that of the ImageSet
        self._room = room
        self._items: list[torch.Tensor | ImageFile] = []

    def add(self, path: Path, image: torch.Tensor, digest: bytes) -> None:
        """Appends an image, decoded where there is room."""
        self._room -= image.nbytes
        self._items.append(image if self._room >= 0 else ImageFile(path=path, digest=digest))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self._items[index]
        if isinstance(item, torch.Tensor):
            return item
        try:
            image, digest = read_image(item.path, self.white)
        except UserError as error:
            raise DataError(f"{item.path}: {error}; load the images again") from error
        if digest != item.digest:
            raise DataError(f"{item.path} has changed since it was loaded: load the images again")
        return image


class MapAhead:
    """As `map`, but threads compute the next so many items: of every item in its turn what
    `function` gives, or raises."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        ahead: int,
        function: Callable[[Any], Any],
        items: Iterable[Any],
    ) -> None:
        self._pool = pool
        self._ahead = ahead
        self._function = function
        self._items = iter(items)
        self._coming: deque[Future[Any]] = deque()

    def __iter__(self) -> "MapAhead":
        return self

    def __next__(self) -> Any:
        for item in islice(self._items, self._ahead - len(self._coming)):
            self._coming.append(self._pool.submit(self._function, item))
        if not self._coming:
            raise StopIteration
        return self._coming.popleft().result()


def load_folder(
    folder: str | Path, *, parts: Sequence[str] = SPLITS, decoded_bytes: int = DECODED_BYTES
) -> ImageSet:
    """As `load_images`, on several cores; where the images take more than `decoded_bytes`, those
    beyond are decoded anew for each view.

    Raises:
        DataError: as `load_images`.
    """
    images = DecodedImages(decoded_bytes)
    readers = min(READERS, torch.get_num_threads())
    with one_core_threads(readers) as pool:
        spread = partial(MapAhead, pool, 2 * readers)
        image_set = load_images(folder, keep=images.add, parts=parts, spread=spread)
    images.white = image_set.white
    changed: dict[str, Any] = {"images": images}
    return replace(image_set, **changed)

"""Copies of an image: the same bytes or pixels, or the picture re-encoded, resized, mirrored."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..data import ImageSet
from ..errors import DataError, printable
from ..pretrained import tensor_hash

HASH_SIZE = 16
HASH_BITS = HASH_SIZE**2
# Bits of 256 up to which two images may be copies: their pixels decide. Of random hashes two in a
# million pairs are so near. Different manga faces are at least 80 bits apart, ants and bees 90; but
# different fruits before white from 22, hands before one background from 24.
CANDIDATE_BITS = 90
NEAREST = 12  # nearest images of each that are looked at: the candidates have a bound
BLOCK = 500  # rows compared at a time: N x N distances of 20,000 images would take 3 GB


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprints:
    """What tells N images apart."""

    file_hash: tuple[bytes, ...]  # SHA-256 of each file
    pixel_hash: tuple[str, ...]  # SHA-256 of each decoded image
    bits: np.ndarray  # bool [N, 256], the perceptual hash
    mirrored: np.ndarray  # bool [N, 256], that of the mirror image
    modes: tuple[str, ...]  # Pillow's name of each file's colours ("RGB", "L", "CMYK")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Two images that are copies of each other."""

    first: int  # index, below `second`
    second: int
    distance: int = 0  # bits of 256 in which their perceptual hashes differ
    how: str  # "same bytes", "same pixels", "similar", "similar when mirrored"
    mirrored: bool = False  # whether the mirror image is the nearer one
    share: float = 1.0  # of what their aligned pixels show, how much is the same

    @property
    def order(self) -> tuple[float, int, int, int]:
        """Sorts copies: the surest first."""
        return -self.share, self.distance, self.first, self.second


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The K images nearest to each of N by their hashes, the nearest first."""

    index: np.ndarray  # int [N, K]; -1 where there are fewer, and in the rows of exact copies
    distance: np.ndarray  # int [N, K], bits
    mirrored: np.ndarray  # bool [N, K]: the mirror image is nearer

    def of(self, image: int) -> dict[int, bool]:
        """The neighbours of one image -> {index: whether its mirror image is nearer}."""
        pairs = zip(self.index[image].tolist(), self.mirrored[image].tolist())
        return {index: mirrored for index, mirrored in pairs if index >= 0}


def to_pillow(image: torch.Tensor) -> Image.Image:
    """A uint8 image [3, H, W] as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def perceptual_hash(picture: Image.Image) -> np.ndarray:
    """The perceptual hash of a picture -> bool [256].

    pHash of 16 x 16 bits (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions").
    """
    import imagehash

    return imagehash.phash(picture, hash_size=HASH_SIZE).hash.ravel()


def read_file(path: Path) -> tuple[bytes, str]:
    """SHA-256 of a file's bytes, and Pillow's name of its colours.

    Raises:
        DataError: it has vanished since it was loaded, or is no image any more.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            mode = opened.mode
    except OSError as error:
        told = printable(f"{path}: {error.strerror or 'it is no image any more'}")
        raise DataError(f"{told}; audit the folder again") from error
    return hashlib.sha256(content).digest(), mode


def take_fingerprints(image_set: ImageSet) -> Fingerprints:
    """Reads every file once more for its bytes and mode, and hashes the decoded images.

    Raises:
        DataError: a file has vanished since it was loaded.
    """
    file_hash = []
    pixel_hash = []
    bits = []
    mirrored = []
    modes = []
    for path, image in zip(image_set.files, image_set.images):
        digest, mode = read_file(path)
        file_hash.append(digest)
        modes.append(mode)
        pixel_hash.append(tensor_hash(image))
        picture = to_pillow(image)
        bits.append(perceptual_hash(picture))
        mirrored.append(perceptual_hash(ImageOps.mirror(picture)))
    return Fingerprints(
        file_hash=tuple(file_hash),
        pixel_hash=tuple(pixel_hash),
        bits=np.stack(bits),
        mirrored=np.stack(mirrored),
        modes=tuple(modes),
    )


def find_exact_copies(prints: Fingerprints) -> list[Copy]:
    """Pairs every image with the first one of the same pixels."""
    first_of: dict[str, int] = {}
    copies = []
    for index, pixels in enumerate(prints.pixel_hash):
        first = first_of.setdefault(pixels, index)
        if first == index:
            continue
        same_bytes = prints.file_hash[first] == prints.file_hash[index]
        how = "same bytes" if same_bytes else "same pixels"
        copies.append(Copy(first=first, second=index, distance=0, how=how))
    return copies


def as_signs(bits: np.ndarray) -> np.ndarray:
    """Bool [N, B] -> float32 [N, B] of 1 and -1, whose products count equal bits."""
    return np.where(bits, 1, -1).astype(np.float32)


def hamming(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """In how many bits each row of a bool [N, B] differs from each of another [M, B] -> [N, M]."""
    agreement = as_signs(bits) @ as_signs(others).T
    distance = (bits.shape[1] - agreement) / 2
    return distance.astype(np.int16)


def find_neighbours(prints: Fingerprints, exact: Sequence[Copy] = ()) -> Neighbours:
    """The `NEAREST` nearest images of each, by the hash of either or of its mirror image.

    What `find_exact_copies` has paired with an earlier image is left out.
    """
    count = len(prints.bits)
    width = min(NEAREST, count)
    known = [copy.second for copy in exact]
    index = np.setdiff1d(np.arange(count), known)
    nearest = np.full((count, width), -1)
    distances = np.full((count, width), HASH_BITS)
    is_mirrored = np.zeros((count, width), bool)
    kept = min(width, len(index) - 1)
    for start in range(0, len(index), BLOCK):
        rows = index[start : start + BLOCK]
        plain = hamming(prints.bits[rows], prints.bits[index])
        mirrored = hamming(prints.bits[rows], prints.mirrored[index])
        distance = np.minimum(plain, mirrored)
        distance[index == rows[:, None]] = HASH_BITS + 1  # itself comes last
        order = distance.argsort(axis=1, kind="stable")[:, :kept]
        nearest[rows, :kept] = index[order]
        distances[rows, :kept] = np.take_along_axis(distance, order, axis=1)
        flipped = np.take_along_axis(mirrored < plain, order, axis=1)
        is_mirrored[rows, :kept] = flipped
    return Neighbours(index=nearest, distance=distances, mirrored=is_mirrored)


def find_near_pairs(neighbours: Neighbours) -> list[Copy]:
    """Pairs of neighbours whose hashes differ in at most `CANDIDATE_BITS` bits, each once."""
    near = (neighbours.index >= 0) & (neighbours.distance <= CANDIDATE_BITS)
    found: dict[tuple[int, int], Copy] = {}
    for row, column in np.argwhere(near).tolist():
        other = int(neighbours.index[row, column])
        mirrored = bool(neighbours.mirrored[row, column])
        pair = (min(row, other), max(row, other))
        found[pair] = Copy(
            first=pair[0],
            second=pair[1],
            distance=int(neighbours.distance[row, column]),
            how="similar when mirrored" if mirrored else "similar",
            mirrored=mirrored,
        )
    return [found[pair] for pair in sorted(found)]


def group_copies(copies: Sequence[Copy], count: int) -> np.ndarray:
    """Numbers the groups that copies, and copies of copies, form among `count` images.

    -> int [count]; most images are alone.
    """
    first = [copy.first for copy in copies]
    second = [copy.second for copy in copies]
    weights = np.ones(len(copies))
    links = coo_array((weights, (first, second)), shape=(count, count))
    _, groups = connected_components(links, directed=False)
    return groups

"""Copies of an image: the same bytes or pixels, or the picture re-encoded, resized, mirrored."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..data import ImageSet, class_folders, printable_path
from ..pretrained import tensor_hash

HASH_SIZE = 16
HASH_BITS = HASH_SIZE**2
# Bits of 256 up to which two images count as near duplicates. Every manga face (455) and every ant
# and bee (397) was altered and compared with all: JPEG at quality 30, half the size at quality 50,
# mirrored, 20 % brighter, 2 % cropped away: all found, none with a wrong partner; 5 % cropped away:
# 402 of 455 and 396 of 397; 3 degrees turned: 452 and 329; 10 % cropped away: 0 and 43. Different
# images are at least 80 and 90 bits apart there, 66 among 140 drawn faces. dHash of 256 bits is as
# good on photographs, but brings drawn insects of different classes within 24 bits, where slight
# crops are; the average hash (17 bits between different manga faces) and wHash of 64 bits (4) are
# worse.
NEAR_BITS = 60
BLOCK = 1000  # rows compared at a time: N x N distances of 20,000 images would take 3 GB


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
    distance: int  # bits of 256 in which their perceptual hashes differ
    how: str  # "same bytes", "same pixels", "similar", "similar when mirrored"

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts copies: the closest first."""
        return self.distance, self.first, self.second


def to_pillow(image: torch.Tensor) -> Image.Image:
    """A uint8 image [3, H, W] as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def files_by_name(folder: Path) -> dict[str, Path]:
    """Every file in the class folders -> {its name in an ImageSet's `paths`: Path}."""
    files = {}
    for children in class_folders(folder).values():
        for path in [path for child in children for path in child.iterdir()]:
            name = printable_path(path, folder)
            files[name] = path
    return files


def perceptual_hash(picture: Image.Image) -> np.ndarray:
    """The perceptual hash of a picture -> bool [256].

    pHash of 16 x 16 bits (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions").
    """
    import imagehash

    return imagehash.phash(picture, hash_size=HASH_SIZE).hash.ravel()


def take_fingerprints(image_set: ImageSet, folder: Path) -> Fingerprints:
    """Reads every file once more for its bytes and mode, and hashes the decoded images."""
    files = files_by_name(folder)
    file_hash = []
    pixel_hash = []
    bits = []
    mirrored = []
    modes = []
    for name, image in zip(image_set.paths, image_set.images):
        path = files[name]
        with Image.open(path) as opened:
            modes.append(opened.mode)
        content = hashlib.sha256(path.read_bytes())
        file_hash.append(content.digest())
        pixel_hash.append(tensor_hash(image))
        picture = to_pillow(image)
        bits.append(perceptual_hash(picture))
        mirror_image = ImageOps.mirror(picture)
        mirrored.append(perceptual_hash(mirror_image))
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
    return distance.astype(int)


def near_copies_of(rows: np.ndarray, index: np.ndarray, prints: Fingerprints) -> Iterator[Copy]:
    """The near copies of the images `rows` among the images of `index` that come after them."""
    bits = prints.bits[rows]
    plain = hamming(bits, prints.bits[index])
    mirrored = hamming(bits, prints.mirrored[index])
    distance = np.minimum(plain, mirrored)
    later = index > rows[:, None]
    near = later & (distance <= NEAR_BITS)
    for place in np.argwhere(near):
        row, column = place
        upright = plain[row, column] <= mirrored[row, column]
        yield Copy(
            first=int(rows[row]),
            second=int(index[column]),
            distance=int(distance[row, column]),
            how="similar" if upright else "similar when mirrored",
        )


def find_near_copies(prints: Fingerprints, exact: Sequence[Copy] = ()) -> list[Copy]:
    """Pairs of images whose hashes differ in at most `NEAR_BITS` bits, the closest first.

    The hash of one may also be near that of the other's mirror image. What `find_exact_copies` has
    paired with an earlier image is left out.
    """
    everything = np.arange(len(prints.bits))
    known = [copy.second for copy in exact]
    index = np.setdiff1d(everything, known)
    copies: list[Copy] = []
    for start in range(0, len(index), BLOCK):
        rows = index[start : start + BLOCK]
        copies.extend(near_copies_of(rows, index, prints))
    return sorted(copies, key=lambda copy: copy.order)


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

"""Copies of an image in a folder: the same bytes, the same pixels, or the same picture re-encoded, resized, cropped, mirrored."""

import hashlib
from collections import namedtuple

import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .backbones import tensor_hash
from .data import class_folders

# What tells N images apart. file_hash, pixel_hash: SHA-256 each; bits, mirrored: bool [N, 256], the perceptual hash of the
# image and of its mirror image; mode: Pillow's name of the file's colours ("RGB", "L", "CMYK").
Fingerprints = namedtuple("Fingerprints", "file_hash pixel_hash bits mirrored mode")

# Two images i < j (indices); distance: bits of 256 in which their hashes differ; how: "same bytes", "same pixels", "similar",
# "similar when mirrored".
Copy = namedtuple("Copy", "first second distance how")

HASH_SIZE = 16
# Bits of 256 up to which two images count as near duplicates. Every manga face (455) and every ant and bee (397) was altered
# and compared with all: JPEG at quality 30, half the size at quality 50, mirrored, 20 % brighter, 2 % cropped away: all found,
# none with a wrong partner; 5 % cropped away: 402 of 455 and 396 of 397; 3 degrees turned: 452 and 329; 10 % cropped away:
# 0 and 43. Different images are at least 80 and 90 bits apart there, 66 among 140 drawn faces. dHash of 256 bits is as good on
# photographs, but brings drawn insects of different classes within 24 bits, where slight crops are; the average hash (17 bits
# between different manga faces) and wHash of 64 bits (4) are worse.
NEAR_BITS = 60


def to_pillow(image):
    """A uint8 image [3, H, W] as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def files_by_name(folder):
    """Every file in the class folders -> {its name in an ImageSet's `paths`: Path}."""
    files = (path for _, child in class_folders(folder) for path in child.iterdir())
    return {
        path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode(): path
        for path in files
    }


def take_fingerprints(image_set, folder):
    """Reads every file of an ImageSet once more for its bytes and mode, and hashes the decoded images -> Fingerprints.

    The hash is pHash of 16 x 16 bits (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").
    """
    import imagehash

    files, rows = files_by_name(folder), []
    for path, image in zip(image_set.paths, image_set.images):
        with Image.open(files[path]) as opened:
            mode = opened.mode
        picture = to_pillow(image)
        bits, mirrored = (
            imagehash.phash(p, hash_size=HASH_SIZE).hash.ravel()
            for p in (picture, ImageOps.mirror(picture))
        )
        rows.append(
            (
                hashlib.sha256(files[path].read_bytes()).digest(),
                tensor_hash(image),
                bits,
                mirrored,
                mode,
            )
        )
    file_hash, pixel_hash, bits, mirrored, mode = zip(*rows)
    return Fingerprints(file_hash, pixel_hash, np.stack(bits), np.stack(mirrored), mode)


def find_exact_copies(prints):
    """Pairs every image with the first one of the same pixels -> list of Copy."""
    first_of, copies = {}, []
    for index, (pixels, content) in enumerate(zip(prints.pixel_hash, prints.file_hash)):
        first = first_of.setdefault(pixels, index)
        if first != index:
            copies.append(
                Copy(
                    first,
                    index,
                    0,
                    "same bytes" if content == prints.file_hash[first] else "same pixels",
                )
            )
    return copies


def hamming(bits, others):
    """In how many bits each row of one bool [N, B] differs from each of another [M, B] -> int [N, M]."""
    signs, other_signs = (np.where(side, 1, -1).astype(np.float32) for side in (bits, others))
    return ((bits.shape[1] - signs @ other_signs.T) / 2).astype(int)


def find_near_copies(prints, exact=(), block=1000):
    """Pairs of images whose hashes, or the hash of one and of the other's mirror image, differ in at most `NEAR_BITS` bits
    -> list of Copy, the closest first. What `find_exact_copies` has paired with an earlier image is left out.
    """
    index = np.setdiff1d(np.arange(len(prints.bits)), [copy.second for copy in exact])
    copies = []
    for start in range(
        0, len(index), block
    ):  # a block of rows at a time: N x N distances of 20,000 images would take 3 GB
        rows = index[start : start + block]
        plain, mirrored = (
            hamming(prints.bits[rows], side[index]) for side in (prints.bits, prints.mirrored)
        )
        distance = np.minimum(plain, mirrored)
        for row, column in zip(*np.nonzero((distance <= NEAR_BITS) & (index > rows[:, None]))):
            how = (
                "similar"
                if plain[row, column] <= mirrored[row, column]
                else "similar when mirrored"
            )
            copies.append(Copy(int(rows[row]), int(index[column]), int(distance[row, column]), how))
    return sorted(copies, key=lambda copy: (copy.distance, copy.first, copy.second))


def group_copies(copies, count):
    """Numbers the groups that copies, and copies of copies, form among `count` images -> int [count]; most are alone."""
    first, second = [copy.first for copy in copies], [copy.second for copy in copies]
    links = coo_array((np.ones(len(copies)), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]

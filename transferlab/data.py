"""From a folder to an ImageSet: find it, decode every image once, check it, split it."""

import hashlib
import io
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.model_selection import train_test_split

from .errors import UserError

SPLITS = ("train", "val")
# "imageNotFound.gif" in the tutorial's train/ants, by its bytes, wherever it has been copied to.
PLACEHOLDER_SHA256 = "6b4966252973c581b521f804453c6a0649ea6a2ce7e3e5c7deeb7d80623de231"
# So much of a folder stays decoded: the study's faces take 0.1 GB, its ants and bees 0.2 GB.
DECODED_BYTES = 500_000_000

# The decoded images of one folder. images: `DecodedImages`, N of uint8 [3, H, W]; labels: int64 [N]; paths: N strings relative to
# the folder; classes: C sorted names; split: "train" or "val" for each image, None where the folder came unsplit;
# rejected: (path, reason) of every file left out; digest: SHA-256 of classes, paths and file bytes; name: the folder's;
# synthetic: whether the folder carries a file SYNTHETIC (drawn stand-ins).
ImageSet = namedtuple(
    "ImageSet", "images labels paths classes split rejected digest name synthetic"
)


def sub_folders(folder):
    """Lists the folders inside `folder`, sorted, without hidden ones and archive leftovers such as __MACOSX."""
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith((".", "__"))
    ]


def folder_layout(folder):
    """Says how `folder` holds images: "split" (train/ and val/ with class folders), "classes", or None.

    A sub-folder that is an image folder itself is no class, though a README may lie in it.
    """
    children = sub_folders(folder)
    if set(SPLITS) <= {child.name for child in children}:
        return "split"
    files = (
        entry
        for child in children
        if not folder_layout(child)
        for entry in child.iterdir()
        if entry.name[0] != "."
    )
    return "classes" if any(entry.is_file() for entry in files) else None


def find_image_folder(root, prefer=""):
    """Finds the image folder in `root`: itself, or one or two folders deeper, as archives are packed.

    A folder named `prefer` comes first; folders that end in "_extra" are never chosen by search.

    Raises:
        UserError: `root` is missing or no folder, holds no image folder, or several of which none is named `prefer`.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"there is no image folder {root}: give a folder with one sub-folder for each class"
        )
    levels = [[root]]
    for _ in range(2):
        levels.append(
            [
                c
                for folder in levels[-1]
                for c in sub_folders(folder)
                if not c.name.endswith("_extra")
            ]
        )
    levels = [[folder for folder in level if folder_layout(folder)] for level in levels]
    named = [folder for level in levels for folder in level if folder.name == prefer]
    found = named[:1] or next((level for level in levels if level), [])
    if len(found) != 1:
        expected = (
            f"expected {root.name}/CLASS/* or {root.name}/train/CLASS/* and {root.name}/val/CLASS/*"
        )
        several = f"several image folders, name one of {[str(folder.relative_to(root)) for folder in found]}"
        raise UserError(f"{root} holds {several if found else f'no images: {expected}'}")
    return found[0]


def to_rgb(image):
    """Turns a Pillow image of any mode into 8-bit RGB: 16-bit scaled, transparency laid on white."""
    pixels = np.asarray(image) if image.mode[0] in "IF" else np.zeros(1)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels, whose range is unknown: save as 8 or 16 bit")
    if image.mode.startswith("I;16") or pixels.max() > 255:
        return Image.fromarray((pixels.astype(np.float32) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )  # 65535 -> 255
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def decode_image(data):
    """Decodes an image file's bytes to uint8 RGB [3, H, W]: EXIF orientation honoured; of an animation the first frame.

    Raises:
        ValueError: the bytes are no image, a damaged one, or a placeholder; the message is the reason.
    """
    if hashlib.sha256(data).hexdigest() == PLACEHOLDER_SHA256:
        raise ValueError('placeholder ("image not found"), not a picture of the class')
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(to_rgb(ImageOps.exif_transpose(image)))
    except (
        Exception
    ) as error:  # Pillow's decoders raise many kinds on damaged files; each becomes a listed reason
        unknown = "not an image" if data else "empty file"
        raise ValueError(
            unknown if isinstance(error, UnidentifiedImageError) else f"cannot be decoded: {error}"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_image(path):
    """Reads one file: (uint8 RGB [3, H, W], SHA-256 digest of its bytes).

    Raises:
        ValueError, OSError: the file is left out; the message is the reason.
    """
    if re.fullmatch(r"image[-_ ]?not[-_ ]?found", path.stem, re.IGNORECASE):
        raise ValueError('placeholder by its name ("image not found")')
    data = path.read_bytes()
    return decode_image(data), hashlib.sha256(data).digest()


def class_folders(folder):
    """Lists (split or None, class folder) of an image folder, sorted by split and class.

    Raises:
        UserError: train/ and val/ hold different classes, or there are fewer than two.
    """
    parts = SPLITS if folder_layout(folder) == "split" else (None,)
    listed = [
        (part, child) for part in parts for child in sub_folders(folder / part if part else folder)
    ]
    names = [{child.name for part, child in listed if part == wanted} for wanted in parts]
    if not all(name.isprintable() for name in names[0]):
        raise UserError(
            f"{folder}: class folders with names that are no text: {ascii(sorted(names[0]))}; rename them"
        )
    if names[0] != names[-1]:
        only = f"only in train: {sorted(names[0] - names[1])}; only in val: {sorted(names[1] - names[0])}"
        raise UserError(f"{folder}: train/ and val/ hold different classes ({only})")
    if len(names[0]) < 2:
        raise UserError(
            f"{folder}: classification needs two classes or more, each in a folder of its own; found: {sorted(names[0])}"
        )
    return listed


class DecodedImages:
    """A folder's images, uint8 [3, H, W] each: the first `DECODED_BYTES` of them stay decoded, later ones are read when asked for."""

    def __init__(self):
        self.items, self.room = [], DECODED_BYTES  # items: images, or (path, digest of its bytes)

    def keep(self, image, path, file_hash):
        self.room -= image.nbytes
        self.items.append(image if self.room >= 0 else (path, file_hash))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(item := self.items[index], torch.Tensor):
            return item
        image, file_hash = read_image(item[0])
        if file_hash != item[1]:
            raise UserError(f"{item[0]} has changed since it was loaded: load the images again")
        return image


def load_images(folder, prefer=""):
    """Decodes every image of a folder once -> ImageSet; what was left out is listed with its reason.

    `folder` is searched as `find_image_folder` says. Where the images take more than `DECODED_BYTES`, those beyond are decoded
    anew for each view.

    Raises:
        UserError: no image folder, fewer than two classes, a class (of a split) without an image that can be read.
    """
    folder = find_image_folder(folder, prefer)
    listed = class_folders(folder)
    classes = sorted({child.name for _, child in listed})
    images, kept, rejected, digest = (
        DecodedImages(),
        [],
        [],
        hashlib.sha256("\0".join(classes).encode()),
    )
    for part, class_folder in listed:
        for path in sorted(class_folder.iterdir()):
            relative = (
                path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()
            )  # always printable
            try:
                image, file_hash = read_image(path)
            except (OSError, ValueError) as error:
                rejected.append(
                    (relative, " ".join(str(getattr(error, "strerror", None) or error).split()))
                )
                continue
            images.keep(image, path, file_hash)
            kept.append((classes.index(class_folder.name), relative, part))
            digest.update(f"\0{relative}\0".encode() + file_hash)
        if not kept or (folder / kept[-1][1]).parent != class_folder:
            last = (
                rejected[-1:]
                if rejected and (folder / rejected[-1][0]).parent == class_folder
                else "the folder is empty"
            )
            raise UserError(
                f"class {class_folder.name}: no image can be read in {class_folder} ({last})"
            )
    labels, paths, split = zip(*kept)
    of_files = (
        images,
        torch.tensor(labels),
        paths,
        classes,
        split if split[0] else None,
        rejected,
        digest.hexdigest(),
    )
    return ImageSet(*of_files, folder.resolve().name, (folder / "SYNTHETIC").is_file())


def split_indices(labels, *, val_size, seed, classes=None):
    """Splits stratified and seeded: (train, val) int64 index tensors; `int(val_size * N)` images go to validation.

    The study's 455 faces with `val_size=0.35` give its 296/159.

    Raises:
        UserError: a class is too small to have an image in both parts; a seed that scikit-learn does not take.
    """
    counts, n_val = torch.bincount(labels).tolist(), int(val_size * len(labels))
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: give a whole number from 0 to {2**32 - 1}")
    try:
        parts = train_test_split(
            range(len(labels)), test_size=n_val, stratify=labels, random_state=seed
        )
    except ValueError:  # scikit-learn's word for too small
        parts = [[], []]
    train, val = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    if min(len(labels[part].unique()) for part in (train, val)) < len(counts):
        smallest = counts.index(min(counts))
        advice = f"class {classes[smallest] if classes else smallest} has {counts[smallest]}, and every class needs images in both"
        raise UserError(
            f"cannot split {len(labels)} images, {n_val} of them to validation: {advice}: add images"
        )
    return train, val


def split_images(image_set, *, val_size, seed):
    """Splits an ImageSet as it was shipped (train/, val/), else by `split_indices`: (train, val) int64 index tensors."""
    if image_set.split is None:
        return split_indices(
            image_set.labels, val_size=val_size, seed=seed, classes=image_set.classes
        )
    return tuple(
        torch.tensor([i for i, part in enumerate(image_set.split) if part == wanted])
        for wanted in SPLITS
    )

"""From a folder to an ImageSet: find it, decode every image once, check it, split it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch import Tensor

from .errors import DataError, UserError

SPLITS = ("train", "val")
PLACEHOLDER = "6b4966252973c581b521f804453c6a0649ea6a2ce7e3e5c7deeb7d80623de231"  # "not found"
MAX_SIDE = 2600  # longer pictures shrink as they are read; the study's longest has 2,592 pixels


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that was left out."""

    path: str  # relative to the folder, always printable
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The decoded images of one folder, N of them in C classes."""

    images: Sequence[Tensor]  # N of uint8 [3, H, W]
    labels: Tensor  # int64 [N]
    paths: tuple[str, ...]  # N, relative to the folder
    classes: tuple[str, ...]  # C, sorted
    split: tuple[str, ...] | None  # "train" or "val" for each image; None where it came unsplit
    rejected: tuple[Rejected, ...]
    digest: str  # SHA-256 (hex) of classes, paths and file bytes
    name: str  # the folder's
    synthetic: bool  # whether the folder carries a file SYNTHETIC (drawn stand-ins)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One split of a set of images, as int64 indices."""

    train: Tensor
    val: Tensor  # chooses the epoch


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutFold(Fold):
    """A split of cross-validation, whose test images decide nothing."""

    test: Tensor
    repeat: int = 0
    number: int = 0  # within its repeat


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """Repeated cross-validation: the same folds for every model."""

    folds: tuple[HeldOutFold, ...]  # repeat by repeat
    k: int  # folds in a repeat
    repeats: int

    def __len__(self) -> int:
        return len(self.folds)

    def __iter__(self) -> Iterator[HeldOutFold]:
        return iter(self.folds)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) over the images of every part of every fold."""
        digest = hashlib.sha256()
        for fold in self.folds:
            for part in (fold.train, fold.val, fold.test):
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()


# ---- find ------------------------------------------------------------------------------------


def sub_folders(folder: Path) -> list[Path]:
    """The folders inside, sorted, without hidden ones and archive leftovers such as __MACOSX."""
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    return [child for child in children if not child.name.startswith((".", "__"))]


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """{"train": class folders, "val": ...}, or {"": ...} where images came unsplit, or {}."""
    children = {child.name: child for child in sub_folders(folder)}
    if children.keys() >= set(SPLITS):
        return {part: sub_folders(children[part]) for part in SPLITS}
    filled = [child for child in children.values() if any(map(Path.is_file, child.glob("[!.]*")))]
    has_class = any(not class_folders(child) for child in filled)  # not a dataset with its README
    return {"": [*children.values()]} if has_class else {}


def find_image_folder(root: str | Path) -> Path:
    """The image folder in `root`: itself, or one or two folders deeper, as archives are packed.

    Raises:
        DataError: `root` is missing or no folder, holds no image folder, or several.
    """
    level = [Path(root).expanduser()] if Path(root).expanduser().is_dir() else []
    for _ in range(3):
        found = [folder for folder in level if class_folders(folder)]
        if len(found) > 1:
            raise DataError(f"{root} holds several image folders: {[*map(str, found)]}; name one")
        if found:
            return found[0]
        level = [child for folder in level for child in sub_folders(folder)]
    raise DataError(f"{root} holds no images: expected CLASS/* or train/CLASS/* and val/CLASS/*")


def find_dataset(root: str | Path, name: str = "") -> Path:
    """The image folder in `root`; of several the one of that name, though it may lie deeper.

    Searched as `find_image_folder` does; folders that end in "_extra" are never chosen by search.

    Raises:
        DataError: as `find_image_folder`.
    """
    place = Path(root).expanduser()
    level = [place] if place.is_dir() else []
    found = []  # image folders, level by level
    for _ in range(3):
        found.append([folder for folder in level if class_folders(folder)])
        children = [child for folder in level for child in sub_folders(folder)]
        level = [child for child in children if not child.name.endswith("_extra")]
    named = [[folder for folder in folders if folder.name == name] for folders in found]
    nearest = next((folders for folders in named + found if folders), [])
    if not nearest:
        raise DataError(f"{root} holds no images in folders CLASS/* or train/CLASS/*, val/CLASS/*")
    if len(nearest) > 1:
        raise DataError(f"{root} holds several image folders: {[*map(str, nearest)]}; name one")
    return nearest[0]


# ---- decode ----------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode as 8-bit RGB: 16 bits scaled, transparency on white."""
    if image.mode[0] in "IF":
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pixels, whose range is unknown: save as 8 or 16 bit")
        deep = image.mode.startswith("I;16") or pixels.max() > 255
        image = Image.fromarray((pixels / (257 if deep else 1)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(path: Path) -> tuple[Tensor, bytes]:
    """One file -> (uint8 RGB [3, H, W], SHA-256 of its bytes): upright, its first frame.

    Raises:
        UserError: it cannot be read; the message is the reason.
    """
    try:
        digest = hashlib.sha256(path.read_bytes())
        if digest.hexdigest() == PLACEHOLDER or re.match("image.?not.?found$", path.stem, re.I):
            raise ValueError('placeholder ("image not found"), not a picture of the class')
        with Image.open(path) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's decoders raise many kinds; each becomes a listed reason
        reason = getattr(error, "strerror", None) or str(error).replace(str(path), "it")
        raise UserError(" ".join(reason.split())) from error
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), digest.digest()


def printable_path(path: Path, folder: Path) -> str:
    """A path relative to `folder`, with what no text holds written as escapes."""
    return path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()


def load_images(
    folder: str | Path, keep: Callable[[Path, Tensor, bytes], Any] | None = None
) -> ImageSet:
    """Decodes every image of a folder once; what is left out is listed with its reason.

    `keep(path, image, digest)` makes what stays of an image; by default the image.

    Raises:
        DataError: as `find_image_folder`; fewer than two classes, or others in train/ than in
            val/; a class (of a split) without an image that can be read.
    """
    folder = find_image_folder(folder)
    listed = class_folders(folder)
    names = {part: [child.name for child in children] for part, children in listed.items()}
    classes = min(names.values())
    if len(classes) < 2 or max(names.values()) != classes or not "".join(classes).isprintable():
        raise DataError(f"{folder}: needs two or more classes, printable, same in both: {names}")
    images: list[Any] = []
    found: list[tuple[str, int, str]] = []
    rejected: list[Rejected] = []
    digest = hashlib.sha256("\0".join(classes).encode())
    for part, child in [(part, child) for part, children in listed.items() for child in children]:
        before = len(found), len(rejected)
        for path in sorted(child.iterdir()):
            name = printable_path(path, folder)
            try:
                image, file_digest = read_image(path)
            except UserError as error:
                rejected.append(Rejected(path=name, reason=str(error)))
                continue
            images.append(keep(path, image, file_digest) if keep else image)
            found.append((name, classes.index(child.name), part))
            digest.update(f"\0{name}\0".encode() + file_digest)
        if len(found) == before[0]:
            raise DataError(f"{child}: no image can be read {rejected[before[1] :][:1]}: add some")
    paths, labels, split = zip(*found)
    told: dict[str, Any] = {"classes": tuple(classes), "rejected": tuple(rejected)}
    told |= {"paths": paths, "split": split if split[0] else None, "digest": digest.hexdigest()}
    told |= {"name": folder.resolve().name, "synthetic": (folder / "SYNTHETIC").is_file()}
    return ImageSet(images=images, labels=torch.tensor(labels), **told)


# ---- split -----------------------------------------------------------------------------------


def split_indices(labels: Tensor, *, val_size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits stratified and seeded: (train, val) indices; `int(val_size * N)` images go to val.

    The study's 455 faces with `val_size=0.35` give its 296/159.

    Raises:
        DataError: a class of one image; a seed that scikit-learn does not take.
    """
    options = {"test_size": int(val_size * len(labels)), "random_state": seed}
    try:
        parts = train_test_split(range(len(labels)), stratify=labels, **options)
    except ValueError as error:
        raise DataError(f"cannot split {len(labels)} images ({options}): {error}") from None
    train, val = (torch.tensor(sorted(part)) for part in parts)
    return train, val


def split_images(image_set: ImageSet, *, val_size: float = 0.35, seed: int) -> Fold:
    """Splits an ImageSet as it was shipped (train/, val/), else by `split_indices`."""
    if image_set.split is None:
        train, val = split_indices(image_set.labels, val_size=val_size, seed=seed)
        return Fold(train=train, val=val)
    in_val = torch.tensor([part == "val" for part in image_set.split])
    return Fold(train=torch.where(~in_val)[0], val=torch.where(in_val)[0])


def check_parts(labels: Tensor, parts: Sequence[Tensor]) -> None:
    """Makes sure that every class has images in every part of a split.

    Raises:
        DataError: it has not.
    """
    classes = len(labels.unique())
    if any(len(labels[part].unique()) < classes for part in parts):
        sizes = " and ".join(str(len(part)) for part in parts)
        raise DataError(f"every class needs images in both {sizes} images: add some of the rarest")


def everything_fold(image_set: ImageSet) -> Fold:
    """A fold that trains and validates on all images: what other folds are cut from."""
    everything = torch.arange(len(image_set.labels))
    return Fold(train=everything, val=everything)

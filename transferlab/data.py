"""From a folder to an ImageSet: find it, decode every image once, check it, split it."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that was left out."""

    path: str  # relative to the folder, always printable
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image that is decoded anew whenever it is asked for."""

    path: Path
    digest: bytes  # SHA-256 of the file when it was loaded


class DecodedImages:
    """A folder's images, uint8 [3, H, W] each: the first `room` bytes of them stay decoded, later
    ones are read when asked for."""

    def __init__(self, room: int = DECODED_BYTES) -> None:
        self._room = room
        self._items: list[torch.Tensor | ImageFile] = []

    def add(self, image: torch.Tensor, file: ImageFile) -> None:
        """Appends an image, decoded where there is room."""
        self._room -= image.nbytes
        self._items.append(image if self._room >= 0 else file)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self._items[index]
        if isinstance(item, torch.Tensor):
            return item
        image, digest = read_image(item.path)
        if digest != item.digest:
            raise UserError(f"{item.path} has changed since it was loaded: load the images again")
        return image


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The decoded images of one folder, N of them in C classes."""

    images: DecodedImages  # N of uint8 [3, H, W]
    labels: torch.Tensor  # int64 [N]
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

    train: torch.Tensor
    val: torch.Tensor  # chooses the epoch
    test: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    repeat: int = 0
    number: int = 0  # within its repeat


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """Repeated cross-validation: the same folds for every model."""

    folds: tuple[Fold, ...]  # repeat by repeat
    k: int  # folds in a repeat
    repeats: int

    def __len__(self) -> int:
        return len(self.folds)

    def __iter__(self) -> Iterator[Fold]:
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
    """Lists the folders inside `folder`, sorted, without hidden ones and archive leftovers such as
    __MACOSX."""
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    return [child for child in children if not child.name.startswith((".", "__"))]


def holds_files(folder: Path) -> bool:
    """Whether a file lies in `folder` that is not hidden."""
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return any(entry.is_file() for entry in visible)


def folder_layout(folder: Path) -> str | None:
    """Says how `folder` holds images: "split" (train/ and val/ with class folders), "classes", or
    None.

    A sub-folder that is an image folder itself is no class, though a README may lie in it.
    """
    children = sub_folders(folder)
    names = {child.name for child in children}
    if names.issuperset(SPLITS):
        return "split"
    candidates = [child for child in children if not folder_layout(child)]
    return "classes" if any(holds_files(child) for child in candidates) else None


def image_folders_by_depth(root: Path) -> list[list[Path]]:
    """The image folders that are `root`, lie in it, or one folder deeper -> three lists."""
    folders = [root]
    levels = []
    for _ in range(3):
        levels.append([folder for folder in folders if folder_layout(folder)])
        children = [child for folder in folders for child in sub_folders(folder)]
        folders = [child for child in children if not child.name.endswith("_extra")]
    return levels


def find_image_folder(root: str | Path, prefer: str = "") -> Path:
    """Finds the image folder in `root`: itself, or one or two folders deeper, as archives are
    packed.

    A folder named `prefer` comes first; folders that end in "_extra" are never chosen by search.

    Raises:
        UserError: `root` is missing or no folder, holds no image folder, or several of which none
            is named `prefer`.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        advice = "give a folder with one sub-folder for each class"
        raise UserError(f"there is no image folder {root}: {advice}")
    levels = image_folders_by_depth(root)
    for folder in [folder for level in levels for folder in level]:
        if folder.name == prefer:
            return folder
    found = next((level for level in levels if level), [])
    if not found:
        name = root.name
        expected = f"expected {name}/CLASS/* or {name}/train/CLASS/* and {name}/val/CLASS/*"
        raise UserError(f"{root} holds no images: {expected}")
    if len(found) > 1:
        names = [str(folder.relative_to(root)) for folder in found]
        raise UserError(f"{root} holds several image folders, name one of {names}")
    return found[0]


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """A folder of one class's images."""

    path: Path
    split: str | None  # "train" or "val"; None where the images are not split


def check_class_names(folder: Path, names: set[str]) -> None:
    """Makes sure that folders can be classes.

    Raises:
        UserError: there are fewer than two, or a name is no text.
    """
    if not all(name.isprintable() for name in names):
        listed = ascii(sorted(names))
        advice = "class folders with names that are no text"
        raise UserError(f"{folder}: {advice}: {listed}; rename them")
    if len(names) < 2:
        advice = "classification needs two classes or more, each in a folder of its own"
        raise UserError(f"{folder}: {advice}; found: {sorted(names)}")


def class_folders(folder: Path) -> list[ClassFolder]:
    """The class folders of an image folder, sorted by split and class.

    Raises:
        UserError: train/ and val/ hold different classes, or names are not fit for classes.
    """
    if folder_layout(folder) != "split":
        children = sub_folders(folder)
        check_class_names(folder, {child.name for child in children})
        return [ClassFolder(path=child, split=None) for child in children]
    by_split = {part: sub_folders(folder / part) for part in SPLITS}
    train, val = ({child.name for child in found} for found in by_split.values())
    if train != val:
        only = f"only in train: {sorted(train - val)}; only in val: {sorted(val - train)}"
        raise UserError(f"{folder}: train/ and val/ hold different classes ({only})")
    check_class_names(folder, train)
    listed = []
    for part, found in by_split.items():
        listed += [ClassFolder(path=child, split=part) for child in found]
    return listed


# ---- decode ----------------------------------------------------------------------------------


def has_transparency(image: Image.Image) -> bool:
    """Whether a Pillow image is transparent in places."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a Pillow image of any mode into 8-bit RGB: 16-bit scaled, transparency on white."""
    deep = image.mode.startswith(("I", "F"))
    pixels = np.asarray(image) if deep else np.zeros(1)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels, whose range is unknown: save as 8 or 16 bit")
    if image.mode.startswith("I;16") or pixels.max() > 255:
        scaled = (pixels.astype(np.float32) / 257).round()  # 65535 -> 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if has_transparency(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode_image(data: bytes) -> torch.Tensor:
    """Decodes an image file's bytes to uint8 RGB [3, H, W]: EXIF orientation honoured; of an
    animation the first frame.

    Raises:
        ValueError: the bytes are no image, a damaged one, or a placeholder; the message is the
            reason.
    """
    if hashlib.sha256(data).hexdigest() == PLACEHOLDER_SHA256:
        raise ValueError('placeholder ("image not found"), not a picture of the class')
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            pixels = np.array(to_rgb(upright))
    except UnidentifiedImageError as error:
        raise ValueError("not an image" if data else "empty file") from error
    except Exception as error:  # Pillow's decoders raise many kinds; each becomes a listed reason
        raise ValueError(f"cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_image(path: Path) -> tuple[torch.Tensor, bytes]:
    """Reads one file: (uint8 RGB [3, H, W], SHA-256 digest of its bytes).

    Raises:
        ValueError, OSError: the file is left out; the message is the reason.
    """
    if re.fullmatch(r"image[-_ ]?not[-_ ]?found", path.stem, re.IGNORECASE):
        raise ValueError('placeholder by its name ("image not found")')
    data = path.read_bytes()
    return decode_image(data), hashlib.sha256(data).digest()


def printable_path(path: Path, folder: Path) -> str:
    """A path relative to `folder`, with what no text holds written as escapes."""
    relative = path.relative_to(folder).as_posix()
    return relative.encode(errors="backslashreplace").decode()


def describe_failure(error: Exception) -> str:
    """Why a file was left out, on one line."""
    reason = getattr(error, "strerror", None) or error
    return " ".join(str(reason).split())


class ImageLoader:
    """Collects the images of one folder, class by class."""

    def __init__(self, folder: Path, classes: Sequence[str], decoded_bytes: int) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        self.images = DecodedImages(decoded_bytes)
        self.labels: list[int] = []
        self.paths: list[str] = []
        self.split: list[str] = []
        self.rejected: list[Rejected] = []
        self.digest = hashlib.sha256("\0".join(classes).encode())

    def add_file(self, path: Path, one: ClassFolder) -> None:
        """Decodes one file, or lists why it was left out."""
        relative = printable_path(path, self.folder)
        try:
            image, file_hash = read_image(path)
        except (OSError, ValueError) as error:
            self.rejected.append(Rejected(path=relative, reason=describe_failure(error)))
            return
        self.images.add(image, ImageFile(path=path, digest=file_hash))
        self.labels.append(self.classes.index(one.path.name))
        self.paths.append(relative)
        if one.split:
            self.split.append(one.split)
        self.digest.update(f"\0{relative}\0".encode())
        self.digest.update(file_hash)

    def add_class(self, one: ClassFolder) -> None:
        """Decodes the files of a class folder.

        Raises:
            UserError: none of them can be read.
        """
        loaded = len(self.labels)
        left_out = len(self.rejected)
        for path in sorted(one.path.iterdir()):
            self.add_file(path, one)
        if len(self.labels) == loaded:
            refused = self.rejected[left_out:]
            last = f"{refused[-1].path}: {refused[-1].reason}" if refused else "the folder is empty"
            name = one.path.name
            raise UserError(f"class {name}: no image can be read in {one.path} ({last})")

    def image_set(self) -> ImageSet:
        """What has been collected."""
        return ImageSet(
            images=self.images,
            labels=torch.tensor(self.labels),
            paths=tuple(self.paths),
            classes=self.classes,
            split=tuple(self.split) or None,
            rejected=tuple(self.rejected),
            digest=self.digest.hexdigest(),
            name=self.folder.resolve().name,
            synthetic=(self.folder / "SYNTHETIC").is_file(),
        )


def load_images(
    folder: str | Path, prefer: str = "", *, decoded_bytes: int = DECODED_BYTES
) -> ImageSet:
    """Decodes every image of a folder once -> ImageSet; what was left out is listed with its
    reason.

    `folder` is searched as `find_image_folder` says. Where the images take more than
    `decoded_bytes`, those beyond are decoded anew for each view.

    Raises:
        UserError: no image folder, fewer than two classes, a class (of a split) without an image
            that can be read.
    """
    folder = find_image_folder(folder, prefer)
    listed = class_folders(folder)
    classes = sorted({one.path.name for one in listed})
    loader = ImageLoader(folder, classes, decoded_bytes)
    for one in listed:
        loader.add_class(one)
    return loader.image_set()


# ---- split -----------------------------------------------------------------------------------


def split_indices(
    labels: torch.Tensor,
    *,
    val_size: float,
    seed: int,
    classes: Sequence[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits stratified and seeded: (train, val) int64 index tensors; `int(val_size * N)` images
    go to validation.

    The study's 455 faces with `val_size=0.35` give its 296/159.

    Raises:
        UserError: a class is too small to have an image in both parts; a seed that scikit-learn
            does not take.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: give a whole number from 0 to {2**32 - 1}")
    n_val = int(val_size * len(labels))
    everything = range(len(labels))
    try:
        parts = train_test_split(everything, test_size=n_val, stratify=labels, random_state=seed)
    except ValueError:  # scikit-learn's word for too small
        parts = [[], []]
    train, val = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    counts = torch.bincount(labels).tolist()
    seen = [len(labels[part].unique()) for part in (train, val)]
    if min(seen) < len(counts):
        fewest = min(counts)
        smallest = counts.index(fewest)
        name = classes[smallest] if classes else smallest
        advice = f"class {name} has {fewest}, and every class needs images in both: add images"
        wanted = f"{len(labels)} images, {n_val} of them to validation"
        raise UserError(f"cannot split {wanted}: {advice}")
    return train, val


def split_images(image_set: ImageSet, *, val_size: float, seed: int) -> Fold:
    """Splits an ImageSet as it was shipped (train/, val/), else by `split_indices`."""
    if image_set.split is None:
        train, val = split_indices(
            image_set.labels, val_size=val_size, seed=seed, classes=image_set.classes
        )
        return Fold(train=train, val=val)
    by_part: dict[str, list[int]] = {part: [] for part in SPLITS}
    for index, part in enumerate(image_set.split):
        by_part[part].append(index)
    return Fold(train=torch.tensor(by_part["train"]), val=torch.tensor(by_part["val"]))


def everything_fold(image_set: ImageSet) -> Fold:
    """A fold that trains and validates on all images: what other folds are cut from."""
    everything = torch.arange(len(image_set.labels))
    return Fold(train=everything, val=everything)

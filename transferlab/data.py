"""From a folder to an ImageSet: find its layout, decode every image once, split it."""

import hashlib
import importlib
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch import Tensor

from .errors import DataError, UserError, printable

SPLITS = ("train", "val")
PART = (  # of a split, as people call their folders: the group that matches is its name here
    "(?:.*[ _-])?(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev)|"
    "(?P<test>test|testing))(?:[ _-]?(?:set|data|images|split|[0-9]+))?"
)
IGNORED = r"\.|__MACOSX$|thumbs\.db$|desktop\.ini$"  # what is hidden, or left by a system
PICTURE = r".*\.(png|jpe?g|jfif|gif|bmp|tiff?|webp|avif|p[bgnp]m|jp2|tga|mpo|hei[cf]|jxl|svg|dcm)"
MASKS = "(?:.*[ _-])?(?:masks?|labels?|annotations?|segmentations?|ground.?truth|gt)"
PLACEHOLDER = "6b4966252973c581b521f804453c6a0649ea6a2ce7e3e5c7deeb7d80623de231"  # "not found"
MAX_SIDE = 2600  # longer pictures shrink as they are read; the study's longest has 2,592 pixels
MAX_RATIO = 100  # of the sides: a strip is widened to it, else resizing its short side fills memory
MAX_PIXELS = 120_000_000  # as decoded: 0.4 GB
HEIF = "pip install pillow-heif"
REMEDIES = {".heic": HEIF, ".heif": HEIF, ".jxl": "save it as PNG", ".svg": "save it as PNG"}


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that was left out."""

    path: str  # relative to the folder, always printable
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """A folder, and what lies in it that is not hidden."""

    path: Path
    name: str  # composed (NFC) and printable
    files: list[Path]  # directly inside, sorted
    pictures: int  # how many of these are named like pictures
    folders: "list[Tree]"  # those with pictures in them, at any depth
    empty: list[str]  # the names of those without

    @property
    def total(self) -> int:
        """How many pictures it holds, at any depth."""
        return self.pictures + sum(one.total for one in self.folders)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the images of a folder lie."""

    folder: Path
    classes: tuple[str, ...]  # C, sorted
    parts: dict[str, dict[str, list[Path]]]  # "train", "val", "test", or "" -> class -> files
    notes: tuple[str, ...]  # what is not read, or is taken together, a line each


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The decoded images of one folder, N of them in C classes."""

    images: Sequence[Tensor]  # N of uint8 [3, H, W]
    labels: Tensor  # int64 [N]
    paths: tuple[str, ...]  # N, relative to the folder, printable
    files: tuple[Path, ...]  # N, where they lie
    classes: tuple[str, ...]  # C, sorted
    split: tuple[str, ...] | None  # "train", "val" or "test" for each; None where it came unsplit
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]  # what else is not read, taken together or assumed, a line each
    white: dict[str, int]  # what is white in files of 16 bits, as `find_white` gives it
    digest: str  # SHA-256 (hex) of classes, paths and file bytes
    name: str  # the folder's, printable
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


def some(names: Iterable[str]) -> str:
    """Names for a message, at most five."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def read_tree(folder: Path, above: tuple[Path, ...] = ()) -> Tree:
    """Looks through a folder; links that lead back up are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    above += (folder.resolve(),)
    found = [path for path in sorted(folder.iterdir()) if not re.match(IGNORED, path.name, re.I)]
    inner = [path for path in found if path.is_dir()]
    trees = [read_tree(path, above) for path in inner if path.resolve() not in above]
    files = [path for path in found if path not in set(inner)]
    return Tree(
        path=folder,
        name=unicodedata.normalize("NFC", printable(folder.name)),
        files=files,
        pictures=sum(bool(re.fullmatch(PICTURE, path.name, re.I | re.S)) for path in files),
        folders=[tree for tree in trees if tree.total],
        empty=[tree.name for tree in trees if not tree.total],
    )


def split_parts(tree: Tree) -> dict[str, list[Tree]]:
    """The folders in a folder by the part that they are named after, "" for others; {} where they
    are no split: none is for training, or it is one class among others."""
    parts: dict[str, list[Tree]] = {}
    for one in tree.folders:
        named = re.fullmatch(PART, one.name, re.I)
        parts.setdefault((named and named.lastgroup) or "", []).append(one)
    is_sure = len(parts.keys() - {""}) > 1 or len(tree.folders) < 3 or not holds_pictures(tree)
    return parts if "train" in parts and is_sure else {}


def holds_pictures(tree: Tree) -> bool:
    """Whether pictures lie directly in the folders of a folder."""
    return any(one.pictures for one in tree.folders)


def read_below(tree: Tree) -> list[Tree]:
    """The folders in a class that are read with it: all, but for masks beside its pictures."""
    others = [one for one in tree.folders if not re.fullmatch(MASKS, one.name, re.I)]
    return others if others or tree.pictures else tree.folders


def innermost(tree: Tree) -> Tree:
    """Where the content of a folder lies: in itself, or in the only folder that it holds."""
    inner = read_below(tree)
    return tree if tree.pictures or len(inner) != 1 else innermost(inner[0])


def has_classes(tree: Tree) -> bool:
    """Whether the folders in a folder are classes: CLASS/*, or CLASS/images/* in each."""
    deeper = all(innermost(one).pictures for one in tree.folders)
    return len(tree.folders) > 1 and (holds_pictures(tree) or deeper)


def all_read(tree: Tree) -> list[Tree]:
    """A folder and all that are read below it."""
    return [tree, *(deeper for one in read_below(tree) for deeper in all_read(one))]


def find_classes(tree: Tree, notes: list[str]) -> dict[str, list[Path]]:
    """{class: its files}, sub-folders included, of a folder of classes; adds to `notes`.

    Raises:
        DataError: it is not sure whether a folder is a class.
    """
    names = [one.name for one in tree.folders]
    masks = [name for name in names if re.fullmatch(MASKS, name, re.I)]
    if masks and any(re.fullmatch("images?|imgs?|photos?|pictures?", one, re.I) for one in names):
        raise DataError(f"{tree.path} holds {some(names)}: pictures and masks, but no classes")
    classes: dict[str, list[Path]] = {name: [] for name in sorted(names)}
    deeper = aside = 0
    for one in tree.folders:
        inner = all_read(one)[1:]
        inside = [each.name for each in inner]
        if not innermost(one).pictures or {*inside} & {*names} - {one.name}:
            advice = "if it is a class, move its pictures directly into it; else move it away"
            raise DataError(f"{one.path} holds the folders {some(inside)}: {advice}")
        classes[one.name] += [path for each in (one, *inner) for path in each.files]
        deeper += sum(each.pictures for each in inner)
        aside += one.total - sum(each.pictures for each in (one, *inner))
    twice = [name for name in classes if names.count(name) > 1]
    told = {
        "pictures in sub-folders of classes are read too": deeper,
        "pictures in folders of masks or labels are not read": aside,
        "pictures beside the classes are not read": tree.pictures,
        f"folders without pictures are not read: {some(tree.empty)}": len(tree.empty),
        f"names are those of two folders, read as one class: {some(twice)}": len(twice),
    }
    notes += [f"{tree.name}: {count} {what}" for what, count in told.items() if count]
    return classes


def find_parts(tree: Tree, notes: list[str]) -> dict[str, dict[str, list[Path]]]:
    """The classes of every part of a folder, as `Layout.parts` holds them; adds to `notes`.

    Raises:
        DataError: a part is there twice, or holds pictures without classes.
    """
    named = split_parts(tree)
    if not named:
        return {"": find_classes(tree, notes)}
    parts = {}
    for part in sorted(named.keys() - {""}, key=("train", "val", "test").index):
        place = innermost(named[part][0])
        names = some(one.name for one in named[part])
        if len(named[part]) > 1:
            raise DataError(f"{tree.path} holds {names}, each for {part}: keep one of them")
        if len(place.folders) > 1:
            parts[part] = find_classes(place, notes)
        elif part == "test":
            notes.append(f"{names}: {place.total} pictures without classes are not read")
        else:
            seen = some(one.name for one in tree.folders)
            advice = "sort them into CLASS/* (no table of labels is read), or rename a class"
            raise DataError(f"{tree.path}: {seen} hold pictures, not several classes: {advice}")
    others = [one.name for one in named.get("", [])] + tree.empty
    others += [f"{tree.pictures} pictures"] if tree.pictures else []
    notes += [f"{tree.name}: beside its parts, not read: {some(others)}"] if others else []
    return parts if "val" in parts else {"": parts.pop("train")} | parts


def find_layout(root: str | Path, name: str = "") -> Layout:
    """The layout of the image folder in `root`: of `root`, or of the nearest folder in it, at most
    two deeper, as archives are packed; one called `name` comes first.

    It is CLASS/*, or CLASS/* in each of train, val and test, as people call them; what is not read
    is said in its notes. Folders that end in "_extra" are never chosen by search.

    Raises:
        DataError: there is none, or several; or it is not sure what the folders are.
    """
    try:
        tree = read_tree(Path(root).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # the latter of "~nobody" and NUL bytes
        raise DataError(f"{root} cannot be read as a folder: {error}") from error
    level = [tree]
    found = []
    for _ in range(3):
        found.append([one for one in level if split_parts(one) or has_classes(one)])
        inner = [each for one in level for each in one.folders]
        level = [one for one in inner if not one.name.endswith("_extra")]
    named = [[one for one in trees if one.path.name == name] for trees in found]
    nearest = next((trees for trees in named + found if trees), [])
    if len(nearest) != 1:
        several = f"several image folders: {some(str(one.path) for one in nearest)}; name one"
        none = f"{tree.total} images, but no two folders CLASS/*, or train/CLASS/* and val/CLASS/*"
        raise DataError(f"{root} holds {several if nearest else none}")
    tree = nearest[0]
    notes: list[str] = []
    parts = find_parts(tree, notes)
    classes = next(iter(parts.values())).keys()
    for part, listed in parts.items():
        odd = listed.keys() - classes if part == "test" else listed.keys() ^ classes
        if odd:
            raise DataError(f"{tree.path}: not in both train and {part}: {some(sorted(odd))}")
    plain = [" ".join(one.casefold().split()) for one in classes]
    alike = [repr(one) for one, other in zip(classes, plain) if plain.count(other) > 1]
    notes += [f"classes differ in case or spaces alone: {some(alike)}"] if alike else []
    return Layout(folder=tree.path, classes=tuple(classes), parts=parts, notes=tuple(notes))


# ---- decode ----------------------------------------------------------------------------------


def white_of(highest: int) -> int:
    """What is white where `highest` is the highest grey value: the least of the usual depths."""
    return next(white for white in (255, 1023, 4095, 16383, 65535) if white >= highest)


def has_band(image: Image.Image) -> bool:
    """Whether the last channel of a picture is a band of its own, such as near infrared, and no
    transparency, which is mostly 0 or 255. Only TIFF files have such."""
    if image.format != "TIFF" or image.mode not in ("RGBX", "RGBA", "RGBa", "LA"):
        return False
    return bool(np.isin(np.asarray(image)[..., -1], (0, 255)).mean() < 0.5)


def find_white(paths: Iterable[Path]) -> tuple[dict[str, int], list[str]]:
    """What is white in a folder's files of 16 bits, which do not say how many of them they use, and
    notes on that and on bands beyond three.

    -> {"PPM": value, "other": value}: PPM files say it, and Pillow scales them by that.
    """
    highest: dict[str, int] = {}
    bands = 0
    for path in paths:
        if path.suffix.lower() in (".jpg", ".jpeg") or not path.is_file():
            continue
        with suppress(Exception), Image.open(path) as image:  # `read_image` says what is wrong
            if image.width * image.height > MAX_PIXELS:
                continue
            bands += has_band(image)
            top = int(np.asarray(image).max()) if image.mode[0] == "I" else -1
            if 0 <= top < 65536:
                kind = "PPM" if image.format == "PPM" else "other"
                highest[kind] = max(highest.get(kind, 0), top)
    white = {kind: white_of(value) for kind, value in highest.items()}
    depths = [f"16-bit files: {highest[kind]} at most, so {white[kind]} is white" for kind in white]
    return white, depths + [f"{bands} files have a fourth band, not read"] * bool(bands)


def to_rgb(image: Image.Image, white: Mapping[str, int]) -> Image.Image:
    """A Pillow image of any mode as 8-bit RGB: 16 bits scaled, transparency on white."""
    if image.mode[0] in "IF":
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pixels, whose range is unknown: save as 8 or 16 bit")
        kind = "PPM" if image.format == "PPM" else "other"
        scale = np.float32(white.get(kind, white_of(pixels.max())) / 255)
        image = Image.fromarray((pixels / scale).round().clip(max=255).astype(np.uint8))
    is_clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if is_clear and not has_band(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(path: Path, white: Mapping[str, int] | None = None) -> tuple[Tensor, bytes]:
    """One file -> (uint8 RGB [3, H, W], SHA-256 of its bytes): upright, its first frame.

    `white`: what is white in files of 16 bits; by default what the file itself reaches.

    Raises:
        UserError: it cannot be read; the message is the reason.
    """
    remedy = REMEDIES.get(path.suffix.lower(), "")
    Image.MAX_IMAGE_PIXELS = None  # ours counts what is decoded, which of a large JPEG is less
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ValueError("no regular file")
        digest = hashlib.sha256(path.read_bytes())
        if digest.hexdigest() == PLACEHOLDER or re.match("image.?not.?found$", path.stem, re.I):
            raise ValueError('placeholder ("image not found"), not a picture of the class')
        if remedy == HEIF and find_spec("pillow_heif"):
            importlib.import_module("pillow_heif.HeifImagePlugin")  # which Pillow then reads with
        with Image.open(path) as opened:
            opened.draft("RGB", (MAX_SIDE, MAX_SIDE))
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels: make it smaller")
            ImageOps.exif_transpose(opened, in_place=True)
            image = to_rgb(opened, white or {})
    except Exception as error:  # Pillow's decoders raise many kinds; each becomes a listed reason
        reason = getattr(error, "strerror", None) or str(error).replace(str(path), "it")
        reason += f": {remedy}" if remedy else ""
        raise UserError(" ".join(reason.split())) from error
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    least = max(image.size) // MAX_RATIO
    if min(image.size) < least:
        image = image.resize((max(image.width, least), max(image.height, least)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), digest.digest()


def load_images(
    folder: str | Path,
    keep: Callable[[Path, Tensor, bytes], Any] | None = None,
    *,
    parts: Sequence[str] = SPLITS,
) -> ImageSet:
    """Decodes every image of a folder once; what is left out is listed with its reason.

    `keep(path, image, digest)` makes what stays of an image; by default the image. `parts`: which
    of "train", "val" and "test" are read; images that came unsplit are for training.

    Raises:
        DataError: as `find_layout`; none of the parts is there; a class (of a part) without an
            image that can be read.
    """
    layout = find_layout(folder)
    chosen = {part: listed for part, listed in layout.parts.items() if (part or "train") in parts}
    groups = [(part, name, files) for part in chosen for name, files in chosen[part].items()]
    learned = [listed for part, listed in layout.parts.items() if part != "test"]
    white, depth_notes = find_white(path for one in learned for path in sum(one.values(), []))
    images: list[Any] = []
    found: list[tuple[str, Path, int, str]] = []
    rejected: list[Rejected] = []
    digest = hashlib.sha256("\0".join(layout.classes).encode())
    for part, name, files in groups:
        before = len(found)
        failed = len(rejected)
        for path in files:
            shown = printable(path.relative_to(layout.folder).as_posix())
            try:
                image, file_digest = read_image(path, white)
            except UserError as error:
                rejected.append(Rejected(path=shown, reason=str(error)))
                continue
            images.append(keep(path, image, file_digest) if keep else image)
            found.append((shown, path, layout.classes.index(name), part or "train"))
            digest.update(f"\0{shown}\0".encode() + file_digest)
        if len(found) == before:
            why = some(map(str, rejected[failed:][:1]))
            raise DataError(f"{layout.folder / part / name}: no image can be read: {why}; add some")
    if not found:
        raise DataError(f"{layout.folder} has no part {some(parts)}")
    paths, places, labels, split = zip(*found)
    notes = [*layout.notes, *depth_notes]
    if "test" in layout.parts.keys() - chosen:
        count = sum(map(len, layout.parts["test"].values()))
        notes.append(f"test: {count} files are kept apart")
    told: dict[str, Any] = {"classes": layout.classes, "rejected": tuple(rejected), "white": white}
    told |= {"paths": paths, "files": places, "notes": tuple(notes), "digest": digest.hexdigest()}
    told |= {"split": None if [*chosen] == [""] else split}
    told |= {"name": printable(layout.folder.resolve().name)}
    told |= {"synthetic": (layout.folder / "SYNTHETIC").is_file()}
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
    """Splits an ImageSet as it was shipped (train/, val/), else by `split_indices`.

    Raises:
        DataError: as `split_indices`; a class of an unsplit folder has fewer than three images, so
            that one of its parts might have none.
    """
    if image_set.split is None:
        counts = torch.bincount(image_set.labels, minlength=len(image_set.classes)).tolist()
        few = [f"{name} has {n}" for name, n in zip(image_set.classes, counts) if n < 3]
        if few:
            raise DataError(f"a class needs 3 images, {some(few)}: add some, or remove the class")
        train, val = split_indices(image_set.labels, val_size=val_size, seed=seed)
        return Fold(train=train, val=val)
    in_val = torch.tensor([part == "val" for part in image_set.split])
    return Fold(train=torch.where(~in_val)[0], val=torch.where(in_val)[0])


def everything_fold(image_set: ImageSet) -> Fold:
    """A fold that trains and validates on all images: what other folds are cut from."""
    everything = torch.arange(len(image_set.labels))
    return Fold(train=everything, val=everything)

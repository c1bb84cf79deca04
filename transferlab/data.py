"""From a folder to an ImageSet: find its layout, decode every image once, split it."""

import hashlib
import importlib
import re
import stat
import unicodedata
from collections import Counter
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

from .errors import DataError, UserError, printable, some

SPLITS = ("train", "val")
PART = (  # of a split, as people call their folders: the group that matches is its name here
    "(?:.*[^a-z])?(?:(?P<train>train|training|학습|훈련)|(?P<val>val|valid|validation|dev|검증)|"
    "(?P<test>test|testing|테스트|시험|평가))(?:[^a-z].*|[ab]|set)?"
)
# What is hidden, or left by a system.
IGNORED = (
    r"\.|__MACOSX$|thumbs\.db$|desktop\.ini$|\$RECYCLE\.BIN$|System Volume|lost\+found$|@eaDir$"
)
PICTURE = (
    r".*\.(png|jpe?g?|jfif?|gif|bmp|dib|tiff?|webp|avif|p[bgnp]m|jp2|tga|ico|hei[cf]|jxl|svg|dcm)"
)
MAGIC = rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*"  # what pictures begin with
MASKS = "(?:.*[ _-])?(?:masks?|labels?|annotations?|segmentations?|ground.?truth|gt)"
MASK_OF = "[ _-](mask|segmentation|superpixels?|label|gt)([ _-]?[0-9]+)?$"  # ends a file's name
# Folders that are called so are parts of one set, or its pictures and what belongs to them.
CHUNK = "(?:.*[^a-z])?(?:images?|imgs?|parts?|batch|folds?|chunk|data|dataset)[ _-]?[0-9]*[a-z]?"
IMAGE_NAMES = ".*images?.*|(?:.*[^a-z])?(?:imgs?|photos?|pictures?|rgb)"
MASK_NAMES = ".*(?:mask|label|annotation|segment|ground.?truth|semantic|depth).*"
PLACEHOLDER = "6b4966252973c581b521f804453c6a0649ea6a2ce7e3e5c7deeb7d80623de231"  # "not found"
MAX_SIDE = 2600  # longer pictures shrink as they are read; the study's longest has 2,592 pixels
MAX_RATIO = 100  # of the sides: a strip is widened to it, else resizing its short side fills memory
MAX_PIXELS = 120_000_000  # as decoded: 0.4 GB
HEIF = "pip install pillow-heif"
REMEDIES = {".heic": HEIF, ".heif": HEIF} | dict.fromkeys((".jxl", ".svg", ".dcm"), "save as PNG")


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
    pictures: int  # how many of these are pictures
    masks: int  # how many files are masks of one of them, X_mask.png beside X.png; not in `files`
    folders: "list[Tree]"  # those with pictures in them, at any depth
    empty: list[str]  # the names of those without, or read already, and of links to nowhere

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
    digest: str  # SHA-256 (hex) of classes, `white`, paths and file bytes
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


def clean_name(name: str) -> str:
    """A name as it is shown and compared: composed (NFC), printable."""
    return unicodedata.normalize("NFC", printable(name))


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture or, with another suffix, begins like one."""
    if re.fullmatch(PICTURE, path.name, re.I | re.S):
        return True
    with suppress(OSError):  # it is named when it is read
        if path.is_file():
            with path.open("rb") as file:
                return bool(re.match(MAGIC, file.read(16), re.S))
    return False


def read_tree(folder: Path, seen: list[Path]) -> Tree:
    """Looks through a folder. `seen`: the folders so far, the first of all first; links to one of
    them, or into the first, are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    seen.append(folder.resolve())
    found = [path for path in sorted(folder.iterdir()) if not re.match(IGNORED, path.name, re.I)]
    trees = []
    for path in found:
        target = path.resolve() if path.is_symlink() else None
        if path.is_dir() and not (target and (target in seen or target.is_relative_to(seen[0]))):
            trees.append(read_tree(path, seen))
    files = [path for path in found if not path.is_dir()]
    stems = {path.stem for path in files}
    masks = {one for one in stems if re.sub(MASK_OF, "", one, flags=re.I) in stems - {one}}
    read = {tree.path for tree in trees}
    lost = [one for one in found if (one not in read if one.is_dir() else not one.exists())]
    pictures = [path for path in files if is_picture(path)]
    return Tree(
        path=folder,
        name=clean_name(folder.name),
        files=[path for path in files if path.stem not in masks],
        pictures=sum(path.stem not in masks for path in pictures),
        masks=sum(path.stem in masks for path in pictures),
        folders=[tree for tree in trees if tree.total],
        empty=[one.name for one in trees if not one.total] + [clean_name(one.name) for one in lost],
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


def check_classes(tree: Tree) -> None:
    """Makes sure that the folders in a folder are classes, as far as their names tell.

    Raises:
        DataError: they are parts of one set, or its pictures and what belongs to them.
    """
    names = [one.name for one in tree.folders]
    parts = [re.fullmatch(PART, name, re.I) for name in names]
    is_split = all(parts) and len({one.lastgroup for one in parts if one}) > 1
    if is_split or all(re.fullmatch(CHUNK, name, re.I) for name in names):
        raise DataError(f"{tree.path}: {some(names)} are called like parts of one set, not classes")
    beside = [name for name in names if re.fullmatch(MASK_NAMES, name, re.I)]
    if beside and any(re.fullmatch(IMAGE_NAMES, one, re.I) for one in {*names} - {*beside}):
        raise DataError(
            f"{tree.path}: {some(names)} are called like pictures and masks, no classes"
        )


def find_classes(tree: Tree, notes: list[str]) -> dict[str, list[Path]]:
    """{class: its files}, sub-folders included, of a folder of classes; adds to `notes`.

    Raises:
        DataError: as `check_classes`; it is not sure whether a folder is a class.
    """
    check_classes(tree)
    times = Counter(one.name for one in tree.folders)
    classes: dict[str, list[Path]] = {name: [] for name in sorted(times)}
    deeper = 0
    aside = 0
    for one in tree.folders:
        inner = all_read(one)[1:]
        inside = [each.name for each in inner]
        known = [each for each in inside if each in times or re.fullmatch(PART, each, re.I)]
        if not innermost(one).pictures or {*known} - {one.name}:
            advice = "if it is a class, move its pictures directly into it; if not, move it away"
            raise DataError(f"{one.path} holds the folders {some(inside)}: {advice}, or name it")
        classes[one.name] += [path for each in (one, *inner) for path in each.files]
        deeper += sum(each.pictures for each in inner)
        aside += one.total - sum(each.pictures - each.masks for each in (one, *inner))
    twice = [name for name, count in times.items() if count > 1]
    masks = [name for name in classes if re.fullmatch(MASKS, name, re.I)]
    told = {
        "pictures in sub-folders of classes are read too": deeper,
        "masks or labels of pictures are not read": aside,
        "pictures beside the classes are not read": tree.pictures,
        f"without pictures, or read already, are not read: {some(tree.empty)}": len(tree.empty),
        f"names are those of two folders, read as one class: {some(twice)}": len(twice),
        f"classes are called like masks: {some(masks)}": len(masks) * (len(masks) < len(classes)),
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
    parts: dict[str, dict[str, list[Path]]] = {}
    for part in sorted(named.keys() - {""}, key=("train", "val", "test").index):
        known = parts.get("train", {})
        place = named[part][0]
        while not place.pictures and len(place.folders) == 1 and place.folders[0].name not in known:
            place = place.folders[0]
        names = some(one.name for one in named[part])
        is_flat = len(place.folders) < (1 if known else 2)
        if is_flat and part != "test":
            advice = "sort them into CLASS/* (no table of labels is read), or rename a class"
            seen = some(one.name for one in tree.folders)
            told = f"of {seen}, {names} holds pictures, not several classes"
            raise DataError(f"{tree.path}: {told}: {advice}")
        if len(named[part]) > 1:
            raise DataError(f"{tree.path} holds {names}, each for {part}: keep one of them")
        if is_flat:
            notes.append(f"{names}: {place.total} pictures without classes are not read")
        else:
            parts[part] = find_classes(place, notes)
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
        tree = everything = read_tree(Path(root).expanduser(), [])
    except (OSError, RuntimeError, ValueError) as error:  # the latter of "~nobody" and NUL bytes
        raise DataError(f"{root} cannot be read as a folder: {error}") from error
    level = [tree]
    found = []
    for _ in range(3):
        found.append([one for one in level if split_parts(one) or has_classes(one)])
        inner = [each for one in level for each in one.folders]
        level = [one for one in inner if not re.fullmatch(f".*_extra|{MASKS}", one.name, re.I)]
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
    if everything.total > tree.total:
        notes.append(f"{root}: {everything.total - tree.total} pictures elsewhere are not read")
    copied = r"( - copy| - 복사본|[ _]copy)?( ?\([0-9]+\))?$"
    plain = [re.sub(copied, "", " ".join(one.casefold().split())) for one in classes]
    times = Counter(plain)
    alike = [repr(one) for one, other in zip(classes, plain) if times[other] > 1]
    notes += [f"classes that may be one, by their names: {some(alike)}"] if alike else []
    return Layout(folder=tree.path, classes=tuple(classes), parts=parts, notes=tuple(notes))


# ---- decode ----------------------------------------------------------------------------------


def white_of(highest: int) -> int:
    """What is white where `highest` is the highest grey value: the least of the usual depths."""
    return next(white for white in (255, 1023, 4095, 16383, 65535) if white >= highest)


def has_band(image: Image.Image) -> bool:
    """Whether the last channel of a picture is no transparency: in a TIFF file a band of its own,
    such as near infrared, which is seldom 0 or 255; in a TGA file left empty."""
    if image.mode not in ("RGBX", "RGBA", "RGBa", "LA") or image.format not in ("TIFF", "TGA"):
        return False
    last = np.asarray(image)[::8, ::8, -1]
    return not last.any() if image.format == "TGA" else np.isin(last, (0, 255)).mean() < 0.5


def find_white(paths: Iterable[Path]) -> tuple[dict[str, int], list[str]]:
    """What is white in a folder's files of 16 bits, which do not say how many of them they use, and
    notes on these, and on what else is not read of a file.

    -> {"PPM": value, "other": value}: PPM files say it, and Pillow scales them by that. A
    thousandth of the pixels may be brighter than white.
    """
    Image.MAX_IMAGE_PIXELS = None
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    told: Counter[str] = Counter()
    for path in (path for path in paths if path.is_file()):
        with suppress(Exception), Image.open(path) as image:  # `read_image` says what is wrong
            is_tiff = image.format == "TIFF"
            is_deep = image.mode[0] != "I" and re.search(";16|65535", str(image.tile))
            told["have 16-bit colours, of which the upper 8 bits are read"] += bool(is_deep)
            told["have several pages, the first is read"] += (
                is_tiff and getattr(image, "n_frames", 1) > 1
            )
            if image.width * image.height > MAX_PIXELS:
                continue
            told["have a fourth band, not read"] += is_tiff and has_band(image)
            if image.mode[0] == "I":
                step = max(1, max(image.size) // MAX_SIDE)
                pixels = np.asarray(image)[::step, ::step]
                dark, bright = np.percentile(pixels, (0.1, 99.9), method="nearest")
                kind = "PPM" if image.format == "PPM" else "other"
                if dark >= 0 and bright < 65536:
                    low[kind] = min(low.get(kind, 65535), int(dark))
                    high[kind] = max(high.get(kind, 0), int(bright))
    white = {kind: white_of(value) for kind, value in high.items()}
    notes = [f"{count} files {what}" for what, count in told.items() if count]
    for kind, top in white.items():
        levels = 256 * (high[kind] - low[kind]) // (top + 1)
        few = f", which leaves {levels} of 256 levels" if levels < 64 else ""
        notes.append(f"16-bit files: {low[kind]} to {high[kind]}, so {top} is white{few}")
    return white, notes


def to_rgb(image: Image.Image, white: Mapping[str, int]) -> Image.Image:
    """A Pillow image of any mode as 8-bit RGB: 16 bits scaled, transparency on white."""
    if image.mode[0] in "IF":
        step = max(1, max(image.size) // (2 * MAX_SIDE))  # memory for what will be shrunk
        pixels = np.asarray(image)[::step, ::step]
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("pixels whose range is unknown: save as 8 or 16 bit without sign")
        kind = "PPM" if image.format == "PPM" else "other"
        scale = np.float32(white.get(kind, white_of(pixels.max())) / 255)
        image = Image.fromarray((pixels / scale).round().clip(max=255).astype(np.uint8))
    elif image.mode in ("RGB", "RGBA", "CMYK"):
        image.thumbnail((MAX_SIDE, MAX_SIDE))  # before it is copied
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
        if remedy == HEIF and find_spec("pillow_heif"):
            importlib.import_module("pillow_heif.HeifImagePlugin")  # which Pillow then reads with
        with Image.open(path) as opened:
            opened.draft("RGB", (MAX_SIDE, MAX_SIDE))
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels: make it smaller")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            if digest.hexdigest() == PLACEHOLDER or re.match("image.?not.?found$", path.stem, re.I):
                raise ValueError('placeholder ("image not found"), not a picture of the class')
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
    spread: Callable[..., Iterator[Any]] = map,
) -> ImageSet:
    """Decodes every image of a folder once; what is left out is listed with its reason.

    `keep(path, image, digest)` makes what stays of an image; by default the image. `parts`: which
    of "train", "val" and "test" are read; images that came unsplit are for training. `spread`: as
    `map`, it may read several files at once.

    Raises:
        DataError: as `find_layout`; none of the parts is there; a class (of a part) without an
            image that can be read.
    """
    layout = find_layout(folder)
    chosen = {part: listed for part, listed in layout.parts.items() if (part or "train") in parts}
    if not chosen:
        raise DataError(f"{layout.folder} has no part {some(parts)}")
    learned = [listed for part, listed in layout.parts.items() if part != "test"]
    white, notes = find_white(path for one in learned for files in one.values() for path in files)
    notes = [*layout.notes, *notes]
    if "test" in layout.parts.keys() - chosen:
        count = sum(map(len, layout.parts["test"].values()))
        notes.append(f"test: {count} files are kept apart")
    images: list[Any] = []
    rejected: list[Rejected] = []
    found: list[tuple[str, Path, int, str]] = []
    digest = hashlib.sha256("\0".join([*layout.classes, *map(str, white.items())]).encode())
    groups = [(part, name, files) for part in chosen for name, files in chosen[part].items()]
    for part, name, files in groups:
        before = len(found)
        readings = spread(lambda path: read_image(path, white), files)
        for path in files:
            shown = printable(path.relative_to(layout.folder).as_posix())
            try:
                image, file_digest = next(readings)
            except UserError as error:
                rejected.append(Rejected(path=shown, reason=str(error)))
                continue
            images.append(keep(path, image, file_digest) if keep else image)
            found.append((shown, path, layout.classes.index(name), part or "train"))
            digest.update(f"\0{shown}\0".encode() + file_digest)
        if len(found) == before:
            raise DataError(f"{files[0].parent}: no image can be read: {rejected[-1]}; add some")
    shown_paths, places, labels, split = zip(*found)
    return ImageSet(
        images=images,
        labels=torch.tensor(labels),
        paths=shown_paths,
        files=places,
        classes=layout.classes,
        split=None if [*chosen] == [""] else split,
        rejected=tuple(rejected),
        notes=tuple(notes),
        white=white,
        digest=digest.hexdigest(),
        name=printable(layout.folder.resolve().name),
        synthetic=(layout.folder / "SYNTHETIC").is_file(),
    )


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
    train, val = (torch.tensor([one == part for one in image_set.split]) for part in SPLITS)
    return Fold(train=torch.where(train)[0], val=torch.where(val)[0])


def everything_fold(image_set: ImageSet) -> Fold:
    """A fold that trains and validates on all images: what other folds are cut from."""
    everything = torch.arange(len(image_set.labels))
    return Fold(train=everything, val=everything)

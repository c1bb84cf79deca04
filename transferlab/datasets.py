"""The datasets of the study, an entry each: how it is fetched, drawn and augmented."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .download import download_hymenoptera, download_manga_faces
from .errors import UserError
from .synthetic import draw_faces, draw_insects
from .views import Augmentation, AugmentationInfo, faces_augmentation, photos_augmentation


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset that is known by the name of its folder."""

    name: str  # of its folder
    label: str  # in figures
    augmentation: Callable[[int], Augmentation]  # for pictures of so many pixels
    fetch: Callable[[Path], Path] | None = None  # downloads it into a folder, where it is missing
    draw: Callable[[Path], Path] | None = None  # draws its stand-in as a folder


FACES = Dataset(
    name="manga_facial_expressions",
    label="manga faces",
    augmentation=faces_augmentation,
    fetch=download_manga_faces,
    draw=draw_faces,
)
INSECTS = Dataset(
    name="hymenoptera_data",
    label="ants and bees",
    augmentation=photos_augmentation,
    fetch=download_hymenoptera,
    draw=draw_insects,
)
DATASETS = {dataset.name: dataset for dataset in (FACES, INSECTS)}


def known_augmentations() -> dict[str, Callable[[int], Augmentation]]:
    """The augmentations of all datasets, by the name that each states, where it states one.

    Raises:
        UserError: two of them state the same name.
    """
    named: dict[str, Callable[[int], Augmentation]] = {}
    for dataset in DATASETS.values():
        name = dataset.augmentation(224).name
        if name and named.setdefault(name, dataset.augmentation) is not dataset.augmentation:
            raise UserError(f"two augmentations are called {name!r}: rename that of {dataset.name}")
    return named


def augmentation_for(name: str, size: int = 224) -> Augmentation:
    """The augmentation of a dataset by its folder's name; of an unknown folder that of photos."""
    dataset = DATASETS.get(name)
    return dataset.augmentation(size) if dataset else photos_augmentation(size)


def augmentation_named(info: AugmentationInfo) -> Augmentation:
    """The augmentation that a record names, so that a saved model can be fed again.

    Raises:
        UserError: it has no name, or is known in no version or another one.
    """
    known = known_augmentations()
    if info.name not in known:
        names = ", ".join(known)
        raise UserError(f"the augmentation {info.name!r} is not known here, only: {names}")
    found = known[info.name](info.size)
    if found.version != info.version:
        wanted = f"version {info.version} of the augmentation {info.name!r} is asked for"
        raise UserError(
            f"{wanted}, and here is version {found.version}: use the release that made it"
        )
    return found

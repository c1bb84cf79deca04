"""What a run says of itself: one shape of data, weights and machine, with a schema version."""

import hashlib
import json
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from .data import Fold, ImageSet, Rejected
from .files import read_json
from .machine import Machine
from .metrics import Interval
from .pretrained import WeightsInfo
from .train import Epoch, Settings
from .views import Augmentation, AugmentationInfo, info_of

SCHEMA = 2  # raised whenever a field changes its name or meaning

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a run used of a dataset."""

    name: str  # of its folder
    digest: str  # SHA-256 (hex) of classes, paths and file bytes
    n: int = 0  # images
    classes: tuple[str, ...] = ()
    synthetic: bool = False  # drawn stand-ins
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()  # what else is not read, taken together or assumed
    augmentation: AugmentationInfo | None = None  # how its views were drawn


def data_info(image_set: ImageSet, augmentation: Augmentation | None = None) -> DataInfo:
    """An image set, and how its views are drawn, as a record says it."""
    return DataInfo(
        name=image_set.name,
        digest=image_set.digest,
        n=len(image_set.labels),
        classes=tuple(image_set.classes),
        synthetic=image_set.synthetic,
        rejected=tuple(image_set.rejected),
        notes=tuple(image_set.notes),
        augmentation=info_of(augmentation) if augmentation else None,
    )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What every run says: on which data, with which weights, where, and how."""

    schema: int = SCHEMA
    kind: str  # "study", "compare", "audit", or a benchmark's name
    stamp: str = ""  # of its files; empty until they are written
    data: tuple[DataInfo, ...]
    weights: tuple[WeightsInfo, ...]
    machine: Machine
    settings: Settings | None = None
    seed: int | None = None

    @property
    def augmentation(self) -> AugmentationInfo | None:
        """How views of its only dataset were drawn."""
        return self.data[0].augmentation if len(self.data) == 1 else None


@dataclass(frozen=True, kw_only=True)
class HeadInfo:
    """The sizes of the study's head."""

    in_features: int
    hidden: int
    dropout: float


@dataclass(frozen=True, kw_only=True)
class StudyRecord(RunRecord):
    """A run of the study protocol."""

    kind: str = "study"
    split_hash: str
    n_train: int
    n_val: int
    head: HeadInfo
    mean: tuple[float, ...]  # the model's normalisation
    std: tuple[float, ...]
    parameters: int
    trainable_parameters: int
    frozen_hash_before: str
    frozen_hash_after: str
    val_labels: tuple[int, ...]
    val_predictions: tuple[int, ...]
    accuracy_interval: Interval  # 95 %
    macro_f1: float
    timings: dict[str, float]  # seconds by phase
    epochs_run: int
    best: Epoch  # the lowest validation loss
    last: Epoch
    highest: Epoch  # the highest validation accuracy

    @property
    def backbone(self) -> WeightsInfo:
        """What the run computed with."""
        return self.weights[0]

    @property
    def model(self) -> str:
        """The backbone's name."""
        return self.weights[0].name

    @property
    def dataset(self) -> DataInfo:
        """What the run trained on."""
        return self.data[0]

    @property
    def seconds(self) -> float:
        """The whole run, without loading images."""
        return sum(self.timings.values())


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(RunRecord):
    """A benchmark; `facts` are plain values that only this one knows."""

    facts: dict[str, Any]


def hash_of_split(image_set: ImageSet, fold: Fold) -> str:
    """SHA-256 (hex) over the paths of the training and the validation images."""
    both = (fold.train.tolist(), fold.val.tolist())
    parts = ["\n".join(image_set.paths[i] for i in part) for part in both]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# ---- to and from plain values ----------------------------------------------------------------


def to_json(record: Any) -> str:
    """A record as the text of its file."""
    return json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n"


def from_plain(kind: type[R], value: Any) -> R:
    """Plain values, as JSON holds them, as a dataclass; fields that have a default may be missing,
    others may not.

    Raises:
        KeyError, TypeError, ValueError: a field is missing, or is of another type.
    """
    return convert(kind, value)


def convert(kind: Any, value: Any) -> Any:
    """A plain value as the annotated type: a dataclass, a tuple, a mapping, an optional one.

    Raises:
        KeyError, TypeError, ValueError: as `from_plain`.
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(one for one in arguments if one is not type(None))
        return None if value is None else convert(inner, value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r:.100} is no list")
        return tuple(convert(arguments[0], one) for one in value)
    if origin is dict:
        return {key: convert(arguments[1], one) for key, one in checked(dict, value).items()}
    if isinstance(kind, type) and is_dataclass(kind):
        checked(dict, value)
        known = {one.name: one.type for one in fields(kind)}
        given = {name: convert(known[name], value[name]) for name in known if name in value}
        return kind(**given)
    return value if kind is Any else checked(kind, value)


def checked(kind: type, value: Any) -> Any:
    """A number, a text, a truth value or a mapping of that type; a whole number counts as a float
    too.

    Raises:
        TypeError: it is of another type.
    """
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r:.100} is no {kind.__name__}")
    return value


def read_plain(path: str | Path) -> dict[str, Any]:
    """The plain values of a record's file.

    Raises:
        OSError, ValueError: as `read_json`; a later release has written it.
    """
    plain = read_json(path)
    if not isinstance(plain, dict):
        raise ValueError("it is no record")
    schema = plain.get("schema", 0)
    if type(schema) is not int:
        raise ValueError(f"{schema!r:.40} is no schema")
    if schema > SCHEMA:
        raise ValueError(f"its schema is {schema}, and this release reads up to {SCHEMA}")
    return plain

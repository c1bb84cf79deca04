"""The one writer: what a run leaves in model/, result/ and img/, and how it is read back."""

import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from .backbones import build_model, load_all, make_head, normalize, set_head
from .data import read_image
from .errors import UserError
from .features import FROM_DISK
from .pretrained import read_weights
from .records import StudyRecord, from_plain, read_plain, to_json
from .train import TrainResult
from .views import Augmentation, AugmentationInfo

OUT_FOLDERS = ("model", "result", "img")


def prepare_out_dir(out_dir: str | Path) -> Path:
    """Makes model/, result/ and img/ in `out_dir` before any time is spent.

    Raises:
        UserError: they cannot be written.
    """
    out_dir = Path(out_dir).expanduser()
    try:
        for name in OUT_FOLDERS:
            folder = out_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        advice = "give a folder of yours (--out, or out_dir in a notebook)"
        raise UserError(f"cannot write to {out_dir} ({error}): {advice}") from error
    return out_dir


def new_stamp(out_dir: str | Path) -> str:
    """A time stamp YYYYmmdd_HHMMSS that no file in `out_dir` carries yet."""
    while True:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        if not any(Path(out_dir).glob(f"*/*_{stamp}.*")):
            return stamp
        time.sleep(0.2)


def write_new(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write(temporary)` and renames that to `path`, so that no half-written file is ever
    seen; returns the path.

    Raises:
        UserError: `path` exists already.
    """
    if path.exists():
        advice = "move it or choose another out_dir"
        raise UserError(f"{path} exists already and is not overwritten: {advice}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:  # gone in any case
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_new` for a text.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """`write_new` for a table, as CSV without its index.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: table.to_csv(temporary, index=False))


def write_figure(path: Path, figure: plt.Figure) -> Path:
    """`write_new` for a figure, as PNG.

    Raises:
        UserError: `path` exists already.
    """
    return write_new(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def file_name(model: str) -> str:
    """A model's name in the name of a file: hf-hub:timm/... is none."""
    return re.sub("[/:]", "_", model)


def seconds_text(record: StudyRecord) -> str:
    """The seconds of a run, and whether an earlier run has computed its features (then they
    compare with no other run's)."""
    note = f" ({FROM_DISK})" if FROM_DISK in record.timings else ""
    return f"{record.seconds:.0f}{note}"


def history_table(result: TrainResult) -> pd.DataFrame:
    """A row an epoch, without the columns that no epoch has."""
    table = pd.DataFrame([asdict(row) for row in result.history])
    return table.dropna(axis=1, how="all")


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The files that a run has left."""

    model: Path
    description: Path  # of the model, beside it
    results: Path  # the epochs
    summary: Path

    def all(self) -> tuple[Path, ...]:
        """Every one of them."""
        return self.model, self.description, self.results, self.summary


def save_run(
    out_dir: str | Path, model: nn.Module, result: TrainResult, record: StudyRecord, *, stamp: str
) -> SavedRun:
    """Writes the whole model with its best weights, the epochs as CSV and the record as JSON.

    The record lies beside the model and inside its file too, since it says how to build it and
    feed it (classes, head, augmentation, mean and std, weights).
    """
    out_dir = Path(out_dir)
    name = file_name(record.model)
    state = model.state_dict()
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    text = to_json(replace(record, stamp=stamp))
    metadata = {"format": "pt", "description": text}
    saved = SavedRun(
        model=out_dir / f"model/{name}_best_{stamp}.safetensors",
        description=out_dir / f"model/{name}_best_{stamp}.json",
        results=out_dir / f"result/{name}_results_{stamp}.csv",
        summary=out_dir / f"result/{name}_summary_{stamp}.json",
    )
    write_new(saved.model, lambda path: save_file(whole, path, metadata=metadata))
    write_text(saved.description, text)
    write_table(saved.results, history_table(result))
    write_text(saved.summary, text)
    return saved


def save_figure(figure: plt.Figure, out_dir: str | Path, name: str, *, stamp: str) -> Path:
    """Writes a figure as img/NAME_STAMP.png."""
    path = Path(out_dir) / "img" / re.sub(r"[^\w.-]", "_", f"{name}_{stamp}.png")

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")

    return write_new(path, write)


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedModel:
    """A model that was read back."""

    model: nn.Module  # in eval mode, on the CPU
    record: StudyRecord  # classes, head, augmentation, weights, ...


def load_model(path: str | Path, record: StudyRecord | None = None) -> SavedModel:
    """Reads a saved model back, as the .json beside it describes it.

    `record` describes a model that was saved before schema 2, as `published.read_record` reads it.

    Raises:
        UserError: the file or its .json is missing, damaged, or they do not belong together.
    """
    described = Path(path).with_suffix(".json")
    try:
        record = record or from_plain(StudyRecord, read_plain(described))
        model = build_model(record.backbone.timm_name)
        classes = len(record.dataset.classes)
        head = make_head(
            record.head.in_features,
            classes,
            hidden=record.head.hidden,
            dropout=record.head.dropout,
        )
        set_head(model, head)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"is missing or damaged ({error!r})"
        raise UserError(f"{described}, part of the saved model, {problem}") from error
    load_all(model, read_weights(path), path)
    return SavedModel(model=model.eval(), record=record)


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class and how probable a model holds it."""

    name: str
    probability: float  # 0 to 1


def rank_classes(classes: tuple[str, ...], logits: torch.Tensor) -> list[ClassProbability]:
    """The classes by their probability for logits [C], the most probable first."""
    probabilities = logits.softmax(dim=0).tolist()
    pairs = zip(classes, probabilities, strict=True)
    ranked = [ClassProbability(name=name, probability=p) for name, p in pairs]
    return sorted(ranked, key=lambda one: -one.probability)


def check_augmentation(augmentation: Augmentation, wanted: AugmentationInfo | None) -> None:
    """Makes sure that an augmentation is the one that a model was trained with, by what it states.

    Raises:
        UserError: it is not, or one of them states no name.
    """
    if wanted is None or not wanted.name:
        raise UserError("this model was trained with an augmentation that has no name")
    given = (augmentation.name, augmentation.version, augmentation.size)
    if given != (wanted.name, wanted.version, wanted.size):
        named = f"{wanted.name}, version {wanted.version}, {wanted.size} px"
        raise UserError(f"this model was trained with another augmentation: give {named}")


@torch.inference_mode()
def predict_image(
    saved: SavedModel, augmentation: Augmentation, path: str | Path
) -> list[ClassProbability]:
    """Classifies one image file with a saved model on the CPU, through the clean view that it was
    trained with, the most probable class first.

    Raises:
        UserError: as `check_augmentation`.
        OSError, ValueError: the file cannot be read as an image; the message is the reason.
    """
    check_augmentation(augmentation, saved.record.augmentation)
    image, _ = read_image(Path(path))
    batch = augmentation.clean(image)[None]
    logits = saved.model(normalize(saved.model, batch))[0]
    return rank_classes(saved.record.dataset.classes, logits)


# What two runs must share to be compared.
COMPARED_FIELDS = ("data", "split_hash", "settings", "seed")


def same_conditions(one: StudyRecord, other: StudyRecord) -> bool:
    """Whether two runs differ in nothing but the backbone; never where views were drawn by an
    augmentation without a name."""
    if one.augmentation is None or not one.augmentation.name:
        return False
    alike = all(getattr(one, name) == getattr(other, name) for name in COMPARED_FIELDS)
    same_precision = one.machine.precision == other.machine.precision
    return alike and same_precision and one.backbone.kind == other.backbone.kind


def find_matching_run(out_dir: str | Path, model: str, record: StudyRecord) -> StudyRecord | None:
    """The latest run of `model` in `out_dir` with the same data, split, weights kind, precision
    and settings as `record`; None where there is none. Files that are no such record are skipped
    and named."""
    pattern = f"{file_name(model)}_summary_*.json"
    for path in sorted((Path(out_dir) / "result").glob(pattern), reverse=True):
        try:
            found = from_plain(StudyRecord, read_plain(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            kind = type(error).__name__
            print(f"skipped {path.name}: not a record of this version ({kind}: {error})")
            continue
        if same_conditions(found, record):
            return found
    return None

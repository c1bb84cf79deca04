"""What a notebook says of a run that it has saved, and the study's record that is made of it."""

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from torch import nn

from .artifacts import write_text
from .backbones import (
    Normalized,
    build_from_state,
    build_model,
    classifier_name,
    count_parameters,
    make_head,
)
from .checkpoints import read_weights
from .data import ImageSet, Rejected, split_images
from .decoded import load_folder
from .errors import UserError
from .machine import this_machine
from .metrics import accuracy_interval
from .pretrained import WeightsInfo, state_hash
from .records import (
    DataInfo,
    HeadInfo,
    StudyRecord,
    data_info,
    from_plain,
    hash_of_split,
    read_plain,
    to_json,
)
from .train import Epoch, Settings
from .views import Augmentation, printed


@dataclass(frozen=True, kw_only=True)
class DescribedData:
    """The images of a run."""

    name: str  # of their folder
    digest: str
    classes: tuple[str, ...]
    synthetic: bool
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DescribedWeights:
    """What a backbone computed with."""

    name: str  # the study's
    timm_name: str
    kind: str
    label: str
    source: str


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A run, as `notebook.describe_run` writes it beside the model and into its file."""

    data: DescribedData
    weights: DescribedWeights
    settings: dict[str, Any]  # those of `Settings` that a notebook changes
    seed: int
    precision: str  # of random views
    augmentation: str  # as it prints itself
    frozen_hash: tuple[str, ...]  # before and after
    timings: dict[str, float]  # seconds by phase
    best: int  # epoch, from 1
    val_labels: tuple[int, ...]
    val_predictions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedModel:
    """A model that was read back."""

    model: nn.Module  # uint8 images [N, 3, H, W] -> logits [N, C]; in eval mode, on the CPU
    description: RunDescription


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a notebook was given, the same for every run that it saves."""

    folder: Path  # of images
    weights: str  # a folder of NAME.safetensors, or "none"
    augmentation: Augmentation

    @functools.cached_property
    def image_set(self) -> ImageSet:
        """Its images, read once."""
        return load_folder(self.folder)


def read_description(model: Path) -> RunDescription:
    """The description of a saved model.

    Raises:
        UserError: the .json beside it is missing, damaged, or none of a model.
    """
    path = model.with_suffix(".json")
    try:
        described = from_plain(RunDescription, read_plain(path))
        if not 1 <= described.best <= described.settings["epochs"]:
            raise ValueError(f"no epoch {described.best} was trained")
        return described
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is missing or damaged ({error!r:.200})"
        raise UserError(f"{path}, part of the saved model, {problem}") from error


def load_model(path: str | Path) -> SavedModel:
    """Reads a saved model back, as the .json beside it describes it.

    Raises:
        UserError: the file or its .json is missing, damaged, or they do not belong together.
    """
    file = Path(path)
    described = read_description(file)
    state = read_weights(file)
    model = build_model(described.weights.timm_name)
    name = classifier_name(model)
    together = f"{path} and the .json beside it do not belong together"
    first = state.get(f"{name}.0.weight", torch.empty(0))
    last = state.get(f"{name}.3.weight", torch.empty(0))
    hidden = len(state.get(f"{name}.0.bias", torch.empty(0)).flatten())  # as many as are stored
    wanted = [(hidden, model.head_hidden_size), (len(described.data.classes), hidden)]
    found = [tuple(first.shape), tuple(last.shape)]
    if found != wanted or not hidden:  # which may be too large to be made
        raise UserError(f"{together}: the head is {found}, not {wanted}")
    model.set_submodule(name, make_head(first.shape[1], last.shape[0], hidden=hidden))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise UserError(f"{together}: {reason}") from error
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise UserError(f"{path} is damaged: it holds values that are no numbers")
    return SavedModel(model=Normalized(model, model).eval(), description=described)


def weights_info(described: RunDescription, weights: str) -> WeightsInfo:
    """The weights of a run, from those that its notebook was given."""
    told = described.weights
    digest = described.frozen_hash[0]
    file = Path(weights) / f"{told.name}.safetensors"
    if weights != "none":
        model = build_from_state(told.timm_name, read_weights(file), file)
        digest = state_hash(model)
    return WeightsInfo(**asdict(told), sha256=digest)


def described_data(described: RunDescription, given: Given) -> tuple[DataInfo, str, int]:
    """The images of a run as its record says them, the hash of their split, and how many train.

    Raises:
        UserError: the images, or how the notebook draws them, are others than here.
    """
    image_set = given.image_set
    if image_set.digest != described.data.digest:
        raise UserError(f"the images of {given.folder} have changed since the notebook read them")
    if printed(given.augmentation) != described.augmentation:
        name = given.augmentation.name
        raise UserError(f"the notebook draws other views than {name}: build it anew")
    fold = split_images(image_set, seed=described.seed)
    data = data_info(image_set, given.augmentation)
    return data, hash_of_split(image_set, fold), len(fold.train)


def study_record(model: Path, given: Given) -> StudyRecord:
    """The study's record of a run, from what its notebook has written beside `model` and what it
    was given.

    Raises:
        UserError: as `read_description` and `described_data`; the best epoch is not in the table.
    """
    described = read_description(model)
    stamp = model.stem.partition("_best_")[2]
    results = model.parents[1] / "result" / f"{described.weights.name}_results_{stamp}.csv"
    rows = pd.read_csv(results).to_dict("records")
    epochs = [Epoch(**{str(key): value for key, value in row.items()}) for row in rows]
    if described.best > len(epochs):
        raise UserError(f"{results} has no epoch {described.best}, which {model.name} was kept of")
    body = timm.create_model(described.weights.timm_name, num_classes=0)
    head = load_file(model.with_name(model.name.replace("_best_", "_head_")))
    trained = sum(tensor.numel() for tensor in head.values())
    settings = Settings(**described.settings)
    labels = described.val_labels
    pairs = zip(labels, described.val_predictions, strict=True)
    correct = sum(label == predicted for label, predicted in pairs)
    data, split_hash, n_train = described_data(described, given)
    return StudyRecord(
        stamp=stamp,
        data=(data,),
        weights=(weights_info(described, given.weights),),
        machine=replace(this_machine(), precision=described.precision),
        settings=settings,
        seed=described.seed,
        split_hash=split_hash,
        n_train=n_train,
        n_val=len(labels),
        head=HeadInfo(
            in_features=body.head_hidden_size, hidden=settings.hidden, dropout=settings.dropout
        ),
        mean=tuple(body.pretrained_cfg["mean"]),
        std=tuple(body.pretrained_cfg["std"]),
        parameters=count_parameters(body) + trained,
        trainable_parameters=trained,
        frozen_hash_before=described.frozen_hash[0],
        frozen_hash_after=described.frozen_hash[1],
        val_labels=labels,
        val_predictions=described.val_predictions,
        accuracy_interval=accuracy_interval(correct, len(labels)),
        macro_f1=float(f1_score(labels, described.val_predictions, average="macro")),
        timings=described.timings,
        epochs_run=len(epochs),
        best=epochs[described.best - 1],
        last=epochs[-1],
        highest=max(epochs, key=lambda row: row.val_acc),
    )


def write_summary(model: Path, given: Given) -> Path:
    """Writes the study's record of a run as result/NAME_summary_STAMP.json.

    Raises:
        UserError: as `study_record`; that file exists already.
    """
    record = study_record(model, given)
    name = f"{record.model}_summary_{record.stamp}.json"
    return write_text(model.parents[1] / "result" / name, to_json(record))

"""What the benchmarks share: their options and data, the points that are kept while unfinished, and
what a finished one leaves."""

import argparse
import functools
import hashlib
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import StratifiedKFold
from torch import nn

from transferlab.artifacts import (
    reserved_stamp,
    write_figure,
    write_new,
    write_table,
    write_text,
)
from transferlab.backbones import create_backbone
from transferlab.data import HeldOutFold, ImageSet, find_layout, split_images, split_indices
from transferlab.datasets import FACES, INSECTS, Dataset
from transferlab.decoded import load_folder
from transferlab.errors import UserError
from transferlab.heldout import INNER_SHARE, study_of_all
from transferlab.machine import Machine, autocast
from transferlab.plan import Plan, Point
from transferlab.pretrained import BACKBONES, WeightsInfo
from transferlab.records import BenchmarkRecord, to_json
from transferlab.store import (
    NO_STORE,
    Store,
    cache_bound,
    open_store,
    pack,
    trim_to_bound,
    unpack,
)
from transferlab.study import Frozen, Study, freeze_backbone
from transferlab.train import Settings
from transferlab.views import Renderer

ROOT = Path(__file__).parents[1]
FRESH_VIEWS = Settings(views=30, rule="cycle")  # a fresh random view in each of the 30 epochs
STUDIED = {dataset.name: dataset for dataset in (FACES, INSECTS)}  # the study's datasets
# The study's backbones, and two more that have pretrained weights.
WITH_WEIGHTS = (*BACKBONES, "tf_efficientnet_lite1", "tf_efficientnet_lite2")
FOLDER = "result/benchmarks"  # under --out: tables and records


# ---- options and data ------------------------------------------------------------------------


def make_parser(description: str, *, data: str, weights: str) -> argparse.ArgumentParser:
    """The parser of a benchmark with what all of them take; `data` and `weights` say which folders
    are needed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--data", required=True, help=data)
    parser.add_argument("--weights", required=True, help=weights)
    add_out(parser)
    return parser


def add_out(parser: argparse.ArgumentParser) -> None:
    """--out: where results go."""
    text = f"where {FOLDER} and img go (default: here)"
    parser.add_argument("--out", default=".", help=text)


def add_models(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """--models: the backbones that are measured."""
    text = f"default: {' '.join(default)}"
    parser.add_argument("--models", nargs="+", default=default, metavar="NAME", help=text)


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """--rounds: how often everything is measured."""
    parser.add_argument("--rounds", type=int, default=default, help="default: %(default)s")


def check_rounds(rounds: int) -> None:
    """Makes sure that something is measured.

    Raises:
        UserError: there is no round.
    """
    if rounds < 1:
        raise UserError(f"rounds is {rounds}: measure 1 or more")


def load_dataset(data: str | Path, dataset: Dataset) -> ImageSet:
    """The images of one of the study's datasets.

    Raises:
        UserError: `data` lacks it; as `load_folder`.
    """
    image_set = load_folder(find_layout(data, dataset.name).folder)
    if image_set.name != dataset.name:
        advice = "give the folder that holds it"
        raise UserError(f"{data} holds no {dataset.name}, but {image_set.name}: {advice}")
    return image_set


def all_images(
    data: str | Path, dataset: Dataset, settings: Settings, *, machine: Machine, store: Store
) -> Study:
    """A study whose training and validation images are all images of a dataset: what folds are cut
    from.

    Raises:
        UserError: `data` lacks the dataset.
    """
    return study_of_all(
        load_dataset(data, dataset),
        dataset.augmentation(224),
        settings,
        seed=0,
        machine=machine,
        store=store,
    )


def make_study(
    data: str | Path,
    *,
    dataset: Dataset = FACES,
    settings: Settings,
    machine: Machine,
    store: Store = NO_STORE,
    seed: int = 42,
    size: int = 224,
) -> Study:
    """A dataset split as the notebooks split it, at `size` px; features are kept in `store`."""
    image_set = load_folder(find_layout(data, dataset.name).folder)
    return Study(
        renderer=Renderer(image_set, dataset.augmentation(size), seed=seed),
        fold=split_images(image_set, val_size=0.35, seed=seed),
        settings=settings,
        machine=machine,
        seed=seed,
        store=store,
    )


def seed_folds(
    labels: torch.Tensor, *, k: int, seeds: Iterable[int], first: int | None = None
) -> list[HeldOutFold]:
    """`k` stratified folds (or the `first` so many of them), the same for every seed; the seed,
    which is the fold's `repeat`, splits off the inner validation images.

    Raises:
        UserError: a class has too few images.
    """
    splitter = StratifiedKFold(k, shuffle=True, random_state=0)
    splits = list(splitter.split(labels, labels))
    folds = []
    for seed in seeds:
        for number, (rest, test) in enumerate(splits[:first]):
            training = torch.from_numpy(rest)
            inner, val = split_indices(labels[training], val_size=INNER_SHARE, seed=seed)
            fold = HeldOutFold(
                train=training[inner],
                val=training[val],
                test=torch.from_numpy(test),
                repeat=seed,
                number=number,
            )
            folds.append(fold)
    return folds


@contextmanager
def feature_cache(folder: str | Path) -> Iterator[Store]:
    """The store of features in a folder; "" keeps nothing. It is brought back within its bound at
    the end, also after an error.

    Raises:
        UserError: as `cache_bound`.
    """
    cache_bound()  # an unusable one is said before any time is spent
    store = open_store(folder)
    try:
        yield store
    finally:
        trim_to_bound(store)


def find_weights(models: Sequence[str], weights: str) -> dict[str, WeightsInfo]:
    """What every backbone computes with that has pretrained weights; says which are left out.

    Raises:
        UserError: none has; as `create_backbone`.
    """
    infos = {name: create_backbone(name, weights)[1] for name in models}
    pretrained = {name: info for name, info in infos.items() if info.measures_transfer}
    if not pretrained:
        raise UserError(f"none of {', '.join(infos)} has pretrained weights here: give --weights")
    for name, info in infos.items():
        if name not in pretrained:
            print(f"left out: {name} ({info.source})")
    return pretrained


def join_plans(*plans: Plan) -> Plan:
    """The points of several plans, which have one store, as one plan."""
    return replace(plans[0], points=tuple(point for plan in plans for point in plan.points))


def check_weights(found: WeightsInfo, planned: WeightsInfo) -> None:
    """Makes sure that a backbone computes with the weights that the record and the points name.

    Raises:
        UserError: it has others.
    """
    if found.sha256 != planned.sha256:
        changed = f"the weights of {planned.name} have changed since the start"
        raise UserError(f"{changed}: run again")


def freeze_planned(planned: WeightsInfo, study: Study, *, weights: str) -> Frozen:
    """A frozen backbone, as `freeze_backbone`, with the weights that were found at the start.

    Raises:
        UserError: as `freeze_backbone` and `check_weights`.
    """
    frozen = freeze_backbone(planned.name, study, weights=weights)
    check_weights(frozen.info, planned)
    return frozen


def list_sources(infos: Iterable[WeightsInfo]) -> str:
    """Where weights come from, a line a backbone, for a figure's title."""
    lines = []
    for info in infos:
        source = textwrap.shorten(info.source, 110, placeholder=" ...")
        lines.append(f"{info.name}: {source}")
    return "\n".join(lines)


# ---- speed -----------------------------------------------------------------------------------


@torch.inference_mode()
def time_forwards(
    lower: nn.Module,
    images: torch.Tensor,
    batch_size: int,
    precision: torch.dtype,
    *,
    machine: Machine,
    seconds: float = 1.0,
) -> float:
    """Images a second of a frozen part on uint8 images [N, 3, H, W], which lie on its device;
    passes over all of them until `seconds` are over, at least one."""
    batches = images.split(batch_size)

    def forward(batch: torch.Tensor) -> None:
        with autocast(machine, precision):
            lower(batch).float()

    def finish() -> None:
        if machine.device == "cuda":
            torch.cuda.synchronize()

    for size in {len(batch) for batch in batches}:  # what is set up once for a shape is not counted
        forward(images[:size])
    finish()
    done = 0
    passed = 0.0
    started = time.perf_counter()
    while not done or passed < seconds:
        for batch in batches:
            forward(batch)
        finish()
        done += len(images)
        passed = time.perf_counter() - started
    return done / passed


# ---- points ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A dataset and a backbone."""

    dataset: str
    model: str

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the kept views of an image are used."""

    scheme: str  # as `benchmarks.views` names them
    views: int  # random ones, beside the clean view

    def __str__(self) -> str:
        return f"{self.scheme}, K = {self.views}"


@dataclass(frozen=True, kw_only=True)
class PointKey:
    """All that a point depends on."""

    benchmark: str
    point: str  # its name, unique within the benchmark
    used: str  # JSON of data, weights and settings
    machine: Machine
    code: str  # digest, see `code_digest`


def point_key(benchmark: str, point: str, *, used: Any, machine: Machine, code: str) -> PointKey:
    """A point's key; `used`: data, weights and settings, plain values and dataclasses."""
    text = json.dumps(used, default=asdict, sort_keys=True)
    return PointKey(benchmark=benchmark, point=point, used=text, machine=machine, code=code)


@functools.cache
def code_digest(*files: str) -> str:
    """SHA-256 (hex) of the code that a benchmark computes with: the library, this module, and the
    benchmark's own `files`."""
    paths = {Path(file).resolve() for file in (__file__, *files)}
    paths.update(ROOT.glob("transferlab/**/*.py"))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_point(key: PointKey, measure: Callable[[], Any], *, group: str = "") -> Point:
    """A point that gives plain JSON values, called as its key says."""

    def packed() -> dict[str, torch.Tensor]:
        return pack(measure())

    return Point(name=key.point, group=group or key.point, key=key, measure=packed)


def measured_values(plan: Plan, **limits: Any) -> Iterator[tuple[Point, Any]]:
    """Every point of `make_point` with its values, read where they are kept; `limits` are those of
    `Plan.measured`."""
    for point, kept in plan.measured(**limits):
        yield point, unpack(kept)


def prepare_out(out: str | Path) -> Path:
    """Makes the folders that results go to, before any time is spent.

    Raises:
        UserError: they cannot be written.
    """
    out = Path(out).expanduser()
    try:
        for name in (FOLDER, "img"):
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error}): give another --out") from error
    return out


def benchmark_store(out: str | Path, name: str) -> Store:
    """Where the points of an unfinished benchmark are kept.

    Raises:
        UserError: it cannot be written.
    """
    folder = prepare_out(out) / FOLDER / f"{name}_unfinished"
    return open_store(folder)


def forget(plan: Plan) -> None:
    """Deletes what is kept of a plan's points."""
    for point in plan.points:
        if plan.store.has(point.key):
            plan.store.path(point.key).unlink(missing_ok=True)


# ---- results ---------------------------------------------------------------------------------


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name, compressed, into a new file.

    Raises:
        UserError: it exists already, or cannot be written.
    """
    write_new(path, lambda temporary: np.savez_compressed(temporary, **arrays))


def write_results(
    out: str | Path,
    table: pd.DataFrame | list[dict[str, Any]],
    record: BenchmarkRecord,
    figure: Figure | None = None,
    finished: Plan | None = None,
    *,
    more: Mapping[str, pd.DataFrame] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Writes result/benchmarks/NAME_{stamp}.csv and .json and img/NAME_{stamp}.png, NAME being the
    record's kind -> the stamp. `more` tables become NAME_KEY_{stamp}.csv, `arrays`
    NAME_raw_{stamp}.npz.

    Then forgets the points of `finished`, which have gone into them, so that the next run measures
    anew.

    Raises:
        UserError: a file exists already, or the folders cannot be written.
    """
    out = prepare_out(out)
    rows = pd.DataFrame(table)
    with reserved_stamp(out) as stamp:
        name = f"{record.kind}_{stamp}"
        write_table(out / FOLDER / f"{name}.csv", rows)
        told = f"written: {FOLDER}/{name}.csv, .json"
        for key, other in (more or {}).items():
            write_table(out / FOLDER / f"{record.kind}_{key}_{stamp}.csv", other)
            told += f", {record.kind}_{key}_{stamp}.csv"
        if arrays is not None:
            write_arrays(out / FOLDER / f"{record.kind}_raw_{stamp}.npz", arrays)
            told += f", {record.kind}_raw_{stamp}.npz"
        write_text(out / FOLDER / f"{name}.json", to_json(replace(record, stamp=stamp)))
        if figure is not None:
            write_figure(out / f"img/{name}.png", figure)
            told += f" and img/{name}.png"
    if finished is not None:
        forget(finished)
    print(told)
    return stamp


def run_command(main: Callable[[], int]) -> NoReturn:
    """Runs a benchmark's `main` and ends the process with its exit code, or with 2 after a
    `UserError`, whose line goes to stderr."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

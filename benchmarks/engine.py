"""What keeping features costs and saves: many heads, ten times the epochs, a second run, memory.

    python -m benchmarks.engine --data DIR --weights DIR [--rounds N] [--out DIR]

ResNet50 on the manga faces by the study protocol (296/159, seed 42, 30 fresh views, no early
stopping), every round:

    heads_linear, heads_study   100 heads (20 seeds x 5 folds) trained together / one after another,
                                features given
    epochs_linear, epochs_study the whole run with 300 epochs / with 30, the same kept views
    second_run                  features read from disk / computed (start-up, ordinary epoch and
                                heads in neither)
    memory_mb                   peak memory (PSS of the process tree) of a whole run in a process of
                                its own
    memory_imports_mb           of which a process takes that has imported the libraries and does
                                nothing

Both sides of a ratio are measured in the same round. One after another, heads also evaluate the
clean view in every epoch, as `train` does and `train_many` does not; 20 of the 100 are timed.
Written: result/benchmarks/engine_{stamp}.csv, a row a quantity and round, and engine_{stamp}.json
with the machine, versions and weights.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from benchmarks.common import (
    FRESH_VIEWS,
    add_rounds,
    check_rounds,
    make_parser,
    make_study,
    prepare_out,
    run_command,
    write_results,
)
from benchmarks.memory import in_fresh_process
from transferlab.backbones import make_head
from transferlab.datasets import FACES
from transferlab.features import FROM_DISK
from transferlab.machine import Machine, this_machine
from transferlab.many import Job, train_many
from transferlab.pretrained import WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, DataInfo, data_info
from transferlab.store import open_store
from transferlab.study import Frozen, Study, freeze_backbone, train_study
from transferlab.train import Settings, TrainData, train

MODEL = "resnet50"
SETTINGS = replace(FRESH_VIEWS, patience=0)
LONG = replace(SETTINGS, epochs=300)
SEEDS = 20
FOLDS = 5
SEED = 42  # of the split, the views and the head
KINDS = ("linear", "study")  # of heads


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What was measured in a round."""

    name: str
    value: float  # the first of the seconds below over the second, or MB
    seconds: float | None = None
    reference: float | None = None

    def row(self, number: int) -> dict[str, Any]:
        """A row of the table, for round `number`."""
        return {
            "quantity": self.name,
            "round": number,
            "value": self.value,
            "seconds": self.seconds,
            "seconds_reference": self.reference,
        }


def make_ratio(name: str, seconds: float, reference: float) -> Quantity:
    """Seconds over those of what they are compared with."""
    return Quantity(name=name, value=seconds / reference, seconds=seconds, reference=reference)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round gave, and what it was measured on."""

    quantities: tuple[Quantity, ...]
    data: DataInfo
    weights: WeightsInfo


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A backbone with all of its features drawn."""

    frozen: Frozen
    views: torch.Tensor  # [31, 296, D] of the training images, the clean one first

    def feature_seconds(self) -> float:
        """What the features took, computed or read."""
        seconds = self.frozen.clock.seconds
        return sum(seconds.get(phase, 0.0) for phase in ("clean view", "training views", FROM_DISK))

    def seconds(self) -> float:
        """The whole run so far."""
        return sum(self.frozen.clock.seconds.values())


def new_head(kind: str, in_features: int, classes: int, seed: int) -> nn.Module:
    """A head that is one layer, or the study's."""
    if kind == "study":
        return make_head(in_features, classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(in_features, classes)


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---- many heads ------------------------------------------------------------------------------


def fold_jobs(views: torch.Tensor, labels: torch.Tensor) -> list[Job]:
    """A job a seed and fold, seed by seed, on `views` [1 + K, N, D]."""

    def view_of(epoch: int) -> torch.Tensor:
        return views[SETTINGS.view_of(epoch)]

    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    folds = list(splitter.split(labels, labels))
    jobs = []
    for seed in range(SEEDS):
        for rest, test in folds:
            job = Job(
                view_of=view_of,
                train_index=torch.from_numpy(rest),
                val_x=views[0],
                val_index=torch.from_numpy(test),
                seed=seed,
                patience=SETTINGS.patience,
            )
            jobs.append(job)
    return jobs


def train_alone(head: nn.Module, job: Job, views: torch.Tensor, labels: torch.Tensor) -> None:
    """Trains one head as its job says, on views of its own images."""
    index = job.train_index
    kept = [view[index] for view in views]
    data = TrainData(
        view_of=lambda epoch: kept[SETTINGS.view_of(epoch)],
        labels=labels[index],
        clean_x=kept[0],
        val_x=job.val_x[job.val_index],
        val_y=labels[job.val_index],
    )
    train(head, data, SETTINGS, seed=job.seed)


def time_heads(kind: str, views: torch.Tensor, labels: torch.Tensor) -> Quantity:
    """100 heads on `views` [1 + K, N, D] (the clean one first), together over one after another.

    One after another every fifth head is trained, and its seconds count five times.
    """
    jobs = fold_jobs(views, labels)
    classes = len(labels.unique())
    heads = [new_head(kind, views.shape[2], classes, job.seed) for job in jobs]
    alone = copy.deepcopy(heads[::FOLDS])

    def together() -> None:
        train_many(heads, jobs, labels, epochs=SETTINGS.epochs, batch_size=SETTINGS.batch_size)

    def one_after_another() -> None:
        for head, job in zip(alone, jobs[::FOLDS], strict=True):
            train_alone(head, job, views, labels)

    seconds = seconds_of(together)
    reference = FOLDS * seconds_of(one_after_another)
    return make_ratio(f"heads_{kind}", seconds, reference)


# ---- whole runs ------------------------------------------------------------------------------


def draw_all(model: str, study: Study, weights: str) -> Drawn:
    """All features of a whole run, kept in the study's store or read there."""
    frozen = freeze_backbone(model, study, weights=weights)
    features = frozen.features
    views = [features.train(view) for view in range(study.settings.views + 1)]
    return Drawn(frozen=frozen, views=torch.stack(views))


def time_epochs(kind: str, drawn: Drawn, study: Study) -> Quantity:
    """The whole run with ten times the epochs over the run with 30."""
    views = drawn.views
    clean = drawn.frozen.features.clean
    fold = study.fold
    data = TrainData(
        view_of=lambda epoch: views[SETTINGS.view_of(epoch)],
        labels=study.labels(fold.train),
        clean_x=views[0],
        val_x=clean[fold.val],
        val_y=study.labels(fold.val),
    )

    def whole_run(settings: Settings) -> float:
        head = new_head(kind, clean.shape[1], study.classes, study.seed)
        taken = seconds_of(partial(train, head, data, settings, seed=study.seed))
        return drawn.seconds() + taken

    short = whole_run(SETTINGS)
    return make_ratio(f"epochs_{kind}", whole_run(LONG), short)


def run_once(model: str, data: str, weights: str) -> None:
    """A whole run, in this process."""
    study = make_study(data, settings=SETTINGS, machine=this_machine(), seed=SEED)
    train_study(freeze_backbone(model, study, weights=weights), study)


def do_nothing() -> None:
    """What a process costs that has imported all of this."""


def measure_memory(name: str, function: str, *arguments: str) -> Quantity:
    """The peak memory of one of this module's functions in a process of its own."""
    returned = in_fresh_process(f"benchmarks.engine.{function}", *arguments)
    return Quantity(name=name, value=returned.peak_mb)


def measure_round(model: str, data: str, weights: str, machine: Machine) -> Round:
    """Every quantity once."""
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(
            data, settings=SETTINGS, machine=machine, seed=SEED, store=open_store(folder)
        )
        first = draw_all(model, study, weights)
        again = draw_all(model, study, weights)
    labels = study.labels(study.fold.train)
    found = [make_ratio("second_run", again.feature_seconds(), first.feature_seconds())]
    for kind in KINDS:
        found.append(time_epochs(kind, first, study))
        found.append(time_heads(kind, first.views, labels))
    found.append(measure_memory("memory_mb", "run_once", model, data, weights))
    found.append(measure_memory("memory_imports_mb", "do_nothing"))
    data_used = data_info(study.image_set, study.renderer.augmentation)
    return Round(quantities=tuple(found), data=data_used, weights=first.frozen.info)


# ---- the command -----------------------------------------------------------------------------


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    weights = f"a folder with {MODEL}'s weights"
    parser = make_parser(__doc__, data=f"a folder with {FACES.name}", weights=weights)
    add_rounds(parser, 3)
    return parser.parse_args(arguments)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A round's quantities."""
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, header=False, float_format="%.4f", na_rep=""), flush=True)


def make_record(last: Round, rounds: int, machine: Machine) -> BenchmarkRecord:
    """What the table was measured on, and how."""
    return BenchmarkRecord(
        kind="engine",
        data=(last.data,),
        weights=(last.weights,),
        machine=machine,
        settings=SETTINGS,
        seed=SEED,
        facts={"rounds": rounds},
    )


def main(arguments: list[str] | None = None, *, model: str = MODEL) -> int:
    """Measures, prints, writes -> exit code."""
    options = read_options(arguments)
    check_rounds(options.rounds)
    weights = check_weights_place(options.weights)
    prepare_out(options.out)
    machine = this_machine()
    rows = []
    for number in range(options.rounds):
        measured = measure_round(model, options.data, weights, machine)
        of_round = [quantity.row(number) for quantity in measured.quantities]
        print_rows(of_round)
        rows += of_round
    values = pd.DataFrame(rows).groupby("quantity").value
    print(values.agg(["median", "min", "max"]).to_string(float_format="%.3f"))
    write_results(options.out, pd.DataFrame(rows), make_record(measured, options.rounds, machine))
    return 0


if __name__ == "__main__":
    run_command(main)

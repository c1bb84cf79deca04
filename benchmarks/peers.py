"""How long the study and a probe take as others do them, and as we do.

    python -m benchmarks.peers --data DIR --weights DIR
                               [--rounds N] [--full] [--systems NAME ...] [--out DIR]

ResNet50 on the manga faces, backbone frozen and in eval mode everywhere. Three jobs, the systems of
each in benchmarks/peer_systems (a file for each family):

The study: 296/159 images (seed 42), the same transforms and head for all, Adam 1e-3, batch 32,
30 epochs, all 159 images validated after each.

    study                       the published loop: fp32, files read and decoded in every epoch,
                                DataLoader with 2 workers
    tuned                       that loop without keeping features at its best: bf16 where the CPU
                                computes in it, in validation too, channels_last, images decoded and
                                resized once, persistent workers
    fastai, lightning, hf       each as its users write it, fp32
    *_tuned                     each with what `tuned` has
    ours_same_views             as many random views kept as there are epochs: a fresh one in each,
                                as the peers draw them
    ours_default, ours_fp32     the views that the notebooks use; ours_fp32: those in fp32.
                                Validation images are fp32 in all of ours, and training images are
                                evaluated after every epoch too

A linear probe of all 455 images on 5 x 5 folds, its strength chosen inside each training fold:

    sklearn                     timm's features in fp32 through a DataLoader with 2 workers, then
                                StandardScaler and, fold by fold, GridSearchCV over
                                LogisticRegression on both cores
    sklearn_tuned               with what `tuned` has, and the folds side by side in two processes
    ours_probe, ours_probe_fp32 the probe of `transferlab compare`, features in the machine's fast
                                precision or in fp32

The same on the study's one split, which the closed-form classifier of Vyntri is made for:

    vyntri                      fitted on the 296 images, evaluated on the 159, its own views, fp32
    ours_probe_split, *_fp32    the probe of the 296, its strength chosen inside them

Every run is a process of its own; the order rotates from round to round. Round r trains all heads
with seed 42 + r (head, order, dropout, views; never the split); a probe has nothing to seed.
Measured: `seconds` from before the images are loaded to the end, `seconds_total` from the start of
the process, imports included, `peak_memory_mb` (PSS of the process tree, looked at twice a second),
of heads the accuracy at the epoch of lowest validation loss, of probes that on held-out images.
Checks that a run makes of itself are in no time: each epoch trains on every image once and
validates all, each held-out image is predicted, and no bit of the backbone changes.

In each round the peers' heads run 4 epochs, and 30 are reckoned from the start-up, the first epoch
and the median of the later ones; their accuracy stays empty. All else runs whole. With --full the
first round runs everything whole, and how far reckoning misses there is printed. Ratios are taken
round by round: the median with the smallest and the largest, beside the goal that it has here. What
finished is kept in result/benchmarks/peers_unfinished until all has; run again to go on. Written:
result/benchmarks/peers_{stamp}.csv (`epochs`: those that `seconds` stands for; `views`: fresh ones
in every epoch but for ours; both empty of probes), peers_{stamp}.json with machine, versions,
weights, goals and every epoch, and img/peers_{stamp}.png.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torchvision.datasets import ImageFolder

from benchmarks.common import (
    PointKey,
    add_rounds,
    benchmark_store,
    check_rounds,
    make_parser,
    make_point,
    point_key,
    run_command,
    write_results,
)
from benchmarks.memory import Watched, run_watched
from benchmarks.peer_systems.common import (
    HeldOutScore,
    PeerEpoch,
    Record,
    Task,
    crossed_folds,
    split_study,
)
from benchmarks.peer_systems.systems import (
    FOLDS,
    ROOT,
    STUDY,
    SYSTEMS,
    leave_out_missing,
    library_versions,
    settings_of,
    source_digest,
)
from benchmarks.peer_systems.table import (
    SHORT,
    Finished,
    Outcome,
    Run,
    Turn,
    describe_disagreement,
    find_outcomes,
    make_row,
    plot_bars,
    summarise,
)
from transferlab.backbones import create_backbone
from transferlab.data import ImageSet, find_layout
from transferlab.datasets import FACES
from transferlab.decoded import load_folder
from transferlab.errors import UserError
from transferlab.machine import Machine, this_machine
from transferlab.plan import Plan, Point
from transferlab.pretrained import WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store, unpack

NAME = "peers"
EPOCHS = 30
SEED = 42  # of the first round


# ---- what is compared ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What all runs share."""

    folder: Path  # of the images
    image_set: ImageSet
    weights: str  # as `create_backbone` takes them
    info: WeightsInfo
    size: int  # of the views, in pixels
    epochs: int
    machine: Machine


def same_images_for_all(folder: Path) -> ImageSet:
    """The images of a folder.

    Raises:
        UserError: systems would see different ones.
    """
    image_set = load_folder(folder)
    advice = "give the unsplit faces, where all systems see the same images"
    if image_set.split:
        raise UserError(f"{folder} is split already: {advice}")
    if image_set.rejected:
        first = image_set.rejected[0]
        reason = f"holds files that are no images: {first.path} ({first.reason})"
        raise UserError(f"{folder} {reason}: {advice}")
    listed = [Path(path) for path, _ in ImageFolder(folder).samples]
    seen = tuple(path.relative_to(folder).as_posix() for path in listed)
    if seen != image_set.paths:
        counts = f"{len(seen)} of its {len(image_set.paths)} images"
        raise UserError(f"{folder}: torchvision's ImageFolder lists {counts}: rename the others")
    return image_set


def prepare(options: argparse.Namespace) -> Comparison:
    """Finds images and weights before any time is spent.

    Raises:
        UserError: either cannot be used, or systems would see different images.
    """
    folder = find_layout(options.data, FACES.name).folder.resolve()
    image_set = same_images_for_all(folder)
    weights = check_weights_place(options.weights)
    _, info = create_backbone(options.model, weights)
    if not info.measures_transfer:
        needed = "this measurement needs pretrained weights"
        raise UserError(f"{options.model}: {info.source}; {needed}")
    return Comparison(
        folder=folder,
        image_set=image_set,
        weights=weights,
        info=info,
        size=options.size,
        epochs=options.epochs,
        machine=this_machine(),
    )


def plan_turns(systems: Sequence[str], kinds: Sequence[str]) -> list[Turn]:
    """All rounds, the systems in rotated order."""
    turns = []
    for number, kind in enumerate(kinds):
        start = number % len(systems)
        rotated = [*systems[start:], *systems[:start]]
        turns += [Turn(system=system, round=number, kind=kind) for system in rotated]
    return turns


# ---- one run ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run's process says of it."""

    seconds: float  # from before the images are loaded to the end of training
    ended: float  # then, in seconds since 1970, without the seconds of checks
    rows: tuple[PeerEpoch, ...]  # of a head
    held_out: HeldOutScore | None  # of a probe
    frozen_hash: str  # of the backbone


Measure = Callable[[Turn, Comparison], Run]


def check_job(record: Record, job: str, labels: torch.Tensor) -> None:
    """Makes sure that a run has done its job on images of those labels [N].

    Raises:
        RuntimeError: it has not, or its backbone was not frozen.
    """
    fold = split_study(labels)
    if job == STUDY:
        record.check_epochs(len(fold.train), len(fold.val))
    else:
        expected = crossed_folds(labels).repeats * len(labels) if job == FOLDS else len(fold.val)
        record.check_held_out(expected)
    record.check_frozen()


def run_one(options: argparse.Namespace) -> None:
    """Runs one system in this process and prints what it did as a line of JSON."""
    system = SYSTEMS[options.one]
    module = importlib.import_module(f"benchmarks.peer_systems.{system.module}")
    run = getattr(module, system.function)
    folder = Path(options.data)
    record = Record()
    task = Task(
        folder=folder,
        weights=options.weights,
        model=options.model,
        augmentation=FACES.augmentation(options.size),
        settings=settings_of(options.one, options.epochs),
        seed=options.seed,
        machine=this_machine(),
    )
    run(task, record)
    seconds = record.seconds()
    ended = time.time() - record.untimed_seconds
    check_job(record, system.job, torch.tensor(ImageFolder(folder).targets))
    report = Report(
        seconds=seconds,
        ended=ended,
        rows=tuple(record.rows),
        held_out=record.held_out,
        frozen_hash=record.frozen_hash,
    )
    print("\n" + json.dumps(asdict(report)))


def read_report(watched: Watched) -> Report | None:
    """What a process has said last; None where it failed or said something else."""
    if watched.code:
        return None
    try:
        *_, last = watched.stdout.strip().splitlines()
        return from_plain(Report, json.loads(last))
    except (ValueError, TypeError, AttributeError):
        return None


def measure_turn(
    turn: Turn, comparison: Comparison, *, watch: Callable[..., Watched] = run_watched
) -> Run:
    """Runs one system in a process of its own.

    Raises:
        UserError: the process failed.
    """
    epochs = comparison.epochs if turn.whole else min(SHORT, comparison.epochs)
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers",
        f"--one={turn.system}",
        f"--data={comparison.folder}",
        f"--weights={comparison.weights}",
        f"--model={comparison.info.name}",
        f"--size={comparison.size}",
        f"--epochs={epochs}",
        f"--seed={SEED + turn.round}",
    ]
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    watched = watch(command, interval=0.5, cwd=ROOT, env=os.environ | quiet)
    report = read_report(watched)
    if report is None:
        what = f"{turn.system} failed in round {turn.round} with exit code {watched.code}"
        last = " ".join(watched.stderr.strip().splitlines()[-1:])
        raise UserError(f"{what}: {last}")
    return Run(
        seconds=report.seconds,
        rows=report.rows,
        held_out=report.held_out,
        frozen_hash=report.frozen_hash,
        seconds_total=report.ended - watched.started,
        peak_memory_mb=watched.peak_mb,
    )


# ---- all runs --------------------------------------------------------------------------------


def key_of(turn: Turn, comparison: Comparison) -> PointKey:
    """What the run of a turn is kept under. Which other systems were chosen does not matter."""
    used = {
        "data": comparison.image_set.digest,
        "weights": comparison.info,
        "size": comparison.size,
        "settings": settings_of(turn.system, comparison.epochs),
        "seed": SEED + turn.round,
        "libraries": library_versions(turn.system),
    }
    code = source_digest(turn.system)
    return point_key(NAME, str(turn), used=used, machine=comparison.machine, code=code)


def plan_runs(
    turns: Sequence[Turn], comparison: Comparison, store: Store, measure: Measure
) -> Plan:
    """A point for each turn."""

    def point_of(turn: Turn) -> Point:
        return make_point(key_of(turn, comparison), lambda: asdict(measure(turn, comparison)))

    return Plan(points=tuple(point_of(turn) for turn in turns), store=store)


def measure_all(turns: Sequence[Turn], plan: Plan, epochs: int) -> list[Finished]:
    """Measures all turns, or reads what an earlier call has kept of them. Where one fails, all
    others are still measured.

    Raises:
        UserError: one or more failed; the others are kept.
    """
    finished = []
    failures = []
    for turn, point in zip(turns, plan.points, strict=True):
        try:
            kept = plan.store.tensors(point.key, point.measure)
            run = from_plain(Run, unpack(kept))
            row = make_row(turn, run, epochs)
        except UserError as error:
            print(f"error: {error}", flush=True)
            failures.append(str(error))
            continue
        finished.append(Finished(turn=turn, run=run, row=row))
        print(row.text(), flush=True)
    if failures:
        others = len(failures) - 1
        more = f" (and {others} more)" if others else ""
        advice = "what finished is kept: run again to go on, or choose with --systems"
        raise UserError(f"{failures[0]}{more}; {advice}")
    return finished


# ---- what is written -----------------------------------------------------------------------


def figure_caption(comparison: Comparison, kinds: Sequence[str]) -> str:
    """What was measured, where, and how often."""
    image_set = comparison.image_set
    info = comparison.info
    machine = comparison.machine
    drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
    data = f"{len(image_set.labels)} images of {image_set.name}{drawn}"
    where = f"{machine.processor}, {machine.threads} threads, rounds: {len(kinds)}"
    return f"{info.name} (weights: {info.source:.50}), {data}\n{where}; ×: times ours"


def all_library_versions() -> dict[str, str | None]:
    """The versions of what all systems need beyond transferlab."""
    versions: dict[str, str | None] = {}
    for system in SYSTEMS:
        versions |= library_versions(system)
    return versions


def describe(
    comparison: Comparison,
    kinds: Sequence[str],
    finished: Sequence[Finished],
    outcomes: Sequence[Outcome],
    missed: Sequence[str],
) -> BenchmarkRecord:
    """The record of all runs."""
    measured = {one.turn.system for one in finished}
    ordered = [system for system in SYSTEMS if system in measured]
    augmentation = FACES.augmentation(comparison.size)
    heads = [system for system in ordered if SYSTEMS[system].job == STUDY]
    facts = {
        "settings": {name: asdict(settings_of(name, comparison.epochs)) for name in heads},
        "size": comparison.size,
        "libraries": all_library_versions(),
        "kinds": list(kinds),
        "ratios": [outcome.text() for outcome in outcomes],
        "goals": [asdict(outcome) for outcome in outcomes],
        "short_against_full": list(missed),
        "left_out": [system for system in SYSTEMS if system not in measured],
        "runs": [one.facts() for one in finished],
    }
    return BenchmarkRecord(
        kind=NAME,
        data=(data_info(comparison.image_set, augmentation),),
        weights=(comparison.info,),
        machine=comparison.machine,
        seed=SEED,
        facts=facts,
    )


def report(
    out: str,
    comparison: Comparison,
    kinds: Sequence[str],
    finished: Sequence[Finished],
    plan: Plan,
) -> None:
    """Prints the medians and goals; writes rows, record and figure, into which all that was kept
    of the plan has gone."""
    rows = [one.row for one in finished]
    outcomes = find_outcomes(rows, comparison.machine)
    missed = describe_disagreement(finished, comparison.epochs)
    shown = pd.DataFrame([asdict(one) for one in summarise(rows)]).set_index("system")
    print(shown.astype(float).to_string(float_format="%.3f", na_rep=""))
    print("\n".join([*missed, *(outcome.text() for outcome in outcomes)]))
    table = pd.DataFrame([asdict(row) for row in rows])
    table = table.astype({"views": "Int64", "epochs": "Int64"})  # whole numbers, some missing
    record = describe(comparison, kinds, finished, outcomes, missed)
    figure = plot_bars(rows, figure_caption(comparison, kinds))
    write_results(out, table, record, figure, plan)


# ---- the command -----------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of this command."""
    parser = make_parser(
        __doc__,
        data="a folder with manga_facial_expressions",
        weights="a folder with resnet50's weights",
    )
    add_rounds(parser, 3)
    option = parser.add_argument
    option("--full", action="store_true", help="the first round runs everything whole")
    names = tuple(SYSTEMS)
    text = f"of {', '.join(names)} (default: all)"
    option("--systems", nargs="+", choices=names, default=names, metavar="NAME", help=text)
    hidden = argparse.SUPPRESS  # what a process is told, and what tests make small
    option("--one", choices=names, help=hidden)
    option("--model", default="resnet50", help=hidden)
    option("--size", type=int, default=224, help=hidden)
    option("--epochs", type=int, default=EPOCHS, help=hidden)
    option("--seed", type=int, default=SEED, help=hidden)
    return parser.parse_args(arguments)


def kinds_of_rounds(options: argparse.Namespace) -> list[str]:
    """The kind of each round."""
    kinds = ["short"] * options.rounds
    if options.full:
        kinds[0] = "full"
    return kinds


def main(arguments: Sequence[str] | None = None, *, measure: Measure = measure_turn) -> int:
    """Measures, prints, writes -> exit code.

    Raises:
        UserError: there is nothing to measure, or it cannot be measured.
    """
    options = parse(arguments)
    if options.one:
        run_one(options)
        return 0
    check_rounds(options.rounds)
    comparison = prepare(options)
    chosen = [system for system in SYSTEMS if system in options.systems]
    systems = leave_out_missing(chosen)
    if not systems:
        raise UserError("no system is left to measure")
    kinds = kinds_of_rounds(options)
    turns = plan_turns(systems, kinds)
    store = benchmark_store(options.out, NAME)
    plan = plan_runs(turns, comparison, store, measure)
    finished = measure_all(turns, plan, comparison.epochs)
    report(options.out, comparison, kinds, finished, plan)
    return 0


def end_as_interrupted(number: int, frame: Any) -> None:
    """Ends as Ctrl-C does: the process under measurement with it."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_as_interrupted)
    run_command(main)

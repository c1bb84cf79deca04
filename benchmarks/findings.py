"""What the study found, put to the test: a row a claim, with our test of it and the verdict.

    python -m benchmarks.findings --data DIR --weights DIR [--folds 5] [--repeats 5] [--epochs N]
                                  [--horizon N] [--out DIR] [--cache-dir DIR]

Held-out protocol on both datasets: stratified folds, 20 % of each training fold choose the epoch,
the test fold decides nothing. benchmarks/claims says which claim is about which training, and how
each is tested. Heads train twice: as the study does (30 epochs at most, stopping early), and for
`--horizon` epochs without stopping. A claim about the second is dropped, and named in the record,
unless 90 % of the folds of every training it is about have their lowest validation loss before
90 % of the horizon. Ablations: without dropout (p = 0), without augmentation (the clean view in
every epoch). All p of one table are adjusted for each other (Holm); a claim holds or fails only
where that leaves less than 0.05. Speed, by 95 % quantiles of the ratio of forwards in turn, and
size, which is counted, have no p.

`model.train()` on a "frozen" backbone: the study's split, one seed, `--epochs` epochs (default 30;
10 will do on a slow CPU). No parameter of it trains, but its BatchNorm normalises by the batch and
moves its statistics; against the same epochs with the backbone in eval mode.

Written: result/benchmarks/findings_{stamp}.csv, a row a claim and pair of data and backbone;
findings_{stamp}.json with what was dropped, machine, versions and weights; findings_raw_{stamp}.npz
with every prediction and curve that a verdict rests on; img/findings_{stamp}.png. What an
interrupted run has measured is not measured again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claims.curves import Curves, early_share, stop_never
from benchmarks.claims.drawn import plot_findings
from benchmarks.claims.held_out import (
    ABLATED,
    RANKED,
    STUDYS,
    Answers,
    Ended,
    HeldOut,
    Training,
    as_arrays,
    ask_both,
    ask_head,
    epochs_of,
    judge_backbones,
    judge_training,
    list_answering,
    list_ended,
    train_to_end,
)
from benchmarks.claims.judged import Claim, drop_unfinished, judge_together, taken_away
from benchmarks.claims.modes import judge_modes, train_in_both_modes
from benchmarks.claims.speed import judge_size, judge_speed, time_backbones
from benchmarks.common import (
    STUDIED,
    Pair,
    PointKey,
    all_images,
    benchmark_store,
    code_digest,
    feature_cache,
    find_weights,
    freeze_planned,
    join_plans,
    make_parser,
    make_point,
    make_study,
    measured_values,
    point_key,
    run_command,
    write_results,
)
from transferlab.commands.options import add_cache
from transferlab.data import Folds
from transferlab.errors import UserError
from transferlab.heldout import make_folds, predict_majority
from transferlab.machine import Machine, this_machine
from transferlab.metrics import ENOUGH_REPEATS
from transferlab.plan import Plan, Point
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info
from transferlab.store import Store
from transferlab.study import Frozen, Study, freeze_backbone

NAME = "findings"
HORIZON = 150  # epochs: the last of 25 folds of ResNet50 has its lowest validation loss at 126


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    folds: int
    repeats: int
    epochs: int  # in both modes of a frozen backbone
    horizon: int  # epochs of a training to its end
    cache_dir: str


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What everything is measured on."""

    options: Options
    studies: dict[str, Study]  # by dataset: of all its images
    folds: dict[str, Folds]  # by dataset
    split: Study  # the faces, split as the study did
    infos: dict[str, WeightsInfo]  # by backbone: of those that have pretrained weights

    @property
    def machine(self) -> Machine:
        """The machine that measures."""
        return self.split.machine

    def freeze(self, pair: Pair, weights: str) -> Frozen:
        """A backbone with "pretrained" or "random" weights.

        Raises:
            UserError: as `freeze_planned`.
        """
        study = self.studies[pair.dataset]
        if weights == "random":
            return freeze_backbone(pair.model, study, weights="none")
        return freeze_planned(self.infos[pair.model], study, weights=self.options.weights)


def needed_weights(weights: str) -> dict[str, WeightsInfo]:
    """What every backbone computes with that has pretrained weights.

    Raises:
        UserError: one of ABLATED has none; as `find_weights`.
    """
    ablated = [pair.model for pair in ABLATED]
    infos = find_weights([*ablated, *RANKED], weights)
    for name in ablated:
        if name not in infos:
            raise UserError(f"{name}: this measurement needs its pretrained weights")
    return infos


def check_options(options: Options) -> None:
    """Makes sure that there can be verdicts.

    Raises:
        UserError: too few repeats to see what training adds to chance, or a horizon that does not
            hold the study's epochs.
    """
    fewest = {"repeats": ENOUGH_REPEATS, "horizon": STUDYS.epochs}
    for name, least in fewest.items():
        given = getattr(options, name)
        if given < least:
            raise UserError(f"{name} is {given}: give {least} or more")


def prepare(options: Options, machine: Machine, store: Store) -> Setup:
    """Loads the data and looks for the weights.

    Raises:
        UserError: as `check_options`, `all_images`, `needed_weights` and `make_folds`.
    """
    check_options(options)
    studies = {
        name: all_images(options.data, dataset, STUDYS, machine=machine, store=store)
        for name, dataset in STUDIED.items()
    }
    infos = needed_weights(options.weights)
    sizes = {"k": options.folds, "repeats": options.repeats, "seed": 0}
    folds = {}
    for name, study in studies.items():
        images = study.image_set
        folds[name] = make_folds(images.labels, classes=images.classes, **sizes)
    settings = replace(STUDYS, epochs=options.epochs)
    return Setup(
        options=options,
        studies=studies,
        folds=folds,
        split=make_study(options.data, settings=settings, machine=machine, store=store),
        infos=infos,
    )


def describe(setup: Setup) -> BenchmarkRecord:
    """The record, before anything is measured."""
    options = setup.options
    data = [data_info(one.image_set, one.renderer.augmentation) for one in setup.studies.values()]
    return BenchmarkRecord(
        kind=NAME,
        data=tuple(data),
        weights=tuple(setup.infos.values()),
        machine=setup.machine,
        settings=STUDYS,
        seed=0,
        facts={
            "folds": options.folds,
            "repeats": options.repeats,
            "epochs": options.epochs,
            "horizon": options.horizon,
        },
    )


# ---- the plan --------------------------------------------------------------------------------


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays as a store keeps them."""
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def keep_ended(ended: Ended) -> dict[str, torch.Tensor]:
    """A training as a store keeps it."""
    return as_tensors({"picked": ended.picked, **vars(ended.curves)})


def kept_ended(kept: Mapping[str, torch.Tensor]) -> Ended:
    """A training as it was kept."""
    arrays = {name: tensor.numpy() for name, tensor in kept.items()}
    picked = arrays.pop("picked")
    return Ended(curves=Curves(**arrays), picked=picked)


def kept_answers(kept: Mapping[str, torch.Tensor]) -> Answers:
    """Answers as they were kept."""
    return Answers(**{name: tensor.numpy() for name, tensor in kept.items()})


@dataclass(frozen=True, kw_only=True)
class Part:
    """A training on folds, as the study trains or never stopping."""

    training: Training
    to_end: bool  # for all its epochs

    def __str__(self) -> str:
        how = "never stopping" if self.to_end else "as the study"
        return f"{self.training}, {how}"


def list_parts(setup: Setup) -> list[Part]:
    """All that is trained on folds, one backbone after the other."""
    parts = []
    for answering in list_answering(setup.infos):
        parts.append(Part(training=answering, to_end=False))
        frozen = (answering.pair, answering.weights)
        its = [one for one in list_ended() if (one.pair, one.weights) == frozen]
        parts += [Part(training=training, to_end=True) for training in its]
    return parts


def measure_part(
    setup: Setup, freeze: Callable[[Pair, str], Frozen], part: Part
) -> dict[str, torch.Tensor]:
    """Trains on all folds, as a store keeps it."""
    training = part.training
    frozen = freeze(training.pair, training.weights)
    study = setup.studies[training.pair.dataset]
    folds = setup.folds[training.pair.dataset]
    if not part.to_end:
        ask = ask_head if training.weights == "random" else ask_both
        return as_tensors(ask(frozen, study, folds).arrays)
    epochs = epochs_of(training, setup.options.horizon)
    return keep_ended(train_to_end(frozen, study, folds, variant=training.variant, epochs=epochs))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plans:
    """What is measured."""

    parts: Plan  # a point each of `list_parts`
    others: Plan  # speed and modes

    @property
    def whole(self) -> Plan:
        """All of it."""
        return join_plans(self.parts, self.others)


def make_plans(setup: Setup, record: BenchmarkRecord) -> Plans:
    """A point a training, then speed and modes."""
    store = benchmark_store(setup.options.out, NAME)
    weights = setup.options.weights
    claims = Path(__file__).parent / "claims"
    code = code_digest(__file__, *map(str, claims.glob("*.py")))
    freeze = functools.lru_cache(maxsize=1)(setup.freeze)  # one at a time stays in memory

    def key(name: str) -> PointKey:
        return point_key(NAME, name, used=record, machine=record.machine, code=code)

    def modes() -> dict[str, Any]:
        return asdict(train_in_both_modes(setup.infos["resnet50"], setup.split, weights))

    points = []
    for part in list_parts(setup):
        name = str(part)
        measure = functools.partial(measure_part, setup, freeze, part)
        points.append(Point(name=name, group=name, key=key(name), measure=measure))
    others = (
        make_point(key("speed"), functools.partial(time_backbones, setup.split, weights)),
        make_point(key("modes"), modes),
    )
    return Plans(
        parts=Plan(points=tuple(points), store=store), others=Plan(points=others, store=store)
    )


def accuracies(answers: Answers, labels: np.ndarray) -> dict[str, float]:
    """The accuracy of the head and, where it was asked, of the probe."""
    return {name: float((one == labels).mean()) for name, one in answers.arrays.items()}


def told_answers(answers: Answers, labels: np.ndarray) -> str:
    """The accuracies of the study's head and of the exact probe."""
    told = [f"{name} {share:.1%}" for name, share in accuracies(answers, labels).items()]
    return f"{', '.join(told)} on test folds"


def told_end(curves: Curves) -> str:
    """When the folds of a training have their lowest validation loss."""
    lowest = curves.chosen(stop_never) + 1
    middle = np.median(lowest)
    early = early_share(curves)
    return f"lowest validation loss at epoch {middle:g} (median), {early:.0%} of the folds in time"


def measure(setup: Setup, plans: Plans) -> tuple[HeldOut, dict[str, Any]]:
    """Everything -> (what the folds gave, the values of speed and modes by name); prints each
    part's outcome."""
    images = {name: study.image_set for name, study in setup.studies.items()}
    labels = {name: one.labels.numpy() for name, one in images.items()}
    majority = {}
    for name, folds in setup.folds.items():
        majority[name] = predict_majority(images[name], folds).probabilities.argmax(2)
    answers = {}
    ended = {}
    for part, (_, kept) in zip(list_parts(setup), plans.parts.measured(), strict=True):
        training = part.training
        if part.to_end:
            ended[training] = kept_ended(kept)
            told = told_end(ended[training].curves)
        else:
            answers[training] = kept_answers(kept)
            told = told_answers(answers[training], labels[training.pair.dataset])
        print(f"{part}: {told}", flush=True)
    found = HeldOut(
        labels=labels, folds=setup.folds, majority=majority, answers=answers, ended=ended
    )
    others = {point.name: value for point, value in measured_values(plans.others)}
    return found, others


# ---- what follows ----------------------------------------------------------------------------


def judge_each(found: HeldOut, others: Mapping[str, Any]) -> list[Claim]:
    """Every claim by itself."""
    claims = judge_backbones(found)
    claims += judge_speed(others["speed"])
    claims.append(judge_size())
    for pair in ABLATED:
        claims += judge_training(found, pair)
    claims.append(judge_modes(others["modes"]["correct"]))
    return claims


def trained_facts(found: HeldOut) -> dict[str, Any]:
    """What a record says of every training: accuracies, and whether it came to its end."""
    accuracy = {}
    for training, answers in found.answers.items():
        labels = found.labels[training.pair.dataset]
        accuracy[str(training)] = accuracies(answers, labels)
    ended = {}
    for training, one in found.ended.items():
        lowest = one.curves.chosen(stop_never) + 1
        ended[str(training)] = {
            "epochs": one.curves.epochs,
            "median_epoch": float(np.median(lowest)),
            "early_share": early_share(one.curves),
        }
    return {"accuracy": accuracy, "ended": ended}


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    numbers = {"folds": 5, "repeats": 5, "epochs": STUDYS.epochs, "horizon": HORIZON}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Measures, judges, prints, writes -> exit code."""
    options = parse(arguments)
    with feature_cache(options.cache_dir) as store:
        setup = prepare(options, machine or this_machine(), store)
        record = describe(setup)
        plans = make_plans(setup, record)
        found, others = measure(setup, plans)
    kept, dropped = drop_unfinished(judge_each(found, others), found.unfinished)
    claims = judge_together(kept)
    for one in [*claims, *dropped]:
        print(one)
    for one in taken_away(claims):
        print(f"only alone it {one.alone}: {one.claim} ({one.model}), p {one.p:.3g}")
    facts = trained_facts(found) | {"dropped": [asdict(one) for one in dropped]} | others
    counted = f"{options.folds} folds x {options.repeats}"
    tested = sum(one.p is not None for one in claims)
    small_print = f"95 % intervals, held-out folds ({counted}); colours after Holm over {tested}"
    write_results(
        options.out,
        [claim.row() for claim in claims],
        replace(record, facts=record.facts | facts),
        plot_findings(claims, small_print),
        plans.whole,
        arrays=as_arrays(found),
    )
    return 0


if __name__ == "__main__":
    run_command(main)

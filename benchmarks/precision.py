"""Does a comparison say the same when its clean features are computed in the machine's fast
precision?

    python -m benchmarks.precision --data DIR --weights DIR [--models NAME ...] [--repeats N]
                                   [--out DIR] [--cache-dir DIR]

Of every backbone whose pretrained weights are at hand, on both datasets in pictures of the
backbone's own size: clean features in fp32 and in the fast precision (bf16 where the hardware has
it), and the exact probe on both, its strength chosen inside the same 5 stratified folds x 5.

change     The change of accuracy and log-loss, fast less fp32, of each pair of data and backbone,
           and the mean over all pairs. 95 % percentile intervals of a bootstrap over images (Efron
           1979, Annals of Statistics 7, p. 1): one draw of a dataset's images serves all its
           backbones, since an image is hard for all of them; each dataset has draws of its own.
verdict    Every two backbones on each dataset, judged in both precisions by the paired test with
           Holm. z: difference / error; z_crit: the normal quantile at the level of the pair's step,
           5 % / (M - k + 1) for the k-th smallest p of M.
seconds    The forwards of all faces, rendered before, in both precisions in turn; nothing that is
           set up once counts.

The rule: the fast precision passes if the pooled interval of accuracy lies inside 0.5 points on
either side of no change, that of log-loss inside 0.01, and every verdict that changes has
||z| - z_crit| < 0.3 in both precisions.

Expect, with seven backbones on two cores with bf16: ten minutes; bf16 passes.
Written: result/benchmarks/precision_{stamp}.csv, .json and precision_raw_{stamp}.npz, every
image's probabilities. What an interrupted run has measured is not measured again.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from benchmarks.common import (
    STUDIED,
    WITH_WEIGHTS,
    Pair,
    add_models,
    benchmark_store,
    code_digest,
    feature_cache,
    find_weights,
    freeze_planned,
    join_plans,
    load_dataset,
    make_parser,
    point_key,
    run_command,
    write_results,
)
from transferlab.backbones import input_size
from transferlab.commands.options import PRECISIONS, add_cache, positive
from transferlab.data import Folds, ImageSet
from transferlab.datasets import FACES
from transferlab.errors import UserError
from transferlab.features import extract_ahead
from transferlab.heldout import (
    Predictions,
    keep_predictions,
    kept_predictions,
    make_folds,
    predict_with_probes,
    study_of_all,
)
from transferlab.machine import Machine, this_machine
from transferlab.metrics import ENOUGH_REPEATS, Interval, percentile_interval
from transferlab.plan import Plan, Point
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store, pack, unpack
from transferlab.study import Frozen, Study
from transferlab.train import Settings
from transferlab.verdicts import PairTest, compare_pairs
from transferlab.views import BLOCK

NAME = "precision"
CLEAN_ALONE = Settings(views=0)
EXACT = torch.float32
FOLDS = 5
ROUNDS = 3  # of the forwards, in both precisions each
RESAMPLES = 10_000
RANDOM_SEED = 0  # of the folds and of the bootstrap

POINTS_MARGIN = 0.5  # points of accuracy, either side
LOSS_MARGIN = 0.01  # nats, either side
Z_MARGIN = 0.3  # how far from its critical value a verdict that changes may lie
LEVEL = 0.05  # of all verdicts on a dataset together

RULE = (
    "passes if the pooled 95 % interval of the change of accuracy lies inside "
    f"±{POINTS_MARGIN} points and that of log-loss inside ±{LOSS_MARGIN}, and every verdict that "
    f"changes has ||z| - z_crit| < {Z_MARGIN} in both precisions"
)
RESAMPLING = (
    "Images are resampled jointly over the backbones of a dataset, each dataset on its own; "
    "predictions of one image in several repeats stay together."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    models: Sequence[str]
    repeats: int  # of the cross-validation
    cache_dir: str


# ---- the change of accuracy and log-loss -----------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the probes of one pair of data and backbone say of every image while held out."""

    exact: Predictions  # on features in fp32
    fast: Predictions  # on those in the fast precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How predictions do on each image, means over repeats."""

    accuracy: np.ndarray  # [N], points
    log_loss: np.ndarray  # [N], nats


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mean in the fast precision less that in fp32, with its 95 % interval."""

    mean: float
    interval: Interval

    def inside(self, margin: float) -> bool:
        """Whether the whole interval lies closer to no change than `margin`."""
        return -margin < self.interval.low and self.interval.high < margin

    def text(self, digits: int) -> str:
        """As +0.02 [-0.11, +0.15]."""
        low = f"{self.interval.low:+.{digits}f}"
        high = f"{self.interval.high:+.{digits}f}"
        return f"{self.mean:+.{digits}f} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the fast precision changes."""

    accuracy: Change  # points
    log_loss: Change  # nats


def outcome_of(predictions: Predictions, labels: np.ndarray) -> Outcome:
    """How predictions do on the images of those labels, int [N]."""
    probabilities = predictions.probabilities.astype(np.float64)
    correct = probabilities.argmax(2) == labels
    of_true = probabilities[:, np.arange(len(labels)), labels]
    losses = -np.log(np.clip(of_true, 1e-15, 1))
    return Outcome(accuracy=100 * correct.mean(0), log_loss=losses.mean(0))


def outcome_change(answers: Answers, labels: np.ndarray) -> Outcome:
    """How much better or worse each image fares in the fast precision."""
    exact = outcome_of(answers.exact, labels)
    fast = outcome_of(answers.fast, labels)
    return Outcome(accuracy=fast.accuracy - exact.accuracy, log_loss=fast.log_loss - exact.log_loss)


def draw_images(sizes: Mapping[str, int], count: int) -> dict[str, np.ndarray]:
    """Draws `count` bootstrap samples of the images of each dataset, {dataset: N} -> the share that
    an image has in each sample, {dataset: [count, N]}."""
    random = np.random.default_rng(RANDOM_SEED)
    shares = {}
    for dataset, n in sizes.items():
        times = random.multinomial(n, np.full(n, 1 / n), size=count)
        shares[dataset] = times / n
    return shares


def change_of(by_image: Mapping[Pair, np.ndarray], shares: Mapping[str, np.ndarray]) -> Change:
    """The mean over pairs of a change that is known of every image, {pair: [N]}."""
    means = [values.mean() for values in by_image.values()]
    samples = [shares[pair.dataset] @ values for pair, values in by_image.items()]
    return Change(
        mean=float(np.mean(means)), interval=percentile_interval(np.mean(samples, axis=0))
    )


def pooled_changes(found: Mapping[Pair, Outcome], shares: Mapping[str, np.ndarray]) -> Changes:
    """The mean over some pairs of the changes of their images."""
    accuracies = {pair: one.accuracy for pair, one in found.items()}
    losses = {pair: one.log_loss for pair, one in found.items()}
    return Changes(accuracy=change_of(accuracies, shares), log_loss=change_of(losses, shares))


# ---- verdicts --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A paired test of two backbones, and what Holm held it against."""

    pair: PairTest
    z_crit: float  # what |z| had to exceed

    @property
    def z(self) -> float:
        """Difference / error; 0 for the same predictions."""
        test = self.pair.test
        return test.difference / test.error if test.error else 0.0

    @property
    def distance(self) -> float:
        """How far |z| lies from what it had to exceed."""
        return abs(abs(self.z) - self.z_crit)

    def values(self) -> dict[str, Any]:
        """The test as plain values."""
        return {
            "difference": self.pair.test.difference,
            "error": self.pair.test.error,
            "p": self.pair.test.p,
            "p_holm": self.pair.p_holm,
            "z": self.z,
            "z_crit": self.z_crit,
            "distance": self.distance,
            "verdict": self.pair.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class JudgedTwice:
    """Two backbones on one dataset, judged in both precisions."""

    dataset: str
    exact: Judged
    fast: Judged

    @property
    def changed(self) -> bool:
        """Whether the verdicts differ, in more than why they are not told apart."""
        exact = self.exact.pair
        fast = self.fast.pair
        decided = exact.told_apart or fast.told_apart
        return decided and exact.verdict != fast.verdict

    @property
    def near(self) -> bool:
        """Whether |z| is close to its critical value in both precisions."""
        return max(self.exact.distance, self.fast.distance) < Z_MARGIN

    def text(self, fast: str) -> str:
        """The line that lists it; `fast`: what the fast precision is called."""
        pair = self.exact.pair
        told = f"{self.dataset}, {pair.model_a} less {pair.model_b}"
        for precision, one in (("fp32", self.exact), (fast, self.fast)):
            p = one.values()["p_holm"]
            z = f"z = {one.z:+.2f}, z_crit = {one.z_crit:.2f}"
            told += f"; {precision}: {one.pair.verdict}, p = {p:.4f} (Holm), {z}"
        return told

    def row(self) -> dict[str, Any]:
        """Both tests as a row of a table."""
        pair = self.exact.pair
        row: dict[str, Any] = {"model_a": pair.model_a, "model_b": pair.model_b}
        for precision, one in (("fp32", self.exact), ("fast", self.fast)):
            row |= {f"{name}_{precision}": value for name, value in one.values().items()}
        row["changed"] = self.changed
        return row


def critical_values(p_values: Sequence[float]) -> list[float]:
    """What |z| had to exceed for each of M p-values: Holm judges the k-th smallest at
    5 % / (M - k + 1) (Holm 1979, Scandinavian Journal of Statistics 6, p. 65)."""
    found = np.empty(len(p_values))
    for rank, place in enumerate(np.argsort(p_values)):
        level = LEVEL / (len(p_values) - rank)
        found[place] = stats.norm.isf(level / 2)
    return found.tolist()


def judge(found: Mapping[str, Predictions], labels: np.ndarray, folds: Folds) -> list[Judged]:
    """Every two backbones of a dataset in one precision; `labels` int [N]."""
    tests = compare_pairs(found, labels, folds)
    critical = critical_values([one.test.p for one in tests])
    return [Judged(pair=one, z_crit=z_crit) for one, z_crit in zip(tests, critical, strict=True)]


def judge_twice(
    dataset: str, found: Mapping[str, Answers], labels: np.ndarray, folds: Folds
) -> list[JudgedTwice]:
    """Every two backbones of a dataset in both precisions; `found`: {model: its answers}."""
    exact = judge({model: one.exact for model, one in found.items()}, labels, folds)
    fast = judge({model: one.fast for model, one in found.items()}, labels, folds)
    pairs = zip(exact, fast, strict=True)
    return [JudgedTwice(dataset=dataset, exact=before, fast=after) for before, after in pairs]


# ---- the decision ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the fast precision passes the rule."""

    accuracy_inside: bool
    log_loss_inside: bool
    verdicts_near: bool  # all that change; also where none does
    why: str

    @property
    def passes(self) -> bool:
        """All of it."""
        return self.accuracy_inside and self.log_loss_inside and self.verdicts_near


def inside_text(change: Change, margin: float, digits: int) -> str:
    """A pooled change, and whether it keeps within the margin."""
    words = "inside" if change.inside(margin) else "not inside"
    return f"{change.text(digits)}, {words} ±{margin}"


def changed_text(judged: Sequence[JudgedTwice]) -> str:
    """How many verdicts change, and how many of those were no close call."""
    changed = [one for one in judged if one.changed]
    far = [one for one in changed if not one.near]
    told = f"{len(changed)} of {len(judged)} verdicts change"
    return f"{told}, {len(far)} of them {Z_MARGIN} or more from the critical value"


def decide(pooled: Changes, judged: Sequence[JudgedTwice]) -> Decision:
    """The rule."""
    reasons = [
        f"points of accuracy {inside_text(pooled.accuracy, POINTS_MARGIN, 2)}",
        f"log-loss {inside_text(pooled.log_loss, LOSS_MARGIN, 4)}",
        changed_text(judged),
    ]
    return Decision(
        accuracy_inside=pooled.accuracy.inside(POINTS_MARGIN),
        log_loss_inside=pooled.log_loss.inside(LOSS_MARGIN),
        verdicts_near=all(one.near for one in judged if one.changed),
        why="; ".join(reasons),
    )


# ---- seconds ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """What the forwards of the same images took, a value a round."""

    exact: tuple[float, ...]
    fast: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Seconds in fp32 / those in the fast precision, the median over rounds."""
        return float(np.median(np.divide(self.exact, self.fast)))


def time_precisions(
    lower: nn.Module, images: torch.Tensor, machine: Machine, rounds: int = ROUNDS
) -> Seconds:
    """Forwards of uint8 images [N, 3, H, W], in fp32 and the fast precision in turn."""
    fast = machine.precision_of(1)

    def forward(part: torch.Tensor, precision: torch.dtype) -> float:
        started = time.perf_counter()
        extract_ahead(lower, part, machine=machine, precision=precision)
        return time.perf_counter() - started

    blocks = images.split(BLOCK)
    for block in (blocks[0], blocks[-1]):  # what is set up once for a shape is not counted
        forward(block, EXACT)
        forward(block, fast)
    in_exact = []
    in_fast = []
    for _ in range(rounds):
        in_exact.append(forward(images, EXACT))
        in_fast.append(forward(images, fast))
    return Seconds(exact=tuple(in_exact), fast=tuple(in_fast))


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What everything is measured on."""

    options: Options
    machine: Machine
    store: Store  # of features
    images: dict[str, ImageSet]  # by dataset
    folds: dict[str, Folds]  # by dataset
    infos: dict[str, WeightsInfo]  # by backbone: of those with pretrained weights

    @property
    def pairs(self) -> list[Pair]:
        """Every backbone on every dataset."""
        return [Pair(dataset=data, model=name) for data in self.images for name in self.infos]

    @property
    def timed(self) -> list[Pair]:
        """What is timed: every backbone on the faces."""
        return [Pair(dataset=FACES.name, model=name) for name in self.infos]

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Those of each dataset, int [N]."""
        return {dataset: images.labels.numpy() for dataset, images in self.images.items()}

    @property
    def fast(self) -> str:
        """What the fast precision is called, as bf16."""
        return next(name for name, one in PRECISIONS.items() if one == self.machine.precision)

    def study(self, pair: Pair) -> Study:
        """All images of a dataset, in pictures of the backbone's own size."""
        return study_of_all(
            self.images[pair.dataset],
            STUDIED[pair.dataset].augmentation(input_size(pair.model)),
            CLEAN_ALONE,
            seed=RANDOM_SEED,
            machine=self.machine,
            store=self.store,
        )

    def freeze(self, pair: Pair) -> Frozen:
        """A backbone on all images of a dataset.

        Raises:
            UserError: as `freeze_planned`.
        """
        return freeze_planned(
            self.infos[pair.model], self.study(pair), weights=self.options.weights
        )


def check_options(options: Options, machine: Machine) -> None:
    """Makes sure that there is something to compare, and that verdicts can be reached.

    Raises:
        UserError: the machine computes nothing faster than fp32; too few repeats.
    """
    if machine.precision == str(EXACT):
        raise UserError(f"nothing to compare: {machine.processor} has no precision beside fp32")
    if options.repeats < ENOUGH_REPEATS:
        reason = "with fewer no verdict is reached"
        raise UserError(f"--repeats {options.repeats}: give {ENOUGH_REPEATS} or more, {reason}")


def prepare(options: Options, machine: Machine, store: Store) -> Setup:
    """Loads the data, cuts the folds and looks for the weights.

    Raises:
        UserError: as `load_dataset`, `make_folds` and `find_weights`.
    """
    images = {name: load_dataset(options.data, dataset) for name, dataset in STUDIED.items()}
    folds = {}
    for name, one in images.items():
        folds[name] = make_folds(
            one.labels, k=FOLDS, repeats=options.repeats, seed=RANDOM_SEED, classes=one.classes
        )
    return Setup(
        options=options,
        machine=machine,
        store=store,
        images=images,
        folds=folds,
        infos=find_weights(options.models, options.weights),
    )


def clean_features(frozen: Frozen, precision: str) -> torch.Tensor:
    """The clean view of all images, fp32 [N, D], computed in a precision."""
    machine = replace(frozen.features.machine, clean_precision=precision)
    return replace(frozen.features, machine=machine).clean


def answers_of(setup: Setup, pair: Pair) -> Answers:
    """The probe's predictions on a pair, in both precisions, on the same folds."""
    frozen = setup.freeze(pair)
    images = setup.images[pair.dataset]
    folds = setup.folds[pair.dataset]
    exact = clean_features(frozen, str(EXACT))
    fast = clean_features(frozen, setup.machine.precision)
    return Answers(
        exact=predict_with_probes(exact, images, folds),
        fast=predict_with_probes(fast, images, folds, precision=setup.machine.precision_of(1)),
    )


def seconds_of(setup: Setup, pair: Pair) -> Seconds:
    """What a backbone's forwards of all images of a dataset take."""
    features = setup.freeze(pair).features
    everything = torch.arange(len(features.renderer.image_set.labels))
    images = torch.cat(list(features.renderer.blocks(0, everything)))
    return time_precisions(features.lower, images, setup.machine)


def keep_answers(answers: Answers) -> dict[str, torch.Tensor]:
    """Answers as a store keeps them."""
    exact = {f"exact/{name}": kept for name, kept in keep_predictions(answers.exact).items()}
    fast = {f"fast/{name}": kept for name, kept in keep_predictions(answers.fast).items()}
    return exact | fast


def kept_answers(kept: Mapping[str, torch.Tensor]) -> Answers:
    """Answers as they were kept."""
    parts: dict[str, dict[str, torch.Tensor]] = {"exact": {}, "fast": {}}
    for name, tensor in kept.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return Answers(exact=kept_predictions(parts["exact"]), fast=kept_predictions(parts["fast"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plans:
    """What is measured, part by part."""

    answers: Plan  # a point a pair
    seconds: Plan  # a point a backbone

    @property
    def whole(self) -> Plan:
        """All of it."""
        return join_plans(self.answers, self.seconds)


def point_of(setup: Setup, name: str, pair: Pair, measure: Callable[[], Any]) -> Point:
    """A point on one backbone and one dataset, whatever else is measured beside it."""
    study = setup.study(pair)
    used = {
        "data": data_info(study.image_set, study.renderer.augmentation),
        "weights": setup.infos[pair.model],
        "folds": setup.folds[pair.dataset].hash,
    }
    code = code_digest(__file__)
    key = point_key(NAME, f"{name}: {pair}", used=used, machine=setup.machine, code=code)
    return Point(name=key.point, group=key.point, key=key, measure=measure)


def make_plans(setup: Setup) -> Plans:
    """A point a pair, and a point a backbone."""
    store = benchmark_store(setup.options.out, NAME)

    def answers(pair: Pair) -> dict[str, torch.Tensor]:
        return keep_answers(answers_of(setup, pair))

    def seconds(pair: Pair) -> dict[str, torch.Tensor]:
        return pack(asdict(seconds_of(setup, pair)))

    of_answers = [
        point_of(setup, "answers", pair, functools.partial(answers, pair)) for pair in setup.pairs
    ]
    of_seconds = [
        point_of(setup, "seconds", pair, functools.partial(seconds, pair)) for pair in setup.timed
    ]
    return Plans(
        answers=Plan(points=tuple(of_answers), store=store),
        seconds=Plan(points=tuple(of_seconds), store=store),
    )


def measure_answers(setup: Setup, plan: Plan) -> dict[Pair, Answers]:
    """The predictions on every pair; prints how they do."""
    found = {}
    for pair, (_, kept) in zip(setup.pairs, plan.measured(), strict=True):
        answers = kept_answers(kept)
        labels = setup.labels[pair.dataset]
        accuracy = outcome_of(answers.exact, labels).accuracy.mean()
        change = outcome_change(answers, labels).accuracy.mean()
        print(f"{pair}: {accuracy:.1f} % in fp32, {change:+.2f} in {setup.fast}", flush=True)
        found[pair] = answers
    return found


def measure_seconds(setup: Setup, plan: Plan) -> dict[Pair, Seconds]:
    """The seconds of every backbone; prints them."""
    found = {}
    for pair, (_, kept) in zip(setup.timed, plan.measured(), strict=True):
        seconds = from_plain(Seconds, unpack(kept))
        exact = f"{np.median(seconds.exact):.1f} s in fp32"
        fast = f"{np.median(seconds.fast):.1f} s in {setup.fast}"
        print(f"{pair}: {exact}, {fast}, ratio {seconds.ratio:.2f}", flush=True)
        found[pair] = seconds
    return found


# ---- what follows ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """All that the predictions say."""

    by_pair: dict[Pair, Changes]
    pooled: Changes
    judged: list[JudgedTwice]
    decision: Decision

    @property
    def changed(self) -> list[JudgedTwice]:
        """The verdicts that change."""
        return [one for one in self.judged if one.changed]


def analyse(
    found: Mapping[Pair, Answers],
    labels: Mapping[str, np.ndarray],
    folds: Mapping[str, Folds],
    count: int = RESAMPLES,
) -> Analysis:
    """Compares the precisions; `labels`, int [N], and `folds` by dataset."""
    by_image = {pair: outcome_change(one, labels[pair.dataset]) for pair, one in found.items()}
    sizes = {dataset: len(its_labels) for dataset, its_labels in labels.items()}
    shares = draw_images(sizes, count)
    pooled = pooled_changes(by_image, shares)
    judged = []
    for dataset, its_labels in labels.items():
        its = {pair.model: one for pair, one in found.items() if pair.dataset == dataset}
        judged += judge_twice(dataset, its, its_labels, folds[dataset])
    return Analysis(
        by_pair={pair: pooled_changes({pair: one}, shares) for pair, one in by_image.items()},
        pooled=pooled,
        judged=judged,
        decision=decide(pooled, judged),
    )


def print_analysis(analysis: Analysis, fast: str) -> None:
    """The changes, the verdicts that change, and the decision; `fast`: the fast precision."""
    rows = []
    changes = {str(pair): one for pair, one in analysis.by_pair.items()}
    for name, one in (changes | {"all": analysis.pooled}).items():
        row = {
            "change": name,
            "points [95 % interval]": one.accuracy.text(2),
            "log-loss [95 % interval]": one.log_loss.text(4),
        }
        rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False))
    for judged in analysis.changed:
        print(f"changes: {judged.text(fast)}")
    print(f"rule: {fast} {RULE}")
    word = "passes" if analysis.decision.passes else "does not pass"
    print(f"{fast} {word}: {analysis.decision.why}")


def changes_row(changes: Changes) -> dict[str, float]:
    """Changes as a part of a row: points of accuracy, nats."""
    return {
        "points": changes.accuracy.mean,
        "points_low": changes.accuracy.interval.low,
        "points_high": changes.accuracy.interval.high,
        "log_loss": changes.log_loss.mean,
        "log_loss_low": changes.log_loss.interval.low,
        "log_loss_high": changes.log_loss.interval.high,
    }


def outcome_row(answers: Answers, labels: np.ndarray) -> dict[str, float]:
    """How a pair does in both precisions, as a part of a row: percent, nats."""
    row: dict[str, float] = {"n": len(labels)}
    for precision, predictions in (("fp32", answers.exact), ("fast", answers.fast)):
        outcome = outcome_of(predictions, labels)
        row[f"accuracy_{precision}"] = float(outcome.accuracy.mean())
        row[f"log_loss_{precision}"] = float(outcome.log_loss.mean())
    return row


def seconds_rows(seconds: Mapping[Pair, Seconds]) -> list[dict[str, Any]]:
    """A row a backbone and round."""
    rows = []
    for pair, one in seconds.items():
        for number, (exact, fast) in enumerate(zip(one.exact, one.fast, strict=True)):
            took = {"round": number, "seconds_fp32": exact, "seconds_fast": fast}
            rows.append({"part": "seconds", **asdict(pair), **took})
    return rows


def make_rows(
    found: Mapping[Pair, Answers], labels: Mapping[str, np.ndarray], analysis: Analysis
) -> list[dict[str, Any]]:
    """A row a pair, one of all pairs, and one a verdict."""
    rows: list[dict[str, Any]] = []
    for pair, changes in analysis.by_pair.items():
        outcome = outcome_row(found[pair], labels[pair.dataset])
        rows.append({"part": "change", **asdict(pair), **outcome, **changes_row(changes)})
    rows.append({"part": "pooled", **changes_row(analysis.pooled)})
    verdicts = [{"part": "verdict", "dataset": one.dataset, **one.row()} for one in analysis.judged]
    return rows + verdicts


def make_record(
    setup: Setup, analysis: Analysis, seconds: Mapping[Pair, Seconds]
) -> BenchmarkRecord:
    """What was measured on, and what follows."""
    decision = analysis.decision
    changed = [{"dataset": one.dataset, **one.row()} for one in analysis.changed]
    return BenchmarkRecord(
        kind=NAME,
        data=tuple(data_info(images) for images in setup.images.values()),
        weights=tuple(setup.infos.values()),
        machine=setup.machine,
        seed=RANDOM_SEED,
        facts={
            "precision": setup.machine.precision,
            "sizes": {model: input_size(model) for model in setup.infos},
            "folds": FOLDS,
            "repeats": setup.options.repeats,
            "fold_hashes": {dataset: one.hash for dataset, one in setup.folds.items()},
            "resamples": RESAMPLES,
            "resampling": RESAMPLING,
            "rule": RULE,
            "pooled": asdict(analysis.pooled),
            "verdicts": len(analysis.judged),
            "changed": changed,
            "decision": asdict(decision) | {"passes": decision.passes},
            "seconds_ratio": {pair.model: one.ratio for pair, one in seconds.items()},
        },
    )


def raw_arrays(
    found: Mapping[Pair, Answers], labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The labels under dataset/labels, and the probabilities [R, N, C] under dataset/model/fp32 and
    dataset/model/fast."""
    flat = {f"{dataset}/labels": its_labels for dataset, its_labels in labels.items()}
    for pair, answers in found.items():
        stem = f"{pair.dataset}/{pair.model}"
        flat[f"{stem}/fp32"] = answers.exact.probabilities
        flat[f"{stem}/fast"] = answers.fast.probabilities
    return flat


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    add_models(parser, WITH_WEIGHTS)
    text = f"of the cross-validation, at least {ENOUGH_REPEATS} (default: %(default)s)"
    parser.add_argument("--repeats", type=positive, default=5, help=text)
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Measures, decides, prints, writes -> exit code."""
    options = parse(arguments)
    machine = machine or this_machine()
    check_options(options, machine)
    with feature_cache(options.cache_dir) as store:
        setup = prepare(options, machine, store)
        plans = make_plans(setup)
        found = measure_answers(setup, plans.answers)
        seconds = measure_seconds(setup, plans.seconds)
    labels = setup.labels
    analysis = analyse(found, labels, setup.folds)
    print_analysis(analysis, setup.fast)
    rows = make_rows(found, labels, analysis) + seconds_rows(seconds)
    record = make_record(setup, analysis, seconds)
    arrays = raw_arrays(found, labels)
    write_results(options.out, rows, record, finished=plans.whole, arrays=arrays)
    return 0


if __name__ == "__main__":
    run_command(main)

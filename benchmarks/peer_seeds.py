"""Whether others reach another accuracy than we do on the same features: their own loops, 20 seeds.

    python -m benchmarks.peer_seeds --data DIR --weights DIR [--seeds N] [--out DIR]

`benchmarks.peers` compares seconds; the accuracies of its single runs differ, and one run a system
cannot say why. Here the study's head (ResNet50, manga faces, 296/159, 30 epochs) is trained on
features that are computed once: by this library with its own views (`ours_default`: the clean one
and 4 more in turn; `ours_same_views`: a fresh one in each epoch), and by the code that
`benchmarks.peers` measures of the published loop (`study`), `fastai`, `lightning` and `hf`, their
backbone replaced by the features.

So each peer has its own order (PyTorch's sampler under a generator of its own for `study` and
`lightning`, Python's `random` for `fastai`, a new seed in each epoch for `hf`), its own dropout
stream, optimiser and treatment of the last batch, seeded as it seeds them. The initial head is the
same for all under one seed. The pool of views: 30 of every training image, in the machine's fast
precision; a peer is given each image's in an order drawn for that image, a fresh one in each epoch,
where `ours_same_views` takes view 1 of all images, then view 2, and so on. `tuned` and the
`*_tuned` are left out: they differ from these in nothing but the random stream and the precision.
`lightning` draws what `study` draws and is the same training to the bit: both are kept as they are.

For every seed, the predictions of the 159 images at the epoch of lowest validation loss. Each of
ours less each peer, pooled over seeds and images (`metrics.paired_over_images`), Holm over all
differences; beside it the smallest difference that would have been seen, and the interval over
seeds alone, which says what to expect of another seed on these very images. The 159 images choose
the epoch too, for all alike.

Features are kept (--cache-dir), and so is each training until all are done. Written:
peer_seeds_{stamp}.csv (a row a difference), .json, peer_seeds_raw_{stamp}.npz (predictions int8
[seeds, 159] by system, and `labels`) in result/benchmarks, img/peer_seeds_{stamp}.png.
"""

import argparse
import functools
import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import nn
from torch.utils.data import Dataset

from benchmarks.common import (
    PointKey,
    benchmark_store,
    code_digest,
    feature_cache,
    find_weights,
    freeze_planned,
    make_parser,
    make_point,
    make_study,
    measured_values,
    point_key,
    run_command,
    write_results,
)
from benchmarks.peer_systems.common import Datasets, Record, Task
from benchmarks.peer_systems.systems import (
    ROOT,
    SYSTEMS,
    leave_out_missing,
    library_versions,
    settings_of,
)
from transferlab.backbones import make_head
from transferlab.commands.options import add_cache
from transferlab.errors import UserError
from transferlab.machine import this_machine
from transferlab.metrics import (
    ENOUGH_REPEATS,
    Interval,
    PairedTest,
    paired_over_images,
    smallest_visible,
    verdicts,
)
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.pretrained import WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store
from transferlab.study import Frozen, Study, train_study
from transferlab.train import Settings, evaluate

NAME = "peer_seeds"
EPOCHS = 30
SEEDS = 20
FIRST_SEED = 42  # that of the split, of the views, and of the first training
OURS = ("ours_default", "ours_same_views")
PEERS = ("study", "fastai", "lightning", "hf")
WORDS = {"better": "ours better", "worse": "ours worse", "indistinguishable": "not told apart"}


# ---- one training ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to at its epoch of lowest validation loss."""

    epoch: int  # from 1
    val_loss: float  # mean, in nats
    predictions: tuple[int, ...]  # of the validation images


class KeptViews(Dataset):
    """Views [V, n, D] of images, kept as features; each image with its label.

    Whenever an image is asked for, it gives the next of its views, in an order of its own.
    """

    def __init__(self, views: torch.Tensor, labels: torch.Tensor, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(views), generator=generator) for _ in labels]
        self.views = views
        self.labels = labels.tolist()
        self.orders = torch.stack(orders)  # [n, V]
        self.given = [0] * len(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        view = self.orders[index, self.given[index] % len(self.views)]
        self.given[index] += 1
        return self.views[view, index], self.labels[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What all trainings share; features are computed when first asked for."""

    study: Study
    planned: WeightsInfo
    weights: str  # as `create_backbone` takes them
    epochs: int

    @functools.cached_property
    def frozen(self) -> Frozen:
        """The backbone."""
        return freeze_planned(self.planned, self.study, weights=self.weights)

    @functools.cached_property
    def views(self) -> torch.Tensor:
        """As many random views of the training images as there are epochs, [V, n, D]."""
        features = self.frozen.features
        return torch.stack([features.train(view) for view in range(1, self.epochs + 1)])

    def datasets(self, seed: int) -> Datasets:
        """What a peer trains on and validates."""
        fold = self.study.fold
        clean = self.frozen.features.clean[fold.val]
        return Datasets(
            train=KeptViews(self.views, self.study.labels(fold.train), seed=seed),
            val=KeptViews(clean[None], self.study.labels(fold.val), seed=seed),
        )

    def task(self, settings: Settings, seed: int) -> Task:
        """A peer's task, the features being at hand."""
        return Task(
            folder=Path(),
            weights=self.weights,
            model=self.planned.name,
            augmentation=self.study.renderer.augmentation,
            settings=settings,
            seed=seed,
            machine=self.study.machine,
            workers=0,
        )


def train_ours(work: Work, settings: Settings, seed: int) -> Trained:
    """This library's own training."""
    study = replace(work.study, settings=settings, seed=seed)
    result = train_study(work.frozen, study)
    val = study.fold.val
    found = evaluate(work.frozen.upper, work.frozen.features.clean[val], study.labels(val))
    return Trained(
        epoch=result.best_epoch,
        val_loss=result.best.val_loss,
        predictions=tuple(found.predictions.tolist()),
    )


def train_peer(work: Work, name: str, settings: Settings, seed: int) -> Trained:
    """A peer's loop on the features: it is watched through what its head answers."""
    fold = work.study.fold
    datasets = work.datasets(seed)
    head = make_head(
        work.views.shape[2],
        work.study.classes,
        hidden=settings.hidden,
        dropout=settings.dropout,
        seed=seed,
    )
    answers: list[torch.Tensor] = []

    def note(head: nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        if not head.training:
            answers.append(logits.detach().argmax(1).cpu())

    head.register_forward_hook(note)
    record = Record()
    backbone = nn.Identity()
    record.watch(backbone, head)
    module = importlib.import_module(f"benchmarks.peer_systems.{SYSTEMS[name].module}")
    module.train_as_written(backbone, head, datasets, work.task(settings, seed), record)
    record.check_epochs(len(fold.train), len(fold.val))
    losses = [row.val_loss for row in record.rows]
    best = int(np.argmin(losses))  # the earliest on ties
    by_epoch = torch.cat(answers).view(len(losses), len(fold.val))
    return Trained(
        epoch=best + 1, val_loss=losses[best], predictions=tuple(by_epoch[best].tolist())
    )


def train_system(work: Work, name: str, seed: int) -> dict[str, Any]:
    """A training as plain values."""
    settings = settings_of(name, work.epochs)
    if SYSTEMS[name].ours:
        return asdict(train_ours(work, settings, seed))
    return asdict(train_peer(work, name, settings, seed))


# ---- all trainings ---------------------------------------------------------------------------


def key_of(work: Work, name: str, seed: int) -> PointKey:
    """What a training is kept under."""
    files = [ROOT / "benchmarks/peer_systems" / f"{SYSTEMS[name].module}.py"]
    files += [ROOT / "benchmarks/peer_systems/common.py", Path(__file__)]
    used = {
        "data": work.study.image_set.digest,
        "weights": work.planned,
        "size": work.study.renderer.augmentation.size,
        "settings": settings_of(name, work.epochs),
        "libraries": library_versions(name),
    }
    code = code_digest(*(str(file) for file in files))
    point = f"{name}, seed {seed}"
    return point_key(NAME, point, used=used, machine=work.study.machine, code=code)


def point_of(work: Work, name: str, seed: int) -> Point:
    """The point of a training."""
    measure = functools.partial(train_system, work, name, seed)
    return make_point(key_of(work, name, seed), measure, group=name)


def train_all(plan: Plan) -> dict[str, list[Trained]]:
    """All trainings by system, seed after seed; those that an earlier call has kept are read."""
    trained: dict[str, list[Trained]] = {name: [] for name in plan.groups}
    for point, values in measured_values(plan):
        one = from_plain(Trained, values)
        trained[point.group].append(one)
        print(f"{point.name}: epoch {one.epoch}", flush=True)
    return trained


# ---- what they come to -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a system reaches."""

    system: str
    accuracy: float  # mean over seeds
    deviation: float  # of the accuracy of one seed, over seeds
    lowest: int  # images that one seed gets right
    highest: int
    epochs: float  # to the lowest validation loss, mean
    val_loss: float  # there, in nats, mean

    def text(self) -> str:
        """As a line of text."""
        line = f"{self.system}: {self.accuracy:.1%}, seeds differ by {100 * self.deviation:.1f}"
        return f"{line} points (sd), {self.lowest} to {self.highest} images"


def interval_text(low: float, high: float) -> str:
    """An interval of shares, in points."""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One of ours less a peer, pooled over seeds and images."""

    ours: str
    peer: str
    test: PairedTest
    these: Interval  # 95 %, over seeds: of the mean on these very images, no others
    p_holm: float
    smallest_visible: float
    verdict: str

    def row(self) -> dict[str, Any]:
        """As a row of the table."""
        own = {"ours": self.ours, "peer": self.peer} | asdict(self.test)
        own["these_low"] = self.these.low
        own["these_high"] = self.these.high
        own["p_holm"] = self.p_holm
        own["smallest_visible"] = self.smallest_visible
        own["verdict"] = self.verdict
        return own

    def text(self) -> str:
        """As a line of text, in points."""
        test = self.test
        points = f"{100 * test.difference:+.1f} {interval_text(test.low, test.high)}"
        these = interval_text(self.these.low, self.these.high)
        seen = f"{100 * self.smallest_visible:.1f} points would have been seen"
        verdict = f"{self.verdict} (p = {self.p_holm:.3f} after Holm; {seen})"
        line = f"{self.ours} less {self.peer}: {points} points, {verdict}"
        return f"{line}; over seeds, these images given, {these}"


def predictions_of(trained: dict[str, list[Trained]]) -> dict[str, np.ndarray]:
    """Predictions int8 [S, N] by system."""
    return {
        name: np.array([one.predictions for one in seeds], np.int8)
        for name, seeds in trained.items()
    }


def level_of(name: str, correct: np.ndarray, seeds: Sequence[Trained]) -> Level:
    """What a system reaches, from bool [S, N]."""
    counts = correct.sum(1)
    return Level(
        system=name,
        accuracy=float(correct.mean()),
        deviation=float(correct.mean(1).std(ddof=1)),
        lowest=int(counts.min()),
        highest=int(counts.max()),
        epochs=float(np.mean([one.epoch for one in seeds])),
        val_loss=float(np.mean([one.val_loss for one in seeds])),
    )


def over_seeds(differences: np.ndarray) -> Interval:
    """95 % t-interval of the mean of differences [S, N] over seeds, the images being what they are:
    it tells what training adds to chance, and nothing of other images."""
    by_seed = differences.mean(1)
    seeds = len(by_seed)
    error = by_seed.std(ddof=1) / np.sqrt(seeds)
    reach = float(error * stats.t.ppf(0.975, seeds - 1))
    mean = float(by_seed.mean())
    return Interval(low=mean - reach, high=mean + reach)


def compare(correct: dict[str, np.ndarray]) -> list[Difference]:
    """Each of ours less each peer, from bool [S, N], with Holm over all."""
    pairs = [(ours, peer) for ours in OURS for peer in PEERS if {ours, peer} <= correct.keys()]
    values = [correct[ours].astype(int) - correct[peer] for ours, peer in pairs]
    tests = [paired_over_images(one) for one in values]
    differences = []
    for (ours, peer), value, test, verdict in zip(pairs, values, tests, verdicts(tests)):
        one = Difference(
            ours=ours,
            peer=peer,
            test=test,
            these=over_seeds(value),
            p_holm=verdict.p_holm,
            smallest_visible=smallest_visible(test.error, len(tests)),
            verdict=WORDS[verdict.word],
        )
        differences.append(one)
    return differences


# ---- the figure ------------------------------------------------------------------------------


def message(differences: Sequence[Difference], seeds: int) -> str:
    """What the figure says."""
    apart = [one for one in differences if one.verdict != WORDS["indistinguishable"]]
    trained = f"trained on the same features ({seeds} seeds)"
    if not apart:
        return f"Ours and the others are not told apart, {trained}"
    return f"{len(apart)} of {len(differences)} differences to others are told apart, {trained}"


def draw_seeds(axis: Axes, correct: dict[str, np.ndarray]) -> None:
    """Every seed of every system as a dot, their mean as a line."""
    names = list(correct)
    random = np.random.default_rng(0)
    for place, name in enumerate(names):
        counts = correct[name].sum(1)
        colour = BLUE if name in OURS else ORANGE
        scatter = place + random.uniform(-0.22, 0.22, len(counts))  # dots would lie on each other
        axis.plot(counts, scatter, "o", color=colour, alpha=0.5, markersize=5)
        axis.plot([counts.mean()] * 2, [place - 0.35, place + 0.35], color=colour, linewidth=3)
    axis.set_yticks(range(len(names)), [SYSTEMS[name].label for name in names], fontsize=11)
    axis.invert_yaxis()
    images = correct[names[0]].shape[1]
    axis.set_xlabel(f"of {images} images right: each seed, and the mean", fontsize=11)


def draw_differences(axis: Axes, differences: Sequence[Difference]) -> None:
    """Every difference with its interval, in points."""
    for place, one in enumerate(differences):
        low, high = 100 * one.test.low, 100 * one.test.high
        axis.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axis.plot(100 * one.test.difference, place, "o", color=BLUE)
    labels = [f"{SYSTEMS[one.ours].label} − {SYSTEMS[one.peer].label}" for one in differences]
    axis.set_yticks(range(len(labels)), labels, fontsize=11)
    axis.invert_yaxis()
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_xlabel("points of accuracy, 95 % intervals", fontsize=11)


def plot_seeds(
    correct: dict[str, np.ndarray], differences: Sequence[Difference], caption: str
) -> plt.Figure:
    """The seeds of each system, and the differences."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    draw_seeds(left, correct)
    draw_differences(right, differences)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    seeds = len(next(iter(correct.values())))
    figure.suptitle(message(differences, seeds), fontsize=14)
    figure.supxlabel(caption, fontsize=9, color=GREY)
    return figure


# ---- the command -----------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of this command."""
    parser = make_parser(
        __doc__,
        data="a folder with manga_facial_expressions",
        weights="a folder with resnet50's weights",
    )
    add_cache(parser)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    hidden = argparse.SUPPRESS  # what tests make small
    parser.add_argument("--model", default="resnet50", help=hidden)
    parser.add_argument("--size", type=int, default=224, help=hidden)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=hidden)
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, cache: Store) -> Work:
    """Finds images and weights before any time is spent.

    Raises:
        UserError: either cannot be used.
    """
    weights = check_weights_place(options.weights)
    planned = find_weights([options.model], weights)[options.model]
    study = make_study(
        options.data,
        settings=settings_of("ours_same_views", options.epochs),
        machine=this_machine(),
        store=cache,
        seed=FIRST_SEED,
        size=options.size,
    )
    return Work(study=study, planned=planned, weights=weights, epochs=options.epochs)


def report(
    options: argparse.Namespace, work: Work, trained: dict[str, list[Trained]], plan: Plan
) -> None:
    """Prints and writes what the trainings come to."""
    labels = work.study.labels(work.study.fold.val).numpy()
    predictions = predictions_of(trained)
    correct = {name: values == labels for name, values in predictions.items()}
    levels = [level_of(name, correct[name], seeds) for name, seeds in trained.items()]
    differences = compare(correct)
    for one in (*levels, *differences):
        print(one.text())
    study = work.study
    record = BenchmarkRecord(
        kind=NAME,
        data=(data_info(study.image_set, study.renderer.augmentation),),
        weights=(work.planned,),
        machine=study.machine,
        seed=FIRST_SEED,
        facts={
            "settings": {name: asdict(settings_of(name, work.epochs)) for name in trained},
            "seeds": options.seeds,
            "systems": [asdict(level) for level in levels],
            "libraries": {name: library_versions(name) for name in trained},
            "left_out": [name for name in (*OURS, *PEERS) if name not in trained],
        },
    )
    caption = f"{work.planned.name} (weights: {work.planned.source:.60}), {study.image_set.name}"
    write_results(
        options.out,
        [one.row() for one in differences],
        record,
        plot_seeds(correct, differences, caption),
        plan,
        arrays=predictions | {"labels": labels},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, compares, writes -> exit code.

    Raises:
        UserError: fewer seeds than the test needs; images or weights cannot be used.
    """
    options = parse(arguments)
    if options.seeds < ENOUGH_REPEATS:
        raise UserError(f"seeds is {options.seeds}: give {ENOUGH_REPEATS} or more")
    names = leave_out_missing((*OURS, *PEERS))
    store = benchmark_store(options.out, NAME)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    with feature_cache(options.cache_dir) as cache:
        work = prepare(options, cache)
        points = tuple(point_of(work, name, seed) for name in names for seed in seeds)
        plan = Plan(points=points, store=store)
        report(options, work, train_all(plan), plan)
    return 0


if __name__ == "__main__":
    run_command(main)

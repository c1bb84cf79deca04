"""How many kept views are enough, and used how?

    python -m benchmarks.views --data DIR --weights DIR [--out DIR] [--cache-dir DIR] [--minutes N]

Three schemes for the features of epoch e, from K random views of every image and the clean one:

    cycle          view 1 + e % K
    cycle+clean    the clean view is one of the cycle, and its first
    between+clean  for each image and epoch a random point between two of its K + 1 views
    clean          the clean view alone: no augmentation

Held-out protocol on both datasets: stratified 5-fold, 20 % of each training fold for early
stopping, 20 seeds. A seed changes the head's initialisation, the order, the dropout, the inner
split and which K of the 30 views are used. A scheme passes if, on every pair of dataset and
backbone, the lower end of the 95 % bootstrap interval (over images, of the mean over seeds) of its
accuracy less that of `cycle` with 30 views lies above -1 point, and log-loss rises by at most 0.02.
The smallest K that passes on seeds 0 to 9 must pass again on seeds 10 to 19.

31 views go through every backbone once (kept in the cache), then the 50 heads of ten seeds are
trained at once for each pair and setting; both go on where an interrupted run stopped. Written: the
correct answers and log-losses of every image and seed (views_raw_{stamp}.npz), the table
(views_{stamp}.csv) and the figure.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from benchmarks.common import (
    FRESH_VIEWS,
    Pair,
    PointKey,
    Setting,
    benchmark_store,
    code_digest,
    feature_cache,
    list_sources,
    load_dataset,
    make_parser,
    point_key,
    run_command,
    seed_folds,
    write_results,
)
from transferlab.backbones import create_backbone, make_head, split_features
from transferlab.commands.options import add_cache
from transferlab.data import HeldOutFold, ImageSet
from transferlab.datasets import FACES, INSECTS, Dataset
from transferlab.errors import UserError
from transferlab.features import Features, features_of
from transferlab.machine import Clock, Machine, this_machine
from transferlab.many import Job, train_many
from transferlab.metrics import Interval, bootstrap_interval
from transferlab.plots import BLUE, GREEN, GREY, ORANGE
from transferlab.pretrained import WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, DataInfo, data_info
from transferlab.store import Store
from transferlab.train import ViewOf
from transferlab.views import BLOCK, Renderer

DATASETS = (FACES, INSECTS)
MODELS = ("resnet50", "densenet121", "efficientnet_lite0")
PAIRS = tuple(Pair(dataset=dataset.name, model=model) for dataset in DATASETS for model in MODELS)
VIEWS = FRESH_VIEWS.views
FOLDS = 5
# Of seeds: what passes on the first must pass again on the second.
BLOCKS = {"0-9": range(10), "10-19": range(10, 20)}
FIRST, SECOND = BLOCKS
ALL = "0-19"
SCHEMES = {  # with the numbers of views that each is tried with
    "clean": (0,),
    "cycle": (1, 2, 4, 8, 16, VIEWS),
    "cycle+clean": (1, 2, 4, 8),
    "between+clean": (1, 2, 4, 8),
}
SETTINGS = tuple(Setting(scheme=one, views=k) for one, counts in SCHEMES.items() for k in counts)
REFERENCE = Setting(scheme="cycle", views=VIEWS)
CLEAN = Setting(scheme="clean", views=0)
MARGIN = -0.01
LOSS_MARGIN = 0.02


# ---- features --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFeatures:
    """What the heads of a pair are trained on."""

    views: torch.Tensor  # fp32 [31, N, D] of all images, the clean view first
    labels: torch.Tensor  # int64 [N]
    data: DataInfo
    weights: WeightsInfo


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenPart:
    """A backbone without its classifier, and the features that it gives."""

    info: WeightsInfo
    features: Features


def freeze(
    name: str, weights: str, renderer: Renderer, *, machine: Machine, store: Store
) -> FrozenPart:
    """A backbone's frozen part over the views of a renderer.

    Raises:
        UserError: it has no pretrained weights.
    """
    model, info = create_backbone(name, weights)
    if not info.measures_transfer:
        raise UserError(f"{name}: {info.source}; this measurement needs pretrained weights")
    lower, _ = split_features(model.to(machine.device))
    features = features_of(
        lower,
        renderer,
        torch.arange(len(renderer.image_set.labels)),
        model=info.timm_name,
        machine=machine,
        clock=Clock(),
        store=store,
    )
    return FrozenPart(info=info, features=features)


def draw_view(view: int, name: str, features: Features) -> None:
    """Draws a view of all images and says how long it took."""
    started = time.perf_counter()
    features.train(view)
    seconds = time.perf_counter() - started
    dataset = features.renderer.image_set.name
    print(f"{dataset}, view {view} of {VIEWS}, {name}: {seconds:.1f} s", flush=True)


def draw_views(
    image_set: ImageSet, dataset: Dataset, weights: str, *, machine: Machine, store: Store
) -> dict[Pair, PairFeatures]:
    """Runs all views of all images of a dataset through each backbone."""
    count = len(image_set.labels)
    blocks = -(-count // BLOCK)  # of one view: rendered once for all backbones, then let go
    renderer = Renderer(image_set, dataset.augmentation(224), seed=0, keep=blocks)
    frozen = {
        name: freeze(name, weights, renderer, machine=machine, store=store) for name in MODELS
    }
    for view in range(VIEWS + 1):
        for name, part in frozen.items():
            draw_view(view, name, part.features)
    drawn = {}
    for name, part in frozen.items():
        views = [part.features.train(view) for view in range(VIEWS + 1)]
        drawn[Pair(dataset=dataset.name, model=name)] = PairFeatures(
            views=torch.stack(views),
            labels=image_set.labels,
            data=data_info(image_set, renderer.augmentation),
            weights=part.info,
        )
    return drawn


# ---- schemes ---------------------------------------------------------------------------------


def used_views(setting: Setting, seed: int) -> torch.Tensor:
    """Which views a seed of a setting uses, int64; nested: more views keep the fewer."""
    random = torch.Generator().manual_seed(seed)
    order = 1 + torch.randperm(VIEWS, generator=random)
    chosen = order[: setting.views]
    if setting.scheme == "cycle":
        return chosen
    clean = torch.tensor([0])
    return torch.cat([clean, chosen])


def view_chooser(setting: Setting, views: torch.Tensor, seed: int) -> ViewOf:
    """Makes `view_of(epoch)`, features [N, D], for one seed of a setting; `views` [31, N, D], the
    clean one first."""
    chosen = used_views(setting, seed)
    count = len(chosen)
    n = views.shape[1]
    images = torch.arange(n)

    def in_turn(epoch: int) -> torch.Tensor:
        return views[chosen[epoch % count]]

    def between(epoch: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(1000 * seed + epoch)
        first = torch.randint(count, (n,), generator=random)
        step = torch.randint(1, count, (n,), generator=random)
        second = (first + step) % count  # another one
        share = torch.rand(n, 1, generator=random)
        start = views[chosen[second], images]
        end = views[chosen[first], images]
        return torch.lerp(start, end, share)

    return between if setting.scheme == "between+clean" else in_turn


# ---- one measurement -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """What the heads of S seeds say of the test folds."""

    correct: np.ndarray  # bool [S, N]
    loss: np.ndarray  # fp32 [S, N], nats
    epochs: np.ndarray  # int64 [S, 5]: the best one, from 1

    def keep(self) -> dict[str, torch.Tensor]:
        """The values as a store keeps them."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}


def kept_values(kept: dict[str, torch.Tensor]) -> Values:
    """Values as they were kept."""
    return Values(**{name: tensor.numpy() for name, tensor in kept.items()})


def join_values(parts: Sequence[Values]) -> Values:
    """The values of several blocks of seeds as one."""
    return Values(
        correct=np.concatenate([part.correct for part in parts]),
        loss=np.concatenate([part.loss for part in parts]),
        epochs=np.concatenate([part.epochs for part in parts]),
    )


def make_jobs(features: PairFeatures, setting: Setting, folds: Sequence[HeldOutFold]) -> list[Job]:
    """A job a fold, whose seed is the fold's."""
    seeds = dict.fromkeys(fold.repeat for fold in folds)
    choosers = {seed: view_chooser(setting, features.views, seed) for seed in seeds}
    jobs = []
    for fold in folds:
        job = Job(
            view_of=choosers[fold.repeat],
            train_index=fold.train,
            val_x=features.views[0],
            val_index=fold.val,
            seed=fold.repeat,
            lr=FRESH_VIEWS.lr,
            patience=FRESH_VIEWS.patience,
        )
        jobs.append(job)
    return jobs


def score_heads(
    heads: Sequence[nn.Module],
    folds: Sequence[HeldOutFold],
    features: PairFeatures,
    seeds: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Every head on its test fold, on the clean view -> right or wrong bool [S, N], losses fp32
    [S, N]."""
    shape = (len(seeds), len(features.labels))
    correct = np.zeros(shape, bool)
    loss = np.zeros(shape, np.float32)
    for head, fold in zip(heads, folds, strict=True):
        labels = features.labels[fold.test]
        x = features.views[0, fold.test]
        with torch.inference_mode():
            logits = head.eval()(x)
        row = seeds.index(fold.repeat)
        right = logits.argmax(1) == labels
        losses = F.cross_entropy(logits, labels, reduction="none")
        correct[row, fold.test] = right.numpy()
        loss[row, fold.test] = losses.numpy()
    return correct, loss


def measure(features: PairFeatures, setting: Setting, seeds: Sequence[int]) -> Values:
    """Trains 5 folds a seed -> how they do on the test folds."""
    folds = seed_folds(features.labels, k=FOLDS, seeds=seeds)
    classes = len(features.labels.unique())
    width = features.views.shape[2]
    heads = [make_head(width, classes, seed=fold.repeat) for fold in folds]
    results = train_many(
        heads,
        make_jobs(features, setting, folds),
        features.labels,
        epochs=FRESH_VIEWS.epochs,
        batch_size=FRESH_VIEWS.batch_size,
    )
    correct, loss = score_heads(heads, folds, features, seeds)
    epochs = np.array([result.best_epoch for result in results])
    return Values(correct=correct, loss=loss, epochs=epochs.reshape(len(seeds), FOLDS))


# ---- all measurements ------------------------------------------------------------------------


Blocks = dict[str, Values]  # by block of seeds, as far as they have been measured
Raw = dict[tuple[Pair, Setting], Blocks]
Measure = Callable[[PairFeatures, Setting, Sequence[int]], Values]


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What is measured on, and where it is kept."""

    features: dict[Pair, PairFeatures]
    machine: Machine
    store: Store
    measure: Measure = measure

    def key(self, pair: Pair, setting: Setting, block: str) -> PointKey:
        """All that a measurement depends on."""
        features = self.features[pair]
        used = {"data": features.data, "weights": features.weights, "settings": FRESH_VIEWS}
        return point_key(
            "views",
            f"{pair}, {setting}, seeds {block}",
            used=used,
            machine=self.machine,
            code=code_digest(__file__),
        )

    def values(self, pair: Pair, setting: Setting, block: str) -> Values:
        """A setting on a pair and a block of seeds, read where it is kept."""

        def compute() -> dict[str, torch.Tensor]:
            return self.measure(self.features[pair], setting, BLOCKS[block]).keep()

        started = time.perf_counter()
        key = self.key(pair, setting, block)
        found = kept_values(self.store.tensors(key, compute))
        seconds = time.perf_counter() - started
        print(f"{key.point}: {found.correct.mean():.1%}, {seconds:.0f} s", flush=True)
        return found


def passes(raw: Raw, setting: Setting, block: str) -> bool:
    """Whether a setting passes on a block of seeds, on every pair."""
    needed = (setting, REFERENCE)
    table = make_table({cell: blocks for cell, blocks in raw.items() if cell[1] in needed})
    own = (table.scheme == setting.scheme) & (table.views == setting.views)
    return bool(table[own & (table.seeds == block)].passes.all())


def by_views() -> list[Setting]:
    """The settings by K; of equal K the simplest scheme first, as SETTINGS lists them."""
    return sorted(SETTINGS, key=lambda setting: setting.views)


def work_order(raw: Raw) -> Iterator[tuple[Setting, str]]:
    """What to measure next, a setting and a block of seeds: the reference, the clean view, then by
    K on the first block; what passes there at once on the second, until a default has passed twice;
    last the rest of the second block."""
    always = (REFERENCE, CLEAN)
    candidates = [setting for setting in by_views() if setting not in always]
    for setting in always:
        yield setting, FIRST
    decided = False
    for setting in candidates:
        yield setting, FIRST
        if not decided and passes(raw, setting, FIRST):
            yield REFERENCE, SECOND
            yield setting, SECOND
            decided = passes(raw, setting, SECOND)
    for setting in (*always, *candidates):
        yield setting, SECOND


def measure_all(work: Work, *, minutes: float, now: Callable[[], float] = time.monotonic) -> Raw:
    """Measures in that order, for so many minutes."""
    raw: Raw = {(pair, setting): {} for setting in SETTINGS for pair in PAIRS}
    end = now() + 60 * minutes
    for setting, block in work_order(raw):
        for pair in PAIRS:
            if now() > end:
                return raw
            blocks = raw[pair, setting]
            if block not in blocks:
                blocks[block] = work.values(pair, setting, block)
    return raw


# ---- the table -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting less the reference, means over seeds and images."""

    accuracy: float  # 0 to 1
    interval: Interval  # 95 %, of the accuracy, over images
    log_loss: float  # nats

    @property
    def passes(self) -> bool:
        """Whether neither accuracy nor log-loss suffers."""
        return self.interval.low > MARGIN and self.log_loss <= LOSS_MARGIN


def compare_with_reference(values: Values, reference: Values) -> Difference:
    """Accuracy less the reference's with its 95 % bootstrap interval over images, and the rise of
    log-loss, means over seeds."""
    gain = values.correct.mean(0) - reference.correct.mean(0)
    rise = values.loss.mean() - reference.loss.mean()
    return Difference(
        accuracy=float(gain.mean()), interval=bootstrap_interval(gain), log_loss=float(rise)
    )


def seeds_of(blocks: Blocks, name: str) -> Values | None:
    """The values of a block of seeds, or of both joined; None where they have not been measured."""
    wanted = list(BLOCKS) if name == ALL else [name]
    if not set(wanted) <= set(blocks):
        return None
    return join_values([blocks[one] for one in wanted])


def make_row(pair: Pair, setting: Setting, seeds: str, values: Values) -> dict[str, Any]:
    """A row of the table, still without the comparison."""
    return {
        "dataset": pair.dataset,
        "model": pair.model,
        "scheme": setting.scheme,
        "views": setting.views,
        "seeds": seeds,
        "accuracy": values.correct.mean(),
        "log_loss": float(values.loss.mean()),
    }


def make_table(raw: Raw) -> pd.DataFrame:
    """One row a pair, setting and block of seeds, as far as they have been measured."""
    rows = []
    for (pair, setting), blocks in raw.items():
        for name in (*BLOCKS, ALL):
            values = seeds_of(blocks, name)
            reference = seeds_of(raw[pair, REFERENCE], name)
            if values is None or reference is None:
                continue
            found = compare_with_reference(values, reference)
            row = make_row(pair, setting, name, values)
            row["difference"] = found.accuracy
            row["difference_low"] = found.interval.low
            row["difference_high"] = found.interval.high
            row["log_loss_rise"] = found.log_loss
            row["epochs_to_best"] = values.epochs.mean()
            row["passes"] = found.passes
            rows.append(row)
    return pd.DataFrame(rows)


# ---- the decision ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which setting becomes the default."""

    winner: Setting | None  # None: nothing short of the reference passes, or not yet
    steps: tuple[str, ...]  # how it was found


def step_text(setting: Setting, first: bool, again: bool | None) -> str:
    """What came of a setting on the first block of seeds, and again on the second."""
    if not first:
        return f"{setting}: fails on seeds {FIRST}"
    words = {None: "not yet tried", True: "passes again", False: "fails"}
    return f"{setting}: passes on seeds {FIRST}, {words[again]} on {SECOND}"


def outcomes(table: pd.DataFrame) -> dict[tuple[Setting, str], bool]:
    """Whether a setting passes on a block of seeds, on every pair; what an interrupted measurement
    lacks on some pairs is left out."""
    groups = table.groupby(["scheme", "views", "seeds"]).passes
    counts = groups.count()
    passed = groups.all()[counts == counts.max()]
    found = {}
    for (scheme, views, seeds), outcome in passed.items():
        found[Setting(scheme=scheme, views=int(views)), seeds] = bool(outcome)
    return found


def decide(table: pd.DataFrame) -> Decision:
    """The setting with the fewest views that passes on every pair on the first block of seeds and
    again on the second.

    The clean view alone is no candidate, but its step is told.
    """
    passed = outcomes(table)
    steps = []
    for setting in by_views():
        if setting == REFERENCE or (setting, FIRST) not in passed:
            break
        first = passed[setting, FIRST]
        again = passed.get((setting, SECOND))
        steps.append(step_text(setting, first, again))
        if first and again and setting != CLEAN:
            return Decision(winner=setting, steps=tuple(steps))
    return Decision(winner=None, steps=tuple(steps))


def most_seeds(table: pd.DataFrame) -> str:
    """All seeds where every setting has them, else the first block."""
    counts = table.seeds.value_counts()
    complete = counts.get(ALL, 0) == counts.get(FIRST, 0)
    return ALL if complete else FIRST


# ---- the figure ------------------------------------------------------------------------------


STYLES = {
    "cycle": (BLUE, "o-"),
    "cycle+clean": (ORANGE, "s--"),
    "between+clean": (GREEN, "^-."),
}


def draw_pair(axis: Axes, part: pd.DataFrame) -> None:
    """One pair's differences against K, by scheme."""
    for scheme, (colour, style) in STYLES.items():
        line = part[part.scheme == scheme].sort_values("views")
        points = 100 * line.difference
        low = 100 * line.difference_low
        high = 100 * line.difference_high
        axis.plot(line.views, points, style, color=colour, label=scheme, markersize=4)
        axis.fill_between(line.views, low, high, color=colour, alpha=0.12)
    clean = part[part.scheme == "clean"].difference.iloc[0]
    axis.axhline(100 * clean, color="black", linestyle=":", label="clean view alone")
    axis.axhline(100 * MARGIN, color=GREY, linewidth=1)
    axis.set_xscale("log", base=2)
    ticks = SCHEMES["cycle"]
    axis.set_xticks(ticks, [str(k) for k in ticks])


def title_of(pair: Pair, part: pd.DataFrame) -> str:
    """A panel's title, with the reference's accuracy."""
    reference = part[(part.scheme == REFERENCE.scheme) & (part.views == REFERENCE.views)]
    accuracy = reference.accuracy.iloc[0]
    return f"{pair.dataset}\n{pair.model}: {accuracy:.1%} with {VIEWS} views"


def plot_curves(table: pd.DataFrame, sources: str) -> Figure:
    """Accuracy less the reference's against K, one panel a pair; the band is the 95 % interval."""
    seeds = most_seeds(table)
    shown = table[table.seeds == seeds]
    figure, axes = plt.subplots(2, len(MODELS), figsize=(11, 6), sharex=True, layout="constrained")
    for axis, pair in zip(axes.flat, PAIRS, strict=True):
        part = shown[(shown.dataset == pair.dataset) & (shown.model == pair.model)]
        draw_pair(axis, part)
        axis.set_title(title_of(pair, part), fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"points over {VIEWS} views")
    for axis in axes[1]:
        axis.set_xlabel("views K")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    bands = "bands: 95 % intervals; grey line: margin of 1 point"
    title = f"{FOLDS} folds, seeds {seeds}, held-out test folds; {bands}"
    figure.suptitle(f"{title}\n{sources}", fontsize=8)
    return figure


# ---- the command -----------------------------------------------------------------------------


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    weights = "a folder with the backbones' weights"
    parser = make_parser(__doc__, data="a folder with both datasets", weights=weights)
    add_cache(parser)
    text = "train heads for so long; run again to go on"
    parser.add_argument("--minutes", type=float, default=float("inf"), help=text)
    return parser.parse_args(arguments)


def draw_everything(
    options: argparse.Namespace, machine: Machine, cache: Store
) -> dict[Pair, PairFeatures]:
    """The features of every pair.

    Raises:
        UserError: a dataset or pretrained weights are missing.
    """
    weights = check_weights_place(options.weights)
    image_sets = [load_dataset(options.data, dataset) for dataset in DATASETS]
    drawn: dict[Pair, PairFeatures] = {}
    for dataset, image_set in zip(DATASETS, image_sets, strict=True):
        drawn |= draw_views(image_set, dataset, weights, machine=machine, store=cache)
    return drawn


def make_record(work: Work, decision: Decision, seeds: str) -> BenchmarkRecord:
    """What was measured on, and what was decided; `seeds` are those of the figure."""
    data = {pair.dataset: one.data for pair, one in work.features.items()}
    weights = {pair.model: one.weights for pair, one in work.features.items()}
    winner = decision.winner
    return BenchmarkRecord(
        kind="views",
        data=tuple(data.values()),
        weights=tuple(weights.values()),
        machine=work.machine,
        settings=FRESH_VIEWS,
        seed=0,
        facts={
            "winner": asdict(winner) if winner else None,
            "steps": decision.steps,
            "seeds": seeds,
        },
    )


def raw_arrays(raw: Raw) -> dict[str, np.ndarray]:
    """The values under dataset/model/scheme/K/block/name, losses in half precision."""
    flat = {}
    for (pair, setting), blocks in raw.items():
        for block, values in blocks.items():
            stem = f"{pair.dataset}/{pair.model}/{setting.scheme}/{setting.views}/{block}"
            flat[f"{stem}/correct"] = values.correct
            flat[f"{stem}/loss"] = values.loss.astype(np.float16)
            flat[f"{stem}/epochs"] = values.epochs
    return flat


def print_decision(table: pd.DataFrame, decision: Decision) -> None:
    """The table of the seeds that are shown, and what follows from it."""
    shown = table[table.seeds == most_seeds(table)].drop(columns="seeds")
    print(shown.to_string(index=False, float_format="%.4f"))
    for step in decision.steps:
        print(step)
    print(f"default: {decision.winner or 'nothing short of the reference'}")


def main(arguments: list[str] | None = None) -> int:
    """Measures, decides, writes -> exit code."""
    options = read_options(arguments)
    machine = this_machine()
    store = benchmark_store(options.out, "views")
    with feature_cache(options.cache_dir) as cache:
        features = draw_everything(options, machine, cache)
    work = Work(features=features, machine=machine, store=store)
    raw = measure_all(work, minutes=options.minutes)
    table = make_table(raw)
    decision = decide(table)
    print_decision(table, decision)
    record = make_record(work, decision, most_seeds(table))
    figure = plot_curves(table, list_sources(record.weights))
    write_results(options.out, table, record, figure, arrays=raw_arrays(raw))
    return 0


if __name__ == "__main__":
    run_command(main)

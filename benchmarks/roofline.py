"""How close do clean features come to the best rate that the machine has for these backbones?

    python -m benchmarks.roofline --data DIR --weights DIR [--rounds N] [--models NAME ...]
        [--out DIR]

For each backbone, on all images of its dataset in the study (ResNet50 and DenseNet121: manga faces;
others: ants and bees), in the precision that `transferlab compare` takes for its probe:

    share               = seconds that the images need at the best rate / seconds of clean features
    share_with_decoding = the same, the seconds of decoding the images added to the latter

The goal is a share of 0.75 as the median of the rounds. A run is a fresh process, imports not
counted: decode the images, build the backbone, compute its clean features, drawing included. The
best rate comes from an independent sweep of batch sizes over the same frozen part, plain and with
BatchNorm folded, on images that are drawn already. Sweep and run alternate; the best setting is the
one with the highest median over the rounds, and each round's share is taken with that round's rate
of it.

    seconds = drawing_not_hidden + forwards + other

Drawing is hidden where the model computes meanwhile; what that slows the model down is part of the
forwards. On a GPU, which computes while the next batch is handed over, forwards are the handing
over, and waiting for it is part of the other.

Written: result/benchmarks/roofline_{stamp}.csv, a row a backbone and round, roofline_{stamp}.json
with the machine, weights, goal and all rates, and img/roofline_{stamp}.png. What an interrupted run
has measured is not measured again.
"""

import argparse
import itertools
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from benchmarks.common import (
    add_models,
    add_rounds,
    all_images,
    benchmark_store,
    check_rounds,
    code_digest,
    freeze_planned,
    load_dataset,
    make_parser,
    make_point,
    measured_values,
    point_key,
    run_command,
    time_forwards,
    write_results,
)
from benchmarks.memory import in_fresh_process
from transferlab.backbones import (
    create_backbone,
    estimate_batchnorm,
    fold_batchnorm,
    split_features,
)
from transferlab.data import ImageSet
from transferlab.datasets import FACES, INSECTS, Dataset
from transferlab.machine import Machine, for_probes, this_machine
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREEN, GREY
from transferlab.pretrained import BACKBONES, WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, DataInfo, data_info, from_plain
from transferlab.store import NO_STORE
from transferlab.study import Study
from transferlab.train import Settings
from transferlab.views import BLOCK, Renderer

# Notebooks 01 and 02; all others are those of 03.
DATASETS = {"resnet50": FACES, "densenet121": FACES}
BATCH_SIZES = (4, 8, 16, 32, 64)
GOAL = 0.75  # of a median share
SEED = 0  # of the views; the clean one does not depend on it

Rates = dict[str, float]  # images a second, by "variant/batch size"


def dataset_of(model: str) -> Dataset:
    """A backbone's dataset in the study."""
    return DATASETS.get(model, INSECTS)


# ---- the sweep -------------------------------------------------------------------------------


def sweep_rates(
    variants: dict[str, nn.Module],
    images: torch.Tensor,
    *,
    machine: Machine,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.0,
) -> Rates:
    """Times frozen parts {"plain": lower, "folded": lower} in every batch size, for so many seconds
    each."""
    images = images.contiguous(memory_format=torch.channels_last)
    precision = machine.precision_of(0)
    rates = {}
    for size in batch_sizes:
        for variant, lower in variants.items():
            rates[f"{variant}/{size}"] = time_forwards(
                lower, images, size, precision, machine=machine, seconds=seconds
            )
    return rates


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """What a backbone's sweeps work on."""

    variants: dict[str, nn.Module]
    images: torch.Tensor  # uint8 [64, 3, H, W], on the device
    data: DataInfo
    weights: WeightsInfo


def clean_images(image_set: ImageSet, dataset: Dataset) -> torch.Tensor:
    """As many images as the largest batch holds, uint8 [64, 3, H, W]."""
    count = min(max(BATCH_SIZES), len(image_set.labels))
    renderer = Renderer(image_set, dataset.augmentation(224), seed=SEED)
    return torch.cat(list(renderer.blocks(0, torch.arange(count))))


def prepare_sweep(
    name: str, weights: str, images: torch.Tensor, data: DataInfo, machine: Machine
) -> Swept:
    """A backbone's frozen part in both variants.

    Raises:
        UserError: as `create_backbone`.
    """
    model, info = create_backbone(name, weights)
    if not info.measures_transfer:
        # Else activations grow or vanish, and numbers near zero are slow.
        estimate_batchnorm(model, images.split(BLOCK), device=machine.device)
    lower, _ = split_features(model.to(machine.device))
    variants = {"plain": lower, "folded": fold_batchnorm(lower)}
    return Swept(variants=variants, images=images, data=data, weights=info)


def load_sweeps(
    models: Sequence[str], data: str, weights: str, machine: Machine
) -> dict[str, Swept]:
    """What the sweeps work on, by backbone.

    Raises:
        UserError: `data` lacks a dataset; as `create_backbone`.
    """
    images: dict[str, torch.Tensor] = {}
    infos: dict[str, DataInfo] = {}
    swept = {}
    for name in models:
        dataset = dataset_of(name)
        if dataset.name not in images:
            image_set = load_dataset(data, dataset)
            infos[dataset.name] = data_info(image_set, dataset.augmentation(224))
            images[dataset.name] = clean_images(image_set, dataset).to(machine.device)
        its_images = images[dataset.name]
        swept[name] = prepare_sweep(name, weights, its_images, infos[dataset.name], machine)
    return swept


# ---- the run ---------------------------------------------------------------------------------


class Watch:
    """The seconds that a frozen part computes, and since when it has computed all that it got."""

    def __init__(self, lower: nn.Module) -> None:
        self.forwards = 0.0  # seconds
        self.computed = 0  # images
        self.idle_since = time.perf_counter()
        self._started = 0.0
        lower.register_forward_pre_hook(self._begin)
        lower.register_forward_hook(self._end)

    def _begin(self, lower: nn.Module, given: tuple[Any, ...]) -> None:
        self._started = time.perf_counter()

    def _end(self, lower: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self.idle_since = time.perf_counter()
        self.forwards += self.idle_since - self._started
        self.computed += len(output)


class TimedRenderer(Renderer):
    """Draws the same views, and counts the seconds that this takes, and those of them that the
    model stands still for.

    The model waits for a block from when it has computed all that it was handed, or from when the
    block was begun, whichever is later, until the block is there.
    """

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.image_set, renderer.augmentation, seed=renderer.seed)
        self.watch: Watch | None = None  # nothing is counted without
        self.drawing = 0.0  # seconds, hidden or not
        self.waited = 0.0  # seconds
        self._handed = 0  # images

    def _count_block(self, watch: Watch, images: int, started: float) -> None:
        ended = time.perf_counter()
        self.drawing += ended - started
        if watch.computed == self._handed:
            self.waited += ended - max(started, watch.idle_since)
        self._handed += images

    def blocks(self, view: int, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields a view of those images, uint8 [<= 32, 3, H, W] at a time."""
        source = super().blocks(view, indices)
        while True:
            started = time.perf_counter()
            block = next(source, None)
            if block is None:
                return
            if self.watch:
                self._count_block(self.watch, len(block), started)
            yield block


@dataclass(frozen=True, kw_only=True)
class Run:
    """Clean features of all images of a dataset: seconds, and how many images."""

    decoding: float  # beforehand
    seconds: float  # of the features
    drawing: float  # hidden behind the model or not
    waited: float  # for drawing
    forwards: float
    images: int


def run_study(planned: WeightsInfo, load: Callable[[], Study], weights: str) -> Run:
    """One run in this process, on all images of the study that `load` gives.

    Raises:
        UserError: as `freeze_planned`.
    """
    started = time.perf_counter()
    study = load()
    decoding = time.perf_counter() - started
    renderer = TimedRenderer(study.renderer)
    frozen = freeze_planned(planned, replace(study, renderer=renderer), weights=weights)
    watch = Watch(frozen.features.lower)
    renderer.watch = watch
    started = time.perf_counter()
    features = frozen.features.clean
    return Run(
        decoding=decoding,
        seconds=time.perf_counter() - started,
        drawing=renderer.drawing,
        waited=renderer.waited,
        forwards=watch.forwards,
        images=len(features),
    )


def run_once(planned: dict[str, Any], data: str, weights: str) -> dict[str, Any]:
    """`run_study` of a backbone on its dataset; `WeightsInfo` and `Run` as plain values."""
    info = from_plain(WeightsInfo, planned)
    dataset = dataset_of(info.name)
    machine = for_probes(this_machine())

    def load() -> Study:
        return all_images(data, dataset, Settings(), machine=machine, store=NO_STORE)

    return asdict(run_study(info, load, weights))


# ---- points ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One round of one backbone."""

    rates: Rates
    run: Run
    peak_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all runs share."""

    data: str
    weights: str
    machine: Machine


def measure_model(swept: Swept, task: Task) -> Measured:
    """One round of one backbone: the sweep, then the run."""
    rates = sweep_rates(swept.variants, swept.images, machine=task.machine)
    # What cannot be had is not looked for again.
    weights = task.weights if swept.weights.measures_transfer else "none"
    function = "benchmarks.roofline.run_once"
    returned = in_fresh_process(function, asdict(swept.weights), task.data, weights)
    run = from_plain(Run, returned.value)
    return Measured(rates=rates, run=run, peak_memory_mb=returned.peak_mb)


Measure = Callable[[Swept, Task], Measured]


def plan_point(number: int, swept: Swept, task: Task, measure: Measure) -> Point:
    """A round of a backbone, kept when it is measured."""
    name = swept.weights.name
    key = point_key(
        "roofline",
        f"{name}, round {number}",
        used={"data": swept.data, "weights": swept.weights},
        machine=task.machine,
        code=code_digest(__file__),
    )

    def measure_plain() -> dict[str, Any]:
        return asdict(measure(swept, task))

    return make_point(key, measure_plain, group=name)


def measure_all(plan: Plan) -> dict[str, list[Measured]]:
    """Every point of a plan -> the rounds of every backbone."""
    rounds: dict[str, list[Measured]] = {}
    for point, value in measured_values(plan):
        measured = from_plain(Measured, value)
        rounds.setdefault(point.group, []).append(measured)
        # With this round's own best rate; the table takes all rounds'.
        (row,) = make_rows({point.group: [measured]})
        print(f"{point.name}: share {row['share']:.3f} of {row['seconds']:.1f} s", flush=True)
    return rounds


# ---- the table -------------------------------------------------------------------------------


def best_setting(rounds: Sequence[Rates]) -> str:
    """Of the sweeps of all rounds the setting with the highest median."""
    return str(pd.DataFrame(rounds).median().idxmax())


def make_row(measured: Measured, setting: str) -> dict[str, Any]:
    """A round's row, but for the backbone and the round; `setting` is the best one."""
    run = measured.run
    rate = measured.rates[setting]
    needed = run.images / rate
    return {
        "share": needed / run.seconds,
        "share_with_decoding": needed / (run.seconds + run.decoding),
        "seconds": run.seconds,
        "drawing_not_hidden": run.waited,
        "forwards": run.forwards,
        "other": run.seconds - run.waited - run.forwards,
        "drawing": run.drawing,
        "decoding": run.decoding,
        "images": run.images,
        "setting": setting,
        "rate": rate,
        "peak_memory_mb": measured.peak_memory_mb,
    }


def make_rows(measured: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """The rows of the table, one a backbone and round."""
    rows = []
    for name, rounds in measured.items():
        setting = best_setting([one.rates for one in rounds])
        for number, one in enumerate(rounds):
            rows.append({"model": name, "round": number} | make_row(one, setting))
    return rows


def median_rows(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The medians of each backbone's rounds, a row a backbone, in their order."""
    return pd.DataFrame(rows).groupby("model", sort=False).median(numeric_only=True)


def verdict(medians: pd.DataFrame) -> str:
    """For how many backbones the goal is met, and who misses it."""
    missed = medians.index[medians.share < GOAL]
    met = f"{len(medians) - len(missed)} of {len(medians)} backbones"
    told = f"Clean features reach {GOAL} of the best rate for {met}"
    return f"{told}, not for {', '.join(missed)}" if len(missed) else told


# ---- the figure ------------------------------------------------------------------------------

PARTS = {  # of the seconds of clean features, and before them, with their colours
    "forwards at the best rate": BLUE,
    "slower forwards, other": "#9ECAE1",
    "drawing not hidden": GREEN,
    "decoding, before": GREY,
}


def split_percent(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """PARTS of every backbone in percent of the seconds of its clean features, medians over the
    rounds; decoding comes before them, so that the other parts are a hundred."""
    table = pd.DataFrame(rows)
    best = 100 * table.share
    drawing = 100 * table.drawing_not_hidden / table.seconds
    decoding = 100 * table.decoding / table.seconds
    columns = [best, 100 - best - drawing, drawing, decoding]
    parts = pd.DataFrame(dict(zip(PARTS, columns, strict=True)))
    return parts.groupby(table.model, sort=False).median()


def draw_bars(axis: Axes, parts: pd.DataFrame) -> None:
    """A stacked bar a backbone, the first on top, with each part's percent where there is room; the
    parts are named above the first bar."""
    left = pd.Series(0.0, index=parts.index)
    for number, (name, color) in enumerate(PARTS.items()):
        width = parts[name].clip(lower=0)  # a run may beat the sweep
        bars = axis.barh(parts.index, width, left=left, color=color)
        texts = [f"{value:.0f}" if value >= 4 else "" for value in width]
        axis.bar_label(bars, texts, label_type="center", color="black" if number else "white")
        place = left.iloc[0] + width.iloc[0] / 2
        above = (place, -0.6 - 0.3 * (len(PARTS) - number))  # so that no line crosses a name
        line = {"arrowstyle": "-", "color": color}
        axis.annotate(name, (place, -0.4), above, va="bottom", arrowprops=line)
        left += width
    axis.set_ylim(len(parts) - 0.5, -0.9 - 0.3 * len(PARTS))


def plot_parts(rows: Sequence[dict[str, Any]], caption: str) -> Figure:
    """A bar a backbone of where the seconds of its clean features went, beside the goal."""
    parts = split_percent(rows)
    medians = median_rows(rows)
    size = (9, 2.5 + 0.6 * len(parts))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    draw_bars(axis, parts)
    axis.plot([100 * GOAL] * 2, [-0.5, len(parts) - 0.5], color="black", linestyle="--")
    axis.text(100 * GOAL, -0.5, f"goal {100 * GOAL:.0f}", ha="center", va="bottom")
    labels = [f"{name}\n{medians.seconds[name]:.1f} s" for name in parts.index]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("percent of the seconds of clean features")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(textwrap.fill(verdict(medians), 70))
    figure.supxlabel(caption, fontsize=7)
    return figure


# ---- the command -----------------------------------------------------------------------------


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    weights = "a folder with the backbones' weights"
    parser = make_parser(__doc__, data="a folder with the datasets", weights=weights)
    add_rounds(parser, 3)
    add_models(parser, tuple(BACKBONES))
    return parser.parse_args(arguments)


def make_record(
    swept: dict[str, Swept], measured: dict[str, list[Measured]], task: Task, rounds: int
) -> BenchmarkRecord:
    """What was measured on, and all rates."""
    data = {one.data.name: one.data for one in swept.values()}
    rates = {name: [one.rates for one in found] for name, found in measured.items()}
    return BenchmarkRecord(
        kind="roofline",
        data=tuple(data.values()),
        weights=tuple(one.weights for one in swept.values()),
        machine=task.machine,
        seed=SEED,
        facts={"rounds": rounds, "goal": GOAL, "rates": rates},
    )


def caption_of(record: BenchmarkRecord, rounds: int) -> str:
    """The figure's small print."""
    names = ", ".join(one.name for one in record.data)
    machine = record.machine
    computed = f"{machine.clean_precision}, {machine.threads} threads, {machine.processor}"
    return f"medians of {rounds} rounds; {names}; {computed}"


def print_medians(medians: pd.DataFrame) -> None:
    """The medians of every backbone's rounds, and whether the goal is met."""
    print(medians.drop(columns="round").T.to_string(float_format="%.3f"))
    print(verdict(medians))


def main(arguments: list[str] | None = None, *, measure: Measure = measure_model) -> int:
    """Measures, prints, writes -> exit code."""
    options = read_options(arguments)
    check_rounds(options.rounds)
    task = Task(
        data=options.data,
        weights=check_weights_place(options.weights),
        machine=for_probes(this_machine()),
    )
    swept = load_sweeps(options.models, task.data, task.weights, task.machine)
    store = benchmark_store(options.out, "roofline")
    turns = itertools.product(range(options.rounds), swept.values())
    points = [plan_point(number, one, task, measure) for number, one in turns]
    plan = Plan(points=tuple(points), store=store)
    measured = measure_all(plan)
    rows = make_rows(measured)
    print_medians(median_rows(rows))
    record = make_record(swept, measured, task, options.rounds)
    figure = plot_parts(rows, caption_of(record, options.rounds))
    write_results(options.out, rows, record, figure, plan)
    return 0


if __name__ == "__main__":
    run_command(main)

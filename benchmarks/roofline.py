"""How close does a whole run come to the best that the machine can do with these backbones?

    python -m benchmarks.roofline --data DIR --weights DIR [--rounds N] [--models NAME ...]
        [--views K] [--out DIR]

For each backbone, on its dataset in the study (ResNet50 and DenseNet121: manga faces; others: ants
and bees):

    share = seconds that its images need at the best rate / seconds of the whole run

The run is a notebook's without the ordinary epoch, in a fresh process, imports not counted: load
the images, build the backbone, draw the features of the clean view (of all images, in fp32) and of
the random views (of the training images, in the precision that the machine chooses), train the head
for at most 30 epochs with patience 5. Its images are those that it really drew: early stopping asks
for fewer views. The best rates come from an independent sweep of batch sizes over the same frozen
part, plain and with BatchNorm folded, on images that are rendered already. Sweep and run alternate;
the best setting is the one with the highest median over the rounds, and each round's share is taken
with that round's rate of it. Every bar's parts add up to the run's seconds; rounding up or down, a
run may beat the sweep, and then its "forwards above the best rate" are negative.

Written: result/benchmarks/roofline_{stamp}.csv, a row a backbone and round (train_images: drawn in
random views, val_images: in the clean view, each with the setting and rate that is best for it),
roofline_{stamp}.json with the machine, settings, weights and all rates, and
img/roofline_{stamp}.png. What an interrupted run has measured is not measured again.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.common import (
    add_rounds,
    benchmark_store,
    check_rounds,
    code_digest,
    freeze_planned,
    list_sources,
    load_dataset,
    make_parser,
    make_point,
    make_study,
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
from transferlab.machine import Machine, this_machine
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREEN, GREY, ORANGE
from transferlab.pretrained import BACKBONES, WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, DataInfo, data_info, from_plain
from transferlab.study import Study, train_study
from transferlab.train import Settings, TrainResult
from transferlab.views import BLOCK, Renderer

# Notebooks 01 and 02; all others are those of 03.
DATASETS = {"resnet50": FACES, "densenet121": FACES}
BATCH_SIZES = (4, 8, 16, 32, 64)
SEED = 42  # of the split, the views and the head
PARTS = {  # of a run, in its order, with their colours
    "decoding": "black",
    "start-up and weights": GREY,
    "rendering not hidden": GREEN,
    "forwards at the best rate": BLUE,
    "forwards above the best rate": "#9ECAE1",
    "head": ORANGE,
    "other": "#DDDDDD",
}

Rates = dict[str, float]  # images a second, by "variant/precision/batch size"


def dataset_of(model: str) -> Dataset:
    """A backbone's dataset in the study."""
    return DATASETS.get(model, INSECTS)


# ---- the sweep -------------------------------------------------------------------------------


def sweep_rates(
    variants: dict[str, nn.Module],
    images: torch.Tensor,
    precisions: Sequence[torch.dtype],
    *,
    machine: Machine,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.0,
) -> Rates:
    """Times frozen parts {"plain": lower, "folded": lower} in every precision and batch size, for
    so many seconds each."""
    images = images.contiguous(memory_format=torch.channels_last)
    rates = {}
    for precision in precisions:
        for size in batch_sizes:
            for variant, lower in variants.items():
                rates[f"{variant}/{precision}/{size}"] = time_forwards(
                    lower, images, size, precision, machine=machine, seconds=seconds
                )
    return rates


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """What a backbone's sweeps work on."""

    variants: dict[str, nn.Module]
    images: torch.Tensor  # uint8 [64, 3, H, W], on the device
    precisions: tuple[torch.dtype, ...]
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
    precisions = dict.fromkeys([torch.float32, machine.precision_of(1)])
    return Swept(
        variants={"plain": lower, "folded": fold_batchnorm(lower)},
        images=images,
        precisions=tuple(precisions),
        data=data,
        weights=info,
    )


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


class CountingRenderer(Renderer):
    """Draws the same views, and counts their images, the seconds that this takes, and those of them
    that the model stands still for.

    The next block is rendered in a second thread while the model computes (`features.one_ahead`).
    So the model waits for a block from when it has computed all that it was handed, or from when
    the block was begun, whichever is later, until the block is there.
    """

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.image_set, renderer.augmentation, seed=renderer.seed)
        self.reset()

    def reset(self) -> None:
        """Begins to count anew."""
        self.images_by_view: dict[int, int] = {}
        self.rendered = 0.0  # seconds, hidden or not
        self.waited = 0.0  # seconds
        self._handed = 0  # images
        self._computed = 0
        self._idle_since = time.perf_counter()

    def watch(self, lower: nn.Module) -> None:
        """Counts anew, what this module computes among it."""
        self.reset()
        lower.register_forward_hook(self._count_batch)

    def _count_batch(self, lower: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self._computed += len(output)
        self._idle_since = time.perf_counter()

    def _count_block(self, view: int, images: int, started: float) -> None:
        ended = time.perf_counter()
        self.rendered += ended - started
        if self._computed == self._handed:
            self.waited += ended - max(started, self._idle_since)
        self._handed += images
        self.images_by_view[view] = self.images_by_view.get(view, 0) + images

    def blocks(self, view: int, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields a view of those images, uint8 [<= 32, 3, H, W] at a time."""
        source = super().blocks(view, indices)
        while True:
            started = time.perf_counter()
            block = next(source, None)
            if block is None:
                return
            self._count_block(view, len(block), started)
            yield block


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run: seconds, and what it computed."""

    wall: float
    decoding: float
    startup: float  # of the backbone, its weights among it
    waited: float  # for rendered images
    rendered: float  # in the second thread, hidden behind the model or not
    forwards: float
    head: float
    random_images: int  # drawn in random views, in `precision`
    clean_images: int  # in the clean view, in fp32
    epochs: int
    accuracy: float  # on validation, of the best epoch
    precision: str


Train = Callable[..., TrainResult]  # as `train_study`


def run_study(
    planned: WeightsInfo,
    load: Callable[[], Study],
    weights: str,
    *,
    train: Train = train_study,
) -> Run:
    """One whole run in this process, on the study that `load` gives.

    Raises:
        UserError: as `freeze_planned`.
    """
    started = time.perf_counter()
    study = load()
    loaded = time.perf_counter()
    renderer = CountingRenderer(study.renderer)
    study = replace(study, renderer=renderer)
    frozen = freeze_planned(planned, study, weights=weights)
    renderer.watch(frozen.features.lower)
    built = time.perf_counter()
    result = train(frozen, study)
    ended = time.perf_counter()
    seconds = frozen.clock.seconds
    extracted = seconds["clean view"] + seconds.get("training views", 0.0)
    clean = renderer.images_by_view.get(0, 0)
    return Run(
        wall=ended - started,
        decoding=loaded - started,
        startup=built - loaded,
        waited=renderer.waited,
        rendered=renderer.rendered,
        forwards=extracted - renderer.waited,
        head=seconds["head"],
        random_images=sum(renderer.images_by_view.values()) - clean,
        clean_images=clean,
        epochs=len(result.history),
        accuracy=result.best.val_acc,
        precision=str(study.machine.precision_of(1)),
    )


def run_once(
    planned: dict[str, Any], data: str, weights: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """`run_study` of a backbone on its dataset; `WeightsInfo`, settings and `Run` as plain
    values."""
    info = from_plain(WeightsInfo, planned)

    def load() -> Study:
        return make_study(
            data,
            dataset=dataset_of(info.name),
            settings=from_plain(Settings, settings),
            machine=this_machine(),
            seed=SEED,
        )

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
    settings: Settings
    machine: Machine


def measure_model(name: str, swept: Swept, task: Task) -> Measured:
    """One round of one backbone: the sweep, then the run."""
    rates = sweep_rates(swept.variants, swept.images, swept.precisions, machine=task.machine)
    planned = asdict(swept.weights)
    # What cannot be had is not looked for again.
    weights = task.weights if swept.weights.measures_transfer else "none"
    settings = asdict(task.settings)
    function = "benchmarks.roofline.run_once"
    returned = in_fresh_process(function, planned, task.data, weights, settings)
    run = from_plain(Run, returned.value)
    return Measured(rates=rates, run=run, peak_memory_mb=returned.peak_mb)


Measure = Callable[[str, Swept, Task], Measured]


def plan_point(name: str, number: int, swept: Swept, task: Task, measure: Measure) -> Point:
    """A round of a backbone, kept when it is measured."""
    used = {"data": swept.data, "weights": swept.weights, "settings": task.settings}
    key = point_key(
        "roofline",
        f"{name}, round {number}",
        used=used,
        machine=task.machine,
        code=code_digest(__file__),
    )

    def measure_plain() -> dict[str, Any]:
        return asdict(measure(name, swept, task))

    return make_point(key, measure_plain, group=name)


def measure_all(plan: Plan) -> dict[str, list[Measured]]:
    """Every point of a plan -> the rounds of every backbone."""
    rounds: dict[str, list[Measured]] = {}
    for point, value in measured_values(plan):
        measured = from_plain(Measured, value)
        name = point.group
        rounds.setdefault(name, []).append(measured)
        # With this round's own best rates; the table takes all rounds'.
        (row,) = make_rows({name: [measured]})
        print(f"{point.name}: share {row['share']:.3f} of {row['seconds']:.1f} s", flush=True)
    return rounds


# ---- the table -------------------------------------------------------------------------------


def best_setting(rounds: Sequence[Rates], precision: str) -> str:
    """Of the sweeps of all rounds the setting of a precision with the highest median."""
    medians = pd.DataFrame(rounds).median()
    fitting = [setting for setting in medians.index if f"/{precision}/" in setting]
    return medians[fitting].idxmax()


def split_wall(run: Run, train_rate: float, val_rate: float) -> dict[str, float]:
    """Where the seconds of a run went, in PARTS, which add up to its wall time; the rates, of
    random views and of the clean one, are in images a second."""
    needed = run.random_images / train_rate + run.clean_images / val_rate
    parts = {
        "decoding": run.decoding,
        "start-up and weights": run.startup,
        "rendering not hidden": run.waited,
        "forwards at the best rate": needed,
        "forwards above the best rate": run.forwards - needed,
        "head": run.head,
    }
    parts["other"] = run.wall - sum(parts.values())
    return parts


def make_row(measured: Measured, train_setting: str, val_setting: str) -> dict[str, Any]:
    """A round's row, but for the backbone and the round; the settings are the best ones."""
    run = measured.run
    train_rate = measured.rates[train_setting]
    val_rate = measured.rates[val_setting]
    parts = split_wall(run, train_rate, val_rate)
    return {
        "share": parts["forwards at the best rate"] / run.wall,
        "seconds": run.wall,
        "epochs": run.epochs,
        "train_images": run.random_images,
        "val_images": run.clean_images,
        "train_setting": train_setting,
        "train_rate": train_rate,
        "val_setting": val_setting,
        "val_rate": val_rate,
        "accuracy": run.accuracy,
        "peak_memory_mb": measured.peak_memory_mb,
        "rendering_hidden_or_not": run.rendered,
        **parts,
    }


def make_rows(measured: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """The rows of the table, one a backbone and round."""
    rows = []
    for name, rounds in measured.items():
        rates = [one.rates for one in rounds]
        train_setting = best_setting(rates, rounds[0].run.precision)
        val_setting = best_setting(rates, str(torch.float32))
        for number, one in enumerate(rounds):
            row = {"model": name, "round": number}
            rows.append(row | make_row(one, train_setting, val_setting))
    return rows


# ---- the figure ------------------------------------------------------------------------------


def plot_parts(rows: Iterable[dict[str, Any]], title: str) -> Figure:
    """A bar a backbone of the percent of its run that each part took, means over the rounds; the
    median share beside it."""
    table = pd.DataFrame(rows)
    models = table.model.unique()[::-1]
    percent = 100 * table[list(PARTS)].div(table.seconds, axis=0)
    means = percent.groupby(table.model).mean().loc[models]
    medians = table.groupby("model")[["share", "seconds"]].median().loc[models]
    size = (10, 2.4 + 0.5 * len(models))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    means.plot.barh(stacked=True, ax=axis, color=list(PARTS.values()), legend=False)
    labels = [
        f"{row.Index}\nshare {row.share:.2f}, {row.seconds:.0f} s" for row in medians.itertuples()
    ]
    axis.set_yticks(range(len(models)), labels)
    axis.set(xlabel="percent of the run's seconds", ylabel="")
    axis.set_title(title, fontsize=8)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


# ---- the command -----------------------------------------------------------------------------


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    weights = "a folder with the backbones' weights"
    parser = make_parser(__doc__, data="a folder with the datasets", weights=weights)
    add_rounds(parser, 3)
    models = list(BACKBONES)
    text = f"default: {' '.join(models)}"
    parser.add_argument("--models", nargs="+", default=models, metavar="NAME", help=text)
    text = "random views of a training image (default: %(default)s)"
    parser.add_argument("--views", type=int, default=Settings().views, help=text)
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
        settings=task.settings,
        seed=SEED,
        facts={"rounds": rounds, "rates": rates},
    )


def heading(record: BenchmarkRecord, task: Task, rounds: int) -> str:
    """The figure's title."""
    names = ", ".join(one.name for one in record.data)
    how = f"{task.settings.views} views, {rounds} rounds, {record.machine.processor}"
    return f"{names}, {how}\n{list_sources(record.weights)}"


def print_medians(rows: Iterable[dict[str, Any]]) -> None:
    """The medians of a backbone's rounds, a column each."""
    columns = ["share", "seconds", "epochs", "train_rate", "val_rate", *PARTS]
    groups = pd.DataFrame(rows).groupby("model", sort=False)
    print(groups[columns].median().T.to_string(float_format="%.3f"))


def main(arguments: list[str] | None = None, *, measure: Measure = measure_model) -> int:
    """Measures, prints, writes -> exit code."""
    options = read_options(arguments)
    check_rounds(options.rounds)
    settings = replace(Settings(), views=options.views)
    settings.check()
    task = Task(
        data=options.data,
        weights=check_weights_place(options.weights),
        settings=settings,
        machine=this_machine(),
    )
    swept = load_sweeps(options.models, task.data, task.weights, task.machine)
    store = benchmark_store(options.out, "roofline")
    points = []
    for number in range(options.rounds):
        for name, one in swept.items():
            points.append(plan_point(name, number, one, task, measure))
    plan = Plan(points=tuple(points), store=store)
    measured = measure_all(plan)
    rows = make_rows(measured)
    print_medians(rows)
    record = make_record(swept, measured, task, options.rounds)
    figure = plot_parts(rows, heading(record, task, options.rounds))
    write_results(options.out, rows, record, figure, plan)
    return 0


if __name__ == "__main__":
    run_command(main)

"""What grows, and how: epochs, heads, folds x seeds, images, resolution; seconds and peak memory.

    python -m benchmarks.scaling --data DIR --weights DIR [--rounds N] [--parts PART ...]
        [--out DIR]

    epochs       the whole run of ResNet50 on the manga faces, 30 to 300 epochs, 30 views, without
                 early stopping
    heads        1 to 1,000 heads of the study, trained together, 30 epochs each; their features are
                 given
    folds        n of ten stratified folds x n seeds, 20 % of each training fold for early stopping,
                 patience 5; features given
    images       the whole run of EfficientNet-Lite0 at 96 px, 1 view and 30 epochs, on 455 to
                 50,000 drawn pictures of 128 px
    resolution   the whole run of ResNet50 on the manga faces at 96 to 320 px, 4 views, 30 epochs,
                 without early stopping

Each point runs in a fresh process, whose peak memory (PSS) is watched from outside. `seconds` are
those of the whole run, imports not counted; of heads and folds those of the training (and the
scores on the test folds). The parts load (finding and decoding images), weights, features and heads
have their own columns. The pictures are drawn to a temporary folder: shape and memory are the
point, not accuracy; beyond `DECODED_BYTES` they are decoded anew for each view.

Written: result/benchmarks/scaling_{stamp}.csv, a row a point and round, scaling_{stamp}.json with
the machine, settings and weights, and img/scaling_{stamp}.png. A point that an interrupted run has
measured is not measured again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from benchmarks.common import (
    FRESH_VIEWS,
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
    seed_folds,
    write_results,
)
from benchmarks.memory import Returned, in_fresh_process
from transferlab.backbones import create_backbone, make_head
from transferlab.data import HeldOutFold, ImageSet, everything_fold, split_images
from transferlab.datasets import FACES
from transferlab.machine import Machine, this_machine
from transferlab.many import Job, train_many
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.pretrained import WeightsInfo, check_weights_place
from transferlab.records import BenchmarkRecord, DataInfo, data_info, from_plain
from transferlab.store import open_store
from transferlab.study import train_study
from transferlab.train import Settings, evaluate

LABELS = {
    "epochs": "epochs",
    "heads": "heads",
    "folds": "folds x seeds",
    "images": "images",
    "resolution": "pixels a side",
}
POINTS = {
    "epochs": (30, 100, 300),
    "heads": (1, 10, 100, 1000),
    "folds": (1, 2, 5, 10),
    "images": (455, 1500, 5000, 15_000, 50_000),
    "resolution": (96, 128, 160, 224, 320),
}
FOLDS = 10
SEED = 42  # of the split, the views and the head
DRAWN_SIZE = 96  # pixels a side that drawn pictures are rendered at
MEMORY_TICKS = (200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)  # MB


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What grows, and what it is measured with."""

    points: dict[str, tuple[int, ...]] = field(default_factory=lambda: POINTS)  # by part
    model: str = "resnet50"
    small_model: str = "efficientnet_lite0"  # of the part "images"
    settings: Settings = replace(FRESH_VIEWS, patience=0)

    def model_of(self, part: str) -> str:
        """The backbone of a part."""
        return self.small_model if part == "images" else self.model


GROWTH = Growth()


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the data and weights are, and the features that points share."""

    data: str
    weights: str
    infos: dict[str, WeightsInfo]  # by backbone: what was found there at the start
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a process of its own computes with: plain values."""

    backbone: WeightsInfo
    data: str
    weights: str
    settings: Settings
    cache_dir: str = ""
    size: int = 224


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point."""

    seconds: float
    load: float | None = None  # seconds, as all of these
    weights: float | None = None
    heads: float | None = None
    features: float | None = None
    images: int | None = None
    peak_memory_mb: float | None = None


# ---- pictures --------------------------------------------------------------------------------


def draw_pictures(
    folder: Path, count: int, *, classes: int = 7, size: int = 128, seed: int = 0
) -> None:
    """Writes `count` random pictures of low frequency, `size` px, to `folder`/CLASS/, nine in ten
    as JPEG, the tenth as PNG. A class is one pattern of 8 x 8 colours, a picture that with
    noise."""
    random = np.random.default_rng(seed)
    patterns = random.uniform(60, 195, (classes, 8, 8, 3))
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
    text = "Drawn pictures of low frequency, no dataset\n"
    (folder / "SYNTHETIC").write_text(text, encoding="utf-8")
    for number in range(count):
        label = number % classes
        noise = random.normal(0, 40, (8, 8, 3))
        colours = (patterns[label] + noise).clip(0, 255)
        small = Image.fromarray(colours.astype(np.uint8))
        picture = small.resize((size, size), Image.Resampling.BICUBIC)
        kind = "png" if number % 10 == 9 else "jpg"
        picture.save(folder / f"class_{label}" / f"{number:06d}.{kind}")


# ---- a point's own process -------------------------------------------------------------------


def run_whole(plain: dict[str, Any]) -> dict[str, Any]:
    """A whole run of the study in this process, from a `Source` as plain values -> `Measured` as
    such."""
    source = from_plain(Source, plain)
    started = time.perf_counter()
    study = make_study(
        source.data,
        settings=source.settings,
        machine=this_machine(),
        seed=SEED,
        size=source.size,
    )
    loaded = time.perf_counter()
    frozen = freeze_planned(source.backbone, study, weights=source.weights)
    built = time.perf_counter()
    train_study(frozen, study)
    ended = time.perf_counter()
    phases = frozen.clock.seconds
    measured = Measured(
        seconds=ended - started,
        load=loaded - started,
        weights=built - loaded,
        heads=phases["head"],
        features=phases["training views"] + phases["clean view"],
        images=len(study.image_set.labels),
    )
    return asdict(measured)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Features of all images of a dataset."""

    image_set: ImageSet
    settings: Settings
    views: torch.Tensor  # fp32 [1 + K, N, D], the clean one first

    @property
    def clean(self) -> torch.Tensor:
        """The clean view [N, D]."""
        return self.views[0]

    def view_of(self, epoch: int) -> torch.Tensor:
        """What epoch 0, 1, ... trains on [N, D]."""
        return self.views[self.settings.view_of(epoch)]


def draw_features(source: Source) -> Drawn:
    """Features of all images, read from the source's cache or kept there."""
    study = make_study(
        source.data,
        settings=source.settings,
        machine=this_machine(),
        store=open_store(source.cache_dir),
        seed=SEED,
    )
    everything = replace(study, fold=everything_fold(study.image_set))
    frozen = freeze_planned(source.backbone, everything, weights=source.weights)
    settings = source.settings
    views = [frozen.features.train(view) for view in range(settings.views + 1)]
    return Drawn(image_set=study.image_set, settings=settings, views=torch.stack(views))


def keep_features(plain: dict[str, Any]) -> None:
    """Draws them once, in a process of its own: what it takes is no point's memory."""
    draw_features(from_plain(Source, plain))


def head_jobs(drawn: Drawn, count: int) -> list[Job]:
    """`count` jobs that differ in the seed alone, on the study's split."""
    fold = split_images(drawn.image_set, val_size=0.35, seed=SEED)
    jobs = []
    for seed in range(count):
        job = Job(
            view_of=drawn.view_of,
            train_index=fold.train,
            val_x=drawn.clean,
            val_index=fold.val,
            seed=seed,
            patience=0,
        )
        jobs.append(job)
    return jobs


def first_folds(labels: torch.Tensor, count: int) -> list[HeldOutFold]:
    """The first `count` of ten folds for each of `count` seeds."""
    return seed_folds(labels, k=FOLDS, seeds=range(count), first=count)


def fold_jobs(drawn: Drawn, folds: Sequence[HeldOutFold]) -> list[Job]:
    """A job a fold."""
    jobs = []
    for fold in folds:
        job = Job(
            view_of=drawn.view_of,
            train_index=fold.train,
            val_x=drawn.clean,
            val_index=fold.val,
            seed=fold.repeat,
        )
        jobs.append(job)
    return jobs


def train_heads(
    drawn: Drawn, jobs: Sequence[Job], folds: Sequence[HeldOutFold], epochs: int
) -> None:
    """Trains a head a job, and scores them on the test folds, where there are any."""
    labels = drawn.image_set.labels
    classes = len(drawn.image_set.classes)
    heads = [make_head(drawn.clean.shape[1], classes, seed=job.seed) for job in jobs]
    train_many(heads, jobs, labels, epochs=epochs)
    for head, fold in zip(heads, folds):
        evaluate(head, drawn.clean[fold.test], labels[fold.test])


def run_heads(part: str, count: int, plain: dict[str, Any]) -> dict[str, Any]:
    """Trains many heads in this process on features that are kept: `count` of them, or `count`
    folds x `count` seeds with their scores on the test folds."""
    source = from_plain(Source, plain)
    drawn = draw_features(source)
    labels = drawn.image_set.labels
    started = time.perf_counter()
    folds = [] if part == "heads" else first_folds(labels, count)
    jobs = head_jobs(drawn, count) if part == "heads" else fold_jobs(drawn, folds)
    train_heads(drawn, jobs, folds, source.settings.epochs)
    seconds = time.perf_counter() - started
    return asdict(Measured(seconds=seconds, heads=seconds, images=len(labels)))


# ---- a point from outside --------------------------------------------------------------------


Call = Callable[..., Returned]  # as `in_fresh_process`
Measure = Callable[[str, int, Inputs, Growth], Measured]


def source_of(part: str, inputs: Inputs, growth: Growth, **settings: Any) -> Source:
    """What a part's process computes with; `settings` replace those of the growth."""
    model = growth.model_of(part)
    backbone = inputs.infos[model]
    return Source(
        backbone=backbone,
        data=inputs.data,
        # What cannot be had is not looked for again.
        weights=inputs.weights if backbone.measures_transfer else "none",
        settings=replace(growth.settings, **settings),
    )


def call_heads(part: str, count: int, source: Source, call: Call) -> Returned:
    """A point of heads or folds in a fresh process; its features are drawn beforehand."""
    plain = asdict(source)
    if not any(Path(source.cache_dir).iterdir()):
        call("benchmarks.scaling.keep_features", plain)
    return call("benchmarks.scaling.run_heads", part, count, plain)


def call_whole(source: Source, call: Call) -> Returned:
    """A whole run in a fresh process."""
    return call("benchmarks.scaling.run_whole", asdict(source))


def call_images(count: int, source: Source, call: Call) -> Returned:
    """A point of images in a fresh process, on pictures drawn for it."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        draw_pictures(drawn, count)
        return call_whole(replace(source, data=str(drawn), size=DRAWN_SIZE), call)


def measure_point(
    part: str, value: int, inputs: Inputs, growth: Growth, *, call: Call = in_fresh_process
) -> Measured:
    """One point, its computing called as `call` says."""
    if part == "images":
        returned = call_images(value, source_of(part, inputs, growth, views=1), call)
    elif part == "resolution":
        source = source_of(part, inputs, growth, views=4)
        returned = call_whole(replace(source, size=value), call)
    elif part == "epochs":
        returned = call_whole(source_of(part, inputs, growth, epochs=value), call)
    else:
        source = replace(source_of(part, inputs, growth), cache_dir=inputs.cache_dir)
        returned = call_heads(part, value, source, call)
    measured = from_plain(Measured, returned.value)
    return replace(measured, peak_memory_mb=returned.peak_mb)


# ---- all points ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of a part in a round."""

    part: str
    value: int
    number: int  # of the round

    def __str__(self) -> str:
        return f"{self.part} {self.value}, round {self.number}"

    @property
    def x(self) -> int:
        """What stands on the part's axis: the value, but the number of heads for folds x seeds."""
        return self.value**2 if self.part == "folds" else self.value

    def row(self, measured: Measured) -> dict[str, Any]:
        """A row of the table."""
        return {"part": self.part, "x": self.x, "round": self.number, **asdict(measured)}


@dataclass(frozen=True, kw_only=True)
class Used:
    """What the parts are measured on."""

    data: DataInfo | None  # the faces, where a part needs them
    infos: dict[str, WeightsInfo]  # by backbone

    def of(self, part: str, growth: Growth) -> dict[str, Any]:
        """What one part depends on: others may be measured in another call."""
        return {
            "data": None if part == "images" else self.data,
            "weights": self.infos[growth.model_of(part)],
            "settings": growth.settings,
        }


def check_inputs(parts: Sequence[str], data: str, weights: str, growth: Growth) -> Used:
    """What is measured on.

    Raises:
        UserError: `data` lacks the manga faces, where a part needs them; as `create_backbone`.
    """
    models = {growth.model_of(part) for part in parts}
    infos = {}
    for name in sorted(models):
        _, infos[name] = create_backbone(name, weights)
    faces = None
    if set(parts) != {"images"}:
        # Its size is that of all parts but "resolution".
        faces = data_info(load_dataset(data, FACES), FACES.augmentation(224))
    return Used(data=faces, infos=infos)


def list_cells(parts: Sequence[str], rounds: int, growth: Growth) -> list[Cell]:
    """The points in the order that they are measured in."""
    cells = []
    for number in range(rounds):
        for part in parts:
            values = growth.points[part]
            cells += [Cell(part=part, value=value, number=number) for value in values]
    return cells


@dataclass(frozen=True, kw_only=True)
class Work:
    """All points, and how each is measured."""

    cells: tuple[Cell, ...]
    used: Used
    inputs: Inputs
    growth: Growth
    machine: Machine
    measure: Measure

    def point(self, cell: Cell) -> Point:
        """What is kept of a point."""

        def measure() -> dict[str, Any]:
            return asdict(self.measure(cell.part, cell.value, self.inputs, self.growth))

        key = point_key(
            "scaling",
            str(cell),
            used=self.used.of(cell.part, self.growth),
            machine=self.machine,
            code=code_digest(__file__),
        )
        return make_point(key, measure)

    def rows(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """A row a point, as soon as it is measured."""
        for cell, (_, value) in zip(self.cells, measured_values(plan)):
            measured = from_plain(Measured, value)
            amounts = f"{measured.seconds:.1f} s, {measured.peak_memory_mb:.0f} MB"
            print(f"round {cell.number}, {LABELS[cell.part]} {cell.x}: {amounts}", flush=True)
            yield cell.row(measured)


# ---- the figure ------------------------------------------------------------------------------


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent b of the best fit y = a x^b (least squares on the logarithms); NaN for fewer
    than two points."""
    if len(x) < 2:
        return float("nan")
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    return float(exponent)


def proportional(part: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What `y` at the largest `x` would have been at every `x`, were it proportional to the work:
    to x, or to the pixels x * x."""
    power = 2 if part == "resolution" else 1
    share = x / x[-1]
    return y[-1] * share**power


def draw_part(axis: Axes, part: str, medians: pd.DataFrame) -> list[Line2D]:
    """One part, log-log: seconds on the left, peak memory on the right -> the lines."""
    x = medians.x.to_numpy(float)
    seconds = medians.seconds.to_numpy(float)
    memory = medians.peak_memory_mb.to_numpy(float)
    right = axis.twinx()
    lines = axis.plot(x, seconds, "o-", color=BLUE, label="seconds")
    lines += axis.plot(x, proportional(part, x, seconds), ":", color=GREY, label="proportional")
    lines += right.plot(x, memory, "s--", color=ORANGE, label="peak memory")
    for one in (axis, right):
        one.set(xscale="log", yscale="log")
    axis.set_xticks(x, [f"{value:,.0f}" for value in x], rotation=45)
    axis.xaxis.minorticks_off()
    right.minorticks_off()
    axis.set(xlabel=LABELS[part], ylabel="seconds")
    highest = 4 * memory.max()
    ticks = [tick for tick in MEMORY_TICKS if tick < highest]
    right.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    right.set(ylabel="peak memory (MB)", ylim=(200, highest))
    exponents = f"seconds ~ x^{slope(x, seconds):.2f}, MB ~ x^{slope(x, memory):.2f}"
    axis.set_title(f"{part}: {exponents}", fontsize=8)
    return lines


def plot_scaling(table: pd.DataFrame, title: str) -> Figure:
    """A panel a part: seconds and peak memory, medians over the rounds, with their exponents."""
    groups = table.groupby(["part", "x"], sort=False)
    medians = groups[["seconds", "peak_memory_mb"]].median().reset_index()
    parts = medians.part.unique()
    columns = min(3, len(parts))
    rows = -(-len(parts) // 3)
    size = (1 + 3.5 * columns, 0.9 + 2.9 * rows)
    figure = plt.figure(figsize=size, layout="constrained")
    for number, part in enumerate(parts, 1):
        axis = figure.add_subplot(rows, columns, number)
        lines = draw_part(axis, part, medians[medians.part == part])
    names = [line.get_label() for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=8)
    return figure


# ---- the command -----------------------------------------------------------------------------


def read_options(arguments: list[str] | None, growth: Growth) -> argparse.Namespace:
    """The command's options, each part named once."""
    weights = f"a folder with the weights of {growth.model} and {growth.small_model}"
    parser = make_parser(__doc__, data=f"a folder with {FACES.name}", weights=weights)
    add_rounds(parser, 1)
    parts = list(growth.points)
    parser.add_argument(
        "--parts", nargs="+", default=parts, choices=parts, metavar="PART", help="default: all"
    )
    options = parser.parse_args(arguments)
    options.parts = list(dict.fromkeys(options.parts))
    return options


def make_record(work: Work, options: argparse.Namespace) -> BenchmarkRecord:
    """What the table was measured on, and how."""
    used = work.used
    points = {part: work.growth.points[part] for part in options.parts}
    return BenchmarkRecord(
        kind="scaling",
        data=(used.data,) if used.data else (),
        weights=tuple(used.infos.values()),
        machine=work.machine,
        settings=work.growth.settings,
        seed=SEED,
        facts={"points": points, "rounds": options.rounds},
    )


def heading(record: BenchmarkRecord, options: argparse.Namespace) -> str:
    """The figure's title."""
    names = [one.name for one in record.data]
    if "images" in options.parts:
        names.append("drawn pictures")
    rounds = f"{options.rounds} rounds, {record.machine.processor}"
    return f"{' and '.join(names)}, {rounds}\n{list_sources(record.weights)}"


def main(
    arguments: list[str] | None = None,
    *,
    growth: Growth = GROWTH,
    measure: Measure = measure_point,
) -> int:
    """Measures, prints, writes -> exit code."""
    options = read_options(arguments, growth)
    check_rounds(options.rounds)
    weights = check_weights_place(options.weights)
    used = check_inputs(options.parts, options.data, weights, growth)
    store = benchmark_store(options.out, "scaling")
    cells = list_cells(options.parts, options.rounds, growth)
    with tempfile.TemporaryDirectory() as cache_dir:
        inputs = Inputs(data=options.data, weights=weights, infos=used.infos, cache_dir=cache_dir)
        work = Work(
            cells=tuple(cells),
            used=used,
            inputs=inputs,
            growth=growth,
            machine=this_machine(),
            measure=measure,
        )
        points = [work.point(cell) for cell in cells]
        plan = Plan(points=tuple(points), store=store)
        rows = list(work.rows(plan))
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    medians = table.drop(columns="round").groupby(["part", "x"], sort=False).median()
    print(medians.to_string(float_format="%.2f", na_rep=""))
    record = make_record(work, options)
    figure = plot_scaling(table, heading(record, options))
    write_results(options.out, table, record, figure, plan)
    return 0


if __name__ == "__main__":
    run_command(main)

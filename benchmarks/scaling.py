"""What grows, and how: epochs, heads, folds x seeds, images, resolution; seconds and peak memory.

    python -m benchmarks.scaling --data DIR --weights DIR [--rounds N] [--parts PART ...] [--out DIR]

    epochs       the whole run of ResNet50 on the manga faces, 30 to 300 epochs, without early stopping
    heads        1 to 1,000 heads of the study, trained together, 30 epochs each; their features are given
    folds        n of ten stratified folds x n seeds, 20 % of each training fold for early stopping, patience 5; features given
    images       the whole run of EfficientNet-Lite0 at 96 px, 1 view and 30 epochs, on 455 to 50,000 drawn pictures of 128 px
    resolution   the whole run of ResNet50 on the manga faces at 96 to 320 px, 4 views, 30 epochs, without early stopping

Each point runs in a fresh process, whose peak memory (PSS) is watched from outside. `seconds` are those of the whole run, imports
not counted; of heads and folds those of the training (and the scores on the test folds). The parts load (finding and decoding
images), weights, features and heads have their own columns. The pictures are drawn to a temporary folder: shape and memory are
the point, not accuracy; beyond `DECODED_BYTES` they are decoded anew for each view.

Written: result/benchmarks/scaling_{stamp}.csv, a row a point and round, scaling_{stamp}.json with the machine, settings and
weights, and img/scaling_{stamp}.png. A point that an interrupted run has measured is not measured again.
"""

import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from benchmarks.engine import SETTINGS, make_study
from benchmarks.memory import in_fresh_process
from benchmarks.results import (
    FACES,
    list_sources,
    load_dataset,
    make_parser,
    measure_or_read,
    run_command,
    unfinished_folder,
    write_results,
)
from transferlab.artifacts import machine
from transferlab.backbones import create_backbone, make_head
from transferlab.data import split_images, split_indices
from transferlab.errors import UserError
from transferlab.many import Job, train_many
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.study import freeze_backbone, train_study
from transferlab.train import evaluate

POINTS = {
    "epochs": (30, 100, 300),
    "heads": (1, 10, 100, 1000),
    "folds": (1, 2, 5, 10),
    "images": (455, 1500, 5000, 15_000, 50_000),
    "resolution": (96, 128, 160, 224, 320),
}
LABELS = {
    "epochs": "epochs",
    "heads": "heads",
    "folds": "folds x seeds",
    "images": "images",
    "resolution": "pixels a side",
}
MODEL, SMALL_MODEL, FOLDS = "resnet50", "efficientnet_lite0", 10


def draw_pictures(folder, count, *, classes=7, size=128, seed=0):
    """Writes `count` random pictures of low frequency, `size` px, to `folder`/CLASS/, nine in ten as JPEG, the tenth as PNG. A class
    is one pattern of 8 x 8 colours, a picture that with noise."""
    random = np.random.default_rng(seed)
    patterns = random.uniform(60, 195, (classes, 8, 8, 3))
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
    (folder / "SYNTHETIC").write_text(
        "Drawn pictures of low frequency, no dataset\n", encoding="utf-8"
    )
    for number in range(count):
        label = number % classes
        colours = (patterns[label] + random.normal(0, 40, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(
            folder / f"class_{label}" / f"{number:06d}.{'png' if number % 10 == 9 else 'jpg'}"
        )


def run_whole(model, data, weights, size, changed):
    """A whole run of the study at `size` px, with `changed` settings, in this process -> dict of seconds, and images."""
    started = time.perf_counter()
    study = make_study(data, size=size, **changed)
    loaded = time.perf_counter()
    frozen = freeze_backbone(model, study, weights=weights)
    built = time.perf_counter()
    train_study(frozen, study, progress=False)
    seconds, timings = time.perf_counter() - started, frozen.timings
    return {
        "seconds": seconds,
        "load": loaded - started,
        "weights": built - loaded,
        "heads": timings["head"],
        "features": timings["training views"] + timings["validation images"],
        "images": len(study.image_set.labels),
    }


def draw_features(model, data, weights, cache_dir):
    """Features of all images, read from `cache_dir` or kept there -> (ImageSet, clean fp32 [N, D], views [K, N, D])."""
    study = make_study(data)
    everything = torch.arange(len(study.image_set.labels))
    study = study._replace(indices={"train": everything, "val": everything})
    draw = freeze_backbone(model, study, weights=weights, cache_dir=cache_dir).draw
    return (
        study.image_set,
        draw("val", 0),
        torch.stack([draw("train", 1 + view) for view in range(study.settings["views"])]),
    )


def keep_features(model, data, weights, cache_dir):
    """Draws them once, in a process of its own: what it takes is no point's memory."""
    draw_features(model, data, weights, cache_dir)


def head_jobs(image_set, view_of, clean, count):
    """`count` jobs that differ in the seed alone, on the study's split -> list of Job."""
    train_index, val_index = split_images(image_set, val_size=0.35, seed=42)
    return [
        Job(view_of, train_index, clean, val_index, seed=seed, patience=0) for seed in range(count)
    ]


def fold_jobs(labels, view_of, clean, count):
    """Jobs of the first `count` of ten folds for each of `count` seeds -> (list of Job, list of test folds int64)."""
    jobs, tests = [], []
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels))[:count]
    for seed in range(count):
        for rest, test in (map(torch.from_numpy, fold) for fold in folds):
            inner, val = (
                rest[part] for part in split_indices(labels[rest], val_size=0.2, seed=seed)
            )
            jobs.append(Job(view_of, inner, clean, val, seed=seed))
            tests.append(test)
    return jobs, tests


def run_heads(part, model, data, weights, cache_dir, count):
    """Trains many heads in this process on features that are kept in `cache_dir`: `count` of them, or `count` folds x `count` seeds
    with their scores on the test folds -> dict of seconds."""
    image_set, clean, views = draw_features(model, data, weights, cache_dir)
    labels, tests = image_set.labels, []

    def view_of(epoch):
        return views[epoch % len(views)]

    started = time.perf_counter()
    if part == "heads":
        jobs = head_jobs(image_set, view_of, clean, count)
    else:
        jobs, tests = fold_jobs(labels, view_of, clean, count)
    heads = [make_head(clean.shape[1], len(image_set.classes), seed=job.seed) for job in jobs]
    train_many(heads, jobs, labels, epochs=SETTINGS["epochs"])
    for head, test in zip(heads, tests):
        evaluate(head, clean[test], labels[test])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "heads": seconds, "images": len(labels)}


def measure_heads(part, count, data, weights, cache_dir):
    """A point of heads or folds in a fresh process; its features are drawn beforehand -> (seconds by phase, peak memory in MB)."""
    arguments = [MODEL, data, weights[MODEL], cache_dir]
    if not any(Path(cache_dir).iterdir()):
        in_fresh_process("benchmarks.scaling.keep_features", *arguments)
    return in_fresh_process("benchmarks.scaling.run_heads", part, *arguments, count)


def measure_images(count, weights):
    """A point of images in a fresh process, on pictures drawn for it -> (seconds by phase, peak memory in MB)."""
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder) / "drawn", count)
        arguments = [
            SMALL_MODEL,
            str(Path(folder) / "drawn"),
            weights[SMALL_MODEL],
            96,
            {"views": 1},
        ]
        return in_fresh_process("benchmarks.scaling.run_whole", *arguments)


def measure_point(part, value, data, weights, cache_dir):
    """One point in a fresh process -> dict of its seconds and peak_memory_mb; weights: {backbone: what to give for it}."""
    if part in ("heads", "folds"):
        found, peak = measure_heads(part, value, data, weights, cache_dir)
    elif part == "images":
        found, peak = measure_images(value, weights)
    else:
        size, changed = (value, {"views": 4}) if part == "resolution" else (224, {"epochs": value})
        found, peak = in_fresh_process(
            "benchmarks.scaling.run_whole", MODEL, data, weights[MODEL], size, changed
        )
    return found | {"peak_memory_mb": peak}


def work_of(part, value):
    """What stands on a part's axis: `value`, but the number of heads for folds x seeds."""
    return value**2 if part == "folds" else value


def slope(x, y):
    """The exponent b of the best fit y = a x^b (least squares on the logarithms); NaN for fewer than two points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


def proportional(part, x, y):
    """What `y` at the largest `x` would have been at every `x`, were it proportional to the work: to x, or to the pixels x * x."""
    return y[-1] * (x / x[-1]) ** (2 if part == "resolution" else 1)


def plot_scaling(rows, title):
    """A panel a part, log-log: seconds (left) and peak memory (right), medians over the rounds, with their exponents."""
    medians = (
        pd.DataFrame(rows)
        .groupby(["part", "x"], sort=False)[["seconds", "peak_memory_mb"]]
        .median()
        .reset_index()
    )
    parts = medians.part.unique()
    columns, rows = min(3, len(parts)), -(-len(parts) // 3)
    figure = plt.figure(figsize=(1 + 3.5 * columns, 0.9 + 2.9 * rows), layout="constrained")
    for number, part in enumerate(parts, 1):
        axis = figure.add_subplot(rows, columns, number)
        x, seconds, memory = (
            medians[medians.part == part][column].to_numpy(float)
            for column in ("x", "seconds", "peak_memory_mb")
        )
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
        ticks = [
            tick
            for tick in (200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
            if tick < 4 * memory.max()
        ]
        right.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        right.set(ylabel="peak memory (MB)", ylim=(200, 4 * memory.max()))
        axis.set_title(
            f"{part}: seconds ~ x^{slope(x, seconds):.2f}, MB ~ x^{slope(x, memory):.2f}",
            fontsize=8,
        )
    figure.legend(
        lines,
        [line.get_label() for line in lines],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(title, fontsize=8)
    return figure


def check_inputs(parts, data, weights):
    """What is measured on -> (digest of the faces or None, {backbone: WeightsInfo}).

    Raises:
        UserError: `data` lacks the manga faces, where a part needs them; as `create_backbone`.
    """
    models = {SMALL_MODEL if part == "images" else MODEL for part in parts}
    infos, digest = {name: create_backbone(name, weights)[1] for name in sorted(models)}, None
    if {*parts} - {"images"}:
        digest = load_dataset(data, FACES).digest
    return digest, infos


def part_folder(out, part, digest, infos):
    """Where a part's points are kept while unfinished: those of other parts may be measured in another call."""
    used = [part, None, infos[SMALL_MODEL]] if part == "images" else [part, digest, infos[MODEL]]
    return unfinished_folder(out, "scaling", used)


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    needed = f"a folder with the weights of {MODEL} and {SMALL_MODEL}"
    parser = make_parser(__doc__, data="a folder with manga_facial_expressions", weights=needed)
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[*POINTS],
        choices=[*POINTS],
        metavar="PART",
        help="default: all",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds is {options.rounds}: measure 1 or more")
    options.parts = [*dict.fromkeys(options.parts)]
    digest, infos = check_inputs(options.parts, options.data, options.weights)
    weights = {
        name: "none" if info.kind == "random" else options.weights for name, info in infos.items()
    }
    folders = {part: part_folder(options.out, part, digest, infos) for part in options.parts}
    rows, points = [], []
    with tempfile.TemporaryDirectory() as cache_dir:
        for number, part in (
            (number, part) for number in range(options.rounds) for part in options.parts
        ):
            for value in POINTS[part]:
                points.append(folders[part] / f"{part}_{value}_{number}.json")
                call = (part, value, options.data, weights, cache_dir)
                found = measure_or_read(points[-1], lambda call=call: measure_point(*call))
                rows.append({"part": part, "x": work_of(part, value), "round": number} | found)
                done = f"{LABELS[part]} {work_of(part, value)}: {found['seconds']:.1f} s, {found['peak_memory_mb']:.0f} MB"
                print(f"round {number}, {done}", flush=True)
    table = pd.DataFrame(rows).drop(columns="round")
    print(
        table.groupby(["part", "x"], sort=False).median().to_string(float_format="%.2f", na_rep="")
    )
    data = " and ".join([FACES] * bool(digest) + ["drawn pictures"] * ("images" in options.parts))
    described = {
        "data": {FACES: digest},
        "weights": {name: info._asdict() for name, info in infos.items()},
        "points": {part: POINTS[part] for part in options.parts},
        "rounds": options.rounds,
    }
    heading = f"{data}, {options.rounds} rounds, {machine()['processor']}\n{list_sources(infos)}"
    write_results(options.out, "scaling", rows, described, plot_scaling(rows, heading), points)
    return 0


if __name__ == "__main__":
    run_command(main)

"""How close does a whole run come to the best that the machine can do with these backbones?

    python -m benchmarks.roofline --data DIR --weights DIR [--rounds N] [--models NAME ...] [--views K] [--out DIR]

For each backbone, on its dataset in the study (ResNet50 and DenseNet121: manga faces; others: ants and bees):

    share = seconds that its images need at the best rate / seconds of the whole run

The run is a notebook's without the ordinary epoch, in a fresh process, imports not counted: load the images, build the
backbone, draw the features of the validation images (fp32) and of the training views (the precision that `choose_precision`
gives), train the head for at most 30 epochs with patience 5. Its images are those that it really drew: early stopping asks for
fewer views. The best rates come from an independent sweep of batch sizes over the same frozen part, plain and with BatchNorm
folded, on images that are rendered already. Sweep and run alternate; the best setting is the one with the highest median over
the rounds, and each round's share is taken with that round's rate of it. Every bar's parts add up to the run's seconds; rounding
up or down, a run may beat the sweep, and then its "forwards above the best rate" are negative.

Written: result/benchmarks/roofline_{stamp}.csv, a row a backbone and round, roofline_{stamp}.json with the machine, settings,
weights and all rates, and img/roofline_{stamp}.png. What an interrupted run has measured is not measured again.
"""

import time
from contextlib import contextmanager
from unittest import mock

import matplotlib.pyplot as plt
import pandas as pd
import torch

from benchmarks.engine import make_study
from benchmarks.memory import in_fresh_process
from benchmarks.results import (
    FACES,
    INSECTS,
    list_sources,
    load_dataset,
    make_parser,
    measure_or_read,
    run_command,
    unfinished_folder,
    write_results,
)
from transferlab import features
from transferlab.artifacts import machine
from transferlab.backbones import (
    BACKBONES,
    choose_device,
    choose_precision,
    create_backbone,
    estimate_batchnorm,
    fold_batchnorm,
    split_features,
)
from transferlab.errors import UserError
from transferlab.plots import BLUE, GREEN, GREY, ORANGE
from transferlab.run import DEFAULT_VIEWS
from transferlab.study import freeze_backbone, train_study
from transferlab.views import views_of

DATASETS = {
    "resnet50": FACES,
    "densenet121": FACES,
}  # notebooks 01 and 02; all others are those of 03
BATCH_SIZES = (4, 8, 16, 32, 64)
PARTS = {  # of a run, in its order, with their colours
    "decoding": "black",
    "start-up and weights": GREY,
    "rendering not hidden": GREEN,
    "forwards at the best rate": BLUE,
    "forwards above the best rate": "#9ECAE1",
    "head": ORANGE,
    "other": "#DDDDDD",
}


@torch.inference_mode()
def time_forwards(lower, images, batch_size, precision, *, seconds=1.0):
    """Images a second of a frozen part on uint8 images [N, 3, H, W], which lie on its device; passes over all of them until
    `seconds` are over, at least one."""
    batches, done = images.split(batch_size), 0

    def forward(batch):
        with torch.autocast(
            images.device.type, dtype=precision, enabled=precision != torch.float32
        ):
            return lower(batch).float()

    def finish():
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    for size in {len(batch) for batch in batches}:  # what is set up once for a shape is not counted
        forward(images[:size])
    finish()
    started = time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        for batch in batches:
            forward(batch)
        finish()
        done += len(images)
    return done / (time.perf_counter() - started)


def sweep_rates(variants, images, precisions, **options):
    """Times {"plain": lower, "folded": lower} -> {"variant/precision/batch size": images a second}."""
    images = images.contiguous(memory_format=torch.channels_last)
    return {
        f"{variant}/{precision}/{size}": time_forwards(lower, images, size, precision, **options)
        for precision in precisions
        for size in BATCH_SIZES
        for variant, lower in variants.items()
    }


def counted(blocks, seconds, phase):
    """Yields what the iterator `blocks` yields, adding to `seconds[phase]` what each block takes to come."""
    while True:
        started = time.perf_counter()
        block = next(blocks, None)
        seconds[phase] += time.perf_counter() - started
        if block is None:
            return
        yield block


@contextmanager
def waits_counted(seconds):
    """Adds to `seconds["waited"]` what `extract` waits for the next rendered images, while the block runs."""
    one_ahead = features.one_ahead
    with mock.patch.object(
        features, "one_ahead", lambda blocks: counted(one_ahead(blocks), seconds, "waited")
    ):
        yield


def render_counted(blocks, seconds):
    """`blocks(view, indices)` as it is, but adding to `seconds["rendered"]` what the rendering takes, hidden or not."""
    return lambda view, indices: counted(blocks(view, indices), seconds, "rendered")


def run_once(name, data, weights, views):
    """One whole run in this process -> dict of its seconds ("wall" and by phase), the images drawn in each precision, accuracy."""
    dataset = DATASETS.get(name, INSECTS)
    seconds, asked = {"waited": 0.0, "rendered": 0.0}, set()
    started = time.perf_counter()
    study = make_study(data, dataset=dataset, patience=5, views=views)
    loaded = time.perf_counter()
    study = study._replace(blocks=render_counted(study.blocks, seconds))
    frozen = freeze_backbone(name, study, weights=weights)
    seconds |= {
        "decoding": loaded - started,
        "start-up and weights": time.perf_counter() - loaded,
        "rendered": 0.0,
    }

    def draw(part, view):
        asked.add((part, view))
        return frozen.draw(part, view)

    with waits_counted(seconds):
        result, provenance = train_study(frozen._replace(draw=draw), study, progress=False)
    extracted = frozen.timings["training views"] + frozen.timings["validation images"]
    counts = {
        part: sum(one == part for one, _ in asked) * len(index)
        for part, index in study.indices.items()
    }
    return seconds | {
        "wall": time.perf_counter() - started,
        "head": frozen.timings["head"],
        "forwards": extracted - seconds["waited"],
        "train_images": counts["train"],
        "val_images": counts["val"],
        "epochs": len(result.history),
        "accuracy": result.history[result.best_epoch - 1]["val_acc"],
        "precision": provenance["precision"],
    }


def measure_model(name, data, weights, views, variants, images, precisions):
    """One round of one backbone: the sweep, then the run -> {"rates": ..., "run": ..., "peak_memory_mb": ...}."""
    rates = sweep_rates(variants, images, precisions)
    run, peak = in_fresh_process("benchmarks.roofline.run_once", name, data, weights, views)
    return {"rates": rates, "run": run, "peak_memory_mb": peak}


def best_setting(rounds, precision):
    """Of the sweeps of all rounds ({"variant/precision/batch size": images a second} each) the setting of a precision with the
    highest median."""
    medians = pd.DataFrame(rounds).median()
    return medians[[key for key in medians.index if key.split("/")[1] == str(precision)]].idxmax()


def split_wall(run, train_rate, val_rate):
    """Where the seconds of a run went, in PARTS, which add up to run["wall"]; the rates are in images a second."""
    needed = run["train_images"] / train_rate + run["val_images"] / val_rate
    parts = {
        "decoding": run["decoding"],
        "start-up and weights": run["start-up and weights"],
        "rendering not hidden": run["waited"],
        "forwards at the best rate": needed,
        "forwards above the best rate": run["forwards"] - needed,
        "head": run["head"],
    }
    return parts | {"other": run["wall"] - sum(parts.values())}


def make_rows(measured):
    """The rows of the table, one a backbone and round, from {backbone: list of what `measure_model` gave}."""
    rows = []
    for name, rounds in measured.items():
        rates = [one["rates"] for one in rounds]
        train_best, val_best = (
            best_setting(rates, precision)
            for precision in (rounds[0]["run"]["precision"], torch.float32)
        )
        for number, one in enumerate(rounds):
            run, train_rate, val_rate = one["run"], one["rates"][train_best], one["rates"][val_best]
            parts = split_wall(run, train_rate, val_rate)
            rows.append(
                {
                    "model": name,
                    "round": number,
                    "share": parts["forwards at the best rate"] / run["wall"],
                    "seconds": run["wall"],
                    "epochs": run["epochs"],
                    "train_images": run["train_images"],
                    "val_images": run["val_images"],
                    "train_setting": train_best,
                    "train_rate": train_rate,
                    "val_setting": val_best,
                    "val_rate": val_rate,
                    "accuracy": run["accuracy"],
                    "peak_memory_mb": one["peak_memory_mb"],
                    "rendering_hidden_or_not": run["rendered"],
                    **parts,
                }
            )
    return rows


def plot_parts(rows, title):
    """A bar a backbone of the percent of its run that each part took, means over the rounds; the median share beside it."""
    table = pd.DataFrame(rows)
    models = table.model.unique()[::-1]
    percent = 100 * table[[*PARTS]].div(table.seconds, axis=0)
    share, seconds = (table.groupby("model")[column].median() for column in ("share", "seconds"))
    figure, axis = plt.subplots(figsize=(10, 2.4 + 0.5 * len(models)), layout="constrained")
    percent.groupby(table.model).mean().loc[models].plot.barh(
        stacked=True, ax=axis, color=list(PARTS.values()), legend=False
    )
    axis.set_yticks(
        range(len(models)),
        [f"{name}\nshare {share[name]:.2f}, {seconds[name]:.0f} s" for name in models],
    )
    axis.set(xlabel="percent of the run's seconds", ylabel="")
    axis.set_title(title, fontsize=8)
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def load_sweep(models, data, weights):
    """What the sweeps work on -> {backbone: (variants, images uint8 [64, 3, H, W], precisions)}, {backbone: WeightsInfo}, digests.

    Raises:
        UserError: `data` lacks a dataset; as `create_backbone`.
    """
    device, swept, infos, digests, clean = choose_device(), {}, {}, {}, {}
    for name in models:
        dataset = DATASETS.get(name, INSECTS)
        if dataset not in clean:
            image_set = load_dataset(data, dataset)
            blocks = features.view_blocks(image_set, views_of(dataset), seed=42)
            some = torch.arange(min(max(BATCH_SIZES), len(image_set.labels)))
            clean[dataset], digests[dataset] = (
                torch.cat([*blocks(0, some)]).to(device),
                image_set.digest,
            )
        model, infos[name] = create_backbone(name, weights)
        if (
            infos[name].kind == "random"
        ):  # else activations grow or vanish, and numbers near zero are slow
            estimate_batchnorm(model, clean[dataset].split(32), device=device)
        lower = split_features(model.to(device))[0]
        precisions = dict.fromkeys([torch.float32, choose_precision(device)])
        swept[name] = (
            {"plain": lower, "folded": fold_batchnorm(lower)},
            clean[dataset],
            [*precisions],
        )
    return swept, infos, digests


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    parser = make_parser(
        __doc__, data="a folder with the datasets", weights="a folder with the backbones' weights"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--models",
        nargs="+",
        default=[*BACKBONES],
        metavar="NAME",
        help=f"default: {' '.join(BACKBONES)}",
    )
    parser.add_argument(
        "--views",
        type=int,
        default=DEFAULT_VIEWS,
        help="kept views of a training image (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if min(options.rounds, options.views) < 1:
        raise UserError(
            f"rounds is {options.rounds} and views {options.views}: give 1 or more of each"
        )
    swept, infos, digests = load_sweep(options.models, options.data, options.weights)
    described = {
        "data": digests,
        "weights": {name: info._asdict() for name, info in infos.items()},
        "settings": {"views": options.views, "epochs": 30, "patience": 5, "seed": 42},
    }
    folder, measured, points = (
        unfinished_folder(options.out, "roofline", described),
        {name: [] for name in swept},
        [],
    )
    for number in range(options.rounds):
        for name, parts in swept.items():
            weights = (
                "none" if infos[name].kind == "random" else options.weights
            )  # what cannot be had is not looked for again
            points.append(folder / f"{name.replace('/', '_')}_{number}.json")
            call = (name, options.data, weights, options.views, *parts)
            measured[name].append(
                measure_or_read(points[-1], lambda call=call: measure_model(*call))
            )
            row = make_rows({name: measured[name][-1:]})[
                0
            ]  # with this round's own best rates; the table takes all rounds'
            print(
                f"round {number}, {name}: share {row['share']:.3f} of {row['seconds']:.1f} s",
                flush=True,
            )
    rows = make_rows(measured)
    columns = ["share", "seconds", "epochs", "train_rate", "val_rate", *PARTS]
    print(
        pd.DataFrame(rows)
        .groupby("model", sort=False)[columns]
        .median()
        .T.to_string(float_format="%.3f")
    )
    described |= {
        "rounds": options.rounds,
        "rates": {name: [one["rates"] for one in rounds] for name, rounds in measured.items()},
    }
    heading = f"{', '.join(digests)}, {options.views} views, {options.rounds} rounds, {machine()['processor']}\n{list_sources(infos)}"
    write_results(options.out, "roofline", rows, described, plot_parts(rows, heading), points)
    return 0


if __name__ == "__main__":
    run_command(main)

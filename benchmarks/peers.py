"""How long the study takes as others train it, and as we do: the same images, transforms, model, head and optimiser.

    python -m benchmarks.peers --data DIR --weights DIR [--rounds N] [--full] [--systems NAME ...] [--out DIR]

ResNet50 on the manga faces (296/159, seed 42), backbone frozen and in eval mode everywhere, head by Adam 1e-3, batch 32, 30
epochs, all 159 images validated after each. The systems (benchmarks/peer_systems, a file for each family):

    study                       the published loop: fp32, files read and decoded in every epoch, DataLoader with 2 workers
    tuned                       that loop without keeping features at its best: bf16 where the CPU computes in it, in validation
                                too, channels_last, images decoded and resized once, persistent workers
    fastai, lightning, hf       each as its users write it, fp32
    *_tuned                     each with what `tuned` has
    ours_same_views             as many views kept as there are epochs; ours_default: as many as the notebooks use;
    ours_default, ours_fp32     ours_fp32: those in fp32. Validation images are fp32 in all of ours, and training images are
                                evaluated after every epoch too
    study_early, ours_early     stopping when 5 epochs in a row bring no lower validation loss, best weights restored

Every run is a process of its own; the order rotates from round to round. Round r trains all systems with seed 42 + r (head,
order, dropout, views; never the split). Measured: `seconds` from before the images are loaded to the end of training,
`seconds_total` from the start of the process, imports included, `peak_memory_mb` (PSS of the process tree, looked at twice a
second), and the accuracy at the epoch of lowest validation loss. Checks that a run makes of itself are in no time: each epoch
trains on every image once and validates all, and no bit of the backbone changes.

A round is `full`, or `short`: then the peers run 4 epochs, and 30 are reckoned from the start-up, the first epoch and the
median of the later ones; the accuracy stays empty. Ours and the systems that stop early run whole in every round: their
number of epochs is what is measured. The first round is full where the CPU computes in bf16, elsewhere with --full. How far
short and full disagree is printed. What finished is kept in result/benchmarks/peers_unfinished until all has; run again to go
on. Written: result/benchmarks/peers_{stamp}.csv (`epochs`: those that `seconds` stands for; `views`: fresh ones in every epoch
but for ours), peers_{stamp}.json with machine, versions, weights and every epoch, and img/peers_{stamp}.png.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torchvision.datasets import ImageFolder

from benchmarks.memory import run_watched
from benchmarks.peer_systems.common import Record, Task, split_study
from benchmarks.results import FACES, make_parser, measure_or_read, run_command, write_results
from transferlab.artifacts import machine
from transferlab.backbones import choose_device, choose_precision, create_backbone
from transferlab.data import find_image_folder, load_images
from transferlab.errors import UserError
from transferlab.plots import BLUE, GREEN, GREY, ORANGE
from transferlab.run import DEFAULT_VIEWS
from transferlab.views import anime_views

# system -> (module of benchmarks.peer_systems, its function)
SYSTEMS = {
    "study": ("plain_loop", "run_study"),
    "tuned": ("plain_loop", "run_tuned"),
    "fastai": ("with_fastai", "run"),
    "lightning": ("with_lightning", "run"),
    "hf": ("with_hf", "run"),
    "fastai_tuned": ("with_fastai", "run_tuned"),
    "lightning_tuned": ("with_lightning", "run_tuned"),
    "hf_tuned": ("with_hf", "run_tuned"),
    "ours_same_views": ("ours", "run"),
    "ours_default": ("ours", "run"),
    "ours_fp32": ("ours", "run_fp32"),
    "study_early": ("plain_loop", "run_study"),
    "ours_early": ("ours", "run"),
}
LIBRARIES = {
    "with_fastai": ("fastai",),
    "with_lightning": ("lightning",),
    "with_hf": ("transformers", "accelerate"),
}
SETTINGS = {"batch_size": 32, "lr": 1e-3, "hidden": 512, "dropout": 0.5}
EPOCHS, SHORT, PATIENCE, SEED = 30, 4, 5, 42
# The goals: seconds of the first (the best of several) over those of the second.
RATIOS = [
    (("study",), "ours_same_views"),
    (("study",), "ours_default"),
    (("tuned",), "ours_default"),
    (("study",), "ours_fp32"),
    (("study_early",), "ours_early"),
    (("fastai", "lightning", "hf"), "ours_default"),
    (("fastai_tuned", "lightning_tuned", "hf_tuned"), "ours_default"),
]
COLUMNS = "system round kind views epochs seconds seconds_total best_epoch_accuracy peak_memory_mb".split()


def library_versions(module):
    """{library: version} of what a module of benchmarks.peer_systems needs beyond transferlab; None where it is missing."""
    found = {}
    for library in LIBRARIES.get(module, ()):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def leave_out_missing(systems):
    """The systems whose libraries are installed; says which are left out."""
    missing = {}
    for system in systems:
        for library, version in library_versions(SYSTEMS[system][0]).items():
            if version is None:
                missing.setdefault(system, library)
    for system, library in missing.items():
        print(
            f'left out: {system} ({library} is not installed: pip install -e ".[bench]" in a clone)'
        )
    return [system for system in systems if system not in missing]


def settings_of(system, epochs):
    """The settings of a run, as `Study` takes them. Peers draw fresh views; `views` is of ours alone."""
    patience = PATIENCE if system.endswith("_early") else 0
    views = epochs if system == "ours_same_views" else DEFAULT_VIEWS
    return SETTINGS | {"epochs": epochs, "patience": patience, "views": views}


def runs_whole(system, kind):
    return kind == "full" or system.startswith("ours") or system.endswith("_early")


def reckon(ends, seconds, epochs):
    """Seconds of a run of `epochs` from a shorter one: `ends`, the seconds at the end of its epochs, and all its `seconds`.

    Up to the end of the first epoch and after the last one they stay; each further epoch takes the median of the later ones.
    """
    later = [end - begin for begin, end in zip(ends, ends[1:])]
    return ends[0] + (epochs - 1) * statistics.median(later) + seconds - ends[-1]


def disagreement(found):
    """By how much (a share) reckoning from the first epochs of a whole run misses its seconds."""
    ends = [row["end"] for row in found["rows"]]
    tail = found["seconds"] - ends[-1]
    return reckon(ends[:SHORT], ends[:SHORT][-1] + tail, len(ends)) / found["seconds"] - 1


def exact_accuracy(row):
    """The accuracy of an epoch as k / n in fp64: some of the peers report it in fp32.

    Raises:
        UserError: it is no count of the images that were validated.
    """
    n = row["evaluated"]
    exact = round(row["val_acc"] * n) / n
    if abs(exact - row["val_acc"]) > 1e-6:
        raise UserError(
            f"an epoch reports the accuracy {row['val_acc']}, which is no share of {n} images: mend that system"
        )
    return exact


def make_row(system, number, kind, found, epochs):
    """A row of the table from what a run has reported and its memory."""
    ends = [row["end"] for row in found["rows"]]
    whole = runs_whole(system, kind)
    seconds = found["seconds"] if whole else reckon(ends, found["seconds"], epochs)
    count = len(ends) if whole else epochs
    best = min(found["rows"], key=lambda row: row["val_loss"])  # the earliest on ties
    views = settings_of(system, epochs)["views"] if system.startswith("ours") else count
    accuracy = exact_accuracy(best) if kind == "full" else None
    total = found["seconds_total"] - found["seconds"] + seconds
    return dict(
        zip(
            COLUMNS,
            [system, number, kind, views, count, seconds, total, accuracy, found["peak_memory_mb"]],
        )
    )


def run_one(options):
    """Trains one system in this process and prints what it did as a line of JSON."""
    module, function = SYSTEMS[options.one]
    run = getattr(importlib.import_module(f"benchmarks.peer_systems.{module}"), function)
    settings, folder = settings_of(options.one, options.epochs), Path(options.data)
    record = Record()
    run(
        Task(
            folder,
            options.weights,
            options.model,
            anime_views(options.size),
            settings,
            options.seed,
        ),
        record,
    )
    found = {"seconds": record.seconds(), "ended": time.time() - record.untimed_seconds}
    record.check(*(len(index) for index in split_study(ImageFolder(folder).targets).values()))
    print("\n" + json.dumps(found | {"rows": record.rows, "frozen_hash": record.frozen_hash}))


def measure(system, number, kind, options):
    """Runs one system in a process of its own -> what it reported, with seconds_total and peak_memory_mb.

    Raises:
        UserError: the process failed.
    """
    epochs = options.epochs if runs_whole(system, kind) else min(SHORT, options.epochs)
    given = {
        "one": system,
        "data": options.data,
        "weights": options.weights,
        "model": options.model,
        "size": options.size,
        "epochs": epochs,
        "seed": SEED + number,
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers",
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    watched = run_watched(
        command, interval=0.5, cwd=Path(__file__).resolve().parents[1], env=os.environ | quiet
    )
    try:
        found = json.loads(watched.stdout.strip().splitlines()[-1]) if not watched.code else None
    except (ValueError, IndexError):
        found = None
    if not found:
        last = " ".join(watched.stderr.strip().splitlines()[-1:])
        raise UserError(f"{system} failed in round {number} with exit code {watched.code}: {last}")
    found["seconds_total"] = found.pop("ended") - watched.started
    return found | {"peak_memory_mb": watched.peak_mb}


def source_digest(module):
    """SHA-256 over the code that a system's time depends on: its own file and common.py, for ours all of transferlab."""
    root = Path(__file__).resolve().parents[1]
    files = [root / f"benchmarks/peer_systems/{name}.py" for name in (module, "common")]
    files += sorted((root / "transferlab").glob("*.py")) if module == "ours" else []
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def kept_path(folder, system, number, used):
    """Where a finished run is kept: what was measured with other code, versions, weights or settings is not taken for it."""
    module = SYSTEMS[system][0]
    used = json.dumps([used, library_versions(module), source_digest(module)], sort_keys=True)
    return folder / hashlib.sha256(used.encode()).hexdigest()[:12] / f"{system}_{number}.json"


def measure_all(systems, kinds, folder, used, options):
    """All rounds, the systems in rotated order -> (rows, {(system, round): what it reported}, paths of what was kept).

    Where a process fails, all others still run.

    Raises:
        UserError: one or more failed; the rows of the others are kept.
    """
    rows, runs, paths, failures = [], {}, [], []
    for number, kind in enumerate(kinds):
        start = number % len(systems)
        for system in systems[start:] + systems[:start]:
            path = kept_path(folder, system, number, used | {"kind": kind})
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                runs[system, number] = found = measure_or_read(
                    path, lambda: measure(system, number, kind, options)
                )
                rows.append(make_row(system, number, kind, found, options.epochs))
            except UserError as error:
                print(f"error: {error}", flush=True)
                failures.append(str(error))
                continue
            paths.append(path)
            print(describe_row(rows[-1]), flush=True)
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(
            f"{failures[0]}{more}; what finished is kept: run again to go on, or choose with --systems"
        )
    return rows, runs, paths


def describe_row(row):
    accuracy = (
        "" if row["best_epoch_accuracy"] is None else f", accuracy {row['best_epoch_accuracy']:.1%}"
    )
    times = (
        f"{row['seconds']:.1f} s for {row['epochs']} epochs, {row['seconds_total']:.1f} s in all"
    )
    return f"round {row['round']} ({row['kind']}), {row['system']}: {times}, {row['peak_memory_mb']:.0f} MB{accuracy}"


def summarise(table):
    """Medians over the rounds, a row a system in the order of SYSTEMS; `times`: seconds over ours_default's, round by round."""
    names = ["seconds", "seconds_total", "peak_memory_mb", "best_epoch_accuracy"]
    summary = table.groupby("system")[names].median()
    summary["epochs"] = table.groupby("system").epochs.mean()
    summary["times"] = [ratio_of(table, (system,), "ours_default")[0] for system in summary.index]
    return summary.loc[[system for system in SYSTEMS if system in summary.index]]


def ratio_of(table, above, below):
    """Median over the rounds of seconds (the best of `above`) over seconds (`below`) -> (ratio, rounds); NaN and 0 where
    nothing can be compared."""
    seconds = table.pivot(index="round", columns="system", values="seconds").reindex(
        columns=list({*above, below})
    )
    ratios = (seconds[list(above)].min(axis=1) / seconds[below]).dropna()
    return ratios.median(), len(ratios)


def describe_ratios(table):
    """The goals' ratios as lines of text."""
    lines, epochs = [], table.groupby("system").epochs.mean()
    for above, below in RATIOS:
        ratio, rounds = ratio_of(table, above, below)
        if not rounds:
            continue
        name = (
            f"best of {', '.join(system for system in above if system in epochs)}"
            if len(above) > 1
            else above[0]
        )
        stopped = (
            f" (mean epochs {epochs[above[0]]:.1f} and {epochs[below]:.1f})"
            if below.endswith("_early")
            else ""
        )
        lines.append(f"{name} / {below}: {ratio:.2f} (median of {rounds}){stopped}")
    return lines


def describe_disagreement(runs, kinds, epochs):
    """For each system that short rounds reckon, how far reckoning misses in the full rounds, as lines of text."""
    if epochs <= SHORT:
        return []
    missed = {}
    for (system, number), found in runs.items():
        if kinds[number] == "full" and not runs_whole(system, "short"):
            missed.setdefault(system, []).append(disagreement(found))
    return [
        f"{system}: reckoned from {SHORT} epochs {statistics.median(shares):+.1%}"
        for system, shares in missed.items()
    ]


def plot_bars(summary, title):
    """Median seconds of every system, with the ratio to ours_default and the accuracy beside each bar."""
    figure, axis = plt.subplots(figsize=(10, 1.6 + 0.42 * len(summary)), layout="constrained")
    family = {"study": GREY, "tuned": GREEN, "ours": BLUE}
    colours = [
        GREEN if system.endswith("tuned") else family.get(system.split("_")[0], ORANGE)
        for system in summary.index
    ]
    bars, labels = axis.barh(summary.index, summary.seconds, color=colours), []
    for row in summary.itertuples():
        parts = [f"{row.seconds:.0f} s" if row.seconds >= 10 else f"{row.seconds:.1f} s"]
        parts += (
            [f"{row.times:.1f} x"] if row.times == row.times else []
        )  # NaN where ours_default did not run
        parts += (
            [f"accuracy {row.best_epoch_accuracy:.1%}"]
            if row.best_epoch_accuracy == row.best_epoch_accuracy
            else []
        )
        parts += [f"{row.epochs:.1f} epochs"] if row.Index.endswith("_early") else []
        labels.append(", ".join(parts))
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.4 * summary.seconds.max())
    axis.set_xlabel(
        "seconds, from loading the images to the end of training (median); x: times ours_default"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=9)
    return figure


def prepare(options):
    """Finds images and weights before any time is spent; puts the image folder into `options.data` -> (ImageSet, WeightsInfo).

    Raises:
        UserError: either cannot be used, or systems would see different images.
    """
    if options.rounds < 1:
        raise UserError(f"rounds is {options.rounds}: measure 1 or more")
    folder = find_image_folder(options.data, prefer=FACES).resolve()
    image_set = load_images(folder)
    if image_set.split or image_set.rejected:
        reason = (
            "is split already"
            if image_set.split
            else f"holds files that are no images: {image_set.rejected[0]}"
        )
        raise UserError(
            f"{folder} {reason}: give the unsplit faces, where all systems see the same images"
        )
    seen = [Path(path).relative_to(folder).as_posix() for path, _ in ImageFolder(folder).samples]
    if seen != list(image_set.paths):
        counts = f"{len(seen)} of its {len(image_set.paths)} images"
        raise UserError(f"{folder}: torchvision's ImageFolder lists {counts}: rename the others")
    model, info = create_backbone(options.model, options.weights)
    if info.kind == "random":
        raise UserError(
            f"{options.model}: {info.source}; this measurement needs pretrained weights"
        )
    options.data, options.weights = folder, Path(options.weights).expanduser().resolve()
    return image_set, info


def parse(arguments):
    parser = make_parser(
        __doc__,
        data="a folder with manga_facial_expressions",
        weights="a folder with resnet50's weights",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--full", action="store_true", help="the first round is full whatever the CPU"
    )
    names = {"choices": SYSTEMS, "default": list(SYSTEMS), "metavar": "NAME"}
    parser.add_argument(
        "--systems", nargs="+", help=f"of {', '.join(SYSTEMS)} (default: all)", **names
    )
    hidden = {"help": argparse.SUPPRESS}  # what a process is told, and what tests make small
    parser.add_argument("--one", choices=SYSTEMS, **hidden)
    parser.add_argument("--model", default="resnet50", **hidden)
    for name, default in {"size": 224, "epochs": EPOCHS, "seed": SEED}.items():
        parser.add_argument(f"--{name}", type=int, default=default, **hidden)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    if options.one:
        run_one(options)
        return 0
    image_set, info = prepare(options)
    systems = leave_out_missing([system for system in SYSTEMS if system in options.systems])
    if not systems:
        raise UserError("no system is left to measure")
    out, precision = Path(options.out), choose_precision(choose_device())
    for folder in ("result/benchmarks", "img"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    kinds = ["short"] * options.rounds
    kinds[0] = "full" if options.full or precision != torch.float32 else "short"
    used = {
        "settings": {name: settings_of(name, options.epochs) for name in systems},
        "weights": info._asdict(),
        "size": options.size,
        "data": image_set.digest,
        "precision": str(precision),
        "machine": machine(),
    }
    unfinished = out / "result/benchmarks/peers_unfinished"
    one_system = used | {
        "settings": settings_of("study", options.epochs)
    }  # a choice of systems leaves what was kept as it is
    rows, runs, paths = measure_all(systems, kinds, unfinished, one_system, options)
    report(pd.DataFrame(rows), runs, kinds, used, image_set, paths, options)
    return 0


def report(table, runs, kinds, used, image_set, paths, options):
    """Prints the medians and ratios; writes rows, facts and figure, into which the kept `paths` have gone."""
    summary = summarise(table)
    ratios, missed = describe_ratios(table), describe_disagreement(runs, kinds, options.epochs)
    print(summary.to_string(float_format="%.3f"))
    print("\n".join([*missed, *ratios]))
    libraries = {
        name: version for module in LIBRARIES for name, version in library_versions(module).items()
    }
    facts = used | {
        "libraries": libraries,
        "kinds": kinds,
        "ratios": ratios,
        "short_against_full": missed,
    }
    facts |= {"data_name": image_set.name, "synthetic": image_set.synthetic}
    facts["left_out"] = [system for system in SYSTEMS if system not in summary.index]
    facts["runs"] = [
        {"system": system, "round": number} | found for (system, number), found in runs.items()
    ]
    data = f"{image_set.name}{' (synthetic: drawn pictures)' * image_set.synthetic}"
    rounds = f"n = {len(kinds)} ({', '.join(kinds)})"
    title = f"{options.model}, {len(image_set.labels)} images of {data}, {options.epochs} epochs; {rounds}"
    title += f"\n{used['machine']['processor']}, {used['machine']['threads']} threads; weights: {used['weights']['source'][:110]}"
    write_results(options.out, "peers", table, facts, plot_bars(summary, title), paths)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # ends as Ctrl-C does: the process under measurement with it
    run_command(main)

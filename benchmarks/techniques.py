"""Which transfer technique, at what cost? Each on the same stratified folds, accuracy against seconds.

    python -m benchmarks.techniques --data DIR --weights DIR [--models NAME ...] [--tuned DATASET:NAME ...] [--minutes N]
                                    [--folds 5] [--size 112] [--epochs 10] [--processes 1] [--out DIR] [--cache-dir DIR]

On the study's two datasets where DIR holds them; on any other folder of images, on that one, with views of photos.
Held-out protocol, one repeat: 20 % of every training fold choose the epoch, the test fold is predicted once.

frozen   Techniques that leave the backbone frozen (transferlab.techniques.FROZEN), on each dataset for every backbone whose
         pretrained weights are at hand, at the study's size and 30 epochs, features kept for all of them.
tuned    Those that train more of it (TUNED), on the pairs that `--tuned` names (default: EfficientNet-Lite0 on each dataset, then
         ResNet50 on ants and bees), `--epochs` epochs at `--size` px, and the linear probe at that size beside them.
alone    On a GPU: the seconds of full fine-tuning on one fold at the study's size, views and the start of the GPU included, for the
         pairs named whose backbone has no pretrained weights. Such a run measures no transfer, so only its time is told.

One process leaves most of a GPU idle: `--processes N` measures tuned techniques in N at once, each with one thread. What they write
says so: seconds then hold the waiting for each other, and each process draws a view of an image once. Another N measures anew.

`seconds` are a fold's, features included for tuned, heads alone for frozen. A fold is stored when it ends; an interrupted
measurement goes on there, and `--minutes` ends it early: a technique that lacks a fold then is named, not shown. Each technique is
tested on the same folds against the linear probe, and against what it adds to (transferlab.techniques.ADDS_TO).

Written: result/benchmarks/techniques_{stamp}.csv, a row a technique, pair and fold; .json; img/techniques_{stamp}.png. On a GPU
the name is techniques_gpu.
"""

import copy
import functools
import time
from pathlib import Path

import pandas as pd
import torch
from sklearn.metrics import f1_score

from benchmarks.domain_gap import MODELS
from benchmarks.results import (
    FACES,
    INSECTS,
    list_sources,
    make_parser,
    measure_or_read,
    run_command,
    unfinished_folder,
    write_results,
)
from transferlab.artifacts import machine
from transferlab.backbones import Normalized, build_model, choose_device, create_backbone
from transferlab.cache import default_cache
from transferlab.cli import positive
from transferlab.compare import make_folds, study_of_all
from transferlab.data import load_images
from transferlab.errors import UserError
from transferlab.features import view_blocks
from transferlab.plots import plot_technique_accuracies, plot_techniques
from transferlab.run import DEFAULT_VIEWS
from transferlab.study import STUDY_SETTINGS, freeze_backbone
from transferlab.techniques import FROZEN, TUNED, Task, paired_tests, stages, summarise_techniques
from transferlab.train import evaluate
from transferlab.views import views_of


def load_studies(folder, settings):
    """{dataset: Study} of the study's datasets that `folder` is or holds; where there are none, of the images that it holds.

    Raises:
        UserError: as `load_images`.
    """
    root = Path(folder).expanduser()
    held = [
        name
        for name in (FACES, INSECTS)
        if root.resolve().name == name or [*root.glob(name), *root.glob(f"*/{name}")]
    ]
    found = [load_images(root, prefer=name) for name in held or [""]]
    return {
        images.name: study_of_all(images, views_of(images.name), settings, seed=0)
        for images in found
    }


def measure_frozen(technique, study, frozen, fold):
    """One technique on kept features of one fold -> {"correct", "n", "macro_f1", "seconds", "trainable", "epochs"}; `seconds` without
    those that features took which had not been kept yet."""
    _, number, inner, val, test = fold
    indices, labels, clean = (
        {"train": inner, "val": val},
        study.image_set.labels,
        frozen.draw("val", 0),
    )

    def draw(part, view):
        return (frozen.draw("train", view) if view else clean)[indices[part]]

    model, settings, before = (
        copy.deepcopy(frozen.model),
        study.settings,
        sum(frozen.timings.values()),
    )
    classes = len(study.image_set.classes)
    task = Task(
        study.blocks, labels, indices, classes, settings["epochs"], settings["views"], number, draw
    )
    started = time.perf_counter()
    results = technique(model, task)
    seconds = time.perf_counter() - started - (sum(frozen.timings.values()) - before)
    return describe(
        model,
        evaluate(model.get_classifier(), clean[test], labels[test]),
        labels[test],
        seconds,
        results,
    )


def measure_tuned(technique, name, weights, image_set, blocks, epochs, fold):
    """One technique that trains more than a head, on one fold -> as `measure_frozen`; `seconds` with those of drawing views."""
    _, number, inner, val, test = fold
    model = create_backbone(name, weights)[0]
    task = Task(
        blocks,
        image_set.labels,
        {"train": inner, "val": val},
        len(image_set.classes),
        epochs,
        epochs,
        number,
    )
    started = time.perf_counter()
    results = technique(model, task)
    seconds, images = time.perf_counter() - started, torch.cat([*blocks(0, test)])
    whole = Normalized(model, model)
    return describe(
        model,
        evaluate(whole, images, image_set.labels[test]),
        image_set.labels[test],
        seconds,
        results,
    )


def describe(model, scored, labels, seconds, results):
    correct = int((scored["predictions"] == labels).sum())
    epochs = sum(len(result.history) for result in results)
    macro_f1 = float(f1_score(labels, scored["predictions"], average="macro"))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "correct": correct,
        "n": len(labels),
        "macro_f1": macro_f1,
        "seconds": seconds,
        "trainable": trainable,
        "epochs": epochs,
    }


def keep_drawn(blocks):
    """As `blocks`, but every view of an image is drawn once and kept (38 kB at 112 px)."""
    draw = functools.cache(lambda view, index: next(blocks(view, torch.tensor([index])))[0])
    return lambda view, indices: (
        torch.stack([draw(view, i) for i in part.tolist()]) for part in indices.split(32)
    )


def list_work(options, pairs, infos, studies, folds):
    """Everything to measure, in order -> list of (row's names, function that measures it)."""
    pretrained, work, kept = (
        [name for name in options.models if infos[name].kind != "random"],
        [],
        {},
    )
    tuned_blocks = {
        data: view_blocks(studies[data].image_set, views_of(data, options.size), seed=0)
        for data in studies
    }
    if options.processes > 1:  # else every technique draws its own views, as it would alone
        tuned_blocks = {data: keep_drawn(blocks) for data, blocks in tuned_blocks.items()}

    def frozen_of(data, name):  # one at a time stays in memory
        if (data, name) not in kept:
            kept.clear()
            kept[data, name] = freeze_backbone(
                name, studies[data], weights=options.weights, cache_dir=options.cache_dir
            )
        return kept[data, name]

    for data in studies:
        for name in pretrained:
            for technique, function in FROZEN.items():
                for fold in folds[data]:
                    row = {
                        "kind": "frozen",
                        "dataset": data,
                        "model": name,
                        "technique": technique,
                        "fold": fold[1],
                    }
                    work.append(
                        (
                            row,
                            lambda d=data, n=name, f=function, fold=fold: measure_frozen(
                                f, studies[d], frozen_of(d, n), fold
                            ),
                        )
                    )
    for data, name in pairs:
        if infos[name].kind == "random":
            continue
        image_set, blocks = studies[data].image_set, tuned_blocks[data]
        for technique, function in {"linear probe": FROZEN["linear probe"], **TUNED}.items():
            for fold in folds[data]:
                row = {
                    "kind": "tuned",
                    "dataset": data,
                    "model": name,
                    "technique": technique,
                    "fold": fold[1],
                }
                arguments = function, name, options.weights, image_set, blocks, options.epochs, fold
                work.append((row, functools.partial(measure_tuned, *arguments)))
    return work


def measure_alone(options, pairs, infos, studies, folds, folder):
    """Full fine-tuning on the first fold for the pairs without pretrained weights, its time alone, kept in `folder` when it ends ->
    (list of dicts, the files)."""
    found, points = [], []
    for data, name in [pair for pair in pairs if infos[pair[1]].kind == "random"]:
        image_set, fold, views = studies[data].image_set, folds[data][0], views_of(data)
        arguments = (
            TUNED["full fine-tuning"],
            name,
            "none",
            image_set,
            view_blocks(image_set, views, seed=0),
            options.epochs,
            fold,
        )
        points.append(folder / f"alone_{data}_{name}.json".replace("/", "_"))
        measured = measure_or_read(points[-1], functools.partial(measure_tuned, *arguments))
        row = {
            "dataset": data,
            "model": name,
            "technique": "full fine-tuning",
            "images": len(fold[2]),
        }
        found.append(row | {key: measured[key] for key in ("seconds", "epochs", "trainable")})
        print(f"time alone: {found[-1]}")
    return found, points


def draw_figure(summary, infos, options):
    """The tuned techniques where there are any, against seconds where each was measured alone -> figure."""
    tuned = summary[summary.kind == "tuned"]
    size, epochs = (options.size, options.epochs) if len(tuned) else (224, STUDY_SETTINGS["epochs"])
    shown = tuned if len(tuned) else summary
    sources = list_sources({name: infos[name] for name in dict.fromkeys(shown.model)})
    together = (
        f", {options.processes} processes at once" if len(tuned) and options.processes > 1 else ""
    )
    plot = plot_technique_accuracies if together else plot_techniques
    return plot(
        shown,
        f"{options.folds} folds, {epochs} epochs at {size} px, {machine()['processor']}{together}\n{sources}",
    )


def find_pairs(named, studies):
    """[(dataset, model)] of the named "DATASET:NAME"; None: EfficientNet-Lite0 on each dataset, then ResNet50 on ants and bees.

    Raises:
        UserError: one is no such pair.
    """
    if named is None:
        return [
            *((data, "efficientnet_lite0") for data in studies),
            *((data, "resnet50") for data in studies if data == INSECTS),
        ]
    pairs = [tuple(text.split(":", 1)) for text in named]
    for text, pair in zip(named, pairs):
        if pair[0] not in studies or not all(pair) or len(pair) < 2:
            raise UserError(
                f"--tuned {text}: give DATASET:NAME, with a dataset of {', '.join(studies)}"
            )
    return pairs


def parse(arguments):
    data = "a folder with the study's datasets, or any one of images"
    parser = make_parser(__doc__, data=data, weights="a folder with the backbones' weights")
    parser.add_argument(
        "--models",
        nargs="*",
        default=MODELS,
        metavar="NAME",
        help=f"frozen (default: {' '.join(MODELS)})",
    )
    parser.add_argument(
        "--tuned", nargs="*", metavar="DATASET:NAME", help="train more of them (default: see above)"
    )
    for name, default in {"folds": 5, "size": 112, "epochs": 10, "processes": 1}.items():
        parser.add_argument(
            f"--{name}", type=positive, default=default, help="default: %(default)s"
        )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="measure for so long; run again to go on",
    )
    parser.add_argument(
        "--cache-dir", default=default_cache(), help="keeps the features (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def check_pairs(pairs, infos, size):
    """Tries what `tuned` needs of every backbone with weights, before hours of measuring.

    Raises:
        UserError: one has no stages, or does not take images of `size` px.
    """
    for name in dict.fromkeys(name for _, name in pairs if infos[name].kind != "random"):
        model = build_model(infos[name].timm_name).eval()
        try:
            stages(model)
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size))
        except (UserError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            advice = "give another --size, or leave it out"
            raise UserError(
                f"--tuned with {name}: it cannot be tuned at {size} px ({reason}): {advice}"
            ) from error


def find_left_out(missing, infos, studies, pairs):
    """What was not measured -> {"incomplete": a dict a pair, techniques that lack a fold, "without_weights": backbones, "pairs":
    a dict a dataset, backbones with weights of which only the head was trained}."""
    gone, pretrained = {}, [name for name, info in infos.items() if info.kind != "random"]
    for row in missing:
        gone.setdefault((row["kind"], row["dataset"], row["model"]), {})[row["technique"]] = None
    others = {data: [name for name in pretrained if (data, name) not in pairs] for data in studies}
    return {
        "incomplete": [
            dict(zip(("kind", "dataset", "model"), pair), techniques=[*names])
            for pair, names in gone.items()
        ],
        "without_weights": [name for name in infos if name not in pretrained],
        "pairs": [{"dataset": data, "models": names} for data, names in others.items() if names],
    }


def print_left_out(left_out):
    for one in left_out["incomplete"]:
        print(
            f"not measured: {one['kind']}: {one['model']} on {one['dataset']}, {', '.join(one['techniques'])}"
        )
    for name in left_out["without_weights"]:
        print(f"not measured: {name}, for which there are no pretrained weights")
    for one in left_out["pairs"]:
        print(
            f"not measured: tuned: {', '.join(one['models'])} on {one['dataset']} (name them with --tuned)"
        )


def prepare(options):
    """What is to be measured -> (pairs, infos of the backbones, studies, folds).

    Raises:
        UserError: as `load_studies`, `find_pairs`, `create_backbone`; no backbone has weights.
    """
    studies = load_studies(options.data, STUDY_SETTINGS | {"views": DEFAULT_VIEWS})
    pairs = find_pairs(options.tuned, studies)
    infos = {
        name: create_backbone(name, options.weights)[1]
        for name in dict.fromkeys([*options.models, *(n for _, n in pairs)])
    }
    if all(info.kind == "random" for info in infos.values()):
        raise UserError(f"none of {', '.join(infos)} has pretrained weights here: give --weights")
    return (
        pairs,
        infos,
        studies,
        {
            data: make_folds(study.image_set.labels, options.folds, 1, 0)
            for data, study in studies.items()
        },
    )


def measure_points(work, folder, end):
    """Measures what `work` lists, until `end` (seconds of `time.monotonic`), and keeps each in `folder` -> (rows, the files of them,
    the names of what is missing)."""
    rows, points, missing = [], [], []
    for names, measure in work:
        path = folder / (
            "_".join(map(str, names.values())).replace("/", "_").replace(" ", "-") + ".json"
        )
        if not path.is_file() and time.monotonic() > end:
            missing.append(names)
            continue
        points.append(path)
        rows.append(names | measure_or_read(path, measure))
        done = f"{rows[-1]['correct']}/{rows[-1]['n']}, {rows[-1]['seconds']:.1f} s"
        print(", ".join(map(str, names.values())) + f": {done}", flush=True)
    return rows, points, missing


def measure_share(number, options, folder, end):
    """What one of several processes measures: of all techniques that train more than a head every `options.processes`-th point. At an
    error it ends; who started it meets the same one."""
    torch.set_num_threads(1)
    work = [one for one in list_work(options, *prepare(options)) if one[0]["kind"] == "tuned"]
    try:
        measure_points(work[number :: options.processes], folder, end)
    except UserError as error:
        print(f"process {number}: {error}", flush=True)


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes
    pairs, infos, studies, folds = prepare(options)
    check_pairs(pairs, infos, options.size)
    described = {
        "data": {data: study.image_set.digest for data, study in studies.items()},
        "settings": STUDY_SETTINGS | {"views": DEFAULT_VIEWS},
        "folds": options.folds,
        "size": options.size,
        "epochs": options.epochs,
        "processes": options.processes,
        "weights": {name: info._asdict() for name, info in infos.items() if info.kind != "random"},
    }
    gpu = choose_device().type == "cuda"
    name = "techniques_gpu" if gpu else "techniques"
    folder, alone = unfinished_folder(options.out, name, described), []
    if gpu:
        described["alone"], alone = measure_alone(options, pairs, infos, studies, folds, folder)
        torch.cuda.empty_cache()  # for the processes
    if options.processes > 1:
        torch.multiprocessing.spawn(measure_share, (options, folder, end), options.processes)
    rows, points, missing = measure_points(
        list_work(options, pairs, infos, studies, folds), folder, end
    )
    incomplete = {
        tuple(names.values())[:4] for names in missing
    }  # its finished folds wait for the next call
    rows = [row for row in rows if tuple(row.values())[:4] not in incomplete]
    if not rows:
        raise UserError(
            f"no technique was measured on all folds in {options.minutes:g} minutes: give more, or run again to go on"
        )
    table = pd.DataFrame(rows)
    summary, tests = summarise_techniques(table), paired_tests(table)
    print(summary.to_string(index=False, float_format="%.3f"))
    print(
        "\nless a reference, on the same folds:",
        tests.to_string(index=False, float_format="%.3f"),
        sep="\n",
    )
    left_out = find_left_out(missing, infos, studies, pairs)
    print_left_out(left_out)
    left = [] if missing else points + alone
    write_results(
        options.out,
        name,
        rows,
        described | {"left_out": left_out},
        draw_figure(summary, infos, options),
        left,
    )
    return 0


if __name__ == "__main__":
    run_command(main)

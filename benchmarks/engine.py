"""What keeping features costs and saves: many heads, ten times the epochs, a second run, memory.

    python -m benchmarks.engine --data DIR --weights DIR [--rounds N] [--out DIR]

ResNet50 on the manga faces by the study protocol (296/159, seed 42, no early stopping), every round:

    heads_linear, heads_study   100 heads (20 seeds x 5 folds) trained together / one after another, features given
    epochs_linear, epochs_study the whole run with 300 epochs / with 30, the same kept views
    second_run                  features read from disk / computed (start-up, ordinary epoch and heads in neither)
    memory_mb                   peak memory (PSS of the process tree) of a whole run in a process of its own
    memory_imports_mb           of which a process takes that has imported the libraries and does nothing

Both sides of a ratio are measured in the same round. One after another, heads also evaluate the clean view in every epoch, as
`train` does and `train_many` does not; 20 of the 100 are timed. Written: result/benchmarks/engine_{stamp}.csv, a row a quantity and
round, and engine_{stamp}.json with the machine, versions and weights.
"""

import copy
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from benchmarks.memory import in_fresh_process
from benchmarks.results import FACES, make_parser, run_command
from transferlab.artifacts import machine, new_stamp, write_new
from transferlab.backbones import make_head
from transferlab.data import load_images, split_images
from transferlab.features import view_blocks
from transferlab.many import Job, train_many
from transferlab.run import DEFAULT_VIEWS
from transferlab.study import STUDY_SETTINGS, Study, freeze_backbone, train_study
from transferlab.train import train
from transferlab.views import views_of

SETTINGS = STUDY_SETTINGS | {"patience": 0, "views": DEFAULT_VIEWS}
SEEDS, FOLDS = 20, 5


def make_study(data, *, dataset=FACES, size=224, **changed):
    """The study of a dataset, the manga faces as notebook 01 runs them, without early stopping; `changed` settings instead."""
    image_set, transforms = load_images(data, prefer=dataset), views_of(dataset, size)
    indices = dict(zip(("train", "val"), split_images(image_set, val_size=0.35, seed=42)))
    return Study(
        image_set,
        transforms,
        indices,
        view_blocks(image_set, transforms, seed=42),
        SETTINGS | changed,
        42,
    )


def new_head(kind, in_features, classes, seed):
    if kind == "study":
        return make_head(in_features, classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(in_features, classes)


def seconds_of(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_heads(kind, views, labels):
    """Seconds for 100 heads on `views` [1 + K, N, D] (the clean one first): (together, one after another).

    One after another every fifth head is trained, and its seconds count five times.
    """
    heads, jobs = [], []
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels))
    for seed in range(SEEDS):
        for rest, test in (map(torch.from_numpy, fold) for fold in folds):
            heads.append(new_head(kind, views.shape[2], 7, seed))
            jobs.append(
                Job(
                    lambda epoch: views[1 + epoch % (len(views) - 1)],
                    rest,
                    views[0],
                    test,
                    seed=seed,
                    patience=0,
                )
            )
    alone = copy.deepcopy(heads[::FOLDS])

    def one_after_another():
        for head, job in zip(alone, jobs[::FOLDS], strict=True):
            index, val = job.train_index, job.val_index
            kept = [view[index] for view in views]
            train(
                head,
                lambda epoch, kept=kept: kept[1 + epoch % (len(kept) - 1)],
                labels[index],
                views[0][val],
                labels[val],
                clean_x=kept[0],
                patience=0,
                seed=job.seed,
            )

    together = seconds_of(lambda: train_many(heads, jobs, labels))
    return together, FOLDS * seconds_of(one_after_another)


def time_run(study, weights, cache_dir):
    """One whole run, its features kept in `cache_dir` -> (Frozen, features [1 + K, 296, D], {(kind, epochs): seconds})."""
    frozen = freeze_backbone("resnet50", study, weights=weights, cache_dir=cache_dir)
    labels = {part: study.image_set.labels[index] for part, index in study.indices.items()}
    clean, val = frozen.draw("train", 0), frozen.draw("val", 0)
    kept = [frozen.draw("train", 1 + view) for view in range(SETTINGS["views"])]
    heads = {}
    for kind in ("linear", "study"):
        for epochs in (30, 300):
            head = new_head(kind, clean.shape[1], 7, 42)
            options = {"clean_x": clean, "epochs": epochs, "patience": 0, "seed": 42}
            heads[kind, epochs] = seconds_of(
                lambda h=head, o=options: train(
                    h, lambda e: kept[e % len(kept)], labels["train"], val, labels["val"], **o
                )
            )
    return frozen, torch.stack([clean, *kept]), heads


def run_once(data, weights):
    study = make_study(data)
    train_study(freeze_backbone("resnet50", study, weights=weights), study, progress=False)


def do_nothing():
    """What a process costs that has imported all of this."""


def measure_round(data, weights):
    """One round -> {quantity: (value, numerator's seconds, denominator's seconds)}, and its `WeightsInfo`."""
    study = make_study(data)
    with tempfile.TemporaryDirectory() as folder:
        frozen, views, heads = time_run(study, weights, folder)
        again, _, _ = time_run(make_study(data), weights, folder)
    first, second, labels = (
        frozen.timings,
        again.timings,
        study.image_set.labels[study.indices["train"]],
    )
    parts = ("training views", "validation images", "features from disk")
    features = [sum(timings.get(part, 0) for part in parts) for timings in (first, second)]
    found = {"second_run": (features[1], features[0])}
    for kind in ("linear", "study"):
        whole = sum(first.values())
        found[f"epochs_{kind}"] = whole + heads[kind, 300], whole + heads[kind, 30]
        found[f"heads_{kind}"] = time_heads(kind, views, labels)
    ratios = {name: (above / below, above, below) for name, (above, below) in found.items()}
    calls = {"memory_mb": ("run_once", data, weights), "memory_imports_mb": ("do_nothing",)}
    memory = {
        name: (in_fresh_process(f"benchmarks.engine.{call}", *given)[1], None, None)
        for name, (call, *given) in calls.items()
    }
    return ratios | memory, frozen.info


def main(arguments=None):
    parser = make_parser(
        __doc__,
        data="a folder with manga_facial_expressions",
        weights="a folder with resnet50's weights",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args(arguments)
    folder = Path(options.out) / "result/benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(options.rounds):
        measured, weights = measure_round(options.data, options.weights)
        for name, (value, above, below) in measured.items():
            rows.append(
                {
                    "quantity": name,
                    "round": number,
                    "value": value,
                    "seconds": above,
                    "seconds_reference": below,
                }
            )
            print(
                {
                    key: round(entry, 4) if isinstance(entry, float) else entry
                    for key, entry in rows[-1].items()
                },
                flush=True,
            )
    table, stamp = pd.DataFrame(rows), new_stamp(options.out)
    print(
        table.groupby("quantity").value.agg(["median", "min", "max"]).to_string(float_format="%.3f")
    )
    described = {
        "data": FACES,
        "rounds": options.rounds,
        "weights": {weights.name: weights._asdict()},
    }
    info = json.dumps(machine() | described, indent=1)
    write_new(folder / f"engine_{stamp}.csv", lambda path: table.to_csv(path, index=False))
    write_new(
        folder / f"engine_{stamp}.json", lambda path: path.write_text(info + "\n", encoding="utf-8")
    )
    return 0


if __name__ == "__main__":
    run_command(main)

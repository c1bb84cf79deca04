"""`transferlab compare`: which backbone for this folder? Repeated cross-validation, the same folds for all, paired tests.

The held-out protocol: stratified folds; 20 % of every training fold, stratified, decide when a head stops; the test fold is
predicted once, by the epoch chosen there. What is compared are checkpoints (architecture and weights), never architectures.
"""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from timm.data import ImageNetInfo

from .artifacts import machine, new_stamp, prepare_out_dir, write_new
from .backbones import choose_device, choose_precision, create_backbone, make_head
from .data import find_image_folder, load_images, split_indices
from .errors import UserError
from .features import view_blocks
from .many import Job, train_many
from .metrics import (
    bootstrap_interval,
    calibration_error,
    corrected_resampled_t,
    detectable_difference,
    images_needed,
    macro_f1_interval,
    verdicts,
)
from .plots import BLUE, GREY
from .run import DEFAULT_VIEWS, find_run_weights
from .study import STUDY_SETTINGS, Study, freeze_backbone
from .views import VIEWS, kind_of_views

INNER_SHARE = 0.2  # of a training fold: for early stopping, and to choose how strongly logistic regression is regularised
POINTS = (1, 2, 3, 5)
PAIR_COLUMNS = [
    *"model_a model_b difference error low high p p_holm detectable".split(),
    *(f"images_for_{d}_points" for d in POINTS),
    "verdict",
]


def make_folds(labels, folds, repeats, seed):
    """The same folds for every model -> list of (repeat, fold, inner, val, test), int64 indices; inner and val share a training fold.

    Raises:
        UserError: a class has fewer images than there are folds, or too few for the inner split.
    """
    smallest = int(torch.bincount(labels).min())
    if not 2 <= folds <= smallest:
        raise UserError(
            f"{folds} folds: give from 2 to {smallest}, the images of the smallest class"
        )
    splitter, made = (
        RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed),
        [],
    )
    for number, (rest, test) in enumerate(splitter.split(labels, labels)):
        rest, test = torch.from_numpy(rest), torch.from_numpy(test)
        inner, val = (
            rest[part]
            for part in split_indices(labels[rest], val_size=INNER_SHARE, seed=seed + number)
        )
        made.append((number // folds, number % folds, inner, val, test))
    return made


def study_of_all(image_set, transforms, settings, seed):
    """A study whose training and validation images are all images: what folds are cut from."""
    everything, blocks = (
        torch.arange(len(image_set.labels)),
        view_blocks(image_set, transforms, seed=seed),
    )
    return Study(
        image_set, transforms, {"train": everything, "val": everything}, blocks, settings, seed
    )


def train_on_folds(clean, view_of, image_set, folds, settings, seed):
    """The study's head on every fold at once; clean: features [N, D] of all images; view_of(e): those of epoch e -> (heads, list of
    TrainResult), the test fold scored after every epoch and deciding nothing.
    """
    heads, jobs = [], []
    for number, (_, _, inner, val, test) in enumerate(folds):
        sizes = {
            "hidden": settings["hidden"],
            "dropout": settings["dropout"],
            "seed": seed + number,
        }
        heads.append(make_head(clean.shape[1], len(image_set.classes), **sizes))
        options = {"lr": settings["lr"], "patience": settings["patience"], "test_index": test}
        jobs.append(Job(view_of, inner, clean, val, seed=seed + number, **options))
    options = {"epochs": settings["epochs"], "batch_size": settings["batch_size"], "progress": True}
    return heads, train_many(heads, jobs, image_set.labels, **options)


def predict_with_heads(frozen, image_set, folds, settings, seed):
    """The study's head on kept features, all folds at once -> {"probabilities": fp32 [R, N, C], "optimism": [F], "epochs": [F]}.

    Optimism is the accuracy on the test fold at the epoch that is best there, less that at the epoch chosen inside.
    """

    def view_of(epoch):
        return frozen.draw("train", 1 + epoch % settings["views"])

    clean = frozen.draw("val", 0)
    heads, results = train_on_folds(clean, view_of, image_set, folds, settings, seed)
    probabilities = np.zeros(
        (1 + folds[-1][0], len(image_set.labels), len(image_set.classes)), np.float32
    )
    for head, (repeat, _, _, _, test) in zip(heads, folds):
        with torch.inference_mode():
            probabilities[repeat, test] = head.eval()(clean[test]).softmax(1).numpy()
    accuracies = [[row["test_acc"] for row in result.history] for result in results]
    optimism = [
        max(curve) - curve[result.best_epoch - 1] for curve, result in zip(accuracies, results)
    ]
    return {
        "probabilities": probabilities,
        "optimism": np.array(optimism),
        "epochs": np.array([r.best_epoch for r in results]),
    }


def predict_with(classifiers, clean, image_set, folds):
    """The best of scikit-learn `classifiers` by log-loss on each fold's inner validation part, fitted again on the whole training
    fold; features [N, D] standardised inside it -> {"probabilities": [R, N, C]}.
    """
    x, y = clean.numpy(), image_set.labels.numpy()
    probabilities = np.zeros((1 + folds[-1][0], len(y), len(image_set.classes)), np.float32)

    def loss(classifier, inner, val):
        fitted = make_pipeline(StandardScaler(), classifier).fit(x[inner], y[inner])
        return log_loss(y[val], fitted.predict_proba(x[val]), labels=range(len(image_set.classes)))

    with threadpool_limits(1):  # matrices this small lose by threads
        for repeat, _, inner, val, test in folds:
            losses = (
                [loss(classifier, inner, val) for classifier in classifiers]
                if len(classifiers) > 1
                else [0.0]
            )
            best, rest = classifiers[int(np.argmin(losses))], torch.cat([inner, val])
            probabilities[repeat, test] = (
                make_pipeline(StandardScaler(), best).fit(x[rest], y[rest]).predict_proba(x[test])
            )
    return {"probabilities": probabilities}


def predict_majority(image_set, folds):
    """The classes' shares in each training fold -> {"probabilities": [R, N, C]}: always its most frequent class."""
    classes = len(image_set.classes)
    probabilities = np.zeros((1 + folds[-1][0], len(image_set.labels), classes), np.float32)
    for repeat, _, inner, val, test in folds:
        counts = torch.bincount(image_set.labels[torch.cat([inner, val])], minlength=classes)
        probabilities[repeat, test] = (counts / counts.sum()).numpy()
    return {"probabilities": probabilities}


def zero_shot_classes(classes):
    """The ImageNet-1k class called as each class is, "bee" for "bees" -> list of indices; None unless each has exactly one."""
    info, names = ImageNetInfo(), {}
    for index in range(info.num_classes()):
        for name in info.index_to_description(index).split(","):
            names.setdefault(name.strip().lower(), set()).add(index)
    found = [
        names.get(name.lower(), set()) | names.get(name.lower().removesuffix("s"), set())
        for name in classes
    ]
    return [min(one) for one in found] if all(len(one) == 1 for one in found) else None


def predict_zero_shot(name, weights, clean, image_set):
    """The original ImageNet classifier of a backbone, asked only for the folder's classes -> {"probabilities": [1, N, C]}, or the
    reason why it cannot be asked, as text."""
    model, info = create_backbone(name, weights)
    wanted = zero_shot_classes(image_set.classes)
    if info.kind == "random" or model.num_classes != 1000 or wanted is None:
        return f"{name}: no zero-shot baseline (its classifier does not hold all of {', '.join(image_set.classes)})"
    with torch.inference_mode():
        logits = model.get_classifier()(clean)[:, wanted]
    return {"probabilities": logits.softmax(1)[None].numpy()}


def score_model(probabilities, labels):
    """Scores of probabilities [R, N, C] against labels int [N], means over repeats, with 95 % bootstrap intervals over images."""
    predicted, true = probabilities.argmax(2), np.eye(probabilities.shape[2])[labels]
    of_true = np.clip(
        np.take_along_axis(probabilities.astype(np.float64), labels[None, :, None], 2)[..., 0],
        1e-15,
        1,
    )
    by_image = {
        "accuracy": (predicted == labels).mean(0),
        "log_loss": -np.log(of_true).mean(0),
        "brier": ((probabilities - true) ** 2).sum(2).mean(0),
    }
    scores = {}
    for name, values in by_image.items():
        scores |= dict(
            zip(
                (name, f"{name}_low", f"{name}_high"),
                (float(values.mean()), *bootstrap_interval(values)),
            )
        )
    scores["macro_f1"] = float(
        np.mean([f1_score(labels, guess, average="macro") for guess in predicted])
    )
    scores["macro_f1_low"], scores["macro_f1_high"] = macro_f1_interval(labels, predicted)
    return scores | {
        "ece": float(np.mean([calibration_error(one, labels) for one in probabilities]))
    }


def fold_accuracies(probabilities, labels, folds):
    """The accuracy on each test fold [F] of probabilities [R, N, C]."""
    correct = probabilities.argmax(2) == labels
    return np.array(
        [
            correct[min(repeat, len(correct) - 1)][test.numpy()].mean()
            for repeat, _, _, _, test in folds
        ]
    )


def compare_pairs(found, labels, folds):
    """Every pair of models: corrected resampled t-test over folds, Holm over pairs, and the verdict in words -> list of rows."""
    k, rows = 1 + max(fold for _, fold, *_ in folds), []
    for a, b in combinations(found, 2):
        accuracies = [
            fold_accuracies(found[name]["probabilities"], labels, folds) for name in (a, b)
        ]
        rows.append(
            {"model_a": a, "model_b": b}
            | corrected_resampled_t(accuracies[0] - accuracies[1], 1 / (k - 1))
        )
    for row, (adjusted, verdict) in zip(rows, verdicts(rows)):
        detectable = detectable_difference(row["error"], len(folds))
        needed = {
            f"images_for_{d}_points": images_needed(len(labels), detectable, d / 100)
            for d in POINTS
        }
        row |= {"p_holm": adjusted, "detectable": detectable} | needed
        better = row["model_a" if verdict == "better" else "model_b"]
        row["verdict"] = verdict if verdict == "indistinguishable" else f"{better} better"
    return rows


def verdict_text(row, n):
    """A pair's verdict as a sentence for the terminal."""
    points = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(
        *(100 * row[name] for name in ("difference", "low", "high"))
    )
    pair = f"{row['model_a']} less {row['model_b']}: {points}, p = {row['p_holm']:.3f} (Holm)"
    if row["verdict"] != "indistinguishable":
        return f"{pair}: {row['verdict']}"
    needed = ", ".join(f"{d}: {row[f'images_for_{d}_points']:,}" for d in POINTS)
    seen = f"a difference of {100 * row['detectable']:.1f} points would have been seen with these {n} images"
    return f"{pair}: indistinguishable; {seen}; images needed to see 1, 2, 3, 5 points: {needed}"


def plot_comparison(metrics, title):
    """Accuracies with their intervals, models in blue, baselines in grey, directly labelled."""
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.4 * len(metrics)), layout="constrained")
    for place, row in enumerate(metrics[::-1]):
        colour = GREY if row["baseline"] else BLUE
        axis.plot(
            [100 * row["accuracy_low"], 100 * row["accuracy_high"]],
            [place, place],
            color=colour,
            linewidth=2,
        )
        axis.plot(100 * row["accuracy"], place, "s" if row["baseline"] else "o", color=colour)
        axis.text(
            100 * row["accuracy"],
            place + 0.15,
            f"{100 * row['accuracy']:.1f}",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axis.set_yticks(range(len(metrics)), [row["model"] for row in metrics[::-1]])
    axis.set_xlabel("accuracy on held-out folds (%), 95 % interval over images")
    axis.set_ylim(-0.6, len(metrics) - 0.2)
    figure.suptitle(title, fontsize=8)
    return figure


def read_or_predict(folder, name, key, compute):
    """`compute()`, a dict of arrays, kept in `folder` under the hash of `key`, so that nothing finished is computed again."""
    digest = hashlib.sha256(json.dumps([name, key], sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{''.join(c if c.isalnum() else '_' for c in name)}_{digest}.npz"
    if not path.is_file():
        found = compute()
        write_new(path, lambda temporary: np.savez_compressed(temporary, **found))
    return dict(np.load(path))


def predict_model(name, label, weights, study, folds, finished, cache_dir):
    """One backbone's predictions, and the draw function of its features: (dict of arrays, `Frozen`)."""
    frozen = freeze_backbone(name, study, weights=weights, cache_dir=cache_dir)
    print(f"{label}: weights {frozen.info.kind}: {frozen.info.source}", flush=True)
    key = [
        study.image_set.digest,
        frozen.info.sha256,
        list(map(repr, study.views)),
        study.settings,
        study.seed,
        fold_hash(folds),
    ]
    key += [str(choose_precision(choose_device())), machine()["versions"]]

    def compute():
        return predict_with_heads(frozen, study.image_set, folds, study.settings, study.seed)

    return read_or_predict(finished, label, key, compute), frozen


def fold_hash(folds):
    """SHA-256 (hex) over the test and inner validation images of every fold."""
    return hashlib.sha256(
        b"".join(part.numpy().tobytes() for fold in folds for part in fold[2:])
    ).hexdigest()


def predict_baselines(name, weights, frozen, study, folds, finished, cache_dir):
    """What a trained head has to beat, beside one backbone -> ({label: dict of arrays}, {label: its weights' info}): k-NN and
    logistic regression on its clean features, the study's head on the same architecture randomly initialised, its own classifier
    asked without training."""
    image_set, clean = study.image_set, frozen.draw("val", 0)
    key = [
        image_set.digest,
        frozen.info.sha256,
        repr(study.views.val),
        fold_hash(folds),
        machine()["versions"],
    ]
    neighbours = [KNeighborsClassifier(k) for k in (1, 5, 15) if k <= len(folds[0][2])]
    regressions = [LogisticRegression(C=10.0**power, max_iter=1000) for power in range(-5, 1)]
    found = {}
    for label, classifiers in (
        (f"{name}, k-NN", neighbours),
        (f"{name}, logistic regression", regressions),
    ):
        print(f"{label} ...", flush=True)
        found[label] = read_or_predict(
            finished, label, key, lambda c=classifiers: predict_with(c, clean, image_set, folds)
        )
    if frozen.info.kind != "random":
        label = f"{name}, random initialisation"
        found[label], untrained = predict_model(
            name, label, "none", study, folds, finished, cache_dir
        )
        asked = predict_zero_shot(name, weights, clean, image_set)
        found |= {f"{name}, zero-shot": asked} if isinstance(asked, dict) else {}
        print(
            asked
            if isinstance(asked, str)
            else f"{name}: zero-shot from its own ImageNet classifier",
            flush=True,
        )
        return found, dict.fromkeys(found, frozen.info) | {label: untrained.info}
    return found, dict.fromkeys(found, frozen.info)


def prediction_rows(image_set, prefix, found, folds):
    """One row a model, repeat and image: where it was held out, its class, the class predicted, and the probabilities."""
    rows, fold_of = [], {}
    for repeat, fold, _, _, test in folds:
        fold_of |= {(repeat, int(i)): fold for i in test}
    for label, arrays in found.items():
        for repeat, one in enumerate(arrays["probabilities"]):
            for i, probabilities in enumerate(one):
                row = {
                    "dataset": image_set.name,
                    "model": label,
                    "repeat": repeat,
                    "fold": fold_of[repeat, i],
                }
                row |= {
                    "path": (prefix / image_set.paths[i]).as_posix(),
                    "label": image_set.classes[image_set.labels[i]],
                }
                row["predicted"] = image_set.classes[probabilities.argmax()]
                rows.append(
                    row
                    | {f"p_{name}": float(p) for name, p in zip(image_set.classes, probabilities)}
                )
    return rows


def metric_rows(image_set, found, others, infos, folds):
    """One row a model or baseline: its scores, where its weights come from, and how optimistic choosing by the test fold would be."""
    labels, rows = image_set.labels.numpy(), []
    for label, arrays in (found | others).items():
        row = {
            "model": label,
            "baseline": label in others,
            "weights": infos[label].source if label in infos else "",
        }
        row |= {"n": len(labels), "folds": len(folds)} | score_model(
            arrays["probabilities"], labels
        )
        if "optimism" in arrays:
            row |= {
                "selection_optimism": float(arrays["optimism"].mean()),
                "epochs_to_best": float(arrays["epochs"].mean()),
            }
        rows.append(row)
    return rows


def run_compare(
    *,
    models,
    data,
    weights="",
    folds=5,
    repeats=5,
    seed=0,
    baselines="all",
    out=".",
    views=None,
    augment="",
    cache_dir="",
):
    """Compares backbones on the images of one folder, prints the verdict, writes predictions, metrics, pairs and a figure.

    `augment`: "faces" (whole pictures) or "photos" (random crops), the study's two sets of views; "": faces for the study's own
    folder of them, else photos. What is finished lies in `out`/result/compare_finished and is not computed again.

    Raises:
        UserError: as `load_images`, `find_run_weights`, `create_backbone` and `make_folds`; a model named twice.
    """
    if len(set(models)) < len(models):
        raise UserError(f"models {' '.join(models)}: name each once")
    image_set, out, weights = (
        load_images(data),
        prepare_out_dir(out),
        find_run_weights(weights, Path("weights")),
    )
    prefix = find_image_folder(data).relative_to(Path(data).expanduser())
    augment = augment or kind_of_views(image_set.name)
    transforms = VIEWS[augment]()
    parts, settings = (
        make_folds(image_set.labels, folds, repeats, seed),
        STUDY_SETTINGS | {"views": views or DEFAULT_VIEWS},
    )
    study = study_of_all(image_set, transforms, settings, seed)
    counted = f"{len(image_set.labels)} images, {len(image_set.classes)} classes, {len(image_set.rejected)} left out"
    print(f"{image_set.name}: {counted}; views of {augment}, {settings['views']} of them")
    finished, found, others, infos = out / "result/compare_finished", {}, {}, {}
    finished.mkdir(exist_ok=True)
    for name in models:
        found[name], frozen = predict_model(name, name, weights, study, parts, finished, cache_dir)
        infos[name] = frozen.info
        if baselines == "all":
            more, more_infos = predict_baselines(
                name, weights, frozen, study, parts, finished, cache_dir
            )
            others, infos = others | more, infos | more_infos
    if baselines == "all":
        others["majority class"] = predict_majority(image_set, parts)
    write_comparison(out, image_set, prefix, found, others, infos, parts, study)


def write_comparison(out, image_set, prefix, found, others, infos, parts, study):
    """Writes the tables and the figure of a finished comparison and prints them."""
    metrics = metric_rows(image_set, found, others, infos, parts)
    pairs, repeats = compare_pairs(found, image_set.labels.numpy(), parts), 1 + parts[-1][0]
    stamp, columns = (
        new_stamp(out),
        ["model", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "ece"],
    )
    print(pd.DataFrame(metrics)[columns].to_string(index=False, float_format="%.3f"))
    print("\n".join(verdict_text(row, len(image_set.labels)) for row in pairs))
    described = {
        "data": image_set.name,
        "data_digest": image_set.digest,
        "synthetic": image_set.synthetic,
        "weights": {name: infos[name]._asdict() for name in found},
        "n": len(image_set.labels),
        "classes": image_set.classes,
        "folds": len(parts) // repeats,
        "repeats": repeats,
        "seed": study.seed,
        "settings": study.settings,
        "fold_hash": fold_hash(parts),
        "precision": str(choose_precision(choose_device())),
    }
    text = json.dumps(described | machine(), indent=1)
    tables = {
        "predictions": pd.DataFrame(prediction_rows(image_set, prefix, found | others, parts)),
        "metrics": pd.DataFrame(metrics),
        "pairs": pd.DataFrame(pairs, columns=PAIR_COLUMNS),  # with one model no row
    }
    for name, table in tables.items():
        path = out / f"result/compare_{name}_{stamp}.csv"
        print(write_new(path, lambda temporary, table=table: table.to_csv(temporary, index=False)))
    print(
        write_new(
            out / f"result/compare_summary_{stamp}.json",
            lambda path: path.write_text(text + "\n", encoding="utf-8"),
        )
    )
    title = f"{image_set.name}{' (synthetic)' * image_set.synthetic}, n = {len(image_set.labels)}"
    title += f", {len(parts) // repeats} folds x {repeats}\n"
    title += "\n".join(f"{name}: {infos[name].source[:110]}" for name in found)
    figure = plot_comparison(metrics, title)
    print(
        write_new(
            out / f"img/compare_{stamp}.png",
            lambda path: figure.savefig(path, dpi=120, format="png"),
        )
    )
    plt.close(figure)

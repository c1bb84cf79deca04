"""How far are these images from what a backbone was pretrained on? Its features before any training, and what training moves.

    python -m benchmarks.domain_gap --data DIR --weights DIR [--models NAME ...] [--epochs N] [--out DIR] [--cache-dir DIR]

features   Of every backbone whose pretrained weights are at hand, on both datasets, clean view, fp32: accuracy of k-NN (k = 5,
           features standardised inside the fold, 5 stratified folds x 5) with its 95 % interval over images, and LogME, the log
           evidence of a Bayesian linear regression from the features to each class, per image, mean over classes (You et al. 2021,
           ICML, section 4). No head is trained.
cka        ResNet50 on the manga faces, EfficientNet-Lite0 on ants and bees: the last stage and all behind it train on the study's
           training images (Adam 1e-4, patience 5, at most `--epochs` epochs, a fresh view in each); debiased linear CKA of every
           stage (means over places) before with every stage after, on the validation images.

Descriptive: whether any of it predicts the order of accuracies can be asked of a dozen checkpoints, not of these few.
Written: result/benchmarks/domain_gap_{stamp}.csv, .json and img/domain_gap_{stamp}.png. What an interrupted run has measured is not
measured again.
"""

import copy
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import BayesianRidge
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from benchmarks.engine import make_study
from benchmarks.findings import all_images
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
from transferlab.backbones import (
    BACKBONES,
    choose_device,
    choose_precision,
    create_backbone,
    fold_batchnorm,
    make_head,
    normalize,
    set_head,
    split_at,
)
from transferlab.cache import default_cache
from transferlab.compare import make_folds, predict_with
from transferlab.errors import UserError
from transferlab.features import extract_large
from transferlab.metrics import bootstrap_interval, debiased_cka
from transferlab.plots import BLUE, ORANGE
from transferlab.study import freeze_backbone
from transferlab.train import train

MODELS = (*BACKBONES, "tf_efficientnet_lite1", "tf_efficientnet_lite2")
TUNED = [
    (FACES, "resnet50", "layer4"),
    (INSECTS, "efficientnet_lite0", "blocks.6"),
]  # what trains begins at the third


def log_evidence(features, labels):
    """LogME of features [N, D] for labels int [N]: log evidence per image at the best precisions, mean over classes (one against
    all; You et al. 2021, ICML, equation 2). Higher is better; scikit-learn's BayesianRidge without priors maximises it."""
    found = []
    with threadpool_limits(1):  # as in probes: sums in one order
        for label in np.unique(labels):
            flat = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
            ridge = BayesianRidge(
                fit_intercept=False, compute_score=True, max_iter=1000, tol=1e-6, **flat
            )
            ridge.fit(features, (labels == label).astype(float))
            found.append(ridge.scores_[-1] / len(labels))
    return float(np.mean(found))


def describe_features(frozen, study, folds):
    """One backbone on one dataset -> its row: k-NN accuracy with its interval, LogME, dimensions."""
    clean, labels = frozen.draw("val", 0), study.image_set.labels.numpy()
    probabilities = predict_with([KNeighborsClassifier(5)], clean, study.image_set, folds)[
        "probabilities"
    ]
    by_image = (probabilities.argmax(2) == labels).mean(0)
    low, high = bootstrap_interval(by_image)
    return {
        "n": len(labels),
        "features": clean.shape[1],
        "knn_accuracy": float(by_image.mean()),
        "knn_low": low,
        "knn_high": high,
        "logme": log_evidence(clean.double().numpy(), labels),
    }


@torch.inference_mode()
def stage_means(model, blocks):
    """What every stage of a timm model gives for blocks of uint8 images [n, 3, H, W], averaged over places -> {stage: [N, C]}."""
    kept = {info["module"]: [] for info in model.feature_info}

    def keep(name):
        return lambda module, given, output: kept[name].append(
            output.mean((2, 3) if output.ndim == 4 else 1).cpu()
        )

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in kept]
    for block in blocks:
        model.eval()(normalize(model, block.to(next(model.parameters()).device)))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def tune_partly(data, dataset, name, cut, weights, epochs):
    """Trains everything from `cut` on by the study's split -> {"stages": names, "cka": [before][after], "val_acc": accuracy}."""
    study, device = make_study(data, dataset=dataset, epochs=epochs), choose_device()
    labels = {part: study.image_set.labels[index] for part, index in study.indices.items()}
    model = create_backbone(name, weights)[0]
    set_head(
        model, make_head(model.head_hidden_size, len(study.image_set.classes), seed=study.seed)
    ).to(device)
    before = copy.deepcopy(model)
    lower, upper = split_at(model, cut)
    folded, val = fold_batchnorm(lower), study.indices["val"]

    def activations(part, view, precision, folder):
        blocks, count = study.blocks(view, study.indices[part]), len(study.indices[part])
        return extract_large(folded, blocks, count, folder, device=device, precision=precision)

    with tempfile.TemporaryDirectory() as folder:
        result = train(
            upper,
            lambda epoch: activations("train", 1 + epoch, choose_precision(device), folder),
            labels["train"],
            activations("val", 0, torch.float32, folder),
            labels["val"],
            clean_x=activations("train", 0, torch.float32, folder),
            epochs=epochs,
            lr=1e-4,
            seed=study.seed,
            progress=True,
        )
    stages = [stage_means(one, study.blocks(0, val)) for one in (before, model)]
    cka = [[debiased_cka(a, b) for b in stages[1].values()] for a in stages[0].values()]
    best = result.history[result.best_epoch - 1]
    return {
        "stages": [*stages[0]],
        "cka": cka,
        "val_acc": best["val_acc"],
        "epochs": len(result.history),
    }


def plot_gap(table, tuned, title):
    """k-NN accuracies, a panel a dataset, LogME beside each; the CKA matrices, before in rows, after in columns."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    for axis, dataset, colour in zip(axes[0], (FACES, INSECTS), (BLUE, ORANGE)):
        part = table[table.dataset == dataset].sort_values("knn_accuracy")
        errors = 100 * np.array(
            [part.knn_accuracy - part.knn_low, part.knn_high - part.knn_accuracy]
        )
        axis.errorbar(100 * part.knn_accuracy, range(len(part)), xerr=errors, fmt="o", color=colour)
        axis.set_yticks(
            range(len(part)),
            [f"{row.model}\nLogME {row.logme:+.2f}" for row in part.itertuples()],
            fontsize=8,
        )
        axis.set(xlabel="k-NN accuracy (%), 95 % interval", title=dataset)
    for axis, found in zip(axes[1], tuned):
        matrix, stages = np.array(found["cka"]), found["stages"]
        axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        for (i, j), value in np.ndenumerate(matrix):
            axis.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 0.6 else "black",
            )
        axis.set_xticks(range(len(stages)), stages, rotation=45, fontsize=7)
        axis.set_yticks(range(len(stages)), stages, fontsize=7)
        axis.set(xlabel="after", ylabel="before")
        axis.set_title(
            f"debiased CKA, {found['model']} trained from {found['cut']}\n{found['dataset']}",
            fontsize=9,
        )
    figure.suptitle(title, fontsize=8)
    return figure


def parse(arguments):
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help=f"default: {' '.join(MODELS)}"
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="of partial fine-tuning (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-dir", default=default_cache(), help="keeps the features (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    studies = {data: all_images(options.data, data) for data in (FACES, INSECTS)}
    infos = {name: create_backbone(name, options.weights)[1] for name in options.models}
    pretrained = [name for name, info in infos.items() if info.kind != "random"]
    if not pretrained:
        raise UserError(f"none of {', '.join(infos)} has pretrained weights here: give --weights")
    for name in set(infos) - set(pretrained):
        print(f"left out: {name} ({infos[name].source})")
    described = {
        "data": {data: study.image_set.digest for data, study in studies.items()},
        "epochs": options.epochs,
        "weights": {name: infos[name]._asdict() for name in pretrained},
    }
    folder, rows, points = unfinished_folder(options.out, "domain_gap", described), [], []
    for data, study in studies.items():
        folds = make_folds(study.image_set.labels, 5, 5, 0)
        for name in pretrained:

            def measure(name=name, study=study, folds=folds):
                frozen = freeze_backbone(
                    name, study, weights=options.weights, cache_dir=options.cache_dir
                )
                return describe_features(frozen, study, folds)

            points.append(folder / f"{data}_{name.replace('/', '_')}.json")
            rows.append(
                {"part": "features", "dataset": data, "model": name}
                | measure_or_read(points[-1], measure)
            )
            print(
                f"{data}, {name}: k-NN {rows[-1]['knn_accuracy']:.1%}, LogME {rows[-1]['logme']:.3f}",
                flush=True,
            )
    tuned = []
    for data, name, cut in [one for one in TUNED if one[1] in pretrained]:
        points.append(folder / f"cka_{data}_{name}.json")
        call = (options.data, data, name, cut, options.weights, options.epochs)
        found = measure_or_read(points[-1], lambda call=call: tune_partly(*call))
        tuned.append({"dataset": data, "model": name, "cut": cut} | found)
        for stage, line in zip(found["stages"], found["cka"]):
            rows += [
                {
                    "part": "cka",
                    "dataset": data,
                    "model": name,
                    "before": stage,
                    "after": other,
                    "cka": value,
                }
                for other, value in zip(found["stages"], line)
            ]
        print(
            f"{data}, {name} from {cut}: validation {found['val_acc']:.1%}; CKA of the last stage {found['cka'][-1][-1]:.2f}"
        )
    sources = list_sources({name: infos[name] for name in pretrained})
    figure = plot_gap(
        pd.DataFrame(rows), tuned, f"clean views, {machine()['processor']}\n{sources}"
    )
    write_results(options.out, "domain_gap", rows, described | {"tuned": tuned}, figure, points)
    return 0


if __name__ == "__main__":
    run_command(main)

"""What the study found, put to the test: a row a claim, with our test of it and the verdict: holds, fails or undecided.

    python -m benchmarks.findings --data DIR --weights DIR [--folds 5] [--repeats 5] [--epochs N] [--out DIR] [--cache-dir DIR]

Held-out protocol on both datasets: stratified folds, 20 % of each training fold choose the epoch, the test fold decides nothing.
Every head trains for all 30 epochs with its curves kept; stopping rules are applied to the curves afterwards, so that with and
without them is the same training. Ablations: without dropout (p = 0), without augmentation (the clean view in every epoch),
without early stopping (the weights of epoch 30). Tested by the corrected resampled t over folds: a claim holds where the whole
95 % interval lies on its side, fails where it lies on the other, is undecided else, and where pretrained weights are missing.
Speed: forwards of both backbones in turn, 95 % quantiles of the ratio.

`model.train()` on a "frozen" backbone: the study's split, one seed, `--epochs` epochs (default 30; 10 will do on a slow CPU).
No parameter of it trains, but its BatchNorm normalises by the batch and moves its statistics; against the same epochs with the
backbone in eval mode.

Written: result/benchmarks/findings_{stamp}.csv, a row a claim and pair of data and backbone; findings_{stamp}.json with the curves,
machine, versions and weights; img/findings_{stamp}.png. What an interrupted run has measured is not measured again.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from benchmarks.engine import make_study
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
from benchmarks.roofline import time_forwards
from transferlab.artifacts import machine
from transferlab.backbones import (
    choose_device,
    choose_precision,
    classifier_name,
    create_backbone,
    fold_batchnorm,
    make_head,
    set_head,
    split_at,
)
from transferlab.cache import default_cache
from transferlab.compare import make_folds, study_of_all, train_on_folds
from transferlab.errors import UserError
from transferlab.metrics import corrected_resampled_t, mcnemar_p
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.run import DEFAULT_VIEWS
from transferlab.study import STUDY_SETTINGS, freeze_backbone, train_study
from transferlab.train import evaluate, train
from transferlab.views import views_of

ABLATED = [(FACES, "resnet50"), (FACES, "densenet121"), (INSECTS, "efficientnet_lite0")]
UNTRAINED = [(FACES, "resnet50"), (INSECTS, "efficientnet_lite0")]  # also from random weights
RANKED = ("vit", "efficientnet_b3", "efficientnet_b0")  # on the insects, in the study's order
VARIANTS = ("study", "no dropout", "no augmentation")
PATIENCE = STUDY_SETTINGS["patience"]


def all_images(data, dataset):
    """A study whose training and validation images are all images of a dataset: what folds are cut from.

    Raises:
        UserError: `data` lacks the dataset.
    """
    return study_of_all(
        load_dataset(data, dataset),
        views_of(dataset),
        STUDY_SETTINGS | {"views": DEFAULT_VIEWS},
        seed=0,
    )


def train_curves(frozen, study, folds, variant):
    """The study's head on every fold for all epochs -> {"val_loss", "test_loss", "test_acc": [F, E], "clean_acc": [F]}, lists.

    clean_acc: accuracy on the clean view of the images it trained on, at the epoch of the lowest validation loss.
    """
    clean, labels, settings = frozen.draw("val", 0), study.image_set.labels, study.settings
    settings = settings | {
        "patience": 0,
        "dropout": 0.0 if variant == "no dropout" else settings["dropout"],
    }

    def view_of(epoch):
        return frozen.draw(
            "train", 0 if variant == "no augmentation" else 1 + epoch % settings["views"]
        )

    heads, results = train_on_folds(clean, view_of, study.image_set, folds, settings, seed=0)
    curves = {
        name: [[row[name] for row in one.history] for one in results]
        for name in ("val_loss", "test_loss", "test_acc")
    }
    seen = [
        evaluate(head, clean[inner], labels[inner]) for head, (_, _, inner, *_) in zip(heads, folds)
    ]
    return curves | {"clean_acc": [one["accuracy"] for one in seen]}


def best_until(val_loss, last):
    """The epoch (from 0) of the lowest validation loss, the earliest on ties, among the first `last`."""
    return int(np.argmin(val_loss[:last]))


def stop_without_gain(val_loss, patience=PATIENCE):
    """Our rule -> (epoch chosen, epochs trained): stops when `patience` epochs in a row bring no new best."""
    for epoch in range(len(val_loss)):
        if epoch - best_until(val_loss, epoch + 1) >= patience:
            return best_until(val_loss, epoch + 1), epoch + 1
    return best_until(val_loss, len(val_loss)), len(val_loss)


def stop_after_rises(val_loss, rises=PATIENCE):
    """The study's rule -> (epoch chosen, epochs trained): stops when the loss has risen `rises` times in a row."""
    in_a_row = 0
    for epoch in range(1, len(val_loss)):
        in_a_row = in_a_row + 1 if val_loss[epoch] > val_loss[epoch - 1] else 0
        if in_a_row >= rises:
            return best_until(val_loss, epoch + 1), epoch + 1
    return best_until(val_loss, len(val_loss)), len(val_loss)


def at_stop(curves, name, rule=stop_without_gain):
    """A curve's value at the epoch that a stopping rule chooses [F]."""
    return np.array(
        [values[rule(losses)[0]] for values, losses in zip(curves[name], curves["val_loss"])]
    )


def chosen_epochs(curves):
    """The epochs, counted from 1, that our stopping rule chooses [F]."""
    return np.array([1.0 + stop_without_gain(losses)[0] for losses in curves["val_loss"]])


def judge(low, high, threshold=0.0):
    """The verdict on a claim that a value exceeds `threshold`, from its 95 % interval."""
    return "holds" if low > threshold else "fails" if high < threshold else "undecided"


def make_row(claim, test, data, model, differences, folds, unit="accuracy"):
    """A row for the claim that `differences` [F] over the folds of `data` are above zero on average; folds: {data: folds}."""
    found = corrected_resampled_t(
        differences, 1 / max(fold for _, fold, *_ in folds[data])
    )  # k folds: 1 of k - 1
    row = {
        "claim": claim,
        "test": test,
        "data": data,
        "model": model,
        "unit": unit,
        "value": found["difference"],
    }
    return (
        row
        | {name: found[name] for name in ("low", "high", "p")}
        | {"verdict": judge(found["low"], found["high"])}
    )


def accuracy(curves, data, model, weights="pretrained", variant="study"):
    """The accuracy on every test fold [F] at the epoch that our stopping rule chooses."""
    return at_stop(curves[data, model, weights, variant], "test_acc")


def most_frequent(labels, folds):
    """The accuracy on every test fold [F] of always naming its training fold's most frequent class."""
    return np.array(
        [
            float((labels[test] == labels[torch.cat([inner, val])].mode()[0]).double().mean())
            for _, _, inner, val, test in folds
        ]
    )


def judge_transfer(curves, labels, folds):
    """The rows of what the study says of backbones. curves: {(data, model, "pretrained" or "random", variant): curves}; labels:
    {data: int64 [N]}; folds: {data: folds}."""
    rows = [
        make_row(
            "DenseNet121 is more accurate than ResNet50",
            "accuracy of DenseNet121 less ResNet50's",
            FACES,
            "densenet121, resnet50",
            accuracy(curves, FACES, "densenet121") - accuracy(curves, FACES, "resnet50"),
            folds,
        )
    ]
    for data, model in ABLATED:
        claim, test = (
            "A frozen backbone with a new head is effective",
            "accuracy less that of the most frequent class",
        )
        above = accuracy(curves, data, model) - most_frequent(labels[data], folds[data])
        rows.append(make_row(claim, test, data, model, above, folds))
    for data, model in UNTRAINED:
        gain = accuracy(curves, data, model) - accuracy(curves, data, model, "random")
        rows.append(
            make_row(
                "Pretraining helps",
                "accuracy less that from random weights",
                data,
                model,
                gain,
                folds,
            )
        )
        epochs = [
            chosen_epochs(curves[data, model, weights, "study"])
            for weights in ("random", "pretrained")
        ]
        test = "epochs to the best, from random weights less pretrained"
        rows.append(
            make_row(
                "Pretraining speeds up learning",
                test,
                data,
                model,
                epochs[0] - epochs[1],
                folds,
                "epochs",
            )
        )
    for pair in zip(RANKED, RANKED[1:]):
        claim, models = "{} is more accurate than {}".format(*pair), ", ".join(pair)
        if all((INSECTS, model, "pretrained", "study") in curves for model in pair):
            better, worse = (accuracy(curves, INSECTS, model) for model in pair)
            rows.append(
                make_row(
                    claim,
                    "accuracy of the first less the second's",
                    INSECTS,
                    models,
                    better - worse,
                    folds,
                )
            )
        else:
            row = {
                "claim": claim,
                "test": "none: pretrained weights are missing",
                "data": INSECTS,
                "model": models,
            }
            rows.append(row | {"unit": "accuracy", "verdict": "undecided"})
    return rows


def judge_over_fitting(curves, folds, data, model):
    """The rows of what the study says of over-fitting and of what helps against it, for one backbone."""
    with_all = {variant: curves[data, model, "pretrained", variant] for variant in VARIANTS}
    one, last = (
        with_all["study"],
        {name: np.array(found["test_loss"])[:, -1] for name, found in with_all.items()},
    )
    chosen, rows = accuracy(curves, data, model), []

    def add(claim, test, differences, unit="accuracy"):
        rows.append(make_row(claim, test, data, model, differences, folds, unit))

    at_best = at_stop(
        one, "test_acc", lambda losses: stop_without_gain(losses, len(losses))
    )  # never, as clean_acc is taken
    test = "accuracy on clean training images less that on test folds"
    add("The head over-fits despite augmentation", test, np.array(one["clean_acc"]) - at_best)
    for variant, what in (("no dropout", "Dropout"), ("no augmentation", "Augmentation")):
        test = "test log-loss of the last epoch, without it less with it"
        add(f"{what} mitigates over-fitting", test, last[variant] - last["study"], "log-loss")
        test = "accuracy with it less without, both stopping early"
        add(
            f"{what} makes the head more accurate",
            test,
            chosen - accuracy(curves, data, model, variant=variant),
        )
    test = "test log-loss of the last epoch less that of the epoch chosen"
    add(
        "Early stopping mitigates over-fitting",
        test,
        last["study"] - at_stop(one, "test_loss"),
        "log-loss",
    )
    test = "accuracy at the epoch chosen less that of the last"
    add(
        "Early stopping makes the head more accurate",
        test,
        chosen - np.array(one["test_acc"])[:, -1],
    )
    rules, claim = (
        "stopping after 5 epochs without a new best",
        "is better than after 5 rises in a row",
    )
    add(
        f"{rules} {claim}".capitalize(),
        "accuracy",
        chosen - at_stop(one, "test_acc", stop_after_rises),
    )
    trained = [
        np.array([rule(losses)[1] for losses in one["val_loss"]])
        for rule in (stop_after_rises, stop_without_gain)
    ]
    add(
        f"{rules} takes fewer epochs".capitalize(),
        "epochs, after 5 rises less ours",
        trained[0] - trained[1],
        "epochs",
    )
    return rows


@torch.inference_mode()
def time_backbones(data, weights, *, rounds=15):
    """Seconds an image of ResNet50's and DenseNet121's frozen part in turn, in each precision the study uses -> {precision:
    {model: list}}; 32 images of the manga faces."""
    device = choose_device()
    study = make_study(data)
    images = (
        next(iter(study.blocks(0, study.indices["train"][:32])))
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    lowers = {}
    for name in ("resnet50", "densenet121"):
        lowers[name] = fold_batchnorm(
            split_at(create_backbone(name, weights)[0].to(device), "features")[0]
        )
    found = {}
    for precision in dict.fromkeys([torch.float32, choose_precision(device)]):
        seconds = found[str(precision)] = {name: [] for name in lowers}
        for _ in range(rounds):
            for name, lower in lowers.items():
                seconds[name].append(1 / time_forwards(lower, images, 8, precision, seconds=0))
    return found


def judge_speed(timed):
    """The rows of "ResNet50 is 15 % faster", one a precision: DenseNet121's seconds over ResNet50's, less 1."""
    rows = []
    for precision, seconds in timed.items():
        faster = np.array(seconds["densenet121"]) / np.array(seconds["resnet50"]) - 1
        low, high = np.quantile(faster, [0.025, 0.975])
        rows.append(
            {
                "claim": "ResNet50 is 15 % faster than DenseNet121",
                "unit": "share",
                "data": FACES,
                "model": "resnet50, densenet121",
                "test": f"forwards in {precision.removeprefix('torch.')}, seconds of DenseNet121 over ResNet50's, less 1",
                "value": float(np.median(faster)),
                "low": low,
                "high": high,
                "verdict": judge(low, high, 0.15),
            }
        )
    return rows


def judge_size():
    """The row of "ResNet50 has fewer parameters": both as ImageNet classifiers."""
    counts = {
        name: sum(p.numel() for p in create_backbone(name, "none")[0].parameters())
        for name in ("resnet50", "densenet121")
    }
    fewer = counts["densenet121"] - counts["resnet50"]
    return {
        "claim": "ResNet50 has fewer parameters than DenseNet121",
        "data": "",
        "model": "resnet50, densenet121",
        "unit": "parameters",
        "test": f"counted: {counts['resnet50']:,} and {counts['densenet121']:,}",
        "value": fewer,
        "verdict": judge(fewer, fewer),
    }


class Casted(nn.Module):
    """A model whose forward runs in the precision of the machine."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        precision = choose_precision(images.device)
        with torch.autocast(
            images.device.type, dtype=precision, enabled=precision != torch.float32
        ):
            return self.model(images).float()


def train_in_both_modes(name, study, weights, cache_dir):
    """A frozen backbone in eval mode, and under `model.train()` as published, on the study's split -> {"correct": {mode: list of
    bool}, "history": {mode: rows}, "moved": names of the state's entries, without the head's, that the second has changed}.

    Both train the same head on the same views in the same order. Validation is in eval mode, so the second meets statistics
    there that have moved.
    """
    labels = {part: study.image_set.labels[index] for part, index in study.indices.items()}
    frozen = freeze_backbone(name, study, weights=weights, cache_dir=cache_dir)
    result, provenance = train_study(frozen, study, progress=False)
    correct = {
        "eval": [a == b for a, b in zip(provenance["val_predictions"], provenance["val_labels"])]
    }
    histories, settings = {"eval": result.history}, study.settings
    model = create_backbone(name, weights)[0]
    sizes = {"hidden": settings["hidden"], "dropout": settings["dropout"], "seed": study.seed}
    set_head(
        model, head := make_head(model.head_hidden_size, len(study.image_set.classes), **sizes)
    )
    whole = Casted(split_at(model.to(choose_device()), "input")[1].requires_grad_(False))
    head.requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    clean, val = (torch.cat([*study.blocks(0, study.indices[part])]) for part in ("train", "val"))

    def view_of(epoch):
        return torch.cat([*study.blocks(1 + epoch % settings["views"], study.indices["train"])])

    options = {key: settings[key] for key in ("epochs", "patience", "batch_size", "lr")} | {
        "seed": study.seed,
        "progress": True,
    }
    histories["train"] = train(
        whole, view_of, labels["train"], val, labels["val"], clean_x=clean, **options
    ).history
    correct["train"] = (
        evaluate(whole, val, labels["val"])["predictions"] == labels["val"]
    ).tolist()
    moved = [
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])
    ]
    heads = tuple(f"{classifier_name(model)}.{key}" for key in head.state_dict())
    return {
        "correct": correct,
        "history": histories,
        "moved": [key for key in moved if key not in heads],
    }


def judge_modes(found):
    """The row of what `model.train()` does to a "frozen" backbone: accuracy in eval mode less that in train mode, on the same
    validation images; the verdict by the exact McNemar test."""
    right = {mode: torch.tensor(correct) for mode, correct in found["correct"].items()}
    p, value = (
        mcnemar_p(right["eval"], right["train"]),
        float(right["eval"].double().mean() - right["train"].double().mean()),
    )
    verdict = "undecided" if p >= 0.05 else judge(value, value)
    return {
        "claim": 'model.train() on a "frozen" backbone costs accuracy',
        "test": "eval mode less train mode, study's split, McNemar",
        "data": FACES,
        "model": "resnet50",
        "unit": "accuracy",
        "value": value,
        "p": p,
        "verdict": verdict,
    }


def plot_findings(rows, title):
    """The differences of accuracy with their intervals, in points, a line a claim and backbone; coloured by verdict."""
    shown = [row for row in rows if row["unit"] == "accuracy" and "low" in row][::-1]
    figure, axis = plt.subplots(figsize=(10, 1.5 + 0.3 * len(shown)), layout="constrained")
    styles = {"holds": (BLUE, "o"), "fails": (ORANGE, "X"), "undecided": (GREY, "s")}
    for place, row in enumerate(shown):
        colour, marker = styles[row["verdict"]]
        axis.plot([100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=2)
        axis.plot(100 * row["value"], place, marker, color=colour, label=row["verdict"])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(
        range(len(shown)), [f"{row['claim']}: {row['model']}" for row in shown], fontsize=7
    )
    axis.set_xlabel("points of accuracy in favour of the claim, 95 % interval")
    handles = dict(zip(*reversed(axis.get_legend_handles_labels())))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(title, fontsize=8)
    return figure


def list_trainings(infos):
    """(data, model, weights, variant) of all that is trained: what has no pretrained weights only as far as it means something."""
    wanted = [
        (data, model, "pretrained", variant) for data, model in ABLATED for variant in VARIANTS
    ]
    wanted += [(data, model, "random", "study") for data, model in UNTRAINED]
    return wanted + [
        (INSECTS, name, "pretrained", "study") for name in RANKED if infos[name].kind != "random"
    ]


def measure_heads(folder, wanted, studies, folds, weights, cache_dir):
    """Trains what is wanted, as far as it does not lie in `folder` -> ({(data, model, weights, variant): curves}, paths)."""
    curves, paths, frozen = {}, [], {}
    for data, model, kind, variant in wanted:
        paths.append(folder / f"{data}_{model}_{kind}_{variant.replace(' ', '_')}.json")

        def measure(data=data, model=model, kind=kind, variant=variant):
            if (data, model, kind) not in frozen:
                source = "none" if kind == "random" else weights
                frozen[data, model, kind] = freeze_backbone(
                    model, studies[data], weights=source, cache_dir=cache_dir
                )
            return train_curves(frozen[data, model, kind], studies[data], folds[data], variant)

        curves[data, model, kind, variant] = measure_or_read(paths[-1], measure)
        reached = at_stop(curves[data, model, kind, variant], "test_acc").mean()
        print(f"{data}, {model}, {kind}, {variant}: {reached:.1%} on test folds", flush=True)
    return curves, paths


def parse(arguments):
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    for name, default in {"folds": 5, "repeats": 5, "epochs": STUDY_SETTINGS["epochs"]}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument(
        "--cache-dir", default=default_cache(), help="keeps the features (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    studies = {data: all_images(options.data, data) for data in (FACES, INSECTS)}
    infos = {
        name: create_backbone(name, options.weights)[1]
        for name in [*dict(map(reversed, ABLATED)), *RANKED]
    }
    missing = [model for _, model in ABLATED if infos[model].kind == "random"]
    if missing:
        raise UserError(
            f"{missing[0]}: {infos[missing[0]].source}; this measurement needs pretrained weights"
        )
    folds = {
        data: make_folds(study.image_set.labels, options.folds, options.repeats, 0)
        for data, study in studies.items()
    }
    described = {
        "data": {data: study.image_set.digest for data, study in studies.items()},
        "folds": options.folds,
        "repeats": options.repeats,
        "epochs": options.epochs,
        "settings": STUDY_SETTINGS | {"views": DEFAULT_VIEWS},
        "weights": {name: info._asdict() for name, info in infos.items()},
    }
    folder = unfinished_folder(options.out, "findings", described)
    curves, points = measure_heads(
        folder, list_trainings(infos), studies, folds, options.weights, options.cache_dir
    )
    points += [folder / "speed.json", folder / "modes.json"]
    timed = measure_or_read(points[-2], lambda: time_backbones(options.data, options.weights))
    study = make_study(options.data, epochs=options.epochs, patience=PATIENCE)
    modes = measure_or_read(
        points[-1],
        lambda: train_in_both_modes("resnet50", study, options.weights, options.cache_dir),
    )
    rows = judge_transfer(
        curves, {data: study.image_set.labels for data, study in studies.items()}, folds
    )
    rows += [*judge_speed(timed), judge_size()]
    rows += [row for pair in ABLATED for row in judge_over_fitting(curves, folds, *pair)] + [
        judge_modes(modes)
    ]
    for row in rows:
        interval = f" [{row['low']:+.3f}, {row['high']:+.3f}]" if "low" in row else ""
        value = f"{row['value']:+.3f}{interval} {row['unit']}" if "value" in row else row["test"]
        print(f"{row['verdict']:9s} {row['claim']} ({row['model']}): {value}")
    described |= {
        "curves": {"/".join(key): found for key, found in curves.items()},
        "speed": timed,
        "modes": modes,
    }
    heading = f"held-out test folds, {options.folds} x {options.repeats}, {DEFAULT_VIEWS} views, {machine()['processor']}"
    heading += f"\n{list_sources(infos)}"
    write_results(options.out, "findings", rows, described, plot_findings(rows, heading), points)
    return 0


if __name__ == "__main__":
    run_command(main)

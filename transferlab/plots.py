"""Figures. Colours (Okabe-Ito) stay apart in grey and for colour-blind readers; labels are English."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, f1_score

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def describe_run(provenance):
    """One line for a figure: model, data (and whether drawn), weights."""
    data = provenance["data"] + (" (synthetic: drawn pictures)" if provenance["synthetic"] else "")
    return f"{provenance['model']} | {data} | weights: {provenance['weights']['source'][:70]}"


def plot_class_counts(image_set, indices):
    """Bars of the images per class, for each part of `indices` ({"train": ..., "val": ...})."""
    counts = {
        f"{part} ({len(index)})": torch.bincount(image_set.labels[index])
        for part, index in indices.items()
    }
    labels = {
        "title": f"{image_set.name}{' (synthetic)' * image_set.synthetic}: {len(image_set.labels)} images",
        "ylabel": "images",
    }
    axis = pd.DataFrame(counts, index=image_set.classes).plot.bar(
        figsize=(7, 3), rot=0, color=[BLUE, ORANGE], **labels
    )
    for bars in axis.containers:
        axis.bar_label(bars)
    return axis.figure


def plot_images(images, titles, *, columns, heading):
    """A grid of uint8 images [3, H, W] with their titles."""
    size = (1.7 * columns, 1.9 * -(-len(images) // columns) + 0.3)
    bare = {"xticks": [], "yticks": [], "frame_on": False}
    figure, axes = plt.subplots(
        -(-len(images) // columns), columns, figsize=size, layout="constrained", subplot_kw=bare
    )
    for axis, image, title in zip(axes.flat, images, titles):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
    figure.suptitle(heading)
    return figure


def plot_history(result, provenance, kind):
    """The learning curves of one run: `kind` is "loss", "accuracy" or "combined" (both side by side)."""
    kinds = {"loss": ("loss", "cross-entropy (nats)"), "accuracy": ("acc", "accuracy")}
    kinds = kinds if kind == "combined" else {kind: kinds[kind]}
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(5.2 * len(kinds), 3.6), squeeze=False, layout="constrained"
    )
    history = pd.DataFrame(result.history).set_index("epoch")
    labels = ["validation", "train (augmented, dropout)", "train (clean, no dropout)"]
    for axis, (title, (short, unit)) in zip(axes[0], kinds.items()):
        lines = history[[f"val_{short}", f"train_{short}", f"train_{short}_clean"]].set_axis(
            labels, axis=1
        )
        lines.plot(
            ax=axis, style=[".-", ".--", ".-"], color=[ORANGE, BLUE, BLUE], ylabel=unit, title=title
        )
        axis.axvline(
            result.best_epoch, color=GREY, linestyle=":", label=f"best epoch ({result.best_epoch})"
        )
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(describe_run(provenance), fontsize=9)
    return figure


def plot_confusion(labels, predictions, provenance):
    """The confusion matrix (rows: true class) and the F1 of every class, side by side."""
    classes = provenance["classes"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(6 + 0.7 * len(classes), 3 + 0.35 * len(classes)), layout="constrained"
    )
    display = ConfusionMatrixDisplay(
        confusion_matrix(labels, predictions, labels=range(len(classes))), display_labels=classes
    )
    display.plot(ax=left, cmap="Blues", colorbar=False, xticks_rotation=45)
    scores = f1_score(
        labels, predictions, average=None, labels=range(len(classes)), zero_division=0
    )
    right.bar_label(right.barh(classes, scores, color=BLUE), fmt="%.2f", padding=2)
    right.set(
        xlim=(0, 1.1),
        ylim=(len(classes) - 0.5, -0.5),
        xlabel="F1",
        title=f"macro-F1 {scores.mean():.3f}",
    )
    figure.suptitle(f"validation, {len(labels)} images | {describe_run(provenance)}", fontsize=9)
    return figure


def plot_timings(summaries):
    """Where the time of each run went: a stacked bar of seconds by phase."""
    seconds = pd.DataFrame({summary["model"]: summary["timings"] for summary in summaries}).T.iloc[
        ::-1
    ]
    labels = {
        "title": "time by phase",
        "xlabel": "seconds",
        "xlim": (0, 1.12 * seconds.sum(axis=1).max()),
    }
    colors = [GREY, GREEN, BLUE, ORANGE, "black"]
    axis = seconds.plot.barh(
        stacked=True, figsize=(8, 1.6 + 0.45 * len(seconds)), color=colors, **labels
    )
    axis.bar_label(axis.containers[-1], [f" {total:.0f} s" for total in seconds.sum(axis=1)])
    axis.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.3))
    return axis.figure


def plot_models(summaries):
    """Best-epoch validation accuracy of several runs with 95 % Wilson intervals; random weights hatched."""
    accuracies = [summary["best"]["val_acc"] for summary in summaries]
    errors = [
        [abs(a - s["accuracy_interval"][side]) for a, s in zip(accuracies, summaries)]
        for side in (0, 1)
    ]
    hatches = ["///" if summary["weights"]["kind"] == "random" else "" for summary in summaries]
    labels = [
        textwrap.fill(f"{s['model']}: {s['weights']['source']}", 58, max_lines=3) for s in summaries
    ]
    figure, axis = plt.subplots(figsize=(11, 1.2 + 0.7 * len(summaries)))
    bars = axis.barh(
        labels, accuracies, xerr=errors, capsize=3, color="#9ECAE1", edgecolor=BLUE, hatch=hatches
    )
    axis.bar_label(bars, [f"{accuracy:.1%}" for accuracy in accuracies], padding=4)
    axis.invert_yaxis()
    axis.set(
        xlim=(0, 1.15),
        xlabel="accuracy at the best epoch, 95 % interval; hatched: random weights, no transfer",
    )
    drawn = " (synthetic: drawn pictures)" if summaries[0]["synthetic"] else ""
    axis.set_title(
        f"{summaries[0]['data']}{drawn}, {summaries[0]['n_val']} validation images", fontsize=9
    )
    return figure


def plot_techniques(summary, title):
    """Accuracy against seconds of a fold, a panel a pair of dataset and model, techniques by number; `summary` as
    `summarise_techniques` gives it."""
    pairs, names = (
        [*summary.groupby(["dataset", "model"], sort=False)],
        [*summary.technique.unique()],
    )
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(2.5 + 4.5 * len(pairs), 4.6), squeeze=False, layout="constrained"
    )
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": BLUE}
    for axis, ((data, model), part) in zip(axes[0], pairs):
        errors = part[["low", "high"]].sub(part.accuracy, axis=0).abs().T
        axis.errorbar(
            part.seconds, 100 * part.accuracy, 100 * errors, fmt="none", ecolor=GREY, linewidth=1
        )
        for row in part.itertuples():  # numbers, since names would lie on each other
            axis.text(
                row.seconds,
                100 * row.accuracy,
                1 + names.index(row.technique),
                ha="center",
                va="center",
                fontsize=7,
                bbox=box,
            )
        axis.set(
            xlim=0,
            xlabel="seconds a fold",
            ylabel="accuracy (%)",
            title=f"{data}, n = {part.n.iloc[0]}\n{model}",
        )
    axis.text(
        1.03,
        0.5,
        "\n".join(map("{} {}".format, range(1, 99), names)),
        va="center",
        fontsize=8,
        transform=axis.transAxes,
    )
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_technique_accuracies(summary, title):
    """Accuracy with its 95 % interval, a panel a pair of dataset and model, for techniques whose seconds tell nothing since they were
    measured at once; `summary` as `summarise_techniques` gives it."""
    pairs, names = (
        [*summary.groupby(["model", "dataset"], sort=False)],
        [*summary.technique.unique()],
    )
    rows, columns = -(-len(pairs) // 4), min(4, len(pairs))
    size = (2 + 3 * columns, 1 + (0.7 + 0.25 * len(names)) * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    for axis, ((model, data), part) in zip(axes.flat, pairs):
        errors = part[["low", "high"]].sub(part.accuracy, axis=0).abs().T
        axis.errorbar(
            100 * part.accuracy,
            [*map(names.index, part.technique)],
            xerr=100 * errors,
            fmt="o",
            color=BLUE,
            ecolor=GREY,
        )
        axis.set(xlabel="accuracy (%)", title=f"{model}\n{data}, n = {part.n.iloc[0]}")
        axis.title.set_fontsize(9)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_audit(findings, kinds, image_set, leaks, heading):
    """The summary of an audit: findings by kind (a data frame with columns kind, serious), images per class, leak accuracies.

    Leak accuracies are means over repeats of cross-validation, their bars one standard deviation of the repeats.
    """
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3 + 0.2 * len(image_set.classes)), layout="constrained"
    )
    counts = pd.crosstab(findings["kind"], findings["serious"]).reindex(
        index=kinds, columns=[True, False], fill_value=0
    )
    counts.columns = ["serious", "worth a look"]
    counts.plot.barh(
        ax=left, stacked=True, color=[ORANGE, BLUE], xlabel="findings", ylabel="", title="findings"
    )
    left.bar_label(left.containers[-1], [f" {total}" for total in counts.sum(axis=1)])
    left.invert_yaxis()
    left.margins(x=0.15)
    sizes = torch.bincount(image_set.labels).tolist()
    middle.bar_label(middle.barh(image_set.classes, sizes, color=BLUE), padding=2)
    middle.set(xlabel="images", ylim=(len(sizes) - 0.5, -0.5), title="images per class")
    middle.margins(x=0.15)
    for place, leak in enumerate(leaks):
        for side, (name, color) in enumerate({"random": GREY, "grouped": ORANGE}.items()):
            accuracies, label = getattr(leak, name), f"{name} folds" if place == 0 else None
            bar = right.bar(
                place + 0.4 * side - 0.2,
                accuracies.mean(),
                0.38,
                yerr=accuracies.std(ddof=1),
                color=color,
                label=label,
            )
            right.bar_label(bar, fmt="{:.1%}", padding=2)
    right.set(ylim=(0, 1.15), ylabel="accuracy", title="leaks" if leaks else "leaks: not measured")
    right.set_xticks(
        range(len(leaks)), [f"by {leak.grouping}\n{leak.images} images" for leak in leaks]
    )
    if leaks:
        right.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    drawn = " (synthetic: drawn pictures)" * image_set.synthetic
    figure.suptitle(
        f"{image_set.name}{drawn}, {len(image_set.labels)} images\n{heading}", fontsize=9
    )
    return figure

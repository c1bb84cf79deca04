"""Figures. Colours (Okabe-Ito) stay apart in grey and for colour-blind readers; labels are
English."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, f1_score

from .data import Fold, ImageSet
from .heldout import Scores
from .records import StudyRecord
from .train import TrainResult

BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#999999"


def describe_data(record: StudyRecord) -> str:
    """The dataset of a run, and whether it is drawn."""
    drawn = " (synthetic: drawn pictures)" if record.dataset.synthetic else ""
    return f"{record.dataset.name}{drawn}"


def describe_run(record: StudyRecord) -> str:
    """One line for a figure: model, data (and whether drawn), weights."""
    return f"{record.model} | {describe_data(record)} | weights: {record.backbone.label}"


def plot_class_counts(image_set: ImageSet, fold: Fold) -> plt.Figure:
    """Bars of the images per class, for the training and the validation images of a split."""
    counts = {}
    for part, index in {"train": fold.train, "val": fold.val}.items():
        counts[f"{part} ({len(index)})"] = torch.bincount(image_set.labels[index])
    drawn = " (synthetic)" if image_set.synthetic else ""
    axis = pd.DataFrame(counts, index=image_set.classes).plot.bar(
        figsize=(7, 3),
        rot=0,
        color=[BLUE, ORANGE],
        title=f"{image_set.name}{drawn}: {len(image_set.labels)} images",
        ylabel="images",
    )
    for bars in axis.containers:
        axis.bar_label(bars)
    return axis.figure


def plot_images(
    images: Sequence[torch.Tensor],
    titles: Sequence[str],
    *,
    columns: int,
    heading: str,
) -> plt.Figure:
    """A grid of uint8 images [3, H, W] with their titles."""
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(1.7 * columns, 1.9 * rows + 0.3),
        layout="constrained",
        subplot_kw={"xticks": [], "yticks": [], "frame_on": False},
    )
    for axis, image, title in zip(axes.flat, images, titles):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
    figure.suptitle(heading)
    return figure


def plot_curves(axis: plt.Axes, history: pd.DataFrame, kind: str) -> None:
    """The curves of one `kind`, "loss" or "accuracy", of a history (a row an epoch) on `axis`."""
    short = {"loss": "loss", "accuracy": "acc"}[kind]
    unit = {"loss": "cross-entropy (nats)", "accuracy": "accuracy"}[kind]
    labels = {
        f"val_{short}": "validation",
        f"train_{short}": "train (augmented, dropout)",
        f"train_{short}_clean": "train (clean, no dropout)",
    }
    lines = history[list(labels)].rename(columns=labels)
    lines.plot(
        ax=axis,
        style=[".-", ".--", ".-"],
        color=[ORANGE, BLUE, BLUE],
        ylabel=unit,
        title=kind,
    )


def plot_history(result: TrainResult, record: StudyRecord, kind: str) -> plt.Figure:
    """The learning curves of one run: `kind` is "loss", "accuracy" or "combined" (both side by
    side)."""
    kinds = ["loss", "accuracy"] if kind == "combined" else [kind]
    figure, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(5.2 * len(kinds), 3.6),
        squeeze=False,
        layout="constrained",
    )
    history = pd.DataFrame(result.history).set_index("epoch")
    best = f"best epoch ({result.best_epoch})"
    for axis, one in zip(axes.flat, kinds):
        plot_curves(axis, history, one)
        axis.axvline(result.best_epoch, color=GREY, linestyle=":", label=best)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(describe_run(record), fontsize=9)
    return figure


def plot_confusion(
    labels: torch.Tensor, predictions: torch.Tensor, record: StudyRecord
) -> plt.Figure:
    """The confusion matrix (rows: true class) and the F1 of every class, side by side."""
    classes = record.dataset.classes
    numbers = range(len(classes))
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(6 + 0.7 * len(classes), 3 + 0.35 * len(classes)),
        layout="constrained",
    )
    matrix = confusion_matrix(labels, predictions, labels=numbers)
    display = ConfusionMatrixDisplay(matrix, display_labels=classes)
    display.plot(ax=left, cmap="Blues", colorbar=False, xticks_rotation=45)
    scores = f1_score(labels, predictions, average=None, labels=numbers, zero_division=0)
    bars = right.barh(classes, scores, color=BLUE)
    right.bar_label(bars, fmt="%.2f", padding=2)
    right.set(
        xlim=(0, 1.1),
        ylim=(len(classes) - 0.5, -0.5),
        xlabel="F1",
        title=f"macro-F1 {scores.mean():.3f}",
    )
    figure.suptitle(f"validation, {len(labels)} images | {describe_run(record)}", fontsize=9)
    return figure


def plot_timings(records: Sequence[StudyRecord]) -> plt.Figure:
    """Where the time of each run went: a stacked bar of seconds by phase."""
    by_model = {record.model: record.timings for record in records}
    seconds = pd.DataFrame(by_model).T.iloc[::-1]  # the first run on top
    totals = seconds.sum(axis=1)
    axis = seconds.plot.barh(
        stacked=True,
        figsize=(8, 1.6 + 0.45 * len(seconds)),
        color=[GREY, GREEN, BLUE, ORANGE, "black"],
        title="time by phase",
        xlabel="seconds",
        xlim=(0, 1.12 * totals.max()),
    )
    axis.bar_label(axis.containers[-1], [f" {total:.0f} s" for total in totals])
    axis.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.3))
    return axis.figure


def plot_models(records: Sequence[StudyRecord]) -> plt.Figure:
    """Best-epoch validation accuracy of several runs with 95 % Wilson intervals; random weights
    hatched."""
    figure, axis = plt.subplots(figsize=(11, 1.2 + 0.7 * len(records)))
    for record in records:
        label = f"{record.model}\n{record.backbone.label}"
        accuracy = record.best.val_acc
        below = accuracy - record.accuracy_interval.low
        above = record.accuracy_interval.high - accuracy
        bar = axis.barh(
            label,
            accuracy,
            xerr=[[abs(below)], [abs(above)]],
            capsize=3,
            color="#9ECAE1",
            edgecolor=BLUE,
            hatch="" if record.backbone.measures_transfer else "///",
        )
        axis.bar_label(bar, [f"{accuracy:.1%}"], padding=4)
    axis.invert_yaxis()
    axis.set(
        xlim=(0, 1.15),
        xlabel="accuracy at the best epoch, 95 % interval; hatched: random weights, no transfer",
    )
    first = records[0]
    axis.set_title(f"{describe_data(first)}, {first.n_val} validation images", fontsize=9)
    return figure


def interval_reach(part: pd.DataFrame) -> pd.DataFrame:
    """How far the intervals of the accuracies in `part` reach below and above, in points [2, N]."""
    reach = part[["low", "high"]].sub(part.accuracy, axis=0)
    return 100 * reach.abs().T


def plot_techniques(summary: pd.DataFrame, title: str) -> plt.Figure:
    """Accuracy against seconds of a fold, a panel a pair of dataset and model, techniques by
    number; `summary` as `summarise_techniques` gives it."""
    pairs = list(summary.groupby(["dataset", "model"], sort=False))
    names = list(summary.technique.unique())
    numbers = {name: number for number, name in enumerate(names, 1)}
    figure, axes = plt.subplots(
        1,
        len(pairs),
        figsize=(2.5 + 4.5 * len(pairs), 4.6),
        squeeze=False,
        layout="constrained",
    )
    for axis, ((data, model), part) in zip(axes.flat, pairs):
        plot_against_seconds(axis, part, numbers)
        axis.set_title(f"{data}, n = {part.n.iloc[0]}\n{model}")
    last = axes[0, -1]
    last.text(
        1.03,
        0.5,
        "\n".join(f"{number} {name}" for name, number in numbers.items()),
        va="center",
        fontsize=8,
        transform=last.transAxes,
    )
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_against_seconds(axis: plt.Axes, part: pd.DataFrame, numbers: dict[str, int]) -> None:
    """One panel of `plot_techniques`: a row of `part` is a technique, drawn as its number."""
    accuracies = 100 * part.accuracy
    axis.errorbar(
        part.seconds,
        accuracies,
        interval_reach(part),
        fmt="none",
        ecolor=GREY,
        linewidth=1,
    )
    for row in part.itertuples():  # numbers, since names would lie on each other
        axis.text(
            row.seconds,
            100 * row.accuracy,
            numbers[row.technique],
            ha="center",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": BLUE},
        )
    axis.set(xlim=0, xlabel="seconds a fold", ylabel="accuracy (%)")


def plot_technique_accuracies(summary: pd.DataFrame, title: str) -> plt.Figure:
    """Accuracy with its 95 % interval, a panel a pair of dataset and model, for techniques whose
    seconds tell nothing since they were measured at once; `summary` as `summarise_techniques` gives
    it."""
    pairs = list(summary.groupby(["model", "dataset"], sort=False))
    names = list(summary.technique.unique())
    rows = math.ceil(len(pairs) / 4)
    columns = min(4, len(pairs))
    row_height = 0.7 + 0.25 * len(names)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2 + 3 * columns, 1 + row_height * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    for axis, ((model, data), part) in zip(axes.flat, pairs):
        axis.errorbar(
            100 * part.accuracy,
            [names.index(name) for name in part.technique],
            xerr=interval_reach(part),
            fmt="o",
            color=BLUE,
            ecolor=GREY,
        )
        axis.set_xlabel("accuracy (%)")
        axis.set_title(f"{model}\n{data}, n = {part.n.iloc[0]}", fontsize=9)
    first = axes[0, 0]
    first.set_yticks(range(len(names)), names)
    first.invert_yaxis()
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_comparison(scores: Sequence[Scores], title: str) -> plt.Figure:
    """Accuracies with their intervals, models in blue, baselines in grey, directly labelled."""
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.4 * len(scores)), layout="constrained")
    from_below = scores[::-1]
    for place, score in enumerate(from_below):
        colour = GREY if score.baseline else BLUE
        marker = "s" if score.baseline else "o"
        low = 100 * score.accuracy_interval.low
        high = 100 * score.accuracy_interval.high
        accuracy = 100 * score.accuracy
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(accuracy, place, marker, color=colour)
        axis.text(
            accuracy,
            place + 0.15,
            f"{accuracy:.1f}",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axis.set_yticks(range(len(scores)), [score.model for score in from_below])
    axis.set_xlabel("accuracy on held-out folds (%), 95 % interval over images")
    axis.set_ylim(-0.6, len(scores) - 0.2)
    figure.suptitle(title, fontsize=8)
    return figure

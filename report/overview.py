"""The figure at the top of the report: the whole result in one look."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from comparisons import Comparison
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import Run
from sources import Context

from transferlab.metrics import Interval
from transferlab.plots import BLUE, GREY, ORANGE


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An accuracy in the figure."""

    name: str  # of the backbone
    weights: str  # their label
    accuracy: float
    interval: Interval
    random: bool  # from random weights


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What guessing the most frequent class would give."""

    share: float  # of that class
    of: str  # what it is the most frequent class of


def draw_mark(axis: Axes, height: int, mark: Mark) -> None:
    """A point with its interval in percent, the value written beside it."""
    style = "s" if mark.random else "o"
    colour = GREY if mark.random else BLUE
    ends = [100 * mark.interval.low, 100 * mark.interval.high]
    value = 100 * mark.accuracy
    axis.plot(ends, [height, height], color=colour, linewidth=2.5)
    axis.plot(value, height, style, color=colour, markersize=8, markeredgecolor="white")
    axis.annotate(
        f"{value:.1f}",
        (value, height),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )


def draw_checkpoints(axis: Axes, marks: Sequence[Mark], title: str) -> None:
    """Accuracies of checkpoints with their intervals, the first on top."""
    names = []
    for place, mark in enumerate(marks):
        draw_mark(axis, -place, mark)
        note = ": measures no transfer" if mark.random else ""
        names.append(f"{mark.name}\n{mark.weights}{note}")
    heights = [-place for place in range(len(marks))]
    axis.set_yticks(heights, names, fontsize=9)
    axis.set_ylim(0.4 - len(marks), 0.7)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("accuracy (%), 95 % interval")
    axis.spines[["top", "right"]].set_visible(False)


def marks_of_runs(runs: Iterable[Run]) -> list[Mark]:
    """The study's runs as marks."""
    marks = []
    for run in runs:
        mark = Mark(
            name=run.record.model,
            weights=run.record.backbone.label,
            accuracy=run.record.best.val_acc,
            interval=run.record.accuracy_interval,
            random=run.random,
        )
        marks.append(mark)
    return marks


def marks_of_models(compared: Comparison, names: Iterable[str]) -> list[Mark]:
    """Models of a comparison as marks."""
    marks = []
    for name in names:
        score = compared.of(name)
        info = compared.weights[name]
        mark = Mark(
            name=name,
            weights=info.label,
            accuracy=score.accuracy,
            interval=score.accuracy_interval,
            random=not info.measures_transfer,
        )
        marks.append(mark)
    return marks


def draw_faces(axis: Axes, context: Context) -> None:
    """The faces: by the probe, where a comparison is named, else the study's split."""
    names = ("resnet50", "densenet121")
    if context.compared_faces:
        compared = context.compared_faces.probe
        verdict = compared.pair(*names).verdict
        title = f"faces, held-out folds by the probe, n = {compared.data.n}: {verdict}"
        draw_checkpoints(axis, marks_of_models(compared, names), title)
        return
    runs = [context.runs[name] for name in names]
    title = f"faces, study's split, n = {runs[0].record.n_val}"
    draw_checkpoints(axis, marks_of_runs(runs), title)


def guess_of_faces(context: Context) -> Guess:
    """Of all faces, where the comparison is shown, since folds are of all; else of the split."""
    if context.compared_faces and context.audit_faces:
        sizes = context.audit_faces.class_sizes.values()
        return Guess(share=max(sizes) / sum(sizes), of="all faces")
    return Guess(share=context.majority, of="the study's split")


def draw_guess(axis: Axes, guess: Guess) -> None:
    """A dashed line at what guessing would give."""
    place = 100 * guess.share
    text = f" majority class of {guess.of}"
    axis.axvline(place, color=ORANGE, linestyle="--", linewidth=1.2)
    axis.text(place, 0.62, text, color=ORANGE, fontsize=8, va="top")


def draw_insects(axis: Axes, context: Context) -> None:
    """The ants and bees, on the split that they are shipped with."""
    faces = context.runs["resnet50"].record.dataset.name
    runs = [run for run in context.runs.values() if run.record.dataset.name != faces]
    shown = context.runs["efficientnet_lite0"].record
    title = f"ants and bees, shipped split, n = {shown.n_val}"
    draw_checkpoints(axis, marks_of_runs(runs), title)


def draw_overview(context: Context) -> Figure:
    """Faces and insects side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
    draw_faces(left, context)
    draw_guess(left, guess_of_faces(context))
    draw_insects(right, context)
    return figure

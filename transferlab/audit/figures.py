"""The figures of an audit: its summary, and a contact sheet of the label suspects."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..plots import BLUE, GREY, ORANGE, plot_images
from .findings import FINDING_KINDS
from .labels import LabelCheck
from .leaks import LeakTest
from .result import AuditResult

SHEET = 24  # label suspects on the contact sheet
BAR = 0.38  # width of a bar, two of which stand side by side
REACH = 0.2  # of their middles from their place


def plot_findings(axis: plt.Axes, audit: AuditResult) -> None:
    """Findings by kind, the serious ones apart."""
    serious = audit.serious
    bars = pd.DataFrame(index=FINDING_KINDS)
    bars["serious"] = [serious[kind] for kind in FINDING_KINDS]
    bars["worth a look"] = [audit.counts[kind] - serious[kind] for kind in FINDING_KINDS]
    bars.plot.barh(
        ax=axis,
        stacked=True,
        color=[ORANGE, BLUE],
        xlabel="findings",
        ylabel="",
        title="findings",
    )
    totals = [f" {audit.counts[kind]}" for kind in FINDING_KINDS]
    axis.bar_label(axis.containers[-1], totals)
    axis.invert_yaxis()
    axis.margins(x=0.15)


def plot_class_sizes(axis: plt.Axes, audit: AuditResult) -> None:
    """Images per class."""
    sizes = audit.class_sizes
    bars = axis.barh(list(sizes), list(sizes.values()), color=BLUE)
    axis.bar_label(bars, padding=2)
    axis.set(xlabel="images", ylim=(len(sizes) - 0.5, -0.5), title="images per class")
    axis.margins(x=0.15)


def plot_leak_side(axis: plt.Axes, leaks: tuple[LeakTest, ...], side: str) -> None:
    """The accuracies of all leak tests under "random" or "grouped" folds."""
    shift = -REACH if side == "random" else REACH
    color = GREY if side == "random" else ORANGE
    for place, leak in enumerate(leaks):
        accuracies = leak.random if side == "random" else leak.grouped
        bar = axis.bar(
            place + shift,
            np.mean(accuracies),
            BAR,
            yerr=np.std(accuracies, ddof=1),
            color=color,
            label=f"{side} folds" if place == 0 else None,
        )
        axis.bar_label(bar, fmt="{:.1%}", padding=2)


def plot_leaks(axis: plt.Axes, leaks: tuple[LeakTest, ...]) -> None:
    """Leak accuracies: means over repeats of cross-validation, their bars one standard deviation of
    the repeats."""
    for side in ("random", "grouped"):
        plot_leak_side(axis, leaks, side)
    title = "leaks" if leaks else "leaks: not measured"
    axis.set(ylim=(0, 1.15), ylabel="accuracy", title=title)
    names = [f"by {leak.grouping}\n{leak.images} images" for leak in leaks]
    axis.set_xticks(range(len(leaks)), names)
    if leaks:
        axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)


def plot_audit(audit: AuditResult) -> plt.Figure:
    """The summary of an audit: findings by kind, images per class, leak accuracies."""
    image_set = audit.image_set
    height = 3 + 0.2 * len(image_set.classes)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, height), layout="constrained")
    plot_findings(left, audit)
    plot_class_sizes(middle, audit)
    plot_leaks(right, audit.leaks)
    drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
    data = f"{image_set.name}{drawn}, {len(image_set.labels)} images"
    backbone = f"{audit.weights.name}, weights: {audit.weights.label}"
    figure.suptitle(f"{data}\n{backbone}", fontsize=9)
    return figure


def plot_suspects(audit: AuditResult, check: LabelCheck) -> plt.Figure:
    """The contact sheet: the first `SHEET` label suspects, under each its given label and what it
    looks like."""
    image_set = audit.image_set
    images = [image_set.images[index] for index in check.suspects[:SHEET]]
    details = [finding.detail for finding in audit.of_kind("label")[:SHEET]]
    titles = [detail.replace(", looks", "\nlooks") for detail in details]
    heading = f"{image_set.name}: labels worth a second look, the most suspicious first"
    return plot_images(images, titles, columns=min(6, len(images)), heading=heading)

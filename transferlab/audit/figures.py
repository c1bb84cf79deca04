"""The figures of an audit: its summary, and a contact sheet of the label suspects."""

from collections.abc import Mapping
from unicodedata import east_asian_width

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from ..plots import BLUE, GREY, ORANGE, plot_images, use_fonts
from .findings import FINDING_KINDS, class_of
from .labels import LabelCheck
from .leaks import GROUP_WORDS, LeakTest
from .result import AuditResult

SHEET = 24  # label suspects on the contact sheet
NAMED = 40  # classes of the figure: of more, the largest and the smallest
LONGEST = 24  # letters of a class name beside a bar
OVER_PICTURE = 18  # over a picture of the contact sheet


def width_of(text: str) -> int:
    """How wide a text is drawn, in Latin letters: Korean and Chinese ones count twice."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def clip(text: str, longest: int = LONGEST) -> str:
    """A text no wider than `longest` letters: both ends of it, since names often differ in their
    last letters."""
    if width_of(text) <= longest:
        return text
    kept = longest - 1
    while True:
        tail = kept // 3
        clipped = f"{text[: kept - tail]}…{text[len(text) - tail :]}"
        if width_of(clipped) <= longest:
            return clipped
        kept -= 1


def plot_findings(axis: plt.Axes, audit: AuditResult) -> None:
    """Findings by kind, the serious ones first and in another colour."""
    serious = [audit.serious[kind] for kind in FINDING_KINDS]
    others = [audit.counts[kind] - audit.serious[kind] for kind in FINDING_KINDS]
    places = range(len(FINDING_KINDS))
    axis.barh(places, serious, color=ORANGE)
    bars = axis.barh(places, others, left=serious, color=BLUE)
    axis.bar_label(bars, [str(audit.counts[kind]) for kind in FINDING_KINDS], padding=3)
    axis.set_yticks(places, [kind.replace("_", " ") for kind in FINDING_KINDS])
    axis.set(xlabel="findings", ylim=(len(FINDING_KINDS) - 0.5, -0.5))
    axis.set_title("findings, serious ones in orange" if any(serious) else "findings, none serious")
    widen(axis, list(audit.counts.values()))


def widen(axis: plt.Axes, values: list[int]) -> None:
    """Leaves room for the numbers at the ends of bars of counts."""
    axis.set_xlim(0, 1.2 * max(values, default=0) or 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def named_classes(sizes: Mapping[str, int]) -> list[str]:
    """The classes that a figure has room for: all, or the largest and the smallest."""
    if len(sizes) <= NAMED:
        return list(sizes)
    ranked = sorted(sizes, key=lambda name: -sizes[name])
    return ranked[: NAMED // 2] + ranked[-NAMED // 2 :]


def plot_class_sizes(axis: plt.Axes, audit: AuditResult) -> None:
    """Images per class."""
    sizes = audit.class_sizes
    names = named_classes(sizes)
    places = range(len(names))
    counts = [sizes[name] for name in names]
    bars = axis.barh(places, counts, color=BLUE)
    axis.bar_label(bars, padding=3)
    axis.set_yticks(places, [clip(name) for name in names])
    title = "images per class"
    if len(names) < len(sizes):
        half = len(names) // 2
        title = f"images per class: the {half} largest\nand the {half} smallest of {len(sizes)}"
        axis.axhline(half - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlabel="images", ylim=(len(names) - 0.5, -0.5), title=title)
    widen(axis, counts)


def plot_leaks(axis: plt.Axes, leaks: tuple[LeakTest, ...]) -> None:
    """Leak accuracies: means over repeats of cross-validation, their lines one standard deviation
    of the repeats; each pair of bars is named beside it."""
    names: list[str] = []
    for leak in leaks:
        together = f"each {GROUP_WORDS[leak.grouping]}\nin one fold"
        sides = {f"random folds,\n{leak.images} images": leak.random, together: leak.grouped}
        for color, (name, accuracies) in zip((GREY, ORANGE), sides.items()):
            place = len(names) + 0.4 * (len(names) // 2)
            deviation = np.std(accuracies, ddof=1)
            bar = axis.barh(place, np.mean(accuracies), xerr=deviation, color=color)
            axis.bar_label(bar, fmt="{:.1%}", padding=3)
            names.append(name)
    places = [place + 0.4 * (place // 2) for place in range(len(names))]
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    title = "leaks" if leaks else "leaks: not measured"
    axis.set(xlim=(0, 1.3), xlabel="accuracy", title=title)
    axis.set_xticks(np.linspace(0, 1, 6))


def plot_audit(audit: AuditResult) -> plt.Figure:
    """The summary of an audit: findings by kind, images per class, leak accuracies."""
    use_fonts()
    image_set = audit.image_set
    height = 3 + 0.2 * min(len(image_set.classes), NAMED)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, height), layout="constrained")
    plot_findings(left, audit)
    plot_class_sizes(middle, audit)
    plot_leaks(right, audit.leaks)
    drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
    data = f"{clip(image_set.name, 80)}{drawn}, {len(image_set.labels)} images"
    backbone = f"{audit.weights.name}, weights: {audit.weights.label}"
    figure.suptitle(f"{data}\n{backbone}", fontsize=9)
    return figure


def plot_suspects(audit: AuditResult, check: LabelCheck) -> plt.Figure:
    """The contact sheet: the first `SHEET` label suspects, under each its given label and what it
    looks like."""
    use_fonts()
    image_set = audit.image_set
    images = []
    titles = []
    for index in check.suspects[:SHEET]:
        probabilities = check.probabilities[index]
        given = clip(class_of(image_set, index), OVER_PICTURE)
        guess = clip(image_set.classes[probabilities.argmax()], OVER_PICTURE)
        images.append(image_set.images[index])
        titles.append(f"{given}\nlooks {probabilities.max():.0%} like\n{guess}")
    name = clip(image_set.name, 40)
    heading = f"{name}: labels worth a second look, the most suspicious first"
    return plot_images(images, titles, columns=6, heading=heading)

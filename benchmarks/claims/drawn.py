"""The figure of all claims: a line a claim and backbone, in natural units."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.claims.judged import UNDECIDED, Claim
from transferlab.datasets import FACES, INSECTS
from transferlab.plots import BLUE, GREY, ORANGE

MARKERS = {"holds": (BLUE, "o"), "fails": (ORANGE, "X"), UNDECIDED: (GREY, "s")}
NAMES = {
    "resnet50": "ResNet50",
    "densenet121": "DenseNet121",
    "efficientnet_lite0": "Lite0",
    "efficientnet_b0": "B0",
    "efficientnet_b3": "B3",
    "vit": "ViT",
    FACES.name: "faces",
    INSECTS.name: "insects",
}
WIDTH = 14.0  # inches, as all that follows
LINE = 0.235  # a line
HEADING = 0.85  # above the panels
AXIS = 0.7  # below a panel, for its axis and the space to the next one
LABELS = 1.25  # left of a panel


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How values of a unit are drawn."""

    label: str
    factor: float = 1.0
    threshold: float = 0.0  # that the claim is above, as drawn


SCALES = {  # by unit, in the order of the panels
    "accuracy": Scale(label="points of accuracy", factor=100),
    "log-loss": Scale(label="log-loss"),
    "epochs": Scale(label="epochs"),
    "share": Scale(label="% faster", factor=100, threshold=15),
    "parameters": Scale(label="millions of parameters fewer", factor=1e-6),
}
Line = Claim | str  # a claim's row, or its words


def with_names(text: str) -> str:
    """A text with backbones and data named as in a figure."""
    for name, short in NAMES.items():
        text = text.replace(name, short)
    return text


def row_label(claim: Claim) -> str:
    """What a row is called under its claim, whose words may name both backbones."""
    if claim.unit == "share":  # a row a precision
        return claim.test.split(",")[0].removeprefix("forwards in ")
    if "," in claim.model:
        return NAMES.get(claim.data, "")
    return with_names(claim.model)


def lines_of(claims: Sequence[Claim]) -> list[Line]:
    """What stands on the lines of a panel: each claim's words, then its rows."""
    rows: dict[str, list[Claim]] = {}
    for one in claims:
        rows.setdefault(one.claim, []).append(one)
    lines: list[Line] = []
    for said, its_rows in rows.items():
        lines += [with_names(said), *its_rows]
    return lines


def draw_row(axis: Axes, claim: Claim, place: int, factor: float) -> None:
    """One claim on its line."""
    colour, marker = MARKERS[claim.verdict]
    if claim.value is None:
        axis.text(0, place, " not tested: no pretrained weights", va="center", color=GREY)
        return
    if claim.low is not None and claim.high is not None:
        ends = [factor * claim.low, factor * claim.high]
        axis.plot(ends, [place, place], color=colour, linewidth=2.5)
    axis.plot(factor * claim.value, place, marker, color=colour, markersize=7)


def draw_words(axis: Axes, words: str, place: int) -> None:
    """A claim's words over its rows, from the left edge of their labels."""
    axis.annotate(
        words,
        (0, place),
        xycoords=("axes fraction", "data"),
        xytext=(-72 * LABELS + 6, 0),
        textcoords="offset points",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the line at 0
    )


def draw_panel(axis: Axes, lines: Sequence[Line], scale: Scale) -> None:
    """The claims of one unit."""
    labels = {}
    for place, line in enumerate(lines):
        if isinstance(line, str):
            draw_words(axis, line, place)
        else:
            labels[place] = row_label(line)
            draw_row(axis, line, place, scale.factor)
    axis.axvline(scale.threshold, color="black", linewidth=0.8, zorder=0)
    axis.set_yticks(list(labels), list(labels.values()), color="#555555")
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlabel(scale.label)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def message(claims: Sequence[Claim]) -> str:
    """The title: how the claims came out."""
    tested = [one for one in claims if one.value is not None]
    counts = {word: sum(one.verdict == word for one in tested) for word in MARKERS}
    decided = f"{counts['holds']} hold, {counts['fails']} fail"
    return f"{len(tested)} tests of the study's claims: {decided}, {counts[UNDECIDED]} undecided"


def plot_findings(claims: Sequence[Claim], small_print: str) -> Figure:
    """All claims: those in points of accuracy at the left, all others at the right. What lies right
    of the black line is in favour of the claim."""
    units = [unit for unit in SCALES if any(one.unit == unit for one in claims)]
    panels = {unit: lines_of([one for one in claims if one.unit == unit]) for unit in units}
    columns = [[unit for unit in units if (unit == "accuracy") is first] for first in (True, False)]
    heights = [sum(LINE * len(panels[unit]) + AXIS for unit in column) for column in columns]
    height = HEADING + max(heights) + 0.2  # of the small print
    with plt.rc_context({"font.size": 11.5}):
        figure = plt.figure(figsize=(WIDTH, height))
        for number, column in enumerate(columns):
            left = number * WIDTH / 2 + LABELS
            top = height - HEADING
            for unit in column:
                tall = LINE * len(panels[unit])
                place = (left, top - tall, WIDTH / 2 - LABELS - 0.3, tall)
                shares = [value / of for value, of in zip(place, (WIDTH, height) * 2)]
                draw_panel(figure.add_axes(shares), panels[unit], SCALES[unit])
                top -= tall + AXIS
        handles = [
            Line2D([], [], color=colour, marker=marker, linewidth=2.5, markersize=7, label=word)
            for word, (colour, marker) in MARKERS.items()
        ]
        figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False)
        edge = 0.1 / WIDTH
        figure.suptitle(message(claims), x=edge, ha="left", fontsize=16, weight="bold")
        figure.text(edge, 0.06 / height, small_print, fontsize=10, color="#555555")
    return figure

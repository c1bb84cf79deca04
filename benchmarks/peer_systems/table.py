"""What runs come to: a row each, medians and ratios over the rounds, the goals, the figure."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from transferlab.errors import UserError
from transferlab.machine import Machine
from transferlab.plots import BLUE, GREEN, GREY, ORANGE

from .common import HeldOutScore, PeerEpoch
from .systems import FOLDS, SPLIT, STUDY, SYSTEMS, settings_of

SHORT = 4  # epochs that a peer runs in a short round


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A run that is to be measured."""

    system: str
    round: int  # from 0
    kind: str  # of the round, "full" or "short"

    def __str__(self) -> str:
        return f"{self.system}, round {self.round} ({self.kind})"

    @property
    def whole(self) -> bool:
        """Whether all of it is run."""
        return self.kind == "full" or SYSTEMS[self.system].always_whole


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to, seen from outside its process."""

    seconds: float
    rows: tuple[PeerEpoch, ...] = ()  # of a head
    held_out: HeldOutScore | None = None  # of a probe
    frozen_hash: str
    seconds_total: float  # from the start of the process
    peak_memory_mb: float


# ---- a run as a row --------------------------------------------------------------------------


def reckon(ends: Sequence[float], seconds: float, epochs: int) -> float:
    """Seconds of a run of `epochs` from a shorter one: `ends`, the seconds at the end of its
    epochs, and all its `seconds`.

    Up to the end of the first epoch and after the last one they stay; each further epoch takes the
    median of the later ones.
    """
    later = [end - begin for begin, end in itertools.pairwise(ends)]
    further = (epochs - 1) * statistics.median(later)
    return ends[0] + further + seconds - ends[-1]


def disagreement(run: Run) -> float:
    """By how much (a share) reckoning from the first epochs of a whole run misses its seconds."""
    ends = [row.end for row in run.rows]
    first = ends[:SHORT]
    tail = run.seconds - ends[-1]
    return reckon(first, first[-1] + tail, len(ends)) / run.seconds - 1


def exact_accuracy(row: PeerEpoch) -> float:
    """The accuracy of an epoch as k / n in fp64: some of the peers report it in fp32.

    Raises:
        UserError: it is no count of the images that were validated.
    """
    exact = round(row.val_acc * row.evaluated) / row.evaluated
    if abs(exact - row.val_acc) > 1e-6:
        told = f"an epoch reports the accuracy {row.val_acc}"
        raise UserError(f"{told}, which is no share of {row.evaluated} images: mend that system")
    return exact


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table. What a probe has none of, or a short run cannot tell, is None."""

    system: str
    round: int
    job: str
    kind: str
    views: int | None
    epochs: int | None  # that `seconds` stands for
    seconds: float
    seconds_total: float
    best_epoch_accuracy: float | None  # of a head run whole, on the images that chose the epoch
    held_out_accuracy: float | None  # of a probe
    peak_memory_mb: float

    @property
    def accuracy(self) -> float | None:
        """Whichever it has."""
        if self.held_out_accuracy is None:
            return self.best_epoch_accuracy
        return self.held_out_accuracy

    def text(self) -> str:
        """The row as a line for the terminal."""
        times = f"{self.seconds:.1f} s"
        if self.epochs is not None:
            times += f" for {self.epochs} epochs"
        line = f"round {self.round} ({self.kind}), {self.system}: {times}"
        line += f", {self.seconds_total:.1f} s in all, {self.peak_memory_mb:.0f} MB"
        if self.accuracy is not None:
            line += f", accuracy {self.accuracy:.1%}"
        return line


COLUMNS = tuple(field.name for field in fields(Row))


def make_row(turn: Turn, run: Run, epochs: int) -> Row:
    """What a run has come to, as a row; `epochs` are those of a whole training."""
    if run.held_out is None:
        return training_row(turn, run, epochs)
    return Row(
        system=turn.system,
        round=turn.round,
        job=SYSTEMS[turn.system].job,
        kind=turn.kind,
        views=None,
        epochs=None,
        seconds=run.seconds,
        seconds_total=run.seconds_total,
        best_epoch_accuracy=None,
        held_out_accuracy=run.held_out.correct / run.held_out.predicted,
        peak_memory_mb=run.peak_memory_mb,
    )


def training_row(turn: Turn, run: Run, epochs: int) -> Row:
    """The row of a head: a short run's seconds are reckoned to so many epochs."""
    ends = [row.end for row in run.rows]
    seconds = run.seconds if turn.whole else reckon(ends, run.seconds, epochs)
    best = min(run.rows, key=lambda row: row.val_loss)  # the earliest on ties
    system = SYSTEMS[turn.system]
    return Row(
        system=turn.system,
        round=turn.round,
        job=system.job,
        kind=turn.kind,
        views=settings_of(turn.system, epochs).views if system.ours else epochs,
        epochs=epochs,
        seconds=seconds,
        seconds_total=run.seconds_total - run.seconds + seconds,
        best_epoch_accuracy=exact_accuracy(best) if turn.whole else None,
        held_out_accuracy=None,
        peak_memory_mb=run.peak_memory_mb,
    )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A turn that was measured."""

    turn: Turn
    run: Run
    row: Row

    def facts(self) -> dict[str, Any]:
        """The run as plain values."""
        return {"system": self.turn.system, "round": self.turn.round} | asdict(self.run)


# ---- ratios and goals ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How many times as long as one system others are to take."""

    above: tuple[str, ...]  # the best of several
    below: str
    levels: tuple[float, ...] = ()  # on two cores with bf16 arithmetic; none: told, no goal
    on_gpu: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one system takes as another, round by round."""

    value: float  # the median
    lowest: float
    highest: float
    rounds: int  # that could be compared


FRAMEWORKS = ("fastai", "lightning", "hf")
TUNED = ("tuned", "fastai_tuned", "lightning_tuned", "hf_tuned")
GOALS = (
    Goal(above=("study",), below="ours_default", levels=(15, 20), on_gpu=(10,)),
    Goal(above=FRAMEWORKS, below="ours_default", levels=(15,)),
    Goal(above=TUNED, below="ours_default", levels=(5,)),
    Goal(above=("study",), below="ours_same_views"),
    Goal(above=("study",), below="ours_fp32"),
    Goal(above=("sklearn",), below="ours_probe_fp32", levels=(5,)),
    Goal(above=("sklearn",), below="ours_probe", levels=(6,)),
    Goal(above=("sklearn_tuned",), below="ours_probe"),
    Goal(above=("vyntri",), below="ours_probe_split_fp32", levels=(1.5,)),
    Goal(above=("vyntri",), below="ours_probe_split", levels=(2,)),
)
LEVELS = ("goal", "moonshot")  # what the levels of a goal are called
WITHOUT_BF16 = 0.6  # so much of a level where the CPU does not compute in bf16


def levels_here(goal: Goal, machine: Machine) -> tuple[float, ...]:
    """The levels that a goal has on a machine."""
    if machine.device == "cuda":
        return goal.on_gpu
    if machine.precision_of(1) == torch.bfloat16:
        return goal.levels
    return tuple(WITHOUT_BF16 * level for level in goal.levels)


def rows_by_system(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each system that has some, in the order of SYSTEMS."""
    grouped = {system: [row for row in rows if row.system == system] for system in SYSTEMS}
    return {system: found for system, found in grouped.items() if found}


def ratio_of(rows: Sequence[Row], above: Sequence[str], below: str) -> Ratio | None:
    """Seconds (the best of `above`) over seconds (`below`), round by round; None where nothing can
    be compared."""
    ratios = []
    for number in sorted({row.round for row in rows}):
        seconds = {row.system: row.seconds for row in rows if row.round == number}
        candidates = [seconds[system] for system in above if system in seconds]
        if candidates and below in seconds:
            ratios.append(min(candidates) / seconds[below])
    if not ratios:
        return None
    return Ratio(
        value=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=len(ratios),
    )


@dataclass(frozen=True, kw_only=True)
class Level:
    """A height that a ratio is to reach."""

    name: str
    ratio: float
    met: bool

    def text(self) -> str:
        """As it is told."""
        return f"{self.name} {self.ratio:g}: {'met' if self.met else 'missed'}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a goal."""

    name: str
    above: tuple[str, ...]  # of those systems, the ones measured
    below: str
    ratio: Ratio
    levels: tuple[Level, ...]

    def text(self) -> str:
        """As a line of text."""
        ratio = self.ratio
        line = f"{self.name}: {ratio.value:.2f} (median of {ratio.rounds}"
        line += f", {ratio.lowest:.2f} to {ratio.highest:.2f})"
        return "; ".join([line, *(level.text() for level in self.levels)])


def outcome_of(goal: Goal, rows: Sequence[Row], machine: Machine) -> Outcome | None:
    """What came of a goal; None where nothing can be compared."""
    ratio = ratio_of(rows, goal.above, goal.below)
    if ratio is None:
        return None
    measured = {row.system for row in rows}
    above = tuple(system for system in goal.above if system in measured)
    name = ", ".join(above)
    if len(goal.above) > 1:
        name = f"best of {name}"
    levels = []
    for word, height in zip(LEVELS, levels_here(goal, machine)):
        levels.append(Level(name=word, ratio=height, met=ratio.value >= height))
    return Outcome(
        name=f"{name} / {goal.below}",
        above=above,
        below=goal.below,
        ratio=ratio,
        levels=tuple(levels),
    )


def find_outcomes(rows: Sequence[Row], machine: Machine) -> list[Outcome]:
    """What came of every goal that can be told of."""
    outcomes = [outcome_of(goal, rows, machine) for goal in GOALS]
    return [outcome for outcome in outcomes if outcome]


def describe_disagreement(finished: Sequence[Finished], epochs: int) -> list[str]:
    """For each system that short rounds reckon, how far reckoning misses in the full rounds, as
    lines of text."""
    if epochs <= SHORT:
        return []
    missed: dict[str, list[float]] = {}
    for one in finished:
        system = one.turn.system
        if one.turn.kind == "full" and not SYSTEMS[system].always_whole:
            missed.setdefault(system, []).append(disagreement(one.run))
    lines = []
    for system, shares in missed.items():
        share = statistics.median(shares)
        lines.append(f"{system}: reckoned from {SHORT} epochs {share:+.1%}")
    return lines


# ---- medians ---------------------------------------------------------------------------------

OURS = {STUDY: "ours_default", FOLDS: "ours_probe", SPLIT: "ours_probe_split"}  # by job


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The medians of a system over the rounds."""

    system: str
    seconds: float
    seconds_total: float
    peak_memory_mb: float
    accuracy: float | None  # None where only short rounds were run
    times: float | None  # seconds over those of ours that does the job; None where it did not run


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """The medians of each system, in the order of SYSTEMS."""
    summaries = []
    for system, found in rows_by_system(rows).items():
        accuracies = [row.accuracy for row in found if row.accuracy is not None]
        ratio = ratio_of(rows, (system,), OURS[SYSTEMS[system].job])
        one = Summary(
            system=system,
            seconds=statistics.median(row.seconds for row in found),
            seconds_total=statistics.median(row.seconds_total for row in found),
            peak_memory_mb=statistics.median(row.peak_memory_mb for row in found),
            accuracy=statistics.median(accuracies) if accuracies else None,
            times=ratio.value if ratio else None,
        )
        summaries.append(one)
    return summaries


# ---- the figure ------------------------------------------------------------------------------


def bar_label(one: Summary) -> str:
    """What stands beside a system's bar."""
    digits = 0 if one.seconds >= 10 else 1
    parts = [f"{one.seconds:.{digits}f} s"]
    is_measure = one.system == OURS[SYSTEMS[one.system].job]
    if one.times is not None and not is_measure:
        parts.append(f"{one.times:.1f}×")
    if one.accuracy is not None:
        parts.append(f"{one.accuracy:.0%} right")
    return ", ".join(parts)


def bar_colour(name: str) -> str:
    """The colour of a system's bar: blue ours, green tuned, grey as published, orange the rest."""
    if SYSTEMS[name].ours:
        return BLUE
    if name.endswith("tuned"):
        return GREEN
    return GREY if name == "study" else ORANGE


def draw_bars(axis: Axes, summaries: Sequence[Summary], title: str) -> None:
    """A panel: the systems by their median seconds, the fastest at the top."""
    ordered = sorted(summaries, key=lambda one: one.seconds)
    names = [SYSTEMS[one.system].label for one in ordered]
    seconds = [one.seconds for one in ordered]
    bars = axis.barh(names, seconds, color=[bar_colour(one.system) for one in ordered])
    axis.bar_label(bars, [bar_label(one) for one in ordered], padding=4, fontsize=11)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.75 * max(seconds))  # room for the labels
    axis.set_xlabel("seconds (median of the rounds)", fontsize=11)
    axis.tick_params(labelsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=12)


def message(rows: Sequence[Row]) -> str:
    """What the figure says: how many times as fast ours is as what it is to replace."""
    told = []
    for name, system in (
        ("the published loop", "study"),
        ("scikit-learn", "sklearn"),
        ("Vyntri", "vyntri"),
    ):
        ratio = ratio_of(rows, (system,), OURS[SYSTEMS[system].job])
        if ratio:
            told.append(f"{ratio.value:.1f} times as fast as {name}")
    return f"Ours is {', '.join(told)}" if told else "Seconds of each system"


def plot_bars(rows: Sequence[Row], caption: str) -> plt.Figure:
    """Median seconds of every system, a panel for the study's job and one for the probe's, with the
    ratio to ours and the accuracy beside each bar."""
    summaries = summarise(rows)
    heads = [one for one in summaries if SYSTEMS[one.system].job == STUDY]
    probes = [one for one in summaries if SYSTEMS[one.system].job != STUDY]
    titles = ("The study: a head, 30 epochs", "A linear probe of all images")
    panels = [(title, part) for title, part in zip(titles, (heads, probes), strict=True) if part]
    height = 2.0 + 0.42 * max(len(part) for _, part in panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), height), squeeze=False, layout="constrained"
    )
    for axis, (title, part) in zip(axes.flat, panels):
        draw_bars(axis, part, title)
    figure.suptitle(message(rows), fontsize=14)
    figure.supxlabel(caption, fontsize=9, color=GREY)
    return figure

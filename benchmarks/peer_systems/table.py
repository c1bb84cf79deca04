"""What runs come to: a row each, medians and ratios over the rounds, the figure."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import matplotlib.pyplot as plt

from transferlab.errors import UserError
from transferlab.plots import BLUE, GREEN, GREY, ORANGE

from .common import PeerEpoch
from .systems import SYSTEMS, settings_of

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
        """Whether all epochs are run."""
        return self.kind == "full" or SYSTEMS[self.system].always_whole


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to, seen from outside its process."""

    seconds: float
    rows: tuple[PeerEpoch, ...]
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
    """A row of the table."""

    system: str
    round: int
    kind: str
    views: int
    epochs: int  # that `seconds` stands for
    seconds: float
    seconds_total: float
    best_epoch_accuracy: float | None  # of full rounds
    peak_memory_mb: float

    def text(self) -> str:
        """The row as a line for the terminal."""
        times = f"{self.seconds:.1f} s for {self.epochs} epochs, {self.seconds_total:.1f} s in all"
        line = f"round {self.round} ({self.kind}), {self.system}: {times}"
        line += f", {self.peak_memory_mb:.0f} MB"
        if self.best_epoch_accuracy is not None:
            line += f", accuracy {self.best_epoch_accuracy:.1%}"
        return line


COLUMNS = tuple(field.name for field in fields(Row))


def make_row(turn: Turn, run: Run, epochs: int) -> Row:
    """What a run has come to, as a row; `epochs` are those of a whole one."""
    ends = [row.end for row in run.rows]
    seconds = run.seconds if turn.whole else reckon(ends, run.seconds, epochs)
    count = len(ends) if turn.whole else epochs
    best = min(run.rows, key=lambda row: row.val_loss)  # the earliest on ties
    ours = SYSTEMS[turn.system].ours
    return Row(
        system=turn.system,
        round=turn.round,
        kind=turn.kind,
        views=settings_of(turn.system, epochs).views if ours else count,
        epochs=count,
        seconds=seconds,
        seconds_total=run.seconds_total - run.seconds + seconds,
        best_epoch_accuracy=exact_accuracy(best) if turn.kind == "full" else None,
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


# ---- medians and ratios ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Seconds of one system over those of another, which are to be compared."""

    above: tuple[str, ...]  # the best of several
    below: str


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one system takes as another."""

    value: float  # the median over the rounds
    rounds: int  # that could be compared


FRAMEWORKS = ("fastai", "lightning", "hf")
TUNED_FRAMEWORKS = ("fastai_tuned", "lightning_tuned", "hf_tuned")
GOALS = (
    Goal(above=("study",), below="ours_same_views"),
    Goal(above=("study",), below="ours_default"),
    Goal(above=("tuned",), below="ours_default"),
    Goal(above=("study",), below="ours_fp32"),
    Goal(above=("study_early",), below="ours_early"),
    Goal(above=FRAMEWORKS, below="ours_default"),
    Goal(above=TUNED_FRAMEWORKS, below="ours_default"),
)


def rows_by_system(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each system that has some, in the order of SYSTEMS."""
    grouped = {system: [row for row in rows if row.system == system] for system in SYSTEMS}
    return {system: found for system, found in grouped.items() if found}


def mean_epochs(rows: Sequence[Row], system: str) -> float:
    """The mean number of epochs of a system's runs."""
    return statistics.mean(row.epochs for row in rows if row.system == system)


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
    return Ratio(value=statistics.median(ratios), rounds=len(ratios))


def describe_goal(rows: Sequence[Row], goal: Goal, ratio: Ratio) -> str:
    """A goal's ratio as a line of text."""
    measured = {row.system for row in rows}
    name = ", ".join(system for system in goal.above if system in measured)
    if len(goal.above) > 1:
        name = f"best of {name}"
    line = f"{name} / {goal.below}: {ratio.value:.2f} (median of {ratio.rounds})"
    if SYSTEMS[goal.below].early:
        above = mean_epochs(rows, goal.above[0])
        below = mean_epochs(rows, goal.below)
        line += f" (mean epochs {above:.1f} and {below:.1f})"
    return line


def describe_ratios(rows: Sequence[Row]) -> list[str]:
    """The goals' ratios as lines of text."""
    lines = []
    for goal in GOALS:
        ratio = ratio_of(rows, goal.above, goal.below)
        if ratio:
            lines.append(describe_goal(rows, goal, ratio))
    return lines


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


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The medians of a system over the rounds."""

    system: str
    seconds: float
    seconds_total: float
    peak_memory_mb: float
    best_epoch_accuracy: float | None  # None where no round was full
    epochs: float  # their mean
    times: float | None  # seconds over ours_default's, round by round; None where it did not run


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """The medians of each system, in the order of SYSTEMS."""
    summaries = []
    for system, found in rows_by_system(rows).items():
        told = [row.best_epoch_accuracy for row in found]
        accuracies = [accuracy for accuracy in told if accuracy is not None]
        ratio = ratio_of(rows, (system,), "ours_default")
        one = Summary(
            system=system,
            seconds=statistics.median(row.seconds for row in found),
            seconds_total=statistics.median(row.seconds_total for row in found),
            peak_memory_mb=statistics.median(row.peak_memory_mb for row in found),
            best_epoch_accuracy=statistics.median(accuracies) if accuracies else None,
            epochs=mean_epochs(found, system),
            times=ratio.value if ratio else None,
        )
        summaries.append(one)
    return summaries


# ---- the figure ------------------------------------------------------------------------------


def bar_label(one: Summary) -> str:
    """What stands beside a system's bar."""
    digits = 0 if one.seconds >= 10 else 1
    parts = [f"{one.seconds:.{digits}f} s"]
    if one.times is not None:
        parts.append(f"{one.times:.1f} x")
    if one.best_epoch_accuracy is not None:
        parts.append(f"accuracy {one.best_epoch_accuracy:.1%}")
    if SYSTEMS[one.system].early:
        parts.append(f"{one.epochs:.1f} epochs")
    return ", ".join(parts)


def bar_colour(name: str) -> str:
    """The colour of a system's bar: grey as published, green tuned, blue ours, orange the rest."""
    if name.endswith("tuned"):
        return GREEN
    if SYSTEMS[name].ours:
        return BLUE
    return GREY if name.startswith("study") else ORANGE


def plot_bars(summaries: Sequence[Summary], title: str) -> plt.Figure:
    """Median seconds of every system, with the ratio to ours_default and the accuracy beside each
    bar."""
    names = [one.system for one in summaries]
    seconds = [one.seconds for one in summaries]
    height = 1.6 + 0.42 * len(names)
    figure, axis = plt.subplots(figsize=(10, height), layout="constrained")
    bars = axis.barh(names, seconds, color=[bar_colour(name) for name in names])
    labels = [bar_label(one) for one in summaries]
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.4 * max(seconds))
    axis.set_xlabel(
        "seconds, from loading the images to the end of training (median); x: times ours_default"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=9)
    return figure

"""Typed numbers: every number in the report is one of these, and refuses to be what it is not."""

import math
import sys
from typing import NoReturn

from transferlab.metrics import Interval


def fail(message: str) -> NoReturn:
    """Ends with an error message.

    Raises:
        SystemExit: always.
    """
    sys.exit(f"error: {message}")


def is_number(value: object) -> bool:
    """Whether this is a finite number; True and False are none."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """The value, if it is a finite number from `low` to `high`.

    Raises:
        SystemExit: it is not.
    """
    if is_number(value) and low <= value <= high:
        return value
    fail(f"{value!r} is no number from {low} to {high}")


def percent(value: float, low: float = 0) -> float:
    """A proportion from `low` to 1 in percent.

    Raises:
        SystemExit: it is not one.
    """
    return 100 * number(value, low, 1)


def proportion(value: float, n: int) -> str:
    """A proportion of n images as "41.5 % (66/159)".

    Raises:
        SystemExit: it is not k/n of that n, so it is not what it claims to be.
    """
    share = percent(value)
    k = round(value * n)
    distance = abs(k / n - value)
    if distance > 1e-9:
        fail(f"{value} is no proportion of {n} images")
    return f"{share:.1f} % ({k}/{n})"


def mean(value: float) -> str:
    """A mean of proportions, over folds or repeats, as "41.5 %"."""
    return f"{percent(value):.1f} %"


def interval(value: Interval) -> str:
    """The interval of a proportion or of a mean of them as "34.1–49.2 %"."""
    low = percent(value.low)
    high = percent(value.high, value.low)
    return f"{low:.1f}–{high:.1f} %"


def interval_of(low: float, high: float) -> Interval:
    """The interval between two ends that a table gives."""
    return Interval(low=low, high=high)


def points(value: float) -> str:
    """A difference of proportions as "+1.3" points."""
    rounded = round(percent(value, -1), 1)
    return f"{rounded + 0.0:+.1f}"  # no "-0.0"


def size(value: float) -> str:
    """How large a difference of proportions is, as "6.9 %p"."""
    return f"{percent(value):.1f} %p"


def score(value: float) -> str:
    """A score from 0 to 1 as "0.227"."""
    return f"{number(value, 0, 1):.3f}"


def loss(value: float) -> str:
    """A loss in nats as "1.720"."""
    return f"{number(value, 0):.3f}"


def signed(value: float) -> str:
    """A difference of scores or losses, or an evidence, as "+0.012"."""
    return f"{number(value):+.3f}"


def tenths(value: float) -> str:
    """A difference of counts, averaged, as "+10.8"."""
    return f"{number(value):+.1f}"


def ratio(value: float) -> str:
    """A ratio of two times, or a share, as "0.71"."""
    checked = number(value, 0)
    return f"{checked:.2g}" if checked < 0.1 else f"{checked:.2f}"


def seconds(value: float) -> str:
    """A time in seconds: whole from 10 on, else with one decimal."""
    checked = number(value, 0)
    return f"{checked:.0f}" if checked >= 10 else f"{checked:.1f}"


def amount(value: float) -> str:
    """Something measured that has no other type (epochs, images a second, megabytes) as "15.2" or
    "1,290"."""
    checked = number(value, 0)
    return f"{checked:,.0f}" if checked >= 100 else f"{checked:.1f}"


def count(value: float) -> str:
    """A whole number as "7,482,247".

    Raises:
        SystemExit: it is not whole.
    """
    whole = int(number(value))
    if whole != value:
        fail(f"{value!r} is no count")
    return f"{whole:,}"


def exact(value: float) -> str:
    """A setting, as it was given, e.g. "0.001"."""
    return f"{number(value):g}"


FILTERS = (
    exact,
    proportion,
    mean,
    interval,
    points,
    size,
    score,
    loss,
    signed,
    tenths,
    ratio,
    seconds,
    amount,
    count,
)

"""Typed numbers: every number in the report is one of these, and refuses to be what it is not."""

import math
import sys


def fail(message):
    sys.exit(f"error: {message}")


def number(value, low=-math.inf, high=math.inf):
    """The value, if it is a finite number from `low` to `high`.

    Raises:
        SystemExit: it is not.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        fail(f"{value!r} is no number from {low} to {high}")
    return value


def proportion(value, n):
    """A proportion of n images as "41.5 % (66/159)".

    Raises:
        SystemExit: it is not k/n of that n, so it is not what it claims to be.
    """
    k = round(number(value, 0, 1) * n)
    if abs(k / n - value) > 1e-9:
        fail(f"{value} is no proportion of {n} images")
    return f"{100 * value:.1f} % ({k}/{n})"


def mean(value):
    """A mean of proportions, over folds or repeats, as "41.5 %"."""
    return f"{100 * number(value, 0, 1):.1f} %"


def interval(value):
    """(low, high) of a proportion or of a mean of them as "34.1–49.2 %"."""
    low, high = value
    return f"{100 * number(low, 0, 1):.1f}–{100 * number(high, low, 1):.1f} %"


def points(value):
    """A difference of proportions as "+1.3" points."""
    return f"{round(100 * number(value, -1, 1), 1) + 0.0:+.1f}"  # no "-0.0"


def size(value):
    """How large a difference of proportions is, as "6.9 %p"."""
    return f"{100 * number(value, 0, 1):.1f} %p"


def score(value):
    """A score from 0 to 1 as "0.227"."""
    return f"{number(value, 0, 1):.3f}"


def loss(value):
    """A loss in nats as "1.720"."""
    return f"{number(value, 0):.3f}"


def signed(value):
    """A difference of scores or losses, or an evidence, as "+0.012"."""
    return f"{number(value):+.3f}"


def tenths(value):
    """A difference of counts, averaged, as "+10.8"."""
    return f"{number(value):+.1f}"


def ratio(value):
    """A ratio of two times, or a share, as "0.71"."""
    return f"{value:.2g}" if number(value, 0) < 0.1 else f"{value:.2f}"


def seconds(value):
    """A time in seconds: whole from 10 on, else with one decimal."""
    return f"{value:.0f}" if number(value, 0) >= 10 else f"{value:.1f}"


def amount(value):
    """Something measured that has no other type (epochs, images a second, megabytes) as "15.2" or "1,290"."""
    return f"{value:,.0f}" if number(value, 0) >= 100 else f"{value:.1f}"


def count(value):
    """A whole number as "7,482,247"."""
    if number(value) != int(value):
        fail(f"{value!r} is no count")
    return f"{int(value):,}"


def exact(value):
    """A setting, as it was given, e.g. "0.001"."""
    return f"{number(value):g}"


FILTERS = [
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
]

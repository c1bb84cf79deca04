"""What is to be measured: points, each kept when it is finished, in shares that several machines
can take."""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from .errors import UserError
from .store import Store

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """Something to measure once."""

    name: str
    group: str  # points of a group share what is costly to set up: one share takes them all
    key: Any  # a frozen dataclass of all that the result depends on
    measure: Callable[[], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Part `number` (from 1) of `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def take_share(items: Sequence[Item], share: Share) -> list[Item]:
    """The part of `items` that one of several machines takes: every so many-th."""
    return list(items[share.number - 1 :: share.of])


def parse_share(text: str) -> Share:
    """A share written as "2/3".

    Raises:
        UserError: it is no such thing.
    """
    matched = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    share = matched and Share(number=int(matched[1]), of=int(matched[2]))
    if share and 1 <= share.number <= share.of:
        return share
    raise UserError(f"{text!r:.40} is no share: write 1/3, 2/3 or 3/3 for a third")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Points to measure, and the store that keeps them."""

    points: tuple[Point, ...]
    store: Store

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in order."""
        return tuple(dict.fromkeys(point.group for point in self.points))

    def share(self, share: Share) -> "Plan":
        """The part that one of several machines takes: every so many-th group."""
        taken = take_share(self.groups, share)
        return replace(self, points=tuple(one for one in self.points if one.group in taken))

    def missing(self) -> tuple[Point, ...]:
        """The points that nothing is kept of."""
        return tuple(point for point in self.points if not self.store.has(point.key))

    def measured(
        self, *, until: float = math.inf, now: Callable[[], float] = time.monotonic
    ) -> Iterator[tuple[Point, dict[str, torch.Tensor]]]:
        """Yields each point with what it gave: read where it is kept, else measured and kept.

        After `until`, in seconds of `now`, what is not kept is left out.
        """
        for point in self.points:
            if now() > until and not self.store.has(point.key):
                continue
            yield point, self.store.tensors(point.key, point.measure)

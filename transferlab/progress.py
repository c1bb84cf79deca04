"""One line on the terminal while much is computed: what, how much of it, and about how long yet."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

BEGUN = "{percentage:.0f} %, {elapsed} so far: {desc}"
LINE = "{percentage:.0f} %, {elapsed} so far, about {remaining} left: {desc}"
TELLING = 0.05  # of the work: with less done, the pace says nothing yet
LONGEST = 40  # characters of a part's name: the line fits into a terminal
REDRAW = 0.5  # seconds between two drawings, at least


class Progress:
    """Parts of a work one after another, each of which goes through images.

    What each part is expected to take need only be right in proportion: the time left is what is
    expected of the rest, at the pace so far. Outside `over` it says nothing.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._starts: dict[str, float] = {}  # where each part begins, in expected seconds
        self._image = 0.0  # expected seconds of an image of the part at work
        self._drawn = 0.0  # when

    @contextmanager
    def over(self, expected: Mapping[str, float]) -> Iterator[None]:
        """The work inside, {part: seconds expected} in its order."""
        total = 0.0
        for part, seconds in expected.items():
            self._starts[part] = total
            total += seconds
        with tqdm(
            total=total,
            bar_format=BEGUN,
            smoothing=0,  # the pace since the start
            leave=not sys.stderr.isatty(),  # in a log what follows begins on a line of its own
            disable=not expected,
        ) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None
                self._starts = {}

    def begin(self, part: str, image: float) -> None:
        """A part begins, an image of which is expected to take so many seconds."""
        self._image = image
        if self._bar is None:
            return
        self._bar.set_description_str(part[:LONGEST], refresh=False)
        self._move(self._starts.get(part, 0.0) - self._bar.n)
        self._bar.refresh()

    def images(self, count: int) -> None:
        """So many images more have been taken up."""
        self._move(count * self._image)
        self.refresh()

    def refresh(self) -> None:
        """Draws the line anew, not too often: time has passed, if nothing else."""
        now = time.monotonic()
        if self._bar is not None and now - self._drawn >= REDRAW:
            self._bar.refresh()
            self._drawn = now

    def _move(self, seconds: float) -> None:
        """Goes on, never back and never to the end, which only the end of the work says."""
        bar = self._bar
        if bar is None or bar.disable:
            return
        bar.n += min(max(seconds, 0.0), 0.99 * bar.total - bar.n)
        if bar.n >= TELLING * bar.total:
            bar.bar_format = LINE

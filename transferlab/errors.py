"""The errors that speak to the user, and how names stand in them."""

from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    The command line prints it and ends with exit code 2; a notebook shows it without a traceback,
    under the kind's `remedy`.
    """

    remedy = ""  # in a notebook: what to do, in the reader's language

    def _render_traceback_(self) -> list[str]:  # what IPython shows in place of a traceback
        return [line for line in (self.remedy, f"error: {self}") if line]


class DataError(UserError):
    """Images that are missing, or not as they need to be."""


class WeightsError(UserError):
    """Weights that are missing, or do not fit."""


def printable(text: str) -> str:
    """A text in one line, harmless to a terminal: control characters, escapes, line ends and halves
    of broken characters are spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_lines(lines: Sequence[str], most: int, more: str) -> list[str]:
    """The first `most` of some lines and, where there are others, `more` with their number in place
    of {}."""
    rest = len(lines) - most
    return [*lines[:most], *([more.format(rest)] if rest > 0 else [])]


def some(names: Iterable[object]) -> str:
    """Names for a message, at most five."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")

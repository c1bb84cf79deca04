"""Whether accuracy falls when related images are never in training and test at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from ..metrics import Interval, percentile_interval
from .crossval import REPEATS, choose_folds, draw_folds, out_of_fold

RESAMPLES = 2000  # of the bootstrap over groups
GROUP_WORDS = {"page": "page", "near_duplicate": "set of copies"}
# PAGE_X_Y_W_H, or "page" and a number: the first group is the page's name.
CUT_FROM_PAGE = re.compile(r"(.+?)_\d+_\d+_\d+_\d+")
PAGE_NUMBER = re.compile(r"(.*?page[-_ ]?\d+)(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class LeakTest:
    """The same images classified under random folds and under folds that keep groups together."""

    grouping: str  # "page" or "near_duplicate"
    images: int  # how many of each
    groups: int
    folds: int
    random: tuple[float, ...]  # accuracies under random folds, one a repeat
    grouped: tuple[float, ...]  # accuracies under folds that keep groups together
    drop: float  # their mean difference, 0 to 1
    low: float  # its 95 % interval
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval tells the drop from none."""
        return self.low > 0


def page_of(path: str) -> str | None:
    """The page that an image was cut from, where its file name says so, else None.

    A name says so as PAGE_X_Y_W_H, or with "page" and a number.
    """
    stem = PurePosixPath(path).stem
    named = CUT_FROM_PAGE.fullmatch(stem) or PAGE_NUMBER.match(stem)
    return named[1] if named else None


def correct_by_repeat(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, folds: int, repeats: int
) -> np.ndarray:
    """Which images were classified correctly out of fold -> bool [repeats, N]."""
    correct = []
    for seed in range(repeats):
        parts = draw_folds(labels, groups, folds, seed)
        probabilities = out_of_fold(features, labels, parts)
        correct.append(probabilities.argmax(axis=1) == labels)
    return np.array(correct)


def bootstrap_groups(values: np.ndarray, groups: np.ndarray) -> Interval:
    """The 95 % interval of the mean of `values` [N] by a bootstrap over groups."""
    sizes = np.bincount(groups)
    sums = np.bincount(groups, weights=values)
    count = len(sizes)
    even = np.full(count, 1 / count)
    drawn = np.random.default_rng(0).multinomial(count, even, size=RESAMPLES)
    return percentile_interval((drawn @ sums) / (drawn @ sizes))


def measure_leak(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    grouping: str,
    repeats: int = REPEATS,
) -> LeakTest | None:
    """Classifies the same images under random and under grouped folds, as many.

    None where a class has one group, or every image is a group of its own, which any folds keep
    together. The interval is a bootstrap over groups of the difference
    image by image, averaged over repeats, so it says how much depends on which groups happen to be
    in the folder.
    """
    names, groups = np.unique(groups, return_inverse=True)
    classes, labels = np.unique(labels, return_inverse=True)
    folds = choose_folds(labels, groups)
    if not folds or len(classes) < 2 or len(names) == len(groups):
        return None
    random = correct_by_repeat(features, labels, None, folds, repeats)
    grouped = correct_by_repeat(features, labels, groups, folds, repeats)
    difference = random.astype(float) - grouped
    by_image = difference.mean(axis=0)
    interval = bootstrap_groups(by_image, groups)
    return LeakTest(
        grouping=grouping,
        images=len(labels),
        groups=len(names),
        folds=folds,
        random=tuple(random.mean(axis=1).tolist()),
        grouped=tuple(grouped.mean(axis=1).tolist()),
        drop=float(by_image.mean()),
        low=interval.low,
        high=interval.high,
    )


def measure_page_leak(
    features: np.ndarray, labels: np.ndarray, paths: Sequence[str]
) -> LeakTest | None:
    """`measure_leak` on the images that have a page name.

    Classes on fewer than two pages are left out. None where that leaves no two classes.
    """
    pages = np.array([page_of(path) or "" for path in paths])
    has_page = pages != ""
    kept = []
    for label in np.unique(labels):
        of_class = has_page & (labels == label)
        if len(np.unique(pages[of_class])) > 1:
            kept.append(label)
    if len(kept) < 2:
        return None
    chosen = has_page & np.isin(labels, kept)
    return measure_leak(features[chosen], labels[chosen], pages[chosen], "page")


def measure_leaks(
    features: np.ndarray, labels: np.ndarray, paths: Sequence[str], groups: np.ndarray
) -> list[LeakTest]:
    """Measures leaks by page, and by copies (`groups`), each where there is something to group."""
    tests = [measure_page_leak(features, labels, paths)]
    if len(np.unique(groups)) < len(groups):
        tests.append(measure_leak(features, labels, groups, "near_duplicate"))
    return [test for test in tests if test is not None]


def describe_accuracies(accuracies: Sequence[float]) -> str:
    """A mean over repeats and its standard deviation in words."""
    mean = np.mean(accuracies)
    deviation = np.std(accuracies, ddof=1)
    return f"{mean:.1%} (± {deviation:.1%})"


def describe_leak(leak: LeakTest) -> str:
    """One comparison in words: accuracies with their standard deviation over repeats, the drop with
    its 95 % interval."""
    unit = GROUP_WORDS[leak.grouping]
    random = describe_accuracies(leak.random)
    grouped = describe_accuracies(leak.grouped)
    drop = 100 * leak.drop
    low = 100 * leak.low
    high = 100 * leak.high
    folds = f"random folds {random}, folds that keep each {unit} together {grouped}"
    change = f"a drop of {drop:.1f} points [{low:.1f}, {high:.1f}]"
    counts = f"the same {leak.images} images ({leak.groups} groups, {leak.folds} folds)"
    sentence = f"{folds}: {change} on {counts}"
    if leak.shown:
        return sentence
    why = "accuracy does not fall" if leak.high < 0 else "0 lies in the interval"
    return f"{sentence}; {why}: no leak is shown"

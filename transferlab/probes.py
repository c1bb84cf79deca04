"""What a logistic regression on frozen features says about labels and leaks, always on images that it was not fitted on."""

import re
from collections import namedtuple
from pathlib import PurePosixPath

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

# The same images classified under random folds and under folds that keep groups together. grouping: "page" or
# "near_duplicate"; images, groups, folds: how many; random, grouped: accuracies [repeats]; drop: their mean difference, 0 to 1,
# with its 95 % interval (low, high).
LeakTest = namedtuple("LeakTest", "grouping images groups folds random grouped drop low high")

REPEATS = 5
# Inverse strength of the L2 penalty. Of 1, 0.1, 0.01, 0.001 this gave the manga faces the lowest out-of-fold log-loss (1.42,
# against 1.86 at scikit-learn's 1; EfficientNet-Lite0, ImageNet weights) and the highest mean accuracy.
PENALTY = 0.01


def choose_folds(labels, groups):
    """How many folds the smallest class allows: at most 5 and at most its groups; 0 where one of its groups is all it has."""
    smallest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    return min(5, smallest) if smallest > 1 else 0


def draw_folds(labels, groups, folds, seed):
    """Stratified folds -> list of (train, test) index arrays; where `groups` is not None, no group is in two of them."""
    if groups is None:
        return [*StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)]
    return [
        *StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    ]


def out_of_fold(features, labels, folds):
    """Probabilities [N, C] of images [N, D] by regressions fitted on the other folds; features standardised inside the fold.

    A class that a training fold lacks gets probability 0 there.
    """
    probabilities = np.zeros((len(labels), labels.max() + 1))
    with threadpool_limits(
        1
    ):  # matrices this small gain nothing from threads, and the sums stay in one order
        for train, test in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
            model.fit(features[train].astype(np.float64), labels[train])
            probabilities[np.ix_(test, model[-1].classes_)] = model.predict_proba(
                features[test].astype(np.float64)
            )
    return probabilities


def label_probabilities(features, labels, groups, repeats=REPEATS):
    """Out-of-fold probabilities [N, C], averaged over repeats; copies of an image (equal `groups`) are in one fold."""
    folds, kept = (
        choose_folds(labels, groups),
        groups if len(np.unique(groups)) < len(groups) else None,
    )
    return np.mean(
        [
            out_of_fold(features, labels, draw_folds(labels, kept, folds, seed))
            for seed in range(repeats)
        ],
        axis=0,
    )


def find_suspects(labels, probabilities):
    """Likely label errors -> (indices, the most suspicious first; quality [N] of every label, 0 to 1, low is suspicious).

    Confident learning (Northcutt et al. 2021, JAIR 70, p. 1373) says which labels; their rank is the probability of the
    given label.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    suspects = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return suspects, get_label_quality_scores(labels, probabilities, method="self_confidence")


def flip_labels(labels, share, seed):
    """Changes `share` of the labels, at least one, to another class -> (labels, indices of the changed ones)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), max(1, round(share * len(labels))), replace=False)
    flipped = labels.copy()
    flipped[chosen] = (flipped[chosen] + rng.integers(1, labels.max() + 1, len(chosen))) % (
        labels.max() + 1
    )
    return flipped, chosen


def check_suspects(features, labels, groups, *, share=0.05, repeats=3):
    """How well `find_suspects` finds errors in this very folder: flips `share` of the labels on purpose, `repeats` times
    -> dict: flipped (labels a time), recall (of them, the share among the suspects), recall_top (the share among as many of
    the first in the list as were flipped), flagged (suspects a time).
    """
    rows = []
    for seed in range(repeats):
        wrong, chosen = flip_labels(labels, share, seed)
        if choose_folds(wrong, groups):
            suspects, quality = find_suspects(
                wrong, label_probabilities(features, wrong, groups, repeats=1)
            )
            first = np.argsort(quality, kind="stable")[: len(chosen)]
            rows.append(
                (
                    len(chosen),
                    np.isin(chosen, suspects).mean(),
                    np.isin(chosen, first).mean(),
                    len(suspects),
                )
            )
    return (
        dict(zip(("flipped", "recall", "recall_top", "flagged"), np.mean(rows, axis=0).tolist()))
        if rows
        else {}
    )


def page_of(path):
    """The page that an image was cut from, where its file name says so, as PAGE_X_Y_W_H or with "page" and a number; else None."""
    stem = PurePosixPath(path).stem
    named = re.fullmatch(r"(.+?)_\d+_\d+_\d+_\d+", stem) or re.match(
        r"(.*?page[-_ ]?\d+)(?!\d)", stem, re.IGNORECASE
    )
    return named[1] if named else None


def measure_leak(features, labels, groups, grouping, repeats=REPEATS):
    """Classifies the same images under random and under grouped folds, as many -> LeakTest; None where a class has one group.

    The interval is a bootstrap over groups of the difference image by image, averaged over repeats, so it says how much
    depends on which groups happen to be in the folder.
    """
    names, groups = np.unique(groups, return_inverse=True)
    labels = np.unique(labels, return_inverse=True)[1]
    if not (folds := choose_folds(labels, groups)) or labels.max() < 1:
        return None
    correct = np.array(
        [
            [
                out_of_fold(features, labels, draw_folds(labels, kept, folds, seed)).argmax(1)
                == labels
                for seed in range(repeats)
            ]
            for kept in (None, groups)
        ]
    )  # [2, repeats, N]
    random, grouped = correct.mean(axis=2)
    difference = (correct[0].astype(float) - correct[1]).mean(axis=0)
    drawn = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=2000
    )
    resampled = drawn @ np.bincount(groups, weights=difference) / (drawn @ np.bincount(groups))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return LeakTest(
        grouping, len(labels), len(names), folds, random, grouped, difference.mean(), low, high
    )


def measure_page_leak(features, labels, paths):
    """`measure_leak` on the images that have a page name; classes on fewer than two pages are left out. None where that
    leaves no two classes."""
    pages = np.array([page_of(path) or "" for path in paths])
    kept = [
        label
        for label in np.unique(labels)
        if len(np.unique(pages[(labels == label) & (pages != "")])) > 1
    ]
    chosen = np.isin(labels, kept) & (pages != "")
    return (
        measure_leak(features[chosen], labels[chosen], pages[chosen], "page")
        if len(kept) > 1
        else None
    )


def measure_leaks(features, labels, paths, groups):
    """The leak report -> list of LeakTest: by page, and by copies (`groups`), each where there is something to group."""
    tests = [measure_page_leak(features, labels, paths)]
    if len(np.unique(groups)) < len(groups):
        tests.append(measure_leak(features, labels, groups, "near_duplicate"))
    return [test for test in tests if test]

"""Labels that are likely wrong, and how well they are found where they are changed on purpose."""

from dataclasses import dataclass

import numpy as np

from .crossval import choose_folds, label_probabilities


@dataclass(frozen=True, kw_only=True)
class PlantedCheck:
    """How well label suspects were found among labels changed on purpose, a mean over tries."""

    flipped: float  # labels changed, each try
    recall: float  # of them, the share among the suspects
    recall_top: float  # the share among as many of the first in the list as were changed
    flagged: float  # suspects, each try


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelCheck:
    """What a regression on frozen features says of N labels."""

    probabilities: np.ndarray  # [N, C], out of fold
    accuracy: float  # of these
    suspects: np.ndarray  # indices of likely label errors, the most suspicious first
    quality: np.ndarray  # [N], 0 to 1, low is suspicious
    planted: PlantedCheck | None  # None: with changed labels no class could be split into folds


def find_suspects(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Likely label errors -> indices, the most suspicious first.

    Confident learning (Northcutt et al. 2021, JAIR 70, p. 1373) says which labels; their rank is
    the probability of the given label. A label that is the likeliest one is never among them.
    """
    from cleanlab.filter import find_label_issues

    suspects = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    looks_like = probabilities[suspects].argmax(axis=1)
    return suspects[looks_like != labels[suspects]]


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The out-of-fold probability of every given label -> [N], low is suspicious."""
    from cleanlab.rank import get_label_quality_scores

    return get_label_quality_scores(labels, probabilities, method="self_confidence")


def flip_labels(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes `share` of the labels, at least one, to another class.

    -> (labels, indices of the changed ones)
    """
    rng = np.random.default_rng(seed)
    classes = labels.max() + 1
    count = max(1, round(share * len(labels)))
    chosen = rng.choice(len(labels), count, replace=False)
    steps = rng.integers(1, classes, count)
    flipped = labels.copy()
    flipped[chosen] = (labels[chosen] + steps) % classes
    return flipped, chosen


def check_suspects(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    share: float = 0.05,
    repeats: int = 3,
) -> PlantedCheck | None:
    """How well `find_suspects` finds errors in this very folder.

    Flips `share` of the labels on purpose, `repeats` times. None where no time enough labels of
    each class are left to cross-validate.
    """
    rows = []
    for seed in range(repeats):
        wrong, chosen = flip_labels(labels, share, seed)
        if not choose_folds(wrong, groups):
            continue
        count = len(chosen)
        probabilities = label_probabilities(features, wrong, groups, repeats=1)
        suspects = find_suspects(wrong, probabilities)
        ranking = np.argsort(label_quality(wrong, probabilities), kind="stable")
        recall = np.isin(chosen, suspects).mean()
        recall_top = np.isin(chosen, ranking[:count]).mean()
        rows.append((count, recall, recall_top, len(suspects)))
    if not rows:
        return None
    flipped, recall, recall_top, flagged = np.mean(rows, axis=0).tolist()
    return PlantedCheck(flipped=flipped, recall=recall, recall_top=recall_top, flagged=flagged)


def check_labels(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> LabelCheck | None:
    """Looks for likely label errors; None where a class has too few images that are no copies."""
    if not choose_folds(labels, groups):
        return None
    probabilities = label_probabilities(features, labels, groups)
    correct = probabilities.argmax(axis=1) == labels
    return LabelCheck(
        probabilities=probabilities,
        accuracy=float(correct.mean()),
        suspects=find_suspects(labels, probabilities),
        quality=label_quality(labels, probabilities),
        planted=check_suspects(features, labels, groups),
    )

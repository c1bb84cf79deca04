"""Scores of models on held-out folds, and paired tests of every two of them on the same images.

Two tests stand in the table of pairs. The one over images decides; its interval is that of a pair
alone, its p is counted among all pairs. The corrected t-test over folds is kept beside it: it holds
its level too, but sees less. Simulated (tests/test_simulated_verdicts.py), the test over images
calls two equal models different in 2 to 5 % of folders of 400 images or more, and in up to 8 % of
folders of 60: the fewer images, the more a verdict near 5 % wants to be looked at again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from .data import Folds
from .heldout import Predictions
from .metrics import (
    ENOUGH_REPEATS,
    Interval,
    PairedTest,
    accuracy_interval,
    bootstrap_interval,
    calibration_error,
    corrected_resampled_t,
    images_needed,
    macro_f1_interval,
    paired_over_images,
    smallest_visible,
    verdicts,
)

POINTS = (1, 2, 3, 5)  # differences, in points of accuracy, that images are counted for
ALIKE = "indistinguishable"
IDENTICAL = "identical predictions"
TOO_FEW_REPEATS = "training noise not included"


# ---- scores ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over images and repeats with its 95 % interval: Wilson's of an accuracy, of all else
    a bootstrap one over images."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a model or a baseline does."""

    model: str
    baseline: bool
    weights: str  # where they come from, as tables say it
    n: int  # images
    folds: int
    accuracy_score: Score
    log_loss: Score
    brier: Score
    macro_f1: Score
    ece: float  # expected calibration error
    seconds: float | None = None  # that computing its predictions took
    selection_optimism: float | None = None  # of heads: mean over folds
    epochs_to_best: float | None = None

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return self.accuracy_score.value

    @property
    def accuracy_interval(self) -> Interval:
        """95 % (Wilson)."""
        return self.accuracy_score.interval

    def row(self) -> dict[str, Any]:
        """The scores as a row of a table, which is the same whenever it is computed again."""
        row = {
            "model": self.model,
            "baseline": self.baseline,
            "weights": self.weights,
            "n": self.n,
            "folds": self.folds,
        }
        scores = {
            "accuracy": self.accuracy_score,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "macro_f1": self.macro_f1,
        }
        for name, score in scores.items():
            row[name] = score.value
            row[f"{name}_low"] = score.interval.low
            row[f"{name}_high"] = score.interval.high
        row["ece"] = self.ece
        if self.selection_optimism is not None:
            row["selection_optimism"] = self.selection_optimism
            row["epochs_to_best"] = self.epochs_to_best
        return row


def score_accuracy(correct: np.ndarray) -> Score:
    """The accuracy of predictions, bool [R, N]: what a model trained on as many images as a fold
    leaves is expected to reach. The repeats are no more images, so N counts."""
    repeats, n = correct.shape
    of_one_repeat = float(correct.sum()) / repeats
    return Score(value=of_one_repeat / n, interval=accuracy_interval(of_one_repeat, n))


def score_over_images(values: np.ndarray) -> Score:
    """The mean of one value an image [N]."""
    return Score(value=float(values.mean()), interval=bootstrap_interval(values))


def score_macro_f1(labels: np.ndarray, predicted: np.ndarray) -> Score:
    """Macro-F1 of predictions [R, N], mean over repeats."""
    scores = [f1_score(labels, guess, average="macro") for guess in predicted]
    return Score(value=float(np.mean(scores)), interval=macro_f1_interval(labels, predicted))


def score_model(
    model: str,
    predictions: Predictions,
    labels: np.ndarray,
    *,
    baseline: bool,
    weights: str,
    folds: int,
) -> Scores:
    """Scores of predictions against labels int [N], means over repeats."""
    probabilities = predictions.probabilities
    classes = probabilities.shape[2]
    predicted = probabilities.argmax(2)
    true = np.eye(classes)[labels]
    exact = probabilities.astype(np.float64)
    of_true = np.take_along_axis(exact, labels[None, :, None], 2)[..., 0]
    losses = -np.log(np.clip(of_true, 1e-15, 1))
    squares = ((probabilities - true) ** 2).sum(2)
    errors = [calibration_error(one, labels) for one in probabilities]
    scores = Scores(
        model=model,
        baseline=baseline,
        weights=weights,
        n=len(labels),
        folds=folds,
        accuracy_score=score_accuracy(predicted == labels),
        log_loss=score_over_images(losses.mean(0)),
        brier=score_over_images(squares.mean(0)),
        macro_f1=score_macro_f1(labels, predicted),
        ece=float(np.mean(errors)),
        seconds=predictions.seconds,
    )
    if predictions.optimism is None or predictions.epochs is None:
        return scores
    return replace(
        scores,
        selection_optimism=float(predictions.optimism.mean()),
        epochs_to_best=float(predictions.epochs.mean()),
    )


def ranked(scores: Sequence[Scores]) -> list[Scores]:
    """By accuracy, the highest first; of equal ones the lowest log-loss first, then as given."""
    # Rounded, since means of the same counts in another order differ in their last bits.
    return sorted(scores, key=lambda one: (-round(one.accuracy, 9), round(one.log_loss.value, 9)))


def first_ranked(scores: Sequence[Scores]) -> Scores:
    """The model, no baseline, that ranks first."""
    return ranked([one for one in scores if not one.baseline])[0]


# ---- paired tests ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PairTest:
    """One model less another on the same folds."""

    model_a: str
    model_b: str
    test: PairedTest  # over images
    resampled: PairedTest  # over folds (corrected resampled t)
    p_holm: float | None = None  # of `test`; None with too few repeats
    detectable: float | None = None  # the smallest difference that would have been seen
    # To see a difference of each of POINTS.
    images_needed: tuple[int | None, ...] = (None,) * len(POINTS)
    verdict: str = TOO_FEW_REPEATS  # or "... better", ALIKE, IDENTICAL

    @property
    def told_apart(self) -> bool:
        """Whether the test tells one from the other."""
        return self.verdict not in (ALIKE, IDENTICAL, TOO_FEW_REPEATS)

    def row(self) -> dict[str, Any]:
        """The tests as a row of a table."""
        row: dict[str, Any] = {"model_a": self.model_a, "model_b": self.model_b}
        row |= asdict(self.test)
        row["p_holm"] = self.p_holm
        row["detectable"] = self.detectable
        for points, images in zip(POINTS, self.images_needed, strict=True):
            row[f"images_for_{points}_points"] = images
        row["verdict"] = self.verdict
        row["t_error"] = self.resampled.error
        row["t_low"] = self.resampled.low
        row["t_high"] = self.resampled.high
        row["t_p"] = self.resampled.p
        return row


PAIR_COLUMNS = [  # of the table, which has no row where one model is asked for
    "model_a",
    "model_b",
    "difference",
    "error",
    "low",
    "high",
    "p",
    "p_holm",
    "detectable",
    *(f"images_for_{points}_points" for points in POINTS),
    "verdict",
    "t_error",
    "t_low",
    "t_high",
    "t_p",
]


def fold_accuracies(correct: np.ndarray, folds: Folds) -> np.ndarray:
    """The accuracy on each test fold [F] of predictions that are right or not, bool [R, N]."""
    return np.array([correct[fold.repeat, fold.test.numpy()].mean() for fold in folds])


def compare_pairs(
    found: Mapping[str, Predictions], labels: np.ndarray, folds: Folds
) -> list[PairTest]:
    """Every pair of models, in their order: both tests, and with repeats enough Holm over all pairs
    and the verdict in words. A model that was not asked in every repeat, as zero-shot, is in none.
    """
    correct = {
        name: one.probabilities.argmax(2) == labels
        for name, one in found.items()
        if len(one.probabilities) == folds.repeats
    }
    compared = []
    for a, b in combinations(correct, 2):
        accuracies_a = fold_accuracies(correct[a], folds)
        accuracies_b = fold_accuracies(correct[b], folds)
        pair = PairTest(
            model_a=a,
            model_b=b,
            test=paired_over_images(correct[a].astype(int) - correct[b]),
            resampled=corrected_resampled_t(accuracies_a - accuracies_b, 1 / (folds.k - 1)),
        )
        compared.append(pair)
    if folds.repeats < ENOUGH_REPEATS:
        return compared
    return decide_pairs(compared, len(labels))


def decide_pairs(pairs: Sequence[PairTest], n: int) -> list[PairTest]:
    """Pairs on the same n images with their verdicts, at 5 % for all of them together."""
    decided = []
    for pair, verdict in zip(pairs, verdicts([pair.test for pair in pairs]), strict=True):
        detectable = smallest_visible(pair.test.error, len(pairs)) or None  # none without spread
        needed = [
            images_needed(n, detectable, points / 100) if detectable else None for points in POINTS
        ]
        decided_pair = replace(
            pair,
            p_holm=verdict.p_holm,
            detectable=detectable,
            images_needed=tuple(needed),
            verdict=verdict_of(pair, verdict.word),
        )
        decided.append(decided_pair)
    return decided


def verdict_of(pair: PairTest, word: str) -> str:
    """A pair's verdict in words; `word` says it of the first of the two."""
    if pair.test.error == 0 and pair.test.difference == 0:
        return IDENTICAL
    if word == ALIKE:
        return ALIKE
    return f"{pair.model_a if word == 'better' else pair.model_b} better"


def tied_for_best(scores: Sequence[Scores], pairs: Sequence[PairTest]) -> tuple[str, ...]:
    """The model that ranks first and every one that the test does not tell from it, by accuracy;
    nobody with too few repeats, or where it is the only one."""
    if not pairs or any(pair.p_holm is None for pair in pairs):
        return ()
    best = first_ranked(scores).model
    below = set()
    for pair in pairs:
        if pair.told_apart and best in (pair.model_a, pair.model_b):
            below |= {pair.model_a, pair.model_b} - {best}
    models = [one.model for one in ranked(scores) if not one.baseline]
    return tuple(name for name in models if name not in below)


def verdict_text(pair: PairTest, tests: int) -> str:
    """A pair's verdict as a line for the terminal, the more accurate model first; `tests`: the
    pairs that were tested at once."""
    test = pair.test
    first = pair.model_a
    second = pair.model_b
    low = test.low
    high = test.high
    if test.difference < 0:
        first, second = second, first
        low, high = -high, -low
    if pair.verdict == IDENTICAL:
        return f"{first} and {second} are right on the same images: nothing to tell"
    interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    points = f"{100 * abs(test.difference):+.1f} points {interval}"
    if pair.p_holm is None:
        reason = f"fewer than {ENOUGH_REPEATS} repeats: {TOO_FEW_REPEATS}"
        return f"{first} less {second}: {points}, no verdict ({reason})"
    told = f"{first} better than {second}" if pair.told_apart else f"{first} and {second} {ALIKE}"
    p = "p < 0.001" if pair.p_holm < 0.001 else f"p = {pair.p_holm:.3f}"
    family = f" (Holm over {tests})" if tests > 1 else ""
    line = f"{told}: {points}, {p}{family}"
    if pair.detectable is None:
        return line
    return f"{line}; a difference of {100 * pair.detectable:.1f} points would have been seen"

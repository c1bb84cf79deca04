"""Scores with their uncertainty: intervals, and paired tests of two classifiers on the same images
or the same folds."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A paired test of two classifiers: the first one's score less the second one's."""

    difference: float  # mean over folds
    error: float  # its standard error
    low: float  # of its 95 % interval
    high: float
    p: float  # two-sided, of this test alone


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is left of a paired test among several at 5 %."""

    p_holm: float
    word: str  # on the first of the two: "better", "worse" or "indistinguishable"


def accuracy_interval(correct: int, n: int) -> Interval:
    """95 % Wilson interval, 0 to 1, of `correct` out of `n` (Wilson 1927, JASA 22, p. 209)."""
    test = stats.binomtest(correct, n)
    wilson = test.proportion_ci(confidence_level=0.95, method="wilson")
    return Interval(low=float(wilson.low), high=float(wilson.high))


def mcnemar_p(correct_a: torch.Tensor, correct_b: torch.Tensor) -> float:
    """Exact two-sided McNemar test of two classifiers on the same images (McNemar 1947,
    Psychometrika 12, p. 153).

    `correct_a`, `correct_b`: bool tensors [N]. Returns p; 1.0 where they are right on the same
    images.
    """
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(only_a, discordant).pvalue)


@functools.lru_cache(maxsize=2)
def resamples(n: int, count: int = 10_000) -> np.ndarray:
    """Bootstrap samples of n images, as the share [count, n] (fp32) that each image has in a
    sample. Always the same ones."""
    random = np.random.default_rng(0)
    counts = random.multinomial(n, np.full(n, 1 / n), size=count)
    shares = counts / n
    return shares.astype(np.float32)


def percentile_interval(samples: np.ndarray) -> Interval:
    """95 % percentile interval of bootstrap samples [count] (Efron 1979, Annals of Statistics 7,
    p. 1)."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def bootstrap_interval(values: ArrayLike, count: int = 10_000) -> Interval:
    """95 % percentile interval of the mean of `values` [N], one an image."""
    by_image = np.asarray(values, np.float32)
    shares = resamples(len(by_image), count)
    return percentile_interval(shares @ by_image)


def macro_f1_interval(labels: np.ndarray, predicted: np.ndarray, count: int = 2_000) -> Interval:
    """95 % bootstrap interval, over images, of the macro-F1 averaged over repeats.

    `labels` int [N], `predicted` int [R, N]. A class that a sample lacks and nobody predicts counts
    0, as in scikit-learn.
    """
    shares = resamples(len(labels), count)
    classes = np.arange(labels.max() + 1)[:, None]
    true = labels == classes
    true_share = share_of_classes(shares, true)
    scores = np.zeros(count)
    for guess in predicted:
        guessed = guess == classes
        hits = share_of_classes(shares, true & guessed)
        total = share_of_classes(shares, guessed) + true_share
        f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
        scores += f1.mean(1)
    return percentile_interval(scores / len(predicted))


def share_of_classes(shares: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The share [count, C] (fp32) of every sample that each class's `images` (bool [C, N]) take."""
    return shares @ images.T.astype(np.float32)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, in `bins` of equal mass
    (Nguyen & O'Connor 2015, EMNLP, section 3).

    `probabilities` [N, C], `labels` int [N]; 0 to 1.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, len(labels))):
        gap = abs(confidence[part].mean() - correct[part].mean())
        total += gap * len(part)
    return float(total / len(labels))


def corrected_resampled_t(differences: ArrayLike, test_share: float) -> PairedTest:
    """Paired t-test over repeated folds whose training sets overlap (Nadeau & Bengio 2003, Machine
    Learning 52, p. 239).

    `differences` [F]: one score less the other, a fold; `test_share`: images in a test fold ÷
    images it was trained on.
    """
    values = np.asarray(differences, float)
    folds = len(values)
    freedom = folds - 1
    mean = float(np.mean(values))
    variance = np.var(values, ddof=1)
    error = float(np.sqrt((1 / folds + test_share) * variance))
    reach = float(error * stats.t.ppf(0.975, freedom))
    p = float(mean == 0)  # where all folds say the same
    if error:
        t = abs(mean) / error
        p = float(2 * stats.t.sf(t, freedom))
    return PairedTest(
        difference=mean,
        error=error,
        low=mean - reach,
        high=mean + reach,
        p=p,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values [M] adjusted for M tests at once (Holm 1979, Scandinavian Journal of Statistics 6,
    p. 65), in their order."""
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        still_open = len(p_values) - rank
        p = min(1.0, still_open * p_values[place])
        highest = max(highest, p)
        adjusted[place] = highest
    return adjusted.tolist()


def verdicts(tests: Sequence[PairedTest]) -> list[Verdict]:
    """What is left of M paired tests at 5 % after Holm, in their order."""
    adjusted = holm([test.p for test in tests])
    found = []
    for test, p in zip(tests, adjusted):
        word = "indistinguishable"
        if p < 0.05:
            word = "better" if test.difference > 0 else "worse"
        found.append(Verdict(p_holm=p, word=word))
    return found


def detectable_difference(error: float, folds: int) -> float:
    """The smallest true difference that a two-sided test at 5 % finds with a chance of 80 %, given
    its standard error."""
    to_reject = stats.t.ppf(0.975, folds - 1)
    to_be_there = stats.t.ppf(0.8, folds - 1)
    return error * float(to_reject + to_be_there)


def images_needed(n: int, detectable: float, difference: float) -> int:
    """How many images would make `difference` the smallest that is seen, where n images make it
    `detectable`: the standard error falls with the square root of their number.
    """
    ratio = detectable / difference
    return math.ceil(n * ratio**2)


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Debiased linear CKA of two sets of features [N, D], [N, E] of the same images, N > 3.

    1 for the same up to rotation and scale, 0 on average for unrelated ones, which the plain one is
    not where N is small (Kornblith et al. 2019, ICML, section 3; unbiased as in Song et al. 2012,
    JMLR 13, p. 1399).
    """
    gram_x = centred_gram(x)
    gram_y = centred_gram(y)
    common = (gram_x * gram_y).sum()
    scale = np.sqrt((gram_x * gram_x).sum() * (gram_y * gram_y).sum())
    return float(common / scale)


def centred_gram(features: ArrayLike) -> np.ndarray:
    """The Gram matrix [N, N] of features [N, D], centred without bias, its diagonal zero."""
    gram = np.asarray(features, np.float64) @ np.asarray(features, np.float64).T
    n = len(gram)
    np.fill_diagonal(gram, 0)
    means = gram.sum(1) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    gram -= means[:, None] + means
    np.fill_diagonal(gram, 0)
    return gram

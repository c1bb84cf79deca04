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

ENOUGH_REPEATS = 3  # of the folds, for what training adds to chance to be seen


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A paired test of two classifiers: the first one's score less the second one's."""

    difference: float  # mean
    error: float  # its standard error
    low: float  # of its 95 % interval
    high: float
    p: float  # two-sided, of this test alone


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is left of a paired test among several at 5 %."""

    p_holm: float
    word: str  # on the first of the two: "better", "worse" or "indistinguishable"


def accuracy_interval(correct: float, n: int) -> Interval:
    """95 % Wilson interval, 0 to 1, of `correct` out of `n`, which is no whole number where it is
    a mean over repeats (Wilson 1927, JASA 22, p. 209)."""
    z = 1.959963984540054  # of the normal distribution: 95 % lie within
    wrong = n - correct
    reach = z * math.sqrt(correct * wrong / n + z**2 / 4)
    low = (correct + z**2 / 2 - reach) / (n + z**2)
    high = 1 - (wrong + z**2 / 2 - reach) / (n + z**2)
    return Interval(low=low, high=high)


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
    images it was trained on. Folds that all differ alike do not show how much they could differ:
    no error, and p = 1.
    """
    values = np.asarray(differences, float)
    mean = float(values.mean())
    if np.ptp(values) < 1e-12:  # alike but for rounding
        return PairedTest(difference=mean, error=0.0, low=mean, high=mean, p=1.0)
    folds = len(values)
    freedom = folds - 1
    error = float(np.sqrt((1 / folds + test_share) * values.var(ddof=1)))
    reach = error * float(stats.t.ppf(0.975, freedom))
    return PairedTest(
        difference=mean,
        error=error,
        low=mean - reach,
        high=mean + reach,
        p=float(2 * stats.t.sf(abs(mean) / error, freedom)),
    )


def paired_over_images(differences: ArrayLike) -> PairedTest:
    """Paired test over images, with quantiles of the normal distribution; with three repeats of the
    folds or more it includes what training adds to chance.

    `differences` [R, N]: 1 where one classifier alone is right in repeat r on image i, -1 where the
    other alone is, else 0. (Normal in the limit: Bayle et al. 2020, NeurIPS 33; images alone are
    too little, as folds share their training images: Bates, Hastie & Tibshirani 2024, JASA 119,
    p. 1434.) Where all images say the same there is no error to go by, and p is the sign test's.
    """
    values = np.asarray(differences, float)
    n = values.shape[1]
    mean = float(values.mean())
    error = error_over_images(values) if n > 1 else 0.0
    if error == 0:
        p = 2.0 ** (1 - n) if mean else 1.0
        return PairedTest(difference=mean, error=0.0, low=mean, high=mean, p=p)
    reach = error * float(stats.norm.ppf(0.975))
    return PairedTest(
        difference=mean,
        error=error,
        low=mean - reach,
        high=mean + reach,
        p=float(2 * stats.norm.sf(abs(mean) / error)),
    )


def error_over_images(differences: np.ndarray) -> float:
    """The standard error of the mean of differences [R, N], N > 1: that of one repeat or, if it is
    larger and there are repeats enough, that of their mean."""
    n = differences.shape[1]
    of_one = float(differences.std(axis=1, ddof=1).mean() / np.sqrt(n))
    if len(differences) < ENOUGH_REPEATS:
        return of_one
    return max(of_one, error_of_mean(differences))


def error_of_mean(differences: np.ndarray) -> float:
    """The standard error of the mean of differences [R, N] over images and repeats.

    What repeats differ by beyond chance is not divided by R: they share the images, and it stands
    for the training sets that were not drawn.
    """
    repeats, n = differences.shape
    by_image = differences.mean(axis=0)
    by_repeat = differences.mean(axis=1)
    residuals = differences - by_image - by_repeat[:, None] + differences.mean()
    residual_square = (residuals**2).sum() / ((n - 1) * (repeats - 1))
    training = max(0.0, by_repeat.var(ddof=1) - residual_square / n)
    return float(np.sqrt(by_image.var(ddof=1) / n + training))


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


def smallest_visible(error: float, tests: int) -> float:
    """The smallest true difference of the given standard error that one of `tests` two-sided tests,
    at 5 % for all of them together (Bonferroni), finds with a chance of 80 %."""
    to_reject = float(stats.norm.ppf(1 - 0.05 / (2 * tests)))
    to_be_there = 0.84  # above it lie 20 %
    return (to_reject + to_be_there) * error


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

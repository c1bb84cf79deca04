"""Scores with their uncertainty: an interval for one accuracy, a paired test for two on the same images."""

from scipy.stats import binomtest


def accuracy_interval(correct, n):
    """95 % Wilson interval (low, high), 0 to 1, of `correct` out of `n` (Wilson 1927, JASA 22, p. 209)."""
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(correct_a, correct_b):
    """Exact two-sided McNemar test of two classifiers on the same images (McNemar 1947, Psychometrika 12, p. 153).

    `correct_a`, `correct_b`: bool tensors [N]. Returns p; 1.0 where they are right on the same images.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0

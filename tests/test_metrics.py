"""Scores against numbers worked out by hand; the closed form of Wilson's interval is in
test_artifacts.py."""

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from transferlab.metrics import (
    Interval,
    PairedTest,
    Verdict,
    accuracy_interval,
    bootstrap_interval,
    calibration_error,
    corrected_resampled_t,
    detectable_difference,
    holm,
    images_needed,
    macro_f1_interval,
    mcnemar_p,
    verdicts,
)


def ends(interval: Interval) -> tuple[float, float]:
    """Both ends of an interval, as `pytest.approx` compares them."""
    return interval.low, interval.high


def made_up_test(difference: float, p: float) -> PairedTest:
    """A paired test of which only the difference and p matter."""
    return PairedTest(difference=difference, error=0.0, low=difference, high=difference, p=p)


def exact_p(b, c):
    """Two-sided exact p of b against c discordant pairs: a fair coin, twice the smaller tail."""
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)


@given(
    both=st.integers(0, 9), b=st.integers(0, 30), c=st.integers(0, 30), neither=st.integers(0, 9)
)
def test_mcnemar_counts_only_the_images_that_one_alone_gets_right(both, b, c, neither):
    first = torch.tensor(
        [True] * both + [True] * b + [False] * c + [False] * neither, dtype=torch.bool
    )
    second = torch.tensor(
        [True] * both + [False] * b + [True] * c + [False] * neither, dtype=torch.bool
    )
    assert mcnemar_p(first, second) == pytest.approx(exact_p(b, c), abs=1e-12)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_mcnemar_by_hand():
    five, one = torch.tensor([True] * 5 + [False]), torch.tensor([False] * 5 + [True])
    assert mcnemar_p(five, one) == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_from_the_tables(correct, n, low, high):
    interval = accuracy_interval(correct, n)
    assert ends(interval) == pytest.approx((low, high), abs=5e-5)
    assert all(type(end) is float for end in ends(interval))


@pytest.mark.parametrize(
    "p_values", [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.5, 0.9], [0.0, 1.0, 0.02, 0.02, 0.03]]
)
def test_holm_is_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_verdicts_are_those_of_holms_adjusted_values():
    tests = [made_up_test(0.1, p=0.03), made_up_test(-0.1, p=0.01), made_up_test(0.2, p=0.04)]
    assert verdicts(tests) == [
        Verdict(p_holm=0.06, word="indistinguishable"),
        Verdict(p_holm=0.03, word="worse"),
        Verdict(p_holm=0.06, word="indistinguishable"),
    ]
    assert verdicts(tests[:1]) == [Verdict(p_holm=0.03, word="better")]
    assert verdicts([]) == []


def test_the_corrected_test_is_students_where_training_sets_do_not_overlap():
    differences = np.random.default_rng(0).normal(0.02, 0.05, 25)
    found = corrected_resampled_t(differences, 0)
    expected = stats.ttest_1samp(differences, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    # 5 folds: Nadeau & Bengio's factor (1/25 + 1/4) instead of 1/25
    corrected = corrected_resampled_t(differences, 1 / 4)
    assert corrected.error == pytest.approx(found.error * np.sqrt((1 / 25 + 1 / 4) * 25))
    assert corrected.p > found.p
    assert corrected_resampled_t([0.0, 0.0], 1).p == 1


def test_equal_classifiers_are_rarely_called_different():
    random, rejected = np.random.default_rng(0), 0
    # 5 x 5 folds of 100 images; an image that one classifier gets right stays so over repeats
    for _ in range(300):
        gains = random.integers(-1, 2, 100)
        folds = [
            gains[part].mean()
            for _ in range(5)
            for part in np.array_split(random.permutation(100), 5)
        ]
        rejected += corrected_resampled_t(folds, 1 / 4).p < 0.05
    assert rejected / 300 <= 0.08


def test_the_detectable_difference_is_found_four_times_in_five():
    error, folds = 0.02, 25
    power = TTestPower().power(
        detectable_difference(error, folds) / (error * np.sqrt(folds)), folds, 0.05
    )
    assert power == pytest.approx(0.8, abs=0.01)
    assert images_needed(400, 0.04, 0.02) == 1600


def test_bootstrap_intervals_cover():
    random, covered = np.random.default_rng(0), 0
    for _ in range(300):
        interval = bootstrap_interval(random.random(120) < 0.7, count=1000)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_the_interval_of_macro_f1_lies_around_scikit_learns():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    predicted = np.stack(
        [np.where(random.random(200) < 0.6, labels, random.integers(0, 4, 200)) for _ in range(3)]
    )
    low, high = ends(macro_f1_interval(labels, predicted))
    mean = np.mean([f1_score(labels, one, average="macro") for one in predicted])
    assert low < mean < high and 0.03 < high - low < 0.2
    once = macro_f1_interval(labels, predicted[:1], count=50)
    counts = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=50)
    samples = [np.repeat(np.arange(200), count) for count in counts]
    expected = [
        f1_score(labels[one], predicted[0][one], average="macro", labels=range(4), zero_division=0)
        for one in samples
    ]
    assert ends(once) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=1e-5)


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])  # by confidence: 0.6 right, 0.7 right | 0.8 wrong, 0.9 right
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(
        (abs(0.65 - 1) + abs(0.85 - 0.5)) / 2
    )

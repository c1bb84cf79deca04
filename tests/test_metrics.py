"""Scores and tests against numbers worked out by hand, and against statsmodels and scipy."""

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.api import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from transferlab.metrics import (
    Interval,
    PairedTest,
    Verdict,
    accuracy_interval,
    bootstrap_interval,
    calibration_error,
    corrected_resampled_t,
    holm,
    images_needed,
    macro_f1_interval,
    mcnemar_p,
    paired_over_images,
    smallest_visible,
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


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_of_whole_counts_is_scipys(case):
    correct, n = case
    wilson = stats.binomtest(correct, n).proportion_ci(method="wilson")
    interval = accuracy_interval(correct, n)
    assert ends(interval) == pytest.approx((wilson.low, wilson.high), abs=1e-12, rel=0)
    assert (interval.low == 0) == (correct == 0) and (interval.high == 1) == (correct == n)


@given(st.integers(1, 500), st.integers(1, 5), st.data())
def test_wilson_of_a_mean_over_repeats_lies_between_its_neighbours(n, repeats, data):
    correct = data.draw(st.integers(0, repeats * n)) / repeats
    low, high = ends(accuracy_interval(correct, n))
    below = accuracy_interval(int(correct), n)
    above = accuracy_interval(min(n, int(correct) + 1), n)
    assert 0 <= below.low <= low <= correct / n <= high <= above.high <= 1
    # Its ends are the rates that are 1.96 standard errors away.
    for end in (low, high):
        error = (end * (1 - end) / n) ** 0.5
        assert abs(correct / n - end) == pytest.approx(stats.norm.ppf(0.975) * error, abs=1e-9)


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


@pytest.mark.parametrize("differences", [[0.0, 0.0], [0.1] * 25, [0.9 - 0.8, 0.7 - 0.6], [0.2]])
def test_without_spread_the_corrected_test_says_nothing(differences):
    """Folds that all differ by the same amount do not show how much folds differ."""
    found = corrected_resampled_t(differences, 1 / 4)
    assert found.p == 1
    assert (found.error, found.low, found.high) == (0, found.difference, found.difference)
    assert found.difference == pytest.approx(differences[0])


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


def error_by_anova(differences):
    """The standard error of the mean of differences [R, N], as review and textbook have it: an
    additive model of images and repeats, fitted by least squares."""
    repeats, n = differences.shape
    repeat, image = np.indices(differences.shape)
    columns = [repeat.ravel() == r for r in range(repeats)]
    columns += [image.ravel() == i for i in range(1, n)]
    fit = OLS(differences.ravel(), np.column_stack(columns).astype(float)).fit()
    assert fit.df_resid == (n - 1) * (repeats - 1)
    of_repeats = max(0, np.var([row.mean() for row in differences], ddof=1) - fit.mse_resid / n)
    of_images = np.var([column.mean() for column in differences.T], ddof=1) / n
    of_one = np.mean([np.std(row, ddof=1) for row in differences]) / n**0.5
    return max(of_one, (of_images + of_repeats) ** 0.5)


@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize("shift", [0, 0.15])
def test_the_error_over_images_is_that_of_an_analysis_of_variance(repeats, shift):
    """With repeats that differ by chance alone, and by more than that."""
    random = np.random.default_rng(repeats)
    hard = random.normal(0, 1, 40)
    rates = [stats.norm.cdf(hard + shift * 8 * r) for r in range(repeats)]
    a = random.random((repeats, 40)) < rates
    b = random.random((repeats, 40)) < stats.norm.cdf(hard)
    differences = a * 1 - b * 1
    test = paired_over_images(differences)
    error = error_by_anova(differences)
    assert test.error == pytest.approx(error, rel=1e-9)
    one_repeat = differences.std(axis=1, ddof=1).mean() / 40**0.5
    assert (test.error > 1.2 * one_repeat) == (shift > 0)  # both sides of the larger one
    assert test.difference == differences.mean()
    z = abs(differences.mean()) / error
    assert test.p == pytest.approx(2 * stats.norm.cdf(-z))
    assert (test.low, test.high) == pytest.approx(
        stats.norm.interval(0.95, loc=differences.mean(), scale=error)
    )


def test_the_error_over_images_by_hand():
    # Images' means 1/3, 1/3, -1/3, 1/3; repeats' 1/4, 1/4, 0; mean 1/6.
    differences = [[1, 1, -1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    test = paired_over_images(differences)
    of_one = (np.sqrt(11 / 12) + 1 / 2 + 0) / 3 / 2
    residual_square = (4 - 12 / 36 - 3 * (4 / 9 - 4 / 36) - 4 * (1 / 8 - 3 / 36)) / 6
    assert residual_square == pytest.approx(2.5 / 6)
    assert max(0, 1 / 48 - residual_square / 4) == 0  # repeats differ by chance alone
    of_mean = np.sqrt((1 / 9) / 4)
    assert of_one > of_mean and test.error == pytest.approx(of_one)
    assert test.difference == pytest.approx(1 / 6)


def test_what_repeats_differ_by_is_not_divided_by_their_number():
    """Every image is judged alike within a repeat; so that all there is to err by are repeats."""
    for copies in (1, 4):
        differences = np.repeat([[0] * 50, [1] * 50, [0] * 50, [1] * 50], copies, axis=0)
        variance = np.var([0, 1] * 2 * copies, ddof=1)
        assert paired_over_images(differences).error == pytest.approx(variance**0.5)


@pytest.mark.parametrize("repeats", [1, 2])
def test_with_fewer_than_three_repeats_the_error_is_that_of_images_alone(repeats):
    differences = np.random.default_rng(0).integers(-1, 2, (repeats, 60))
    test = paired_over_images(differences)
    errors = [stats.sem(row) for row in differences]
    assert test.error == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize(("value", "n", "p"), [(0, 9, 1), (0, 1, 1), (1, 1, 1), (-1, 9, 2 / 2**9)])
def test_where_all_images_say_the_same_the_sign_test_decides(repeats, value, n, p):
    test = paired_over_images(np.full((repeats, n), value))
    expected = PairedTest(difference=value, error=0, low=value, high=value, p=p)
    assert test == expected
    if value:
        assert p == stats.binomtest(n, n).pvalue


DIFFERENCES = st.tuples(st.integers(1, 5), st.integers(1, 8)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([-1, 0, 1]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@settings(max_examples=200)
@given(DIFFERENCES)
def test_whatever_the_differences_the_test_is_plain_finite_and_symmetric(differences):
    test = paired_over_images(differences)
    values = (test.difference, test.error, test.low, test.high, test.p)
    assert all(type(value) is float for value in values) and np.isfinite(values).all()
    assert 0 <= test.p <= 1 and test.error >= 0
    assert test.low <= test.difference <= test.high
    swapped = paired_over_images(-np.array(differences))
    assert swapped.difference == -test.difference
    assert (swapped.error, swapped.p) == pytest.approx((test.error, test.p))
    if test.error:  # the interval and p say the same
        assert (test.low > 0 or test.high < 0) == (test.p < 0.05)
    again = paired_over_images(np.array(differences)[::-1, ::-1])
    assert again.error == pytest.approx(test.error)


@pytest.mark.parametrize("tests", [1, 10, 21])
def test_the_smallest_visible_difference_is_found_four_times_in_five(tests):
    error = 0.02
    visible = smallest_visible(error, tests)
    power = NormalIndPower(ddof=0).power(visible / error, 1, 0.05 / tests, ratio=0)
    assert power == pytest.approx(0.8, abs=0.002)


def test_smallest_visible_and_images_needed_by_hand():
    assert smallest_visible(0.02, 1) == pytest.approx(0.02 * (1.95996 + 0.84), abs=1e-6)
    assert smallest_visible(0.02, 21) == pytest.approx(0.02 * (3.03805 + 0.84), abs=1e-6)
    assert smallest_visible(0.0, 3) == 0
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

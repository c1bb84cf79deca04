"""Scores with their uncertainty: intervals, and paired tests of two classifiers on the same images or the same folds."""

import functools

import numpy as np
from scipy import stats


def accuracy_interval(correct, n):
    """95 % Wilson interval (low, high), 0 to 1, of `correct` out of `n` (Wilson 1927, JASA 22, p. 209)."""
    interval = stats.binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(correct_a, correct_b):
    """Exact two-sided McNemar test of two classifiers on the same images (McNemar 1947, Psychometrika 12, p. 153).

    `correct_a`, `correct_b`: bool tensors [N]. Returns p; 1.0 where they are right on the same images.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


@functools.lru_cache(maxsize=2)
def resamples(n, count=10_000):
    """Bootstrap samples of n images, as the share [count, n] (fp32) that each image has in a sample. Always the same ones."""
    return (np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=count) / n).astype(
        np.float32
    )


def bootstrap_interval(values, count=10_000):
    """95 % percentile interval (low, high) of the mean of `values` [N], one an image (Efron 1979, Annals of Statistics 7, p. 1)."""
    low, high = np.quantile(
        resamples(len(values), count) @ np.asarray(values, np.float32), [0.025, 0.975]
    )
    return float(low), float(high)


def macro_f1_interval(labels, predicted, count=2_000):
    """95 % bootstrap interval (low, high), over images, of the macro-F1 averaged over repeats.

    `labels` int [N], `predicted` int [R, N]. A class that a sample lacks and nobody predicts counts 0, as in scikit-learn.
    """
    classes, shares = np.arange(labels.max() + 1)[:, None], resamples(len(labels), count)
    true, scores = labels == classes, np.zeros(count)
    for guess in predicted:
        hits, guessed = (
            shares @ (part.T.astype(np.float32))
            for part in (true & (guess == classes), guess == classes)
        )
        total = guessed + shares @ true.T.astype(np.float32)
        scores += np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0).mean(1)
    low, high = np.quantile(scores / len(predicted), [0.025, 0.975])
    return float(low), float(high)


def calibration_error(probabilities, labels, bins=15):
    """Expected calibration error: mean distance of confidence and accuracy, in `bins` of equal mass (Nguyen & O'Connor 2015,
    EMNLP, section 3). `probabilities` [N, C], `labels` int [N]; 0 to 1.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(labels)))
    return float(
        sum(abs(confidence[part].mean() - correct[part].mean()) * len(part) for part in parts)
        / len(labels)
    )


def corrected_resampled_t(differences, test_share):
    """Paired t-test over repeated folds whose training sets overlap (Nadeau & Bengio 2003, Machine Learning 52, p. 239).

    `differences` [F]: one score less the other, a fold; `test_share`: images in a test fold ÷ images it was trained on.
    -> {"difference": mean, "error": its standard error, "low", "high": 95 % interval, "p": two-sided}.
    """
    differences = np.asarray(differences, float)
    folds, mean = len(differences), float(np.mean(differences))
    error = float(np.sqrt((1 / folds + test_share) * np.var(differences, ddof=1)))
    reach = error * stats.t.ppf(0.975, folds - 1)
    p = 2 * stats.t.sf(abs(mean) / error, folds - 1) if error else float(mean == 0)
    return {
        "difference": mean,
        "error": error,
        "low": mean - reach,
        "high": mean + reach,
        "p": float(p),
    }


def holm(p_values):
    """p-values [M] adjusted for M tests at once (Holm 1979, Scandinavian Journal of Statistics 6, p. 65), in their order."""
    order, adjusted, highest = np.argsort(p_values), np.empty(len(p_values)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted.tolist()


def verdicts(tests):
    """What is left of M paired tests (dicts of `corrected_resampled_t`) at 5 % after Holm -> list of (adjusted p, verdict on the
    first of the two: "better", "worse" or "indistinguishable")."""
    adjusted = holm([test["p"] for test in tests])
    signs = ["better" if test["difference"] > 0 else "worse" for test in tests]
    return [(p, sign if p < 0.05 else "indistinguishable") for p, sign in zip(adjusted, signs)]


def detectable_difference(error, folds):
    """The smallest true difference that a two-sided test at 5 % finds with a chance of 80 %, given its standard error."""
    return error * float(stats.t.ppf(0.975, folds - 1) + stats.t.ppf(0.8, folds - 1))


def images_needed(n, detectable, difference):
    """How many images would make `difference` the smallest that is seen, where n images make it `detectable`: the standard
    error falls with the square root of their number.
    """
    return int(np.ceil(n * (detectable / difference) ** 2))


def debiased_cka(x, y):
    """Debiased linear CKA of two sets of features [N, D], [N, E] of the same images, N > 3: 1 for the same up to rotation and
    scale, 0 on average for unrelated ones, which the plain one is not where N is small (Kornblith et al. 2019, ICML, section 3;
    unbiased as in Song et al. 2012, JMLR 13, p. 1399).
    """

    def centred(features):
        gram = np.asarray(features, np.float64) @ np.asarray(features, np.float64).T
        n = len(gram)
        np.fill_diagonal(gram, 0)
        means = gram.sum(1) / (n - 2)
        means -= means.sum() / (2 * (n - 1))
        gram -= means[:, None] + means
        np.fill_diagonal(gram, 0)
        return gram

    x, y = centred(x), centred(y)
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))

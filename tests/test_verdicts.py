"""Scores recomputed by scikit-learn, and the verdicts on pairs: both tests, the words, the tie for
best. How often they are right is in test_simulated_verdicts.py."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from transferlab.heldout import Predictions, make_folds
from transferlab.metrics import (
    accuracy_interval,
    corrected_resampled_t,
    holm,
    images_needed,
    paired_over_images,
    smallest_visible,
)
from transferlab.verdicts import (
    PAIR_COLUMNS,
    compare_pairs,
    first_ranked,
    ranked,
    score_model,
    tied_for_best,
    verdict_text,
)

LABELS = np.array([0, 1] * 100)
FOLDS = make_folds(torch.from_numpy(LABELS), k=5, repeats=5, seed=0)


def random_predictions(n=60, classes=3, repeats=2, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), (repeats, n)).astype(np.float32)
    return probabilities, random.integers(0, classes, n)


def guessing(correct, labels=LABELS):
    """Predictions of two classes that are right where `correct` [R, N] says so."""
    guess = np.where(correct, labels, 1 - labels)
    return Predictions(probabilities=np.eye(2, dtype=np.float32)[guess])


def found_with(rates, *, repeats=5, labels=LABELS):
    """Models that are right on an image with the given chances, independently."""
    random = np.random.default_rng(0)
    return {
        name: guessing(random.random((repeats, len(labels))) < rate, labels)
        for name, rate in rates.items()
    }


def scored(model, predictions, labels=LABELS, *, baseline=False):
    return score_model(model, predictions, labels, baseline=baseline, weights="drawn", folds=25)


def by_names(pairs):
    return {(pair.model_a, pair.model_b): pair for pair in pairs}


# ---- scores --------------------------------------------------------------------------------------


def test_scores_are_scikit_learns():
    probabilities, labels = random_predictions()
    scores = scored("resnet50", Predictions(probabilities=probabilities, seconds=1.5), labels)
    predicted = probabilities.argmax(2)
    assert scores.accuracy == pytest.approx(np.mean([accuracy_score(labels, p) for p in predicted]))
    assert scores.macro_f1.value == pytest.approx(
        np.mean([f1_score(labels, p, average="macro") for p in predicted])
    )
    assert scores.log_loss.value == pytest.approx(
        np.mean([log_loss(labels, p) for p in probabilities]), abs=1e-6
    )
    brier = [sum(brier_score_loss(labels == c, p[:, c]) for c in range(3)) for p in probabilities]
    assert scores.brier.value == pytest.approx(np.mean(brier), abs=1e-6)
    for score in (scores.accuracy_score, scores.macro_f1, scores.log_loss, scores.brier):
        assert score.interval.low < score.value < score.interval.high
    row = scores.row()
    assert row["accuracy"] == scores.accuracy and row["model"] == "resnet50" and row["n"] == 60
    assert row["accuracy_low"] == scores.accuracy_interval.low
    assert row["folds"] == 25 and "selection_optimism" not in row  # of heads alone
    assert scores.seconds == 1.5 and "seconds" not in row  # which comes out the same again


def test_the_interval_of_an_accuracy_is_wilsons_of_as_many_images_as_there_are():
    correct = np.zeros((5, 200), bool)
    correct[:, :150] = True
    correct[0, 150:153] = True  # 153 in the first repeat, 150 in all others
    scores = scored("model", guessing(correct))
    assert scores.accuracy == pytest.approx(150.6 / 200)
    assert scores.accuracy_interval == accuracy_interval(150.6, 200)
    for rate, ends in ((True, (0.98, 1.0)), (False, (0.0, 0.02))):
        interval = scored("model", guessing(np.full((3, 200), rate))).accuracy_interval
        assert (interval.low, interval.high) == pytest.approx(ends, abs=0.002)
        assert {interval.low, interval.high} & {0.0, 1.0}


def test_of_equal_accuracies_the_lower_loss_ranks_first_then_the_one_named_first():
    probabilities, labels = random_predictions(repeats=1)
    right = np.eye(3, dtype=np.float32)[labels][None]
    unsure = (right * 0.5 + 0.5 / 3).astype(np.float32)
    scores = [
        scored("random", Predictions(probabilities=probabilities), labels),
        scored("unsure", Predictions(probabilities=unsure), labels),
        scored("sure", Predictions(probabilities=right), labels),
        scored("as sure", Predictions(probabilities=right), labels),
        scored("baseline", Predictions(probabilities=right), labels, baseline=True),
    ]
    assert first_ranked(scores).model == "sure"
    assert first_ranked(scores[:2]).model == "unsure"
    assert first_ranked([scores[0], scores[4]]).model == "random"
    order = [one.model for one in ranked(scores)]
    assert order == ["sure", "as sure", "baseline", "unsure", "random"]


# ---- pairs ---------------------------------------------------------------------------------------


def test_a_clear_difference_is_found_and_none_is_not():
    found = found_with({"good": 0.9, "bad": 0.6, "worse": 0.58})
    verdicts = by_names(compare_pairs(found, LABELS, FOLDS))
    assert list(verdicts) == [("good", "bad"), ("good", "worse"), ("bad", "worse")]
    assert verdicts["good", "bad"].verdict == "good better"
    assert verdicts["good", "bad"].told_apart and not verdicts["bad", "worse"].told_apart
    assert verdicts["good", "worse"].test.low > 0
    same = verdicts["bad", "worse"]
    assert same.verdict == "indistinguishable" and same.test.low < 0 < same.test.high


def test_a_pair_holds_both_tests_as_they_are_worked_out_apart():
    found = found_with({"a": 0.8, "b": 0.7, "c": 0.65, "d": 0.8})
    pairs = compare_pairs(found, LABELS, FOLDS)
    correct = {name: one.probabilities.argmax(2) == LABELS for name, one in found.items()}
    for pair in pairs:
        right_a, right_b = correct[pair.model_a], correct[pair.model_b]
        assert pair.test == paired_over_images(right_a * 1.0 - right_b * 1.0)
        on_folds = []
        for fold in FOLDS:
            part = fold.test
            on_folds.append(right_a[fold.repeat, part].mean() - right_b[fold.repeat, part].mean())
        assert asdict(pair.resampled) == pytest.approx(
            asdict(corrected_resampled_t(on_folds, 1 / 4)), abs=1e-12
        )
        assert pair.detectable == smallest_visible(pair.test.error, 6)
        assert pair.images_needed[1] == images_needed(200, pair.detectable, 0.02)
    assert [pair.p_holm for pair in pairs] == holm([pair.test.p for pair in pairs])


def test_the_row_of_a_pair():
    (pair,) = compare_pairs(found_with({"good": 0.9, "bad": 0.6}), LABELS, FOLDS)
    row = pair.row()
    assert list(row) == PAIR_COLUMNS
    assert row["difference"] == pair.test.difference and row["error"] == pair.test.error
    assert (row["low"], row["high"], row["p"]) == (pair.test.low, pair.test.high, pair.test.p)
    old = pair.resampled
    assert [row[f"t_{name}"] for name in ("error", "low", "high", "p")] == [
        old.error,
        old.low,
        old.high,
        old.p,
    ]
    assert row["images_for_1_points"] == pytest.approx(25 * row["images_for_5_points"], rel=0.01)


def test_the_better_one_is_named_whichever_comes_first():
    (pair,) = compare_pairs(found_with({"bad": 0.6, "good": 0.9}), LABELS, FOLDS)
    assert pair.verdict == "good better" and pair.test.high < 0


def test_of_identical_predictions_nothing_is_said_to_be_seen():
    """Two models that are right on the same images say nothing of how much they could differ."""
    one = found_with({"one": 0.7})["one"]
    (pair,) = compare_pairs({"one": one, "other": one}, LABELS, FOLDS)
    assert (pair.verdict, pair.told_apart, pair.p_holm) == ("identical predictions", False, 1)
    assert asdict(pair.test) == {"difference": 0, "error": 0, "low": 0, "high": 0, "p": 1}
    assert pair.detectable is None and pair.images_needed == (None,) * 4
    assert pair.row()["detectable"] is None and pair.row()["images_for_1_points"] is None
    assert verdict_text(pair, 1) == "one and other are right on the same images: nothing to tell"


def test_one_that_is_always_right_beats_one_that_never_is():
    """All images say the same, so that there is no error to go by."""
    never, always = (guessing(np.full((5, 200), rate)) for rate in (False, True))
    (pair,) = compare_pairs({"never": never, "always": always}, LABELS, FOLDS)
    assert pair.verdict == "always better" and pair.test.error == 0 and pair.resampled.p == 1
    assert pair.detectable is None
    expected = "always better than never: +100.0 points [+100.0, +100.0], p < 0.001"
    assert verdict_text(pair, 1) == expected


@pytest.mark.parametrize("repeats", [1, 2])
def test_with_fewer_than_three_repeats_there_is_no_verdict(repeats):
    folds = make_folds(torch.from_numpy(LABELS), k=5, repeats=repeats, seed=0)
    found = found_with({"bad": 0.6, "good": 0.9}, repeats=repeats)
    (pair,) = pairs = compare_pairs(found, LABELS, folds)
    assert pair.verdict == "training noise not included" and not pair.told_apart
    assert (pair.p_holm, pair.detectable, pair.images_needed) == (None, None, (None,) * 4)
    assert pair.test.p < 0.001 and pair.resampled.p < 0.05  # in the table all the same
    assert tied_for_best([scored(name, one) for name, one in found.items()], pairs) == ()
    text = verdict_text(pair, 1)
    assert text.startswith("good less bad: +") and "better" not in text and "p =" not in text
    assert text.endswith("no verdict (fewer than 3 repeats: training noise not included)")


def test_a_model_that_was_asked_once_is_in_no_pair():
    found = found_with({"a": 0.8, "b": 0.7}) | found_with({"zero-shot": 0.9}, repeats=1)
    assert list(by_names(compare_pairs(found, LABELS, FOLDS))) == [("a", "b")]
    assert compare_pairs({}, LABELS, FOLDS) == []


# ---- words ---------------------------------------------------------------------------------------


def test_a_verdict_is_one_line_with_the_better_model_first():
    pairs = compare_pairs(found_with({"b": 0.6, "a": 0.75, "c": 0.62}), LABELS, FOLDS)
    told, same, _ = (verdict_text(pair, 3) for pair in pairs)
    test = pairs[0].test
    p = f"p = {pairs[0].p_holm:.3f}" if pairs[0].p_holm >= 0.001 else "p < 0.001"
    points = f"{-100 * test.difference:+.1f} points"
    interval = f"[{-100 * test.high:+.1f}, {-100 * test.low:+.1f}]"
    seen = f"a difference of {100 * pairs[0].detectable:.1f} points would have been seen"
    assert told == f"a better than b: {points} {interval}, {p} (Holm over 3); {seen}"
    assert "\n" not in told and same.startswith("c and b indistinguishable: +")


def test_tied_for_best_is_whom_the_test_does_not_tell_from_the_best():
    rates = {"low": 0.5, "second": 0.88, "best": 0.9, "third": 0.6}
    found = found_with(rates)
    scores = [scored(name, one) for name, one in found.items()]
    pairs = compare_pairs(found, LABELS, FOLDS)
    assert tied_for_best(scores, pairs) == ("best", "second")
    baseline = scored("baseline", guessing(np.full((5, 200), True)), baseline=True)
    assert tied_for_best([baseline, *scores], pairs) == ("best", "second")
    assert tied_for_best(scores[:1], []) == ()  # nothing was compared


@settings(max_examples=20)
@given(
    rates=st.lists(st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0]), min_size=2, max_size=4),
    repeats=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_whatever_is_found_verdicts_and_tie_agree_and_all_numbers_are_plain(rates, repeats, seed):
    labels = np.array([0, 1] * 10)
    folds = make_folds(torch.from_numpy(labels), k=5, repeats=repeats, seed=seed)
    random = np.random.default_rng(seed)
    found = {
        f"model {place}": guessing(random.random((repeats, 20)) < rate, labels)
        for place, rate in enumerate(rates)
    }
    scores = [scored(name, one, labels) for name, one in found.items()]
    pairs = compare_pairs(found, labels, folds)
    best = first_ranked(scores).model
    tied = tied_for_best(scores, pairs)
    assert tied[:1] == ((best,) if repeats >= 3 else ())
    for pair in pairs:
        numbers = [value for value in pair.row().values() if not isinstance(value, str | None)]
        assert all(type(value) in (float, int) for value in numbers)
        assert np.isfinite(numbers).all()
        other = {pair.model_a, pair.model_b} - {best}
        if repeats >= 3 and len(other) == 1:
            assert pair.told_apart == (other.pop() not in tied)
        assert verdict_text(pair, len(pairs)).count("\n") == 0
        if pair.told_apart:
            assert (pair.verdict == f"{pair.model_a} better") == (pair.test.difference > 0)

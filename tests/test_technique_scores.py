"""How techniques came out: the pooled question alone, all else in one family, no verdict without
repeats enough."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from transferlab.metrics import accuracy_interval, paired_over_images, smallest_visible
from transferlab.technique_scores import (
    EXACT_PROBE,
    HEADLINE,
    PROBE_AT_224,
    Incomplete,
    LeftOut,
    Place,
    all_tests,
    pack_predictions,
    pair_tests,
    pooled_tests,
    read_correct,
    summarise_techniques,
)

N = 200


def place_of(technique, model="m", kind="tuned"):
    return Place(kind=kind, dataset="d", model=model, technique=technique)


def answers(share, repeats=3, seed=0):
    """Right or not, bool [R, N], mostly on the same images whatever the share."""
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(9).random(N)
    return hard + random.normal(0, 0.1, (repeats, N)) < share


@pytest.fixture
def correct():
    """Two backbones: the exact probe at 50 %, full fine-tuning at 75, MixUp at 74; of the second
    backbone the last stage, in one repeat."""
    found = {}
    for number, model in enumerate(("m", "n")):
        shares = {EXACT_PROBE: 0.5, PROBE_AT_224: 0.6, HEADLINE: 0.75, "MixUp": 0.74}
        for place, (technique, share) in enumerate(shares.items()):
            seed = 10 * number + place
            found[place_of(technique, model)] = answers(share, seed=seed)
    found[place_of("last stage", "n")] = answers(0.5, repeats=1, seed=77)
    return found


def test_the_headline_stands_alone_and_is_the_mean_over_backbones(correct):
    tests = pooled_tests(correct)
    (headline,) = [test for test in tests if test.headline]
    probes = np.mean([correct[place_of(EXACT_PROBE, model)] for model in "mn"], axis=0)
    tuned = np.mean([correct[place_of(HEADLINE, model)] for model in "mn"], axis=0)
    expected = paired_over_images(tuned - probes)
    assert headline.test == expected and headline.models == ("m", "n")
    assert headline.p_holm == expected.p  # of a family of one
    assert headline.detectable == smallest_visible(expected.error, 1)
    assert headline.verdict == "better" and headline.repeats == 3
    assert {test.reference for test in tests} == {EXACT_PROBE, PROBE_AT_224}


def test_with_too_few_repeats_there_is_no_verdict(correct):
    (one,) = [test for test in pooled_tests(correct) if test.technique == "last stage"][:1]
    assert one.models == ("n",) and one.repeats == 1
    assert one.verdict == "training noise not included"
    assert (one.p_holm, one.detectable) == (None, None)
    # A repeat that one backbone lacks is left out for all.
    correct[place_of(HEADLINE, "n")] = correct[place_of(HEADLINE, "n")][:1]
    (headline,) = [test for test in pooled_tests(correct) if test.headline]
    assert headline.repeats == 1 and headline.p_holm is None


def test_the_tests_of_a_pair_are_one_family(correct):
    tests = [test for test in pair_tests(correct) if test.model == "m"]
    asked = [(test.technique, test.reference) for test in tests]
    assert asked == [
        (HEADLINE, EXACT_PROBE),
        (HEADLINE, PROBE_AT_224),
        ("MixUp", EXACT_PROBE),
        ("MixUp", PROBE_AT_224),
        ("MixUp", HEADLINE),
    ]
    _, adjusted, *_ = multipletests([test.test.p for test in tests], method="holm")
    assert [test.p_holm for test in tests] == pytest.approx(adjusted)
    verdicts = {(test.technique, test.reference): test.verdict for test in tests}
    assert verdicts[HEADLINE, EXACT_PROBE] == "better"
    assert verdicts["MixUp", HEADLINE] == "indistinguishable"
    assert not any(test.headline for test in tests)


def test_the_same_predictions_are_called_that():
    same = answers(0.5)
    found = {place_of(EXACT_PROBE): same, place_of(HEADLINE): same}
    for test in all_tests(found):
        assert test.verdict == "identical predictions" and test.detectable is None
        assert test.row()["p"] == 1 and not test.told_apart


def test_kinds_and_datasets_are_never_mixed(correct):
    frozen = {replace(place, kind="frozen"): one for place, one in correct.items()}
    elsewhere = {replace(place, dataset="e"): one for place, one in correct.items()}
    alone = [test.row() for test in all_tests(correct)]
    together = all_tests(correct | frozen | elsewhere)
    again = [test.row() for test in together if (test.kind, test.dataset) == ("tuned", "d")]
    assert sorted(map(str, again)) == sorted(map(str, alone)) and len(together) == 3 * len(alone)


def test_verdicts_follow_from_what_is_kept(correct):
    labels = np.arange(N) % 7
    predicted = {place: np.where(right, labels, -1) for place, right in correct.items()}
    arrays = pack_predictions(predicted, {"d": labels})
    again = read_correct(arrays)
    assert again.keys() == correct.keys()
    assert all(np.array_equal(again[place], right) for place, right in correct.items())
    assert all_tests(again) == all_tests(correct)


def test_the_summary_is_a_mean_over_repeats():
    rows = [
        {
            "kind": "tuned",
            "dataset": "d",
            "model": "m",
            "technique": "a",
            "repeat": repeat,
            "fold": fold,
            "correct": 30 + repeat,
            "n": 50,
            "macro_f1": 0.5,
            "seconds": 1.0 + fold,
            "trainable": 10,
            "epochs": 2,
        }
        for repeat in range(3)
        for fold in range(2)
    ]
    table = pd.DataFrame(rows)
    summary = summarise_techniques(table)
    assert (summary.correct[0], summary.n[0], summary.accuracy[0]) == (62, 100, 0.62)
    interval = accuracy_interval(62, 100)
    assert (summary.low[0], summary.high[0]) == (interval.low, interval.high)
    assert (summary.repeats[0], summary.seconds[0]) == (3, 1.5)
    # What was measured before there were repeats is one.
    old = table[table.repeat == 1].drop(columns="repeat")
    assert summarise_techniques(old).accuracy[0] == 0.62


def test_what_is_missing_is_told():
    incomplete = Incomplete(kind="tuned", dataset="d", model="m", techniques=("MixUp", "CutMix"))
    left_out = LeftOut(incomplete=(incomplete,), without_weights=("vit",))
    assert left_out.something and not LeftOut().something
    assert [*left_out.lines()] == [
        "not measured: tuned: m on d, MixUp, CutMix",
        "not measured: vit, for which there are no pretrained weights",
    ]

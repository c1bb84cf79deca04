"""The study's findings: stopping rules on given curves, verdicts on planted differences, both modes
of a frozen backbone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from benchmarks.common import Pair
from benchmarks.findings import (
    RANKED,
    VARIANTS,
    Claim,
    Curves,
    HeldOut,
    Stop,
    at_stop,
    chosen_epochs,
    judge,
    judge_differences,
    judge_modes,
    judge_over_fitting,
    judge_size,
    judge_speed,
    judge_transfer,
    list_trainings,
    most_frequent,
    plot_findings,
    stop_after_rises,
    stop_without_gain,
    train_curves,
    train_in_both_modes,
)
from transferlab.backbones import create_backbone
from transferlab.data import Folds, everything_fold
from transferlab.datasets import FACES, INSECTS
from transferlab.heldout import make_folds, training_part
from transferlab.metrics import corrected_resampled_t
from transferlab.pretrained import WeightsInfo
from transferlab.study import freeze_backbone, train_study

TINY = "test_resnet.r160_in1k"


def test_stopping_rules_differ_where_the_loss_wavers():
    """Ours counts epochs without a new best, the study's only rises in a row."""
    wavering = (3.0, 2.0, 2.5, 2.4, 2.6, 2.5, 2.7, 1.0, 1.1)
    assert stop_without_gain(wavering) == Stop(chosen=1, trained=7)
    assert stop_after_rises(wavering) == Stop(chosen=7, trained=9)
    rising = (3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0)
    assert stop_without_gain(rising) == stop_after_rises(rising) == Stop(chosen=1, trained=7)
    tied = [2.0, 1.0, 1.0, 1.5]  # the earliest on ties
    assert stop_without_gain(tied) == stop_after_rises(tied) == Stop(chosen=1, trained=4)
    accuracies = (tuple(range(9)), tuple(range(8)))
    curves = Curves(
        val_loss=(wavering, rising), test_loss=(), test_acc=accuracies, clean_acc=(0.9, 0.9)
    )
    assert at_stop(curves.test_acc, curves).tolist() == [1, 1]
    assert at_stop(curves.test_acc, curves, stop_after_rises).tolist() == [7, 1]
    assert chosen_epochs(curves).tolist() == [2, 2]


def test_our_stopping_rule_is_trains(study):
    """Applied afterwards to the curves of a training without it, it chooses the epoch that training
    with it ends at."""
    stopping = replace(study.settings, epochs=12, lr=0.1, patience=2)
    study = replace(study, settings=stopping)
    result = train_study(freeze_backbone(TINY, study, weights="none"), study)
    whole = replace(study, settings=replace(stopping, patience=0))
    curve = train_study(freeze_backbone(TINY, whole, weights="none"), whole)
    assert len(curve.history) == 12
    losses = [row.val_loss for row in curve.history]
    expected = Stop(chosen=result.best_epoch - 1, trained=len(result.history))
    assert stop_without_gain(losses, 2) == expected


def test_a_claim_holds_fails_or_is_undecided():
    intervals = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))
    assert [judge(*interval) for interval in intervals] == ["holds", "fails", "undecided"]
    assert judge(0.1, 0.2, 0.15) == "undecided"
    folds = Folds(folds=(), k=5, repeats=2)
    differences = np.random.default_rng(0).normal(0.1, 0.02, 10)
    pair = Pair(dataset="d", model="m")
    claim = judge_differences("c", "t", pair, differences, folds=folds)
    expected = corrected_resampled_t(differences, 1 / 4)
    row = claim.row()
    assert [row[name] for name in ("value", "low", "high", "p")] == [
        expected.difference,
        expected.low,
        expected.high,
        expected.p,
    ]
    assert row["verdict"] == "holds"
    assert judge_differences("c", "t", pair, -differences, folds=folds).verdict == "fails"


def test_the_most_frequent_class_is_scikit_learns():
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 10)
    folds = make_folds(labels, k=5, repeats=2, seed=0)
    for share, fold in zip(most_frequent(labels, folds), folds, strict=True):
        rest = training_part(fold)
        dummy = DummyClassifier(strategy="most_frequent")
        dummy.fit(np.zeros((len(rest), 1)), labels[rest])
        expected = dummy.score(np.zeros((len(fold.test), 1)), labels[fold.test])
        assert share == pytest.approx(expected)


def made_up(folds, test_acc, epochs=6, best=(2,)):
    """Curves whose validation losses are lowest at the epochs `best`, in turn, with an accuracy on
    every fold."""
    noise = np.random.default_rng(1).normal(0, 0.005, len(folds))
    losses = [
        tuple(abs(epoch - lowest) + 1.0 for epoch in range(epochs))
        for lowest, _ in zip(itertools.cycle(best), folds)
    ]
    accuracies = [(float(test_acc + extra),) * epochs for extra in noise * (1 + test_acc)]
    rising = [
        tuple(1.0 + 0.1 * epoch + float(extra) * epoch for epoch in range(epochs))
        for extra in noise
    ]
    return Curves(
        val_loss=tuple(losses),
        test_loss=tuple(rising),
        test_acc=tuple(accuracies),
        clean_acc=(0.9,) * len(folds),
    )


def weights_info(name, kind):
    return WeightsInfo(name=name, timm_name=name, kind=kind, label="", source="", sha256="")


def test_planted_differences_are_judged_and_missing_weights_leave_claims_undecided():
    labels = {FACES.name: torch.arange(50) % 7, INSECTS.name: torch.arange(40) % 2}
    folds = {data: make_folds(one, k=5, repeats=2, seed=0) for data, one in labels.items()}
    infos = {name: weights_info(name, "random" if name == "vit" else "file") for name in RANKED}
    reached = {
        "resnet50": 0.5,
        "densenet121": 0.3,
        "efficientnet_b0": 0.7,
        "efficientnet_b3": 0.9,
        "efficientnet_lite0": 0.9,
    }
    curves = {}
    for training in list_trainings(infos):
        worse = training.weights == "random"
        accuracy = reached[training.pair.model] - 0.2 * worse
        curves[training] = made_up(
            folds[training.pair.dataset], accuracy, best=(4, 3) if worse else (2,)
        )
    found = HeldOut(labels=labels, folds=folds, curves=curves)
    claims = judge_transfer(found)
    verdicts = {(one.claim, one.model): one.verdict for one in claims}
    rivals = "DenseNet121 is more accurate than ResNet50", "densenet121, resnet50"
    assert verdicts[rivals] == "fails"
    assert verdicts["Pretraining helps", "resnet50"] == "holds"
    assert verdicts["Pretraining speeds up learning", "resnet50"] == "holds"
    missing = "vit is more accurate than efficientnet_b3", "vit, efficientnet_b3"
    assert verdicts[missing] == "undecided"
    ranked = (
        "efficientnet_b3 is more accurate than efficientnet_b0",
        "efficientnet_b3, efficientnet_b0",
    )
    assert verdicts[ranked] == "holds"
    assert verdicts["A frozen backbone with a new head is effective", "resnet50"] == "holds"
    more = judge_over_fitting(found, Pair(dataset=FACES.name, model="resnet50"))
    verdicts = {one.claim: one.verdict for one in more}
    assert verdicts["The head over-fits despite augmentation"] == "holds"
    assert verdicts["Early stopping mitigates over-fitting"] == "holds"
    assert verdicts["Dropout makes the head more accurate"] == "undecided"  # the same curves
    plot_findings(claims + more, "made up").savefig("/dev/null", format="png")


def test_a_claim_without_numbers_has_no_columns_for_them():
    claim = Claim(claim="c", test="none", data="d", model="m", verdict="undecided")
    names = ["claim", "test", "data", "model", "unit", "verdict"]
    assert list(claim.row()) == names and str(claim) == "undecided c (m): none"
    whole = replace(claim, value=0.25, low=0.125, high=0.5)
    assert str(whole) == "undecided c (m): +0.250 [+0.125, +0.500] accuracy"


def test_speed_and_size():
    slow, fast = [1.3, 1.31, 1.29], [1.0, 1.0, 1.0]
    (claim,) = judge_speed({"torch.float32": {"resnet50": fast, "densenet121": slow}})
    assert claim.verdict == "holds" and claim.value == pytest.approx(0.3)
    (claim,) = judge_speed({"torch.float32": {"resnet50": slow, "densenet121": fast}})
    assert claim.verdict == "fails"
    size = judge_size()
    assert size.verdict == "fails" and "25,557,032 and 7,978,856" in size.test


def test_curves_are_those_of_heads_on_each_fold(study):
    whole = replace(study, fold=everything_fold(study.image_set))
    folds = make_folds(study.image_set.labels, k=4, repeats=1, seed=0)
    frozen = freeze_backbone(TINY, whole, weights="none")
    found = {variant: train_curves(frozen, whole, folds, variant) for variant in VARIANTS}
    for curves in found.values():
        assert np.shape(curves.test_acc) == np.shape(curves.val_loss) == (4, 4)
        assert len(curves.clean_acc) == 4
        accuracies = [value for values in curves.test_acc for value in values]
        assert all(round(value * 4, 9) in range(5) for value in accuracies)  # 4 images a test fold
    plain, no_dropout, no_augmentation = (found[variant].val_loss for variant in VARIANTS)
    assert plain != no_dropout != no_augmentation


def test_under_train_mode_statistics_move_and_nothing_else(study):
    _, info = create_backbone(TINY, "none")
    found = train_in_both_modes(info, study, "none")
    assert found.moved
    assert all("running_" in key or "num_batches" in key for key in found.moved)
    expected = train_study(freeze_backbone(TINY, study, weights="none"), study)
    losses = [row.val_loss for row in found.history["eval"]]
    assert losses == [row.val_loss for row in expected.history]
    assert {len(correct) for correct in found.correct.values()} == {len(study.fold.val)}


def test_the_verdict_on_train_mode_is_mcnemars():
    right = {"eval": [True] * 20, "train": [False] * 12 + [True] * 8}
    claim = judge_modes(right)
    assert claim.verdict == "holds" and claim.p == pytest.approx(2 * 0.5**12)
    close = {"eval": [True] * 20, "train": [False] * 4 + [True] * 16}
    assert judge_modes(close).verdict == "undecided"

"""The study's findings: stopping rules on given curves, verdicts on planted differences, both modes of a frozen backbone."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from benchmarks import findings
from benchmarks.findings import (
    FACES,
    INSECTS,
    at_stop,
    chosen_epochs,
    judge,
    judge_modes,
    judge_over_fitting,
    judge_size,
    judge_speed,
    judge_transfer,
    list_trainings,
    make_row,
    most_frequent,
    plot_findings,
    stop_after_rises,
    stop_without_gain,
    train_curves,
    train_in_both_modes,
)
from transferlab.backbones import WeightsInfo
from transferlab.compare import make_folds
from transferlab.metrics import corrected_resampled_t
from transferlab.study import freeze_backbone, train_study

TINY = "test_resnet.r160_in1k"


def test_stopping_rules_differ_where_the_loss_wavers():
    """Ours counts epochs without a new best, the study's only rises in a row."""
    wavering = [3.0, 2.0, 2.5, 2.4, 2.6, 2.5, 2.7, 1.0, 1.1]
    assert stop_without_gain(wavering) == (1, 7)
    assert stop_after_rises(wavering) == (7, 9)
    rising = [3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0]
    assert stop_without_gain(rising) == stop_after_rises(rising) == (1, 7)
    assert (
        stop_without_gain([2.0, 1.0, 1.0, 1.5]) == stop_after_rises([2.0, 1.0, 1.0, 1.5]) == (1, 4)
    )  # the earliest on ties
    curves = {"val_loss": [wavering, rising], "test_acc": [[*range(9)], [*range(8)]]}
    assert at_stop(curves, "test_acc").tolist() == [1, 1]
    assert at_stop(curves, "test_acc", stop_after_rises).tolist() == [7, 1]
    assert chosen_epochs(curves).tolist() == [2, 2]


def test_our_stopping_rule_is_trains(study):
    """Applied afterwards to the curves of a training without it, it chooses the epoch that training with it ends at."""
    study = study._replace(settings=study.settings | {"epochs": 12, "lr": 0.1, "patience": 2})
    result, _ = train_study(freeze_backbone(TINY, study, weights="none"), study, progress=False)
    whole = study._replace(settings=study.settings | {"patience": 0})
    curve, _ = train_study(freeze_backbone(TINY, whole, weights="none"), whole, progress=False)
    assert len(curve.history) == 12
    losses = [row["val_loss"] for row in curve.history]
    assert stop_without_gain(losses, 2) == (result.best_epoch - 1, len(result.history))


def test_a_claim_holds_fails_or_is_undecided():
    assert [judge(*interval) for interval in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        "holds",
        "fails",
        "undecided",
    ]
    assert judge(0.1, 0.2, 0.15) == "undecided"
    folds = {"d": [(repeat, fold) for repeat in range(2) for fold in range(5)]}
    differences = np.random.default_rng(0).normal(0.1, 0.02, 10)
    row, expected = (
        make_row("c", "t", "d", "m", differences, folds),
        corrected_resampled_t(differences, 1 / 4),
    )
    assert [row[name] for name in ("value", "low", "high", "p")] == [
        expected[name] for name in ("difference", "low", "high", "p")
    ]
    assert (
        row["verdict"] == "holds"
        and make_row("c", "t", "d", "m", -differences, folds)["verdict"] == "fails"
    )


def test_the_most_frequent_class_is_scikit_learns():
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 10)
    folds = make_folds(labels, 5, 2, 0)
    for share, (_, _, inner, val, test) in zip(most_frequent(labels, folds), folds):
        rest = torch.cat([inner, val])
        dummy = DummyClassifier(strategy="most_frequent").fit(
            np.zeros((len(rest), 1)), labels[rest]
        )
        assert share == pytest.approx(dummy.score(np.zeros((len(test), 1)), labels[test]))


def made_up(folds, test_acc, epochs=6, best=2):
    """Curves whose validation loss is lowest at `best`, with an accuracy on every fold."""
    noise = np.random.default_rng(1).normal(0, 0.005, len(folds))
    losses = [abs(epoch - best) + 1.0 for epoch in range(epochs)]
    accuracies = [[float(test_acc + extra)] * epochs for extra in noise * (1 + test_acc)]
    many = [
        [1.0 + 0.1 * epoch + float(extra) * epoch for epoch in range(epochs)] for extra in noise
    ]
    return {
        "val_loss": [losses] * len(folds),
        "test_acc": accuracies,
        "test_loss": many,
        "clean_acc": [0.9] * len(folds),
    }


def test_planted_differences_are_judged_and_missing_weights_leave_claims_undecided():
    labels = {FACES: torch.arange(50) % 7, INSECTS: torch.arange(40) % 2}
    folds = {data: make_folds(one, 5, 2, 0) for data, one in labels.items()}
    infos = {
        name: WeightsInfo(name, name, "random" if name == "vit" else "file", "", "")
        for name in findings.RANKED
    }
    wanted = list_trainings(infos)
    reached = {
        "resnet50": 0.5,
        "densenet121": 0.3,
        "efficientnet_b0": 0.7,
        "efficientnet_b3": 0.9,
        "efficientnet_lite0": 0.9,
    }
    curves = {}
    for data, model, weights, variant in wanted:
        worse = weights == "random"
        curves[data, model, weights, variant] = made_up(
            folds[data], reached[model] - 0.2 * worse, best=2 + 2 * worse
        )
    rows = judge_transfer(curves, labels, folds)
    verdicts = {(row["claim"], row["model"]): row["verdict"] for row in rows}
    assert (
        verdicts["DenseNet121 is more accurate than ResNet50", "densenet121, resnet50"] == "fails"
    )
    assert (
        verdicts["Pretraining helps", "resnet50"]
        == verdicts["Pretraining speeds up learning", "resnet50"]
        == "holds"
    )
    assert (
        verdicts["vit is more accurate than efficientnet_b3", "vit, efficientnet_b3"] == "undecided"
    )
    assert (
        verdicts[
            "efficientnet_b3 is more accurate than efficientnet_b0",
            "efficientnet_b3, efficientnet_b0",
        ]
        == "holds"
    )
    assert verdicts["A frozen backbone with a new head is effective", "resnet50"] == "holds"
    more = judge_over_fitting(curves, folds, FACES, "resnet50")
    verdicts = {row["claim"]: row["verdict"] for row in more}
    assert (
        verdicts["The head over-fits despite augmentation"]
        == verdicts["Early stopping mitigates over-fitting"]
        == "holds"
    )
    assert verdicts["Dropout makes the head more accurate"] == "undecided"  # the same curves
    plot_findings(rows + more, "made up").savefig("/dev/null", format="png")


def test_speed_and_size():
    slow, fast = [1.3, 1.31, 1.29], [1.0, 1.0, 1.0]
    (row,) = judge_speed({"torch.float32": {"resnet50": fast, "densenet121": slow}})
    assert row["verdict"] == "holds" and row["value"] == pytest.approx(0.3)
    assert (
        judge_speed({"torch.float32": {"resnet50": slow, "densenet121": fast}})[0]["verdict"]
        == "fails"
    )
    assert judge_size()["verdict"] == "fails" and "25,557,032 and 7,978,856" in judge_size()["test"]


def test_curves_are_those_of_heads_on_each_fold(study):
    everything = torch.arange(len(study.image_set.labels))
    whole = study._replace(indices={"train": everything, "val": everything})
    folds = make_folds(study.image_set.labels, 4, 1, 0)
    frozen = freeze_backbone(TINY, whole, weights="none")
    found = {variant: train_curves(frozen, whole, folds, variant) for variant in findings.VARIANTS}
    for curves in found.values():
        assert (
            np.shape(curves["test_acc"]) == np.shape(curves["val_loss"]) == (4, 4)
            and len(curves["clean_acc"]) == 4
        )
        assert all(
            round(value * 4, 9) in range(5) for values in curves["test_acc"] for value in values
        )  # 4 images a test fold
    assert (
        found["study"]["val_loss"]
        != found["no dropout"]["val_loss"]
        != found["no augmentation"]["val_loss"]
    )


def test_under_train_mode_statistics_move_and_nothing_else(study):
    found = train_in_both_modes(TINY, study, "none", "")
    assert found["moved"] and all(
        "running_" in key or "num_batches" in key for key in found["moved"]
    )
    expected, _ = train_study(freeze_backbone(TINY, study, weights="none"), study, progress=False)
    assert [row["val_loss"] for row in found["history"]["eval"]] == [
        row["val_loss"] for row in expected.history
    ]
    assert {len(correct) for correct in found["correct"].values()} == {len(study.indices["val"])}


def test_the_verdict_on_train_mode_is_mcnemars():
    right = {"correct": {"eval": [True] * 20, "train": [False] * 12 + [True] * 8}}
    assert judge_modes(right)["verdict"] == "holds" and judge_modes(right)["p"] == pytest.approx(
        2 * 0.5**12
    )
    assert (
        judge_modes({"correct": {"eval": [True] * 20, "train": [False] * 4 + [True] * 16}})[
            "verdict"
        ]
        == "undecided"
    )

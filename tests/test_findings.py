"""The study's findings: stopping rules and ends of trainings on made-up curves, verdicts on planted
differences alone and among many, both modes of a frozen backbone."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from benchmarks import findings
from benchmarks.claims.curves import (
    Curves,
    Stop,
    at_epoch,
    early_share,
    epochs_to_reach,
    stop_after_rises,
    stop_never,
    stop_without_gain,
    why_unfinished,
)
from benchmarks.claims.drawn import plot_findings
from benchmarks.claims.held_out import (
    ABLATED,
    RANKED,
    VARIANTS,
    Answers,
    Ended,
    HeldOut,
    Training,
    as_arrays,
    ask_both,
    ask_head,
    judge_backbones,
    judge_speed_of_learning,
    judge_training,
    list_answering,
    list_ended,
    train_to_end,
)
from benchmarks.claims.judged import (
    OVER_FOLDS,
    OVER_IMAGES,
    Claim,
    as_tested,
    drop_unfinished,
    judge,
    judge_together,
    taken_away,
)
from benchmarks.claims.modes import judge_modes, train_in_both_modes
from benchmarks.claims.speed import judge_size, judge_speed
from transferlab.backbones import create_backbone
from transferlab.data import everything_fold
from transferlab.datasets import FACES, INSECTS
from transferlab.errors import UserError
from transferlab.heldout import make_folds, predict_with_heads
from transferlab.metrics import PairedTest, corrected_resampled_t, holm, paired_over_images
from transferlab.study import freeze_backbone, train_study

TINY = "test_resnet.r160_in1k"
FACES_RESNET, FACES_DENSENET, INSECTS_LITE = ABLATED


# ---- curves ----------------------------------------------------------------------------------


def curves_of(val_loss, **others):
    """Curves with those validation losses, a fold a row; what is not given is zero."""
    val_loss = np.array(val_loss, np.float32)
    names = ("val_acc", "test_loss", "test_acc")
    columns = {name: np.array(others.get(name, np.zeros_like(val_loss))) for name in names}
    return Curves(val_loss=val_loss, **columns)


def test_stopping_rules_differ_where_the_loss_wavers():
    """Ours counts epochs without a new best, the study's only rises in a row."""
    wavering = (3.0, 2.0, 2.5, 2.4, 2.6, 2.5, 2.7, 1.0, 1.1)
    assert stop_without_gain(wavering) == Stop(chosen=1, trained=7)
    assert stop_after_rises(wavering) == Stop(chosen=7, trained=9)
    rising = (3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0, 1.0)
    assert stop_without_gain(rising) == stop_after_rises(rising) == Stop(chosen=1, trained=7)
    tied = [2.0, 1.0, 1.0, 1.5]  # the earliest on ties
    assert stop_without_gain(tied) == stop_after_rises(tied) == Stop(chosen=1, trained=4)
    curves = curves_of([wavering, rising])
    assert curves.chosen(stop_without_gain).tolist() == [1, 1]
    assert curves.chosen(stop_after_rises).tolist() == [7, 1]
    assert curves.trained(stop_after_rises).tolist() == [9, 7]
    assert curves.chosen(stop_never).tolist() == [7, 7]
    assert curves.first(7).chosen(stop_never).tolist() == [1, 1]
    counted = np.arange(18.0).reshape(2, 9)
    assert at_epoch(counted, np.array([7, 1])).tolist() == [7, 10]


def lowest_at(epochs, horizon):
    """Validation losses [F, horizon] that are lowest at those epochs, from 1."""
    numbers = np.arange(1, horizon + 1)
    return np.abs(numbers - np.array(epochs)[:, None]) + 1.0


def test_a_training_has_ended_where_nine_tenths_of_its_folds_have():
    """An epoch counts as late from 90 % of the horizon on, so 17 of 20 is not and 18 is."""
    almost = curves_of(lowest_at([17] * 9 + [18], 20))
    assert early_share(almost) == 0.9 and why_unfinished(almost) is None
    reason = why_unfinished(curves_of(lowest_at([17] * 8 + [18, 20], 20)))
    assert reason == "20% of the folds have their lowest validation loss at epoch 18 of 20 or later"


def test_epochs_to_a_loss_that_is_never_reached_are_all_there_are():
    losses = np.array([[3.0, 2.0, 1.0, 2.0], [3.0, 2.0, 2.0, 2.0], [1.0, 9.0, 9.0, 9.0]])
    assert epochs_to_reach(losses, np.array([1.5, 1.5, 1.0])).tolist() == [3, 4, 1]


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


# ---- verdicts, alone and among many ----------------------------------------------------------


def claim_with(p, difference=0.1, needs=()):
    """A claim that a test with this p has found `difference` for."""
    found = PairedTest(difference=difference, error=0.1, low=0.05, high=0.15, p=p)
    if difference < 0:
        found = replace(found, low=-0.15, high=-0.05)
    claim = Claim(claim="c", test="t", data="d", model="m", needs=needs)
    return as_tested(claim, found, OVER_FOLDS)


def test_a_claim_holds_fails_or_is_undecided_alone():
    intervals = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))
    assert [judge(*interval) for interval in intervals] == ["holds", "fails", "undecided"]
    assert judge(0.1, 0.2, 0.15) == "undecided"
    assert claim_with(0.01).alone == "holds" and claim_with(0.01, -0.1).alone == "fails"
    # No spread, no p: an interval of no width decides nothing.
    assert claim_with(1.0).alone == "undecided"


def test_among_many_only_what_holm_leaves_is_decided():
    """0.02 alone is enough; third of three with a p it is not, nor is what comes after it. What
    has no p takes no part."""
    counted = Claim(claim="c", test="counted", data="d", model="m", value=1.0, alone="holds")
    claims = [claim_with(0.02), counted, claim_with(0.001, -0.1), claim_with(0.04)]
    judged = judge_together(claims)
    assert [one.p_holm for one in judged] == [0.04, None, 0.003, 0.04]
    assert [one.verdict for one in judged] == ["holds", "holds", "fails", "holds"]
    judged = judge_together([*claims, claim_with(0.9), claim_with(0.9)])
    assert [one.verdict for one in judged[:4]] == ["undecided", "holds", "fails", "undecided"]
    assert judged[0].p_holm == pytest.approx(holm([0.02, 0.001, 0.04, 0.9, 0.9])[0])
    assert taken_away(judged) == [judged[0], judged[3]]


def test_a_claim_about_an_unfinished_training_is_dropped_and_says_why():
    claims = [claim_with(0.01, needs=("a", "b")), claim_with(0.01, needs=("a",)), claim_with(0.5)]
    kept, (dropped,) = drop_unfinished(claims, {"b": "too early"})
    assert kept == claims[1:]
    assert dropped.reason == "b: too early" and dropped.claim == "c" and dropped.test == "t"


def test_a_claim_without_numbers_has_no_columns_for_them():
    claim = Claim(claim="c", test="none", data="d", model="m")
    names = ["claim", "test", "data", "model", "unit", "alone", "verdict"]
    assert list(claim.row()) == names and str(claim) == "undecided c (m): none"
    (whole,) = judge_together([claim_with(0.01, needs=("a",))])
    assert str(whole) == "holds     c (m): +0.100 [+0.050, +0.150] accuracy, p 0.01, of all 0.01"
    assert whole.row()["p_holm"] == 0.01 and "needs" not in whole.row()


# ---- claims on held-out folds ----------------------------------------------------------------

HORIZON = 40
REACHED = {  # accuracy from pretrained weights
    "resnet50": 0.5,
    "densenet121": 0.3,
    "efficientnet_b0": 0.7,
    "efficientnet_b3": 0.9,
    "efficientnet_lite0": 0.9,
}


def answered(labels, accuracy, classes, seed):
    """Classes, uint8 [3, N], that are right as often as `accuracy` says."""
    random = np.random.default_rng(seed)
    wrong = (labels + 1) % classes
    return np.where(random.random((3, len(labels))) < accuracy, labels, wrong).astype(np.uint8)


def ended_at(epoch, picked, *, rise, noise):
    """A training whose validation loss is lowest at that epoch and whose test loss then rises by
    `rise` an epoch, on as many folds as `noise` has."""
    folds = len(noise)
    val_loss = np.tile(lowest_at([epoch], HORIZON), (folds, 1))
    after = np.maximum(0, np.arange(1, HORIZON + 1) - epoch)
    test_loss = 1 + (rise + noise[:, None]) * after
    curves = curves_of(val_loss, test_loss=test_loss, val_acc=np.full_like(val_loss, 0.6))
    return Ended(curves=curves, picked=picked)


@pytest.fixture(scope="module")
def planted():
    """What would be found if dropout helped against over-fitting, augmentation did nothing, and
    ResNet50's heads were not at their end without augmentation."""
    random = np.random.default_rng(1)
    labels = {FACES.name: np.arange(210) % 7, INSECTS.name: np.arange(200) % 2}
    folds = {
        name: make_folds(torch.from_numpy(its), k=5, repeats=3, seed=0)
        for name, its in labels.items()
    }
    classes = {FACES.name: 7, INSECTS.name: 2}
    answers = {}
    for seed, training in enumerate(list_answering({name for name in RANKED if name != "vit"})):
        its = labels[training.pair.dataset]
        accuracy = REACHED[training.pair.model] - 0.2 * (training.weights == "random")
        of_probe = min(1.0, accuracy + 0.2 * (training.pair == FACES_RESNET))
        answers[training] = Answers(
            head=answered(its, accuracy, classes[training.pair.dataset], seed),
            probe=None
            if training.weights == "random"
            else answered(its, of_probe, classes[training.pair.dataset], 100 + seed),
        )
    ended = {}
    for training in list_ended():
        its = labels[training.pair.dataset]
        late = training == Training(pair=FACES_RESNET, variant="no augmentation")
        ended[training] = ended_at(
            HORIZON if late else 20 if training.weights == "random" else 10,
            answered(its, 0.6, classes[training.pair.dataset], 7),
            rise=0.2 if training.variant == "no dropout" else 0.1,
            noise=random.normal(0, 0.005, 15),
        )
    majority = {name: np.zeros((3, len(its)), int) for name, its in labels.items()}
    return HeldOut(labels=labels, folds=folds, majority=majority, answers=answers, ended=ended)


def by_name(claims):
    """{(claim, backbone): the claim}"""
    return {(one.claim, one.model): one for one in claims}


def test_planted_differences_of_backbones_are_judged(planted):
    claims = by_name(judge_together(judge_backbones(planted)))
    verdicts = {name: one.verdict for name, one in claims.items()}
    rivals = "DenseNet121 is more accurate than ResNet50", "densenet121, resnet50"
    assert verdicts[rivals] == "fails"
    assert verdicts["Pretraining helps", "resnet50"] == "holds"
    assert verdicts["A frozen backbone with a new head is effective", "resnet50"] == "holds"
    better = "efficientnet_b3 is more accurate than efficientnet_b0"
    assert verdicts[better, "efficientnet_b3, efficientnet_b0"] == "holds"
    missing = claims["vit is more accurate than efficientnet_b3", "vit, efficientnet_b3"]
    assert missing.verdict == "undecided" and missing.p_holm is None and "missing" in missing.test
    probe = "The exact probe is more accurate than the study's head"
    assert verdicts[probe, "resnet50"] == "holds"
    assert verdicts[probe, "efficientnet_b0"] == "undecided"  # the same accuracy
    assert (probe, "vit") not in verdicts


def test_accuracy_is_judged_over_images_and_repeats(planted):
    labels = planted.labels[FACES.name]
    resnet = planted.answers[Training(pair=FACES_RESNET)].head == labels
    densenet = planted.answers[Training(pair=FACES_DENSENET)].head == labels
    expected = paired_over_images(densenet.astype(int) - resnet)
    claim = judge_backbones(planted)[0]
    assert claim.over == OVER_IMAGES
    assert (claim.value, claim.low, claim.p) == (expected.difference, expected.low, expected.p)


def test_the_speed_of_learning_is_epochs_to_what_random_weights_reach():
    """In the study's thirty epochs random weights reach their lowest loss, 1.0 and 2.0, in epochs 4
    and 3; pretrained ones are there in epoch 2, and never, which counts thirty."""
    pretrained = Training(pair=FACES_RESNET)
    random = Training(pair=FACES_RESNET, weights="random")
    losses = {
        pretrained: [[3.0, 1.0, 0.9] + [2.0] * 37, [3.0, 2.5, 2.4] + [2.2] * 37],
        random: [[3.0, 2.0, 1.5, 1.0] + [1.2] * 36, [3.0, 2.5, 2.0, 2.1] + [2.0] * 26 + [0.1] * 10],
    }
    none = np.zeros((1, 1), np.uint8)
    ended = {one: Ended(curves=curves_of(its), picked=none) for one, its in losses.items()}
    folds = {FACES.name: make_folds(torch.arange(20) % 2, k=2, repeats=1, seed=0)}
    found = HeldOut(labels={}, folds=folds, majority={}, answers={}, ended=ended)
    claim = judge_speed_of_learning(found, pretrained, random)
    expected = corrected_resampled_t([4 - 2, 3 - 30], 1.0)
    assert claim.value == expected.difference == -12.5 and claim.low == expected.low
    assert claim.needs == () and claim.over == OVER_FOLDS
    assert "1 of 2 folds never get there and count 30" in claim.test


def test_planted_differences_of_trainings_are_judged(planted):
    claims = [one for pair in ABLATED for one in judge_training(planted, pair)]
    kept, dropped = drop_unfinished(claims, planted.unfinished)
    assert {(one.claim, one.model) for one in dropped} == {
        ("Augmentation mitigates over-fitting", "resnet50"),
        ("Augmentation makes the head more accurate", "resnet50"),
    }
    assert "no augmentation: 100% of the folds" in dropped[0].reason
    verdicts = {name: one.verdict for name, one in by_name(judge_together(kept)).items()}
    assert verdicts["The head over-fits despite augmentation", "resnet50"] == "holds"
    assert verdicts["Dropout mitigates over-fitting", "densenet121"] == "holds"
    assert verdicts["Dropout makes the head more accurate", "densenet121"] == "undecided"
    assert verdicts["Augmentation mitigates over-fitting", "densenet121"] == "undecided"
    assert verdicts["Early stopping mitigates over-fitting", "efficientnet_lite0"] == "holds"
    # Validation 0.6, test 0: on every fold the same, so there is nothing to go by.
    flatters = by_name(kept)["Choosing the epoch flatters the accuracy", "resnet50"]
    assert flatters.value == pytest.approx(0.6) and flatters.alone == "undecided"


def test_rules_are_compared_in_the_studys_thirty_epochs(planted):
    """Beyond them the loss would rise for long enough for both rules to stop."""
    training = Training(pair=FACES_RESNET)
    curves = curves_of(np.tile(lowest_at([28], HORIZON), (15, 1)))
    one = Ended(curves=curves, picked=planted.ended[training].picked)
    found = replace(planted, ended=planted.ended | {training: one})
    claims = by_name(judge_training(found, FACES_RESNET))
    fewer = claims["Stopping after 5 epochs without a new best takes fewer epochs", "resnet50"]
    assert fewer.value == 0 and "in the study's 30 epochs" in fewer.test


def test_every_verdict_follows_from_the_arrays_that_are_written(planted):
    arrays = as_arrays(planted)
    stem = f"{FACES.name}/resnet50/pretrained/study"
    labels = arrays[f"{FACES.name}/labels"]
    assert (arrays[f"{stem}/head"] == labels).mean() == pytest.approx(0.5, abs=0.1)
    assert arrays[f"{stem}/val_loss"].shape == (15, HORIZON)
    assert arrays[f"{stem}/picked"].shape == arrays[f"{FACES.name}/fold"].shape == (3, 210)
    fold = planted.folds[FACES.name].folds[6]
    assert (arrays[f"{FACES.name}/fold"][fold.repeat, fold.test] == fold.number).all()


def overlapping(figure):
    """Pairs of words of a figure whose boxes overlap, and words that leave it."""
    figure.canvas.draw()
    texts = [one for one in figure.findobj(plt.Text) if one.get_visible()]
    texts = [one for one in texts if any(map(str.isalpha, one.get_text()))]
    boxes = [(one.get_text(), one.get_window_extent()) for one in texts]
    page = figure.bbox
    found = [text for text, box in boxes if box.x0 < page.x0 or box.x1 > page.x1]
    for place, (text, box) in enumerate(boxes):
        found += [(text, other) for other, at in boxes[:place] if box.overlaps(at)]
    return found


def test_the_figure_shows_every_claim_and_no_text_overlaps(planted):
    claims = judge_backbones(planted)
    for pair in ABLATED:
        claims += judge_training(planted, pair)
    slow = {"resnet50": [1.0, 1.1], "densenet121": [1.2, 1.2]}
    claims += judge_speed({"torch.float32": slow, "torch.bfloat16": slow})
    claims = judge_together([*claims, judge_size()])
    figure = plot_findings(claims, "95 % intervals")
    marks = [line for axis in figure.axes for line in axis.lines if line.get_marker() in "oXs"]
    assert len(marks) == len(claims) - 1  # one has no value
    assert figure.get_suptitle().startswith(f"{len(claims) - 1} tests of the study's claims")
    assert overlapping(figure) == []
    plt.close(figure)


@pytest.mark.parametrize(("option", "least"), [("repeats", 3), ("horizon", 30)])
def test_what_leaves_no_verdict_is_refused(option, least):
    given = ["--data", "d", "--weights", "w", f"--{option}"]
    findings.check_options(findings.parse([*given, str(least)]))
    with pytest.raises(UserError, match=f"{option} is {least - 1}: give {least} or more"):
        findings.check_options(findings.parse([*given, str(least - 1)]))


# ---- what is trained -------------------------------------------------------------------------


def test_what_is_trained_on_each_fold(study):
    """Curves of all epochs; predictions of the epoch of the lowest validation loss; the study's
    head as it is anywhere else."""
    whole = replace(study, fold=everything_fold(study.image_set))
    folds = make_folds(study.image_set.labels, k=4, repeats=3, seed=0)
    frozen = freeze_backbone(TINY, whole, weights="none")
    found = {
        variant: train_to_end(frozen, whole, folds, variant=variant, epochs=6)
        for variant in VARIANTS
    }
    labels = study.image_set.labels.numpy()
    for ended in found.values():
        curves = ended.curves
        assert {values.shape for values in vars(curves).values()} == {(12, 6)}
        lowest = curves.chosen(stop_never)
        expected = at_epoch(curves.test_acc, lowest)
        right = ended.picked == labels
        by_fold = [right[fold.repeat, fold.test].mean() for fold in folds]
        assert by_fold == pytest.approx(expected)
        kept = findings.kept_ended(findings.keep_ended(ended))
        assert (kept.picked == ended.picked).all()
        assert (kept.curves.test_loss == curves.test_loss).all()
    losses = [found[variant].curves.val_loss for variant in VARIANTS]
    assert all((one != losses[0]).any() for one in losses[1:])
    answers = ask_both(frozen, whole, folds)
    assert ask_head(frozen, whole, folds).probe is None
    heads = predict_with_heads(frozen, whole, folds).probabilities.argmax(2)
    assert (answers.head == heads).all() and answers.probe.shape == heads.shape == (3, 16)


# ---- speed, size, modes ----------------------------------------------------------------------


def test_speed_and_size():
    slow, fast = [1.3, 1.31, 1.29], [1.0, 1.0, 1.0]
    (claim,) = judge_speed({"torch.float32": {"resnet50": fast, "densenet121": slow}})
    assert claim.alone == "holds" and claim.value == pytest.approx(0.3) and claim.p is None
    (claim,) = judge_speed({"torch.float32": {"resnet50": slow, "densenet121": fast}})
    assert claim.alone == "fails"
    size = judge_size()
    assert size.alone == "fails" and "25,557,032 and 7,978,856" in size.test


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
    assert claim.alone == "holds" and claim.p == pytest.approx(2 * 0.5**12)
    close = {"eval": [True] * 20, "train": [False] * 4 + [True] * 16}
    assert judge_modes(close).alone == "undecided"

"""The probe against scikit-learn's logistic regression, and against the objective it states."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn import functional as F

from transferlab.data import Fold
from transferlab.errors import DataError
from transferlab.heldout import make_folds, training_part
from transferlab.probe import (
    EXACT,
    RISES,
    STRENGTHS,
    StrengthChoice,
    choose_strengths,
    fit_probe,
    fit_probes,
    rotate,
)

SHAPES = [(60, 20, 3), (40, 90, 4), (50, 30, 2), (30, 70, 2)]  # images, features, classes


def drawn(images: int, features: int, classes: int, apart: float = 0.5):
    """Features of overlapping classes, some of them large, small or shifted -> (x, labels)."""
    random = np.random.default_rng(0)
    labels = np.arange(images) % classes
    centres = random.normal(size=(classes, features)) * apart
    x = centres[labels] + random.normal(size=(images, features))
    x *= 10 ** random.uniform(-0.8, 0.8, features)
    x += 10 * random.normal(size=features)
    return x.astype(np.float32), labels


def standard(x, part):
    """Features as the images of `part` standardise them, constant ones left out."""
    exact = x.astype(np.float64)
    deviation = exact[part].std(0)
    varies = deviation > 1e-8 * deviation.max()
    return (exact[:, varies] - exact[part].mean(0)[varies]) / deviation[varies]


def scikit_learns(z, labels, part, strength):
    """Scikit-learn's regression of that strength, fitted on standardised features of `part`."""
    regression = LogisticRegression(
        C=1 / (strength * len(part)), solver="newton-cholesky", max_iter=1000, tol=1e-10
    )
    return regression.fit(z[part], labels[part])


@pytest.mark.parametrize("strength", [10.0, 0.1, 0.001])
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_scikit_learns(shape, strength):
    x, labels = drawn(*shape)
    part = np.arange(len(x) * 3 // 4)
    probe = fit_probe(x[part], labels[part], classes=shape[2], strength=strength)
    z = standard(x, part)
    expected = scikit_learns(z, labels, part, strength).predict_proba(z)
    assert probe.norm <= EXACT
    assert np.abs(probe.probabilities(x) - expected).max() < 1e-4
    assert probe.probabilities(x).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1]])
def test_the_gradient_of_the_stated_objective_is_as_small_as_said(shape):
    """By automatic differentiation, in the standardised features themselves."""
    x, labels = drawn(*shape)
    probe = fit_probe(x, labels, classes=shape[2], strength=0.01)
    exact = x.astype(np.float64)
    z = torch.from_numpy(standard(x, np.arange(len(x))))
    weights = torch.from_numpy(probe.weights * exact.std(0)[:, None]).requires_grad_()
    bias = torch.from_numpy(probe.bias + exact.mean(0) @ probe.weights).requires_grad_()
    loss = F.cross_entropy(z @ weights + bias, torch.from_numpy(labels))
    (loss + 0.01 / 2 * weights.square().sum()).backward()
    norm = torch.cat([weights.grad.flatten(), bias.grad]).norm()
    assert float(norm) <= 1.01 * EXACT
    assert float(norm) == pytest.approx(probe.norm, rel=0.1, abs=1e-10)


def test_neither_scale_nor_place_of_a_feature_matters():
    x, labels = drawn(40, 25, 3)
    moved = x.astype(np.float64) * np.linspace(0.5, 2, 25) + np.linspace(-3, 3, 25)
    probe = fit_probe(x, labels, classes=3, strength=0.1)
    other = fit_probe(moved, labels, classes=3, strength=0.1)
    assert np.abs(probe.probabilities(x) - other.probabilities(moved)).max() < 1e-5


@pytest.mark.parametrize("features", [10, 90])
def test_constant_features_say_nothing(features):
    x, labels = drawn(45, features, 3)
    x[:, 2] = 7.3
    x[:, 5] = 0
    probe = fit_probe(x, labels, classes=3, strength=0.1)
    without = np.delete(x, [2, 5], axis=1)
    expected = fit_probe(without, labels, classes=3, strength=0.1).probabilities(without)
    x[:, 2] = -50.0  # of other images: still nothing
    assert np.abs(probe.probabilities(x) - expected).max() < 1e-6
    assert not probe.weights[[2, 5]].any()


def test_of_features_that_are_all_constant_only_the_shares_are_left():
    labels = np.array([0] * 6 + [1] * 3)
    probe = fit_probe(np.ones((9, 4), np.float32), labels, classes=2, strength=0.1)
    assert probe.probabilities(np.ones((1, 4)))[0] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_class_without_an_image_gets_no_probability(missing):
    x, labels = drawn(60, 20, 4)
    part = np.where(labels != missing)[0]
    probe = fit_probe(x[part], labels[part], classes=4, strength=0.1)
    probabilities = probe.probabilities(x)
    z = standard(x, part)
    others = [label for label in range(4) if label != missing]
    expected = scikit_learns(z, labels, part, 0.1).predict_proba(z)
    assert not probabilities[:, missing].any()
    assert np.abs(probabilities[:, others] - expected).max() < 1e-4


def test_what_rounding_alone_may_stir_is_not_blown_up_elsewhere():
    """A dead feature that one training image stirs a little, and another image a thousand times as
    much, decides nothing where it was computed in bf16; in fp32 it is a feature like any other."""
    x, labels = drawn(60, 20, 3)
    dead = np.zeros((60, 1), np.float32)
    dead[7] = 1e-4
    dead[55] = 0.1
    both = np.hstack([x, dead])

    def probabilities(features, precision):
        probe = fit_probe(features[:50], labels[:50], classes=3, strength=0.1, precision=precision)
        return probe.probabilities(features)

    quiet = probabilities(x, torch.bfloat16)
    assert probabilities(both, torch.bfloat16) == pytest.approx(quiet, abs=1e-6)
    z = standard(both, np.arange(50))
    expected = scikit_learns(z, labels, np.arange(50), 0.1).predict_proba(z)
    assert np.abs(probabilities(both, torch.float32) - expected).max() < 1e-4
    small = np.hstack([x, x[:, :1] / 50])  # a fiftieth of another: far from dead
    probe = fit_probe(small, labels, classes=3, strength=0.1, precision=torch.bfloat16)
    assert probe.weights[-1].any()


def test_small_scales_among_large_ones_are_features_too():
    x, labels = drawn(50, 12, 3)
    x *= np.logspace(-3, 3, 12, dtype=np.float32)
    part = np.arange(40)
    probe = fit_probe(x[part], labels[part], classes=3, strength=0.1)
    z = standard(x, part)
    expected = scikit_learns(z, labels, part, 0.1).predict_proba(z)
    assert np.abs(probe.probabilities(x) - expected).max() < 1e-4


def test_one_class_alone_is_certain():
    x, _ = drawn(10, 5, 2)
    probe = fit_probe(x, np.full(10, 1), classes=3, strength=0.1)
    assert probe.probabilities(x).tolist() == [[0.0, 1.0, 0.0]] * 10


def test_rotation_keeps_every_product():
    for images, features in ((40, 12), (12, 40)):
        x = drawn(images, features, 2)[0].astype(np.float64)
        space, rotation = rotate(x)
        z = standard(x, np.arange(images))
        assert space.rows.shape == (images, min(images, features))
        assert space.rows @ space.rows.T == pytest.approx(z @ z.T, abs=1e-8)
        assert rotation.turn(x) == pytest.approx(space.rows, abs=1e-6)
        products = space.rows.T @ space.rows / images
        assert products == pytest.approx(np.diag(space.variances), abs=1e-8)


def plain_losses(x, labels, fold, strengths):
    """The log-loss on a fold's images that decide, by scikit-learn, strength by strength."""
    train = fold.train.numpy()
    val = fold.val.numpy()
    z = standard(x, train)
    losses = []
    for strength in strengths:
        fitted = scikit_learns(z, labels, train, strength)
        known = val[np.isin(labels[val], fitted.classes_)]
        losses.append(
            log_loss(labels[known], fitted.predict_proba(z[known]), labels=fitted.classes_)
        )
    return np.array(losses)


def tried_by_the_rule(losses):
    """How many strengths are tried: until each fold has gone two without a loss below its best."""
    for tried in range(1, len(losses)):
        lowest = losses[:tried].argmin(0)
        if (tried - 1 - lowest >= RISES).all():
            return tried
    return len(losses)


@pytest.mark.parametrize("shape", [(67, 20, 3), (58, 90, 3)])
def test_strengths_are_those_that_scikit_learn_would_choose(shape):
    """On folds of unequal size, N > D and N < D."""
    x, labels = drawn(*shape, apart=0.2)
    folds = make_folds(torch.from_numpy(labels), k=4, repeats=1, seed=1)
    assert len({len(fold.train) for fold in folds}) > 1
    choice = choose_strengths(x, labels, folds, tolerance=EXACT)
    expected = np.stack([plain_losses(x, labels, fold, STRENGTHS) for fold in folds], axis=1)
    tried = tried_by_the_rule(expected)
    assert 4 <= tried < len(STRENGTHS)
    assert choice.losses.shape == (tried, 4)
    assert np.abs(choice.losses - expected[:tried]).max() < 1e-4
    assert choice.chosen.tolist() == np.array(STRENGTHS)[expected[:tried].argmin(0)].tolist()
    assert choice.final == STRENGTHS[int(expected[:tried].mean(1).argmin())]
    roughly = choose_strengths(x, labels, folds)
    assert roughly.chosen.tolist() == choice.chosen.tolist()


def test_a_strength_is_chosen_on_the_images_that_decide_alone():
    """What lies in the test fold, and in `train` beyond the fold, changes nothing."""
    x, labels = drawn(50, 30, 2)
    folds = make_folds(torch.from_numpy(labels), k=2, repeats=1, seed=0)
    before = choose_strengths(x, labels, folds.folds[:1]).losses
    test = folds.folds[0].test.numpy()
    other = x.copy()
    other[test] = 1e6
    flipped = labels.copy()
    flipped[test] = 1 - flipped[test]
    assert (choose_strengths(other, flipped, folds.folds[:1]).losses == before).all()


def test_classes_that_a_fold_does_not_train_on_decide_nothing():
    x, labels = drawn(40, 10, 4)
    train = torch.from_numpy(np.where(labels[:30] != 1)[0])
    fold = Fold(train=train, val=torch.arange(30, 40))
    losses = choose_strengths(x, labels, [fold], tolerance=EXACT).losses[:, 0]
    expected = plain_losses(x, labels, fold, STRENGTHS[: len(losses)])
    assert losses == pytest.approx(expected, abs=1e-4)
    only_unknown = Fold(train=train, val=torch.tensor([1, 5]))
    with pytest.raises(DataError, match="no image to choose"):
        choose_strengths(x, labels, [only_unknown])


def test_probes_of_folds_are_those_of_each_alone_whatever_the_threads():
    x, labels = drawn(61, 40, 3)
    folds = make_folds(torch.from_numpy(labels), k=3, repeats=1, seed=0)
    parts = [training_part(fold) for fold in folds]
    strengths = [0.01, 1.0, 100.0]
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(fit_probes(x, labels, parts, strengths, classes=3))
    torch.set_num_threads(threads)
    for one, again, part, strength in zip(*found, parts, strengths):
        alone = fit_probe(x[part], labels[part], classes=3, strength=strength)
        assert (one.weights == again.weights).all() and (one.bias == again.bias).all()
        assert one.strength == strength and one.norm <= EXACT
        assert np.abs(one.probabilities(x) - alone.probabilities(x)).max() < 1e-9
    assert torch.get_num_threads() == threads


def test_the_mean_decides_for_all_images():
    losses = np.array([[1.0, 1.0, 1.0], [0.5, 0.9, 0.9], [0.6, 0.7, 0.9], [0.7, 0.8, 0.69]])
    choice = StrengthChoice(losses=losses)
    assert choice.chosen.tolist() == [STRENGTHS[1], STRENGTHS[2], STRENGTHS[3]]
    assert choice.final == STRENGTHS[3]  # their means: 1, 0.767, 0.733, 0.733 less a little


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    x, labels = drawn(20, 5, 2)
    x[3, 1] = value
    with pytest.raises(DataError, match="not finite"):
        fit_probe(x, labels, classes=2, strength=1.0)

"""What features say before training: evidence against a closed form, stages against the model's
own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import BayesianRidge

from benchmarks.common import Pair
from benchmarks.domain_gap import (
    Tuning,
    describe_features,
    log_evidence,
    plot_gap,
    stage_means,
    tune_partly,
)
from transferlab.backbones import create_backbone, normalize
from transferlab.data import everything_fold
from transferlab.datasets import DATASETS
from transferlab.heldout import make_folds
from transferlab.metrics import debiased_cka
from transferlab.study import freeze_backbone

TINY = "test_resnet.r160_in1k"


def test_log_evidence_is_the_density_of_the_labels():
    """Against the Gaussian that the model says they are drawn from, at the precisions that were
    found."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    features = np.c_[labels[:, None] + random.normal(0, 0.4, (60, 3)), random.normal(0, 1, (60, 5))]
    flat = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    densities = []
    for label in (0, 1):
        target = (labels == label).astype(float)
        ridge = BayesianRidge(fit_intercept=False, max_iter=1000, tol=1e-6, **flat).fit(
            features, target
        )
        covariance = np.eye(60) / ridge.alpha_ + features @ features.T / ridge.lambda_
        densities.append(multivariate_normal(np.zeros(60), covariance).logpdf(target) / 60)
    assert log_evidence(features, labels) == pytest.approx(np.mean(densities), abs=1e-4)
    assert log_evidence(features, labels) > log_evidence(features[random.permutation(60)], labels)


def test_cka_knows_the_same_features_and_unrelated_ones():
    random = np.random.default_rng(0)
    x, turn = random.normal(size=(30, 8)), np.linalg.qr(random.normal(size=(8, 8)))[0]
    assert debiased_cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    unrelated = [
        debiased_cka(random.normal(size=(30, 200)), random.normal(size=(30, 200)))
        for _ in range(50)
    ]
    assert abs(np.mean(unrelated)) < 0.02  # the plain one is near 0.87 here


def test_stages_are_the_models_own(study):
    model, _ = create_backbone(TINY, "none")
    images = next(study.renderer.blocks(0, torch.arange(5)))
    found = stage_means(model, images.split(2))
    assert list(found) == [info["module"] for info in model.feature_info]
    with torch.inference_mode():
        expected = model.forward_features(normalize(model, images)).mean((2, 3))
    assert torch.allclose(found["layer4"], expected, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_lies_below_the_cut_stays(study):
    settings = replace(study.settings, epochs=2, lr=1e-4)
    tuning = Tuning(pair=Pair(dataset="d", model=TINY), cut="layer4")
    _, info = create_backbone(TINY, "none")
    found = tune_partly(replace(study, settings=settings), tuning, info, "none")
    same = np.diag(found.cka)
    assert found.stages[-1] == "layer4" and found.epochs == 2
    assert same[:-1] == pytest.approx(1) and same[-1] < 1 - 1e-6
    row = {"model": "m", "knn_accuracy": 0.5, "knn_low": 0.4, "knn_high": 0.6, "logme": 1.0}
    table = pd.DataFrame([{"dataset": name, **row} for name in DATASETS])
    plot_gap(table, {tuning: found}, "made up").savefig("/dev/null", format="png")


def test_a_backbone_is_described_on_held_out_images(study):
    whole = replace(study, fold=everything_fold(study.image_set))
    frozen = freeze_backbone(TINY, whole, weights="none")
    folds = make_folds(study.image_set.labels, k=4, repeats=2, seed=0)
    row = describe_features(frozen, whole, folds)
    assert row.n == 16 and 0 <= row.knn_low <= row.knn_accuracy <= row.knn_high <= 1

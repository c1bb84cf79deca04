"""What features say before training: evidence against a closed form, stages against the model's own."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import BayesianRidge

from benchmarks import domain_gap
from benchmarks.domain_gap import (
    describe_features,
    log_evidence,
    plot_gap,
    stage_means,
    tune_partly,
)
from transferlab.backbones import create_backbone, normalize
from transferlab.compare import make_folds
from transferlab.metrics import debiased_cka
from transferlab.study import freeze_backbone

TINY = "test_resnet.r160_in1k"


def test_log_evidence_is_the_density_of_the_labels():
    """Against the Gaussian that the model says they are drawn from, at the precisions that were found."""
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
    images = next(iter(study.blocks(0, torch.arange(5))))
    found = stage_means(model, images.split(2))
    assert list(found) == [info["module"] for info in model.feature_info]
    with torch.inference_mode():
        expected = model.forward_features(normalize(model, images)).mean((2, 3))
    assert torch.allclose(found["layer4"], expected, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_lies_below_the_cut_stays(study, monkeypatch):
    monkeypatch.setattr(domain_gap, "make_study", lambda *_, **__: study)
    found = tune_partly("", "d", TINY, "layer4", "none", 2)
    same = np.diag(found["cka"])
    assert found["stages"][-1] == "layer4" and same[:-1] == pytest.approx(1) and same[-1] < 1 - 1e-6
    table = pd.DataFrame(
        [
            {
                "dataset": name,
                "model": "m",
                "knn_accuracy": 0.5,
                "knn_low": 0.4,
                "knn_high": 0.6,
                "logme": 1.0,
            }
            for name in (domain_gap.FACES, domain_gap.INSECTS)
        ]
    )
    plot_gap(table, [{"dataset": "d", "model": TINY, "cut": "layer4"} | found], "made up").savefig(
        "/dev/null", format="png"
    )


def test_a_backbone_is_described_on_held_out_images(study):
    everything = torch.arange(len(study.image_set.labels))
    whole = study._replace(indices={"train": everything, "val": everything})
    row = describe_features(
        freeze_backbone(TINY, whole, weights="none"),
        whole,
        make_folds(study.image_set.labels, 4, 2, 0),
    )
    assert row["n"] == 16 and 0 <= row["knn_low"] <= row["knn_accuracy"] <= row["knn_high"] <= 1

"""compare: the folds, the scores recomputed by scikit-learn, the verdict, nothing computed twice."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from transferlab import cli, compare
from transferlab.compare import (
    compare_pairs,
    make_folds,
    score_model,
    verdict_text,
    zero_shot_classes,
)
from transferlab.errors import UserError
from transferlab.views import hymenoptera_views


def random_predictions(n=60, classes=3, repeats=2, seed=0):
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(classes), (repeats, n)).astype(np.float32), random.integers(
        0, classes, n
    )


def test_folds_are_disjoint_complete_and_the_same_for_all():
    labels = torch.tensor([0] * 20 + [1] * 35)
    folds, again = (make_folds(labels, 5, 3, seed=4) for _ in range(2))
    assert [fold[:2] for fold in folds] == [
        (repeat, fold) for repeat in range(3) for fold in range(5)
    ]
    for repeat in range(3):
        tests = torch.cat([test for r, _, _, _, test in folds if r == repeat])
        assert sorted(tests.tolist()) == list(range(55))
    for one, other in zip(folds, again):
        assert all(torch.equal(a, b) for a, b in zip(one[2:], other[2:]))
        assert sorted(torch.cat(one[2:]).tolist()) == list(range(55))
        assert len(one[3]) == int(0.2 * (len(one[2]) + len(one[3])))
    with pytest.raises(UserError, match="give from 2 to 20"):
        make_folds(labels, 21, 1, seed=0)


def test_scores_are_scikit_learns():
    probabilities, labels = random_predictions()
    scores = score_model(probabilities, labels)
    predicted = probabilities.argmax(2)
    assert scores["accuracy"] == pytest.approx(
        np.mean([accuracy_score(labels, p) for p in predicted])
    )
    assert scores["macro_f1"] == pytest.approx(
        np.mean([f1_score(labels, p, average="macro") for p in predicted])
    )
    assert scores["log_loss"] == pytest.approx(
        np.mean([log_loss(labels, p) for p in probabilities]), abs=1e-6
    )
    brier = [sum(brier_score_loss(labels == c, p[:, c]) for c in range(3)) for p in probabilities]
    assert scores["brier"] == pytest.approx(np.mean(brier), abs=1e-6)
    for name in ("accuracy", "macro_f1", "log_loss", "brier"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def found_with(rates, labels, folds, seed=0):
    """Models that are right on an image with the given chances, independently."""
    random, repeats = np.random.default_rng(seed), 1 + folds[-1][0]
    found = {}
    for name, rate in rates.items():
        right = random.random((repeats, len(labels))) < rate
        guess = np.where(right, labels, 1 - labels)
        found[name] = {"probabilities": np.eye(2, dtype=np.float32)[guess]}
    return found


def test_a_clear_difference_is_found_and_none_is_not():
    labels = np.array([0, 1] * 100)
    folds = make_folds(torch.from_numpy(labels), 5, 5, seed=0)
    rows = compare_pairs(
        found_with({"good": 0.9, "bad": 0.6, "worse": 0.58}, labels, folds), labels, folds
    )
    verdicts = {(row["model_a"], row["model_b"]): row for row in rows}
    assert (
        verdicts["good", "bad"]["verdict"] == "good better" and verdicts["good", "worse"]["low"] > 0
    )
    same = verdicts["bad", "worse"]
    assert same["verdict"] == "indistinguishable" and same["low"] < 0 < same["high"]
    text = verdict_text(same, 200)
    assert "indistinguishable" in text and "images needed to see 1, 2, 3, 5 points" in text
    assert same["images_for_1_points"] == pytest.approx(25 * same["images_for_5_points"], rel=0.01)
    assert "good better" in verdict_text(verdicts["good", "bad"], 200)


def test_zero_shot_classes_are_imagenets():
    assert zero_shot_classes(["ants", "bees"]) == [310, 309]
    assert zero_shot_classes(["ants", "happy"]) is None


def test_the_random_baseline_names_its_own_weights(image_folder, tmp_path, monkeypatch):
    """Beside a backbone from a file; its own classifier has 5 classes, so nothing can be asked without training."""
    monkeypatch.setitem(compare.VIEWS, "photos", lambda: hymenoptera_views(32))
    (tmp_path / "weights").mkdir()
    save_file(
        timm.create_model("test_resnet", num_classes=5).state_dict(),
        tmp_path / "weights" / "test_resnet.safetensors",
    )
    arguments = [
        "compare",
        "--models",
        "test_resnet",
        "--data",
        str(image_folder),
        "--weights",
        str(tmp_path / "weights"),
    ]
    assert (
        cli.main(
            [
                *arguments,
                "--folds",
                "4",
                "--repeats",
                "1",
                "--views",
                "1",
                "--out",
                str(tmp_path),
                "--cache-dir",
                "",
            ]
        )
        == 0
    )
    pairs = pd.read_csv(next(tmp_path.glob("result/compare_pairs_*.csv")))
    assert pairs.empty and "verdict" in pairs  # of one model there are none, and the table says so
    weights = (
        pd.read_csv(next(tmp_path.glob("result/compare_metrics_*.csv"))).set_index("model").weights
    )
    assert "random" in weights["test_resnet, random initialisation"]
    assert weights["test_resnet"] == weights["test_resnet, k-NN"] == "file test_resnet.safetensors"


def test_the_command_end_to_end(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(compare.VIEWS, "photos", lambda: hymenoptera_views(32))
    out, models = tmp_path / "out", ("test_resnet", "test_efficientnet")
    arguments = [
        "compare",
        "--models",
        *models,
        "--data",
        str(image_folder),
        "--weights",
        "none",
        "--cache-dir",
        "",
    ]
    arguments += ["--folds", "4", "--repeats", "2", "--views", "2", "--out", str(out)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "test_resnet less test_efficientnet" in printed
    read = {
        part: pd.read_csv(next(out.glob(f"result/compare_{part}_*.csv")))
        for part in ("predictions", "metrics", "pairs")
    }
    predictions, metrics = read["predictions"], read["metrics"].set_index("model")
    assert list(predictions) == [
        "dataset",
        "model",
        "repeat",
        "fold",
        "path",
        "label",
        "predicted",
        "p_disc",
        "p_square",
    ]
    assert len(list(out.glob("img/compare_*.png"))) == 1
    baselines = {
        f"{model}, {baseline}" for model in models for baseline in ("k-NN", "logistic regression")
    }
    assert set(metrics.index) == {*models, *baselines, "majority class"}
    for model, rows in predictions.groupby("model"):
        assert len(rows) == 32 and set(rows.path) == {
            f"{c}/{i}.png" for c in ("disc", "square") for i in range(8)
        }
        by_repeat = [
            f1_score(part.label, part.predicted, average="macro")
            for _, part in rows.groupby("repeat")
        ]
        assert metrics.macro_f1[model] == pytest.approx(np.mean(by_repeat))
        assert metrics.accuracy[model] == pytest.approx((rows.label == rows.predicted).mean())
    assert metrics.selection_optimism[[*models]].min() >= 0
    assert (
        json.loads(next(out.glob("result/compare_summary_*.json")).read_text())["settings"]["views"]
        == 2
    )
    monkeypatch.setattr(compare, "predict_with_heads", pytest.fail)
    assert (
        cli.main([*arguments, "--baselines", "none"]) == 0
    )  # a finished model is not computed again
    assert cli.main([*arguments, "--models", "test_resnet", "test_resnet"]) == 2

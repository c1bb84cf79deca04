"""compare: the folds, the scores recomputed by scikit-learn, the verdict, nothing computed twice,
parts from several machines."""

import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from transferlab import store
from transferlab.__main__ import main
from transferlab.commands import compare
from transferlab.data import everything_fold, load_images
from transferlab.datasets import DATASETS, Dataset
from transferlab.errors import UserError
from transferlab.heldout import (
    ComparisonRecord,
    Predictions,
    compare_pairs,
    keep_predictions,
    kept_predictions,
    make_folds,
    predict_majority,
    score_model,
    study_of_all,
    training_part,
    verdict_text,
    zero_shot_classes,
)
from transferlab.machine import this_machine
from transferlab.records import from_plain
from transferlab.train import Settings
from transferlab.views import photos_augmentation

MODELS = ("test_resnet", "test_efficientnet")


def random_predictions(n=60, classes=3, repeats=2, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), (repeats, n)).astype(np.float32)
    return probabilities, random.integers(0, classes, n)


@pytest.fixture
def small_views(image_folder, monkeypatch):
    """The folder's own augmentation: that of photos, at 32 px."""
    own = Dataset(
        name=image_folder.name,
        label="discs and squares",
        augmentation=lambda size: replace(photos_augmentation(32), name="small photos"),
    )
    monkeypatch.setitem(DATASETS, own.name, own)


def run_compare(image_folder, out, *more):
    """Compares two tiny models on the folder, randomly initialised -> exit code."""
    arguments = ["compare", "--models", *MODELS, "--data", str(image_folder)]
    arguments += ["--weights", "none", "--cache-dir", "", "--folds", "4", "--repeats", "2"]
    return main([*arguments, "--views", "2", "--out", str(out), *more])


def read_tables(out):
    """The tables of a comparison, by their names."""
    names = ("predictions", "metrics", "pairs")
    return {name: pd.read_csv(next(out.glob(f"result/compare_{name}_*.csv"))) for name in names}


def read_summary(out):
    return json.loads(next(out.glob("result/compare_summary_*.json")).read_text())


def written(out):
    """The files that are no finished parts, relative to the folder."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return [path for path in files if path.parent.name != "compare_finished"]


def test_folds_are_disjoint_complete_and_the_same_for_all():
    labels = torch.tensor([0] * 20 + [1] * 35)
    folds, again = (make_folds(labels, k=5, repeats=3, seed=4) for _ in range(2))
    assert (folds.k, folds.repeats, len(folds)) == (5, 3, 15)
    assert [(fold.repeat, fold.number) for fold in folds] == [
        (repeat, number) for repeat in range(3) for number in range(5)
    ]
    for repeat in range(3):
        tests = torch.cat([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tests.tolist()) == list(range(55))
    for one, other in zip(folds, again):
        parts, other_parts = ((f.train, f.val, f.test) for f in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(parts, other_parts))
        assert sorted(torch.cat(parts).tolist()) == list(range(55))
        assert len(one.val) == int(0.2 * len(training_part(one)))
    assert folds.hash == again.hash != make_folds(labels, k=5, repeats=3, seed=5).hash
    with pytest.raises(UserError, match="give from 2 to 20"):
        make_folds(labels, k=21, repeats=1, seed=0)


def test_scores_are_scikit_learns():
    probabilities, labels = random_predictions()
    scores = score_model(
        "resnet50",
        Predictions(probabilities=probabilities),
        labels,
        baseline=False,
        weights="drawn",
        folds=10,
    )
    assert scores.folds == 10
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
    assert "selection_optimism" not in row  # of heads alone


def found_with(rates, labels, folds, seed=0):
    """Models that are right on an image with the given chances, independently."""
    random = np.random.default_rng(seed)
    found = {}
    for name, rate in rates.items():
        right = random.random((folds.repeats, len(labels))) < rate
        guess = np.where(right, labels, 1 - labels)
        found[name] = Predictions(probabilities=np.eye(2, dtype=np.float32)[guess])
    return found


def test_a_clear_difference_is_found_and_none_is_not():
    labels = np.array([0, 1] * 100)
    folds = make_folds(torch.from_numpy(labels), k=5, repeats=5, seed=0)
    pairs = compare_pairs(
        found_with({"good": 0.9, "bad": 0.6, "worse": 0.58}, labels, folds), labels, folds
    )
    verdicts = {(pair.model_a, pair.model_b): pair for pair in pairs}
    assert verdicts["good", "bad"].verdict == "good better"
    assert verdicts["good", "worse"].test.low > 0
    same = verdicts["bad", "worse"]
    assert same.verdict == "indistinguishable" and same.test.low < 0 < same.test.high
    text = verdict_text(same, 200)
    assert "indistinguishable" in text and "images needed to see 1, 2, 3, 5 points" in text
    row = same.row()
    assert row["images_for_1_points"] == pytest.approx(25 * row["images_for_5_points"], rel=0.01)
    assert "good better" in verdict_text(verdicts["good", "bad"], 200)


def test_the_better_one_is_named_whichever_comes_first():
    labels = np.array([0, 1] * 100)
    folds = make_folds(torch.from_numpy(labels), k=5, repeats=5, seed=0)
    (pair,) = compare_pairs(found_with({"bad": 0.6, "good": 0.9}, labels, folds), labels, folds)
    assert pair.verdict == "good better" and pair.test.high < 0


def test_zero_shot_classes_are_imagenets():
    assert zero_shot_classes(["ants", "bees"]) == [310, 309]
    assert zero_shot_classes(["ants", "happy"]) is None


def test_predictions_come_back_as_they_were_kept():
    probabilities, _ = random_predictions()
    for predictions in (
        Predictions(probabilities=probabilities),
        Predictions(
            probabilities=probabilities,
            optimism=np.array([0.1, 0.0]),
            epochs=np.array([3, 7]),
            machine=this_machine(),
        ),
    ):
        again = kept_predictions(keep_predictions(predictions))
        assert np.array_equal(again.probabilities, probabilities)
        assert again.machine == predictions.machine
        for name in ("optimism", "epochs"):
            one, other = getattr(again, name), getattr(predictions, name)
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(one, other)


def test_a_study_of_all_images_is_cut_by_folds(image_folder):
    images = load_images(image_folder)
    machine = this_machine()
    study = study_of_all(images, photos_augmentation(32), Settings(), seed=3, machine=machine)
    everything = everything_fold(images)
    assert torch.equal(study.fold.train, everything.train) and study.renderer.seed == 3
    assert torch.equal(study.fold.val, torch.arange(16))
    folds = make_folds(images.labels, k=4, repeats=1, seed=0)
    majority = predict_majority(images, folds).probabilities
    assert majority.shape == (1, 16, 2) and np.allclose(majority, 0.5)


def test_the_random_baseline_names_its_own_weights(image_folder, tmp_path, small_views):
    """Beside a backbone from a file; its own classifier has 5 classes, so nothing can be asked
    without training."""
    (tmp_path / "weights").mkdir()
    save_file(
        timm.create_model("test_resnet", num_classes=5).state_dict(),
        tmp_path / "weights" / "test_resnet.safetensors",
    )
    arguments = ["compare", "--models", "test_resnet", "--data", str(image_folder)]
    arguments += ["--weights", str(tmp_path / "weights"), "--folds", "4", "--repeats", "1"]
    assert main([*arguments, "--views", "1", "--out", str(tmp_path), "--cache-dir", ""]) == 0
    tables = read_tables(tmp_path)
    # Of one model there are no pairs, and the table says so.
    assert tables["pairs"].empty and "verdict" in tables["pairs"]
    weights = tables["metrics"].set_index("model").weights
    assert "random" in weights["test_resnet, random initialisation"]
    assert weights["test_resnet"] == weights["test_resnet, k-NN"] == "file test_resnet.safetensors"


def test_the_command_end_to_end(image_folder, tmp_path, monkeypatch, capsys, small_views):
    out = tmp_path / "out"
    assert run_compare(image_folder, out) == 0
    printed = capsys.readouterr().out
    assert "test_resnet less test_efficientnet" in printed
    assert "6 of 6 parts are to be computed" in printed
    read = read_tables(out)
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
        f"{model}, {baseline}" for model in MODELS for baseline in ("k-NN", "logistic regression")
    }
    assert set(metrics.index) == {*MODELS, *baselines, "majority class"}
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
    assert metrics.selection_optimism[[*MODELS]].min() >= 0
    summary = read_summary(out)
    record = from_plain(ComparisonRecord, summary)
    assert record.settings.views == 2 and record.kind == "compare" and record.stamp
    assert record.augmentation.name == "small photos" and record.augmentation.size == 32
    assert [info.name for info in record.weights] == [*MODELS]
    assert record.machines == (record.machine,)
    monkeypatch.setattr(compare, "predict_with_heads", pytest.fail)
    # A finished model is not computed again.
    assert run_compare(image_folder, out, "--baselines", "none") == 0
    assert "are to be computed" not in capsys.readouterr().out
    assert run_compare(image_folder, out, "--models", "test_resnet", "test_resnet") == 2


def test_a_backbone_is_frozen_once_and_let_go_when_the_next_have_come(study):
    alive = []
    for name in ("test_resnet", "test_efficientnet", "test_resnet.r160_in1k"):
        frozen = compare.freeze_once(study, name, "none")
        assert compare.freeze_once(study, name, "none") is frozen
        alive.append(weakref.ref(frozen.model))
    del frozen
    gc.collect()
    assert [reference() is None for reference in alive] == [True, False, False]


# ---- parts from several machines ----------------------------------------------------------------


def test_shares_that_are_merged_give_the_files_of_one_run(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    whole, first, second, merged = (tmp_path / name for name in ("whole", "1", "2", "merged"))
    assert run_compare(image_folder, whole) == 0
    for part, out in (("1/2", first), ("2/2", second)):
        capsys.readouterr()
        assert run_compare(image_folder, out, "--share", part) == 0
        printed = capsys.readouterr().out
        assert "3 of 3 parts are to be computed" in printed
        assert f"share {part} is done: give {out / 'result/compare_finished'}" in printed
        assert written(out) == []  # no tables, no figure
    for method in ("predict_with_heads", "predict_with"):
        monkeypatch.setattr(compare, method, pytest.fail)  # nothing is computed again
    parts = [str(out / "result/compare_finished") for out in (first, second)]
    assert run_compare(image_folder, merged, "--merge", *parts) == 0
    assert capsys.readouterr().out.count("3 parts taken over from") == 2
    for name, table in read_tables(whole).items():
        pd.testing.assert_frame_equal(table, read_tables(merged)[name], check_exact=True)
    one, other = (read_summary(out) | {"stamp": ""} for out in (whole, merged))
    assert one == other
    assert len(written(merged)) == len(written(whole)) == 5


def test_a_part_that_another_precision_has_computed_is_not_taken(
    image_folder, tmp_path, capsys, small_views
):
    """Of heads, which train on random views; what sees the clean view alone is fp32 anywhere."""
    there, here = tmp_path / "there", tmp_path / "here"
    assert run_compare(image_folder, there, "--precision", "fp32") == 0
    finished = str(there / "result/compare_finished")
    capsys.readouterr()
    options = ("--precision", "bf16", "--merge", finished)
    assert run_compare(image_folder, here, *options) == 0
    printed = capsys.readouterr().out
    assert "2 of 6 parts are to be computed: test_resnet; test_efficientnet\n" in printed
    assert "the same" in printed and "--precision" in printed
    assert read_summary(here)["machine"]["precision"] == "torch.bfloat16"
    one, other = (read_tables(out)["metrics"].set_index("model") for out in (there, here))
    baselines = [name for name in one.index if name not in MODELS]
    pd.testing.assert_frame_equal(one.loc[baselines], other.loc[baselines], check_exact=True)


def test_a_part_of_other_settings_or_views_is_not_taken(
    image_folder, tmp_path, capsys, monkeypatch, small_views
):
    assert run_compare(image_folder, tmp_path, "--baselines", "none") == 0

    def missing(*options):
        """What is computed, up to the first part."""
        capsys.readouterr()
        with pytest.raises(ZeroDivisionError):
            run_compare(image_folder, tmp_path, "--baselines", "none", *options)
        return capsys.readouterr().out

    def stop(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(compare, "predict_with_heads", stop)
    for options in (
        ("--views", "1"),
        ("--seed", "1"),
        ("--folds", "3"),
        ("--repeats", "1"),
        ("--augment", "photos"),
    ):
        assert "2 of 2 parts are to be computed" in missing(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", "3/2"), "'3/2' is no share"),
        (("--share", "half"), "'half' is no share"),
        (("--merge", "no/such"), "cannot merge no/such: give a folder that holds finished parts"),
        (("--weights", "no/such"), "weights no/such do not exist"),
        (("--folds", "9"), "9 folds: give from 2 to 8"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_error(
    image_folder, tmp_path, capsys, small_views, options, message
):
    assert run_compare(image_folder, tmp_path, *options) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_nothing_is_kept_of_an_augmentation_without_a_name(
    image_folder, tmp_path, monkeypatch, capsys
):
    own = Dataset(
        name=image_folder.name,
        label="discs and squares",
        augmentation=lambda size: replace(photos_augmentation(32), name=""),
    )
    monkeypatch.setitem(DATASETS, own.name, own)
    assert run_compare(image_folder, tmp_path, "--baselines", "none") == 0
    assert not list(tmp_path.rglob("*.safetensors"))
    assert run_compare(image_folder, tmp_path, "--share", "1/2") == 2
    assert "states no name" in capsys.readouterr().err


def test_a_share_that_cannot_be_kept_says_so(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    """A share's only product is what it keeps."""

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.warns(UserWarning, match="not kept.*No space left"):
        assert run_compare(image_folder, tmp_path, "--share", "1/2") == 2
    assert "make room there and run again" in capsys.readouterr().err


def test_weights_that_change_meanwhile_are_noticed(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    """What is kept under the hash of some weights was computed with these."""
    whole = compare.freeze_backbone

    def freeze_other_weights(name, study, *, weights):
        frozen = whole(name, study, weights=weights)
        return replace(frozen, info=replace(frozen.info, sha256="other"))

    monkeypatch.setattr(compare, "freeze_backbone", freeze_other_weights)
    compare.freeze_once.cache_clear()
    assert run_compare(image_folder, tmp_path) == 2
    assert "weights of test_resnet have changed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    compare.freeze_once.cache_clear()


def test_parts_that_other_versions_have_computed_are_named(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    assert run_compare(image_folder, tmp_path, "--baselines", "none") == 0
    assert "note:" not in capsys.readouterr().out
    here = this_machine()
    newer = replace(here, versions=here.versions | {"torch": "99.0"})
    monkeypatch.setattr(compare, "chosen_machine", lambda precision: newer)
    assert run_compare(image_folder, tmp_path, "--baselines", "none") == 0
    printed = capsys.readouterr().out
    assert f"note: parts were computed by torch {here.versions['torch']}" in printed

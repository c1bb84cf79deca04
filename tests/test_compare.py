"""compare: the folds, the scores recomputed by scikit-learn, the verdict, nothing computed twice,
parts from several machines, test images kept apart, each model at its own size."""

import argparse
import gc
import itertools
import json
import re
import shutil
import weakref
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from transferlab import candidates, store
from transferlab.__main__ import main
from transferlab.commands import compare
from transferlab.data import everything_fold, load_images, split_indices
from transferlab.datasets import DATASETS, Dataset
from transferlab.errors import UserError
from transferlab.heldout import (
    ComparisonRecord,
    Predictions,
    compare_pairs,
    first_ranked,
    fold_notes,
    fold_of_all,
    inner_split,
    keep_predictions,
    kept_predictions,
    make_folds,
    predict_apart,
    predict_majority,
    score_model,
    study_of_all,
    training_part,
    verdict_text,
    zero_shot_classes,
)
from transferlab.machine import this_machine
from transferlab.metrics import accuracy_interval
from transferlab.plots import plot_comparison
from transferlab.records import from_plain
from transferlab.study import train_study
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
    with pytest.raises(UserError, match="0 has 20 images; 21 folds need 21"):
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


def test_without_spread_nothing_is_said_to_be_seen():
    """Two models that are right on the same images say nothing of how much they could differ."""
    labels = np.array([0, 1] * 20)
    folds = make_folds(torch.from_numpy(labels), k=2, repeats=1, seed=0)
    (pair,) = compare_pairs(found_with({"one": 1.0, "other": 1.0}, labels, folds), labels, folds)
    assert pair.detectable is None and "nothing says what could be seen" in verdict_text(pair, 40)
    assert pair.row()["detectable"] is None and pair.row()["images_for_1_points"] is None


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
    monkeypatch.setattr(candidates, "predict_with_heads", pytest.fail)
    # A finished model is not computed again.
    assert run_compare(image_folder, out, "--baselines", "none") == 0
    assert "are to be computed" not in capsys.readouterr().out
    assert run_compare(image_folder, out, "--models", "test_resnet", "test_resnet") == 2


def test_a_backbone_is_frozen_once_and_let_go_when_the_next_have_come(study):
    alive = []
    for name in ("test_resnet", "test_efficientnet", "test_resnet.r160_in1k"):
        frozen = candidates.freeze_once(study, name, "none")
        assert candidates.freeze_once(study, name, "none") is frozen
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
        monkeypatch.setattr(candidates, method, pytest.fail)  # nothing is computed again
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

    monkeypatch.setattr(candidates, "predict_with_heads", stop)
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
        (
            ("--folds", "9"),
            "class disc has 8 images (2 of 2 classes have fewer than 9); 9 folds need 9",
        ),
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
    assert "has no identity" in capsys.readouterr().err


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


def test_a_part_that_is_damaged_is_not_kept(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    assert run_compare(image_folder, tmp_path, "--share", "1/2") == 0
    part = next(tmp_path.glob("result/compare_finished/*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    monkeypatch.setattr(store, "save_file", full)
    with pytest.warns(UserWarning, match="is damaged|not kept"):
        assert run_compare(image_folder, tmp_path, "--share", "1/2") == 2
    assert "make room there and run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", "3/2"), "'3/2' is no share"),
        (("--share", "3/3"), "share 3/3 of 2 models is none of them"),
        (("--out", "/dev/null/x"), "cannot write to /dev/null/x"),
        (("--models", "resnet50", "resnet50.tv_in1k"), "models resnet50 and resnet50.tv_in1k"),
        (("--models", "resnet50", "no_such_model"), "cannot build"),
    ],
)
def test_what_is_wrong_is_said_before_any_image_is_read(
    image_folder, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.setattr(compare, "load_folder", pytest.fail)
    assert run_compare(image_folder, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--cache-dir"])
@pytest.mark.parametrize("place", [".", "images", "images/disc/x"])
def test_nothing_is_written_into_the_images(
    image_folder, tmp_path, monkeypatch, capsys, option, place
):
    """Else the figures would be the pictures of one more class next time."""
    shutil.copytree(image_folder, tmp_path / "images")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--models", "test_resnet", "--data", ".", "--weights", "none"]
    places = {"--out": "/nowhere", "--cache-dir": ""} | {option: place}
    assert main([*arguments, *itertools.chain(*places.items())]) == 2
    told = capsys.readouterr().err
    assert "nothing is written into" in told and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_merged_folders_are_paths_like_any_other(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_compare(image_folder, tmp_path, "--merge", "~/none") == 2
    assert f"cannot merge {tmp_path / 'none'}" in capsys.readouterr().err
    for wrong in ("", "~no-such-user/x", "a\0b"):
        with pytest.raises(SystemExit, match="2"):
            run_compare(image_folder, tmp_path, "--merge", wrong)


def test_weights_that_change_meanwhile_are_noticed(
    image_folder, tmp_path, monkeypatch, capsys, small_views
):
    """What is kept under the hash of some weights was computed with these."""
    whole = candidates.freeze_backbone

    def freeze_other_weights(name, study, *, weights):
        frozen = whole(name, study, weights=weights)
        return replace(frozen, info=replace(frozen.info, sha256="other"))

    monkeypatch.setattr(candidates, "freeze_backbone", freeze_other_weights)
    candidates.freeze_once.cache_clear()
    assert run_compare(image_folder, tmp_path) == 2
    assert "weights of test_resnet have changed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    candidates.freeze_once.cache_clear()


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


# ---- classes that are small ----------------------------------------------------------------------


def labels_of(*sizes):
    """Labels of classes of those sizes."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.mark.parametrize(
    ("sizes", "k", "message"),
    [
        ((15, 15, 1), 5, "class c has 1 image; 5 folds need 5: add images or remove the class"),
        (
            (15, 15, 3),
            5,
            "class c has 3 images; 5 folds need 5: add images, remove the class, or give --folds 3",
        ),
        ((15, 4), 5, "class b has 4 images; 5 folds need 5: add images or give --folds 4"),
        (
            (9, 9, 9, 2, 3),
            4,
            "class d has 2 images (2 of 5 classes have fewer than 4); 4 folds need 4: "
            "add images, remove these classes, or give --folds 2",
        ),
        ((3, 3), 2, "class a, the largest, has 3 images; 2 folds need 4: add images or give"),
        ((3, 2), 2, "class a, the largest, has 3 images; 2 folds need 4: add images"),
        ((9, 9), 1, "1 folds leave nothing to train on: give 2 or more"),
    ],
)
def test_a_small_class_is_told_by_its_name_with_what_helps(sizes, k, message):
    with pytest.raises(UserError) as raised:
        make_folds(labels_of(*sizes), k=k, repeats=1, seed=0, classes="abcde")
    assert str(raised.value).startswith(message)
    assert len(str(raised.value).splitlines()) == 1


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    k=st.integers(2, 8),
    seed=st.integers(0, 50),
)
@settings(max_examples=200, deadline=None)
def test_folds_are_made_or_the_advice_makes_them(sizes, k, seed):
    """Each fold trains on every class, has images to stop by, and tests on every class."""
    labels = labels_of(*sizes)
    options = {"repeats": 2, "seed": seed}
    try:
        folds = make_folds(labels, k=k, **options)
    except UserError as error:
        advised = re.search(r"--folds (\d+)", str(error))
        assert advised or min(sizes) == 1 or max(sizes) < 4
        if advised is None:
            return
        folds = make_folds(labels, k=int(advised[1]), **options)
    for fold in folds:
        assert len(labels[fold.train].unique()) == len(labels[fold.test].unique()) == len(sizes)
        assert len(fold.val) > 0
        everything = torch.cat([fold.train, fold.val, fold.test])
        assert sorted(everything.tolist()) == list(range(len(labels)))


def test_a_class_that_cannot_help_to_choose_the_epoch_is_noted():
    labels = labels_of(12, 2)
    folds = make_folds(labels, k=2, repeats=1, seed=0)
    assert [note.partition(":")[0] for note in fold_notes(labels, folds, ["many", "rare"])] == [
        "class rare"
    ]
    enough = labels_of(12, 12)
    assert fold_notes(enough, make_folds(enough, k=2, repeats=1, seed=0), ["a", "b"]) == []


def test_the_inner_split_of_large_classes_is_the_one_it_always_was():
    labels = labels_of(80, 40, 30)
    for part, expected in zip(
        inner_split(labels, seed=3), split_indices(labels, val_size=0.2, seed=3)
    ):
        assert torch.equal(part, expected)


def test_many_small_classes_are_split_inside_all_the_same():
    labels = labels_of(*[5] * 100)  # a fifth of a training fold is 80 images, less than one a class
    for fold in make_folds(labels, k=5, repeats=1, seed=0):
        assert len(labels[fold.val].unique()) == len(labels[fold.train].unique()) == 100


def test_the_command_names_the_small_class_and_its_advice_works(drawn_split, tmp_path, capsys):
    folder = drawn_split({"": {"disc": 8, "square": 8, "rare variant": 2}})
    assert run_compare(folder, tmp_path, "--folds", "5", "--baselines", "none") == 2
    printed = capsys.readouterr().err
    assert printed == (
        "error: class rare variant has 2 images; 5 folds need 5: "
        "add images, remove the class, or give --folds 2\n"
    )
    assert not written(tmp_path)
    assert run_compare(folder, tmp_path, "--folds", "2") == 0
    assert "note: class rare variant: so small" in capsys.readouterr().out
    assert "rare variant" in read_summary(tmp_path)["data"][0]["notes"][0]


# ---- labelled test images ------------------------------------------------------------------------


def draw(path, kind, number):
    """A disc or a square at a place of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (60 + number % 7, 50), (20 * (number % 12), 90, 120))
    x = 5 + number % 15
    shape = (x, 8, x + 30, 38)
    pen = ImageDraw.Draw(image)
    pen.ellipse(shape, fill="white") if kind == "disc" else pen.rectangle(shape, fill="white")
    image.save(path)


@pytest.fixture
def drawn_split(tmp_path_factory, monkeypatch):
    """Draws a folder {part: {class: images}} whose augmentation is that of photos at 32 px."""

    def make(parts, name="parted"):
        folder = tmp_path_factory.mktemp("split") / name
        number = 0
        for part, sizes in parts.items():
            for kind, count in sizes.items():
                for _ in range(count):
                    number += 1
                    draw(folder / part / kind / f"{number}.png", kind, number)
        own = Dataset(
            name=name,
            label="discs and squares",
            augmentation=lambda size: replace(photos_augmentation(32), name="small photos"),
        )
        monkeypatch.setitem(DATASETS, name, own)
        return folder

    return make


BOTH = {"disc": 6, "square": 6}
WITH_TEST = {"train": BOTH, "valid": {"disc": 3, "square": 3}, "test": {"disc": 4, "square": 3}}


def results(out):
    """The bytes of what a comparison has written, but for the stamp; the newest of each."""
    found = {}
    for path in sorted([*out.glob("result/compare_*.*"), *out.glob("img/*.png")]):
        stamp = re.search(r"\d{8}_\d{6}", path.name)[0]
        data = path.read_bytes().replace(stamp.encode(), b"STAMP")
        found[path.name.replace(stamp, "STAMP")] = data
    return found


def test_labelled_test_images_are_scored_once_for_the_model_that_ranks_first(
    drawn_split, tmp_path, capsys
):
    folder = drawn_split(WITH_TEST)
    assert run_compare(folder, tmp_path) == 0
    printed = capsys.readouterr().out
    tables = read_tables(tmp_path)
    metrics = tables["metrics"].set_index("model")
    first = metrics.loc[[*MODELS]].sort_values(["accuracy", "log_loss"], ascending=[False, True])
    record = from_plain(ComparisonRecord, read_summary(tmp_path))
    final = record.test
    assert final.model == first.index[0]
    assert (final.n, final.data.n, record.data[0].n) == (7, 7, 18)
    test = pd.read_csv(next(tmp_path.glob("result/compare_test_*.csv")))
    assert [*test] == ["dataset", "model", "path", "label", "predicted", "p_disc", "p_square"]
    assert set(test.model) == {final.model} and len(test) == 7
    assert set(test.path) == {
        path.relative_to(folder).as_posix() for path in folder.glob("test/*/*.png")
    }
    assert final.correct == (test.label == test.predicted).sum()
    assert final.accuracy == final.correct / 7
    assert final.accuracy_interval == accuracy_interval(final.correct, 7)
    assert "lower log-loss" in final.ranking and "four fifths" in final.protocol
    assert f"test: accuracy {100 * final.accuracy:.1f} %" in printed
    assert f"{final.correct} of 7 images: {final.model}, which ranks first" in printed
    assert printed.count("on the test images ...") == 1
    assert not tables["predictions"].path.str.startswith("test/").any()
    assert len(record.machines) == 1 and final.machine == record.machine


def test_test_images_have_no_part_in_what_is_compared(drawn_split, tmp_path):
    folder = drawn_split(WITH_TEST)
    assert run_compare(folder, tmp_path / "with") == 0
    shutil.rmtree(folder / "test")
    assert run_compare(folder, tmp_path / "without") == 0
    one = results(tmp_path / "with")
    other = results(tmp_path / "without")
    assert one.keys() - other.keys() == {"compare_test_STAMP.csv"}
    for table in ("predictions", "metrics", "pairs"):
        assert one[f"compare_{table}_STAMP.csv"] == other[f"compare_{table}_STAMP.csv"]
    assert read_summary(tmp_path / "without")["test"] is None


def test_repeated_a_comparison_gives_the_same_bytes_and_asks_no_test_image_again(
    drawn_split, tmp_path, monkeypatch
):
    folder = drawn_split(WITH_TEST)
    assert run_compare(folder, tmp_path) == 0
    before = results(tmp_path)
    assert "compare_test_STAMP.csv" in before
    for path in [*tmp_path.glob("result/*.*"), *tmp_path.glob("img/*")]:
        path.unlink()
    for method in ("predict_with_heads", "predict_with", "predict_apart"):
        monkeypatch.setattr(candidates, method, pytest.fail)
    assert run_compare(folder, tmp_path) == 0
    assert results(tmp_path) == before


def test_other_test_images_are_asked_anew_and_nothing_else_is(
    drawn_split, tmp_path, monkeypatch, capsys
):
    folder = drawn_split(WITH_TEST)
    assert run_compare(folder, tmp_path) == 0
    draw(folder / "test/disc/more.png", "disc", 99)
    for method in ("predict_with_heads", "predict_with"):
        monkeypatch.setattr(candidates, method, pytest.fail)
    capsys.readouterr()
    assert run_compare(folder, tmp_path) == 0
    assert "of 8 images" in capsys.readouterr().out


def test_a_share_opens_no_test_image(drawn_split, tmp_path, capsys):
    folder = drawn_split(WITH_TEST)
    for path in folder.glob("test/*/*.png"):
        path.write_bytes(b"no picture")
    assert run_compare(folder, tmp_path, "--share", "1/2") == 0
    capsys.readouterr()
    assert run_compare(folder, tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "test" in err and err.count("\n") == 1


def test_what_is_asked_of_test_images_is_what_one_fold_of_all_images_trains(study):
    """Equal to the loop that a reader meets, on the same split, features and start."""
    everything = everything_fold(study.image_set)
    study = replace(study, fold=everything)
    frozen = candidates.freeze_backbone("test_resnet", study, weights="none")
    fold = fold_of_all(study.image_set.labels, seed=study.seed)
    (only,) = fold
    assert len(only.test) == 0 and len(only.val) == 3 and len(only.train) == 13
    predicted = predict_apart(frozen, study, fold, study.image_set).probabilities
    on_fold = replace(study, fold=only)
    train_study(replace(frozen, features=frozen.features.on(only)), on_fold)
    with torch.inference_mode():
        expected = frozen.upper.eval()(frozen.features.clean).softmax(1).numpy()
    assert predicted.shape == (1, 16, 2)
    assert np.allclose(predicted[0], expected, atol=1e-4)


def test_of_equal_accuracies_the_lower_loss_ranks_first_then_the_one_named_first():
    probabilities, labels = random_predictions(repeats=1)
    right = np.eye(3, dtype=np.float32)[labels][None]
    unsure = (right * 0.5 + 0.5 / 3).astype(np.float32)

    def scored(model, found, *, baseline=False):
        predictions = Predictions(probabilities=found)
        return score_model(model, predictions, labels, baseline=baseline, weights="", folds=2)

    scores = [
        scored("random", probabilities),
        scored("unsure", unsure),
        scored("sure", right),
        scored("as sure", right),
        scored("baseline", right, baseline=True),
    ]
    assert first_ranked(scores).model == "sure"
    assert first_ranked(scores[:2]).model == "unsure"
    assert first_ranked([scores[0], scores[4]]).model == "random"


# ---- each model at its own size, and only once ---------------------------------------------------


@pytest.fixture
def sized_views(image_folder, monkeypatch):
    """The folder's own augmentation, in pictures of the size that is asked for."""
    own = Dataset(name=image_folder.name, label="drawn", augmentation=photos_augmentation)
    monkeypatch.setitem(DATASETS, own.name, own)


def quick(image_folder, out, *more):
    """Compares with one view, two folds and no baselines -> exit code."""
    arguments = ["compare", "--data", str(image_folder), "--weights", "none", "--cache-dir", ""]
    arguments += ["--folds", "2", "--repeats", "1", "--baselines", "none", "--views", "0"]
    return main([*arguments, "--out", str(out), *more])


def test_each_model_gets_pictures_of_its_own_size(image_folder, tmp_path, capsys, sized_views):
    models = ("vit_tiny_patch16_384", "resnet18")
    assert quick(image_folder, tmp_path, "--models", *models) == 0
    printed = capsys.readouterr().out
    own = "224 px for resnet18; 384 px for vit_tiny_patch16_384"
    assert f"each model gets pictures of its own size: {own}" in printed
    record = from_plain(ComparisonRecord, read_summary(tmp_path))
    sizes = {name: info.size for name, info in record.augmentations.items()}
    assert sizes == {"vit_tiny_patch16_384": 384, "resnet18": 224}
    assert record.data[0].augmentation is None
    keys = [store.kept_key(path) for path in tmp_path.glob("result/compare_finished/*")]
    assert {key["model"]: key["augmentation"]["size"] for key in keys} == sizes


def test_one_size_for_all_where_it_is_asked_for(image_folder, tmp_path, capsys, sized_views):
    assert quick(image_folder, tmp_path, "--models", *MODELS, "--size", "32") == 0
    assert "at 32 px\n" in capsys.readouterr().out
    record = from_plain(ComparisonRecord, read_summary(tmp_path))
    assert {info.size for info in record.augmentations.values()} == {32}
    assert record.data[0].augmentation.size == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "resnet18", "vit_tiny_patch16_384", "--size", "224"), "vit_tiny_patch16_384"),
        (("--models", *MODELS, "--size", "3"), "argument --size: '3' is not a whole number"),
        (("--models", *MODELS, "--size", "100000"), "argument --size: '100000' is more than"),
        (("--models", *MODELS, "--repeats", "1000000"), "argument --repeats: '1000000' is more"),
    ],
)
def test_a_size_that_cannot_be_is_told_before_anything_is_computed(
    image_folder, tmp_path, capsys, sized_views, options, message
):
    try:
        code = quick(image_folder, tmp_path, *options)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    printed = capsys.readouterr()
    assert f"error: {message}" in printed.err and "..." not in printed.out
    assert printed.err.count("\n") == 1


def test_models_of_one_size_share_their_views(image_folder, sized_views):
    parser = argparse.ArgumentParser()
    compare.add_options(parser)
    models = ["resnet18", "resnet34", "vit_tiny_patch16_384"]
    options = parser.parse_args(["--data", str(image_folder), "--models", *models])
    task = compare.make_task(options)
    assert task.studies["resnet18"].renderer is task.studies["resnet34"].renderer
    assert task.sizes == {224: ["resnet18", "resnet34"], 384: ["vit_tiny_patch16_384"]}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (("test_resnet", "test_resnet"), "models test_resnet and test_resnet are both test_resnet"),
        (("resnet50", "resnet50.tv_in1k"), "are both resnet50.tv_in1k: name each once"),
        (
            ("test_resnet", "test_resnet.r160_in1k"),
            "test_resnet and test_resnet.r160_in1k are one model, with the same weights (random",
        ),
    ],
)
def test_one_model_under_two_names_is_refused(
    image_folder, tmp_path, capsys, small_views, models, message
):
    assert quick(image_folder, tmp_path, "--models", "test_efficientnet", *models) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert "..." not in printed.out and written(tmp_path) == []


def test_one_file_under_two_names_is_refused(
    image_folder, tiny_file, tmp_path, capsys, small_views
):
    names = ["test_resnet", "test_resnet.r160_in1k"]
    options = ("--models", *names, "--weights", str(tiny_file.parent))
    assert quick(image_folder, tmp_path / "out", *options) == 2
    printed = capsys.readouterr().err
    assert f"{names[0]} and {names[1]} are one model" in printed
    assert "file test_resnet.safetensors" in printed


def test_a_file_with_a_head_and_the_same_without_are_one_model(
    image_folder, tiny_file, tmp_path, capsys, small_views
):
    weights = tmp_path / "both"
    weights.mkdir()
    tensors = load_file(tiny_file)
    save_file(tensors, weights / "test_resnet.safetensors")
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    save_file(body, weights / "test_resnet.r160_in1k.safetensors")
    names = ["test_resnet", "test_resnet.r160_in1k"]
    assert quick(image_folder, tmp_path, "--models", *names, "--weights", str(weights)) == 2
    assert "are one model" in capsys.readouterr().err


def test_a_classifier_that_no_file_holds_is_never_asked(drawn_split, tmp_path, capsys):
    """Without its classifier a file is no less of use; a random one knows no ants."""
    folder = drawn_split({"": {"ants": 5, "bees": 5}}, name="insects")
    state = timm.create_model("test_resnet").state_dict()
    cut = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    for kind, tensors in (("whole", state), ("headless", cut)):
        (tmp_path / kind).mkdir()
        save_file(tensors, tmp_path / kind / "test_resnet.safetensors")
        options = ["--models", "test_resnet", "--baselines", "all"]
        weights = ["--weights", str(tmp_path / kind)]
        assert quick(folder, tmp_path / kind, *options, *weights) == 0
        names = set(read_tables(tmp_path / kind)["metrics"].model)
        assert ("test_resnet, zero-shot" in names) == (kind == "whole")
        assert ("no zero-shot baseline" in capsys.readouterr().out) == (kind == "headless")


# ---- what is left out, and odd names -------------------------------------------------------------


def test_what_is_left_out_is_named_at_the_start_and_in_the_summary(drawn_split, tmp_path, capsys):
    folder = drawn_split({"": BOTH})
    for number in range(13):
        (folder / "disc" / f"broken {number:02d}.png").write_bytes(b"no picture")
    (folder / "disc/deeper").mkdir()
    draw(folder / "disc/deeper/one.png", "disc", 3)
    assert run_compare(folder, tmp_path, "--baselines", "none") == 0
    printed = capsys.readouterr().out
    assert printed.count("left out: disc/broken ") == 10
    assert "... and 3 more, in the summary" in printed
    data = read_summary(tmp_path)["data"][0]
    assert len(data["rejected"]) == 13
    assert data["notes"] and all(f"note: {note}" in printed for note in data["notes"])


def test_odd_names_come_through_tables_and_figure(drawn_split, tmp_path, capsys):
    names = ["$1", "=cmd|calc", "a,b", 'say "x"', "고양이", "가" * 80, "x_{1}^\\q$", "@sum"]
    names.append("x" * 200)
    folder = drawn_split({"": dict.fromkeys(names, 4)}, name="$5 folder, 'quoted' " + "나" * 60)
    assert run_compare(folder, tmp_path, "--baselines", "none") == 0
    assert capsys.readouterr().err.count("warning") == 0
    table = read_tables(tmp_path)["predictions"]
    assert {label.lstrip("'") for label in table.label} == set(names)
    assert not table.map(lambda cell: str(cell).startswith(("=", "@", "+"))).any().any()
    with Image.open(next(tmp_path.glob("img/*.png"))) as figure:
        assert figure.width < 1500 and figure.height < 1500


def test_many_models_make_no_endless_figure():
    _, labels = random_predictions(repeats=1)
    right = Predictions(probabilities=np.eye(3, dtype=np.float32)[labels][None])
    score = score_model("model", right, labels, baseline=False, weights="", folds=2)
    figure = plot_comparison([replace(score, model=f"model {i}") for i in range(200)], "many")
    assert figure.get_figheight() < 30
    plt.close(figure)


def test_test_images_of_16_bits_are_scaled_as_the_others_are(tmp_path):
    """However dark they are: what is white is known from the images that are trained on."""
    for part, brightest in (("train", 4000), ("val", 3000), ("test", 900)):
        for kind in ("a", "b"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((20, 20), brightest // (1 + number), np.uint16)
                Image.fromarray(pixels).save(tmp_path / part / kind / f"{number}.png")
    learned = load_images(tmp_path)
    apart = load_images(tmp_path, parts=("test",))
    assert learned.white == apart.white == {"other": 4095}
    assert int(apart.images[0].max()) == round(900 / 4095 * 255)

"""compare: the folds, the files recomputed, nothing computed twice, parts from several machines,
test images kept apart, each model at its own size."""

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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from transferlab import candidates, store
from transferlab.__main__ import main
from transferlab.commands import compare
from transferlab.commands import options as options_module
from transferlab.compared import aligned
from transferlab.data import everything_fold, load_images, split_indices
from transferlab.datasets import DATASETS, Dataset
from transferlab.errors import UserError
from transferlab.heldout import (
    ComparisonRecord,
    Predictions,
    fold_notes,
    fold_of_all,
    inner_split,
    keep_predictions,
    kept_predictions,
    make_folds,
    predict_apart_with_head,
    predict_apart_with_probe,
    predict_majority,
    study_of_all,
    training_part,
    zero_shot_classes,
)
from transferlab.machine import this_machine
from transferlab.metrics import accuracy_interval
from transferlab.plots import plot_comparison
from transferlab.probe import STRENGTHS, StrengthChoice
from transferlab.records import from_plain
from transferlab.study import train_study
from transferlab.train import Settings
from transferlab.verdicts import score_model
from transferlab.views import Renderer, photos_augmentation

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
    arguments += ["--weights", "none", "--cache-dir", "", "--folds", "4", "--repeats", "3"]
    return main([*arguments, "--out", str(out), *more])


HEADS = {"probe": (), "study": ("--head", "study", "--views", "2")}
both_heads = pytest.mark.parametrize("head", HEADS)


def read_tables(out):
    """The tables of a comparison, by their names."""
    names = ("predictions", "metrics", "pairs")
    return {name: pd.read_csv(next(out.glob(f"result/compare_{name}_*.csv"))) for name in names}


def read_summary(out):
    """The summary of a comparison, but for the seconds it took."""
    summary = json.loads(next(out.glob("result/compare_summary_*.json")).read_text())
    assert all(seconds > 0 for seconds in summary.pop("seconds").values())
    return summary


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
        Predictions(
            probabilities=probabilities,
            strengths=StrengthChoice(losses=np.array([[1.0, 0.9], [0.8, 0.95]])),
            seconds=1.25,
        ),
    ):
        again = kept_predictions(keep_predictions(predictions))
        assert np.array_equal(again.probabilities, probabilities)
        assert again.machine == predictions.machine and again.seconds == predictions.seconds
        assert (again.strengths is None) == (predictions.strengths is None)
        if again.strengths:
            assert again.strengths.chosen.tolist() == [STRENGTHS[1], STRENGTHS[0]]
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
    arguments += ["--baselines", "k-NN", "random", "--cache-dir", ""]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    tables = read_tables(tmp_path)
    # Of one model there are no pairs, and the table says so.
    assert tables["pairs"].empty and "verdict" in tables["pairs"]
    weights = tables["metrics"].set_index("model").weights
    assert set(weights.index) == {
        "test_resnet",
        "test_resnet, k-NN",
        "test_resnet, random initialisation",
    }
    assert "random" in weights["test_resnet, random initialisation"]
    assert weights["test_resnet"] == weights["test_resnet, k-NN"] == "test_resnet.safetensors"


@both_heads
def test_the_command_end_to_end(image_folder, tmp_path, monkeypatch, capsys, small_views, head):
    out = tmp_path / "out"
    options = HEADS[head]
    assert run_compare(image_folder, out, *options) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 parts are to be computed" in printed
    assert "16 images decoded in" in printed
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
    baselines = {f"{model}, k-NN" for model in MODELS}
    assert set(metrics.index) == {*MODELS, *baselines, "majority class"}
    for name, row in metrics.iterrows():
        accuracy = f"{100 * row.accuracy:.1f} %"
        low, high = f"{100 * row.accuracy_low:.1f}", f"{100 * row.accuracy_high:.1f}"
        assert re.search(rf"^{name} +{accuracy} +\[{low}, {high}\] ", printed, re.MULTILINE)
    assert "tied for best" in printed or " best\n" in printed
    for model, rows in predictions.groupby("model"):
        assert len(rows) == 48 and set(rows.path) == {
            f"{c}/{i}.png" for c in ("disc", "square") for i in range(8)
        }
        by_repeat = [
            f1_score(part.label, part.predicted, average="macro")
            for _, part in rows.groupby("repeat")
        ]
        assert metrics.macro_f1[model] == pytest.approx(np.mean(by_repeat))
        assert metrics.accuracy[model] == pytest.approx((rows.label == rows.predicted).mean())
    summary = read_summary(out)
    record = from_plain(ComparisonRecord, summary)
    assert record.kind == "compare" and record.stamp and record.head == head
    if head == "study":
        assert metrics.selection_optimism[[*MODELS]].min() >= 0
        assert record.settings.views == 2 and not record.probes
    else:
        assert "selection_optimism" not in metrics and record.settings is None
        for name in MODELS:
            info = record.probes[name]
            assert sum(info.chosen.values()) == 12 and info.final in STRENGTHS
            assert info.at_ends == info.chosen.get("100", 0) + info.chosen.get("0.0001", 0)
    assert record.augmentation.name == "small photos" and record.augmentation.size == 32
    assert [info.name for info in record.weights] == [*MODELS]
    assert record.machines == (record.machine,)
    for method in ("predict_with_heads", "predict_with_probes"):
        monkeypatch.setattr(candidates, method, pytest.fail)
    # A finished model is not computed again.
    assert run_compare(image_folder, out, "--baselines", "none", *options) == 0
    assert "are to be computed" not in capsys.readouterr().out
    assert run_compare(image_folder, out, "--models", "test_resnet", "test_resnet") == 2


def test_the_probe_sees_every_image_once_and_no_random_view(
    image_folder, tiny_file, tmp_path, monkeypatch, small_views
):
    """One forward an image; what the study's head sees is a clean view and K others."""
    seen = []
    whole = Renderer.blocks

    def blocks(self, view, indices):
        seen.append((view, len(indices)))
        return whole(self, view, indices)

    monkeypatch.setattr(Renderer, "blocks", blocks)
    one = ("--models", "test_resnet", "--weights", str(tiny_file.parent))
    assert run_compare(image_folder, tmp_path / "probe", *one) == 0
    assert seen == [(0, 16)]
    seen.clear()
    assert run_compare(image_folder, tmp_path / "study", *one, *HEADS["study"]) == 0
    assert sorted(seen) == [(0, 16), (1, 16), (2, 16)]


def test_the_probe_is_scikit_learns_on_the_folds_of_the_command(
    image_folder, tmp_path, small_views
):
    """Its predictions in the table, from its strengths in the kept part, on standardised features
    of the clean view."""
    options = ("--models", "test_resnet", "--baselines", "none", "--precision", "fp32")
    assert run_compare(image_folder, tmp_path, *options) == 0
    rows = read_tables(tmp_path)["predictions"]
    (part,) = tmp_path.glob("result/compare_finished/*.safetensors")
    choice = kept_predictions(load_file(part)).strengths
    images = load_images(image_folder)
    machine = this_machine()
    augmentation = replace(photos_augmentation(32), name="small photos")
    study = study_of_all(images, augmentation, Settings(), seed=0, machine=machine)
    clean = candidates.freeze_backbone("test_resnet", study, weights="none").features.clean.numpy()
    labels = images.labels.numpy()
    folds = make_folds(images.labels, k=4, repeats=3, seed=0)
    table = rows.set_index(["repeat", "path"])[["p_disc", "p_square"]]
    for fold, strength in zip(folds, choice.chosen, strict=True):
        train = training_part(fold).numpy()
        scaler = StandardScaler().fit(clean[train].astype(float))
        regression = LogisticRegression(C=1 / (strength * len(train)), tol=1e-9, max_iter=10_000)
        regression.fit(scaler.transform(clean[train]), labels[train])
        expected = regression.predict_proba(scaler.transform(clean[fold.test.numpy()]))
        paths = [images.paths[image] for image in fold.test.tolist()]
        found = table.loc[[(fold.repeat, path) for path in paths]].to_numpy()
        assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "2"), "--views is for --head study"),
        (("--baselines", "none", "k-NN"), "--baselines names none and others"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    image_folder, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.setattr(compare, "load_folder", pytest.fail)
    assert run_compare(image_folder, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_with_too_few_repeats_nobody_is_tied(image_folder, tmp_path, capsys, small_views):
    assert run_compare(image_folder, tmp_path, "--repeats", "2") == 0
    printed = capsys.readouterr().out
    assert "no verdict (fewer than 3 repeats: training noise not included)" in printed
    assert "tied" not in printed and " best\n" not in printed
    pairs = read_tables(tmp_path)["pairs"]
    assert pairs.p_holm.isna().all() and set(pairs.verdict) == {"training noise not included"}


def test_a_backbone_is_frozen_once_and_let_go_when_the_next_have_come(study):
    alive = []
    for name in ("test_resnet", "test_efficientnet", "test_resnet.r160_in1k"):
        frozen = candidates.freeze_once(study, name, "none")
        assert candidates.freeze_once(study, name, "none") is frozen
        alive.append(weakref.ref(frozen.model))
    del frozen
    gc.collect()
    assert [reference() is None for reference in alive] == [True, False, False]


def test_bf16_is_the_probes_own_choice_and_fp16_is_not(image_folder, monkeypatch):
    """What was measured to make no difference is bf16; whoever asks for another gets it."""
    parser = argparse.ArgumentParser()
    compare.add_options(parser)

    def clean_precision(fastest, *more):
        machine = replace(this_machine(), precision=f"torch.{fastest}")
        monkeypatch.setattr(options_module, "this_machine", lambda: machine)
        given = ["--data", str(image_folder), "--models", "test_resnet", "--cache-dir", ""]
        task = compare.make_task(parser.parse_args([*given, *more]))
        return task.study.machine.clean_precision.removeprefix("torch.")

    assert clean_precision("bfloat16") == "bfloat16"
    assert clean_precision("float16") == "float32"
    assert clean_precision("float32") == "float32"
    assert clean_precision("float16", "--precision", "bf16") == "bfloat16"
    assert clean_precision("bfloat16", "--precision", "fp32") == "float32"
    assert clean_precision("bfloat16", "--head", "study") == "float32"


def test_the_first_missing_part_of_a_backbone_is_expected_to_compute_its_features(
    image_folder, tmp_path, monkeypatch, small_views
):
    expected = []
    whole = candidates.expected_seconds

    def asked(work):
        expected.append(whole(work))
        return expected[-1]

    monkeypatch.setattr(candidates, "expected_seconds", asked)
    assert run_compare(image_folder, tmp_path, "--baselines", "none") == 0
    assert run_compare(image_folder, tmp_path) == 0
    first, second = expected
    assert set(first) == {*MODELS} and set(second) == {f"{name}, k-NN" for name in MODELS}
    assert all(seconds > 0 for seconds in [*first.values(), *second.values()])
    assert run_compare(image_folder, tmp_path / "all") == 0
    both = expected[2]
    for name in MODELS:  # whoever comes second finds the features
        assert both[name] > both[f"{name}, k-NN"] < second[f"{name}, k-NN"]


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
        assert "2 of 2 parts are to be computed" in printed
        assert f"share {part} is done: give {out / 'result/compare_finished'}" in printed
        assert written(out) == []  # no tables, no figure
    for method in ("predict_with_probes", "predict_with"):
        monkeypatch.setattr(candidates, method, pytest.fail)  # nothing is computed again
    parts = [str(out / "result/compare_finished") for out in (first, second)]
    assert run_compare(image_folder, merged, "--merge", *parts) == 0
    assert capsys.readouterr().out.count("2 parts taken over from") == 2
    for name, table in read_tables(whole).items():
        pd.testing.assert_frame_equal(table, read_tables(merged)[name], check_exact=True)
    one, other = (read_summary(out) | {"stamp": ""} for out in (whole, merged))
    assert one == other
    assert len(written(merged)) == len(written(whole)) == 5


def test_a_part_that_another_precision_has_computed_is_not_taken(
    image_folder, tmp_path, capsys, small_views
):
    """Of the study's heads, which train on random views; beside them k-NN sees the clean one
    alone, fp32 anywhere."""
    there, here = tmp_path / "there", tmp_path / "here"
    head = HEADS["study"]
    assert run_compare(image_folder, there, "--precision", "fp32", *head) == 0
    finished = str(there / "result/compare_finished")
    capsys.readouterr()
    options = ("--precision", "bf16", "--merge", finished, *head)
    assert run_compare(image_folder, here, *options) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 parts are to be computed: test_resnet; test_efficientnet\n" in printed
    assert "the same" in printed and "--precision" in printed
    assert read_summary(here)["machine"]["precision"] == "torch.bfloat16"
    one, other = (read_tables(out)["metrics"].set_index("model") for out in (there, here))
    baselines = [name for name in one.index if name not in MODELS]
    pd.testing.assert_frame_equal(one.loc[baselines], other.loc[baselines], check_exact=True)


def test_a_part_of_other_settings_or_views_is_not_taken(
    image_folder, tmp_path, capsys, monkeypatch, small_views
):
    head = HEADS["study"]
    assert run_compare(image_folder, tmp_path, "--baselines", "none", *head) == 0

    def missing(*options):
        """What is computed, up to the first part."""
        capsys.readouterr()
        with pytest.raises(ZeroDivisionError):
            run_compare(image_folder, tmp_path, "--baselines", "none", *options)
        return capsys.readouterr().out

    def stop(*_, **__):
        raise ZeroDivisionError

    for method in ("predict_with_heads", "predict_with_probes"):
        monkeypatch.setattr(candidates, method, stop)
    for options in (
        ("--head", "probe"),
        (*head, "--views", "1"),
        (*head, "--seed", "1"),
        (*head, "--folds", "3"),
        (*head, "--repeats", "1"),
        (*head, "--augment", "photos"),
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
    assert "parts were computed by" not in capsys.readouterr().out
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


@both_heads
def test_labelled_test_images_are_scored_once_for_the_model_that_ranks_first(
    drawn_split, tmp_path, capsys, monkeypatch, head
):
    folder = drawn_split(WITH_TEST)
    asked = []
    for method in ("predict_apart_with_head", "predict_apart_with_probe"):
        whole = getattr(candidates, method)
        monkeypatch.setattr(
            candidates, method, lambda *given, whole=whole: asked.append(given) or whole(*given)
        )
    assert run_compare(folder, tmp_path, *HEADS[head]) == 0
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
    assert "lower log-loss" in final.ranking
    protocols = {"study": "four fifths", "probe": "lowest mean log-loss on the inner fifths"}
    assert protocols[head] in final.protocol
    assert f"test: accuracy {100 * final.accuracy:.1f} %" in printed
    assert f"{final.correct} of 7 images: {final.model}, which ranks first" in printed
    assert len(asked) == 1
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
    for method in ("predict_with_probes", "predict_with", "predict_apart_with_probe"):
        monkeypatch.setattr(candidates, method, pytest.fail)
    assert run_compare(folder, tmp_path) == 0
    assert results(tmp_path) == before


def test_other_test_images_are_asked_anew_and_nothing_else_is(
    drawn_split, tmp_path, monkeypatch, capsys
):
    folder = drawn_split(WITH_TEST)
    assert run_compare(folder, tmp_path) == 0
    draw(folder / "test/disc/more.png", "disc", 99)
    for method in ("predict_with_probes", "predict_with"):
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
    predicted = predict_apart_with_head(frozen, study, fold, study.image_set).probabilities
    on_fold = replace(study, fold=only)
    train_study(replace(frozen, features=frozen.features.on(only)), on_fold)
    with torch.inference_mode():
        expected = frozen.upper.eval()(frozen.features.clean).softmax(1).numpy()
    assert predicted.shape == (1, 16, 2)
    assert np.allclose(predicted[0], expected, atol=1e-4)


def test_the_probe_for_test_images_is_fitted_on_all_others(study):
    study = replace(study, fold=everything_fold(study.image_set))
    frozen = candidates.freeze_backbone("test_resnet", study, weights="none")
    predicted = predict_apart_with_probe(frozen, study, 0.1, study.image_set).probabilities
    clean = frozen.features.clean.numpy().astype(float)
    labels = study.image_set.labels.numpy()
    scaled = StandardScaler().fit_transform(clean)
    regression = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-9).fit(scaled, labels)
    assert predicted.shape == (1, 16, 2) and predicted.dtype == np.float32
    assert np.abs(predicted[0] - regression.predict_proba(scaled)).max() < 1e-4


# ---- each model at its own size, and only once ---------------------------------------------------


@pytest.fixture
def sized_views(image_folder, monkeypatch):
    """The folder's own augmentation, in pictures of the size that is asked for."""
    own = Dataset(name=image_folder.name, label="drawn", augmentation=photos_augmentation)
    monkeypatch.setitem(DATASETS, own.name, own)


def quick(image_folder, out, *more):
    """Compares by the probe, on two folds, without baselines -> exit code."""
    arguments = ["compare", "--data", str(image_folder), "--weights", "none", "--cache-dir", ""]
    arguments += ["--folds", "2", "--repeats", "1", "--baselines", "none"]
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
    assert f"error: {message}" in printed.err and "to be computed" not in printed.out
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
    assert "to be computed" not in printed.out and written(tmp_path) == []


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
        options = ["--models", "test_resnet", "--baselines", "zero-shot"]
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


def test_a_model_that_ranks_first_below_a_baseline_is_said_to(
    image_folder, tmp_path, capsys, small_views, monkeypatch
):
    """Being the best of those that were compared is not being good."""

    def unlucky(clean, image_set, folds, **_):
        wrong = np.eye(2, dtype=np.float32)[1 - image_set.labels.numpy()]
        losses = np.ones((1, len(folds)))
        return Predictions(
            probabilities=np.stack([wrong] * folds.repeats), strengths=StrengthChoice(losses=losses)
        )

    monkeypatch.setattr(candidates, "predict_with_probes", unlucky)
    assert run_compare(image_folder, tmp_path, "--baselines", "majority", "random") == 0
    printed = capsys.readouterr().out
    assert "which ranks first, is not above majority class (50.0 %)" in printed
    assert "no random baseline beside test_resnet, test_efficientnet" in printed


def test_columns_begin_one_below_the_other_in_korean_too():
    lines = aligned([("model", "weights", ""), ("고양이.pth", "x", "best"), ("b", "내 가중치", "")])
    assert lines == [
        "model       weights",
        "고양이.pth  x          best",
        "b           내 가중치",
    ]


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

"""The benchmark of techniques: folds in order, stored as they end, with what was predicted of every
image."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import techniques as benchmark
from benchmarks.common import Pair
from benchmarks.techniques import (
    TRAINED,
    KeptViews,
    Outcome,
    Request,
    Setup,
    Tuning,
    find_tunings,
    measure_exact,
    measure_frozen,
    measure_share,
    measure_tuned,
    plan_work,
    plot_gains,
    prepare,
)
from transferlab.backbones import create_backbone
from transferlab.data import everything_fold
from transferlab.datasets import FACES, INSECTS
from transferlab.errors import UserError
from transferlab.heldout import make_folds, predict_with_probes
from transferlab.machine import this_machine
from transferlab.pretrained import WeightsInfo
from transferlab.store import NO_STORE
from transferlab.study import freeze_backbone
from transferlab.technique_scores import (
    EXACT_PROBE,
    HEADLINE,
    PROBE_AT_224,
    Place,
    all_tests,
    read_correct,
)
from transferlab.techniques import FROZEN, TUNED
from transferlab.train import Settings
from transferlab.views import Renderer, faces_augmentation, info_of

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def whole(study):
    return replace(study, fold=everything_fold(study.image_set))


def first_folds(study):
    return make_folds(study.image_set.labels, k=4, repeats=1, seed=0).folds


def test_a_frozen_technique_on_a_fold(whole):
    fold = first_folds(whole)[1]
    frozen = freeze_backbone(TINY, whole, weights="none")
    found = measure_frozen(FROZEN["linear probe"], whole, frozen, fold)
    assert len(found.predicted) == 4 and set(found.predicted) <= {0, 1} and found.epochs == 4
    assert found.trainable == 2 * frozen.model.head_hidden_size + 2


def test_a_tuned_technique_on_a_fold(whole):
    fold = first_folds(whole)[0]
    _, info = create_backbone(TINY, "none")

    def tune(technique, epochs):
        settings = replace(whole.settings, epochs=epochs, views=epochs)
        return measure_tuned(technique, info, "none", replace(whole, settings=settings), fold)

    found = tune(TUNED["last stage"], 2)
    assert len(found.predicted) == 4 and found.epochs == 2 and found.seconds > 0
    probe = tune(FROZEN["linear probe"], 1)
    assert found.trainable > probe.trainable


def test_an_exact_probe_on_a_fold_is_the_one_of_all_folds(whole):
    folds = make_folds(whole.image_set.labels, k=4, repeats=2, seed=0)
    frozen = freeze_backbone(TINY, whole, weights="none")
    together = predict_with_probes(frozen.features.clean, whole.image_set, folds)
    for fold in folds.folds[3:5]:
        found = measure_exact(whole, frozen, folds, fold)
        expected = together.probabilities[fold.repeat, fold.test].argmax(1)
        assert list(found.predicted) == expected.tolist()
        assert found.trainable == 2 * (frozen.model.head_hidden_size + 1) and found.epochs == 0


def own_images(image_folder, folder):
    """Discs and squares and the smallest backbone's weights in `folder` -> where they are."""
    shutil.copytree(image_folder, folder / "data/buttons")
    (folder / "weights").mkdir()
    save_file(create_backbone(TINY, "none")[0].state_dict(), folder / f"weights/{TINY}.safetensors")
    places = {"--data": folder / "data", "--weights": folder / "weights", "--out": folder}
    return [str(part) for place in places.items() for part in place]


def tuned_alone(image_folder, folder, folds=3, repeats=1):
    """Arguments that tune the smallest backbone on discs and squares, and measure nothing else."""
    places = own_images(image_folder, folder)
    tuned = ["--models", "--tuned", f"buttons:{TINY}"]
    sizes = ["--folds", str(folds), "--size", "32", "--epochs", "2", "--repeats", str(repeats)]
    return [*places, *tuned, *sizes, "--cache-dir", ""]


def made_up(technique, planned, weights, study, fold):
    """An outcome of the fold's images, without training anything: every other one is right."""
    labels = study.labels(fold.test)
    predicted = torch.where(fold.test % 2 == 0, labels, 1 - labels)
    return Outcome(predicted=tuple(predicted.tolist()), seconds=1.0, trainable=5, epochs=1)


def request_for(arguments, machine=None):
    return Request(
        options=benchmark.parse(arguments),
        machine=machine or this_machine(),
        settings=Settings(),
    )


def test_an_interrupted_measurement_goes_on_and_names_what_is_missing(
    tmp_path, monkeypatch, capsys, image_folder
):
    calls, clock = [], [0.0]

    def measured(*given):
        calls.append(given)
        clock[0] += 1.0
        return made_up(*given)

    def run(*arguments):
        return benchmark.main(arguments, now=lambda: clock[0])

    monkeypatch.setattr(benchmark, "measure_tuned", measured)
    arguments = tuned_alone(image_folder, tmp_path, folds=4, repeats=2)
    with pytest.raises(UserError, match="no technique was measured on all folds in -1 minutes"):
        run(*arguments, "--minutes", "-1")
    named = "--tuned resnet50: give DATASET:NAME, with a dataset of buttons"
    with pytest.raises(UserError, match=named):
        run(*arguments, "--tuned", "resnet50")
    of_a_repeat = 4 * len(TRAINED)
    assert run(*arguments, "--minutes", str((of_a_repeat + 1.5) / 60)) == 0
    assert of_a_repeat < len(calls) < 2 * of_a_repeat
    told = f"not measured: tuned: {TINY} on buttons, linear probe, last stage, LP-FT"
    assert told in capsys.readouterr().out
    (first,) = tmp_path.glob("result/benchmarks/techniques_2*.csv")
    rows = pd.read_csv(first)
    counts = rows[rows.technique == "linear probe"].groupby("repeat").fold.count()
    assert counts.to_dict() == {0: 4} and len(calls) % 4  # the second repeat lacks folds
    assert run(*arguments) == 0 and len(calls) == 2 * of_a_repeat
    assert "not measured" not in capsys.readouterr().out
    latest = max(tmp_path.glob("result/benchmarks/techniques_2*.csv"))
    assert len(pd.read_csv(latest)) == 2 * 4 * (len(TRAINED) + 2)
    assert not [*tmp_path.glob("result/benchmarks/techniques_unfinished/*.safetensors")]


def test_more_may_be_asked_for_later(tmp_path, monkeypatch, image_folder):
    """What is kept of a trial does not depend on what else is asked for."""
    request = request_for(tuned_alone(image_folder, tmp_path))
    monkeypatch.setattr(benchmark, "measure_tuned", made_up)
    few = plan_work(prepare(request))
    assert [*few.plan.measured()] and not few.plan.missing()
    options = replace(request.options, repeats=2, models=(TINY,))
    more = plan_work(prepare(replace(request, options=options)))
    kept = {str(trial) for trial in few.trials}
    missing = {point.name for point in more.plan.missing()}
    assert not kept & missing and missing | kept == {str(trial) for trial in more.trials}


def test_every_trial_of_the_usual_is_listed_once_and_the_headline_in_three_repeats(whole):
    datasets = {FACES.name: whole, INSECTS.name: whole}
    options = benchmark.parse(["--data", "x", "--weights", "y", "--models"])
    tunings = find_tunings(options, datasets)
    names = {one.pair.model for one in tunings}
    setup = Setup(
        request=Request(options=options, machine=whole.machine, settings=Settings()),
        studies=datasets,
        folds={},
        tunings=tunings,
        infos={name: weights_info(name, "file") for name in names},
    )
    trials = benchmark.list_trials(setup)
    assert len(trials) == len(set(trials))
    for technique in (HEADLINE, EXACT_PROBE, PROBE_AT_224):
        measured = [trial for trial in trials if trial.technique == technique]
        assert len(measured) == len({one.pair for one in tunings}) * 3 * 5
    assert find_tunings(options, [FACES.name])[0].pair.dataset == FACES.name
    assert find_tunings(options, ["x"]) == ()


def check_written(folder, rows):
    """Counts and tests that were written follow from the predictions that were."""
    (path,) = folder.glob("result/benchmarks/techniques_raw_*.npz")
    with np.load(path) as arrays:
        correct = read_correct(dict(arrays))
    for names, part in rows.groupby(["kind", "dataset", "model", "technique"]):
        place = Place(**dict(zip(("kind", "dataset", "model", "technique"), names)))
        assert part.groupby("repeat").correct.sum().tolist() == correct[place].sum(1).tolist()
    told = pd.read_csv(next(folder.glob("result/benchmarks/techniques_tests_*.csv")))
    again = pd.DataFrame([test.row() for test in all_tests(correct)]).fillna(np.nan)
    pd.testing.assert_frame_equal(told, again, check_dtype=False)
    assert len([*folder.glob("img/techniques_*.png")]) == 1


@pytest.mark.slow
def test_a_folder_of_ones_own_images_is_measured(tmp_path, monkeypatch, image_folder):
    """Every technique on a folder that is none of the study's, small: 3 folds, 2 epochs; the
    study's own beside each other."""
    places = own_images(image_folder, tmp_path)
    sizes = ["--folds", "3", "--repeats", "1", "--size", "32", "--epochs", "2", "--cache-dir", ""]
    arguments = [*places, "--models", TINY, *sizes, "--tuned"]
    monkeypatch.setattr(benchmark, "STUDY_SIZE", 40)  # px
    few = Settings(epochs=2, views=1)
    assert benchmark.main([*arguments, f"buttons:{TINY}"], settings=few) == 0
    (table,) = tmp_path.glob("result/benchmarks/techniques_2*.csv")
    rows = pd.read_csv(table)
    assert set(rows.dataset) == {"buttons"}
    assert (rows.groupby(["kind", "technique", "repeat"]).n.sum() == 16).all()
    assert set(rows[rows.kind == "frozen"].technique) == {EXACT_PROBE, *FROZEN}
    assert set(rows[rows.kind == "tuned"].technique) == {EXACT_PROBE, PROBE_AT_224, *TRAINED}
    check_written(tmp_path, rows)
    assert rows.macro_f1.between(0, 1).all()
    named = "--tuned resnet50: give DATASET:NAME, with a dataset of buttons"
    with pytest.raises(UserError, match=named):
        benchmark.main([*arguments, "resnet50"], settings=few)
    arguments[arguments.index("--weights") + 1] = "none"
    with pytest.raises(UserError, match=f"none of {TINY} has pretrained weights here"):
        benchmark.main([*arguments, f"buttons:{TINY}"], settings=few)


def load_studies(folder):
    return benchmark.load_studies(folder, Settings(), machine=this_machine(), store=NO_STORE)


def test_the_studys_own_datasets_are_found_beside_each_other(tmp_path, image_folder):
    for name in (INSECTS.name, "other"):
        shutil.copytree(image_folder, tmp_path / name)
    assert [*load_studies(tmp_path)] == [INSECTS.name]
    shutil.copytree(image_folder, tmp_path / FACES.name)
    studies = load_studies(tmp_path)
    assert [*studies] == [FACES.name, INSECTS.name]
    assert info_of(studies[FACES.name].renderer.augmentation) == info_of(faces_augmentation())


def weights_info(name, kind):
    return WeightsInfo(name=name, timm_name=name, kind=kind, label="", source="", sha256="")


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vgg11", 32, "this model has no stages"),
        ("vit_tiny_patch16_224", 112, "doesn't match model"),
        (TINY, 32, ""),
    ],
)
def test_a_backbone_that_cannot_be_tuned_is_refused_before_anything_is_measured(name, size, reason):
    infos = {name: weights_info(name, "file"), "other": weights_info("no such", "random")}
    tunings = [
        Tuning(pair=Pair(dataset="d", model=model), techniques=(HEADLINE,), repeats=1)
        for model in (name, "other")
    ]
    refused = f"--tuned with {name}: it cannot be tuned at {size} px .*{reason}"
    expected = pytest.raises(UserError, match=refused) if reason else nullcontext()
    with expected:
        benchmark.check_tunings(tunings, infos, size)


def test_shares_are_all_points_once(tmp_path, image_folder):
    request = request_for([*tuned_alone(image_folder, tmp_path), "--processes", "4"])
    work = plan_work(prepare(request))
    measured = [point.name for number in range(4) for point in work.share(number).points]
    everything = [point.name for point in work.plan.points]
    assert len(everything) == 3 * (2 + len(TRAINED)) and sorted(measured) == sorted(everything)


@pytest.mark.slow
def test_several_processes_measure_what_one_does(tmp_path, monkeypatch, image_folder):
    arguments, tables = tuned_alone(image_folder, tmp_path), []
    for number in "1", "2":
        assert benchmark.main([*arguments, "--processes", number]) == 0
        # Here, not in the two that it starts.
        monkeypatch.setattr(benchmark, "measure_tuned", pytest.fail)
        latest = max(tmp_path.glob("result/benchmarks/techniques_2*.csv"))
        tables.append(pd.read_csv(latest).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables)


def of_its_fold(setup):
    """Makes what measures nothing and names the class 0."""

    def measure(trial):
        count = len(setup.fold_of(trial).test)
        return Outcome(predicted=(0,) * count, seconds=1.0, trainable=5, epochs=1)

    return measure


def test_a_gpus_results_have_a_name_of_their_own(tmp_path, monkeypatch, image_folder):
    gpu = replace(this_machine(), device="cuda")
    monkeypatch.setattr(benchmark, "measure_tuned", made_up)
    monkeypatch.setattr(benchmark, "make_measure", of_its_fold)
    assert benchmark.main(tuned_alone(image_folder, tmp_path), machine=gpu) == 0
    (table,) = tmp_path.glob("result/benchmarks/techniques_gpu_2*.csv")
    record = json.loads(table.with_suffix(".json").read_text())
    assert record["kind"] == "techniques_gpu"


def test_the_figure_says_the_headline_and_fills_what_is_told_apart(tmp_path):
    right = np.ones((3, 40), bool)
    wrong = right & (np.arange(40) % 4 == 0)  # in every repeat the same
    places = [
        Place(kind="tuned", dataset="d", model=model, technique=technique)
        for model in ("m", "n")
        for technique in (EXACT_PROBE, HEADLINE)
    ]
    tests = all_tests({place: right if place.technique == HEADLINE else wrong for place in places})
    figure = plot_gains(tests)
    (axis,) = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["m", "n"]
    marks = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [mark.get_xdata()[0] for mark in marks] == [75.0, 75.0]
    assert all(mark.get_markerfacecolor() == mark.get_color() for mark in marks)
    assert "Full fine-tuning less the exact probe: +75.0" in figure.get_suptitle()


class Watched(Renderer):
    """Notes which images are drawn."""

    def __init__(self, renderer):
        super().__init__(renderer.image_set, renderer.augmentation, seed=renderer.seed)
        self.asked = []

    def blocks(self, view, indices):
        self.asked.extend((view, index) for index in indices.tolist())
        return super().blocks(view, indices)


def test_views_that_are_kept_are_drawn_once_and_the_same(whole):
    watched = Watched(whole.renderer)
    kept, index = KeptViews(watched), torch.tensor([5, 1, 9])
    for view, indices in (0, index), (1, index), (1, index.flip(0)), (1, torch.arange(40) % 16):
        expected = torch.cat([*whole.renderer.blocks(view, indices)])
        assert torch.equal(torch.cat([*kept.blocks(view, indices)]), expected)
    assert len(watched.asked) == len({*watched.asked}) == 3 + 16


def test_no_process_is_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse(["--data", "x", "--weights", "y", "--processes", "0"])
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err


def test_an_error_in_a_share_is_left_to_who_started_it(tmp_path, monkeypatch, capsys, image_folder):
    def fail(*given):
        raise UserError("the loss is nan")

    monkeypatch.setattr(benchmark, "measure_tuned", fail)
    request = request_for([*tuned_alone(image_folder, tmp_path), "--processes", "2"])
    measure_share(1, request, 1.0, lambda: 0.0)
    assert "process 1: the loss is nan" in capsys.readouterr().out

"""The benchmark of techniques: folds in order, stored as they end, summed up with Wilson's
interval."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import techniques as benchmark
from benchmarks.common import FRESH_VIEWS, Pair
from benchmarks.techniques import (
    KeptViews,
    Options,
    Outcome,
    Request,
    Setup,
    Trial,
    measure_alone,
    measure_frozen,
    measure_share,
    measure_tuned,
    plan_work,
    prepare,
)
from transferlab.backbones import create_backbone
from transferlab.data import Folds, everything_fold
from transferlab.datasets import FACES, INSECTS
from transferlab.errors import UserError
from transferlab.heldout import make_folds
from transferlab.machine import this_machine
from transferlab.metrics import accuracy_interval, corrected_resampled_t
from transferlab.plots import plot_technique_accuracies, plot_techniques
from transferlab.pretrained import WeightsInfo
from transferlab.store import NO_STORE
from transferlab.study import freeze_backbone
from transferlab.techniques import FROZEN, TUNED, paired_tests, summarise_techniques
from transferlab.train import Settings
from transferlab.views import Renderer, faces_augmentation, info_of

TINY = "test_resnet.r160_in1k"
MADE_UP = Outcome(correct=3, n=4, macro_f1=0.7, seconds=1.0, trainable=5, epochs=1)


@pytest.fixture
def whole(study):
    return replace(study, fold=everything_fold(study.image_set))


def first_folds(study):
    return make_folds(study.image_set.labels, k=4, repeats=1, seed=0).folds


def test_a_frozen_technique_on_a_fold(whole):
    fold = first_folds(whole)[1]
    frozen = freeze_backbone(TINY, whole, weights="none")
    found = measure_frozen(FROZEN["linear probe"], whole, frozen, fold)
    assert found.n == 4 and 0 <= found.correct <= 4 and found.epochs == 4
    assert found.trainable == 2 * frozen.model.head_hidden_size + 2


def test_a_tuned_technique_on_a_fold(whole):
    fold = first_folds(whole)[0]
    _, info = create_backbone(TINY, "none")

    def tune(technique, epochs):
        settings = replace(whole.settings, epochs=epochs, views=epochs)
        return measure_tuned(technique, info, "none", replace(whole, settings=settings), fold)

    found = tune(TUNED["last stage"], 2)
    assert found.n == 4 and found.epochs == 2 and found.seconds > 0
    probe = tune(FROZEN["linear probe"], 1)
    assert found.trainable > probe.trainable


def rows_of(technique, correct, model="m"):
    return [
        {
            "kind": "tuned",
            "dataset": "d",
            "model": model,
            "technique": technique,
            "fold": fold,
            "correct": count,
            "n": 50,
            "macro_f1": count / 50,
            "seconds": 1.0 + fold,
            "trainable": 10,
            "epochs": 2,
        }
        for fold, count in enumerate(correct)
    ]


def test_a_trial_and_its_outcome_are_a_row():
    trial = Trial(kind="tuned", pair=Pair(dataset="d", model="m"), technique="a", fold=0)
    table = benchmark.table_of([trial], {str(trial): MADE_UP})
    assert list(table) == list(rows_of("a", [3])[0])


def test_the_summary_counts_over_folds():
    table = pd.DataFrame(rows_of("a", [30, 40, 50]) + rows_of("b", [3, 4, 5]))
    summary = summarise_techniques(table)
    assert summary.correct.tolist() == [120, 12] and summary.accuracy.tolist() == [0.8, 0.08]
    assert summary.seconds.tolist() == [2.0, 2.0]
    assert summary.macro_f1.tolist() == pytest.approx([0.8, 0.08])
    interval = accuracy_interval(120, 150)
    assert (summary.low[0], summary.high[0]) == (interval.low, interval.high)
    plot_techniques(summary, "made up").savefig("/dev/null", format="png")
    other = summary[:1].assign(model="other", technique="c")
    figure = plot_technique_accuracies(pd.concat([summary, other]), "made up")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "b", "c"] and len(figure.axes) == 2
    ((line, *_),) = figure.axes[1].containers
    assert line.get_xdata().tolist() == [80.0] and line.get_ydata().tolist() == [2]


def test_techniques_are_tested_on_the_folds_of_their_own_pair():
    probe, better, same = [30, 31, 29, 30, 32], [45, 47, 44, 45, 46], [31, 30, 29, 31, 31]
    folds = {"linear probe": probe, "full fine-tuning": better, "MixUp": same, "incomplete": [1, 2]}
    rows = [row for name, counts in folds.items() for row in rows_of(name, counts)]
    table = pd.DataFrame(rows + rows_of("x", [1, 2], "other"))
    tests = paired_tests(table).set_index(["technique", "reference"])
    assert tests.verdict.to_dict() == {
        ("full fine-tuning", "linear probe"): "better",
        ("MixUp", "linear probe"): "indistinguishable",
        ("MixUp", "full fine-tuning"): "worse",
    }
    assert set(tests.model) == {"m"}
    counts = {
        ("full fine-tuning", "linear probe"): (better, probe),
        ("MixUp", "full fine-tuning"): (same, better),
    }
    for pair, (a, b) in counts.items():
        expected = corrected_resampled_t([(x - y) / 50 for x, y in zip(a, b)], 1 / 4)
        assert tests.difference[pair] == pytest.approx(expected.difference)
        assert tests.p[pair] == pytest.approx(expected.p)
    smallest = tests.p.min()
    # Of three tests of this pair.
    assert tests.p_holm[tests.p.idxmin()] == pytest.approx(3 * smallest)


def own_images(image_folder, folder):
    """Discs and squares and the smallest backbone's weights in `folder` -> where they are."""
    shutil.copytree(image_folder, folder / "data/buttons")
    (folder / "weights").mkdir()
    save_file(create_backbone(TINY, "none")[0].state_dict(), folder / f"weights/{TINY}.safetensors")
    places = {"--data": folder / "data", "--weights": folder / "weights", "--out": folder}
    return [str(part) for place in places.items() for part in place]


def tuned_alone(image_folder, folder, folds=3):
    """Arguments that tune the smallest backbone on discs and squares, and measure nothing else."""
    places = own_images(image_folder, folder)
    tuned = ["--models", "--tuned", f"buttons:{TINY}"]
    sizes = ["--folds", str(folds), "--size", "32", "--epochs", "2"]
    return [*places, *tuned, *sizes, "--cache-dir", ""]


def request_for(arguments, machine=None):
    return Request(
        options=benchmark.parse(arguments),
        machine=machine or this_machine(),
        settings=FRESH_VIEWS,
    )


def test_an_interrupted_measurement_goes_on_and_names_what_is_missing(
    tmp_path, monkeypatch, capsys, image_folder
):
    calls, clock = [], [0.0]

    def measured(*given):
        calls.append(given)
        clock[0] += 1.0
        return MADE_UP

    def run(*arguments):
        return benchmark.main(arguments, now=lambda: clock[0])

    monkeypatch.setattr(benchmark, "measure_tuned", measured)
    arguments = tuned_alone(image_folder, tmp_path, folds=4)
    with pytest.raises(UserError, match="no technique was measured on all folds in -1 minutes"):
        run(*arguments, "--minutes", "-1")
    named = "--tuned resnet50: give DATASET:NAME, with a dataset of buttons"
    with pytest.raises(UserError, match=named):
        run(*arguments, "--tuned", "resnet50")
    assert run(*arguments, "--minutes", "0.1") == 0  # 6 seconds
    everything = 4 * (1 + len(TUNED))
    assert 0 < len(calls) < everything
    told = f"not measured: tuned: {TINY} on buttons, last stage, LP-FT"
    assert told in capsys.readouterr().out
    (first,) = tmp_path.glob("result/benchmarks/techniques_*.csv")
    counts = pd.read_csv(first).groupby("technique").fold.count()
    assert len(calls) % 4 and set(counts) == {4}  # a technique lacked a fold
    assert run(*arguments) == 0 and len(calls) == everything
    assert "not measured" not in capsys.readouterr().out
    tables = sorted(tmp_path.glob("result/benchmarks/techniques_*.csv"))
    assert [len(pd.read_csv(path)) for path in tables][-1] == everything
    assert not [*tmp_path.glob("result/benchmarks/techniques_unfinished/*.safetensors")]


def test_a_folder_of_ones_own_images_is_measured(tmp_path, image_folder):
    """Every technique on a folder that is none of the study's, small: 3 folds, 2 epochs; the
    study's own beside each other."""
    places = own_images(image_folder, tmp_path)
    sizes = ["--folds", "3", "--size", "32", "--epochs", "2", "--cache-dir", ""]
    arguments = [*places, "--models", TINY, *sizes, "--tuned"]
    few = replace(FRESH_VIEWS, epochs=2)
    assert benchmark.main([*arguments, f"buttons:{TINY}"], settings=few) == 0
    (table,) = tmp_path.glob("result/benchmarks/techniques_*.csv")
    rows = pd.read_csv(table)
    assert set(rows.dataset) == {"buttons"}
    assert (rows.groupby(["kind", "technique"]).n.sum() == 16).all()
    assert set(rows[rows.kind == "frozen"].technique) == set(FROZEN)
    assert set(rows[rows.kind == "tuned"].technique) == {"linear probe", *TUNED}
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
    pairs = [
        Pair(dataset=FACES.name, model="efficientnet_lite0"),
        Pair(dataset=INSECTS.name, model="efficientnet_lite0"),
        Pair(dataset=INSECTS.name, model="resnet50"),
    ]
    assert benchmark.find_pairs(None, studies) == pairs
    assert benchmark.find_pairs(None, ["x"]) == [Pair(dataset="x", model="efficientnet_lite0")]


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
    pairs = [Pair(dataset="d", model=name), Pair(dataset="d", model="other")]
    refused = f"--tuned with {name}: it cannot be tuned at {size} px .*{reason}"
    expected = pytest.raises(UserError, match=refused) if reason else nullcontext()
    with expected:
        benchmark.check_pairs(pairs, infos, size)


def test_shares_are_all_points_once(tmp_path, image_folder):
    request = request_for([*tuned_alone(image_folder, tmp_path), "--processes", "4"])
    work = plan_work(prepare(request))
    measured = [point.name for number in range(4) for point in work.share(number).points]
    everything = [point.name for point in work.plan.points]
    assert len(everything) == 3 * (1 + len(TUNED)) and sorted(measured) == sorted(everything)


@pytest.mark.slow
def test_several_processes_measure_what_one_does(tmp_path, monkeypatch, image_folder):
    arguments, tables = tuned_alone(image_folder, tmp_path), []
    for number in "1", "2":
        assert benchmark.main([*arguments, "--processes", number]) == 0
        # Here, not in the two that it starts.
        monkeypatch.setattr(benchmark, "measure_tuned", pytest.fail)
        latest = max(tmp_path.glob("result/benchmarks/techniques_*.csv"))
        tables.append(pd.read_csv(latest).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables)


def test_without_pretrained_weights_only_the_time_is_told(whole, tmp_path):
    fold = first_folds(whole)[0]
    options = Options(
        data="",
        weights="none",
        out=str(tmp_path),
        models=(),
        tuned=None,
        folds=4,
        size=32,
        epochs=1,
        processes=1,
        minutes=1,
        cache_dir="",
    )
    setup = Setup(
        request=Request(options=options, machine=whole.machine, settings=FRESH_VIEWS),
        studies={"d": whole},
        folds={"d": Folds(folds=(fold,), k=4, repeats=1)},
        pairs=[Pair(dataset="d", model=TINY)],
        infos={TINY: create_backbone(TINY, "none")[1]},
    )
    (row,) = measure_alone(plan_work(setup))
    assert row.seconds > 0 and row.epochs == 1 and row.images == len(fold.train)
    assert not {"correct", "n", "macro_f1"} & {*vars(row)}
    work = plan_work(setup)
    assert not work.alone.missing() and measure_alone(work) == [row]  # kept


def test_a_gpus_results_have_a_name_of_their_own(tmp_path, monkeypatch, image_folder):
    gpu = replace(this_machine(), device="cuda")
    alone = benchmark.Alone(
        dataset="d", model="m", technique="t", images=9, seconds=1.5, epochs=2, trainable=3
    )
    monkeypatch.setattr(benchmark, "measure_tuned", lambda *given: MADE_UP)
    monkeypatch.setattr(benchmark, "measure_alone", lambda work: [alone])
    assert benchmark.main(tuned_alone(image_folder, tmp_path), machine=gpu) == 0
    (table,) = tmp_path.glob("result/benchmarks/*.csv")
    assert table.name.startswith("techniques_gpu_2")
    record = json.loads(table.with_suffix(".json").read_text())
    assert record["kind"] == "techniques_gpu" and record["facts"]["alone"] == [vars(alone)]


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

"""The benchmark of techniques: folds in order, stored as they end, summed up with Wilson's interval."""

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import techniques as benchmark
from benchmarks.techniques import measure_frozen, measure_tuned
from transferlab.backbones import WeightsInfo, create_backbone
from transferlab.compare import make_folds
from transferlab.errors import UserError
from transferlab.metrics import accuracy_interval, corrected_resampled_t
from transferlab.plots import plot_technique_accuracies, plot_techniques
from transferlab.study import freeze_backbone
from transferlab.techniques import FROZEN, TUNED, paired_tests, summarise_techniques
from transferlab.views import anime_views

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def whole(study):
    everything = torch.arange(len(study.image_set.labels))
    return study._replace(indices={"train": everything, "val": everything})


def test_a_frozen_technique_on_a_fold(whole):
    fold, frozen = (
        make_folds(whole.image_set.labels, 4, 1, 0)[1],
        freeze_backbone(TINY, whole, weights="none"),
    )
    found = measure_frozen(FROZEN["linear probe"], whole, frozen, fold)
    assert found["n"] == 4 and 0 <= found["correct"] <= 4 and found["epochs"] == 4
    assert found["trainable"] == 2 * frozen.lower.model.head_hidden_size + 2


def test_a_tuned_technique_on_a_fold(whole):
    fold = make_folds(whole.image_set.labels, 4, 1, 0)[0]
    found = measure_tuned(TUNED["last stage"], TINY, "none", whole.image_set, whole.blocks, 2, fold)
    assert found["n"] == 4 and found["epochs"] == 2 and found["seconds"] > 0
    probe = measure_tuned(
        FROZEN["linear probe"], TINY, "none", whole.image_set, whole.blocks, 1, fold
    )
    assert found["trainable"] > probe["trainable"]


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


def test_the_summary_counts_over_folds():
    summary = summarise_techniques(
        pd.DataFrame(rows_of("a", [30, 40, 50]) + rows_of("b", [3, 4, 5]))
    )
    assert summary.correct.tolist() == [120, 12] and summary.accuracy.tolist() == [0.8, 0.08]
    assert summary.seconds.tolist() == [2.0, 2.0] and summary.macro_f1.tolist() == pytest.approx(
        [0.8, 0.08]
    )
    assert (summary.low[0], summary.high[0]) == accuracy_interval(120, 150)
    plot_techniques(summary, "made up").savefig("/dev/null", format="png")
    figure = plot_technique_accuracies(
        pd.concat([summary, summary[:1].assign(model="other", technique="c")]), "made up"
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "a",
        "b",
        "c",
    ] and len(figure.axes) == 2
    ((line, *_),) = figure.axes[1].containers
    assert line.get_xdata().tolist() == [80.0] and line.get_ydata().tolist() == [2]


def test_techniques_are_tested_on_the_folds_of_their_own_pair():
    probe, better, same = [30, 31, 29, 30, 32], [45, 47, 44, 45, 46], [31, 30, 29, 31, 31]
    folds = {"linear probe": probe, "full fine-tuning": better, "MixUp": same, "incomplete": [1, 2]}
    table = pd.DataFrame(
        [row for name, counts in folds.items() for row in rows_of(name, counts)]
        + rows_of("x", [1, 2], "other")
    )
    tests = paired_tests(table).set_index(["technique", "reference"])
    assert tests.verdict.to_dict() == {
        ("full fine-tuning", "linear probe"): "better",
        ("MixUp", "linear probe"): "indistinguishable",
        ("MixUp", "full fine-tuning"): "worse",
    } and set(tests.model) == {"m"}
    counts = {
        ("full fine-tuning", "linear probe"): (better, probe),
        ("MixUp", "full fine-tuning"): (same, better),
    }
    for pair, (a, b) in counts.items():
        expected = corrected_resampled_t([(x - y) / 50 for x, y in zip(a, b)], 1 / 4)
        assert tests.difference[pair] == pytest.approx(expected["difference"]) and tests.p[
            pair
        ] == pytest.approx(expected["p"])
    smallest = tests.p.min()
    assert tests.p_holm[tests.p.idxmin()] == pytest.approx(
        3 * smallest
    )  # of three tests of this pair


def test_an_interrupted_measurement_goes_on_and_names_what_is_missing(
    tmp_path, monkeypatch, capsys, image_folder, whole
):
    monkeypatch.setattr(benchmark, "views_of", lambda dataset, size: whole.views)
    monkeypatch.setattr(benchmark, "load_studies", lambda folder, settings: {"d": whole})
    info = WeightsInfo("m", TINY, "file", "here", "")
    monkeypatch.setattr(benchmark, "create_backbone", lambda name, weights: (None, info))
    calls, clock = [], [0.0]

    def measured(*given):
        calls.append(given)
        clock[0] += 1.0
        return {"correct": 3, "n": 4, "macro_f1": 0.7, "seconds": 1.0, "trainable": 5, "epochs": 1}

    monkeypatch.setattr(benchmark, "measure_tuned", measured)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    arguments = [
        "--data",
        "x",
        "--weights",
        "y",
        "--models",
        "--tuned",
        "d:m",
        "--folds",
        "4",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(UserError, match="no technique was measured on all folds in -1 minutes"):
        benchmark.main([*arguments, "--minutes", "-1"])
    with pytest.raises(UserError, match="--tuned resnet50: give DATASET:NAME, with a dataset of d"):
        benchmark.main([*arguments[:-5], "resnet50"])
    assert benchmark.main([*arguments, "--minutes", "0.1"]) == 0  # 6 seconds
    everything = 4 * (1 + len(TUNED))
    assert (
        0 < len(calls) < everything
        and "not measured: tuned: m on d, last stage, LP-FT" in capsys.readouterr().out
    )
    (first,) = tmp_path.glob("result/benchmarks/techniques_*.csv")
    assert len(calls) % 4 and set(pd.read_csv(first).groupby("technique").fold.count()) == {
        4
    }  # a technique lacked a fold
    assert benchmark.main(arguments) == 0 and len(calls) == everything
    assert "not measured" not in capsys.readouterr().out
    tables = sorted(tmp_path.glob("result/benchmarks/techniques_*.csv"))
    assert [len(pd.read_csv(path)) for path in tables][-1] == everything
    assert not [*tmp_path.glob("result/benchmarks/techniques_unfinished/*/*.json")]


def test_a_folder_of_ones_own_images_is_measured(tmp_path, monkeypatch, capsys, image_folder):
    """Every technique on a folder that is none of the study's, small: 3 folds, 2 epochs; the study's own beside each other."""
    for kind in ("disc", "square"):
        shutil.copytree(image_folder / kind, tmp_path / "data/buttons" / kind)
    (tmp_path / "weights").mkdir()
    save_file(
        create_backbone(TINY, "none")[0].state_dict(), tmp_path / f"weights/{TINY}.safetensors"
    )
    monkeypatch.setattr(benchmark, "STUDY_SETTINGS", benchmark.STUDY_SETTINGS | {"epochs": 2})
    arguments = [
        "--data",
        str(tmp_path / "data"),
        "--weights",
        str(tmp_path / "weights"),
        "--models",
        TINY,
        "--out",
        str(tmp_path),
    ]
    arguments += ["--folds", "3", "--size", "32", "--cache-dir", "", "--epochs", "2", "--tuned"]
    assert benchmark.main([*arguments, f"buttons:{TINY}"]) == 0
    (table,) = tmp_path.glob("result/benchmarks/techniques_*.csv")
    rows = pd.read_csv(table)
    assert (
        set(rows.dataset) == {"buttons"}
        and (rows.groupby(["kind", "technique"]).n.sum() == 16).all()
    )
    assert set(rows[rows.kind == "frozen"].technique) == set(FROZEN)
    assert set(rows[rows.kind == "tuned"].technique) == {"linear probe", *TUNED}
    assert rows.macro_f1.between(0, 1).all()
    with pytest.raises(
        UserError, match="--tuned resnet50: give DATASET:NAME, with a dataset of buttons"
    ):
        benchmark.main([*arguments, "resnet50"])
    arguments[3] = "none"
    with pytest.raises(UserError, match=f"none of {TINY} has pretrained weights here"):
        benchmark.main([*arguments, f"buttons:{TINY}"])
    (tmp_path / "data/buttons").rename(tmp_path / f"data/{benchmark.INSECTS}")
    shutil.copytree(tmp_path / f"data/{benchmark.INSECTS}", tmp_path / "data/other")
    assert [*benchmark.load_studies(tmp_path / "data", {})] == [benchmark.INSECTS]
    shutil.copytree(tmp_path / f"data/{benchmark.INSECTS}", tmp_path / f"data/{benchmark.FACES}")
    studies = benchmark.load_studies(tmp_path / "data", {})
    assert [*studies] == [benchmark.FACES, benchmark.INSECTS]
    assert repr(studies[benchmark.FACES].views) == repr(anime_views())
    pairs = [
        (benchmark.FACES, "efficientnet_lite0"),
        (benchmark.INSECTS, "efficientnet_lite0"),
        (benchmark.INSECTS, "resnet50"),
    ]
    assert benchmark.find_pairs(None, studies) == pairs and benchmark.find_pairs(None, ["x"]) == [
        ("x", "efficientnet_lite0")
    ]


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vgg11", 32, "this model has no stages"),
        ("vit_tiny_patch16_224", 112, "doesn't match model"),
        (TINY, 32, ""),
    ],
)
def test_a_backbone_that_cannot_be_tuned_is_refused_before_anything_is_measured(name, size, reason):
    infos = {
        name: SimpleNamespace(kind="file", timm_name=name),
        "other": SimpleNamespace(kind="random", timm_name="no such"),
    }
    pairs = [("d", name), ("d", "other")]
    if not reason:
        return benchmark.check_pairs(pairs, infos, size)
    with pytest.raises(
        UserError, match=f"--tuned with {name}: it cannot be tuned at {size} px .*{reason}"
    ):
        benchmark.check_pairs(pairs, infos, size)


def own_images(image_folder, folder):
    """Discs and squares and the smallest backbone's weights in `folder` -> arguments that tune it on them."""
    shutil.copytree(image_folder, folder / "data/buttons")
    (folder / "weights").mkdir()
    save_file(create_backbone(TINY, "none")[0].state_dict(), folder / f"weights/{TINY}.safetensors")
    places = [
        "--data",
        str(folder / "data"),
        "--weights",
        str(folder / "weights"),
        "--out",
        str(folder),
    ]
    return [
        *places,
        "--models",
        "--tuned",
        f"buttons:{TINY}",
        "--folds",
        "3",
        "--size",
        "32",
        "--epochs",
        "2",
    ]


def test_shares_are_all_points_once(tmp_path, monkeypatch, image_folder):
    measured = []
    monkeypatch.setattr(
        benchmark,
        "measure_points",
        lambda work, folder, end: measured.extend(names for names, _ in work),
    )
    options = benchmark.parse([*own_images(image_folder, tmp_path), "--processes", "4"])
    for number in range(4):
        benchmark.measure_share(number, options, tmp_path, 0)
    everything = [names for names, _ in benchmark.list_work(options, *benchmark.prepare(options))]
    places = [*map(str, measured)]
    assert len(everything) == 3 * (1 + len(TUNED)) and sorted(places) == sorted(
        map(str, everything)
    )


@pytest.mark.slow
def test_several_processes_measure_what_one_does(tmp_path, monkeypatch, image_folder):
    arguments, tables = own_images(image_folder, tmp_path), []
    for number in "1", "2":
        assert benchmark.main([*arguments, "--processes", number]) == 0
        monkeypatch.setattr(
            benchmark, "measure_tuned", pytest.fail
        )  # here, not in the two that it starts
        tables.append(
            pd.read_csv(max(tmp_path.glob("result/benchmarks/techniques_*.csv"))).drop(
                columns="seconds"
            )
        )
    pd.testing.assert_frame_equal(*tables)


def test_without_pretrained_weights_only_the_time_is_told(whole, tmp_path):
    fold, infos = (
        make_folds(whole.image_set.labels, 4, 1, 0)[0],
        {TINY: WeightsInfo(TINY, TINY, "random", "", "")},
    )
    given = [("d", TINY)], infos, {"d": whole}, {"d": [fold]}
    (row,), points = benchmark.measure_alone(SimpleNamespace(epochs=1), *given, tmp_path)
    assert (
        row["seconds"] > 0
        and row["epochs"] == 1
        and row["images"] == len(fold[2])
        and not {"correct", "n", "macro_f1"} & {*row}
    )
    assert benchmark.measure_alone(SimpleNamespace(epochs=1), *given, tmp_path) == (
        [row],
        points,
    )  # kept


def test_a_gpus_results_have_a_name_of_their_own(tmp_path, monkeypatch, image_folder):
    monkeypatch.setattr(benchmark, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(benchmark, "measure_alone", lambda *given: (["its time"], []))
    assert benchmark.main(own_images(image_folder, tmp_path)) == 0
    (table,) = tmp_path.glob("result/benchmarks/*.csv")
    assert table.name.startswith("techniques_gpu_2") and json.loads(
        table.with_suffix(".json").read_text()
    )["alone"] == ["its time"]


def test_views_that_are_kept_are_drawn_once_and_the_same(whole):
    asked = []

    def blocks(view, indices):
        asked.extend((view, index) for index in indices.tolist())
        return whole.blocks(view, indices)

    kept, index = benchmark.keep_drawn(blocks), torch.tensor([5, 1, 9])
    for view, indices in (0, index), (1, index), (1, index.flip(0)), (1, torch.arange(40) % 16):
        expected = torch.cat([*whole.blocks(view, indices)])
        assert torch.equal(torch.cat([*kept(view, indices)]), expected)
    assert len(asked) == len({*asked}) == 3 + 16


def test_no_process_is_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse(["--data", "x", "--weights", "y", "--processes", "0"])
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err


def test_an_error_in_a_share_is_left_to_who_started_it(tmp_path, monkeypatch, capsys, image_folder):
    def fail(*given):
        raise UserError("the loss is nan")

    monkeypatch.setattr(benchmark, "measure_points", fail)
    benchmark.measure_share(
        1, benchmark.parse([*own_images(image_folder, tmp_path), "--processes", "2"]), tmp_path, 0
    )
    assert "process 1: the loss is nan" in capsys.readouterr().out

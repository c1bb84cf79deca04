"""The share of a run: what is counted, where the rest goes, and that the parts add up."""

import json
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import roofline
from benchmarks.roofline import (
    PARTS,
    best_setting,
    make_rows,
    plot_parts,
    split_wall,
    sweep_rates,
    time_forwards,
)
from transferlab.errors import UserError
from transferlab.synthetic import draw_insects

TINY = "test_resnet.r160_in1k"
RUN = {
    "wall": 20.0,
    "decoding": 1.0,
    "start-up and weights": 2.0,
    "waited": 0.5,
    "rendered": 3.0,
    "forwards": 14.0,
    "head": 1.5,
    "train_images": 500,
    "val_images": 100,
    "epochs": 9,
    "accuracy": 0.5,
    "precision": "torch.bfloat16",
}
RATES = {
    "plain/torch.float32/8": 20.0,
    "folded/torch.float32/8": 25.0,
    "plain/torch.bfloat16/8": 50.0,
    "folded/torch.bfloat16/8": 40.0,
}


def measured(run=RUN, rates=RATES):
    return {"run": run, "rates": rates, "peak_memory_mb": 700.0}


def test_each_image_counts_at_the_best_rate_of_its_precision():
    row = make_rows({"resnet50": [measured()]})[0]
    assert (row["train_setting"], row["val_setting"]) == (
        "plain/torch.bfloat16/8",
        "folded/torch.float32/8",
    )
    assert row["share"] == pytest.approx((500 / 50 + 100 / 25) / 20)
    fp32 = make_rows({"resnet50": [measured(RUN | {"precision": "torch.float32"})]})[0]
    assert fp32["share"] == pytest.approx((500 / 25 + 100 / 25) / 20)


@pytest.mark.parametrize(
    "forwards", [14.0, 18.0, 13.0]
)  # as fast as the best rate, slower, and (by chance) faster
def test_the_parts_add_up_to_the_wall_time(forwards):
    parts = split_wall(
        RUN | {"forwards": forwards, "wall": forwards + 6}, train_rate=50, val_rate=25
    )
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(forwards + 6)
    assert parts["forwards at the best rate"] == pytest.approx(14)
    assert parts["forwards above the best rate"] == pytest.approx(forwards - 14) and parts[
        "other"
    ] == pytest.approx(1)


def test_the_best_setting_is_that_of_all_rounds_and_the_rate_that_of_the_round():
    lucky = RATES | {"folded/torch.bfloat16/8": 90.0}
    rounds = [RATES, lucky, RATES | {"plain/torch.bfloat16/8": 60.0}]
    assert best_setting(rounds, torch.bfloat16) == "plain/torch.bfloat16/8"
    rows = make_rows({"resnet50": [measured(rates=rates) for rates in rounds]})
    assert [row["train_rate"] for row in rows] == [50, 50, 60]


def test_a_sweep_tries_every_setting_and_counts_every_image(monkeypatch):
    monkeypatch.setattr(roofline, "BATCH_SIZES", (4, 8))
    seen = []

    def lower(batch):
        seen.append(len(batch))
        time.sleep(0.001 * len(batch))
        return batch.float().mean((1, 2, 3))

    images = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    rates = sweep_rates(
        {"plain": lower, "folded": lower}, images, [torch.float32, torch.bfloat16], seconds=0
    )
    assert len(rates) == 8 and all(
        rate < 1000 for rate in rates.values()
    )  # an image takes a millisecond at least
    seen.clear()
    assert 200 < time_forwards(lower, images, 4, torch.float32, seconds=0) < 1000
    assert sorted(seen[:2]) == [2, 4] and seen[2:] == [
        4,
        4,
        2,
    ]  # each shape once beforehand, then every image


@pytest.fixture(scope="module")
def drawn_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw_insects(folder / "hymenoptera_data", per_class=6)
    return str(folder)


def test_a_run_says_where_its_seconds_went(drawn_data):
    started = time.perf_counter()
    run = roofline.run_once(TINY, drawn_data, "none", 2)
    assert run["wall"] <= time.perf_counter() - started
    assert (
        run["train_images"] == 3 * 8 and run["val_images"] == 4 and run["epochs"] >= 2
    )  # the clean view and both others
    assert (
        0 < run["waited"] < run["rendered"] + 0.5
        and min(run["forwards"], run["head"], run["start-up and weights"]) > 0
    )
    parts = split_wall(run, 100.0, 100.0)
    assert (
        sum(parts.values()) == pytest.approx(run["wall"])
        and -1e-6 <= parts["other"] < run["wall"] / 2
    )


def test_views_that_early_stopping_spared_do_not_count(drawn_data, monkeypatch):
    def train(frozen, study, **options):  # asks for one of the four views, twice
        frozen.timings["head"] = 0.0
        for asked in (("val", 0), ("train", 0), ("train", 1), ("train", 1)):
            frozen.draw(*asked)
        return SimpleNamespace(history=[{"val_acc": 0.5}], best_epoch=1), {
            "precision": "torch.float32"
        }

    monkeypatch.setattr(roofline, "train_study", train)
    run = roofline.run_once(TINY, drawn_data, "none", 4)
    assert (run["train_images"], run["val_images"]) == (2 * 8, 4)


def test_an_interrupted_measurement_goes_on(drawn_data, tmp_path, monkeypatch, capsys):
    calls = []

    def measure_model(name, *arguments):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured()

    monkeypatch.setattr(roofline, "measure_model", measure_model)
    arguments = [
        "--data",
        drawn_data,
        "--weights",
        "none",
        "--models",
        TINY,
        "--rounds",
        "3",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(KeyboardInterrupt):
        roofline.main(arguments)
    assert roofline.main(arguments) == 0 and len(calls) == 4  # the first of three rounds was kept
    files = sorted(
        path.name.split("_2")[0] + path.suffix for path in tmp_path.rglob("*_*.*") if path.is_file()
    )
    assert files == ["roofline.csv", "roofline.json", "roofline.png"]
    table, described = (next(tmp_path.rglob(f"roofline_*.{kind}")) for kind in ("csv", "json"))
    assert (
        pd.read_csv(table).share.tolist() == pytest.approx([0.7] * 3)
        and "share" in capsys.readouterr().out
    )
    described = json.loads(described.read_text())
    assert (
        described["settings"]["views"] == roofline.DEFAULT_VIEWS
        and described["rates"][TINY] == [RATES] * 3
    )
    assert roofline.main(arguments) == 0 and len(calls) == 7  # what is finished is measured anew


def test_the_figure_has_a_bar_a_backbone():
    figure = plot_parts(
        make_rows({"resnet50": [measured()] * 2, "vit": [measured(RUN | {"forwards": 13.0})]}),
        "drawn",
    )
    bars = figure.axes[0].containers
    assert len(bars) == len(PARTS) and all(len(part) == 2 for part in bars)
    assert sum(part[0].get_width() for part in bars) == pytest.approx(100)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--rounds", "0"], "rounds is 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--models", "resnet50"], "holds no manga_facial"),
    ],
)
def test_bad_input_is_one_clear_line(drawn_data, tmp_path, wrong, said):
    arguments = [
        "--data",
        drawn_data,
        "--weights",
        "none",
        "--models",
        TINY,
        "--out",
        str(tmp_path),
        *wrong,
    ]
    with pytest.raises(UserError, match=said):
        roofline.main(arguments)

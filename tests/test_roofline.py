"""The share of clean features: what is counted, where the rest goes, and that the parts add up."""

import time
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import roofline
from benchmarks.common import time_forwards
from benchmarks.roofline import (
    PARTS,
    Measured,
    Run,
    TimedRenderer,
    Watch,
    best_setting,
    make_rows,
    median_rows,
    plot_parts,
    split_percent,
    sweep_rates,
    verdict,
)
from transferlab.backbones import create_backbone
from transferlab.data import load_images
from transferlab.datasets import INSECTS
from transferlab.errors import UserError
from transferlab.features import extract, one_ahead
from transferlab.machine import this_machine
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord, from_plain
from transferlab.synthetic import draw_insects
from transferlab.views import Augmentation, Renderer, info_of

TINY = "test_resnet.r160_in1k"
RUN = Run(decoding=2.0, seconds=10.0, drawing=1.5, waited=1.0, forwards=8.5, images=400)
RATES = {"plain/8": 40.0, "folded/8": 50.0, "folded/16": 25.0}


def measured(run=RUN, rates=RATES):
    return Measured(run=run, rates=rates, peak_memory_mb=700.0)


def test_a_share_is_what_the_images_need_at_the_best_rate():
    """With decoding it is less."""
    row = make_rows({"resnet50": [measured()]})[0]
    assert row["setting"] == "folded/8" and row["rate"] == 50
    assert row["share"] == pytest.approx((400 / 50) / 10)
    assert row["share_with_decoding"] == pytest.approx((400 / 50) / 12)


# slower than the best rate, as fast, and (by chance) faster
@pytest.mark.parametrize("forwards", [8.5, 8.0, 7.0])
def test_the_parts_add_up(forwards):
    run = replace(RUN, forwards=forwards, seconds=forwards + 1.5)
    row = make_rows({"resnet50": [measured(run)]})[0]
    assert row["other"] == pytest.approx(0.5)
    parts = [row[name] for name in ("drawing_not_hidden", "forwards", "other")]
    assert sum(parts) == pytest.approx(row["seconds"])
    percent = split_percent([row]).loc["resnet50"]
    assert list(percent.index) == list(PARTS)
    *inside, decoding = percent
    assert sum(inside) == pytest.approx(100)
    assert decoding == pytest.approx(200 / run.seconds)


def test_the_best_setting_is_that_of_all_rounds_and_the_rate_that_of_the_round():
    lucky = RATES | {"folded/16": 90.0}
    rounds = [RATES, lucky, RATES | {"folded/8": 60.0}]
    assert best_setting(rounds) == "folded/8"
    rows = make_rows({"resnet50": [measured(rates=rates) for rates in rounds]})
    assert [row["rate"] for row in rows] == [50, 50, 60]


def test_the_goal_is_one_of_medians():
    slow = replace(RUN, seconds=20.0)
    rows = make_rows({"resnet50": [measured()] * 2 + [measured(slow)]})
    assert verdict(median_rows(rows)).endswith("for 1 of 1 backbones")
    rows += make_rows({"vit": [measured(slow)] * 2 + [measured()]})
    assert verdict(median_rows(rows)).endswith("for 1 of 2 backbones, not for vit")


def test_a_sweep_tries_every_setting_and_counts_every_image():
    seen = []

    def lower(batch):
        seen.append(len(batch))
        time.sleep(0.001 * len(batch))
        return batch.float().mean((1, 2, 3))

    images = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    machine = this_machine()
    rates = sweep_rates(
        {"plain": lower, "folded": lower},
        images,
        machine=machine,
        batch_sizes=(4, 8),
        seconds=0,
    )
    # an image takes a millisecond at least
    assert len(rates) == 4 and all(rate < 1000 for rate in rates.values())
    seen.clear()
    rate = time_forwards(lower, images, 4, torch.float32, machine=machine, seconds=0)
    assert 200 < rate < 1000
    # each shape once beforehand, then every image
    assert sorted(seen[:2]) == [2, 4] and seen[2:] == [4, 4, 2]


@pytest.fixture(scope="module")
def drawn_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw_insects(folder / "hymenoptera_data", per_class=6)
    return str(folder)


def test_a_run_says_where_its_seconds_went(drawn_data):
    started = time.perf_counter()
    info = asdict(create_backbone(TINY, "none")[1])
    run = from_plain(Run, roofline.run_once(info, drawn_data, "none"))
    assert run.decoding + run.seconds <= time.perf_counter() - started
    assert run.images == 12
    assert min(run.decoding, run.drawing, run.waited, run.forwards) > 0
    other = run.seconds - run.waited - run.forwards
    assert -1e-6 <= other < run.seconds / 2


class SlowModel(torch.nn.Module):
    """Takes so many seconds an image."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, images):
        time.sleep(self.seconds * len(images))
        return images.float().mean((2, 3))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """96 one-coloured pictures of 16 px."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(96):
        path = folder / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    return load_images(folder)


# milliseconds to draw and to compute an image; the share of the drawing that is waited for
@pytest.mark.parametrize(
    "ahead, drawing, computing, low, high",
    [(True, 2, 0, 0.8, 1), (True, 1, 4, 0.2, 0.5), (False, 1, 1, 0.99, 1)],
)
def test_the_model_waits_for_what_it_does_not_hide(squares, ahead, drawing, computing, low, high):
    """Of three blocks drawn ahead only the first is waited for where the model is slower."""

    def slowly(image):
        time.sleep(drawing / 1000)
        return image

    augmentation = Augmentation(size=16, train=slowly, clean=slowly)
    renderer = TimedRenderer(Renderer(squares, augmentation, seed=0))
    model = SlowModel(computing / 1000)
    watch = renderer.watch = Watch(model)
    blocks = renderer.blocks(0, torch.arange(96))
    blocks = one_ahead(blocks) if ahead else blocks
    extract(model, blocks, device="cpu", precision=torch.float32, size=8)
    assert watch.computed == 96 and watch.forwards >= 96 * computing / 1000
    assert renderer.drawing > 96 * drawing / 1000
    assert low * renderer.drawing < renderer.waited <= high * renderer.drawing


def test_an_interrupted_measurement_goes_on(drawn_data, tmp_path, capsys):
    calls = []

    def measure(swept, task):
        calls.append(swept.weights.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured()

    arguments = ["--data", drawn_data, "--weights", "none", "--models", TINY, "--rounds", "3"]
    arguments += ["--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        roofline.main(arguments, measure=measure)
    # the first of three rounds was kept
    assert roofline.main(arguments, measure=measure) == 0 and len(calls) == 4
    files = sorted(
        path.name.split("_2")[0] + path.suffix for path in tmp_path.rglob("*_*.*") if path.is_file()
    )
    assert files == ["roofline.csv", "roofline.json", "roofline.png"]
    table, described = (next(tmp_path.rglob(f"roofline_*.{kind}")) for kind in ("csv", "json"))
    assert pd.read_csv(table).share.tolist() == pytest.approx([0.8] * 3)
    assert "reach 0.75 of the best rate for 1 of 1 backbones" in capsys.readouterr().out
    record = read_record(described, BenchmarkRecord)
    assert record.machine.clean_precision == record.machine.precision
    assert record.augmentation == info_of(INSECTS.augmentation(224))
    assert record.facts["rates"][TINY] == [RATES] * 3
    # what is finished is measured anew
    assert roofline.main(arguments, measure=measure) == 0 and len(calls) == 7


def test_the_figure_has_a_bar_a_backbone_and_the_verdict_on_top():
    rows = make_rows({"resnet50": [measured()] * 2, "vit": [measured(replace(RUN, seconds=20.0))]})
    axis = plot_parts(rows, "drawn").axes[0]
    assert axis.get_title().replace("\n", " ") == verdict(median_rows(rows))
    assert len(axis.containers) == len(PARTS)
    best, *_ = axis.containers
    assert [bar.get_width() for bar in best] == pytest.approx([80, 40])
    assert set(PARTS) <= {text.get_text() for text in axis.texts}


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--rounds", "0"], "rounds is 0"),
        (["--data", "nowhere"], "nowhere"),
        (["--models", "resnet50"], "holds no manga_facial"),
    ],
)
def test_bad_input_is_one_clear_line(drawn_data, tmp_path, wrong, said):
    arguments = ["--data", drawn_data, "--weights", "none", "--models", TINY]
    with pytest.raises(UserError, match=said):
        roofline.main([*arguments, "--out", str(tmp_path), *wrong])

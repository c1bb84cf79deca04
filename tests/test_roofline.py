"""The share of a run: what is counted, where the rest goes, and that the parts add up."""

import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import roofline
from benchmarks.common import make_study, time_forwards
from benchmarks.roofline import (
    PARTS,
    CountingRenderer,
    Measured,
    Run,
    best_setting,
    make_rows,
    plot_parts,
    split_wall,
    sweep_rates,
)
from transferlab.backbones import create_backbone
from transferlab.data import load_images
from transferlab.datasets import INSECTS
from transferlab.errors import UserError
from transferlab.features import extract_ahead
from transferlab.machine import this_machine
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord, from_plain
from transferlab.synthetic import draw_insects
from transferlab.train import Settings
from transferlab.views import Augmentation, Renderer, info_of

TINY = "test_resnet.r160_in1k"
RUN = Run(
    wall=20.0,
    decoding=1.0,
    startup=2.0,
    waited=0.5,
    rendered=3.0,
    forwards=14.0,
    head=1.5,
    random_images=500,
    clean_images=100,
    epochs=9,
    accuracy=0.5,
    precision="torch.bfloat16",
)
RATES = {
    "plain/torch.float32/8": 20.0,
    "folded/torch.float32/8": 25.0,
    "plain/torch.bfloat16/8": 50.0,
    "folded/torch.bfloat16/8": 40.0,
}


def measured(run=RUN, rates=RATES):
    return Measured(run=run, rates=rates, peak_memory_mb=700.0)


def test_each_image_counts_at_the_best_rate_of_its_precision():
    row = make_rows({"resnet50": [measured()]})[0]
    assert (row["train_setting"], row["val_setting"]) == (
        "plain/torch.bfloat16/8",
        "folded/torch.float32/8",
    )
    assert row["share"] == pytest.approx((500 / 50 + 100 / 25) / 20)
    fp32 = make_rows({"resnet50": [measured(replace(RUN, precision="torch.float32"))]})[0]
    assert fp32["share"] == pytest.approx((500 / 25 + 100 / 25) / 20)


# as fast as the best rate, slower, and (by chance) faster
@pytest.mark.parametrize("forwards", [14.0, 18.0, 13.0])
def test_the_parts_add_up_to_the_wall_time(forwards):
    run = replace(RUN, forwards=forwards, wall=forwards + 6)
    parts = split_wall(run, train_rate=50, val_rate=25)
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(forwards + 6)
    assert parts["forwards at the best rate"] == pytest.approx(14)
    assert parts["forwards above the best rate"] == pytest.approx(forwards - 14)
    assert parts["other"] == pytest.approx(1)


def test_the_best_setting_is_that_of_all_rounds_and_the_rate_that_of_the_round():
    lucky = RATES | {"folded/torch.bfloat16/8": 90.0}
    rounds = [RATES, lucky, RATES | {"plain/torch.bfloat16/8": 60.0}]
    assert best_setting(rounds, "torch.bfloat16") == "plain/torch.bfloat16/8"
    rows = make_rows({"resnet50": [measured(rates=rates) for rates in rounds]})
    assert [row["train_rate"] for row in rows] == [50, 50, 60]


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
        [torch.float32, torch.bfloat16],
        machine=machine,
        batch_sizes=(4, 8),
        seconds=0,
    )
    # an image takes a millisecond at least
    assert len(rates) == 8 and all(rate < 1000 for rate in rates.values())
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
    plain = roofline.run_once(info, drawn_data, "none", asdict(Settings(views=2)))
    run = from_plain(Run, plain)
    assert run.wall <= time.perf_counter() - started
    # both random views of the training images, the clean view of all images
    assert run.random_images == 2 * 8 and run.clean_images == 12 and run.epochs >= 2
    assert 0 < run.waited < run.rendered + 0.5
    assert min(run.forwards, run.head, run.startup) > 0
    parts = split_wall(run, 100.0, 100.0)
    assert sum(parts.values()) == pytest.approx(run.wall)
    assert -1e-6 <= parts["other"] < run.wall / 2


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


# milliseconds to render and to compute an image; the share of the rendering that is waited for
@pytest.mark.parametrize("rendering, computing, low, high", [(4, 0, 0.8, 1), (2, 8, 0.2, 0.5)])
def test_the_model_waits_for_what_it_does_not_hide(squares, rendering, computing, low, high):
    """Of three blocks only the first is waited for where the model is slower than rendering."""

    def slowly(image):
        time.sleep(rendering / 1000)
        return image

    augmentation = Augmentation(size=16, train=slowly, clean=slowly)
    renderer = CountingRenderer(Renderer(squares, augmentation, seed=0))
    model = SlowModel(computing / 1000)
    renderer.watch(model)
    blocks = renderer.blocks(1, torch.arange(96))
    extract_ahead(model, blocks, machine=this_machine(), precision=torch.float32)
    assert renderer.images_by_view == {1: 96}
    assert renderer.rendered > 96 * rendering / 1000
    assert low * renderer.rendered < renderer.waited <= high * renderer.rendered


def run_tiny(drawn_data, train):
    settings = Settings(views=4)

    def load():
        return make_study(drawn_data, dataset=INSECTS, settings=settings, machine=this_machine())

    _, info = create_backbone(TINY, "none")
    return roofline.run_study(info, load, "none", train=train)


def test_views_that_early_stopping_spared_do_not_count(drawn_data):
    def train(frozen, study):  # asks for one of the four views, twice
        frozen.clock.seconds["head"] = 0.0
        for view in (0, 1, 1):
            frozen.features.train(view)
        best = SimpleNamespace(val_acc=0.5)
        return SimpleNamespace(history=[best], best=best)

    run = run_tiny(drawn_data, train)
    assert (run.random_images, run.clean_images) == (8, 12)


def test_an_interrupted_measurement_goes_on(drawn_data, tmp_path, capsys):
    calls = []

    def measure(name, *arguments):
        calls.append(name)
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
    assert pd.read_csv(table).share.tolist() == pytest.approx([0.7] * 3)
    assert "share" in capsys.readouterr().out
    record = read_record(described, BenchmarkRecord)
    assert record.settings == Settings()
    assert record.augmentation == info_of(INSECTS.augmentation(224))
    assert record.facts["rates"][TINY] == [RATES] * 3
    # what is finished is measured anew
    assert roofline.main(arguments, measure=measure) == 0 and len(calls) == 7


def test_the_figure_has_a_bar_a_backbone():
    figure = plot_parts(
        make_rows({"resnet50": [measured()] * 2, "vit": [measured(replace(RUN, forwards=13.0))]}),
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
    arguments = ["--data", drawn_data, "--weights", "none", "--models", TINY]
    with pytest.raises(UserError, match=said):
        roofline.main([*arguments, "--out", str(tmp_path), *wrong])

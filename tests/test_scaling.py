"""Growth: the points, their fits, the memory of another process, and going on after an
interruption."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import scaling
from benchmarks.common import benchmark_store, make_point, measured_values, point_key
from benchmarks.memory import Returned, in_fresh_process
from benchmarks.scaling import (
    GROWTH,
    Drawn,
    Inputs,
    Measured,
    first_folds,
    fold_jobs,
    measure_point,
    plot_scaling,
    proportional,
    slope,
)
from transferlab import study
from transferlab.backbones import create_backbone
from transferlab.data import load_images
from transferlab.errors import UserError
from transferlab.machine import this_machine
from transferlab.plan import Plan

TINY = "test_resnet.r160_in1k"
SMALL = replace(
    GROWTH,
    model=TINY,
    small_model=TINY,
    settings=replace(GROWTH.settings, epochs=1, views=1),
)


CALLED = """
import subprocess
import sys
import time

from transferlab.errors import UserError


def allocate(mb):
    kept = b'x' * (mb * 1_000_000)
    time.sleep(0.4)
    return len(kept)


def in_child(mb):
    code = f'import called; called.allocate({mb})'
    subprocess.run([sys.executable, '-c', code], check=True)


def refuse(word):
    raise UserError(f'no {word} here')


def fail():
    raise SystemExit(3)
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module of functions for other processes to call."""
    (tmp_path / "called.py").write_text(CALLED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_memory_of_another_process_and_its_children_is_seen(functions):
    nothing, returned = (in_fresh_process("called.allocate", mb) for mb in (0, 300))
    base = nothing.peak_mb
    assert (nothing.value, returned.value) == (0, 300_000_000) and base < 100
    assert returned.peak_mb - base == pytest.approx(300, abs=15)
    child = in_fresh_process("called.in_child", 200)
    assert child.peak_mb - base == pytest.approx(200, abs=30)


def test_what_another_process_refuses_is_said_here(functions, capfd):
    with pytest.raises(UserError, match="no cat here"):
        in_fresh_process("called.refuse", "cat")
    with pytest.raises(UserError, match="called.fail.*exit code 3"):
        in_fresh_process("called.fail")
    assert "Traceback" not in capfd.readouterr().err


def test_a_point_is_measured_once(tmp_path):
    calls = []
    store = benchmark_store(tmp_path, "scaling")
    machine = this_machine()

    def key(used, code="1"):
        return point_key("scaling", "a point", used=used, machine=machine, code=code)

    def measure():
        calls.append(1)
        return {"seconds": 1.5}

    for _ in range(2):
        plan = Plan(points=(make_point(key(["a"]), measure),), store=store)
        assert [value for _, value in measured_values(plan)] == [{"seconds": 1.5}]
    assert calls == [1]
    assert store.has(key(["a"]))
    assert not store.has(key(["b"])) and not store.has(key(["a"], code="2"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        benchmark_store(tmp_path / "file", "scaling")


def test_fits_and_reference_lines_are_those_of_powers():
    x = np.array([1.0, 10.0, 100.0])
    assert slope(x, 3 * x**0.5) == pytest.approx(0.5) and np.isnan(slope(x[:1], x[:1]))
    assert proportional("heads", x, 7 * x) == pytest.approx(7 * x)
    assert proportional("resolution", x, 7 * x**2) == pytest.approx(7 * x**2)


def test_folds_times_seeds_are_jobs_of_one_size_that_never_see_their_test_fold():
    labels = torch.arange(120) % 3
    folds = first_folds(labels, 4)
    jobs = fold_jobs(
        Drawn(image_set=None, settings=GROWTH.settings, views=torch.zeros(31, 120, 1)), folds
    )
    tests = [fold.test for fold in folds]
    assert (
        len(jobs) == 16 == len({(job.seed, tuple(test.tolist())) for job, test in zip(jobs, tests)})
    )
    assert {
        (len(job.train_index), len(job.val_index), len(test)) for job, test in zip(jobs, tests)
    } == {(87, 21, 12)}
    for job, test in zip(jobs, tests):
        assert len({*job.train_index.tolist(), *job.val_index.tolist(), *test.tolist()}) == 120


def test_drawn_pictures_can_be_read_and_are_marked(tmp_path):
    scaling.draw_pictures(tmp_path / "drawn", 30, size=16)
    images = load_images(tmp_path / "drawn")
    assert (
        images.synthetic
        and len(images.labels) == 30
        and len(images.classes) == 7
        and not images.rejected
    )
    assert {image.shape for image in images.images} == {(3, 16, 16)} and len(
        {path[-3:] for path in images.paths}
    ) == 2


@pytest.fixture(scope="module")
def drawn_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    scaling.draw_pictures(folder / "manga_facial_expressions", 98, size=32)
    return str(folder)


def inputs_of(data, folder, **changes):
    _, info = create_backbone(TINY, "none")
    infos = {TINY: replace(info, **changes)}
    return Inputs(data=data, weights="none", infos=infos, cache_dir=str(folder))


def here(function, *arguments):
    """As `in_fresh_process`, in this one."""
    called = getattr(scaling, function.rsplit(".", 1)[1])
    return Returned(value=called(*arguments), peak_mb=500.0)


@pytest.mark.parametrize("part", ["resolution", "heads"])
def test_weights_that_have_changed_are_refused(part, drawn_data, tmp_path):
    inputs = inputs_of(drawn_data, tmp_path, sha256="another")
    with pytest.raises(UserError, match=f"the weights of {TINY} have changed .*: run again"):
        measure_point(part, 32, inputs, SMALL, call=here)


def test_the_epochs_of_a_head_see_the_views_that_the_settings_name():
    views = torch.arange(4.0)[:, None, None]
    settings = replace(GROWTH.settings, views=3)
    for rule, expected in {"cycle": [1, 2, 3, 1, 2], "clean+cycle": [0, 1, 2, 3, 0]}.items():
        drawn = Drawn(image_set=None, settings=replace(settings, rule=rule), views=views)
        assert [drawn.view_of(epoch).item() for epoch in range(5)] == expected


def test_every_part_measures_what_it_names(drawn_data, tmp_path, monkeypatch):
    """In this process: that another one can be asked is tested above."""
    asked = []

    def call(function, *arguments):
        asked.append(function.rsplit(".", 1)[1])
        return here(function, *arguments)

    # only its seconds are of interest here
    monkeypatch.setattr(study, "estimate_batchnorm", lambda *images, **options: None)
    inputs = inputs_of(drawn_data, tmp_path)
    for part, value in (("resolution", 32), ("heads", 2), ("folds", 1), ("images", 60)):
        found = measure_point(part, value, inputs, SMALL, call=call)
        assert found.images == (60 if part == "images" else 98) and found.peak_memory_mb == 500
        phases = (found.load, found.weights, found.features, found.heads)
        assert found.seconds >= sum(phase or 0 for phase in phases) - 1e-6
    assert asked == ["run_whole", "keep_features", "run_heads", "run_heads", "run_whole"]


def test_an_interrupted_measurement_goes_on(drawn_data, tmp_path, capsys):
    calls = []

    def measure(part, value, *arguments):
        calls.append((part, value))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Measured(seconds=0.1 * value, heads=0.05, peak_memory_mb=400 + value)

    growth = replace(SMALL, points={"epochs": (30, 300), "folds": (1, 2)})
    arguments = ["--data", drawn_data, "--weights", "none", "--out", str(tmp_path)]
    arguments += ["--parts", "folds", "epochs", "folds"]
    with pytest.raises(KeyboardInterrupt):
        scaling.main(arguments, growth=growth, measure=measure)
    assert scaling.main(arguments, growth=growth, measure=measure) == 0
    assert calls == [("folds", 1), ("folds", 2), ("epochs", 30), ("epochs", 30), ("epochs", 300)]
    table = pd.read_csv(next(tmp_path.rglob("scaling_*.csv")))
    points = [["folds", 1, 0.1], ["folds", 4, 0.2], ["epochs", 30, 3], ["epochs", 300, 30]]
    assert table[["part", "x", "seconds"]].values.tolist() == points
    assert len([*tmp_path.rglob("*.json")]) == len([*tmp_path.rglob("*.png")]) == 1
    assert "folds x seeds 4: 0.2 s" in capsys.readouterr().out


def test_the_figure_has_a_panel_a_part():
    rows = [
        {"part": part, "x": x, "seconds": 2 * x, "peak_memory_mb": 500}
        for part in scaling.POINTS
        for x in (10, 100, 1000)
    ]
    figure = plot_scaling(pd.DataFrame(rows), "drawn")
    assert [axis.get_title() for axis in figure.axes[::2]] == [
        f"{part}: seconds ~ x^1.00, MB ~ x^0.00" for part in scaling.POINTS
    ]


@pytest.mark.parametrize(
    "wrong, said", [(["--rounds", "0"], "rounds is 0"), (["--data", "nowhere"], "nowhere")]
)
def test_bad_input_is_one_clear_line(drawn_data, tmp_path, wrong, said):
    arguments = ["--data", drawn_data, "--weights", "none", "--parts", "epochs"]
    with pytest.raises(UserError, match=said):
        scaling.main([*arguments, "--out", str(tmp_path), *wrong], growth=SMALL)

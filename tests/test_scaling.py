"""Growth: the points, their fits, the memory of another process, and going on after an interruption."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import scaling
from benchmarks.memory import in_fresh_process
from benchmarks.results import measure_or_read, unfinished_folder
from benchmarks.scaling import fold_jobs, plot_scaling, proportional, slope
from transferlab import study
from transferlab.data import load_images
from transferlab.errors import UserError

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module of functions for other processes to call."""
    (tmp_path / "called.py").write_text(
        "import time\nfrom transferlab.errors import UserError\n"
        "def allocate(mb):\n    kept = b'x' * (mb * 1_000_000)\n    time.sleep(0.4)\n    return len(kept)\n"
        "def in_child(mb):\n    import subprocess, sys\n"
        "    subprocess.run([sys.executable, '-c', f'import called; called.allocate({mb})'], check=True)\n"
        "def refuse(word):\n    raise UserError(f'no {word} here')\n"
        "def fail():\n    raise SystemExit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_the_memory_of_another_process_and_its_children_is_seen(functions):
    (nothing, base), (returned, peak) = (in_fresh_process("called.allocate", mb) for mb in (0, 300))
    assert (nothing, returned) == (0, 300_000_000) and base < 100
    assert peak - base == pytest.approx(300, abs=15)
    assert in_fresh_process("called.in_child", 200)[1] - base == pytest.approx(200, abs=30)


def test_what_another_process_refuses_is_said_here(functions, capfd):
    with pytest.raises(UserError, match="no cat here"):
        in_fresh_process("called.refuse", "cat")
    with pytest.raises(UserError, match="called.fail.*exit code 3"):
        in_fresh_process("called.fail")
    assert "Traceback" not in capfd.readouterr().err


def test_a_point_is_measured_once(tmp_path):
    calls = []
    for _ in range(2):
        found = measure_or_read(
            tmp_path / "point.json", lambda: calls.append(1) or {"seconds": 1.5}
        )
        assert found == {"seconds": 1.5}
    assert calls == [1]
    assert unfinished_folder(tmp_path, "scaling", ["a"]) != unfinished_folder(
        tmp_path, "scaling", ["b"]
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        unfinished_folder(tmp_path / "file", "scaling", [])


def test_fits_and_reference_lines_are_those_of_powers():
    x = np.array([1.0, 10.0, 100.0])
    assert slope(x, 3 * x**0.5) == pytest.approx(0.5) and np.isnan(slope(x[:1], x[:1]))
    assert proportional("heads", x, 7 * x) == pytest.approx(7 * x)
    assert proportional("resolution", x, 7 * x**2) == pytest.approx(7 * x**2)


def test_folds_times_seeds_are_jobs_of_one_size_that_never_see_their_test_fold():
    labels = torch.arange(120) % 3
    jobs, tests = fold_jobs(labels, None, None, 4)
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


def test_every_part_measures_what_it_names(drawn_data, tmp_path, monkeypatch):
    """In this process: that another one can be asked is tested above."""
    asked = []

    def here(function, *arguments):
        asked.append(function.rsplit(".", 1)[1])
        return getattr(scaling, asked[-1])(*arguments), 500.0

    monkeypatch.setattr(scaling, "in_fresh_process", here)
    monkeypatch.setattr(
        study, "estimate_batchnorm", lambda *images, **options: None
    )  # only its seconds are of interest here
    for name in ("epochs", "views"):
        monkeypatch.setitem(scaling.SETTINGS, name, 1)
    monkeypatch.setattr(scaling, "MODEL", TINY)
    monkeypatch.setattr(scaling, "SMALL_MODEL", TINY)
    for part, value in (("resolution", 32), ("heads", 2), ("folds", 1), ("images", 60)):
        found = scaling.measure_point(part, value, drawn_data, {TINY: "none"}, str(tmp_path))
        assert (
            found["images"] == (60 if part == "images" else 98) and found["peak_memory_mb"] == 500
        )
        assert (
            found["seconds"]
            >= sum(found.get(phase, 0) for phase in ("load", "weights", "features", "heads")) - 1e-6
        )
    assert asked == ["run_whole", "keep_features", "run_heads", "run_heads", "run_whole"]


def test_an_interrupted_measurement_goes_on(drawn_data, tmp_path, monkeypatch, capsys):
    calls = []

    def measure_point(part, value, *arguments):
        calls.append((part, value))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"seconds": 0.1 * value, "heads": 0.05, "peak_memory_mb": 400 + value}

    monkeypatch.setattr(scaling, "measure_point", measure_point)
    monkeypatch.setattr(scaling, "MODEL", TINY)
    monkeypatch.setattr(scaling, "POINTS", {"epochs": (30, 300), "folds": (1, 2)})
    arguments = [
        "--data",
        drawn_data,
        "--weights",
        "none",
        "--parts",
        "folds",
        "epochs",
        "folds",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(KeyboardInterrupt):
        scaling.main(arguments)
    assert scaling.main(arguments) == 0
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
    figure = plot_scaling(rows, "drawn")
    assert [axis.get_title() for axis in figure.axes[::2]] == [
        f"{part}: seconds ~ x^1.00, MB ~ x^0.00" for part in scaling.POINTS
    ]


@pytest.mark.parametrize(
    "wrong, said", [(["--rounds", "0"], "rounds is 0"), (["--data", "nowhere"], "nowhere")]
)
def test_bad_input_is_one_clear_line(drawn_data, tmp_path, monkeypatch, wrong, said):
    monkeypatch.setattr(scaling, "MODEL", TINY)
    with pytest.raises(UserError, match=said):
        scaling.main(
            [
                "--data",
                drawn_data,
                "--weights",
                "none",
                "--parts",
                "epochs",
                "--out",
                str(tmp_path),
                *wrong,
            ]
        )

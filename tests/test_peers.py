"""The comparison with others: all systems do the same task, a short round is reckoned right,
nothing finished runs twice."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import pandas as pd
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import peers
from benchmarks.memory import Watched, run_watched
from benchmarks.peer_systems import common, plain_loop, systems, table
from benchmarks.peer_systems.common import (
    HeldOutScore,
    Loaders,
    PeerEpoch,
    Record,
    Task,
    split_study,
)
from benchmarks.peer_systems.systems import STUDY, SYSTEMS, settings_of
from benchmarks.peer_systems.table import GOALS, Ratio, Row, Run, Turn
from transferlab.backbones import make_head
from transferlab.errors import UserError
from transferlab.heldout import make_folds
from transferlab.machine import this_machine
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord
from transferlab.train import Settings
from transferlab.views import Augmentation, faces_augmentation

TINY = "test_resnet.r160_in1k"
# Of images of that size: nothing, for Pillow and for tensors alike.
SAME = v2.Compose([v2.Resize((32, 32))])


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Drawn polygons of 32 x 32 pixels, 8 of each of 3 classes, as an image folder."""
    folder = tmp_path_factory.mktemp("polygons")
    for corners in (3, 4, 6):
        (folder / str(corners)).mkdir()
        for i in range(8):
            image = Image.new("RGB", (32, 32), (30 * i, 20 * corners, 90))
            ImageDraw.Draw(image).regular_polygon(
                (16, 16, 12), corners, rotation=11 * i, fill="white"
            )
            image.save(folder / str(corners) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with weights of timm's smallest test model."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(
            timm.create_model(TINY, zero_init_last=False).state_dict(),
            folder / f"{TINY}.safetensors",
        )
    return folder


HEADS = [name for name, system in SYSTEMS.items() if system.job == STUDY]
PROBES = [name for name in SYSTEMS if name not in HEADS]


def task_of(system, faces, weights, augmentation, **changed):
    """The task in fp32, whatever the machine could do."""
    settings = settings_of(system, 2)
    if settings:
        settings = replace(settings, hidden=8, lr=1e-2, **changed)
    return Task(
        folder=faces,
        weights=str(weights),
        model=TINY,
        augmentation=augmentation,
        settings=settings,
        seed=3,
        machine=replace(this_machine(), precision="torch.float32"),
    )


def run_system(system, task):
    """Runs a system in this process -> Record, checked as the benchmark checks it; skips where a
    library is missing."""
    versions = systems.library_versions(system)
    missing = [library for library, version in versions.items() if version is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    module = importlib.import_module(f"benchmarks.peer_systems.{SYSTEMS[system].module}")
    record = Record()
    with joblib.parallel_config(backend="threading"):  # processes take seconds to start
        getattr(module, SYSTEMS[system].function)(task, record)
    peers.check_job(record, SYSTEMS[system].job, torch.tensor(ImageFolder(task.folder).targets))
    return record


def losses_by_hand(task):
    """Validation losses of full-batch Adam on the features of a model in eval mode, without any of
    the code under test."""
    model = timm.create_model(TINY)
    model.load_state_dict(load_file(Path(task.weights) / f"{TINY}.safetensors"))
    head = make_head(model.num_features, 3, hidden=8, dropout=0.0, seed=task.seed)
    folder = ImageFolder(
        task.folder, v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    )
    images = torch.stack([image for image, _ in folder])
    labels = torch.tensor(folder.targets)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        maps = model.eval().forward_features((images - mean) / std)
        x = model.forward_head(maps, pre_logits=True)
    optimizer = torch.optim.Adam(head.parameters(), lr=task.settings.lr)
    fold = split_study(labels)
    losses = []
    for _ in range(task.settings.epochs):
        optimizer.zero_grad()
        F.cross_entropy(head(x[fold.train]), labels[fold.train]).backward()
        optimizer.step()
        losses.append(F.cross_entropy(head(x[fold.val]), labels[fold.val]).item())
    return losses


@pytest.mark.parametrize("system", HEADS)
def test_every_system_trains_the_same_head(system, faces, weights):
    """In one batch without dropout and random views no order is left: all validation losses agree
    to 1e-4."""
    same = Augmentation(size=32, train=SAME, clean=SAME)
    task = task_of(system, faces, weights, same, batch_size=16, dropout=0.0)
    record = run_system(system, task)
    assert [row.val_loss for row in record.rows] == pytest.approx(losses_by_hand(task), rel=1e-4)
    assert record.rows[0].end < record.rows[1].end <= record.seconds()


@pytest.mark.parametrize("system", HEADS)
def test_every_system_takes_the_studys_views_and_batches(system, faces, weights):
    """The last batch is smaller (16 = 3 x 5 + 1) and is not dropped; no bit of the backbone
    changes: `check_job`."""
    task = task_of(system, faces, weights, faces_augmentation(32), batch_size=5)
    record = run_system(system, task)
    assert len(record.rows) == 2 and all(0 <= row.val_acc <= 1 for row in record.rows)


def test_resizing_once_changes_no_pixel(faces, weights):
    augmentation = faces_augmentation(24)
    task = task_of("tuned", faces, weights, augmentation)
    image, label = common.decoded_once(task).train[0]
    torch.manual_seed(1)
    once = common.decoded_once(task).train[0][0]
    torch.manual_seed(1)
    first = split_study(ImageFolder(faces).targets).train[0]
    every_time = augmentation.train(v2.PILToTensor()(ImageFolder(faces)[first][0]))
    assert torch.equal(once, every_time) and image.dtype == torch.uint8 and label == 0


def test_a_run_that_did_something_else_is_no_measurement(faces, weights):
    record = Record()
    backbone, head = common.frozen_backbone(
        task_of("study", faces, weights, faces_augmentation(32)), record
    )
    head(torch.zeros(15, head[0].in_features))
    record.epoch(1.0, 0.5)
    with pytest.raises(RuntimeError, match="15 images and validated 0, not 16 and 8"):
        record.check_epochs(16, 8)
    record.check_frozen()
    with pytest.raises(RuntimeError, match="0 images were predicted, not 8"):
        record.check_held_out(8)
    next(buffer for name, buffer in backbone.named_buffers() if name.endswith("running_mean")).add_(
        1e-6
    )
    with pytest.raises(RuntimeError, match="not frozen"):
        record.check_frozen()


def test_the_loop_restores_the_best_weights(faces, weights, monkeypatch):
    losses = iter([3.0, 2.0, 2.0, 2.5])
    head = torch.nn.Linear(1, 1)
    record = Record()
    seen = []

    def train_epoch(forward, head, *rest):
        with torch.no_grad():
            head.weight.fill_(len(seen))
        seen.append(1)

    monkeypatch.setattr(plain_loop, "train_epoch", train_epoch)
    monkeypatch.setattr(plain_loop, "validate", lambda *rest: (next(losses), 0.5))
    task = task_of("study", faces, weights, faces_augmentation(32), epochs=4)
    plain_loop.train(None, head, Loaders(train=None, val=None), task, record)
    assert len(record.rows) == 4 and head.weight.item() == 1


def found_in(ends, tail=1.0):
    rows = [
        PeerEpoch(val_loss=5 - i, val_acc=i / 10, seen=16, evaluated=10, end=end)
        for i, end in enumerate(ends)
    ]
    return Run(
        seconds=ends[-1] + tail,
        rows=tuple(rows),
        frozen_hash="",
        seconds_total=ends[-1] + tail + 6,
        peak_memory_mb=900.0,
    )


def test_a_short_round_is_reckoned_from_its_epochs():
    """Start-up and first epoch 10 s, later ones 2 s (once 7 s), 1 s at the end: 10 + 29 * 2 + 1."""
    assert table.reckon([10, 12, 14, 21], 22, 30) == 10 + 29 * 2 + 1
    whole = found_in([10.0 + 2 * i for i in range(30)])
    assert table.disagreement(whole) == pytest.approx(0)
    slower_later = found_in(
        [10.0 + 2 * i for i in range(15)] + [38.0 + 4 * i for i in range(1, 16)]
    )
    assert table.disagreement(slower_later) == pytest.approx(69 / 99 - 1)
    four = found_in([10, 12, 14, 16])
    short = table.make_row(Turn(system="study", round=1, kind="short"), four, 30)
    assert short.seconds == 69 and short.seconds_total == 75 and short.epochs == short.views == 30
    assert short.best_epoch_accuracy is None
    two = found_in([3, 4])
    ours = table.make_row(Turn(system="ours_default", round=0, kind="short"), two, 2)
    assert ours.views == Settings().views and ours.seconds == 5
    assert ours.best_epoch_accuracy == 0.1  # it runs whole in short rounds too


def test_a_probe_has_no_epochs():
    score = HeldOutScore(correct=900, predicted=2275)
    run = Run(
        seconds=20.0, held_out=score, frozen_hash="", seconds_total=26.0, peak_memory_mb=900.0
    )
    row = table.make_row(Turn(system="sklearn", round=1, kind="short"), run, 30)
    assert row.seconds == 20 and row.held_out_accuracy == 900 / 2275 and row.job == "folds"
    assert row.epochs is row.views is row.best_epoch_accuracy is None
    assert row.text() == ("round 1 (short), sklearn: 20.0 s, 26.0 s in all, 900 MB, accuracy 39.6%")


def test_an_accuracy_in_fp32_is_the_count_it_stands_for():
    share = float(torch.tensor(52 / 159))
    told = PeerEpoch(val_loss=1.0, val_acc=share, seen=296, evaluated=159, end=1.0)
    assert told.val_acc != 52 / 159 and table.exact_accuracy(told) == 52 / 159
    with pytest.raises(UserError, match="no share of 159 images"):
        table.exact_accuracy(replace(told, val_acc=0.33))


def row_of(system, number, seconds):
    head = SYSTEMS[system].job == STUDY
    return Row(
        system=system,
        round=number,
        job=SYSTEMS[system].job,
        kind="short",
        views=30 if head else None,
        epochs=30 if head else None,
        seconds=seconds,
        seconds_total=seconds,
        best_epoch_accuracy=None,
        held_out_accuracy=None if head else 0.4,
        peak_memory_mb=1.0,
    )


def rows_of(seconds):
    return [
        row_of(name, number, value)
        for name, values in seconds.items()
        for number, value in enumerate(values)
    ]


def test_ratios_are_medians_of_the_rounds():
    seconds = {
        "study": [30, 50, 44],
        "ours_default": [10, 10, 11],
        "fastai": [50, 20, 60],
        "hf": [20, 30, 33],
    }
    rows = rows_of(seconds)
    study = Ratio(value=4, lowest=3, highest=5, rounds=3)
    assert table.ratio_of(rows, ("study",), "ours_default") == study
    best = table.ratio_of(rows, ("fastai", "lightning", "hf"), "ours_default")
    assert best == Ratio(value=2, lowest=2, highest=3, rounds=3)
    assert table.ratio_of(rows, ("tuned",), "ours_default") is None
    names = [one.name for one in table.find_outcomes(rows, this_machine())]
    assert names == ["study / ours_default", "best of fastai, hf / ours_default"]


def test_a_goal_is_that_of_the_machine():
    """15 and 20 where the CPU computes in bf16, 60 % of that where it does not, 10 on a GPU."""
    rows = rows_of({"study": [31.0, 32.0], "ours_default": [2.0, 2.0]})
    cpu = replace(this_machine(), device="cpu")
    machines = {
        "goal 15: met; moonshot 20: missed": replace(cpu, precision="torch.bfloat16"),
        "goal 9: met; moonshot 12: met": replace(cpu, precision="torch.float32"),
        "goal 10: met": replace(cpu, device="cuda"),
    }
    for told, machine in machines.items():
        (outcome,) = table.find_outcomes(rows, machine)
        line = "study / ours_default: 15.75 (median of 2, 15.50 to 16.00)"
        assert outcome.text() == f"{line}; {told}"


def test_every_goal_is_measured():
    """Each names systems that there are, and asks ours and others for the same job."""
    for goal in GOALS:
        jobs = {SYSTEMS[name].job for name in (*goal.above, goal.below)}
        assert len(jobs) == 1 and SYSTEMS[goal.below].ours
        assert not any(SYSTEMS[name].ours for name in goal.above)


def test_probes_are_compared_on_the_folds_of_compare(faces):
    labels = torch.tensor(ImageFolder(faces).targets)
    assert common.crossed_folds(labels).hash == make_folds(labels, k=5, repeats=5, seed=0).hash
    (fold,) = common.study_folds(labels)
    study = split_study(labels)
    assert torch.equal(fold.test, study.val)
    chosen = torch.cat([fold.train, fold.val]).sort().values
    assert torch.equal(chosen, study.train.sort().values) and len(fold.val)


@pytest.mark.parametrize("system", PROBES)
def test_every_probe_does_its_job(system, faces, weights, monkeypatch):
    """The polygons differ in their shade alone, which any classifier of features sees. scikit-learn
    and ours have the same features, folds, grid and objective: they may differ in an image or two.
    """
    monkeypatch.setattr(
        common, "make_folds", lambda labels, **rest: make_folds(labels, k=5, repeats=1, seed=0)
    )
    task = task_of(system, faces, weights, faces_augmentation(32))
    record = run_system(system, task)
    assert record.rows == [] and record.held_out.correct >= 0.6 * record.held_out.predicted
    if system.startswith("sklearn"):
        ours = run_system("ours_probe_fp32", task).held_out
        assert abs(record.held_out.correct - ours.correct) <= 2


@pytest.fixture
def arguments(faces, weights, tmp_path):
    sizes = ["--model", TINY, "--size", "32", "--epochs", "6", "--out", str(tmp_path)]
    return ["--data", str(faces), "--weights", str(weights), *sizes]


def test_what_finished_is_not_run_again(arguments, tmp_path, capsys):
    measured = []
    chosen = ["study", "ours_default", "ours_fp32"]

    def measure(turn, comparison):
        measured.append((turn.system, turn.round))
        if len(measured) == 3:
            raise KeyboardInterrupt
        if measured[-1] == ("ours_default", 1) and measured.count(("ours_default", 1)) == 1:
            raise UserError("ours_default failed in round 1 with exit code 1: RuntimeError: no")
        return found_in([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    arguments += ["--rounds", "2", "--full", "--systems", *chosen]
    with pytest.raises(KeyboardInterrupt):
        peers.main(arguments, measure=measure)
    with pytest.raises(UserError, match=r"ours_default failed in round 1 .*: run again to go on"):
        peers.main(arguments, measure=measure)
    assert not list(tmp_path.glob("result/benchmarks/*.csv"))
    assert peers.main(arguments, measure=measure) == 0
    # The interrupted one, the one that failed.
    again = {("ours_fp32", 0): 2, ("ours_default", 1): 2}
    assert {key: measured.count(key) for key in measured if measured.count(key) > 1} == again
    rotated = [("ours_default", 1), ("ours_fp32", 1)]
    assert measured[-1] == ("ours_default", 1) and measured[4:6] == rotated
    rows = pd.read_csv(next(tmp_path.glob("result/benchmarks/peers_*.csv")))
    assert tuple(rows.columns) == table.COLUMNS and rows.epochs.dtype == int
    assert len(rows) == 6 and set(rows["kind"]) == {"full", "short"}
    path = next(tmp_path.glob("result/benchmarks/peers_*.json"))
    record = read_record(path, BenchmarkRecord)
    assert set(record.facts["left_out"]) == set(SYSTEMS) - set(chosen)
    assert record.weights[0].kind == "file"
    assert len(record.facts["runs"]) == 6 and record.machine.threads
    assert list(tmp_path.glob("img/peers_*.png"))
    assert not list(tmp_path.glob("result/benchmarks/peers_unfinished/*"))
    goals = record.facts["goals"]
    assert goals[0]["name"] == "study / ours_default" and goals[0]["ratio"]["value"] == 1
    assert record.facts["ratios"][0] in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ours_probe", "ours_default"])
def test_a_system_in_a_process_of_its_own(system, arguments, tmp_path, capsys):
    assert peers.main([*arguments, "--rounds", "1", "--systems", system]) == 0
    row = pd.read_csv(next(tmp_path.glob("result/benchmarks/peers_*.csv"))).iloc[0]
    assert row.seconds < row.seconds_total and row.peak_memory_mb > 100
    told = [row.epochs, row.best_epoch_accuracy, row.held_out_accuracy]
    if system == "ours_probe":
        assert pd.isna(told[:2]).all() and 0 <= told[2] <= 1
    else:
        assert told[0] == 6 and 0 <= told[1] <= 1 and pd.isna(told[2])
    assert f"round 0 (short), {system}" in capsys.readouterr().out


def test_a_process_is_watched_to_its_end():
    code = (
        "import sys, time; kept = bytearray(80_000_000); time.sleep(0.5); print('done'); "
        "sys.exit('no more')"
    )
    watched = run_watched([sys.executable, "-c", code])
    assert (watched.code, watched.stdout, watched.stderr) == (1, "done\n", "no more\n")
    assert watched.peak_mb > 80


def test_a_crash_is_one_line(arguments):
    traceback = "Traceback (most recent call last):\n  ...\nRuntimeError: the cause\n"
    crashed = Watched(code=1, stdout="", stderr=traceback, started=0.0, peak_mb=1.0)
    comparison = peers.prepare(peers.parse(arguments))
    turn = Turn(system="hf", round=2, kind="full")
    with pytest.raises(
        UserError, match="^hf failed in round 2 with exit code 1: RuntimeError: the cause$"
    ):
        peers.measure_turn(turn, comparison, watch=lambda *rest, **options: crashed)
    no_json = replace(crashed, code=0, stdout="no JSON")
    with pytest.raises(UserError, match="exit code 0"):
        peers.measure_turn(turn, comparison, watch=lambda *rest, **options: no_json)


def test_what_cannot_be_measured_is_said_at_once(arguments, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="rounds is 0"):
        peers.main([*arguments, "--rounds", "0"])
    with pytest.raises(UserError, match="needs pretrained weights"):
        peers.main([*arguments, "--weights", "none"])
    with pytest.raises(UserError, match="nowhere cannot be read as a folder"):
        peers.main([*arguments, "--data", str(tmp_path / "nowhere")])
    monkeypatch.setattr(systems, "library_versions", lambda system: {system: None})
    with pytest.raises(UserError, match="no system is left"):
        peers.main([*arguments, "--systems", "fastai"])
    assert (
        'left out: fastai (fastai is not installed: pip install -e ".[bench]" in a clone)'
        in capsys.readouterr().out
    )

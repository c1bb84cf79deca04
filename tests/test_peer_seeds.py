"""The comparison of accuracies over seeds: each peer's own loop on kept features, pooled."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks import peer_seeds
from benchmarks.peer_seeds import KeptViews, Trained
from benchmarks.peer_systems import systems
from transferlab.errors import UserError
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord
from transferlab.store import NO_STORE

TINY = "test_resnet.r160_in1k"


def test_an_image_is_given_each_of_its_views_once():
    """Views [V, n, D] that hold their own numbers: 10 x view + image."""
    views = torch.arange(4)[:, None, None] * 10 + torch.arange(6)[None, :, None]
    kept = KeptViews(views, torch.arange(6), seed=1)
    epochs = [[int(kept[image][0]) for image in order] for order in ([5, 1, 0, 2, 3, 4],) * 4]
    for image, given in zip([5, 1, 0, 2, 3, 4], zip(*epochs)):
        assert sorted(given) == [image, 10 + image, 20 + image, 30 + image]
    first = epochs[0]
    assert len({value // 10 for value in first}) > 1  # each image in an order of its own
    assert int(kept[5][0]) == first[0]  # then anew
    assert kept[2][1] == 2


def correct_of(accuracy, *, seeds=20, images=159, key=0):
    """Bool [S, N]: images that are right in all seeds alike."""
    random = np.random.default_rng(key)
    return np.tile(random.random(images) < accuracy, (seeds, 1))


def test_a_difference_is_told_where_there_is_one():
    none = correct_of(0.3)
    much = none | correct_of(0.4, key=1)
    found = peer_seeds.compare({"ours_default": none, "study": much, "hf": none})
    assert [(one.ours, one.peer) for one in found] == [
        ("ours_default", "study"),
        ("ours_default", "hf"),
    ]
    worse, same = found
    assert worse.verdict == "ours worse" and worse.test.difference < -0.2 and worse.p_holm < 0.001
    assert same.verdict == "not told apart" and same.test.difference == 0 and same.p_holm == 1
    assert "are not told apart" in peer_seeds.message([same], 20)
    assert "1 of 2 differences" in peer_seeds.message(found, 20)


def test_an_interval_over_seeds_tells_nothing_of_the_images():
    """Three seeds that differ by 1, 2 and 3 of 10 images: 0.2, t(2) = 4.303, sd 0.1."""
    differences = np.zeros((3, 10))
    for seed, count in enumerate((1, 2, 3)):
        differences[seed, :count] = 1
    found = peer_seeds.over_seeds(differences)
    reach = 4.3027 * 0.1 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach), abs=1e-4)


def test_seeds_of_a_system_are_told_by_count():
    correct = np.zeros((3, 159), bool)
    for seed, count in enumerate((47, 50, 53)):
        correct[seed, :count] = True
    seeds = [Trained(epoch=epoch, val_loss=1.5, predictions=()) for epoch in (28, 29, 30)]
    level = peer_seeds.level_of("study", correct, seeds)
    assert (level.lowest, level.highest, level.epochs) == (47, 53, 29)
    assert level.accuracy == pytest.approx(50 / 159)
    assert level.deviation == pytest.approx(3 / 159)


@pytest.fixture
def arguments(image_folder, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model(TINY, zero_init_last=False).state_dict()
    save_file(state, weights / f"{TINY}.safetensors")
    sizes = ["--model", TINY, "--size", "32", "--epochs", "2", "--seeds", "3"]
    places = ["--out", str(tmp_path), "--cache-dir", ""]
    return ["--data", str(image_folder), "--weights", str(weights), *sizes, *places]


def installed():
    return [
        name
        for name in (*peer_seeds.OURS, *peer_seeds.PEERS)
        if None not in systems.library_versions(name).values()
    ]


def test_what_is_trained_is_kept_and_written(arguments, tmp_path, monkeypatch, capsys):
    trained = []
    original = peer_seeds.train_system

    def train(work, name, seed):
        trained.append((name, seed))
        if len(trained) == 5:
            raise KeyboardInterrupt
        return original(work, name, seed)

    monkeypatch.setattr(peer_seeds, "train_system", train)
    with pytest.raises(KeyboardInterrupt):
        peer_seeds.main(arguments)
    assert peer_seeds.main(arguments) == 0
    names = installed()
    assert len(trained) == 3 * len(names) + 1 and trained[4] == trained[5]
    folder = tmp_path / "result/benchmarks"
    rows = pd.read_csv(next(folder.glob("peer_seeds_*.csv")))
    assert len(rows) == 2 * (len(names) - 2)
    path = next(folder.glob("peer_seeds_2*.json"))
    record = read_record(path, BenchmarkRecord)
    with np.load(next(folder.glob("peer_seeds_raw_*.npz"))) as raw:
        assert set(raw.files) == {*names, "labels"}
        correct = {name: raw[name] == raw["labels"] for name in names}
    assert correct["study"].shape == (3, 5)
    found = peer_seeds.compare(correct)  # the verdicts, from what was stored
    assert [one.verdict for one in found] == rows.verdict.tolist()
    assert [one.test.difference for one in found] == pytest.approx(rows.difference.tolist())
    levels = record.facts["systems"]
    assert [one["system"] for one in levels] == names
    assert json.loads(path.read_text())["facts"]["seeds"] == 3
    assert list(tmp_path.glob("img/peer_seeds_*.png"))
    assert not list(folder.glob("peer_seeds_unfinished/*"))
    assert "ours_default less study" in capsys.readouterr().out


def test_too_few_seeds_are_refused(arguments):
    with pytest.raises(UserError, match="seeds is 2: give 3 or more"):
        peer_seeds.main([*arguments, "--seeds", "2"])


@pytest.mark.parametrize("name", [*peer_seeds.OURS, *peer_seeds.PEERS])
def test_every_system_is_seeded(name, arguments):
    """The same seed gives the same numbers, another one others."""
    if name not in installed():
        pytest.skip(f"the libraries of {name} are not installed")
    work = peer_seeds.prepare(peer_seeds.parse(arguments), NO_STORE)
    first, again, other = (peer_seeds.train_system(work, name, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["val_loss"] != other["val_loss"]

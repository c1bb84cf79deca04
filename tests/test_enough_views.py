"""How many views are enough: known answers from made-up values, and what is resampled together."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import enough_views
from benchmarks.enough_views import (
    DEFAULT,
    REFERENCE,
    Answers,
    Pair,
    Setting,
    analyse,
    decision_lines,
    main,
    make_rows,
    read_raw,
)
from transferlab.errors import UserError
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord
from transferlab.train import Settings

IMAGES = {"faces": 60, "insects": 40}
MODELS = ("a", "b", "c")
PAIRS = [Pair(dataset=dataset, model=model) for dataset in IMAGES for model in MODELS]
SEEDS = 10
CLEAN = Setting(scheme="clean", views=0)


def random_answers(seed, blocks=("0-9",)):
    """Answers of every pair, right in half of the cases, and losses of 1 nat."""
    random = np.random.default_rng(seed)
    answers = Answers(correct={}, loss={})
    for block in blocks:
        for pair in PAIRS:
            correct = random.random((SEEDS, IMAGES[pair.dataset])) < 0.5
            answers.add(pair, block, correct, np.ones(correct.shape, np.float16))
    return answers


def same_in_every_seed(by_image):
    """Answers {pair: [N]} that no seed changes."""
    answers = Answers(correct={}, loss={})
    for pair, values in by_image.items():
        correct = np.tile(values, (SEEDS, 1))
        answers.add(pair, "0-9", correct, np.zeros(correct.shape))
    return answers


def default_of(reference, candidate, count=2_000):
    return analyse({REFERENCE: reference, DEFAULT: candidate}, count).default


def width(change):
    return change.high - change.low


def write_raw(path, raw):
    """As benchmarks.views leaves it."""
    stored = {}
    for setting, answers in raw.items():
        for block, values in answers.correct.items():
            for pair, correct in values.items():
                stem = f"{pair.dataset}/{pair.model}/{setting.scheme}/{setting.views}/{block}"
                stored[f"{stem}/correct"] = correct.astype(bool)
                stored[f"{stem}/loss"] = answers.loss[block][pair].astype(np.float16)
                stored[f"{stem}/epochs"] = np.ones((SEEDS, 5), int)
    np.savez_compressed(path, **stored)


def test_the_default_is_the_librarys():
    assert (Settings().rule, Settings().views) == ("clean+cycle", DEFAULT.views)
    assert DEFAULT.scheme == "cycle+clean"  # the same, as benchmarks.views names it


def test_equal_candidates_differ_by_nothing_and_pass():
    found = default_of(random_answers(0), random_answers(0))
    for change in (found.accuracy, found.log_loss):
        assert (change.mean, change.low, change.high) == (0, 0, 0)  # a seed is drawn for both
    assert found.worst == 0 and found.passes


def test_the_estimate_is_the_mean_over_pairs_of_all_seeds_and_images():
    reference, candidate = random_answers(0, ("0-9", "10-19")), random_answers(1)
    candidate.loss["0-9"][PAIRS[0]] += 0.6
    differences = []
    for pair in PAIRS:
        twenty = np.concatenate([values[pair] for values in reference.correct.values()])
        differences.append(100 * (candidate.correct["0-9"][pair].mean() - twenty.mean()))
    found = default_of(reference, candidate)
    assert found.accuracy.mean == pytest.approx(np.mean(differences))
    assert found.accuracy.low < found.accuracy.mean < found.accuracy.high
    assert found.worst == pytest.approx(min(differences))
    assert found.worst_pair == PAIRS[int(np.argmin(differences))]
    assert found.log_loss.mean == pytest.approx(0.1)


def test_three_points_worse_on_one_pair_trip_the_guard():
    reference = same_in_every_seed({pair: np.ones(200) for pair in PAIRS})
    candidate = same_in_every_seed({pair: np.ones(200) for pair in PAIRS})
    candidate.correct["0-9"][PAIRS[4]][:, :6] = 0
    found = default_of(reference, candidate)
    assert found.accuracy.mean == pytest.approx(-0.5) and found.accuracy.low > -1.0
    assert found.worst == pytest.approx(-3) and found.worst_pair == PAIRS[4]
    assert not found.passes
    candidate.correct["0-9"][PAIRS[4]][:, :3] = 1
    assert default_of(reference, candidate).passes


def test_a_pooled_interval_that_reaches_the_margin_fails():
    reference = same_in_every_seed({pair: np.ones(400) for pair in PAIRS})
    candidate = same_in_every_seed({pair: np.ones(400) for pair in PAIRS})
    for pair in PAIRS:
        candidate.correct["0-9"][pair][:, :3] = 0
    found = default_of(reference, candidate)
    assert found.accuracy.mean == found.worst == pytest.approx(-0.75)
    assert found.accuracy.low < -1 and not found.passes


def test_images_are_resampled_jointly_over_the_backbones():
    """The same images hard for all backbones of a dataset: their noise does not average out."""
    random = np.random.default_rng(0)
    reference = same_in_every_seed({pair: np.zeros(200) for pair in PAIRS})
    hard = {dataset: random.random(200) < 0.5 for dataset in IMAGES}
    together = same_in_every_seed({pair: hard[pair.dataset] for pair in PAIRS})
    shuffled = {pair: random.permutation(hard[pair.dataset]) for pair in PAIRS}
    apart = same_in_every_seed(shuffled)
    joint, separate = (default_of(reference, one).accuracy for one in (together, apart))
    assert joint.mean == pytest.approx(separate.mean)
    assert width(joint) / width(separate) == pytest.approx(3**0.5, rel=0.15)
    expected = 2 * 1.96 * 100 * np.sqrt(0.25 / 200 / 2)  # two datasets drawn apart
    assert width(joint) == pytest.approx(expected, rel=0.1)


def test_seeds_are_resampled_jointly_over_all_pairs():
    """The same seeds lucky on every pair: their noise does not average out either."""
    random = np.random.default_rng(0)
    lucky = np.arange(SEEDS) % 2
    nothing = same_in_every_seed({pair: np.zeros(30) for pair in PAIRS})
    together, apart = (same_in_every_seed({pair: np.zeros(30) for pair in PAIRS}) for _ in "ab")
    for pair in PAIRS:
        together.correct["0-9"][pair][:] = lucky[:, None]
        apart.correct["0-9"][pair][:] = random.permutation(lucky)[:, None]
    joint, separate = (default_of(nothing, one).accuracy for one in (together, apart))
    assert joint.mean == separate.mean == pytest.approx(50)
    assert width(joint) > 1.5 * width(separate)
    assert width(default_of(together, together).accuracy) == 0  # one draw for both


def test_the_references_other_seeds_are_drawn_on_their_own():
    reference = random_answers(0)
    candidate = random_answers(0)
    for pair in PAIRS:
        more = np.tile(np.arange(SEEDS)[:, None] % 2, (1, IMAGES[pair.dataset]))
        reference.add(pair, "10-19", more, np.ones(more.shape))
    found = default_of(reference, candidate).accuracy
    # half of the mean of ten draws of 0 or 100 points, and half of the noise of seeds 0-9
    assert width(found) > 2 * 1.96 * 0.5 * 50 / np.sqrt(10) * 0.85


def test_the_same_numbers_every_time():
    raw = {REFERENCE: random_answers(0), DEFAULT: random_answers(1), CLEAN: random_answers(2)}
    first, second = analyse(raw, 2_000), analyse(raw, 2_000)
    assert first.comparisons == second.comparisons
    alone = analyse({REFERENCE: raw[REFERENCE], DEFAULT: raw[DEFAULT]}, 2_000)
    assert alone.default == first.default  # whatever else was measured


def test_what_lacks_a_pair_is_left_out_or_refused():
    raw = {REFERENCE: random_answers(0, ("0-9", "10-19")), DEFAULT: random_answers(1)}
    raw[CLEAN] = random_answers(2)
    del raw[CLEAN].correct["0-9"][PAIRS[0]]
    del raw[REFERENCE].correct["10-19"][PAIRS[0]]
    analysis = analyse(raw, 2_000)
    assert analysis.left_out == (CLEAN,) and analysis.reference_seeds == ("0-9",)
    assert "left out, not measured on every pair: clean, K = 0" in decision_lines(analysis)
    del raw[DEFAULT].correct["0-9"][PAIRS[0]]
    with pytest.raises(UserError, match="cycle.clean, K = 4 was not measured on every pair"):
        analyse(raw, 2_000)


def test_the_command_tells_writes_and_records(tmp_path, capsys):
    bad = same_in_every_seed({pair: np.zeros(IMAGES[pair.dataset]) for pair in PAIRS})
    raw = {REFERENCE: random_answers(0), DEFAULT: random_answers(0), CLEAN: bad}
    write_raw(tmp_path / "raw.npz", raw)
    options = ["--raw", str(tmp_path / "raw.npz"), "--out", str(tmp_path), "--resamples", "2000"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "passing: cycle+clean, K = 4\n" in printed
    assert "cycle+clean, K = 4: passes" in printed
    assert "chosen after these data were seen" in printed and "is not a chance" in printed
    table = pd.read_csv(next(tmp_path.glob("result/benchmarks/enough_views_*.csv")))
    expected = make_rows(analyse(read_raw(tmp_path / "raw.npz"), 2_000))
    pd.testing.assert_frame_equal(table, expected)
    assert [*table.passes] == [True, False]
    path = next(tmp_path.glob("result/benchmarks/enough_views_*.json"))
    facts = read_record(path, BenchmarkRecord).facts
    assert facts["resamples"] == 2_000 and facts["random_seed"] == 0
    assert facts["passing"] == ["cycle+clean, K = 4"] and facts["default_passes"]
    assert "chosen after these data were seen" in facts["caveats"][0]
    assert "is not a chance" in facts["caveats"][1]
    assert len([*tmp_path.glob("img/enough_views_*.png")]) == 1


def test_unusable_raw_values_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "raw.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    for name in ("raw.npz", "other.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            read_raw(tmp_path / name)
    with pytest.raises(UserError, match="at least 2,000"):
        main(["--resamples", "10"])
    monkeypatch.setattr(enough_views, "RAW_FOLDER", tmp_path / "empty")
    with pytest.raises(UserError, match="give --raw FILE"):
        main([])

"""Whether the fast precision changes what a comparison says: known answers from made-up
predictions, what is resampled together, and what an interrupted run measures again."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import stats

from benchmarks import precision
from benchmarks.common import STUDIED, Pair
from benchmarks.precision import (
    Answers,
    analyse,
    change_of,
    critical_values,
    draw_images,
    make_folds,
    print_analysis,
    time_precisions,
)
from transferlab.errors import UserError
from transferlab.heldout import Predictions
from transferlab.machine import this_machine
from transferlab.metrics import holm
from transferlab.published import read_record
from transferlab.records import BenchmarkRecord

IMAGES = {"faces": 300, "insects": 200}
MODELS = ("a", "b", "c")
PAIRS = [Pair(dataset=dataset, model=model) for dataset in IMAGES for model in MODELS]
LABELS = {dataset: np.arange(n) % 2 for dataset, n in IMAGES.items()}
REPEATS = 3
TINY = ("test_resnet", "test_efficientnet")


def folds_of(labels):
    return make_folds(torch.from_numpy(labels), k=5, repeats=REPEATS, seed=0)


FOLDS = {dataset: folds_of(labels) for dataset, labels in LABELS.items()}


def predict(right, labels, sure=0.8):
    """The same in every repeat: an image is right or wrong (bool [N]), its class `sure`, or one
    less that, to be true."""
    of_true = np.where(right, sure, 1 - sure)
    probabilities = np.empty((REPEATS, len(labels), 2), np.float32)
    probabilities[:, np.arange(len(labels)), labels] = of_true
    probabilities[:, np.arange(len(labels)), 1 - labels] = 1 - of_true
    return Predictions(probabilities=probabilities)


def random_rights(seed=0):
    """Half of all images right, {pair: bool [N]}."""
    random = np.random.default_rng(seed)
    return {pair: random.random(IMAGES[pair.dataset]) < 0.5 for pair in PAIRS}


def answers_from(exact, fast, sure=0.8):
    """Answers of every pair in both precisions; in fp32 as sure as `predict` makes them."""
    found = {}
    for pair, right in exact.items():
        labels = LABELS[pair.dataset]
        found[pair] = Answers(
            exact=predict(right, labels), fast=predict(fast[pair], labels, sure=sure)
        )
    return found


def analysis_of(exact, fast, sure=0.8):
    return analyse(answers_from(exact, fast, sure), LABELS, FOLDS, 2_000)


def width(change):
    return change.interval.high - change.interval.low


def test_the_same_predictions_change_nothing_and_pass():
    found = analysis_of(random_rights(), random_rights())
    for change in (found.pooled.accuracy, found.pooled.log_loss):
        assert (change.mean, change.interval.low, change.interval.high) == (0, 0, 0)
    assert not found.changed and found.decision.passes
    assert len(found.judged) == 2 * 3


def test_the_change_is_the_mean_over_pairs_fast_less_exact():
    exact = random_rights(0)
    fast = random_rights(1)
    found = analysis_of(exact, fast)
    points = [100 * (fast[pair].mean() - exact[pair].mean()) for pair in PAIRS]
    assert [one.accuracy.mean for one in found.by_pair.values()] == pytest.approx(points)
    assert found.pooled.accuracy.mean == pytest.approx(np.mean(points))
    # A right answer has ln(0.8 / 0.2) nats less than a wrong one.
    losses = -np.log(4) * np.mean(points) / 100
    assert found.pooled.log_loss.mean == pytest.approx(losses, rel=1e-5)
    assert found.pooled.accuracy.interval.low < np.mean(points)
    assert not found.decision.accuracy_inside and not found.decision.passes


def test_a_rise_of_log_loss_alone_is_refused():
    right = {pair: np.ones(n, bool) for pair, n in ((pair, IMAGES[pair.dataset]) for pair in PAIRS)}
    found = analysis_of(right, right, sure=0.8 * np.exp(-0.009))
    assert found.pooled.log_loss.mean == pytest.approx(0.009, abs=1e-5) and found.decision.passes
    found = analysis_of(right, right, sure=0.8 * np.exp(-0.011))
    assert found.decision.accuracy_inside and found.decision.verdicts_near
    assert not found.decision.log_loss_inside and not found.decision.passes
    assert "log-loss +0.0110 [+0.0110, +0.0110], not inside ±0.01" in found.decision.why


def test_the_whole_interval_has_to_lie_inside():
    """Two faces are lost on every backbone: a third of a point, but it may well be more."""
    exact = {pair: np.ones(IMAGES[pair.dataset], bool) for pair in PAIRS}
    fast = {pair: right.copy() for pair, right in exact.items()}
    for pair in PAIRS:
        fast[pair][: 2 if pair.dataset == "faces" else 0] = False
    found = analysis_of(exact, fast)
    assert found.pooled.accuracy.mean == pytest.approx(-1 / 3)
    assert found.pooled.accuracy.interval.low < -0.5 < found.pooled.accuracy.interval.high <= 0
    assert not found.decision.accuracy_inside and "not inside ±0.5" in found.decision.why


def test_images_are_resampled_jointly_and_datasets_apart():
    """The same images change on all backbones of a dataset: their noise does not average out.
    Checked against samples that are worked out one by one."""
    random = np.random.default_rng(0)
    changed = {dataset: 100.0 * (random.random(n) < 0.2) for dataset, n in IMAGES.items()}
    together = {pair: changed[pair.dataset] for pair in PAIRS}
    apart = {pair: random.permutation(changed[pair.dataset]) for pair in PAIRS}
    shares = draw_images(IMAGES, 2_000)
    joint = change_of(together, shares)
    separate = change_of(apart, shares)
    assert joint.mean == pytest.approx(separate.mean)
    assert width(joint) / width(separate) == pytest.approx(3**0.5, rel=0.15)
    variances = [100**2 * 0.2 * 0.8 / n / 4 for n in IMAGES.values()]
    assert width(joint) == pytest.approx(2 * 1.96 * sum(variances) ** 0.5, rel=0.15)
    for values, found in ((together, joint), (apart, separate)):
        means = []
        for number in range(2_000):
            sample = []
            for pair, by_image in values.items():
                times = np.round(shares[pair.dataset][number] * len(by_image)).astype(int)
                drawn = np.repeat(np.arange(len(by_image)), times)  # the same for every backbone
                sample.append(by_image[drawn].mean())
            means.append(np.mean(sample))
        expected = np.quantile(means, [0.025, 0.975])
        assert [found.interval.low, found.interval.high] == pytest.approx(expected)


def test_every_image_is_drawn_alike_and_every_time_the_same():
    shares = draw_images(IMAGES, 2_000)
    for dataset, n in IMAGES.items():
        assert shares[dataset].shape == (2_000, n)
        assert shares[dataset].sum(1) == pytest.approx(1)
        assert np.abs(n * shares[dataset].mean(0) - 1).max() < 0.15
        assert np.array_equal(shares[dataset], draw_images(IMAGES, 2_000)[dataset])
    both = [100 * (one[:, :50].sum(1) - one[:, :50].sum(1).mean()) for one in shares.values()]
    assert abs(np.corrcoef(both)[0, 1]) < 0.1


def test_critical_values_are_those_of_holm():
    p_values = [0.01, 0.04, 0.03]
    levels = [0.05 / 3, 0.05, 0.05 / 2]
    found = critical_values(p_values)
    assert found == pytest.approx([stats.norm.isf(level / 2) for level in levels])
    for p_values in np.random.default_rng(0).random((50, 6)) * 0.1:
        exceeded = stats.norm.isf(p_values / 2) > critical_values(p_values)
        order = np.argsort(p_values)
        told_apart = np.array(holm(p_values)) < 0.05
        assert np.array_equal(told_apart[order], np.logical_and.accumulate(exceeded[order]))
    assert critical_values([]) == []


def two_models(only_a, only_b, n=300):
    """Images that a alone and b alone has right; the rest both do."""
    a = np.ones(n, bool)
    b = np.ones(n, bool)
    b[:only_a] = False
    a[only_a : only_a + only_b] = False
    return {Pair(dataset="faces", model="a"): a, Pair(dataset="faces", model="b"): b}


@pytest.mark.parametrize(
    ("exact", "fast", "near"),
    [
        ((14, 5), (13, 5), True),
        ((13, 5), (14, 5), True),
        ((16, 4), (13, 5), False),
        ((13, 5), (16, 4), False),
    ],
)
def test_verdicts_that_change_are_listed_and_have_to_be_close_calls(capsys, exact, fast, near):
    answers = answers_from(two_models(*exact), two_models(*fast))
    found = analyse(answers, {"faces": LABELS["faces"]}, FOLDS, 2_000)
    (changed,) = found.changed
    for (only_a, only_b), judged in ((exact, changed.exact), (fast, changed.fast)):
        approximately = (only_a - only_b) / (only_a + only_b) ** 0.5
        assert judged.z == pytest.approx(approximately, rel=0.02)
        assert judged.z_crit == pytest.approx(1.96, abs=1e-3)
        assert judged.pair.p_holm == pytest.approx(2 * stats.norm.sf(judged.z))
        assert judged.pair.told_apart == (judged.z > judged.z_crit)
        assert judged.distance == abs(judged.z - judged.z_crit)
    assert changed.near == found.decision.verdicts_near == near
    print_analysis(found, "bf16")
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "changes: faces" in one]
    assert "faces, a less b" in line and "a better" in line and "indistinguishable" in line
    for precision_name, judged in (("fp32", changed.exact), ("bf16", changed.fast)):
        assert f"; {precision_name}: {judged.pair.verdict}, p = {judged.pair.p_holm:.4f}" in line
        assert f"z = {judged.z:+.2f}, z_crit = 1.96" in line


def test_what_is_told_apart_in_neither_precision_is_no_change():
    answers = answers_from(two_models(0, 0), two_models(3, 2))
    found = analyse(answers, {"faces": LABELS["faces"]}, FOLDS, 2_000)
    (judged,) = found.judged
    assert judged.exact.pair.verdict != judged.fast.pair.verdict and not judged.changed
    assert judged.exact.z == 0


# ---- the whole of it -------------------------------------------------------------------------


@pytest.fixture
def fast_machine():
    return replace(this_machine(), precision="torch.bfloat16")


@pytest.fixture
def places(tmp_path, image_folder):
    """Both datasets, drawn, and the weights of two tiny backbones -> the command's arguments."""
    for name in STUDIED:
        shutil.copytree(image_folder, tmp_path / "data" / name)
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    for name in TINY:
        state = timm.create_model(name).state_dict()
        save_file(state, tmp_path / "weights" / f"{name}.safetensors")
    data = ["--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights")]
    return [*data, "--out", str(tmp_path), "--repeats", "3", "--models", *TINY]


def test_an_interrupted_run_goes_on_and_measures_nothing_twice(
    tmp_path, monkeypatch, capsys, places, fast_machine
):
    predicted = []
    timed = []

    def predict_made_up(clean, image_set, folds, precision=None):
        predicted.append(clean)
        if len(predicted) == 6:
            raise KeyboardInterrupt
        right = np.arange(len(image_set.labels)) != 3
        labels = image_set.labels.numpy()
        return predict(right if len(predicted) % 2 else ~right, labels)

    def time_made_up(lower, images, machine):
        timed.append(images)
        return precision.Seconds(exact=(3.0, 8.0, 4.0), fast=(2.0, 2.0, 2.0))

    monkeypatch.setattr(precision, "predict_with_probes", predict_made_up)
    monkeypatch.setattr(precision, "time_precisions", time_made_up)
    arguments = [*places, "--cache-dir", str(tmp_path / "cache")]
    with pytest.raises(KeyboardInterrupt):
        precision.main(arguments, machine=fast_machine)
    assert not [*tmp_path.glob("result/benchmarks/precision_*.csv")]
    assert precision.main(arguments, machine=fast_machine) == 0
    assert len(predicted) == 6 + 2 * 2 and len(timed) == 2  # two pairs were kept
    assert {len(images) for images in timed} == {16}
    exact, fast = predicted[:2]
    assert exact.dtype == fast.dtype == torch.float32
    assert not torch.equal(exact, fast) and torch.allclose(exact, fast, rtol=0.1, atol=0.1)

    printed = capsys.readouterr().out
    assert "bf16 does not pass: points of accuracy" in printed
    assert "test_resnet: 4.0 s in fp32, 2.0 s in bf16, ratio 2.00" in printed
    table = pd.read_csv(next(tmp_path.glob("result/benchmarks/precision_*.csv")))
    assert table.part.value_counts().to_dict() == {
        "seconds": 2 * 3,
        "change": 2 * 2,
        "verdict": 2,
        "pooled": 1,
    }
    pooled = table[table.part == "pooled"].iloc[0]
    assert pooled.points == pytest.approx(table[table.part == "change"].points.mean())
    record = read_record(next(tmp_path.glob("result/benchmarks/precision_*.json")), BenchmarkRecord)
    facts = record.facts
    assert facts["pooled"]["accuracy"]["mean"] == pytest.approx(pooled.points)
    assert not facts["decision"]["passes"] and "not inside" in facts["decision"]["why"]
    assert facts["seconds_ratio"] == dict.fromkeys(TINY, 2.0)
    with np.load(next(tmp_path.glob("result/benchmarks/precision_raw_*.npz"))) as raw:
        dataset = table.dataset[0]
        labels = raw[f"{dataset}/labels"]
        exact, fast = (raw[f"{dataset}/{TINY[0]}/{one}"].argmax(2) for one in ("fp32", "fast"))
    change = (fast == labels).mean() - (exact == labels).mean()
    assert 100 * change == pytest.approx(table.points[0])
    assert not [*tmp_path.glob("result/benchmarks/precision_unfinished/*.safetensors")]


@pytest.mark.slow
def test_the_probe_sees_the_features_of_both_precisions(tmp_path, places, fast_machine):
    """The real thing on sixteen drawn pictures."""
    one_model = [*places[:-1], "--cache-dir", ""]
    assert precision.main(one_model, machine=fast_machine) == 0
    (table,) = tmp_path.glob("result/benchmarks/precision_2*.csv")
    rows = pd.read_csv(table)
    changes = rows[rows.part == "change"]
    assert changes.accuracy_fp32.between(0, 100).all() and (changes.log_loss_fast > 0).all()
    assert (changes.log_loss.abs() > 0).any() and changes.log_loss.abs().max() < 0.5
    seconds = rows[rows.part == "seconds"]
    assert len(seconds) == precision.ROUNDS and (seconds.seconds_fp32 > 0).all()


def test_the_precisions_take_turns(monkeypatch, fast_machine):
    calls = []

    def extract(lower, images, *, machine, precision):
        calls.append((len(images), str(precision)))

    monkeypatch.setattr(precision, "extract_ahead", extract)
    images = torch.zeros(70, 3, 4, 4, dtype=torch.uint8)
    found = time_precisions(torch.nn.Identity(), images, fast_machine, rounds=2)
    both = ["torch.float32", "torch.bfloat16"]
    assert calls[-4:] == [(70, one) for one in both * 2]
    assert max(n for n, _ in calls[:-4]) < 70  # what comes before is not counted
    assert len(found.exact) == len(found.fast) == 2


def test_what_cannot_be_compared_is_one_line(tmp_path, places, fast_machine):
    exact = replace(fast_machine, precision="torch.float32")
    with pytest.raises(UserError, match="nothing to compare: .* has no precision beside fp32"):
        precision.main(places, machine=exact)
    few = [*places, "--repeats", "2"]
    with pytest.raises(UserError, match="--repeats 2: give 3 or more"):
        precision.main(few, machine=fast_machine)
    places[places.index("--weights") + 1] = "none"
    with pytest.raises(UserError, match="none of test_resnet, .* has pretrained weights here"):
        precision.main(places, machine=fast_machine)

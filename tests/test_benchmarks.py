"""What the measurements decide with: which views an epoch sees, the margin, the choice of a
default."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common import Pair, Setting, check_weights, feature_cache
from benchmarks.views import (
    BLOCKS,
    PAIRS,
    SETTINGS,
    VIEWS,
    PairFeatures,
    Values,
    Work,
    compare_with_reference,
    decide,
    make_table,
    measure_all,
    most_seeds,
    plot_curves,
    view_chooser,
)
from transferlab.errors import UserError
from transferlab.machine import this_machine
from transferlab.pretrained import WeightsInfo
from transferlab.records import DataInfo
from transferlab.store import open_store

PAIR = Pair(dataset="manga_facial_expressions", model="resnet50")

# [31, 5, 1]: no two alike
KEPT = torch.arange(VIEWS + 1.0)[:, None, None] ** 2 + torch.arange(5.0)[:, None] * 10_000


def setting(scheme, k):
    return Setting(scheme=scheme, views=k)


def test_each_scheme_sees_the_views_that_it_names():
    def seen(scheme, k, epochs=40):
        view_of = view_chooser(setting(scheme, k), KEPT, seed=3)
        return [KEPT.tolist().index(view_of(epoch).tolist()) for epoch in range(epochs)]

    four = seen("cycle", 4)
    assert four == four[:4] * 10 and len(set(four)) == 4 and 0 not in four
    assert seen("cycle+clean", 4) == ([0] + four[:4]) * 8
    assert seen("cycle", 8)[:4] == four[:4]  # more views keep the fewer
    assert sorted(seen("cycle", VIEWS, VIEWS)) == list(range(1, VIEWS + 1))
    assert set(seen("cycle+clean", 0)) == {0}


@given(st.sampled_from([1, 2, 8]), st.integers(0, 50), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_between_stays_between_two_views_of_the_same_image(k, seed, epoch):
    between = setting("between+clean", k)
    x = view_chooser(between, KEPT, seed)(epoch)
    own = KEPT[
        [
            0,
            *(
                1 + torch.randperm(VIEWS, generator=torch.Generator().manual_seed(seed))[:k]
            ).tolist(),
        ]
    ]
    assert ((own.min(0).values <= x) & (x <= own.max(0).values)).all()
    assert torch.equal(x, view_chooser(between, KEPT, seed)(epoch))


def values(gain=0.0, rise=0.0, n=400):
    """Correct answers of 10 seeds on `n` images, `gain` more of them right than in values()."""
    correct = np.tile(np.arange(n) < n * (0.5 + gain), (10, 1))
    return Values(
        correct=correct,
        loss=np.full((10, n), 1 + rise, np.float32),
        epochs=np.full((10, 5), 9),
    )


def test_the_interval_is_that_of_a_mean_over_images():
    found = compare_with_reference(values(0.1, rise=0.5), values())
    assert found.accuracy == pytest.approx(0.1) and found.log_loss == pytest.approx(0.5)
    # 40 of 400 images changed by one each: the normal interval is close
    half = 1.96 * np.sqrt(0.1 * 0.9 / 400)
    assert found.interval.low == pytest.approx(0.1 - half, abs=0.004)
    assert found.interval.high == pytest.approx(0.1 + half, abs=0.004)


def test_fewer_views_pass_where_neither_accuracy_nor_loss_suffers():
    raw = {(PAIR, one): {block: values() for block in BLOCKS} for one in SETTINGS}
    raw[PAIR, setting("cycle", 1)] = {block: values(-0.02) for block in BLOCKS}
    raw[PAIR, setting("cycle", 2)] = {"0-9": values(rise=0.03)}
    table = make_table(raw)
    failed = table[~table.passes]
    assert {*zip(failed.scheme, failed.views)} == {("cycle", 1), ("cycle", 2)} and len(
        table
    ) == 3 * len(SETTINGS) - 2
    assert most_seeds(table) == "0-9" and most_seeds(table[table.views != 2]) == "0-19"


def passing(**passes):
    """A table in which only what is named passes: {"cycle_4": ("0-9", "10-19")}; on two pairs, one
    of which always passes."""
    rows = [
        {
            "scheme": one.scheme,
            "views": one.views,
            "seeds": seeds,
            "passes": pair == 0 or seeds in passes.get(f"{one.scheme}_{one.views}", ()),
        }
        for one in SETTINGS
        for seeds in ("0-9", "10-19", "0-19")
        for pair in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_the_fewest_views_that_pass_twice_are_chosen():
    both = ("0-9", "10-19")
    assert decide(passing(cycle_4=both, cycle_8=both)).winner == setting("cycle", 4)
    found = decide(passing(cycle_2=("0-9",), **{"between+clean_2": both}))
    assert found.winner == setting("between+clean", 2)
    assert "cycle, K = 2: passes on seeds 0-9, fails on 10-19" in found.steps
    # no view at all is no scheme
    assert decide(passing(clean_0=both, cycle_16=both)).winner == setting("cycle", 16)
    half = passing(cycle_1=("0-9",))
    assert (
        "cycle, K = 1: passes on seeds 0-9, not yet tried on 10-19"
        in decide(half[half.seeds == "0-9"]).steps
    )
    found = decide(passing())
    assert found.winner is None and len(found.steps) == len(SETTINGS) - 1


def test_the_figure_shows_every_pair():
    raw = {(pair, one): {"0-9": values()} for pair in PAIRS for one in SETTINGS}
    figure = plot_curves(make_table(raw), "drawn")
    assert len(figure.axes) == 6 and all(len(axis.lines) >= 4 for axis in figure.axes)


def features_of(pair):
    """What a pair's measurements are known by; its features are not asked for."""
    info = WeightsInfo(
        name=pair.model, timm_name=pair.model, kind="file", label="", source="", sha256=""
    )
    data = DataInfo(name=pair.dataset, digest=pair.dataset)
    return PairFeatures(views=KEPT, labels=torch.zeros(5), data=data, weights=info)


def test_an_interrupted_measurement_goes_on_and_decides_early(tmp_path):
    """cycle with 2 views is as good as 30, with 1 it is not: what passes is measured again at once,
    all else last."""
    measured = []

    def measure(features, one, seeds):
        measured.append((one.scheme, one.views, seeds[0]))
        if len(measured) == 7:
            raise KeyboardInterrupt
        return values(-0.05 if one.views < 2 else 0)

    work = Work(
        features={pair: features_of(pair) for pair in PAIRS},
        machine=this_machine(),
        store=open_store(tmp_path),
        measure=measure,
    )
    with pytest.raises(KeyboardInterrupt):
        measure_all(work, minutes=1)
    # no time left: nothing begun, nothing lost
    assert not any(measure_all(work, minutes=-1).values())
    raw = measure_all(work, minutes=1)
    assert decide(make_table(raw)).winner == setting("cycle", 2)
    assert len(measured) == 1 + 6 * 2 * len(SETTINGS)
    order = list(dict.fromkeys(measured))
    assert order[:2] == [("cycle", 30, 0), ("clean", 0, 0)]
    assert order[order.index(("cycle", 2, 0)) :][1:3] == [("cycle", 30, 10), ("cycle", 2, 10)]
    assert (
        order.index(("between+clean", 1, 0))
        < order.index(("cycle", 2, 0))
        < order.index(("cycle+clean", 2, 0))
    )


@dataclass(frozen=True)
class Key:
    number: int


def test_the_cache_of_features_is_kept_within_its_bound_after_an_error_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "0.00001")  # 10 kB
    with pytest.raises(KeyboardInterrupt), feature_cache(tmp_path) as store:
        for number in range(3):
            store.tensors(Key(number), lambda: {"features": torch.zeros(1500)})
        assert len([*tmp_path.glob("*.safetensors")]) == 3
        raise KeyboardInterrupt
    assert len([*tmp_path.glob("*.safetensors")]) == 1
    monkeypatch.setenv("TRANSFERLAB_CACHE_GB", "much")
    with pytest.raises(UserError, match="TRANSFERLAB_CACHE_GB is 'much'"), feature_cache(""):
        pytest.fail("begun all the same")


def test_weights_that_have_changed_since_the_start_are_refused():
    planned = features_of(PAIR).weights
    check_weights(planned, planned)
    with pytest.raises(UserError, match="the weights of resnet50 have changed .*: run again"):
        check_weights(replace(planned, sha256="another"), planned)

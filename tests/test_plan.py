"""Plans: what is finished is not measured again, shares cover everything once, time runs out."""

from dataclasses import dataclass

import pytest
import torch

from transferlab.errors import UserError
from transferlab.plan import Plan, Point, Share, parse_share
from transferlab.store import NO_STORE, Store


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a point depends on."""

    name: str


class Bench:
    """Measures points and says which."""

    def __init__(self):
        self.measured = []

    def point(self, name, group=""):
        def measure():
            self.measured.append(name)
            return {"value": torch.tensor(float(len(name)))}

        return Point(name=name, group=group or name, key=Key(name=name), measure=measure)

    def plan(self, names, store):
        """Points "model method": one group a model."""
        points = tuple(self.point(name, name.split()[0]) for name in names)
        return Plan(points=points, store=store)


NAMES = ("a head", "a k-NN", "b head", "c head", "b k-NN", "d head", "e head")


@pytest.fixture
def bench():
    return Bench()


def names_of(points):
    return [point.name for point in points]


def results_of(plan, **options):
    return {point.name: found["value"].item() for point, found in plan.measured(**options)}


def test_what_is_finished_is_read_and_not_measured_again(bench, tmp_path):
    store = Store(folder=tmp_path)
    first = bench.plan(NAMES[:3], store)
    assert names_of(first.missing()) == ["a head", "a k-NN", "b head"]
    expected = {"a head": 6.0, "a k-NN": 6.0, "b head": 6.0}
    assert results_of(first) == expected and bench.measured == list(expected)
    assert first.missing() == ()
    longer = bench.plan(NAMES, store)
    assert names_of(longer.missing()) == ["c head", "b k-NN", "d head", "e head"]
    assert results_of(longer) == expected | dict.fromkeys(NAMES[3:], 6.0)
    assert bench.measured == list(NAMES)


def test_points_come_one_at_a_time_and_each_is_kept_at_once(bench, tmp_path):
    plan = bench.plan(NAMES, Store(folder=tmp_path))
    going = plan.measured()
    next(going)
    next(going)
    going.close()  # interrupted
    assert bench.measured == ["a head", "a k-NN"]
    assert names_of(plan.missing()) == list(NAMES[2:])


def test_a_point_that_fails_leaves_those_before_it(bench, tmp_path):
    def fail():
        raise ZeroDivisionError

    plan = bench.plan(NAMES[:2], Store(folder=tmp_path))
    broken = Point(name="x", group="x", key=Key(name="x"), measure=fail)
    with pytest.raises(ZeroDivisionError):
        list(Plan(points=(*plan.points, broken), store=plan.store).measured())
    assert plan.missing() == () and bench.measured == ["a head", "a k-NN"]


def test_where_nothing_is_kept_everything_is_measured(bench):
    plan = bench.plan(NAMES, NO_STORE)
    for _ in range(2):
        assert len(results_of(plan)) == 7 and names_of(plan.missing()) == list(NAMES)
    assert len(bench.measured) == 14


# ---- shares -------------------------------------------------------------------------------------


def test_groups_stay_in_order_and_together(bench):
    plan = bench.plan(NAMES, NO_STORE)
    assert plan.groups == ("a", "b", "c", "d", "e")
    assert names_of(plan.share(Share(number=1, of=2)).points) == [
        "a head",
        "a k-NN",
        "c head",
        "e head",
    ]
    assert names_of(plan.share(Share(number=2, of=2)).points) == ["b head", "b k-NN", "d head"]


@pytest.mark.parametrize("of", [1, 2, 3, 5, 9])
def test_shares_are_disjoint_and_complete(bench, of):
    plan = bench.plan(NAMES, NO_STORE)
    shares = [plan.share(Share(number=number, of=of)) for number in range(1, of + 1)]
    taken = [name for share in shares for name in names_of(share.points)]
    assert sorted(taken) == sorted(NAMES)
    for share in shares:
        others = [one for one in shares if one is not share]
        assert not set(share.groups) & {group for one in others for group in one.groups}
        assert share.store is plan.store


def test_a_share_is_written_as_a_fraction():
    assert parse_share("2/3") == Share(number=2, of=3) and str(parse_share("2/3")) == "2/3"
    nines = "9" * 5000
    long = (nines, f"1/{nines}", f"{nines}/{nines}")
    wrong = ("0/3", "4/3", "1", "1/", "/3", "a/b", "-1/3", "1/3/5", "1.5/3", "", "²/3", " 1/3")
    for text in (*wrong, *long):
        with pytest.raises(UserError, match="is no share: write 1/3, 2/3 or 3/3 for a third"):
            parse_share(text)


# ---- until --------------------------------------------------------------------------------------


class Hand:
    """A clock's hand that moves on by a second whenever it is looked at."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        self.time += 1
        return self.time


def test_when_the_time_is_up_nothing_more_is_measured(bench, tmp_path):
    plan = bench.plan(NAMES, Store(folder=tmp_path))
    assert list(results_of(plan, until=3, now=Hand())) == ["a head", "a k-NN", "b head"]
    assert bench.measured == ["a head", "a k-NN", "b head"]
    assert names_of(plan.missing()) == list(NAMES[3:])


def test_what_is_finished_comes_out_also_when_the_time_is_up(bench, tmp_path):
    store = Store(folder=tmp_path)
    kept = ["a k-NN", "d head", "e head"]
    results_of(bench.plan(kept, store))
    assert list(results_of(bench.plan(NAMES, store), until=0, now=Hand())) == kept
    assert bench.measured == kept


def test_without_an_end_everything_is_measured(bench, tmp_path):
    assert len(results_of(bench.plan(NAMES, Store(folder=tmp_path)))) == 7

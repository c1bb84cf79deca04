"""The benchmark of transfer techniques, what a GPU has tuned beside the rest, and how the paired
tests came out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd
from measured import Benchmark, read_benchmark
from named import Named
from typed import fail

from transferlab.metrics import Interval
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, from_plain
from transferlab.techniques import (
    Incomplete,
    LeftOut,
    Untuned,
    paired_tests,
    summarise_techniques,
)

PLACE = ["dataset", "model", "technique"]


# ---- nouns -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TechniqueTest:
    """A technique less what it is tested against, on the same folds."""

    kind: str  # "frozen", "tuned" or "gpu"
    dataset: str
    model: str
    technique: str
    reference: str
    difference: float
    low: float  # of its 95 % interval
    high: float
    verdict: str  # "better", "worse" or "indistinguishable"

    @property
    def distinct(self) -> bool:
        """Whether the test tells the two apart."""
        return self.verdict != "indistinguishable"


@dataclass(frozen=True, kw_only=True)
class TechniqueScore:
    """A technique on one pair of data and backbone."""

    kind: str
    dataset: str
    model: str
    technique: str
    accuracy: float
    n: int  # test images of all folds
    low: float  # of the accuracy's 95 % interval
    high: float
    macro_f1: float  # mean over folds
    seconds: float  # of a fold, their median
    trainable: int  # parameters

    @property
    def interval(self) -> Interval:
        """95 %, of the accuracy."""
        return Interval(low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the tests of a technique came out over pairs of data and backbone."""

    kind: str
    technique: str
    reference: str
    pairs: int
    better: int  # on how many of them
    worse: int
    indistinguishable: int
    difference: float  # their median


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two machines agree on a pair that both tuned."""

    dataset: str
    model: str
    techniques: int  # that both have
    largest: int  # difference in how many images are right
    n: int  # images


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """What a GPU has tuned beside the rest."""

    record: BenchmarkRecord
    path: str
    agreement: tuple[Agreement, ...]


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """The benchmark of techniques, its folds summed up."""

    record: BenchmarkRecord
    path: str
    name: str  # of its figure
    left_out: LeftOut
    scores: tuple[TechniqueScore, ...]
    tests: tuple[TechniqueTest, ...]
    gpu: OnGpu | None  # None: no GPU was used, or nothing else

    @property
    def overview(self) -> list[Outcome]:
        """How the tests of each technique came out."""
        return list_outcomes(self.tests)

    def scores_of(self, kind: str) -> list[TechniqueScore]:
        """The scores of one kind."""
        return [one for one in self.scores if one.kind == kind]

    def tests_of(self, kind: str) -> list[TechniqueTest]:
        """The tests of one kind."""
        return [one for one in self.tests if one.kind == kind]

    def tests_on(self, score: TechniqueScore) -> dict[str, TechniqueTest]:
        """{reference: the test of a score's technique against it}."""
        found = {}
        for test in self.tests_of(score.kind):
            if place_of(test) == place_of(score):
                found[test.reference] = test
        return found


def place_of(one: TechniqueTest | TechniqueScore) -> tuple[str, str, str]:
    """The dataset, the model and the technique."""
    return one.dataset, one.model, one.technique


# ---- from the tables -------------------------------------------------------------------------


def list_outcomes(tests: tuple[TechniqueTest, ...]) -> list[Outcome]:
    """How the tests of each technique came out, in the order of the tests."""
    grouped: dict[tuple[str, str, str], list[TechniqueTest]] = {}
    for test in tests:
        grouped.setdefault((test.kind, test.technique, test.reference), []).append(test)
    outcomes = []
    for (kind, technique, reference), found in grouped.items():
        verdicts = [test.verdict for test in found]
        outcome = Outcome(
            kind=kind,
            technique=technique,
            reference=reference,
            pairs=len(found),
            better=verdicts.count("better"),
            worse=verdicts.count("worse"),
            indistinguishable=verdicts.count("indistinguishable"),
            difference=median(test.difference for test in found),
        )
        outcomes.append(outcome)
    return outcomes


def left_out_of(benchmark: Benchmark) -> LeftOut:
    """What a benchmark says that it has not measured."""
    return from_plain(LeftOut, benchmark.facts["left_out"])


def weights_of(record: BenchmarkRecord) -> dict[str, WeightsInfo]:
    """The weights of each backbone; how they are called in figures plays no part."""
    return {info.name: replace(info, label="") for info in record.weights}


def conditions_of(record: BenchmarkRecord) -> dict[str, Any]:
    """What the parts of one benchmark must share."""
    shared = {name: record.facts[name] for name in ("folds", "size", "epochs")}
    shared["settings"] = record.settings
    shared["data"] = {data.name: data.digest for data in record.data}
    return shared


def check_same_conditions(described: Benchmark, gpu: Benchmark) -> None:
    """Makes sure that what a GPU has tuned may stand beside the rest.

    Raises:
        SystemExit: the two were measured in another way, or with other data or weights.
    """
    weights = weights_of(described.record)
    of_gpu = weights_of(gpu.record)
    same_weights = all(of_gpu.get(name, info) == info for name, info in weights.items())
    same_conditions = conditions_of(gpu.record) == conditions_of(described.record)
    if not same_weights or not same_conditions:
        told = f"{gpu.path} was measured on other data, weights or settings than {described.path}"
        fail(f"{told}: publish one of them again")


def compare_machines(table: pd.DataFrame, tuned: pd.DataFrame) -> tuple[Agreement, ...]:
    """How far the rows of two machines agree on the pairs that both tuned."""
    first = count_right(table[table.kind == "tuned"])
    second = count_right(tuned)
    both = first.merge(second, on=[*PLACE, "n"])
    both["apart"] = (both.correct_x - both.correct_y).abs()
    grouped = both.groupby(PLACE[:2], sort=False).agg(
        techniques=("apart", "size"),
        largest=("apart", "max"),
        n=("n", "max"),
    )
    rows = grouped.reset_index().to_dict("records")
    return tuple(from_plain(Agreement, row) for row in rows)


def count_right(table: pd.DataFrame) -> pd.DataFrame:
    """How many of how many images each technique has right, over all folds."""
    sums = table.groupby(PLACE, sort=False)[["correct", "n"]].sum()
    return sums.reset_index()


def pairs_not_begun(left_out: LeftOut, begun: set[tuple[str, str]]) -> Iterator[Untuned]:
    """Of the pairs left out those that no machine has begun."""
    for one in left_out.pairs:
        models = [name for name in one.models if (one.dataset, name) not in begun]
        if models:
            yield replace(one, models=tuple(models))


def not_finished(
    left_out: LeftOut, done: set[tuple[str, str, str]], begun: set[tuple[str, str]]
) -> Iterator[Incomplete]:
    """Of the tuning left out, what was finished nowhere, of pairs that were begun."""
    for one in left_out.incomplete:
        place = (one.dataset, one.model)
        names = [name for name in one.techniques if (*place, name) not in done]
        if one.kind == "tuned" and place in begun and names:
            yield replace(one, techniques=tuple(names))


def join_left_out(described: LeftOut, gpu: LeftOut, table: pd.DataFrame) -> LeftOut:
    """What neither of two machines has measured, whose rows are both in `table`: the techniques of
    a pair that was begun are named, other pairs as a whole."""
    tuned = table[table.kind != "frozen"]
    done = set(tuned[PLACE].itertuples(index=False, name=None))
    begun = {(dataset, model) for dataset, model, _ in done}
    incomplete = [one for one in described.incomplete if one.kind == "frozen"]
    incomplete += not_finished(described, done, begun)
    incomplete += not_finished(gpu, done, begun)
    pairs = pairs_not_begun(described, begun)
    return replace(described, pairs=tuple(pairs), incomplete=tuple(incomplete))


def sum_up(
    benchmark: Benchmark, table: pd.DataFrame, *, name: str, left_out: LeftOut, gpu: OnGpu | None
) -> Techniques:
    """A benchmark with the scores and tests of a table, a row a fold."""
    scores = summarise_techniques(table).to_dict("records")
    tests = paired_tests(table).to_dict("records")
    return Techniques(
        record=benchmark.record,
        path=benchmark.path,
        name=name,
        left_out=left_out,
        scores=tuple(from_plain(TechniqueScore, row) for row in scores),
        tests=tuple(from_plain(TechniqueTest, row) for row in tests),
        gpu=gpu,
    )


def join_machines(described: Benchmark, gpu: Benchmark) -> Techniques:
    """What a GPU has tuned beside the rest, its kind "gpu".

    Raises:
        SystemExit: the two were measured in another way, or with other data or weights.
    """
    check_same_conditions(described, gpu)
    table = pd.DataFrame(described.rows)
    of_gpu = pd.DataFrame(gpu.rows)
    tuned = of_gpu[of_gpu.kind == "tuned"].assign(kind="gpu")
    joined = pd.concat([table, tuned])
    left_out = join_left_out(left_out_of(described), left_out_of(gpu), joined)
    agreement = compare_machines(table, tuned)
    on_gpu = OnGpu(record=gpu.record, path=gpu.path, agreement=agreement)
    return sum_up(described, joined, name="techniques", left_out=left_out, gpu=on_gpu)


def describe_techniques(described: Benchmark | None, gpu: Benchmark | None) -> Techniques | None:
    """The benchmark of techniques from its two parts, of which any may be missing; None where both
    are.

    Raises:
        SystemExit: as `join_machines`.
    """
    if described and gpu:
        return join_machines(described, gpu)
    only = described or gpu
    if only is None:
        return None
    return sum_up(
        only,
        pd.DataFrame(only.rows),
        name="techniques" if described else "techniques_gpu",
        left_out=left_out_of(only),
        gpu=None,
    )


def read_techniques(named: Named) -> Techniques | None:
    """The named benchmark of techniques; None where none is named.

    Raises:
        SystemExit: as `join_machines`.
    """
    described = read_benchmark(named, "techniques")
    return describe_techniques(described, read_benchmark(named, "techniques_gpu"))

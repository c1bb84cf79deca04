"""The benchmark of transfer techniques: scores and paired tests, recomputed from what was predicted
of every image; where only counts were kept there are no tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from comparisons import check_table
from measured import Benchmark, read_benchmark
from named import Named, read_rows
from typed import fail

from transferlab.metrics import Interval
from transferlab.records import BenchmarkRecord, from_plain
from transferlab.technique_scores import (
    EXACT_PROBE,
    POOLED,
    PROBE_AT_224,
    Correct,
    LeftOut,
    Place,
    TechniqueTest,
    all_tests,
    read_correct,
    summarise_techniques,
)

PLACE = ["kind", "dataset", "model", "technique"]  # the columns of a `Place`


@dataclass(frozen=True, kw_only=True)
class TechniqueScore:
    """A technique on one pair of data and backbone."""

    kind: str  # "frozen" or "tuned"
    dataset: str
    model: str
    technique: str
    accuracy: float  # mean over repeats
    n: int  # images
    repeats: int
    low: float  # of the accuracy's 95 % interval
    high: float
    macro_f1: float  # mean over folds
    seconds: float  # of a fold, their median
    trainable: int  # parameters

    @property
    def interval(self) -> Interval:
        """95 %, of the accuracy."""
        return Interval(low=self.low, high=self.high)

    @property
    def place(self) -> Place:
        """Where it was measured."""
        return Place(
            kind=self.kind, dataset=self.dataset, model=self.model, technique=self.technique
        )


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """What one machine has measured, its folds summed up."""

    record: BenchmarkRecord
    path: str  # of the table
    name: str  # of its figure
    left_out: LeftOut
    scores: tuple[TechniqueScore, ...]
    tests: tuple[TechniqueTest, ...]  # none where only counts were kept

    @property
    def headlines(self) -> list[TechniqueTest]:
        """The question that was asked beforehand, on each dataset."""
        return [test for test in self.tests if test.headline and test.kind == "tuned"]

    @property
    def kinds(self) -> list[str]:
        """The kinds that were measured."""
        return list(dict.fromkeys(one.kind for one in self.scores))

    def scores_of(self, kind: str) -> list[TechniqueScore]:
        """The scores of one kind."""
        return [one for one in self.scores if one.kind == kind]

    def pooled(self, kind: str) -> list[TechniqueTest]:
        """Every technique of one kind less the exact probe, the mean over the backbones."""
        return [
            test
            for test in self.tests
            if test.kind == kind and test.model == POOLED and test.reference == EXACT_PROBE
        ]

    def beside(self, test: TechniqueTest) -> TechniqueTest | None:
        """The same technique less the exact probe at the study's size; None where that is the
        same."""
        for other in self.tests:
            if other.place == test.place and other.reference == PROBE_AT_224:
                return other
        return None

    def tests_on(self, score: TechniqueScore) -> dict[str, TechniqueTest]:
        """{reference: the test of a score's technique against it}."""
        return {test.reference: test for test in self.tests if test.place == score.place}


# ---- from the files --------------------------------------------------------------------------


def check_counts(scores: Sequence[TechniqueScore], correct: Correct, path: str) -> None:
    """Makes sure that a table counts what the predictions say.

    Raises:
        SystemExit: it does not.
    """
    told = {score.place: score.accuracy for score in scores}
    if told.keys() != correct.keys():
        fail(f"{path} has other techniques than the predictions beside it")
    for place, right in correct.items():
        if abs(told[place] - right.mean()) > 1e-9:
            what = f"{path}: {place.technique} of {place.model} on {place.dataset}"
            fail(f"{what} has {told[place]}, and its predictions give {right.mean()}")


def read_predictions_of(path: Path) -> Correct:
    """Which predictions of a file are right."""
    with np.load(path) as arrays:
        return read_correct(dict(arrays))


def sum_up(benchmark: Benchmark, name: str, tests: Sequence[TechniqueTest] = ()) -> Techniques:
    """A benchmark with the scores of its table, a row a fold."""
    rows = summarise_techniques(pd.DataFrame(benchmark.rows)).to_dict("records")
    return Techniques(
        record=benchmark.record,
        path=benchmark.path,
        name=name,
        left_out=from_plain(LeftOut, benchmark.facts["left_out"]),
        scores=tuple(from_plain(TechniqueScore, row) for row in rows),
        tests=tuple(tests),
    )


def read_techniques(named: Named, name: str) -> Techniques | None:
    """The named benchmark of techniques, "techniques" or "techniques_gpu"; None where none is
    named.

    Raises:
        SystemExit: its table or its tests do not follow from the predictions beside them.
    """
    found = read_benchmark(named, name)
    if found is None:
        return None
    raw = f"benchmarks/{name}_raw"
    if not named.has(name, raw):
        return sum_up(found, name)
    correct = read_predictions_of(named.file(name, raw))
    summed = sum_up(found, name, all_tests(correct))
    check_counts(summed.scores, correct, summed.path)
    rows = read_rows(named.file(name, f"benchmarks/{name}_tests"))
    again = [test.row() for test in summed.tests]
    check_table(rows, again, [*PLACE, "reference"], summed.path)
    return summed

"""How transfer techniques came out: their accuracies, and paired tests against the exact probe.

Tests are over images and repeats (`metrics.paired_over_images`). The question that was asked before
anything was measured, HEADLINE less EXACT_PROBE, stands alone; all else is looked at in one family
of tests (Holm). With fewer than `metrics.ENOUGH_REPEATS` repeats there is an interval and no
verdict: training noise is not included.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .metrics import (
    ENOUGH_REPEATS,
    PairedTest,
    accuracy_interval,
    paired_over_images,
    smallest_visible,
    verdicts,
)
from .verdicts import IDENTICAL, TOO_FEW_REPEATS

EXACT_PROBE = (
    "exact probe"  # on the same images at the same size: what every technique is tested against
)
PROBE_AT_224 = "exact probe, 224 px"  # on them at the study's size
HEADLINE = "full fine-tuning"
ADDS_TO = {  # what a technique is built on: it is tested against that too
    "label smoothing": "study's head",
    "class weights": "study's head",
    "cosine schedule": "study's head",
    "LP-FT": "full fine-tuning",
    "layer-wise rates": "full fine-tuning",
    "MixUp": "full fine-tuning",
    "CutMix": "full fine-tuning",
}
POOLED = "all"  # in place of a model: the mean over the backbones


# ---- scores ----------------------------------------------------------------------------------


def summarise_techniques(table: pd.DataFrame) -> pd.DataFrame:
    """A row a technique and pair of dataset and model from a row a fold (benchmarks.techniques):
    accuracy, mean over repeats, with its 95 % Wilson interval over images, mean macro-F1 and median
    seconds of a fold, how many parameters trained."""
    if "repeat" not in table:  # measured before there were several
        table = table.assign(repeat=0)
    grouped = table.groupby(["kind", "dataset", "model", "technique"], sort=False)
    summary = grouped.agg(
        correct=("correct", "sum"),
        n=("n", "sum"),
        repeats=("repeat", "nunique"),
        macro_f1=("macro_f1", "mean"),
        seconds=("seconds", "median"),
        trainable=("trainable", "first"),
    ).reset_index()
    summary["correct"] = summary.correct / summary.repeats  # of one repeat, on average
    summary["n"] = summary.n // summary.repeats
    counts = zip(summary.correct, summary.n, strict=True)
    intervals = [accuracy_interval(correct, n) for correct, n in counts]
    return summary.assign(
        accuracy=summary.correct / summary.n,
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
    )


# ---- tests -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a technique was measured."""

    kind: str  # "frozen" or "tuned"
    dataset: str
    model: str
    technique: str

    @property
    def pair(self) -> tuple[str, str, str]:
        """What the techniques share that are compared."""
        return self.kind, self.dataset, self.model


Correct = Mapping[Place, np.ndarray]  # bool [R, N]: right in repeat r on image i


@dataclass(frozen=True, kw_only=True)
class TechniqueTest:
    """A technique less what it is tested against, on the same images and folds."""

    kind: str
    dataset: str
    model: str  # POOLED: the mean over `models`
    models: tuple[str, ...]
    technique: str
    reference: str
    repeats: int  # that both were measured in, with every model
    test: PairedTest
    p_holm: float | None = None  # None with too few repeats
    detectable: float | None = None  # the smallest difference that would have been seen
    verdict: str = TOO_FEW_REPEATS  # or "better", "worse", "indistinguishable", IDENTICAL

    @property
    def place(self) -> Place:
        """Where the technique was measured."""
        return Place(
            kind=self.kind, dataset=self.dataset, model=self.model, technique=self.technique
        )

    @property
    def headline(self) -> bool:
        """Whether it is the question that was asked beforehand."""
        return self.technique == HEADLINE and self.reference == EXACT_PROBE and self.model == POOLED

    @property
    def told_apart(self) -> bool:
        """Whether the test tells the two apart."""
        return self.verdict in ("better", "worse")

    def row(self) -> dict[str, Any]:
        """The test as a row of a table."""
        row = {
            "kind": self.kind,
            "dataset": self.dataset,
            "model": self.model,
            "models": " ".join(self.models),
            "technique": self.technique,
            "reference": self.reference,
            "repeats": self.repeats,
        }
        row |= asdict(self.test)
        return row | {
            "p_holm": self.p_holm,
            "detectable": self.detectable,
            "verdict": self.verdict,
        }


def references_of(technique: str, measured: Collection[str]) -> list[str]:
    """What a technique is tested against, of what was measured."""
    probes = [EXACT_PROBE, PROBE_AT_224]
    if technique in probes:
        return []
    built_on = ADDS_TO.get(technique)
    asked = [*probes, built_on] if built_on else probes
    return [reference for reference in asked if reference in measured]


def paired_test(
    differences: Sequence[np.ndarray], place: Place, reference: str, models: Sequence[str]
) -> TechniqueTest:
    """The test of differences [R, N] of one model or several, of which the mean is tested; repeats
    that not all have are left out."""
    repeats = min(len(one) for one in differences)
    common = [one[:repeats] for one in differences]
    return TechniqueTest(
        kind=place.kind,
        dataset=place.dataset,
        model=place.model,
        models=tuple(models),
        technique=place.technique,
        reference=reference,
        repeats=repeats,
        test=paired_over_images(np.mean(common, axis=0)),
    )


def less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Right less right [R, N], in the repeats that both have."""
    repeats = min(len(a), len(b))
    return a[:repeats].astype(int) - b[:repeats]


def pair_tests(correct: Correct) -> list[TechniqueTest]:
    """Every technique less its references on each pair of data and backbone, decided in one family
    a pair."""
    decided = []
    for pair in dict.fromkeys(place.pair for place in correct):
        here = {place.technique: one for place, one in correct.items() if place.pair == pair}
        kind, dataset, model = pair
        tests = []
        for technique in here:
            place = Place(kind=kind, dataset=dataset, model=model, technique=technique)
            for reference in references_of(technique, here):
                difference = less(here[technique], here[reference])
                tests.append(paired_test([difference], place, reference, [model]))
        decided += decide(tests)
    return decided


def pooled_tests(correct: Correct) -> list[TechniqueTest]:
    """Every technique less the probes, the mean over the backbones that have both: the headline
    alone, the others of a dataset in one family a reference."""
    decided = []
    groups = dict.fromkeys((place.kind, place.dataset) for place in correct)
    for kind, dataset in groups:
        here = {
            place: one
            for place, one in correct.items()
            if (place.kind, place.dataset) == (kind, dataset)
        }
        for reference in (EXACT_PROBE, PROBE_AT_224):
            tests = list(pool(here, reference))
            named = [test for test in tests if test.headline]
            others = [test for test in tests if not test.headline]
            decided += decide(named) + decide(others)
    return decided


def pool(correct: Correct, reference: str) -> Iterator[TechniqueTest]:
    """Every technique of a dataset less one reference, the mean over the backbones."""
    for technique in dict.fromkeys(place.technique for place in correct):
        if technique in (EXACT_PROBE, PROBE_AT_224):
            continue
        differences = {}
        for place, right in correct.items():
            beside = replace(place, technique=reference)
            if place.technique == technique and beside in correct:
                differences[place.model] = less(right, correct[beside])
        if differences:
            pooled = replace(next(iter(correct)), model=POOLED, technique=technique)
            yield paired_test([*differences.values()], pooled, reference, [*differences])


def decide(tests: Sequence[TechniqueTest]) -> list[TechniqueTest]:
    """Tests with their verdicts, at 5 % for all of them together that have repeats enough."""
    able = [one for one in tests if one.repeats >= ENOUGH_REPEATS]
    found = iter(verdicts([one.test for one in able]))
    decided = []
    for one in tests:
        if one.repeats < ENOUGH_REPEATS:
            decided.append(one)
            continue
        verdict = next(found)
        same = one.test.error == 0 and one.test.difference == 0
        judged = replace(
            one,
            p_holm=verdict.p_holm,
            detectable=smallest_visible(one.test.error, len(able)) or None,
            verdict=IDENTICAL if same else verdict.word,
        )
        decided.append(judged)
    return decided


def all_tests(correct: Correct) -> list[TechniqueTest]:
    """The pooled tests, then those of each pair."""
    return pooled_tests(correct) + pair_tests(correct)


# ---- predictions in a file -------------------------------------------------------------------


def pack_predictions(
    predicted: Mapping[Place, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Predicted classes int [R, N] and, by dataset, labels int [N], as arrays by name: what
    `read_correct` reads."""
    arrays = {f"labels/{dataset}": its.astype(np.int16) for dataset, its in labels.items()}
    for place, classes in predicted.items():
        name = "/".join([place.kind, place.dataset, place.model, place.technique])
        arrays[f"predicted/{name}"] = classes.astype(np.int16)
    return arrays


def read_correct(arrays: Mapping[str, np.ndarray]) -> dict[Place, np.ndarray]:
    """Which predictions are right, bool [R, N], from the arrays of `pack_predictions`."""
    correct = {}
    for name, classes in arrays.items():
        what, _, rest = name.partition("/")
        if what != "predicted":
            continue
        kind, dataset, model, technique = rest.split("/")
        place = Place(kind=kind, dataset=dataset, model=model, technique=technique)
        correct[place] = classes == arrays[f"labels/{dataset}"]
    return correct


# ---- what was not measured -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Incomplete:
    """Techniques of a pair that lack a fold."""

    kind: str
    dataset: str
    model: str
    techniques: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What was asked for and not measured."""

    incomplete: tuple[Incomplete, ...] = ()
    without_weights: tuple[str, ...] = ()  # backbones

    @property
    def something(self) -> bool:
        """Whether there is any."""
        return bool(self.incomplete or self.without_weights)

    def lines(self) -> Iterable[str]:
        """The same for the terminal."""
        for one in self.incomplete:
            techniques = ", ".join(one.techniques)
            yield f"not measured: {one.kind}: {one.model} on {one.dataset}, {techniques}"
        for name in self.without_weights:
            yield f"not measured: {name}, for which there are no pretrained weights"

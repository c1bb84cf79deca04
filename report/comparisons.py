"""The comparisons that are named, each recomputed from its predictions."""

from dataclasses import dataclass

import pandas as pd
from named import Named, Row, read_rows
from typed import fail

from transferlab.heldout import POINTS, ComparisonRecord, PairTest, Score, Scores
from transferlab.metrics import Interval, PairedTest
from transferlab.pretrained import WeightsInfo
from transferlab.published import read_record
from transferlab.records import DataInfo


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model's accuracy less another's."""

    points: float  # -1 to 1
    distinct: bool  # whether the test tells the two apart


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison that is named."""

    record: ComparisonRecord
    scores: tuple[Scores, ...]  # of models and baselines
    pairs: tuple[PairTest, ...]  # of models
    path: str  # of the table of scores

    @property
    def data(self) -> DataInfo:
        """What was compared on."""
        return self.record.data[0]

    @property
    def weights(self) -> dict[str, WeightsInfo]:
        """What the models compute with."""
        return {info.name: info for info in self.record.weights}

    @property
    def models(self) -> tuple[Scores, ...]:
        """The scores of models alone."""
        return tuple(one for one in self.scores if not one.baseline)

    @property
    def distinct(self) -> tuple[PairTest, ...]:
        """The pairs that the tests tell apart."""
        return tuple(pair for pair in self.pairs if pair.verdict != "indistinguishable")

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """{model: {other model: the first one's accuracy less the other's}}."""
        table: dict[str, dict[str, Difference]] = {}
        for pair in self.pairs:
            a = pair.model_a
            b = pair.model_b
            points = pair.test.difference
            distinct = pair in self.distinct
            table.setdefault(a, {})[b] = Difference(points=points, distinct=distinct)
            table.setdefault(b, {})[a] = Difference(points=-points, distinct=distinct)
        return table


# ---- rows of tables --------------------------------------------------------------------------


def score_of(row: Row, name: str) -> Score:
    """A score and its interval."""
    interval = Interval(low=row[f"{name}_low"], high=row[f"{name}_high"])
    return Score(value=row[name], interval=interval)


def scores_of(row: Row) -> Scores:
    """A row of the table of scores, as `Scores.row` gives it."""
    return Scores(
        model=row["model"],
        baseline=row["baseline"],
        weights=row.get("weights", ""),
        n=row["n"],
        folds=row["folds"],
        accuracy_score=score_of(row, "accuracy"),
        log_loss=score_of(row, "log_loss"),
        brier=score_of(row, "brier"),
        macro_f1=score_of(row, "macro_f1"),
        ece=row["ece"],
        selection_optimism=row.get("selection_optimism"),
        epochs_to_best=row.get("epochs_to_best"),
    )


def pair_of(row: Row) -> PairTest:
    """A row of the table of pairs, as `PairTest.row` gives it."""
    test = PairedTest(
        difference=row["difference"],
        error=row["error"],
        low=row["low"],
        high=row["high"],
        p=row["p"],
    )
    return PairTest(
        model_a=row["model_a"],
        model_b=row["model_b"],
        test=test,
        p_holm=row["p_holm"],
        detectable=row["detectable"],
        images_needed=tuple(row[f"images_for_{points}_points"] for points in POINTS),
        verdict=row["verdict"],
    )


# ---- recomputed ------------------------------------------------------------------------------


def accuracies_of(predictions: pd.DataFrame) -> dict[str, float]:
    """The accuracy of each model over its predictions."""
    correct = predictions.label == predictions.predicted
    return correct.groupby(predictions.model).mean().to_dict()


def check_scores(comparison: Comparison, accuracies: dict[str, float]) -> None:
    """Makes sure that every accuracy follows from the predictions.

    Raises:
        SystemExit: one does not.
    """
    for one in comparison.scores:
        distance = abs(accuracies[one.model] - one.accuracy)
        if not distance <= 1e-9:
            told = f"{one.model} on {comparison.data.name}: accuracy {one.accuracy}"
            fail(f"{told} does not follow from its predictions")


def check_pairs(comparison: Comparison, accuracies: dict[str, float]) -> None:
    """Makes sure that every difference follows from the predictions.

    Raises:
        SystemExit: one does not.
    """
    for pair in comparison.pairs:
        difference = accuracies[pair.model_a] - accuracies[pair.model_b]
        distance = abs(difference - pair.test.difference)
        if not distance <= 0.01:  # folds differ in size by an image
            told = f"{pair.model_a} less {pair.model_b} on {comparison.data.name}"
            fail(f"{told}: {pair.test.difference} does not follow from their predictions")


def read_comparison(named: Named, data: str, kind: str = "compare") -> Comparison | None:
    """A named comparison on one dataset; None where none is named.

    Raises:
        SystemExit: scores or pairs do not follow from the predictions.
    """
    place = f"{kind}/{data}"
    if not named.has(place, "summary/compare"):
        return None
    scores = read_rows(named.file(place, "result/compare_metrics"))
    pairs = read_rows(named.file(place, "result/compare_pairs"))
    comparison = Comparison(
        record=read_record(named.file(place, "summary/compare"), ComparisonRecord),
        scores=tuple(scores_of(row) for row in scores),
        pairs=tuple(pair_of(row) for row in pairs),
        path=named.path(place, "result/compare_metrics"),
    )
    predictions = pd.read_csv(named.file(place, "result/compare_predictions"))
    accuracies = accuracies_of(predictions)
    check_scores(comparison, accuracies)
    check_pairs(comparison, accuracies)
    return comparison

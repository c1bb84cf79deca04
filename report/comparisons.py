"""The comparisons that are named, each computed again from its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from named import Named, Row, read_rows
from typed import fail, is_number

from transferlab.data import Folds, HeldOutFold
from transferlab.heldout import ComparisonRecord, Predictions
from transferlab.pretrained import WeightsInfo
from transferlab.published import read_record
from transferlab.records import DataInfo
from transferlab.verdicts import (
    PairTest,
    Scores,
    compare_pairs,
    ranked,
    score_model,
    tied_for_best,
)

HEADS = {"compare": "probe", "study_head": "study"}  # {what it is named by: the head}
# Of the table of scores: what predictions do not say.
UNTOLD = ("weights", "selection_optimism", "epochs_to_best")
ROUNDED = ("log_loss", "brier", "macro_f1", "ece")  # partly fp32, which differs by processor


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison that is named, by one head."""

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
        """The scores of models alone, as they rank."""
        return tuple(one for one in ranked(self.scores) if not one.baseline)

    @property
    def tied(self) -> tuple[str, ...]:
        """The models of which none is told from the best, the best among them."""
        return tied_for_best(self.scores, self.pairs)

    def of(self, model: str) -> Scores:
        """The scores of one model.

        Raises:
            SystemExit: it was not compared.
        """
        found = [one for one in self.scores if one.model == model]
        if not found:
            fail(f"{model} was not compared on {self.data.name}")
        return found[0]

    def pair(self, model: str, other: str) -> PairTest:
        """The test of two models, in the order in which they were compared.

        Raises:
            SystemExit: they were not compared.
        """
        found = [pair for pair in self.pairs if {pair.model_a, pair.model_b} == {model, other}]
        if not found:
            fail(f"{model} and {other} were not compared on {self.data.name}")
        return found[0]

    def with_baselines(self, model: str) -> tuple[Scores, ...]:
        """The scores of a model and of baselines, but for those of other models."""
        others = tuple(f"{name}, " for name in self.weights if name != model)
        baselines = [one for one in self.scores if one.baseline]
        return (self.of(model), *(one for one in baselines if not one.model.startswith(others)))


@dataclass(frozen=True, kw_only=True)
class BothHeads:
    """The same backbones on the same folds of a dataset, by either head."""

    probe: Comparison  # regularised logistic regression
    study: Comparison  # the study's head

    @property
    def data(self) -> DataInfo:
        """What was compared on."""
        return self.probe.data


# ---- predictions -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What was predicted of every image while it was held out."""

    found: dict[str, Predictions]  # by name, models and baselines
    labels: np.ndarray  # int [N]
    folds: Folds  # their test parts alone


def check_repeats(table: pd.DataFrame, record: ComparisonRecord) -> None:
    """Makes sure that every model was asked in every repeat, and every baseline in all or one.

    Raises:
        SystemExit: one was not.
    """
    every = list(range(record.repeats))
    told = {name: list(part.unique()) for name, part in table.groupby("model")["repeat"]}
    models = {info.name for info in record.weights}
    for name in models | told.keys():
        repeats = told.get(name, [])
        if repeats != every and (name in models or repeats != [0]):
            fail(f"{name} on {record.data[0].name}: predictions of {repeats}, not repeats {every}")


def check_rows(table: pd.DataFrame, record: ComparisonRecord) -> None:
    """Makes sure that predictions are of the same images in the same folds, and each of the class
    that is most probable.

    Raises:
        SystemExit: they are not.
    """
    data = record.data[0]
    first = table[table.model == record.weights[0].name]
    like = dict(list(first.groupby("repeat")))
    for (name, repeat), part in table.groupby(["model", "repeat"], sort=False):
        told = f"the predictions of {name} on {data.name} in repeat {repeat}"
        images = part[["path", "label"]].to_numpy().tolist()
        if len(part) != data.n or images != like[0][["path", "label"]].to_numpy().tolist():
            fail(f"{told} are not of the {data.n} images")
        if list(part.fold) != list(like[repeat].fold):
            fail(f"{told} are of other folds")
        most = part[probability_columns(record)].to_numpy(np.float32).argmax(1)
        if list(part.predicted) != [data.classes[place] for place in most]:
            fail(f"{told} are not of the most probable classes")


def probability_columns(record: ComparisonRecord) -> list[str]:
    """The columns of the probabilities, in the order of the classes."""
    return [f"p_{name}" for name in record.data[0].classes]


def fold_of(part: pd.DataFrame, repeat: int, number: int) -> HeldOutFold:
    """The test part of a fold, from the rows [N] of one model in one repeat."""
    test = np.flatnonzero(part.fold.to_numpy() == number)
    nothing = torch.empty(0, dtype=torch.int64)
    return HeldOutFold(
        train=nothing, val=nothing, test=torch.from_numpy(test), repeat=repeat, number=number
    )


def read_predictions(path: Path, record: ComparisonRecord) -> HeldOut:
    """The table of predictions of a comparison.

    Raises:
        SystemExit: as `check_repeats` and `check_rows`.
    """
    table = pd.read_csv(path, dtype={"label": str, "predicted": str})
    check_repeats(table, record)
    check_rows(table, record)
    data = record.data[0]
    shape = (-1, data.n, len(data.classes))
    found = {}
    for name, part in table.groupby("model", sort=False):
        probabilities = part[probability_columns(record)].to_numpy(np.float32)
        found[name] = Predictions(probabilities=probabilities.reshape(shape))
    first = table[table.model == record.weights[0].name]
    folds = [
        fold_of(part, repeat, number)
        for repeat, part in first.groupby("repeat")
        for number in range(record.folds)
    ]
    return HeldOut(
        found=found,
        labels=np.array([data.classes.index(label) for label in first.label[: data.n]]),
        folds=Folds(folds=tuple(folds), k=record.folds, repeats=record.repeats),
    )


# ---- computed again --------------------------------------------------------------------------


def scores_again(held: HeldOut, record: ComparisonRecord) -> tuple[Scores, ...]:
    """The scores of models and baselines, from their predictions."""
    models = {info.name for info in record.weights}
    scores = []
    for name, predictions in held.found.items():
        score = score_model(
            name,
            predictions,
            held.labels,
            baseline=name not in models,
            weights="",
            folds=len(held.folds),
        )
        scores.append(score)
    return tuple(scores)


def pairs_again(held: HeldOut, record: ComparisonRecord) -> tuple[PairTest, ...]:
    """The test of every pair of models, from their predictions."""
    models = {info.name: held.found[info.name] for info in record.weights}
    return tuple(compare_pairs(models, held.labels, held.folds))


def agrees(told: object, found: object, tolerance: float) -> bool:
    """Whether a table says what was found; None: it leaves that empty."""
    if is_number(found):
        return is_number(told) and abs(told - found) <= tolerance
    return told == found


def check_table(
    rows: Sequence[Row], found: Sequence[dict[str, Any]], names: Sequence[str], data: str
) -> None:
    """Makes sure that a table has the rows that were found again, and each column of them. `names`:
    the columns that say which row it is.

    Raises:
        SystemExit: it has not.
    """
    told = {" less ".join(row[name] for name in names): row for row in rows}
    again = {" less ".join(row[name] for name in names): row for row in found}
    if told.keys() != again.keys() or len(rows) != len(found):
        fail(f"a table of {names[0]} on {data} has other rows than the predictions have models")
    for name, row in again.items():
        for column in row.keys() - set(UNTOLD):
            value = told[name].get(column)
            tolerance = 1e-5 if column.startswith(ROUNDED) else 1e-9
            if not agrees(value, row[column], tolerance):
                what = f"{name} on {data}: {column} {value}"
                fail(f"{what} does not follow from its predictions, which give {row[column]}")


def read_comparison(named: Named, data: str, kind: str) -> Comparison:
    """A named comparison on one dataset.

    Raises:
        SystemExit: it is of another head than its name says; scores or pairs do not follow from
            the predictions.
    """
    place = f"{kind}/{data}"
    path = named.path(place, "result/compare_metrics")
    record = read_record(named.file(place, "summary/compare"), ComparisonRecord)
    if record.head != HEADS[kind]:
        fail(f"{path} is named as {place}, and is of the head {record.head!r}")
    held = read_predictions(named.file(place, "result/compare_predictions"), record)
    scores = scores_again(held, record)
    pairs = pairs_again(held, record)
    check_table(read_rows(named.root / path), [one.row() for one in scores], ["model"], data)
    rows = read_rows(named.file(place, "result/compare_pairs"))
    check_table(rows, [pair.row() for pair in pairs], ["model_a", "model_b"], data)
    return Comparison(record=record, scores=scores, pairs=pairs, path=path)


def origin_of(comparison: Comparison) -> tuple[str, str, dict[str, str]]:
    """What it was made on: the images, the folds, the weights, each by its hash."""
    weights = {info.name: info.sha256 for info in comparison.record.weights}
    return comparison.data.digest, comparison.record.fold_hash, weights


def read_both_heads(named: Named, data: str) -> BothHeads | None:
    """The named comparisons on one dataset; None where not both are named.

    Raises:
        SystemExit: as `read_comparison`; they were made on other images, folds or weights.
    """
    if not all(named.has(f"{kind}/{data}", "summary/compare") for kind in HEADS):
        return None
    both = BothHeads(
        probe=read_comparison(named, data, "compare"),
        study=read_comparison(named, data, "study_head"),
    )
    if origin_of(both.probe) != origin_of(both.study):
        fail(f"the two comparisons on {data} are of other images, folds or weights")
    return both

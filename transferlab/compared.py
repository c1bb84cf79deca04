"""A finished comparison: its record, its tables, its figure, and in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .artifacts import write_figure, write_table, write_text, write_together
from .candidates import Task, Work, compute_points, compute_work
from .data import Folds, ImageSet
from .heldout import (
    PAIR_COLUMNS,
    ComparisonRecord,
    FinalScore,
    PairTest,
    Predictions,
    Scores,
    compare_pairs,
    final_text,
    first_ranked,
    predict_majority,
    score_apart,
    score_model,
    shorten,
    verdict_text,
)
from .plan import Plan
from .plots import plot_comparison
from .records import data_info, to_json
from .views import info_of

SHOWN = ["model", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "ece"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """The model that ranks first, on the labelled test images that were kept apart."""

    apart: ImageSet
    predictions: Predictions  # [1, M, C]
    score: FinalScore


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """A finished comparison."""

    task: Task
    found: dict[str, Predictions]  # by name, models and baselines
    scores: list[Scores]
    pairs: list[PairTest]
    record: ComparisonRecord
    final: Final | None = None  # where test images were kept apart

    @property
    def image_set(self) -> ImageSet:
        """The images."""
        return self.task.study.image_set


def fold_numbers(folds: Folds) -> dict[tuple[int, int], int]:
    """{(repeat, image): the fold that it was held out in}."""
    numbers = {}
    for fold in folds:
        for image in fold.test.tolist():
            numbers[fold.repeat, image] = fold.number
    return numbers


def prediction_rows(
    image_set: ImageSet, prefix: Path, probabilities: np.ndarray
) -> Iterator[dict[str, Any]]:
    """For each image where it lies, its class, the class predicted, and the probabilities [N, C];
    `prefix` goes before its path."""
    classes = image_set.classes
    labels = image_set.labels.tolist()
    for path, label, one in zip(image_set.paths, labels, probabilities, strict=True):
        row = {
            "path": (prefix / path).as_posix(),
            "label": classes[label],
            "predicted": classes[one.argmax()],
        }
        for name, probability in zip(classes, one.tolist(), strict=True):
            row[f"p_{name}"] = probability
        yield row


def prediction_table(comparison: Comparison) -> pd.DataFrame:
    """One row a model, repeat and image: the fold that it was held out in, and what was predicted
    there."""
    image_set = comparison.image_set
    numbers = fold_numbers(comparison.task.folds)
    rows = []
    for name, predictions in comparison.found.items():
        for repeat, one in enumerate(predictions.probabilities):
            for image, row in enumerate(prediction_rows(image_set, comparison.task.prefix, one)):
                place = {"dataset": image_set.name, "model": name, "repeat": repeat}
                rows.append(place | {"fold": numbers[repeat, image]} | row)
    return pd.DataFrame(rows)


def final_table(comparison: Comparison, final: Final) -> pd.DataFrame:
    """One row for each labelled test image that was kept apart."""
    place = {"dataset": final.apart.name, "model": final.score.model}
    probabilities = final.predictions.probabilities[0]
    rows = prediction_rows(final.apart, comparison.task.prefix, probabilities)
    return pd.DataFrame([place | row for row in rows])


def score_all(work: Work, found: dict[str, Predictions], task: Task) -> list[Scores]:
    """The scores of models and baselines, in their order."""
    labels = task.study.image_set.labels.numpy()
    scores = []
    for name, predictions in found.items():
        info = work.infos.get(name)
        score = score_model(
            name,
            predictions,
            labels,
            baseline=name not in work.models,
            weights=info.source if info else "",
            folds=len(task.folds),
        )
        scores.append(score)
    return scores


def describe_comparison(work: Work, found: dict[str, Predictions], task: Task) -> ComparisonRecord:
    """The record of a comparison, without the score on test images."""
    study = task.study
    machines = {str(one.machine): one.machine for one in found.values() if one.machine}
    drawn = {name: one.renderer.augmentation for name, one in task.studies.items()}
    augmentation = study.renderer.augmentation if len(task.sizes) == 1 else None
    return ComparisonRecord(
        data=(data_info(study.image_set, augmentation),),
        weights=tuple(work.infos[name] for name in work.models),
        machine=study.machine,
        settings=study.settings,
        seed=study.seed,
        folds=task.folds.k,
        repeats=task.folds.repeats,
        fold_hash=task.folds.hash,
        machines=tuple(machines.values()),
        augmentations={name: info_of(one) for name, one in drawn.items()},
    )


def score_final(work: Work, scores: Sequence[Scores], task: Task) -> Final | None:
    """Fits the model that ranks first and asks it for the test images that were kept apart; None
    where there are none."""
    if task.apart is None:
        return None
    apart = task.apart
    first = first_ranked(scores).model
    candidate = work.candidates[first]
    point = candidate.test_point(apart)
    plan = Plan(points=(point,), store=work.plan.store)
    predictions = compute_points(plan, task)[point.name]
    data = data_info(apart, candidate.study.renderer.augmentation)
    score = score_apart(first, predictions, apart.labels.numpy(), data)
    return Final(apart=apart, predictions=predictions, score=score)


def compare_models(work: Work, task: Task) -> Comparison:
    """Computes what is missing, compares, and then looks at the test images, where there are any.

    Raises:
        UserError: weights or images have changed meanwhile.
    """
    found = compute_work(work, task)
    if task.baselines:
        found["majority class"] = predict_majority(task.study.image_set, task.folds)
    models = {name: found[name] for name in work.models}
    labels = task.study.image_set.labels.numpy()
    scores = score_all(work, found, task)
    pairs = compare_pairs(models, labels, task.folds)
    final = score_final(work, scores, task)
    record = describe_comparison(work, found, task)
    return Comparison(
        task=task,
        found=found,
        scores=scores,
        pairs=pairs,
        record=replace(record, test=final.score) if final else record,
        final=final,
    )


def figure_title(comparison: Comparison) -> str:
    """What a reader has to know: data, folds, where the weights come from, and how the first one
    does on test images."""
    image_set = comparison.image_set
    record = comparison.record
    drawn = " (synthetic)" if image_set.synthetic else ""
    images = f"n = {len(image_set.labels)}"
    name = f"{shorten(image_set.name, 40)}{drawn}"
    lines = [f"{name}, {images}, {record.folds} folds x {record.repeats}"]
    for info in record.weights:
        size = record.augmentations[info.name].size
        lines.append(shorten(f"{info.name}: {info.label}, at {size} px"))
    if record.test:
        score = record.test
        share = f"{100 * score.accuracy:.1f} % of {score.n} test images"
        lines.append(f"{share}, kept apart until then: {score.model}, which ranks first")
    return "\n".join(lines)


def tables_of(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """The tables of a comparison by their names."""
    pairs = [pair.row() for pair in comparison.pairs]
    tables = {
        "predictions": prediction_table(comparison),
        "metrics": pd.DataFrame([score.row() for score in comparison.scores]),
        "pairs": pd.DataFrame(pairs, columns=PAIR_COLUMNS),
    }
    if comparison.final:
        tables["test"] = final_table(comparison, comparison.final)
    return tables


def write_drafts(tables: Path, figures: Path, comparison: Comparison, stamp: str) -> list[Path]:
    """Writes the files of a comparison into two hidden folders -> their paths, last that of the
    record, which stands for the whole.

    Raises:
        UserError: as `write_new`.
    """
    drafts = [
        write_table(tables / f"compare_{name}_{stamp}.csv", table)
        for name, table in tables_of(comparison).items()
    ]
    figure = plot_comparison(comparison.scores, figure_title(comparison))
    try:
        drafts.append(write_figure(figures / f"compare_{stamp}.png", figure))
    finally:
        plt.close(figure)
    text = to_json(replace(comparison.record, stamp=stamp))
    return [*drafts, write_text(tables / f"compare_summary_{stamp}.json", text)]


def write_comparison(out: Path, comparison: Comparison) -> list[Path]:
    """Writes all files of a comparison or none -> their paths.

    Raises:
        UserError: as `write_together`.
    """

    def write(tables: Path, figures: Path, stamp: str) -> list[Path]:
        return write_drafts(tables, figures, comparison, stamp)

    return write_together(out, write)


def print_comparison(comparison: Comparison) -> None:
    """The scores, the verdict, and what the first one says of test images."""
    table = pd.DataFrame([score.row() for score in comparison.scores])
    print(table[SHOWN].to_string(index=False, float_format="%.3f"))
    for pair in comparison.pairs:
        print(verdict_text(pair, len(comparison.image_set.labels)))
    if comparison.final:
        print(final_text(comparison.final.score))

"""A finished comparison: its record, its tables, its figure, and in words."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .artifacts import write_figure, write_table, write_text, write_together
from .candidates import Task, Work, compute_points, compute_work
from .data import Folds, ImageSet
from .errors import first_lines
from .heldout import (
    ComparisonRecord,
    FinalScore,
    Predictions,
    final_text,
    predict_majority,
    probe_info,
    score_apart,
    shorten,
)
from .plan import Plan
from .plots import plot_comparison
from .records import data_info, to_json
from .verdicts import (
    PAIR_COLUMNS,
    PairTest,
    Scores,
    compare_pairs,
    first_ranked,
    ranked,
    score_model,
    tied_for_best,
    verdict_text,
)
from .views import info_of

LISTED = 10  # models that are tied for best are named so far
COLUMNS = ("model", "accuracy", "95 % interval", "seconds", "weights", "verdict")


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
        source = work.sources.get(name)
        score = score_model(
            name,
            predictions,
            labels,
            baseline=name not in work.models,
            weights=source.info.label if source else "",
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
    chosen = {name: one.strengths for name, one in found.items() if one.strengths}
    return ComparisonRecord(
        data=(data_info(study.image_set, augmentation),),
        weights=tuple(candidate.info for candidate in work.candidates.values()),
        machine=study.machine,
        settings=study.settings if task.head == "study" else None,
        head=task.head,
        probes={name: probe_info(choice) for name, choice in chosen.items()},
        seconds={name: one.seconds for name, one in found.items() if one.seconds is not None},
        seed=study.seed,
        folds=task.folds.k,
        repeats=task.folds.repeats,
        fold_hash=task.folds.hash,
        machines=tuple(machines.values()),
        augmentations={name: info_of(one) for name, one in drawn.items()},
    )


def score_final(
    work: Work, found: Mapping[str, Predictions], scores: Sequence[Scores], task: Task
) -> Final | None:
    """Fits the model that ranks first and asks it for the test images that were kept apart; None
    where there are none."""
    if task.apart is None:
        return None
    apart = task.apart
    first = first_ranked(scores).model
    candidate = work.candidates[first]
    point = candidate.test_point(apart, found[first])
    plan = Plan(points=(point,), store=work.plan.store)
    images = candidate.images + len(apart.labels)
    missing = {one.name: images * candidate.original.seconds for one in plan.missing()}
    with task.progress.over(missing):
        predictions = compute_points(plan, task)[point.name]
    data = data_info(apart, candidate.study.renderer.augmentation)
    labels = apart.labels.numpy()
    score = score_apart(first, predictions, labels, data=data, head=task.head)
    return Final(apart=apart, predictions=predictions, score=score)


def compare_models(work: Work, task: Task) -> Comparison:
    """Computes what is missing, compares, and then looks at the test images, where there are any.

    Raises:
        UserError: weights or images have changed meanwhile.
    """
    found = compute_work(work, task)
    if "majority" in task.baselines:
        found["majority class"] = predict_majority(task.study.image_set, task.folds)
    models = {name: found[name] for name in work.models}
    labels = task.study.image_set.labels.numpy()
    scores = score_all(work, found, task)
    pairs = compare_pairs(models, labels, task.folds)
    final = score_final(work, found, scores, task)
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
    figure = plot_comparison(ranked(comparison.scores), figure_title(comparison))
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


# ---- in words ---------------------------------------------------------------------------------


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes; Korean takes two a character."""
    wide = [unicodedata.east_asian_width(character) in "WF" for character in text]
    return len(text) + sum(wide)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines whose columns begin one below the other."""
    widths = [max(width_of(text) for text in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text + " " * (width - width_of(text)) for text, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def table_lines(comparison: Comparison) -> list[str]:
    """Models and baselines by accuracy, and who is tied for best."""
    tied = tied_for_best(comparison.scores, comparison.pairs)
    rows: list[Sequence[str]] = [COLUMNS]
    for score in ranked(comparison.scores):
        verdict = "baseline" if score.baseline else ""
        if score.model in tied:
            verdict = "best" if len(tied) == 1 else "tied for best"
        interval = score.accuracy_interval
        row = (
            shorten(score.model, 60),
            f"{100 * score.accuracy:.1f} %",
            f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
            "" if score.baseline or score.seconds is None else f"{score.seconds:.1f}",
            shorten(score.weights, 60),
            verdict,
        )
        rows.append(row)
    return aligned(rows)


def verdict_lines(comparison: Comparison) -> list[str]:
    """What the tests say of the model that ranks first and each other one: those that are tied
    with it in one line, all others in one of their own."""
    best = first_ranked(comparison.scores).model
    beside = {}  # by the other model
    for pair in comparison.pairs:
        if best in (pair.model_a, pair.model_b):
            beside[pair.model_b if pair.model_a == best else pair.model_a] = pair
    tied = tied_for_best(comparison.scores, comparison.pairs)
    seen = []
    for name in tied[1:]:
        pair = beside[name]
        lower = f"{100 * abs(pair.test.difference):.1f} points lower"
        told = f"{lower} ({100 * (pair.detectable or 0):.1f} would have been seen)"
        seen.append(f"{name}, {pair.verdict if pair.detectable is None else told}")
    lines = []
    if seen:
        told = "; ".join(first_lines(seen, LISTED, "and {} more, in the file"))
        lines.append(f"tied with {best}: {told}")
    others = [one.model for one in ranked(comparison.scores) if one.model not in tied]
    below = [beside[name] for name in others if name in beside]
    return lines + [verdict_text(pair, len(comparison.pairs)) for pair in below]


def baseline_lines(comparison: Comparison) -> list[str]:
    """Baselines that the model that ranks first is not above."""
    order = ranked(comparison.scores)
    best = first_ranked(comparison.scores)
    above = [
        f"{one.model} ({100 * one.accuracy:.1f} %)"
        for one in order
        if one.baseline and one.accuracy >= best.accuracy
    ]
    if not above:
        return []
    shown = ", ".join(first_lines(above, 3, "{} more"))
    return [f"note: {best.model}, which ranks first, is not above {shown}"]


def print_comparison(comparison: Comparison) -> None:
    """The scores, the verdict, and what the first one says of test images."""
    lines = table_lines(comparison) + verdict_lines(comparison) + baseline_lines(comparison)
    print("\n".join(lines))
    if comparison.final:
        print(final_text(comparison.final.score))

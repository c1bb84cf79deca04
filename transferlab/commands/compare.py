"""`transferlab compare`: which backbone for this folder? Repeated cross-validation, the same folds
for all, paired tests."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ..artifacts import new_stamp, prepare_out_dir, write_figure, write_table, write_text
from ..backbones import create_backbone
from ..data import Folds, ImageSet, find_image_folder
from ..datasets import augmentation_for, known_augmentations
from ..decoded import load_folder
from ..errors import UserError
from ..heldout import (
    PAIR_COLUMNS,
    ComparisonRecord,
    PairTest,
    PredictionKey,
    Predictions,
    Scores,
    compare_pairs,
    keep_predictions,
    kept_predictions,
    make_folds,
    predict_majority,
    predict_with,
    predict_with_heads,
    predict_zero_shot,
    score_model,
    study_of_all,
    verdict_text,
    zero_shot_classes,
)
from ..plan import Plan, Point, Share, parse_share, take_share
from ..plots import plot_comparison
from ..pretrained import WeightsInfo, check_weights_place
from ..records import data_info, to_json
from ..store import NO_STORE, Store, cache_bound, merge_store, open_store, trim_to_bound
from ..study import Frozen, Study, freeze_backbone
from ..train import Settings
from ..views import Augmentation, info_of
from .options import (
    add_cache,
    add_out,
    add_precision,
    add_seed,
    add_views,
    add_weights,
    chosen_machine,
    positive,
)

NEIGHBOURS = (1, 5, 15)
STRENGTHS = tuple(10.0**power for power in range(-5, 1))  # scikit-learn's C
SHOWN = ["model", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "ece"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    option = parser.add_argument
    text = "the study's or timm's names, e.g. --models resnet50 vgg16"
    option("--models", nargs="+", required=True, metavar="NAME", help=text)
    text = "a folder of images, e.g. --data ~/images"
    option("--data", required=True, metavar="DIR", help=text)
    add_weights(parser)
    text = "of the cross-validation, e.g. --folds 10 (default: 5)"
    option("--folds", type=positive, default=5, help=text)
    text = "of the whole of it, with other folds, e.g. --repeats 1 (default: 5)"
    option("--repeats", type=positive, default=5, help=text)
    add_seed(parser, 0)
    text = "k-NN, ... beside it, e.g. --baselines none (default: all)"
    option("--baselines", choices=("all", "none"), default="all", help=text)
    add_views(parser, str(Settings().views))
    text = (
        "how views are drawn, e.g. --augment photos for random crops, --augment faces for whole "
        "pictures (default: the dataset's own, for other folders photos)"
    )
    option("--augment", choices=tuple(known_augmentations()), default="", help=text)
    add_precision(parser)
    text = "one part of the work, e.g. --share 1/3, for --merge on another machine"
    option("--share", default="", metavar="I/N", help=text)
    text = (
        "takes over parts that were computed elsewhere, e.g. --merge part2/result/compare_finished"
    )
    option("--merge", nargs="+", default=[], metavar="DIR", help=text)
    add_out(parser)
    add_cache(parser)


# ---- what is to be computed ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One comparison: its images and folds, and what all models share."""

    study: Study
    folds: Folds
    weights: str  # where they come from
    baselines: bool


@lru_cache(maxsize=2)  # a backbone and its untrained twin: those of earlier models are let go
def freeze_once(study: Study, name: str, weights: str) -> Frozen:
    """`freeze_backbone` for the points of one model, which follow one another."""
    return freeze_backbone(name, study, weights=weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class Original:
    """A backbone as it was found, before anything is computed with it."""

    info: WeightsInfo
    classifier: nn.Module
    classes: list[int] | None  # ImageNet's for those of the folder; None: it cannot be asked


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A backbone that is compared, or one of its baselines is made from."""

    task: Task
    name: str
    weights: str

    @cached_property
    def original(self) -> Original:
        """What is needed of it before anything is computed."""
        model, info = create_backbone(self.name, self.weights)
        known = zero_shot_classes(self.task.study.image_set.classes)
        of_imagenet = info.measures_transfer and model.num_classes == 1000
        return Original(
            info=info,
            classifier=model.get_classifier(),
            classes=known if of_imagenet else None,
        )

    @property
    def info(self) -> WeightsInfo:
        """What it computes with."""
        return self.original.info

    @property
    def frozen(self) -> Frozen:
        """The backbone, made when the first point that needs it is computed.

        Raises:
            UserError: its weights are no longer those that were found at the start.
        """
        frozen = freeze_once(self.task.study, self.name, self.weights)
        if frozen.info.sha256 != self.info.sha256:
            raise UserError(f"the weights of {self.name} have changed meanwhile: run again")
        return frozen

    def key(self, method: str, choices: Sequence[ClassifierMixin] = ()) -> PredictionKey:
        """What predictions by a method depend on; those without a head see only the clean view."""
        study = self.task.study
        heads = method == "head"
        return PredictionKey(
            method=method,
            data=study.image_set.digest,
            model=self.info.timm_name,
            weights=self.info.sha256,
            augmentation=info_of(study.renderer.augmentation),
            settings=study.settings if heads else None,
            seed=study.seed,
            folds=self.task.folds.hash,
            precision=str(study.machine.precision_of(1 if heads else 0)),
            choices=tuple(str(one) for one in choices),
        )

    def head(self) -> Predictions:
        """The study's head on its frozen features."""
        return predict_with_heads(self.frozen, self.task.study, self.task.folds)

    def fitted(self, classifiers: Sequence[ClassifierMixin]) -> Predictions:
        """The best of scikit-learn's classifiers on its clean features."""
        clean = self.frozen.features.clean
        return predict_with(classifiers, clean, self.task.study.image_set, self.task.folds)

    def zero_shot(self) -> Predictions:
        """Its own ImageNet classifier, asked without training."""
        original = self.original
        return predict_zero_shot(
            original.classifier, original.classes or (), self.frozen.features.clean
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The points of a comparison, with what the tables say of each."""

    plan: Plan
    infos: dict[str, WeightsInfo]  # by the point's name
    models: tuple[str, ...]  # the points that are compared; all others are baselines


def classifiers_of(folds: Folds) -> dict[str, list[ClassifierMixin]]:
    """The classifiers that baselines choose from, by the baseline's name."""
    smallest = min(len(fold.train) for fold in folds)
    neighbours = [KNeighborsClassifier(k) for k in NEIGHBOURS if k <= smallest]
    regressions = [LogisticRegression(C=strength, max_iter=1000) for strength in STRENGTHS]
    return {"k-NN": neighbours, "logistic regression": regressions}


def make_point(
    name: str, candidate: Candidate, key: PredictionKey, compute: Callable[[], Predictions]
) -> Point:
    """A point that says when it is computed, and on which machine it was."""
    machine = candidate.task.study.machine

    def measure() -> dict[str, torch.Tensor]:
        print(f"{name} ...", flush=True)
        return keep_predictions(replace(compute(), machine=machine))

    return Point(name=name, group=candidate.name, key=key, measure=measure)


def baseline_points(
    candidate: Candidate, untrained: Candidate
) -> Iterator[tuple[Point, WeightsInfo]]:
    """What a trained head has to beat, beside one backbone: k-NN and logistic regression on its
    clean features, the study's head on the same architecture randomly initialised, its own
    classifier asked without training."""
    name = candidate.name
    for method, classifiers in classifiers_of(candidate.task.folds).items():
        fit = partial(candidate.fitted, classifiers)
        key = candidate.key(method, classifiers)
        yield make_point(f"{name}, {method}", candidate, key, fit), candidate.info
    if not candidate.info.measures_transfer:
        return
    label = f"{name}, random initialisation"
    yield make_point(label, untrained, untrained.key("head"), untrained.head), untrained.info
    if candidate.original.classes:
        key = candidate.key("zero-shot")
        yield make_point(f"{name}, zero-shot", candidate, key, candidate.zero_shot), candidate.info
    else:
        classes = ", ".join(candidate.task.study.image_set.classes)
        print(f"{name}: no zero-shot baseline (its classifier does not hold all of {classes})")


def plan_work(task: Task, models: Sequence[str], store: Store) -> Work:
    """Every point of a comparison, model by model."""
    points = []
    infos = {}
    for name in models:
        candidate = Candidate(task=task, name=name, weights=task.weights)
        info = candidate.info
        print(f"{name}: weights {info.kind}: {info.source}", flush=True)
        points.append(make_point(name, candidate, candidate.key("head"), candidate.head))
        infos[name] = info
        if not task.baselines:
            continue
        untrained = Candidate(task=task, name=name, weights="none")
        for point, its_info in baseline_points(candidate, untrained):
            points.append(point)
            infos[point.name] = its_info
    return Work(plan=Plan(points=tuple(points), store=store), infos=infos, models=tuple(models))


# ---- what comes out --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """A finished comparison."""

    task: Task
    root: Path  # the folder that was named; paths are relative to it
    found: dict[str, Predictions]  # by name, models and baselines
    scores: list[Scores]
    pairs: list[PairTest]
    record: ComparisonRecord

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


def prediction_table(comparison: Comparison) -> pd.DataFrame:
    """One row a model, repeat and image: where it was held out, its class, the class predicted,
    and the probabilities."""
    image_set = comparison.image_set
    classes = image_set.classes
    labels = image_set.labels.tolist()
    prefix = find_image_folder(comparison.root).relative_to(comparison.root)
    numbers = fold_numbers(comparison.task.folds)
    rows = []
    for name, predictions in comparison.found.items():
        for repeat, one in enumerate(predictions.probabilities):
            for image, probabilities in enumerate(one):
                row = {
                    "dataset": image_set.name,
                    "model": name,
                    "repeat": repeat,
                    "fold": numbers[repeat, image],
                    "path": (prefix / image_set.paths[image]).as_posix(),
                    "label": classes[labels[image]],
                    "predicted": classes[probabilities.argmax()],
                }
                for label, probability in zip(classes, probabilities.tolist(), strict=True):
                    row[f"p_{label}"] = probability
                rows.append(row)
    return pd.DataFrame(rows)


def compute(work: Work) -> dict[str, Predictions]:
    """The predictions of every point by its name, models first, then baselines."""
    found = {point.name: kept_predictions(kept) for point, kept in work.plan.measured()}
    models = {name: found[name] for name in work.models if name in found}
    return models | found


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


def describe(work: Work, found: dict[str, Predictions], task: Task) -> ComparisonRecord:
    """The record of a comparison."""
    study = task.study
    machines = {str(one.machine): one.machine for one in found.values() if one.machine}
    return ComparisonRecord(
        data=(data_info(study.image_set, study.renderer.augmentation),),
        weights=tuple(work.infos[name] for name in work.models),
        machine=study.machine,
        settings=study.settings,
        seed=study.seed,
        folds=task.folds.k,
        repeats=task.folds.repeats,
        fold_hash=task.folds.hash,
        machines=tuple(machines.values()),
    )


def finish(work: Work, task: Task, root: Path) -> Comparison:
    """Computes what is missing and compares."""
    found = compute(work)
    if task.baselines:
        found["majority class"] = predict_majority(task.study.image_set, task.folds)
    models = {name: found[name] for name in work.models}
    labels = task.study.image_set.labels.numpy()
    return Comparison(
        task=task,
        root=root,
        found=found,
        scores=score_all(work, found, task),
        pairs=compare_pairs(models, labels, task.folds),
        record=describe(work, found, task),
    )


def figure_title(comparison: Comparison) -> str:
    """What a reader has to know: data, folds, and where the weights come from."""
    image_set = comparison.image_set
    record = comparison.record
    drawn = " (synthetic)" if image_set.synthetic else ""
    images = f"n = {len(image_set.labels)}"
    lines = [f"{image_set.name}{drawn}, {images}, {record.folds} folds x {record.repeats}"]
    lines += [f"{info.name}: {info.label}" for info in record.weights]
    return "\n".join(lines)


def write_comparison(out: Path, comparison: Comparison) -> list[Path]:
    """Writes the tables, the record and the figure -> their paths."""
    stamp = new_stamp(out)
    result = out / "result"
    pairs = [pair.row() for pair in comparison.pairs]
    tables = {
        "predictions": prediction_table(comparison),
        "metrics": pd.DataFrame([score.row() for score in comparison.scores]),
        "pairs": pd.DataFrame(pairs, columns=PAIR_COLUMNS),
    }
    written = []
    for name, table in tables.items():
        written.append(write_table(result / f"compare_{name}_{stamp}.csv", table))
    text = to_json(replace(comparison.record, stamp=stamp))
    written.append(write_text(result / f"compare_summary_{stamp}.json", text))
    figure = plot_comparison(comparison.scores, figure_title(comparison))
    written.append(write_figure(out / f"img/compare_{stamp}.png", figure))
    plt.close(figure)
    return written


def print_comparison(comparison: Comparison) -> None:
    """The scores and the verdict."""
    table = pd.DataFrame([score.row() for score in comparison.scores])
    print(table[SHOWN].to_string(index=False, float_format="%.3f"))
    for pair in comparison.pairs:
        print(verdict_text(pair, len(comparison.image_set.labels)))


# ---- the command -----------------------------------------------------------------------------


def chosen_augmentation(name: str, dataset: str) -> Augmentation:
    """The augmentation that is asked for, else the dataset's own, else that of photos."""
    return known_augmentations()[name](224) if name else augmentation_for(dataset)


def make_task(options: argparse.Namespace, image_set: ImageSet) -> Task:
    """What is compared on, from the options.

    Raises:
        UserError: as `check_weights_place` and `make_folds`.
    """
    settings = Settings()
    if options.views is not None:
        settings = replace(settings, views=options.views)
    study = study_of_all(
        image_set,
        chosen_augmentation(options.augment, image_set.name),
        settings,
        seed=options.seed,
        machine=chosen_machine(options.precision),
        store=open_store(options.cache_dir),
    )
    return Task(
        study=study,
        folds=make_folds(
            image_set.labels, k=options.folds, repeats=options.repeats, seed=options.seed
        ),
        weights=check_weights_place(options.weights),
        baselines=options.baselines == "all",
    )


def finished_store(folder: Path, augmentation: Augmentation, *, shared: bool) -> Store:
    """Where finished parts are kept: nowhere for an augmentation without a name, since nothing
    tells them from another's.

    Raises:
        UserError: such parts would have to be shared between machines.
    """
    if augmentation.name:
        folder.mkdir(exist_ok=True)
        return open_store(folder)
    if shared:
        reason = "nothing that is computed with it is kept or merged"
        raise UserError(f"the dataset's augmentation states no name, so {reason}: give it one")
    return NO_STORE


def merge_parts(store: Store, folders: Sequence[str]) -> None:
    """Takes over what was computed elsewhere, and says how much.

    Raises:
        UserError: one of them is no folder.
    """
    for folder in folders:
        taken = merge_store(store, Path(folder))
        print(f"{taken} parts taken over from {folder}")


def announce(work: Work, merged: bool) -> None:
    """Says what is left to compute."""
    missing = work.plan.missing()
    if not missing:
        return
    names = "; ".join(point.name for point in missing)
    print(f"{len(missing)} of {len(work.plan.points)} parts are to be computed: {names}")
    if merged:
        print("(parts count where models, weights, images, options and --precision are the same)")


def announce_machines(record: ComparisonRecord) -> None:
    """Says where parts come from that other versions have computed."""
    here = record.machine.versions
    for machine in record.machines:
        others = [f"{name} {version}" for name, version in machine.versions.items()]
        if machine.versions != here:
            print(f"note: parts were computed by {', '.join(others)} on {machine.processor}")


def compute_share(work: Work, share: Share) -> None:
    """Computes one machine's part, and says where it lies.

    Raises:
        UserError: something of it could not be kept.
    """
    compute(work)
    lost = work.plan.missing()
    folder = work.plan.store.folder
    if lost:
        names = "; ".join(point.name for point in lost)
        raise UserError(f"not kept in {folder}: {names}: make room there and run again")
    print(f"share {share} is done: give {folder} to --merge where all come together")


def compare(task: Task, options: argparse.Namespace, out: Path) -> None:
    """Computes what is asked for, and where it is the whole comparison, prints and writes it.

    Raises:
        UserError: as `parse_share`, `finished_store`, `merge_parts` and `plan_work`.
    """
    share = parse_share(options.share) if options.share else None
    shared = bool(share or options.merge)
    augmentation = task.study.renderer.augmentation
    store = finished_store(out / "result/compare_finished", augmentation, shared=shared)
    merge_parts(store, options.merge)
    models = take_share(options.models, share) if share else options.models
    if not models:
        raise UserError(f"share {share} of {len(options.models)} models is none of them")
    work = plan_work(task, models, store)
    announce(work, merged=bool(options.merge))
    if share:
        compute_share(work, share)
        return
    comparison = finish(work, task, Path(options.data).expanduser())
    print_comparison(comparison)
    announce_machines(comparison.record)
    for path in write_comparison(out, comparison):
        print(path)


def run(options: argparse.Namespace) -> int:
    """Compares backbones on the images of one folder, prints the verdict, writes predictions,
    metrics, pairs and a figure.

    What is finished lies in OUT/result/compare_finished and is not computed again; with --share
    nothing but that is written.

    Raises:
        UserError: as `load_folder`, `check_weights_place`, `create_backbone`, `make_folds` and
            `compare`; a model named twice; an unusable bound of the cache.
    """
    if len(set(options.models)) < len(options.models):
        raise UserError(f"models {' '.join(options.models)}: name each once")
    cache_bound()  # an unusable one is said before any time is spent
    image_set = load_folder(options.data)
    out = prepare_out_dir(options.out)
    task = make_task(options, image_set)
    counted = f"{len(image_set.labels)} images, {len(image_set.classes)} classes"
    drawn = task.study.renderer.augmentation.name or "an augmentation without a name"
    print(f"{image_set.name}: {counted}, {len(image_set.rejected)} left out; views of {drawn}")
    try:
        compare(task, options, out)
    finally:
        trim_to_bound(task.study.store)
    return 0

"""The models of a comparison, and what is to be computed of each: every point is kept when it is
finished."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from sklearn.base import ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from .backbones import create_backbone
from .data import Folds, ImageSet
from .errors import UserError, some
from .heldout import (
    FinalKey,
    PredictionKey,
    Predictions,
    check_predictions,
    fold_of_all,
    keep_predictions,
    kept_predictions,
    predict_apart_with_head,
    predict_apart_with_probe,
    predict_with,
    predict_with_heads,
    predict_with_probes,
    predict_zero_shot,
    shorten,
    zero_shot_classes,
)
from .plan import Plan, Point
from .pretrained import WeightsInfo, state_hash
from .probe import STRENGTHS
from .progress import Progress
from .store import Store
from .study import Frozen, Study, check_backbone, freeze_backbone
from .views import identity_of, info_of

NEIGHBOURS = (1, 5, 15)
HEADS = ("probe", "study")  # what is fitted on frozen features
BASELINES = ("majority", "k-NN", "zero-shot", "random")
UNASKED = BASELINES[:-1]  # those that are computed unless others are asked for
FITTING = 0.2  # of the seconds of the forwards: what fitting is expected to take, roughly,
FITTED = 1.0  # and so many seconds more


# ---- a comparison and its models -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One comparison: its images and folds, and what all models share."""

    studies: dict[str, Study]  # by model: the same, in pictures of its size
    folds: Folds
    weights: str  # where they come from
    head: str  # one of HEADS
    baselines: tuple[str, ...]  # of BASELINES
    prefix: Path  # from the folder that was named to that of the images
    apart: ImageSet | None = None  # labelled test images: the model that ranks first gets them

    @property
    def study(self) -> Study:
        """The study of the first model, for what is the same in all."""
        return next(iter(self.studies.values()))

    @property
    def progress(self) -> Progress:
        """Of all that is computed; the studies share it."""
        return self.study.renderer.progress

    @property
    def sizes(self) -> dict[int, list[str]]:
        """{pixels a side: the models whose pictures are so large}, the smallest first."""
        models: dict[int, list[str]] = {}
        for name, study in self.studies.items():
            models.setdefault(study.renderer.augmentation.size, []).append(name)
        return dict(sorted(models.items()))


@lru_cache(maxsize=2)  # a backbone and its untrained twin: those of earlier models are let go
def freeze_once(study: Study, name: str, weights: str) -> Frozen:
    """`freeze_backbone` for the points of one model, which follow one another."""
    return freeze_backbone(name, study, weights=weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class Original:
    """A backbone as it was found, before anything is computed with it."""

    info: WeightsInfo
    architecture: str  # timm's name without its tag
    body: str  # hash of all but the classifier
    classifier: nn.Module
    classes: list[int] | None  # ImageNet's for those of the folder; None: it cannot be asked
    seconds: float  # of one picture: right in proportion to those of other models


def time_picture(body: nn.Module, size: int) -> float:
    """The seconds that a backbone takes for one picture of `size` pixels a side, the fastest of
    three."""
    picture = torch.zeros(1, 3, size, size)
    moments = [time.perf_counter()]
    with torch.inference_mode():
        for _ in range(3):
            body.eval()(picture)
            moments.append(time.perf_counter())
    return min(end - start for start, end in pairwise(moments))


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A backbone that is compared, or one of its baselines is made from."""

    task: Task
    name: str
    weights: str

    @property
    def study(self) -> Study:
        """The comparison's, in pictures of its size."""
        return self.task.studies[self.name]

    @cached_property
    def original(self) -> Original:
        """What is needed of it before anything is computed.

        Raises:
            UserError: as `create_backbone` and `check_backbone`.
        """
        model, info = create_backbone(self.name, self.weights)
        known = zero_shot_classes(self.study.image_set.classes)
        of_imagenet = info.measures_transfer and model.num_classes == 1000
        classifier = model.get_classifier()
        size = self.study.renderer.augmentation.size
        check_backbone(model, self.name, size)
        model.reset_classifier(0)
        return Original(
            info=info,
            architecture=model.pretrained_cfg["architecture"],
            body=state_hash(model),
            classifier=classifier,
            classes=known if of_imagenet else None,
            seconds=time_picture(model, size),
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
        frozen = freeze_once(self.study, self.name, self.weights)
        if frozen.info.sha256 != self.info.sha256:
            raise UserError(f"the weights of {self.name} have changed meanwhile: run again")
        return frozen

    @property
    def images(self) -> int:
        """How many pictures its head is fitted on: every view counts."""
        study = self.study
        views = 1 if self.task.head == "probe" else 1 + study.settings.views
        return views * len(study.image_set.labels)

    def key(self, method: str, choices: Sequence[object] = ()) -> PredictionKey:
        """What predictions by a method depend on; the study's head alone sees random views."""
        study = self.study
        heads = method == "head"
        return PredictionKey(
            method=method,
            data=study.image_set.digest,
            model=self.info.timm_name,
            weights=self.info.sha256,
            augmentation=info_of(study.renderer.augmentation),
            content=identity_of(study.renderer.augmentation),
            settings=study.settings if heads else None,
            seed=study.seed,
            folds=self.task.folds.hash,
            precision=str(study.machine.precision_of(1 if heads else 0)),
            choices=tuple(str(one) for one in choices),
        )

    @property
    def head_key(self) -> PredictionKey:
        """What the predictions of its head depend on."""
        return self.key("probe", STRENGTHS) if self.task.head == "probe" else self.key("head")

    def head(self) -> Predictions:
        """The probe, or the study's head, on its frozen features."""
        if self.task.head == "probe":
            return predict_with_probes(
                self.frozen.features.clean,
                self.study.image_set,
                self.task.folds,
                precision=self.study.machine.precision_of(0),
                tell=self.task.progress.refresh,
            )
        return predict_with_heads(self.frozen, self.study, self.task.folds)

    def fitted(self, classifiers: Sequence[ClassifierMixin]) -> Predictions:
        """The best of scikit-learn's classifiers on its clean features."""
        clean = self.frozen.features.clean
        return predict_with(classifiers, clean, self.study.image_set, self.task.folds)

    def zero_shot(self) -> Predictions:
        """Its own ImageNet classifier, asked without training."""
        original = self.original
        return predict_zero_shot(
            original.classifier, original.classes or (), self.frozen.features.clean
        )

    def test_point(self, apart: ImageSet, folded: Predictions) -> Point:
        """Its head, fitted on all images, for those that were kept apart; `folded`: what it
        predicted on folds."""
        study = self.study
        choice = folded.strengths  # of probes
        fold = fold_of_all(study.image_set.labels, seed=study.seed)
        fitted = self.head_key if choice else replace(self.head_key, folds=fold.hash)

        def compute() -> Predictions:
            if choice:
                return predict_apart_with_probe(self.frozen, study, choice.final, apart)
            return predict_apart_with_head(self.frozen, study, fold, apart)

        key = FinalKey(fitted=fitted, apart=apart.digest)
        return make_point(f"{self.name} on the test images", self, key, compute)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The points of a comparison, with what the tables say of each."""

    plan: Plan
    candidates: dict[str, Candidate]  # the models that are compared
    sources: dict[str, Candidate]  # what each point is computed with, by its name

    @property
    def models(self) -> tuple[str, ...]:
        """The points that are compared; all others are baselines."""
        return tuple(self.candidates)


def neighbours_of(folds: Folds) -> list[ClassifierMixin]:
    """The k-NN classifiers that the baseline chooses from."""
    smallest = min(len(fold.train) for fold in folds)
    return [KNeighborsClassifier(k) for k in NEIGHBOURS if k <= smallest]


def make_point(
    name: str,
    candidate: Candidate,
    key: PredictionKey | FinalKey,
    compute: Callable[[], Predictions],
) -> Point:
    """A point that says when it is computed, how long it took, and on which machine it was."""
    machine = candidate.study.machine

    def measure() -> dict[str, torch.Tensor]:
        candidate.task.progress.begin(name, candidate.original.seconds)
        started = time.perf_counter()
        predictions = compute()
        seconds = time.perf_counter() - started
        return keep_predictions(replace(predictions, machine=machine, seconds=seconds))

    return Point(name=name, group=candidate.name, key=key, measure=measure)


def baseline_points(candidate: Candidate) -> Iterator[tuple[Point, Candidate]]:
    """What a head has to beat, beside one backbone: k-NN on its clean features, its own ImageNet
    classifier asked without training, the head on the same architecture randomly initialised."""
    name = candidate.name
    asked = candidate.task.baselines
    if "k-NN" in asked:
        classifiers = neighbours_of(candidate.task.folds)
        key = candidate.key("k-NN", classifiers)
        fit = partial(candidate.fitted, classifiers)
        yield make_point(f"{name}, k-NN", candidate, key, fit), candidate
    if "zero-shot" in asked and candidate.original.classes:
        key = candidate.key("zero-shot")
        yield make_point(f"{name}, zero-shot", candidate, key, candidate.zero_shot), candidate
    if "random" in asked and candidate.info.measures_transfer:
        untrained = Candidate(task=candidate.task, name=name, weights="none")
        label = f"{name}, random initialisation"
        yield make_point(label, untrained, untrained.head_key, untrained.head), untrained


def find_candidates(task: Task, models: Sequence[str]) -> dict[str, Candidate]:
    """The models that are compared, each looked at before anything is computed.

    Raises:
        UserError: as `create_backbone` and `check_backbone`; two of them are one and the same.
    """
    candidates = {}
    known: dict[tuple[str, str], str] = {}  # by architecture and hash of the body
    for name in models:
        candidate = Candidate(task=task, name=name, weights=task.weights)
        info = candidate.info
        original = candidate.original
        same = known.setdefault((original.architecture, original.body), name)
        if same != name:
            told = f"{same} and {name} are one model, with the same weights ({info.source})"
            raise UserError(f"{told}: leave one out, or give each weights of its own")
        print(f"{name}: weights {info.kind}: {info.source}", flush=True)
        candidates[name] = candidate
    return candidates


def announce_zero_shot(task: Task, candidates: Iterable[Candidate]) -> None:
    """Says why no backbone is asked without training, where that was to be done."""
    if "zero-shot" in task.baselines and not any(one.original.classes for one in candidates):
        classes = shorten(", ".join(task.study.image_set.classes), 60)
        print(f"no zero-shot baseline: no model's own classifier holds all of {classes}")


def announce_random(task: Task, candidates: Iterable[Candidate]) -> None:
    """Says which backbones are no baseline without their weights, having none."""
    untrained = [one.name for one in candidates if not one.info.measures_transfer]
    if "random" in task.baselines and untrained:
        print(f"no random baseline beside {some(untrained)}: its own weights are random")


def plan_work(task: Task, models: Sequence[str], store: Store) -> Work:
    """Every point of a comparison, model by model.

    Raises:
        UserError: as `find_candidates`.
    """
    points = []
    sources = {}
    candidates = find_candidates(task, models)
    announce_zero_shot(task, candidates.values())
    announce_random(task, candidates.values())
    for name, candidate in candidates.items():
        head = make_point(name, candidate, candidate.head_key, candidate.head)
        for point, its in [(head, candidate), *baseline_points(candidate)]:
            points.append(point)
            sources[point.name] = its
    plan = Plan(points=tuple(points), store=store)
    return Work(plan=plan, candidates=candidates, sources=sources)


def expected_seconds(work: Work) -> dict[str, float]:
    """{point that is missing: the seconds it may take}, right in proportion: the first one of each
    backbone computes its features."""
    seconds = {}
    computed = set()
    for point in work.plan.missing():
        source = work.sources[point.name]
        forwards = source.images * source.original.seconds
        seconds[point.name] = FITTED + FITTING * forwards
        if source not in computed:
            seconds[point.name] += forwards
        computed.add(source)
    return seconds


# ---- computed, or read where it is kept -------------------------------------------------------


def read_point(point: Point, kept: dict[str, torch.Tensor], task: Task) -> Predictions:
    """The predictions that are kept of a point of a comparison.

    Raises:
        ValueError: they are no such predictions.
    """
    try:
        predictions = kept_predictions(kept)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    image_set = task.study.image_set
    repeats = task.folds.repeats
    if isinstance(point.key, FinalKey):
        image_set = task.apart or image_set
        repeats = 1
    elif point.key.method == "zero-shot":
        repeats = 1
    elif point.key.method == "probe" and predictions.strengths is None:
        raise ValueError("the strengths are missing")
    shape = (repeats, len(image_set.labels), len(image_set.classes))
    check_predictions(predictions, shape, len(task.folds))
    return predictions


def compute_points(plan: Plan, task: Task) -> dict[str, Predictions]:
    """The predictions of every point by its name: read where they are kept, else computed and kept.

    What is kept and whole, but no predictions on these images, is computed again with a warning.
    """
    found: dict[str, Predictions] = {}
    for point, kept in plan.measured():
        try:
            found[point.name] = read_point(point, kept, task)
        except ValueError as error:
            name = plan.store.path(point.key).name
            message = f"{name} holds no predictions of {point.name} ({error}): computed again"
            warnings.warn(message, stacklevel=2)
            again = point.measure()
            plan.store.write(point.key, again)
            found[point.name] = read_point(point, again, task)
    return found


def compute_work(work: Work, task: Task) -> dict[str, Predictions]:
    """The predictions of every point by its name, models first, then baselines."""
    with task.progress.over(expected_seconds(work)):
        found = compute_points(work.plan, task)
    models = {name: found[name] for name in work.models}
    return models | found

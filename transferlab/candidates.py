"""The models of a comparison, and what is to be computed of each: every point is kept when it is
finished."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from .backbones import create_backbone
from .data import Folds, ImageSet
from .errors import UserError
from .heldout import (
    FinalKey,
    PredictionKey,
    Predictions,
    check_predictions,
    fold_of_all,
    keep_predictions,
    kept_predictions,
    predict_apart,
    predict_with,
    predict_with_heads,
    predict_zero_shot,
    shorten,
    zero_shot_classes,
)
from .plan import Plan, Point
from .pretrained import WeightsInfo, state_hash
from .store import Store
from .study import Frozen, Study, check_backbone, freeze_backbone
from .views import identity_of, info_of

NEIGHBOURS = (1, 5, 15)
STRENGTHS = tuple(10.0**power for power in range(-5, 1))  # scikit-learn's C


# ---- a comparison and its models -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One comparison: its images and folds, and what all models share."""

    studies: dict[str, Study]  # by model: the same, in pictures of its size
    folds: Folds
    weights: str  # where they come from
    baselines: bool
    prefix: Path  # from the folder that was named to that of the images
    apart: ImageSet | None = None  # labelled test images: the model that ranks first gets them

    @property
    def study(self) -> Study:
        """The study of the first model, for what is the same in all."""
        return next(iter(self.studies.values()))

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
        check_backbone(model, self.name, self.study.renderer.augmentation.size)
        model.reset_classifier(0)
        return Original(
            info=info,
            architecture=model.pretrained_cfg["architecture"],
            body=state_hash(model),
            classifier=classifier,
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
        frozen = freeze_once(self.study, self.name, self.weights)
        if frozen.info.sha256 != self.info.sha256:
            raise UserError(f"the weights of {self.name} have changed meanwhile: run again")
        return frozen

    def key(self, method: str, choices: Sequence[ClassifierMixin] = ()) -> PredictionKey:
        """What predictions by a method depend on; those without a head see only the clean view."""
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

    def head(self) -> Predictions:
        """The study's head on its frozen features."""
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

    def test_point(self, apart: ImageSet) -> Point:
        """The study's head, fitted on all images, for those that were kept apart."""
        study = self.study
        fold = fold_of_all(study.image_set.labels, seed=study.seed)
        key = FinalKey(fitted=replace(self.key("head"), folds=fold.hash), apart=apart.digest)

        def compute() -> Predictions:
            return predict_apart(self.frozen, study, fold, apart)

        return make_point(f"{self.name} on the test images", self, key, compute)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The points of a comparison, with what the tables say of each."""

    plan: Plan
    candidates: dict[str, Candidate]  # the models that are compared
    infos: dict[str, WeightsInfo]  # by the point's name

    @property
    def models(self) -> tuple[str, ...]:
        """The points that are compared; all others are baselines."""
        return tuple(self.candidates)


def classifiers_of(folds: Folds) -> dict[str, list[ClassifierMixin]]:
    """The classifiers that baselines choose from, by the baseline's name."""
    smallest = min(len(fold.train) for fold in folds)
    neighbours = [KNeighborsClassifier(k) for k in NEIGHBOURS if k <= smallest]
    regressions = [LogisticRegression(C=strength, max_iter=1000) for strength in STRENGTHS]
    return {"k-NN": neighbours, "logistic regression": regressions}


def make_point(
    name: str,
    candidate: Candidate,
    key: PredictionKey | FinalKey,
    compute: Callable[[], Predictions],
) -> Point:
    """A point that says when it is computed, and on which machine it was."""
    machine = candidate.study.machine

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
        classes = shorten(", ".join(candidate.study.image_set.classes))
        print(f"{name}: no zero-shot baseline (its classifier does not hold all of {classes})")


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


def plan_work(task: Task, models: Sequence[str], store: Store) -> Work:
    """Every point of a comparison, model by model.

    Raises:
        UserError: as `find_candidates`.
    """
    points = []
    infos = {}
    candidates = find_candidates(task, models)
    for name, candidate in candidates.items():
        points.append(make_point(name, candidate, candidate.key("head"), candidate.head))
        infos[name] = candidate.info
        if not task.baselines:
            continue
        untrained = Candidate(task=task, name=name, weights="none")
        for point, its_info in baseline_points(candidate, untrained):
            points.append(point)
            infos[point.name] = its_info
    plan = Plan(points=tuple(points), store=store)
    return Work(plan=plan, candidates=candidates, infos=infos)


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
    shape = (repeats, len(image_set.labels), len(image_set.classes))
    check_predictions(predictions, shape, len(task.folds))
    return predictions


def compute_points(plan: Plan, task: Task) -> dict[str, Predictions]:
    """The predictions of every point by its name: read where they are kept, else computed and kept.

    What is kept and whole, but no predictions on these images, is computed again with a warning.
    """
    found = {}
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
    found = compute_points(work.plan, task)
    models = {name: found[name] for name in work.models}
    return models | found

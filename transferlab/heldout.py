"""The held-out protocol: repeated stratified folds, the same for every model, and paired tests.

20 % of every training fold, stratified, decide when a head stops; the test fold is predicted once,
by the epoch chosen there. What is compared are checkpoints (architecture and weights), never
architectures. Labelled test images that a folder keeps apart are no part of any fold: the model
that ranks first is asked for them once, at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from timm.data import ImageNetInfo
from torch import nn

from .backbones import make_head
from .data import Fold, Folds, HeldOutFold, ImageSet, everything_fold, split_indices
from .errors import DataError
from .features import FEATURES_REVISION
from .machine import Machine
from .many import Job, train_many
from .metrics import (
    Interval,
    PairedTest,
    accuracy_interval,
    bootstrap_interval,
    calibration_error,
    corrected_resampled_t,
    detectable_difference,
    images_needed,
    macro_f1_interval,
    verdicts,
)
from .records import DataInfo, RunRecord, from_plain
from .store import NO_STORE, Store, pack, unpack
from .study import Frozen, Study
from .train import Settings, TrainResult, ViewOf
from .views import Augmentation, AugmentationInfo, Renderer

INNER_SHARE = 0.2  # of a training fold: for early stopping, and to choose a regression's strength
POINTS = (1, 2, 3, 5)  # differences, in points of accuracy, that images are counted for


# ---- folds -----------------------------------------------------------------------------------


def counted_images(number: int) -> str:
    """A number of images in words."""
    return "1 image" if number == 1 else f"{number} images"


def folds_work(sizes: torch.Tensor, k: int) -> bool:
    """Whether classes of those sizes [C] can be cut into `k` folds: every class is in every test
    fold, and some class leaves two images to a training fold, one to train on and one to stop by.
    """
    smallest = int(sizes.min())
    largest = int(sizes.max())
    return 2 <= k <= smallest and (k > 2 or largest >= 4)


def check_class_sizes(labels: torch.Tensor, k: int, classes: Sequence[str] = ()) -> None:
    """Makes sure that every class has images enough for `k` folds.

    Raises:
        DataError: one has not; named as in `classes`, with what it has, what is needed, and what
            to do.
    """
    sizes = torch.bincount(labels)
    if k < 2:
        raise DataError(f"{k} folds leave nothing to train on: give 2 or more")
    if folds_work(sizes, k):
        return
    names = classes or [str(label) for label in range(len(sizes))]
    smallest = int(sizes.min())
    if smallest < k:
        needed = k
        place = int(sizes.argmin())
        told = f"class {names[place]} has {counted_images(smallest)}"
    else:  # two folds of classes of two or three images
        needed = 4
        place = int(sizes.argmax())
        told = f"class {names[place]}, the largest, has {counted_images(int(sizes[place]))}"
    small = int((sizes < k).sum())
    if small > 1:
        told += f" ({small} of {len(sizes)} classes have fewer than {k})"
    advice = ["add images"]
    if 0 < small <= len(sizes) - 2:
        advice.append("remove the class" if small == 1 else "remove these classes")
    fewer = [number for number in range(2, smallest + 1) if folds_work(sizes, number)]
    if fewer:
        advice.append(f"give --folds {max(fewer)}")
    raise DataError(f"{told}; {k} folds need {needed}: {listed_choices(advice)}")


def listed_choices(choices: Sequence[str]) -> str:
    """Choices in words: "a", "a or b", "a, b, or c"."""
    if len(choices) < 3:
        return " or ".join(choices)
    return f"{', '.join(choices[:-1])}, or {choices[-1]}"


def inner_split(labels: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits a training fold, stratified, 20 % of it to stop by -> (train, val) indices.

    Where classes are so small that one would be missing in a part, every class is split by itself:
    one image or more of it to stop by, and at least one to train on.
    """
    sizes = torch.bincount(labels)
    present = sizes[sizes > 0]
    classes = len(present)
    count = int(INNER_SHARE * len(labels))
    if int(present.min()) >= 2 and classes <= count <= len(labels) - classes:
        parts = split_indices(labels, val_size=INNER_SHARE, seed=seed)
        if all(len(labels[part].unique()) == classes for part in parts):
            return parts
    return split_each_class(labels, seed=seed)


def split_each_class(labels: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits each class by itself, seeded, 20 % but at least one image of two or more to val ->
    (train, val) indices."""
    random = np.random.default_rng(seed)
    in_val = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        images = random.permutation(torch.where(labels == label)[0].numpy())
        count = max(1, int(INNER_SHARE * len(images))) if len(images) > 1 else 0
        in_val[torch.from_numpy(images[:count])] = True
    return torch.where(~in_val)[0], torch.where(in_val)[0]


def make_folds(
    labels: torch.Tensor, *, k: int, repeats: int, seed: int, classes: Sequence[str] = ()
) -> Folds:
    """The same folds for every model: `k` stratified ones, `repeats` times. `classes`: what they
    are called, for the message.

    Raises:
        DataError: as `check_class_sizes`.
    """
    check_class_sizes(labels, k, classes)
    splitter = RepeatedStratifiedKFold(n_splits=k, n_repeats=repeats, random_state=seed)
    folds = []
    for place, (rest, test) in enumerate(splitter.split(labels, labels)):
        training = torch.from_numpy(rest)
        inner, val = inner_split(labels[training], seed=seed + place)
        fold = HeldOutFold(
            train=training[inner],
            val=training[val],
            test=torch.from_numpy(test),
            repeat=place // k,
            number=place % k,
        )
        folds.append(fold)
    return Folds(folds=tuple(folds), k=k, repeats=repeats)


def fold_of_all(labels: torch.Tensor, *, seed: int) -> Folds:
    """All images as one training fold, split inside as any other; its test fold is empty."""
    inner, val = inner_split(labels, seed=seed)
    nothing = torch.empty(0, dtype=torch.int64)
    return Folds(folds=(HeldOutFold(train=inner, val=val, test=nothing),), k=1, repeats=1)


def fold_notes(labels: torch.Tensor, folds: Folds, classes: Sequence[str]) -> list[str]:
    """What there is to say of folds: the classes too small to take part in choosing an epoch."""
    left_out: set[int] = set()
    for fold in folds:
        known = labels[training_part(fold)].unique()
        left_out |= set(known.tolist()) - set(labels[fold.val].unique().tolist())
    return [
        f"class {classes[label]}: so small that in some training folds its only image is trained "
        "on, and none helps to choose the epoch"
        for label in sorted(left_out)
    ]


def study_of_all(
    image_set: ImageSet,
    augmentation: Augmentation,
    settings: Settings,
    *,
    seed: int,
    machine: Machine,
    store: Store = NO_STORE,
) -> Study:
    """A study whose training and validation images are all images: what folds are cut from."""
    return Study(
        renderer=Renderer(image_set, augmentation, seed=seed),
        fold=everything_fold(image_set),
        settings=settings,
        machine=machine,
        seed=seed,
        store=store,
    )


def training_part(fold: Fold) -> torch.Tensor:
    """All that is not the test fold, int64 indices."""
    return torch.cat([fold.train, fold.val])


# ---- predictions -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What one model says of every image while it is held out."""

    probabilities: np.ndarray  # fp32 [R, N, C]; R = 1 where nothing was fitted
    # [F], of heads: the accuracy on the test fold at the epoch that is best there, less that at
    # the epoch chosen inside.
    optimism: np.ndarray | None = None
    epochs: np.ndarray | None = None  # [F], of heads: the epochs chosen, from 1
    machine: Machine | None = None  # that computed them, where they were kept


def keep_predictions(predictions: Predictions) -> dict[str, torch.Tensor]:
    """Predictions as a store keeps them."""
    kept = {"probabilities": torch.from_numpy(predictions.probabilities)}
    if predictions.optimism is not None and predictions.epochs is not None:
        kept["optimism"] = torch.from_numpy(predictions.optimism)
        kept["epochs"] = torch.from_numpy(predictions.epochs)
    if predictions.machine:
        kept |= pack(asdict(predictions.machine))
    return kept


def kept_predictions(kept: Mapping[str, torch.Tensor]) -> Predictions:
    """Predictions as they were kept."""
    heads = "optimism" in kept
    return Predictions(
        probabilities=kept["probabilities"].numpy(),
        optimism=kept["optimism"].numpy() if heads else None,
        epochs=kept["epochs"].numpy() if heads else None,
        machine=from_plain(Machine, unpack(dict(kept))) if "json" in kept else None,
    )


def check_predictions(predictions: Predictions, shape: tuple[int, int, int], folds: int) -> None:
    """Makes sure that predictions that were kept are what they have to be.

    `shape`: (repeats, images, classes); `folds`: the number of heads that were trained, where heads
    were.

    Raises:
        ValueError: they are of another shape or type, or no probabilities.
    """
    probabilities = predictions.probabilities
    if probabilities.shape != shape or probabilities.dtype != np.float32:
        raise ValueError(f"{probabilities.dtype} {probabilities.shape}, not float32 {shape}")
    sums = probabilities.sum(2)
    if not (probabilities.min() >= 0 and np.abs(sums - 1).max() < 1e-3):
        raise ValueError("no probabilities")
    for values in (predictions.optimism, predictions.epochs):
        if values is not None and values.shape != (folds,):
            raise ValueError(f"values of {len(values)} folds, not {folds}")


def empty_probabilities(image_set: ImageSet, folds: Folds) -> np.ndarray:
    """Zeros [R, N, C] in fp32."""
    shape = (folds.repeats, len(image_set.labels), len(image_set.classes))
    return np.zeros(shape, np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldHeads:
    """A head for every fold, trained."""

    heads: list[nn.Sequential]
    results: list[TrainResult]


def train_on_folds(study: Study, folds: Folds, view_of: ViewOf, clean: torch.Tensor) -> FoldHeads:
    """The study's head on every fold at once.

    `clean`: features [N, D] of all images; `view_of(e)`: those that epoch e trains on. The test
    fold, where it is not empty, is scored after every epoch and decides nothing.
    """
    settings = study.settings
    heads = []
    jobs = []
    for place, fold in enumerate(folds):
        seed = study.seed + place
        head = make_head(
            clean.shape[1],
            study.classes,
            hidden=settings.hidden,
            dropout=settings.dropout,
            seed=seed,
        )
        job = Job(
            view_of=view_of,
            train_index=fold.train,
            val_x=clean,
            val_index=fold.val,
            seed=seed,
            lr=settings.lr,
            patience=settings.patience,
            test_index=fold.test if len(fold.test) else None,
        )
        heads.append(head)
        jobs.append(job)
    results = train_many(
        heads,
        jobs,
        study.image_set.labels,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        progress=True,
    )
    return FoldHeads(heads=heads, results=results)


def selection_optimism(result: TrainResult) -> float:
    """How much higher the test fold's accuracy is at its own best epoch than at the one chosen."""
    accuracies = [row.test_acc or 0.0 for row in result.history]
    return max(accuracies) - accuracies[result.best_epoch - 1]


def predict_with_heads(frozen: Frozen, study: Study, folds: Folds) -> Predictions:
    """The study's head on kept features, all folds at once."""
    features = frozen.features
    clean = features.clean

    def view_of(epoch: int) -> torch.Tensor:
        return features.train(study.settings.view_of(epoch))

    trained = train_on_folds(study, folds, view_of, clean)
    probabilities = empty_probabilities(study.image_set, folds)
    for head, fold in zip(trained.heads, folds, strict=True):
        with torch.inference_mode():
            logits = head.eval()(clean[fold.test])
        probabilities[fold.repeat, fold.test] = logits.softmax(1).numpy()
    return Predictions(
        probabilities=probabilities,
        optimism=np.array([selection_optimism(result) for result in trained.results]),
        epochs=np.array([result.best_epoch for result in trained.results]),
    )


def predict_apart(frozen: Frozen, study: Study, fold: Folds, apart: ImageSet) -> Predictions:
    """The study's head for images that were kept apart, probabilities [1, M, C].

    It is fitted once on all images of the study, as on one training fold (`fold_of_all`): trained
    on four fifths of them, stopped by the others, and asked for each image apart once.
    """
    features = frozen.features
    renderer = Renderer(apart, study.renderer.augmentation, seed=study.seed)
    clean_apart = replace(features, renderer=renderer).clean

    def view_of(epoch: int) -> torch.Tensor:
        return features.train(study.settings.view_of(epoch))

    trained = train_on_folds(study, fold, view_of, features.clean)
    with torch.inference_mode():
        logits = trained.heads[0].eval()(clean_apart)
    return Predictions(probabilities=logits.softmax(1)[None].numpy())


# ---- baselines -------------------------------------------------------------------------------


def standardised(classifier: ClassifierMixin) -> Pipeline:
    """A classifier on features that are standardised as its training images are."""
    return make_pipeline(StandardScaler(), classifier)


def choose_classifier(
    classifiers: Sequence[ClassifierMixin], x: np.ndarray, y: np.ndarray, fold: Fold
) -> ClassifierMixin:
    """The classifier of the lowest log-loss on a fold's inner validation part."""
    if len(classifiers) == 1:
        return classifiers[0]
    labels = range(int(y.max()) + 1)
    losses = []
    for classifier in classifiers:
        fitted = standardised(classifier).fit(x[fold.train], y[fold.train])
        losses.append(log_loss(y[fold.val], fitted.predict_proba(x[fold.val]), labels=labels))
    return classifiers[int(np.argmin(losses))]


def predict_with(
    classifiers: Sequence[ClassifierMixin], clean: torch.Tensor, image_set: ImageSet, folds: Folds
) -> Predictions:
    """The best of scikit-learn `classifiers` by log-loss on each fold's inner validation part,
    fitted again on the whole training fold; features [N, D] standardised inside it."""
    x = clean.numpy()
    y = image_set.labels.numpy()
    probabilities = empty_probabilities(image_set, folds)
    with threadpool_limits(1):  # matrices this small lose by threads
        for fold in folds:
            best = choose_classifier(classifiers, x, y, fold)
            rest = training_part(fold)
            fitted = standardised(best).fit(x[rest], y[rest])
            probabilities[fold.repeat, fold.test] = fitted.predict_proba(x[fold.test])
    return Predictions(probabilities=probabilities)


def predict_majority(image_set: ImageSet, folds: Folds) -> Predictions:
    """The classes' shares in each training fold: always its most frequent class."""
    probabilities = empty_probabilities(image_set, folds)
    for fold in folds:
        labels = image_set.labels[training_part(fold)]
        counts = torch.bincount(labels, minlength=len(image_set.classes))
        probabilities[fold.repeat, fold.test] = (counts / counts.sum()).numpy()
    return Predictions(probabilities=probabilities)


def imagenet_names() -> dict[str, set[int]]:
    """What ImageNet-1k's classes are called -> the indices of the classes called so."""
    info = ImageNetInfo()
    names: dict[str, set[int]] = {}
    for index in range(info.num_classes()):
        for name in info.index_to_description(index).split(","):
            names.setdefault(name.strip().lower(), set()).add(index)
    return names


def zero_shot_classes(classes: Sequence[str]) -> list[int] | None:
    """The ImageNet-1k class called as each class is, "bee" for "bees"; None unless each has exactly
    one."""
    names = imagenet_names()
    found: list[int] = []
    for name in classes:
        lower = name.lower()
        indices = names.get(lower, set()) | names.get(lower.removesuffix("s"), set())
        if len(indices) != 1:
            return None
        found += indices
    return found


def predict_zero_shot(
    classifier: nn.Module, indices: Sequence[int], clean: torch.Tensor
) -> Predictions:
    """A backbone's original ImageNet classifier on its features [N, D], asked only for the classes
    of those indices, as `zero_shot_classes` gives them."""
    with torch.inference_mode():
        logits = classifier(clean)[:, list(indices)]
    return Predictions(probabilities=logits.softmax(1)[None].numpy())


# ---- scores ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over images and repeats with its 95 % bootstrap interval over images."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a model or a baseline does."""

    model: str
    baseline: bool
    weights: str  # where they come from
    n: int  # images
    folds: int
    accuracy_score: Score
    log_loss: Score
    brier: Score
    macro_f1: Score
    ece: float  # expected calibration error
    selection_optimism: float | None = None  # of heads: mean over folds
    epochs_to_best: float | None = None

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return self.accuracy_score.value

    @property
    def accuracy_interval(self) -> Interval:
        """95 %, over images."""
        return self.accuracy_score.interval

    def row(self) -> dict[str, Any]:
        """The scores as a row of a table."""
        row = {
            "model": self.model,
            "baseline": self.baseline,
            "weights": self.weights,
            "n": self.n,
            "folds": self.folds,
        }
        scores = {
            "accuracy": self.accuracy_score,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "macro_f1": self.macro_f1,
        }
        for name, score in scores.items():
            row[name] = score.value
            row[f"{name}_low"] = score.interval.low
            row[f"{name}_high"] = score.interval.high
        row["ece"] = self.ece
        if self.selection_optimism is not None:
            row["selection_optimism"] = self.selection_optimism
            row["epochs_to_best"] = self.epochs_to_best
        return row


def score_over_images(values: np.ndarray) -> Score:
    """The mean of one value an image [N]."""
    return Score(value=float(values.mean()), interval=bootstrap_interval(values))


def score_macro_f1(labels: np.ndarray, predicted: np.ndarray) -> Score:
    """Macro-F1 of predictions [R, N], mean over repeats."""
    scores = [f1_score(labels, guess, average="macro") for guess in predicted]
    return Score(value=float(np.mean(scores)), interval=macro_f1_interval(labels, predicted))


def score_model(
    model: str,
    predictions: Predictions,
    labels: np.ndarray,
    *,
    baseline: bool,
    weights: str,
    folds: int,
) -> Scores:
    """Scores of predictions against labels int [N], means over repeats."""
    probabilities = predictions.probabilities
    classes = probabilities.shape[2]
    predicted = probabilities.argmax(2)
    true = np.eye(classes)[labels]
    exact = probabilities.astype(np.float64)
    of_true = np.take_along_axis(exact, labels[None, :, None], 2)[..., 0]
    losses = -np.log(np.clip(of_true, 1e-15, 1))
    squares = ((probabilities - true) ** 2).sum(2)
    errors = [calibration_error(one, labels) for one in probabilities]
    scores = Scores(
        model=model,
        baseline=baseline,
        weights=weights,
        n=len(labels),
        folds=folds,
        accuracy_score=score_over_images((predicted == labels).mean(0)),
        log_loss=score_over_images(losses.mean(0)),
        brier=score_over_images(squares.mean(0)),
        macro_f1=score_macro_f1(labels, predicted),
        ece=float(np.mean(errors)),
    )
    if predictions.optimism is None or predictions.epochs is None:
        return scores
    return replace(
        scores,
        selection_optimism=float(predictions.optimism.mean()),
        epochs_to_best=float(predictions.epochs.mean()),
    )


RANKING = "highest accuracy on held-out folds; of equal ones lower log-loss, then named first"


def first_ranked(scores: Sequence[Scores]) -> Scores:
    """The model, no baseline, of the highest accuracy; of equal ones that of the lowest log-loss,
    then the one that comes first."""
    models = [one for one in scores if not one.baseline]
    # Rounded, since means of the same counts in another order differ in their last bits.
    return min(models, key=lambda one: (-round(one.accuracy, 9), round(one.log_loss.value, 9)))


# ---- paired tests ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PairTest:
    """One model less another on the same folds."""

    model_a: str
    model_b: str
    test: PairedTest
    p_holm: float
    detectable: float | None  # the smallest difference that would have been seen
    images_needed: tuple[int | None, ...]  # to see a difference of each of POINTS
    verdict: str  # "... better" or "indistinguishable"

    def row(self) -> dict[str, Any]:
        """The test as a row of a table."""
        row: dict[str, Any] = {"model_a": self.model_a, "model_b": self.model_b}
        row |= asdict(self.test)
        row["p_holm"] = self.p_holm
        row["detectable"] = self.detectable
        for points, images in zip(POINTS, self.images_needed, strict=True):
            row[f"images_for_{points}_points"] = images
        row["verdict"] = self.verdict
        return row


PAIR_COLUMNS = [  # of the table, which has no row where one model is asked for
    "model_a",
    "model_b",
    "difference",
    "error",
    "low",
    "high",
    "p",
    "p_holm",
    "detectable",
    *(f"images_for_{points}_points" for points in POINTS),
    "verdict",
]


def fold_accuracies(probabilities: np.ndarray, labels: np.ndarray, folds: Folds) -> np.ndarray:
    """The accuracy on each test fold [F] of probabilities [R, N, C]."""
    correct = probabilities.argmax(2) == labels
    last = len(correct) - 1
    return np.array([correct[min(fold.repeat, last)][fold.test.numpy()].mean() for fold in folds])


def compare_pairs(
    found: Mapping[str, Predictions], labels: np.ndarray, folds: Folds
) -> list[PairTest]:
    """Every pair of models: corrected resampled t-test over folds, Holm over pairs, and the verdict
    in words."""
    accuracies = {
        name: fold_accuracies(one.probabilities, labels, folds) for name, one in found.items()
    }
    pairs = list(combinations(found, 2))
    share = 1 / (folds.k - 1)
    tests = [corrected_resampled_t(accuracies[a] - accuracies[b], share) for a, b in pairs]
    compared = []
    for (a, b), test, verdict in zip(pairs, tests, verdicts(tests), strict=True):
        detectable = detectable_difference(test.error, len(folds)) or None  # none without spread
        needed = [
            images_needed(len(labels), detectable, points / 100) if detectable else None
            for points in POINTS
        ]
        better = a if verdict.word == "better" else b
        word = verdict.word if verdict.word == "indistinguishable" else f"{better} better"
        pair = PairTest(
            model_a=a,
            model_b=b,
            test=test,
            p_holm=verdict.p_holm,
            detectable=detectable,
            images_needed=tuple(needed),
            verdict=word,
        )
        compared.append(pair)
    return compared


def verdict_text(pair: PairTest, n: int) -> str:
    """A pair's verdict as a sentence for the terminal; `n` images were compared on."""
    test = pair.test
    interval = f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
    points = f"{100 * test.difference:+.1f} points {interval}"
    told = f"{pair.model_a} less {pair.model_b}: {points}, p = {pair.p_holm:.3f} (Holm)"
    if pair.verdict != "indistinguishable":
        return f"{told}: {pair.verdict}"
    if pair.detectable is None:
        reason = "their accuracies differ alike on all folds, so nothing says what could be seen"
        return f"{told}: indistinguishable; {reason}"
    needed = [f"{d}: {images:,}" for d, images in zip(POINTS, pair.images_needed, strict=True)]
    smallest = f"a difference of {100 * pair.detectable:.1f} points"
    seen = f"{smallest} would have been seen with these {n} images"
    images = f"images needed to see 1, 2, 3, 5 points: {', '.join(needed)}"
    return f"{told}: indistinguishable; {seen}; {images}"


def shorten(text: str, most: int = 100) -> str:
    """A text whose middle is left out where it is longer than a line."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


# ---- records ---------------------------------------------------------------------------------


PROTOCOL = (
    "fitted once on all other images, four fifths of them to train on and one fifth, stratified, "
    "to choose the epoch; each test image predicted once, after the verdict"
)


@dataclass(frozen=True, kw_only=True)
class FinalScore:
    """How the model that ranks first does on labelled test images that were kept apart: they had no
    part in ranking, and no other model was asked for them."""

    model: str
    ranking: str = RANKING  # what came first, and how ties were ranked
    protocol: str = PROTOCOL  # how the model was fitted
    data: DataInfo  # the test images
    n: int  # images
    correct: int
    accuracy: float  # 0 to 1
    accuracy_interval: Interval  # 95 % (Wilson), over images
    machine: Machine | None = None  # that computed it


def score_apart(
    model: str, predictions: Predictions, labels: np.ndarray, data: DataInfo
) -> FinalScore:
    """The score of a model's predictions [1, M, C] against labels int [M] of images kept apart."""
    predicted = predictions.probabilities[0].argmax(1)
    correct = int((predicted == labels).sum())
    n = len(labels)
    return FinalScore(
        model=model,
        data=data,
        n=n,
        correct=correct,
        accuracy=correct / n,
        accuracy_interval=accuracy_interval(correct, n),
        machine=predictions.machine,
    )


def final_text(score: FinalScore) -> str:
    """The score on the test images as a sentence for the terminal."""
    interval = score.accuracy_interval
    accuracy = f"{100 * score.accuracy:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    counted = f"{score.correct} of {score.n} images"
    who = f"{score.model}, which ranks first ({score.ranking}), {score.protocol}"
    return f"test: accuracy {accuracy}, {counted}: {who}"


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(RunRecord):
    """A comparison of backbones."""

    kind: str = "compare"
    folds: int  # of a repeat
    repeats: int
    fold_hash: str
    machines: tuple[Machine, ...] = ()  # that computed parts of it
    # {model: how its views were drawn}: they differ in size alone. That of the data is missing
    # where they do.
    augmentations: dict[str, AugmentationInfo] = field(default_factory=dict)
    test: FinalScore | None = None  # where the folder keeps labelled test images apart


@dataclass(frozen=True, kw_only=True)
class PredictionKey:
    """All that finished predictions depend on, but for the machine and its versions: parts may come
    from several, and each says which has computed it. The precision of the random views counts."""

    method: str  # "head", "k-NN", "logistic regression", "zero-shot"
    data: str  # digest
    model: str  # timm's name
    weights: str  # hash of all tensors
    augmentation: AugmentationInfo
    content: str  # of the augmentation, as `identity_of` gives it
    settings: Settings | None  # of heads
    seed: int
    folds: str  # their hash
    precision: str  # of the random views; of baselines on the clean view always fp32
    choices: tuple[str, ...] = ()  # of a baseline: what it is chosen from
    features: int = FEATURES_REVISION
    revision: int = 1  # raised whenever predictions of the same key come out otherwise


@dataclass(frozen=True, kw_only=True)
class FinalKey:
    """All that predictions of images kept apart depend on."""

    fitted: PredictionKey  # of the head, on one fold of all images
    apart: str  # digest of the test images
    revision: int = 1  # raised whenever predictions of the same key come out otherwise

"""The held-out protocol: repeated stratified folds, the same for every model, and what models
predict on them.

20 % of every training fold, stratified, choose the probe's strength, or when the study's head
stops; the test fold is predicted once. What is compared are checkpoints (architecture and weights),
never architectures. Labelled test images that a folder keeps apart are no part of any fold: the
model that ranks first is asked for them once, at the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
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
from .metrics import Interval, accuracy_interval
from .probe import (
    STRENGTHS,
    StrengthChoice,
    choose_strengths,
    fit_probe,
    fit_probes,
    nothing,
)
from .progress import Progress
from .records import DataInfo, RunRecord, from_plain
from .store import NO_STORE, Store, pack, unpack
from .study import Frozen, Study
from .train import Settings, TrainResult, ViewOf
from .views import Augmentation, AugmentationInfo, Renderer

INNER_SHARE = 0.2  # of a training fold: for early stopping, and to choose a regression's strength


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
        "on, and none helps to choose how far the fit goes"
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
    progress: Progress | None = None,
) -> Study:
    """A study whose training and validation images are all images: what folds are cut from."""
    return Study(
        renderer=Renderer(image_set, augmentation, seed=seed, progress=progress),
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
    strengths: StrengthChoice | None = None  # of probes: what each fold chose
    seconds: float | None = None  # that they took; kept features are read, not computed
    machine: Machine | None = None  # that computed them, where they were kept


def keep_predictions(predictions: Predictions) -> dict[str, torch.Tensor]:
    """Predictions as a store keeps them."""
    kept = {"probabilities": torch.from_numpy(predictions.probabilities)}
    if predictions.optimism is not None and predictions.epochs is not None:
        kept["optimism"] = torch.from_numpy(predictions.optimism)
        kept["epochs"] = torch.from_numpy(predictions.epochs)
    if predictions.strengths:
        kept["losses"] = torch.from_numpy(predictions.strengths.losses)
    if predictions.seconds is not None:
        kept["seconds"] = torch.tensor(predictions.seconds, dtype=torch.float64)
    if predictions.machine:
        kept |= pack(asdict(predictions.machine))
    return kept


def kept_predictions(kept: Mapping[str, torch.Tensor]) -> Predictions:
    """Predictions as they were kept."""
    heads = "optimism" in kept
    losses = kept["losses"].numpy() if "losses" in kept else None
    return Predictions(
        probabilities=kept["probabilities"].numpy(),
        optimism=kept["optimism"].numpy() if heads else None,
        epochs=kept["epochs"].numpy() if heads else None,
        strengths=None if losses is None else StrengthChoice(losses=losses),
        seconds=float(kept["seconds"]) if "seconds" in kept else None,
        machine=from_plain(Machine, unpack(dict(kept))) if "json" in kept else None,
    )


def check_predictions(predictions: Predictions, shape: tuple[int, int, int], folds: int) -> None:
    """Makes sure that predictions that were kept are what they have to be.

    `shape`: (repeats, images, classes); `folds`: the number of fits, where something was fitted.

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
    if predictions.strengths:
        losses = predictions.strengths.losses
        whole = losses.ndim == 2 and losses.shape[1] == folds and len(losses) <= len(STRENGTHS)
        if not (whole and len(losses) and np.isfinite(losses).all()):
            raise ValueError(f"losses {losses.shape} of {folds} folds")


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


def predict_with_probes(
    clean: torch.Tensor,
    image_set: ImageSet,
    folds: Folds,
    *,
    precision: torch.dtype = torch.float32,
    tell: Callable[[], object] = nothing,
) -> Predictions:
    """Probes on features [N, D], computed in `precision`, one for each fold, its strength chosen
    inside and the probe fitted again on the whole training fold. `tell` is called after each step
    of each fold.

    Raises:
        DataError: as `choose_strengths` and `fit_probes`.
    """
    x = clean.numpy()
    y = image_set.labels.numpy()
    choice = choose_strengths(x, y, folds, precision=precision, tell=tell)
    probes = fit_probes(
        x,
        y,
        [training_part(fold) for fold in folds],
        choice.chosen,
        classes=len(image_set.classes),
        precision=precision,
        tell=tell,
    )
    probabilities = empty_probabilities(image_set, folds)
    for probe, fold in zip(probes, folds, strict=True):
        probabilities[fold.repeat, fold.test] = probe.probabilities(x[fold.test])
    return Predictions(probabilities=probabilities, strengths=choice)


def features_apart(frozen: Frozen, study: Study, apart: ImageSet) -> torch.Tensor:
    """The clean features [M, D] of images that were kept apart."""
    own = study.renderer
    renderer = Renderer(apart, own.augmentation, seed=study.seed, progress=own.progress)
    return replace(frozen.features, renderer=renderer).clean


def predict_apart_with_probe(
    frozen: Frozen, study: Study, strength: float, apart: ImageSet
) -> Predictions:
    """A probe for images that were kept apart, probabilities [1, M, C], fitted once on all images
    of the study."""
    probe = fit_probe(
        frozen.features.clean.numpy(),
        study.image_set.labels.numpy(),
        classes=study.classes,
        strength=strength,
        precision=study.machine.precision_of(0),
    )
    probabilities = probe.probabilities(features_apart(frozen, study, apart).numpy())
    return Predictions(probabilities=probabilities.astype(np.float32)[None])


def predict_apart_with_head(
    frozen: Frozen, study: Study, fold: Folds, apart: ImageSet
) -> Predictions:
    """The study's head for images that were kept apart, probabilities [1, M, C].

    It is fitted once on all images of the study, as on one training fold (`fold_of_all`): trained
    on four fifths of them, stopped by the others, and asked for each image apart once.
    """
    features = frozen.features

    def view_of(epoch: int) -> torch.Tensor:
        return features.train(study.settings.view_of(epoch))

    trained = train_on_folds(study, fold, view_of, features.clean)
    with torch.inference_mode():
        logits = trained.heads[0].eval()(features_apart(frozen, study, apart))
    return Predictions(probabilities=logits.softmax(1)[None].numpy())


# ---- baselines -------------------------------------------------------------------------------


def choose_classifier(
    classifiers: Sequence[ClassifierMixin], x: np.ndarray, y: np.ndarray, fold: Fold
) -> ClassifierMixin:
    """The classifier of the lowest log-loss on a fold's inner validation part."""
    if len(classifiers) == 1:
        return classifiers[0]
    labels = range(int(y.max()) + 1)
    scaler = StandardScaler().fit(x[fold.train])
    train = scaler.transform(x[fold.train])
    val = scaler.transform(x[fold.val])
    losses = []
    for classifier in classifiers:
        fitted = classifier.fit(train, y[fold.train])
        losses.append(log_loss(y[fold.val], fitted.predict_proba(val), labels=labels))
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
            fitted = make_pipeline(StandardScaler(), best).fit(x[rest], y[rest])
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


# ---- records ---------------------------------------------------------------------------------


def shorten(text: str, most: int = 100) -> str:
    """A text whose middle is left out where it is longer than a line."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


RANKING = "highest accuracy on held-out folds; of equal ones lower log-loss, then named first"
PROTOCOLS = {  # how the model is fitted that is asked for test images, by the kind of head
    "probe": "fitted once on all other images, its strength that of the lowest mean log-loss on "
    "the inner fifths of the folds; each test image predicted once, after the verdict",
    "study": "fitted once on all other images, four fifths of them to train on and one fifth, "
    "stratified, to choose the epoch; each test image predicted once, after the verdict",
}


@dataclass(frozen=True, kw_only=True)
class FinalScore:
    """How the model that ranks first does on labelled test images that were kept apart: they had no
    part in ranking, and no other model was asked for them."""

    model: str
    ranking: str = RANKING  # what came first, and how ties were ranked
    protocol: str  # how the model was fitted
    data: DataInfo  # the test images
    n: int  # images
    correct: int
    accuracy: float  # 0 to 1
    accuracy_interval: Interval  # 95 % (Wilson), over images
    machine: Machine | None = None  # that computed it


def score_apart(
    model: str, predictions: Predictions, labels: np.ndarray, *, data: DataInfo, head: str
) -> FinalScore:
    """The score of a model's predictions [1, M, C] against labels int [M] of images kept apart."""
    predicted = predictions.probabilities[0].argmax(1)
    correct = int((predicted == labels).sum())
    n = len(labels)
    return FinalScore(
        model=model,
        protocol=PROTOCOLS[head],
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
    who = f"{score.model}, which ranks first, fitted once on all other images"
    return f"test: accuracy {accuracy}, {counted}: {who}"


@dataclass(frozen=True, kw_only=True)
class ProbeInfo:
    """The strengths of one model's probes."""

    chosen: dict[str, int]  # {strength: the folds that chose it}
    at_ends: int  # folds whose choice is an end of the grid: a strength beyond may do better
    final: float  # of a model of all images


def probe_info(choice: StrengthChoice) -> ProbeInfo:
    """What folds chose, as a record says it."""
    counts = Counter(choice.chosen.tolist())
    return ProbeInfo(
        chosen={f"{strength:.3g}": counts[strength] for strength in sorted(counts, reverse=True)},
        at_ends=counts[STRENGTHS[0]] + counts[STRENGTHS[-1]],
        final=choice.final,
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(RunRecord):
    """A comparison of backbones; its settings are those of the study's head, None of the probe."""

    kind: str = "compare"
    head: str = "study"  # or "probe"
    probes: dict[str, ProbeInfo] = field(default_factory=dict)  # by model or baseline
    seconds: dict[str, float] = field(default_factory=dict)  # that each took; what is kept is read
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
    from several, and each says which has computed it."""

    method: str  # "probe", "head", "k-NN", "zero-shot"
    data: str  # digest
    model: str  # timm's name
    weights: str  # hash of all tensors
    augmentation: AugmentationInfo
    content: str  # of the augmentation, as `identity_of` gives it
    settings: Settings | None  # of heads
    seed: int
    folds: str  # their hash
    precision: str  # of the views that it sees
    choices: tuple[str, ...] = ()  # of a probe: its strengths; of k-NN: its classifiers
    features: int = FEATURES_REVISION
    revision: int = 1  # raised whenever predictions of the same key come out otherwise


@dataclass(frozen=True, kw_only=True)
class FinalKey:
    """All that predictions of images kept apart depend on."""

    fitted: PredictionKey  # of the probe, or of the study's head on one fold of all images
    apart: str  # digest of the test images
    revision: int = 1  # raised whenever predictions of the same key come out otherwise

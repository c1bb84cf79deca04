"""The study's runs, each checked against its own predictions, curve and figures, and the figures
that the study has published."""

import math
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from named import Named
from sklearn.metrics import accuracy_score, f1_score
from typed import fail

from transferlab.metrics import accuracy_interval, mcnemar_p
from transferlab.published import read_record
from transferlab.records import StudyRecord

MODELS = {
    "01": ("resnet50",),
    "02": ("densenet121",),
    "03": ("efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"),
}
MAY_LACK = ("vit",)  # backbones that notebook 03 leaves out where they have no weights


# ---- what a run gets wrong -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recall:
    """How many images of a class were found."""

    share: float  # 0 to 1
    n: int  # images of the class


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Two classes that were taken for each other."""

    true: str
    guess: str
    n: int  # how often


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Where a run errs."""

    recall: dict[str, Recall]  # by class
    pairs: tuple[Confusion, ...]  # the three most frequent, and those as frequent as the third
    never: tuple[str, ...]  # classes that were never predicted


def recalls(
    labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]
) -> dict[str, Recall]:
    """The recall of every class that is there."""
    right: Counter[int] = Counter()
    images = Counter(labels)
    for label, guess in zip(labels, predictions, strict=True):
        if label == guess:
            right[label] += 1
    found = {}
    for label, name in enumerate(classes):
        n = images[label]
        share = right[label] / n if n else math.nan
        found[name] = Recall(share=share, n=n)
    return found


def frequent_confusions(
    labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]
) -> tuple[Confusion, ...]:
    """The three pairs most often confused, and those as often as the third."""
    counts: Counter[tuple[int, int]] = Counter()
    for label, guess in zip(labels, predictions, strict=True):
        if label != guess:
            counts[label, guess] += 1
    confusions = [
        Confusion(true=classes[label], guess=classes[guess], n=n)
        for (label, guess), n in sorted(counts.items())
    ]
    confusions.sort(key=lambda one: -one.n)
    if not confusions:
        return ()
    third = confusions[:3][-1]
    return tuple(one for one in confusions if one.n >= third.n)


def describe_errors(
    labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]
) -> Errors:
    """Where a run errs, from its labels and predictions [N]."""
    predicted = set(predictions)
    never = [name for label, name in enumerate(classes) if label not in predicted]
    return Errors(
        recall=recalls(labels, predictions, classes),
        pairs=frequent_confusions(labels, predictions, classes),
        never=tuple(never),
    )


# ---- a run -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the study protocol that is named."""

    record: StudyRecord
    path: str  # of its record
    errors: Errors

    @property
    def seconds(self) -> float:
        """The whole run, without loading images."""
        return self.record.seconds

    @property
    def random(self) -> bool:
        """Whether it measures no transfer, since nothing was pretrained."""
        return not self.record.backbone.measures_transfer


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number that a record tells, and what its predictions or its curve say it is."""

    name: str
    told: float
    found: float

    @property
    def holds(self) -> bool:
        """Whether the two are the same."""
        return abs(self.told - self.found) <= 1e-6


def disagreements(record: StudyRecord, history: pd.DataFrame) -> list[str]:
    """The names of what a record says otherwise than its stored predictions and its curve do."""
    labels = list(record.val_labels)
    predictions = list(record.val_predictions)
    n = len(labels)
    lowest = history.val_loss.idxmin()
    best = history.loc[lowest]
    accuracy = accuracy_score(labels, predictions)
    wilson = accuracy_interval(round(accuracy * n), n)
    f1 = f1_score(labels, predictions, average="macro")
    claims = [
        Claim(name="accuracy", told=record.best.val_acc, found=accuracy),
        Claim(name="curve", told=best.val_acc, found=accuracy),
        Claim(name="epoch", told=record.best.epoch, found=best.epoch),
        Claim(name="macro_f1", told=record.macro_f1, found=f1),
        Claim(name="low", told=record.accuracy_interval.low, found=wilson.low),
        Claim(name="high", told=record.accuracy_interval.high, found=wilson.high),
        Claim(name="images", told=record.n_val, found=n),
    ]
    return [claim.name for claim in claims if not claim.holds]


def check_origin(record: StudyRecord) -> None:
    """Makes sure that a record says what it was made from, and that this stayed as it was.

    Raises:
        SystemExit: it does not.
    """
    model = record.model
    if not record.dataset.digest or not record.backbone.sha256:
        fail(f"the run of {model} does not say on which data and weights it was made")
    if record.frozen_hash_before != record.frozen_hash_after:
        fail(f"the frozen part of {model} changed while its head was trained")


def check_stamps(named: Named, notebook: str, model: str) -> None:
    """Makes sure that a run's record, curve and figures were written by the same run.

    Raises:
        SystemExit: they were not.
    """
    path = named.path(notebook, f"summary/{model}")
    stamp = Path(path).stem[-len("YYYYmmdd_HHMMSS") :]
    figures = [
        other
        for (place, kind), other in named.paths.items()
        if place == notebook and kind.startswith(f"img/{model}_")
    ]
    for other in (named.path(notebook, f"result/{model}_results"), *figures):
        if not Path(other).stem.endswith(stamp):
            told = f"{path} and its curves and figures come from different runs"
            fail(f"{told}: publish the notebook again")


def read_run(named: Named, notebook: str, model: str) -> Run:
    """One run, checked against its own predictions, curve and figures.

    Raises:
        SystemExit: it does not say on which data and weights it was made, its frozen part changed,
            or its parts disagree.
    """
    path = named.path(notebook, f"summary/{model}")
    record = read_record(named.root / path, StudyRecord)
    check_origin(record)
    check_stamps(named, notebook, model)
    history = pd.read_csv(named.file(notebook, f"result/{model}_results"))
    wrong = disagreements(record, history)
    if wrong:
        names = ", ".join(wrong)
        fail(f"{path} says otherwise than its predictions and curve: {names}")
    errors = describe_errors(record.val_labels, record.val_predictions, record.dataset.classes)
    return Run(record=record, path=path, errors=errors)


def read_runs(named: Named) -> dict[str, Run]:
    """The runs by backbone, in reading order; of those that may lack weights, the ones that ran."""
    runs = {}
    for notebook, models in MODELS.items():
        for model in models:
            if model not in MAY_LACK or named.has(notebook, f"summary/{model}"):
                runs[model] = read_run(named, notebook, model)
    return runs


# ---- two runs on the same images -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SplitTest:
    """ResNet50 and DenseNet121 on the same validation images."""

    p: float  # of the exact McNemar test
    only_resnet: int  # images that it alone has right
    only_densenet: int
    both_wrong: int

    @property
    def distinct(self) -> bool:
        """Whether they differ by more than chance would, at 5 %."""
        return self.p < 0.05


def correct_images(record: StudyRecord) -> torch.Tensor:
    """Which validation images a run has right, bool [N]."""
    labels = torch.tensor(record.val_labels)
    return torch.tensor(record.val_predictions) == labels


def compare_on_split(resnet: StudyRecord, densenet: StudyRecord) -> SplitTest:
    """Exact McNemar of the two on the same validation images; the labels are those that each record
    stores.

    Raises:
        SystemExit: they were not run on the same split.
    """
    same_split = resnet.split_hash == densenet.split_hash
    if not same_split or resnet.dataset.digest != densenet.dataset.digest:
        fail("resnet50 and densenet121 were not run on the same split: publish 01 and 02 together")
    of_resnet = correct_images(resnet)
    of_densenet = correct_images(densenet)
    return SplitTest(
        p=mcnemar_p(of_resnet, of_densenet),
        only_resnet=int((of_resnet & ~of_densenet).sum()),
        only_densenet=int((of_densenet & ~of_resnet).sum()),
        both_wrong=int((~of_resnet & ~of_densenet).sum()),
    )


def majority_share(record: StudyRecord) -> float:
    """The share of a run's most frequent class among its validation images."""
    counts = Counter(record.val_labels)
    return max(counts.values()) / record.n_val


# ---- published figures -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """A percentage that the study has published, and our run of the same backbone."""

    data: str
    model: str
    percent: str  # as it was printed
    n: int  # validation images
    run: Run | None  # None where that backbone has no weights here

    @property
    def k(self) -> int | None:
        """How many of the images give this percentage; None where no number of them does."""
        _, _, digits = self.percent.partition(".")
        decimals = len(digits)
        for k in range(self.n + 1):
            share = 100 * k / self.n
            if f"{share:.{decimals}f}" == self.percent:
                return k
        return None

    @property
    def near(self) -> tuple[float, float]:
        """The nearest attainable proportions, below and above."""
        images = float(self.percent) * self.n / 100
        below = math.floor(images)
        return below / self.n, (below + 1) / self.n


def read_published(runs: dict[str, Run], root: Path) -> tuple[PublishedFigure, ...]:
    """The percentages of report/published.toml."""
    text = (root / "report/published.toml").read_text(encoding="utf-8")
    figures = tomllib.loads(text)["figures"]
    return tuple(PublishedFigure(**figure, run=runs.get(figure["model"])) for figure in figures)

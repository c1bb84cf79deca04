"""Claims about backbones and heads, on held-out folds: what is trained, and what is made of it.

The study's head is trained twice on every frozen backbone. As the study trains it, for 30 epochs at
most, stopping early: claims about its accuracy are about that. And never stopping, for as many
epochs as are asked for: claims about dropout, augmentation, early stopping and over-fitting are
about that, as half of ResNet50's heads on the faces have their lowest validation loss in the last
of the study's thirty epochs. The first thirty of the same curves serve claims about what the study
does in thirty: its stopping rule, and the speed of learning. (On random features the loss wavers
about where it got in ten epochs for as long as one looks, so that its lowest epoch comes the later,
and the claim looks the better, the longer one does.)

Accuracy is compared by predictions, over images and repeats; where there is only a value a fold, as
of a curve at an epoch that a rule chooses, by the corrected resampled t.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.claims.curves import (
    PATIENCE,
    Curves,
    at_end,
    at_epoch,
    epochs_to_reach,
    stop_after_rises,
    stop_never,
    stop_without_gain,
    why_unfinished,
)
from benchmarks.claims.judged import OVER_FOLDS, OVER_IMAGES, Claim, as_tested
from benchmarks.common import Pair
from transferlab.data import Folds
from transferlab.datasets import FACES, INSECTS
from transferlab.heldout import Predictions, predict_with_heads, predict_with_probes, train_on_folds
from transferlab.metrics import corrected_resampled_t, paired_over_images
from transferlab.study import Frozen, Study
from transferlab.train import Settings, TrainResult, evaluate

STUDYS = Settings()  # the study's, with today's views
ABLATED = (
    Pair(dataset=FACES.name, model="resnet50"),
    Pair(dataset=FACES.name, model="densenet121"),
    Pair(dataset=INSECTS.name, model="efficientnet_lite0"),
)
UNTRAINED = (ABLATED[0], ABLATED[2])  # also from random weights
RANKED = ("vit", "efficientnet_b3", "efficientnet_b0")  # on the insects, in the study's order
VARIANTS = {  # by name: what differs from the study's settings; views=0 is the clean view alone
    "study": {},
    "no dropout": {"dropout": 0.0},
    "no augmentation": {"views": 0},
}
IN_THE_STUDY = f"in the study's {STUDYS.epochs} epochs"
PICKED = "at the lowest validation loss"


# ---- what is trained -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training:
    """The study's head on the folds of one dataset, in one variant."""

    pair: Pair
    weights: str = "pretrained"  # or "random"
    variant: str = "study"  # of VARIANTS

    def __str__(self) -> str:
        return f"{self.pair.dataset}/{self.pair.model}/{self.weights}/{self.variant}"


def list_answering(pretrained: Collection[str]) -> list[Training]:
    """What is trained as the study does; `pretrained`: the backbones that have such weights."""
    ranked = [Pair(dataset=INSECTS.name, model=name) for name in RANKED if name in pretrained]
    trainings = [Training(pair=pair) for pair in (*ABLATED, *ranked)]
    return trainings + [Training(pair=pair, weights="random") for pair in UNTRAINED]


def list_ended() -> list[Training]:
    """What is trained without stopping."""
    trainings = [Training(pair=pair, variant=variant) for pair in ABLATED for variant in VARIANTS]
    return trainings + [Training(pair=pair, weights="random") for pair in UNTRAINED]


def epochs_of(training: Training, horizon: int) -> int:
    """How many epochs it is trained for without stopping: of random weights nothing is claimed
    beyond the study's."""
    return STUDYS.epochs if training.weights == "random" else horizon


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Classes, uint8 [R, N], that are predicted for every image while it is held out."""

    head: np.ndarray  # by the head as the study trains it
    # By the exact probe on the same folds, refitted on the whole training fold; None of random
    # weights, about which nothing is claimed.
    probe: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What there is, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ended:
    """A training that never stopped."""

    curves: Curves
    picked: np.ndarray  # classes predicted, uint8 [R, N], at the lowest validation loss of all


def classes_of(predictions: Predictions) -> np.ndarray:
    """The classes predicted, uint8 [R, N]."""
    return predictions.probabilities.argmax(2).astype(np.uint8)


def ask_head(frozen: Frozen, study: Study, folds: Folds) -> Answers:
    """Asks the study's head."""
    return Answers(head=classes_of(predict_with_heads(frozen, study, folds)))


def ask_both(frozen: Frozen, study: Study, folds: Folds) -> Answers:
    """Asks the study's head and the exact probe, on the clean view."""
    by_probe = predict_with_probes(
        frozen.features.clean,
        study.image_set,
        folds,
        precision=study.machine.precision_of(0),
    )
    return replace(ask_head(frozen, study, folds), probe=classes_of(by_probe))


def curve_of(results: Sequence[TrainResult], name: str) -> np.ndarray:
    """One column of every fold's history, fp32 [F, E]."""
    curves = [[getattr(row, name) for row in result.history] for result in results]
    return np.array(curves, np.float32)


def train_to_end(frozen: Frozen, study: Study, folds: Folds, *, variant: str, epochs: int) -> Ended:
    """The study's head on every fold for so many epochs, in one of VARIANTS; kept views go in
    turn."""
    features = frozen.features
    clean = features.clean
    settings = replace(study.settings, patience=0, epochs=epochs, **VARIANTS[variant])
    trained = train_on_folds(
        replace(study, settings=settings),
        folds,
        lambda epoch: features.train(settings.view_of(epoch)),
        clean,
    )
    picked = np.zeros((folds.repeats, len(clean)), np.uint8)
    for head, fold in zip(trained.heads, folds, strict=True):
        evaluation = evaluate(head, clean[fold.test], study.labels(fold.test))
        picked[fold.repeat, fold.test] = evaluation.predictions.numpy()
    names = ("val_loss", "val_acc", "test_loss", "test_acc")
    curves = Curves(**{name: curve_of(trained.results, name) for name in names})
    return Ended(curves=curves, picked=picked)


# ---- what is made of it ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What was measured on held-out folds."""

    labels: dict[str, np.ndarray]  # by dataset, int [N]
    folds: dict[str, Folds]  # by dataset
    # By dataset: the most frequent class of the training fold that each image is held out from,
    # int [R, N].
    majority: dict[str, np.ndarray]
    answers: dict[Training, Answers]
    ended: dict[Training, Ended]

    def over_images(self, claim: Claim, first: np.ndarray, second: np.ndarray) -> Claim:
        """The claim that the first of two predictions, int [R, N], is right more often."""
        labels = self.labels[claim.data]
        right = (first == labels).astype(int)
        differences = right - (second == labels)
        return as_tested(claim, paired_over_images(differences), OVER_IMAGES)

    def over_folds(self, claim: Claim, differences: np.ndarray) -> Claim:
        """The claim that `differences` [F] over the folds are above zero on average."""
        test_share = 1 / (self.folds[claim.data].k - 1)
        return as_tested(claim, corrected_resampled_t(differences, test_share), OVER_FOLDS)

    @property
    def unfinished(self) -> dict[str, str]:
        """The trainings that have not come to their end, by name, and why."""
        reasons = {str(one): why_unfinished(ended.curves) for one, ended in self.ended.items()}
        return {name: reason for name, reason in reasons.items() if reason}


def claim_on(
    pair: Pair, claim: str, test: str, *, unit: str = "accuracy", needs: Sequence[Training] = ()
) -> Claim:
    """A claim about one pair of data and backbone, not judged yet."""
    names = tuple(str(training) for training in needs)
    return Claim(
        claim=claim, test=test, data=pair.dataset, model=pair.model, unit=unit, needs=names
    )


# ---- backbones -------------------------------------------------------------------------------


def judge_order(found: HeldOut, claim: str, better: Pair, worse: Pair) -> Claim:
    """Two backbones on the same data; undecided where weights are missing."""
    both = Pair(dataset=better.dataset, model=f"{better.model}, {worse.model}")
    first = found.answers.get(Training(pair=better))
    second = found.answers.get(Training(pair=worse))
    if not (first and second):
        return claim_on(both, claim, "none: pretrained weights are missing")
    test = f"accuracy of the first less the second's, {IN_THE_STUDY}"
    return found.over_images(claim_on(both, claim, test), first.head, second.head)


def judge_ranking(found: HeldOut) -> list[Claim]:
    """The backbones on the insects, each against the next one in the study's order."""
    pairs = [Pair(dataset=INSECTS.name, model=name) for name in RANKED]
    claims = []
    for better, worse in zip(pairs, pairs[1:]):
        said = f"{better.model} is more accurate than {worse.model}"
        claims.append(judge_order(found, said, better, worse))
    return claims


def judge_effect(found: HeldOut, pair: Pair) -> Claim:
    """A head on a frozen backbone against the most frequent class."""
    claim = claim_on(
        pair,
        "A frozen backbone with a new head is effective",
        f"accuracy less that of the most frequent class, {IN_THE_STUDY}",
    )
    answers = found.answers[Training(pair=pair)]
    return found.over_images(claim, answers.head, found.majority[pair.dataset])


def judge_probe(found: HeldOut, pair: Pair) -> Claim:
    """The exact probe against the study's head, on the same features."""
    claim = claim_on(
        pair,
        "The exact probe is more accurate than the study's head",
        f"accuracy of the probe less the head's, {IN_THE_STUDY}",
    )
    answers = found.answers[Training(pair=pair)]
    return found.over_images(claim, answers.probe, answers.head)


def judge_pretraining(found: HeldOut, pair: Pair) -> list[Claim]:
    """Pretrained weights against random ones."""
    pretrained = Training(pair=pair)
    random = Training(pair=pair, weights="random")
    helps = claim_on(
        pair, "Pretraining helps", f"accuracy less that from random weights, {IN_THE_STUDY}"
    )
    helps = found.over_images(helps, found.answers[pretrained].head, found.answers[random].head)
    return [helps, judge_speed_of_learning(found, pretrained, random)]


def judge_speed_of_learning(found: HeldOut, pretrained: Training, random: Training) -> Claim:
    """The epochs that pretrained weights save until the lowest validation loss that random ones
    come to in as many epochs as the study has."""
    theirs, ours = (
        found.ended[one].curves.first(STUDYS.epochs).val_loss for one in (random, pretrained)
    )
    level = theirs.min(axis=1)
    saved = epochs_to_reach(theirs, level) - epochs_to_reach(ours, level)
    never = int((ours.min(axis=1) > level).sum())
    counted = f"{never} of {len(level)} folds never get there and count {ours.shape[1]}"
    claim = claim_on(
        pretrained.pair,
        "Pretraining speeds up learning",
        "epochs to the lowest validation loss that random weights ever reach, theirs less those of "
        f"pretrained ones, {IN_THE_STUDY} ({counted})",
        unit="epochs",
    )
    return found.over_folds(claim, saved)


def judge_backbones(found: HeldOut) -> list[Claim]:
    """What the study says of backbones."""
    resnet, densenet = ABLATED[:2]
    claims = [judge_order(found, "DenseNet121 is more accurate than ResNet50", densenet, resnet)]
    claims += [judge_effect(found, pair) for pair in ABLATED]
    for pair in UNTRAINED:
        claims += judge_pretraining(found, pair)
    claims += judge_ranking(found)
    probed = [one.pair for one, answers in found.answers.items() if answers.probe is not None]
    return claims + [judge_probe(found, pair) for pair in probed]


# ---- over-fitting and stopping ---------------------------------------------------------------


def judge_over_fitting(found: HeldOut, pair: Pair) -> Claim:
    """Whether training on makes the head worse on images that it has not seen."""
    training = Training(pair=pair)
    curves = found.ended[training].curves
    lowest = curves.chosen(stop_never)
    claim = claim_on(
        pair,
        "The head over-fits despite augmentation",
        f"test log-loss after {curves.epochs} epochs less that {PICKED}",
        unit="log-loss",
        needs=[training],
    )
    rise = at_end(curves.test_loss) - at_epoch(curves.test_loss, lowest)
    return found.over_folds(claim, rise)


def judge_variant(found: HeldOut, pair: Pair, variant: str, what: str) -> list[Claim]:
    """What is lost without dropout, or without augmentation."""
    both = [Training(pair=pair), Training(pair=pair, variant=variant)]
    with_it, without = (found.ended[one] for one in both)
    epochs = with_it.curves.epochs
    mitigates = claim_on(
        pair,
        f"{what} mitigates over-fitting",
        f"test log-loss after {epochs} epochs, without it less with it",
        unit="log-loss",
        needs=both,
    )
    loss = at_end(without.curves.test_loss) - at_end(with_it.curves.test_loss)
    helps = claim_on(
        pair,
        f"{what} makes the head more accurate",
        f"accuracy with it less without, each {PICKED} of {epochs} epochs",
        needs=both,
    )
    return [
        found.over_folds(mitigates, loss),
        found.over_images(helps, with_it.picked, without.picked),
    ]


def judge_early_stopping(found: HeldOut, pair: Pair) -> list[Claim]:
    """The epoch that our rule chooses against the last one."""
    training = Training(pair=pair)
    curves = found.ended[training].curves
    chosen = curves.chosen(stop_without_gain)
    rule = f"patience {PATIENCE} and no other limit"
    mitigates = claim_on(
        pair,
        "Early stopping mitigates over-fitting",
        f"test log-loss after {curves.epochs} epochs less that at the epoch chosen, {rule}",
        unit="log-loss",
        needs=[training],
    )
    loss = at_end(curves.test_loss) - at_epoch(curves.test_loss, chosen)
    helps = claim_on(
        pair,
        "Early stopping makes the head more accurate",
        f"accuracy at the epoch chosen less that after {curves.epochs} epochs, {rule}",
        needs=[training],
    )
    accuracy = at_epoch(curves.test_acc, chosen) - at_end(curves.test_acc)
    return [found.over_folds(mitigates, loss), found.over_folds(helps, accuracy)]


def judge_rules(found: HeldOut, pair: Pair) -> list[Claim]:
    """Our stopping rule against the study's, and what choosing by it flatters, in as many epochs
    as the study has."""
    curves = found.ended[Training(pair=pair)].curves.first(STUDYS.epochs)
    ours = curves.chosen(stop_without_gain)
    theirs = curves.chosen(stop_after_rises)
    rule = f"Stopping after {PATIENCE} epochs without a new best"
    better = claim_on(
        pair,
        f"{rule} is better than after {PATIENCE} rises in a row",
        f"accuracy, ours less that after rises, {IN_THE_STUDY}",
    )
    gain = at_epoch(curves.test_acc, ours) - at_epoch(curves.test_acc, theirs)
    fewer = claim_on(
        pair,
        f"{rule} takes fewer epochs",
        f"epochs, after rises less ours, {IN_THE_STUDY}",
        unit="epochs",
    )
    saved = curves.trained(stop_after_rises) - curves.trained(stop_without_gain)
    flatters = claim_on(
        pair,
        "Choosing the epoch flatters the accuracy",
        "validation accuracy at the epoch chosen by validation loss less test accuracy there, "
        f"{IN_THE_STUDY}",
    )
    optimism = at_epoch(curves.val_acc, ours) - at_epoch(curves.test_acc, ours)
    return [
        found.over_folds(better, gain),
        found.over_folds(fewer, saved),
        found.over_folds(flatters, optimism),
    ]


def judge_training(found: HeldOut, pair: Pair) -> list[Claim]:
    """What the study says of over-fitting and of what helps against it, for one backbone."""
    return [
        judge_over_fitting(found, pair),
        *judge_variant(found, pair, "no dropout", "Dropout"),
        *judge_variant(found, pair, "no augmentation", "Augmentation"),
        *judge_early_stopping(found, pair),
        *judge_rules(found, pair),
    ]


def as_arrays(found: HeldOut) -> Mapping[str, np.ndarray]:
    """All that the verdicts on held-out folds rest on: by dataset its labels and, as uint8 [R, N],
    the fold that each image is the test image of; by training what it answered and its curves."""
    arrays: dict[str, np.ndarray] = {}
    for dataset, labels in found.labels.items():
        number = np.zeros((found.folds[dataset].repeats, len(labels)), np.uint8)
        for fold in found.folds[dataset]:
            number[fold.repeat, fold.test] = fold.number
        arrays[f"{dataset}/labels"] = labels
        arrays[f"{dataset}/fold"] = number
        arrays[f"{dataset}/majority"] = found.majority[dataset].astype(np.uint8)
    for training, answers in found.answers.items():
        arrays |= {f"{training}/{name}": values for name, values in answers.arrays.items()}
    for training, ended in found.ended.items():
        arrays[f"{training}/picked"] = ended.picked
        arrays |= {f"{training}/{name}": values for name, values in vars(ended.curves).items()}
    return arrays

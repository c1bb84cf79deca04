"""What the study found, put to the test: a row a claim, with our test of it and the verdict.

    python -m benchmarks.findings --data DIR --weights DIR [--folds 5] [--repeats 5] [--epochs N]
                                  [--out DIR] [--cache-dir DIR]

Held-out protocol on both datasets: stratified folds, 20 % of each training fold choose the epoch,
the test fold decides nothing. Every head trains for all 30 epochs with its curves kept; stopping
rules are applied to the curves afterwards, so that with and without them is the same training.
Ablations: without dropout (p = 0), without augmentation (the clean view in every epoch), without
early stopping (the weights of epoch 30). Tested by the corrected resampled t over folds: a claim
holds where the whole 95 % interval lies on its side, fails where it lies on the other, is undecided
else, and where pretrained weights are missing. Speed: forwards of both backbones in turn, 95 %
quantiles of the ratio.

`model.train()` on a "frozen" backbone: the study's split, one seed, `--epochs` epochs (default 30;
10 will do on a slow CPU). No parameter of it trains, but its BatchNorm normalises by the batch and
moves its statistics; against the same epochs with the backbone in eval mode.

Written: result/benchmarks/findings_{stamp}.csv, a row a claim and pair of data and backbone;
findings_{stamp}.json with the curves, machine, versions and weights; img/findings_{stamp}.png. What
an interrupted run has measured is not measured again.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.common import (
    STUDIED,
    Pair,
    all_images,
    benchmark_store,
    check_weights,
    code_digest,
    feature_cache,
    freeze_planned,
    list_sources,
    make_parser,
    make_point,
    make_study,
    measured_values,
    point_key,
    run_command,
    time_forwards,
    write_results,
)
from transferlab.backbones import (
    classifier_name,
    count_parameters,
    create_backbone,
    fold_batchnorm,
    split_at,
    split_features,
)
from transferlab.commands.options import add_cache
from transferlab.data import Folds
from transferlab.datasets import FACES, INSECTS
from transferlab.errors import UserError
from transferlab.heldout import make_folds, train_on_folds, training_part
from transferlab.machine import Machine, autocast, this_machine
from transferlab.metrics import corrected_resampled_t, mcnemar_p
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store
from transferlab.study import Frozen, Study, freeze_backbone, train_study
from transferlab.techniques import study_head
from transferlab.train import Epoch, Settings, TrainData, evaluate, train

NAME = "findings"
SETTINGS = Settings()
PATIENCE = SETTINGS.patience
RIVALS = ("resnet50", "densenet121")  # the study's first two, compared in speed and size
ABLATED = (
    Pair(dataset=FACES.name, model="resnet50"),
    Pair(dataset=FACES.name, model="densenet121"),
    Pair(dataset=INSECTS.name, model="efficientnet_lite0"),
)
UNTRAINED = (ABLATED[0], ABLATED[2])  # also from random weights
RANKED = ("vit", "efficientnet_b3", "efficientnet_b0")  # on the insects, in the study's order
VARIANTS = ("study", "no dropout", "no augmentation")
MARKERS = {"holds": (BLUE, "o"), "fails": (ORANGE, "X"), "undecided": (GREY, "s")}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    folds: int
    repeats: int
    epochs: int  # in both modes of a frozen backbone
    cache_dir: str


# ---- stopping rules --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where a rule ends a training."""

    chosen: int  # the epoch of the lowest validation loss so far, from 0
    trained: int  # epochs


Rule = Callable[[Sequence[float]], Stop]  # validation losses [E] -> where it stops


def stop_at(val_loss: Sequence[float], trained: int) -> Stop:
    """What is chosen after so many epochs: the lowest validation loss, the earliest on ties."""
    chosen = np.argmin(val_loss[:trained])
    return Stop(chosen=int(chosen), trained=trained)


def stop_without_gain(val_loss: Sequence[float], patience: int = PATIENCE) -> Stop:
    """Our rule: stops when `patience` epochs in a row bring no new best."""
    for epoch in range(len(val_loss)):
        stop = stop_at(val_loss, epoch + 1)
        if epoch - stop.chosen >= patience:
            return stop
    return stop_at(val_loss, len(val_loss))


def stop_after_rises(val_loss: Sequence[float], rises: int = PATIENCE) -> Stop:
    """The study's rule: stops when the loss has risen `rises` times in a row."""
    in_a_row = 0
    for epoch in range(1, len(val_loss)):
        rose = val_loss[epoch] > val_loss[epoch - 1]
        in_a_row = in_a_row + 1 if rose else 0
        if in_a_row >= rises:
            return stop_at(val_loss, epoch + 1)
    return stop_at(val_loss, len(val_loss))


def stop_never(val_loss: Sequence[float]) -> Stop:
    """Trains to the end."""
    return stop_at(val_loss, len(val_loss))


# ---- curves on folds -------------------------------------------------------------------------

Curve = tuple[float, ...]  # a value an epoch


@dataclass(frozen=True, kw_only=True)
class Training:
    """The study's head on the folds of one dataset, in one variant."""

    pair: Pair
    weights: str = "pretrained"  # or "random"
    variant: str = "study"  # of VARIANTS

    def __str__(self) -> str:
        return f"{self.pair.dataset}/{self.pair.model}/{self.weights}/{self.variant}"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A training on every fold [F], for all epochs."""

    val_loss: tuple[Curve, ...]
    test_loss: tuple[Curve, ...]
    test_acc: tuple[Curve, ...]
    # Accuracy on the clean view of the images it trained on, at the epoch of the lowest validation
    # loss.
    clean_acc: Curve


def variant_settings(settings: Settings, variant: str) -> Settings:
    """The settings of a variant, without early stopping."""
    settings = replace(settings, patience=0)
    return replace(settings, dropout=0.0) if variant == "no dropout" else settings


def curve_of(history: Iterable[Epoch], name: str) -> Curve:
    """One column of a history."""
    return tuple(getattr(row, name) for row in history)


def train_curves(frozen: Frozen, study: Study, folds: Folds, variant: str) -> Curves:
    """The study's head on every fold for all epochs."""
    features = frozen.features
    clean = features.clean
    settings = variant_settings(study.settings, variant)

    def view_of(epoch: int) -> torch.Tensor:
        view = settings.view_of(epoch)
        return clean if variant == "no augmentation" or view == 0 else features.train(view)

    trained = train_on_folds(replace(study, settings=settings), folds, view_of, clean)
    seen = []
    for head, fold in zip(trained.heads, folds):
        evaluation = evaluate(head, clean[fold.train], study.labels(fold.train))
        seen.append(evaluation.accuracy)
    histories = [result.history for result in trained.results]
    return Curves(
        val_loss=tuple(curve_of(history, "val_loss") for history in histories),
        test_loss=tuple(curve_of(history, "test_loss") for history in histories),
        test_acc=tuple(curve_of(history, "test_acc") for history in histories),
        clean_acc=tuple(seen),
    )


def stops_of(curves: Curves, rule: Rule) -> list[Stop]:
    """Where a rule stops on every fold."""
    return [rule(losses) for losses in curves.val_loss]


def at_stop(values: Sequence[Curve], curves: Curves, rule: Rule = stop_without_gain) -> np.ndarray:
    """The value of every fold's curve at the epoch that a stopping rule chooses [F]."""
    stops = stops_of(curves, rule)
    return np.array([curve[stop.chosen] for curve, stop in zip(values, stops)])


def at_end(values: Sequence[Curve]) -> np.ndarray:
    """The value of every fold's curve in the last epoch [F]."""
    return np.array([curve[-1] for curve in values])


def chosen_epochs(curves: Curves) -> np.ndarray:
    """The epochs, counted from 1, that our stopping rule chooses [F]."""
    stops = stops_of(curves, stop_without_gain)
    return np.array([stop.chosen + 1.0 for stop in stops])


def trained_epochs(curves: Curves, rule: Rule) -> np.ndarray:
    """How many epochs a rule trains for [F]."""
    return np.array([stop.trained for stop in stops_of(curves, rule)])


def most_frequent(labels: torch.Tensor, folds: Folds) -> np.ndarray:
    """The accuracy on every test fold [F] of always naming its training fold's most frequent
    class."""
    shares = []
    for fold in folds:
        common = labels[training_part(fold)].mode().values
        right = labels[fold.test] == common
        shares.append(right.double().mean().item())
    return np.array(shares)


# ---- claims ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the study says, and what is left of it."""

    claim: str
    test: str
    data: str  # the dataset's name
    model: str  # one backbone, or two with a comma
    unit: str = "accuracy"
    value: float | None = None  # above zero where the claim is right
    low: float | None = None  # of its 95 % interval
    high: float | None = None
    p: float | None = None
    verdict: str  # "holds", "fails" or "undecided"

    def row(self) -> dict[str, Any]:
        """The claim as a row of a table, without what it has not."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        told = self.test
        if self.value is not None:
            interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
            told = f"{self.value:+.3f}{interval} {self.unit}"
        return f"{self.verdict:9s} {self.claim} ({self.model}): {told}"


def judge(low: float, high: float, threshold: float = 0.0) -> str:
    """The verdict on a claim that a value exceeds `threshold`, from its 95 % interval."""
    if low > threshold:
        return "holds"
    return "fails" if high < threshold else "undecided"


def judge_differences(
    claim: str,
    test: str,
    pair: Pair,
    differences: np.ndarray,
    *,
    folds: Folds,
    unit: str = "accuracy",
) -> Claim:
    """The claim that `differences` [F] over the folds are above zero on average."""
    found = corrected_resampled_t(differences, 1 / (folds.k - 1))
    return Claim(
        claim=claim,
        test=test,
        data=pair.dataset,
        model=pair.model,
        unit=unit,
        value=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        verdict=judge(found.low, found.high) if found.p < 0.05 else "undecided",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What was measured on held-out folds."""

    labels: dict[str, torch.Tensor]  # by dataset, int64 [N]
    folds: dict[str, Folds]  # by dataset
    curves: dict[Training, Curves]

    def accuracy(self, training: Training) -> np.ndarray:
        """The accuracy on every test fold [F] at the epoch that our stopping rule chooses."""
        curves = self.curves[training]
        return at_stop(curves.test_acc, curves)

    def judge(
        self, claim: str, test: str, pair: Pair, differences: np.ndarray, unit: str = "accuracy"
    ) -> Claim:
        """As `judge_differences`, on the folds of the pair's dataset."""
        folds = self.folds[pair.dataset]
        return judge_differences(claim, test, pair, differences, folds=folds, unit=unit)


def judge_rivals(found: HeldOut) -> Claim:
    """DenseNet121 against ResNet50 on the faces."""
    resnet, densenet = (found.accuracy(Training(pair=pair)) for pair in ABLATED[:2])
    return found.judge(
        "DenseNet121 is more accurate than ResNet50",
        "accuracy of DenseNet121 less ResNet50's",
        Pair(dataset=FACES.name, model="densenet121, resnet50"),
        densenet - resnet,
    )


def judge_effect(found: HeldOut, pair: Pair) -> Claim:
    """A head on a frozen backbone against the most frequent class."""
    floor = most_frequent(found.labels[pair.dataset], found.folds[pair.dataset])
    above = found.accuracy(Training(pair=pair)) - floor
    return found.judge(
        "A frozen backbone with a new head is effective",
        "accuracy less that of the most frequent class",
        pair,
        above,
    )


def judge_pretraining(found: HeldOut, pair: Pair) -> list[Claim]:
    """Pretrained weights against random ones."""
    pretrained = Training(pair=pair)
    random = Training(pair=pair, weights="random")
    gain = found.accuracy(pretrained) - found.accuracy(random)
    later = chosen_epochs(found.curves[random]) - chosen_epochs(found.curves[pretrained])
    return [
        found.judge("Pretraining helps", "accuracy less that from random weights", pair, gain),
        found.judge(
            "Pretraining speeds up learning",
            "epochs to the best, from random weights less pretrained",
            pair,
            later,
            "epochs",
        ),
    ]


def judge_order(found: HeldOut, better: str, worse: str) -> Claim:
    """Two backbones on the insects, in the study's order; undecided where weights are missing."""
    claim = f"{better} is more accurate than {worse}"
    pair = Pair(dataset=INSECTS.name, model=f"{better}, {worse}")
    first, second = (
        Training(pair=Pair(dataset=INSECTS.name, model=model)) for model in (better, worse)
    )
    if first in found.curves and second in found.curves:
        difference = found.accuracy(first) - found.accuracy(second)
        return found.judge(claim, "accuracy of the first less the second's", pair, difference)
    return Claim(
        claim=claim,
        test="none: pretrained weights are missing",
        data=pair.dataset,
        model=pair.model,
        verdict="undecided",
    )


def judge_transfer(found: HeldOut) -> list[Claim]:
    """What the study says of backbones."""
    claims = [judge_rivals(found)]
    claims += [judge_effect(found, pair) for pair in ABLATED]
    for pair in UNTRAINED:
        claims += judge_pretraining(found, pair)
    claims += [judge_order(found, better, worse) for better, worse in zip(RANKED, RANKED[1:])]
    return claims


def judge_variant(found: HeldOut, pair: Pair, variant: str, what: str) -> list[Claim]:
    """What is lost without dropout, or without augmentation."""
    with_it = Training(pair=pair)
    without = Training(pair=pair, variant=variant)
    loss = at_end(found.curves[without].test_loss) - at_end(found.curves[with_it].test_loss)
    return [
        found.judge(
            f"{what} mitigates over-fitting",
            "test log-loss of the last epoch, without it less with it",
            pair,
            loss,
            "log-loss",
        ),
        found.judge(
            f"{what} makes the head more accurate",
            "accuracy with it less without, both stopping early",
            pair,
            found.accuracy(with_it) - found.accuracy(without),
        ),
    ]


def judge_early_stopping(found: HeldOut, pair: Pair) -> list[Claim]:
    """The epoch that our rule chooses against the last one."""
    curves = found.curves[Training(pair=pair)]
    loss = at_end(curves.test_loss) - at_stop(curves.test_loss, curves)
    accuracy = at_stop(curves.test_acc, curves) - at_end(curves.test_acc)
    return [
        found.judge(
            "Early stopping mitigates over-fitting",
            "test log-loss of the last epoch less that of the epoch chosen",
            pair,
            loss,
            "log-loss",
        ),
        found.judge(
            "Early stopping makes the head more accurate",
            "accuracy at the epoch chosen less that of the last",
            pair,
            accuracy,
        ),
    ]


def judge_rules(found: HeldOut, pair: Pair) -> list[Claim]:
    """Our stopping rule against the study's."""
    curves = found.curves[Training(pair=pair)]
    ours = at_stop(curves.test_acc, curves)
    theirs = at_stop(curves.test_acc, curves, stop_after_rises)
    longer = trained_epochs(curves, stop_after_rises)
    shorter = trained_epochs(curves, stop_without_gain)
    rule = "Stopping after 5 epochs without a new best"
    return [
        found.judge(
            f"{rule} is better than after 5 rises in a row", "accuracy", pair, ours - theirs
        ),
        found.judge(
            f"{rule} takes fewer epochs",
            "epochs, after 5 rises less ours",
            pair,
            longer - shorter,
            "epochs",
        ),
    ]


def judge_over_fitting(found: HeldOut, pair: Pair) -> list[Claim]:
    """What the study says of over-fitting and of what helps against it, for one backbone."""
    curves = found.curves[Training(pair=pair)]
    # Never stopping, as clean_acc is taken.
    on_test = at_stop(curves.test_acc, curves, stop_never)
    claim = found.judge(
        "The head over-fits despite augmentation",
        "accuracy on clean training images less that on test folds",
        pair,
        np.array(curves.clean_acc) - on_test,
    )
    return [
        claim,
        *judge_variant(found, pair, "no dropout", "Dropout"),
        *judge_variant(found, pair, "no augmentation", "Augmentation"),
        *judge_early_stopping(found, pair),
        *judge_rules(found, pair),
    ]


# ---- speed and size --------------------------------------------------------------------------

Seconds = dict[str, dict[str, list[float]]]  # an image's by precision and model, a round each


@torch.inference_mode()
def time_backbones(study: Study, weights: str, *, rounds: int = 15) -> Seconds:
    """The frozen parts of ResNet50 and DenseNet121 in turn, in each precision the study uses, on 32
    images."""
    machine = study.machine
    block = next(study.renderer.blocks(0, study.fold.train[:32]))
    images = block.to(machine.device).contiguous(memory_format=torch.channels_last)
    lowers = {}
    for name in RIVALS:
        model, _ = create_backbone(name, weights)
        lower, _ = split_features(model.to(machine.device))
        lowers[name] = fold_batchnorm(lower)
    timed: Seconds = {}
    for precision in dict.fromkeys([torch.float32, machine.precision_of(1)]):
        seconds: dict[str, list[float]] = {name: [] for name in lowers}
        for _ in range(rounds):
            for name, lower in lowers.items():
                rate = time_forwards(lower, images, 8, precision, machine=machine, seconds=0)
                seconds[name].append(1 / rate)
        timed[str(precision)] = seconds
    return timed


def judge_speed(timed: Seconds) -> list[Claim]:
    """The claim "ResNet50 is 15 % faster", once a precision: DenseNet121's seconds over ResNet50's,
    less 1."""
    claims = []
    for precision, seconds in timed.items():
        ratio = np.array(seconds["densenet121"]) / np.array(seconds["resnet50"])
        faster = ratio - 1
        low, high = np.quantile(faster, [0.025, 0.975])
        short = precision.removeprefix("torch.")
        claim = Claim(
            claim="ResNet50 is 15 % faster than DenseNet121",
            test=f"forwards in {short}, seconds of DenseNet121 over ResNet50's, less 1",
            data=FACES.name,
            model="resnet50, densenet121",
            unit="share",
            value=float(np.median(faster)),
            low=float(low),
            high=float(high),
            verdict=judge(low, high, 0.15),
        )
        claims.append(claim)
    return claims


def judge_size() -> Claim:
    """The claim "ResNet50 has fewer parameters": both as ImageNet classifiers."""
    resnet, densenet = (count_parameters(create_backbone(name, "none")[0]) for name in RIVALS)
    fewer = densenet - resnet
    return Claim(
        claim="ResNet50 has fewer parameters than DenseNet121",
        test=f"counted: {resnet:,} and {densenet:,}",
        data="",
        model="resnet50, densenet121",
        unit="parameters",
        value=fewer,
        verdict=judge(fewer, fewer),
    )


# ---- model.train() on a "frozen" backbone ----------------------------------------------------


class Casted(nn.Module):
    """A model whose forward runs in the precision of the machine."""

    def __init__(self, model: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.model = model
        self.machine = machine

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.machine, self.machine.precision_of(1)):
            return self.model(images).float()


@dataclass(frozen=True, kw_only=True)
class Modes:
    """A frozen backbone in eval mode ("eval"), and under `model.train()` as published ("train")."""

    correct: dict[str, tuple[bool, ...]]  # by mode: of the validation images
    history: dict[str, tuple[Epoch, ...]]  # by mode
    # Entries of the backbone's state, without the head's, that the second has changed.
    moved: tuple[str, ...]


def image_data(study: Study) -> TrainData:
    """What a model is trained on that takes whole images."""
    renderer = study.renderer
    fold = study.fold

    def images(view: int, index: torch.Tensor) -> torch.Tensor:
        return torch.cat([*renderer.blocks(view, index)])

    return TrainData(
        view_of=lambda epoch: images(study.settings.view_of(epoch), fold.train),
        labels=study.labels(fold.train),
        clean_x=images(0, fold.train),
        val_x=images(0, fold.val),
        val_y=study.labels(fold.val),
    )


def changed_entries(model: nn.Module, before: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The names of a state's entries, without the head's, that differ from those `before`."""
    head = f"{classifier_name(model)}."
    changed = []
    for name, tensor in model.state_dict().items():
        if not name.startswith(head) and not torch.equal(tensor, before[name]):
            changed.append(name)
    return tuple(changed)


def train_in_both_modes(planned: WeightsInfo, study: Study, weights: str) -> Modes:
    """A frozen backbone in both modes on the study's split.

    Both train the same head on the same views in the same order. Validation is in eval mode, so the
    second meets statistics there that have moved.

    Raises:
        UserError: as `freeze_planned`.
    """
    frozen = freeze_planned(planned, study, weights=weights)
    in_eval = train_study(frozen, study)
    val_labels = study.labels(study.fold.val)
    scored = evaluate(frozen.upper, frozen.features.clean[study.fold.val], val_labels)
    right_in_eval = tuple((scored.predictions == val_labels).tolist())
    model, info = create_backbone(planned.name, weights)
    check_weights(info, planned)
    study_head(model, study)
    whole = split_at(model.to(study.machine.device), "input")[1].requires_grad_(False)
    model.get_submodule(classifier_name(model)).requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    casted = Casted(whole, study.machine)
    data = image_data(study)
    in_train = train(casted, data, study.settings, seed=study.seed)
    right = evaluate(casted, data.val_x, data.val_y).predictions == data.val_y
    return Modes(
        correct={"eval": right_in_eval, "train": tuple(right.tolist())},
        history={"eval": in_eval.history, "train": in_train.history},
        moved=changed_entries(model, before),
    )


def judge_modes(correct: Mapping[str, Sequence[bool]]) -> Claim:
    """What `model.train()` does to a "frozen" backbone: accuracy in eval mode less that in train
    mode, on the same validation images; the verdict by the exact McNemar test."""
    in_eval = torch.tensor(correct["eval"])
    in_train = torch.tensor(correct["train"])
    p = mcnemar_p(in_eval, in_train)
    difference = in_eval.double().mean() - in_train.double().mean()
    value = difference.item()
    return Claim(
        claim='model.train() on a "frozen" backbone costs accuracy',
        test="eval mode less train mode, study's split, McNemar",
        data=FACES.name,
        model="resnet50",
        value=value,
        p=p,
        verdict=judge(value, value) if p < 0.05 else "undecided",
    )


# ---- the figure ------------------------------------------------------------------------------


def plot_findings(claims: Sequence[Claim], title: str) -> Figure:
    """The differences of accuracy with their intervals, in points, a line a claim and backbone;
    coloured by verdict."""
    shown = [one for one in claims if one.unit == "accuracy" and one.low is not None]
    shown.reverse()
    figure, axis = plt.subplots(figsize=(10, 1.5 + 0.3 * len(shown)), layout="constrained")
    for place, one in enumerate(shown):
        colour, marker = MARKERS[one.verdict]
        axis.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=2)
        axis.plot(100 * one.value, place, marker, color=colour, label=one.verdict)
    axis.axvline(0, color="black", linewidth=0.8)
    names = [f"{one.claim}: {one.model}" for one in shown]
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.set_xlabel("points of accuracy in favour of the claim, 95 % interval")
    handles, labels = axis.get_legend_handles_labels()
    by_label = dict(zip(labels, handles))
    figure.legend(
        by_label.values(),
        by_label.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(title, fontsize=8)
    return figure


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What everything is measured on."""

    options: Options
    studies: dict[str, Study]  # by dataset: of all its images
    folds: dict[str, Folds]  # by dataset
    split: Study  # the faces, split as the study did
    infos: dict[str, WeightsInfo]  # by backbone

    @property
    def machine(self) -> Machine:
        """The machine that measures."""
        return self.split.machine


def find_weights(weights: str) -> dict[str, WeightsInfo]:
    """What every backbone computes with.

    Raises:
        UserError: one of ABLATED has no pretrained weights; as `create_backbone`.
    """
    ablated = [pair.model for pair in ABLATED]
    infos = {name: create_backbone(name, weights)[1] for name in (*ablated, *RANKED)}
    for name in ablated:
        info = infos[name]
        if not info.measures_transfer:
            raise UserError(f"{name}: {info.source}; this measurement needs pretrained weights")
    return infos


def prepare(options: Options, machine: Machine, store: Store) -> Setup:
    """Loads the data and looks for the weights.

    Raises:
        UserError: as `all_images`, `find_weights` and `make_folds`.
    """
    studies = {
        name: all_images(options.data, dataset, SETTINGS, machine=machine, store=store)
        for name, dataset in STUDIED.items()
    }
    infos = find_weights(options.weights)
    sizes = {"k": options.folds, "repeats": options.repeats, "seed": 0}
    folds = {}
    for name, study in studies.items():
        images = study.image_set
        folds[name] = make_folds(images.labels, classes=images.classes, **sizes)
    settings = replace(SETTINGS, epochs=options.epochs)
    return Setup(
        options=options,
        studies=studies,
        folds=folds,
        split=make_study(options.data, settings=settings, machine=machine, store=store),
        infos=infos,
    )


def list_trainings(infos: Mapping[str, WeightsInfo]) -> list[Training]:
    """All that is trained: what has no pretrained weights only as far as it means something."""
    trainings = []
    for pair in ABLATED:
        trainings += [Training(pair=pair, variant=variant) for variant in VARIANTS]
    trainings += [Training(pair=pair, weights="random") for pair in UNTRAINED]
    for name in RANKED:
        if infos[name].measures_transfer:
            pair = Pair(dataset=INSECTS.name, model=name)
            trainings.append(Training(pair=pair))
    return trainings


def describe(setup: Setup) -> BenchmarkRecord:
    """The record, before anything is measured."""
    options = setup.options
    data = [data_info(one.image_set, one.renderer.augmentation) for one in setup.studies.values()]
    return BenchmarkRecord(
        kind=NAME,
        data=tuple(data),
        weights=tuple(setup.infos.values()),
        machine=setup.machine,
        settings=SETTINGS,
        seed=0,
        facts={"folds": options.folds, "repeats": options.repeats, "epochs": options.epochs},
    )


def training_measures(setup: Setup) -> dict[str, Callable[[], Any]]:
    """How each training is measured, by its name."""

    @functools.lru_cache(maxsize=1)  # one at a time stays in memory
    def frozen_on(pair: Pair, kind: str) -> Frozen:
        study = setup.studies[pair.dataset]
        if kind == "random":
            return freeze_backbone(pair.model, study, weights="none")
        return freeze_planned(setup.infos[pair.model], study, weights=setup.options.weights)

    def measure(training: Training) -> dict[str, Any]:
        pair = training.pair
        frozen = frozen_on(pair, training.weights)
        study = setup.studies[pair.dataset]
        curves = train_curves(frozen, study, setup.folds[pair.dataset], training.variant)
        return asdict(curves)

    trainings = list_trainings(setup.infos)
    return {str(training): functools.partial(measure, training) for training in trainings}


def make_plan(setup: Setup, record: BenchmarkRecord) -> Plan:
    """A point a training, then speed and modes."""
    weights = setup.options.weights
    code = code_digest(__file__)

    def point(name: str, measure: Callable[[], Any]) -> Point:
        key = point_key(NAME, name, used=record, machine=record.machine, code=code)
        return make_point(key, measure)

    def modes() -> dict[str, Any]:
        return asdict(train_in_both_modes(setup.infos["resnet50"], setup.split, weights))

    measures = training_measures(setup)
    measures["speed"] = functools.partial(time_backbones, setup.split, weights)
    measures["modes"] = modes
    points = [point(name, measure) for name, measure in measures.items()]
    return Plan(points=tuple(points), store=benchmark_store(setup.options.out, NAME))


def measure_all(plan: Plan, trainings: Sequence[Training]) -> dict[str, Any]:
    """The values of every point by its name; says what each training has reached."""
    named = {str(training): training for training in trainings}
    values = {}
    for point, value in measured_values(plan):
        values[point.name] = value
        if point.name in named:
            training = named[point.name]
            curves = from_plain(Curves, value)
            reached = at_stop(curves.test_acc, curves).mean()
            what = f"{training.pair}, {training.weights}, {training.variant}"
            print(f"{what}: {reached:.1%} on test folds", flush=True)
    return values


def judge_all(setup: Setup, values: Mapping[str, Any]) -> list[Claim]:
    """Every claim, from the values of every point."""
    trainings = list_trainings(setup.infos)
    found = HeldOut(
        labels={name: study.image_set.labels for name, study in setup.studies.items()},
        folds=setup.folds,
        curves={one: from_plain(Curves, values[str(one)]) for one in trainings},
    )
    claims = judge_transfer(found)
    claims += judge_speed(values["speed"])
    claims.append(judge_size())
    for pair in ABLATED:
        claims += judge_over_fitting(found, pair)
    claims.append(judge_modes(values["modes"]["correct"]))
    return claims


def figure_title(setup: Setup) -> str:
    """What a reader has to know."""
    options = setup.options
    counted = f"{options.folds} x {options.repeats}, {SETTINGS.views} views"
    heading = f"held-out test folds, {counted}, {setup.machine.processor}"
    return f"{heading}\n{list_sources(setup.infos.values())}"


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    numbers = {"folds": 5, "repeats": 5, "epochs": SETTINGS.epochs}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    with feature_cache(options.cache_dir) as store:
        setup = prepare(options, machine or this_machine(), store)
        record = describe(setup)
        plan = make_plan(setup, record)
        trainings = list_trainings(setup.infos)
        values = measure_all(plan, trainings)
    claims = judge_all(setup, values)
    for claim in claims:
        print(claim)
    measured = {
        "curves": {str(training): values[str(training)] for training in trainings},
        "speed": values["speed"],
        "modes": values["modes"],
    }
    record = replace(record, facts=record.facts | measured)
    rows = [claim.row() for claim in claims]
    write_results(options.out, rows, record, plot_findings(claims, figure_title(setup)), plan)
    return 0


if __name__ == "__main__":
    run_command(main)

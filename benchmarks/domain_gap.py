"""How far are these images from what a backbone was pretrained on? Its features before any
training, and what training moves.

    python -m benchmarks.domain_gap --data DIR --weights DIR [--models NAME ...] [--epochs N]
                                    [--out DIR] [--cache-dir DIR]

features   Of every backbone whose pretrained weights are at hand, on both datasets, clean view,
           fp32: accuracy of k-NN (k = 5, features standardised inside the fold, 5 stratified folds
           x 5) with its 95 % interval over images, and LogME, the log evidence of a Bayesian linear
           regression from the features to each class, per image, mean over classes (You et al.
           2021, ICML, section 4). No head is trained.
cka        ResNet50 on the manga faces, EfficientNet-Lite0 on ants and bees: the last stage and all
           behind it train on the study's training images (Adam 1e-4, patience 5, at most `--epochs`
           epochs, a fresh view in each); debiased linear CKA of every stage (means over places)
           before with every stage after, on the validation images.

Descriptive: whether any of it predicts the order of accuracies can be asked of a dozen checkpoints,
not of these few.
Written: result/benchmarks/domain_gap_{stamp}.csv, .json and img/domain_gap_{stamp}.png. What an
interrupted run has measured is not measured again.
"""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import BayesianRidge
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.common import (
    FRESH_VIEWS,
    STUDIED,
    WITH_WEIGHTS,
    Pair,
    add_models,
    all_images,
    benchmark_store,
    check_weights,
    code_digest,
    feature_cache,
    find_weights,
    freeze_planned,
    join_plans,
    list_sources,
    make_parser,
    make_point,
    make_study,
    measured_values,
    point_key,
    run_command,
    write_results,
)
from transferlab.backbones import (
    create_backbone,
    fold_batchnorm,
    normalize,
    split_at,
)
from transferlab.commands.options import add_cache
from transferlab.data import Folds
from transferlab.datasets import FACES, INSECTS
from transferlab.features import extract_large
from transferlab.heldout import make_folds, predict_with
from transferlab.machine import Machine, this_machine
from transferlab.metrics import bootstrap_interval, debiased_cka
from transferlab.plan import Plan, Point
from transferlab.plots import BLUE, ORANGE
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store
from transferlab.study import Frozen, Study
from transferlab.techniques import TUNING_RATE, study_head
from transferlab.train import Settings, TrainData, TrainResult, train

NAME = "domain_gap"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    models: Sequence[str]
    epochs: int  # of partial fine-tuning
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A backbone that trains from one of its stages on."""

    pair: Pair
    cut: str  # that stage


TUNED = (
    Tuning(pair=Pair(dataset=FACES.name, model="resnet50"), cut="layer4"),
    Tuning(pair=Pair(dataset=INSECTS.name, model="efficientnet_lite0"), cut="blocks.6"),
)


# ---- features before any training ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """What a backbone's features say of one dataset."""

    n: int  # images
    features: int  # dimensions
    knn_accuracy: float  # 0 to 1
    knn_low: float  # of its 95 % interval over images
    knn_high: float
    logme: float  # see `log_evidence`


def log_evidence(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME of features [N, D] for labels int [N]: log evidence per image at the best precisions,
    mean over classes (one against all; You et al. 2021, ICML, equation 2). Higher is better;
    scikit-learn's BayesianRidge without priors maximises it."""
    flat = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    found = []
    with threadpool_limits(1):  # sums in one order
        for label in np.unique(labels):
            ridge = BayesianRidge(
                fit_intercept=False, compute_score=True, max_iter=1000, tol=1e-6, **flat
            )
            target = labels == label
            ridge.fit(features, target.astype(float))
            found.append(ridge.scores_[-1] / len(labels))
    return float(np.mean(found))


def describe_features(frozen: Frozen, study: Study, folds: Folds) -> FeatureScores:
    """One backbone on one dataset."""
    clean = frozen.features.clean
    image_set = study.image_set
    labels = image_set.labels.numpy()
    predictions = predict_with([KNeighborsClassifier(5)], clean, image_set, folds)
    correct = predictions.probabilities.argmax(2) == labels
    by_image = correct.mean(0)
    interval = bootstrap_interval(by_image)
    return FeatureScores(
        n=len(labels),
        features=clean.shape[1],
        knn_accuracy=float(by_image.mean()),
        knn_low=interval.low,
        knn_high=interval.high,
        logme=log_evidence(clean.double().numpy(), labels),
    )


# ---- what training moves ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What partial fine-tuning has done."""

    stages: tuple[str, ...]  # S of them
    cka: tuple[tuple[float, ...], ...]  # [S, S]: a stage before with one after
    val_acc: float  # at the best epoch
    epochs: int  # trained


@torch.inference_mode()
def stage_means(model: nn.Module, blocks: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every stage of a timm model gives for blocks of uint8 images [n, 3, H, W], averaged over
    places -> {stage: [N, C]}."""
    names = [info["module"] for info in model.feature_info]
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(name: str, module: nn.Module, given: Any, output: torch.Tensor) -> None:
        places = (2, 3) if output.ndim == 4 else 1
        kept[name].append(output.mean(places).cpu())

    hooks = []
    for name in names:
        hook = model.get_submodule(name).register_forward_hook(functools.partial(keep, name))
        hooks.append(hook)
    device = next(model.parameters()).device
    model.eval()
    for block in blocks:
        model(normalize(model, block.to(device)))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def train_from(model: nn.Module, cut: str, study: Study) -> TrainResult:
    """Trains a model from `cut` on by the study's split."""
    machine = study.machine
    fold = study.fold
    settings = study.settings
    lower, upper = split_at(model, cut)
    folded = fold_batchnorm(lower)
    with tempfile.TemporaryDirectory() as folder:

        def activations(view: int, index: torch.Tensor) -> torch.Tensor:
            blocks = study.renderer.blocks(view, index)
            precision = machine.precision_of(view)
            return extract_large(
                folded, blocks, len(index), folder, machine=machine, precision=precision
            )

        data = TrainData(
            view_of=lambda epoch: activations(settings.view_of(epoch), fold.train),
            labels=study.labels(fold.train),
            clean_x=activations(0, fold.train),
            val_x=activations(0, fold.val),
            val_y=study.labels(fold.val),
        )
        return train(upper, data, settings, seed=study.seed)


def cka_matrix(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> tuple[tuple[float, ...], ...]:
    """Debiased CKA of every stage before with every stage after [S, S]."""
    lines = []
    for one in before.values():
        line = [debiased_cka(one, other) for other in after.values()]
        lines.append(tuple(line))
    return tuple(lines)


def tune_partly(study: Study, tuning: Tuning, planned: WeightsInfo, weights: str) -> Moved:
    """Trains everything from the cut on and compares the stages with those before.

    Raises:
        UserError: as `create_backbone` and `check_weights`.
    """
    model, info = create_backbone(planned.name, weights)
    check_weights(info, planned)
    study_head(model, study).to(study.machine.device)
    before = copy.deepcopy(model)
    result = train_from(model, tuning.cut, study)
    val = study.fold.val
    stages_before = stage_means(before, study.renderer.blocks(0, val))
    stages_after = stage_means(model, study.renderer.blocks(0, val))
    return Moved(
        stages=tuple(stages_before),
        cka=cka_matrix(stages_before, stages_after),
        val_acc=result.best.val_acc,
        epochs=len(result.history),
    )


# ---- the figure ------------------------------------------------------------------------------


def plot_neighbours(axis: Axes, part: pd.DataFrame, colour: str) -> None:
    """The k-NN accuracies of one dataset with their intervals, LogME beside each."""
    accuracy = 100 * part.knn_accuracy
    below = accuracy - 100 * part.knn_low
    above = 100 * part.knn_high - accuracy
    places = range(len(part))
    axis.errorbar(accuracy, places, xerr=[below, above], fmt="o", color=colour)
    names = [f"{row.model}\nLogME {row.logme:+.2f}" for row in part.itertuples()]
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xlabel("k-NN accuracy (%), 95 % interval")


def plot_cka(axis: Axes, tuning: Tuning, moved: Moved) -> None:
    """A CKA matrix, before in rows, after in columns."""
    axis.imshow(moved.cka, vmin=0, vmax=1, cmap="viridis")
    for i, line in enumerate(moved.cka):
        for j, value in enumerate(line):
            axis.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 0.6 else "black",
            )
    places = range(len(moved.stages))
    axis.set_xticks(places, moved.stages, rotation=45, fontsize=7)
    axis.set_yticks(places, moved.stages, fontsize=7)
    axis.set(xlabel="after", ylabel="before")
    pair = tuning.pair
    title = f"debiased CKA, {pair.model} trained from {tuning.cut}\n{pair.dataset}"
    axis.set_title(title, fontsize=9)


def plot_gap(table: pd.DataFrame, moved: Mapping[Tuning, Moved], title: str) -> Figure:
    """k-NN accuracies, a panel a dataset, and the CKA matrices below."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    for axis, dataset, colour in zip(axes[0], STUDIED, (BLUE, ORANGE)):
        part = table[table.dataset == dataset]
        plot_neighbours(axis, part.sort_values("knn_accuracy"), colour)
        axis.set_title(dataset)
    for axis, (tuning, found) in zip(axes[1], moved.items()):
        plot_cka(axis, tuning, found)
    figure.suptitle(title, fontsize=8)
    return figure


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What everything is measured on."""

    options: Options
    machine: Machine
    studies: dict[str, Study]  # by dataset: of all its images
    infos: dict[str, WeightsInfo]  # by backbone: of those with pretrained weights

    @property
    def pairs(self) -> list[Pair]:
        """Every backbone on every dataset."""
        return [Pair(dataset=data, model=name) for data in self.studies for name in self.infos]

    @property
    def tunings(self) -> list[Tuning]:
        """What is trained, of TUNED."""
        return [one for one in TUNED if one.pair.model in self.infos]


def prepare(options: Options, machine: Machine, store: Store) -> Setup:
    """Loads the data and looks for the weights.

    Raises:
        UserError: as `all_images` and `find_weights`.
    """
    studies = {
        name: all_images(options.data, dataset, FRESH_VIEWS, machine=machine, store=store)
        for name, dataset in STUDIED.items()
    }
    infos = find_weights(options.models, options.weights)
    return Setup(options=options, machine=machine, studies=studies, infos=infos)


def describe(setup: Setup) -> BenchmarkRecord:
    """The record, before anything is measured; its settings are those of partial fine-tuning."""
    epochs = setup.options.epochs
    data = [data_info(one.image_set, one.renderer.augmentation) for one in setup.studies.values()]
    return BenchmarkRecord(
        kind=NAME,
        data=tuple(data),
        weights=tuple(setup.infos.values()),
        machine=setup.machine,
        settings=replace(FRESH_VIEWS, epochs=epochs, views=epochs, lr=TUNING_RATE),
        facts={"epochs": epochs},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Plans:
    """What is measured, part by part."""

    features: Plan  # a point a pair
    tunings: Plan  # a point a tuning

    @property
    def whole(self) -> Plan:
        """All of it."""
        return join_plans(self.features, self.tunings)


def features_of(setup: Setup, pair: Pair) -> FeatureScores:
    """One backbone's features of one dataset."""
    study = setup.studies[pair.dataset]
    images = study.image_set
    folds = make_folds(images.labels, k=5, repeats=5, seed=0, classes=images.classes)
    planned = setup.infos[pair.model]
    frozen = freeze_planned(planned, study, weights=setup.options.weights)
    return describe_features(frozen, study, folds)


def tuned_on_split(setup: Setup, settings: Settings, tuning: Tuning) -> Moved:
    """One partial fine-tuning on the study's split."""
    data = setup.options.data
    dataset = STUDIED[tuning.pair.dataset]
    study = make_study(data, dataset=dataset, settings=settings, machine=setup.machine)
    planned = setup.infos[tuning.pair.model]
    return tune_partly(study, tuning, planned, setup.options.weights)


def make_plans(setup: Setup, record: BenchmarkRecord) -> Plans:
    """A point a pair, and a point a tuning."""
    store = benchmark_store(setup.options.out, NAME)
    code = code_digest(__file__)

    def point(name: str, measure: Callable[[], Any]) -> Point:
        key = point_key(NAME, name, used=record, machine=record.machine, code=code)
        return make_point(key, lambda: asdict(measure()))

    features = [
        point(f"features: {pair}", functools.partial(features_of, setup, pair))
        for pair in setup.pairs
    ]
    tunings = [
        point(f"cka: {one.pair}", functools.partial(tuned_on_split, setup, record.settings, one))
        for one in setup.tunings
    ]
    return Plans(
        features=Plan(points=tuple(features), store=store),
        tunings=Plan(points=tuple(tunings), store=store),
    )


def measure_features(pairs: Sequence[Pair], plan: Plan) -> dict[Pair, FeatureScores]:
    """What the features of every pair say; prints it."""
    found = {}
    for pair, (_, values) in zip(pairs, measured_values(plan)):
        scores = from_plain(FeatureScores, values)
        told = f"k-NN {scores.knn_accuracy:.1%}, LogME {scores.logme:.3f}"
        print(f"{pair}: {told}", flush=True)
        found[pair] = scores
    return found


def measure_tunings(tunings: Sequence[Tuning], plan: Plan) -> dict[Tuning, Moved]:
    """What every tuning moves; prints it."""
    found = {}
    for tuning, (_, values) in zip(tunings, measured_values(plan)):
        moved = from_plain(Moved, values)
        last = f"CKA of the last stage {moved.cka[-1][-1]:.2f}"
        print(f"{tuning.pair} from {tuning.cut}: validation {moved.val_acc:.1%}; {last}")
        found[tuning] = moved
    return found


def feature_rows(found: Mapping[Pair, FeatureScores]) -> list[dict[str, Any]]:
    """A row a pair."""
    return [
        {"part": "features", **asdict(pair), **asdict(scores)} for pair, scores in found.items()
    ]


def cka_rows(found: Mapping[Tuning, Moved]) -> list[dict[str, Any]]:
    """A row a tuning and pair of stages."""
    rows = []
    for tuning, moved in found.items():
        for before, line in zip(moved.stages, moved.cka):
            for after, value in zip(moved.stages, line):
                stages = {"before": before, "after": after, "cka": value}
                rows.append({"part": "cka", **asdict(tuning.pair), **stages})
    return rows


def tuning_facts(found: Mapping[Tuning, Moved]) -> list[dict[str, Any]]:
    """What the record says of every tuning."""
    facts = []
    for tuning, moved in found.items():
        facts.append({**asdict(tuning.pair), "cut": tuning.cut, **asdict(moved)})
    return facts


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    add_models(parser, WITH_WEIGHTS)
    parser.add_argument(
        "--epochs", type=int, default=10, help="of partial fine-tuning (default: %(default)s)"
    )
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None, *, machine: Machine | None = None) -> int:
    """Measures, prints, writes -> exit code."""
    options = parse(arguments)
    with feature_cache(options.cache_dir) as store:
        setup = prepare(options, machine or this_machine(), store)
        record = describe(setup)
        plans = make_plans(setup, record)
        scores = measure_features(setup.pairs, plans.features)
        moved = measure_tunings(setup.tunings, plans.tunings)
    rows = feature_rows(scores) + cka_rows(moved)
    record = replace(record, facts=record.facts | {"tuned": tuning_facts(moved)})
    sources = list_sources(setup.infos.values())
    title = f"clean views, {setup.machine.processor}\n{sources}"
    write_results(
        options.out, rows, record, plot_gap(pd.DataFrame(rows), moved, title), plans.whole
    )
    return 0


if __name__ == "__main__":
    run_command(main)

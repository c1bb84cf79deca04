"""`transferlab audit`: look for faults in an image folder before anything is trained on it, in
words a student understands. Exit code 1 where something is serious."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..artifacts import new_stamp, prepare_out_dir
from ..audit.record import write_audit
from ..audit.result import audit_images, clean_features
from ..audit.words import describe_audit
from ..data import find_image_folder
from ..decoded import load_folder
from ..errors import UserError
from ..machine import this_machine
from ..pretrained import check_weights_place
from ..store import cache_bound, open_store, trim_to_bound
from .options import add_cache, add_out, add_weights

EXTRAS = ("cleanlab", "cleanvision", "imagehash")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "CLASS/* or train/CLASS/* and val/CLASS/*, e.g. audit ~/images; only read"
    parser.add_argument("folder", metavar="FOLDER", help=text)
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


def refuse_inside(folder: Path, place: Path) -> None:
    """Makes sure that nothing will be written into the folder that is audited.

    Raises:
        UserError: `place` lies in it.
    """
    if place.expanduser().resolve().is_relative_to(folder.resolve()):
        advice = "into which an audit never writes: give --out and --cache-dir elsewhere"
        raise UserError(f"{place} lies in {folder}, {advice}")


def run(options: argparse.Namespace) -> int:
    """Audits an image folder: prints the report, writes it -> exit code.

    1 where something is serious, else 0. Serious are unreadable files, placeholders, and
    duplicates, exact or near, across classes or across train and val.

    Raises:
        UserError: as `check_extras`, `refuse_inside`, `load_folder`, `check_weights_place`,
            `cache_bound` and `freeze_backbone`.
    """
    check_extras()
    root = Path(options.folder).expanduser()
    folder = find_image_folder(root)
    cache_bound()  # an unusable one is said before any time is spent
    refuse_inside(root, Path(options.out))
    if options.cache_dir:
        refuse_inside(root, Path(options.cache_dir))
    weights = check_weights_place(options.weights)
    out = prepare_out_dir(options.out)
    store = open_store(options.cache_dir)
    machine = this_machine()
    image_set = load_folder(folder)
    features = clean_features(
        image_set, model=options.model, weights=weights, machine=machine, store=store
    )
    trim_to_bound(store)
    audit = audit_images(image_set, features, folder=folder, root=root)
    print(describe_audit(audit))
    print("Written:")
    for path in write_audit(out, new_stamp(out), audit, machine):
        print(f"  {path}")
    return 1 if audit.serious else 0

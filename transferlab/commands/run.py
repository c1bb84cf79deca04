"""`transferlab run`: find data and weights, execute copies of the notebooks, show what came out.

What has been finished is not run again: an interrupted run that is started anew goes on.
"""

import argparse
import contextlib
import errno
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from safetensors import SafetensorError
from safetensors.torch import save_file

from .. import __version__
from ..artifacts import (
    cannot_write,
    prepare_out_dir,
    refuse_inside,
    reserved_stamp,
    seconds_text,
)
from ..backbones import build_from_state
from ..data import find_layout
from ..datasets import FACES, INSECTS, Dataset
from ..described import Given, write_summary
from ..download import DownloadError
from ..errors import UserError, printable
from ..files import publish, scratch_folder
from ..finished import (
    Finished,
    finish_pending,
    forget,
    hash_file,
    hash_images,
    hash_weights,
    lay_aside,
    prepare_records,
    publish_finished,
    read_finished,
)
from ..machine import this_machine
from ..notebook import NotYet
from ..pretrained import (
    BACKBONES,
    FoundWeights,
    check_weights_place,
    find_pretrained,
    read_found_weights,
)
from ..records import SCHEMA, StudyRecord, from_plain, read_plain
from ..train import Settings
from .options import add_out, add_seed, add_views, add_weights, positive


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """A notebook of the study."""

    number: str
    stem: str  # of its file
    dataset: Dataset
    backbones: tuple[str, ...]  # by the study's names
    skips_missing: bool = False  # whether it goes on without a backbone that has no weights


NOTEBOOKS = {
    one.number: one
    for one in (
        Notebook(
            number="01",
            stem="01_resnet50_ani_fine_tune",
            dataset=FACES,
            backbones=("resnet50",),
        ),
        Notebook(
            number="02",
            stem="02_densenet121_ani_fine_tune",
            dataset=FACES,
            backbones=("densenet121", "resnet50"),
        ),
        Notebook(
            number="03",
            stem="03_advanced_hymenoptera_analysis",
            dataset=INSECTS,
            backbones=("efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"),
            skips_missing=True,
        ),
    )
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    text = "one notebook, e.g. --only 01"
    parser.add_argument("--only", default="", choices=tuple(NOTEBOOKS), help=text)
    text = "a folder of images, e.g. --data ~/images (default: data/, a download, drawn pictures)"
    parser.add_argument("--data", default="", help=text)
    add_weights(parser)
    add_out(parser)
    text = "at most so many, e.g. --epochs 2 for a quick look (default: 30)"
    parser.add_argument("--epochs", type=positive, default=30, help=text)
    add_views(parser, str(Settings().views))
    add_seed(parser, 42)
    text = "also runs again what an earlier run with the same data and options has finished"
    parser.add_argument("--fresh", action="store_true", help=text)


# ---- what a notebook is given ----------------------------------------------------------------


def find_data(dataset: Dataset, data: str, data_root: Path) -> Path:
    """The image folder for a notebook: the user's, of several in it the dataset's own; else
    `data_root`, else a download, else (offline) a drawn stand-in.

    Raises:
        UserError: the user's folder holds no images; what was downloaded is wrong.
    """
    if data:
        return find_layout(data, dataset.name).folder
    if dataset.fetch is None or dataset.draw is None:
        raise UserError(f"{dataset.name} can be neither fetched nor drawn: give --data")
    try:
        return dataset.fetch(data_root)
    except DownloadError as error:
        folder = data_root / f"synthetic_{dataset.name}"
        print(error)
        print(f"-> no {dataset.name}: using drawn pictures instead, {printable(str(folder))}")
        print("   (marked synthetic everywhere)")
        return dataset.draw(folder)


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a link to `source`; a copy where links are not possible."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def link_weights(name: str, found: FoundWeights, path: Path, folder: Path) -> None:
    """Puts NAME.safetensors into `folder`, from the file `path` that was found, and NAME.json,
    which says where it comes from.

    Raises:
        UserError: the file is damaged or does not fit the backbone, which is better said here, by
            its own name, than by the notebook; `folder` cannot be written.
    """
    state = read_found_weights(found)
    model = build_from_state(BACKBONES.get(name, name), state, path)
    is_plain = path.suffix == ".safetensors" and state.keys() == model.state_dict().keys()
    note = {"source": found.source, "label": found.label, "kind": found.kind}
    target = folder / f"{name}.safetensors"
    try:
        if is_plain:
            link_file(path, target)
        else:
            save_file(model.state_dict(), target)
        target.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {target}: {error}") from error


def why_missing(found: FoundWeights) -> str:
    """Why no weights were found: what the source of random ones has in parentheses."""
    return found.source.partition("(")[2].removesuffix(")")


def gather_weights(
    names: Sequence[str], weights: str, folder: Path, *, skips_missing: bool = False
) -> str:
    """Gathers the weights of a notebook's backbones in `folder` -> the notebook's `weights`: that
    folder, or "none".

    It is "none" where nothing was found, and without `skips_missing` also where one is missing, so
    that no pretrained backbone is compared with a random one. What is missing is printed.

    Raises:
        UserError: as `find_pretrained` and `link_weights`.
    """
    if weights == "none":
        return weights
    found = {name: find_pretrained(name, weights) for name in names}
    missing = [name for name in names if found[name].path is None]
    is_random = len(missing) == len(names) if skips_missing else bool(missing)
    follows = "random initialisation" if is_random else "left out"
    for name in missing:
        print(f"no weights for {name} ({why_missing(found[name])}): {follows}", flush=True)
    if is_random:
        listed = ", ".join(names)
        print(f"-> {listed}: ALL AT RANDOM, MEASURES NO TRANSFER; give --weights DIR", flush=True)
        return "none"
    folder.mkdir(exist_ok=True)
    for name, one in found.items():
        if one.path:
            link_weights(name, one, one.path, folder)
    return str(folder)


def weight_parameters(one: Notebook, weights: str, folder: Path) -> dict[str, Any]:
    """The parameters of a notebook that say what its backbones compute with; `folder` is filled,
    and must stay until it is executed.

    Raises:
        UserError: as `gather_weights`.
    """
    place = gather_weights(one.backbones, weights, folder, skips_missing=one.skips_missing)
    parameters: dict[str, Any] = {"weights": place}
    if one.skips_missing:
        parameters["random_backbones"] = place == "none"
    return parameters


def what_it_depends_on(source: Path, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """All that decides what comes out of a notebook, as plain values: its text, its images, what it
    is given, and what it computes with. The processor does not count: a run may go on elsewhere.

    Raises:
        UserError: as `find_layout`.
    """
    machine = this_machine()
    weights = given["weights"]
    return {
        "notebook": hash_file(source),
        "images": hash_images(find_layout(folder)),
        "weights": weights if weights == "none" else hash_weights(Path(weights)),
        "parameters": {key: value for key, value in given.items() if key != "weights"},
        "computes": [machine.device, machine.precision, machine.versions],
        "transferlab": [__version__, SCHEMA],
    }


# ---- execution -------------------------------------------------------------------------------


@contextlib.contextmanager
def no_orphans() -> Iterator[None]:
    """Ends the processes that were started inside and still run, a kernel that is just starting
    among them, and those that they have started."""
    this = psutil.Process()
    earlier = this.children()
    try:
        yield
    finally:
        started = [child for child in this.children() if child not in earlier]
        with contextlib.suppress(psutil.Error):  # ended by itself
            started += [each for child in started for each in child.children(recursive=True)]
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(started, timeout=5)


def literal_path(path: Path) -> str:
    """A path as papermill takes it: it reads "{" in one as the name of a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def run_notebook(source: Path, copy: Path, parameters: dict[str, Any]) -> None:
    """Executes a notebook as `copy`, in its folder, its printed output shown as it comes.

    Raises:
        UserError: papermill is missing, or a cell fails; the copy holds everything up to there.
    """
    try:
        import papermill
        from jupyter_client.kernelspec import NoSuchKernel
        from nbclient.exceptions import DeadKernelError
    except ImportError:
        raise UserError("running the notebooks needs papermill: pip install papermill") from None
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it warns of is said here
    try:
        with no_orphans():
            papermill.execute_notebook(
                literal_path(source),
                literal_path(copy),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                cwd=str(copy.parent),
                shutdown_kernel="immediate",
                extra_arguments=["--log-level=ERROR"],  # it warns of how it is talked to
            )
    except papermill.PapermillExecutionError as error:
        kinds: set[type] = {UserError, NotYet, *UserError.__subclasses__()}
        ours = {kind.__name__ for kind in kinds}
        message = error.evalue if error.ename in ours else f"{error.ename}: {error.evalue}"
        raise UserError(f"{source.name} stopped: {message}") from error
    except DeadKernelError as error:
        advice = "as where memory runs out: fewer or smaller images, or a larger machine"
        raise UserError(f"{source.name} stopped: its process was ended ({advice})") from error
    except NoSuchKernel as error:
        raise UserError(f"no Jupyter kernel {error.name} here: pip install ipykernel") from error


# ---- what came out ---------------------------------------------------------------------------


def summarise(one: Notebook, own: Path, parameters: dict[str, Any]) -> None:
    """Writes the study's record of every run that a notebook has saved in its `own` folder.

    Raises:
        UserError: as `write_summary`.
    """
    given = Given(
        folder=Path(parameters["data_dir"]),
        weights=parameters["weights"],
        augmentation=one.dataset.augmentation(224),
    )
    for model in sorted((own / "model").glob("*_best_*.safetensors")):
        write_summary(model, given)


def result_row(record: StudyRecord) -> dict[str, str]:
    """A run as a row of the table for the terminal."""
    drawn = " (synthetic)" if record.dataset.synthetic else ""
    nothing = "" if record.backbone.measures_transfer else ": measures no transfer"
    return {
        "model": record.model,
        "accuracy": f"{record.best.val_acc:.1%}",
        "best epoch/epochs": f"{record.best.epoch}/{record.epochs_run}",
        "seconds": seconds_text(record),
        "data": f"{record.dataset.name}{drawn}",
        "weights": f"{record.backbone.source}{nothing}",
    }


def result_table(records: Sequence[StudyRecord]) -> str:
    """The runs as a table for the terminal."""
    table = pd.DataFrame([result_row(record) for record in records])
    return table.to_string(index=False, justify="left")


def keep_partial(copy: Path, out: Path) -> str:
    """Publishes what was executed of a notebook that has failed -> where, for a message."""
    try:
        with reserved_stamp(out) as stamp:
            kept = publish(copy, out / "result" / f"{copy.stem}_partial_{stamp}.ipynb")
    except (UserError, OSError):  # nothing was executed, or the disk is full: the cause is told
        return f" (its out folder: {out})"
    return f" (executed as far as that: {kept})"


def read_records(written: Sequence[Path]) -> list[StudyRecord]:
    """The records among the files that were written, the first first."""
    summaries = [path for path in written if "_summary_" in path.name]
    records = [from_plain(StudyRecord, read_plain(path)) for path in summaries]
    return sorted(records, key=lambda record: record.stamp)


# ---- the command -----------------------------------------------------------------------------


def find_notebooks(only: str, root: Path) -> dict[str, Path]:
    """The files of the notebooks that are to be run, by number.

    Raises:
        UserError: one of them is not there.
    """
    numbers = [only] if only else list(NOTEBOOKS)
    found = {}
    for number in numbers:
        path = root / f"{NOTEBOOKS[number].stem}.ipynb"
        if not path.is_file():
            advice = f"run from a clone of the repository, one of {list(NOTEBOOKS)}"
            raise UserError(f"no notebook {number} in {root}: {advice}")
        found[number] = path
    return found


def nameable(path: Path) -> Path:
    """A path that a notebook, which is text in UTF-8, can name.

    Raises:
        UserError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = printable(str(path))
        raise UserError(f"{name} is no UTF-8, which a notebook can name: rename it") from None
    return path


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A notebook that is to be run."""

    one: Notebook
    source: Path
    given: dict[str, Any]  # its parameters, but for its out folder
    depends_on: dict[str, Any]


def prepare(number: str, source: Path, options: argparse.Namespace, scratch: Path) -> Prepared:
    """Finds data and weights for a notebook; the latter stay in `scratch`.

    Raises:
        UserError: as `find_data`, `check_weights_place`, `weight_parameters` and `nameable`.
    """
    one = NOTEBOOKS[number]
    given = {"epochs": options.epochs, "seed": options.seed}
    if options.views is not None:
        given["views"] = options.views
    folder = nameable(find_data(one.dataset, options.data, Path("data")).resolve())
    given["data_dir"] = str(folder)
    weights = check_weights_place(options.weights)
    given |= weight_parameters(one, weights, scratch / number)
    depends_on = what_it_depends_on(source, folder, given)
    return Prepared(one=one, source=source, given=given, depends_on=depends_on)


def find_finished(prepared: Prepared, out: Path) -> Finished | None:
    """What an earlier run has finished of a notebook; says why where that cannot be used."""
    try:
        return read_finished(out, prepared.one.stem, prepared.depends_on)
    except ValueError as error:
        print(f"{prepared.one.stem} is run again: {printable(str(error))}", flush=True)
        return None


def execute(prepared: Prepared, out: Path) -> Finished:
    """Executes a notebook in a hidden folder and publishes what it has written.

    Raises:
        UserError: as `run_notebook` and `summarise`, with where what was executed is kept; the disk
            is full.
        OSError: the disk refuses a file for another reason.
    """
    try:
        with scratch_folder(out / "result") as scratch:
            own = prepare_out_dir(scratch / "out")
            copy = own / "result" / prepared.source.name
            try:
                run_notebook(prepared.source, copy, prepared.given | {"out_dir": ".."})
            except UserError as error:
                raise UserError(f"{error}{keep_partial(copy, out)}") from error
            summarise(prepared.one, own, prepared.given)
            try:
                return publish_finished(own, out, prepared.one.stem, prepared.depends_on)
            except (UserError, OSError) as error:
                with contextlib.suppress(OSError):  # else the next run publishes it
                    lay_aside(own, out, error)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # which do not say where
            raise cannot_write(out, error) from error
        raise


def run_missing(everything: Sequence[Prepared], out: Path) -> list[Finished]:
    """Executes what no earlier run has finished.

    Raises:
        UserError, OSError: as `execute`.
    """
    # All at once: not what others finish meanwhile.
    known = [find_finished(prepared, out) for prepared in everything]
    finished = []
    for prepared, before in zip(everything, known, strict=True):
        if before:
            done = f"was finished at {before.stamp}: not run again (--fresh runs it)"
            print(f"\n{prepared.one.stem} {done}", flush=True)
        else:
            folder = printable(prepared.given["data_dir"])
            print(f"\n== {prepared.one.stem} on {folder}", flush=True)
        finished.append(before or execute(prepared, out))
    return finished


def run(options: argparse.Namespace) -> int:
    """Executes the notebooks (all, or the one that is named) as copies under OUT/result and prints
    a table of the runs.

    Raises:
        UserError: as `find_notebooks`, `refuse_inside`, `prepare_records`, `prepare` and `execute`.
        OSError: the disk refuses a file.
    """
    sources = find_notebooks(options.only, Path(__file__).resolve().parents[2])
    if options.data:
        refuse_inside(options.out, options.data)
    out = nameable(prepare_out_dir(options.out).resolve())
    prepare_records(out)
    finish_pending(out)
    with scratch_folder(Path(tempfile.gettempdir())) as scratch:
        # All is found before any time is spent.
        everything = [
            prepare(number, source, options, scratch) for number, source in sources.items()
        ]
        for prepared in everything:
            refuse_inside(out, prepared.given["data_dir"])
        if options.fresh:
            for prepared in everything:
                forget(out, prepared.one.stem, prepared.depends_on)
        finished = run_missing(everything, out)
    written = sorted(out / file.path for one in finished for file in one.files)
    print(f"\n{result_table(read_records(written))}\n\n{len(written)} files written:")
    for path in written:
        print(f"  {printable(str(path.relative_to(out)))}")
    return 0

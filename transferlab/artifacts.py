"""The one writer: what a run leaves in model/, result/ and img/, and how it is read back."""

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from .backbones import build_model, load_all, make_head, normalize, read_weights, set_head
from .data import read_image
from .errors import UserError


def prepare_out_dir(out_dir):
    """Makes model/, result/ and img/ in `out_dir` before any time is spent -> Path.

    Raises:
        UserError: they cannot be written.
    """
    out_dir = Path(out_dir).expanduser()
    try:
        for name in ("model", "result", "img"):
            (out_dir / name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out_dir / name).close()
    except OSError as error:
        raise UserError(
            f"cannot write to {out_dir} ({error}): set out_dir to a folder of yours"
        ) from error
    return out_dir


def new_stamp(out_dir):
    """A time stamp YYYYmmdd_HHMMSS that no file in `out_dir` carries yet."""
    while any(Path(out_dir).glob(f"*/*_{(stamp := time.strftime('%Y%m%d_%H%M%S'))}.*")):
        time.sleep(0.2)
    return stamp


def write_new(path, write):
    """Calls `write(temporary)` and renames that to `path`, so that no half-written file is ever seen; returns the path.

    Raises:
        UserError: `path` exists already.
    """
    if path.exists():
        raise UserError(
            f"{path} exists already and is not overwritten: move it or choose another out_dir"
        )
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix="."
    ) as folder:  # gone again, whatever happens
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)
    return path


def machine():
    """What the run's times and numbers depend on: processor (as it names itself) or GPU, threads, versions."""
    cpu_info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = re.search(r"model name\s*: (.*)", cpu_info)
    cpu = f"{named[1] if named else sys.platform} ({torch.backends.cpu.get_cpu_capability()})"
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "timm", "scikit-learn", "pillow")
    }
    cpu = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {
        "processor": cpu,
        "threads": torch.get_num_threads(),
        "versions": versions | {"python": sys.version.split()[0]},
    }


def split_hash(image_set, train_index, val_index):
    """SHA-256 (hex) over the paths of the training and the validation images."""
    parts = [
        "\n".join(image_set.paths[int(i)] for i in index) for index in (train_index, val_index)
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def seconds_text(summary):
    """The seconds of a run, and whether an earlier run has computed its features (then they compare with no other run's)."""
    return f"{sum(summary['timings'].values()):.0f}{' (features from disk)' * ('features from disk' in summary['timings'])}"


def best_rows(result):
    """The rows of a history that a reader asks for: best (lowest validation loss), last, highest validation accuracy."""
    best, highest = (
        result.history[result.best_epoch - 1],
        max(result.history, key=lambda row: row["val_acc"]),
    )
    return {"best": best, "last": result.history[-1], "highest": highest}


def save_run(out_dir, model, result, provenance, *, stamp):
    """Writes the whole model with its best weights, the epochs as CSV and the summary as JSON -> {kind: Path}.

    `provenance` is a dict of plain values, as `describe_study` makes it. The summary lies beside the model too, since
    it says how to build it and feed it (classes, head, transforms, mean and std, weights).
    """
    name, history = (
        re.sub("[/:]", "_", provenance["model"]),
        result.history,
    )  # hf-hub:timm/... is no file name
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    summary = (
        provenance | machine() | {"stamp": stamp, "epochs_run": len(history)} | best_rows(result)
    )
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    files = {
        "model": (f"model/{name}_best_{stamp}.safetensors", lambda path: save_file(state, path)),
        "model_json": (
            f"model/{name}_best_{stamp}.json",
            lambda path: path.write_text(text, encoding="utf-8"),
        ),
        "results": (
            f"result/{name}_results_{stamp}.csv",
            pd.DataFrame(history).set_index("epoch").to_csv,
        ),
        "summary": (
            f"result/{name}_summary_{stamp}.json",
            lambda path: path.write_text(text, encoding="utf-8"),
        ),
    }
    return {kind: write_new(Path(out_dir) / file, write) for kind, (file, write) in files.items()}


def save_figure(figure, out_dir, name, *, stamp):
    """Writes a figure as img/NAME_STAMP.png -> Path."""
    path = Path(out_dir) / "img" / re.sub(r"[^\w.-]", "_", f"{name}_{stamp}.png")
    return write_new(
        path,
        lambda temporary: figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight"),
    )


def load_model(path):
    """Reads a saved model back -> (model in eval mode on the CPU, dict of its .json: classes, head, weights, ...).

    Raises:
        UserError: the file or its .json is missing, damaged, or they do not belong together.
    """
    described_path = Path(path).with_suffix(".json")
    try:
        described = json.loads(described_path.read_text(encoding="utf-8"))
        model = build_model(described["timm_name"])
        set_head(model, make_head(num_classes=len(described["classes"]), **described["head"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{described_path}, part of the saved model, is missing or damaged ({error!r})"
        ) from error
    load_all(model, read_weights(path), path)
    return model.eval(), described


@torch.inference_mode()
def predict_image(model, classes, transform, path):
    """Classifies one image file with a saved model on the CPU -> [(class, probability)], the most probable first.

    Raises:
        OSError, ValueError: the file cannot be read as an image; the message is the reason.
    """
    image, _ = read_image(Path(path))
    probabilities = model(normalize(model, transform(image)[None])).softmax(dim=1)[0]
    return sorted(zip(classes, probabilities.tolist()), key=lambda pair: -pair[1])


def find_matching_run(out_dir, model, provenance):
    """The latest summary of `model` in `out_dir` with the same data, split, weights kind, precision and settings as
    `provenance`; None where there is none. Files that are no such summary are skipped and named."""
    same = (
        "data_digest",
        "split_hash",
        "protocol",
        "settings",
        "seed",
        "transforms",
        "synthetic",
        "precision",
    )
    for path in sorted(
        (Path(out_dir) / "result").glob(re.sub("[/:]", "_", model) + "_summary_*.json"),
        reverse=True,
    ):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            differs = [
                key for key in provenance if summary[key] != provenance[key]
            ]  # a KeyError where one is missing
            if (
                not {*differs} & {*same}
                and summary["weights"]["kind"] == provenance["weights"]["kind"]
            ):
                return summary
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(
                f"skipped {path.name}: not a summary of this version ({type(error).__name__}: {error})"
            )
    return None

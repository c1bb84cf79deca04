"""What a notebook holds beside the shared core: a frozen backbone and its trainings, in memory."""

import importlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import timm
import torch
from safetensors.torch import save
from sklearn.metrics import f1_score
from torch import Tensor, nn

from .backbones import FrozenFeatures, make_head
from .data import SPLITS, ImageSet, split_images
from .errors import UserError, WeightsError
from .features import extract
from .files import process_mark
from .machine import choose_precision
from .metrics import accuracy_interval
from .pretrained import fetch_from_hub, state_hash
from .train import score, train_epoch
from .views import Augmentation, printed, render_view

# Transforms that print all their parameters: features of two that print the same are the same.
PRINTS_ALL = (
    r".*torchvision\..*\.(Resize|CenterCrop|ColorJitter|Random(.*Flip|.*Crop|Rotation|Affine))'>"
)


class NotYet(UserError):
    """Stands for what no cell has made yet: whoever asks is told which cell to run."""

    def __init__(self, remedy: str) -> None:
        super().__init__("this cell needs what an earlier one makes")
        self.remedy = remedy

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python and IPython ask of any object
            raise AttributeError(name)
        raise self


def load_body(name: str, timm_name: str, weights: str) -> tuple[nn.Module, dict[str, str]]:
    """A timm model without its classifier, all of its weights loaded, and what they are.

    `weights`: "auto", from the hub; a file; a folder, in which NAME.safetensors, .pth, .pt or .bin
    is; "none", random ones. The .json beside a file says what it holds ("label", "source", "kind").

    Raises:
        WeightsError: they are not to be had, or do not fit.
    """
    path = Path(weights).expanduser()
    told = {"kind": "random", "label": "random", "source": "random initialisation (asked for)"}
    try:
        torch.manual_seed(0)
        body = timm.create_model(timm_name, num_classes=0)
        if weights == "auto":
            repo = body.pretrained_cfg["hf_hub_id"]
            path = Path(fetch_from_hub(repo, "model.safetensors"))
            told = {"kind": "hub", "label": repo, "source": f"hub: {repo}"}
        elif weights != "none":
            named = [path / f"{name}{suffix}" for suffix in (".safetensors", ".pth", ".pt", ".bin")]
            path = next(filter(Path.is_file, named), path)
            note = path.with_suffix(".json")
            told = {"kind": "file", "label": path.resolve(strict=True).name, "source": path.name}
            told |= json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if weights != "none":
            state = timm.models.load_state_dict(str(path), weights_only=True)
            classifier = body.pretrained_cfg["classifier"] + "."
            body.load_state_dict({k: v for k, v in state.items() if not k.startswith(classifier)})
    except Exception as error:  # of the hub, of pickles, of names that do not fit
        raise WeightsError(f"no weights for {name} in {path.name}: {error!r:.200}") from None
    return body, told | {"name": name, "timm_name": timm_name}


class FrozenBackbone:
    """A frozen backbone on some images: its features are computed once a view, and kept."""

    kept: dict = {}  # by all that they depend on: features [n, D], and the seconds that they took

    def __init__(
        self,
        name: str,
        timm_name: str,
        weights: str,
        *,
        image_set: ImageSet,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.name = name
        self.asked = (weights, image_set.digest, seed, repr(augmentation))
        self.image_set = image_set
        self.augmentation = augmentation
        self.seed = seed  # of the split, the views, the head, the order and the dropout
        self.fold = split_images(image_set, seed=seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = choose_precision(self.device)
        body, self.weights = load_body(name, timm_name, weights)
        body.to(self.device, memory_format=torch.channels_last)
        self.lower = FrozenFeatures(body).eval().requires_grad_(False)
        self.hash = state_hash(self.lower)
        self.caption = f"{name} | {image_set.name} | weights: {self.weights['label']}"

    def labels(self, part: str) -> Tensor:
        """The labels of the "train" or "val" images, int64 [n], on the device."""
        return self.image_set.labels[getattr(self.fold, part)].to(self.device)

    def compute(self, images: Iterable[Tensor], view: int) -> Tensor:
        """Features [n, D] of blocks of uint8 images: of view 0, the clean one, in fp32."""
        how = {"device": self.device, "precision": self.precision if view else torch.float32}
        return extract(self.lower, images, **how, size=8 if self.device == "cpu" else 64)

    def features(self, part: str, view: int = 0, *, seconds: bool = False) -> Tensor:
        """Features [n, D] of the "train" or "val" images in a view, or the seconds they took."""
        transform = self.augmentation.train if view else self.augmentation.clean
        steps = getattr(transform, "transforms", [transform])
        prints_all = all(re.fullmatch(PRINTS_ALL, f"{type(one)}") for one in steps)
        told = repr(transform) if prints_all else transform
        of_what = (self.hash, self.weights["timm_name"], self.image_set.digest)
        key = (*of_what, told, self.seed, part, view)
        if key not in self.kept:
            started = time.perf_counter()
            blocks = getattr(self.fold, part).split(32)
            how = {"view": view, "seed": self.seed}
            views = (render_view(self.image_set, transform, indices=i, **how) for i in blocks)
            self.kept[key] = self.compute(views, view), time.perf_counter() - started
        return self.kept[key][seconds]

    def new_head(self, **sizes: Any) -> nn.Module:
        """The study's head, untrained: always the same one. `sizes`: hidden, dropout."""
        classes = len(self.image_set.classes)
        width = self.lower.body.head_hidden_size
        return make_head(width, classes, seed=self.seed, **sizes).to(self.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What one training came to. Later cells read it alone: they tell what was really trained."""

    frozen: FrozenBackbone
    settings: dict
    head: nn.Module  # with the weights of the best epoch
    history: pd.DataFrame  # a row an epoch
    best: int  # the epoch of the lowest validation loss, from 1
    logits: Tensor  # validation [M, C] at the best epoch


def train_head(
    frozen: FrozenBackbone,
    *,
    epochs: int,
    views: int,
    patience: int = 5,
    lr: float = 1e-3,
    report: Callable[[dict[str, float]], None] = print,
    **sizes: Any,
) -> Run:
    """Trains a new head on kept features; it ends with the weights of the best epoch."""
    head = frozen.new_head(**sizes)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr, fused=True)
    shuffle = torch.Generator().manual_seed(frozen.seed)
    torch.manual_seed(frozen.seed)  # dropout
    x, y = frozen.features("val"), frozen.labels("train")  # the former before any clock runs
    rows, best = [], {"epoch": 0, "val_loss": float("inf")}
    for epoch in range(epochs if views >= 0 else 0):
        x = frozen.features("train", epoch % (views + 1))  # computed when first asked for
        started = time.perf_counter()
        batches = torch.randperm(len(x), generator=shuffle).split(32)
        row: dict[str, float] = {"epoch": epoch + 1}
        row["train_loss"], row["train_acc"] = train_epoch(head, optimizer, x, y, batches)
        for part, clean in (("train", "_clean"), ("val", "")):
            loss, accuracy, logits = score(head, frozen.features(part), frozen.labels(part))
            row |= {f"{part}_loss{clean}": loss, f"{part}_acc{clean}": accuracy}
        rows.append(row | {"seconds": time.perf_counter() - started})
        report(row)
        if row["val_loss"] < best["val_loss"]:
            best, answers, state = row, logits, {k: t.clone() for k, t in head.state_dict().items()}
        elif patience and row["epoch"] - best["epoch"] >= patience:
            break
    if not best["epoch"]:
        raise UserError("no epoch, or a loss that is no number: mend epochs, views or lr")
    head.load_state_dict(state)
    settings = {"epochs": epochs, "views": views, "patience": patience, "lr": lr} | sizes
    told = {"history": pd.DataFrame(rows).set_index("epoch"), "best": best["epoch"]}
    return Run(frozen=frozen, settings=settings, head=head, logits=answers, **told)


def right_images(run: Run) -> Tensor:
    """Which validation images a run is right on, bool [M], on the CPU."""
    return (run.logits.argmax(dim=1) == run.frozen.labels("val")).cpu()


def summarise_run(run: Run) -> dict[str, Any]:
    """A run as a row of a table for the reader."""
    right = right_images(run)
    interval = accuracy_interval(int(right.sum()), len(right))
    predicted = run.logits.argmax(dim=1).cpu()
    f1 = f1_score(run.frozen.labels("val").cpu(), predicted, average="macro")
    best = run.history.loc[run.best]
    return {
        "model": run.frozen.name,
        "accuracy": f"{best['val_acc']:.1%}",
        "95% interval": f"{interval.low:.1%}–{interval.high:.1%}",
        "macro-F1": f"{f1:.1%}",
        "gap": f"{best['train_acc_clean'] - best['val_acc']:+.1%}p",
        "best / epochs": f"{run.best} / {len(run.history)}",
        "weights": run.frozen.weights["label"],
    }


def describe_run(run: Run) -> dict[str, Any]:
    """What a run says of itself; `described.study_record` makes the study's record of it."""
    frozen, images = run.frozen, run.frozen.image_set
    told = {
        key: getattr(images, key) for key in ("name", "digest", "classes", "synthetic", "notes")
    }
    told["rejected"] = [vars(one) for one in images.rejected]
    views = {(epoch - 1) % (run.settings["views"] + 1) for epoch in run.history.index} - {0}
    seconds = {"clean view": sum(frozen.features(part, seconds=True) for part in SPLITS)}
    seconds["training views"] = sum(frozen.features("train", v, seconds=True) for v in views)
    seconds["head"] = run.history["seconds"].sum()
    record: dict[str, Any] = {"data": told, "weights": frozen.weights, "settings": run.settings}
    record |= {"seed": frozen.seed, "precision": str(frozen.precision), "timings": seconds}
    record |= {"augmentation": printed(frozen.augmentation), "best": run.best}
    record |= {"frozen_hash": [frozen.hash, state_hash(frozen.lower)]}
    answers = {"val_labels": frozen.labels("val"), "val_predictions": run.logits.argmax(dim=1)}
    return record | {key: tensor.tolist() for key, tensor in answers.items()}


def save_run(run: Run, out_dir: str | Path, figures: dict[str, plt.Figure]) -> dict[str, Path]:
    """Writes model, head, epochs and figures of a training under a new stamp -> {name: path}.

    The hidden folder .STAMP holds the stamp: only one can make it, and the commands keep to that
    too; what a killed process leaves in it, they remove. All are written in there and then renamed,
    the description before its model, so that each appears whole and none over another.

    Raises:
        UserError: `out_dir` cannot be written.
    """
    body = run.frozen.lower.body
    head = run.head.state_dict(prefix=body.pretrained_cfg["classifier"] + ".")
    state = {key: tensor.cpu().contiguous() for key, tensor in (body.state_dict() | head).items()}
    text = json.dumps(describe_run(run), indent=1, ensure_ascii=False) + "\n"
    files: dict[str, Path] = {}
    while not files:
        folder = Path(out_dir, time.strftime(".%Y%m%d_%H%M%S")).expanduser()
        try:
            folder.mkdir(parents=True)
            try:
                (folder / "pid").write_text(process_mark(), encoding="utf-8")
                if any(folder.parent.glob(f"[!.]*/*_{folder.name[1:]}.*")):
                    folder.mkdir()  # fails: as if another held it
                (folder / "model_best.safetensors").write_bytes(save(state, {"description": text}))
                (folder / "model_head.safetensors").write_bytes(save({k: state[k] for k in head}))
                (folder / "model_best.json").write_text(text, encoding="utf-8")
                run.history.to_csv(folder / "result_results.csv")
                for kind, figure in figures.items():
                    figure.savefig(folder / f"img_{kind}.png", dpi=120, bbox_inches="tight")
                    plt.close(figure)
                for path in sorted(folder.glob("*_*")):
                    name = f"{path.stem}_{folder.name[1:]}{path.suffix}"
                    target = folder.parent / name.replace("_", f"/{run.frozen.name}_", 1)
                    target.parent.mkdir(exist_ok=True)
                    files[path.name] = path.rename(target)
            finally:
                shutil.rmtree(folder)
        except OSError as error:
            if type(error) is not FileExistsError or error.filename != str(folder):
                raise UserError(f"cannot write {out_dir} ({error}): mend out_dir") from error
            time.sleep(0.2)  # another holds it: the next second is another stamp
    return files


def from_colab(part: str) -> Any:
    """A part of google.colab, such as "drive".

    Raises:
        UserError: this is not Colab.
    """
    try:
        return importlib.import_module(f"google.colab.{part}")
    except ImportError:
        raise UserError(f"only Colab has its {part}: turn mount_drive and upload off") from None


def copy_to_drive(files: dict[str, Path], root: str = "/content/drive") -> Path:
    """Copies what a run has written to Google Drive, but for the whole model: the head will do.

    Raises:
        UserError: this is not Colab.
    """
    from_colab("drive").mount(root)
    folder = Path(root, "MyDrive/transferlab")
    folder.mkdir(exist_ok=True)
    for path in {*files.values()} - {files["model_best.safetensors"]}:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder

"""timm and scikit-learn, as their users write a linear probe: features through a DataLoader, then
StandardScaler and LogisticRegression on each of the 5 x 5 folds.

The strengths to choose from are the probe's own (`transferlab.probe.STRENGTHS`): C is 1 / (strength
times the number of images fitted). Each fold tries all of them on its inner validation part by
log-loss, and is fitted again on its whole training part.
"""

import joblib
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from transferlab.backbones import create_backbone
from transferlab.data import HeldOutFold
from transferlab.machine import autocast
from transferlab.probe import STRENGTHS

from .common import (
    HeldOutScore,
    NormalizedBackbone,
    Record,
    Task,
    crossed_folds,
    folder_through,
)

BATCH_SIZE = 32
MOST_STEPS = 10_000  # of L-BFGS: enough that every fit converges
ALL_CORES = -1


# ---- features --------------------------------------------------------------------------------


def load_backbone(task: Task) -> nn.Module:
    """timm's model without its classifier."""
    model, _ = create_backbone(task.model, task.weights)
    model.reset_classifier(0)
    return model.eval().to(task.machine.device)


def extract(
    model: nn.Module, images: ImageFolder, task: Task, precision: torch.dtype
) -> np.ndarray:
    """Features fp32 [N, D] of a folder's images, two workers loading them."""
    loader = DataLoader(images, batch_size=BATCH_SIZE, num_workers=task.workers)
    features = []
    with torch.inference_mode(), autocast(task.machine, precision):
        for batch, _ in loader:
            found = model(batch.to(task.machine.device))
            features.append(found.float().cpu())
    return torch.cat(features).numpy()


# ---- the probe -------------------------------------------------------------------------------


def make_classifier(c: float = 1.0) -> Pipeline:
    """A regression of that C on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MOST_STEPS))


def choose_strength(x: np.ndarray, y: np.ndarray, fold: HeldOutFold, processes: int) -> float:
    """The strength of the lowest log-loss on a fold's inner validation part."""
    rest = np.concatenate([fold.train, fold.val])
    in_val = np.where(np.isin(rest, fold.val), 0, -1)
    candidates = [1 / (strength * len(fold.train)) for strength in STRENGTHS]
    search = GridSearchCV(
        make_classifier(),
        {"logisticregression__C": candidates},
        scoring="neg_log_loss",
        cv=PredefinedSplit(in_val),
        refit=False,
        n_jobs=processes,
    )
    search.fit(x[rest], y[rest])
    return STRENGTHS[search.best_index_]


def score_fold(x: np.ndarray, y: np.ndarray, fold: HeldOutFold, processes: int) -> int:
    """How many images of the test fold a probe gets right."""
    strength = choose_strength(x, y, fold, processes)
    rest = np.concatenate([fold.train, fold.val])
    classifier = make_classifier(1 / (strength * len(rest)))
    answers = classifier.fit(x[rest], y[rest]).predict(x[fold.test])
    return int((answers == y[fold.test]).sum())


# ---- the systems -----------------------------------------------------------------------------


def run(task: Task, record: Record) -> None:
    """fp32; the folds one by one, the strengths of each tried on all cores."""
    model = load_backbone(task)
    record.freeze(model)
    images = folder_through(task, task.augmentation.clean, model)
    x = extract(model, images, task, torch.float32)
    y = np.array(images.targets)
    folds = crossed_folds(torch.from_numpy(y))
    correct = [score_fold(x, y, fold, ALL_CORES) for fold in folds]
    record.held_out = HeldOutScore(correct=sum(correct), predicted=folds.repeats * len(y))


def run_tuned(task: Task, record: Record) -> None:
    """Reduced precision where the hardware computes in it, channels_last, bytes from the workers;
    a process a core for the folds, in which nothing waits for other threads."""
    model = NormalizedBackbone(load_backbone(task))
    record.freeze(model)
    clean = v2.Compose([task.augmentation.clean, v2.PILToTensor()])
    images = ImageFolder(task.folder, transform=clean)
    x = extract(model, images, task, task.machine.precision_of(1))
    y = np.array(images.targets)
    folds = crossed_folds(torch.from_numpy(y))
    score = joblib.delayed(score_fold)
    correct = joblib.Parallel(n_jobs=ALL_CORES)(score(x, y, fold, 1) for fold in folds)
    record.held_out = HeldOutScore(correct=sum(correct), predicted=folds.repeats * len(y))

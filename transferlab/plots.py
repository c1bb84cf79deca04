"""Figures. Colours (Okabe-Ito) stay apart in grey and for colour-blind readers; labels are
English."""

import re
import warnings
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import font_manager
from sklearn.metrics import ConfusionMatrixDisplay, f1_score
from torch.nn import functional as F

from .data import Fold, ImageSet
from .heldout import shorten
from .metrics import accuracy_interval
from .notebook import Run
from .verdicts import Scores

BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#999999"
COLORS = {"resnet50": "#0072B2", "densenet121": "#D55E00", "efficientnet_lite0": "#009E73"}


def use_fonts() -> list[str]:
    """Draws Korean and other names in the installed fonts that have them -> the fonts' names."""
    plt.rcParams["text.parse_math"] = False  # a class may be called $1
    known = "CJK|Nanum|malgun|Baekmuk|AppleSD|Hiragino|YuGoth|msgothic|msyh|simhei|wqy|unifont"
    found = [one for one in font_manager.findSystemFonts() if re.search(known, one, re.I)]
    for path in found:
        font_manager.fontManager.addfont(path)
    names = sorted({font_manager.FontProperties(fname=path).get_name() for path in found})
    plt.rcParams["font.family"] = ["DejaVu Sans", *names]
    return names


def undrawn(names: Iterable[str]) -> str:
    """The characters of some names that no font in use can draw, each once."""
    fonts = [font_manager.findfont(family) for family in plt.rcParams["font.family"]]
    drawn = {code for font in fonts for code in font_manager.get_font(font).get_charmap()}
    return "".join(sorted({one for name in names for one in name if ord(one) not in drawn}))


def font_hint(names: Iterable[str]) -> str:
    """What to do where figures cannot show some names; "" where they can."""
    use_fonts()
    missing = undrawn(names)
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, here
    advice = "install one, such as fonts-noto-cjk, else figures show boxes"
    return f"no font here draws {missing[:20]}: {advice}" if missing else ""


def plot_class_counts(image_set: ImageSet, fold: Fold) -> None:
    """Bars of the images of every class, in the training and the validation part of a split."""
    names = pd.Categorical.from_codes(image_set.labels, image_set.classes)
    parts = np.where(np.isin(np.arange(len(names)), fold.val), "validation", "train")
    table = pd.crosstab(names, parts, rownames=[""], colnames=[""], dropna=False)
    most, share = table["validation"].idxmax(), table["validation"].max() / len(fold.val)
    title = f"Always answering “{most}” is right for {share:.1%}"
    look = {"figsize": (9, 1.9), "rot": 0, "width": 0.8, "color": ["#333333", "#888888"]}
    for bars in table.plot.bar(title=title, ylabel="images", **look).containers:
        plt.gca().bar_label(bars, label_type="center", color="white")


def plot_images(
    images: Sequence[torch.Tensor], titles: Sequence[str], heading: str, *, columns: int = 7
) -> plt.Figure:
    """A grid of uint8 images [3, H, W] with their titles."""
    rows = -(-len(images) // columns) or 1
    size = (1.6 * columns, 1.8 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
    figure.suptitle(heading)
    return figure


def plot_curves(run: Run) -> plt.Figure:
    """Learning curves: the validation images solid, the training images dashed, both clean."""
    where = f"at the lowest validation loss, epoch {run.best} of {len(run.history)}"
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.4), layout="constrained")
    units = {"loss": "cross-entropy (nats)", "acc": "accuracy (%)"}
    for axis, (kind, unit) in zip(axes, units.items()):
        lines = run.history[[f"val_{kind}", f"train_{kind}_clean"]] * (100 if kind == "acc" else 1)
        lines.columns = ["validation", "train"]
        color = COLORS.get(run.frozen.name, GREY)
        lines.plot(ax=axis, style=["-", "--"], color=color, ylabel=unit, legend=kind == "loss")
        axis.axvline(run.best, color=GREY, linewidth=0.8)
    figure.suptitle(f"Accuracy {run.history.val_acc[run.best]:.1%} {where}")
    figure.supxlabel(run.frozen.caption, fontsize=8, color=GREY)
    return figure


def plot_confusion(run: Run) -> plt.Figure:
    """The confusion matrix (rows: true class) and every class's F1, side by side."""
    classes = run.frozen.image_set.classes
    scored = {"y_true": run.frozen.labels("val").cpu(), "y_pred": run.logits.argmax(dim=1).cpu()}
    scored["labels"] = range(len(classes))
    most = min(len(classes), 60)  # 500 classes would fill the memory
    size = (5 + 0.8 * most, 2.5 + 0.3 * most)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    look = {"cmap": "Blues", "colorbar": False, "xticks_rotation": "vertical", "ax": left}
    ConfusionMatrixDisplay.from_predictions(**scored, display_labels=classes, **look)
    f1 = 100 * f1_score(**scored, average=None, zero_division=0)
    bars = right.barh(classes, f1, color=COLORS.get(run.frozen.name, GREY))
    right.bar_label(bars, fmt="%.0f", padding=2)
    right.set(xlim=(0, 110), xlabel="F1 (%)", title=f"macro-F1 {f1.mean():.1f}%")
    right.invert_yaxis()
    figure.suptitle(f"Hardest: “{classes[f1.argmin()]}”, F1 {f1.min():.0f}%")
    figure.supxlabel(run.frozen.caption, fontsize=8, color=GREY)
    return figure


def plot_runs(runs: Sequence[Run]) -> plt.Figure:
    """Validation loss of several models, and their accuracy at the best epoch with its interval."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.2), layout="constrained")
    n = len(runs[0].logits)
    bounds = {}
    for run in runs:
        name, color = run.frozen.name, COLORS.get(run.frozen.name, GREY)
        left.plot(run.history["val_loss"], color=color, label=name)
        accuracy = run.history["val_acc"][run.best]
        interval = accuracy_interval(round(accuracy * n), n)
        bounds[name] = 100 * np.array([interval.low, accuracy, interval.high])
        right.plot(bounds[name], [name] * 3, color=color, marker="o", markevery=[1])
        right.text(bounds[name][1], name, f"{100 * accuracy:.1f}\n", ha="center", va="center")
    left.set(xlabel="epoch", ylabel="validation loss (nats)")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel=f"accuracy (%) of {n} images, 95% interval", ylim=(len(runs) - 0.4, -0.6))
    ranked = sorted(bounds, key=lambda name: -bounds[name][1])
    lead = bounds[ranked[0]][1] - bounds[ranked[-1]][1]
    figure.suptitle(f"{ranked[0]} is highest, {lead:.1f} points above {ranked[-1]}")
    labels = ", ".join(f"{run.frozen.name}: {run.frozen.weights['label']}" for run in runs)
    figure.supxlabel(f"{runs[0].frozen.image_set.name} | {labels}", fontsize=8, color=GREY)
    return figure


def plot_answer(run: Run, image: torch.Tensor, title: str) -> None:
    """A picture, uint8 [3, H, W], the classes' probabilities, and the five nearest training images.

    Near: by the cosine of features less their mean.
    """
    frozen, images = run.frozen, run.frozen.image_set
    x = frozen.compute([frozen.augmentation.clean(image)[None]], view=0)
    shares = 100 * run.head.eval()(x).detach().cpu()[0].softmax(dim=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.imshow(image.permute(1, 2, 0))
    left.set(title=title, xticks=[], yticks=[])
    bars = right.barh(images.classes, shares, color=COLORS.get(frozen.name, GREY))
    right.bar_label(bars, fmt="%.0f%%", padding=2)
    right.set(xlim=(0, 115), xlabel="probability (%)")
    right.invert_yaxis()
    figure.suptitle(f"“{images.classes[shares.argmax()]}” {shares.max():.0f}% | {frozen.caption}")
    known = frozen.features("train")
    likeness = F.cosine_similarity(x - known.mean(dim=0), known - known.mean(dim=0)).cpu()
    near = frozen.fold.train[likeness.argsort(descending=True)[:5]]
    names = [images.classes[images.labels[i]] for i in near]
    plot_images([images.images[i] for i in near], names, "The training images most like it")


def plot_comparison(scores: Sequence[Scores], title: str) -> plt.Figure:
    """Accuracies with their intervals, models in blue, baselines in grey, directly labelled; rows
    are narrower where there are many."""
    use_fonts()
    row_height = min(0.4, 24 / len(scores))  # inches
    text_size = min(8.0, 20 * row_height)
    size = (8, 1.5 + row_height * len(scores) + 0.12 * title.count("\n"))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    from_below = scores[::-1]
    for place, score in enumerate(from_below):
        colour = GREY if score.baseline else BLUE
        marker = "s" if score.baseline else "o"
        low = 100 * score.accuracy_interval.low
        high = 100 * score.accuracy_interval.high
        accuracy = 100 * score.accuracy
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot(accuracy, place, marker, color=colour)
        axis.text(
            accuracy,
            place + 0.15,
            f"{accuracy:.1f}",
            ha="center",
            va="bottom",
            fontsize=text_size,
        )
    names = [shorten(score.model, 50) for score in from_below]
    axis.set_yticks(range(len(scores)), names, fontsize=1.25 * text_size)
    axis.set_xlabel("accuracy on held-out folds (%), 95 % interval over images")
    axis.set_ylim(-0.6, len(scores) - 0.2)
    figure.suptitle(title, fontsize=8)
    return figure

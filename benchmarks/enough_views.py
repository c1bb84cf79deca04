"""Which settings of kept views are good enough, over all pairs of dataset and backbone at once.

    python -m benchmarks.enough_views [--raw FILE] [--out DIR] [--resamples N]

Reads what `benchmarks.views` has measured (views_raw_{stamp}.npz) and trains nothing. Every
setting on seeds 0-9 is compared with the reference, `cycle` with 30 views, on seeds 0-19 as far as
they were measured. The estimate is the mean over the pairs of the difference in accuracy, each
accuracy the mean over images and seeds.

The interval is a bootstrap over images and seeds, the same samples for every setting (Efron 1979,
Annals of Statistics 7, p. 1; percentiles 2.5 and 97.5):

- images are drawn jointly over the backbones of a dataset, since an image is hard for all of them;
- seeds are drawn jointly over all pairs. Under one seed, settings share the head's initialisation,
  the order and the inner split: so one draw of seeds 0-9 serves both candidate and reference, and
  the pairing is kept. Seeds 10-19 of the reference are a draw of their own, of equal weight.

The rule: a setting passes if the lower end of its pooled 95 % interval of accuracy is above
-1 point and no pair has an estimate below -2 points. The change of log-loss decides nothing.
The rule was chosen after these data were seen, and an interval is not a chance.

Expect, in half a minute or less: `cycle+clean` with 4 views passes, `cycle` with 1 or 2 fails.
Written: enough_views_{stamp}.csv, .json (result/benchmarks) and .png (img).
"""

import argparse
import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import Pair, Setting, add_out, prepare_out, run_command, write_results
from transferlab.errors import UserError
from transferlab.machine import Machine, this_machine
from transferlab.plots import BLUE, GREY, ORANGE
from transferlab.records import BenchmarkRecord

RAW_FOLDER = Path("result/benchmarks")
FIRST_SEEDS = "0-9"  # candidates are compared on these
REFERENCE_SEEDS = (FIRST_SEEDS, "10-19")
MARGIN = -1.0  # points: the lower end of the pooled interval must lie above
GUARD = -2.0  # points: no pair's estimate may lie below
RESAMPLES = 10_000
FEWEST_RESAMPLES = 2_000  # fewer leave the ends of an interval to luck
RANDOM_SEED = 0

RULE = (
    f"passes if the lower end of the pooled 95 % interval of accuracy is above {MARGIN:+.0f} point "
    f"and no pair has an estimate below {GUARD:+.0f} points"
)
CAVEATS = (
    "The rule was chosen after these data were seen; no new data have tested it.",
    "An interval is not a chance: it does not say how probable a difference is.",
)
RESAMPLING = (
    "Images are resampled jointly over the backbones of a dataset, seeds jointly over all pairs; "
    "one draw of seeds 0-9 for candidate and reference alike, one of seeds 10-19 for the reference."
)
LABELS = {
    "clean": "clean alone",
    "cycle": "{views} in turn",
    "cycle+clean": "clean + {views} in turn",
    "between+clean": "between clean + {views}",
}


def label_of(setting: Setting) -> str:
    """A setting in a reader's words, for the figure."""
    template = LABELS.get(setting.scheme, str(setting))
    return template.format(views=setting.views)


REFERENCE = Setting(scheme="cycle", views=30)
# Decided here, not picked from the table. The scheme "cycle+clean" is the library's rule
# "clean+cycle", its default with as many views (`transferlab.train.Settings`).
DEFAULT = Setting(scheme="cycle+clean", views=4)


Values = dict[Pair, np.ndarray]  # [S, N] fp64 each: one value a seed and image


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one setting gave on the held-out test folds, by block of seeds."""

    correct: dict[str, Values]  # 0 or 1
    loss: dict[str, Values]  # nats

    def add(self, pair: Pair, block: str, correct: np.ndarray, loss: np.ndarray) -> None:
        """Takes in one pair's bool [S, N] and fp16 [S, N] of a block of seeds."""
        self.correct.setdefault(block, {})
        self.loss.setdefault(block, {})
        self.correct[block][pair] = correct.astype(np.float64)
        self.loss[block][pair] = loss.astype(np.float64)

    def pairs(self, block: str) -> set[Pair]:
        """The pairs that were measured on a block of seeds."""
        values = self.correct.get(block, {})
        return set(values)

    def on(self, blocks: Iterable[str]) -> "Answers":
        """The same on some of the blocks of seeds."""
        correct = {block: self.correct[block] for block in blocks}
        loss = {block: self.loss[block] for block in blocks}
        return Answers(correct=correct, loss=loss)


Raw = dict[Setting, Answers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """B bootstrap samples, as the share that an image or a seed has in a sample."""

    images: dict[str, np.ndarray]  # {dataset: [B, N]}, the same for all its backbones
    seeds: dict[str, np.ndarray]  # {block of seeds: [B, S]}, the same for all pairs


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mean less the reference's, pooled over the pairs, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """For a table, as +0.51 [-0.06, +1.06]."""
        mean = f"{self.mean:+.{digits}f}"
        low = f"{self.low:+.{digits}f}"
        high = f"{self.high:+.{digits}f}"
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One setting against the reference."""

    setting: Setting
    accuracy: Change  # points
    log_loss: Change  # nats
    worst_pair: Pair
    worst: float  # points, the estimate on that pair

    @property
    def passes(self) -> bool:
        """Whether it passes the rule."""
        return self.accuracy.low > MARGIN and self.worst >= GUARD


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All settings against the reference."""

    comparisons: tuple[Comparison, ...]
    pairs: tuple[Pair, ...]
    reference_seeds: tuple[str, ...]  # its blocks of seeds that all pairs have
    left_out: tuple[Setting, ...]  # not measured on every pair
    resamples: int

    @property
    def passing(self) -> list[str]:
        """The settings that pass."""
        return [str(one.setting) for one in self.comparisons if one.passes]

    @property
    def default(self) -> Comparison:
        """The one of the default."""
        return next(one for one in self.comparisons if one.setting == DEFAULT)


def find_raw(given: str | None) -> Path:
    """The file of raw values: as given, or the newest that is kept here.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        return Path(given)
    found = sorted(RAW_FOLDER.glob("views_raw_*.npz"))
    if not found:
        raise UserError(f"{RAW_FOLDER} holds no views_raw_*.npz: give --raw FILE")
    return found[-1]


def read_raw(path: Path) -> Raw:
    """Reads the values stored under dataset/model/scheme/K/block/name.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    raw: Raw = {}
    try:
        with np.load(path) as stored:
            for key in stored.files:
                stem, name = key.rsplit("/", maxsplit=1)
                if name == "correct":
                    add_values(raw, stem, stored[key], stored[f"{stem}/loss"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no file of raw values of views ({error})") from error
    return raw


def add_values(raw: Raw, stem: str, correct: np.ndarray, loss: np.ndarray) -> None:
    """Puts what is stored under dataset/model/scheme/K/block in its place."""
    dataset, model, scheme, views, block = stem.split("/")
    setting = Setting(scheme=scheme, views=int(views))
    pair = Pair(dataset=dataset, model=model)
    answers = raw.setdefault(setting, Answers(correct={}, loss={}))
    answers.add(pair, block, correct, loss)


def draw_shares(count: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Draws n of n with replacement, `count` times -> [count, n], the share of each."""
    equal = np.full(n, 1 / n)
    times = random.multinomial(n, equal, size=count)
    return times / n


def draw_resamples(reference: Answers, count: int) -> Resamples:
    """Draws `count` samples of the images of each dataset and of the seeds of each block."""
    random = np.random.default_rng(RANDOM_SEED)
    images: dict[str, np.ndarray] = {}
    seeds: dict[str, np.ndarray] = {}
    for block, values in reference.correct.items():
        for pair, by_seed in values.items():
            n_seeds, n_images = by_seed.shape
            if block not in seeds:
                seeds[block] = draw_shares(count, n_seeds, random)
            if pair.dataset not in images:
                images[pair.dataset] = draw_shares(count, n_images, random)
    return Resamples(images=images, seeds=seeds)


def resampled_means(blocks: dict[str, Values], resamples: Resamples) -> np.ndarray:
    """The mean over pairs, images and seeds in every sample -> [B]. Blocks have equal weight."""
    means = []
    for block, values in blocks.items():
        seeds = resamples.seeds[block]
        for pair, by_seed in values.items():
            images = resamples.images[pair.dataset]
            of_seeds = images @ by_seed.T  # [B, S]
            of_samples = np.einsum("bs,bs->b", of_seeds, seeds)
            means.append(of_samples)
    return np.mean(means, axis=0)


def pair_means(blocks: dict[str, Values], pairs: Iterable[Pair]) -> np.ndarray:
    """The mean of each pair over images and seeds -> [P]. Blocks have equal weight."""
    by_block = []
    for values in blocks.values():
        means = [values[pair].mean() for pair in pairs]
        by_block.append(means)
    return np.mean(by_block, axis=0)


def make_change(mean: float, samples: np.ndarray) -> Change:
    """A pooled difference and its samples [B] -> with the 95 % percentile interval."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Change(mean=float(mean), low=float(low), high=float(high))


class Judge:
    """Compares settings with the reference, of which it computes everything once."""

    def __init__(self, reference: Answers, pairs: tuple[Pair, ...], count: int) -> None:
        self.pairs = pairs
        self.resamples = draw_resamples(reference, count)
        self.accuracies = pair_means(reference.correct, pairs)
        self.losses = pair_means(reference.loss, pairs)
        self.accuracy_samples = resampled_means(reference.correct, self.resamples)
        self.loss_samples = resampled_means(reference.loss, self.resamples)

    def compare(self, setting: Setting, answers: Answers) -> Comparison:
        """One setting against the reference, accuracy in points."""
        accuracies = pair_means(answers.correct, self.pairs)
        points = 100 * (accuracies - self.accuracies)
        accuracy_samples = resampled_means(answers.correct, self.resamples)
        point_samples = 100 * (accuracy_samples - self.accuracy_samples)
        losses = pair_means(answers.loss, self.pairs)
        rise = losses - self.losses
        loss_samples = resampled_means(answers.loss, self.resamples)
        worst = int(points.argmin())
        return Comparison(
            setting=setting,
            accuracy=make_change(points.mean(), point_samples),
            log_loss=make_change(rise.mean(), loss_samples - self.loss_samples),
            worst_pair=self.pairs[worst],
            worst=float(points[worst]),
        )


def analyse(raw: Raw, count: int = RESAMPLES) -> Analysis:
    """Compares every setting that all pairs have with the reference, in the order of the file.

    Raises:
        UserError: the reference or the default is not there on every pair.
    """
    measured = set()
    for answers in raw.values():
        measured |= answers.pairs(FIRST_SEEDS)
    pairs = tuple(sorted(measured, key=str))
    complete = [one for one in raw if raw[one].pairs(FIRST_SEEDS) == measured]
    for needed in (REFERENCE, DEFAULT):
        if needed not in complete:
            raise UserError(f"{needed} was not measured on every pair: run benchmarks.views on")
    reference = raw[REFERENCE]
    seeds = [block for block in REFERENCE_SEEDS if reference.pairs(block) == measured]
    judge = Judge(reference.on(seeds), pairs, count)
    comparisons = []
    for setting in complete:
        if setting != REFERENCE:
            candidate = raw[setting].on([FIRST_SEEDS])
            comparisons.append(judge.compare(setting, candidate))
    return Analysis(
        comparisons=tuple(comparisons),
        pairs=pairs,
        reference_seeds=tuple(seeds),
        left_out=tuple(one for one in raw if one not in complete),
        resamples=count,
    )


def make_rows(analysis: Analysis) -> pd.DataFrame:
    """The table as it is written: one row a setting, accuracy in points, log-loss in nats."""
    rows = []
    for one in analysis.comparisons:
        row = {
            "scheme": one.setting.scheme,
            "views": one.setting.views,
            "points": one.accuracy.mean,
            "points_low": one.accuracy.low,
            "points_high": one.accuracy.high,
            "log_loss": one.log_loss.mean,
            "log_loss_low": one.log_loss.low,
            "log_loss_high": one.log_loss.high,
            "worst_dataset": one.worst_pair.dataset,
            "worst_model": one.worst_pair.model,
            "worst_points": one.worst,
            "passes": one.passes,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def table_text(analysis: Analysis) -> str:
    """The table as it is printed."""
    rows = []
    for one in analysis.comparisons:
        row = {
            "scheme": one.setting.scheme,
            "K": one.setting.views,
            "points [95 % interval]": one.accuracy.text(2),
            "log-loss [95 % interval]": one.log_loss.text(3),
            "worst pair": str(one.worst_pair),
            "its points": f"{one.worst:+.2f}",
            "passes": "yes" if one.passes else "no",
        }
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


def decision_lines(analysis: Analysis) -> list[str]:
    """What the rule says, and what it does not."""
    seeds = " and ".join(analysis.reference_seeds)
    outcome = "passes" if analysis.default.passes else "fails"
    lines = [
        f"against {REFERENCE}, on seeds {seeds}; candidates on seeds {FIRST_SEEDS}; "
        f"{len(analysis.pairs)} pairs; {analysis.resamples:,} resamples",
        f"rule: a setting {RULE}",
        *CAVEATS,
        f"passing: {'; '.join(analysis.passing) or 'nothing'}",
        f"the default, not picked from this table: {DEFAULT}: {outcome}",
    ]
    if analysis.left_out:
        missing = "; ".join(map(str, analysis.left_out))
        lines.insert(1, f"left out, not measured on every pair: {missing}")
    return lines


def describe(analysis: Analysis, path: Path) -> dict[str, object]:
    """What the record says beside the table, as plain values."""
    content = path.read_bytes()
    return {
        "raw": path.name,
        "raw_sha256": hashlib.sha256(content).hexdigest(),
        "reference": asdict(REFERENCE),
        "reference_seeds": analysis.reference_seeds,
        "candidate_seeds": FIRST_SEEDS,
        "pairs": [asdict(pair) for pair in analysis.pairs],
        "resamples": analysis.resamples,
        "random_seed": RANDOM_SEED,
        "resampling": RESAMPLING,
        "rule": RULE,
        "caveats": CAVEATS,
        "left_out": [asdict(setting) for setting in analysis.left_out],
        "passing": analysis.passing,
        "default": asdict(DEFAULT),
        "default_passes": analysis.default.passes,
    }


def make_record(analysis: Analysis, path: Path, machine: Machine) -> BenchmarkRecord:
    """The record; what the raw values were measured with, `benchmarks.views` has recorded."""
    return BenchmarkRecord(
        kind="enough_views",
        data=(),
        weights=(),
        machine=machine,
        seed=RANDOM_SEED,
        facts=describe(analysis, path),
    )


def draw_row(axis: Axes, height: int, one: Comparison) -> None:
    """One setting: its interval, its estimate and the numbers beside them."""
    change = one.accuracy
    colour = BLUE if one.passes else ORANGE
    marker = "o" if one.passes else "X"
    axis.plot([change.low, change.high], [height, height], color=colour, linewidth=3)
    axis.plot(change.mean, height, marker, color=colour, markersize=10)
    right = axis.get_yaxis_transform()
    weight = "bold" if one.setting == DEFAULT else "normal"
    text = change.text(1).replace("-", "−")
    axis.text(1.02, height, text, transform=right, va="center", fontsize=13, weight=weight)


def plot_intervals(analysis: Analysis) -> Figure:
    """The pooled difference of every setting with its interval; what fails is a cross."""
    comparisons = analysis.comparisons
    labels = [label_of(one.setting) for one in comparisons]
    heights = range(len(comparisons))
    figure, axis = plt.subplots(figsize=(9.5, 7), layout="constrained")
    for height, one in zip(heights, comparisons, strict=True):
        draw_row(axis, height, one)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.axvline(MARGIN, color="black", linestyle="--", linewidth=1.5)
    axis.set_yticks(heights, labels, fontsize=13)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=13)
    axis.set_xlabel(f"points of accuracy against {REFERENCE.views} fresh views", fontsize=13)
    axis.text(MARGIN, -0.7, "margin", ha="center", va="bottom", fontsize=13)
    for name in ("top", "right", "left"):
        axis.spines[name].set_visible(False)
    position = labels.index(label_of(DEFAULT))
    axis.get_yticklabels()[position].set_weight("bold")
    figure.suptitle(title_text(analysis), fontsize=16)
    figure.supxlabel(small_print(analysis), fontsize=11)
    return figure


def title_text(analysis: Analysis) -> str:
    """The figure's message: what the rule says of the default."""
    subject = label_of(DEFAULT).capitalize()
    if analysis.default.passes:
        return f"{subject}: less than 1 point below {REFERENCE.views} fresh views"
    return f"{subject}: not shown to keep within 1 point of {REFERENCE.views} fresh views"


def small_print(analysis: Analysis) -> str:
    """The one line under the figure."""
    count = len(analysis.pairs)
    return (
        f"Mean of {count} pairs; 95 % bootstrap intervals; crosses fail the rule, "
        "chosen after these data were seen."
    )


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    newest = f"raw values (default: the newest {RAW_FOLDER}/views_raw_*.npz)"
    parser.add_argument("--raw", help=newest)
    add_out(parser)
    samples = f"bootstrap samples, at least {FEWEST_RESAMPLES:,} (default: %(default)s)"
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=samples)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Compares, prints, writes -> exit code."""
    options = read_options(arguments)
    if options.resamples < FEWEST_RESAMPLES:
        raise UserError(f"--resamples {options.resamples}: take at least {FEWEST_RESAMPLES:,}")
    path = find_raw(options.raw)
    raw = read_raw(path)
    prepare_out(options.out)
    analysis = analyse(raw, options.resamples)
    print(table_text(analysis))
    for line in decision_lines(analysis):
        print(line)
    rows = make_rows(analysis)
    record = make_record(analysis, path, this_machine())
    write_results(options.out, rows, record, plot_intervals(analysis))
    return 0


if __name__ == "__main__":
    run_command(main)

"""How many kept views are enough, and used how?

    python -m benchmarks.views --data DIR --weights DIR [--out DIR] [--cache-dir DIR] [--minutes N]

Three schemes for the features of epoch e, from K random views of every image and the clean one:

    cycle          view 1 + e % K
    cycle+clean    the clean view is one of the cycle, and its first
    between+clean  for each image and epoch a random point between two of its K + 1 views
    clean          the clean view alone: no augmentation

Held-out protocol on both datasets: stratified 5-fold, 20 % of each training fold for early stopping, 20 seeds. A seed
changes the head's initialisation, the order, the dropout, the inner split and which K of the 30 views are used. A scheme
passes if, on every pair of dataset and backbone, the lower end of the 95 % bootstrap interval (over images, of the mean over
seeds) of its accuracy less that of `cycle` with 30 views lies above -1 point, and log-loss rises by at most 0.02. The
smallest K that passes on seeds 0 to 9 must pass again on seeds 10 to 19.

31 views go through every backbone once (kept in the cache), then the 50 heads of ten seeds are trained at once for each pair
and setting; both go on where an interrupted run stopped. Written: the correct answers and log-losses of every image and seed
(views_raw_{stamp}.npz), the table (views_{stamp}.csv) and the figure.
"""

import hashlib
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional as F

from benchmarks.results import FACES, INSECTS, load_dataset, make_parser, run_command
from transferlab.artifacts import machine, new_stamp, write_new
from transferlab.backbones import (
    choose_device,
    choose_precision,
    create_backbone,
    make_head,
    split_features,
)
from transferlab.cache import cache_bound, clear_cache, default_cache
from transferlab.data import split_indices
from transferlab.errors import UserError
from transferlab.features import feature_drawer, view_blocks
from transferlab.many import Job, train_many
from transferlab.metrics import bootstrap_interval
from transferlab.plots import BLUE, GREEN, GREY, ORANGE
from transferlab.views import views_of

MODELS = ("resnet50", "densenet121", "efficientnet_lite0")
VIEWS, FOLDS = 30, 5
BLOCKS = {
    "0-9": range(10),
    "10-19": range(10, 20),
}  # of seeds: what passes on the first must pass again on the second
ALL = "0-19"
SETTINGS = [("clean", 0)] + [("cycle", k) for k in (1, 2, 4, 8, 16, 30)]
SETTINGS += [(scheme, k) for scheme in ("cycle+clean", "between+clean") for k in (1, 2, 4, 8)]
REFERENCE, MARGIN, LOSS_MARGIN = ("cycle", 30), -0.01, 0.02


def draw_views(image_set, views, weights, cache_dir):
    """Runs all views of all images through each backbone -> {model: (clean fp32 [N, D], views [31, N, D])}, {model: WeightsInfo}."""
    device, everything = choose_device(), torch.arange(len(image_set.labels))
    indices, drawn, infos = (
        {"train": everything, "val": everything},
        {name: [] for name in MODELS},
        {},
    )
    frozen = {}
    for name in MODELS:
        model, info = create_backbone(name, weights)
        if info.kind == "random":
            raise UserError(f"{name}: {info.source}; this measurement needs pretrained weights")
        frozen[name], infos[name] = split_features(model.to(device))[0], info
    for view in range(VIEWS + 1):
        blocks = view_blocks(
            image_set, views, seed=0, keep=50
        )  # of one view: rendered once for all backbones, then let go
        for name, lower in frozen.items():
            started, timings = time.perf_counter(), {}
            key = {"data": image_set.digest, "views": [*map(repr, views)], "seed": 0, "model": name}
            draw = feature_drawer(lower, blocks, indices, key, cache_dir=cache_dir, timings=timings)
            drawn[name] += [draw("val", 0)] * (not view) + [draw("train", view)]
            print(
                f"{image_set.name}, view {view} of {VIEWS}, {name}: {time.perf_counter() - started:.1f} s",
                flush=True,
            )
    return {name: (kept[0], torch.stack(kept[1:])) for name, kept in drawn.items()}, infos


def view_chooser(scheme, k, views, seed):
    """Makes `view_of(epoch)`, features [N, D], for one seed of a scheme; `views` [31, N, D], the clean one first."""
    order = (
        1 + torch.randperm(VIEWS, generator=torch.Generator().manual_seed(seed))[:k]
    )  # nested: more views keep the fewer
    chosen = order if scheme == "cycle" else torch.cat([torch.tensor([0]), order])
    if scheme != "between+clean":
        return lambda epoch: views[chosen[epoch % len(chosen)]]

    def between(epoch):
        random = torch.Generator().manual_seed(1000 * seed + epoch)
        n = views.shape[1]
        first = torch.randint(len(chosen), (n,), generator=random)
        second = (first + torch.randint(1, len(chosen), (n,), generator=random)) % len(
            chosen
        )  # another one
        images = torch.arange(n)
        share = torch.rand(n, 1, generator=random)
        return torch.lerp(views[chosen[second], images], views[chosen[first], images], share)

    return between


def measure(clean, views, labels, scheme, k, seeds):
    """Trains 5 folds a seed -> {"correct": bool [S, N], "loss": fp32 [S, N], "epochs": best epoch [S, 5]}, on the test folds."""
    jobs, heads, tests, classes = [], [], [], len(labels.unique())
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels))
    for seed in seeds:
        view_of = view_chooser(scheme, k, views, seed)
        for rest, test in folds:
            rest = torch.from_numpy(rest)
            inner, val = (
                rest[part] for part in split_indices(labels[rest], val_size=0.2, seed=seed)
            )
            jobs.append(Job(view_of, inner, clean, val, seed=seed))
            heads.append(make_head(views.shape[2], classes, seed=seed))
            tests.append(torch.from_numpy(test))
    results = train_many(heads, jobs, labels)
    correct, loss = (
        np.zeros((len(seeds), len(labels)), bool),
        np.zeros((len(seeds), len(labels)), np.float32),
    )
    for number, (head, test) in enumerate(zip(heads, tests)):
        with torch.inference_mode():
            logits = head.eval()(clean[test])
        correct[number // FOLDS, test] = (logits.argmax(1) == labels[test]).numpy()
        loss[number // FOLDS, test] = F.cross_entropy(
            logits, labels[test], reduction="none"
        ).numpy()
    return {
        "correct": correct,
        "loss": loss,
        "epochs": np.reshape([result.best_epoch for result in results], (len(seeds), FOLDS)),
    }


def measure_or_read(folder, drawn, key, block):
    """`measure` of key (dataset, model, scheme, K) on a block of seeds, kept in `folder` -> dict of arrays."""
    dataset, model, scheme, k = key
    image_set, features = drawn[dataset]
    path, started = (
        folder / f"{image_set.digest[:12]}_{model}_{scheme}_{k}_{block}.npz",
        time.perf_counter(),
    )
    if not path.is_file():
        found = measure(*features[model], image_set.labels, scheme, k, BLOCKS[block])
        write_new(path, lambda temporary: np.savez_compressed(temporary, **found))
    found = dict(np.load(path))
    seconds = time.perf_counter() - started
    print(
        f"{dataset}, {model}, {scheme}, K = {k}, seeds {block}: {found['correct'].mean():.1%}, {seconds:.0f} s",
        flush=True,
    )
    return found


def passes(raw, setting, block):
    """Whether a setting passes on a block of seeds, on every pair."""
    table = make_table(
        {key: blocks for key, blocks in raw.items() if key[2:] in (setting, REFERENCE)}
    )
    return bool(
        table[
            (table.scheme == setting[0]) & (table.views == setting[1]) & (table.seeds == block)
        ].passes.all()
    )


def work_order(raw):
    """What to measure next, as (setting, block of seeds): the reference, the clean view, then by K on the first block; what passes
    there at once on the second, until a default has passed twice; last the rest of the second block."""
    first, second = BLOCKS
    order = sorted(by_views(), key=lambda setting: (setting != REFERENCE, setting != ("clean", 0)))
    decided = False
    for setting in order:
        yield setting, first
        if setting in order[2:] and not decided and passes(raw, setting, first):
            yield REFERENCE, second
            yield setting, second
            decided = passes(raw, setting, second)
    yield from ((setting, second) for setting in order)


def measure_all(folder, drawn, minutes):
    """Measures in that order, for so many minutes -> {(dataset, model, scheme, K): {block: arrays}}."""
    pairs = [(dataset, model) for dataset in (FACES, INSECTS) for model in MODELS]
    raw = {(*pair, *setting): {} for setting in SETTINGS for pair in pairs}
    end = time.monotonic() + 60 * minutes
    for setting, block in work_order(raw):
        for pair in pairs:
            if time.monotonic() > end:
                return raw
            raw[(*pair, *setting)][block] = measure_or_read(folder, drawn, (*pair, *setting), block)
    return raw


def by_views():
    """The settings by K; of equal K the simplest scheme first, as SETTINGS lists them."""
    return sorted(SETTINGS, key=lambda setting: setting[1])


def seeds_of(blocks, name):
    """The arrays of a block of seeds, or of both joined; None where they have not been measured."""
    wanted = BLOCKS if name == ALL else [name]
    if not set(wanted) <= set(blocks):
        return None
    return {
        part: np.concatenate([blocks[one][part] for one in wanted])
        for part in ("correct", "loss", "epochs")
    }


def compare_with_reference(values, reference):
    """Accuracy less the reference's with its 95 % bootstrap interval over images, and the rise of log-loss, means over seeds."""
    gain = values["correct"].mean(0) - reference["correct"].mean(0)
    return (
        gain.mean(),
        *bootstrap_interval(gain),
        float(values["loss"].mean() - reference["loss"].mean()),
    )


def make_table(raw):
    """One row a dataset, model, setting and block of seeds, as far as they have been measured."""
    rows = []
    for (dataset, model, scheme, k), blocks in raw.items():
        for name in (*BLOCKS, ALL):
            values, reference = (
                seeds_of(blocks, name),
                seeds_of(raw[(dataset, model, *REFERENCE)], name),
            )
            if values is None or reference is None:
                continue
            difference, low, high, rise = compare_with_reference(values, reference)
            rows.append(
                {
                    "dataset": dataset,
                    "model": model,
                    "scheme": scheme,
                    "views": k,
                    "seeds": name,
                    "accuracy": values["correct"].mean(),
                    "log_loss": float(values["loss"].mean()),
                    "difference": difference,
                    "difference_low": low,
                    "difference_high": high,
                    "log_loss_rise": rise,
                    "epochs_to_best": values["epochs"].mean(),
                    "passes": low > MARGIN and rise <= LOSS_MARGIN,
                }
            )
    return pd.DataFrame(rows)


def decide(table):
    """The scheme with the fewest views that passes on every pair on the first block of seeds and again on the second ->
    [scheme, K], or None where nothing short of the reference does (or not yet); and the steps as text.

    The clean view alone is no candidate, but its step is told.
    """
    passed, pairs = (
        table.groupby(["scheme", "views", "seeds"]).passes.agg(how) for how in ("all", "count")
    )
    passed = passed[pairs == pairs.max()]  # an interrupted measurement may lack some pairs
    steps, (first, second), words = (
        [],
        BLOCKS,
        {None: "not yet tried", True: "passes again", False: "fails"},
    )
    for scheme, k in by_views():
        if (scheme, k) == REFERENCE or (scheme, k, first) not in passed:
            break
        again = passed.get((scheme, k, second))
        outcome = (
            f"passes on seeds {first}, {words[again]} on {second}"
            if passed[scheme, k, first]
            else f"fails on seeds {first}"
        )
        steps.append(f"{scheme}, K = {k}: {outcome}")
        if passed[scheme, k, first] and again and scheme != "clean":
            return [scheme, k], steps
    return None, steps


def most_seeds(table):
    """All seeds where every setting has them, else the first block."""
    return ALL if (table.seeds == ALL).sum() == (table.seeds == "0-9").sum() else "0-9"


def plot_curves(table, sources):
    """Accuracy less the reference's against K, one panel a dataset and model; the band is the 95 % interval."""
    shown = most_seeds(table)
    table = table[table.seeds == shown]
    figure, axes = plt.subplots(2, len(MODELS), figsize=(11, 6), sharex=True, layout="constrained")
    styles = {
        "cycle": (BLUE, "o-"),
        "cycle+clean": (ORANGE, "s--"),
        "between+clean": (GREEN, "^-."),
    }
    for row, dataset in zip(axes, (FACES, INSECTS)):
        for axis, model in zip(row, MODELS):
            part = table[(table.dataset == dataset) & (table.model == model)]
            for scheme, (colour, style) in styles.items():
                line = part[part.scheme == scheme].sort_values("views")
                axis.plot(
                    line.views,
                    100 * line.difference,
                    style,
                    color=colour,
                    label=scheme,
                    markersize=4,
                )
                axis.fill_between(
                    line.views,
                    100 * line.difference_low,
                    100 * line.difference_high,
                    color=colour,
                    alpha=0.12,
                )
            clean = part[part.scheme == "clean"].iloc[0]
            axis.axhline(
                100 * clean.difference, color="black", linestyle=":", label="clean view alone"
            )
            axis.axhline(100 * MARGIN, color=GREY, linewidth=1)
            axis.set_xscale("log", base=2)
            axis.set_xticks([1, 2, 4, 8, 16, 30], [1, 2, 4, 8, 16, 30])
            reference = part[(part.scheme == "cycle") & (part.views == 30)].accuracy.iloc[0]
            axis.set_title(f"{dataset}\n{model}: {reference:.1%} with 30 views", fontsize=9)
        row[0].set_ylabel("points over 30 views")
    for axis in axes[1]:
        axis.set_xlabel("views K")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    weights = "\n".join(f"{name}: {source[:110]}" for name, source in sources.items())
    title = f"5 folds, seeds {shown}, held-out test folds; bands: 95 % intervals; grey line: margin of 1 point"
    figure.suptitle(f"{title}\n{weights}", fontsize=8)
    return figure


def main(arguments=None):
    """Measures, decides, writes -> exit code."""
    parser = make_parser(
        __doc__, data="a folder with both datasets", weights="a folder with the backbones' weights"
    )
    parser.add_argument(
        "--cache-dir", default=default_cache(), help="keeps the features (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="train heads for so long; run again to go on",
    )
    options = parser.parse_args(arguments)
    out = Path(options.out)
    unfinished = out / "result/benchmarks/views_unfinished"
    for folder in (unfinished, out / "img"):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for dataset in (FACES, INSECTS):
        image_set = load_dataset(options.data, dataset)
        features, infos = draw_views(
            image_set, views_of(dataset), options.weights, options.cache_dir
        )
        drawn[dataset] = image_set, features
    sources = {name: info.source for name, info in infos.items()}
    used = json.dumps(
        [infos, str(choose_precision(choose_device())), machine()["versions"]]
    ).encode()
    unfinished = (
        unfinished / hashlib.sha256(used).hexdigest()[:12]
    )  # what was measured with other weights is not taken
    unfinished.mkdir(exist_ok=True)
    raw = measure_all(unfinished, drawn, options.minutes)
    table, stamp = make_table(raw), new_stamp(out)
    winner, steps = decide(table)
    shown = table[table.seeds == most_seeds(table)].drop(columns="seeds")
    print(shown.to_string(index=False, float_format="%.4f"))
    print("\n".join(steps), f"\ndefault: {winner or 'nothing short of the reference'}")
    described = {
        "weights": sources,
        "winner": winner,
        "steps": steps,
        "seeds": most_seeds(table),
    } | machine()
    text = json.dumps(described, indent=1)
    write_new(out / f"result/benchmarks/views_{stamp}.csv", lambda p: table.to_csv(p, index=False))
    write_new(
        out / f"result/benchmarks/views_{stamp}.json",
        lambda p: p.write_text(text + "\n", encoding="utf-8"),
    )
    flat = {
        "/".join(map(str, (*key, block, name))): value
        for key, blocks in raw.items()
        for block, values in blocks.items()
        for name, value in values.items()
    }
    flat = {
        key: value.astype(np.float16) if key.endswith("loss") else value
        for key, value in flat.items()
    }
    write_new(
        out / f"result/benchmarks/views_raw_{stamp}.npz", lambda p: np.savez_compressed(p, **flat)
    )
    write_new(
        out / f"img/views_{stamp}.png",
        lambda p: plot_curves(table, sources).savefig(p, dpi=120, format="png"),
    )
    clear_cache(options.cache_dir, keep_bytes=cache_bound())
    return 0


if __name__ == "__main__":
    run_command(main)

"""The figure at the top of the report: the whole result in one look."""

import matplotlib.pyplot as plt

from transferlab.plots import BLUE, GREY, ORANGE


def mark(axis, place, value, low, high, style, colour):
    """A point with its interval in percent, the value written beside it."""
    axis.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2.5)
    axis.plot(100 * value, place, style, color=colour, markersize=8, markeredgecolor="white")
    axis.annotate(
        f"{100 * value:.1f}",
        (100 * value, place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )


def draw_checkpoints(axis, rows, title):
    """Accuracies of checkpoints with their intervals; rows: (name, value, low, high, whether from random weights)."""
    for place, (_, value, low, high, random) in enumerate(rows):
        mark(axis, -place, value, low, high, "s" if random else "o", GREY if random else BLUE)
    axis.set_yticks(
        [-place for place in range(len(rows))],
        [f"{name}{' (random)' * random}" for name, *_, random in rows],
    )
    axis.set(title=title, xlabel="accuracy (%), 95 % interval", ylim=(-len(rows) + 0.4, 0.7))
    axis.spines[["top", "right"]].set_visible(False)


def run_rows(runs):
    """The rows of study runs for `draw_checkpoints`."""
    return [
        (
            run["model"],
            run["best"]["val_acc"],
            *run["accuracy_interval"],
            run["weights"]["kind"] == "random",
        )
        for run in runs
    ]


def draw_overview(context):
    """Faces and insects side by side -> figure. Faces: from the comparison, where one is named, else the study's split."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    runs, compared = context["runs"], context["compared_faces"]
    faces, n = run_rows([runs["resnet50"], runs["densenet121"]]), runs["resnet50"]["n_val"]
    title = f"faces, study's split, n = {n}"
    if compared:
        faces = [
            (row["model"], row["accuracy"], row["accuracy_low"], row["accuracy_high"], False)
            for row in compared["metrics"]
            if not row["baseline"]
        ]
        title = f"faces, held-out folds, n = {compared['n']}: " + ", ".join(
            pair["verdict"] for pair in compared["pairs"]
        )
    draw_checkpoints(left, faces, title)
    counts = (
        context["audit_faces"]["classes"].values() if compared and context["audit_faces"] else []
    )  # of all faces, as folds are
    majority, of = (
        (max(counts) / sum(counts), "all faces")
        if counts
        else (context["majority"], "the study's split")
    )
    left.axvline(100 * majority, color=ORANGE, linestyle="--", linewidth=1.2)
    left.text(100 * majority, 0.62, f" majority class of {of}", color=ORANGE, fontsize=8, va="top")
    insects = run_rows([run for run in runs.values() if run["data"] != runs["resnet50"]["data"]])
    draw_checkpoints(
        right, insects, f"ants and bees, shipped split, n = {runs['efficientnet_lite0']['n_val']}"
    )
    random = "random initialisation: measures no transfer"
    sources = {
        name: random if run["weights"]["kind"] == "random" else run["weights"]["source"][:90]
        for name, run in runs.items()
    }
    figure.suptitle(
        "\n".join(f"{name}: {source}" for name, source in sources.items()),
        fontsize=6.5,
        color="#555555",
    )
    return figure

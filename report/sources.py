"""What the report is made from: the files that report/runs.toml names, each checked against what it was itself made from."""

import hashlib
import json
import math
import tomllib
from operator import itemgetter
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from sklearn.metrics import accuracy_score, f1_score
from typed import fail

from transferlab.metrics import accuracy_interval, mcnemar_p
from transferlab.techniques import paired_tests, summarise_techniques

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "01": ["resnet50"],
    "02": ["densenet121"],
    "03": ["efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"],
}
BENCHMARKS = ("views", "engine", "findings", "domain_gap", "roofline", "scaling")
DATASETS = {"faces": "manga_facial_expressions", "insects": "hymenoptera_data"}


def read_named_files():
    """{(notebook or benchmark, "summary/resnet50" or "img/resnet50_combined"): path relative to the repository} of runs.toml.

    Raises:
        SystemExit: a named file is missing or has changed since it was published.
    """
    named = {}
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        path = ROOT / entry["path"]
        if not path.is_file():
            fail(f"{entry['path']} is named in report/runs.toml and missing: run `make publish`")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            fail(
                f"{entry['path']} has changed since it was published: restore it or run `make publish`"
            )
        stem = path.stem[: -len("_YYYYmmdd_HHMMSS")]
        kind = (
            f"summary/{stem.removesuffix('_summary')}"
            if stem.endswith("_summary")
            else f"{path.parent.name}/{stem}"
        )
        named[entry["notebook"], kind] = entry["path"]
    return named


def read_run(named, notebook, model):
    """One run's summary, with `path` and `seconds`; checked against its own predictions, curves and figures.

    Raises:
        SystemExit: it does not say on which data and weights it was made, its frozen part changed, or its parts disagree.
    """
    path = named[notebook, f"summary/{model}"]
    run = json.loads((ROOT / path).read_text(encoding="utf-8"))
    if not run["data_digest"] or not run["weights"]["sha256"]:
        fail(f"the run of {model} does not say on which data and weights it was made")
    if run["frozen_hash_before"] != run["frozen_hash_after"]:
        fail(f"the frozen part of {model} changed while its head was trained")
    stamp, results = (
        path[-len("YYYYmmdd_HHMMSS.json") : -len(".json")],
        named[notebook, f"result/{model}_results"],
    )
    others = [results] + [
        path
        for (place, kind), path in named.items()
        if place == notebook and kind.startswith(f"img/{model}_")
    ]
    if any(not Path(other).stem.endswith(stamp) for other in others):
        fail(
            f"{path} and its curves and figures come from different runs: publish the notebook again"
        )
    wrong = disagreements(run, pd.read_csv(ROOT / results))
    if wrong:
        fail(f"{path} says otherwise than its predictions and curve: {', '.join(wrong)}")
    return run | {
        "path": path,
        "seconds": sum(run["timings"].values()),
        "errors": describe_errors(run),
    }


def disagreements(run, history):
    """The names of what a run's summary says otherwise than its stored predictions and its curve (data frame) do."""
    labels, predictions, best = (
        run["val_labels"],
        run["val_predictions"],
        history.loc[history.val_loss.idxmin()],
    )
    accuracy = accuracy_score(labels, predictions)
    low, high = accuracy_interval(round(accuracy * len(labels)), len(labels))
    f1 = f1_score(labels, predictions, average="macro")
    pairs = {
        "accuracy": (run["best"]["val_acc"], accuracy),
        "curve": (best.val_acc, accuracy),
        "epoch": (run["best"]["epoch"], best.epoch),
        "macro_f1": (run["macro_f1"], f1),
        "low": (run["accuracy_interval"][0], low),
        "high": (run["accuracy_interval"][1], high),
        "images": (run["n_val"], len(labels)),
    }
    return [name for name, (told, found) in pairs.items() if abs(told - found) > 1e-6]


def describe_errors(run):
    """Where a run errs: recall by class, the three pairs most often confused and those as often as the third, the classes never
    predicted."""
    true, guess = pd.Series(run["val_labels"]), pd.Series(run["val_predictions"])
    classes, wrong = run["classes"], true != guess
    pairs = [
        (classes[a], classes[b], int(n))
        for (a, b), n in pd.crosstab(true[wrong], guess[wrong]).stack().items()
        if n
    ]
    pairs.sort(key=lambda pair: -pair[2])
    least = min((n for _, _, n in pairs[:3]), default=0)
    return {
        "recall": {
            name: (float((guess[true == i] == i).mean()), int((true == i).sum()))
            for i, name in enumerate(classes)
        },
        "pairs": [pair for pair in pairs if pair[2] >= least],
        "never": [name for i, name in enumerate(classes) if i not in set(guess)],
    }


def read_benchmark(named, name):
    """A named benchmark: its .json (machine, versions, weights), its table's "rows" and "path"; None where none is named."""
    if (name, f"benchmarks/{name}") not in named:
        return None
    stem = ROOT / named[name, f"benchmarks/{name}"]
    described = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    rows = pd.read_csv(stem.with_suffix(".csv")).to_dict("records")
    given = [
        {key: value for key, value in row.items() if value == value} for row in rows
    ]  # without what a row leaves empty
    return described | {"rows": given, "path": str(stem.with_suffix(".csv").relative_to(ROOT))}


def read_peers(named):
    """The named benchmark of peers, its "ratios" as lines of the report; None where none is named."""
    described = read_benchmark(named, "peers")
    if described:
        for english, korean in {
            "median of ": "바퀴 수 ",
            "mean epochs": "평균 에포크",
            " and ": ", ",
        }.items():
            described["ratios"] = [line.replace(english, korean) for line in described["ratios"]]
    return described


def read_techniques(named):
    """The named benchmark of techniques, its folds summed up in "summary" (rows, each with its own {reference: test} in "tests"), the
    "tests" of `paired_tests`, and how they came out in "overview"; None where none is named.

    What a GPU has tuned stands in the same lists, its kind "gpu", its machine and time in "gpu" (None: no GPU was used, or nothing
    else). "name" is that of the benchmark's figure.

    Raises:
        SystemExit: the two were measured in another way, or with other data or weights.
    """
    described, gpu, name = (
        read_benchmark(named, "techniques"),
        read_benchmark(named, "techniques_gpu"),
        "techniques",
    )
    if not described:
        described, gpu, name = gpu, None, "techniques_gpu"
    if not described:
        return None
    table = pd.DataFrame(described["rows"])
    if gpu:
        others = {
            model: gpu["weights"].get(model, one) for model, one in described["weights"].items()
        }
        same = [
            gpu[key] == described[key] for key in ("data", "folds", "size", "epochs", "settings")
        ]
        if others != described["weights"] or not all(same):
            fail(
                f"{gpu['path']} was measured on other data, weights or settings than {described['path']}: publish one of them again"
            )
        tuned = pd.DataFrame(gpu["rows"]).query("kind == 'tuned'").assign(kind="gpu")
        described["left_out"] = join_left_out(described, gpu["left_out"], tuned)
        gpu["agreement"] = compare_machines(table, tuned)
        table = pd.concat([table, tuned])
    tests, summary = (
        paired_tests(table).to_dict("records"),
        summarise_techniques(table).to_dict("records"),
    )
    place = itemgetter("kind", "dataset", "model", "technique")
    for row in summary:
        row["tests"] = {test["reference"]: test for test in tests if place(test) == place(row)}
    return described | {
        "summary": summary,
        "tests": tests,
        "overview": list_verdicts(tests),
        "gpu": gpu,
        "name": name,
    }


def compare_machines(table, tuned):
    """How far the rows of two machines agree -> a dict a pair that both tuned: "dataset", "model", "techniques" of both, "largest"
    difference in how many of "n" images are right."""
    place = ["dataset", "model", "technique"]
    sums = [
        one.groupby(place, sort=False)[["correct", "n"]].sum().reset_index()
        for one in (table[table.kind == "tuned"], tuned)
    ]
    both = pd.merge(*sums, on=[*place, "n"])
    both["apart"] = (both.correct_x - both.correct_y).abs()
    grouped = both.groupby(place[:2], sort=False).agg(
        techniques=("apart", "size"), largest=("apart", "max"), n=("n", "max")
    )
    return grouped.reset_index().to_dict("records")


def join_left_out(described, of_gpu, tuned):
    """What neither machine has measured, from the benchmark `described`, what the GPU's left out, and the rows that it `tuned`: the
    techniques of a pair that it has begun are named, other pairs as a whole."""
    left_out, rows = described["left_out"], [*described["rows"], *tuned.to_dict("records")]
    done = {
        (row["dataset"], row["model"], row["technique"]) for row in rows if row["kind"] != "frozen"
    }
    begun = {pair[:2] for pair in done}
    pairs = [
        one | {"models": [name for name in one["models"] if (one["dataset"], name) not in begun]}
        for one in left_out["pairs"]
    ]
    incomplete = [one for one in left_out["incomplete"] if one["kind"] == "frozen"]
    for one in [*left_out["incomplete"], *of_gpu["incomplete"]]:
        names = [
            name for name in one["techniques"] if (one["dataset"], one["model"], name) not in done
        ]
        if one["kind"] == "tuned" and (one["dataset"], one["model"]) in begun and names:
            incomplete.append(one | {"techniques": names})
    return left_out | {"pairs": [one for one in pairs if one["models"]], "incomplete": incomplete}


def list_verdicts(tests):
    """How the tests of each technique came out: {"kind", "technique", "reference", "pairs": how many it was tested on, "better",
    "worse", "indistinguishable": on how many of them, "difference": the median} from rows of `paired_tests`."""
    grouped = {}
    for test in tests:
        grouped.setdefault((test["kind"], test["technique"], test["reference"]), []).append(test)
    rows = []
    for (kind, technique, reference), found in grouped.items():
        counts = {
            verdict: sum(test["verdict"] == verdict for test in found)
            for verdict in ("better", "worse", "indistinguishable")
        }
        named = {"kind": kind, "technique": technique, "reference": reference, "pairs": len(found)}
        rows.append(named | counts | {"difference": median(test["difference"] for test in found)})
    return rows


def read_comparison(named, data, kind="compare"):
    """A named comparison on one dataset: its summary with "metrics" and "pairs" (rows), recomputed from its predictions, "path" and
    "differences" ({model: {other model: its pair, turned so that the difference is the model less the other}}); or None.

    Raises:
        SystemExit: metrics or pairs do not follow from the predictions.
    """
    key = f"{kind}/{data}"
    if (key, "summary/compare") not in named:
        return None
    described = json.loads((ROOT / named[key, "summary/compare"]).read_text(encoding="utf-8"))
    parts = [
        pd.read_csv(ROOT / named[key, f"result/compare_{part}"])
        for part in ("metrics", "pairs", "predictions")
    ]
    metrics, pairs, predictions = parts
    accuracies = (predictions.label == predictions.predicted).groupby(predictions.model).mean()
    for row in metrics.itertuples():
        if abs(accuracies[row.model] - row.accuracy) > 1e-9:
            fail(
                f"{row.model} on {data}: accuracy {row.accuracy} does not follow from its predictions"
            )
    for row in pairs.itertuples():
        if (
            abs(accuracies[row.model_a] - accuracies[row.model_b] - row.difference) > 0.01
        ):  # folds differ in size by an image
            fail(
                f"{row.model_a} less {row.model_b} on {data}: {row.difference} does not follow from their predictions"
            )
    path = named[key, "result/compare_metrics"]
    rows, differences = pairs.to_dict("records"), {}
    for row in rows:
        a, b = row["model_a"], row["model_b"]
        differences.setdefault(a, {})[b] = row
        differences.setdefault(b, {})[a] = row | {"difference": -row["difference"]}
    return described | {
        "metrics": metrics.to_dict("records"),
        "pairs": rows,
        "differences": differences,
        "path": path,
    }


def read_audit(named, data):
    """A named audit of one dataset: its summary and "path"; None where none is named."""
    path = named.get((f"audit/{data}", "summary/audit"))
    return json.loads((ROOT / path).read_text(encoding="utf-8")) | {"path": path} if path else None


def read_published(runs):
    """The study's published percentages: a list of rows with the nearest attainable counts, and our run of the same backbone."""
    rows = tomllib.loads((ROOT / "report/published.toml").read_text(encoding="utf-8"))["figures"]
    for row in rows:
        decimals, value = len(row["percent"].split(".")[1]), float(row["percent"])
        attained = [
            k for k in range(row["n"] + 1) if f"{100 * k / row['n']:.{decimals}f}" == row["percent"]
        ]
        below = math.floor(value * row["n"] / 100)
        row |= {
            "k": attained[0] if attained else None,
            "near": [(below + i) / row["n"] for i in (0, 1)],
            "run": runs[row["model"]],
        }
    return rows


def paired(resnet, densenet):
    """Exact McNemar of the two on the same validation images; the labels are those that each summary stores."""
    if (
        resnet["split_hash"] != densenet["split_hash"]
        or resnet["data_digest"] != densenet["data_digest"]
    ):
        fail("resnet50 and densenet121 were not run on the same split: publish 01 and 02 together")
    labels = torch.tensor(resnet["val_labels"])
    right = [torch.tensor(run["val_predictions"]) == labels for run in (resnet, densenet)]
    return {
        "mcnemar": mcnemar_p(*right),
        "only_resnet": int((right[0] & ~right[1]).sum()),
        "only_densenet": int((right[1] & ~right[0]).sum()),
        "both_wrong": int((~right[0] & ~right[1]).sum()),
    }


def load_context():
    """All that the templates may speak of: the runs in reading order, figures by name, benchmarks, comparisons, audits."""
    named = read_named_files()
    runs = {
        model: read_run(named, notebook, model)
        for notebook, models in MODELS.items()
        for model in models
    }
    context = {name: read_benchmark(named, name) for name in BENCHMARKS}
    context["peers"] = read_peers(named)
    context["techniques"] = read_techniques(named)
    context |= {
        f"compared_{short}": read_comparison(named, data) for short, data in DATASETS.items()
    }
    context["architectures"] = [
        found
        for data in DATASETS.values()
        if (found := read_comparison(named, data, "architectures"))
    ]
    context |= {f"audit_{short}": read_audit(named, data) for short, data in DATASETS.items()}
    resnet = runs["resnet50"]
    majority = max(map(resnet["val_labels"].count, range(len(resnet["classes"])))) / resnet["n_val"]
    figures = {f"{notebook}/{kind}": path for (notebook, kind), path in named.items()}
    context |= {"runs": runs, "figures": figures, "median": median, "majority": majority}
    return context | paired(resnet, runs["densenet121"]) | {"published": read_published(runs)}

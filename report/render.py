"""Renders experiment_report.md, and the results in README.md, from the runs that report/runs.toml names (`make report`)."""

import hashlib
import json
import sys
import tomllib
from pathlib import Path
from statistics import median

import jinja2
import pandas as pd
import torch

from transferlab.metrics import mcnemar_p

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: rendered by `make report` -->", "<!-- end of results -->"
BENCHMARKS = ("views", "engine", "findings", "domain_gap", "peers", "roofline", "scaling")
MODELS = {"01": ["resnet50"], "02": ["densenet121"], "03": ["efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"]}


def read_named_files():
    """{(notebook, "summary/resnet50" or "img/resnet50_combined"): path relative to the repository} of report/runs.toml.

    Raises:
        SystemExit: a named file is missing or has changed since it was published.
    """
    named = {}
    for entry in tomllib.loads((ROOT / "report/runs.toml").read_text(encoding="utf-8"))["files"]:
        path = ROOT / entry["path"]
        if not path.is_file():
            sys.exit(f"error: {entry['path']} is named in report/runs.toml and missing: run `make publish`")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            sys.exit(f"error: {entry['path']} has changed since it was published: restore it or run `make publish`")
        stem = path.stem[: -len("_YYYYmmdd_HHMMSS")]
        kind = f"summary/{stem.removesuffix('_summary')}" if stem.endswith("_summary") else f"{path.parent.name}/{stem}"
        named[entry["notebook"], kind] = entry["path"]
    return named


def count_text(proportion, n):
    """A proportion of n images as "41.5 % (66/159)".

    Raises:
        SystemExit: it is not k/n of that n, so it is not what it claims to be.
    """
    k = round(proportion * n)
    if abs(k / n - proportion) > 1e-9:
        sys.exit(f"error: {proportion} is no proportion of {n} images")
    return f"{100 * proportion:.1f} % ({k}/{n})"


def load_context():
    """All that the templates may speak of: the runs in reading order, figures by name, helpers that check what they format."""
    named = read_named_files()
    runs = {}
    for notebook, models in MODELS.items():
        for model in models:
            summary = json.loads((ROOT / named[notebook, f"summary/{model}"]).read_text(encoding="utf-8"))
            if not summary["data_digest"] or not summary["weights"]["sha256"]:
                sys.exit(f"error: the run of {model} does not say on which data and weights it was made")
            if summary["frozen_hash_before"] != summary["frozen_hash_after"]:
                sys.exit(f"error: the frozen part of {model} changed while its head was trained")
            runs[model] = summary | {"path": named[notebook, f"summary/{model}"], "seconds": sum(summary["timings"].values())}
    resnet, densenet = runs["resnet50"], runs["densenet121"]
    if resnet["split_hash"] != densenet["split_hash"] or resnet["data_digest"] != densenet["data_digest"]:
        sys.exit("error: resnet50 and densenet121 were not run on the same split: publish 01 and 02 together")
    figures = {f"{notebook}/{kind}": path for (notebook, kind), path in named.items()}
    benchmarks = {name: read_benchmark(named, name) for name in BENCHMARKS}
    majority = max(map(resnet["val_labels"].count, range(len(resnet["classes"])))) / resnet["n_val"]
    helpers = {"count": count_text, "median": median, "majority": majority}
    return {"runs": runs, "figures": figures, **helpers, **benchmarks, **paired(resnet, densenet)}


def read_benchmark(named, name):
    """A named benchmark: its .json (machine, versions, weights), its table's "rows" and "path"; None where none is named."""
    if (name, f"benchmarks/{name}") not in named:
        return None
    stem = ROOT / named[name, f"benchmarks/{name}"]
    described = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    table = pd.read_csv(stem.with_suffix(".csv"))
    return described | {"rows": table.to_dict("records"), "path": str(stem.with_suffix(".csv").relative_to(ROOT))}


def paired(resnet, densenet):
    """Exact McNemar of the two on the same validation images; the labels are those that each summary stores."""
    labels = torch.tensor(resnet["val_labels"])
    right = [torch.tensor(run["val_predictions"]) == labels for run in (resnet, densenet)]
    return {
        "mcnemar": mcnemar_p(*right),
        "only_resnet": int((right[0] & ~right[1]).sum()),
        "only_densenet": int((right[1] & ~right[0]).sum()),
    }


def render():
    """{path: text} of everything that is rendered."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "report"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    context = load_context()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    results = environment.get_template("readme_results.md.j2").render(context)
    return {
        ROOT / "experiment_report.md": environment.get_template("report.md.j2").render(context),
        ROOT / "README.md": f"{before}{BEGIN}\n{results}{END}{after}",
    }


def main():
    """Writes what has changed -> exit code."""
    for path, text in render().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"rendered {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Renders experiment_report.md, the results in README.md and the overview figure from the files that report/runs.toml names
(`make report`). It refuses a sentence that ranks without a test, and one that hides that a run measures no transfer."""

import hashlib
import re
import sys

import jinja2
from overview import draw_overview
from PIL import Image
from sources import ROOT, load_context
from typed import FILTERS, fail, points, proportion

BEGIN, END = "<!-- results: rendered by `make report` -->", "<!-- end of results -->"
OVERVIEW = "img/report_overview.png"
# A sentence that ranks: it must be one that `rank` has made from a test's verdict.
RANKS = re.compile(r"보다[^.|]*(정확|낫|나은|나았|높|앞서|앞섰|뛰어|많이 맞)|better|more accurate")


def rank(row):
    """A pair of a comparison as a sentence: which is more accurate where the test says so, else that they cannot be told apart."""
    difference = f"{points(row['difference'])} %p [{points(row['low'])}, {points(row['high'])}]"
    told = f"{row['model_a']}의 정확도에서 {row['model_b']}의 정확도를 빼면 {difference}"
    if row["verdict"] == "indistinguishable":
        return f"{told}로 **구별할 수 없습니다**"
    better, worse = (
        row[name]
        for name in (("model_a", "model_b") if row["difference"] > 0 else ("model_b", "model_a"))
    )
    if row["verdict"] != f"{better} better" or row["low"] <= 0 <= row["high"]:
        fail(f"the verdict {row['verdict']!r} does not follow from {difference}")
    return f"{told}이므로 {better} 체크포인트가 {worse} 체크포인트보다 정확합니다"


def check_rankings(text, allowed, claims=()):
    """Every sentence of the rendered text that ranks is one that a test's verdict has made, or one of the study's `claims`
    (claim, verdict) in a row of a table that gives the verdict.

    Raises:
        SystemExit: one is not.
    """
    for line in text.splitlines():
        judged = [
            claim for claim, verdict in claims if line.startswith("|") and f"**{verdict}**" in line
        ]
        for sentence in map(str.strip, re.split(r"(?<=\.)\s|\|", line)):
            if (
                RANKS.search(sentence)
                and sentence not in judged
                and not any(one in sentence or sentence in one for one in allowed)
            ):
                fail(f'this sentence ranks without a test: "{sentence[:120]}"')


def check_disclosed(text, runs):
    """A line that gives the accuracy of a run with random weights or on drawn pictures says so.

    Raises:
        SystemExit: one does not.
    """
    marks = {"random": ("random", "무작위"), "synthetic": ("synthetic", "그린 그림")}
    for run in runs.values():
        needed = [marks["random"]] * (run["weights"]["kind"] == "random") + [
            marks["synthetic"]
        ] * run["synthetic"]
        shown = proportion(run["best"]["val_acc"], run["n_val"])
        for line in text.splitlines():
            if (
                shown in line
                and run["model"] in line
                and not all(any(word in line for word in words) for words in needed)
            ):
                fail(
                    f'{run["model"]} measures no transfer and this line does not say so: "{line[:120]}"'
                )


def render(context):
    """{path: text} of everything that is rendered; `context` as `load_context` gives it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    ranked, claims = [], []

    def recorded(row):
        ranked.append(rank(row))
        return ranked[-1]

    def claim(text, verdict):
        claims.append((text, verdict))
        return text

    context = context | {"rank": recorded, "claim": claim, "overview": OVERVIEW}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    texts = [
        environment.get_template(name).render(context)
        for name in ("report.md.j2", "readme_results.md.j2")
    ]
    for text in texts:
        check_rankings(text, ranked, claims)
        check_disclosed(text, context["runs"])
    return {
        ROOT / "experiment_report.md": texts[0],
        ROOT / "README.md": f"{before}{BEGIN}\n{texts[1]}{END}{after}",
    }


def overview_source():
    """What the overview figure is drawn from: the SHA-256 of report/runs.toml, which holds those of all files, and of its code."""
    return hashlib.sha256(
        (ROOT / "report/runs.toml").read_bytes() + (ROOT / "report/overview.py").read_bytes()
    ).hexdigest()


def drawn_source():
    """What the overview figure that lies there was drawn from, as it says itself; None where there is none."""
    path = ROOT / OVERVIEW
    return Image.open(path).info.get("Source") if path.is_file() else None


def main():
    """Writes what has changed -> exit code."""
    context = load_context()
    for path, text in render(context).items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"rendered {path.relative_to(ROOT)}")
    if drawn_source() != overview_source():
        draw_overview(context).savefig(
            ROOT / OVERVIEW, dpi=120, metadata={"Source": overview_source()}
        )
        print(f"drawn {OVERVIEW}: git add --force it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

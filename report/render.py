"""Renders experiment_report.md, the results in README.md and the overview figure from the files
that report/runs.toml names (`make report`).

It refuses a sentence that ranks without a test, and one that hides that a run measures no transfer.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import jinja2
from named import ROOT
from overview import draw_overview
from PIL import Image
from runs import Run
from sources import Context, load_context
from typed import FILTERS, fail, interval_of, points, proportion, score

from transferlab.verdicts import ALIKE, IDENTICAL, TOO_FEW_REPEATS, PairTest

BEGIN = "<!-- results: rendered by `make report` -->"
END = "<!-- end of results -->"
OVERVIEW = "img/report_overview.png"
# A sentence that ranks: it must be one that `rank` has made from a test's verdict.
RANKS = re.compile(
    "보다[^.|]*(정확|낫|나은|나았|높|앞서|앞섰|뛰어|많이 맞)|better|more accurate",
)
SENTENCE_END = re.compile(r"(?<=\.)\s|\|")
RANDOM_WORDS = ("random", "무작위")
DRAWN_WORDS = ("synthetic", "그린 그림")


# ---- what may rank ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the study, and the verdict that stands beside it in a table."""

    text: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was made from a test while a text was rendered."""

    sentences: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def rank(self, pair: PairTest) -> str:
        """`rank`, remembered."""
        sentence = rank(pair)
        self.sentences.append(sentence)
        return sentence

    def claim(self, text: str, verdict: str) -> str:
        """The text of a claim, remembered with its verdict."""
        self.claims.append(Claim(text=text, verdict=verdict))
        return text


def rank(pair: PairTest) -> str:
    """A pair of a comparison as a sentence: which is more accurate where the test says so, else
    that they cannot be told apart, are right on the same images, or were not judged.

    Raises:
        SystemExit: the verdict does not follow from the difference and its interval.
    """
    test = pair.test
    difference = f"{points(test.difference)} %p [{points(test.low)}, {points(test.high)}]"
    told = f"{pair.model_a}의 정확도에서 {pair.model_b}의 정확도를 빼면 {difference}"
    if pair.verdict == ALIKE and test.low <= 0 <= test.high:
        return f"{told}로 **구별할 수 없습니다**"
    if pair.verdict == ALIKE:  # the interval is that of this pair alone, the verdict that of many
        p = score(pair.p_holm)
        return f"{told}이지만, 모든 짝에 대해 보정한 p가 {p}이므로 **구별할 수 없습니다**"
    if pair.verdict == TOO_FEW_REPEATS and pair.p_holm is None:
        return f"{told}이며, 되풀이가 적어 학습의 흔들림을 담지 않았으므로 판정하지 않습니다"
    if pair.verdict == IDENTICAL and test.difference == test.error == 0:
        return f"{told}으로 **맞힌 이미지가 모두 같습니다**"
    better = pair.model_b
    worse = pair.model_a
    if test.difference > 0:
        better = pair.model_a
        worse = pair.model_b
    if pair.verdict != f"{better} better" or test.low <= 0 <= test.high:
        fail(f"the verdict {pair.verdict!r} does not follow from {difference}")
    return f"{told}이므로 {better} 체크포인트가 {worse} 체크포인트보다 정확합니다"


def is_part(one: str, other: str) -> bool:
    """Whether one of two texts holds the other."""
    return one in other or other in one


def ranking_sentences(line: str) -> Iterator[str]:
    """The sentences and cells of a line that rank."""
    for part in SENTENCE_END.split(line):
        sentence = part.strip()
        if RANKS.search(sentence):
            yield sentence


def claims_in(line: str, claims: Iterable[Claim]) -> list[str]:
    """The claims whose verdict stands in this row of a table."""
    if not line.startswith("|"):
        return []
    return [claim.text for claim in claims if f"**{claim.verdict}**" in line]


def check_rankings(text: str, allowed: Sequence[str], claims: Sequence[Claim] = ()) -> None:
    """Every sentence of the rendered text that ranks is one that a test's verdict has made, or one
    of the study's `claims` in a row of a table that gives the verdict.

    Raises:
        SystemExit: one is not.
    """
    for line in text.splitlines():
        judged = claims_in(line, claims)
        for sentence in ranking_sentences(line):
            tested = any(is_part(one, sentence) for one in allowed)
            if not tested and sentence not in judged:
                fail(f'this sentence ranks without a test: "{sentence[:120]}"')


# ---- what must be disclosed ------------------------------------------------------------------


def words_needed(run: Run) -> list[tuple[str, str]]:
    """What a line must say of a run: of each group one word."""
    needed = []
    if run.random:
        needed.append(RANDOM_WORDS)
    if run.record.dataset.synthetic:
        needed.append(DRAWN_WORDS)
    return needed


def check_disclosed(text: str, runs: dict[str, Run]) -> None:
    """A line that gives the accuracy of a run with random weights or on drawn pictures says so.

    Raises:
        SystemExit: one does not.
    """
    for run in runs.values():
        record = run.record
        shown = proportion(record.best.val_acc, record.n_val)
        needed = words_needed(run)
        for line in text.splitlines():
            speaks = shown in line and record.model in line
            says_so = all(any(word in line for word in words) for words in needed)
            if speaks and not says_so:
                told = f"{record.model} measures no transfer and this line does not say so"
                fail(f'{told}: "{line[:120]}"')


# ---- rendering -------------------------------------------------------------------------------


def make_environment(root: Path) -> jinja2.Environment:
    """The templates, with the typed numbers as filters; what is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root / "report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in FILTERS:
        environment.filters[function.__name__] = function
    return environment


def render_template(context: Context, name: str) -> str:
    """One template's text, checked.

    Raises:
        SystemExit: it ranks without a test, or hides that a run measures no transfer.
    """
    template = make_environment(context.root).get_template(name)
    judged = Judged()
    text = template.render(
        vars(context),
        rank=judged.rank,
        claim=judged.claim,
        median=median,
        interval_of=interval_of,
        overview=OVERVIEW,
    )
    check_rankings(text, judged.sentences, judged.claims)
    check_disclosed(text, context.runs)
    return text


def render(context: Context) -> dict[Path, str]:
    """{path: text} of everything that is rendered.

    Raises:
        SystemExit: as `render_template`.
    """
    report = render_template(context, "report.md.j2")
    results = render_template(context, "readme_results.md.j2")
    readme = context.root / "README.md"
    written = readme.read_text(encoding="utf-8")
    before = written.split(BEGIN)[0]
    after = written.split(END)[1]
    return {
        context.root / "experiment_report.md": report,
        readme: f"{before}{BEGIN}\n{results}{END}{after}",
    }


def overview_source(root: Path = ROOT) -> str:
    """What the overview figure is drawn from: the SHA-256 of report/runs.toml, which holds those of
    all files, and of its code."""
    runs = (root / "report/runs.toml").read_bytes()
    code = (root / "report/overview.py").read_bytes()
    return hashlib.sha256(runs + code).hexdigest()


def drawn_source(root: Path = ROOT) -> str | None:
    """What the overview figure that lies there was drawn from, as it says itself; None where there
    is none."""
    path = root / OVERVIEW
    if not path.is_file():
        return None
    return Image.open(path).info.get("Source")


def main() -> int:
    """Writes what has changed -> exit code."""
    context = load_context()
    for path, text in render(context).items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"rendered {path.relative_to(ROOT)}")
    source = overview_source()
    if drawn_source() != source:
        figure = draw_overview(context)
        figure.savefig(ROOT / OVERVIEW, dpi=120, metadata={"Source": source})
        print(f"drawn {OVERVIEW}: git add --force it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

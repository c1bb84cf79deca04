"""The benchmarks that are named: their records and tables."""

from dataclasses import dataclass
from typing import Any

from named import Named, Row, hash_of, read_rows
from typed import fail

from transferlab.published import read_record
from transferlab.records import BenchmarkRecord, from_plain
from transferlab.train import Settings

# What these were measured with before schema 2, when their records did not say it.
UNTOLD = {
    "engine": Settings(views=30, rule="cycle"),
    "scaling": Settings(views=30, rule="cycle"),
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark that is named."""

    record: BenchmarkRecord
    rows: list[Row]  # of its table
    path: str  # of its table

    @property
    def facts(self) -> dict[str, Any]:
        """What only this benchmark says."""
        return self.record.facts

    @property
    def settings(self) -> Settings | None:
        """What it was measured with; None where that is not one thing."""
        if self.record.schema == 1 and self.record.settings is None:
            return UNTOLD.get(self.record.kind)
        return self.record.settings


def read_benchmark(named: Named, name: str) -> Benchmark | None:
    """A named benchmark; None where none is named."""
    kind = f"benchmarks/{name}"
    if not named.has(name, kind):
        return None
    stem = named.file(name, kind)
    table = stem.with_suffix(".csv")
    path = table.relative_to(named.root)
    return Benchmark(
        record=read_record(stem.with_suffix(".json"), BenchmarkRecord),
        rows=read_rows(table),
        path=path.as_posix(),
    )


# ---- peers -----------------------------------------------------------------------------------

RATIO_WORDS = {
    "best of ": "가장 빠른 ",
    "median of ": "바퀴 수 ",
    " to ": "–",
    "goal ": "목표 ",
    "moonshot ": "큰 목표 ",
    ": met": ": 이룸",
    ": missed": ": 못 이룸",
}


@dataclass(frozen=True, kw_only=True)
class Peers(Benchmark):
    """The benchmark of other tools."""

    ratios: tuple[str, ...]  # a line each, in the report's words

    @property
    def settings(self) -> Settings | None:
        """Those of `ours_default`; None where it was not measured."""
        told = self.facts["settings"].get("ours_default")
        if told is None:
            return None
        return from_plain(Settings, told)


def in_words(line: str) -> str:
    """A ratio's line in the report's words."""
    for english, korean in RATIO_WORDS.items():
        line = line.replace(english, korean)
    return line


def read_peers(named: Named) -> Peers | None:
    """The named benchmark of other tools; None where none is named."""
    found = read_benchmark(named, "peers")
    if found is None:
        return None
    ratios = [in_words(line) for line in found.facts["ratios"]]
    return Peers(record=found.record, rows=found.rows, path=found.path, ratios=tuple(ratios))


# ---- which settings of views are enough ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EnoughViews(Benchmark):
    """What the library's own setting of kept views costs, over all pairs at once."""

    scheme: str  # the library's own
    views: int
    difference: float  # of accuracy to fresh views, -1 to 1
    low: float  # of its 95 % interval
    high: float
    worst: float  # the difference on the worst pair of data and backbone


def row_of(rows: list[Row], scheme: str, views: int) -> Row:
    """The row of a setting.

    Raises:
        SystemExit: there is none.
    """
    found = [row for row in rows if row["scheme"] == scheme and row["views"] == views]
    if not found:
        fail(f"the table of enough_views has no row of {scheme}, K = {views}")
    return found[0]


def read_enough_views(named: Named) -> EnoughViews | None:
    """The named benchmark; None where it or the one of views, whose values it is made from, is not
    named.

    Raises:
        SystemExit: it was made from other values, or its record and its table disagree.
    """
    found = read_benchmark(named, "enough_views")
    raw = ("views", "benchmarks/views_raw")
    if found is None or not named.has(*raw):
        return None
    if found.facts["raw_sha256"] != hash_of(named.file(*raw)):
        fail(f"{found.path} was made from other values than {named.path(*raw)}: make it again")
    default = found.facts["default"]
    row = row_of(found.rows, default["scheme"], default["views"])
    if row["passes"] != found.facts["default_passes"]:
        fail(f"{found.path} and its record disagree on whether the default passes")
    return EnoughViews(
        record=found.record,
        rows=found.rows,
        path=found.path,
        scheme=default["scheme"],
        views=default["views"],
        difference=row["points"] / 100,
        low=row["points_low"] / 100,
        high=row["points_high"] / 100,
        worst=row["worst_points"] / 100,
    )

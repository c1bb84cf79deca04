"""The files that report/runs.toml names: the report is made from these and no others."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from typed import fail

ROOT = Path(__file__).resolve().parents[1]
STAMP = "_YYYYmmdd_HHMMSS"

Row = dict[str, Any]  # of a table: {column: value}, without what it leaves empty


@dataclass(frozen=True, kw_only=True)
class Named:
    """The named files, by who wrote them and what they are."""

    root: Path  # of the repository
    # {(notebook or benchmark, "summary/resnet50" or "img/resnet50_combined"): path below the root}
    paths: dict[tuple[str, str], str]

    def has(self, place: str, kind: str) -> bool:
        """Whether such a file is named."""
        return (place, kind) in self.paths

    def path(self, place: str, kind: str) -> str:
        """The path of such a file below the root.

        Raises:
            SystemExit: none is named.
        """
        if not self.has(place, kind):
            fail(f"report/runs.toml names no {kind} of {place}: run `make publish`")
        return self.paths[place, kind]

    def file(self, place: str, kind: str) -> Path:
        """Such a file.

        Raises:
            SystemExit: none is named.
        """
        return self.root / self.path(place, kind)

    def figures(self) -> dict[str, str]:
        """The path of every file, by both of its names: "01/img/resnet50_combined"."""
        return {f"{place}/{kind}": path for (place, kind), path in self.paths.items()}


def check_file(path: Path, name: str, sha256: str) -> None:
    """Makes sure that a named file is the one that was published.

    Raises:
        SystemExit: it is missing, or has changed since.
    """
    if not path.is_file():
        fail(f"{name} is named in report/runs.toml and missing: run `make publish`")
    if hash_of(path) != sha256:
        fail(f"{name} has changed since it was published: restore it or run `make publish`")


def hash_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def kind_of(path: Path) -> str:
    """What a file is, by its name and folder: "summary/resnet50", "img/resnet50_combined"."""
    name = path.stem[: -len(STAMP)]
    if name.endswith("_summary"):
        subject = name.removesuffix("_summary")
        return f"summary/{subject}"
    return f"{path.parent.name}/{name}"


def read_named_files(root: Path = ROOT) -> Named:
    """The files of report/runs.toml.

    Raises:
        SystemExit: a named file is missing or has changed since it was published.
    """
    text = (root / "report/runs.toml").read_text(encoding="utf-8")
    paths = {}
    for entry in tomllib.loads(text)["files"]:
        name = entry["path"]
        path = root / name
        check_file(path, name, entry["sha256"])
        paths[entry["notebook"], kind_of(path)] = name
    return Named(root=root, paths=paths)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table."""
    rows = pd.read_csv(path).to_dict("records")
    return [given(row) for row in rows]


def given(row: Row) -> Row:
    """A row without what it leaves empty."""
    return {name: value for name, value in row.items() if not pd.isna(value)}

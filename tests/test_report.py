"""The report is what its runs say: rendered again byte for byte, and refused where a file has been touched."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
import render  # noqa: E402 - a script beside its templates, not a package


def test_rendered_again_it_is_the_same():
    for path, text in render.render().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make report`"


def test_a_touched_result_is_refused(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    (tmp_path / "result").mkdir()
    named = tmp_path / "result/resnet50_summary_20260101_000000.json"
    named.write_text('{"best": 0.41}')
    digest = "0" * 64
    runs = f'[[files]]\nnotebook = "01"\npath = "result/{named.name}"\nsha256 = "{digest}"\n'
    (tmp_path / "report/runs.toml").write_text(runs)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="has changed since it was published"):
        render.read_named_files()
    named.unlink()
    with pytest.raises(SystemExit, match="missing"):
        render.read_named_files()


def test_a_proportion_must_be_a_count():
    assert render.count_text(64 / 159, 159) == "40.3 % (64/159)"
    with pytest.raises(SystemExit, match="no proportion of 159"):
        render.count_text(0.4312, 159)


def test_named_files_and_figures_exist():
    for kind, path in render.read_named_files().items():
        assert (ROOT / path).is_file(), kind
    for name in ("README.md", "experiment_report.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("img/")]
        assert shown and all((ROOT / path).is_file() for path in shown)

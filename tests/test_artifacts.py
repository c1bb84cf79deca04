"""The one writer: what a run leaves is whole, new, and under its own stamp."""

import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferlab import artifacts
from transferlab.artifacts import (
    new_stamp,
    prepare_out_dir,
    save_figure,
    seconds_text,
    write_figure,
    write_new,
    write_table,
    write_text,
)
from transferlab.errors import UserError
from transferlab.features import FROM_DISK
from transferlab.metrics import Interval, accuracy_interval
from transferlab.published import read_record
from transferlab.records import StudyRecord

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def figure():
    drawn, axis = plt.subplots()
    axis.plot([1, 2])
    yield drawn
    plt.close(drawn)


def test_a_folder_to_write_in_is_made_before_any_time_is_spent(tmp_path):
    out = prepare_out_dir(tmp_path / "a" / "b")
    assert out == tmp_path / "a" / "b"
    assert sorted(path.name for path in out.iterdir()) == ["img", "model", "result"]
    assert prepare_out_dir(out) == out and not list(out.rglob("*.*"))


def test_a_folder_in_the_users_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_out_dir("~/runs") == tmp_path / "runs"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path / 'file'} .*--out"):
        prepare_out_dir(tmp_path / "file")


def test_a_stamp_is_one_that_no_file_carries(tmp_path, monkeypatch):
    out = prepare_out_dir(tmp_path)
    stamps = ["20260101_000000", "20260101_000000", "20260101_000001"]
    coming = iter(stamps)
    monkeypatch.setattr(artifacts.time, "strftime", lambda form: next(coming))
    monkeypatch.setattr(artifacts.time, "sleep", lambda seconds: None)
    assert new_stamp(out) == stamps[0]
    (out / "img" / f"x_{stamps[0]}.png").write_text("")
    coming = iter(stamps)
    assert new_stamp(out) == stamps[2]


def test_a_stamp_sorts_by_time(tmp_path):
    assert re.fullmatch(r"\d{8}_\d{6}", new_stamp(tmp_path))


def test_nothing_is_overwritten(tmp_path, figure):
    writers = {
        "a.json": lambda path: write_text(path, "new"),
        "a.csv": lambda path: write_table(path, pd.DataFrame({"a": [1]})),
        "a.png": lambda path: write_figure(path, figure),
    }
    for name, write in writers.items():
        (tmp_path / name).write_text("old")
        with pytest.raises(UserError, match=f"{tmp_path / name} exists already"):
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("stops", [KeyboardInterrupt, OSError, RuntimeError])
def test_a_file_appears_whole_or_not_at_all(tmp_path, stops):
    def halfway(temporary):
        temporary.write_text("half")
        assert not (tmp_path / "a.json").exists()
        raise stops

    with pytest.raises(stops):
        write_new(tmp_path / "a.json", halfway)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path, figure):
    prepare_out_dir(tmp_path)
    text = write_text(tmp_path / "a.json", "표정 “가”")
    assert text.read_text(encoding="utf-8") == "표정 “가”"
    table = pd.DataFrame({"name": ["가", "a,b"], "x": [0.1, 1 / 3]})
    pd.testing.assert_frame_equal(pd.read_csv(write_table(tmp_path / "a.csv", table)), table)
    saved = save_figure(figure, tmp_path, "audit $1/가", stamp="20260101_000000")
    assert saved == tmp_path / "img" / "audit__1_가_20260101_000000.png"
    for path in (saved, write_figure(tmp_path / "a.png", figure)):
        assert path.read_bytes().startswith(b"\x89PNG")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.csv", "a.json", "a.png", "img", "model", "result"]


def test_the_seconds_of_a_run_say_when_features_came_from_disk():
    published = next((ROOT / "result").glob("resnet50_summary_*.json"))
    record = read_record(published, StudyRecord)
    record = replace(record, timings={"head": 2.2, "training views": 3.3})
    assert seconds_text(record) == "6"
    kept = replace(record, timings=record.timings | {FROM_DISK: 0.1})
    assert seconds_text(kept) == "6 (features from disk)"


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_record_is_wilsons(case):
    k, n = case
    z, p = 1.959963984540054, k / n
    centre, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    interval = accuracy_interval(k, n)
    assert isinstance(interval, Interval)
    assert (interval.low, interval.high) == pytest.approx(
        (max(0, centre - half), min(1, centre + half)), abs=1e-9
    )

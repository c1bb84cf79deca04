"""The one writer: what a run leaves is whole, new, and under its own stamp."""

import csv
import errno
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferlab import artifacts, files
from transferlab.artifacts import (
    prepare_out_dir,
    publish_all,
    refuse_inside,
    reserved_stamp,
    save_figure,
    seconds_text,
    without_formula,
    write_figure,
    write_new,
    write_table,
    write_text,
)
from transferlab.errors import UserError
from transferlab.features import FROM_DISK
from transferlab.files import process_mark
from transferlab.metrics import Interval, accuracy_interval
from transferlab.published import read_record
from transferlab.records import StudyRecord

ROOT = Path(__file__).resolve().parents[1]


def dead_mark():
    """The mark of a process that has just ended."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process_mark().replace(f"-{os.getpid()}", f"-{process.pid}")


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


@pytest.fixture
def stamps(monkeypatch):
    """The clock shows these stamps, one after the other."""
    stamps = ["20260101_000000", "20260101_000000", "20260101_000001", "20260101_000002"]
    coming = iter(stamps)
    monkeypatch.setattr(artifacts.time, "strftime", lambda form: next(coming))
    monkeypatch.setattr(artifacts.time, "sleep", lambda seconds: None)
    return stamps


@pytest.mark.parametrize("place", ["img/x_{}.png", "result/benchmarks/x_{}.csv"])
def test_a_stamp_is_one_that_no_file_carries(stamps, place, tmp_path):
    out = prepare_out_dir(tmp_path)
    carrying = out / place.format(stamps[0])
    carrying.parent.mkdir(exist_ok=True)
    carrying.write_text("")
    with reserved_stamp(out) as stamp:
        assert stamp == stamps[2]
    assert carrying.is_file() and not list(out.glob(".*"))


def test_a_stamp_is_nobody_elses_while_it_is_held(stamps, tmp_path):
    with reserved_stamp(tmp_path) as first, reserved_stamp(tmp_path) as second:
        assert (first, second) == (stamps[0], stamps[2])
        assert sorted(path.name for path in tmp_path.iterdir()) == [f".{first}", f".{second}"]
    assert not list(tmp_path.iterdir())


def test_a_stamp_that_a_killed_run_holds_is_freed(stamps, tmp_path):
    for number, owner in ((0, dead_mark()), (2, "other-host-1")):
        held = tmp_path / f".{stamps[number]}"
        held.mkdir()
        (held / "pid").write_text(owner)
    with reserved_stamp(tmp_path) as stamp:
        assert stamp == stamps[0]
    assert [path.name for path in tmp_path.iterdir()] == [f".{stamps[2]}"]  # that may live
    os.utime(tmp_path / f".{stamps[2]}" / "pid", (1, 1))
    os.utime(tmp_path / f".{stamps[2]}", (1, 1))
    prepare_out_dir(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_stamp_whose_owner_is_not_to_be_read_is_held(stamps, tmp_path):
    (tmp_path / f".{stamps[0]}").mkdir()
    os.mkfifo(tmp_path / f".{stamps[0]}" / "pid")
    (tmp_path / f".{stamps[2]}").write_text("a file of mine")
    with reserved_stamp(tmp_path) as stamp:
        assert stamp == stamps[3]


def test_a_stamp_whose_owner_was_killed_before_it_said_who_it_is_is_freed(tmp_path):
    nameless, filled, new = (tmp_path / f".20260101_00000{number}" for number in range(3))
    for held in (nameless, filled, new):
        held.mkdir()
    (filled / "model.safetensors").write_text("half")  # as a notebook of another process has it
    for held in (nameless, filled):
        os.utime(held, (time.time() - 100,) * 2)
    prepare_out_dir(tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [filled.name, new.name]


def test_halves_of_characters_are_spelt_out(tmp_path):
    text = write_text(tmp_path / "a.json", '"\udcff"').read_text(encoding="utf-8")
    assert json.loads(text) == "\udcff"
    table = write_table(tmp_path / "a.csv", pd.DataFrame({"a": ["\udcff"]}))
    assert table.read_text(encoding="utf-8") == "a\n\\udcff\n"


def test_a_stamp_sorts_by_time(tmp_path):
    with reserved_stamp(tmp_path) as stamp:
        assert re.fullmatch(r"\d{8}_\d{6}", stamp)


@pytest.mark.parametrize("stops", [KeyboardInterrupt, UserError("no")])
def test_a_stamp_is_given_back_in_any_case(tmp_path, stops):
    with pytest.raises((KeyboardInterrupt, UserError)), reserved_stamp(tmp_path):
        raise stops
    assert not list(tmp_path.iterdir())


def test_a_stamp_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UserError, match=f"cannot write {place} .*--out"):
            reserved_stamp(place).__enter__()


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


@pytest.mark.parametrize("stops", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_file_appears_whole_or_not_at_all(tmp_path, stops):
    def halfway(temporary):
        temporary.write_text("half")
        assert not (tmp_path / "a.json").exists()
        raise stops

    with pytest.raises(stops):
        write_new(tmp_path / "a.json", halfway)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_what_the_disk_refuses_is_one_error_and_leaves_nothing(tmp_path, number):
    def refuse(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError) as error:
        write_new(tmp_path / "a.json", refuse)
    text = str(error.value)
    assert text.startswith(f"cannot write {tmp_path / 'a.json'} ({os.strerror(number)}): make room")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_vanished_is_one_error(tmp_path):
    with pytest.raises(UserError, match="cannot write .*No such file.*: its folder is gone: "):
        write_text(tmp_path / "gone" / "a.json", "text")
    (tmp_path / "here").mkdir()

    def vanish(temporary):
        temporary.write_text("text")
        shutil.rmtree(tmp_path / "here")

    with pytest.raises(UserError, match="cannot write .*No such file.*: its folder is gone: "):
        write_new(tmp_path / "here" / "a.json", vanish)


def test_a_name_that_is_too_long_is_one_error(tmp_path):
    with pytest.raises(UserError, match="cannot write .*File name too long"):
        write_text(tmp_path / f"{'x' * 300}.json", "text")


FORMULAS = ["=cmd|' /C calc'!A0", "+cmd", "-cat", "@SUM(1)", "\tx", "\rx", "\nx", "＝1+1", "--1"]
# Where ";" or tabs separate, and of a quote that stands inside a cell.
INSIDE = {
    "a;=1+1": "a;'=1+1",
    "a;=1;b;@x": "a;'=1;b;'@x",
    "a\t-x": "a\t'-x",
    "cat\n=1": "cat\n'=1",
    'a;"=1+1;b': "a;'" + '"=1+1;b',
}
HARMLESS = [
    "cat",
    "a=b",
    "a; b=c",
    "",
    " =1",
    "'=1",
    "-1",
    "+2.5",
    "-1e-3",
    "고양이",
    "cat/=x.png",
]


def test_no_cell_or_header_of_a_table_starts_a_formula(tmp_path):
    names = [*FORMULAS, *HARMLESS, *INSIDE]
    table = pd.DataFrame({"name": names, "-x": -1.5, "=y": range(len(names)), "n": True})
    table["kind"] = pd.Categorical(names)
    before = table.copy()
    path = write_table(tmp_path / "a.csv", table)
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "'-x", "'=y", "n", "kind"]
    expected = [f"'{name}".replace("\r", "\\r") for name in FORMULAS] + HARMLESS
    expected += INSIDE.values()
    assert [row[0] for row in rows] == expected and [row[4] for row in rows] == expected
    assert {row[1] for row in rows} == {"-1.5"}  # numbers stay numbers
    pd.testing.assert_frame_equal(table, before)


@given(st.lists(st.text(), min_size=1))
def test_whatever_a_name_is_its_cell_is_no_formula(names):
    for name in names:
        cell = without_formula(name)
        assert cell.replace("'", "") == name.replace("'", "").replace("\r", "\\r")
        assert "\r" not in cell
        for piece in re.split("[;\t\n]", cell):
            if piece.startswith(tuple("=+-@")):
                float(cell)


# ---- all or none -----------------------------------------------------------------------------


def refuse_links(*_):
    raise OSError(errno.EPERM, "no links here")


@pytest.mark.parametrize("moment", ["linked", "unlinked", "renamed", "flushed"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_interrupted_while_names_are_given_all_have_theirs_or_none(
    tmp_path, monkeypatch, moment, number
):
    hidden = tmp_path / ".drafts"
    hidden.mkdir()
    drafts = [hidden / name for name in ("metrics.csv", "pairs.csv", "summary.json")]
    for draft in drafts:
        draft.write_text("x")
    (tmp_path / "other.csv").write_text("another's")
    counted = itertools.count()

    def interrupting(whole):
        def call(*arguments, **options):
            whole(*arguments, **options)
            if next(counted) == number:
                raise KeyboardInterrupt

        return call

    owner, name = {
        "linked": (os, "link"),
        "unlinked": (Path, "unlink"),
        "renamed": (os, "replace"),
        "flushed": (files, "flush_folder"),
    }[moment]
    with monkeypatch.context() as patch:
        if moment == "renamed":  # where there are no hard links
            patch.setattr(os, "link", refuse_links)
        patch.setattr(owner, name, interrupting(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            publish_all(drafts)
    left = {path.name for path in tmp_path.iterdir()} - {".drafts", "other.csv"}
    assert left == ({draft.name for draft in drafts} if number == 2 else set())


def test_what_is_anothers_is_not_taken_back(tmp_path):
    hidden = tmp_path / ".drafts"
    hidden.mkdir()
    drafts = [hidden / name for name in ("metrics.csv", "summary.json")]
    for draft in drafts:
        draft.write_text("x")
    (tmp_path / "summary.json").write_text("another's")
    with pytest.raises(FileExistsError):
        publish_all(drafts)
    assert (tmp_path / "summary.json").read_text() == "another's"
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("inside", [".", "pics", "pics/a/b", "link", "link/a"])
def test_nothing_goes_into_a_folder_of_images(tmp_path, inside):
    (tmp_path / "pics").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pics")
    folders = [tmp_path / "none", tmp_path / ("pics" if inside != "." else "")]
    with pytest.raises(UserError, match="lies in the images of .*: give --out and --cache-dir"):
        refuse_inside(tmp_path / inside, *folders)
    refuse_inside(tmp_path, *[one for one in folders if one != tmp_path])
    refuse_inside(tmp_path / "pics2", tmp_path / "pics")


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

"""What notebooks have finished is published whole, remembered, and not done again."""

import errno
import json
import multiprocessing
import os
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from transferlab import artifacts, finished
from transferlab.artifacts import OUT_FOLDERS, hold_stamp
from transferlab.data import find_layout
from transferlab.errors import UserError
from transferlab.files import process_mark
from transferlab.finished import (
    FINISHED_FOLDER,
    JOURNAL,
    finish_pending,
    forget,
    hash_images,
    hash_weights,
    held_stamps,
    output_files,
    prepare_records,
    publish_finished,
    publish_outputs,
    read_finished,
    record_path,
)

STAMP = "20260101_000000"
LATER = "20260101_000001"
DEPENDS_ON = {"notebook": "a" * 64, "parameters": {"epochs": 2, "이름": [1, 2.5, None]}}
SAVED = {
    f"model/net_best_{STAMP}.json": "described",
    f"model/net_best_{STAMP}.safetensors": "weights",
    f"result/net_summary_{STAMP}.json": f'{{"stamp": "{STAMP}"}}',
    f"img/net_combined_{STAMP}.png": "figure",
}


def write_files(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def contents(folder):
    """{path: text} of the files that anyone sees."""
    return {p.as_posix(): (folder / p).read_text(encoding="utf-8") for p in output_files(folder)}


def hidden(folder):
    return list(folder.rglob(".*"))


@pytest.fixture
def out(tmp_path):
    for name in OUT_FOLDERS:
        (tmp_path / "out" / name).mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def own(tmp_path):
    """What a notebook has left in a folder of its own, with its executed copy."""
    folder = tmp_path / "own"
    copy = {"metadata": {"papermill": {"output_path": "hidden"}}, "printed": f"net_{STAMP}.csv"}
    write_files(folder, SAVED | {"result/01.ipynb": json.dumps(copy)})
    return folder


def dead_mark():
    """The mark of a process that has just ended."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process_mark().replace(f"-{os.getpid()}", f"-{process.pid}")


def stop(*_):
    raise KeyboardInterrupt


def interrupted(own, out, monkeypatch, published):
    """Publishing that is killed after some files; -> its pending folder, as of a dead process."""
    done = []

    def bring(source, target):
        if len(done) == published:
            stop()
        done.append(target)
        usual(source, target)

    usual = finished.bring
    with monkeypatch.context() as patch:
        patch.setattr(finished, "bring", bring)
        with pytest.raises(KeyboardInterrupt):
            publish_finished(own, out, "01", DEPENDS_ON)
    (pending,) = (out / FINISHED_FOLDER).glob(".pending-*")
    name = pending.name.replace(process_mark(), dead_mark())
    return pending.rename(pending.with_name(name))


# ---- what a result depends on ----------------------------------------------------------------


def test_images_are_told_by_their_bytes_names_and_classes(image_folder, tmp_path):
    def copied(change=lambda folder: None):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for path in image_folder.rglob("*.png"):
            target = folder / path.relative_to(image_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        change(folder)
        return hash_images(find_layout(folder))

    first = copied()
    assert copied() == first  # wherever they lie
    changes = [
        lambda folder: (folder / "disc" / "0.png").rename(folder / "disc" / "9.png"),
        lambda folder: (folder / "disc" / "0.png").rename(folder / "square" / "9.png"),
        lambda folder: (folder / "disc" / "0.png").unlink(),
        lambda folder: (folder / "disc" / "0.png").write_bytes(b"other"),
        lambda folder: (folder / "SYNTHETIC").touch(),
        lambda folder: os.mkfifo(folder / "disc" / "x.png"),  # which is not opened
        lambda folder: (folder / "disc" / "y.png").symlink_to("nowhere"),
    ]
    assert len({first, *map(copied, changes)}) == 1 + len(changes)


def test_weights_are_told_by_their_bytes_and_by_what_is_said_of_them(tmp_path):
    write_files(tmp_path / "real", {"a": "weights"})
    (tmp_path / "gathered").mkdir()
    (tmp_path / "gathered" / "net.safetensors").symlink_to(tmp_path / "real" / "a")
    write_files(tmp_path / "gathered", {"net.json": "note"})
    before = hash_weights(tmp_path / "gathered")
    assert set(before) == {"net.json", "net.safetensors"}
    for name in ("real/a", "gathered/net.json"):
        (tmp_path / name).write_text("other")
        after = hash_weights(tmp_path / "gathered")
        assert after != before
        before = after


# ---- stamps ----------------------------------------------------------------------------------


def test_stamps_that_are_free_stay(own, out):
    with held_stamps(own, out) as stamp:
        assert stamp == STAMP and (out / f".{STAMP}").is_dir()
        publish_outputs(own, out)
    assert hidden(out) == []
    copy = f"result/01_{STAMP}.ipynb"
    assert contents(out).keys() == {*SAVED, copy}
    assert {name: contents(out)[name] for name in SAVED} == SAVED
    told = json.loads(contents(out)[copy])
    assert told["metadata"]["papermill"]["output_path"] == str(out / copy)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_stamp_that_is_taken_meanwhile_is_replaced_everywhere(own, out, is_held):
    """In names and texts; those of later runs move on, so that their order stays."""
    later = {name.replace(STAMP, LATER): text.replace(STAMP, LATER) for name, text in SAVED.items()}
    write_files(own, later)
    before = {} if is_held else {f"result/net_summary_{LATER}.json": "another's"}
    write_files(out, before)
    if is_held:
        hold_stamp(out, LATER)
    with held_stamps(own, out) as stamp:
        publish_outputs(own, out)
    found = contents(out)
    stamps = sorted({name[-len(STAMP) - 5 : -5] for name in found if "_summary_" in name})
    first, second = [one for one in stamps if f"result/net_summary_{one}.json" not in before]
    assert stamp == first and second not in (STAMP, LATER)
    for one in (first, second):
        told = {name: found[name] for name in found if one in name and ".ipynb" not in name}
        assert told == {k.replace(STAMP, one): v.replace(STAMP, one) for k, v in SAVED.items()}
    assert f"net_{first}.csv" in found[f"result/01_{first}.ipynb"]
    assert {name: found[name] for name in before} == before


def test_files_without_a_stamp_get_one_wherever_they_lie(out, tmp_path):
    """A notebook that its reader has changed may write anything."""
    odd = {"result/x.ipynb": b"\xff{", "result/y.ipynb": b"[" * 100_000, "result/z.ipynb": b"[]"}
    for _ in range(2):
        own = tmp_path / "own"
        write_files(own, {"top.txt": "1", "result/mine.csv": "2", "result/a/b.tar": "3"})
        write_files(own, {".hidden": "4", "result/.ipynb_checkpoints/x": "5"})
        for name, data in odd.items():
            (own / name).write_bytes(data)
        with held_stamps(own, out) as stamp:
            publish_outputs(own, out)
        for name, data in odd.items():
            target = out / name.replace(".", f"_{stamp}.")
            assert target.read_bytes() == data
            target.unlink()
        names = {f"top_{stamp}.txt", f"result/mine_{stamp}.csv", f"result/a/b_{stamp}.tar"}
        assert names <= contents(out).keys()
    assert len(contents(out)) == 6


# ---- remembered ------------------------------------------------------------------------------


def test_what_is_finished_is_remembered(own, out):
    assert read_finished(out, "01", DEPENDS_ON) is None
    done = publish_finished(own, out, "01", DEPENDS_ON)
    assert done.stamp == STAMP and not own.exists() and hidden(out) == []
    assert {one.path for one in done.files} == {*SAVED, f"result/01_{STAMP}.ipynb"}
    assert read_finished(out, "01", DEPENDS_ON) == done
    for notebook, depends_on in (("02", DEPENDS_ON), ("01", DEPENDS_ON | {"notebook": "b"})):
        assert read_finished(out, notebook, depends_on) is None
    out.rename(out.with_name("moved"))
    assert read_finished(out.with_name("moved"), "01", DEPENDS_ON) == done


def test_descriptions_come_before_the_weights_that_they_describe(own, out):
    places = [Path(one.path) for one in publish_finished(own, out, "01", DEPENDS_ON).files]
    suffixes = [place.suffix for place in places]
    assert suffixes[-1] == ".safetensors" and suffixes.count(".safetensors") == 1


def test_what_is_forgotten_is_no_longer_finished(own, out):
    publish_finished(own, out, "01", DEPENDS_ON)
    before = contents(out / "result")
    for _ in range(2):
        forget(out, "01", DEPENDS_ON)
        assert read_finished(out, "01", DEPENDS_ON) is None
    kept = {name: text for name, text in before.items() if "run_finished" not in name}
    assert contents(out / "result") == kept


@pytest.mark.parametrize("change", ["changed", "grown", "missing", "folder"])
def test_a_file_that_is_not_as_it_was_makes_it_unfinished(own, out, change):
    publish_finished(own, out, "01", DEPENDS_ON)
    path = out / f"img/net_combined_{STAMP}.png"
    text = {"changed": "Figure", "grown": "figure and more"}.get(change)
    path.unlink()
    if text:
        path.write_text(text)
    if change == "folder":
        path.mkdir()
    with pytest.raises(
        ValueError, match=f"img/net_combined_{STAMP}.png is missing, or has changed"
    ):
        read_finished(out, "01", DEPENDS_ON)


def damaged_records(text):
    plain = json.loads(text)
    other = plain | {"finished": plain["finished"] | {"stamp": LATER}}
    outside = plain["finished"] | {"files": [{"path": "../x", "size": 1, "sha256": "0"}]}
    sealed = {"sha256": finished.hash_plain(outside), "finished": outside}
    deep = "[" * 100_000 + "]" * 100_000
    return [
        "",
        "{}",
        "[]",
        "null",
        text[:-30],
        deep,
        json.dumps(other),
        json.dumps(sealed),
        "\udc80",
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_damaged_record_is_a_miss_with_a_reason(own, out, number):
    publish_finished(own, out, "01", DEPENDS_ON)
    path = record_path(out, "01", DEPENDS_ON)
    text = damaged_records(path.read_text(encoding="utf-8"))[number]
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=path.name):
        read_finished(out, "01", DEPENDS_ON)


def test_another_runs_record_under_the_name_is_a_miss(own, out):
    publish_finished(own, out, "01", DEPENDS_ON)
    other = DEPENDS_ON | {"notebook": "b" * 64}
    record_path(out, "01", DEPENDS_ON).rename(record_path(out, "01", other))
    with pytest.raises(ValueError, match="another run"):
        read_finished(out, "01", other)


def test_a_record_that_is_no_file_is_never_waited_for(out):
    path = record_path(out, "01", DEPENDS_ON)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no record"):
        read_finished(out, "01", DEPENDS_ON)


# ---- publishing that is interrupted ----------------------------------------------------------


@pytest.mark.parametrize("published", range(5))
def test_the_next_run_publishes_what_a_killed_one_has_left(own, out, monkeypatch, published):
    pending = interrupted(own, out, monkeypatch, published)
    assert read_finished(out, "01", DEPENDS_ON) is None
    finish_pending(out)
    assert read_finished(out, "01", DEPENDS_ON).stamp == STAMP
    assert not pending.exists() and hidden(out) == []
    assert {name: contents(out)[name] for name in SAVED} == SAVED


def test_what_a_living_process_publishes_is_left_to_it(own, out, monkeypatch):
    pending = interrupted(own, out, monkeypatch, 1)
    alive = pending.rename(pending.with_name(f".pending-{process_mark()}-1"))
    finish_pending(out)
    assert alive.is_dir() and read_finished(out, "01", DEPENDS_ON) is None


def test_a_name_that_was_only_reserved_is_filled(own, out, monkeypatch):
    """Where there are no hard links, a kill may leave an empty file."""
    interrupted(own, out, monkeypatch, 1)
    (out / f"model/net_best_{STAMP}.json").touch()
    finish_pending(out)
    assert {name: contents(out)[name] for name in SAVED} == SAVED


def laid_aside(out, printed):
    """The folder that the one line of `finish_pending` names."""
    (folder,) = (out / "result").glob("unpublished_*")
    assert printed.count("\n") == 1 and str(folder) in printed
    return folder


def test_what_the_disk_has_lost_is_run_again_and_the_rest_is_kept(own, out, monkeypatch, capsys):
    pending = interrupted(own, out, monkeypatch, 1)
    lost = f"model/net_best_{STAMP}.safetensors"
    (pending / lost).write_text("")
    finish_pending(out)
    printed = capsys.readouterr().out
    assert f"{lost} is damaged" in printed
    kept = contents(laid_aside(out, printed))
    summary = f"result/net_summary_{STAMP}.json"
    assert kept[summary] == SAVED[summary]
    assert (out / f"img/net_combined_{STAMP}.png").is_file()  # was published before
    assert read_finished(out, "01", DEPENDS_ON) is None and hidden(out) == []
    assert not (out / lost).exists()


def test_a_damaged_journal_loses_no_result(own, out, monkeypatch, capsys):
    pending = interrupted(own, out, monkeypatch, 0)
    (pending / JOURNAL).write_text("{")
    finish_pending(out)
    kept = contents(laid_aside(out, capsys.readouterr().out))
    assert {name: kept[name] for name in SAVED} == SAVED and hidden(out) == []


def test_a_file_of_another_is_never_overwritten_and_nothing_is_lost(own, out, monkeypatch, capsys):
    interrupted(own, out, monkeypatch, 0)
    name = f"model/net_best_{STAMP}.json"
    (out / name).write_text("theirs")
    finish_pending(out)
    printed = capsys.readouterr().out
    assert f"{out / name} is another's" in printed
    kept = contents(laid_aside(out, printed))
    assert {name: kept[name] for name in SAVED} == SAVED
    assert (out / name).read_text() == "theirs" and hidden(out) == []
    assert read_finished(out, "01", DEPENDS_ON) is None
    finish_pending(out)
    assert capsys.readouterr().out == ""  # said once


def test_a_name_that_is_taken_while_it_is_published_is_an_error_of_the_user(own, out, monkeypatch):
    """Whoever does not ask for a stamp may take any name."""
    theirs = out / f"model/net_best_{STAMP}.json"
    usual = finished.write_journal

    def write_journal(path, done):
        usual(path, done)
        theirs.write_text("theirs")

    monkeypatch.setattr(finished, "write_journal", write_journal)
    with pytest.raises(UserError, match="json is another's.*run again"):
        publish_finished(own, out, "01", DEPENDS_ON)
    (pending,) = (out / FINISHED_FOLDER).glob(".pending-*")
    pending.rename(pending.with_name(f".pending-{dead_mark()}-1"))
    theirs.unlink()
    finish_pending(out)
    assert {name: contents(out)[name] for name in SAVED} == SAVED


def test_a_pending_folder_without_a_journal_is_swept(own, out, monkeypatch):
    """All of it is published before its journal becomes the record."""
    pending = interrupted(own, out, monkeypatch, 0)
    (pending / JOURNAL).unlink()
    finish_pending(out)
    assert hidden(out) == [] and read_finished(out, "01", DEPENDS_ON) is None


def test_a_folder_on_another_disk_gets_its_files_too(own, out, monkeypatch):
    usual = finished.publish

    def publish(temporary, target):
        if "transferlab" not in temporary.parent.name:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return usual(temporary, target)

    monkeypatch.setattr(finished, "publish", publish)
    publish_finished(own, out, "01", DEPENDS_ON)
    assert {name: contents(out)[name] for name in SAVED} == SAVED and hidden(out) == []


def test_the_disks_refusal_loses_nothing(own, out, monkeypatch):
    usual = finished.bring

    def full(source, target):
        if target.parent.name == "model":
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(finished, "bring", full)
        with pytest.raises(OSError, match="No space left"):
            publish_finished(own, out, "01", DEPENDS_ON)
    (pending,) = (out / FINISHED_FOLDER).glob(".pending-*")
    pending.rename(pending.with_name(f".pending-{dead_mark()}-1"))
    finish_pending(out)
    assert {name: contents(out)[name] for name in SAVED} == SAVED


# ---- what else has these names ---------------------------------------------------------------


def test_runs_stay_apart_when_the_clock_was_set_back(own, out, monkeypatch):
    """The stamp that replaces a taken one may be an earlier one."""
    later = {name.replace(STAMP, LATER): text.replace(STAMP, LATER) for name, text in SAVED.items()}
    write_files(own, later)
    write_files(out, {f"result/theirs_{LATER}.csv": "theirs"})
    earlier = "20251231_230000"
    clock = {"strftime": lambda form: earlier}
    monkeypatch.setattr(artifacts, "time", types.SimpleNamespace(**vars(time) | clock))
    with held_stamps(own, out) as stamp:
        publish_outputs(own, out)
    assert stamp == earlier
    found = contents(out)
    assert len(found) == 2 * len(SAVED) + 2
    for one in (earlier, STAMP):
        for name, text in SAVED.items():
            assert found[name.replace(STAMP, one)] == text.replace(STAMP, one)


def test_files_that_would_get_one_name_are_an_error_and_all_stay(own, out):
    write_files(own, {"result/mine.csv": "1", f"result/mine_{STAMP}.csv": "2"})
    before = contents(own)
    with pytest.raises(UserError, match=f"would both be called result/mine_{STAMP}.csv"):
        publish_finished(own, out, "01", DEPENDS_ON)
    assert contents(own) == before


def obstacles(place):
    """What else may have the name of a folder."""
    return {
        "file": lambda: place.write_text("x"),
        "pipe": lambda: os.mkfifo(place),
        "loop": lambda: place.symlink_to(place.name),
        "dangling": lambda: place.symlink_to("nowhere"),
    }


@pytest.mark.parametrize("kind", ["file", "pipe", "loop", "dangling"])
def test_what_has_the_name_of_the_records_is_told(out, kind):
    records = out / FINISHED_FOLDER
    obstacles(records)[kind]()
    with pytest.raises(UserError, match=f"cannot keep records in {records} .*move away"):
        prepare_records(out)
    assert os.path.lexists(records) and hidden(out) == []


def test_the_folder_of_the_records_is_made(out):
    for _ in range(2):
        prepare_records(out)
    assert (out / FINISHED_FOLDER).is_dir() and hidden(out) == []


def test_a_folder_in_place_of_a_record_blocks_nothing(own, out, capsys):
    record = record_path(out, "01", DEPENDS_ON)
    write_files(record, {"x": ""})
    forget(out, "01", DEPENDS_ON)
    publish_finished(own, out, "01", DEPENDS_ON)
    assert f"{record} is a folder" in capsys.readouterr().out
    assert {name: contents(out)[name] for name in SAVED} == SAVED and hidden(out) == []
    finish_pending(out)
    assert record.is_dir()


@pytest.mark.parametrize("name", ["../../../evil", "", "/evil", "a\nb", "x" * 101])
def test_a_journal_that_names_no_notebook_is_damaged(own, out, monkeypatch, capsys, name):
    pending = interrupted(own, out, monkeypatch, 0)
    done = finished.read_journal(pending / JOURNAL)
    finished.write_journal(pending / JOURNAL, replace(done, notebook=name))
    finish_pending(out)
    assert "damaged" in capsys.readouterr().out
    assert not list(out.parent.rglob("evil*")) and hidden(out) == []

"""Files appear whole or not at all, never over another; leftovers of the dead go, others stay."""

import errno
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from transferlab import files
from transferlab.files import (
    ABANDONED_SECONDS,
    has_ended,
    process_mark,
    publish,
    replace_whole,
    require_regular,
    scratch_folder,
    sweep_scratch,
)

REFUSED = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK]


def dead_mark():
    """The mark of a process that has just ended."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process_mark().replace(f"-{os.getpid()}", f"-{process.pid}")


def scratch_of(folder, mark, *, age=0):
    """A scratch folder with something in it, of the process `mark`, `age` seconds old."""
    left = folder / f".transferlab-{mark}-abc_123"
    left.mkdir()
    (left / "half").write_text("half")
    for path in (left / "half", left):
        os.utime(path, (time.time() - age,) * 2)
    return left


def new_file(folder, text="new"):
    path = folder / "temporary"
    path.write_text(text)
    return path


# ---- scratch folders -------------------------------------------------------------------------


def test_a_scratch_folder_is_hidden_says_whose_it_is_and_is_gone_afterwards(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(".")
        assert f"-{os.getpid()}-" in folder.name and files.SCRATCH_NAME.fullmatch(folder.name)
        (folder / "a" / "b").mkdir(parents=True)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_the_dead_left_goes_and_what_the_living_hold_stays(tmp_path):
    mine = scratch_of(tmp_path, process_mark())
    dead = scratch_of(tmp_path, dead_mark())
    elsewhere = scratch_of(tmp_path, "other-host-1")  # a number says nothing of another machine
    old = scratch_of(tmp_path, "another-2", age=ABANDONED_SECONDS + 9)
    (tmp_path / "kept.txt").write_text("mine")
    (tmp_path / ".transferlab-notes").write_text("mine")
    sweep_scratch(tmp_path)
    assert not dead.exists() and not old.exists()
    assert (mine / "half").is_file() and (elsewhere / "half").is_file()
    assert (tmp_path / "kept.txt").is_file() and (tmp_path / ".transferlab-notes").is_file()


def test_what_a_living_process_holds_stays_however_old_it_is(tmp_path):
    """A run may take days. But a number that a younger process has got is not its first owner's."""
    born = psutil.Process().create_time()
    mine = scratch_of(tmp_path, process_mark(), age=time.time() - born - 1)
    sweep_scratch(tmp_path)
    assert (mine / "half").is_file()
    os.utime(mine, (born - 2 * files.CLOCK_SECONDS,) * 2)
    sweep_scratch(tmp_path)
    assert not mine.exists()


def test_what_another_machine_still_writes_stays(monkeypatch, tmp_path):
    """The time of a folder stands still while a file deep in it grows."""
    left = scratch_of(tmp_path, "other-host-1", age=ABANDONED_SECONDS + 9)
    (left / "out" / "result").mkdir(parents=True)
    growing = left / "out" / "result" / "copy.ipynb"
    growing.write_text("grows")
    (left / "nowhere").symlink_to(tmp_path / "nowhere")
    old = (time.time() - ABANDONED_SECONDS - 9,) * 2
    for path in (left / "nowhere", growing.parent, left / "out", left):
        os.utime(path, old, follow_symlinks=False)
    sweep_scratch(tmp_path)
    assert growing.is_file()
    os.utime(growing, old)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MOST_LOOKED_AT", 2)  # what is too large to look through stays
        sweep_scratch(tmp_path)
        assert growing.is_file()
    sweep_scratch(tmp_path)
    assert not left.exists()


def test_a_process_that_was_killed_has_ended_though_nobody_has_asked_for_its_end(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
    process.start()
    mark = process_mark().replace(f"-{os.getpid()}", f"-{process.pid}")
    assert not has_ended(mark)
    os.kill(process.pid, signal.SIGKILL)
    end = time.time() + 10
    while not has_ended(mark) and time.time() < end:
        time.sleep(0.01)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE and has_ended(mark)
    process.join()


def test_the_next_scratch_folder_sweeps_too(tmp_path):
    dead = scratch_of(tmp_path, dead_mark())
    with scratch_folder(tmp_path):
        assert not dead.exists()


def test_only_real_folders_are_swept(tmp_path):
    mark = dead_mark()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "kept.txt").write_text("mine")
    link = tmp_path / f".transferlab-{mark}-link"
    link.symlink_to(tmp_path / "precious", target_is_directory=True)
    (tmp_path / f".transferlab-{mark}-file").write_text("mine")
    sweep_scratch(tmp_path)
    assert (tmp_path / "precious" / "kept.txt").is_file() and link.is_symlink()
    assert (tmp_path / f".transferlab-{mark}-file").is_file()
    sweep_scratch(tmp_path / "missing")
    sweep_scratch(tmp_path / "precious" / "kept.txt")


@pytest.mark.parametrize("mark", ["", "x", "x-y", "-", "{host}-", "{host}-99999999999", "{host}-²"])
def test_what_names_no_process_is_not_dead(mark):
    assert not has_ended(mark.format(host=files.host_mark()))


def test_the_same_number_in_another_container_is_another_process(monkeypatch, tmp_path):
    mark = dead_mark()
    assert has_ended(mark)
    (tmp_path / "other").write_text("")
    monkeypatch.setattr(files, "PID_NAMESPACE", tmp_path / "other")
    assert not has_ended(mark)
    monkeypatch.setattr(files, "PID_NAMESPACE", tmp_path / "missing")
    monkeypatch.setattr(socket, "gethostname", lambda: "a b/c-d한")
    assert process_mark() == f"a_b_c_d_-{os.getpid()}"


def test_a_process_killed_in_its_scratch_folder_leaves_it_to_the_next(tmp_path):
    def hold():
        with scratch_folder(tmp_path) as folder:
            (folder / "half").write_text("half")
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    while not list(tmp_path.glob(".transferlab-*/half")):
        time.sleep(0.01)
    sweep_scratch(tmp_path)
    assert list(tmp_path.iterdir())  # it lives
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.iterdir())
    sweep_scratch(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- names -----------------------------------------------------------------------------------


@pytest.fixture(params=[None, *REFUSED], ids=lambda number: errno.errorcode.get(number, "links"))
def links(request, monkeypatch):
    """Hard links, or a disk that refuses them in one of its ways."""

    def refuse(source, target):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(os, "link", refuse)


def test_a_published_file_is_whole_and_alone(links, tmp_path):
    target = tmp_path / "이름 a.txt"
    assert publish(new_file(tmp_path), target) == target
    assert target.read_text() == "new" and os.listdir(tmp_path) == [target.name]
    assert target.stat().st_nlink == 1


def test_publishing_never_overwrites(links, tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(FileExistsError):
            publish(new_file(tmp_path), tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "folder").is_dir() and not (tmp_path / "nowhere").exists()


def test_a_folder_that_has_vanished_is_an_error_of_the_disk(links, tmp_path):
    with pytest.raises(FileNotFoundError):
        publish(new_file(tmp_path), tmp_path / "gone" / "a.txt")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing", tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()


def test_a_reservation_is_taken_back_where_the_rename_fails(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="not here"):
        publish(new_file(tmp_path), tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["temporary"]


def test_a_signal_just_after_the_rename_takes_nothing_back(monkeypatch, tmp_path):
    usual = os.replace

    def interrupted(source, target):
        usual(source, target)
        raise KeyboardInterrupt

    def refuse(*_):
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(new_file(tmp_path), tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


def test_replacing_leaves_the_new_or_the_old(tmp_path):
    target = tmp_path / "a.txt"
    for text in ("old", "new"):
        assert replace_whole(new_file(tmp_path, text), target).read_text() == text
    with pytest.raises(OSError):
        replace_whole(tmp_path / "missing", target)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_whole(new_file(tmp_path), tmp_path / "folder")
    assert target.read_text() == "new"


@pytest.mark.parametrize("writer", [publish, replace_whole])
def test_what_is_published_is_on_the_disk_before_it_has_its_name(writer, monkeypatch, tmp_path):
    target = tmp_path / "a.txt"
    flushed = []
    flush = os.fsync

    def watch(number):
        flushed.append((os.path.isdir(f"/proc/self/fd/{number}"), target.exists()))
        flush(number)

    monkeypatch.setattr(os, "fsync", watch)
    writer(new_file(tmp_path), target)
    assert flushed == [(False, False), (True, True)]  # the file, then its name in the folder


def test_a_disk_that_cannot_keep_it_publishes_nothing(monkeypatch, tmp_path):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for writer in (publish, replace_whole):
        with pytest.raises(OSError, match="No space"):
            writer(new_file(tmp_path), tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["temporary"]


# ---- regular files ---------------------------------------------------------------------------


def test_only_files_that_end_are_regular(tmp_path):
    path = new_file(tmp_path)
    (tmp_path / "link").symlink_to(path)
    require_regular(path)
    require_regular(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    others = [tmp_path, tmp_path / "pipe", tmp_path / "to_pipe", tmp_path / "socket"]
    for other in [*others, Path("/dev/zero")]:
        with pytest.raises(ValueError, match="no regular file"):
            require_regular(other)
    for missing in (tmp_path / "missing", path / "below", tmp_path / ("x" * 300)):
        with pytest.raises(OSError):
            require_regular(missing)


@pytest.mark.parametrize("give_name", [publish, replace_whole])
def test_a_file_that_was_written_for_its_owner_alone_gets_the_usual_permissions(
    tmp_path, give_name
):
    usual = tmp_path / "usual"
    usual.touch()
    private = tmp_path / "private"
    private.touch(mode=0o600)
    give_name(private, tmp_path / "named")
    assert (tmp_path / "named").stat().st_mode == usual.stat().st_mode

"""Kills, races and full disks: whatever ends a writer, nothing of before is lost, nothing is half
there, and the next one finds no trace of it."""

import ctypes
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from transferlab import artifacts, download
from transferlab.artifacts import (
    prepare_out_dir,
    reserved_stamp,
    write_figure,
    write_new,
    write_table,
    write_text,
)
from transferlab.commands.weights import publish_weights
from transferlab.download import download_hymenoptera
from transferlab.errors import UserError
from transferlab.files import publish, scratch_folder
from transferlab.store import Store, cache_lock, kept_files, merge_store, open_store, trim_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]
TEXT = json.dumps(list(range(2000)))
TABLE = pd.DataFrame({"name": ["고양이", "a,b"] * 300, "x": range(600)})


# ---- processes -------------------------------------------------------------------------------


def forked(work):
    """Starts `work` in a copy of this process -> its number; it ends with 0, or 3 where `work`
    raises."""
    number = os.fork()
    if number:
        return number
    code = 3
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def end_of(number):
    """The exit code of a forked process, as subprocess has it: -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def killed_at(work, event):
    """Runs `work` in a copy of this process that kills itself at a call or return, counted."""

    def until_then():
        seen = 0

        def watch(frame, kind, argument):
            nonlocal seen
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

        os.sys.setprofile(watch)
        work()

    return end_of(forked(until_then))


def count_events(work):
    """How many calls and returns a whole run of `work` takes."""
    reading, writing = os.pipe()

    def counted():
        seen = 0

        def watch(frame, kind, argument):
            nonlocal seen
            seen += 1

        os.sys.setprofile(watch)
        work()
        os.sys.setprofile(None)
        os.write(writing, str(seen).encode())

    assert end_of(forked(counted)) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return int(file.read())


def killed_after(work, seconds):
    """Runs `work` in a copy of this process, and kills it from outside after a time."""
    number = forked(work)
    time.sleep(seconds)
    os.kill(number, signal.SIGKILL)
    return end_of(number)


def at_once(works):
    """Runs all in copies of this process that begin together -> their exit codes."""
    reading, writing = os.pipe()

    def waiting(work):
        def begin():
            os.close(writing)
            os.read(reading, 1)  # returns when the parent lets go
            work()

        return begin

    numbers = [forked(waiting(work)) for work in works]
    os.close(reading)
    os.close(writing)
    return [end_of(number) for number in numbers]


# ---- what lies there -------------------------------------------------------------------------


def is_hidden(path, root):
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def visible(root):
    """Every file with a final name, with its bytes."""
    files = [path for path in root.rglob("*") if path.is_file() and not is_hidden(path, root)]
    return {path: path.read_bytes() for path in files}


def leftovers(root):
    """What is hidden, but for the lock, which stays, and stamps that name no owner yet."""
    hidden = [path for path in root.rglob(".*") if path.name != ".lock"]
    return [path for path in hidden if not (path.is_dir() and not any(path.iterdir()))]


def check_whole(path):
    """Fails where a file is not whole."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        pd.testing.assert_frame_equal(pd.read_csv(path), TABLE)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)


def assert_survived(root, before):
    """Nothing of before has changed, all that is new is whole, no lock is held."""
    after = visible(root)
    assert {path: after.get(path) for path in before} == before
    for path in after.keys() - before.keys():
        check_whole(path)
    for lock in root.rglob(".lock"):
        with cache_lock(lock.parent):
            pass


# ---- the writers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    number: int


def store_of(root):
    return Store(folder=root / "kept")


def write_run(root):
    """A text and a table under a stamp."""
    prepare_out_dir(root)
    with reserved_stamp(root) as stamp:
        write_text(root / "result" / f"run_summary_{stamp}.json", TEXT)
        write_table(root / "result" / f"run_metrics_{stamp}.csv", TABLE)


def write_picture(root):
    drawn, axis = plt.subplots(figsize=(1, 1))
    axis.plot([1, 2])
    for number in range(100):
        if not (root / f"{number}.png").exists():
            write_figure(root / f"{number}.png", drawn)
            break
    plt.close(drawn)


def keep(root):
    store = open_store(root / "kept")
    for number in range(3):
        store.write(Key(number), {"x": torch.full((9000,), float(number))})


def trim(root):
    keep(root)
    trim_store(root / "kept", keep_bytes=40_000)


def merge(root):
    keep(root)
    merge_store(open_store(root / "merged"), root / "kept")


def weigh(root):
    with scratch_folder(root):  # sweeps, as the next file that is written there does
        pass
    for number in range(100):
        target = root / f"m{number}.safetensors"
        if not target.exists():
            publish_weights(target, {"x": torch.zeros(9000)}, "hub: a/b")
            break


def fetch(root):
    """A download, its network replaced by a copy."""
    counts = {"train/ants": 30, "val/bees": 3}

    def copied(url, path, advice):
        with download.zipfile.ZipFile(path, "w") as archive:
            for folder, count in counts.items():
                for number in range(count):
                    archive.writestr(f"hymenoptera_data/{folder}/{number}.jpg", "x" * 5000)

    download.fetch_url = copied
    download.HYMENOPTERA_COUNTS = counts
    download.check_counts(download_hymenoptera(root / "data"), counts, "")


def fetch_anew(root):
    """`fetch` where nothing whole is there yet."""
    number = len(list(root.glob("*/data/hymenoptera_data")))
    fetch(root / str(number))


WRITERS = [write_run, write_picture, keep, trim, merge, weigh, fetch_anew]
FEW = {write_picture: 15}  # each takes a tenth of a second


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Stamps of a hundredth of a second, so that many are reserved in little time."""

    def stamp(form):
        hundredths = int(time.time() * 100)
        return f"{hundredths // 10**6 % 10**8:08d}_{hundredths % 10**6:06d}"

    monkeypatch.setattr(artifacts.time, "strftime", stamp)


def earlier_files(root):
    """What was there before: results, kept features, a dataset."""
    (root / "result").mkdir(parents=True)
    write_text(root / "result" / "run_summary_20200101_000000.json", TEXT)
    write_text(root / "mine.txt", "mine")
    store_of(root).write(Key(99), {"x": torch.arange(9.0)})
    return visible(root)


def check_killed(work, root, kill, trials):
    """Kills `work` in so many ways and looks each time; then what is left is swept by a whole run.

    -> how often it was killed.
    """
    before = earlier_files(root)
    killed = 0
    for trial in range(trials):
        killed += kill(trial) == -signal.SIGKILL
        assert_survived(root, what_stays(before, work))
    assert end_of(forked(lambda: work(root))) == 0
    assert_survived(root, what_stays(before, work))
    return killed


def leftovers_of_the_next_run(work, root):
    """What is left when each place that was written to is written to, or asked for, once more."""
    prepare_out_dir(root)
    if work is fetch_anew:
        for place in root.glob("*/data"):
            assert end_of(forked(lambda place=place: fetch(place.parent))) == 0
    return leftovers(root)


def what_stays(before, work):
    """What was there before, but for what trimming has taken, the oldest first."""
    if work is not trim:
        return before
    return {
        path: data for path, data in before.items() if path.exists() or "kept" not in path.parts
    }


@pytest.mark.parametrize("work", WRITERS, ids=lambda work: work.__name__)
def test_a_writer_that_is_killed_at_any_call_leaves_what_was_there(work, tmp_path, in_a_hurry):
    (tmp_path / "first").mkdir()
    count = count_events(lambda: work(tmp_path / "first"))
    chosen = random.Random(1)
    trials = FEW.get(work, 40)
    root = tmp_path / "out"
    killed = check_killed(
        work,
        root,
        lambda trial: killed_at(lambda: work(root), chosen.randint(1, count)),
        trials,
    )
    assert killed > trials / 2
    assert leftovers_of_the_next_run(work, root) == []


@pytest.mark.parametrize("work", [write_run, keep, fetch_anew], ids=lambda work: work.__name__)
def test_a_writer_that_is_killed_at_any_time_leaves_what_was_there(work, tmp_path, in_a_hurry):
    """From outside, so also in the middle of what is no call of Python's."""
    began = time.monotonic()
    assert end_of(forked(lambda: work(tmp_path / "first"))) == 0
    took = time.monotonic() - began
    chosen = random.Random(2)
    root = tmp_path / "out"
    killed = check_killed(
        work,
        root,
        lambda trial: killed_after(lambda: work(root), chosen.uniform(0, took)),
        trials=40,
    )
    assert killed > 3  # on a busy machine most trials end before their time
    assert leftovers_of_the_next_run(work, root) == []


def test_a_bad_writer_would_be_found_out(tmp_path):
    """The same kills, and a writer as they used to be: straight under the final name."""

    def bad(root):
        path = root / "result" / f"{time.monotonic_ns()}.json"
        with path.open("w") as file:
            for place in range(0, len(TEXT), 100):
                file.write(TEXT[place : place + 100])
                file.flush()

    root = tmp_path / "out"
    root.mkdir()
    (tmp_path / "first" / "result").mkdir(parents=True)
    count = count_events(lambda: bad(tmp_path / "first"))
    chosen = random.Random(1)
    with pytest.raises(json.JSONDecodeError):
        check_killed(
            bad,
            root,
            lambda trial: killed_at(lambda: bad(root), chosen.randint(1, count)),
            trials=40,
        )


def test_leftovers_of_many_kills_do_not_add_up(tmp_path):
    """Each run sweeps what the last left: twenty kills leave no more than one."""
    store = store_of(tmp_path)

    def write_slowly():
        store.write(Key(1), {"x": torch.zeros(3_000_000)})

    def size():
        return sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())

    count = count_events(write_slowly)
    shutil.rmtree(tmp_path / "kept")
    for trial in range(20):
        killed_at(write_slowly, count * 3 // 4 - trial)
        assert size() <= 2 * 12_100_000
    open_store(tmp_path / "kept")
    assert leftovers(tmp_path) == []


# ---- races -----------------------------------------------------------------------------------


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    """A disk with hard links, or one that refuses them."""

    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


def publish_pair(root, owner):
    """A model and its description under one stamp, each saying whose it is."""
    with reserved_stamp(root) as stamp:
        write_text(root / "model" / f"net_best_{stamp}.json", json.dumps(owner))
        write_text(root / "model" / f"net_best_{stamp}.txt", str(owner))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_begin_together_each_have_a_stamp(processes, links, tmp_path, in_a_hurry):
    trials = 60 // processes
    prepare_out_dir(tmp_path)
    for trial in range(trials):
        works = [
            lambda owner=(trial, number): publish_pair(tmp_path, owner)
            for number in range(processes)
        ]
        assert at_once(works) == [0] * processes, trial
    models = sorted((tmp_path / "model").glob("*.json"))
    owners = [tuple(json.loads(path.read_text())) for path in models]
    assert sorted(owners) == [(t, n) for t in range(trials) for n in range(processes)]
    for path, owner in zip(models, owners):
        assert path.with_suffix(".txt").read_text() == str(owner)  # its own description
    assert leftovers(tmp_path) == [] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("processes", [2, 4])
def test_of_those_that_want_one_name_one_has_it(processes, links, tmp_path):
    def publish_as(owner, path):
        try:
            write_text(path, f"{owner} " * 5000)
        except UserError as error:
            assert "exists already" in str(error)
            return
        (path.parent / f"{path.stem}.won_{owner}").write_text("")

    for trial in range(20):
        path = tmp_path / f"{trial}.txt"
        works = [lambda owner=owner, path=path: publish_as(owner, path) for owner in range(4)]
        assert at_once(works[:processes]) == [0] * processes
        (winner,) = tmp_path.glob(f"{trial}.won_*")
        assert set(path.read_text().split()) == {winner.name[-1]}
    assert leftovers(tmp_path) == []


def test_a_store_that_four_write_read_and_trim_gives_only_what_was_kept(tmp_path):
    def use(seed):
        chosen = random.Random(seed)
        store = open_store(tmp_path)
        for _ in range(60):
            number = chosen.randrange(8)
            expected = torch.full((500,), float(number))
            found = store.tensors(Key(number), lambda expected=expected: {"x": expected})["x"]
            assert torch.equal(found, expected)
            trim_store(tmp_path, keep_bytes=8_000)

    assert at_once([lambda seed=seed: use(seed) for seed in range(4)]) == [0] * 4
    assert leftovers(tmp_path) == []
    assert sum(file.size for file in kept_files(tmp_path)) <= 8_000 + 4 * 2_500


def test_two_downloads_at_once_both_have_the_data(tmp_path):
    for trial in range(15):
        root = tmp_path / str(trial)
        assert at_once([lambda root=root: fetch(root)] * 3) == [0] * 3
        assert os.listdir(root / "data") == ["hymenoptera_data"]


def test_two_that_place_the_same_weights_leave_one_whole_file(tmp_path):
    def place(value, target):
        placed = publish_weights(target, {"x": torch.full((9000,), value)}, f"hub: a/{value}")
        assert placed or target.is_file()

    for trial in range(15):
        target = tmp_path / f"m{trial}.safetensors"
        works = [lambda value=value, target=target: place(value, target) for value in (1.0, 2.0)]
        assert at_once(works) == [0, 0]
        with safe_open(target, framework="pt") as file:
            value = file.get_tensor("x")[0].item()
            assert file.metadata()["source"] == f"hub: a/{value}"
    assert leftovers(tmp_path) == []


# ---- disks that refuse -----------------------------------------------------------------------

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000


def mount_small_disk(place, size):
    """Mounts a disk of `size` bytes in memory, for this process alone.

    Raises:
        OSError: the system does not let it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()

    def call(result):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text)
    call(libc.mount(b"none", str(place).encode(), b"tmpfs", 0, f"size={size}".encode()))


@pytest.fixture
def small_disk(tmp_path):
    """Makes a function that runs `work(place)` in a process where `place` holds 200 kB in all."""
    place = tmp_path / "disk"
    place.mkdir()

    def run(work):
        def on_small_disk():
            try:
                mount_small_disk(place, 200_000)
            except OSError:
                os._exit(77)
            work(place)

        code = end_of(forked(on_small_disk))
        if code == 77:
            pytest.skip("no disk can be mounted here")
        assert code == 0

    return run


def refused(act):
    """The one line that an act is refused with."""
    with pytest.raises(UserError) as error:
        act()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk):
    def work(place):
        prepare_out_dir(place)
        write_text(place / "result" / "small.json", TEXT)
        before = visible(place)
        check_refused(place, "No space left")
        assert "Cannot write" in refused(lambda: fetch(place))
        assert visible(place) == before and leftovers(place) == []
        write_text(place / "result" / "b.json", TEXT)  # what fits is still written

    small_disk(work)


def check_refused(place, reason):
    """What does not fit is refused by every writer, and nothing is left of it."""
    before = visible(place)
    big = "x" * 300_000
    table = pd.DataFrame({"x": [big]})
    for act in (
        lambda: write_text(place / "result" / "a.json", big),
        lambda: write_table(place / "result" / "a.csv", table),
        lambda: publish_weights(place / "a.safetensors", {"x": torch.zeros(90_000)}, "a"),
    ):
        assert reason in refused(act)
        assert visible(place) == before and leftovers(place) == []
    with pytest.warns(UserWarning, match=f"not kept.*{reason}"):
        keep_big(place)
    assert visible(place) == before and leftovers(place) == []


def keep_big(place):
    Store(folder=place / "kept").write(Key(1), {"x": torch.zeros(90_000)})


def test_a_disk_that_fills_while_a_stamp_is_held_frees_it(small_disk):
    def work(place):
        prepare_out_dir(place)
        with pytest.raises(UserError, match="No space left"), reserved_stamp(place) as stamp:
            write_text(place / "result" / f"a_{stamp}.json", TEXT)
            write_text(place / "result" / f"b_{stamp}.json", "x" * 300_000)
        assert [path.name[0] for path in visible(place)] == ["a"] and not list(place.glob(".*"))
        (place / "filler").write_bytes(b"")
        with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1000)
        said = refused(lambda: write_text(place / "result" / "c.json", TEXT))
        assert "No space left" in said and leftovers(place) == []

    small_disk(work)


def test_files_that_may_not_grow_are_one_line_too(tmp_path):
    """Stands for a full disk where none can be mounted, and for a quota."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        prepare_out_dir(tmp_path)
        write_text(tmp_path / "result" / "small.json", TEXT)
        check_refused(tmp_path, "File too large")

    assert end_of(forked(work)) == 0


def without_privileges(work):
    """Runs `work` as nobody where this is root, whom no permission stops."""

    def as_nobody():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return end_of(forked(as_nobody))


@contextmanager
def reachable(folder):
    """Lets others go through the folders above."""
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    yield


def test_a_folder_that_is_read_only_is_one_line(tmp_path):
    prepare_out_dir(tmp_path / "out")
    write_text(tmp_path / "out" / "result" / "earlier.json", TEXT)
    keep(tmp_path / "out")
    for folder in [tmp_path / "out", *(tmp_path / "out").iterdir()]:
        folder.chmod(0o555)
    before = visible(tmp_path)

    def work():
        out = tmp_path / "out"
        acts = {
            "out": lambda: prepare_out_dir(out),
            "stamp": lambda: reserved_stamp(out).__enter__(),
            "text": lambda: write_text(out / "result" / "a.json", TEXT),
            "weights": lambda: publish_weights(out / "a.safetensors", {"x": torch.zeros(9)}, "a"),
            "data": lambda: fetch(out),
            "trim": lambda: trim_store(out / "kept"),
            "merge": lambda: merge_store(Store(folder=out / "new"), out / "kept"),
        }
        for act in acts.values():
            assert "ermission denied" in refused(act) or "annot" in refused(act)
        with pytest.warns(UserWarning, match="not kept.*Permission denied"):
            keep_big(out)

    with reachable(tmp_path):
        assert without_privileges(work) == 0
    assert visible(tmp_path) == before and leftovers(tmp_path) == []
    for folder in [tmp_path / "out", *(tmp_path / "out").iterdir()]:
        folder.chmod(0o755)


def test_a_folder_that_vanishes_meanwhile_is_one_line(tmp_path, in_a_hurry):
    """At any moment: another process removes it again and again."""
    over = multiprocessing.get_context("fork").Event()

    def remove():
        chosen = random.Random(4)
        while not over.is_set():
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            time.sleep(chosen.uniform(0, 0.01))

    remover = forked(remove)
    ended = Counter()
    try:
        for _ in range(80):
            try:
                write_run(tmp_path / "out")
                ended["written"] += 1
            except UserError as error:
                assert "\n" not in str(error)
                ended["refused"] += 1
            keep_quietly(tmp_path / "out")
    finally:
        over.set()
        assert end_of(remover) == 0
    assert ended["refused"] > 5


def keep_quietly(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep(root)


def test_publishing_that_is_killed_without_links_is_recognisable(tmp_path, monkeypatch):
    """There a name is reserved by an empty file; whoever meets one knows that it is nothing."""

    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    def work():
        write_new(tmp_path / f"{time.monotonic_ns()}.json", lambda path: path.write_text(TEXT))

    count = count_events(work)
    chosen = random.Random(3)
    for _ in range(60):
        killed_at(work, chosen.randint(1, count))
    sizes = {path.stat().st_size for path in tmp_path.glob("*.json")}
    assert sizes <= {0, len(TEXT)} and len(TEXT) in sizes
    with scratch_folder(tmp_path) as folder:
        (folder / "x").write_text("x")
        publish(folder / "x", tmp_path / "x")
    assert leftovers(tmp_path) == []

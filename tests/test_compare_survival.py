"""compare, killed, several at once, on a full disk, with rubbish where finished parts lie: results
are whole or not there, never others, and what was finished is not computed again."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from transferlab import artifacts, compared
from transferlab.__main__ import main
from transferlab.errors import UserError
from transferlab.store import checksum, kept_key

MODELS = ("test_resnet", "test_efficientnet")
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["transferlab.commands.compare"])


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # with which the others compute, to the bit


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Noise in two colours, 6 images of each for training, 3 of each kept apart."""
    place = tmp_path_factory.mktemp("survival") / "colours"
    random_pixels = np.random.default_rng(0)
    number = 0
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for name, colour in (("red", (70, 0, 0)), ("blue", (0, 0, 70))):
            (place / part / name).mkdir(parents=True)
            for _ in range(count):
                number += 1
                pixels = random_pixels.integers(0, 180, (40, 40, 3)) + np.array(colour)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(place / part / name / f"{number}.png")
    return place


def arguments_for(folder, out):
    """A small comparison: 4 parts and the test images."""
    arguments = ["compare", "--models", *MODELS, "--data", str(folder), "--out", str(out)]
    arguments += ["--weights", "none", "--cache-dir", "", "--folds", "3", "--repeats", "1"]
    return [*arguments, "--size", "32"]


def run_forked(arguments, log):
    """In a process of its own: runs a command, what it says going to `log`."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def start(folder, out, log):
    """Starts a comparison in a process of its own."""
    process = FORKING.Process(target=run_forked, args=(arguments_for(folder, out), log))
    process.start()
    return process


def finish(process):
    """Waits for the end of a process -> its exit code."""
    process.join(120)
    return process.exitcode


def results(out):
    """{stamp: {name: bytes}} of what comparisons have written, but for the stamp."""
    found = {}
    for path in [*out.glob("result/compare_*.*"), *out.glob("img/*.png")]:
        stamp = re.search(r"\d{8}_\d{6}", path.name)[0]
        data = path.read_bytes().replace(stamp.encode(), b"STAMP")
        data = re.sub(rb'"seconds": {[^}]*}', b"", data)  # of the summary
        found.setdefault(stamp, {})[path.name.replace(stamp, "STAMP")] = data
    return found


def hidden(out):
    """What is left of writers."""
    return [path for path in out.rglob(".*") if path.name != ".lock"]


def parts(out):
    """The parts that are finished, but for the test images'."""
    files = out.glob("result/compare_finished/*.safetensors")
    return [path for path in files if kept_key(path)["kind"] == "PredictionKey"]


@pytest.fixture(scope="module")
def undisturbed(colours, tmp_path_factory):
    """The results of a comparison that nothing disturbs, and how long it took."""
    for _ in range(2):  # the first one waits for imports
        out = tmp_path_factory.mktemp("undisturbed")
        started = time.monotonic()
        assert finish(start(colours, out, out / "log")) == 0, (out / "log").read_text()
        seconds = time.monotonic() - started
    (expected,) = results(out).values()
    assert len(expected) == 6
    return expected, seconds


# ---- rubbish where finished parts lie ------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    path.write_bytes(random.Random(0).randbytes(900))


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def take_another(path):
    other = next(one for one in sorted(path.parent.iterdir()) if one != path)
    path.write_bytes(other.read_bytes())


def change_numbers(path):
    """One bit of the tensors, which come last."""
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def forge(path, **tensors):
    """Writes other tensors under the same key, with the checksum that belongs to them."""
    kept = load_file(path) | tensors
    key = json.dumps(kept_key(path), sort_keys=True)
    save_file(kept, path, metadata={"key": key, "sha256": checksum(kept)})


def another_shape(path):
    forge(path, probabilities=torch.full((2, 3, 2), 0.5))


def no_probabilities(path):
    forge(path, probabilities=torch.full((1, 12, 2), float("nan")))


def other_machine(path):
    forge(path, json=torch.tensor([1, 2, 3], dtype=torch.uint8))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        make_pipe,
        no_probabilities,
        # Seconds each, and told apart by the store itself in tests/test_store.py.
        pytest.param(empty, marks=pytest.mark.slow),
        pytest.param(scramble, marks=pytest.mark.slow),
        pytest.param(take_another, marks=pytest.mark.slow),
        pytest.param(change_numbers, marks=pytest.mark.slow),
        pytest.param(another_shape, marks=pytest.mark.slow),
        pytest.param(other_machine, marks=pytest.mark.slow),
    ],
)
def test_what_is_damaged_or_foreign_is_computed_again_with_a_warning(
    colours, tmp_path, undisturbed, damage
):
    expected, _ = undisturbed
    assert main(arguments_for(colours, tmp_path)) == 0
    for path in [*tmp_path.glob("result/*.*"), *tmp_path.glob("img/*")]:
        path.unlink()
    victim = sorted(parts(tmp_path))[2]
    whole = victim.read_bytes()
    damage(victim)
    with pytest.warns(UserWarning, match="computed again"):
        assert main(arguments_for(colours, tmp_path)) == 0
    (found,) = results(tmp_path).values()
    assert found == expected
    assert load_file(victim).keys() and victim.stat().st_size == len(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(arguments_for(colours, tmp_path)) == 0


def test_a_file_where_the_finished_parts_should_lie_is_one_clear_error(colours, tmp_path, capsys):
    (tmp_path / "result").mkdir()
    (tmp_path / "result/compare_finished").write_text("mine")
    assert main(arguments_for(colours, tmp_path)) == 2
    printed = capsys.readouterr().err
    assert "cannot keep finished parts in" in printed and "--out" in printed
    assert (tmp_path / "result/compare_finished").read_text() == "mine"


# ---- written before they are printed, all or none ------------------------------------------------


def test_results_are_written_before_they_are_printed(colours, tmp_path, monkeypatch, undisturbed):
    def nobody_reads(comparison):
        raise BrokenPipeError

    monkeypatch.setattr("transferlab.commands.compare.print_comparison", nobody_reads)
    assert main(arguments_for(colours, tmp_path)) == 141
    (found,) = results(tmp_path).values()
    assert found == undisturbed[0]


def test_where_one_result_cannot_have_its_name_none_has(
    colours, tmp_path, monkeypatch, capsys, undisturbed
):
    whole = artifacts.publish

    def refuse(draft, target):
        if "summary" in target.name and target.parent.name == "result":
            raise OSError(28, "No space left on device")
        return whole(draft, target)

    monkeypatch.setattr(artifacts, "publish", refuse)
    assert main(arguments_for(colours, tmp_path)) == 2
    assert "No space left" in capsys.readouterr().err
    assert results(tmp_path) == {} and hidden(tmp_path) == []
    monkeypatch.undo()
    assert main(arguments_for(colours, tmp_path)) == 0
    assert list(results(tmp_path).values()) == [undisturbed[0]]


@pytest.mark.parametrize("refused", ["pairs", "test", "summary"])
def test_where_one_result_cannot_be_written_none_is_left(
    colours, tmp_path, monkeypatch, capsys, refused
):
    for name in ("write_table", "write_text"):
        whole = getattr(compared, name)

        def write(path, content, whole=whole):
            if refused in path.name:
                raise UserError(f"cannot write {path} (No space left on device): make room there")
            return whole(path, content)

        monkeypatch.setattr(compared, name, write)
    assert main(arguments_for(colours, tmp_path)) == 2
    assert "No space left" in capsys.readouterr().err
    assert results(tmp_path) == {} and hidden(tmp_path) == []
    assert len(parts(tmp_path)) == 4


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space")])
def test_nobody_needs_to_listen(colours, tmp_path, monkeypatch, capsys, undisturbed, error):
    def refuse(text):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", types.SimpleNamespace(write=refuse, flush=lambda: None))
        code = main(arguments_for(colours, tmp_path))
    is_broken = isinstance(error, BrokenPipeError)
    assert code == (141 if is_broken else 2)
    assert is_broken or "cannot print to stdout" in capsys.readouterr().err
    assert list(results(tmp_path).values()) == [undisturbed[0]]


def test_an_interruption_does_not_wait_for_others(colours, tmp_path, monkeypatch):
    """Trimming the cache waits for whoever does."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("transferlab.commands.compare.compare", interrupted)
    monkeypatch.setattr("transferlab.commands.compare.trim_to_bound", pytest.fail)
    assert main(arguments_for(colours, tmp_path)) == 130


@pytest.mark.slow
@pytest.mark.parametrize("file_bytes", [500, 2_300, 12_000])
def test_on_a_full_disk_one_line_says_so_and_nothing_is_half_written(
    colours, tmp_path, undisturbed, file_bytes
):
    expected, _ = undisturbed
    out = tmp_path / "out"
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))"
    command = f"import resource; {limit}; import transferlab.__main__ as t; exit(t.main())"
    ended = subprocess.run(
        [sys.executable, "-c", command, *arguments_for(colours, out)],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert len(re.findall("^error: ", ended.stderr, re.MULTILINE)) == 1
    assert results(out) == {} and hidden(out) == []
    assert finish(start(colours, out, tmp_path / "again")) == 0
    (found,) = results(out).values()
    assert found == expected


@pytest.mark.slow
def test_a_reader_that_has_had_enough_ends_it_quietly(colours, tmp_path, undisturbed):
    command = " ".join([sys.executable, "-m", "transferlab", *arguments_for(colours, tmp_path)])
    command = command.replace("--cache-dir ", "--cache-dir '' ")
    piped = f"set -o pipefail; {command} | head -1"
    ended = subprocess.run(
        ["bash", "-c", piped], env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert ended.returncode in (0, 141), ended.stderr
    assert ended.stdout.startswith("18 images decoded") and "Traceback" not in ended.stderr
    assert hidden(tmp_path) == []
    assert finish(start(colours, tmp_path, tmp_path / "log")) == 0
    assert all(one == undisturbed[0] for one in results(tmp_path).values())


# ---- several at once, and killed -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_in_one_folder_at_once_all_end_with_the_same_results(
    colours, tmp_path, undisturbed, count
):
    expected, _ = undisturbed
    out = tmp_path / "out"
    logs = [tmp_path / f"log {number}" for number in range(count)]
    processes = [start(colours, out, log) for log in logs]
    codes = [finish(process) for process in processes]
    said = "\n".join(log.read_text() for log in logs)
    assert codes == [0] * count, said
    assert "Traceback" not in said and "warning" not in said
    found = results(out)
    assert len(found) == count and all(one == expected for one in found.values())
    assert hidden(out) == []


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_ends_with_the_same_results(
    colours, tmp_path, undisturbed
):
    """20 kills, each at a random point; several of them in a row in one folder."""
    expected, seconds = undisturbed
    chance = random.Random(0)
    kills = 0
    number = 0
    while kills < 20:
        number += 1
        out = tmp_path / f"out {number}"
        done = 0  # parts
        ended = False
        while not ended:
            log = tmp_path / f"log {number} {kills} {done}"
            log.unlink(missing_ok=True)
            log.touch()
            process = start(colours, out, log)
            wait = chance.uniform(0, seconds) if kills < 20 else 120
            process.join(wait)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
            else:
                ended = True
                assert process.exitcode == 0, log.read_text()
            said = log.read_text()
            assert "Traceback" not in said and "warning" not in said, said
            told = re.search(r"(\d+) of 4 parts are to be computed", said)
            if told:
                assert int(told[1]) == 4 - done
            else:
                assert done == 4 or not ended
            assert all(one == expected for one in whole_results(out))
            now = len(parts(out)) if out.exists() else 0
            assert now >= done
            done = now
        # One that is killed while it prints has written its results already.
        assert list(whole_results(out))
        assert hidden(out) == []


def whole_results(out):
    """The results that are whole: the summary is written last."""
    for found in results(out).values():
        if "compare_summary_STAMP.json" in found:
            yield found

"""`transferlab run` goes on where it was stopped: killed anywhere, raced by others, unheard."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import torch
from safetensors import safe_open

from transferlab import artifacts, finished, notebook
from transferlab.__main__ import Listener, listening, main
from transferlab.artifacts import write_text
from transferlab.commands import run as run_command
from transferlab.commands.run import NOTEBOOKS, no_orphans, run_notebook
from transferlab.errors import UserError
from transferlab.finished import FINISHED_FOLDER, output_files
from transferlab.notebook import save_run

FORK = multiprocessing.get_context("fork")
STAMP = re.compile(r"\d{8}_\d{6}")
FILES = 4 * 5 + 3  # of four saved runs and three copies
SPEED = 100  # by which the clock of stamps is faster, so that no test waits for a second to pass


# ---- stand-ins -------------------------------------------------------------------------------


def fast_time(form):
    """The time as a stamp that changes every hundredth of a second, the same in all processes."""
    moment = f"{int(time.time() * SPEED):014}"[-14:]
    return form.replace("%Y%m%d_%H%M%S", f"{moment[:8]}_{moment[8:]}")


@pytest.fixture
def fast_clock(monkeypatch):
    """No waiting for the next stamp, nor for the disk, which only a power cut would need."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    clock = {"strftime": fast_time, "sleep": lambda seconds: time.sleep(seconds / SPEED)}
    for module in (artifacts, notebook):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(**vars(time) | clock))


def tiny_run(name, value):
    """A run as `save_run` takes it: a backbone and a head of a few numbers, each `value`."""
    body = torch.nn.Linear(2, 2)
    body.pretrained_cfg = {"classifier": "fc"}
    head = torch.nn.Linear(2, 3)
    for tensor in (*body.parameters(), *head.parameters()):
        torch.nn.init.constant_(tensor, value)
    frozen = types.SimpleNamespace(name=name, lower=types.SimpleNamespace(body=body))
    history = pd.DataFrame({"epoch": [1], "value": [value]}).set_index("epoch")
    return types.SimpleNamespace(frozen=frozen, head=head, history=history, value=value)


@pytest.fixture
def tiny_runs(monkeypatch, fast_clock):
    """What a run says of itself is its value."""
    monkeypatch.setattr(notebook, "describe_run", lambda run: {"value": run.value})


def stand_in(log, value):
    """Executes a notebook as the real one does, but for the notebook: it saves a run, the second
    one two."""

    def execute(source, copy, parameters):
        with log.open("a") as file:
            file.write(f"{source.stem[:2]}\n")
        plain = {"metadata": {"papermill": {"output_path": str(copy)}}, "printed": []}
        with contextlib.chdir(copy.parent):
            for name in ("one", "two") if source.stem.startswith("02") else ("one",):
                files = save_run(tiny_run(name + source.stem[:2], value), parameters["out_dir"], {})
                plain["printed"] += [path.name for path in files.values()]
        print("saved", *(STAMP.sub("STAMP", name) for name in plain["printed"]))
        copy.write_text(json.dumps(plain))

    return execute


def tell(one, own, parameters):
    """A summary of every saved model."""
    for model in sorted((own / "model").glob("*_best_*.safetensors")):
        name, stamp = model.stem.split("_best_")
        text = model.with_suffix(".json").read_text()
        write_text(own / "result" / f"{name}_summary_{stamp}.json", f'{{"{stamp}": {text}}}')


@pytest.fixture
def tiny_notebooks(tiny_runs, monkeypatch, tmp_path):
    """Three notebooks that take a moment; the log tells which were executed."""
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setattr(run_command, "run_notebook", stand_in(log, 1.5))
    monkeypatch.setattr(run_command, "summarise", tell)
    monkeypatch.setattr(
        run_command, "read_records", lambda files: [p for p in files if "_summary_" in p.name]
    )
    monkeypatch.setattr(
        run_command, "result_table", lambda records: "\n".join(one.name for one in records)
    )
    return log


@pytest.fixture
def arguments(image_folder, tmp_path):
    return ["run", "--data", str(image_folder), "--weights", "none", "--out", str(tmp_path / "out")]


def contents(out):
    """{path: bytes} of all that a run leaves for the eye, without stamps."""
    found = {}
    for place in output_files(out):
        data = (out / place).read_bytes()
        if FINISHED_FOLDER in place.as_posix():
            data = b""  # of hashes over stamps
        name = STAMP.sub("STAMP", place.as_posix())
        assert name not in found
        found[name] = STAMP.sub("STAMP", data.decode("latin-1")).replace(str(out), "OUT")
    return found


def hidden(folder):
    return list(folder.rglob(".*"))


def last_part(output):
    """The table and the list of files that a run ends with, without stamps."""
    return [STAMP.sub("STAMP", part) for part in output.read_text().split("\n\n")[-2:]]


def in_a_fork(work, *arguments):
    """Starts a process that does `work` and ends without tidying up as tests do."""

    def done():
        code = 70
        try:
            code = work(*arguments) or 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    process = FORK.Process(target=done)
    process.start()
    return process


def run_quietly(arguments, output):
    """The command, its stdout a file."""
    with output.open("w") as file, contextlib.redirect_stdout(file):
        return main(arguments)


# ---- going on --------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again(tiny_notebooks, arguments, tmp_path, capsys):
    assert main(arguments) == 0
    first = capsys.readouterr().out
    before = contents(tmp_path / "out")
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert tiny_notebooks.read_text().split() == ["01", "02", "03"]
    assert contents(tmp_path / "out") == before and hidden(tmp_path / "out") == []
    table, files = first.split("\n\n")[-2:]
    assert again.endswith(f"{table}\n\n{files}")
    line = r"\n(0\d)\S+ was finished at (\S+): not run again \(--fresh runs it\)\n"
    told = re.findall(line, again)
    assert [number for number, _ in told] == ["01", "02", "03"]
    copies = sorted((tmp_path / "out" / "result").glob("*.ipynb"))
    assert [copy.stem[-15:] for copy in copies] == [stamp for _, stamp in told]


def test_the_interrupted_one_is_run_from_its_start(
    tiny_notebooks, arguments, tmp_path, monkeypatch, capsys
):
    execute = run_command.run_notebook

    def interrupted(source, copy, parameters):
        execute(source, copy, parameters)
        if source.stem.startswith("02"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_command, "run_notebook", interrupted)
        assert main(arguments) == 130
    left = contents(tmp_path / "out")
    assert len([name for name in left if "01" in name]) == len(left) > 0
    assert hidden(tmp_path / "out") == []
    assert main(arguments) == 0
    assert tiny_notebooks.read_text().split() == ["01", "02", "02", "03"]
    out = capsys.readouterr().out
    assert "01_resnet50_ani_fine_tune was finished" in out
    assert main([*arguments[:-1], str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_fresh_runs_all_again_and_goes_on_when_it_is_interrupted(
    tiny_notebooks, arguments, tmp_path, monkeypatch
):
    assert main(arguments) == 0
    execute = run_command.run_notebook

    def interrupted(source, copy, parameters):
        if source.stem.startswith("02"):
            raise KeyboardInterrupt
        execute(source, copy, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(run_command, "run_notebook", interrupted)
        assert main([*arguments, "--fresh"]) == 130
    assert main(arguments) == 0
    assert tiny_notebooks.read_text().split() == ["01", "02", "03", "01", "02", "03"]
    assert len(output_files(tmp_path / "out")) == 2 * FILES + 3  # the records are of the last


@pytest.mark.parametrize("what", ["epochs", "views", "seed", "data", "notebook", "versions"])
def test_what_depends_on_something_else_is_run(
    tiny_notebooks, arguments, image_folder, tmp_path, monkeypatch, what
):
    shutil.copytree(image_folder, tmp_path / "images")
    arguments[2] = str(tmp_path / "images")
    only = [*arguments, "--only", "01"]
    assert main(only) == 0
    if what in ("epochs", "views", "seed"):
        only += [f"--{what}", "3"]
    if what == "data":
        (tmp_path / "images" / "disc" / "0.png").unlink()
    if what == "notebook":
        source = run_command.find_notebooks("01", Path(__file__).resolve().parents[1])["01"]
        other = tmp_path / source.name
        other.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        monkeypatch.setattr(run_command, "find_notebooks", lambda only, root: {"01": other})
    if what == "versions":
        machine = run_command.this_machine()
        other = replace(machine, versions=machine.versions | {"torch": "8.8"})
        monkeypatch.setattr(run_command, "this_machine", lambda: other)
    assert main(only) == 0
    assert tiny_notebooks.read_text().split() == ["01", "01"]


def test_other_weights_are_another_run(tiny_notebooks, arguments, tiny_file, monkeypatch):
    one = replace(NOTEBOOKS["01"], backbones=("test_resnet.r160_in1k",))
    monkeypatch.setitem(NOTEBOOKS, "01", one)
    arguments[4] = str(tiny_file.parent)
    only = [*arguments, "--only", "01"]
    assert main(only) == main(only) == 0
    assert tiny_notebooks.read_text().split() == ["01"]
    tiny_file.with_suffix(".json").write_text('{"source": "another"}')
    assert main(only) == 0
    assert tiny_notebooks.read_text().split() == ["01", "01"]


def test_a_file_that_is_gone_is_told_and_made_again(tiny_notebooks, arguments, tmp_path, capsys):
    assert main([*arguments, "--only", "01"]) == 0
    (gone,) = (tmp_path / "out" / "result").glob("one01_results_*.csv")
    gone.unlink()
    assert main([*arguments, "--only", "01"]) == 0
    out = capsys.readouterr().out
    assert f"01_resnet50_ani_fine_tune is run again: result/{gone.name} is missing" in out
    assert tiny_notebooks.read_text().split() == ["01", "01"]


def test_a_damaged_record_is_told_and_the_notebook_run(tiny_notebooks, arguments, tmp_path, capsys):
    assert main([*arguments, "--only", "01"]) == 0
    (record,) = (tmp_path / "out" / FINISHED_FOLDER).iterdir()
    record.write_text("{")
    assert main([*arguments, "--only", "01"]) == 0
    assert f"is run again: {record.name} is no record" in capsys.readouterr().out
    assert main([*arguments, "--only", "01"]) == 0
    assert tiny_notebooks.read_text().split() == ["01", "01"]


# ---- failing ---------------------------------------------------------------------------------


def test_what_was_executed_of_a_failed_notebook_is_kept(
    tiny_notebooks, arguments, tmp_path, monkeypatch, capsys
):
    def fails(source, copy, parameters):
        copy.write_text("{}")
        raise UserError(f"{source.name} stopped: no more")

    monkeypatch.setattr(run_command, "run_notebook", fails)
    assert main(arguments) == 2
    (kept,) = output_files(tmp_path / "out")
    assert re.fullmatch(r"result/01_resnet50_ani_fine_tune_partial_\d{8}_\d{6}.ipynb", str(kept))
    message = f"stopped: no more (executed as far as that: {tmp_path / 'out' / kept})\n"
    assert capsys.readouterr().err.endswith(message) and hidden(tmp_path / "out") == []


def test_a_full_disk_is_named_and_keeps_what_is_finished(
    tiny_notebooks, arguments, tmp_path, monkeypatch, capsys
):
    execute = run_command.run_notebook

    def full(source, copy, parameters):
        if source.stem.startswith("02"):
            raise OSError(28, "No space left on device")
        execute(source, copy, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(run_command, "run_notebook", full)
        assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"cannot write {tmp_path / 'out'} (No space left on device): make room" in err
    assert hidden(tmp_path / "out") == [] and main(arguments) == 0
    assert tiny_notebooks.read_text().split() == ["01", "02", "03"]


def test_what_has_the_name_of_the_records_is_told_before_anything_is_run(
    tiny_notebooks, arguments, tmp_path, capsys
):
    place = tmp_path / "out" / FINISHED_FOLDER
    place.parent.mkdir(parents=True)
    place.write_text("theirs")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"cannot keep records in {place}" in err
    assert tiny_notebooks.read_text() == "" and place.read_text() == "theirs"


def test_a_folder_in_place_of_a_record_blocks_no_later_run(
    tiny_notebooks, arguments, tmp_path, capsys
):
    assert main([*arguments, "--only", "01"]) == 0
    (record,) = (tmp_path / "out" / FINISHED_FOLDER).iterdir()
    record.unlink()
    record.mkdir()
    for only in ("01", "01", "02"):
        assert main([*arguments, "--only", only]) == 0
    assert f"{record} is a folder" in capsys.readouterr().out
    assert main([*arguments, "--only", "01", "--fresh"]) == 0
    assert tiny_notebooks.read_text().split() == ["01", "01", "01", "02", "01"]


def test_finished_work_that_cannot_be_published_is_laid_aside(
    tiny_notebooks, arguments, tmp_path, monkeypatch, capsys
):
    def refuse(path, done):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(finished, "write_journal", refuse)
    assert main([*arguments, "--only", "01"]) == 2
    printed = capsys.readouterr()
    (kept,) = (tmp_path / "out" / "result").glob("unpublished_*")
    assert f"(Read-only file system): what is left of it lies in {kept}" in STAMP.sub(
        "", printed.out.replace("[Errno 30] ", "")
    )
    assert printed.err.count("\n") == 1 and len(output_files(kept)) == 6
    assert hidden(tmp_path / "out") == []


def test_a_folder_that_no_notebook_can_name_is_one_line(
    tiny_notebooks, image_folder, tmp_path, capsys
):
    broken = tmp_path / os.fsdecode(b"im\xffages")
    shutil.copytree(image_folder, broken)
    arguments = ["run", "--data", str(broken), "--weights", "none", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "im\\udcffages is no UTF-8" in capsys.readouterr().err
    arguments = ["run", "--data", str(image_folder), "--weights", "none", "--out", str(broken)]
    assert main(arguments) == 2
    assert tiny_notebooks.read_text() == ""


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space")])
def test_nobody_needs_to_listen(tiny_notebooks, arguments, tmp_path, monkeypatch, error):
    """All is run and published; then it is told."""

    def refuse(text):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", types.SimpleNamespace(write=refuse, flush=lambda: None))
        code = main(arguments)
    assert code == (141 if isinstance(error, BrokenPipeError) else 2)
    assert tiny_notebooks.read_text().split() == ["01", "02", "03"]
    assert len(list((tmp_path / "out" / FINISHED_FOLDER).iterdir())) == 3


def test_a_listener_passes_all_on_until_it_fails():
    heard = []
    stream = types.SimpleNamespace(write=heard.append, flush=lambda: None)
    listener = Listener(stream)
    assert listener.write("one") == 3
    stream.write = lambda text: 1 / 0 if len(heard) > 1 else heard.append(text)
    listener.write("two")
    assert heard == ["one", "two"] and listener.error is None
    stream.encoding = "ascii"
    assert listener.encoding == "ascii" and not hasattr(listener, "isatty")


def test_what_is_raised_inside_comes_before_what_printing_raises(monkeypatch):
    def refuse(text):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(write=refuse, flush=lambda: None))
    with pytest.raises(ZeroDivisionError), listening():
        print("unheard")
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), listening():
        print("unheard")


# ---- real kernels ----------------------------------------------------------------------------


def write_notebook(folder, *sources):
    """A notebook of some cells, the first with the parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"language_info": {"name": "python"}}
    path = folder / "01 {x} %s.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


NAMES = """
from pathlib import Path
print(ascii(Path(data_dir).name), Path(data_dir).is_dir(), Path(out_dir).resolve().name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a {b} {0} {{c", "q\"uo'te", "new\nline", "b\\ack\\n", "한글 $x %s\x1b"]
)
def test_folders_of_any_name_reach_the_notebook(name, tmp_path, capsys):
    (tmp_path / name / "result").mkdir(parents=True)
    source = write_notebook(tmp_path / name, "data_dir = out_dir = ''", NAMES)
    copy = tmp_path / name / "result" / "copy {y}.ipynb"
    run_notebook(source, copy, {"data_dir": str(tmp_path / name), "out_dir": ".."})
    assert capsys.readouterr().out == f"{ascii(name)} True {name}\n" and copy.is_file()


@pytest.mark.slow
def test_a_kernel_that_dies_is_one_line(tmp_path, capfd):
    source = write_notebook(tmp_path, "x = 1", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="stopped: its process was ended .as where memory runs out"):
        run_notebook(source, tmp_path / "copy.ipynb", {})
    assert (tmp_path / "copy.ipynb").is_file() and capfd.readouterr().err == ""


def is_running(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.02)


ENDLESS = """
import os, subprocess, time
from pathlib import Path
child = subprocess.Popen(["sleep", "100"])
Path("numbers").write_text(f"{os.getpid()} {child.pid}")
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_kernel_outlives_its_run(name, arguments, tmp_path, monkeypatch):
    source = write_notebook(tmp_path, "data_dir = out_dir = weights = ''", ENDLESS)
    monkeypatch.setattr(run_command, "find_notebooks", lambda only, root: {"01": source})
    process = in_a_fork(run_quietly, arguments, tmp_path / "output")
    out = tmp_path / "out"
    wait_for(lambda: [*out.rglob("numbers")] and [*out.rglob("numbers")][0].read_text())
    kernel, child = map(int, next(out.rglob("numbers")).read_text().split())
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert process.exitcode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[name]
    wait_for(lambda: not is_running(kernel), 5)
    if name != "SIGKILL":
        assert not is_running(child) and hidden(out) == [] and output_files(out) == []
    os.system(f"kill -9 {child} 2> /dev/null")


@pytest.mark.slow
def test_a_kernel_that_is_just_starting_is_ended_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), no_orphans():
        started = psutil.Popen(["sh", "-c", "sleep 100; true"])
        wait_for(lambda: started.children())
        inner = started.children()
        raise KeyboardInterrupt
    assert not any(is_running(one.pid) for one in [started, *inner])


# ---- killed anywhere -------------------------------------------------------------------------

CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def kill_at(step):
    """Has this process killed just before its `step`-th change of a file or folder; -> how many
    there were so far, in a list."""
    count = [0]

    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if event in CHANGES or writes:
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def count_steps(work, *arguments):
    """How many changes of files `work` makes."""
    receiver, sender = FORK.Pipe(duplex=False)

    def counted():
        count = kill_at(0)
        work(*arguments)
        sender.send(count[0])

    process = in_a_fork(counted)
    steps = receiver.recv()
    process.join()
    return steps


def killed_at(step, work, *arguments):
    """Does `work` in a process that is killed at that step."""

    def killed():
        kill_at(step)
        work(*arguments)

    process = in_a_fork(killed)
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_goes_on(tiny_notebooks, arguments, tmp_path):
    """At every third of the places where it changes a file or a folder."""
    out, output = tmp_path / "out", tmp_path / "output"
    steps = count_steps(run_quietly, arguments, output)
    whole, told = contents(out), last_part(output)
    assert steps >= 150
    for step in range(random.Random(0).randint(1, 3), steps + 1, 3):
        shutil.rmtree(out)
        tiny_notebooks.write_text("")
        code = killed_at(step, run_quietly, arguments, output)
        assert code == -signal.SIGKILL or step > steps - 9  # how often a stamp is taken varies
        before = tiny_notebooks.read_text().split()
        remembered = [path.name[:2] for path in out.glob(f"{FINISHED_FOLDER}/0*.json")]
        begun = [*out.glob(f"{FINISHED_FOLDER}/.pending-*")]
        again = in_a_fork(run_quietly, arguments, output)
        again.join()
        assert again.exitcode == 0
        assert contents(out) == whole, step
        # A stamp whose holder had not yet told who it is may stay a while; nothing is in it.
        assert all(STAMP.fullmatch(path.name[1:]) and not [*path.iterdir()] for path in hidden(out))
        executed = tiny_notebooks.read_text().split()[len(before) :]
        rest = [number for number in ("01", "02", "03") if number not in remembered]
        assert executed in (rest, rest[1:] if begun else rest), step
        assert last_part(output) == told


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_time_goes_on(tiny_notebooks, arguments, tmp_path):
    """Also in the middle of a write."""
    out, output = tmp_path / "out", tmp_path / "output"
    started = time.perf_counter()
    in_a_fork(run_quietly, arguments, output).join()
    seconds = time.perf_counter() - started
    whole = contents(out)
    chosen = random.Random(0)
    for trial in range(100):
        if trial % 4 == 0:  # else killed twice, thrice, four times
            shutil.rmtree(out)
        process = in_a_fork(run_quietly, arguments, output)
        time.sleep(chosen.uniform(0, seconds))
        process.kill()
        process.join()
        if trial % 4 == 3:
            again = in_a_fork(run_quietly, arguments, output)
            again.join()
            assert again.exitcode == 0 and contents(out) == whole, trial


# ---- several at once -------------------------------------------------------------------------


def listed(output, out):
    """The files that a run says it has written."""
    lines = output.read_text().split("files written:\n")[1].splitlines()
    return {out / line.strip() for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_runs_at_once_take_nothing_from_each_other(
    tiny_runs, tiny_notebooks, arguments, tmp_path, monkeypatch, count
):
    out = tmp_path / "out"
    for trial in range(8):
        shutil.rmtree(out, ignore_errors=True)
        outputs = [tmp_path / f"output_{number}" for number in range(count)]
        processes = []
        ready = FORK.Barrier(count)
        for number, output in enumerate(outputs):

            def work(number=number, output=output, ready=ready):
                def together(tasks, out):
                    ready.wait(30)
                    return usual(tasks, out)

                usual = run_command.run_missing
                run_command.run_missing = together
                run_command.find_finished = lambda task, out: None
                run_command.run_notebook = stand_in(tiny_notebooks, number + 1.0)
                return run_quietly(arguments, output)

            processes.append(in_a_fork(work))
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * count, trial
        named = [listed(output, out) for output in outputs]
        assert [len(files) for files in named] == [FILES] * count
        records = {out / path for path in output_files(out) if FINISHED_FOLDER in str(path)}
        assert set.union(*named) == {out / path for path in output_files(out)} - records
        assert sum(map(len, named)) == len(set.union(*named)) and hidden(out) == []
        for number, files in enumerate(named):
            for path in files:
                if path.suffix == ".csv":
                    assert pd.read_csv(path)["value"].tolist() == [number + 1.0]
                if "_best_" in path.name and path.suffix == ".safetensors":
                    assert_belongs_together(path, number + 1.0)


def assert_belongs_together(model, value):
    """Weights, their description inside, and that beside them are of the run with this value."""
    with safe_open(model, "pt") as file:
        assert json.loads(file.metadata()["description"]) == {"value": value}
        assert all((file.get_tensor(key) == value).all() for key in file.keys())  # noqa: SIM118
    assert json.loads(model.with_suffix(".json").read_text()) == {"value": value}


# ---- saving ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_save_that_is_killed_anywhere_changes_nothing_that_was_there(tiny_runs, tmp_path):
    out = tmp_path / "out"

    def save(value):
        save_run(tiny_run("net", value), out, {})

    save(1.0)
    earlier = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    steps = count_steps(save, 2.0)
    assert steps >= 10
    for trial in range(-(-120 // steps)):
        for step in range(1, steps + 1):
            code = killed_at(step, save, float(trial + 2))
            assert code == -signal.SIGKILL or step > steps - 3
            assert {path: path.read_bytes() for path in earlier} == earlier
            for model in out.glob("model/*_best_*.safetensors"):
                with safe_open(model, "pt") as file:
                    value = json.loads(file.metadata()["description"])["value"]
                assert_belongs_together(model, value)
    save(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_saves_at_once_have_stamps_of_their_own(tiny_runs, tmp_path, count):
    for trial in range(15):
        out = tmp_path / str(trial)
        ready = FORK.Barrier(count)

        def save(value, out=out, ready=ready):
            run = tiny_run("net", value)
            ready.wait(30)
            for _ in range(2):
                save_run(run, out, {})

        processes = [in_a_fork(save, float(number)) for number in range(count)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * count
        models = [*out.glob("model/*_best_*.safetensors")]
        assert len(models) == 2 * count and len(output_files(out)) == 4 * 2 * count
        values = [json.loads(model.with_suffix(".json").read_text())["value"] for model in models]
        assert sorted(values) == sorted(2 * [*map(float, range(count))])
        for model, value in zip(models, values, strict=True):
            assert_belongs_together(model, value)
        assert hidden(out) == []

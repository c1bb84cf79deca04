"""The command line: one line and the right exit code, whatever ends it."""

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from transferlab.__main__ import main, make_parser
from transferlab.commands import cache, options
from transferlab.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


# In a process of its own a stand-in for the command `cache`, which imports no library.
STAND_IN = """
import sys
import types
from transferlab.__main__ import main
cache = types.ModuleType("transferlab.commands.cache")
cache.add_options = lambda parser: parser.add_argument("--cache-dir")
sys.modules[cache.__name__] = cache
"""


def start(arguments, *, code="", out=subprocess.PIPE, **environment):
    """`transferlab ARGUMENTS` in a process of its own, after some `code`."""
    program = f"{STAND_IN}\n{code}\nsys.exit(main())"
    command = [sys.executable, "-c", program, *arguments]
    variables = os.environ | {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, text=True, stdout=out, stderr=subprocess.PIPE
    )


def ends(process, *, within=60):
    """Exit code and stderr of a process."""
    _, err = process.communicate(timeout=within)
    return process.returncode, err


def raising(monkeypatch, error):
    """The command `cache` raises an error."""

    def fail(options):
        raise error

    monkeypatch.setattr(cache, "run", fail)


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no images in a\x1b[31m\nb"), r"no images in a\x1b[31m\nb"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "'/x': make room on that disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x\ny"), r"'/x\ny': give another"),
        (OSError("odd"), "odd"),
        (TimeoutError(), "TimeoutError"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "out of memory: take fewer"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (RuntimeError("Could not determine home directory."), "give another path"),
        (ValueError("embedded null byte"), "give another path"),
    ],
    ids=str,
)
def test_what_user_or_machine_have_caused_is_one_line(error, line, monkeypatch, capsys):
    raising(monkeypatch, error)
    assert main(["cache"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and line in told
    assert told.count("\n") == 1 and "\x1b" not in told


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch):
    for error in (ValueError("wrong"), RuntimeError("wrong"), KeyError("wrong")):
        raising(monkeypatch, error)
        with pytest.raises(type(error)):
            main(["cache"])


@pytest.fixture
def parse(monkeypatch):
    """Parses the options that commands share; wrong ones end the process."""

    def add_shared(parser):
        options.add_weights(parser)
        options.add_out(parser)
        options.add_cache(parser)
        options.add_seed(parser, 0)
        options.add_views(parser, "4")
        parser.add_argument("--epochs", type=options.positive)

    monkeypatch.setattr(cache, "add_options", add_shared)
    return lambda *arguments: make_parser("cache").parse_args(["cache", *arguments])


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--wrong"], ["fly\x1b[31m\n"]])
def test_a_wrong_command_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "\x1b" not in told and told.endswith("(see: transferlab --help)\n")


NUMBERS = ["-1", "1.5", "x", "", "9" * 5000, "²", "2147483648", "4294967296", "\x1b[31m\n"]
PATHS = ["a\0b", "~no-such-user/x", "~no-such-user"]
WRONG = [
    *[("--seed", text) for text in NUMBERS],
    *[("--views", text) for text in NUMBERS],
    *[("--epochs", text) for text in [*NUMBERS, "0"]],
    *[("--out", text) for text in [*PATHS, "", " "]],
    *[("--weights", text) for text in PATHS],
    ("--wrong", "1"),
]


@pytest.mark.parametrize("arguments", WRONG, ids=repr)
def test_wrong_options_are_one_line(arguments, parse, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*arguments)
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "\x1b" not in told and told.endswith("--help)\n")


def test_a_home_is_found_and_a_name_is_kept(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = parse("--out", "~/runs", "--weights", "./none")
    assert (found.out, found.weights) == ("/home/me/runs", "./none")
    assert parse("--weights", "none").weights == "none"
    assert parse("--out", ".").out == "." and parse("--cache-dir", "").cache_dir == ""


@pytest.mark.parametrize("text", ["./~x", ".//~x", "././~/runs", "./~root/a"])
def test_a_name_that_begins_with_a_tilde_is_no_home(text, parse, tmp_path, monkeypatch):
    """The advice that a home that is not known is given with."""
    monkeypatch.chdir(tmp_path)
    found = parse("--out", text, "--weights", text, "--cache-dir", text)
    meant = tmp_path / text
    for place in (found.out, found.weights, found.cache_dir):
        assert Path(place).expanduser() == meant


@pytest.mark.parametrize("seed", ["0", "2147483647", "007"])
def test_a_seed_that_all_libraries_take(seed, parse):
    assert parse("--seed", seed).seed == int(seed)


# ---- what is printed -------------------------------------------------------------------------


def printing(monkeypatch, text):
    def say(options):
        print(text)
        return 0

    monkeypatch.setattr(cache, "run", say)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_name_can_be_printed_anywhere(encoding, monkeypatch):
    printing(monkeypatch, "고양이 \udcff")
    kept = io.BytesIO()
    with io.TextIOWrapper(kept, encoding=encoding) as stream, redirect_stdout(stream):
        assert main(["cache"]) == 0
        printed = kept.getvalue().decode(encoding).strip()
    assert printed == ("고양이 \\udcff" if encoding == "utf-8" else r"\uace0\uc591\uc774 \udcff")


def test_output_may_be_collected_in_a_string_or_go_nowhere(monkeypatch):
    printing(monkeypatch, "고양이")
    with redirect_stdout(io.StringIO()) as text:
        assert main(["cache"]) == 0
    assert text.getvalue() == "고양이\n"
    with redirect_stdout(None):
        assert main(["cache"]) == 0


PRINTS = """
def run(options):
    for number in range({lines}):
        print("고양이", number)
    return {code}
cache.run = run
"""


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("code", [0, 1])
def test_a_full_disk_behind_the_output_is_one_line(lines, code, buffered):
    with open("/dev/full", "w") as full:
        program = PRINTS.format(lines=lines, code=code)
        process = start(["cache"], code=program, out=full, PYTHONUNBUFFERED=buffered)
        ended, err = ends(process)
    assert ended == 2 and err.count("\n") == 1 and "No space left" in err


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_who_has_read_enough_is_not_told_of_it(lines, buffered):
    reading, writing = os.pipe()
    os.close(reading)
    program = PRINTS.format(lines=lines, code=1)
    process = start(["cache"], code=program, out=writing, PYTHONUNBUFFERED=buffered)
    os.close(writing)
    assert ends(process) == (141, "")


def test_help_that_is_cut_short_is_quiet():
    reading, writing = os.pipe()
    os.close(reading)
    process = start(["--help"], out=writing)
    os.close(writing)
    code, err = ends(process)
    assert code in (0, 141) and err == ""


WRITES = """
import subprocess
from transferlab.errors import UserError
def run(options):
    with open(options.cache_dir, "w") as file:
        print("printed")
        print("told", file=sys.stderr)
        sys.stdin.read()
        subprocess.run(["sh", "-c", "echo of a child; echo of a child >&2"], check=True)
        file.write("kept")
    if {fails}:
        raise UserError("wrong")
    return 1
cache.run = run
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_that_is_closed_from_the_start_is_another_files_number_never(
    closed, fails, tmp_path
):
    program = f"{STAND_IN}\n{WRITES.format(fails=fails)}\nsys.exit(main())"
    command = [sys.executable, "-c", program, "cache", "--cache-dir", str(tmp_path / "file")]
    shut = " ".join(f"{number}>&-" for number in closed)
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {shut}', "sh", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == (2 if fails else 1)
    assert (tmp_path / "file").read_text() == "kept"
    told = "told\nof a child\n" + ("error: wrong\n" if fails else "")
    assert sorted(ended.stdout.split("\n")) == (
        [""] if 1 in closed else ["", "of a child", "printed"]
    )
    assert ended.stderr == ("" if 2 in closed else told)


@pytest.mark.parametrize("text", ["9" * 5000, "x" * 5000, "9 " * 2500])
def test_a_long_argument_is_not_repeated_whole(text, parse, capsys):
    for option in ("--seed", "--views", "--wrong"):
        with pytest.raises(SystemExit, match="2"):
            parse(option, text)
        told = capsys.readouterr().err
        assert len(told) < 400 and told.endswith("--help)\n")


def test_an_ascii_terminal_shows_codes():
    process = start(["cache"], code=PRINTS.format(lines=1, code=0), PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\\uace0\\uc591\\uc774 0\n", "")


def test_a_warning_to_the_user_is_one_line(monkeypatch, capsys):
    def warn(options):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = shown
            warnings.warn("a\x1b[31m\nb is damaged", stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        return 0

    def shown(message, category, filename, lineno, file=None, line=None):
        print(warnings.formatwarning(message, category, filename, lineno), end="")

    monkeypatch.setattr(cache, "run", warn)
    usual = warnings.formatwarning
    assert main(["cache"]) == 0
    first, second = capsys.readouterr().out.split("\n", 1)
    assert first == r"warning: a\x1b[31m\nb is damaged" and "DeprecationWarning: old" in second
    assert warnings.formatwarning is usual


# ---- signals ---------------------------------------------------------------------------------

HOLDS = """
import time
from pathlib import Path
from transferlab.files import scratch_folder
def run(options):
    with scratch_folder(Path(options.cache_dir)) as folder:
        (folder / "half").write_text("half")
        try:
            time.sleep(60)
        finally:
            (Path(options.cache_dir) / "passed").write_text("")
cache.run = run
"""
STOPS = {
    signal.SIGINT: (130, "interrupted: what was finished is kept\n"),
    signal.SIGTERM: (143, "terminated: what was finished is kept\n"),
    signal.SIGHUP: (129, "terminated: what was finished is kept\n"),
}


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_a_command_in_order(number, tmp_path):
    process = start(["cache", "--cache-dir", str(tmp_path)], code=HOLDS)
    while not list(tmp_path.glob("*/half")):
        time.sleep(0.01)
    process.send_signal(number)
    assert ends(process) == STOPS[number]
    assert [path.name for path in tmp_path.iterdir()] == ["passed"]


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{HOLDS}"
    process = start(["cache", "--cache-dir", str(tmp_path)], code=code)
    while not list(tmp_path.glob("*/half")):
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ends(process) == STOPS[signal.SIGTERM]


def test_an_interruption_that_a_library_turns_into_its_own_error_is_one(monkeypatch, capsys):
    def interrupted(options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    monkeypatch.setattr(cache, "run", interrupted)
    assert main(["cache"]) == 130
    assert capsys.readouterr().err == STOPS[signal.SIGINT][1]


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in STOPS]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert [signal.getsignal(number) for number in STOPS] == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_imported_is_one_line_too(number):
    """At random moments of the seconds that it takes."""
    took = time.monotonic()
    ends(start(["compare", "--help"]))
    took = time.monotonic() - took
    told = 0
    for trial in range(4):
        code = "print('ready', flush=True)"
        process = start(["compare", "--help"], code=code)
        process.stdout.readline()
        time.sleep(random.Random(trial).uniform(0.01, took))
        process.send_signal(number)
        code, err = ends(process)
        # The second: after all is done, Python itself no longer heeds it.
        assert (code, err) in ((0, ""), (-number, ""), STOPS[number]), trial
        told += code > 0
    assert told


def test_version_and_help_import_no_library():
    heavy = ("torch", "numpy", "pandas", "matplotlib", "timm", "sklearn")
    for argument in ("--version", "--help"):
        code = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
        process = start([argument], code=code)
        out, err = process.communicate(timeout=60)
        assert out and not set(err.split()) & set(heavy)

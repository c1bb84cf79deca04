"""The command line: `transferlab COMMAND ...`, or `python -m transferlab COMMAND ...`."""

import argparse
import ast
import errno
import importlib
import io
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from . import __doc__ as about
from . import __version__, commands
from .errors import UserError, printable

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last: the terminal was closed; not on Windows
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read the output has had enough
LONGEST_MESSAGE = 600  # characters, of wrong options
ADVICE = {  # what to do where the system refuses something
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "give another place, or allow it there",
    errno.EPERM: "give another place, or allow it there",
    errno.EROFS: "give another place (--out, --cache-dir)",
    errno.ENAMETOOLONG: "give a shorter name",
}


# ---- parsing ---------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        if len(message) > LONGEST_MESSAGE:  # it repeats an argument
            message = f"{message[:100]} ... {message[-100:]}"
        say(f"error: {printable(message)} (see: {self.prog} --help)")
        sys.exit(2)


def find_commands() -> dict[str, str]:
    """The commands, each with its docstring: every module of `transferlab.commands` that can be
    run. They are read, not imported, which would take seconds."""
    found = {}
    for info in pkgutil.iter_modules(commands.__path__):
        path = Path(commands.__path__[0]) / f"{info.name}.py"
        module = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        if "run" in defined:
            found[info.name] = ast.get_docstring(module) or ""
    return found


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, an example beside each option; with `only`, of that command
    alone the options, so that nothing else is imported."""
    parser = Parser(prog="transferlab", description=about)
    version = f"transferlab {__version__}"
    parser.add_argument("--version", action="version", version=version)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, doc in find_commands().items():
        described = " ".join(doc.split()).replace("%", "%%")
        text = described.partition(": ")[2].partition(". ")[0]
        own = parsers.add_parser(name, help=text, description=described)
        if only in (None, name):
            command = importlib.import_module(f"{commands.__name__}.{name}")
            command.add_options(own)
            own.set_defaults(run=command.run)
    return parser


# ---- signals ---------------------------------------------------------------------------------


class Stopped(SystemExit):
    """The program was told to end; so every `finally` is passed on the way out."""


class Signals:
    """Ends the program in order when a signal asks for it."""

    def __init__(self) -> None:
        # While nothing is to be tidied: imports turn an exception into others, or swallow it.
        self.leaves_at_once = True
        self.received = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.leaves_at_once:
            os._exit(self.tell())
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped

    def tell(self) -> int:
        """Says that the program was stopped -> the exit code, as a shell has it."""
        self.leaves_at_once = True
        number = self.received or signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else "terminated"
        below = "\n" if sys.stderr.isatty() else ""  # the terminal's ^C
        say(f"{below}{how}: what was finished is kept")
        return 128 + number

    @contextmanager
    def heeded(self, *, to_the_end: bool) -> Iterator[None]:
        """Heeds signals inside, or to the end of the process, but for those that are ignored, as
        in the background."""
        earlier = {}
        if threading.current_thread() is threading.main_thread():
            for name in ENDING:
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    earlier[number] = signal.signal(number, self)
        try:
            yield
        finally:
            self.leaves_at_once = True
            for number, handler in earlier.items() if not to_the_end else ():
                signal.signal(number, handler)


# ---- what is printed -------------------------------------------------------------------------


def open_closed_streams() -> None:
    """Lets stdin, stdout and stderr lead nowhere where they were closed from the start, as by
    `>&-`: else the first file that is opened gets the number of one, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def spell_out_names() -> None:
    """Lets a terminal that lacks a character show its code: printing a name never fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Listener:
    """A terminal, or what stands in its place. Where nobody listens any more, as after `| head`, or
    the disk of a log is full, what runs goes on to its end, and the error is told then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Passes a text on, at once."""
        if not self.error:
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError) as error:  # the latter where it was closed
                self.error = error
        return len(text)

    def flush(self) -> None:
        """There is nothing left to flush."""

    def __getattr__(self, name: str) -> Any:
        """What else a stream can tell, such as its encoding."""
        return getattr(self.stream, name)


@contextmanager
def listening() -> Iterator[None]:
    """What is printed inside reaches whoever listens; what the printing of it raises comes at the
    end.

    Raises:
        BrokenPipeError: somebody has had enough.
        UserError: somebody cannot take more.
    """
    out = Listener(sys.stdout)
    err = Listener(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield
    for name, error in (("stdout", out.error), ("stderr", err.error)):
        if isinstance(error, BrokenPipeError):
            raise error
        if error:
            raise UserError(f"cannot print to {name} ({error}); all else was done") from error


@contextmanager
def short_warnings() -> Iterator[None]:
    """Shows inside a warning to the user as one line, without the code that gave it."""
    usual = warnings.formatwarning

    def short(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning:
            return f"warning: {printable(str(message))}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = usual


def say(line: str) -> None:
    """Prints a line to stderr, where that can be."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """Lets what a stream still holds go nowhere, so that Python does not fail on it at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def finish_output(code: int) -> int:
    """Writes what stdout still holds -> the exit code, another one where that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        give_up(sys.stdout)
        return BROKEN_PIPE
    except (OSError, ValueError) as error:
        give_up(sys.stdout)
        if code != 2:  # of which nothing was said yet
            say(f"error: cannot print to stdout: {printable(str(error))}")
        return 2
    return code


# ---- errors ----------------------------------------------------------------------------------


def explain(error: Exception) -> str:
    """What to say of an error that the user or the machine has caused; "" for one of the code."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        advice = ADVICE.get(error.errno or 0, "")
        return f"{text or type(error).__name__}{': ' if advice else ''}{advice}"
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if isinstance(error, MemoryError) or lacks_memory(text):
        return f"out of memory: take fewer or smaller images ({text or 'no more to be had'})"
    of_a_path = "home directory" in text or "embedded null" in text
    return f"{text}: give another path" if of_a_path else ""


def lacks_memory(text: str) -> bool:
    """Whether PyTorch says that memory is lacking."""
    return "out of memory" in text or "can't allocate memory" in text


def run_guarded(arguments: Sequence[str], signals: Signals) -> int:
    """Runs one command -> exit code; errors and signals become a line on stderr.

    Raises:
        SystemExit: by argparse, after --help, --version and wrong options.
        Exception: a fault of the code.
    """
    named = [argument for argument in arguments if not argument.startswith("-")]
    try:
        options = make_parser(named[0] if named else "").parse_args(arguments)
        signals.leaves_at_once = False
        with listening():
            return options.run(options)
    except BrokenPipeError:
        return BROKEN_PIPE
    except (KeyboardInterrupt, Stopped):
        return signals.tell()
    except Exception as error:
        if signals.received:  # which a library has turned into an error of its own
            return signals.tell()
        text = explain(error)
        if not text:
            raise
        say(f"error: {printable(text)}")
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command -> exit code: its own (0, or 1 after an audit that found something serious);
    2 after an error that the user can put right, whose one line goes to stderr; 128 + its number
    after a signal."""
    open_closed_streams()
    signals = Signals()
    with signals.heeded(to_the_end=arguments is None), short_warnings():
        spell_out_names()
        try:
            code = run_guarded(sys.argv[1:] if arguments is None else arguments, signals)
        except SystemExit as asked:  # by argparse
            raise SystemExit(finish_output(int(asked.code or 0))) from None
        return finish_output(code)


if __name__ == "__main__":
    sys.exit(main())

"""A command, or one function, run in a process of its own, its peak memory watched from outside.

A function's new process imports nothing but what the function's module needs, so that what is
measured is that function's own.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from transferlab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A command that has ended."""

    code: int  # exit code
    stdout: str
    stderr: str
    started: float  # seconds since 1970
    peak_mb: float  # as `watch_memory`


@dataclass(frozen=True, kw_only=True)
class Returned:
    """What a function gave in a process of its own."""

    value: Any  # plain values
    peak_mb: float


class PeakMemory:
    """The highest PSS that was seen of a process and all its children."""

    def __init__(self, parent: psutil.Process) -> None:
        self.parent = parent
        self.peak = 0  # bytes, PSS
        self._highest = 0  # bytes, RSS
        self._read_at = -1.0

    def look(self) -> None:
        """Reads RSS; PSS too where RSS has reached a new height, and once a second.

        Raises:
            psutil.Error: a process has just ended.
        """
        tree = (self.parent, *self.parent.children(recursive=True))
        resident = sum(one.memory_info().rss for one in tree)
        moment = time.monotonic()
        if resident <= 1.005 * self._highest and moment <= self._read_at + 1:
            return
        proportional = sum(one.memory_full_info().pss for one in tree)
        self.peak = max(self.peak, proportional)
        self._highest = max(self._highest, resident)
        self._read_at = time.monotonic()


def watch_memory(process: subprocess.Popen, *, interval: float = 0.1) -> float:
    """Waits for a running process -> peak memory in MB: PSS, summed over it and all its children.

    Reading PSS takes 9 ms of a processor for a process that has imported PyTorch, RSS next to
    nothing. So RSS is read at every `interval` (seconds), PSS only where RSS has reached a new
    height, and once a second.
    """
    memory = PeakMemory(psutil.Process(process.pid))
    while process.poll() is None:
        try:
            memory.look()
        except psutil.Error:  # it, or a child, has just ended
            continue
        time.sleep(interval)
    return memory.peak / 1e6


def run_watched(command: Sequence[str], *, interval: float = 0.1, **options: Any) -> Watched:
    """Runs a command to its end. `options` are subprocess.Popen's."""
    with (
        tempfile.TemporaryFile("w+") as stdout,  # pipes would fill up and block it
        tempfile.TemporaryFile("w+") as stderr,
    ):
        started = time.time()
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, **options) as process:
            try:
                peak = watch_memory(process, interval=interval)
            except BaseException:  # Ctrl-C above all: it must not go on alone
                process.kill()
                raise
        stdout.seek(0)
        stderr.seek(0)
        return Watched(
            code=process.returncode,
            stdout=stdout.read(),
            stderr=stderr.read(),
            started=started,
            peak_mb=peak,
        )


def in_fresh_process(function: str, *arguments: Any) -> Returned:
    """Calls `function` ("package.module.name") on plain values in a new process.

    Raises:
        UserError: the function raised one, with its message; the process failed in any other way.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "returned.json"
        command = [sys.executable, "-m", "benchmarks.memory", function, str(path)]
        command.append(json.dumps(arguments))
        with subprocess.Popen(command) as process:
            peak = watch_memory(process)
        if process.returncode:
            failed = f"failed with exit code {process.returncode}"
            raise UserError(f"{function}, run in a process of its own, {failed}")
        outcome = json.loads(path.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return Returned(value=outcome["returned"], peak_mb=peak)


def named_function(name: str) -> Callable[..., Any]:
    """The function "package.module.name"."""
    module_name, _, own_name = name.rpartition(".")
    module = importlib.import_module(module_name)
    return getattr(module, own_name)


def call_and_write(function: str, path: str, arguments: str) -> None:
    """The new process's part: calls the function, writes {"returned": ...}, or {"error": message}
    where it raised a UserError."""
    try:
        returned = named_function(function)(*json.loads(arguments))
        outcome = {"returned": returned}
    except UserError as error:
        outcome = {"error": str(error)}
    Path(path).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    call_and_write(*sys.argv[1:])

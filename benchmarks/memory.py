"""A command, or one function, run in a process of its own, its peak memory watched from outside.

A function's new process imports nothing but what the function's module needs, so that what is measured is that function's own.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import psutil

from transferlab.errors import UserError

# A command that has ended. code: exit code; stdout, stderr: text; started: time.time() at its start; peak_mb: as `watch_memory`.
Watched = namedtuple("Watched", "code stdout stderr started peak_mb")


def watch_memory(process, *, interval=0.1):
    """Waits for a running `subprocess.Popen` -> peak memory in MB: PSS, summed over the process and all its children.

    Reading PSS takes 9 ms of a processor for a process that has imported PyTorch, RSS next to nothing. So RSS is read at every
    `interval` (seconds), PSS only where RSS has reached a new height, and once a second.
    """
    peak = highest = read_at = 0
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = (parent, *parent.children(recursive=True))
            resident = sum(one.memory_info().rss for one in tree)
            if resident > 1.005 * highest or time.monotonic() > read_at + 1:
                peak = max(peak, sum(one.memory_full_info().pss for one in tree))
                highest, read_at = max(highest, resident), time.monotonic()
        except psutil.Error:  # it, or a child, has just ended
            continue
        time.sleep(interval)
    return peak / 1e6


def run_watched(command, *, interval=0.1, **options):
    """Runs a command to its end -> Watched. `options` are subprocess.Popen's."""
    with (
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):  # pipes would fill up and block it
        started = time.time()
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, **options) as process:
            try:
                peak = watch_memory(process, interval=interval)
            except BaseException:  # Ctrl-C above all: it must not go on alone
                process.kill()
                raise
        stdout.seek(0)
        stderr.seek(0)
        return Watched(process.returncode, stdout.read(), stderr.read(), started, peak)


def in_fresh_process(function, *arguments):
    """Calls `function` ("package.module.name") on plain values in a new process -> (what it returns, peak memory in MB).

    Raises:
        UserError: the function raised one, with its message; the process failed in any other way.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "returned.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory",
            function,
            str(path),
            json.dumps(arguments),
        ]
        with subprocess.Popen(command) as process:
            peak = watch_memory(process)
        if process.returncode:
            raise UserError(
                f"{function}, run in a process of its own, failed with exit code {process.returncode}"
            )
        outcome = json.loads(path.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["returned"], peak


def call_and_write(function, path, arguments):
    """The new process's part: calls the function, writes {"returned": ...}, or {"error": message} where it raised a UserError."""
    module, name = function.rsplit(".", 1)
    try:
        outcome = {
            "returned": getattr(importlib.import_module(module), name)(*json.loads(arguments))
        }
    except UserError as error:
        outcome = {"error": str(error)}
    Path(path).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    call_and_write(*sys.argv[1:])

"""A process of its own, watched from outside: what it prints, how long it takes, how much memory it and its children hold."""

import subprocess
import tempfile
import time
from collections import namedtuple

import psutil

# code: exit code; stdout, stderr: text; started: time.time() at its start; peak_mb: peak PSS of the process tree in MB.
Watched = namedtuple("Watched", "code stdout stderr started peak_mb")


def tree_memory(process):
    """PSS in bytes of a psutil process and its descendants: pages that n processes share count 1/n in each; 0 once it ended."""
    try:
        return sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True)))
    except psutil.Error:  # it, or a child, has just ended
        return 0


def run_watched(command, *, interval=0.1, **options):
    """Runs a command to its end -> Watched. Memory is sampled every `interval` seconds; `options` are subprocess.Popen's."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:  # pipes would fill up and block it
        started, peak = time.time(), 0
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, **options) as process:
            try:
                watched = psutil.Process(process.pid)
                while process.poll() is None:
                    peak = max(peak, tree_memory(watched))
                    time.sleep(interval)
            except BaseException:  # Ctrl-C above all: it must not go on alone
                process.kill()
                raise
        stdout.seek(0)
        stderr.seek(0)
        return Watched(process.returncode, stdout.read(), stderr.read(), started, peak / 1e6)

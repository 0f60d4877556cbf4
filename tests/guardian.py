"""Ends what a test process started when that one is gone, also when it was killed and could not do so itself.

A process of its own, started by tests/conftest.py. Its standard input is a pipe whose other end only the test process has; so it reads the
end when that process ends, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import sys

import psutil

STARTED_BY = "TESTS_STARTED_BY"  # in the environment of every process that a test process starts: its process id
ROUNDS_MAX = 20  # a supervisor that is killed last may have replaced a worker that was killed first
ENDING_S = 0.2  # between two rounds


def started_by(pid: int) -> dict[psutil.Process, str]:
    """The processes that a test process started, and those that they started, also when their parents are gone; each with its command."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.environ().get(STARTED_BY) == str(pid) and process.status() != psutil.STATUS_ZOMBIE:
                found[process] = " ".join(process.cmdline())
    return found


def end_all(pid: int) -> None:
    """Kills them all."""
    for _ in range(ROUNDS_MAX):
        found = started_by(pid)
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=ENDING_S)


if __name__ == "__main__":
    while os.read(0, 1024):
        pass
    end_all(int(sys.argv[1]))

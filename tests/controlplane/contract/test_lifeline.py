"""Tests of the line between a process and the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from controlplane.contract.lifeline import LIFELINE_ENV, hold_lifeline

CHILD = """
import os, signal, sys
from controlplane.contract.lifeline import LIFELINE_ENV, hold_lifeline
if sys.argv[1] == "waits": signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
else: signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(7)))
held = hold_lifeline(os.environ)
if sys.argv[1] == "waits-late": signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
print(held, LIFELINE_ENV in os.environ, flush=True)
if sys.argv[1].startswith("waits"): sys.exit(7 if signal.sigtimedwait((signal.SIGTERM,), 60.0) else 1)
signal.pause()
"""
BUSY = """
import os, signal
from controlplane.contract.lifeline import hold_lifeline
assert hold_lifeline(os.environ)
watched = (signal.SIGCHLD, signal.SIGHUP)
signal.pthread_sigmask(signal.SIG_BLOCK, watched)
found = set()
for _ in range(50):
    for number in watched:
        os.kill(os.getpid(), number)
    sum(range(300_000))  # it is busy, and waits for none of them
    found.add(tuple(sorted(getattr(signal.sigtimedwait(watched, 5.0), "si_signo", 0) for _ in watched)))
print(*found, flush=True)
"""


def child(how: str, **environment: str) -> subprocess.Popen[str]:
    """A process that says whether it holds a line, and ends with status 7 when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip


def test_a_process_stops_as_by_sigterm_when_its_parent_is_gone() -> None:
    """Whether it handles the signal or waits for it, blocked before or after: the end of the pipe is SIGTERM to it."""
    for how in ("handles", "waits", "waits-late"):
        with child(how, **{LIFELINE_ENV: "1"}) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert "True False\n" == process.stdout.readline()
            process.stdin.close()
            assert (how, 7) == (how, process.wait(60))


def test_signals_that_a_process_waits_for_are_not_lost_to_the_watch() -> None:
    """A supervisor that is busy when a worker dies, or when it is told to replace them all, hears of it as soon as it waits again."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {LIFELINE_ENV: "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert f"({int(signal.SIGHUP)}, {int(signal.SIGCHLD)})\n" == process.stdout.readline()
        assert 0 == process.wait(60)


def test_a_process_that_was_started_by_hand_does_not_look_at_its_input() -> None:
    """Without the variable nothing is watched, and an empty standard input ends nobody."""
    environ = {"PATH": "/bin"}
    assert (False, {"PATH": "/bin"}) == (hold_lifeline(environ, fd=-1), environ)

"""Tests of the line between a process and the one that started it."""

from __future__ import annotations

import os
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


def test_a_process_that_was_started_by_hand_does_not_look_at_its_input() -> None:
    """Without the variable nothing is watched, and an empty standard input ends nobody."""
    environ = {"PATH": "/bin"}
    assert (False, {"PATH": "/bin"}) == (hold_lifeline(environ, fd=-1), environ)

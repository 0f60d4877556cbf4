"""Child processes of one command: started, watched, started again when they die, and stopped in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.contract.lifeline import LIFELINE_ENV

RESTART_S_MAX = 10.0
STABLE_S = 30.0  # a child that lived this long starts its back-off anew
STOP_S = 30.0


@dataclass(slots=True)
class Child:
    """One process that should run; log: where its output goes, or the terminal."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    due_s: float = 0.0

    def start(self) -> None:
        """Starts it in a process group of its own, so that Ctrl-C reaches only the parent; it ends when the parent does."""
        output = None if self.log is None else self.log.open("ab")
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own commands
                list(self.command), env={**self.environment, LIFELINE_ENV: "1"}, stdin=subprocess.PIPE, stdout=output,
                stderr=None if output is None else subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        finally:
            if output is not None:
                output.close()
        self.started_s = time.monotonic()

    def stop(self, seconds: float) -> None:
        """Asks it to end and makes it end when it does not in time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Children:
    """Several children, started in their order and stopped in the reverse one."""

    members: list[Child] = field(default_factory=list)

    def start(self, child: Child) -> None:
        """Starts one more."""
        self.members.append(child)
        child.start()

    def tend(self) -> list[str]:
        """One round of watching: starts again what died, with a growing wait; returns a sentence for each death."""
        now, said = time.monotonic(), []
        for child in self.members:
            if child.process is None or child.process.poll() is None:
                continue
            if child.due_s == 0.0:
                lived = now - child.started_s
                child.failures = 1 if lived >= STABLE_S else child.failures + 1
                wait = min(RESTART_S_MAX, 0.25 * 2 ** min(child.failures, 8))
                child.due_s = now + wait
                said.append(
                    f"{child.name} ended with status {child.process.returncode}; it is started again in {wait:.1f} s"
                )
            elif now >= child.due_s:
                child.due_s = 0.0
                child.start()
        return said

    def stop(self) -> None:
        """Stops all, last started first."""
        for child in reversed(self.members):
            child.stop(STOP_S)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]

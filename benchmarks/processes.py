"""Processes under measurement: started, waited for, measured by the CPU time of their whole tree, and stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A TCP port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found += _children(int(entry.name))
    return found


def _pin(pid: int, cores: set[int]) -> None:
    """Threads that end meanwhile are left out; those that it starts later take after the one that starts them."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)


@dataclass(slots=True)
class Measured:
    """A running process tree."""

    name: str
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """User and system seconds of the whole tree so far."""
        total = 0.0
        for pid in _children(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / _TICKS
        return total

    def files_open(self) -> int:
        """Open files and sockets of the whole tree."""
        total = 0
        for pid in _children(self.process.pid):
            with contextlib.suppress(OSError):
                total += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return total

    def pin(self, cores: set[int]) -> None:
        """Has the whole tree run on some cores."""
        for pid in _children(self.process.pid):
            _pin(pid, cores)

    def spread(self, cores: list[int]) -> None:
        """Has each process that the first of the tree has started run on a core of its own, in turn."""
        for number, pid in enumerate(_children(self.process.pid)[1:]):
            _pin(pid, {cores[number % len(cores)]})

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree."""
        total = 0
        for pid in _children(self.process.pid):
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return total

    def stop(self) -> None:
        """Ends the tree: politely, then firmly."""
        for pid in reversed(_children(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in reversed(_children(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self.process.wait(10)


def start(name: str, command: list[str], *, log: Path, env: dict[str, str] | None = None) -> Measured:
    """Starts a process with its output in a file."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
    return Measured(name, process)


def wait_for_port(port: int, measured: Measured, *, seconds: float) -> bool:
    """Whether somebody listens on the port before the time is over or the process has died."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and measured.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
        time.sleep(0.1)
    return False

"""Keeps the workers of one machine running: starts them, restarts what dies, stops them all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from proxy.spool import SpoolLocked
from proxy.succession import share_out

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_BACKOFF_S_MIN = 0.2
_BACKOFF_S_MAX = 10.0
_STABLE_S = 30.0  # a worker that lived so long did not die of its start
_INHERIT_RETRY_S = 1.0
_STOP_SLACK_S = 10.0  # beyond the drain, before a worker is killed

log = structlog.get_logger("proxy.supervisor")


class _Slot:
    """One worker's place: the process that fills it, or when it may be filled again."""

    __slots__ = ("failures", "name", "process", "restart_at", "started")

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.failures = 0
        self.restart_at = 0.0


class Supervisor:
    """A process of its own that serves nothing: it waits for signals and for workers that die."""

    def __init__(self, settings_path: Path, settings: ProxySettings) -> None:
        self._settings_path = settings_path
        self._settings = settings
        self._status = 0
        self._slots = [_Slot(str(number)) for number in range(settings.workers)]

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT, then stops the workers; exit status 0."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        if not self._inherit():
            return self._status
        for slot in self._slots:
            self._start(slot)
        while True:
            due = [slot.restart_at for slot in self._slots if slot.process is None]
            timeout_s = max(0.0, min(due) - time.monotonic()) if due else 3600.0
            info = signal.sigtimedwait(_WATCHED, timeout_s)
            if info is not None and info.si_signo != signal.SIGCHLD:
                break
            self._reap()
            self._fill()
        self._stop()
        return 0

    def _inherit(self) -> bool:
        """Shares out what was spent, as soon as the workers of an earlier start are gone; False to end at once, with `_status`."""
        expires = time.monotonic() + self._settings.drain_s + _STOP_SLACK_S
        while True:
            try:
                share_out(self._settings)
            except SpoolLocked as error:
                log.warning("workers of an earlier start still run", reason=str(error))
                if time.monotonic() >= expires:
                    self._status = 1
                    return False
            except OSError as error:
                log.critical("the workers' directories cannot be used", reason=str(error))
                self._status = 1
                return False
            else:
                return True
            info = signal.sigtimedwait(_WATCHED, _INHERIT_RETRY_S)
            if info is not None and info.si_signo != signal.SIGCHLD:
                return False

    def _start(self, slot: _Slot) -> None:
        """The worker's standard input is a pipe whose other end is ours: when we die, it reads the end and stops."""
        command = [sys.executable, "-m", "proxy", "--settings", str(self._settings_path), "--worker", slot.name]
        slot.process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - our own module
        slot.started = time.monotonic()

    def _reap(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            process = slot.process
            if process is None or process.poll() is None:
                continue
            slot.failures = 0 if now - slot.started >= _STABLE_S else slot.failures + 1
            pause_s = min(_BACKOFF_S_MAX, _BACKOFF_S_MIN * 2.0 ** min(slot.failures, 10))
            log.error("a worker died", worker=slot.name, status=process.returncode, restart_in_s=pause_s)
            self._close(slot)
            slot.restart_at = now + pause_s

    def _fill(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.restart_at:
                self._start(slot)

    def _stop(self) -> None:
        """Every worker gets its time to drain; one that needs longer is killed."""
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.terminate()
        expires = time.monotonic() + self._settings.drain_s + _STOP_SLACK_S
        for slot in self._slots:
            if slot.process is None:
                continue
            try:
                slot.process.wait(max(0.1, expires - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a worker did not stop in time and is killed", worker=slot.name)
                slot.process.kill()
                slot.process.wait()
            self._close(slot)

    @staticmethod
    def _close(slot: _Slot) -> None:
        if slot.process is not None and slot.process.stdin is not None:
            slot.process.stdin.close()
        slot.process = None

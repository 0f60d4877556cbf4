"""Keeps the workers of one machine running: starts them, restarts what dies, replaces them one by one when told, stops them all."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from proxy.listening import listen
from proxy.settings import SettingsError, load_settings
from proxy.spool import SpoolLocked
from proxy.succession import share_out

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)
_BACKOFF_S_MIN = 0.2
_BACKOFF_S_MAX = 10.0
_STABLE_S = 30.0  # a worker that lived so long did not die of its start
_INHERIT_RETRY_S = 1.0
_STOP_SLACK_S = 10.0  # beyond the drain, before a worker is killed
_ACCEPTING_S = 0.5  # that a worker may go on accepting after it was told to stop; it looks ten times a second
_TICK_S = 0.05  # while something is under way
_STARTED = b"+"

log = structlog.get_logger("proxy.supervisor")


class _Slot:
    """One worker's place: its listening socket, and the process that fills it, or when it may be filled again."""

    __slots__ = ("failures", "kill_at", "name", "process", "ready_fd", "restart_at", "sock", "started")

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.sock = sock
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_fd = -1  # where the process says that it serves; -1: it has said so
        self.started = 0.0
        self.failures = 0
        self.restart_at = 0.0
        self.kill_at = 0.0  # when a process that was told to stop has had its time; 0: it was not told


class Supervisor:
    """A process of its own that serves nothing: it waits for signals and for workers that die."""

    def __init__(self, settings_path: Path, settings: ProxySettings) -> None:
        """Raises OSError if the port cannot be listened on."""
        self._settings_path = settings_path
        self._settings = settings
        self._status = 0
        self._slots: list[_Slot] = []
        self._queue: deque[_Slot] = deque()  # to be replaced
        self._rolling: _Slot | None = None  # being replaced

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT, then stops the workers; SIGHUP replaces them one by one. Exit status 0."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        if not self._inherit():
            return self._status
        try:
            self._slots += [_Slot(str(number), listen(self._settings)) for number in range(self._settings.workers)]
        except OSError as error:
            log.critical("the port cannot be listened on", port=self._settings.port, reason=str(error))
            return 1
        for slot in self._slots:
            self._start(slot)
        while True:
            info = signal.sigtimedwait(_WATCHED, self._wait_s())
            if info is not None and info.si_signo == signal.SIGHUP:
                self._want_others()
            elif info is not None and info.si_signo != signal.SIGCHLD:
                break
            self._reap()
            self._fill()
            self._hear()
            self._roll()
        self._stop()
        return 0

    def _wait_s(self) -> float:
        """Until something may have to be done, though no signal comes."""
        if self._rolling is not None or self._queue or any(slot.ready_fd >= 0 for slot in self._slots):
            return _TICK_S
        due = [slot.restart_at for slot in self._slots if slot.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else 3600.0

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
            if info is not None and info.si_signo not in (signal.SIGCHLD, signal.SIGHUP):
                return False

    def _start(self, slot: _Slot) -> None:
        """The worker's standard input is a pipe whose other end is ours: when we die, it reads the end and stops."""
        sockets = [each.sock.fileno() for each in self._slots]
        ready, started = os.pipe()
        command = [sys.executable, "-m", "proxy", "--settings", str(self._settings_path), "--worker", slot.name]
        command += ["--sockets", ",".join(map(str, sockets)), "--started", str(started)]
        slot.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(*sockets, started))  # noqa: S603 - our own module
        os.close(started)
        os.set_blocking(ready, False)
        slot.ready_fd = ready
        slot.started = time.monotonic()
        slot.kill_at = 0.0

    def _reap(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            process = slot.process
            if process is None:
                continue
            if process.poll() is None:
                if slot.kill_at and now >= slot.kill_at:
                    log.warning("a worker did not stop in time and is killed", worker=slot.name)
                    process.kill()
                continue
            told = bool(slot.kill_at)
            self._close(slot)
            if told:
                slot.restart_at = now
                continue
            slot.failures = 0 if now - slot.started >= _STABLE_S else slot.failures + 1
            pause_s = min(_BACKOFF_S_MAX, _BACKOFF_S_MIN * 2.0 ** min(slot.failures, 10))
            log.error("a worker died", worker=slot.name, status=process.returncode, restart_in_s=pause_s)
            slot.restart_at = now + pause_s
            self._tell_siblings(slot, "accept")

    def _fill(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.restart_at:
                self._start(slot)

    def _hear(self) -> None:
        """Workers that serve now take their sockets back from their siblings."""
        for slot in self._slots:
            if slot.ready_fd < 0:
                continue
            try:
                said = os.read(slot.ready_fd, 1)
            except BlockingIOError:
                continue
            os.close(slot.ready_fd)
            slot.ready_fd = -1
            if said == _STARTED:
                self._tell_siblings(slot, "release")

    def _want_others(self) -> None:
        """Every worker is to be replaced, by one that reads the settings anew; settings that do not fit change nothing."""
        try:
            settings = load_settings(self._settings_path)
        except SettingsError as error:
            log.warning("the workers are not replaced", reason=str(error))
            return
        if (settings.workers, settings.host, settings.port) != (
            self._settings.workers,
            self._settings.host,
            self._settings.port,
        ):
            log.error("the workers are not replaced: another number of workers or another address needs a restart")
            return
        self._settings = settings
        self._queue = deque(slot for slot in self._slots if slot is not self._rolling)
        log.info("the workers are replaced, one by one", workers=len(self._slots))

    def _roll(self) -> None:
        """One step: the next worker is told to stop once the one before it has been replaced by one that serves."""
        slot = self._rolling
        if slot is not None:
            if slot.kill_at or (slot.ready_fd >= 0 and slot.process is not None):
                return
            self._rolling = None
            if slot.process is None:
                log.error("a fresh worker died at its start; the others stay as they are", worker=slot.name)
                self._queue.clear()
                return
            log.info("a worker was replaced", worker=slot.name, left=len(self._queue))
        while self._queue and self._rolling is None:
            slot = self._queue.popleft()
            if slot.process is None:
                continue  # dead anyway; its successor will be fresh
            self._rolling = slot
            slot.kill_at = time.monotonic() + self._settings.drain_s + _STOP_SLACK_S
            self._tell_siblings(slot, "accept")
            self._tell(slot, "drain")

    def _tell_siblings(self, slot: _Slot, command: str) -> None:
        for sibling in self._slots:
            if sibling is not slot and sibling.process is not None and sibling.ready_fd < 0:
                self._tell(sibling, f"{command} {slot.name}")

    @staticmethod
    def _tell(slot: _Slot, command: str) -> None:
        process = slot.process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):  # it is dying, which is seen soon
                process.stdin.write(command.encode() + b"\n")
                process.stdin.flush()

    def _stop(self) -> None:
        """Every worker gets its time to drain; one that needs longer is killed."""
        for slot in self._slots:
            self._tell_siblings(slot, "release")
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.terminate()
        expires = time.monotonic() + self._settings.drain_s + _STOP_SLACK_S
        self._stop_listening()
        for slot in self._slots:
            if slot.process is not None:
                try:
                    slot.process.wait(max(0.1, expires - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("a worker did not stop in time and is killed", worker=slot.name)
                    slot.process.kill()
                    slot.process.wait()
                self._close(slot)
            slot.sock.close()

    def _stop_listening(self) -> None:
        """Who connects from now on is refused, and goes elsewhere at once instead of waiting for the end of the drain.

        Our copies of the sockets would else keep them open, and the kernel would queue connections that nobody takes.
        """
        expires = time.monotonic() + _ACCEPTING_S
        for slot in self._slots:
            if slot.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    slot.process.wait(max(0.0, expires - time.monotonic()))
        for slot in self._slots:
            with contextlib.suppress(OSError):
                slot.sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _close(slot: _Slot) -> None:
        if slot.process is not None and slot.process.stdin is not None:
            with contextlib.suppress(OSError):
                slot.process.stdin.close()
        slot.process = None
        slot.kill_at = 0.0
        if slot.ready_fd >= 0:
            os.close(slot.ready_fd)
            slot.ready_fd = -1

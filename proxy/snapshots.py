"""Gets snapshots from the control plane by long poll, keeps the last good one on disk, and hands each to the data plane.

Which document wins. Versions only grow, so a document of a higher version is newer. A lower one is either stale (an old replica, a cache in
between) or comes from a control plane that was restored from a backup and counts from there; the two differ in when they
were made. So a lower version is taken only if its `created_us` is later than that of the one in use, and refused otherwise. A restored
control plane may also have come to the very number that we have, with other content, and would answer 304 for ever. Nothing is
restored without an interruption, so the first poll after a failed one asks with `have=0` and gets the document whatever its version;
so does one poll in `FULL_POLL_EVERY`, for an interruption that nobody noticed.

A document that cannot be read or compiled is refused and counted, and the last good one stays. Leases are not looked at
here: each carries its expiry, and the route stage drops it when that has passed, so a snapshot from disk cannot revive one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from controlplane.contract.snapshot import Snapshot, decode_snapshot, encode_snapshot
from controlplane.contract.wire import SNAPSHOT_PATH
from proxy.uplink import Backoff

FULL_POLL_EVERY = 12
RETRY_S_MIN = 0.1
SLACK_S = 10.0  # how much longer than the server's own wait a poll may take
DOCUMENT_BYTES_MAX = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class Snapshots:
    """The newest good snapshot, applied and kept."""

    def __init__(
        self,
        uplink: httpx.AsyncClient,
        *,
        path: Path,
        proxy_id: str,
        apply: Callable[[Snapshot], None],
        poll_s: float,
        retry_s_max: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """apply: compiles a snapshot and swaps it in, raising whatever is wrong with it and changing nothing then.

        path: where the last good one is kept; workers may share it, each replaces it whole.
        """
        self._uplink = uplink
        self._path = path
        self._proxy_id = proxy_id
        self._apply = apply
        self._poll_s = poll_s
        self._backoff = Backoff(min_s=RETRY_S_MIN, max_s=retry_s_max, jitter=jitter)
        self._polls = 0
        self._interrupted = False  # since the last answer
        self.current: Snapshot | None = None
        self._taken = asyncio.Event()  # there is one
        self.refused_total = 0
        self.failures_total = 0  # polls without an answer
        self.unsaved_total = 0  # snapshots in use that could not be written to disk
        self.last_error = ""

    def load(self) -> bool:
        """Starts from the snapshot on disk; False if there is none or it is no good."""
        try:
            document = self._path.read_bytes()
        except OSError:
            return False
        return self._take(document, keep=False)

    async def run(self) -> None:
        """Polls for ever; cancel it to stop."""
        while True:
            pause_s = await self.step()
            await asyncio.sleep(pause_s)

    async def first(self, *, within_s: float) -> bool:
        """Waits until there is a snapshot; False if none has come in time. `run` must be running."""
        try:
            async with asyncio.timeout(within_s):
                await self._taken.wait()
        except TimeoutError:
            return False
        return True

    async def step(self) -> float:
        """One long poll; the seconds to wait before the next."""
        full = self._interrupted or self._polls % FULL_POLL_EVERY == FULL_POLL_EVERY - 1
        self._polls += 1
        have = 0 if full or self.current is None else self.current.version
        query: dict[str, str | int | float] = {"have": have, "proxy": self._proxy_id, "wait_s": self._poll_s}
        try:
            answer = await self._uplink.get(
                SNAPSHOT_PATH, params=query, timeout=httpx.Timeout(self._poll_s + SLACK_S, connect=5.0)
            )
        except (httpx.HTTPError, OSError) as error:
            return self._failed(f"{type(error).__name__}: {error}")
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            self._interrupted = False
            return self._succeeded()
        if answer.status_code != httpx.codes.OK:
            return self._failed(f"the control plane answered {answer.status_code}")
        self._interrupted = False
        if not self._take(answer.content, keep=True):
            return self._backoff.failed()
        return self._succeeded()

    def _take(self, document: bytes, *, keep: bool) -> bool:
        """Applies a document if it is good and newer; False when it was refused."""
        if len(document) > DOCUMENT_BYTES_MAX:
            return self._refuse(f"the document has {len(document)} bytes, more than {DOCUMENT_BYTES_MAX}")
        try:
            snapshot = decode_snapshot(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._refuse(f"the document cannot be read: {error}")
        current = self.current
        if current is not None:
            if snapshot.version == current.version and snapshot.hash == current.hash:
                return True
            if snapshot.version <= current.version and snapshot.created_us <= current.created_us:
                return self._refuse(f"version {snapshot.version} is older than {current.version}, which is in use")
        try:
            self._apply(snapshot)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a document, the last good one must stay
            return self._refuse(f"version {snapshot.version} cannot be compiled: {type(error).__name__}: {error}")
        self.current = snapshot
        self._taken.set()
        if keep:
            self._keep(snapshot)
        return True

    def _keep(self, snapshot: Snapshot) -> None:
        """Writes the snapshot to disk atomically. It is in use already, so a full disk only costs the next cold start."""
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(encode_snapshot(snapshot))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            self.unsaved_total += 1
            _log.warning("the snapshot cannot be kept on disk: %s", error)

    def _refuse(self, reason: str) -> bool:
        if reason != self.last_error:
            _log.error("snapshot refused, the last good one stays: %s", reason)
        self.refused_total += 1
        self.last_error = reason
        return False

    def _failed(self, error: str) -> float:
        if not self.last_error:
            meanwhile = "calls are refused until one comes" if self.current is None else "going on with the last one"
            _log.warning("no snapshots from the control plane, %s: %s", meanwhile, error)
        self.failures_total += 1
        self._interrupted = True
        self.last_error = error
        return self._backoff.failed()

    def _succeeded(self) -> float:
        self.last_error = ""
        self._backoff.succeeded()
        return RETRY_S_MIN  # so that a server that does not wait is not asked in a tight loop


def watch_snapshots(watch: Callable[[str, str, Callable[[], float]], None], snapshots: Snapshots) -> None:
    """Shows how the talk about snapshots goes."""
    watch("snapshots_refused_total", "Snapshots refused; the last good one stayed.", lambda: snapshots.refused_total)
    watch("snapshot_failures_total", "Polls for a snapshot without an answer.", lambda: snapshots.failures_total)
    watch(
        "snapshots_unsaved_total",
        "Snapshots in use that could not be written to disk.",
        lambda: snapshots.unsaved_total,
    )

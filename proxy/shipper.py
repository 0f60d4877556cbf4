"""Sends sealed segments to the control plane, in order, one at a time, until it has them.

A segment is deleted only after the control plane said 200, which it says when the batch is durably stored or was already there. When
it answers that this very batch is not acceptable (`POISON`), the segment is set aside in `quarantine/`, counted, and the next one
goes: one bad batch never holds up the rest. Everything else - no connection, 5xx, a wrong token, a wrong address - is
the control plane's trouble or the operator's, not the batch's, and is tried again for ever, with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import httpx

from controlplane.contract.wire import BATCH_PATH, TOKEN_HEADER, batch_token
from proxy.spool import Spool
from proxy.uplink import Backoff

POISON = frozenset({400, 409, 410, 411, 413, 414, 415, 422})
RETRY_S_MIN = 0.25

_log = logging.getLogger(__name__)


class Shipper:
    """Empties a spool into the control plane."""

    def __init__(
        self,
        spool: Spool,
        uplink: httpx.AsyncClient,
        *,
        tick_s: float,
        retry_s_max: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """tick_s: how often an idle shipper looks; half of the age at which segments are sealed is right."""
        self._spool = spool
        self._uplink = uplink
        self._tick_s = tick_s
        self._backoff = Backoff(min_s=RETRY_S_MIN, max_s=retry_s_max, jitter=jitter)
        self._step = asyncio.Lock()  # one request in flight, also while `drain` overlaps with `run`
        self.shipped_total = 0  # segments
        self.shipped_bytes_total = 0
        self.lost_total = 0  # segments that somebody took away
        self.failures_total = 0
        self.last_error = ""

    async def run(self) -> None:
        """Ships for ever; cancel it to stop. What is not shipped then stays for the next start."""
        while True:
            try:
                pause_s = await self.step()
            except OSError as error:  # the disk's trouble must not end the shipping
                pause_s = self._failed(f"{type(error).__name__}: {error}")
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """Seals what is old enough and ships at most one segment; the seconds to wait before the next step."""
        async with self._step:
            self._spool.tick()
            number = self._spool.oldest
            if number is None:
                return self._tick_s
            error = await self._ship(number)
            if error:
                return self._failed(error)
            self.last_error = ""
            self._backoff.succeeded()
            return 0.0

    async def drain(self) -> bool:
        """Seals and ships all there is; False at the first failure. For a shutdown, under the caller's timeout."""
        self._spool.seal()
        while self._spool.oldest is not None:
            await self.step()
            if self.last_error:
                return False
        return True

    async def _ship(self, number: int) -> str:
        """Sends one segment and takes it off the spool; what went wrong, or an empty string."""
        token = batch_token(proxy_id=self._spool.proxy_id, segment=number)
        try:
            data = await asyncio.to_thread(self._spool.read, number)
        except FileNotFoundError:
            _log.error("segment %s is gone from the spool's directory; its records are lost", token)
            if not self._spool.remove(number):
                return "a segment is gone from the spool's directory, and the ledger's checkpoint cannot be written"
            self.lost_total += 1
            return ""
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        try:
            answer = await self._uplink.post(BATCH_PATH, content=data, headers={TOKEN_HEADER: token})
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if answer.status_code == httpx.codes.OK:
            if not self._spool.remove(number):
                return "the ledger's checkpoint cannot be written, so the segment must stay"
            self.shipped_total += 1
            self.shipped_bytes_total += len(data)
            return ""
        if answer.status_code in POISON:
            _log.error("batch %s refused with %d and set aside: %.200s", token, answer.status_code, answer.text)
            return "" if self._spool.set_aside(number) else "a refused segment cannot be set aside"
        return f"the control plane answered {answer.status_code}"

    def _failed(self, error: str) -> float:
        if not self.last_error:
            _log.warning("records cannot be shipped and wait in the spool: %s", error)
        self.failures_total += 1
        self.last_error = error
        return self._backoff.failed()


def watch_spool(
    watch: Callable[[str, str, Callable[[], float]], None],
    spool: Spool,
    shipper: Shipper,
    *,
    retired: Callable[[], int],
) -> None:
    """Shows what waits in the spool and what was shipped. retired: bytes that retired workers left."""
    watch("spool_bytes", "Bytes of records that wait to be shipped.", lambda: spool.bytes_stored)
    watch("spool_dropped_total", "Records dropped because the spool or the disk was full.", lambda: spool.dropped)
    watch("spool_dropped_nanousd_total", "Cost of the dropped records, in nano-USD.", lambda: spool.dropped_nanousd)
    watch("spool_payloads_cut_total", "Records kept without their payload.", lambda: spool.payloads_cut_total)
    watch(
        "spool_torn_bytes",
        "Bytes cut off at the last start, behind the last good record.",
        lambda: spool.torn_bytes,
    )
    watch(
        "spool_checkpoint_failures_total",
        "Checkpoints of the ledger that could not be written.",
        lambda: spool.checkpoint_failures_total,
    )
    watch(
        "spool_checkpoint_damaged",
        "1 if the ledger's checkpoint was found damaged at the last start.",
        lambda: spool.checkpoint_damaged,
    )
    watch("spool_shipped_total", "Segments that the control plane has.", lambda: shipper.shipped_total)
    watch("spool_shipped_bytes_total", "Bytes of those segments.", lambda: shipper.shipped_bytes_total)
    watch("spool_lost_total", "Segments that vanished from the spool's directory.", lambda: shipper.lost_total)
    watch("spool_ship_failures_total", "Tries to ship a segment that failed.", lambda: shipper.failures_total)
    watch("spool_quarantined", "Segments that the control plane refused, set aside.", lambda: spool.quarantined)
    watch(
        "spool_retired_bytes",
        "Bytes of records that retired workers left and that wait to be shipped.",
        retired,
    )

"""Active probes joined to healing and to the books: what a probe costs becomes a row like any other call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from controlplane.app.intake import Intake
from controlplane.contract.ids import new_id
from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import Snapshot
from controlplane.contract.wire import encode_frame
from controlplane.detection.http_probe import HttpProber
from controlplane.detection.metrics import ProbeMetrics
from controlplane.errors import HephaestusError
from controlplane.healing import actions

UNWRITTEN_MAX = 10_000  # at most so many; a store that is away for so many probes has other troubles
LEDGER = "control"  # the proxy column of rows that the control plane itself writes


class BookedProber:
    """Probes for detection and for healing; `book` writes what they cost."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], intake: Intake, *, timeout_s: float, metrics: ProbeMetrics
    ) -> None:
        self._intake = intake
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._unwritten: deque[CallRecord] = deque()
        self._batch: tuple[str, tuple[CallRecord, ...]] | None = (
            None  # under way, under a token that a repetition keeps
        )
        self.http = HttpProber(snapshot, record=self._note)

    def _note(self, record: CallRecord) -> None:
        if len(self._unwritten) >= UNWRITTEN_MAX:
            self._metrics.records_dropped.inc()
            return
        self._unwritten.append(record)

    async def for_healing(self, deployment: str) -> actions.ProbeResult:
        """One probe, as healing asks: never raises for what an upstream does."""
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await self.http.probe(deployment)
        except TimeoutError:
            return actions.ProbeResult(ok=False, detail=f"no answer within {self._timeout_s:g} s")
        except OSError as error:
            return actions.ProbeResult(ok=False, detail=f"cannot be reached: {error}")
        return actions.ProbeResult(ok=result.ok, detail=result.detail)

    async def book(self) -> None:
        """Writes the records of probes since the last time; what cannot be written now is kept for the next time.

        A batch that failed is sent again as it was, under the same token, since its insert may have come through.
        """
        if self._batch is None:
            if not self._unwritten:
                return
            self._batch = (f"{LEDGER}/{new_id('batch')}", tuple(self._unwritten))
            self._unwritten.clear()
        token, records = self._batch
        try:
            await self._intake.accept(token, b"".join(encode_frame(record) for record in records))
        except HephaestusError as error:
            structlog.get_logger("probes").warning("what probes cost is not written yet", code=error.code)
        else:
            self._batch = None

    async def aclose(self) -> None:
        """Writes what is left, as far as the store takes it, and gives up the connections."""
        for _ in range(2):  # a batch that waited, and what came since
            await self.book()
        await self.http.aclose()

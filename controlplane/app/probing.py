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
from controlplane.errors import HephaestusError
from controlplane.healing import actions

TIMEOUT_S = 10.0
UNWRITTEN_MAX = 10_000
LEDGER = "control"  # the proxy column of rows that the control plane itself writes


class BookedProber:
    """Probes for detection and for healing; `book` writes what they cost."""

    def __init__(self, snapshot: Callable[[], Snapshot], intake: Intake) -> None:
        self._intake = intake
        self._unwritten: deque[CallRecord] = deque(maxlen=UNWRITTEN_MAX)
        self.http = HttpProber(snapshot, record=self._unwritten.append)

    async def for_healing(self, deployment: str) -> actions.ProbeResult:
        """One probe, as healing asks: never raises for what an upstream does."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await self.http.probe(deployment)
        except TimeoutError:
            return actions.ProbeResult(ok=False, detail=f"no answer within {TIMEOUT_S:g} s")
        except OSError as error:
            return actions.ProbeResult(ok=False, detail=f"cannot be reached: {error}")
        return actions.ProbeResult(ok=result.ok, detail=result.detail)

    async def book(self) -> None:
        """Writes the records of probes since the last time; what cannot be written now is kept for the next time."""
        records = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
        if not records:
            return
        body = b"".join(encode_frame(record) for record in records)
        try:
            await self._intake.accept(f"{LEDGER}/{new_id('batch')}", body)
        except HephaestusError as error:
            self._unwritten.extendleft(reversed(records))
            structlog.get_logger("probes").warning("what probes cost is not written yet", code=error.code)

    async def aclose(self) -> None:
        """Writes what is left and gives up the connections."""
        await self.book()
        await self.http.aclose()

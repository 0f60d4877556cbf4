"""What comes in from proxies: batches to the store, with a note of how fresh telemetry is."""

from __future__ import annotations

from controlplane.clock import Clock
from controlplane.contract.snapshot import ProxyStatus
from controlplane.detection.freshness import Freshness
from controlplane.ingest import Ingest, IngestResult


class Intake:
    """The ingest, watched by the judge of freshness."""

    def __init__(self, ingest: Ingest, freshness: Freshness, clock: Clock) -> None:
        self._ingest = ingest
        self._freshness = freshness
        self._clock = clock

    async def accept(self, token: str, body: bytes) -> IngestResult:
        """Stores a batch; when this returns it is stored completely."""
        result = await self._ingest.accept(token, body)
        self._freshness.stored(token.rpartition("/")[0], now_us=self._clock.now_us())
        return result

    async def status(self, status: ProxyStatus) -> int:
        """Stores what is new in a proxy's status; what it says of its spool is noted even when the store does not answer."""
        self._freshness.saw(status, now_us=self._clock.now_us())
        return await self._ingest.status(status)

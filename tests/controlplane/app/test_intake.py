"""What comes in is stored, and noted by the judge of freshness whether or not it could be."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from controlplane.app.intake import Intake
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import ProxyStatus
from controlplane.contract.wire import batch_token
from controlplane.detection.freshness import Freshness
from controlplane.errors import HephaestusError, StoreUnavailable
from controlplane.ingest import Ingest
from controlplane.metrics import IngestMetrics
from controlplane.store.client import Store
from tests.controlplane.store.fakes import a_call, a_segment


class Absent(Ingest):
    """An ingest without a store."""

    async def status(self, status: ProxyStatus) -> int:
        """Not now."""
        raise StoreUnavailable("the store is away")


async def test_a_stored_batch_is_fresh_telemetry(store: Store, clock: ManualClock) -> None:
    """A worker with a full spool makes telemetry old until a batch of its own is stored."""
    freshness = Freshness(expiry_s=1_000.0)
    intake = Intake(Ingest(store, clock=clock, metrics=IngestMetrics(CollectorRegistry())), freshness, clock)
    await intake.status(ProxyStatus(proxy_id="p1", at_us=clock.now_us(), snapshot_version=1, spool_bytes=10))
    clock.move(120)
    await intake.status(ProxyStatus(proxy_id="p1", at_us=clock.now_us(), snapshot_version=1, spool_bytes=10))
    assert freshness.is_stale(clock.now_us())
    await intake.accept(batch_token(proxy_id="p1", segment=1), a_segment(a_call(1)))
    assert not freshness.is_stale(clock.now_us())


async def test_a_status_is_noted_though_the_store_is_away(store: Store, clock: ManualClock) -> None:
    """Just when nothing can be stored it matters that telemetry is known to be old."""
    freshness = Freshness(expiry_s=1_000.0)
    intake = Intake(Absent(store, clock=clock, metrics=IngestMetrics(CollectorRegistry())), freshness, clock)
    for _ in range(2):
        with pytest.raises(HephaestusError):
            await intake.status(ProxyStatus(proxy_id="p1", at_us=clock.now_us(), snapshot_version=1, spool_bytes=10))
        clock.move(120)
    assert freshness.is_stale(clock.now_us())

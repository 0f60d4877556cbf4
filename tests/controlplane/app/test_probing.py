"""What probes cost becomes rows, once each, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from controlplane.app import probing
from controlplane.app.intake import Intake
from controlplane.app.probing import BookedProber
from controlplane.clock import ManualClock
from controlplane.contract.pricing import Price
from controlplane.contract.snapshot import Deployment, Route, Snapshot, Upstream
from controlplane.detection.freshness import Freshness
from controlplane.detection.metrics import ProbeMetrics
from controlplane.errors import StoreUnavailable
from controlplane.ingest import Ingest, IngestResult
from controlplane.metrics import IngestMetrics
from controlplane.store.client import Store

ANSWER = json.dumps({"choices": [{"index": 0}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}).encode()


class Moody(Ingest):
    """An ingest whose store is away, or that stores and dies before it can say so."""

    mood = "well"

    async def accept(self, token: str, body: bytes) -> IngestResult:
        """As the mood is."""
        if self.mood == "away":
            raise StoreUnavailable("the store is away")
        result = await super().accept(token, body)
        if self.mood == "mute":
            raise StoreUnavailable("the answer was lost")
        return result


@dataclass
class Rig:
    """A prober on an endpoint over real sockets, and the store its costs go to."""

    port: int
    store: Store
    clock: ManualClock
    hang: asyncio.Event = field(default_factory=asyncio.Event)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.ingest = Moody(self.store, clock=self.clock, metrics=IngestMetrics(self.registry))
        self.prober = self.make(timeout_s=30.0)

    def make(self, *, timeout_s: float) -> BookedProber:
        """A prober with a timeout."""
        intake = Intake(self.ingest, Freshness(expiry_s=10.0), self.clock)
        return BookedProber(self.snapshot, intake, timeout_s=timeout_s, metrics=ProbeMetrics(CollectorRegistry()))

    def snapshot(self) -> Snapshot:
        """One deployment that answers, one where nobody listens."""
        upstreams = (
            Upstream(id="up", dialect="openai", base_url=f"http://127.0.0.1:{self.port}/v1"),
            Upstream(id="down", dialect="openai", base_url="http://127.0.0.1:9/v1"),
        )
        price = Price(version="v1", input=1_000_000, output=2_000_000)
        deployments = (
            Deployment(id="up/m", upstream="up", model="m", price=price),
            Deployment(id="down/m", upstream="down", model="m"),
        )
        return Snapshot(
            version=1,
            hash="h",
            created_us=0,
            upstreams=upstreams,
            routes=(Route(alias="chat", deployments=deployments),),
        )

    def rows(self) -> list[tuple[object, ...]]:
        """What is in the books."""
        return [tuple(row) for row in self.store.rows("SELECT proxy, operation, tenant, deployment FROM calls")]


@pytest.fixture
async def rig(store: Store, clock: ManualClock) -> AsyncIterator[Rig]:
    """A rig whose endpoint answers at once unless told to hang."""
    made: list[Rig] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-l"))
        await reader.readexactly(length)
        if made[0].hang.is_set():
            await reader.read()  # until the client gives up
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.append(Rig(server.sockets[0].getsockname()[1], store, clock))
    yield made[0]
    await made[0].prober.http.aclose()
    server.close()
    await server.wait_closed()


async def test_a_probe_is_a_row_once(rig: Rig) -> None:
    """Booking writes what was probed since the last time, under the control plane's own name, and no row twice."""
    result = await rig.prober.for_healing("up/m")
    assert (True, "it answers") == (result.ok, result.detail)
    await rig.prober.for_healing("up/m")
    await rig.prober.book()
    await rig.prober.book()
    assert [(probing.LEDGER, "probe", "", "up/m")] * 2 == rig.rows()


async def test_records_are_kept_while_the_store_is_away(rig: Rig) -> None:
    """What could not be written is written later, with what came meanwhile."""
    await rig.prober.for_healing("up/m")
    rig.ingest.mood = "away"
    await rig.prober.book()
    await rig.prober.for_healing("up/m")
    await rig.prober.book()
    assert [] == rig.rows()
    rig.ingest.mood = "well"
    await rig.prober.book()
    await rig.prober.book()
    assert 2 == len(rig.rows())


async def test_an_answer_that_was_lost_doubles_nothing(rig: Rig) -> None:
    """A batch that was stored though it looked otherwise is sent again as it was, and known."""
    await rig.prober.for_healing("up/m")
    rig.ingest.mood = "mute"
    await rig.prober.book()
    await rig.prober.for_healing("up/m")
    rig.ingest.mood = "well"
    await rig.prober.aclose()
    assert 2 == len(rig.rows())


async def test_what_an_upstream_does_never_raises(rig: Rig) -> None:
    """Nobody listening, and nobody answering in time, are results in words."""
    refused = await rig.prober.for_healing("down/m")
    assert not refused.ok
    assert refused.detail.startswith("cannot be reached")
    rig.hang.set()
    impatient = rig.make(timeout_s=0.05)
    assert "no answer within 0.05 s" == (await impatient.for_healing("up/m")).detail
    await impatient.aclose()

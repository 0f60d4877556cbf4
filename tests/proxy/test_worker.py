"""Tests of how a worker's parts are joined: what they count is shown, and what they leave is picked up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import KeyEntry, Snapshot, TenantPolicy, encode_snapshot
from tests.proxy.control_plane_fake import Asked, control_plane
from tests.proxy.fakes import KEY, PEPPER, World, until


async def test_whatever_a_part_counts_is_shown(world: World) -> None:
    """No counter of spool, shipper, cache, coalescing, snapshots, status or ledger is kept for nobody."""
    worker = world.worker
    parts = (
        worker.spool,
        worker.shipper,
        worker.cache,
        worker.cache.memory,
        worker.cache.disk,
        worker.coalesce,
        worker.snapshots,
        worker.reporter,
        worker.ledger,
    )
    expected: dict[str, float] = {}
    for part in parts:
        for name in (name for name in vars(part) if name.endswith("_total")):
            expected[f"{type(part).__name__}.{name}"] = value = 7_000_001 + len(expected)
            setattr(part, name, value)
    worker.spool.dropped, worker.spool.dropped_nanousd, worker.spool.torn_bytes = 1_001, 1_002, 1_003
    expected |= {"dropped": 1_001, "dropped_nanousd": 1_002, "torn_bytes": 1_003}
    shown = [float(line.rsplit(" ", 1)[1]) for line in worker.metrics.render().decode().splitlines() if line[0] != "#"]
    assert [] == [name for name, value in expected.items() if value not in shown]
    assert len(expected) > 20


async def test_a_call_that_comes_before_the_first_snapshot_is_answered_when_there_is_one(tmp_path: Path) -> None:
    """At the very first start a worker that knows nothing yet lets clients wait, and answers them as soon as it knows."""
    key = KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant="acme")
    snapshot = Snapshot(version=1, created_us=time.time_ns() // 1000, tenants=(TenantPolicy("acme"),), keys=(key,))
    known = asyncio.Event()
    world = World(tmp_path)
    async with control_plane() as plane:
        plane.answer = lambda _: (200, encode_snapshot(snapshot)) if known.is_set() else (503, b"")
        starting = asyncio.create_task(world.start(control_plane_url=plane.url, first_snapshot_wait_s=60.0))
        await plane.heard(2)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=60.0) as client:
            asking = asyncio.create_task(client.get(f"{world.url}/v1/models"))
            await plane.heard(4)
            assert not asking.done()
            known.set()
            assert 200 == (await asking).status_code
        await starting
        await world.stop()


async def test_without_a_snapshot_in_time_calls_are_refused_with_the_reason(tmp_path: Path) -> None:
    """A control plane that says nothing does not keep the clients of a first start waiting for longer than the setting says."""

    def refuse(asked: Asked) -> tuple[int, bytes]:
        del asked
        return 503, b""

    async with control_plane() as plane:
        plane.answer = refuse
        world = await World(tmp_path).start(control_plane_url=plane.url, first_snapshot_wait_s=0.05)
        answer = await world.client.get("/v1/models")
        assert (503, "not_ready") == (answer.status_code, answer.json()["error"]["code"])
        await world.stop()


async def test_what_retired_workers_have_stored_is_gone_after_a_start(tmp_path: Path) -> None:
    """The disk tiers of all workers have one bound; one of a worker that there is no more would be beyond it."""
    retired, own = (tmp_path / "proxy" / name / "cache" / "000000000001.page" for name in "30")
    for page in (retired, own):
        page.parent.mkdir(parents=True)
        page.write_bytes(b"not a page, and so removed by its own tier")
    world = await World(tmp_path).start()
    await until(lambda: not own.exists())
    assert not retired.exists()
    await world.stop()

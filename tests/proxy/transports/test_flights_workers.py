"""Flights over several real worker processes and a real Redis: one upstream call for all of them, also when its leader is killed."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from asyncio.subprocess import Process
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import CacheState, CallRecord
from controlplane.contract.snapshot import (
    CachePolicy,
    CoalesceCost,
    Deployment,
    KeyEntry,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from controlplane.contract.wire import decode_batch
from tests.ports import free_port
from tests.proxy.fakes import (
    DONE,
    KEY,
    PEPPER,
    PRICE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    ScriptedUpstream,
    Wire,
    chunk,
    event,
    until,
    usage_event,
)
from tests.proxy.processes import keep, start
from tests.proxy.redis_server import RedisServer

pytestmark = pytest.mark.e2e
WORKERS = 3
CALLS = 24
COST_NANOUSD = 15_000
SPLIT_KEY = "sk-heph-split"
DOORS = 2  # to Redis, of each worker: for flights and for the cache
BODY = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}


class Fleet:
    """A supervisor with its workers over one Redis; no control plane is there."""

    def __init__(self, folder: Path, redis_url: str, upstream: ScriptedUpstream) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: Process | None = None
        self.settings = {"redis": redis_url, "redis_timeout_s": 2.0, "coalesce_lease_s": 3.0, "drain_s": 5}
        snapshot = Snapshot(
            version=3,
            created_us=time.time_ns() // 1000,
            tenants=(
                TenantPolicy("acme"),
                TenantPolicy("globex", cache=CachePolicy(coalesce_cost=CoalesceCost.SPLIT)),
            ),
            keys=(
                KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="k", tenant="acme"),
                KeyEntry(hash=hash_key(SPLIT_KEY.encode(), PEPPER), id="s", tenant="globex"),
            ),
            upstreams=(Upstream("u", "openai", f"http://127.0.0.1:{upstream.port}/v1"),),
            routes=(Route(alias="gpt", deployments=(Deployment("u/m", "u", "gpt", price=PRICE),)),),
        )
        keep(folder, snapshot)

    async def start(self) -> None:
        """Starts them and waits until all of them listen, to Redis as well."""
        self.process = await start(self.folder, self.port, WORKERS, self.settings)
        connected: set[str] = set()
        async with asyncio.timeout(60.0):
            while len(connected) < WORKERS:
                metrics = await self.metrics()
                doors = re.findall(r'heph_proxy_(?:shared|cache_redis)_degraded\{worker="(.)"\} 0.0', metrics)
                heard = re.findall(r'heph_proxy_shared_listening\{worker="(.)"\} 1.0', metrics)
                connected |= {worker for worker in heard if doors.count(worker) == DOORS}

    async def metrics(self) -> str:
        """Those of one of the workers, whichever the kernel chooses."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{self.port}/metrics")).text

    async def inflight(self, calls: int) -> None:
        """Waits until so many calls are being served by all workers together."""
        serving: dict[str, float] = {}
        async with asyncio.timeout(60.0):
            while sum(serving.values()) < calls:
                found = re.findall(r'heph_proxy_inflight_calls\{worker="(.)"\} (\S+)', await self.metrics())
                serving |= {worker: float(number) for worker, number in found}

    def worker_at(self, port: int) -> psutil.Process:
        """The worker whose connection has this port on its side."""
        assert self.process is not None
        for worker in psutil.Process(self.process.pid).children():
            if any(one.laddr.port == port and one.raddr for one in worker.net_connections()):
                return worker
        raise AssertionError("no worker asks upstream")

    async def call(self, prompt: str, key: str = KEY) -> tuple[str, str]:
        """One call over a connection of its own, so that the kernel spreads them: how it was answered, and its bytes."""
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60.0) as client:
            answer = await client.post(
                f"http://127.0.0.1:{self.port}/v1/chat/completions",
                json=BODY | {"messages": [{"role": "user", "content": prompt}]},
            )
            lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
            return answer.headers["x-heph-cache"], "\n".join(lines)

    async def stop(self) -> list[CallRecord]:
        """SIGTERM, a clean end, and all records."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30.0):
            await self.process.communicate()
        assert 0 == self.process.returncode
        return [
            record
            for segment in (self.folder / "proxy").glob("*/*.seg")
            for record in decode_batch(segment.read_bytes())
        ]


async def test_many_workers_ask_once_and_a_killed_leader_is_replaced(tmp_path: Path) -> None:
    """All callers get the same bytes from one upstream call, whose bill is there once; a leader killed before its answer is replaced.

    A tenant that splits its bills has a part on each record, and these sum to it.
    """
    go_on, settle = asyncio.Event(), asyncio.Event()
    asked_from: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def script(wire: Wire, request: Received) -> None:
        if b"mortal" in request.body and sum(b"mortal" in one.body for one in upstream.received) == 1:
            asked_from.set_result(wire.writer.get_extra_info("peername")[1])
            await wire.hang()
            return
        await (settle if b"split" in request.body else go_on).wait()
        await wire.send(STREAM_HEAD + chunk(event() + event("Hello")))
        await wire.send(chunk(event("", delta={}, finish_reason="stop") + usage_event() + DONE) + STREAM_END)

    upstream = await ScriptedUpstream(script).start()
    redis = await RedisServer(tmp_path).start()
    fleet = Fleet(tmp_path, redis.url, upstream)
    try:
        await fleet.start()
        tasks = [asyncio.create_task(fleet.call("first")) for _ in range(CALLS)]
        await until(lambda: upstream.received)
        await fleet.inflight(CALLS)
        go_on.set()
        answers = await asyncio.gather(*tasks)
        assert 1 == len(upstream.received)
        splitting = [asyncio.create_task(fleet.call("split", SPLIT_KEY)) for _ in range(CALLS)]
        await fleet.inflight(CALLS)
        settle.set()
        answers += await asyncio.gather(*splitting)
        mortal = [asyncio.create_task(fleet.call("mortal")) for _ in range(CALLS)]
        fleet.worker_at(await asked_from).kill()
        survivors = [one for one in await asyncio.gather(*mortal, return_exceptions=True) if isinstance(one, tuple)]
        records = await fleet.stop()
    finally:
        redis.kill()
        await upstream.stop()
        if fleet.process is not None and fleet.process.returncode is None:
            fleet.process.kill()
            await fleet.process.wait()
    assert 1 == len({text for _, text in [*answers, *survivors]})
    assert (4, True) == (len(upstream.received), len(survivors) > 0)
    states = Counter(state for state, _ in answers)
    assert (2, 2 * CALLS) == (states["miss"], states["miss"] + states["coalesced"] + states["hit"])
    assert len(records) == len({record.call_id for record in records})
    paying = [record for record in records if record.cost_nanousd]
    plain = [(record.cache, record.cost_nanousd) for record in paying if record.tenant == "acme"]
    assert [(CacheState.MISS, COST_NANOUSD)] * 2 == plain
    parts = [record.cost_nanousd for record in paying if record.tenant == "globex"]
    assert (COST_NANOUSD, True) == (sum(parts), len(parts) > CALLS // 2)
    saved = sum(record.saved_nanousd for record in records)
    assert (CALLS - 1 + CALLS - 1 + len(survivors) - 1) * COST_NANOUSD == saved

"""Several workers as real processes with an upstream and a control plane: limits hold in sum, rows equal ledgers, over any number of workers."""

from __future__ import annotations

import asyncio
import signal
import time
from asyncio.subprocess import Process
from collections import Counter
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import CallRecord, Outcome
from controlplane.contract.snapshot import (
    Budget,
    CachePolicy,
    Deployment,
    KeyEntry,
    ProxyStatus,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
    Window,
)
from controlplane.contract.wire import decode_batch
from tests.ports import free_port
from tests.proxy.control_plane_fake import Asked, FakeControlPlane, control_plane
from tests.proxy.fakes import KEY, PEPPER, PRICE, ScriptedUpstream, answer, completion, replies
from tests.proxy.processes import keep, said, start

pytestmark = pytest.mark.e2e
TOKENS = 12  # of each answer
LIMIT = 3_600
BODY = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


class Fleet:
    """A supervisor with its workers, and what a control plane heard of them."""

    def __init__(
        self, folder: Path, plane: FakeControlPlane, upstream: ScriptedUpstream, *, tenant: TenantPolicy | None = None
    ) -> None:
        """tenant: None: one with a budget of LIMIT tokens and no cache."""
        self.folder = folder
        self.plane = plane
        self.port = free_port()
        self.served: Counter[int] = Counter()
        self.process: Process | None = None
        self.more: dict[str, object] = {}  # settings
        budget = Budget("pocket", Window.TOTAL, tokens=LIMIT)
        tenant = tenant or TenantPolicy("acme", budgets=(budget,), cache=CachePolicy(enabled=False), concurrency=1000)
        deployment = Deployment("u/m", "u", "gpt", price=PRICE)
        snapshot = Snapshot(
            version=3,
            created_us=time.time_ns() // 1000,
            tenants=(tenant,),
            keys=(KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="k", tenant="acme"),),
            upstreams=(Upstream("u", "openai", f"http://127.0.0.1:{upstream.port}/v1"),),
            routes=(Route(alias="gpt", deployments=(deployment,)),),
        )
        keep(folder, snapshot)

    async def start(self, workers: int) -> None:
        """Starts so many workers and waits until all listen."""
        more = {"control_plane_url": self.plane.url, "segment_age_s": 0.2, "status_every_s": 0.2, "drain_s": 5}
        self.process = await start(self.folder, self.port, workers, more | self.more)

    async def call(self, count: int) -> None:
        """So many calls, each over a connection of its own, so that the kernel spreads them."""

        async def one() -> None:
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=30.0) as client:
                response = await client.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=BODY)
                self.served[response.status_code] += 1

        for _ in range(count // 10):
            await asyncio.gather(*(one() for _ in range(10)))

    async def stop(self) -> None:
        """SIGTERM, and waits for a clean end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30.0):
            await self.process.communicate()
        assert 0 == self.process.returncode

    def rows(self) -> list[CallRecord]:
        """What the control plane stored: each batch once."""
        batches = {one.headers["x-heph-batch-token"]: one.body for one in self.plane.asked if "/batches" in one.path}
        return [record for body in batches.values() for record in decode_batch(body)]

    def statuses(self) -> list[ProxyStatus]:
        """The last word of each worker that ever was."""
        last: dict[str, ProxyStatus] = {}
        for one in self.plane.asked:
            if "/status" in one.path:
                status = msgspec.json.decode(one.body, type=ProxyStatus)
                last[status.proxy_id] = status
        return list(last.values())

    def ledgers(self) -> tuple[int, int]:
        """Calls and nano-USD of all of them."""
        last = self.statuses()
        return sum(s.ledger_calls for s in last), sum(s.ledger_nanousd for s in last)


def _answers(asked: Asked) -> tuple[int, bytes]:
    return (304, b"") if "/snapshot" in asked.path else (200, b"")


async def test_limits_hold_in_sum_and_rows_equal_ledgers_over_kills_and_worker_counts(tmp_path: Path) -> None:
    """Three workers, one killed and replaced, then two, then one: each serves, nobody overspends, and no record is lost or doubled."""
    upstream = await ScriptedUpstream(replies(answer(completion()))).start()
    async with control_plane() as plane:
        plane.answer = _answers
        fleet = Fleet(tmp_path, plane, upstream)
        try:
            await fleet.start(3)
            await fleet.call(90)
            assert fleet.process is not None
            victim = psutil.Process(fleet.process.pid).children()[1]
            victim.kill()
            await said(fleet.process, "a worker died")
            await said(fleet.process, "proxy listens")
            await fleet.call(60)
            await fleet.stop()
            by_worker = Counter(
                one.headers["x-heph-batch-token"].split("/")[0] for one in plane.asked if "/batches" in one.path
            )
            assert 3 == len(by_worker)
            await fleet.start(2)
            await fleet.call(60)
            await fleet.stop()
            await fleet.start(1)
            while 429 not in fleet.served:
                await fleet.call(50)
            await fleet.stop()
        finally:
            if fleet.process is not None and fleet.process.returncode is None:
                fleet.process.kill()
                await fleet.process.wait()
            await upstream.stop()
    rows = fleet.rows()
    assert len(rows) == len({row.call_id for row in rows}) == sum(fleet.served.values())
    assert (len(rows), sum(row.cost_nanousd for row in rows)) == fleet.ledgers()
    assert {200, 429} == set(fleet.served)
    spent = sum(row.tokens.total for row in rows)
    assert fleet.served[200] * TOKENS == spent <= LIMIT
    assert LIMIT - spent < 200 + 10 * 200  # what the last ten at once could still hold; nothing was spent twice
    assert {Outcome.OK, Outcome.OVER_BUDGET} == {row.outcome for row in rows}

"""Stale answers, outages and invalidation through a whole worker: what clients get, and what the records say."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from controlplane.contract.records import CacheState, Outcome
from controlplane.contract.snapshot import CacheInvalidation, CachePolicy, TenantPolicy
from tests.proxy.fakes import Received, Wire, World, answer, completion, fails, replies, until

TENANT = TenantPolicy("acme", cache=CachePolicy(ttl_s=1, stale_while_revalidate_s=600, stale_if_error_s=600))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A worker."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


def _age_everything(world: World, seconds: float) -> None:
    """Makes what is stored older, as if time had passed."""
    memory = world.worker.cache.memory
    for key, entry in list(memory.newest_first()):
        memory.put(key, msgspec.structs.replace(entry, created_us=entry.created_us - int(seconds * 1e6)))


async def test_a_background_call_is_a_call_of_the_tenant(world: World) -> None:
    """The client gets the stale answer at once; the refresh has a record of its own with the cost, and the next call is a hit."""
    await world.upstream(replies(answer(completion("old"))), replies(answer(completion("new"))))
    world.apply(tenant=TENANT)
    await world.chat(headers={"x-heph-agent": "bot", "x-heph-channel": "web"})
    _age_everything(world, 5)
    stale = await world.chat(headers={"x-heph-agent": "bot"})
    assert ("stale", "hephaestus; hit; detail=stale", "5") == tuple(
        stale.headers[name] for name in ("x-heph-cache", "cache-status", "age")
    )
    await world.worker.refreshes.settled()
    fresh = await world.chat()
    assert ["old", "new"] == [_text(one.content) for one in (stale, fresh)]
    assert "hit" == fresh.headers["x-heph-cache"]
    first, served, again, hit = sorted(world.records(), key=lambda record: record.started_us)
    assert [CacheState.MISS, CacheState.STALE, CacheState.BYPASS, CacheState.HIT] == [
        one.cache for one in (first, served, again, hit)
    ]
    assert ("cache-refresh", "bot", "acme", Outcome.OK) == (again.channel, again.agent, again.tenant, again.outcome)
    assert (0, first.cost_nanousd, first.cost_nanousd) == (
        served.cost_nanousd,
        served.saved_nanousd,
        again.cost_nanousd,
    )
    assert 2 * first.cost_nanousd == world.worker.ledger.nanousd


async def test_a_stale_answer_whose_successor_cannot_be_kept_is_left_alone(world: World) -> None:
    """Each call would else pay for another one behind it, as long as the upstream gives nothing to be kept."""
    filtered = completion("new").replace(b'"stop"', b'"content_filter"')
    upstream = await world.upstream(replies(answer(completion("old"))), replies(answer(filtered)))
    world.apply(tenant=TENANT)
    await world.chat()
    _age_everything(world, 5)
    for _ in range(3):
        assert "stale" == (await world.chat()).headers["x-heph-cache"]
        await world.worker.refreshes.settled()
    assert (2, 1) == (len(upstream.received), world.worker.refreshes.failed_total)


async def test_an_outage_is_served_through(world: World) -> None:
    """With every upstream failing the stored answer comes, marked stale, and the failed attempts are on the record."""
    await world.upstream(replies(answer(completion("old"))), fails(500))
    world.apply(tenant=TENANT, route={"cache_stale_while_revalidate_s": 0, "attempts_max": 1})
    await world.chat()
    _age_everything(world, 5)
    served = await world.chat()
    assert (200, "old", "stale") == (served.status_code, _text(served.content), served.headers["x-heph-cache"])
    record = world.records()[-1]
    assert (Outcome.OK, CacheState.STALE, 1) == (record.outcome, record.cache, len(record.attempts))


async def test_an_invalidation_in_the_snapshot_holds_at_once(world: World) -> None:
    """The next call after the snapshot is asked anew."""
    await world.upstream(replies(answer(completion("old"))), replies(answer(completion("new"))))
    world.apply(tenant=TenantPolicy("acme"))
    await world.chat(headers={"x-heph-tags": json.dumps({"team": "search"})})
    rule = CacheInvalidation("i", time.time_ns() // 1000, 2**60, tag="team=search")
    assert world.worker.app.runtime is not None
    snapshot = world.worker.app.runtime.snapshot
    world.worker.apply(msgspec.structs.replace(snapshot, version=snapshot.version + 1, invalidations=(rule,)))
    fresh = await world.chat()
    assert ("miss", "new") == (fresh.headers["x-heph-cache"], _text(fresh.content))
    assert "hit" == (await world.chat()).headers["x-heph-cache"]


async def test_a_worker_that_stops_leaves_a_record_of_its_background_call(tmp_path: Path) -> None:
    """The call is cancelled and settled before the spool closes."""
    world = World(tmp_path)
    await world.start()
    hung = asyncio.Event()

    async def hang(wire: object, _: object) -> None:
        hung.set()
        await asyncio.Event().wait()

    await world.upstream(replies(answer(completion("old"))), hang)
    world.apply(tenant=TENANT)
    await world.chat()
    _age_everything(world, 5)
    await world.chat()
    await hung.wait()
    await world.stop()
    kept = {record.channel: record.outcome for record in world.kept_records()}
    assert Outcome.UNAVAILABLE is kept["cache-refresh"]


def _text(body: bytes) -> str:
    document = json.loads(body)
    return str(document["choices"][0]["message"]["content"])


async def test_embeddings_that_come_together_are_one_request_and_their_bills_sum(world: World) -> None:
    """Through a whole worker: the upstream is asked twice for five callers, each gets its own, and rows equal the ledger."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def embed(wire: Wire, request: Received) -> None:
        wanted = request.document["input"]
        texts = wanted if isinstance(wanted, list) else [wanted]
        if not began.is_set():
            began.set()
            await go_on.wait()
        data = [{"object": "embedding", "index": at, "embedding": [len(text)]} for at, text in enumerate(texts)]
        usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
        await wire.send(answer(json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode()))

    upstream = await world.upstream(embed)
    world.apply(tenant=TenantPolicy("acme"), route={"batch": {"window_s": 1.0}})

    async def ask(text: str) -> httpx.Response:
        return await world.client.post("/v1/embeddings", json={"model": "gpt", "input": text})

    tasks = [asyncio.create_task(ask("x"))]
    await began.wait()
    for text in ("a", "bb", "ccc", "dddd"):
        tasks.append(asyncio.create_task(ask(text)))
        await until(lambda: world.worker.batch.waiting == len(tasks) - 1)
    go_on.set()
    answers = await asyncio.gather(*tasks)
    assert [[1], [1], [2], [3], [4]] == [one.json()["data"][0]["embedding"] for one in answers]
    assert [None, "4", "4", "4", "4"] == [one.headers.get("x-heph-batch-calls") for one in answers]
    assert 2 == len(upstream.received)
    records = world.records()
    assert 35 == sum(record.tokens.total for record in records)
    assert world.worker.ledger.nanousd == sum(record.cost_nanousd for record in records) == 35 * 1000
    again = await world.client.post("/v1/embeddings", json={"model": "gpt", "input": ["dddd", "x", "new"]})
    assert ([[4], [1], [3]], "2/3") == (
        [one["embedding"] for one in again.json()["data"]],
        again.headers["x-heph-cache-items"],
    )
    assert ["new"] == upstream.received[-1].document["input"]

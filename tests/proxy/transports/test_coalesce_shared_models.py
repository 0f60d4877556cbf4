"""Flights between workers of calls whose models fail, or for which others stand in: each gets what it would have got in one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import CacheState, CallRecord
from controlplane.contract.snapshot import BreakerPolicy, CachePolicy, CoalesceCost, KeyEntry, TenantPolicy
from tests.proxy.fakes import (
    KEY,
    PEPPER,
    Received,
    ScriptedUpstream,
    Wire,
    World,
    answer,
    completion,
    fails,
    replies,
    until,
    whole_stream,
)
from tests.proxy.redis_server import RedisServer

OTHER_KEY = "sk-heph-other-key"
SPLIT = TenantPolicy("acme", cache=CachePolicy(coalesce_cost=CoalesceCost.SPLIT))
COST_NANOUSD = 15_000


@dataclass
class Pair:
    """Two workers over one Redis, a model that fails when it is told to, and one that may stand in for it."""

    here: World
    there: World
    asked: ScriptedUpstream
    spare: ScriptedUpstream
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, *models: tuple[str, ...] | None, falls_back: bool = True) -> None:
        """models: which each of the two keys may use."""
        keys = tuple(
            KeyEntry(hash=hash_key(key.encode(), PEPPER), id=key, tenant="acme", models=allowed)
            for key, allowed in zip((KEY, OTHER_KEY), models, strict=True)
        )
        fallbacks: dict[str, object] = {"fallbacks": {"general": ["big"]}} if falls_back else {}
        for world in (self.here, self.there):
            world.apply(
                tenant=SPLIT,
                keys=keys,
                urls=tuple(f"http://127.0.0.1:{one.port}/v1" for one in (self.asked, self.spare)),
                route=fallbacks | {"attempts_max": 1},
                others={"big": (1,)},
                breaker=BreakerPolicy(requests_min=1_000, failures_in_row=1_000),
            )

    async def ask_both(
        self, path: str = "/v1/chat/completions", *, stream: bool = False
    ) -> tuple[httpx.Response, httpx.Response]:
        """The leader's answer here, and the follower's there; the model asked for fails once both wait."""
        body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": stream}

        def ask(world: World, key: str) -> asyncio.Task[httpx.Response]:
            headers = {"authorization": f"Bearer {key}"}
            return asyncio.create_task(world.client.post(path, json=body, headers=headers))

        leader = ask(self.here, KEY)
        await until(lambda: self.asked.received)
        follower = ask(self.there, OTHER_KEY)
        await until(lambda: any(led.followers for led in self.here.worker.flights._led.values()))
        await until(lambda: all(one.told for one in self.there.worker.flights.bills._seats.values()))
        self.go_on.set()
        return await leader, await follower

    async def records(self) -> list[CallRecord]:
        """Of both."""
        for world in (self.here, self.there):
            await world.until_idle()
        return [record for world in (self.here, self.there) for record in world.records()]

    @property
    def received(self) -> list[int]:
        """Requests that each upstream had."""
        return [len(self.asked.received), len(self.spare.received)]


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    """Whether the clients want streams."""
    return bool(request.param)


@pytest.fixture
async def pair(tmp_path: Path, stream: bool) -> AsyncIterator[Pair]:
    """Both of them, connected."""
    redis = await RedisServer(tmp_path).start()

    async def fails_late(wire: Wire, request: Received) -> None:
        await made.go_on.wait()
        await fails(500)(wire, request)

    good = replies(whole_stream("Hello") if stream else answer(completion()))
    made = Pair(
        World(tmp_path / "here"),
        World(tmp_path / "there"),
        await ScriptedUpstream(fails_late).start(),
        await ScriptedUpstream(good).start(),
    )
    for world in (made.here, made.there):
        await world.start(redis=redis.url, redis_timeout_s=2.0)
        assert world.worker.shared is not None
        await world.worker.shared.ready()
    yield made
    for world in (made.here, made.there):
        await world.stop()
    for upstream in (made.asked, made.spare):
        await upstream.stop()
    redis.kill()


async def test_the_answer_of_a_model_that_stood_in_is_shared(pair: Pair, stream: bool) -> None:
    """One upstream call for both workers, and one bill, as within a worker."""
    pair.apply(None, None)
    leader, follower = await pair.ask_both(stream=stream)
    assert (200, 200, "u1/m") == (leader.status_code, follower.status_code, follower.headers["x-heph-deployment"])
    assert "Hello" in leader.text
    assert "Hello" in follower.text
    assert [1, 1] == pair.received
    records = await pair.records()
    assert [CacheState.MISS, CacheState.COALESCED] == [record.cache for record in records]
    assert 1 == len({record.routed for record in records})
    assert [COST_NANOUSD // 2] * 2 == [record.cost_nanousd for record in records]


async def test_whoever_may_use_the_model_that_stood_in_shares_its_answer(pair: Pair, stream: bool) -> None:
    """Another list, in which that model is too; whether it pays depends on whether it knew in time that it may."""
    pair.apply(None, ("gpt", "big"))
    leader, follower = await pair.ask_both(stream=stream)
    assert ([200, 200], [1, 1]) == ([leader.status_code, follower.status_code], pair.received)
    assert COST_NANOUSD == sum(record.cost_nanousd for record in await pair.records())


async def test_a_model_that_stood_in_answers_nobody_who_may_not_use_it(pair: Pair, stream: bool) -> None:
    """The follower asks for itself, fails, and pays nothing of the leader's bill."""
    pair.apply(None, ("gpt",))
    leader, follower = await pair.ask_both(stream=stream)
    assert (200, "u1/m", 502) == (leader.status_code, leader.headers["x-heph-deployment"], follower.status_code)
    assert [2, 1] == pair.received
    assert {KEY: COST_NANOUSD, OTHER_KEY: 0} == {one.key_id: one.cost_nanousd for one in await pair.records()}
    assert 1 == pair.there.worker.flights.parted_total


async def test_a_failure_is_not_shared_with_who_may_use_more(pair: Pair, stream: bool) -> None:
    """The leader has nothing to fall back to; the follower has, and gets that."""
    pair.apply(("gpt",), ("gpt", "big"))
    leader, follower = await pair.ask_both(stream=stream)
    assert (502, 200, "u1/m") == (leader.status_code, follower.status_code, follower.headers["x-heph-deployment"])
    assert [2, 1] == pair.received


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_that_all_upstreams_failed_is_shared(pair: Pair, stream: bool, path: str) -> None:
    """The other worker does not begin the same work again; its client hears it in its own protocol, under its own request's id."""
    pair.apply(None, None, falls_back=False)
    leader, follower = await pair.ask_both(path, stream=stream)
    assert ([502, 502], [1, 0]) == ([leader.status_code, follower.status_code], pair.received)
    ours, theirs = leader.json()["error"], follower.json()["error"]
    assert (ours["type"], ours["message"]) == (theirs["type"], theirs["message"])
    ids = [response.headers["x-heph-call-id"] for response in (leader, follower)]
    if path == "/v1/messages":
        assert ids == [response.json()["request_id"] for response in (leader, follower)]
    outcomes = {(record.call_id, record.outcome.value, record.error_code) for record in await pair.records()}
    assert {(one, "exhausted", "exhausted") for one in ids} == outcomes

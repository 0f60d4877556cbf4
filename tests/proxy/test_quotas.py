"""Quotas end to end: what a client, a record and a metric say of a call that meets a ceiling."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from controlplane.contract.pricing import Price
from controlplane.contract.records import CacheState, CallRecord, Outcome
from controlplane.contract.routing import Fallbacks
from controlplane.contract.snapshot import (
    Budget,
    CachePolicy,
    Deployment,
    Quota,
    QuotaAction,
    QuotaScope,
    Route,
    TenantPolicy,
    Unpriced,
    Window,
)
from tests.proxy.fakes import World, answer, completion, replies, until
from tests.proxy.redis_server import RedisServer

UNCACHED = CachePolicy(enabled=False)
VECTORS = json.dumps(
    {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(2)],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
).encode()
CHEAP = Price(input=1_000_000, output=1_000_000)


def _quota(action: QuotaAction = QuotaAction.HARD, **more: object) -> Quota:
    plain: dict[str, object] = {"id": "q", "per": QuotaScope.AGENT, "window": Window.DAY, "tokens": 1}
    return msgspec.convert(plain | {"action": action} | more, Quota)


def _with_small(world: World, tenant: TenantPolicy, *, price: Price | None = CHEAP, budget: bool = False) -> None:
    """A second model, `small`, at the second upstream."""
    world.apply(tenant=tenant)
    runtime = world.worker.app.runtime
    assert runtime is not None
    snapshot = runtime.snapshot
    (large,) = snapshot.routes
    first, second = large.deployments
    large = msgspec.structs.replace(
        large, deployments=(first,), fallbacks=Fallbacks(budget=("small",)) if budget else Fallbacks()
    )
    small = Route("small", (Deployment("u1/small", second.upstream, "small-model", price=price),))
    world.worker.apply(msgspec.structs.replace(snapshot, version=snapshot.version + 1, routes=(large, small)))


def _metric(world: World, name: str) -> str:
    lines = world.worker.metrics.render().decode().splitlines()
    return next((line.rsplit(" ", 1)[1] for line in lines if name in line and not line.startswith("#")), "")


def _last(world: World) -> CallRecord:
    return world.records()[-1]


async def test_a_hard_quota_refuses_and_names_whose_it_is_and_when_it_begins_anew(world: World) -> None:
    """429 with quota, agent, amounts and reset; another agent goes on, and calls without an agent have their own."""
    await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(tokens=200),)))
    assert 200 == (await world.chat(headers={"x-heph-agent": "bot"}, max_tokens=50)).status_code
    refused = await world.chat(headers={"x-heph-agent": "bot"}, max_tokens=118)
    assert (429, "over_budget") == (refused.status_code, refused.json()["error"]["code"])
    message = refused.json()["error"]["message"]
    for part in ("quota `q` of agent `bot` of tenant `acme`", "limit 200 tokens", "settled 12 tokens", "T00:00:00Z"):
        assert part in message
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert 200 == (await world.chat(headers={"x-heph-agent": "other"}, max_tokens=100)).status_code
    assert 200 == (await world.chat(max_tokens=100)).status_code
    assert "1.0" == _metric(world, 'bound="quota_hard"')


async def test_a_soft_quota_serves_with_a_warning_everywhere(world: World) -> None:
    """The answer's header, the record's tag and a counter say which quota was passed."""
    await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(QuotaAction.SOFT),)))
    response = await world.chat()
    assert (200, "soft q") == (response.status_code, response.headers["x-heph-quota-warning"])
    assert "soft q" == _last(world).tags["heph-quota"]
    assert "1.0" == _metric(world, 'bound="quota_soft"')
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED))
    assert "x-heph-quota-warning" not in (await world.chat()).headers


async def test_a_downgrade_is_served_by_the_cheaper_model_and_booked_to_it(world: World) -> None:
    """The other model answers, visibly; its own price is paid, its instance counts, and the record keeps what was asked for."""
    large = await world.upstream(replies(answer(completion())))
    small = await world.upstream(replies(answer(completion())))
    per_model = _quota(id="per-model", per=QuotaScope.MODEL, tokens=100_000)
    tenant = TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(QuotaAction.DOWNGRADE, to="small"), per_model))
    _with_small(world, tenant)
    response = await world.chat(max_tokens=3)
    assert (200, "small-model") == (response.status_code, response.headers["x-heph-model"])
    assert "downgraded q" == response.headers["x-heph-quota-warning"]
    assert ([], "small-model") == (large.received, small.received[0].document["model"])
    record = _last(world)
    assert ("gpt", "small", 12) == (record.alias, record.routed, record.cost_nanousd)
    ledger = world.worker.ledger
    amounts = [
        ledger.settled("acme", Window.DAY, now_us=record.started_us, counter="model", value=value).tokens
        for value in ("gpt", "small")
    ]
    assert [0, 12] == amounts


async def test_a_key_is_downgraded_only_to_models_that_it_may_use(world: World) -> None:
    """A quota grants nothing: a key that is limited to the dear model is refused, and the cheap one is not asked."""
    large = await world.upstream(replies(answer(completion())))
    small = await world.upstream(replies(answer(completion())))
    tenant = TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(QuotaAction.DOWNGRADE, to="small"),))
    _with_small(world, tenant)
    runtime = world.worker.app.runtime
    assert runtime is not None
    snapshot = runtime.snapshot
    for allowed, status in ((("gpt",), 429), (("gpt", "small"), 200)):
        keys = tuple(msgspec.structs.replace(key, models=allowed) for key in snapshot.keys)
        world.worker.apply(msgspec.structs.replace(snapshot, keys=keys))
        assert status == (await world.chat(max_tokens=3)).status_code
    assert (0, 1) == (len(large.received), len(small.received))


async def test_a_route_s_budget_fallback_serves_when_the_budget_is_too_small(world: World) -> None:
    """Too little money for the model asked for, enough for the one it falls back to; then for neither."""
    large = await world.upstream(replies(answer(completion())))
    await world.upstream(replies(answer(completion())))
    tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=2_000),))
    _with_small(world, tenant, budget=True)
    response = await world.chat(max_tokens=3)
    assert (200, "small-model") == (response.status_code, response.headers["x-heph-model"])
    assert "fell back b" == response.headers["x-heph-quota-warning"]
    assert [] == large.received
    refused = await world.chat(max_tokens=5_000)
    assert "over_budget" == refused.json()["error"]["code"]


@pytest.mark.parametrize("why", ["downgraded", "fell back"])
async def test_the_other_model_serves_though_nothing_of_its_quota_is_leased_yet(tmp_path: Path, why: str) -> None:
    """With Redis: a slice of the quota of the model that serves instead is waited for, as it is for the model asked for."""
    redis = await RedisServer(tmp_path).start()
    world = await World(tmp_path / "world").start(redis=redis.url, redis_timeout_s=5.0)
    try:
        large = await world.upstream(replies(answer(completion())))
        await world.upstream(replies(answer(completion())))
        quotas: tuple[Quota, ...] = (_quota(id="per-model", per=QuotaScope.MODEL, tokens=100_000),)
        budgets: tuple[Budget, ...] = ()
        if why == "downgraded":
            quotas += (_quota(QuotaAction.DOWNGRADE, to="small"),)
        else:
            budgets = (Budget("b", Window.TOTAL, nanousd=2_000),)
        _with_small(world, TenantPolicy("acme", cache=UNCACHED, quotas=quotas, budgets=budgets), budget=bool(budgets))
        assert world.worker.shared is not None
        await world.worker.shared.ready()
        response = await world.chat(max_tokens=3)
        assert (200, "small-model") == (response.status_code, response.headers["x-heph-model"])
        assert response.headers["x-heph-quota-warning"].startswith(why)
        assert ([], ("gpt", "small")) == (large.received, (_last(world).alias, _last(world).routed))
    finally:
        await world.stop()
        redis.kill()


async def test_a_soft_quota_of_which_nothing_is_leased_yet_warns_nobody(tmp_path: Path) -> None:
    """With Redis: whether it is passed is not known before a slice was asked for; afterwards it warns as ever."""
    redis = await RedisServer(tmp_path).start()
    world = await World(tmp_path / "world").start(redis=redis.url, redis_timeout_s=5.0)
    try:
        await world.upstream(replies(answer(completion())))
        world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(QuotaAction.SOFT, tokens=1_000),)))
        assert world.worker.shared is not None
        await world.worker.shared.ready()
        said = [(await world.chat(max_tokens=500)).headers.get("x-heph-quota-warning") for _ in range(50)]
        assert ([None] * 30, "soft q") == (said[:30], said[-1])
    finally:
        await world.stop()
        redis.kill()


async def test_a_downgrade_that_nobody_can_serve_ends_in_a_refusal(world: World) -> None:
    """A quota that names a model that is gone refuses, and does not let the dear one pass."""
    large = await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(_quota(QuotaAction.DOWNGRADE, to="gone"),)))
    assert 429 == (await world.chat()).status_code
    assert [] == large.received


async def test_a_stored_answer_is_served_over_budget(world: World) -> None:
    """What costs nothing needs no budget: the answer given before is given again, a new question is refused."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme"))
    assert 200 == (await world.chat(max_tokens=3)).status_code
    world.apply(tenant=TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, nanousd=1),)))
    again = await world.chat(max_tokens=3)
    assert (200, "hit") == (again.status_code, again.headers["x-heph-cache"])
    assert 429 == (await world.chat(max_tokens=4)).status_code
    assert 1 == len(upstream.received)
    assert [Outcome.OK, Outcome.OK, Outcome.OVER_BUDGET] == [record.outcome for record in world.records()]


SPENT = TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, tokens=1),))


async def test_an_answer_that_left_memory_is_served_over_budget_too(tmp_path: Path) -> None:
    """It lies on disk: it is waited for, given again and costs nothing; what is stored nowhere is refused."""
    world = await World(tmp_path).start(cache_memory_bytes=2_500)
    try:
        upstream = await world.upstream(replies(answer(completion())))
        world.apply(tenant=TenantPolicy("acme"))
        memory, disk = world.worker.cache.memory, world.worker.cache.disk
        asked = 0
        while not memory.evicted_total:
            asked += 1
            assert 200 == (await world.chat(max_tokens=asked)).status_code
        assert disk is not None
        await disk.flush()
        world.apply(tenant=SPENT)
        again = await world.chat(max_tokens=1)
        assert (200, "hit") == (again.status_code, again.headers["x-heph-cache"])
        assert 429 == (await world.chat(max_tokens=1_000)).status_code
        assert asked == len(upstream.received)
        hit, refused = world.records()[-2:]
        assert (CacheState.HIT, 0, Outcome.OK, Outcome.OVER_BUDGET) == (
            hit.cache, hit.cost_nanousd, hit.outcome, refused.outcome,
        )  # fmt: skip
    finally:
        await world.stop()


@pytest.mark.parametrize("path", ["chat/completions", "embeddings"])
async def test_another_worker_s_answer_is_served_over_budget_too(tmp_path: Path, path: str) -> None:
    """It lies in Redis alone, whole or by inputs: this worker, which never saw it, gives it to a tenant that has nothing left."""
    redis = await RedisServer(tmp_path).start()
    worlds = [World(tmp_path / name) for name in ("a", "b")]
    try:
        for world in worlds:
            await world.start(redis=redis.url, redis_timeout_s=5.0)
            await world.upstream(replies(answer(completion() if path != "embeddings" else VECTORS)))
            world.apply(tenant=TenantPolicy("acme"))
            assert world.worker.shared is not None
            await world.worker.shared.ready()
            await until(lambda one=world: one.worker.cache.redis is not None and not one.worker.cache.redis.degraded)
        one, other = worlds
        body = {"model": "gpt", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}], "input": ["a", "b"]}
        assert 200 == (await one.client.post(f"/v1/{path}", json=body)).status_code
        other.apply(tenant=SPENT)
        async with asyncio.timeout(10.0):  # until the first one's answer is in Redis
            while (again := await other.client.post(f"/v1/{path}", json=body)).status_code != 200:
                assert 429 == again.status_code
        assert "hit" == again.headers["x-heph-cache"]
        assert [] == other.upstreams[0].received
        assert 429 == (await other.client.post(f"/v1/{path}", json=body | {"input": ["a", "c"], "n": 2})).status_code
    finally:
        for world in worlds:
            await world.stop()
        redis.kill()


async def test_what_has_no_price_is_not_stopped_by_an_empty_pocket(world: World) -> None:
    """A model of one's own whose price is zero goes on when the money is spent; its tokens still count."""
    await world.upstream(replies(answer(completion())))
    tenant = TenantPolicy(
        "acme",
        cache=UNCACHED,
        budgets=(Budget("usd", Window.TOTAL, nanousd=0), Budget("tokens", Window.TOTAL, tokens=200)),
    )
    world.apply(tenant=tenant, price=Price(input=0, output=0))
    assert 200 == (await world.chat(max_tokens=3)).status_code
    assert "budget `tokens`" in (await world.chat(max_tokens=300)).json()["error"]["message"]


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "cache_read"),
        ({"messages": [{"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}}]}, "cache_read"),
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, "audio_output"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio_input"),
    ],
)
async def test_a_price_that_lacks_a_kind_is_caught_beforehand(world: World, more: dict[str, object], kind: str) -> None:
    """`unpriced: refuse` refuses what could not be costed, naming the kind; what needs only known kinds passes."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(
        tenant=TenantPolicy("acme", cache=UNCACHED, unpriced=Unpriced.REFUSE), price=Price(input=1_000, output=1_000)
    )
    refused = await world.chat(headers=None, **more)
    assert (403, "unpriced") == (refused.status_code, refused.json()["error"]["code"])
    assert f"no price for {kind} tokens" in refused.json()["error"]["message"]
    assert [] == upstream.received
    assert 200 == (await world.chat()).status_code


async def test_the_tightest_ceiling_is_in_the_headers(world: World) -> None:
    """Of several ceilings about tokens and requests the one with least left is told."""
    await world.upstream(replies(answer(completion())))
    quotas = (_quota(tokens=5_000), _quota(id="r", tokens=None, requests=3, window=Window.HOUR))
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, tokens_per_minute=100_000, quotas=quotas))
    response = await world.chat(max_tokens=3)
    assert ("5000", "3") == (
        response.headers["x-ratelimit-limit-tokens"],
        response.headers["x-ratelimit-limit-requests"],
    )
    assert "2" == response.headers["x-ratelimit-remaining-requests"]


async def test_the_headers_are_about_the_whole_limit_not_about_a_slice_of_it(tmp_path: Path) -> None:
    """With Redis: from the first call on limit and rest are those of all workers, whatever has been leased here."""
    redis = await RedisServer(tmp_path).start()
    world = await World(tmp_path / "world").start(redis=redis.url, redis_timeout_s=5.0)
    try:
        await world.upstream(replies(answer(completion())))
        quota = _quota(id="r", tokens=None, requests=100, window=Window.DAY)
        world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(quota,)))
        assert world.worker.shared is not None
        await world.worker.shared.ready()
        headers = [(await world.chat(max_tokens=3)).headers for _ in range(3)]
        assert ["100"] * 3 == [each["x-ratelimit-limit-requests"] for each in headers]
        assert ["99", "98", "97"] == [each["x-ratelimit-remaining-requests"] for each in headers]
    finally:
        await world.stop()
        redis.kill()


@pytest.mark.parametrize("action", [QuotaAction.SOFT, QuotaAction.HARD])
async def test_a_limit_of_which_all_is_spent_is_not_asked_about(tmp_path: Path, action: QuotaAction) -> None:
    """With Redis: no slice could be larger before the window ends, so no call waits for one behind all others."""
    redis = await RedisServer(tmp_path).start()
    world = await World(tmp_path / "world").start(redis=redis.url, redis_timeout_s=5.0)
    try:
        await world.upstream(replies(answer(completion())))
        quota = _quota(action, tokens=None, requests=5)
        world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, quotas=(quota,)))
        assert world.worker.shared is not None
        await world.worker.shared.ready()
        for _ in range(7):
            await world.chat(max_tokens=3)
        lending = world.worker.lending
        assert lending is not None
        before = lending.leases.refills_total
        answers = [await world.chat(max_tokens=3) for _ in range(20)]
        assert {200 if action is QuotaAction.SOFT else 429} == {each.status_code for each in answers}
        assert before == lending.leases.refills_total
    finally:
        await world.stop()
        redis.kill()

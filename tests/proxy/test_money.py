"""Money at the edges, end to end: what upstreams report wrongly or not at all, and what clients try so as not to pay."""

from __future__ import annotations

import asyncio
import json

import pytest

from controlplane.contract.pricing import Price, ServicePrice
from controlplane.contract.records import CostState, Outcome
from controlplane.contract.snapshot import Budget, CachePolicy, PassthroughGrant, TenantPolicy, Window
from tests.proxy.fakes import (
    STREAM_END,
    STREAM_HEAD,
    USAGE,
    Received,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    sends_then_aborts,
    usage_event,
)

TEXT = "word " * 40
UNCACHED = CachePolicy(enabled=False)


def _usage(prompt: object, output: object) -> dict[str, object]:
    return {"prompt_tokens": prompt, "completion_tokens": output}


def _stream(usage: dict[str, object] | None) -> bytes:
    events = event() + b"".join(event(word) for word in TEXT.split()) + event("", delta={}, finish_reason="stop")
    return STREAM_HEAD + chunk(events + (usage_event(usage) if usage else b"") + b"data: [DONE]\n\n") + STREAM_END


@pytest.mark.parametrize(
    "usage",
    [
        {},
        _usage(0, 0),
        _usage(-9, -3),
        _usage(9, -3),
        _usage("9", 3),
        _usage(None, None),
        _usage(10**30, 3),
        _usage(9.5, 3),
        {"completion_tokens": 10**10},
        {"total_tokens": 12},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_that_makes_no_sense_is_replaced_by_an_estimate(
    world: World, usage: dict[str, object], stream: bool
) -> None:
    """Missing, zero, negative, absurd or of the wrong type: the call is served, costs something, and says `estimated`."""
    whole = completion(TEXT, usage) if usage else completion(TEXT, usage).replace(b',"usage":{}', b"")
    await world.upstream(replies(_stream(usage or None) if stream else answer(whole)))
    world.apply()
    response = await world.chat(stream=stream)
    assert 200 == response.status_code
    (record,) = world.records()
    assert (Outcome.OK, CostState.ESTIMATED) == (record.outcome, record.cost_state)
    assert 30 <= record.tokens.output <= 200
    assert record.cost_nanousd == 1000 * record.tokens.input + 2000 * record.tokens.output > 0


async def test_an_inflated_usage_is_booked_as_reported_and_counted(world: World) -> None:
    """What the provider says is what it will bill: the ledger takes it in full, and the excess over the reservation is a metric."""
    await world.upstream(replies(answer(completion(TEXT, _usage(5000, 2000)))))
    tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=5_000_000),))
    world.apply(tenant=tenant)
    assert 200 == (await world.chat(max_tokens=10)).status_code
    assert 9_000_000 == world.records()[0].cost_nanousd == world.worker.ledger.nanousd
    assert 1 == world.worker.ledger.exceeded_total
    assert "over_budget" == (await world.chat(max_tokens=1)).json()["error"]["code"]


async def test_every_answer_asked_for_is_reserved(world: World) -> None:
    """`n` answers may each be as long as the ceiling."""
    upstream = await world.upstream(replies(answer(completion())))
    tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, tokens=1000),))
    world.apply(tenant=tenant)
    assert 429 == (await world.chat(max_tokens=100, n=10)).status_code
    assert 200 == (await world.chat(max_tokens=100, n=8)).status_code
    assert 1 == len(upstream.received)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt","messages":[],"max_completion_tokens":1,"max_tokens":5000}',
        b'{"model":"gpt","messages":[],"max_completion_tokens":5000,"max_tokens":1}',
    ],
)
async def test_the_larger_of_two_ceilings_counts(world: World, body: bytes) -> None:
    """Upstreams differ in which name they read, so neither may be above the tenant's ceiling or what was reserved."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", max_output_tokens=100, cache=UNCACHED))
    response = await world.client.post("/v1/chat/completions", content=body)
    assert (403, []) == (response.status_code, upstream.received)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"gpt","messages":[],"max_tokens":5000,"max_tokens":7}', "max_tokens"),
        (b'{"model":"gpt","messages":[],"n":100,"n":7}', "n"),
        (b'{"model":"gpt","messages":[],"max_tokens":5000,"max_\\u0074okens":7}', "max_tokens"),
    ],
)
async def test_a_bound_written_twice_reaches_the_upstream_as_it_was_reserved(
    world: World, body: bytes, name: str
) -> None:
    """A reader that takes the first of two equal names cannot be led to another value than ours."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(model="gpt")
    await world.client.post("/v1/chat/completions", content=body)
    assert 1 == upstream.received[0].body.count(b'"%s"' % name.encode())
    assert 7 == upstream.received[0].document[name]


async def test_a_failed_attempt_that_cost_something_is_paid_for_as_well(world: World) -> None:
    """The first upstream breaks off in the middle of a whole answer, the second answers: both are in the call's cost."""
    broken = answer(completion(TEXT))[:-20]
    await world.upstream(sends_then_aborts(broken))
    await world.upstream(replies(answer(completion())))
    world.apply(route={"attempts_max": 2})
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]
    (record,) = world.records()
    assert [CostState.ESTIMATED, CostState.FINAL] == [attempt.cost_state for attempt in record.attempts]
    assert CostState.ESTIMATED == record.cost_state
    assert record.attempts[0].cost_nanousd > 0
    assert (
        record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) == world.worker.ledger.nanousd
    )


async def test_an_attempt_that_was_refused_costs_nothing(world: World) -> None:
    """A 500 before any content is not billed."""
    await world.upstream(fails(500))
    await world.upstream(replies(answer(completion())))
    world.apply(route={"attempts_max": 2})
    await world.chat()
    (record,) = world.records()
    assert [0, 15_000] == [attempt.cost_nanousd for attempt in record.attempts]


async def test_an_empty_pocket_does_not_stop_what_costs_nothing(world: World) -> None:
    """A money budget that is used up stops priced models; one whose price is zero, as of one's own machines, goes on."""
    await world.upstream(replies(answer(completion())))
    tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=10_000_000),))
    world.apply(tenant=tenant)
    await world.chat(max_tokens=3)
    world.apply(tenant=TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=1),)))
    assert "over_budget" == (await world.chat(max_tokens=3)).json()["error"]["code"]
    world.apply(
        tenant=TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=1),)), price=None
    )
    assert 200 == (await world.chat(max_tokens=3)).status_code


async def test_the_rest_of_the_token_limit_is_told_with_every_answer(world: World) -> None:
    """`x-ratelimit-*-tokens` where the tenant has a limit, on success and on refusal, and not where it has none."""
    await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", tokens_per_minute=1000, cache=UNCACHED))
    body = json.dumps({"model": "gpt", "messages": [], "max_tokens": 3}).encode()
    for content, status in ((body, 200), (body.replace(b": 3}", b": 3000}"), 429)):
        response = await world.client.post("/v1/chat/completions", content=content)
        assert status == response.status_code
        assert "1000" == response.headers["x-ratelimit-limit-tokens"]
        assert 0 < int(response.headers["x-ratelimit-remaining-tokens"]) <= 1000
        assert "x-ratelimit-reset-tokens" in response.headers
    world.apply()
    assert "x-ratelimit-limit-tokens" not in (await world.chat()).headers


async def test_joined_and_stored_answers_are_not_paid_twice(world: World) -> None:
    """The first call pays; a hit costs nothing and moves no budget."""
    await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, tokens=1000),)))
    for _ in range(5):
        assert 200 == (await world.chat(max_tokens=3)).status_code
    assert (USAGE["total_tokens"], 5) == (world.worker.ledger.tokens, world.worker.ledger.calls)
    assert (0, 0) == world.worker.ledger.reserved("acme")


@pytest.mark.parametrize(("hits", "said"), [(0, 0.00002), (1, 0.02)])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_upstream_says_that_it_costs_is_kept_and_never_billed(
    world: World, stream: bool, said: float, hits: int
) -> None:
    """Our own figure is billed; theirs stands beside it, and one that cannot be right is counted."""
    usage = USAGE | {"cost": said}
    reply = _stream(usage) if stream else answer(completion(usage=usage))
    await world.upstream(replies(reply))
    world.apply(upstream={"reports_cost": True})
    await world.chat(stream=stream)
    (record,) = world.records()
    assert (15_000, round(said * 1e9)) == (record.cost_nanousd, record.attempts[0].reported_nanousd)
    metrics = (await world.client.get("/metrics")).text
    assert (hits == 1) == ('bound="reported_cost_ratio_max"' in metrics)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_price_that_changes_while_a_call_runs_is_that_of_its_beginning(world: World, stream: bool) -> None:
    """At midnight a new price comes with a new snapshot: what was reserved at the old one is settled at the old one, the next call at the new."""
    begun, midnight = asyncio.Event(), asyncio.Event()
    whole = _stream(USAGE) if stream else answer(completion(usage=USAGE))

    async def over_midnight(wire: Wire, _: Received) -> None:
        await wire.send(whole[:-40])
        begun.set()
        await midnight.wait()
        await wire.send(whole[-40:])

    await world.upstream(over_midnight, replies(whole))
    tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, nanousd=10**12),))
    world.apply(tenant=tenant)
    running = asyncio.create_task(world.chat(stream=stream))
    await begun.wait()
    world.apply(tenant=tenant, price=Price(input=7_000_000_000, output=0, version="tomorrow"))
    midnight.set()
    assert 200 == (await running).status_code
    await world.chat(stream=stream)
    await world.until_idle()
    old, new = world.records()
    assert (15_000, "p1") == (old.cost_nanousd, old.price_version)
    assert (63_000, "tomorrow") == (new.cost_nanousd, new.price_version)
    assert 78_000 == world.worker.ledger.nanousd
    assert (0, 0) == world.worker.ledger.reserved("acme")


async def test_what_was_used_before_an_error_is_billed(world: World) -> None:
    """A stream that says its usage and then fails costs what it said, and no estimate."""
    sent = event() + event("Hello") + usage_event(USAGE) + b'data: {"error":{"message":"no","code":"server_error"}}\n\n'
    await world.upstream(replies(STREAM_HEAD + chunk(sent) + STREAM_END))
    world.apply()
    await world.chat(stream=True)
    await world.until_idle()
    (record,) = world.records()
    assert Outcome.BROKEN_STREAM is record.outcome
    assert (15_000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


async def test_of_a_usage_that_comes_twice_the_last_counts_once(world: World) -> None:
    """Some servers repeat their usage as it grows; nobody adds them up."""
    sent = (
        event()
        + event("Hello")
        + usage_event({"prompt_tokens": 9, "completion_tokens": 1})
        + event(" you")
        + usage_event(USAGE)
    )
    await world.upstream(replies(STREAM_HEAD + chunk(sent + b"data: [DONE]\n\n") + STREAM_END))
    world.apply()
    await world.chat(stream=True)
    await world.until_idle()
    assert 15_000 == world.records()[0].cost_nanousd


@pytest.mark.parametrize(("tier", "cost"), [("priority", 1_200), ("default", 15_000)])
async def test_the_class_of_a_stream_that_is_passed_through(world: World, tier: str, cost: int) -> None:
    """A response's last event says in which class it was served; its first one only what was asked for."""
    usage = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
    events: list[dict[str, object]] = [
        {"type": "response.created", "response": {"service_tier": "auto"}},
        {"type": "response.output_text.delta", "delta": "Hello"},
        {"type": "response.completed", "response": {"service_tier": tier, "usage": usage}},
    ]
    sent = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    cut = sent.index(b"event: response.completed")
    begun = asyncio.Event()

    async def slowly(wire: Wire, _: Received) -> None:
        await wire.send(STREAM_HEAD + chunk(sent[:cut]))
        await begun.wait()
        await wire.send(chunk(sent[cut:]) + STREAM_END)

    await world.upstream(slowly)
    priority = ServicePrice("priority", Price(input=100_000_000, output=100_000_000))
    price = Price(input=1_000_000_000, output=2_000_000_000, service=(priority,))
    tenant = TenantPolicy("acme", cache=UNCACHED, passthrough=(PassthroughGrant("u0", ()),))
    world.apply(tenant=tenant, price=price, model="gpt")
    body = {"model": "gpt", "input": "hi", "stream": True}
    async with world.client.stream("POST", "/passthrough/u0/responses", json=body) as response:
        async for _ in response.aiter_bytes():
            begun.set()
    await world.until_idle()
    assert (cost, CostState.FINAL) == (world.records()[0].cost_nanousd, world.records()[0].cost_state)

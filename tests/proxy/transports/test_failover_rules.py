"""What the operator decides about failures: rules by class, other models to fall back to, and what happens when all breakers are open."""

from __future__ import annotations

import asyncio
import json

import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.routing import AllOpen, Retries, RetryRule
from controlplane.contract.snapshot import BreakerPolicy, Budget, CachePolicy, KeyEntry, TenantPolicy, Window
from tests.proxy.fakes import (
    KEY,
    PEPPER,
    Received,
    Script,
    Wire,
    World,
    answer,
    completion,
    fails,
    replies,
    sends_then_hangs,
    until,
    whole_stream,
)

GOOD = replies(answer(completion()))
LONG = "This model's maximum context length is 8192 tokens"
RELAXED = BreakerPolicy(requests_min=1_000, failures_in_row=1_000)


def refuses(status: int, error: dict[str, object]) -> Script:
    """An upstream's final no, with this error body."""
    return replies(answer(json.dumps({"error": error}).encode(), status))


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        ({"on": "any"}, [2, 2]),  # round by round, up to the route's four tries
        ({"on": "another"}, [1, 1]),
        ({"on": "same"}, [4, 0]),
        ({"on": "same", "tries": 2}, [2, 1]),  # then the next, whose failure is one too many
        ({"on": "none"}, [1, 0]),
        ({"on": "any", "tries": 1}, [1, 0]),
    ],
)
async def test_a_rule_says_where_the_next_try_goes(world: World, rule: dict[str, object], asked: list[int]) -> None:
    """Round by round, elsewhere, the same again, or nowhere; never more often than the rule and the route say."""
    for _ in range(2):
        await world.upstream(fails(503))
    world.apply(route={"attempts_max": 4, "retries": {"status_5xx": rule}}, breaker=RELAXED)
    assert 502 == (await world.chat()).status_code
    assert asked == [len(upstream.received) for upstream in world.upstreams]


async def test_a_route_overrules_the_rules_of_all(world: World) -> None:
    """A class that the route does not name is as the file's own `retries` has it."""
    await world.upstream(fails(503), fails(429), GOOD)
    of_all = Retries(status_5xx=RetryRule(tries=1), status_429=RetryRule(tries=1))
    world.apply(route={"retries": {"status_5xx": {"on": "same"}}}, retries=of_all, breaker=RELAXED)
    assert 502 == (await world.chat()).status_code
    assert 2 == len(world.upstreams[0].received)


async def test_a_longer_retry_after_than_we_wait_moves_on(world: World) -> None:
    """`same` waits as long as the upstream asks for, and does not when that is longer than the settings allow."""
    await world.upstream(fails(429, "rate_limit_exceeded", "retry-after: 30"))
    await world.upstream(GOOD)
    world.apply(route={"retries": {"status_429": {"on": "same"}}})
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]
    assert 1 == len(world.upstreams[0].received)


async def test_other_calls_leave_a_deployment_alone_that_asked_for_it(world: World) -> None:
    """One call hears `retry-after`, the next ones do not ask there at all, as long as somebody else answers."""
    await world.upstream(fails(429, "rate_limit_exceeded", "retry-after: 30"))
    await world.upstream(GOOD)
    world.apply()
    assert ["u1/m"] * 3 == [(await world.chat()).headers["x-heph-deployment"] for _ in range(3)]
    assert 1 == len(world.upstreams[0].received)
    world.upstreams[0].scripts, world.upstreams[1].scripts = [GOOD], [fails(500)]
    assert "u0/m" == (await world.chat()).headers["x-heph-deployment"]


@pytest.mark.parametrize("rule", ["any", "same"])
async def test_who_says_that_it_is_no_use_is_not_asked_again(world: World, rule: str) -> None:
    """`x-should-retry: false` holds for us as for the vendors' clients; another deployment may still know better."""
    await world.upstream(fails(429, "rate_limit_exceeded", "x-should-retry: false"))
    await world.upstream(fails(503), GOOD)
    world.apply(route={"retries": {"status_429": {"on": rule, "tries": 3}}}, breaker=RELAXED)
    response = await world.chat()
    assert (200, "u1/m") == (response.status_code, response.headers["x-heph-deployment"])
    assert [1, 2] == [len(upstream.received) for upstream in world.upstreams]


async def test_who_asked_for_rest_has_it_from_calls_that_fall_back_too(world: World) -> None:
    """The deployments of another model are asked in the same order as for its own calls."""
    await world.upstream(fails(500))
    await world.upstream(fails(429, "rate_limit_exceeded", "retry-after: 30"))
    await world.upstream(GOOD)
    world.apply(route={"fallbacks": {"general": ["big"]}, "attempts_max": 1}, others={"big": (1, 2)}, breaker=RELAXED)
    assert ["u2/m"] * 3 == [(await world.chat()).headers["x-heph-deployment"] for _ in range(3)]
    assert 1 == len(world.upstreams[1].received)


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        ("general", fails(500)),
        ("general", sends_then_hangs(b"")),
        ("context_window", refuses(400, {"message": LONG, "code": "context_length_exceeded"})),
        ("context_window", refuses(400, {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"})),
        ("context_window", refuses(413, {"type": "request_too_large", "message": "too large"})),
        ("content_policy", refuses(400, {"message": "no", "code": "content_policy_violation"})),
        ("content_policy", refuses(400, {"message": "no", "code": "content_filter"})),
        (
            "content_policy",
            replies(answer(completion(choices=[{"index": 0, "message": {}, "finish_reason": "content_filter"}]))),
        ),
    ],
)
async def test_another_model_serves_what_this_one_cannot(world: World, kind: str, script: Script) -> None:
    """Each reason has its own list; `x-heph-model` and the record say who served, and the call costs what all tries cost."""
    await world.upstream(script)
    await world.upstream(GOOD)
    world.apply(
        route={"fallbacks": {kind: ["big"]}, "attempts_max": 1},
        others={"big": (1,)},
        upstream={"first_byte_timeout_s": 0.1},
    )
    response = await world.chat()
    assert (200, "u1/m", "2") == (
        response.status_code,
        response.headers["x-heph-deployment"],
        response.headers["x-heph-attempts"],
    )
    (record,) = world.records()
    assert ("gpt", "u1/m", Outcome.OK) == (record.alias, record.deployment, record.outcome)
    assert sum(attempt.cost_nanousd for attempt in record.attempts) == record.cost_nanousd
    metrics = (await world.client.get("/metrics")).text
    assert f'heph_proxy_fallbacks_total{{kind="{kind}",worker="0"}} 1.0' in metrics


async def test_a_reason_without_a_list_changes_nothing(world: World) -> None:
    """A request that is too long is the client's own business where only general fallbacks are named."""
    await world.upstream(refuses(400, {"message": LONG, "code": "context_length_exceeded"}))
    await world.upstream(GOOD)
    world.apply(route={"fallbacks": {"general": ["big"]}}, others={"big": (1,)})
    response = await world.chat()
    assert (400, "context_length_exceeded") == (response.status_code, response.json()["error"]["code"])
    assert 0 == len(world.upstreams[1].received)


async def test_a_fallback_that_cannot_either_gives_way_to_the_next(world: World) -> None:
    """The list is gone through in order; the last word is an upstream's own refusal."""
    too_long = refuses(400, {"message": LONG, "code": "context_length_exceeded"})
    for script in (too_long, too_long, GOOD):
        await world.upstream(script)
    world.apply(route={"fallbacks": {"context_window": ["big", "bigger"]}}, others={"big": (1,), "bigger": (2,)})
    assert "u2/m" == (await world.chat()).headers["x-heph-deployment"]
    world.upstreams[2].scripts = [too_long]
    assert 400 == (await world.chat()).status_code


async def test_a_key_falls_back_only_to_models_that_it_may_use(world: World) -> None:
    """A fallback grants nothing."""
    await world.upstream(fails(500))
    await world.upstream(GOOD)
    key = KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant="acme", models=("gpt",))
    world.apply(route={"fallbacks": {"general": ["big"]}, "attempts_max": 1}, others={"big": (1,)}, keys=(key,))
    assert 502 == (await world.chat()).status_code
    assert 0 == len(world.upstreams[1].received)


async def test_models_that_name_each_other_make_no_loop(world: World) -> None:
    """Each is tried as often as its own route says, once for each time it is named; the fallbacks of a fallback do not count."""
    await world.upstream(fails(500))
    await world.upstream(fails(500))
    world.apply(
        route={"fallbacks": {"general": ["big", "gpt"]}, "attempts_max": 1}, others={"big": (1,)}, breaker=RELAXED
    )
    assert 502 == (await world.chat()).status_code
    assert [2, 3] == [len(upstream.received) for upstream in world.upstreams]


async def test_a_stream_falls_back_before_its_first_content(world: World) -> None:
    """Nothing of the first model's stream is seen."""
    await world.upstream(fails(503))
    await world.upstream(replies(whole_stream("Hi")))
    world.apply(route={"fallbacks": {"general": ["big"]}, "attempts_max": 1}, others={"big": (1,)})
    response = await world.chat(stream=True)
    assert "u1/m" == response.headers["x-heph-deployment"]
    assert 1 == response.text.count('"role":"assistant"')


async def test_an_answer_of_another_model_is_not_stored(world: World) -> None:
    """The cache keeps what the model said that was asked, not what stood in for it."""
    await world.upstream(fails(500), GOOD)
    await world.upstream(GOOD)
    tenant = TenantPolicy(id="acme", cache=CachePolicy(enabled=True))
    world.apply(route={"fallbacks": {"general": ["big"]}, "attempts_max": 1}, others={"big": (1,)}, tenant=tenant)
    served = [(await world.chat()).headers["x-heph-deployment"] for _ in range(2)]
    assert ["u1/m", "u0/m"] == served
    assert "hit" == (await world.chat()).headers["x-heph-cache"]


async def test_the_reservation_covers_the_dearest_fallback(world: World) -> None:
    """A budget that cannot pay the fallback refuses the call before anything is asked."""
    await world.upstream(GOOD)
    await world.upstream(GOOD)
    budget = Budget(id="b", window=Window.TOTAL, nanousd=1_000_000)
    tenant = TenantPolicy(id="acme", budgets=(budget,), cache=CachePolicy(enabled=False))
    world.apply(tenant=tenant, route={"fallbacks": {"general": ["big"]}}, others={"big": (1,)})
    assert 200 == (await world.chat(max_tokens=100)).status_code
    snapshot = world.worker.app.runtime.snapshot if world.worker.app.runtime else None
    assert snapshot is not None
    dear = world.dearer(snapshot, alias="big", factor=100)
    world.worker.apply(dear)
    assert 429 == (await world.chat(max_tokens=100)).status_code


async def test_a_probe_has_passed_when_its_stream_has_begun(world: World) -> None:
    """A deployment that has recovered takes all calls again, however long the stream goes on that has shown it."""
    gate = asyncio.Event()

    async def goes_on(wire: Wire, _: Received) -> None:
        whole = whole_stream("Hel", "lo")
        await wire.send(whole[:-40])
        await gate.wait()
        await wire.send(whole[-40:])

    await world.upstream(fails(500), goes_on, GOOD)
    world.apply(route={"attempts_max": 1}, breaker=BreakerPolicy(failures_in_row=1, open_s=0.001, probes=1))
    assert 502 == (await world.chat()).status_code
    await until(lambda: world.worker.breaker.probe_due("u0/m"))
    body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with world.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        assert 200 == stream.status_code
        assert [200, 200] == [(await world.chat()).status_code for _ in range(2)]
        gate.set()
        await stream.aread()
    await world.until_idle()
    (status,) = world.worker.breaker.statuses()
    assert ("closed", 3) == (status.state, status.calls)
    assert 1 == sum(attempt.probe for record in world.records() for attempt in record.attempts)


@pytest.mark.parametrize(("policy", "status"), [(AllOpen.REFUSE, 503), (AllOpen.TRY, 200)])
async def test_the_operator_decides_what_happens_when_all_breakers_are_open(
    world: World, policy: AllOpen, status: int
) -> None:
    """Refused with the breaker's reason, or tried all the same."""
    await world.upstream(fails(500), fails(500), GOOD)
    world.apply(route={"attempts_max": 1}, breaker=BreakerPolicy(failures_in_row=2, open_s=60.0, all_open=policy))
    assert [502, 502, status] == [(await world.chat()).status_code for _ in range(3)]
    if policy is AllOpen.REFUSE:
        assert "in a row" in (await world.chat()).json()["error"]["message"]


async def test_another_model_comes_before_an_open_breaker(world: World) -> None:
    """`all_open: try` is for calls that have nowhere else to go."""
    await world.upstream(fails(500))
    await world.upstream(GOOD)
    breaker = BreakerPolicy(failures_in_row=1, open_s=60.0, all_open=AllOpen.TRY)
    world.apply(route={"fallbacks": {"general": ["big"]}, "attempts_max": 1}, others={"big": (1,)}, breaker=breaker)
    assert [200, 200] == [(await world.chat()).status_code for _ in range(2)]
    assert 1 == len(world.upstreams[0].received)


async def test_a_client_in_a_hurry_still_gets_its_failover(world: World) -> None:
    """The upstream's own time-outs shrink with the client's, so that the second deployment is asked within it."""
    await world.upstream(sends_then_hangs(b""))
    await world.upstream(GOOD)
    world.apply(route={"timeout_s": 60.0}, upstream={"first_byte_timeout_s": 20.0})
    response = await world.chat(headers={"x-heph-timeout-ms": "1500"})
    assert (200, "u1/m") == (response.status_code, response.headers["x-heph-deployment"])
    assert [AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.NONE] == [item.error for item in world.records()[0].attempts]


async def _silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Takes connections, and says nothing."""
    await reader.read(-1)


async def test_a_client_in_a_hurry_does_not_wait_for_a_connection(world: World) -> None:
    """Connecting shrinks with the rest: an upstream that never finishes its handshake leaves time for the next one."""
    silent = await asyncio.start_server(_silent, "127.0.0.1", 0)
    good = await world.upstream(GOOD)
    port = silent.sockets[0].getsockname()[1]
    urls = (f"https://127.0.0.1:{port}/v1", f"http://127.0.0.1:{good.port}/v1")
    world.apply(urls=urls, route={"timeout_s": 60.0}, upstream={"first_byte_timeout_s": 20.0})
    response = await world.chat(headers={"x-heph-timeout-ms": "1500"})
    assert (200, "u1/m") == (response.status_code, response.headers["x-heph-deployment"])
    assert AttemptError.CONNECT == world.records()[0].attempts[0].error
    silent.close()


async def test_retries_of_many_calls_stay_within_the_budget(world: World) -> None:
    """However many calls fail at once, upstreams are asked again at most by the ratio of the settings."""
    await world.upstream(fails(503))
    world.apply(route={"attempts_max": 20}, breaker=RELAXED)
    await asyncio.gather(*(world.chat() for _ in range(60)))
    allowed = max(world.settings.retry_ratio * 60, world.settings.retry_min_per_s * 10)
    assert 60 < len(world.upstreams[0].received) <= 60 + allowed

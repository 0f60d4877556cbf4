"""Failover over real sockets: what is tried again, what is not, and what the client hears in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from controlplane.contract.records import AttemptError, CostState, Outcome
from controlplane.contract.snapshot import BreakerPolicy
from tests.proxy.fakes import (
    STREAM_HEAD,
    Script,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    sends_then_aborts,
    sends_then_hangs,
    whole_stream,
)

GOOD = replies(answer(completion()))
BEGUN = STREAM_HEAD + chunk(event())  # a role, no content yet
IN_STREAM_ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","code":"rate_limit_exceeded"}}\n\n'


@pytest.mark.parametrize(
    ("error", "script"),
    [
        (AttemptError.STATUS_5XX, fails(500)),
        (AttemptError.STATUS_5XX, fails(503)),
        (AttemptError.STATUS_429, fails(429, "rate_limit_exceeded", "retry-after: 30")),
        (AttemptError.QUOTA, fails(429, "insufficient_quota")),
        (AttemptError.QUOTA, fails(402, "billing")),
        (AttemptError.AUTH, fails(401, "invalid_api_key")),
        (AttemptError.AUTH, fails(403, "forbidden")),
        (AttemptError.TRUNCATED, sends_then_aborts(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")),
        (AttemptError.MALFORMED, replies(answer(b'{"choices":['))),
        (AttemptError.MALFORMED, replies(answer(b"<html>", 302))),
        (AttemptError.MALFORMED, sends_then_aborts(b"SSH-2.0-OpenSSH_9.2\r\n")),
        (AttemptError.FIRST_BYTE_TIMEOUT, sends_then_hangs(b"")),
        (AttemptError.CONNECT, sends_then_aborts(b"")),
    ],
)
async def test_a_sick_deployment_is_replaced_by_the_next(world: World, error: AttemptError, script: Script) -> None:
    """Whatever the first one's failure is, the second answers and the client notices nothing; both tries are recorded."""
    await world.upstream(script)
    await world.upstream(GOOD)
    world.apply(upstream={"first_byte_timeout_s": 0.1})
    response = await world.chat()
    assert (200, "u1/m", "2") == (
        response.status_code,
        response.headers["x-heph-deployment"],
        response.headers["x-heph-attempts"],
    )
    (record,) = world.records()
    assert [error, AttemptError.NONE] == [attempt.error for attempt in record.attempts]
    assert record.attempts[1].cost_nanousd == record.cost_nanousd - record.attempts[0].cost_nanousd


@pytest.mark.parametrize(
    ("error", "script"),
    [
        (AttemptError.FIRST_BYTE_TIMEOUT, sends_then_hangs(BEGUN)),
        (AttemptError.TRUNCATED, sends_then_aborts(BEGUN)),
        (AttemptError.TRUNCATED, replies(BEGUN + b"0\r\n\r\n")),
        (AttemptError.MALFORMED, sends_then_hangs(STREAM_HEAD + chunk(b"data: {nonsense\n\n"))),
        (AttemptError.STATUS_429, sends_then_hangs(BEGUN + chunk(IN_STREAM_ERROR))),
        (AttemptError.STATUS_5XX, fails(500)),
    ],
)
async def test_a_stream_that_fails_before_its_first_content_is_tried_elsewhere(
    world: World, error: AttemptError, script: Script
) -> None:
    """The commit point is the first content: a role alone is held back, and none of it is seen twice."""
    await world.upstream(script)
    await world.upstream(replies(whole_stream("Hi")))
    world.apply(upstream={"first_byte_timeout_s": 0.1})
    response = await world.chat(stream=True)
    assert "u1/m" == response.headers["x-heph-deployment"]
    assert 1 == response.text.count('"role":"assistant"')
    assert "[DONE]" in response.text
    attempt = world.records()[0].attempts[0]
    assert error == attempt.error
    if error in (AttemptError.STATUS_429, AttemptError.STATUS_5XX):
        assert (0, CostState.FINAL) == (attempt.cost_nanousd, attempt.cost_state)


async def test_the_requests_own_fault_is_passed_through_unmodified(world: World) -> None:
    """A 400 of the upstream ends the call: same status, same bytes, no second try."""
    upstream = await world.upstream(fails(400, "context_length_exceeded"))
    second = await world.upstream(GOOD)
    world.apply()
    response = await world.chat()
    assert (400, "upstream") == (response.status_code, response.headers["x-heph-error-source"])
    assert "context_length_exceeded" == response.json()["error"]["code"]
    assert (1, 0) == (len(upstream.received), len(second.received))
    assert Outcome.UPSTREAM_REFUSED == world.records()[0].outcome


def streamed(*events: str) -> Script:
    """A stream of these events."""
    return sends_then_hangs(STREAM_HEAD + chunk("".join(f"{one}\n\n" for one in events).encode()))


@pytest.mark.parametrize(
    ("path", "event", "code"),
    [
        (
            "/v1/chat/completions",
            'data: {"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}',
            "context_length_exceeded",
        ),
        (
            "/v1/responses",
            'event: error\ndata: {"type":"error","code":"invalid_prompt","message":"too long","param":null,"sequence_number":0}',
            "invalid_prompt",
        ),
        (
            "/v1/responses",
            'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"invalid_image","message":"too long"}}}',
            "invalid_image",
        ),
    ],
)
async def test_the_requests_own_fault_in_a_stream_is_one_too(world: World, path: str, event: str, code: str) -> None:
    """Said after status 200, it is still nobody's sickness: one try, a 400 that names it, and a breaker that hears of no failure."""
    upstream = await world.upstream(streamed(event))
    second = await world.upstream(GOOD)
    world.apply(breaker=BreakerPolicy(failures_in_row=1))
    body = {"model": "gpt", "stream": True, "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    response = await world.client.post(path, json=body)
    assert (400, "upstream", code) == (
        response.status_code,
        response.headers["x-heph-error-source"],
        response.json()["error"]["code"],
    )
    assert "too long" == response.json()["error"]["message"]
    assert (1, 0) == (len(upstream.received), len(second.received))
    (record,) = world.records()
    assert (Outcome.UPSTREAM_REFUSED, 0) == (record.outcome, record.cost_nanousd)
    assert ["closed"] == [status.state for status in world.worker.breaker.statuses()]


@pytest.mark.parametrize(
    ("status", "code", "outcome", "script"),
    [
        (502, "exhausted", Outcome.EXHAUSTED, fails(500)),
        (502, "exhausted", Outcome.EXHAUSTED, fails(401, "invalid_api_key")),
        (429, "rate_limit_exceeded", Outcome.EXHAUSTED, fails(429, "rate_limit_exceeded", "retry-after: 30")),
        (504, "timed_out", Outcome.TIMED_OUT, sends_then_hangs(b"")),
    ],
)
async def test_what_the_client_hears_when_all_have_failed(
    world: World, status: int, code: str, outcome: Outcome, script: Script
) -> None:
    """Never a 401 for our own upstream's key; a rate limit keeps its status and its `retry-after`."""
    await world.upstream(script)
    world.apply(route={"attempts_max": 2}, upstream={"first_byte_timeout_s": 0.05})
    response = await world.chat()
    assert (status, code) == (response.status_code, response.json()["error"]["code"])
    assert "upstream" == response.headers["x-heph-error-source"]
    if status == 429:
        assert "30" == response.headers["retry-after"]
    else:
        assert "false" == response.headers["x-should-retry"]
    assert outcome == world.records()[0].outcome


async def test_a_single_deployment_is_tried_again_as_often_as_the_route_allows(world: World) -> None:
    """Two failures and then an answer, from the same deployment."""
    upstream = await world.upstream(fails(503), fails(500), GOOD)
    world.apply(route={"attempts_max": 3})
    assert 200 == (await world.chat()).status_code
    assert 3 == len(upstream.received)


async def test_a_short_retry_after_is_waited_for(world: World) -> None:
    """With nobody else to ask, the wait that the upstream wants is kept."""
    upstream = await world.upstream(fails(429, "rate_limit_exceeded", "retry-after: 0.1"), GOOD)
    world.apply()
    assert 200 == (await world.chat()).status_code
    assert 2 == len(upstream.received)
    first, second = world.records()[0].attempts
    assert second.started_us - first.started_us >= 90_000


async def test_the_deadline_of_the_client_is_kept(world: World) -> None:
    """`x-heph-timeout-ms` ends the call in time, whatever the retries still could do."""
    await world.upstream(sends_then_hangs(b""))
    await world.upstream(sends_then_hangs(b""))
    world.apply()
    response = await world.chat(headers={"x-heph-timeout-ms": "80"})
    assert 504 == response.status_code
    (record,) = world.records()
    assert (Outcome.TIMED_OUT, AttemptError.DEADLINE) == (record.outcome, record.attempts[-1].error)
    assert record.latency_us < 2_000_000


async def test_nobody_listening_is_a_failure_to_connect(world: World) -> None:
    """A refused connection moves on to the next deployment."""
    gone = await world.upstream(GOOD)
    await gone.stop()
    await world.upstream(GOOD)
    world.apply()
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]


async def test_a_missing_credential_is_our_trouble_and_no_401(world: World) -> None:
    """The client hears 503 and a call id; the variable to set is the operator's business, and in the log."""
    await world.upstream(GOOD)
    world.apply(upstream={"credential": "env:NOT_THERE"})
    with structlog.testing.capture_logs() as lines:
        response = await world.chat()
    assert (503, "misconfigured") == (response.status_code, response.json()["error"]["code"])
    assert "NOT_THERE" not in response.text
    assert response.headers["x-heph-call-id"] in response.json()["error"]["message"]
    (line,) = lines
    assert response.headers["x-heph-call-id"] == line["call_id"]
    assert "NOT_THERE" in line["reasons"][0]


@pytest.mark.parametrize(
    "script",
    [
        sends_then_aborts(b""),
        sends_then_aborts(b"nonsense"),
        replies(
            answer(b'{"error":{"message":"bad key sk-upstream-secret at 127.0.0.1","code":"invalid_api_key"}}', 401)
        ),
        replies(
            answer(b'{"error":{"message":"account sk-upstream-secret of 127.0.0.1","code":"insufficient_quota"}}', 429)
        ),
        sends_then_aborts(
            STREAM_HEAD
            + chunk(b'data: {"error":{"message":"sk-upstream-secret at 127.0.0.1","code":"insufficient_quota"}}\n\n')
        ),
        None,
    ],
)
async def test_a_tenant_sees_no_address_and_no_credential(world: World, script: Script | None) -> None:
    """Whatever goes wrong at an upstream, hosts, ports, credentials and what it says about our account stay here."""
    upstream = await world.upstream(script or GOOD)
    if script is None:
        await upstream.stop()
    world.apply(route={"attempts_max": 1})
    response = await world.chat()
    assert response.status_code >= 429
    for secret in ("127.0.0.1", str(upstream.port), "sk-upstream-secret", "UP_KEY"):
        assert secret not in response.text + str(response.headers)


async def test_an_outage_does_not_fill_the_log(world: World) -> None:
    """Of many calls that fail within a second one is told; the others are counted."""
    await world.upstream(fails(500))
    world.apply(route={"attempts_max": 1}, breaker=BreakerPolicy(requests_min=1000, failures_in_row=1000))
    with structlog.testing.capture_logs() as lines:
        await asyncio.gather(*(world.chat() for _ in range(20)))
    assert len(lines) <= 3
    assert 'bound="log_every_s"' in (await world.client.get("/metrics")).text


async def test_when_every_breaker_is_open_the_client_is_told_when_to_come_back(world: World) -> None:
    """503 with `retry-after`, and no call reaches the upstream."""
    upstream = await world.upstream(fails(500))
    world.apply(route={"attempts_max": 1}, breaker=BreakerPolicy(requests_min=3, open_s=30.0))
    for _ in range(3):
        assert 502 == (await world.chat()).status_code
    response = await world.chat()
    assert (503, "unavailable", "30") == (
        response.status_code,
        response.json()["error"]["code"],
        response.headers["retry-after"],
    )
    assert 3 == len(upstream.received)
    assert ("u0/m", "open") == (world.worker.status().breakers[0].deployment, world.worker.status().breakers[0].state)


async def test_a_move_to_another_upstream_needs_no_retry_budget(tmp_path: Path) -> None:
    """With no budget at all an outage of the first upstream costs no call, but nobody asks an upstream twice."""
    world = await World(tmp_path).start(retry_ratio=0.0, retry_min_per_s=0.0)
    try:
        await world.upstream(fails(503))
        await world.upstream(GOOD)
        world.apply(breaker=BreakerPolicy(requests_min=1_000, failures_in_row=1_000))
        assert [200] * 30 == [(await world.chat()).status_code for _ in range(30)]
        world.upstreams[1].scripts = [fails(503)]
        assert 502 == (await world.chat()).status_code
        assert [31, 31] == [len(upstream.received) for upstream in world.upstreams]
    finally:
        await world.stop()

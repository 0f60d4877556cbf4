"""The life of a call, end to end over real sockets: what the client gets, what the upstream sees, and what is recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time

import httpx
import pytest

from controlplane.contract.records import AttemptError, CacheState, CostState, Outcome
from controlplane.contract.snapshot import CachePolicy, Lease, LeaseKind, PayloadPolicy, TenantPolicy
from tests.proxy.fakes import (
    DONE,
    KEY,
    STREAM_HEAD,
    Received,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    replies,
    sends_then_aborts,
    sends_then_hangs,
    until,
    whole_stream,
)

COST_NANOUSD = 9 * 1_000 + 3 * 2_000


async def test_a_json_answer_comes_back_byte_for_byte_with_its_cost(world: World) -> None:
    """The upstream's body is forwarded unmodified, and headers and record agree on the cost."""
    await world.upstream(replies(answer(completion())))
    world.apply()
    response = await world.chat()
    assert completion() == response.content
    assert ("0.000015000", "final") == (response.headers["x-heph-cost-usd"], response.headers["x-heph-cost-state"])
    (record,) = world.records()
    assert (COST_NANOUSD, CostState.FINAL, Outcome.OK) == (record.cost_nanousd, record.cost_state, record.outcome)
    assert (9, 3) == (record.tokens.input, record.tokens.output)
    assert record.call_id == response.headers["x-heph-call-id"]
    assert ("acme", "key_1", "gpt", "upstream-model") == (record.tenant, record.key_id, record.alias, record.model)
    assert "stop" == record.finish_reason
    (attempt,) = record.attempts
    assert ("u0/m", 200, COST_NANOUSD) == (attempt.deployment, attempt.status, attempt.cost_nanousd)


async def test_the_upstream_sees_its_own_model_and_credential_and_nothing_of_the_client(world: World) -> None:
    """Model swapped, credential ours; no client key, cookie or label travels on."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply()
    sent = {"cookie": "a=b", "x-heph-agent": "planner", "openai-beta": "assistants=v2", "x-secret": "s"}
    await world.chat(headers=sent, temperature=0.5)
    (seen,) = upstream.received
    assert "POST /v1/chat/completions HTTP/1.1" == seen.line
    assert "upstream-model" == seen.document["model"]
    assert 0.5 == seen.document["temperature"]
    assert "Bearer sk-upstream-secret" == seen.headers["authorization"]
    assert "assistants=v2" == seen.headers["openai-beta"]
    assert "identity" == seen.headers["accept-encoding"]
    assert not {"cookie", "x-heph-agent", "x-secret"} & seen.headers.keys()
    assert "sk-heph" not in json.dumps(seen.headers)


async def test_the_body_is_untouched_when_nothing_must_change(world: World) -> None:
    """Alias equal to the deployment's model and no stream: the very bytes of the client go on."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(model="gpt")
    body = b'{ "model" : "gpt",  "messages":[ {"role":"user","content":"caf\xc3\xa9"} ]\n}'
    await world.client.post("/v1/chat/completions", content=body)
    assert body == upstream.received[0].body


async def test_a_model_written_twice_reaches_the_upstream_as_it_was_checked(world: World) -> None:
    """A repeated key cannot smuggle another model past the guard."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(model="gpt")
    body = b'{"model":"forbidden","messages":[],"model":"gpt"}'
    await world.client.post("/v1/chat/completions", content=body)
    assert b'{"model":"gpt","messages":[]}' == upstream.received[0].body


async def test_a_stream_arrives_whole_and_hides_the_usage_nobody_asked_for(world: World) -> None:
    """Usage is forced upstream, counted, and not shown; the cost comes as a comment just before the end."""
    upstream = await world.upstream(replies(whole_stream("Hel", "lo")))
    world.apply()
    response = await world.chat(stream=True)
    assert {"include_usage": True} == upstream.received[0].document["stream_options"]
    assert "text/event-stream" == response.headers["content-type"]
    assert b"usage" not in response.content.replace(b"cost-usd", b"")
    assert response.content.endswith(b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\n" + DONE)
    assert ["Hel", "lo"] == [
        piece
        for line in response.text.split("\n\n")
        if line.startswith("data: {")
        for piece in [json.loads(line[6:])["choices"][0]["delta"].get("content")]
        if piece
    ]
    (record,) = world.records()
    assert (COST_NANOUSD, CostState.FINAL, "stop") == (record.cost_nanousd, record.cost_state, record.finish_reason)
    assert 0 < record.first_token_us <= record.latency_us


async def test_a_client_that_asks_for_usage_gets_it(world: World) -> None:
    """With `include_usage` the bytes of the stream are the upstream's own."""
    await world.upstream(replies(whole_stream("Hi")))
    world.apply()
    response = await world.chat(stream=True, stream_options={"include_usage": True})
    assert b'"choices":[],"usage":{"prompt_tokens":9' in response.content
    assert b'"usage":null' in response.content


async def test_each_outcome_leaves_exactly_one_record(world: World) -> None:
    """Success, refusals and models: as many records as calls, each with its own outcome."""
    await world.upstream(replies(answer(completion())))
    world.apply()
    await world.chat()
    await world.chat(model="unknown")
    await world.chat(headers={"authorization": "Bearer wrong"})
    await world.client.post("/v1/chat/completions", content=b"{")
    await world.client.get("/v1/models")
    expected = [Outcome.OK, Outcome.NO_ROUTE, Outcome.DENIED, Outcome.MALFORMED, Outcome.OK]
    assert expected == [record.outcome for record in world.records()]


async def test_the_record_is_on_disk_before_the_answer_is_complete(world: World) -> None:
    """A client that saw the last byte finds its record in the spool, without waiting."""
    await world.upstream(replies(whole_stream("Hi")))
    world.apply()
    for count in range(1, 6):
        await world.chat(stream=True)
        assert count == len(world.records())


async def test_a_broken_stream_ends_with_a_typed_error_event(world: World) -> None:
    """After the first content nothing is retried: the client gets what came and an error, and pays for what was seen."""
    broken = STREAM_HEAD + chunk(event() + event("Hel"))
    upstream = await world.upstream(sends_then_aborts(broken), replies(whole_stream("never")))
    world.apply()
    response = await world.chat(stream=True)
    events = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert "broken_stream" == json.loads(events[-1][6:])["error"]["code"]
    assert "[DONE]" not in response.text
    assert 1 == len(upstream.received)
    (record,) = world.records()
    assert (Outcome.BROKEN_STREAM, CostState.ESTIMATED) == (record.outcome, record.cost_state)
    assert AttemptError.TRUNCATED == record.attempts[0].error
    assert record.cost_nanousd > 0


async def test_an_error_event_of_the_upstream_is_forwarded_as_it_came(world: World) -> None:
    """In the middle of a stream the upstream's own words reach the client."""
    error = b'data: {"error":{"message":"boom","type":"server_error","code":"x"}}\n\n'
    await world.upstream(sends_then_hangs(STREAM_HEAD + chunk(event("Hel") + error)))
    world.apply()
    response = await world.chat(stream=True)
    assert error in response.content
    assert Outcome.BROKEN_STREAM == world.records()[0].outcome


async def test_a_stalled_stream_times_out_with_an_error_event(world: World) -> None:
    """An upstream that stops in the middle is given up after the idle timeout."""
    await world.upstream(sends_then_hangs(STREAM_HEAD + chunk(event("Hel"))))
    world.apply(upstream={"idle_timeout_s": 0.05})
    response = await world.chat(stream=True)
    assert '"code":"timed_out"' in response.text
    (record,) = world.records()
    assert (Outcome.TIMED_OUT, AttemptError.IDLE_TIMEOUT) == (record.outcome, record.attempts[0].error)


async def test_a_client_that_leaves_cancels_the_upstream_call(world: World) -> None:
    """Without a stream: the upstream's connection is closed and the call settled as an estimate."""
    upstream = await world.upstream(sends_then_hangs(b""))
    world.apply()
    calling = asyncio.create_task(world.chat(max_tokens=50))
    await until(lambda: upstream.received)
    calling.cancel()
    async with asyncio.timeout(60.0):
        await upstream.client_left.wait()
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.CLIENT_CLOSED, CostState.ESTIMATED) == (record.outcome, record.cost_state)
    assert AttemptError.CANCELLED == record.attempts[0].error
    assert record.tokens.input > 0
    assert 0 == world.worker.coalesce.members


async def test_a_client_that_leaves_a_stream_pays_for_what_was_seen(world: World) -> None:
    """In a stream the output is as many tokens as content events came."""
    upstream = await world.upstream(sends_then_hangs(STREAM_HEAD + chunk(event("Hel") + event("lo"))))
    world.apply()
    request = {"model": "gpt", "messages": [], "stream": True}
    async with world.client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert b"Hel" in await anext(response.aiter_bytes())
    async with asyncio.timeout(60.0):
        await upstream.client_left.wait()
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.CLIENT_CLOSED, CostState.ESTIMATED, 2) == (record.outcome, record.cost_state, record.tokens.output)
    assert AttemptError.CANCELLED == record.attempts[0].error


async def test_a_client_that_leaves_gives_its_slot_back(world: World) -> None:
    """Concurrency of one: after a client left, the next call is admitted."""
    tenant = TenantPolicy(id="acme", concurrency=1, cache=CachePolicy(enabled=False))
    upstream = await world.upstream(sends_then_hangs(b""), replies(answer(completion())))
    world.apply(tenant=tenant)
    calling = asyncio.create_task(world.chat())
    await until(lambda: upstream.received)
    assert 429 == (await world.chat()).status_code
    calling.cancel()
    await upstream.client_left.wait()
    await world.until_idle()
    assert 200 == (await world.chat()).status_code


async def test_a_stored_answer_costs_nothing_and_says_what_it_saved(world: World) -> None:
    """The second identical call is a hit, streamed or not, with the same body and no upstream call."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy(id="acme"))
    first, second = await world.chat(), await world.chat()
    assert ("miss", "hit") == (first.headers["x-heph-cache"], second.headers["x-heph-cache"])
    assert first.content == second.content
    assert 1 == len(upstream.received)
    assert "0.000000000" == second.headers["x-heph-cost-usd"]
    assert second.headers["age"].isdigit()
    assert [(COST_NANOUSD, 0), (0, COST_NANOUSD)] == [(r.cost_nanousd, r.saved_nanousd) for r in world.records()]


async def test_a_stored_stream_is_replayed_as_a_stream(world: World) -> None:
    """Same events in the same order, its own closing comment, one `[DONE]`."""
    await world.upstream(replies(whole_stream("Hel", "lo")))
    world.apply(tenant=TenantPolicy(id="acme"))
    first, second = await world.chat(stream=True), await world.chat(stream=True)
    assert "hit" == second.headers["x-heph-cache"]
    assert first.text.split(": x-heph-cost")[0] == second.text.split(": x-heph-cost")[0]
    assert 1 == second.text.count("[DONE]")
    assert CacheState.HIT == world.records()[1].cache


async def test_identical_calls_in_flight_share_one_upstream_call(world: World) -> None:
    """Ten at once, one call upstream, one bill."""
    release = asyncio.Event()

    async def script(wire: Wire, _: Received) -> None:
        await release.wait()
        await wire.send(answer(completion()))

    upstream = await world.upstream(script)
    world.apply(tenant=TenantPolicy(id="acme"))
    calls = [asyncio.create_task(world.chat()) for _ in range(10)]
    await until(lambda: world.worker.app.inflight == 10)
    release.set()
    responses = await asyncio.gather(*calls)
    assert {completion()} == {response.content for response in responses}
    assert 1 == len(upstream.received)
    assert COST_NANOUSD == sum(record.cost_nanousd for record in world.records())


async def test_payloads_are_kept_only_where_the_policy_says_so(world: World) -> None:
    """Off: no payload; on: request and response, also of a stream."""
    await world.upstream(replies(answer(completion())), replies(answer(completion())), replies(whole_stream("Hi")))
    world.apply()
    await world.chat()
    storing = TenantPolicy(id="acme", cache=CachePolicy(enabled=False), payloads=PayloadPolicy(store=True))
    world.apply(tenant=storing)
    await world.chat()
    await world.chat(stream=True)
    off, on, streamed = world.records()
    assert off.payload is None
    assert on.payload is not None
    assert completion() == on.payload.response
    assert streamed.payload is not None
    assert b'"content":"Hi"' in streamed.payload.response


async def test_an_unpriced_model_is_unpriced_and_never_free(world: World) -> None:
    """No price: the cost state says so."""
    await world.upstream(replies(answer(completion())))
    world.apply(price=None)
    response = await world.chat()
    assert "unpriced" == response.headers["x-heph-cost-state"]
    assert CostState.UNPRICED == world.records()[0].cost_state


async def test_usage_that_makes_no_sense_is_estimated(world: World) -> None:
    """A negative or missing count is no usage."""
    await world.upstream(replies(answer(completion(usage={"prompt_tokens": -5, "completion_tokens": "many"}))))
    world.apply()
    response = await world.chat()
    assert "estimated" == response.headers["x-heph-cost-state"]


async def test_a_client_that_leaves_with_a_second_request_waiting_is_noticed(world: World) -> None:
    """Pipelined requests: the call under way is cancelled although a newer request has been read."""
    upstream = await world.upstream(sends_then_hangs(b""))
    world.apply()
    body = b'{"model":"gpt","messages":[]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    url = httpx.URL(world.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write((head.encode() + body) * 2)
    await until(lambda: upstream.received)
    writer.close()
    async with asyncio.timeout(60.0):
        await upstream.client_left.wait()
    await world.until_idle()
    assert [Outcome.CLIENT_CLOSED] == [record.outcome for record in world.records()]


async def test_a_drain_moves_calls_away_until_its_lease_ends(world: World) -> None:
    """With the lease the second deployment serves; once it has expired the first one does again, with no new snapshot."""
    await world.upstream(replies(answer(completion("first"))))
    await world.upstream(replies(answer(completion("second"))))
    hour_us = 3_600_000_000
    now_us = time.time_ns() // 1000

    def drain(expires_us: int) -> Lease:
        return Lease(id="l", kind=LeaseKind.DRAIN, deployment="u0/m", expires_us=expires_us)

    world.apply(leases=(drain(now_us + hour_us),))
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]
    assert ("l",) == world.worker.status().lease_ids
    world.apply(leases=(drain(now_us - 1),))
    assert "u0/m" == (await world.chat()).headers["x-heph-deployment"]
    assert () == world.worker.status().lease_ids


async def test_a_bug_of_ours_is_a_500_with_a_record_and_nothing_leaks(world: World) -> None:
    """A stage that raises: the client gets an id to quote, the slots come back, the record says internal."""
    await world.upstream(replies(answer(completion())))
    world.apply()
    broken = world.worker.app.runtime
    assert broken is not None
    world.worker.app.runtime = dataclasses.replace(broken, routes=None)  # type: ignore[arg-type]
    response = await world.chat()
    assert (500, "internal", "gateway") == (
        response.status_code,
        response.json()["error"]["code"],
        response.headers["x-heph-error-source"],
    )
    assert response.headers["x-heph-call-id"] in response.text
    assert Outcome.INTERNAL == world.records()[0].outcome
    world.worker.app.runtime = broken
    assert 200 == (await world.chat()).status_code


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_that_outlast_the_drain_are_told_so(
    tmp_path_factory: pytest.TempPathFactory, *, stream: bool
) -> None:
    """At shutdown a call in flight gets its time, then a refusal or an error event, and its record."""
    world = await World(tmp_path_factory.mktemp("drain")).start(drain_s=1)
    upstream = await world.upstream(sends_then_hangs(STREAM_HEAD + chunk(event("Hel")) if stream else b""))
    world.apply()
    calling = asyncio.create_task(world.chat(stream=stream))
    await until(lambda: upstream.received)
    if stream:
        await until(lambda: world.worker.http.pools()[0].open_count == 1)
    await world.shut()
    response = await calling
    assert '"code":"not_ready"' in response.text
    assert (200 if stream else 503) == response.status_code
    assert [Outcome.UNAVAILABLE] == [record.outcome for record in world.kept_records()]
    await world.stop()

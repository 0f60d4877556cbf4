"""Each kind of fault as a client meets it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from controlplane.demo.faults import Fault, FaultKind, UsageLie
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.fakes import RawClient, post, question

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def events_of(body: bytes) -> list[bytes]:
    """The payloads of a body of server-sent events."""
    return [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        (Fault(FaultKind.OUTAGE_500), 500, "server_error", None),
        (Fault(FaultKind.OUTAGE_503, retry_after_s=3), 503, "server_error", None),
        (Fault(FaultKind.RATE_LIMITED, retry_after_s=2.5), 429, "requests", "rate_limit_exceeded"),
        (Fault(FaultKind.REVOKED_KEY), 401, "invalid_request_error", "invalid_api_key"),
        (Fault(FaultKind.QUOTA_EXHAUSTED), 429, "insufficient_quota", "insufficient_quota"),
        (Fault(FaultKind.OVERLOADED, retry_after_s=3), 503, "server_error", None),
        (Fault(FaultKind.STATUS, status=418), 418, "invalid_request_error", None),
        (Fault(FaultKind.STATUS, status=502), 502, "server_error", None),
        (Fault(FaultKind.CONTEXT_EXCEEDED), 400, "invalid_request_error", "context_length_exceeded"),
        (Fault(FaultKind.CONTENT_POLICY), 400, "invalid_request_error", "content_policy_violation"),
        (Fault(FaultKind.STREAM_ERROR), 500, "server_error", None),
    ],
)
async def test_faults_that_answer_an_error(
    provider: Provider, raw: RawClient, fault: Fault, status: int, kind: str, code: str | None
) -> None:
    """These faults answer OpenAI's error body, keep the connection, and end when they are cleared."""
    provider.faults.add(fault)
    await raw.send(post(question()))
    got, headers, body = await raw.answer()
    error = json.loads(body)["error"]
    assert (status, kind, code) == (got, error["type"], error["code"])
    assert headers["x-request-id"].startswith("req_")
    if fault.kind in (FaultKind.OUTAGE_503, FaultKind.RATE_LIMITED):
        assert headers["retry-after"] == "3"
    if fault.kind is FaultKind.RATE_LIMITED:
        assert headers["retry-after-ms"] == "2500"
    provider.faults.clear()
    await raw.send(post(question()))
    assert (await raw.answer())[0] == 200
    assert {fault.kind: 1} == provider.upstreams[0].stats.by_fault


async def test_reset_leaves_no_answer(provider: Provider, raw: RawClient) -> None:
    """The request is read, then the connection is reset."""
    provider.faults.add(Fault(FaultKind.RESET))
    await raw.send(post(question()))
    with pytest.raises(ConnectionResetError):
        await raw.reader.readexactly(1)


@pytest.mark.parametrize("fields", [{}, STREAM])
async def test_filtered_answer(provider: Provider, raw: RawClient, fields: dict[str, Any]) -> None:
    """The answer is a 200 whose finish reason is that of a content filter."""
    provider.faults.add(Fault(FaultKind.CONTENT_FILTERED))
    await raw.send(post(question(**fields)))
    _, _, body = await raw.answer()
    events = [json.loads(event) for event in events_of(body)[:-1]] if fields else [json.loads(body)]
    reasons = {choice["finish_reason"] for event in events for choice in event["choices"]}
    assert {"content_filter"} == reasons - {None}


async def test_error_in_the_middle_of_a_stream(provider: Provider, raw: RawClient) -> None:
    """Some events come, then one with an error; the body ends in good order, and without [DONE]."""
    provider.faults.add(Fault(FaultKind.STREAM_ERROR, after_chunks=4))
    await raw.send(post(question(**STREAM)))
    events = events_of((await raw.answer())[2])
    assert 5 == len(events)
    assert "server_error" == json.loads(events[-1])["error"]["type"]
    assert 1 == provider.upstreams[0].stats.by_model["gpt-4o-mini-2024-07-18"].broken
    await raw.send(post(question(), path="/v1/embeddings"))
    assert 400 == (await raw.answer())[0]


async def test_truncated_stream(provider: Provider, raw: RawClient) -> None:
    """Some events come, then the connection ends without [DONE] and without the end of the body."""
    provider.faults.add(Fault(FaultKind.TRUNCATED_STREAM, after_chunks=4))
    await raw.send(post(question(**STREAM)))
    assert (await raw.head())[0] == 200
    rest = await raw.reader.read()
    assert rest.count(b"data: ") == 4
    assert b"[DONE]" not in rest
    assert not rest.endswith(b"0\r\n\r\n")
    counts = provider.upstreams[0].stats.by_model["gpt-4o-mini-2024-07-18"]
    assert (1, 1, 0) == (counts.calls, counts.broken, counts.completed)
    assert 0 < counts.completion_tokens < 5


async def test_truncation_after_the_end_still_loses_the_done(provider: Provider, raw: RawClient) -> None:
    """A cut beyond the last event leaves the whole text and no [DONE]."""
    provider.faults.add(Fault(FaultKind.TRUNCATED_STREAM, after_chunks=10_000))
    await raw.send(post(question(**STREAM)))
    await raw.head()
    rest = await raw.reader.read()
    assert b'"finish_reason":"stop"' in rest
    assert b"[DONE]" not in rest


async def test_truncated_answer(provider: Provider, raw: RawClient) -> None:
    """Without a stream the body is shorter than its length."""
    provider.faults.add(Fault(FaultKind.TRUNCATED_STREAM))
    await raw.send(post(question()))
    _, headers = await raw.head()
    assert int(headers["content-length"]) > len(await raw.reader.read())


@pytest.mark.parametrize("fields", [{}, STREAM])
async def test_stalled_stream_is_silent_until_the_client_leaves(provider: Provider, fields: dict[str, object]) -> None:
    """A stalled answer begins and stays silent; when the client gives up, nothing is left of it."""
    provider.faults.add(Fault(FaultKind.STALLED_STREAM))
    async with httpx.AsyncClient(timeout=0.2) as http:
        body = question(**fields)
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{provider.base_url}/chat/completions", json=body, headers={"authorization": "Bearer k"})
    await gone(provider)
    assert provider.upstreams[0].stats.by_model["gpt-4o-mini-2024-07-18"].broken == 1


async def test_hang_never_answers(provider: Provider) -> None:
    """A hanging provider reads the request and answers nothing; the connection stays open."""
    provider.faults.add(Fault(FaultKind.HANG))
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-a", max_retries=0, timeout=0.2) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.models.list()
    await gone(provider)


async def test_malformed_json(provider: Provider, raw: RawClient) -> None:
    """The body, or one event of a stream, is not JSON, and its length is right."""
    provider.faults.add(Fault(FaultKind.MALFORMED_JSON, after_chunks=2))
    await raw.send(post(question()))
    status, _, body = await raw.answer()
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    await raw.send(post(question(**STREAM)))
    *events, done = events_of((await raw.answer())[2])
    assert done == b"[DONE]"
    broken = [index for index, event in enumerate(events) if not event.endswith(b"}")]
    assert [2] == broken


@pytest.mark.parametrize(("lie", "factor"), [(UsageLie.INFLATED, 10), (UsageLie.ZERO, 0), (UsageLie.NEGATIVE, -1)])
@pytest.mark.parametrize("fields", [{}, STREAM])
async def test_wrong_usage(
    provider: Provider, raw: RawClient, lie: UsageLie, factor: int, fields: dict[str, object]
) -> None:
    """The usage that is told differs from the one that is billed, in both modes, and only while the fault is set."""
    seen = []
    for broken in (False, True, False):
        provider.faults.clear()
        if broken:
            provider.faults.add(Fault(FaultKind.WRONG_USAGE, usage=lie))
        await raw.send(post(question(**fields)))
        body = (await raw.answer())[2]
        document = json.loads(events_of(body)[-2] if fields else body)
        seen.append((document["usage"]["prompt_tokens"], document["usage"]["completion_tokens"]))
    truth = seen[0]
    assert [truth, (truth[0] * factor, truth[1] * factor), truth] == seen
    counts = provider.upstreams[0].stats.by_model["gpt-4o-mini-2024-07-18"]
    assert (3 * truth[0], 3 * truth[1]) == (counts.prompt_tokens, counts.completion_tokens)
    assert (2 + factor) * truth[0] == counts.reported_prompt_tokens


@pytest.mark.parametrize("fields", [{}, STREAM])
async def test_missing_usage(provider: Provider, raw: RawClient, fields: dict[str, object]) -> None:
    """The usage can be left out altogether; what remains is valid."""
    provider.faults.add(Fault(FaultKind.WRONG_USAGE, usage=UsageLie.MISSING))
    await raw.send(post(question(**fields)))
    body = (await raw.answer())[2]
    documents = [json.loads(event) for event in events_of(body)[:-1]] if fields else [json.loads(body)]
    assert {None} == {document.get("usage") for document in documents}
    assert documents[0]["choices"]


async def test_missing_usage_of_embeddings(provider: Provider, raw: RawClient) -> None:
    """Embeddings lose their usage too and stay valid JSON."""
    provider.faults.add(Fault(FaultKind.WRONG_USAGE, usage=UsageLie.MISSING))
    await raw.send(post({"model": "text-embedding-3-small", "input": "a"}, path="/v1/embeddings"))
    assert {"object", "data", "model"} == set(json.loads((await raw.answer())[2]))


async def test_slow_first_token() -> None:
    """The first byte comes after the delay, the rest at once."""
    fault = Fault(FaultKind.SLOW_FIRST_TOKEN, delay_s=0.15)
    slow = Provider(ProviderConfig(upstreams=(UpstreamConfig(port=0),), latency=Latency(scale=0), faults=(fault,)))
    await slow.start()
    raw = await RawClient.connect(slow.port)
    loop = asyncio.get_running_loop()
    try:
        for fields in ({}, STREAM):
            started = loop.time()
            await raw.send(post(question(**fields)))
            await raw.answer()
            assert 0.15 <= loop.time() - started < 2
    finally:
        await raw.close()
        await slow.stop()


async def gone(provider: Provider) -> None:
    """Waits until the provider has seen that its clients left."""
    for _ in range(100_000):
        if not provider.upstreams[0].stats.in_flight:
            return
        await asyncio.sleep(0)
    pytest.fail("the provider still holds an exchange of a client that left")

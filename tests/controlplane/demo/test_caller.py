"""What an agent counts of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controlplane.demo.caller import Answer, Caller, Clients
from controlplane.demo.counters import FleetCounters

CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
WHOLE = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
)


@asynccontextmanager
async def caller_of(body: bytes, *headers: str, status: str = "200 OK") -> AsyncIterator[tuple[Caller, FleetCounters]]:
    """A caller whose every call gets these bytes from a real socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status}", "connection: close", f"content-length: {len(body)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    counters = FleetCounters()
    clients = Clients.to(f"http://127.0.0.1:{port}/v1", "sk-a", timeout_s=10)
    async with server:
        yield Caller(clients, "tester", counters, asyncio.Semaphore(1)), counters
        await clients.close()


@pytest.mark.parametrize(
    ("cache", "hits", "coalesced"),
    [("hit", 1, 0), ("stale", 1, 0), ("semantic", 1, 0), ("coalesced", 0, 1), ("miss", 0, 0), ("bypass", 0, 0)],
)
async def test_headers_of_an_answer_are_counted(cache: str, hits: int, coalesced: int) -> None:
    """The state of the cache and the exact cost are read from the proxy's headers."""
    headers = ("content-type: application/json", f"x-heph-cache: {cache}", "x-heph-cost-usd: 0.000012345")
    async with caller_of(WHOLE, *headers) as (caller, counters):
        assert Answer("hi") == await caller.chat("m", [], session="s")
    assert (1, hits, coalesced, 12_345) == (counters.ok, counters.cache_hits, counters.coalesced, counters.cost_nanousd)
    assert hits == counters.agents["tester"].cache_hits


async def test_cost_of_a_stream_is_read_from_its_last_comment() -> None:
    """A stream tells its cost in a comment before its end."""
    body = CHUNK + b": x-heph-cost-usd=0.000000007 x-heph-cost-state=final\n\ndata: [DONE]\n\n"
    async with caller_of(body, "content-type: text/event-stream") as (caller, counters):
        assert Answer("hi") == await caller.stream("m", [], session="s")
    assert (1, 7) == (counters.ok, counters.cost_nanousd)


async def test_left_stream_is_abandoned() -> None:
    """A stream that the agent leaves is neither a success nor a failure."""
    async with caller_of(CHUNK * 5 + b"data: [DONE]\n\n", "content-type: text/event-stream") as (caller, counters):
        assert Answer("hihi") == await caller.stream("m", [], session="s", leave_after=1)
    assert (1, 0, 1, 0) == (counters.calls, counters.ok, counters.abandoned, counters.failed)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (CHUNK, "stream_incomplete"),
        (CHUNK + b'data: {"error":{"message":"m","type":"t","param":null,"code":"timed_out"}}\n\n', "timed_out"),
        (b'data: {"error":{"message":"m","type":"server_error","param":null,"code":null}}\n\n', "server_error"),
        (b"data: {\n\n", "malformed_answer"),
        (b"", "stream_incomplete"),
    ],
)
async def test_broken_stream_is_a_failure(body: bytes, code: str) -> None:
    """A stream without its end, with an error event or without JSON is counted once, by its code."""
    async with caller_of(body, "content-type: text/event-stream") as (caller, counters):
        assert await caller.stream("m", [], session="s") is None
    assert ({code: 1}, 0, 0) == (counters.failed_by_code, counters.ok, counters.in_flight)


def events_of_a_message(*more: str) -> bytes:
    """The events of a streamed message, with more of them before its end."""
    delta = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}'
    start = '{"type":"message_start","message":{}}'
    return "".join(f"event: e\ndata: {data}\n\n" for data in (start, delta, *more)).encode()


async def test_streamed_message_is_read_to_its_end() -> None:
    """A message's text and its cost are read; the comment with the cost comes before the end."""
    stop = b': x-heph-cost-usd=0.000000007 x-heph-cost-state=final\n\ndata: {"type":"message_stop"}\n\n'
    async with caller_of(events_of_a_message() + stop, "content-type: text/event-stream") as (caller, counters):
        assert Answer("hi") == await caller.message_stream("m", [], session="s")
    assert (1, 7) == (counters.ok, counters.cost_nanousd)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (events_of_a_message(), "stream_incomplete"),
        (events_of_a_message('{"type":"error","error":{"type":"overloaded_error","message":"m"}}'), "overloaded_error"),
        (events_of_a_message("{"), "malformed_answer"),
    ],
)
async def test_broken_message_is_a_failure(body: bytes, code: str) -> None:
    """A streamed message without its end, with an error event or without JSON is counted once, by its code."""
    async with caller_of(body, "content-type: text/event-stream") as (caller, counters):
        assert await caller.message_stream("m", [], session="s") is None
    assert ({code: 1}, 0, 0) == (counters.failed_by_code, counters.ok, counters.in_flight)


async def test_refused_message_is_counted_by_its_type() -> None:
    """An error in Anthropic's shape is counted by its type."""
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"m"},"request_id":"r"}'
    async with caller_of(body, "content-type: application/json", status="429 Too Many Requests") as (caller, counters):
        assert await caller.message("m", [], session="s") is None
    assert {"rate_limit_error": 1} == counters.failed_by_code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"message":"m","type":"t","param":null,"code":"over_budget"}}', "over_budget"),
        (b'{"error":{"message":"m","type":"t","param":null,"code":null}}', "429"),
        (b"<html>", "429"),
    ],
)
async def test_refusal_is_counted_by_its_code(body: bytes, code: str) -> None:
    """An error answer is counted by the code in its body, else by its status."""
    async with caller_of(body, "content-type: application/json", status="429 Too Many Requests") as (caller, counters):
        assert not await caller.embed("m", ["a"], session="s")
    assert {code: 1} == counters.failed_by_code


def test_answer_becomes_a_message() -> None:
    """An answer goes back into the conversation with its tool calls."""
    assert {"role": "assistant", "content": "hi"} == Answer("hi").as_message()
    made = Answer("", (("call_1", "look", "{}"),)).as_message()
    assert made["content"] is None
    assert [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}] == made["tool_calls"]

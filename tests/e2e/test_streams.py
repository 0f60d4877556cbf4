"""Clients that leave, clients that follow and clients that read slowly."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.load import Load, complete
from tests.e2e.processes import World, eventually, world

pytestmark = pytest.mark.e2e
CHAT = "/v1/chat/completions"
SLOW_READERS = 10
RSS_GROWTH_MAX_BYTES = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose provider takes its time, as real ones do."""
    with world(tmp_path_factory.mktemp("slow"), latency_scale=1.0) as made:
        yield made


def _stats(made: World) -> dict[str, int]:
    """Calls, completed and cancelled ones at the primary, and those in flight."""
    primary: Any = made.provider_stats()["primary"]  # JSON of the provider
    models = primary["by_model"].values()
    return {
        "in_flight": primary["in_flight"],
        **{name: sum(model[name] for model in models) for name in ("calls", "completed", "cancelled")},
    }


def _body(prompt: str, *, stream: bool, max_tokens: int = 400, n: int = 1) -> bytes:
    message = {"role": "user", "content": prompt}
    return json.dumps(
        {"model": "gpt-4o-mini", "messages": [message], "stream": stream, "max_tokens": max_tokens, "n": n}
    ).encode()


def _inflight(made: World) -> float:
    """Calls that the proxy says it is serving."""
    lines = made.get(f"http://127.0.0.1:{made.proxy_port}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("heph_proxy_inflight_calls{"))


class _Client:
    """One call over a bare socket, so that it can leave and read slowly as it likes."""

    def __init__(self, made: World, body: bytes, header: str = "x-nothing: 1") -> None:
        self._made = made
        self._body = body
        self._header = header
        self.head = b""

    async def __aenter__(self) -> _Client:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel must not read for it
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._made.proxy_port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=4096)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._made.key()}\r\n{self._header}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(self._body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + self._body)
        await self.writer.drain()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def first_content(self) -> str:
        """Reads until there is content; the call's id."""
        while b'"content":"' not in self.head:
            piece = await asyncio.wait_for(self.reader.read(1024), 30)
            assert piece, self.head
            self.head += piece
        lines = self.head.split(b"\r\n\r\n")[0].decode().split("\r\n")
        return next(line for line in lines if line.lower().startswith("x-heph-call-id:")).split(": ")[1]


def _row(made: World, where: str) -> dict[str, object]:
    rows: list[dict[str, object]] = eventually(
        lambda: made.sql(
            "SELECT call_id, outcome, cost_state, toInt64(cost_usd * 1000000000) AS nanousd, tokens_output, stream "
            f"FROM calls WHERE {where}"
        ),
        what="the row",
    )
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_the_upstream_call(slow: World, stream: bool) -> None:
    """The provider sees the cancellation; the call is one row, closed by the client and charged by estimate."""
    before = _stats(slow)
    agent = f"leaver-{stream}"
    body = _body(f"Tell me a very long story, please ({stream}).", stream=stream, max_tokens=2_000)
    async with _Client(slow, body.replace(b'"stream"', b'"user": "%s", "stream"' % agent.encode())) as client:
        if stream:
            await client.first_content()
        else:
            await asyncio.to_thread(
                eventually, lambda: _stats(slow)["in_flight"] > before["in_flight"], what="upstream"
            )
    await asyncio.to_thread(eventually, lambda: _stats(slow)["cancelled"] == before["cancelled"] + 1, what="cancelled")
    after = _stats(slow)
    assert (before["completed"], before["in_flight"]) == (after["completed"], after["in_flight"])
    row = await asyncio.to_thread(_row, slow, f"user = '{agent}'")
    assert ("client_closed", "estimated", stream) == (row["outcome"], row["cost_state"], row["stream"])
    assert int(str(row["nanousd"])) > 0


async def test_a_follower_keeps_its_stream_when_the_leader_leaves(slow: World) -> None:
    """Two identical streams are one upstream call; the first client goes, the second one gets all of it."""
    before = _stats(slow)
    body = _body("Tell me a story of two readers.", stream=True)
    async with _Client(slow, body) as leader:
        leader_id = await leader.first_content()
        async with httpx.AsyncClient(timeout=60) as http:
            headers = {"authorization": f"Bearer {slow.key()}", "content-type": "application/json"}
            async with http.stream(
                "POST", f"{slow.base_url}/chat/completions", content=body, headers=headers
            ) as answer:
                assert answer.headers["x-heph-cache"] == "coalesced"
                leader.writer.transport.abort()
                text = (await answer.aread()).decode()
    assert text.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"' in text
    after = _stats(slow)
    assert (before["calls"] + 1, before["completed"] + 1, before["cancelled"]) == (
        after["calls"], after["completed"], after["cancelled"],
    )  # fmt: skip
    row = await asyncio.to_thread(_row, slow, f"call_id = '{leader_id}'")
    assert ("client_closed", "final") == (row["outcome"], row["cost_state"])
    follower = await asyncio.to_thread(_row, slow, f"call_id = '{answer.headers['x-heph-call-id']}'")
    assert ("ok", 0) == (follower["outcome"], int(str(follower["nanousd"])))


async def test_slow_readers_do_not_fill_the_proxy(calm: World, measured: Callable[[str], None]) -> None:
    """Ten clients that read nothing of long streams cost it almost no memory; one that reads gets its answer meanwhile."""
    await Load(calm.base_url, calm.key()).burst(50)  # pools and caches are warm after this
    process = psutil.Process(calm.running["proxy"].pid)
    rss = process.memory_info().rss
    clients = [
        _Client(
            calm,
            _body(f"Write volume {number} in 10000 words.", stream=True, max_tokens=16_000, n=4),
            "cache-control: no-store",  # or the first megabytes are kept for the cache and for who joins
        )
        for number in range(SLOW_READERS)
    ]
    try:
        for client in clients:
            await client.__aenter__()
            await client.first_content()
        served = await Load(calm.base_url, calm.key()).burst(20, stream=True)
        assert len(complete(served)) == 20
        assert _inflight(calm) == SLOW_READERS  # none was read to its end in advance
        grown = process.memory_info().rss - rss
        measured(f"{SLOW_READERS} slow readers of about 12 MB each: the proxy grew by {grown / 2**20:.1f} MiB")
        assert grown < RSS_GROWTH_MAX_BYTES
    finally:
        for client in clients:
            await client.__aexit__()
    await asyncio.to_thread(eventually, lambda: _inflight(calm) == 0, what="calls ended")

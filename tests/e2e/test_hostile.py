"""Ten thousand malformed or hostile requests: clean errors, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.load import Load
from tests.e2e.processes import World, eventually, world

pytestmark = pytest.mark.e2e
REQUESTS = 10_000
AT_ONCE = 50
LOITERERS = 100
RSS_GROWTH_MAX_BYTES = 48 * 1024 * 1024

WORDS = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"-1",
    b"1e999",
    b"9" * 400,
    b'"\\ud800"',
    b'"' + b"a" * 5000 + b'"',
    b"NaN",
    b"{" * 500,
    b"[" * 3000,
)
FIELDS = (
    b"model",
    b"messages",
    b"stream",
    b"max_tokens",
    b"n",
    b"stream_options",
    b"user",
    b"metadata",
    b"temperature",
    b"\\u0000",
    b"tools",
)
PATHS = (
    b"/v1/chat/completions", b"/chat/completions", b"/v1/embeddings", b"/v1/models", b"/v1/models/%00", b"/v1/../../etc/passwd",
    b"//v1//chat/completions", b"/v1/chat/completions?x=" + b"y" * 2000, b"/\xff\xfe", b"/metrics/../v1/models", b"/v1/chat/completions/",
    b"/v2/anything", b"*", b"http://other.example/v1/models",
)  # fmt: skip
HEADERS = (
    b"x-heph-tags: {not json", b"x-heph-tags: " + b'{"a":' * 200, b"x-heph-timeout-ms: -5", b"x-heph-timeout-ms: 1e400", b"x-heph-cache-ttl: soon",
    b"cache-control: max-age=99999999999999999999", b"cache-control: ,,,=,", b"x-heph-agent: " + b"\xc3\x28" * 50, b"x-heph-agent: <script>alert(1)</script>",
    b"traceparent: 00-zz-zz-zz", b"content-encoding: gzip", b"expect: 100-continue", b"transfer-encoding: gzip, chunked", b"x-heph-session: " + b"s" * 20000,
    b"cookie: a=b", b"host: evil.example", b"authorization: Basic !!!", b"x-api-key: \x01\x02", b"connection: upgrade\r\nupgrade: websocket",
)  # fmt: skip


def hostile(chance: random.Random, key: str) -> bytes:
    """One request that something is wrong with."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randint(1, 400)) + b"\r\n\r\n"
    method = chance.choice(
        (b"POST", b"POST", b"POST", b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD", b"BREW")
    )
    if chance.random() < 0.6:
        fields = b",".join(
            b'"%s":%s' % (chance.choice(FIELDS), chance.choice(WORDS)) for _ in range(chance.randint(0, 5))
        )
        body = b"{" + fields + b"}"
    else:
        body = chance.choice(
            (b"", chance.randbytes(200), b"{", b"\xff\xfe\x00", b"[1,2", b'{"model":"gpt-4o-mini"', b"null" * 100)
        )
    if chance.random() < 0.3:
        body = body[: chance.randint(0, len(body))]
    lines = [b"%s %s HTTP/1.1" % (method, chance.choice(PATHS)), b"host: x"]
    if chance.random() < 0.8:
        lines.append(
            b"authorization: Bearer "
            + (key.encode() if chance.random() < 0.7 else chance.choice((b"", b"sk-heph-", b"\xff" * 40)))
        )
    lines += chance.sample(HEADERS, chance.randint(0, 3))
    lines.append(
        chance.choice(
            (
                b"content-length: %d" % len(body),
                b"content-length: %d" % len(body),
                b"content-length: -1",
                b"content-length: 99999999999",
            )
        )
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def attack(port: int, request: bytes, *, slow: bool) -> tuple[int, bytes]:
    """Status and body of the answer; (0, b"") when the connection was closed without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return -1, b""
    try:
        if slow:  # half a request, then the client goes away
            writer.write(request[: len(request) // 2])
            await writer.drain()
            return 0, b""
        writer.write(request)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(65536), 30)
    except OSError:
        return 0, b""
    finally:
        writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]), body) if head.startswith(b"HTTP/1.1 ") else (0, b"")


async def storm(made: World, seeds: range) -> Counter[int]:
    """Sends hostile requests, a bounded number at once; counts statuses."""
    statuses: Counter[int] = Counter()
    key = made.key()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with gate:
            chance = random.Random(seed)
            status, body = await attack(made.proxy_port, hostile(chance, key), slow=chance.random() < 0.1)
        statuses[status] += 1
        assert status < 500 or status in {501, 502, 503}, (seed, status, body[:300])
        if status >= 400 and body.startswith(b"{"):
            assert {"message", "type", "param", "code"} <= set(json.loads(body)["error"]), (seed, body[:300])
        assert b"Traceback" not in body

    await asyncio.gather(*(one(seed) for seed in seeds))
    return statuses


def _proxy_process(made: World) -> psutil.Process:
    """The process that listens on the proxy's port."""
    root = psutil.Process(made.running["proxy"].pid)
    family = [root, *root.children(recursive=True)]
    return max(family, key=lambda process: process.memory_info().rss)


async def _loiter(made: World) -> list[asyncio.StreamWriter]:
    """Clients that send half a request and then nothing, in its head or in its body."""
    writers = []
    for number in range(LOITERERS):
        _, writer = await asyncio.open_connection("127.0.0.1", made.proxy_port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        if number % 2:
            writer.write(b"authorization: Bearer %s\r\ncontent-length: 100\r\n\r\n{" % made.key().encode())
        writers.append(writer)
    return writers


async def test_ten_thousand_hostile_requests_leave_no_trace(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """Each gets a clean error or a closed connection; memory, sockets, files, threads and calls in flight are as before."""
    with world(tmp_path) as made:
        await storm(made, range(1_000))  # pools, caches and parsers are warm after this
        await Load(made.base_url, made.key()).burst(50)
        process = _proxy_process(made)
        rss, sockets = process.memory_info().rss, len(process.net_connections(kind="tcp"))
        files, threads = process.num_fds(), process.num_threads()
        loiterers = await _loiter(made)
        statuses = await storm(made, range(1_000, 1_000 + REQUESTS))
        assert statuses.total() == REQUESTS
        assert statuses[-1] == 0
        assert sum(count for status, count in statuses.items() if 400 <= status < 500) > REQUESTS / 2
        served = await Load(made.base_url, made.key()).burst(20)
        assert {one.status for one in served} == {200}
        for writer in loiterers:
            writer.transport.abort()
        await asyncio.to_thread(
            eventually, lambda: len(process.net_connections(kind="tcp")) <= sockets + 4, what="sockets given back"
        )
        assert process.num_fds() <= files + 8
        assert process.num_threads() <= threads + 4
        metrics = made.get(f"http://127.0.0.1:{made.proxy_port}/metrics").text
        assert 'heph_proxy_inflight_calls{worker="0"} 0.0' in metrics
        grown = process.memory_info().rss - rss
        measured(
            f"{REQUESTS} hostile requests: {dict(sorted(statuses.items()))}; the proxy grew by {grown / 2**20:.1f} MiB"
        )
        assert grown < RSS_GROWTH_MAX_BYTES

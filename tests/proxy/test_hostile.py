"""A hostile world around one worker: keys that try to borrow, upstreams that never end, disks that go away, labels that bite."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.snapshot import Budget, CachePolicy, KeyEntry, TenantPolicy, Window
from tests.proxy.fakes import (
    KEY,
    PEPPER,
    STREAM_HEAD,
    Received,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    replies,
    until,
    whole_stream,
)
from tests.proxy.test_app import raw

GOOD = replies(answer(completion()))
UNCACHED = CachePolicy(enabled=False)
MIB = 1024 * 1024


def _key(secret: str, name: str, models: tuple[str, ...] | None = None) -> KeyEntry:
    return KeyEntry(hash=hash_key(secret.encode(), PEPPER), id=name, tenant="acme", models=models)


async def test_a_key_without_permission_neither_joins_nor_reads_what_is_stored(world: World) -> None:
    """Two keys of one tenant share answers; a third one, not allowed to use the model, gets neither the flight nor the entry."""
    release = asyncio.Event()

    async def script(wire: Wire, _: Received) -> None:
        await release.wait()
        await wire.send(answer(completion()))

    upstream = await world.upstream(script)
    keys = (_key(KEY, "key_1"), _key("sk-heph-second", "key_2"), _key("sk-heph-third", "key_3", ("other",)))
    world.apply(tenant=TenantPolicy("acme"), keys=keys)
    first = asyncio.create_task(world.chat())
    await until(lambda: upstream.received)
    second = asyncio.create_task(world.chat(headers={"authorization": "Bearer sk-heph-second"}))
    await until(lambda: world.worker.coalesce.followers)
    third = {"authorization": "Bearer sk-heph-third"}
    assert 403 == (await world.chat(headers=third)).status_code
    release.set()
    assert [200, 200] == [(await one).status_code for one in (first, second)]
    assert 403 == (await world.chat(headers=third)).status_code
    assert 1 == len(upstream.received)


async def test_a_snapshot_that_takes_everything_away_lets_calls_in_flight_end(world: World) -> None:
    """Tenant, key, route and upstream vanish in the middle of a stream: it goes on, is settled, and nothing stays reserved."""
    release = asyncio.Event()
    body = whole_stream("Hel", "lo")
    cut = len(STREAM_HEAD) + 200

    async def script(wire: Wire, _: Received) -> None:
        head = event() + event("Hel")
        await wire.send(STREAM_HEAD + chunk(head))
        await release.wait()
        await wire.send(body[len(STREAM_HEAD) :])

    del cut
    await world.upstream(script)
    tenant = TenantPolicy("acme", concurrency=5, cache=UNCACHED, budgets=(Budget("b", Window.TOTAL, tokens=100_000),))
    world.apply(tenant=tenant)
    streaming = asyncio.create_task(world.chat(stream=True))
    await until(lambda: world.worker.app.inflight and world.worker.ledger.reserved("acme") != (0, 0))
    world.apply(tenant=TenantPolicy("other"), urls=(), keys=(KeyEntry(hash="0" * 32, id="k", tenant="other"),))
    release.set()
    response = await streaming
    assert "[DONE]" in response.text
    await world.until_idle()
    assert ((0, 0), "acme") == (world.worker.ledger.reserved("acme"), world.records()[0].tenant)
    assert 401 == (await world.chat()).status_code


async def test_a_key_that_expires_in_flight_ends_with_its_next_call(world: World) -> None:
    """What was let in is served; nothing more is."""
    upstream = await world.upstream(GOOD)
    world.apply()
    assert 200 == (await world.chat()).status_code
    world.apply(keys=(KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="k", tenant="acme", expires_us=1),))
    assert (401, 1) == ((await world.chat()).status_code, len(upstream.received))


LABELS = {
    "user": "u\x00\n\x1b[31m\u202e" + "x" * 5000,
    "metadata": {"k\x00ey\n": "v\x1b\n\u2028alue", "n" * 500: "v" * 5000},
}


async def test_labels_from_a_body_are_bounded_and_printable(world: World) -> None:
    """No control character, escape sequence or endless name reaches a record, whichever field it comes in."""
    await world.upstream(replies(answer(completion(choices=[{"finish_reason": "sto\x00p" * 1000}]))))
    world.apply()
    await world.chat(**LABELS)
    await world.chat(model="no\x00such\n" + "m" * 100_000)
    tags = json.dumps({"a\x07": "b\x07\n"})
    await world.chat(headers={"x-heph-tags": tags})
    for record in world.records():
        texts = [record.user, record.alias, record.finish_reason, *record.tags, *record.tags.values()]
        assert [] == [text for text in texts if not text.isprintable() or len(text) > 256]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_whose_head_never_ends_is_cut_off(world: World, stream: bool) -> None:
    """One header line without end is given up after the bound, not after the memory."""
    sent = 0

    async def script(wire: Wire, _: Received) -> None:
        nonlocal sent
        await wire.send(b"HTTP/1.1 200 OK\r\nx-long: ")
        while True:
            await wire.send(b"y" * 65536)
            sent += 65536

    await world.upstream(script)
    world.apply(route={"attempts_max": 1}, upstream={"first_byte_timeout_s": 5.0})
    response = await world.chat(stream=stream)
    assert 502 == response.status_code
    assert AttemptError.MALFORMED == world.records()[0].attempts[0].error
    assert sent < 16 * MIB


async def test_an_upstream_that_chatters_before_its_first_content_is_cut_off(world: World) -> None:
    """Comments and empty deltas are held back until content comes, so they are bounded."""
    noise = chunk((b": ping\n\n" + event("")) * 300)

    async def script(wire: Wire, _: Received) -> None:
        await wire.send(STREAM_HEAD)
        while True:
            await wire.send(noise)

    await world.upstream(script)
    world.apply(route={"attempts_max": 1}, upstream={"first_byte_timeout_s": 10.0})
    response = await world.chat(stream=True)
    assert 502 == response.status_code
    assert AttemptError.MALFORMED == world.records()[0].attempts[0].error


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304, 204, 199, 999])
async def test_a_redirect_or_an_odd_status_is_not_followed_and_no_answer(world: World, status: int) -> None:
    """The credential goes nowhere else; the client hears that the upstream failed."""
    other = await world.upstream(GOOD)
    head = f"HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:{other.port}/v1\r\ncontent-length: 0\r\n\r\n"
    odd = await world.upstream(replies(head.encode()))
    world.apply(
        urls=(f"http://127.0.0.1:{odd.port}/v1",), route={"attempts_max": 1}, upstream={"first_byte_timeout_s": 0.3}
    )
    response = await world.chat()
    assert response.status_code in (502, 504)
    assert [] == other.received


async def test_an_upstream_that_answers_before_it_has_read_the_request(world: World) -> None:
    """An early refusal is the answer, and the half-sent connection is not used again."""
    upstream = await world.upstream(GOOD)

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        body = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'
        writer.write(answer(body, 400, "connection: close"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    world.apply(urls=(f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{upstream.port}/v1"))
    response = await world.chat(messages=[{"role": "user", "content": "x" * 4 * MIB}])
    server.close()
    assert response.status_code in (200, 400)
    assert 0 == world.worker.app.inflight


async def test_a_spool_whose_directory_was_deleted_goes_on(world: World) -> None:
    """What was in it is lost and counted; later records are kept and the ledger is whole, without a restart."""
    await world.upstream(GOOD)
    world.apply()
    await world.chat()
    spool, shipper = world.worker.spool, world.worker.shipper
    shutil.rmtree(world.data_dir / "proxy" / "0")
    spool.seal()
    assert 0.0 == await shipper.step()
    assert 1 == shipper.lost_total
    assert spool.oldest is None
    await world.chat()
    assert [Outcome.OK] == [record.outcome for record in world.records()]
    assert (2, 0) == (world.worker.ledger.calls, spool.dropped)


async def test_a_client_that_reads_nothing_is_cut_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A stream into a full socket holds an upstream connection: after the time of an idle connection both are given up."""
    world = await World(tmp_path_factory.mktemp("stall")).start(keep_alive_s=1.0)
    try:

        async def script(wire: Wire, _: Received) -> None:
            await wire.send(STREAM_HEAD)
            while True:
                await wire.send(chunk(event("x" * 60_000)))

        upstream = await world.upstream(script)
        world.apply()
        body = b'{"model":"gpt","messages":[],"stream":true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        port = int(world.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(head % (KEY.encode(), len(body)) + body)
        async with asyncio.timeout(20.0):
            await upstream.client_left.wait()
        await world.until_idle()
        assert Outcome.CLIENT_CLOSED == world.records()[0].outcome
        writer.close()
        del reader
    finally:
        await world.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        b"content-length: 2\r\ncontent-length: 40\r\n\r\n{}",
        b"content-length: +2\r\n\r\n{}",
        b"content-length: 2, 2\r\n\r\n{}",
        b"content-length : 2\r\n\r\n{}",
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"transfer-encoding: xchunked\r\n\r\n{}",
        b"transfer-encoding: chunked, identity\r\n\r\n{}",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        b"x-a: 1\r\n content-length: 5\r\ncontent-length: 2\r\n\r\n{}",
        b"x-heph-agent: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
        b"x-heph-agent: a\rb\r\ncontent-length: 2\r\n\r\n{}",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        b"x-a: 1\n\n",
    ],
)
async def test_a_request_that_two_parsers_could_read_differently_is_none(world: World, data: bytes) -> None:
    """One answer, 400, and the end: a second request behind it is never looked at."""
    upstream = await world.upstream(GOOD)
    world.apply()
    second = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    auth = b"authorization: Bearer " + KEY.encode() + b"\r\n"
    response = await raw(world, b"POST /v1/chat/completions HTTP/1.1\r\n" + auth + data + second)
    assert (1, True) == (response.count(b"HTTP/1.1 "), response.startswith(b"HTTP/1.1 400"))
    assert [] == upstream.received


async def test_headers_that_reach_the_upstream_are_part_of_what_is_stored(world: World) -> None:
    """A client that switches a beta on is not served an answer made without it, nor the reverse; labels change nothing."""
    upstream = await world.upstream(GOOD)
    world.apply(tenant=TenantPolicy("acme"))
    variants: tuple[dict[str, str], ...] = ({}, {"openai-beta": "a"}, {"openai-beta": "b"}, {"openai-project": "a"})
    for headers in variants * 2:
        await world.chat(headers=headers | {"x-heph-agent": "any", "idempotency-key": "1"})
    assert (4, 4) == (len(upstream.received), world.worker.cache.store.hits_memory_total)


@pytest.mark.parametrize("framing", [b"content-length: 10000000", b"transfer-encoding: chunked"])
async def test_nobody_fills_our_memory_without_a_key(world: World, framing: bytes) -> None:
    """A stranger is refused while its body still comes, and nothing of it is kept; somebody we know is waited for."""
    await world.upstream(GOOD)
    world.apply()
    piece = b"x" * 100_000 if b"length" in framing else chunk(b"x" * 100_000)
    for key in (b"", b"authorization: Bearer sk-heph-stranger\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n" + key + framing + b"\r\n\r\n" + piece)
        async with asyncio.timeout(5.0):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401")
        writer.close()
    assert 2 == len(world.records())
    text = "word " * 50_000
    assert 200 == (await world.chat(messages=[{"role": "user", "content": text}])).status_code


async def test_trailers_say_nothing(world: World) -> None:
    """A header behind the body of a chunked request cannot replace the one that was looked at."""
    await world.upstream(GOOD)
    world.apply()
    body = b'{"model":"gpt","messages":[]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nx-heph-agent: real\r\nauthorization: Bearer %b\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    trailers = b"authorization: Bearer other\r\nx-heph-agent: smuggled\r\n\r\n"
    response = await raw(world, head % KEY.encode() + chunk(body) + b"0\r\n" + trailers)
    assert response.startswith(b"HTTP/1.1 200")
    assert "real" == world.records()[0].agent

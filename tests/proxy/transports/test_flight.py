"""What a flight keeps of a stream that its leader takes in passing."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

import pytest

from controlplane.contract.records import CacheState
from proxy.call import Call, ChunkStream, Reply, Sink
from proxy.transports.cache_replay import Recording
from proxy.transports.coalesce import Coalesce
from proxy.transports.flight import Flight, Reader
from tests.proxy.state_fakes import FakeInner, FakeStream, make_call, settle_down, stream_reply

EVENT = b"data: %050d\n\n"


class Tapped(FakeStream):
    """A stream that hands chunks to a sink while somebody reads, as that of an upstream does."""

    sink: Sink | None = None

    def tap(self, sink: Sink) -> None:
        """Chunks go to the sink from now on."""
        self.sink = sink

    def hand(self, chunk: bytes) -> None:
        """One more chunk has come."""
        if self.sink is None or not self.sink(chunk):
            self.feed(chunk)


class TappedInner(FakeInner):
    """An upstream with such streams."""

    async def send(self, call: Call) -> Reply:
        """The stream."""
        self.calls.append(call)
        stream = Tapped()
        self.streams.append(stream)
        stream.reply = stream_reply(stream)
        return stream.reply


async def _read_all(stream: ChunkStream) -> list[bytes]:
    chunks = []
    while chunk := await stream.read():
        chunks.append(chunk)
    stream.close()
    return chunks


def _call() -> Call:
    call = make_call()
    call.cache_key, call.cache = b"key", CacheState.MISS
    return call


@pytest.mark.parametrize("joins_at", [0, 7, 150, 299])
async def test_small_chunks_are_kept_as_few_for_the_cache_and_for_late_followers_alike(joins_at: int) -> None:
    """Whoever joins whenever gets every byte once, the cache stores every byte once, and both in far fewer pieces than came."""
    inner = TappedInner()
    coalesce = Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**6)
    reply = await coalesce.send(_call())
    (stream,) = inner.streams
    assert isinstance(stream, Tapped)
    assert reply.stream is not None
    passed: list[bytes] = []
    stored: list[tuple[bytes, ...]] = []
    recording = Recording(reply.stream, bytes_max=10**6, on_end=stored.append, on_large=lambda: None)

    def take(chunk: bytes) -> bool:
        passed.append(chunk)
        return True

    recording.tap(take)
    leading = asyncio.create_task(_read_all(recording))
    await settle_down()
    events = [EVENT % number for number in range(300)]
    following: asyncio.Task[list[bytes]] | None = None
    for number, event in enumerate(events):
        if number == joins_at:
            joined = await coalesce.send(_call())
            assert joined.stream is not None
            following = asyncio.create_task(_read_all(joined.stream))
            await settle_down()
        stream.hand(event)
        await settle_down()
    stream.end()
    read = await leading
    assert following is not None
    followed = await following
    whole = b"".join(events)
    assert whole == b"".join(passed + read) == b"".join(followed) == b"".join(stored[0])
    assert len(followed) <= 300 - joins_at + joins_at // 20 + 70
    assert 0 == coalesce.members == coalesce.buffered_bytes


async def test_a_stream_that_has_ended_leaves_nothing_to_the_garbage_collector() -> None:
    """Reader, flight and recording let go of each other when they are closed: thousands of streams would wait for a collection else."""
    gc.collect()
    gc.disable()
    try:
        await _lead_and_store()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(item) for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert set() == left & {Recording, Reader, Flight, Reply, Call}


async def _lead_and_store() -> None:
    inner = TappedInner()
    coalesce = Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**6)
    call = _call()
    call.reply = reply = await coalesce.send(call)
    assert reply.stream is not None
    reply.stream = recording = Recording(
        reply.stream, bytes_max=10**6, on_end=partial(_stored, call, reply), on_large=lambda: None
    )
    recording.tap(lambda chunk: call is not None and bool(chunk))
    stream = inner.streams.pop()
    stream.reply = None
    stream.feed(b"data: 1\n\n")
    stream.end()
    assert [b"data: 1\n\n"] == await _read_all(recording)


def _stored(call: Call, reply: Reply, blocks: tuple[bytes, ...]) -> None:
    assert (b"data: 1\n\n",) == blocks
    del call, reply

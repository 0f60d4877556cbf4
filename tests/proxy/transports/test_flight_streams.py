"""Tests of a leader's stream that other workers follow: whatever goes in passing and whatever is read, everybody has the same bytes."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, Reply, StreamBroken
from proxy.transports.cache_replay import Recording
from proxy.transports.coalesce import Coalesce
from proxy.transports.flight import Reader
from proxy.transports.flight_bill import Bills
from proxy.transports.flight_follow import Followed
from proxy.transports.flight_lead import Led
from proxy.transports.flight_streams import LedStream
from proxy.transports.flight_words import Gone, Seals
from tests.proxy.state_fakes import FakeInner, make_call, settle_down, stream_reply
from tests.proxy.transports.test_flight import Tapped

TAG, TOKEN, INBOX = b"tag", b"token", b"inbox"
EVENT = b"data: %050d\n\n"


class Leader(FakeInner):
    """Who leads one flight; a follower elsewhere is asked for its news by the test."""

    silence_s = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.bills = Bills(None, inbox=b"me", seals=Seals(b"pepper"), lease_s=1.0, count_after_s=1.0, bills_max=1)
        self.led = Led(TAG, TOKEN, b"key", leader=b"me", pump=lambda *_: None, bytes_max=10**6)
        self.stream = Tapped()

    async def send(self, call: Call) -> Reply:
        """The stream, shown to others."""
        self.stream.reply = reply = stream_reply(self.stream)
        self.led.begin(reply)
        reply.stream = LedStream(self, self.led, call, reply, self.stream)
        return reply

    def bill_key(self, tag: bytes, token: bytes) -> bytes:
        """Never asked for."""
        return tag + token

    def end(self, led: Led, *, linger: bool) -> None:
        """The flight has ended."""
        led.ended = True

    def unfollow(self, followed: Followed, call: Call, leader: bytes) -> None:
        """Nobody follows here."""

    async def is_held(self, tag: bytes, held: bytes) -> bool | None:
        """It lives."""
        return True


class Far:
    """A follower on another worker."""

    def __init__(self, led: Led) -> None:
        self.led = led
        self.followed = Followed(TAG, TOKEN, ask=lambda _: None, bytes_max=10**7)
        assert led.attach(INBOX, 0)
        self.pump()

    def pump(self) -> None:
        """All news so far."""
        while (news := self.led.news_for(INBOX)) is not None:
            assert not isinstance(news, Gone)
            self.followed.take(news)

    async def read_all(self) -> bytes:
        """To the end."""
        self.pump()
        chunks = []
        while chunk := await self.followed.next(silence_s=1.0, alive=partial(asyncio.sleep, 0, result=True)):
            chunks.append(chunk)
        return b"".join(chunks)


async def _lead(leader: Leader, takes: list[bool], passed: list[bytes], stored: list[bytes]) -> asyncio.Task[None]:
    """A call that is served as the pipeline does it; takes: what the client can take in passing, in turn, then everything."""
    coalesce = Coalesce(leader, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**6)
    call = make_call()
    call.cache_key, call.cache = b"key", CacheState.MISS
    reply = await coalesce.send(call)
    assert reply.stream is not None
    reply.stream = recording = Recording(
        reply.stream, bytes_max=10**6, on_end=lambda blocks: stored.append(b"".join(blocks)), on_large=lambda: None
    )

    def take(chunk: bytes) -> bool:
        if takes and not takes.pop(0):
            return False
        passed.append(chunk)
        return True

    async def serve() -> None:
        recording.tap(take)
        try:
            while chunk := await recording.read():
                passed.append(chunk)
        finally:
            recording.close()

    return asyncio.create_task(serve())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 250), st.integers(0, 260), st.lists(st.booleans(), max_size=60), st.binary(max_size=30))
def test_whatever_goes_in_passing_everybody_has_the_same_bytes(
    count: int, joins_at: int, takes: list[bool], tail: bytes
) -> None:
    """A client that now takes chunks and now does not, a follower that comes whenever: the same bytes, each once, also in the cache."""

    async def run() -> None:
        leader = Leader()
        passed: list[bytes] = []
        stored: list[bytes] = []
        serving = await _lead(leader, list(takes), passed, stored)
        await settle_down()
        events = [EVENT % number + tail for number in range(count)]
        far: Far | None = None
        for number, event in enumerate(events):
            if number == joins_at:
                far = Far(leader.led)
            leader.stream.hand(event)
            if far is not None:
                far.pump()
            if leader.stream.chunks:
                await settle_down()
        kept = len(leader.led._chunks)
        leader.stream.end()
        await serving
        far = far or Far(leader.led)
        assert b"".join(events) == b"".join(passed) == stored[0] == await far.read_all()
        assert joins_at < count or kept <= 80 + count // 40 + 2 * len(takes)

    asyncio.run(run())


async def test_a_stream_that_breaks_in_passing_breaks_for_all() -> None:
    """What was passed is there, and then the upstream's own words."""
    leader = Leader()
    passed: list[bytes] = []
    serving = await _lead(leader, [], passed, [])
    await settle_down()
    far = Far(leader.led)
    leader.stream.hand(b"one")
    leader.stream.end(StreamBroken(Outcome.TIMED_OUT, "too slow", event=b"data: no\n\n"))
    ended = await asyncio.gather(serving, return_exceptions=True)
    assert ([b"one"], "too slow") == (passed, str(ended[0]))
    far.pump()
    assert b"one" == await far.followed.next(silence_s=1.0, alive=partial(asyncio.sleep, 0, result=True))
    assert (True, True) == (leader.led.ended, not leader.led.may_attach)


async def test_what_has_ended_is_left_to_nobody() -> None:
    """Reader and stream know each other while chunks pass, and no longer."""
    gc.collect()
    gc.disable()
    try:
        leader = Leader()
        serving = await _lead(leader, [], [], [])
        await settle_down()
        leader.stream.hand(b"one")
        leader.stream.end()
        await serving
        leader.stream.reply = leader.stream.sink = None
        del leader, serving
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(item) for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert set() == left & {LedStream, Reader, Recording, Reply, Led}

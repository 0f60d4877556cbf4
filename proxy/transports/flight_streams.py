"""The streams of a flight between workers: the leader's own, shown to those who follow, and a follower's, as it comes in messages."""

from __future__ import annotations

from typing import Protocol

from controlplane.contract.records import Outcome
from proxy.call import Call, ChunkStream, Reply, Sink, StreamBroken, tap
from proxy.transports.flight import saved_nanousd
from proxy.transports.flight_bill import Bills
from proxy.transports.flight_follow import Followed
from proxy.transports.flight_lead import Led


class Flights(Protocol):
    """Who leads and follows."""

    bills: Bills

    @property
    def silence_s(self) -> float:
        """After how long without a word a follower looks whether its leader lives."""
        ...

    def bill_key(self, tag: bytes, token: bytes) -> bytes:
        """Where a flight's bill is."""
        ...

    def end(self, led: Led, *, linger: bool) -> None:
        """The flight has ended."""
        ...

    def unfollow(self, followed: Followed, call: Call, leader: bytes) -> None:
        """No more of it is wanted here."""
        ...

    async def is_held(self, tag: bytes, held: bytes) -> bool | None:
        """Whether the leader still has its lease; None if that cannot be found out."""
        ...


class LedStream:
    """The leader's stream, shown to those who follow from elsewhere. Its end waits until it is known who pays, where others follow."""

    __slots__ = ("_block", "_call", "_closing", "_failure", "_flights", "_inner", "_led", "_over", "_reply", "_sink")

    def __init__(self, flights: Flights, led: Led, call: Call, reply: Reply, inner: ChunkStream) -> None:
        self._flights = flights
        self._led = led
        self._call = call
        self._reply = reply
        self._inner = inner
        self._sink: Sink | None = None
        self._block: tuple[int, bytes] | None = None
        self._over = self._closing = False
        self._failure: StreamBroken | None = None

    async def read(self) -> bytes:
        """The inner stream's next chunk."""
        if not self._over:
            try:
                chunk = await self._inner.read()
            except StreamBroken as failure:
                self._failure = failure
            else:
                if chunk:
                    self._led.add(chunk)
                    return chunk
            self._over = True
        await self._finish()
        if self._failure is not None:
            raise self._failure
        return b""

    def tap(self, sink: Sink) -> None:
        """Chunks that a sink takes in passing are shown too."""
        self._sink = sink
        tap(self._inner, self._pass)

    def _pass(self, chunk: bytes) -> bool:
        if self._sink is None or not self._sink(chunk):
            return False
        self._led.add(chunk)
        if self._block is not None:
            self._led.join(*self._block)
            self._block = None
        return True

    def joined(self, count: int, block: bytes) -> None:
        """So many chunks, the last of which is being passed just now, are one in the local flight, and so they will be here."""
        self._block = (count, block)

    def close(self) -> None:
        """A stream that was not read to its end is broken for all, and its bill is the leader's alone."""
        led = self._led
        if not led.ended:
            if self._closing:
                self._flights.bills.void(self._flights.bill_key(led.tag, led.token))
            led.finish(
                self._reply, StreamBroken(Outcome.BROKEN_STREAM, "the call that shared this answer was given up")
            )
            self._flights.end(led, linger=False)
        self._inner.close()
        self._sink = None  # they know each other

    async def _finish(self) -> None:
        """Fixes who pays, and tells all how the stream ended; once, also when it is cancelled in between."""
        led, bill = self._led, None
        if led.ended:
            return
        if led.followed:
            self._closing = True
            key = self._flights.bill_key(led.tag, led.token)
            bill = await self._flights.bills.close(self._call, key, led.followers)
            self._closing = False
        led.finish(self._reply, self._failure, bill=bill)
        self._flights.end(led, linger=self._failure is None)


class FollowedStream:
    """Another worker's stream, as it comes in messages."""

    __slots__ = ("_call", "_flights", "_followed", "_held", "_reply")

    def __init__(self, flights: Flights, followed: Followed, call: Call, reply: Reply, held: bytes) -> None:
        self._flights = flights
        self._followed = followed
        self._call = call
        self._reply = reply
        self._held = held

    async def read(self) -> bytes:
        """The next chunk; raises StreamBroken when the leader is gone."""
        followed, reply, call = self._followed, self._reply, self._call
        try:
            chunk = await followed.next(silence_s=self._flights.silence_s, alive=self._is_alive)
        except StreamBroken:
            self._pay()
            raise
        if not chunk:
            followed.know_the_end(reply)
            self._pay()
            call.saved_nanousd = saved_nanousd(call, reply) if reply.complete else 0
        return chunk

    def close(self) -> None:
        """Reads no more."""
        self._flights.unfollow(self._followed, self._call, self._held.partition(b"/")[0])

    def _pay(self) -> None:
        if self._followed.bill is not None:
            self._flights.bills.pay(self._call, self._followed.bill)

    async def _is_alive(self) -> bool | None:
        return await self._flights.is_held(self._followed.tag, self._held)

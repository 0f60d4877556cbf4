"""Identical calls in flight on several workers and hosts share one upstream call, also while it streams.

Before the leader of a local flight asks upstream, it claims the flight in Redis: a lease under the key's name, which says who leads and with
which token. That is one round trip, on a miss. Who gets the lease asks upstream, and renews it while it does. Who does not becomes a
follower of the leader's worker: it tells that worker's inbox that it wants the flight, and gets the answer so far and what comes, as
messages to its own inbox. So a flight that nobody follows elsewhere costs its leader nothing but the lease.

What can go wrong, and what then happens:

- Redis is out or too slow: every worker shares its own flights, as without Redis.
- The leader dies: its lease runs out. A follower that has had nothing yet claims the flight and asks upstream itself; one whose client
  has had a part of the answer ends with a broken stream, because nobody else can continue it.
- A message is lost: chunks are counted, and a follower that misses some, or has heard nothing for a while, asks for the rest.
- The leader lives but is not heard at all: after a few silences the follower asks upstream itself.
- The leader lost its lease though it lives: another may ask upstream too. Words carry the token of their flight, so its followers
  never mix two answers.
- The follower's client leaves: the leader's worker hears of it, and counts it out as one of its own.

An answer that is whole can be followed for `LINGER_S` more, so that a worker which looked into the cache just before finds it.
The bill is the leader's worker's, and split there between its own calls where the tenant's policy says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable

from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, ChunkStream, Reply, StreamBroken, Transport
from proxy.refusals import TIMED_OUT, refuse
from proxy.savings import avoided_nanousd
from proxy.shared import Script, SharedState, SharedUnavailable
from proxy.transports.flight_follow import Followed
from proxy.transports.flight_lead import Buffers, Led
from proxy.transports.flight_words import Attach, Detach, Gone, News, Seals, Word

LINGER_S = 1.0
REFRESH_MS = 10_000  # how long a stale answer is left to the worker that asks it anew
TRIES_MAX = 3  # leaders that a call waits for, one after the other
_NAME_BYTES = 8

_CLAIM = Script(
    "flight_claim",
    "local held = redis.call('GET', KEYS[1]) if held then return held end "
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1",
)
_RENEW = Script(
    "flight_renew",
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
)
_RELEASE = Script(
    "flight_release", "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class SharedFlights:
    """Leads flights that others follow, and follows those of others."""

    def __init__(
        self,
        inner: Transport,
        shared: SharedState | None,
        *,
        secret: bytes,
        lease_s: float,
        buffer_bytes_max: int,
        flights_max: int,
        buffers_bytes_max: int = 128 * 1024 * 1024,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """shared: None where there is no Redis. lease_s: how soon a dead leader is noticed. flights_max: led or followed at any moment.

        buffer_bytes_max: kept of one flight; buffers_bytes_max: of all that are led here.
        """
        self._inner = inner
        self._shared = shared
        self._seals = Seals(secret)
        self._lease_ms = round(lease_s * 1000)
        self._lease_s = lease_s
        self._buffer_bytes_max = buffer_bytes_max
        self._flights_max = flights_max
        self.buffers = Buffers(buffers_bytes_max)
        self._monotonic = monotonic
        self._name = os.urandom(_NAME_BYTES).hex().encode()
        self._led: dict[bytes, Led] = {}  # by the flight's tag
        self._followed: dict[bytes, Followed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self.on_left: Callable[[bytes], None] = lambda _: None  # told the key of a flight that a worker follows no more
        self.led_total = 0
        self.followed_total = 0
        self.taken_over_total = 0
        self.full_total = 0
        self.unheard_total = 0  # words that were not ours
        if shared is not None:
            shared.subscribe(self._channel(self._name), self._hear)

    @property
    def active(self) -> int:
        """Flights led or followed now."""
        return len(self._led) + len(self._followed)

    @property
    def silence_s(self) -> float:
        """After how long without a word a follower looks whether its leader lives."""
        return self._lease_s / 2

    def followers(self, key: bytes) -> int:
        """How many other workers follow the flight of a cache key."""
        if not self._led:
            return 0
        led = self._led.get(self._seals.tag_of(key))
        return 0 if led is None else len(led.followers)

    async def send(self, call: Call) -> Reply:
        """The reply of this call's flight, wherever it is led."""
        shared = self._shared
        if shared is None or shared.degraded or call.cache is not CacheState.MISS or not call.cache_key:
            return await self._inner.send(call)
        if not shared.listening:  # nobody's words would be heard here
            return await self._inner.send(call)
        tag = self._seals.tag_of(call.cache_key)
        for _ in range(TRIES_MAX):
            if self.active >= self._flights_max:
                self.full_total += 1
                break
            token = os.urandom(_NAME_BYTES).hex().encode()
            began_ns = time.monotonic_ns()
            try:
                held = await shared.run(_CLAIM, [self._lease_key(tag)], self._name + b"/" + token, self._lease_ms)
            except SharedUnavailable:
                break
            finally:
                call.waited_ns += time.monotonic_ns() - began_ns
            if not isinstance(held, bytes):
                return await self._lead(call, tag, token)
            reply, again = await self._follow(call, tag, held)
            if reply is not None:
                return reply
            if not again:
                break
            self.taken_over_total += 1
        return await self._inner.send(call)

    async def is_refreshed_elsewhere(self, key: bytes) -> bool:
        """Whether another worker asks a stale answer anew just now; if not, this one does, and the others hear so."""
        shared = self._shared
        if shared is None or shared.degraded:
            return False
        name = b"%brefresh:{%b}" % (shared.prefix, self._seals.tag_of(key))
        try:
            return await shared.ask("SET", name, self._name, "NX", "PX", REFRESH_MS, key=name) is None
        except SharedUnavailable:
            return False

    async def aclose(self) -> None:
        """Ends all flights, and closes the inner transport; safe to call twice."""
        if self._renewing is not None:
            self._renewing.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._inner.aclose()

    async def _lead(self, call: Call, tag: bytes, token: bytes) -> Reply:
        led = Led(
            tag,
            token,
            call.cache_key,
            leader=self._name,
            pump=self._pump,
            bytes_max=self._buffer_bytes_max,
            buffers=self.buffers,
        )
        self._led[tag] = led
        self.led_total += 1
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(), name="flight-leases")
        try:
            reply = await self._inner.send(call)
        except BaseException:
            self.end(led, linger=False)
            raise
        if call.fell_back:  # another model stood in: nobody else's
            self.end(led, linger=False)
            return reply
        led.begin(reply)
        if reply.stream is None:
            whole = reply.outcome is Outcome.OK and reply.complete
            if not whole and reply.outcome is Outcome.TIMED_OUT:
                led.give_up()  # the leader ran out of its own time: a follower may have more
            self.end(led, linger=whole)
        else:
            reply.stream = _LedStream(self, led, reply, reply.stream)
        return reply

    def end(self, led: Led, *, linger: bool) -> None:
        """The flight has ended; one that lingers can be followed for a moment more."""
        if led.ended:
            return
        led.ended = True
        if not led.begun:
            led.give_up()
        if linger and led.may_attach:
            asyncio.get_running_loop().call_later(LINGER_S, self._forget, led)
        else:
            self._forget(led)

    def _forget(self, led: Led) -> None:
        if self._led.get(led.tag) is led:
            del self._led[led.tag]
        led.leave()
        self._spawn(self._release(led))

    async def _release(self, led: Led) -> None:
        if self._shared is not None:
            await self._shared.run(_RELEASE, [self._lease_key(led.tag)], self._name + b"/" + led.token)

    async def _renew(self) -> None:
        """Renews every lease a few times before it runs out, while there are any."""
        shared = self._shared
        try:
            while self._led and shared is not None:
                await asyncio.sleep(self._lease_s / 3)
                for led in tuple(self._led.values()):
                    if led.ended:
                        continue
                    try:
                        held = self._name + b"/" + led.token
                        await shared.run(_RENEW, [self._lease_key(led.tag)], held, self._lease_ms)
                    except SharedUnavailable:
                        break
        finally:
            self._renewing = None

    async def _follow(self, call: Call, tag: bytes, held: bytes) -> tuple[Reply | None, bool]:
        """The leader's reply, or None; then whether another leader may be looked for."""
        leader, _, token = held.partition(b"/")
        if tag in self._followed or leader == self._name:
            return None, False
        followed = Followed(
            tag,
            token,
            ask=lambda position: self._say(leader, Attach(tag, token, self._name, position)),
            bytes_max=self._buffer_bytes_max,
        )
        self._followed[tag] = followed
        self.followed_total += 1
        call.cache = CacheState.COALESCED
        began_ns = time.monotonic_ns()
        try:
            followed.ask(0)
            in_time = await followed.wait_for_beginning(
                left_s=call.deadline - self._monotonic() if call.deadline else None,
                silence_s=self.silence_s,
                alive=lambda: self.is_held(tag, held),
            )
        except BaseException:
            self.unfollow(followed, leader)
            raise
        finally:
            call.waited_ns += time.monotonic_ns() - began_ns
        reply = followed.reply()
        if reply is not None and followed.is_stream:
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
            reply.stream = _FollowedStream(self, followed, call, reply, held)
            return reply, False
        if reply is not None:
            self.unfollow(followed, leader)
            call.saved_nanousd = avoided_nanousd(call, reply.deployment, reply.tokens) if reply.complete else 0
            return reply, False
        self.unfollow(followed, leader)
        if not in_time:
            message = "the answer to an identical call, which this one waited for, did not begin in time"
            return refuse(TIMED_OUT, message), False
        call.cache = CacheState.MISS
        return None, not followed.alone

    async def is_held(self, tag: bytes, held: bytes) -> bool | None:
        """Whether the leader still has its lease; None if that cannot be found out."""
        if self._shared is None:
            return False
        key = self._lease_key(tag)
        try:
            return await self._shared.ask("GET", key, key=key) == held
        except SharedUnavailable:
            return None

    def unfollow(self, followed: Followed, leader: bytes) -> None:
        """No more of it is wanted here; the leader's worker is told. Safe to call twice."""
        if self._followed.get(followed.tag) is followed:
            del self._followed[followed.tag]
            self._say(leader, Detach(followed.tag, followed.token, self._name))

    def _hear(self, data: bytes) -> None:
        """A word in this worker's inbox."""
        word = self._seals.opened(self._channel(self._name), data)
        if word is None:
            self.unheard_total += 1
        elif isinstance(word, News):
            followed = self._followed.get(word.flight)
            if followed is not None and followed.token == word.token:
                followed.take(word)
            else:
                self._say(word.leader, Detach(word.flight, word.token, self._name))
        elif isinstance(word, Gone):
            followed = self._followed.get(word.flight)
            if followed is not None and followed.token == word.token:
                followed.lose(alone=word.alone)
        else:
            self._serve(word)

    def _serve(self, word: Attach | Detach) -> None:
        led = self._led.get(word.flight)
        if led is None or led.token != word.token:
            if isinstance(word, Attach):
                self._say(word.inbox, Gone(word.flight, word.token))
        elif isinstance(word, Detach):
            led.followers.pop(word.inbox, None)
            if not led.followers:
                self.on_left(led.key)
        elif not led.attach(word.inbox, word.position):
            self._say(word.inbox, Gone(word.flight, word.token, alone=True))

    def _pump(self, led: Led, inbox: bytes) -> None:
        """Begins to send a follower what it does not have yet."""
        led.followers[inbox].pumping = True
        self._spawn(self._send_news(led, inbox))

    async def _send_news(self, led: Led, inbox: bytes) -> None:
        """One message after the other, each with all that has come since the one before, so that their order is kept."""
        place = led.followers.get(inbox)
        try:
            while (news := led.news_for(inbox)) is not None:
                await self._publish(inbox, news)
        finally:
            if place is not None:
                place.pumping = False  # what is lost here the follower asks for again

    def _say(self, inbox: bytes, word: Word) -> None:
        """Sends a word some time soon, or never."""
        self._spawn(self._publish(inbox, word))

    async def _publish(self, inbox: bytes, word: Word) -> None:
        channel = self._channel(inbox)
        if self._shared is not None:
            await self._shared.publish(channel, self._seals.sealed(channel, word))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work), name="flight-word")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lease_key(self, tag: bytes) -> bytes:
        return b"%bflight:{%b}" % (b"" if self._shared is None else self._shared.prefix, tag)

    def _channel(self, inbox: bytes) -> bytes:
        return b"%binbox:%b" % (b"" if self._shared is None else self._shared.prefix, inbox)


class _LedStream:
    """The leader's stream, shown to those who follow from elsewhere."""

    __slots__ = ("_flights", "_inner", "_led", "_reply")

    def __init__(self, flights: SharedFlights, led: Led, reply: Reply, inner: ChunkStream) -> None:
        self._flights = flights
        self._led = led
        self._reply = reply
        self._inner = inner

    async def read(self) -> bytes:
        """The inner stream's next chunk."""
        try:
            chunk = await self._inner.read()
        except StreamBroken as failure:
            self._finish(failure)
            raise
        if chunk:
            self._led.add(chunk)
        else:
            self._finish(None)
        return chunk

    def close(self) -> None:
        """A stream that was not read to its end is broken for all."""
        self._finish(StreamBroken(Outcome.BROKEN_STREAM, "the call that shared this answer was given up"))
        self._inner.close()

    def _finish(self, failure: StreamBroken | None) -> None:
        if not self._led.ended:
            self._led.finish(self._reply, failure)
            self._flights.end(self._led, linger=failure is None)


class _FollowedStream:
    """Another worker's stream, as it comes in messages."""

    __slots__ = ("_call", "_flights", "_followed", "_held", "_reply")

    def __init__(self, flights: SharedFlights, followed: Followed, call: Call, reply: Reply, held: bytes) -> None:
        self._flights = flights
        self._followed = followed
        self._call = call
        self._reply = reply
        self._held = held

    async def read(self) -> bytes:
        """The next chunk; raises StreamBroken when the leader is gone."""
        chunk = await self._followed.next(silence_s=self._flights.silence_s, alive=self._is_alive)
        if not chunk:
            reply, call = self._reply, self._call
            self._followed.know_the_end(reply)
            call.saved_nanousd = avoided_nanousd(call, reply.deployment, reply.tokens) if reply.complete else 0
        return chunk

    def close(self) -> None:
        """Reads no more."""
        self._flights.unfollow(self._followed, self._held.partition(b"/")[0])

    async def _is_alive(self) -> bool | None:
        return await self._flights.is_held(self._followed.tag, self._held)


def watch_flights(watch: Callable[[str, str, Callable[[], float]], None], flights: SharedFlights) -> None:
    """Shows the figures of what workers share."""
    watch("flights_active", "Flights led for other workers or followed elsewhere now.", lambda: flights.active)
    watch("flights_led_total", "Flights that other workers could follow.", lambda: flights.led_total)
    watch("flights_followed_total", "Flights of other workers that were followed.", lambda: flights.followed_total)
    watch("flights_taken_over_total", "Flights whose leader was gone.", lambda: flights.taken_over_total)
    watch("flights_buffer_bytes", "Bytes of streams held for other workers now.", lambda: flights.buffers.bytes_used)
    watch("flights_full_total", "Calls not shared between workers because too many were.", lambda: flights.full_total)
    watch("flights_unheard_total", "Messages that no proxy of ours sent.", lambda: flights.unheard_total)


async def _quietly(work: Awaitable[None]) -> None:
    """What Redis does not take is lost; whoever misses it asks again."""
    with contextlib.suppress(SharedUnavailable):
        await work

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
- Redis is gone in the middle: a follower that has had nothing yet asks upstream itself, as soon as it knows; one that has ends with a
  broken stream, unless Redis is back in time. A Redis that comes back with nothing in it is told by the leader that it leads.
- The leader lives but is not heard at all: after a few silences the follower asks upstream itself.
- The leader lost its lease though it lives: another may ask upstream too. Words carry the token of their flight, so its followers
  never mix two answers.
- The follower's client leaves: the leader's worker hears of it, and counts it out as one of its own.
- The follower's worker dies: it says no longer that it stays, and is counted out two leases later.
- No upstream could answer: that is shared too, or each worker would find it out anew. A refusal for which none was asked (every breaker is
  open, no place is free) says something of the leader's worker alone, and one for want of time of the leader alone: the others ask.
- The follower's key may use other models than the leader's, on a route where others can stand in: it gets what it could have got itself,
  as within a worker, and else asks for itself.

An answer that is whole can be followed for `LINGER_S` more, so that a worker which looked into the cache just before finds it.
The bill is the leader's worker's, or where the tenant's policy says so it is split between all calls of all workers: see `flight_bill`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine

from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, Reply, Transport
from proxy.refusals import TIMED_OUT, refuse
from proxy.shared import Script, SharedState, SharedUnavailable
from proxy.transports.flight import is_shared, may_have, saved_nanousd
from proxy.transports.flight_bill import Bills, watch_bills
from proxy.transports.flight_follow import Followed
from proxy.transports.flight_lead import Buffers, Led
from proxy.transports.flight_streams import FollowedStream, LedStream
from proxy.transports.flight_words import Attach, Detach, Gone, News, Seals, Stay, Word

LINGER_S = 1.0
REFRESH_MS = 10_000  # how long a stale answer is left to the worker that asks it anew
AT_ONCE = (
    16  # leases that are renewed, or leaders that are told: Redis answers only so many questions of a worker at once
)
TRIES_MAX = 3  # leaders that a call waits for, one after the other
COUNT_LEASES = 10  # so many leases long a part of a bill may remain unbooked before it is counted
_NAME_BYTES = 8

_CLAIM = Script(
    "flight_claim",
    "local held = redis.call('GET', KEYS[1]) if held then return held end "
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1",
)
_RENEW = Script(
    "flight_renew",
    "local held = redis.call('GET', KEYS[1]) if held == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end "
    "if held then return 0 end redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1",  # a Redis that forgot is told
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
        count_after_s: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """shared: None where there is no Redis. lease_s: how soon a dead leader is noticed. flights_max: led or followed at any moment.

        buffer_bytes_max: kept of one flight; buffers_bytes_max: of all that are led here. count_after_s: for how long a part of a
        bill may remain unbooked; None: for ten leases.
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
        self._claimed: dict[bytes, Led] = {}  # by token: what may be led, as soon as Redis has answered
        self._followed: dict[bytes, Followed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None
        self.bills = Bills(
            shared,
            inbox=self._name,
            seals=self._seals,
            lease_s=lease_s,
            count_after_s=lease_s * COUNT_LEASES if count_after_s is None else count_after_s,
            bills_max=flights_max,
            monotonic=monotonic,
        )
        self.on_left: Callable[[bytes], None] = lambda _: None  # told the key of a flight that a worker follows no more
        self.on_followed: Callable[[bytes], None] = lambda _: None  # the same for one that a worker follows now
        self.led_total = self.followed_total = self.taken_over_total = 0
        self.full_total = 0
        self.parted_total = 0
        self.counted_out_total = 0  # followers of which nothing was heard for long
        self.unheard_total = 0  # words that were not ours
        if shared is not None:
            shared.subscribe(self._channel(self._name), self._hear)

    @property
    def active(self) -> int:
        """Flights led or followed now, or about to be."""
        return len(self._led) + len(self._followed) + len(self._claimed)

    @property
    def silence_s(self) -> float:
        """After how long without a word a follower looks whether its leader lives."""
        return self._lease_s / 2

    def followers(self, key: bytes) -> int:
        """How many other workers follow the flight of a cache key."""
        if not self._led:
            return 0
        led = self._led.get(self._seals.tag_of(key))
        return 0 if led is None or led.ended else len(led.followers)

    def send(self, call: Call) -> Coroutine[object, object, Reply]:
        """The reply of this call's flight, wherever it is led."""
        shared = self._shared
        if shared is None or shared.degraded or call.cache is not CacheState.MISS or not call.cache_key:
            return self._inner.send(call)
        return self._share(call, shared) if shared.listening else self._inner.send(call)  # else no words would be heard

    async def _share(self, call: Call, shared: SharedState) -> Reply:
        tag = self._seals.tag_of(call.cache_key)
        for _ in range(TRIES_MAX):
            if self.active >= self._flights_max:
                self.full_total += 1
                break
            led = self._new_led(call, tag)
            self._claimed[led.token] = led  # others may know that it leads before this worker does
            began_ns = time.monotonic_ns()
            try:
                held = await shared.run(_CLAIM, [self._lease_key(tag)], led.held, self._lease_ms)
            except BaseException as trouble:
                led.give_up()
                self._spawn(self._release(led))  # it may be ours all the same
                if isinstance(trouble, SharedUnavailable):
                    break
                raise
            finally:
                del self._claimed[led.token]
                call.waited_ns += time.monotonic_ns() - began_ns
            if not isinstance(held, bytes):
                return await self._lead(call, led)
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
        for loop in (self._renewing, self._staying):
            if loop is not None:
                loop.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bills.aclose()
        await self._inner.aclose()

    def bill_key(self, tag: bytes, token: bytes) -> bytes:
        """Where a flight's bill is."""
        return b"%bbill:{%b}:%b" % (b"" if self._shared is None else self._shared.prefix, tag, token)

    def _new_led(self, call: Call, tag: bytes) -> Led:
        """What this worker would lead if it gets the lease."""
        models = b""
        if call.route is not None and call.route.spares and call.identity is not None:
            models = self._seals.models_tag(call.identity.models)
        return Led(
            tag,
            os.urandom(_NAME_BYTES).hex().encode(),
            call.cache_key,
            leader=self._name,
            pump=self._pump,
            bytes_max=self._buffer_bytes_max,
            buffers=self.buffers,
            models=models,
        )

    async def _lead(self, call: Call, led: Led) -> Reply:
        self._led[led.tag] = led
        self.led_total += 1
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(), name="flight-leases")
        bill = None
        try:
            reply = await self._inner.send(call)
            if reply.stream is not None:
                led.begin(reply, fell_back=call.fell_back)
                reply.stream = LedStream(self, led, call, reply, reply.stream)
                return reply
            if led.followed and is_shared(call, reply) and led.holds(reply):
                bill = await self.bills.close(call, self.bill_key(led.tag, led.token), led.followers)
        except BaseException:
            if led.followed:
                self.bills.void(self.bill_key(led.tag, led.token))
            self.end(led, linger=False)
            raise
        if is_shared(call, reply):
            led.begin(reply, fell_back=call.fell_back, bill=bill)
        else:
            led.give_up()
        self.end(led, linger=reply.outcome is Outcome.OK and reply.complete)
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
            await self._shared.run(_RELEASE, [self._lease_key(led.tag)], led.held)

    async def _renew(self) -> None:
        """Renews every lease a few times before it runs out, while there are any."""
        shared = self._shared
        try:
            while self._led and shared is not None:
                await asyncio.sleep(self._lease_s / 3)
                self._count_out(deaf=shared.degraded or not shared.listening)
                leds = tuple(self._led.values())
                for at in range(0, len(leds), AT_ONCE):
                    await asyncio.gather(*(self._renew_lease(led, shared) for led in leds[at : at + AT_ONCE]))
        finally:
            self._renewing = None

    async def _renew_lease(self, led: Led, shared: SharedState) -> None:
        if led.ended:
            return
        with contextlib.suppress(SharedUnavailable):
            await shared.run(_RENEW, [self._lease_key(led.tag)], led.held, self._lease_ms)
        if self._led.get(led.tag) is not led:  # it has ended meanwhile, and may have been let go of before
            self._spawn(self._release(led))

    def _count_out(self, *, deaf: bool) -> None:
        """Followers that have died take no part any more, as those that have left."""
        for led in tuple(self._led.values()):
            silent = 0 if led.ended else led.count_out(deaf=deaf)
            self.counted_out_total += silent
            if silent and not led.followers:
                self.on_left(led.key)

    async def _stay(self) -> None:
        """Tells each leader a few times a lease that its flight is still wanted here, while any is followed."""
        try:
            while self._followed:
                await asyncio.sleep(self._lease_s / 3)
                stays = [(one.leader, Stay(one.tag, one.token, self._name)) for one in self._followed.values()]
                for at in range(0, len(stays), AT_ONCE):
                    some = stays[at : at + AT_ONCE]
                    await asyncio.gather(*(_quietly(self._publish(leader, word)) for leader, word in some))
        finally:
            self._staying = None

    async def _follow(self, call: Call, tag: bytes, held: bytes) -> tuple[Reply | None, bool]:
        """The leader's reply, or None; then whether another leader may be looked for."""
        leader, token, models = held.split(b"/") if held.count(b"/") == 2 else (b"", b"", b"")  # 2: ours
        if tag in self._followed or leader in (self._name, b""):
            return None, False
        self.followed_total += 1
        number = self.followed_total
        followed = Followed(
            tag,
            token,
            ask=lambda position: self._say(leader, Attach(tag, token, self._name, position, number)),
            bytes_max=self._buffer_bytes_max,
            leader=leader,
        )
        self._followed[tag] = followed
        if self._staying is None:
            self._staying = asyncio.get_running_loop().create_task(self._stay(), name="flight-stays")
        call.cache = CacheState.COALESCED
        if self._uses(call, models):  # else it is not known yet whether the answer is for this call
            self.bills.sit(call, self.bill_key(tag, token))
        began_ns = time.monotonic_ns()
        try:
            followed.ask(0)
            in_time = await followed.wait_for_beginning(
                left_s=call.deadline - self._monotonic() if call.deadline else None,
                silence_s=self.silence_s,
                alive=lambda: self._may_begin(tag, held),
            )
        except BaseException:
            self.unfollow(followed, call, leader)
            raise
        finally:
            call.waited_ns += time.monotonic_ns() - began_ns
        reply = followed.reply()
        if reply is not None:
            if self._is_for(call, followed, reply):
                return self._shown(call, followed, reply, held), False
            self.parted_total += 1
        self.unfollow(followed, call, leader)
        if not in_time:
            message = "the answer to an identical call, which this one waited for, did not begin in time"
            return refuse(TIMED_OUT, message), False
        call.cache = CacheState.MISS
        return None, not followed.alone and reply is None

    def _shown(self, call: Call, followed: Followed, reply: Reply, held: bytes) -> Reply:
        """The reply to a follower, with its part of the bill if that is known already."""
        call.fell_back = followed.fell_back
        if followed.is_stream:
            self.bills.sit(call, self.bill_key(followed.tag, followed.token))
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
            reply.stream = FollowedStream(self, followed, call, reply, held)
            return reply
        if followed.bill is not None:
            self.bills.pay(call, followed.bill)
        self.unfollow(followed, call, held.partition(b"/")[0])
        call.saved_nanousd = saved_nanousd(call, reply) if reply.complete else 0
        return reply

    def _uses(self, call: Call, models: bytes) -> bool:
        """Whether a key may use what the leader's may, or no other model can stand in."""
        return not models or (call.identity is not None and self._seals.models_tag(call.identity.models) == models)

    def _is_for(self, call: Call, followed: Followed, reply: Reply) -> bool:
        return self._uses(call, followed.models) or may_have(call, reply, fell_back=followed.fell_back)

    async def is_held(self, tag: bytes, held: bytes) -> bool | None:
        """Whether the leader still has its lease; None if that cannot be found out."""
        if self._shared is None:
            return False
        key = self._lease_key(tag)
        try:
            return await self._shared.ask("GET", key, key=key) == held
        except SharedUnavailable:
            return None

    async def _may_begin(self, tag: bytes, held: bytes) -> bool | None:
        """The same for a follower that has had nothing yet: it need not wait for a Redis that is out."""
        found = await self.is_held(tag, held)
        return False if found is None and self._shared is not None and self._shared.degraded else found

    def unfollow(self, followed: Followed, call: Call, leader: bytes) -> None:
        """No more of it is wanted here; the leader's worker is told. Safe to call twice."""
        self.bills.rise(call)
        if self._followed.get(followed.tag) is followed:
            del self._followed[followed.tag]
            self._say(leader, self._detach(followed.tag, followed.token))

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
                self._say(word.leader, self._detach(word.flight, word.token))
        elif isinstance(word, Gone):
            followed = self._followed.get(word.flight)
            if followed is not None and followed.token == word.token:
                followed.lose(alone=word.alone)
        else:
            self._serve(word)

    def _serve(self, word: Attach | Detach | Stay) -> None:
        led = self._led.get(word.flight)
        if led is None or led.token != word.token:
            led = self._claimed.get(word.token)
        if led is None or led.tag != word.flight:
            if isinstance(word, Attach):
                self._say(word.inbox, Gone(word.flight, word.token))
        elif isinstance(word, Stay):
            led.hear(word.inbox)
        elif isinstance(word, Detach):
            led.detach(word.inbox, word.number)
            if not led.followers:
                self.on_left(led.key)
        elif led.attach(word.inbox, word.position, word.number):
            self.on_followed(led.key)
        else:
            self._say(word.inbox, Gone(word.flight, word.token, alone=True))

    def _detach(self, tag: bytes, token: bytes) -> Detach:
        """No more of a flight, whatever was asked for until now."""
        return Detach(tag, token, self._name, self.followed_total)

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


def watch_flights(watch: Callable[[str, str, Callable[[], float]], None], flights: SharedFlights) -> None:
    """Shows the figures of what workers share."""
    watch("flights_active", "Flights led for other workers or followed elsewhere now.", lambda: flights.active)
    watch("flights_led_total", "Flights that other workers could follow.", lambda: flights.led_total)
    watch("flights_followed_total", "Flights of other workers that were followed.", lambda: flights.followed_total)
    watch("flights_taken_over_total", "Flights whose leader was gone.", lambda: flights.taken_over_total)
    watch("flights_buffer_bytes", "Bytes of streams held for other workers now.", lambda: flights.buffers.bytes_used)
    watch("flights_full_total", "Calls not shared between workers because too many were.", lambda: flights.full_total)
    watch(
        "flights_parted_total",
        "Answers of other workers that were not for a call's key, because it may use other models.",
        lambda: flights.parted_total,
    )
    watch("flights_counted_out_total", "Workers that followed a flight and died.", lambda: flights.counted_out_total)
    watch_bills(watch, flights.bills)
    watch("flights_unheard_total", "Messages that no proxy of ours sent.", lambda: flights.unheard_total)


async def _quietly(work: Awaitable[None]) -> None:
    """What Redis does not take is lost; whoever misses it asks again."""
    with contextlib.suppress(SharedUnavailable):
        await work

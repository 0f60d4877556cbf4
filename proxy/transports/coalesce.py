"""Identical calls in flight share one upstream call, also while it streams.

A *flight* is one upstream call with everybody who waits for it: the *leader*, whose serving task runs it, and *followers*, which
joined because their cache key (and so their tenant) is the same. A call takes part when the cache gave it a key and the state
`MISS`; any other call goes straight through.

The protocol between the pipeline and a flight:

1. The pipeline calls `send` in the call's serving task and reads `reply.stream` in that same task. It always closes the stream
   when it is done with it, whatever happened.
2. When a call's client goes, the pipeline calls `leave(call, task)` once. It marks the call `client_gone` and answers:
   - True: nobody needs this call's serving task any more (`call.aborted` is set). The pipeline cancels the task; the CancelledError that
     comes out of `send` or `read` closes the upstream, and the call is settled as estimated.
   - False: others live on what this task runs. It must not be cancelled: it goes on, reads the stream to its end and throws
     the chunks away, and settles the call with the truth.
3. When the last follower leaves a flight whose leader's client has gone already, `leave` of that follower marks the leader
   `aborted` and cancels the leader's serving task, as the pipeline would have done.
4. Who pays is the tenant's policy (`coalesce_cost`): the leader, or all who are in the flight when it ends, in equal parts.
   Where the leader pays a follower has `call.cache = COALESCED`, no attempts, no tokens and no cost; `call.saved_nanousd` is set when the answer is complete.
   Refusals and errors of the leader are shared with the followers, but for three: a leader that ran out of its own time, one whose
   task died, and one of a lower priority for which no upstream was asked. Then a follower that has time left starts over, alone or with
   the other followers. So does a follower whose key may use other models than the leader's, where another model stood in that it may not
   use, or one could stand in that the leader may not.

Whoever needs the next chunk pulls it: `ChunkStream.read` is safe to cancel, so a flight needs no task of its own and no reader can take a
chunk away. Only where other workers follow it a task pulls for them, or they would wait for a slow client here. Chunks are kept for those
who join later, up to a limit in bytes; above it nobody joins any more and what all have read is dropped; a reader that is further behind
than the limit loses its stream, and a follower that finds the beginning dropped starts over. If the reader is the leader's, its task goes
on to the end of the flight before it says so, because it alone can settle the upstream call. A leader whose task ends before the stream
without having been told that it may (a shutdown, a bug) takes the stream with it: what it used so far is settled, and the followers'
streams break.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

import structlog

from controlplane.contract.records import CacheState, Outcome
from controlplane.contract.snapshot import CoalesceCost
from proxy.call import Call, Reply, Transport
from proxy.refusals import TIMED_OUT, refuse
from proxy.savings import split_attempt
from proxy.transports.concurrency import rank_of
from proxy.transports.flight import Flight, Reader, copy_of, is_for, is_shared, resolve, saved_nanousd

log = structlog.get_logger("proxy.coalesce")


class Coalesce:
    """Joins calls with equal cache keys into flights."""

    def __init__(
        self,
        inner: Transport,
        *,
        calls_max: int,
        buffer_bytes_max: int,
        buffers_bytes_max: int,
        monotonic: Callable[[], float] = time.monotonic,
        elsewhere: Callable[[bytes], int] = lambda _: 0,
        recount: Callable[[Call], None] = lambda _: None,
    ) -> None:
        """Nothing starts here.

        elsewhere: how many other workers follow the flight of a key; a flight goes on for them as for followers of its own.
        recount: told a flight's leader when more or fewer calls follow it.

        calls_max: followers at any moment; a call beyond goes upstream by itself.
        buffer_bytes_max: chunks kept by one flight; buffers_bytes_max: by all of them.
        """
        self._inner = inner
        self._calls_max = calls_max
        self._buffer_bytes_max = buffer_bytes_max
        self._buffers_bytes_max = buffers_bytes_max
        self._monotonic = monotonic
        self._elsewhere = elsewhere
        self._recount = recount
        self._joinable: dict[bytes, Flight] = {}
        self._members: dict[str, Flight] = {}  # by call id: leaders and followers that have not finished
        self.followers = 0  # now
        self.buffered_bytes = 0  # now, all flights
        self.joined_total = 0
        self.full_total = 0  # calls that went alone because of calls_max
        self.unjoinable_total = 0  # flights that nobody could join any more because of the buffer limits
        self.ejected_total = 0  # readers that fell too far behind
        self.parted_total = 0  # followers that started over, because their keys may use other models

    @property
    def flights(self) -> int:
        """Flights that can be joined now."""
        return len(self._joinable)

    @property
    def members(self) -> int:
        """Calls that are in a flight now; 0 when nothing is going on."""
        return len(self._members)

    def send(self, call: Call) -> Coroutine[object, object, Reply]:
        """The reply of this call's flight, or of the inner transport when the call cannot share."""
        if call.cache is not CacheState.MISS or not call.cache_key or call.fell_back:
            return self._inner.send(call)
        return self._join(call) if call.cache_key in self._joinable else self._lead(call)

    async def _join(self, call: Call) -> Reply:
        while True:
            flight = self._joinable.get(call.cache_key)
            if flight is None:
                break
            head = flight.head
            if head is not None and not is_for(call, flight.leader, head):
                return await self._inner.send(call)
            if self.followers >= self._calls_max:
                self.full_total += 1
                return await self._inner.send(call)
            reply = await self._follow(call, flight)
            if reply is not None:
                return reply
            call.cache = CacheState.MISS  # the flight failed in a way that is the leader's own: start over
        return await self._lead(call)

    def leave(self, call: Call, task: asyncio.Task[None]) -> bool:
        """The call's client has gone: may its serving task be cancelled? See the protocol above; safe to call twice."""
        call.client_gone = True
        flight = self._members.get(call.call_id)
        if flight is None:
            call.aborted = True
        elif flight.leader is call:
            flight.leader_gone, flight.task = True, task
            if not flight.followers and not flight.ended and not self._elsewhere(flight.key):
                self.close_to_joiners(flight)
                call.aborted = True
        else:
            call.aborted = True
            self.forget(call, flight)
        return call.aborted

    def sharers(self, call: Call) -> list[Call]:
        """A leading call, and those that follow it here."""
        flight = self._members.get(call.call_id)
        return [call] if flight is None else [call, *flight.calls.values()]

    def left_elsewhere(self, key: bytes) -> None:
        """Another worker does not follow the flight of a key any more; if nobody else does, it is given up."""
        for flight in tuple(self._members.values()):
            if flight.key != key or not flight.leader_gone or flight.followers:
                continue
            if not flight.ended and not flight.leader.aborted:
                self._give_up(flight)

    def followed_elsewhere(self, key: bytes) -> None:
        """Another worker follows the flight of a key: it must not wait until a slow client here has taken what came."""
        flight = self._joinable.get(key)
        if flight is not None:
            flight.elsewhere = True
            if flight.begun:
                self._read_along(flight)

    async def aclose(self) -> None:
        """Closes the inner transport; flights end with the tasks that run them."""
        await self._inner.aclose()

    async def _lead(self, call: Call) -> Reply:
        flight = Flight(self, call)
        self._joinable[call.cache_key] = flight
        self._members[call.call_id] = flight
        try:
            reply = await self._inner.send(call)
        except BaseException:  # cancelled, or a bug: followers must not wait for what will never come
            self.forget(call, flight)
            flight.deliver(None)
            raise
        if reply.stream is None:
            self.forget(call, flight)
            if flight.calls:
                self._part(flight, reply)
                if reply.outcome is not Outcome.TIMED_OUT:  # or its followers start over
                    self.share_bill(flight)
        else:
            flight.begin(reply.stream)
            reply.stream = Reader(self, flight, call, reply)
            if flight.elsewhere:
                self._read_along(flight)
            self._part(flight, reply)
        flight.deliver(reply)
        return reply

    def _read_along(self, flight: Flight) -> None:
        """Has a stream read at the pace of its upstream, as long as other workers follow it."""
        if flight.along is None and not flight.ended:
            for reader in flight.readers:
                reader.sink = None  # what is taken in passing could overtake what its task still has in hand
            flight.along = asyncio.get_running_loop().create_task(self._pull(flight), name="flight-along")

    async def _pull(self, flight: Flight) -> None:
        try:
            while not flight.ended and self._elsewhere(flight.key):
                await flight.more()
        except Exception:  # the flight has ended with it, which everybody hears
            log.exception("a shared stream failed", call_id=flight.leader.call_id)
        finally:
            flight.along = None

    def _part(self, flight: Flight, reply: Reply) -> None:
        """Takes those out who would have got something else: they start over."""
        for follower in tuple(flight.calls.values()):
            if not is_for(follower, flight.leader, reply):
                self.parted_total += 1
                self.forget(follower, flight)

    async def _follow(self, call: Call, flight: Flight) -> Reply | None:
        """The flight's reply for this call, our refusal when its time is over, or None when it must start over."""
        call.cache = CacheState.COALESCED
        flight.followers += 1
        self.followers += 1
        self.joined_total += 1
        self._members[call.call_id] = flight
        flight.calls[call.call_id] = call
        self._recount(flight.leader)
        try:
            in_time = flight.delivered or await self._wait_for_head(call, flight)
        except BaseException:
            self.forget(call, flight)
            raise
        head = flight.head
        if self._members.get(call.call_id) is not flight:
            return None
        if in_time and head is not None and head.stream is not None:
            if flight.dropped:  # the leader has read on beyond the buffer since it woke this task
                self.ejected_total += 1
                self.forget(call, flight)
                return None
            call.fell_back = flight.leader.fell_back
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
            reply = copy_of(head)
            reply.stream = Reader(self, flight, call, reply)
            return reply
        self.forget(call, flight)
        if not in_time:
            return refuse(
                TIMED_OUT, "the answer to an identical call, which this one waited for, did not begin in time"
            )
        if head is None or self._is_leader_s_own(call, flight.leader, head):
            return None
        call.fell_back = flight.leader.fell_back
        call.saved_nanousd = saved_nanousd(call, head) if head.complete else 0
        return copy_of(head)

    def _is_leader_s_own(self, call: Call, leader: Call, head: Reply) -> bool:
        """Whether a follower may do better: it has time left, or its priority is better than that for which there was no place."""
        if head.outcome is Outcome.TIMED_OUT:
            return self._monotonic() < call.deadline
        return not is_shared(leader, head) and rank_of(call) < rank_of(leader)

    async def _wait_for_head(self, call: Call, flight: Flight) -> bool:
        """Waits until the leader has a reply or has failed; False when the call's own deadline passed first."""
        head: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        flight.waiting[head] = None
        timer = None
        if call.deadline:
            left_s = call.deadline - self._monotonic()
            timer = asyncio.get_running_loop().call_later(left_s, resolve, head, False)  # noqa: FBT003 - its value
        began_ns = time.monotonic_ns()
        try:
            return await head
        finally:
            call.waited_ns += time.monotonic_ns() - began_ns
            del flight.waiting[head]
            if timer is not None:
                timer.cancel()

    def close_to_joiners(self, flight: Flight) -> None:
        """Nobody joins this flight any more."""
        if self._joinable.get(flight.key) is flight:
            del self._joinable[flight.key]

    def forget(self, call: Call, flight: Flight) -> None:
        """Takes a call out of its flight; whatever then serves nobody is given up. Safe to call twice."""
        if self._members.get(call.call_id) is not flight:
            return
        del self._members[call.call_id]
        if flight.leader is call:
            flight.leader_finished = True
            self.close_to_joiners(flight)
        else:
            flight.followers -= 1
            self.followers -= 1
            del flight.calls[call.call_id]
            self._recount(flight.leader)
        if flight.followers:
            return
        if flight.leader_finished:
            if flight.begun:
                flight.discard()
        elif flight.leader_gone and not flight.ended and not self._elsewhere(flight.key):
            self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        """Nobody wants the leader's answer any more, and its client has gone before."""
        self.close_to_joiners(flight)
        flight.leader.aborted = True
        if flight.task is not None:
            flight.task.cancel()

    def share_bill(self, flight: Flight) -> None:
        """Where the tenant's policy says so, splits what the flight has cost between all who are in it now; the parts sum to the whole."""
        leader = flight.leader
        if not flight.calls or not leader.attempts or leader.identity is None:
            return
        if leader.identity.tenant.cache.coalesce_cost is not CoalesceCost.SPLIT:
            return
        sharers = [leader, *flight.calls.values()]
        attempts, leader.attempts = leader.attempts, []
        for attempt in attempts:
            for call, part in zip(sharers, split_attempt(attempt, [1] * len(sharers)), strict=True):
                call.attempts.append(part)
        leader.saved_nanousd += sum(one.cost_nanousd for one in attempts)
        leader.saved_nanousd -= sum(one.cost_nanousd for one in leader.attempts)

    def account(self, flight: Flight, added: int) -> None:
        """Keeps the buffers within their limits after a flight has grown."""
        self.buffered_bytes += added
        over = flight.buffered_bytes > self._buffer_bytes_max or self.buffered_bytes > self._buffers_bytes_max
        if over and not flight.trimming:
            self.unjoinable_total += 1
            flight.trimming = True
            self.close_to_joiners(flight)
            for reader in flight.readers:
                if reader.on_trimmed is not None:
                    reader.on_trimmed()
        if flight.trimming:
            self.ejected_total += flight.trim(self._buffer_bytes_max)


def watch_coalesce(watch: Callable[[str, str, Callable[[], float]], None], coalesce: Coalesce) -> None:
    """Shows what joins whose flight, in this worker."""
    watch("coalesced_total", "Calls that joined another's flight.", lambda: coalesce.joined_total)
    watch("coalesce_followers", "Calls that wait on others' flights now.", lambda: coalesce.followers)
    watch("coalesce_full_total", "Calls that went alone because too many waited.", lambda: coalesce.full_total)
    watch(
        "coalesce_unjoinable_total",
        "Flights closed to joiners because of their size.",
        lambda: coalesce.unjoinable_total,
    )
    watch(
        "coalesce_ejected_total",
        "Readers that fell too far behind a shared stream.",
        lambda: coalesce.ejected_total,
    )
    watch(
        "coalesce_parted_total",
        "Followers that started over, because their keys may use other models than their leader's.",
        lambda: coalesce.parted_total,
    )
    watch("coalesce_buffer_bytes", "Bytes of shared streams held now.", lambda: coalesce.buffered_bytes)

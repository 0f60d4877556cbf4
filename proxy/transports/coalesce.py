"""Identical calls in flight share one upstream call, also while it streams.

A *flight* is one upstream call with everybody who waits for it: the *leader*, whose serving task runs it, and *followers*, which
joined because their cache key (and so their tenant) is the same. A call takes part when the cache gave it a key and the state
`MISS`; any other call goes straight through.

The protocol between the pipeline and a flight:

1. The pipeline calls `send` in the call's serving task and reads `reply.stream` in that same task. It always closes the stream
   when it is done with it, whatever happened.
2. When a call's client goes, the pipeline calls `leave(call)` once. It marks the call `client_gone` and answers:
   - True: nobody needs this call's serving task any more (`call.aborted` is set). The pipeline cancels the task; the CancelledError that
     comes out of `send` or `read` closes the upstream, and the call is settled as estimated.
   - False: others live on what this task runs. It must not be cancelled: it goes on, reads the stream to its end and throws
     the chunks away, and settles the call with the truth.
3. When the last follower leaves a flight whose leader's client has gone already, `leave` of that follower marks the leader
   `aborted` and cancels the leader's serving task, as the pipeline would have done.
4. A follower has `call.cache = COALESCED`, no attempts, no tokens and no cost; `call.saved_nanousd` is set when the answer is complete.
   Refusals and errors of the leader are shared with the followers, but for two: a leader that ran out of its own time, and one
   whose task died. Then a follower that has time left starts over, alone or with the other followers.

Whoever needs the next chunk pulls it: `ChunkStream.read` is safe to cancel, so a flight needs no task of its own and no reader can
take a chunk away. Chunks are kept for those who join later, up to a limit in bytes; above it nobody joins any more and what all
have read is dropped; a reader that is further behind than the limit loses its stream. If that is the leader's, its task goes on to the end of the
flight before it says so, because it alone can settle the upstream call. A leader whose task ends before the stream without having been
told that it may (a shutdown, a bug) takes the stream with it: what it used so far is settled, and the followers' streams break.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, ChunkStream, Reply, Sink, StreamBroken, Transport, tap
from proxy.refusals import TIMED_OUT, refuse
from proxy.savings import avoided_nanousd


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
    ) -> None:
        """Nothing starts here.

        calls_max: followers at any moment; a call beyond goes upstream by itself.
        buffer_bytes_max: chunks kept by one flight; buffers_bytes_max: by all of them.
        """
        self._inner = inner
        self._calls_max = calls_max
        self._buffer_bytes_max = buffer_bytes_max
        self._buffers_bytes_max = buffers_bytes_max
        self._monotonic = monotonic
        self._joinable: dict[bytes, _Flight] = {}
        self._members: dict[str, _Flight] = {}  # by call id: leaders and followers that have not finished
        self.followers = 0  # now
        self.buffered_bytes = 0  # now, all flights
        self.joined_total = 0
        self.full_total = 0  # calls that went alone because of calls_max
        self.unjoinable_total = 0  # flights that nobody could join any more because of the buffer limits
        self.ejected_total = 0  # readers that fell too far behind

    @property
    def flights(self) -> int:
        """Flights that can be joined now."""
        return len(self._joinable)

    @property
    def members(self) -> int:
        """Calls that are in a flight now; 0 when nothing is going on."""
        return len(self._members)

    async def send(self, call: Call) -> Reply:
        """The reply of this call's flight, or of the inner transport when the call cannot share."""
        if call.cache is not CacheState.MISS or not call.cache_key or call.fell_back:
            return await self._inner.send(call)
        while True:
            flight = self._joinable.get(call.cache_key)
            if flight is None:
                break
            if self.followers >= self._calls_max:
                self.full_total += 1
                return await self._inner.send(call)
            reply = await self._follow(call, flight)
            if reply is not None:
                return reply
            call.cache = CacheState.MISS  # the flight failed in a way that is the leader's own: start over
        return await self._lead(call)

    def leave(self, call: Call) -> bool:
        """The call's client has gone: may its serving task be cancelled? See the protocol above; safe to call twice."""
        call.client_gone = True
        flight = self._members.get(call.call_id)
        if flight is None:
            call.aborted = True
        elif flight.leader is call:
            flight.leader_gone = True
            if not flight.followers and not flight.ended:
                self._close_to_joiners(flight)
                call.aborted = True
        else:
            call.aborted = True
            self._forget(call, flight)
        return call.aborted

    async def aclose(self) -> None:
        """Closes the inner transport; flights end with the tasks that run them."""
        await self._inner.aclose()

    async def _lead(self, call: Call) -> Reply:
        flight = _Flight(self, call, asyncio.current_task())
        self._joinable[call.cache_key] = flight
        self._members[call.call_id] = flight
        try:
            reply = await self._inner.send(call)
        except BaseException:  # cancelled, or a bug: followers must not wait for what will never come
            self._forget(call, flight)
            flight.deliver(None)
            raise
        if reply.stream is None:
            self._forget(call, flight)
        else:
            flight.stream = reply.stream
            reply.stream = _Reader(self, flight, call, reply)
        flight.deliver(reply)
        return reply

    async def _follow(self, call: Call, flight: _Flight) -> Reply | None:
        """The flight's reply for this call, our refusal when its time is over, or None when it must start over."""
        call.cache = CacheState.COALESCED
        flight.followers += 1
        self.followers += 1
        self.joined_total += 1
        self._members[call.call_id] = flight
        try:
            in_time = flight.delivered or await self._wait_for_head(call, flight)
        except BaseException:
            self._forget(call, flight)
            raise
        head = flight.head
        if in_time and head is not None and head.stream is not None:
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
            reply = _copy_of(head)
            reply.stream = _Reader(self, flight, call, reply)
            return reply
        self._forget(call, flight)
        if not in_time:
            return refuse(
                TIMED_OUT, "the answer to an identical call, which this one waited for, did not begin in time"
            )
        if head is None or (head.outcome is Outcome.TIMED_OUT and self._monotonic() < call.deadline):
            return None
        call.saved_nanousd = avoided_nanousd(call, head.deployment, head.tokens) if head.complete else 0
        return _copy_of(head)

    async def _wait_for_head(self, call: Call, flight: _Flight) -> bool:
        """Waits until the leader has a reply or has failed; False when the call's own deadline passed first."""
        head: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        flight.waiting[head] = None
        timer = None
        if call.deadline:
            left_s = call.deadline - self._monotonic()
            timer = asyncio.get_running_loop().call_later(left_s, _resolve, head, False)  # noqa: FBT003 - its value
        began_ns = time.monotonic_ns()
        try:
            return await head
        finally:
            call.waited_ns += time.monotonic_ns() - began_ns
            del flight.waiting[head]
            if timer is not None:
                timer.cancel()

    def _close_to_joiners(self, flight: _Flight) -> None:
        if self._joinable.get(flight.key) is flight:
            del self._joinable[flight.key]

    def _forget(self, call: Call, flight: _Flight) -> None:
        """Takes a call out of its flight; whatever then serves nobody is given up. Safe to call twice."""
        if self._members.get(call.call_id) is not flight:
            return
        del self._members[call.call_id]
        if flight.leader is call:
            flight.leader_finished = True
            self._close_to_joiners(flight)
        else:
            flight.followers -= 1
            self.followers -= 1
        if flight.followers:
            return
        if flight.leader_finished:
            flight.discard()
        elif flight.leader_gone and not flight.ended:
            self._close_to_joiners(flight)
            flight.leader.aborted = True
            if flight.task is not None:
                flight.task.cancel()

    def _account(self, flight: _Flight, added: int) -> None:
        """Keeps the buffers within their limits after a flight has grown."""
        self.buffered_bytes += added
        over = flight.buffered_bytes > self._buffer_bytes_max or self.buffered_bytes > self._buffers_bytes_max
        if over and not flight.trimming:
            self.unjoinable_total += 1
            flight.trimming = True
            self._close_to_joiners(flight)
        if flight.trimming:
            self.ejected_total += flight.trim(self._buffer_bytes_max)


class _Flight:
    """One upstream call and the chunks it has brought so far."""

    __slots__ = (
        "abandoned", "buffered_bytes", "chunks", "coalesce", "delivered", "dropped", "ended", "failure", "followers", "head", "key", "leader",
        "leader_finished", "leader_gone", "puller", "pulling", "readers", "stream", "task", "trimming", "waiting",
    )  # fmt: skip

    def __init__(self, coalesce: Coalesce, leader: Call, task: asyncio.Task[object] | None) -> None:
        self.coalesce = coalesce
        self.leader = leader
        self.task = task
        self.key = leader.cache_key
        self.head: Reply | None = None
        self.delivered = False
        self.waiting: dict[asyncio.Future[bool], None] = {}  # for the head first, for the next chunk later; ordered
        self.stream: ChunkStream | None = None
        self.chunks: list[bytes] = []
        self.dropped = 0  # chunks that were here before chunks[0]
        self.buffered_bytes = 0
        self.readers: list[_Reader] = []
        self.pulling = False
        self.puller: asyncio.Task[object] | None = None
        self.abandoned = False
        self.trimming = False
        self.ended = False
        self.failure: StreamBroken | None = None
        self.followers = 0
        self.leader_gone = False  # its client; its task may still run
        self.leader_finished = False

    def deliver(self, head: Reply | None) -> None:
        """The leader's answer, or None when it has none and never will."""
        self.head = head
        self.delivered = True
        self.wake()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        for future in self.waiting:
            _resolve(future, True)  # noqa: FBT003 - its value

    async def pull(self) -> None:
        """Brings one more chunk, or the end. Cancelling it loses nothing: the next one to need a chunk pulls again."""
        stream = self.stream
        if stream is None:  # given up already
            self.end(StreamBroken(Outcome.BROKEN_STREAM, "the stream was closed"))
            return
        self.pulling = True
        self.puller = puller = asyncio.current_task()
        cancelling = 0 if puller is None else puller.cancelling()
        try:
            chunk = await stream.read()
        except asyncio.CancelledError:
            if not self.abandoned or puller is None or puller.uncancel() > cancelling:
                raise  # its own task was cancelled, not only this wait
        except StreamBroken as failure:
            self.end(failure)
        except Exception:
            self.end(StreamBroken(Outcome.INTERNAL, "the stream failed"))
            raise
        else:
            if chunk:
                self.keep(chunk)
            else:
                self.end(None)
        finally:
            self.pulling = False
            if self.waiting:
                self.wake()

    def keep(self, chunk: bytes) -> None:
        """One more chunk has come."""
        self.chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self.coalesce._account(self, len(chunk))  # noqa: SLF001 - one machine in two classes

    def end(self, failure: StreamBroken | None) -> None:
        """No more chunks will come. A broken stream is not worth joining; a whole one is, until the leader has read it."""
        self.ended = True
        self.failure = failure
        if failure is not None:
            self.coalesce._close_to_joiners(self)  # noqa: SLF001

    def abandon(self) -> None:
        """The leader's task stops in the middle. It must settle what was used so far, so the upstream stream ends with it."""
        self.end(StreamBroken(Outcome.BROKEN_STREAM, "the call that shared this answer was given up"))
        self.abandoned = True
        if self.pulling and self.puller is not None:  # as `asyncio.timeout` does: end its wait, not its task
            self.puller.cancel()
        self.close_stream()
        self.wake()

    def trim(self, bytes_max: int) -> int:
        """Drops what every reader has had; returns how many readers were too far behind to be waited for."""
        ejected = 0
        while self.readers:
            slowest = min(self.readers, key=_position)
            while self.dropped < slowest.position:
                self.drop(1)
            if self.buffered_bytes <= bytes_max:
                break
            slowest.ejected = True
            self.readers.remove(slowest)
            ejected += 1
        return ejected

    def drop(self, count: int) -> None:
        """Forgets the oldest chunks."""
        dropped_bytes = sum(map(len, self.chunks[:count]))
        del self.chunks[:count]
        self.dropped += count
        self.buffered_bytes -= dropped_bytes
        self.coalesce.buffered_bytes -= dropped_bytes

    def discard(self) -> None:
        """Nobody is left: gives up the buffer and the upstream connection."""
        self.drop(len(self.chunks))
        self.close_stream()

    def close_stream(self) -> None:
        """Gives the upstream connection up; safe to call twice."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()


class _Reader:
    """One client's view of a flight's stream: the chunks so far, then the live ones."""

    __slots__ = ("call", "coalesce", "ejected", "flight", "position", "reply", "sink")

    def __init__(self, coalesce: Coalesce, flight: _Flight, call: Call, reply: Reply) -> None:
        self.coalesce = coalesce
        self.flight = flight
        self.call = call
        self.reply = reply
        self.position = 0
        self.ejected = False
        self.sink: Sink | None = None
        flight.readers.append(self)

    async def read(self) -> bytes:
        """The next chunk of the flight; b"" at its end."""
        flight = self.flight
        while True:
            if self.ejected:
                if self.call is not flight.leader or flight.ended or not flight.followers:
                    raise StreamBroken(
                        Outcome.BROKEN_STREAM, "this client read too slowly for an answer shared with others"
                    )
            else:
                index = self.position - flight.dropped
                if index < len(flight.chunks):
                    self.position += 1
                    return flight.chunks[index]
                if flight.ended:
                    return self._finish()
            if not flight.pulling:
                await flight.pull()
            else:
                await self._wait_for_chunk()

    def tap(self, sink: Sink) -> None:
        """A leader takes chunks in passing as long as it is alone in its flight."""
        if self.call is self.flight.leader and self.flight.stream is not None:
            self.sink = sink
            tap(self.flight.stream, self._pass)

    def _pass(self, chunk: bytes) -> bool:
        flight = self.flight
        alone = not flight.followers and not self.ejected and not flight.ended
        if (
            not alone
            or self.position != flight.dropped + len(flight.chunks)
            or self.sink is None
            or not self.sink(chunk)
        ):
            return False
        self.position += 1
        flight.keep(chunk)
        return True

    def close(self) -> None:
        """This client reads no more; the upstream is given up with the last one."""
        flight = self.flight
        if self in flight.readers:
            flight.readers.remove(self)
        if self.call is flight.leader and not flight.ended:
            flight.abandon()
        self.coalesce._forget(self.call, flight)  # noqa: SLF001

    async def _wait_for_chunk(self) -> None:
        waiting = self.flight.waiting
        pulled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting[pulled] = None
        try:
            await pulled
        finally:
            del waiting[pulled]

    def _finish(self) -> bytes:
        """Says how the stream ended, and gives a follower what is known now."""
        head, failure = self.flight.head, self.flight.failure
        if head is not None and head is not self.reply:
            _know_the_end(self.reply, head)
            if head.complete and failure is None:
                self.call.saved_nanousd = avoided_nanousd(self.call, head.deployment, head.tokens)
        if failure is not None:
            raise StreamBroken(failure.outcome, str(failure), event=failure.event)  # its own for each reader
        return b""


def _copy_of(head: Reply) -> Reply:
    """The leader's reply for a follower: same status, headers and body; no tokens, for a follower pays for none."""
    reply = Reply(
        head.status,
        list(head.headers),
        body=head.body,
        source=head.source,
        outcome=head.outcome,
        error_code=head.error_code,
    )
    reply.deployment = head.deployment
    reply.model = head.model
    reply.refusal = head.refusal
    _know_the_end(reply, head)
    return reply


def _know_the_end(reply: Reply, head: Reply) -> None:
    reply.finish_reason = head.finish_reason
    reply.ending = head.ending
    reply.complete = head.complete
    reply.usage_known = head.usage_known


def _resolve(future: asyncio.Future[bool], value: bool) -> None:  # noqa: FBT001 - a callback's argument
    if not future.done():
        future.set_result(value)


def _position(reader: _Reader) -> int:
    return reader.position

"""One upstream call with everybody who waits for it, and each one's view of its stream. The machine that `coalesce` drives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from controlplane.contract.records import Outcome
from proxy.call import Call, ChunkStream, Reply, Sink, StreamBroken, tap
from proxy.savings import avoided_nanousd

_BLOCK_BYTES = 4096
_BLOCK_CHUNKS_MIN = 8  # fewer are not worth a copy


class Owner(Protocol):
    """Who keeps the flights: the coalescing transport."""

    buffered_bytes: int

    def close_to_joiners(self, flight: Flight) -> None:
        """Nobody joins this flight any more."""
        ...

    def forget(self, call: Call, flight: Flight) -> None:
        """The call is out of the flight."""
        ...

    def account(self, flight: Flight, added: int) -> None:
        """The flight's buffer has grown."""
        ...

    def share_bill(self, flight: Flight) -> None:
        """The flight has ended: what it cost is known."""
        ...


class Flight:
    """One upstream call and, if its answer is a stream, the chunks it has brought so far."""

    __slots__ = (
        "abandoned", "along", "begun", "buffered_bytes", "calls", "chunks", "coalesce", "delivered", "dropped", "elsewhere", "ended", "failure", "followers",
        "head", "key", "leader",
        "leader_finished", "leader_gone", "loose", "loose_bytes", "puller", "pulling", "readers", "stream", "task", "trimming", "waiting",
    )  # fmt: skip

    def __init__(self, coalesce: Owner, leader: Call) -> None:
        self.coalesce = coalesce
        self.leader = leader
        self.task: asyncio.Task[None] | None = None  # that serves the leader; known once its client has gone
        self.key = leader.cache_key
        self.head: Reply | None = None
        self.delivered = False
        self.waiting: dict[asyncio.Future[bool], None] = {}  # for the head first, for the next chunk later; ordered
        self.begun = False  # a stream, and with it all that `begin` sets
        self.ended = False
        self.followers = 0
        self.calls: dict[str, Call] = {}  # the followers', by id
        self.leader_gone = False  # its client; its task may still run
        self.leader_finished = False
        self.elsewhere = False  # another worker has followed it

    def begin(self, stream: ChunkStream) -> None:
        """The answer is a stream."""
        self.begun = True
        self.stream: ChunkStream | None = stream
        self.chunks: list[bytes] = []
        self.dropped = 0  # chunks that were here before chunks[0]
        self.loose = self.loose_bytes = 0  # chunks at the end that can be joined to one
        self.buffered_bytes = 0
        self.readers: list[Reader] = []
        self.pulling = False
        self.along: asyncio.Task[None] | None = None  # reads on for followers elsewhere
        self.puller: asyncio.Task[object] | None = None
        self.abandoned = False
        self.trimming = False
        self.failure: StreamBroken | None = None

    def deliver(self, head: Reply | None) -> None:
        """The leader's answer, or None when it has none and never will."""
        self.head = head
        self.delivered = True
        if self.waiting:
            self.wake()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        for future in self.waiting:
            resolve(future, True)  # noqa: FBT003 - its value

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

    async def more(self) -> None:
        """Waits for one more chunk, or the end, whoever brings it."""
        if not self.pulling:
            await self.pull()
            return
        pulled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting[pulled] = None
        try:
            await pulled
        finally:
            del self.waiting[pulled]

    def keep(self, chunk: bytes) -> None:
        """One more chunk has come."""
        self.loose = self.loose_bytes = 0
        self.keep_loose(chunk)

    def keep_loose(self, chunk: bytes) -> None:
        """The same for a chunk that everybody has who keeps chunks of this flight."""
        self.chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self.coalesce.account(self, len(chunk))

    def end(self, failure: StreamBroken | None) -> None:
        """No more chunks will come. A broken stream is not worth joining; a whole one is, until the leader has read it."""
        if not self.ended:
            self.coalesce.share_bill(self)
        self.ended = True
        self.failure = failure
        if failure is not None:
            self.coalesce.close_to_joiners(self)

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
            self.drop(max(0, slowest.position - self.dropped))
            if self.buffered_bytes <= bytes_max:
                break
            slowest.ejected = True
            self.readers.remove(slowest)
            ejected += 1
        if not self.readers:  # it is read for followers elsewhere alone
            self.drop(len(self.chunks))
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
        if self.chunks:
            self.drop(len(self.chunks))
        self.close_stream()

    def close_stream(self) -> None:
        """Gives the upstream connection up; safe to call twice."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()


class Reader:
    """One client's view of a flight's stream: the chunks so far, then the live ones."""

    __slots__ = ("call", "coalesce", "ejected", "flight", "on_joined", "on_trimmed", "position", "reply", "sink")

    def __init__(self, coalesce: Owner, flight: Flight, call: Call, reply: Reply) -> None:
        self.coalesce = coalesce
        self.flight = flight
        self.call = call
        self.reply = reply
        self.position = 0
        self.ejected = False
        self.sink: Sink | None = None
        self.on_joined: Callable[[int, bytes], None] | None = (
            None  # told that so many chunks, the last ones, are one now
        )
        self.on_trimmed: Callable[[], None] | None = None  # told that the flight's chunks are too much to be kept
        flight.readers.append(self)

    async def read(self) -> bytes:
        """The next chunk of the flight; b"" at its end."""
        flight = self.flight
        while True:
            if self.ejected:
                if self.call is not flight.leader or flight.ended or not (flight.followers or flight.elsewhere):
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
            await flight.more()

    def tap(self, sink: Sink) -> None:
        """A leader takes chunks in passing as long as it is alone in its flight, and it alone reads."""
        if self.call is self.flight.leader and self.flight.stream is not None and self.flight.along is None:
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
        flight.keep_loose(chunk)
        flight.loose += 1
        flight.loose_bytes += len(chunk)
        if flight.loose_bytes >= _BLOCK_BYTES:
            self._join()
        return True

    def _join(self) -> None:
        """Makes one of many small chunks that nobody reads any more: thousands of streams are kept at once, and each event would weigh twice."""
        flight, count = self.flight, self.flight.loose
        flight.loose = flight.loose_bytes = 0
        if count < _BLOCK_CHUNKS_MIN or flight.trimming or len(flight.readers) != 1:
            return
        block = b"".join(flight.chunks[-count:])
        flight.chunks[-count:] = (block,)
        self.position -= count - 1
        if self.on_joined is not None:
            self.on_joined(count, block)
        below: Callable[[int, bytes], None] | None = getattr(flight.stream, "joined", None)
        if below is not None:  # it keeps them too, for other workers
            below(count, block)

    def close(self) -> None:
        """This client reads no more; the upstream is given up with the last one."""
        flight = self.flight
        if self in flight.readers:
            flight.readers.remove(self)
        if self.call is flight.leader and not flight.ended:
            flight.abandon()
        self.coalesce.forget(self.call, flight)

    def _finish(self) -> bytes:
        """Says how the stream ended, and gives a follower what is known now."""
        head, failure = self.flight.head, self.flight.failure
        if head is not None and head is not self.reply:
            know_the_end(self.reply, head)
            if head.complete and failure is None:
                self.call.saved_nanousd = saved_nanousd(self.call, head)
        if failure is not None:
            raise StreamBroken(failure.outcome, str(failure), event=failure.event)  # its own for each reader
        return b""


def saved_nanousd(call: Call, head: Reply) -> int:
    """What a follower saved: what the answer would have cost it, less its part of the bill."""
    avoided = avoided_nanousd(call, head.deployment, head.tokens)
    return max(0, avoided - sum(attempt.cost_nanousd for attempt in call.attempts))


def copy_of(head: Reply) -> Reply:
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
    know_the_end(reply, head)
    return reply


def is_for(call: Call, leader: Call, reply: Reply) -> bool:
    """Whether what a leader got is also for a follower whose key may use other models.

    Another model's answer is, if the follower may use that model too. A failure is not, where other models could stand in: those of the
    follower's list may do better.
    """
    route, own, its = leader.route, call.identity, leader.identity
    if route is None or not route.spares or own is None or its is None or own.models == its.models:
        return True
    return may_have(call, reply, fell_back=leader.fell_back)


def may_have(call: Call, reply: Reply, *, fell_back: str) -> bool:
    """The same where the two keys' models differ and others can stand in. fell_back: why one did; empty: none did."""
    if reply.outcome is not Outcome.OK or not fell_back:
        return reply.outcome is Outcome.OK
    if call.identity is None or call.identity.models is None:
        return True
    entries = (call.runtime.routes.get(alias) for alias in call.identity.models)
    return any(
        reply.deployment == item.id for entry in entries if entry is not None for item in entry.route.deployments
    )


def is_shared(call: Call, reply: Reply) -> bool:
    """Whether a whole answer is also for other workers: a refusal only if upstreams were asked for it, and time was not what lacked."""
    if reply.outcome is Outcome.TIMED_OUT:
        return False
    return reply.refusal is None or bool(call.attempts)


def know_the_end(reply: Reply, head: Reply) -> None:
    """Tells a follower's reply what is known when an answer is whole."""
    reply.finish_reason = head.finish_reason
    reply.ending = head.ending
    reply.complete = head.complete
    reply.usage_known = head.usage_known


def resolve(future: asyncio.Future[bool], value: bool) -> None:  # noqa: FBT001 - a callback's argument
    """Ends a wait, if it has not ended."""
    if not future.done():
        future.set_result(value)


def _position(reader: Reader) -> int:
    return reader.position

"""A flight as its leader's worker has it: the answer so far, and how far each other worker that follows it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from controlplane.contract.records import Outcome
from proxy.call import Reply, StreamBroken
from proxy.refusals import Refused
from proxy.transports.flight_words import Bill, End, Gone, Head, News

CHUNKS_MAX = 256  # of one message
MESSAGE_BYTES = 256 * 1024  # about
SILENT_MAX = 6  # rounds without a word of a follower, which says one in each: two leases long


@dataclass(slots=True)
class Place:
    """How far one follower has come. pumping: somebody is sending to it. greeted: it was told since it asked that it is heard.

    number: of its last wish. late: it came when the answer had ended and the bill was made, so it pays nothing. silent: rounds without a word of it.
    """

    position: int
    number: int = 0
    silent: int = 0
    late: bool = False
    greeted: bool = False
    head_sent: bool = False
    end_sent: bool = False
    pumping: bool = False


@dataclass(slots=True)
class Buffers:
    """What all flights led here keep together."""

    bytes_max: int
    bytes_used: int = 0


class Led:
    """What is kept for those who follow from elsewhere, up to a limit in bytes; above it nobody attaches any more."""

    def __init__(
        self,
        tag: bytes,
        token: bytes,
        key: bytes,
        *,
        leader: bytes,
        pump: Callable[[Led, bytes], None],
        bytes_max: int,
        buffers: Buffers | None = None,
        models: bytes = b"",
    ) -> None:
        """leader: this worker's inbox. pump: called when there is news for a follower that nobody is sending to. buffers: of all flights.

        models: what the leader's key may use, where other models could stand in; see `Head`.
        """
        self.tag = tag
        self.token = token
        self.key = key
        self.followers: dict[bytes, Place] = {}  # by inbox
        self.may_attach = True
        self.followed = False  # by anybody, ever: positions of chunks are known elsewhere
        self.ended = False
        self.held = b"%b/%b/%b" % (leader, token, models)  # what the lease says
        self._models = models
        self._leader = leader
        self._pump = pump
        self._bytes_max = bytes_max
        self._buffers = buffers or Buffers(bytes_max)
        self._bytes = 0
        self._head: Head | None = None
        self._end: End | None = None
        self._chunks: list[bytes] = []
        self._dropped = 0
        self._given_up = False

    @property
    def begun(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self._head is not None or self._given_up

    def attach(self, inbox: bytes, position: int, number: int = 0) -> bool:
        """One more follower, or one that has missed something; False if it cannot have the flight."""
        if not self.may_attach or self._given_up or not self._dropped <= position <= self._dropped + len(self._chunks):
            return False
        self.followed = True
        place = self.followers.setdefault(inbox, Place(position, late=self._end is not None))
        place.position, place.greeted, place.head_sent, place.end_sent = position, False, False, False
        place.silent, place.number = 0, max(place.number, number)
        self._tell(inbox)
        return True

    def detach(self, inbox: bytes, number: int = 0) -> None:
        """A follower less, unless it has asked again since it said so."""
        place = self.followers.get(inbox)
        if place is not None and place.number <= number:
            del self.followers[inbox]

    def hear(self, inbox: bytes) -> None:
        """A follower lives."""
        place = self.followers.get(inbox)
        if place is not None:
            place.silent = 0

    def count_out(self, *, deaf: bool) -> int:
        """One more round: takes out who has said nothing for long, and returns how many. deaf: nobody could be heard in it."""
        silent = []
        for inbox, place in self.followers.items():
            place.silent = 0 if deaf else place.silent + 1
            if place.silent > SILENT_MAX:
                silent.append(inbox)
        for inbox in silent:
            del self.followers[inbox]
        return len(silent)

    def holds(self, reply: Reply) -> bool:
        """Whether an answer is small enough to be given to others."""
        return len(reply.body) <= self._bytes_max

    def begin(self, reply: Reply, *, fell_back: str = "", bill: Bill | None = None) -> None:
        """The answer has begun, or is whole; then with the bill, where others pay too."""
        if not self.holds(reply):
            self.give_up()
            return
        refused = reply.refusal if isinstance(reply.refusal, Refused) else None
        self._head = Head(
            status=reply.status,
            headers=tuple(reply.headers),
            stream=reply.stream is not None,
            body=reply.body,
            source=reply.source,
            outcome=reply.outcome.value,
            error_code=reply.error_code,
            deployment=reply.deployment,
            model=reply.model,
            refusal="" if refused is None else refused.refusal.code,
            message="" if refused is None else refused.message,
            fell_back=fell_back,
            models=self._models,
        )
        if reply.stream is None:
            self._end = _end_of(reply, bill)
        self._tell_all()

    def add(self, chunk: bytes) -> None:
        """One more chunk of a stream."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        self._buffers.bytes_used += len(chunk)
        if self._bytes > self._bytes_max or self._buffers.bytes_used > self._buffers.bytes_max:
            self.may_attach = False
        if not self.may_attach:
            self._trim()
        if self.followers:
            self._tell_all()

    def join(self, count: int, block: bytes) -> None:
        """So many chunks, the last ones, are one; where somebody may know them by their number they stay what they are."""
        if not self.followed and self.may_attach:
            self._chunks[-count:] = (block,)

    def finish(self, reply: Reply, failure: StreamBroken | None = None, *, bill: Bill | None = None) -> None:
        """The stream has ended. bill: where others pay too."""
        if failure is None:
            self._end = _end_of(reply, bill)
        else:
            self._end = End(outcome=failure.outcome.value, message=str(failure), event=failure.event, bill=bill)
            self.may_attach = False
        self._tell_all()

    def give_up(self) -> None:
        """There will be no answer that could be shared."""
        self._given_up = True
        self.may_attach = False
        self._tell_all()

    def leave(self) -> None:
        """Nobody finds it any more; what its followers still lack is counted no longer."""
        self._buffers.bytes_used -= self._bytes
        self._buffers = Buffers(self._bytes_max, self._bytes)

    def news_for(self, inbox: bytes) -> News | Gone | None:
        """What a follower does not have yet; None: nothing now."""
        place = self.followers.get(inbox)
        if place is None:
            return None
        if self._given_up or place.position < self._dropped:
            del self.followers[inbox]
            return Gone(self.tag, self.token, alone=not self._given_up)
        chunks = self._next_chunks(place.position - self._dropped)
        head = None if place.head_sent else self._head
        position = place.position
        last = position + len(chunks) == self._dropped + len(self._chunks)
        end = self._end if last and not place.end_sent else None
        if end is not None and end.bill is not None and place.late:
            end = msgspec.structs.replace(end, bill=None)
        if head is None and not chunks and end is None and place.greeted:
            return None
        place.greeted = True
        place.head_sent = place.head_sent or head is not None
        place.end_sent = end is not None
        place.position += len(chunks)
        if not self.may_attach:
            self._trim()
        return News(self.tag, self.token, position, head, chunks, end, self._leader)

    def _next_chunks(self, begin: int) -> tuple[bytes, ...]:
        size = 0
        end = begin
        while end < len(self._chunks) and end - begin < CHUNKS_MAX and size < MESSAGE_BYTES:
            size += len(self._chunks[end])
            end += 1
        return tuple(self._chunks[begin:end])

    def _trim(self) -> None:
        """Drops what every follower has, and beyond the limit what the slowest has not."""
        keep_from = min(
            (place.position for place in self.followers.values()), default=self._dropped + len(self._chunks)
        )
        count = max(0, keep_from - self._dropped)
        size = sum(map(len, self._chunks[:count]))
        while self._bytes - size > self._bytes_max:
            size += len(self._chunks[count])
            count += 1
        del self._chunks[:count]  # at once: one by one, each would move all behind it
        self._bytes -= size
        self._buffers.bytes_used -= size
        self._dropped += count

    def _tell_all(self) -> None:
        for inbox in tuple(self.followers):
            self._tell(inbox)

    def _tell(self, inbox: bytes) -> None:
        if not self.followers[inbox].pumping:
            self._pump(self, inbox)


def _end_of(reply: Reply, bill: Bill | None) -> End:
    return End(
        outcome="" if reply.complete or reply.outcome is not Outcome.OK else Outcome.BROKEN_STREAM.value,
        finish_reason=reply.finish_reason,
        ending=reply.ending,
        complete=reply.complete,
        usage_known=reply.usage_known,
        tokens=reply.tokens,
        bill=bill,
    )

"""A flight as a follower's worker has it: what has come of the answer, in order and without gaps."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from controlplane.contract.records import Outcome
from proxy.call import Reply, StreamBroken
from proxy.refusals import TABLE, Refused
from proxy.transports.flight_words import Bill, End, Head, News

UNKNOWN_MAX = 3  # looks in a row that could not tell, and no word in between
MISSING_MAX = 2  # looks in a row that found no lease, and no word in between, before a stream that has begun is broken
UNHEARD_MAX = 3  # wishes in a row to which a leader that lives said nothing
_REFUSALS = {line.code: line for line in TABLE}
Alive = Callable[[], Awaitable[bool | None]]  # None: it cannot be found out


class Followed:
    """Chunks that came and were not read yet. ask: asks the leader for everything from a position on. leader: its worker's inbox."""

    def __init__(
        self, tag: bytes, token: bytes, *, ask: Callable[[int], None], bytes_max: int, leader: bytes = b""
    ) -> None:
        self.tag = tag
        self.token = token
        self.leader = leader
        self.ask = ask
        self.alone = False  # the flight cannot be shared at all
        self._bytes_max = bytes_max
        self._bytes = 0
        self._head: Head | None = None
        self._chunks: deque[bytes] = deque()
        self._have = 0  # chunks that came in all
        self._end: End | None = None
        self._lost = False
        self._unknown = 0
        self._unheard = self._missing = 0
        self._news = asyncio.Event()

    def take(self, news: News) -> None:
        """More has come; what came before is passed over, and what is missing is asked for."""
        self._unheard = self._missing = self._unknown = 0
        if news.position > self._have:
            self.ask(self._have)
            return
        for chunk in news.chunks[self._have - news.position :]:
            self._chunks.append(chunk)
            self._bytes += len(chunk)
            self._have += 1
        self._head = self._head or news.head
        if news.end is not None and news.position + len(news.chunks) == self._have:
            self._end = news.end
        if self._bytes > self._bytes_max:
            self._lost = True  # this worker reads too slowly
        self._news.set()

    def lose(self, *, alone: bool = False) -> None:
        """The leader has no such flight."""
        self._lost = True
        self.alone = alone
        self._news.set()

    async def wait_for_beginning(self, *, left_s: float | None, silence_s: float, alive: Alive) -> bool:
        """Waits until there is something to pass on, or never will be; False when the call's own time was over before."""
        try:
            async with asyncio.timeout(left_s):
                while not self._lost and not self._has_begun:
                    await self._wait(silence_s, alive)
        except TimeoutError:
            return False
        return True

    def reply(self) -> Reply | None:
        """What the leader's upstream answered; None if that was lost before anything came."""
        head = self._head
        if head is None or not self._has_begun:
            return None
        reply = Reply(
            head.status,
            list(head.headers),
            body=head.body,
            source=head.source,
            outcome=Outcome(head.outcome),
            error_code=head.error_code,
        )
        reply.deployment, reply.model = head.deployment, head.model
        if head.refusal in _REFUSALS:  # shaped for whoever gets it
            reply.refusal = Refused(_REFUSALS[head.refusal], head.message)
        if not head.stream:
            self.know_the_end(reply)
        return reply

    @property
    def models(self) -> bytes:
        """What the leader's key may use, where other models could stand in; empty: none could."""
        return b"" if self._head is None else self._head.models

    @property
    def fell_back(self) -> str:
        """Why another model stood in; empty: none did."""
        return "" if self._head is None else self._head.fell_back

    @property
    def bill(self) -> Bill | None:
        """What is due, once the answer has ended, if others than the leader's worker pay."""
        return None if self._end is None else self._end.bill

    @property
    def is_stream(self) -> bool:
        """Whether the answer is read by chunks."""
        return self._head is not None and self._head.stream

    async def next(self, *, silence_s: float, alive: Alive) -> bytes:
        """The next chunk; b"" at the end. Raises StreamBroken. Safe to cancel."""
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._bytes -= len(chunk)
                return chunk
            end = self._end
            if end is not None:
                if end.outcome:
                    raise StreamBroken(Outcome(end.outcome), end.message, event=end.event)
                return b""
            if self._lost:
                raise StreamBroken(Outcome.BROKEN_STREAM, "the worker that shared this answer is gone")
            await self._wait(silence_s, alive)

    def know_the_end(self, reply: Reply) -> None:
        """Tells a reply what is known when the answer is whole."""
        end = self._end
        if end is not None:
            reply.finish_reason, reply.ending, reply.complete = end.finish_reason, end.ending, end.complete
            reply.usage_known, reply.tokens = end.usage_known, end.tokens

    @property
    def _has_begun(self) -> bool:
        return self._head is not None and (bool(self._chunks) or self._end is not None)

    async def _wait(self, silence_s: float, alive: Alive) -> None:
        """Waits for news; after a silence looks whether the leader lives, and asks again for what may have been lost."""
        self._news.clear()
        try:
            async with asyncio.timeout(silence_s):
                await self._news.wait()
        except TimeoutError:
            if self._news.is_set():
                return
            found = await alive()
            self._unknown = self._unknown + 1 if found is None else 0
            self._unheard += found is True
            self._missing = self._missing + 1 if found is False else 0
            if self._missing >= (MISSING_MAX if self._have else 1) or self._unknown >= UNKNOWN_MAX:
                self._lost = True
            elif self._unheard > UNHEARD_MAX:
                self.lose(alone=True)
            else:
                self.ask(self._have)

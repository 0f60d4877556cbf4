"""Answers that take time: a delayed body, a stream at the pace of its tokens, and the ways in which a fault cuts them off."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from controlplane.demo.provider.answer import Answer, filled
from controlplane.demo.provider.http import Connection
from controlplane.demo.provider.latency import Pace

Settle = Callable[["Ending", int], None]  # how it ended, and the completion tokens that were produced


class Ending(Enum):
    """How an exchange ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  # the client left
    BROKEN = "broken"  # a fault cut it off


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a fault cuts a stream off, and whether the connection is closed then or stays silent.

    last: an event that ends the stream instead, in good order.
    """

    after_events: int
    close: bool
    last: bytes = b""


class Silence:
    """Nothing more is sent; it ends when the client leaves. A hang, or the rest of a stalled answer."""

    def __init__(self, settle: Settle, produced: int) -> None:
        self._settle = settle
        self._produced = produced

    def client_left(self) -> None:
        """Settles as broken: the client had reason to leave."""
        self._settle(Ending.BROKEN, self._produced)

    def pause(self) -> None:
        """Nothing is being written."""

    def resume(self) -> None:
        """Nothing is to be written."""


class DelayedReply:
    """A whole body after some time."""

    def __init__(
        self,
        connection: Connection,
        data: bytes,
        *,
        delay_s: float,
        tokens: int,
        settle: Settle,
        cut: Cut | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connection = connection
        self._data = data
        self._delay_s = delay_s
        self._tokens = tokens
        self._settle = settle
        self._cut = cut
        self._loop = loop
        self._started = loop.time()
        self._timer = loop.call_later(delay_s, self._send) if delay_s > 0 else None
        connection.begin(self)
        if self._timer is None:
            self._send()

    def client_left(self) -> None:
        """Stops and bills the tokens that a model would have produced until now."""
        if self._timer is not None:
            self._timer.cancel()
        share = (self._loop.time() - self._started) / self._delay_s if self._delay_s > 0 else 1.0
        self._settle(Ending.CANCELLED, min(self._tokens, int(self._tokens * share)))

    def pause(self) -> None:
        """One write is not divided."""

    def resume(self) -> None:
        """One write is not divided."""

    def _send(self) -> None:
        if self._cut is None:
            self._settle(Ending.COMPLETED, self._tokens)
            self._connection.reply(self._data)
            return
        self._connection.write(self._data[: len(self._data) * 2 // 3])
        _cut_off(self._connection, self._settle, self._tokens, close=self._cut.close)


class StreamReply:
    """Events at the pace of their tokens. A late timer sends all that is due; a slow reader holds it up."""

    __slots__ = (
        "_answer", "_answer_id", "_call_number", "_chunked", "_connection", "_cut", "_due", "_head", "_loop", "_now_s", "_pace",
        "_per_write", "_sent", "_settle", "_start", "_step", "_timer", "_writable",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        answer: Answer,
        *,
        head: bytes,
        answer_id: bytes,
        now_s: int,
        pace: Pace,
        call_number: int,
        delay_s: float,
        per_write: int,
        chunked: bool,
        settle: Settle,
        cut: Cut | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """answer_id, now_s: what the marks stand for. delay_s: to the first token. per_write: events per write without pace; 0: all."""
        self._connection = connection
        self._answer = answer
        self._head = head
        self._answer_id = answer_id
        self._now_s = now_s
        self._start = filled(answer.start, answer_id, now_s) if answer.start else b""
        self._pace = pace
        self._call_number = call_number
        self._per_write = per_write
        self._chunked = chunked
        self._settle = settle
        self._cut = cut
        self._loop = loop
        self._step = 0
        self._sent = 0
        self._writable = True
        self._timer: asyncio.Handle | None = None
        self._due = loop.time() + delay_s
        connection.begin(self)
        if not self._writable:
            return  # resume sets the timer
        if delay_s > 0:
            self._timer = loop.call_at(self._due, self._advance)
        else:
            self._advance()

    def client_left(self) -> None:
        """Stops and bills what was sent."""
        self._stop_timer()
        self._settle(Ending.CANCELLED, self._produced())

    def pause(self) -> None:
        """Holds back until the reader has caught up."""
        self._writable = False
        self._stop_timer()

    def resume(self) -> None:
        """Sends what has become due in the meantime."""
        if not self._writable:
            self._writable = True
            self._stop_timer()
            self._timer = self._loop.call_at(self._due, self._advance)

    def _advance(self) -> None:
        """Sends every event that is due and sets the timer for the next one."""
        self._timer = None
        steps = self._answer.steps
        now = self._loop.time()
        per_write = 0 if self._pace.spread else self._per_write
        taken = 0
        while self._step < len(steps) and self._due <= now and (not per_write or taken < per_write):
            self._step += 1
            taken += 1
            self._due += self._pace.between_tokens_s(self._call_number, self._step)
        if self._step == 0:
            self._timer = self._loop.call_at(self._due, self._advance)
            return
        until = steps[self._step - 1]
        if self._cut is not None and (until >= self._cut.after_events or self._step == len(steps)):
            self._cut_short(max(self._sent, min(until, self._cut.after_events)), self._cut)
        elif self._step < len(steps):
            self._write(until, last=False)
            if self._writable:
                self._timer = self._loop.call_at(self._due, self._advance)
        else:
            self._settle(Ending.COMPLETED, self._answer.usage.completion)
            self._write(until, last=True, end=self._answer.end)
            self._end()

    def _cut_short(self, until: int, cut: Cut) -> None:
        """What a fault does in the middle of a stream."""
        if cut.last:
            self._write(until, last=True, end=cut.last)
            self._settle(Ending.BROKEN, self._produced())
            self._end()
        else:
            self._write(until, last=False)
            _cut_off(self._connection, self._settle, self._produced(), close=cut.close)

    def _end(self) -> None:
        if self._chunked:
            self._connection.finish()
        else:
            self._connection.close()

    def _write(self, until: int, *, last: bool, end: bytes = b"") -> None:
        """Writes the events up to `until` as one chunk, and what comes before the first and after the last of them."""
        events = self._answer.events[self._sent : until]
        data = self._start.join((b"", *events)) + end if self._start else b"".join(events) + end
        if self._answer.marked:
            data = filled(data, self._answer_id, self._now_s)
        self._sent = until
        head, self._head = self._head, b""
        if not self._chunked:
            self._connection.write(head + data)
        elif data:
            self._connection.write(b"%b%x\r\n%b\r\n%b" % (head, len(data), data, b"0\r\n\r\n" if last else b""))
        elif head:
            self._connection.write(head)

    def _produced(self) -> int:
        """The completion tokens in the events that were sent."""
        steps = bisect_right(self._answer.steps, self._sent)
        return self._answer.produced[steps - 1] if steps else 0

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _cut_off(connection: Connection, settle: Settle, produced: int, *, close: bool) -> None:
    """What a fault does in the middle of an answer."""
    if close:
        settle(Ending.BROKEN, produced)
        connection.close()
    else:
        connection.begin(Silence(settle, produced))

"""An upstream's event stream as the client gets it: opened at its first content, metered on the way, ended exactly once."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, Outcome
from proxy.call import Reply, Sink, StreamBroken
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.service_class import MARK, service_class_of
from proxy.metrics import ProxyMetrics
from proxy.transports.attempt import Attempt, AttemptFailed, data_of, error_of_event, failed_by
from proxy.transports.connection import Connection, ConnectionFailed, Failure
from proxy.transports.pool import Pool

_TIMED_OUT = frozenset((AttemptError.IDLE_TIMEOUT, AttemptError.DEADLINE))
_TOO_LATE = "no content came before the call's deadline"
_TAIL_S = 1.0  # how long the last bytes behind the protocol's end may take before the connection is given up


@runtime_checkable
class _SaysInput(Protocol):
    """A reader of streams that say at their beginning what they took in."""

    tokens_in: Tokens | None


class UpstreamStream:
    """The chunks of one try. Before the first content it may fail as a try; after it, only as a broken stream."""

    __slots__ = (
        "_attempt", "_beginning_bytes_max", "_bound", "_connection", "_ended", "_expires", "_failure", "_hold_s_max", "_idle_s", "_metrics", "_opened",
        "_pool", "_ready", "_scanner", "_sink", "_waits",
    )  # fmt: skip

    def __init__(
        self,
        attempt: Attempt,
        pool: Pool,
        connection: Connection,
        scanner: Scanner,
        metrics: ProxyMetrics,
        *,
        timeout_s_max: float,
        beginning_bytes_max: int,
        hold_s_max: float,
        bound: str = "timeout_s_max",
    ) -> None:
        """beginning_bytes_max: what may come before the first content, and is held back until then, or for hold_s_max.

        bound: the name of the setting that timeout_s_max comes from.
        """
        self._bound = bound
        self._beginning_bytes_max = beginning_bytes_max
        self._hold_s_max = hold_s_max
        self._metrics = metrics
        self._waits = False  # the client was given a beginning without content
        self._attempt = attempt
        self._pool = pool
        self._connection = connection
        self._scanner = scanner
        self._expires = time.monotonic() + timeout_s_max
        self._idle_s = attempt.candidate.upstream.idle_timeout_s
        self._ready = b""
        self._sink: Sink | None = None
        self._failure: Exception | None = None  # met in passing, for the next `read`
        self._opened = False
        self._ended = False

    async def open(self) -> None:
        """Reads up to the first content and holds it back: whatever fails here can still be tried elsewhere.

        An upstream that says for long that it lives, with pings, is believed: its client must learn it too, or takes it for dead.
        Raises AttemptFailed.
        """
        attempt, scanner, connection = self._attempt, self._scanner, self._connection
        started_s = attempt.started_ns / 1e9
        expires = started_s + attempt.first_byte_timeout_s
        connection.expire_at(min(expires, attempt.call.deadline))
        held: list[bytes] = []
        held_bytes = 0
        price = attempt.candidate.deployment.price
        raw: list[bytes] | None = [] if price is not None and price.service else None
        try:
            while not (scanner.content_seen or scanner.done):
                data = await connection.read()
                held.append(scanner.feed(data) if data else scanner.finish())
                held_bytes += len(data)
                if raw is not None:
                    raw.append(data)
                self._check_beginning(ended=not data, held_bytes=held_bytes)
                if held[-1] and time.monotonic() - started_s >= self._hold_s_max:
                    break
        except Malformed as error:
            self.close()
            raise AttemptFailed(AttemptError.MALFORMED, str(error)) from error
        except ConnectionFailed as failure:
            self.close()
            raise _before_content(failure, attempt) from failure
        except BaseException:
            self.close()
            raise
        self._opened = True
        if scanner.content_seen:
            attempt.content_seen()
        elif not scanner.done:
            self._waits = True
            self._metrics.bound_hit("stream_hold_s_max")
        if raw is not None:
            attempt.service_class = service_class_of(b"".join(raw))
        self._ready = b"".join(held)

    def _check_beginning(self, *, ended: bool, held_bytes: int) -> None:
        """Raises AttemptFailed if the upstream sent an error, its end, or too much, before any content."""
        scanner, operation = self._scanner, self._attempt.call.operation
        if scanner.content_seen or scanner.done:
            return
        if scanner.error_event:
            error, code, said = error_of_event(scanner.error_event, operation)
            reply = _refusal(scanner.error_event, code, said) if error is AttemptError.REJECTED else None
            raise failed_by(error, "the upstream sent an error instead of an answer", said=said, reply=reply)
        if ended:
            raise AttemptFailed(AttemptError.TRUNCATED, "the upstream ended its stream before any content")
        if held_bytes > self._beginning_bytes_max:
            raise AttemptFailed(AttemptError.MALFORMED, f"the upstream sent {held_bytes} bytes before any content")

    async def read(self) -> bytes:
        """The next whole events; b"" at the protocol's end. Raises StreamBroken."""
        scanner, connection = self._scanner, self._connection
        try:
            while True:
                if self._ready:
                    ready, self._ready = self._ready, b""
                    return ready
                if self._failure is not None:
                    raise self._failure
                if scanner.done:
                    self._end(AttemptError.NONE)
                    return b""
                if scanner.error_event:
                    operation = self._attempt.call.operation
                    error, _, said = error_of_event(scanner.error_event, operation)
                    raise self._broken(error, said, event=scanner.error_event)
                if not connection.has_data:
                    expires = min(self._expires, time.monotonic() + self._idle_s)
                    connection.expire_at(min(expires, self._attempt.call.deadline) if self._waits else expires)
                    await connection.wait()  # what is ordinary goes through `_pass` meanwhile
                    continue
                data = connection.take()
                shown = scanner.feed(data) if data else scanner.finish()
                if self._waits and scanner.content_seen:
                    self._waits = False
                    self._attempt.content_seen()
                if shown:
                    return shown
                if not data and not scanner.done and not scanner.error_event:
                    raise self._broken(AttemptError.TRUNCATED, "the upstream ended its stream too early")
        except Malformed as malformed:
            raise self._broken(AttemptError.MALFORMED, str(malformed)) from malformed
        except ConnectionFailed as failure:
            raise self._cut(failure) from failure

    def tap(self, sink: Sink) -> None:
        """Hands ordinary chunks to a sink while `read` waits; see `proxy.call.tap`."""
        if (
            not self._ended and not self._waits
        ):  # else the connection carries somebody else's exchange, or `read` looks for content
            self._sink = sink
            self._connection.tap(self._pass)

    def _pass(self, data: bytes) -> bool:
        """In the callback of the socket: events to the sink; False when `read` must look."""
        scanner, sink = self._scanner, self._sink
        try:
            shown = scanner.feed(data)
            ordinary = not scanner.done and not scanner.error_event
            if ordinary and (not shown or (sink is not None and sink(shown))):
                self._connection.expire_at(min(self._expires, time.monotonic() + self._idle_s))
                return True
        except Exception as error:  # noqa: BLE001 - `read` raises it, where somebody can handle it
            self._failure = error
            return False
        self._ready = shown
        return False

    def close(self) -> None:
        """Gives the upstream connection up; a stream that has not ended was cancelled. Safe to call twice."""
        if self._ended:
            return
        if self._opened:
            self._end(AttemptError.NONE if self._scanner.done else AttemptError.CANCELLED)
        else:  # whoever opens it says how the try ended
            self._ended = True
            self._tell()
            self._give_up()

    def _cut(self, failure: ConnectionFailed) -> StreamBroken:
        """A stream that its connection has ended, or the time that all of it may take."""
        if failure.failure is Failure.TIMED_OUT:
            now = time.monotonic()
            if now >= self._expires - 0.002:
                self._metrics.bound_hit(self._bound)
            elif self._waits and now >= self._attempt.call.deadline - 0.002:
                return self._broken(AttemptError.DEADLINE, _TOO_LATE)
        return self._broken(*_after_content(failure))

    def _broken(self, error: AttemptError, message: str, *, event: bytes = b"") -> StreamBroken:
        self._end(error)
        timed_out = error in _TIMED_OUT
        text = message or "the upstream's stream broke"
        return StreamBroken(Outcome.TIMED_OUT if timed_out else Outcome.BROKEN_STREAM, text, event=event)

    def _end(self, error: AttemptError) -> None:
        if self._ended:
            return
        self._ended = True
        self._tell()
        if self._attempt.reply is not None:
            self._attempt.reply.complete = error is AttemptError.NONE
        self._attempt.finish(error)
        self._attempt.reply = self._sink = None  # both know this stream
        self._give_up()

    def _tell(self) -> None:
        """Hands what the scanner learned to the try and its reply."""
        attempt, scanner = self._attempt, self._scanner
        attempt.events = scanner.events
        attempt.tokens = scanner.tokens
        price = attempt.candidate.deployment.price
        if price is not None and price.service:
            said = getattr(scanner, "said", b"") or scanner.ending
            if MARK in said:  # the last word counts
                attempt.service_class = service_class_of(said)
        if scanner.tokens is None and isinstance(scanner, _SaysInput):
            attempt.tokens_in = scanner.tokens_in
        attempt.used = getattr(scanner, "used", ())  # of languages that say it
        if attempt.reply is not None:
            attempt.reply.finish_reason = scanner.finish_reason
            attempt.reply.ending = scanner.ending

    def _give_up(self) -> None:
        """The connection goes back to its pool if its answer is whole, or as soon as it is."""
        connection, pool = self._connection, self._pool
        if self._scanner.done and not connection.complete and not connection.closed:
            connection.when_complete(pool.release, within_s=_TAIL_S)
        else:
            pool.release(connection)


def _refusal(event: bytes, code: str, said: str) -> Reply:
    """The upstream's no to a request, as it would have been without a stream."""
    body = data_of(event)
    if not openai.read_error(body)[0]:  # it stands elsewhere in this event than in an error's body
        body = openai.error_body(message=said, kind="invalid_request_error", code=code)
    return Reply(400, [(b"content-type", b"application/json")], body=body)


def _before_content(failure: ConnectionFailed, attempt: Attempt) -> AttemptFailed:
    if failure.failure is Failure.TIMED_OUT:
        if time.monotonic() >= attempt.call.deadline - 0.002:
            return AttemptFailed(AttemptError.DEADLINE, _TOO_LATE)
        return AttemptFailed(AttemptError.FIRST_BYTE_TIMEOUT, "no content came in time")
    if failure.failure is Failure.MALFORMED:
        return AttemptFailed(AttemptError.MALFORMED, str(failure))
    return AttemptFailed(AttemptError.TRUNCATED, "the upstream closed the connection before any content")


def _after_content(failure: ConnectionFailed) -> tuple[AttemptError, str]:
    if failure.failure is Failure.TIMED_OUT:
        return AttemptError.IDLE_TIMEOUT, "the upstream's stream stood still for too long"
    if failure.failure is Failure.MALFORMED:
        return AttemptError.MALFORMED, str(failure)
    return AttemptError.TRUNCATED, "the upstream closed the connection in the middle of its stream"

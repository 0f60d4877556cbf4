"""A stream that litellm reads: its chunks as the client's events, metered by the same scanners as every other stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from controlplane.contract.records import AttemptError, Outcome
from proxy.call import StreamBroken
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.hosted_tools import used_in
from proxy.dialects.openai_stream import DONE
from proxy.dialects.service_class import MARK, service_class_of
from proxy.transports.attempt import Attempt, AttemptFailed


class ForeignStream:
    """The chunks of one try. Before the first content it may fail as a try; after it, only as a broken stream.

    The library is asked for a chunk in a task of its own, so that a `read` that is cancelled loses none.
    """

    __slots__ = (
        "_as_failed", "_asked", "_attempt", "_beginning_bytes_max", "_chunks", "_ended", "_expires", "_given_up", "_opened", "_ready", "_scanner",
    )  # fmt: skip

    def __init__(
        self,
        attempt: Attempt,
        chunks: AsyncIterator[bytes],
        scanner: Scanner,
        *,
        as_failed: Callable[[Exception], AttemptFailed],
        timeout_s_max: float,
        beginning_bytes_max: int,
        given_up: Callable[[], None],
    ) -> None:
        """chunks: documents of OpenAI's stream. as_failed: an error of the library's as one of a try.

        beginning_bytes_max: what may come before the first content, and is held back until then. given_up: called once, at the end.
        """
        self._attempt = attempt
        self._chunks = chunks
        self._scanner = scanner
        self._as_failed = as_failed
        self._beginning_bytes_max = beginning_bytes_max
        self._given_up = given_up
        self._expires = time.monotonic() + timeout_s_max
        self._asked: asyncio.Future[bytes] | None = None
        self._ready = b""
        self._opened = False
        self._ended = False

    async def open(self, expires: float) -> None:
        """Reads up to the first content and holds it back. expires: monotonic seconds. Raises AttemptFailed."""
        scanner = self._scanner
        held: list[bytes] = []
        held_bytes = 0
        try:
            while not (scanner.content_seen or scanner.done):
                data = await self._next(expires)
                held.append(scanner.feed(data))
                held_bytes += len(data)
                self._check_beginning(held_bytes)
        except Malformed as error:
            self.close()
            raise AttemptFailed(AttemptError.MALFORMED, str(error)) from error
        except TimeoutError as error:
            self.close()
            late = time.monotonic() >= self._attempt.call.deadline - 0.002
            kind = AttemptError.DEADLINE if late else AttemptError.FIRST_BYTE_TIMEOUT
            raise AttemptFailed(kind, "no content came in time") from error
        except BaseException:
            self.close()
            raise
        self._opened = True
        if scanner.content_seen:
            self._attempt.content_seen()
        self._ready = b"".join(held)

    def _check_beginning(self, held_bytes: int) -> None:
        """Raises AttemptFailed if too much came before any content."""
        if held_bytes > self._beginning_bytes_max and not self._scanner.content_seen:
            raise AttemptFailed(AttemptError.MALFORMED, f"the upstream sent {held_bytes} bytes before any content")

    async def read(self) -> bytes:
        """The next whole events; b"" at the protocol's end. Raises StreamBroken."""
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready
        scanner = self._scanner
        idle_s = self._attempt.candidate.upstream.idle_timeout_s
        try:
            while True:
                if scanner.done:
                    self._end(AttemptError.NONE)
                    return b""
                shown = scanner.feed(await self._next(min(self._expires, time.monotonic() + idle_s)))
                if shown:
                    return shown
        except Malformed as error:
            raise self._broken(AttemptError.MALFORMED, str(error)) from error
        except TimeoutError as error:
            raise self._broken(AttemptError.IDLE_TIMEOUT, "the upstream's stream stood still for too long") from error
        except AttemptFailed as failure:
            raise self._broken(failure.error, str(failure)) from failure

    def close(self) -> None:
        """Gives the upstream's work up; a stream that has not ended was cancelled. Safe to call twice."""
        if self._ended:
            return
        if self._opened:
            self._end(AttemptError.NONE if self._scanner.done else AttemptError.CANCELLED)
        else:  # whoever opens it says how the try ended
            self._ended = True
            self._tell()
            self._release()

    async def _next(self, expires: float) -> bytes:
        """The next event of OpenAI's stream. Raises TimeoutError, or AttemptFailed for what the library raised."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(anext(self._chunks, b""))
        asked = self._asked
        await asyncio.wait([asked], timeout=max(expires - time.monotonic(), 0.0))
        if not asked.done():
            raise TimeoutError
        self._asked = None
        try:
            document = asked.result()
        except Exception as error:
            raise self._as_failed(error) from error
        if not document:
            return DONE
        attempt = self._attempt
        if MARK in document:  # the last word counts
            attempt.service_class = service_class_of(document) or attempt.service_class
        if b'"usage"' in document:
            attempt.used = used_in(document) or attempt.used
        return b"data: " + document + b"\n\n"

    def _broken(self, error: AttemptError, message: str) -> StreamBroken:
        self._end(error)
        timed_out = error is AttemptError.IDLE_TIMEOUT
        return StreamBroken(Outcome.TIMED_OUT if timed_out else Outcome.BROKEN_STREAM, message)

    def _end(self, error: AttemptError) -> None:
        if self._ended:
            return
        self._ended = True
        self._tell()
        if self._attempt.reply is not None:
            self._attempt.reply.complete = error is AttemptError.NONE
        self._attempt.finish(error)
        self._release()

    def _tell(self) -> None:
        """Hands what the scanner learned to the try and its reply."""
        attempt, scanner = self._attempt, self._scanner
        attempt.events = scanner.events
        attempt.tokens = scanner.tokens
        if attempt.reply is not None:
            attempt.reply.finish_reason = scanner.finish_reason
            attempt.reply.ending = scanner.ending

    def _release(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()
        self._given_up()

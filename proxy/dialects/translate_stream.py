"""What both directions of a translated stream share: the upstream's own scanner reads, the translation only says it in other words.

Whole events come out of the inner scanner wherever chunks were cut, and each is translated by itself; so neither the bytes nor what is
learned depends on the cuts, and a translated call is metered exactly as a native one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.events import data_of, events_in

STREAM_BYTES_MAX = 64 * 1024 * 1024  # some of what was said is kept until an item or the stream ends
_KEEP_ALIVE = b": keep-alive\n\n"


class TranslatedScanner(ABC):
    """A scanner of the upstream's language that gives out the client's. Subclasses say how one event, the end and an error are told."""

    __slots__ = (
        "_bytes", "_inner", "content_seen", "done", "ending", "error_event", "events", "finish_reason", "tokens", "tokens_in",
    )  # fmt: skip

    def __init__(self, inner: Scanner) -> None:
        self._inner = inner
        self._bytes = 0
        self.content_seen = False
        self.done = False
        self.error_event = b""
        self.ending = b""
        self.finish_reason = ""  # in the client's words: whether an answer may be kept is judged by it
        self.events = 0  # these three as the upstream's scanner has them
        self.tokens: Tokens | None = None
        self.tokens_in: Tokens | None = None

    def feed(self, data: bytes) -> bytes:
        """The client's events for what is whole now. Raises Malformed."""
        return self._translated(self._inner.feed(data))

    def finish(self) -> bytes:
        """The end of the bytes."""
        return self._translated(self._inner.finish())

    def _translated(self, shown: bytes) -> bytes:
        inner = self._inner
        self.content_seen, self.events, self.tokens = inner.content_seen, inner.events, inner.tokens
        self.tokens_in = getattr(inner, "tokens_in", None)  # not every protocol says it
        told = b""
        if shown:
            self._bytes += len(shown)
            if self._bytes > STREAM_BYTES_MAX:
                raise Malformed(f"the upstream's stream is larger than {STREAM_BYTES_MAX} bytes")
            told = b"".join([self._event(event) for event in events_in(shown)])
        if inner.error_event and not self.error_event:
            self.error_event = self._error(data_of(inner.error_event) or b"")
        elif inner.done and not self.done:
            self.done = True
            last, self.ending = self._end()
            told += last
        return told

    def _event(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None:
            return _KEEP_ALIVE
        try:
            return self._told(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Malformed(f"an event of the upstream's stream is not valid: {error}") from error

    @abstractmethod
    def _told(self, data: bytes) -> bytes:
        """The client's events for the data of one of the upstream's."""

    @abstractmethod
    def _end(self) -> tuple[bytes, bytes]:
        """What the client still gets now, and its protocol's last event, which is held back."""

    @abstractmethod
    def _error(self, data: bytes) -> bytes:
        """An error inside the stream, in the client's words."""


Clock = Callable[[], float]
"""Seconds since 1970."""

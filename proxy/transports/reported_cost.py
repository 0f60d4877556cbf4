"""Listens to a stream for what it says that it costs."""

from __future__ import annotations

from proxy.dialects.dialect import Scanner
from proxy.dialects.reported_cost import reported_nanousd
from proxy.transports.attempt import Attempt

_TAIL_BYTES = 8192  # of a stream: more than the event that carries its usage


class CostReader:
    """A reader of a stream that knows what the inner one knows, and tells the try the cost."""

    def __init__(self, inner: Scanner, attempt: Attempt) -> None:
        self._inner = inner
        self._attempt = attempt
        self._tail = b""
        self._learn()

    def feed(self, data: bytes) -> bytes:
        """As the inner reader."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        shown = self._inner.feed(data)
        self._learn()
        return shown

    def finish(self) -> bytes:
        """As the inner reader."""
        shown = self._inner.finish()
        self._learn()
        return shown

    def _learn(self) -> None:
        inner = self._inner
        self.content_seen = inner.content_seen
        self.done = inner.done
        self.error_event = inner.error_event
        self.ending = inner.ending
        self.events = inner.events
        self.finish_reason = inner.finish_reason
        self.tokens = inner.tokens
        self.tokens_in = getattr(inner, "tokens_in", None)
        self.used = getattr(inner, "used", ())
        if inner.tokens is not None:
            self._attempt.reported_nanousd = reported_nanousd(self._tail)

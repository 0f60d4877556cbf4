"""Reads the event streams of images, transcriptions and speech on their way through: every event goes on as it came.

Their last event carries the usage. It is held back until the bytes end, because several answers of one call end one by one.
"""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.events import EventCutter, data_of, events_in
from proxy.dialects.openai_usage import OutputKind, read_io_usage

_LAST = (".completed", ".done")
_SPECIAL = (b".completed", b".done", b"error", b"[DONE]", b"usage")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_NOTHING = msgspec.Raw(b"")


class _Event(msgspec.Struct):
    type: str = ""
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_decode_event = msgspec.json.Decoder(_Event).decode


class MediaScanner:
    """The state of one stream. Feed it what the network brings; read what it knows."""

    __slots__ = (
        "_cutter", "_output_kind", "content_seen", "done", "ending", "error_event", "events", "finish_reason", "tokens",
    )  # fmt: skip

    def __init__(self, *, event_bytes_max: int, output_kind: OutputKind) -> None:
        self._cutter = EventCutter(event_bytes_max)
        self._output_kind = output_kind
        self.content_seen = False  # the commit point: anything at all
        self.done = False  # the upstream said that it is over, or its bytes ended behind a last event
        self.error_event = b""  # the upstream's own error event, once it has sent one
        self.ending = b""  # the last event, held back
        self.events = 0
        self.finish_reason = ""
        self.tokens: Tokens | None = None  # None: the upstream has not said

    def feed(self, data: bytes) -> bytes:
        """The whole events that can go on to the client now; b"" if none is whole yet. Raises Malformed."""
        if self.done or self.error_event:
            return b""
        block = self._cutter.feed(data)
        return self._examine(block) if block else b""

    def finish(self) -> bytes:
        """The end of the bytes, which is the end of the stream if a last event was seen."""
        if self.done or self.error_event:
            return b""
        shown = self._examine(self._cutter.finish())
        self.done = self.done or (bool(self.ending) and not self.error_event)
        return shown

    def _examine(self, block: bytes) -> bytes:
        if self.content_seen and not self.ending and not _is_special(block):
            self.events += block.count(b"\n\n")
            return block
        shown: list[bytes] = []
        for event in events_in(block):
            if self.done or self.error_event:
                break
            self.events += 1
            shown.append(self._read(event))
        return b"".join(shown)

    def _read(self, event: bytes) -> bytes:
        """Learns from one event; returns what the client may see now. Raises Malformed if its data is not JSON."""
        whole = event + b"\n\n"
        data = data_of(event)
        if data is None:
            return whole
        if data == b"[DONE]":
            self.done = True
            self.ending += whole
            return b""
        try:
            read = _decode_event(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"an event of the upstream's stream is not valid: {error}") from error
        if read.type == "error" or bytes(read.error) not in _EMPTY:
            self.error_event = whole
            return b""
        self.content_seen = True
        if bytes(read.usage) not in _EMPTY:
            self._add(read_io_usage(read.usage, output_kind=self._output_kind))
        before, self.ending = self.ending, b""
        if read.type.endswith(_LAST):
            self.ending = whole
            return before
        return before + whole

    def _add(self, tokens: Tokens | None) -> None:
        """Each of several answers says what it used itself."""
        if tokens is not None:
            known = self.tokens or NO_TOKENS
            self.tokens = Tokens(
                **{kind: getattr(known, kind) + getattr(tokens, kind) for kind in Tokens.__struct_fields__}
            )


class SoundScanner:
    """A stream that is no events at all: bytes go on as they come, and their end is its end."""

    __slots__ = ("content_seen", "done", "ending", "error_event", "events", "finish_reason", "tokens")

    def __init__(self, *, free: bool = False) -> None:
        """free: it costs nothing, however it ends."""
        self.content_seen = False
        self.done = False
        self.error_event = b""
        self.ending = b""
        self.events = 0
        self.finish_reason = ""
        self.tokens: Tokens | None = NO_TOKENS if free else None

    def feed(self, data: bytes) -> bytes:
        """The bytes."""
        self.content_seen = True
        return data

    def finish(self) -> bytes:
        """The end of the bytes; that they are all there, their framing says."""
        self.done = True
        return b""


def _is_special(block: bytes) -> bool:
    """Whether events may carry more than content, or blank lines that are not theirs."""
    return any(mark in block for mark in _SPECIAL) or b"\n\n\n" in block or block.startswith(b"\n")

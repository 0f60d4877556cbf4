"""Reads the event stream of a response on its way through: every event goes on as it came; the last one is held back for the settlement.

Once content has begun, an event is decoded only if cheap tests of its bytes say that it may carry more than content.
"""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.events import EventCutter, data_of, events_in
from proxy.dialects.hosted_tools import Used, as_used, call_kind, used_in
from proxy.dialects.openai_usage import read_io_usage

# What a client neither shows nor acts upon: until anything else comes, the call can still be tried elsewhere.
_BEFORE_CONTENT = frozenset(
    (
        "response.created",
        "response.in_progress",
        "response.queued",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "keepalive",
    )
)
_ENDS = frozenset(("response.completed", "response.incomplete", "response.cancelled"))
_FAILURES = frozenset(("response.failed", "error"))
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_NOTHING = msgspec.Raw(b"")


class _Reason(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    incomplete_details: _Reason | None = None
    usage: msgspec.Raw = _NOTHING


class _Event(msgspec.Struct):
    type: str = ""
    response: _Response | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class ResponsesScanner:
    """The state of one stream. Feed it what the network brings; read what it knows.

    event_bytes_max: an event larger than this is malformed. committed: the first event is content. free: what it reports was billed before.
    """

    __slots__ = (
        "_calls", "_committed", "_cutter", "_free", "content_seen", "done", "ending", "error_event", "events", "finish_reason", "tokens", "used",
    )  # fmt: skip

    def __init__(self, *, event_bytes_max: int, committed: bool = False, free: bool = False) -> None:
        self._cutter = EventCutter(event_bytes_max)
        self._committed = committed
        self._free = free
        self.content_seen = False  # the commit point: something that a client would show or act upon
        self.done = False  # the protocol's end was seen
        self.error_event = b""  # the upstream's own error event, or the one that says that the response failed
        self.ending = b""  # the last event, held back
        self.events = 0  # events seen, about as many as tokens
        self.finish_reason = ""
        self.tokens: Tokens | None = NO_TOKENS if free else None  # None: the upstream has not said
        self.used: Used = ()  # what the upstream's own tools did, as far as is known
        self._calls: dict[str, int] = {}  # seen on the way, for a stream that never comes to its end

    def feed(self, data: bytes) -> bytes:
        """The whole events that can go on to the client now; b"" if none is whole yet. Raises Malformed."""
        if self.done or self.error_event:
            return b""
        block = self._cutter.feed(data)
        return self._examine(block) if block else b""

    def finish(self) -> bytes:
        """The end of the bytes: a last event that lacks its blank line is taken as whole."""
        if self.done or self.error_event:
            return b""
        return self._examine(self._cutter.finish())

    def _examine(self, block: bytes) -> bytes:
        """One or more whole events; as one piece where nothing in them is special."""
        if self.content_seen and not _is_special(block):
            self.events += block.count(b"\n\n")
            return block
        shown: list[bytes] = []
        for event in events_in(block):
            if self.done or self.error_event:
                break
            self.events += 1
            if self._goes_on(event):
                shown.append(event + b"\n\n")
        return b"".join(shown)

    def _goes_on(self, event: bytes) -> bool:
        """Learns from one event; whether the client may see it now. Raises Malformed if its data is not JSON of the expected kind."""
        data = data_of(event)
        if data is None:  # a comment: it keeps the connection alive
            return True
        if (
            data == b"[DONE]"
        ):  # some upstreams end every stream like this; the client of this protocol waits for no such thing
            self.done = True
            return False
        try:
            read = _decode_event(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"an event of the upstream's stream is not valid: {error}") from error
        kind = read.type
        if kind in _ENDS:
            self._learn(read.response, data)
            self.done = True
            self.ending = event + b"\n\n"
            return False
        if kind in _FAILURES:
            self._learn(read.response, data)
            self.error_event = event + b"\n\n"
            return False
        if self._committed or kind not in _BEFORE_CONTENT:
            self.content_seen = True
        if kind.endswith("_call.completed") and not self._free:
            self._count(call_kind(kind))
        return True

    def _count(self, kind: str) -> None:
        """One more call of a tool of the upstream's own; those that run code share a container."""
        if kind:
            self._calls[kind] = 1 if kind == "container" else self._calls.get(kind, 0) + 1
            self.used = as_used(self._calls)

    def _learn(self, response: _Response | None, data: bytes) -> None:
        if response is None:
            return
        if not self._free:
            self.used = used_in(data) or self.used
        why = response.incomplete_details
        self.finish_reason = (None if why is None else why.reason) or response.status or ""
        if bytes(response.usage) not in _EMPTY and not self._free:
            self.tokens = read_io_usage(response.usage)


def _is_special(block: bytes) -> bool:
    """Whether events may carry more than content, or blank lines that are not theirs."""
    return (
        b"complete" in block  # and so `incomplete`
        or b"error" in block
        or b"failed" in block
        or b"cancelled" in block
        or b"[DONE]" in block
        or b"\n\n\n" in block
        or block.startswith(b"\n")
    )

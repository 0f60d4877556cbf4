"""Reads a stream of Anthropic's messages on its way through: whole events out, and what they say about content, usage and the end.

Once content has begun, an event is decoded only if a cheap test of its bytes says that it is more than content.
"""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects.anthropic import UsageSum, read_usage
from proxy.dialects.dialect import Malformed
from proxy.dialects.events import EventCutter, data_of, events_in
from proxy.dialects.hosted_tools import Used, as_used

_LINE_FEED = 10
_RESULT = b'_tool_result"'
_EMPTY_BLOCKS = frozenset(("text", "thinking"))  # may begin with nothing in them
_PIECES = frozenset(("text_delta", "thinking_delta", "input_json_delta"))  # may be empty


_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b'""'))


class _Event(msgspec.Struct):
    """Whatever event it is, what is read of it; its parts only where its type says what they are."""

    type: str = ""
    message: msgspec.Raw = _NOTHING
    content_block: msgspec.Raw = _NOTHING
    delta: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING


class _Message(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING
    container: msgspec.Raw = _NOTHING


class _Part(msgspec.Struct):
    """The beginning of a block, or a piece of it."""

    type: str = ""
    text: msgspec.Raw = _NOTHING
    thinking: msgspec.Raw = _NOTHING
    partial_json: msgspec.Raw = _NOTHING
    content: msgspec.Raw = _NOTHING  # of a tool's result: a list, or an error


class _Stop(msgspec.Struct):
    stop_reason: str | None = None
    container: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Event).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_stop = msgspec.json.Decoder(_Stop).decode


class MessagesScanner:
    """The state of one stream. Feed it what the network brings; read what it knows.

    tokens_in: what the start of the stream said of the input; the output is known only when `tokens` is.
    """

    __slots__ = (
        "_cutter",
        "_usage",
        "content_seen",
        "done",
        "ending",
        "error_event",
        "events",
        "finish_reason",
        "tokens",
        "tokens_in",
        "used",
    )

    def __init__(self, event_bytes_max: int) -> None:
        """event_bytes_max: an event larger than this is malformed."""
        self._cutter = EventCutter(event_bytes_max)
        self._usage = UsageSum()
        self.content_seen = False  # the commit point: something that a client would show or act upon
        self.done = False  # `message_stop` was seen
        self.ending = b""  # that event
        self.error_event = b""  # the upstream's own error event, once it has sent one
        self.events = 0
        self.finish_reason = ""
        self.used: Used = ()  # what the upstream's own tools did
        self.tokens: Tokens | None = None
        self.tokens_in: Tokens | None = None

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
        block = self._cutter.finish()
        return self._examine(block) if block else b""

    def _examine(self, block: bytes) -> bytes:
        """One or more whole events: cheap tests first."""
        if self.content_seen and not _is_special(block) and b"\n\n\n" not in block and block[0] != _LINE_FEED:
            self.events += block.count(b"\n\n")
            return block
        shown = [self._examine_one(event) for event in events_in(block)]
        return b"".join(shown)

    def _examine_one(self, event: bytes) -> bytes:
        """One event, without the blank line that ends it; returned with it, or b"" if it waits for the settlement."""
        if self.done or self.error_event:
            return b""
        self.events += 1
        whole = event + b"\n\n"
        if self.content_seen and not _is_special(event):
            return whole
        data = data_of(event)
        if data is None:
            return whole
        try:
            fields = _decode(data)
            if fields.type == "message_stop":
                self.done = True
                self.ending = whole
                return b""
            if fields.type == "error":
                self.error_event = whole
                return b""
            self._learn(fields)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"an event of the upstream's stream is not valid: {error}") from error
        return whole

    def _learn(self, fields: _Event) -> None:
        """What an event says about the usage, the end and the content."""
        if fields.type == "message_start":
            if bytes(fields.message) not in _EMPTY:
                message = _decode_message(fields.message)
                self._usage.add(read_usage(message.usage))
                self._ran_in(message.container)
                self.tokens_in = self._usage.tokens()
        elif fields.type == "message_delta":
            if bytes(fields.delta) not in _EMPTY:
                stop = _decode_stop(fields.delta)
                self.finish_reason = stop.stop_reason or self.finish_reason
                self._ran_in(stop.container)
            usage = read_usage(fields.usage)
            if usage is not None:
                self._usage.add(usage)
                self.tokens = self._usage.tokens()
                self.used = self._usage.used
        else:
            if fields.type == "content_block_start" and _RESULT in bytes(fields.content_block):
                self._found(_decode_part(fields.content_block))
            if not self.content_seen:
                self.content_seen = _has_content(fields)

    def _found(self, part: _Part) -> None:
        """One more result of a tool of the provider's own, for a stream that may never come to its usage."""
        if part.type == "web_search_tool_result" and bytes(part.content).startswith(b"["):
            self._usage.searches_seen += 1
        elif part.type.endswith("code_execution_tool_result"):
            self._usage.ran_code = True
        self.used = as_used({"search": self._usage.searches_seen, "container": int(self._usage.ran_code)})

    def _ran_in(self, container: msgspec.Raw) -> None:
        """A container is named where code ran in one."""
        if bytes(container) not in _EMPTY:
            self._usage.ran_code = True
            self.used = self._usage.used


def _is_special(events: bytes) -> bool:
    """Whether events may be more than content: the start, the end, the usage, an error, what a tool has found."""
    return b'"message_' in events or b'"error"' in events or _RESULT in events


def _has_content(fields: _Event) -> bool:
    """Whether an event holds anything to show or to act upon. A block of text or thought that begins empty does not."""
    begins = fields.type == "content_block_start"
    raw = fields.content_block if begins else fields.delta
    if not (begins or fields.type == "content_block_delta") or bytes(raw) in _EMPTY:
        return False
    part = _decode_part(raw)
    if part.type not in (_EMPTY_BLOCKS if begins else _PIECES):
        return True
    return any(bytes(said) not in _EMPTY for said in (part.text, part.thinking, part.partial_json))

"""Reads an OpenAI event stream on its way through: whole events out, and what they say about content, usage and the end.

Chunks may be cut anywhere by the network; what comes out, and what is learned, does not depend on where. Once content has
begun, an event is decoded only if cheap tests of its bytes say that it carries more than content.
"""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.openai import read_usage

_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b'""', b"[]", b"{}"))
_NULL_USAGE = b',"usage":null'
DONE = b"data: [DONE]\n\n"
_LINE_FEED = 10
_HALVE_BYTES = 1024


class _Delta(msgspec.Struct):
    content: msgspec.Raw = _NOTHING
    tool_calls: msgspec.Raw = _NOTHING
    function_call: msgspec.Raw = _NOTHING
    refusal: msgspec.Raw = _NOTHING
    reasoning_content: msgspec.Raw = _NOTHING
    reasoning: msgspec.Raw = _NOTHING
    audio: msgspec.Raw = _NOTHING


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: msgspec.Raw = _NOTHING  # of a completion
    finish_reason: str | None = None
    usage: msgspec.Raw = _NOTHING  # where Kimi says it


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class StreamScanner:
    """The state of one stream. Feed it what the network brings; read what it knows.

    hide_usage: the client did not ask for usage, the proxy did; nothing of it may be seen.
    event_bytes_max: an event larger than this is malformed.
    """

    __slots__ = (
        "_carriage_return",
        "_event_bytes_max",
        "_hide_usage",
        "_pending",
        "content_seen",
        "done",
        "ending",
        "error_event",
        "events",
        "finish_reason",
        "tokens",
    )

    def __init__(self, *, hide_usage: bool, event_bytes_max: int) -> None:
        self._hide_usage = hide_usage
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._carriage_return = False
        self.content_seen = False  # the commit point: something that a client would show or act upon
        self.done = False  # the protocol's end was seen
        self.ending = b""  # `[DONE]`, once it was seen
        self.error_event = b""  # the upstream's own error event, once it has sent one
        self.events = 0  # events seen, about as many as tokens
        self.finish_reason = ""
        self.tokens: Tokens | None = None  # None: the upstream has not said

    def feed(self, data: bytes) -> bytes:
        """The whole events that can go on to the client now; b"" if none is whole yet.

        Raises Malformed if an event is too large or is not what the protocol says.
        """
        if self.done or self.error_event:
            return b""
        if self._carriage_return or b"\r" in data:
            data = self._unify_line_ends(data)
        pending = self._pending
        if not pending:
            cut = data.rfind(b"\n\n")
            if cut == len(data) - 2 and cut >= 0:
                return self._examine(data)
            if cut >= 0:
                pending += data[cut + 2 :]
                return self._examine(data[: cut + 2])
            pending += data
        else:
            before = len(pending)
            pending += data
            cut = pending.rfind(b"\n\n", max(0, before - 1))
            if cut >= 0:
                block = bytes(pending[: cut + 2])
                del pending[: cut + 2]
                return self._examine(block)
        if len(pending) > self._event_bytes_max:
            raise Malformed(f"an event of the upstream's stream is larger than {self._event_bytes_max} bytes")
        return b""

    def finish(self) -> bytes:
        """The end of the bytes: a last event that lacks its blank line is taken as whole."""
        if self.done or self.error_event or not (self._pending or self._carriage_return):
            return b""
        self._carriage_return = False
        block = bytes(self._pending).rstrip(b"\n") + b"\n\n"
        self._pending.clear()
        return self._examine(block)

    def _unify_line_ends(self, data: bytes) -> bytes:
        """CRLF and CR as LF; a CR at the very end waits for what follows it."""
        if self._carriage_return:
            data = b"\r" + data
        self._carriage_return = data.endswith(b"\r")
        if self._carriage_return:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _examine(self, block: bytes) -> bytes:
        """One or more whole events: cheap tests first; a block that is special is halved until the special event is alone."""
        shown = b""
        while block:
            if self.content_seen:
                kept = block.replace(_NULL_USAGE, b"") if self._hide_usage else block
                if not self._is_special(kept):
                    self.events += block.count(b"\n\n")
                    return shown + kept
            begin = len(block) // 2 if self.content_seen and len(block) > _HALVE_BYTES else 0
            cut = block.find(b"\n\n", begin) + 2
            if begin and cut < len(block):
                shown += self._examine(block[:cut])
            else:
                cut = block.find(b"\n\n") + 2
                event = block[:cut].strip(b"\n")
                if event:
                    shown += self._examine_one(event)
            block = block[cut:]
        return shown

    def _examine_one(self, event: bytes) -> bytes:
        """One event, without the blank line that ends it; returned with it, or b"" if the client must not see it."""
        if self.done or self.error_event:
            return b""
        self.events += 1
        if self.content_seen:
            kept = event.replace(_NULL_USAGE, b"") if self._hide_usage else event
            if not self._is_special(kept):
                return kept + b"\n\n"
        data = _data_of(event)
        if data is None:  # a comment or an event without data: it keeps the connection alive, so it goes on
            return event + b"\n\n"
        if data == b"[DONE]":
            self.done = True
            self.ending = DONE
            return b""
        shown = self._read_event(event, data)
        return shown + b"\n\n" if shown else b""

    def _is_special(self, kept: bytes) -> bool:
        """Whether events may carry usage, a finish reason, an error, the end, or blank lines that are not theirs."""
        if b"[DONE]" in kept or b'"error"' in kept or b"\n\n\n" in kept or kept[0] == _LINE_FEED:
            return True
        if b'"usage"' in kept and (self._hide_usage or kept.count(b'"usage"') != kept.count(b'"usage":null')):
            return True
        return kept.count(b'"finish_reason"') != kept.count(b'"finish_reason":null')

    def _read_event(self, event: bytes, data: bytes) -> bytes:
        """Learns from one event; returns it as the client may see it.

        Raises Malformed if its data is not JSON of the expected kind.
        """
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"an event of the upstream's stream is not valid: {error}") from error
        if bytes(chunk.error) not in _EMPTY:
            self.error_event = event + b"\n\n"
            return b""
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
            if not self.content_seen and _is_content(choice):
                self.content_seen = True
            if bytes(choice.usage) not in _EMPTY:
                self.tokens = read_usage(choice.usage) or self.tokens
        if bytes(chunk.usage) == b"":
            return event
        if bytes(chunk.usage) != b"null":
            tokens = read_usage(chunk.usage)
            self.tokens = tokens if tokens is not None else self.tokens
            if self._hide_usage and not chunk.choices:
                return b""
        if not self._hide_usage:
            return event
        return _without_usage(event, data)


def _is_content(choice: _Choice) -> bool:
    """Whether a choice holds anything that a client would show or act upon."""
    if choice.delta is not None and _has_content(choice.delta):
        return True
    return bytes(choice.text) not in _EMPTY


def _has_content(delta: _Delta) -> bool:
    """Whether a delta holds anything but a role."""
    return (
        bytes(delta.content) not in _EMPTY
        or bytes(delta.tool_calls) not in _EMPTY
        or bytes(delta.function_call) not in _EMPTY
        or bytes(delta.refusal) not in _EMPTY
        or bytes(delta.reasoning_content) not in _EMPTY
        or bytes(delta.reasoning) not in _EMPTY
        or bytes(delta.audio) not in _EMPTY
    )


def _without_usage(event: bytes, data: bytes) -> bytes:
    """The event without its `usage`; by its bytes where that is exact, anew otherwise."""
    if event.count(b'"usage"') == event.count(_NULL_USAGE):
        return event.replace(_NULL_USAGE, b"")
    fields = _decode_shallow(data)
    fields.pop("usage", None)
    return b"data: " + _encode(fields)


def _data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None if it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None

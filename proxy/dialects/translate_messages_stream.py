"""OpenAI's stream as a client of Anthropic's reads it: deltas become blocks, one open at a time, each begun and ended."""

from __future__ import annotations

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.translate_call_order import CallOrder
from proxy.dialects.translate_errors import anthropic_event
from proxy.dialects.translate_messages_reply import (
    AnswerMessage,
    BlockOut,
    MessagesUsage,
    RedactedOut,
    TextOut,
    ThinkingOut,
    ToolUseOut,
    identity_of,
    stop_reason_of,
    thoughts_of,
    usage_of,
)
from proxy.dialects.translate_stream import TranslatedScanner
from proxy.dialects.translate_tool_names import ToolNames

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_NO_INPUT = msgspec.Raw(b"{}")
_decode = msgspec.json.Decoder(chat.Chunk).decode
_encode = msgspec.json.Encoder().encode


class _MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: AnswerMessage


class _BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: BlockOut


class _TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class _JsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class _ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class _SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class _BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: _TextDelta | _JsonDelta | _ThinkingDelta | _SignatureDelta


class _BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class _Ending(msgspec.Struct):
    stop_reason: str
    stop_sequence: None = None


class _MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: _Ending
    usage: MessagesUsage


class MessagesStream(TranslatedScanner):
    """One stream. `message_delta` waits for the upstream's end, because only there it says what was used."""

    __slots__ = (
        "_alias",
        "_block",
        "_call_id",
        "_call_index",
        "_called",
        "_names",
        "_open",
        "_order",
        "_reason",
        "_refused",
        "_started",
        "_thinking",
    )

    def __init__(self, inner: Scanner, *, alias: str, names: ToolNames, thinking: bool = False) -> None:
        """names: of tools, that were too long. thinking: what the model thought is shown, where the gateway says it."""
        super().__init__(inner)
        self._thinking = thinking
        self._names = names
        self._alias = alias
        self._block = -1  # index of the last block begun
        self._open = ""  # type of the open block
        self._order = CallOrder()
        self._call_index = -1  # the upstream's index of the open call, and its identity
        self._call_id = ""
        self._called = False
        self._reason = ""
        self._refused = False
        self._started = False

    def _told(self, data: bytes) -> bytes:
        chunk = _decode(data)
        if not self._started and not chunk.id and not chunk.choices:
            return b""  # some say what they found in the prompt first, and of which answer only then
        told = b"" if self._started else self._start(chunk)
        choice = chunk.choices[0] if chunk.choices else None
        if choice is None or choice.index:
            return told
        delta = choice.delta or chat.Delta()
        shown = self._thought(delta.thinking_blocks) if self._thinking and delta.thinking_blocks else b""
        if delta.content:
            shown += self._text(delta.content)
        if delta.refusal:
            self._refused = True
            shown += self._text(delta.refusal)
        for piece in delta.tool_calls or ():
            for call in self._order.put(piece):
                shown += self._call(call)
        if choice.finish_reason:
            self._reason = choice.finish_reason
        if not shown and (delta.reasoning_content or delta.thinking_blocks):
            shown = _PING  # the model thinks, which is not shown; the client learns that it is alive
        return told + shown

    def _end(self) -> tuple[bytes, bytes]:
        told = b"" if self._started else self._start(chat.Chunk())
        told += self._waiting_calls() + self._close()
        reason = stop_reason_of(self._reason, called=self._called, refused=self._refused)
        self.finish_reason = reason
        told += _event(b"message_delta", _MessageDelta(_Ending(reason), usage_of(self._inner.tokens)))
        return told, _STOP

    def _error(self, data: bytes) -> bytes:
        return anthropic_event(data)

    def _start(self, chunk: chat.Chunk) -> bytes:
        self._started = True
        message = AnswerMessage(identity_of(chunk.id), chunk.model or self._alias, [], None, usage_of(None))
        return _event(b"message_start", _MessageStart(message)) + _PING

    def _thought(self, blocks: list[msgspec.Raw]) -> bytes:
        """Pieces of thinking, its signature, or a block that is encrypted."""
        told = b""
        for block in thoughts_of(blocks):
            if isinstance(block, RedactedOut):
                told += self._close() + self._begin("redacted_thinking", block)
                continue
            if self._open != "thinking":
                told += self._close() + self._begin("thinking", ThinkingOut())
            if block.thinking:
                told += _event(b"content_block_delta", _BlockDelta(self._block, _ThinkingDelta(block.thinking)))
            if block.signature:
                told += _event(b"content_block_delta", _BlockDelta(self._block, _SignatureDelta(block.signature)))
        return told

    def _waiting_calls(self) -> bytes:
        return b"".join(map(self._call, self._order.rest()))

    def _text(self, text: str) -> bytes:
        told = self._waiting_calls() if self._order.holds else b""
        if self._open != "text":
            told += self._close() + self._begin("text", TextOut(""))
        return told + _event(b"content_block_delta", _BlockDelta(self._block, _TextDelta(text)))

    def _call(self, call: chat.CallPart) -> bytes:
        """A piece of a call; one that comes with a new index or identity begins another block.

        Raises Malformed for a piece of a call whose block has ended, or that was never begun: it cannot be told any more.
        """
        told = b""
        function = call.function or chat.CalledFunction()
        index = self._call_index if call.index is None else call.index
        same = self._open == "tool_use" and index == self._call_index and (not call.id or call.id == self._call_id)
        if not same:
            if not (call.id and function.name):
                raise Malformed("the upstream sent a piece of a tool call that is not the last one begun")
            self._call_index, self._call_id, self._called = index, call.id, True
            told = self._close() + self._begin(
                "tool_use", ToolUseOut(call.id, self._names.long(function.name), _NO_INPUT)
            )
        if function.arguments:
            told += _event(b"content_block_delta", _BlockDelta(self._block, _JsonDelta(function.arguments)))
        return told

    def _begin(self, kind: str, block: BlockOut) -> bytes:
        self._open = kind
        self._block += 1
        return _event(b"content_block_start", _BlockStart(self._block, block))

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event(b"content_block_stop", _BlockStop(self._block))


def _event(name: bytes, value: msgspec.Struct) -> bytes:
    return b"event: " + name + b"\ndata: " + _encode(value) + b"\n\n"

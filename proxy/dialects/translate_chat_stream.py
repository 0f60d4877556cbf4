"""Anthropic's stream as a chat client reads it: blocks become deltas, in the order in which they come."""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.openai_stream import DONE
from proxy.dialects.translate_errors import openai_event
from proxy.dialects.translate_stream import TranslatedScanner

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ABSENT = frozenset((b"", b"null", b"{}"))
_PING = b": ping\n\n"
_decode = msgspec.json.Decoder(anthropic.Event).decode
_encode = msgspec.json.Encoder().encode


class _ChunkOut(msgspec.Struct, omit_defaults=True):
    """An event as it is written: everything that clients look for is there."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[chat.ChunkChoice]
    usage: chat.Usage | None = None


class ChatStream(TranslatedScanner):
    """One stream. thinking is kept until its block ends, for clients send it back whole, with its signature."""

    __slots__ = ("_block", "_calls", "_chunk", "_include_usage", "_kept", "_said", "_signature", "_started")

    def __init__(self, inner: Scanner, *, alias: str, created_s: int, include_usage: bool) -> None:
        super().__init__(inner)
        self._include_usage = include_usage
        self._chunk = _ChunkOut("", "chat.completion.chunk", created_s, alias, [])
        self._block: anthropic.AnswerBlock | None = None  # the one that is open
        self._calls = 0  # tool calls begun
        self._kept = 0  # thinking blocks told whole
        self._said: list[str] = []  # of the open block, where its end needs to know
        self._signature = ""
        self._started = False

    def _told(self, data: bytes) -> bytes:
        event = _decode(data)
        match event.type:
            case "content_block_delta":
                return self._delta(event.delta or anthropic.BlockDelta())
            case "content_block_start":
                return self._block_start(event.content_block)
            case "content_block_stop":
                return self._block_stop()
            case "message_start":
                return self._start(event.message)
            case "message_delta":
                reason = event.delta.stop_reason if event.delta is not None else None
                return b"" if reason is None else self._finish(FINISH_REASONS.get(reason, "stop"))
            case "ping":
                return _PING
            case _:
                return b""

    def _end(self) -> tuple[bytes, bytes]:
        tokens = self._inner.tokens
        if not self._include_usage or tokens is None:
            return b"", DONE
        self._chunk.choices = []
        self._chunk.usage = chat.usage_of(tokens)
        return b"data: " + _encode(self._chunk) + b"\n\n", DONE

    def _error(self, data: bytes) -> bytes:
        return openai_event(data)

    def _start(self, message: anthropic.Answer | None) -> bytes:
        if message is None or self._started:
            raise Malformed("the upstream's stream begins twice, or without a message")
        self._started = True
        self._chunk.id = "chatcmpl-" + message.id.removeprefix("msg_")
        self._chunk.model = message.model or self._chunk.model
        return self._write(chat.Delta(role="assistant", content=""))

    def _block_start(self, block: anthropic.AnswerBlock | None) -> bytes:
        self._block = block
        self._said.clear()
        self._signature = ""
        if block is None:
            return b""
        if block.type == "tool_use":
            called = chat.CalledFunction(block.name, "")
            self._calls += 1
            call = chat.CallPart(self._calls - 1, block.id, "function", called)
            return self._write(chat.Delta(tool_calls=[call]))
        if block.type == "text" and block.text:
            return self._write(chat.Delta(content=block.text))
        if block.type == "thinking" and block.thinking:
            self._said.append(block.thinking)
            return self._write(chat.Delta(reasoning_content=block.thinking))
        return b""

    def _delta(self, delta: anthropic.BlockDelta) -> bytes:
        if delta.type == "text_delta":
            return self._write(chat.Delta(content=delta.text)) if delta.text else b""
        if delta.type == "input_json_delta" and delta.partial_json:
            if self._block is None or self._block.type != "tool_use":
                return b""  # of a tool that Anthropic runs itself
            self._said.append("")
            return self._arguments(delta.partial_json)
        if delta.type == "thinking_delta" and delta.thinking:
            self._said.append(delta.thinking)
            return self._write(chat.Delta(reasoning_content=delta.thinking))
        if delta.type == "signature_delta":
            self._signature += delta.signature
        return b""

    def _block_stop(self) -> bytes:
        block, self._block = self._block, None
        if block is None:
            return b""
        if block.type == "tool_use" and not self._said:  # a call without arguments, or with all of them at its start
            given = bytes(block.input)
            return self._arguments("{}" if given in _ABSENT else given.decode())
        signature = self._signature or block.signature
        whole = kept_thinking(block, thinking="".join(self._said), signature=signature, index=self._kept)
        if whole is None:
            return b""
        self._kept += 1
        return self._write(chat.Delta(thinking_blocks=[whole]))

    def _arguments(self, text: str) -> bytes:
        called = chat.CalledFunction(None, text)
        return self._write(chat.Delta(tool_calls=[chat.CallPart(self._calls - 1, function=called)]))

    def _finish(self, reason: str) -> bytes:
        self.finish_reason = reason
        self._chunk.choices = [chat.ChunkChoice(chat.Delta(), reason)]
        return b"data: " + _encode(self._chunk) + b"\n\n"

    def _write(self, delta: chat.Delta) -> bytes:
        if not self._started:
            raise Malformed("the upstream's stream does not begin with `message_start`")
        self._chunk.choices = [chat.ChunkChoice(delta)]
        return b"data: " + _encode(self._chunk) + b"\n\n"


class _PlacedThinking(anthropic.ThinkingBlock, tag="thinking"):
    index: int = 0


class _PlacedRedacted(anthropic.RedactedBlock, tag="redacted_thinking"):
    index: int = 0


def kept_thinking(
    block: anthropic.AnswerBlock, *, thinking: str, signature: str, index: int | None = None
) -> msgspec.Raw | None:
    """A thinking block as it must be sent back; None for a block of another kind, or one without a signature.

    index: its place among them, in a stream: OpenAI's SDK puts no list together whose parts do not say where they belong.
    """
    if block.type == "thinking" and signature:
        if index is None:
            return msgspec.Raw(_encode(anthropic.ThinkingBlock(thinking, signature)))
        return msgspec.Raw(_encode(_PlacedThinking(thinking, signature, index)))
    if block.type == "redacted_thinking":
        if index is None:
            return msgspec.Raw(_encode(anthropic.RedactedBlock(block.data)))
        return msgspec.Raw(_encode(_PlacedRedacted(block.data, index)))
    return None

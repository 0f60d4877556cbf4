"""Lets a client that speaks OpenAI's chat completions be served by a deployment that speaks Anthropic's Messages."""

from __future__ import annotations

import time

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Dialect, Malformed, RequestView, Scanner
from proxy.dialects.translate_chat_request import messages_request
from proxy.dialects.translate_chat_stream import FINISH_REASONS, ChatStream, kept_thinking
from proxy.dialects.translate_errors import openai_error
from proxy.dialects.translate_stream import Clock

_ABSENT = frozenset((b"", b"null", b"{}"))
_decode = msgspec.json.Decoder(anthropic.Answer).decode
_encode = msgspec.json.Encoder().encode


class ChatToMessages:
    """The translation `chat` to `messages`; docs/reference/translations.md says what of it is exact."""

    def __init__(self, upstream: Dialect, *, now_s: Clock = time.time) -> None:
        """upstream: Anthropic's dialect, which meters the call. now_s: seconds since 1970, which a chat reply must name."""
        self.upstream = upstream
        self._now_s = now_s

    def request(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request in Anthropic's words. Raises Malformed, naming the field."""
        return messages_request(body, view=view, model=model, output_ceiling=output_ceiling)

    def reply(self, body: bytes, *, alias: str) -> bytes:
        """A complete reply in OpenAI's words; alias stands in where the upstream names no model. Raises Malformed."""
        try:
            answer = _decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        tokens, _ = self.upstream.read_reply(body)
        choice = chat.WrittenChoice(0, _message(answer), FINISH_REASONS.get(answer.stop_reason or "", "stop"))
        return _encode(
            chat.WrittenReply(
                id="chatcmpl-" + answer.id.removeprefix("msg_"),
                object="chat.completion",
                created=int(self._now_s()),
                model=answer.model or alias,
                choices=[choice],
                usage=None if tokens is None else chat.usage_of(tokens),
            )
        )

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An error of Anthropic's in OpenAI's words."""
        return openai_error(status, body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> Scanner:
        """Reads Anthropic's stream, returns chat chunks."""
        return ChatStream(
            self.upstream.scanner(view=view, event_bytes_max=event_bytes_max),
            alias=view.model,
            created_s=int(self._now_s()),
            include_usage=view.include_usage,
        )


def _message(answer: anthropic.Answer) -> chat.WrittenAnswer:
    texts: list[str] = []
    thoughts: list[str] = []
    kept: list[msgspec.Raw] = []
    calls: list[chat.CallPart] = []
    for block in answer.content:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "tool_use":
            given = bytes(block.input)
            called = chat.CalledFunction(block.name, "{}" if given in _ABSENT else given.decode())
            calls.append(chat.CallPart(None, block.id, "function", called))
        elif block.type == "thinking" and block.thinking:
            thoughts.append(block.thinking)
        whole = kept_thinking(block, thinking=block.thinking, signature=block.signature)
        if whole is not None:
            kept.append(whole)
    return chat.WrittenAnswer(
        role="assistant",
        content="".join(texts) if texts or not calls else None,
        refusal=None,
        reasoning_content="".join(thoughts) or None,
        thinking_blocks=kept or None,
        tool_calls=calls or None,
    )

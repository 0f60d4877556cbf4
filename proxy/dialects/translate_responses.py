"""Lets a client that asks for responses be served by a deployment that chats, or by whatever chats are translated to."""

from __future__ import annotations

import time

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_responses_words as words
from proxy.dialects.dialect import Dialect, Malformed, RequestView, Scanner, Translation
from proxy.dialects.translate_responses_request import chat_request
from proxy.dialects.translate_responses_stream import ResponsesStream
from proxy.dialects.translate_stream import Clock

_decode = msgspec.json.Decoder(chat.Reply).decode
_encode = msgspec.json.Encoder().encode


class ResponsesToChat:
    """The translation `responses` to `chat`, or through a second one to what a chat is translated to."""

    def __init__(self, chat_dialect: Dialect, then: Translation | None = None, *, now_s: Clock = time.time) -> None:
        """chat_dialect: reads chats. then: translates them on; None: the upstream chats itself. now_s: seconds since 1970."""
        self._chat = chat_dialect
        self._then = then
        self._now_s = now_s
        self.upstream = chat_dialect if then is None else then.upstream

    def request(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request in the upstream's words. Raises Malformed, naming the field."""
        asked = chat_request(body, view=view, model=model, output_ceiling=output_ceiling)
        if self._then is None:
            return asked
        return self._then.request(asked, view=view, model=model, output_ceiling=output_ceiling)

    def reply(self, body: bytes, *, alias: str) -> bytes:
        """A complete reply as a response. Raises Malformed."""
        if self._then is not None:
            body = self._then.reply(body, alias=alias)
        try:
            reply = _decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        if not reply.choices:
            raise Malformed("the upstream's reply has no choices")
        tokens, _ = self._chat.read_reply(body)
        stem = words.identity_of(reply.id)
        response = words.Response(f"resp_{stem}", int(self._now_s()), reply.model or alias, "", [])
        response.output = _items(reply.choices[0].message, stem)
        response.usage = words.usage_of(tokens)
        words.ended(response, reply.choices[0].finish_reason or "")
        return _encode(response)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An error in OpenAI's words, which all of its operations share."""
        return (status, body) if self._then is None else self._then.error(status, body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> Scanner:
        """Reads the upstream's stream, returns events of a response. Usage is always asked for, so the inner scanner must show it."""
        asked = msgspec.structs.replace(view, include_usage=True)
        reader = self._chat if self._then is None else self._then
        inner = reader.scanner(view=asked, event_bytes_max=event_bytes_max)
        return ResponsesStream(inner, alias=view.model, created_s=int(self._now_s()))


def _items(answer: chat.Answer, stem: str) -> list[words.Item]:
    items: list[words.Item] = []
    text = "".join(part for part in (answer.content, answer.refusal) if part)
    if text:
        items.append(words.MessageItem(f"msg_{stem}_0", "completed", [words.OutputText(text)]))
    for call in answer.tool_calls or ():
        function = call.function or chat.CalledFunction()
        identity = f"fc_{stem}_{len(items)}"
        arguments = function.arguments or "{}"
        items.append(words.CallItem(identity, call.id or "", function.name or "", arguments, "completed"))
    return items

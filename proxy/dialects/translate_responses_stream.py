"""A chat's stream as a client of responses reads it: items that are added, grow and are done, each event with its number."""

from __future__ import annotations

import msgspec

from proxy.dialects import openai
from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_responses_words as words
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.translate_call_order import CallOrder
from proxy.dialects.translate_stream import TranslatedScanner

_KEEP_ALIVE = b": thinking\n\n"
_decode = msgspec.json.Decoder(chat.Chunk).decode
_encode = msgspec.json.Encoder().encode


class _Event(msgspec.Struct, omit_defaults=True):
    """Whatever event it is."""

    type: str
    sequence_number: int | None = None
    response: words.Response | None = None
    output_index: int | None = None
    item_id: str | None = None
    item: words.Item | None = None
    content_index: int | None = None
    part: words.OutputText | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[str] | None = None


class _Error(msgspec.Struct):
    sequence_number: int
    code: str
    message: str
    type: str = "error"
    param: None = None


class ResponsesStream(TranslatedScanner):
    """One stream. What was said is kept until its item is done, which repeats it."""

    __slots__ = ("_call_index", "_number", "_open", "_order", "_response", "_said", "_started", "_stem")

    def __init__(self, inner: Scanner, *, alias: str, created_s: int) -> None:
        super().__init__(inner)
        self._response = words.Response("", created_s, alias, "in_progress", [])
        self._number = -1
        self._open: words.Item | None = None
        self._order = CallOrder()
        self._call_index = -1  # the upstream's index of the open call
        self._said: list[str] = []
        self._started = False
        self._stem = ""
        self.finish_reason = ""

    def _told(self, data: bytes) -> bytes:
        chunk = _decode(data)
        if not self._started and not chunk.id and not chunk.choices:
            return b""  # some say what they found in the prompt first, and of which answer only then
        told = b"" if self._started else self._start(chunk)
        choice = chunk.choices[0] if chunk.choices else None
        if choice is None or choice.index:
            return told
        delta = choice.delta or chat.Delta()
        shown = b""
        for text in (delta.content, delta.refusal):
            if text:
                shown += self._text(text)
        for piece in delta.tool_calls or ():
            for call in self._order.put(piece):
                shown += self._call(call)
        if choice.finish_reason:
            self.finish_reason = words.ended(self._response, choice.finish_reason)
        if not shown and delta.reasoning_content:
            shown = _KEEP_ALIVE
        return told + shown

    def _end(self) -> tuple[bytes, bytes]:
        response = self._response
        told = b"" if self._started else self._start(chat.Chunk())
        told += self._waiting_calls() + self._close()
        if response.status == "in_progress":
            self.finish_reason = words.ended(response, "")
        response.usage = words.usage_of(self._inner.tokens)
        return told, self._numbered(_Event(f"response.{response.status}", response=response))

    def _error(self, data: bytes) -> bytes:
        code, message = openai.read_error(data)
        self._number += 1
        return b"event: error\ndata: " + _encode(_Error(self._number, code or "server_error", message)) + b"\n\n"

    def _start(self, chunk: chat.Chunk) -> bytes:
        self._started = True
        response = self._response
        self._stem = words.identity_of(chunk.id)
        response.id = f"resp_{self._stem}"
        response.model = chunk.model or response.model
        created = self._numbered(_Event("response.created", response=response))
        return created + self._numbered(_Event("response.in_progress", response=response))

    def _waiting_calls(self) -> bytes:
        return b"".join(map(self._call, self._order.rest()))

    def _text(self, text: str) -> bytes:
        told = self._waiting_calls() if self._order.holds else b""
        if not isinstance(self._open, words.MessageItem):
            told += self._close()
            item = words.MessageItem(f"msg_{self._stem}_{len(self._response.output)}", "in_progress", [])
            told += self._begin(item)
            told += self._numbered(self._at("response.content_part.added", part=words.OutputText("")))
        self._said.append(text)
        return told + self._numbered(self._at("response.output_text.delta", delta=text, logprobs=[]))

    def _call(self, call: chat.CallPart) -> bytes:
        """A piece of a call. Raises Malformed for one whose item is done, or was never added: it cannot be told any more."""
        told = b""
        function = call.function or chat.CalledFunction()
        index = self._call_index if call.index is None else call.index
        current = self._open
        same = isinstance(current, words.CallItem) and index == self._call_index
        if not same or (call.id and isinstance(current, words.CallItem) and call.id != current.call_id):
            if not (call.id and function.name):
                raise Malformed("the upstream sent a piece of a tool call that is not the last one begun")
            told = self._close()
            self._call_index = index
            identity = f"fc_{self._stem}_{len(self._response.output)}"
            told += self._begin(words.CallItem(identity, call.id, function.name, "", "in_progress"))
        if function.arguments:
            self._said.append(function.arguments)
            told += self._numbered(self._at("response.function_call_arguments.delta", delta=function.arguments))
        return told

    def _begin(self, item: words.Item) -> bytes:
        self._open = item
        place = len(self._response.output)
        return self._numbered(_Event("response.output_item.added", output_index=place, item=item))

    def _close(self) -> bytes:
        """The end of the open item: what was said in it, whole."""
        item = self._open
        if item is None:
            return b""
        said = "".join(self._said)
        self._said.clear()
        if isinstance(item, words.MessageItem):
            part = words.OutputText(said)
            told = self._numbered(self._at("response.output_text.done", text=said, logprobs=[]))
            told += self._numbered(self._at("response.content_part.done", part=part))
            item.content = [part]
        else:
            item.arguments = said or "{}"
            done = self._at("response.function_call_arguments.done", arguments=item.arguments, name=item.name)
            told = self._numbered(done)
        item.status = "completed"
        place = len(self._response.output)
        told += self._numbered(_Event("response.output_item.done", output_index=place, item=item))
        self._response.output.append(item)
        self._open = None
        return told

    def _at(
        self,
        kind: str,
        *,
        part: words.OutputText | None = None,
        delta: str | None = None,
        text: str | None = None,
        arguments: str | None = None,
        name: str | None = None,
        logprobs: list[str] | None = None,
    ) -> _Event:
        """An event inside the open item."""
        item = self._open
        return _Event(
            kind,
            output_index=len(self._response.output),
            item_id=None if item is None else item.id,
            content_index=0 if isinstance(item, words.MessageItem) else None,
            part=part,
            delta=delta,
            text=text,
            arguments=arguments,
            name=name,
            logprobs=logprobs,
        )

    def _numbered(self, event: _Event) -> bytes:
        self._number += 1
        event.sequence_number = self._number
        return b"event: " + event.type.encode() + b"\ndata: " + _encode(event) + b"\n\n"

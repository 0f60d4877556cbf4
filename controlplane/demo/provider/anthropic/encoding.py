"""Messages as bytes, in Anthropic's field order: one JSON document in one line, or the events of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from controlplane.demo.provider.answer import EVENTS, ID, MOMENT, Answer
from controlplane.demo.provider.anthropic.composition import Reply, Said

Json = dict[str, Any]  # JSON on its way to bytes
_MARK, _MOMENT = ID.decode(), MOMENT.decode()
_REASON = b'"stop_reason":"'
END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def json_answer(made: Reply) -> Answer:
    """A reply as one document."""
    return Answer(
        made.model.name, made.usage, made.usage, _marked(_message(made, made.usage.completion, whole=True)), marked=True
    )


def stream_answer(made: Reply) -> Answer:
    """A reply as events: its start, each block with a delta for each token, and how it ended."""
    writing = _Writing()
    writing.add(_event("message_start", message=_message(made, min(1, made.usage.completion), whole=False)))
    if not made.blocks:
        writing.events.append(PING)
    for index, block in enumerate(made.blocks):
        writing.block(index, block)
    delta: Json = {"stop_reason": made.stop_reason, "stop_sequence": made.stop_sequence}
    if made.container:
        delta["container"] = _container(made)
    usage = {key: value for key, value in usage_document(made).items() if key not in ("cache_creation", "service_tier")}
    writing.add(_event("message_delta", delta=delta, usage=usage))
    writing.step(0)
    return Answer(
        made.model.name,
        made.usage,
        made.usage,
        content_type=EVENTS,
        events=tuple(writing.events),
        steps=tuple(writing.steps),
        produced=tuple(min(tokens, made.usage.completion) for tokens in writing.produced),
        end=END,
        marked=True,
    )


def usage_document(made: Reply, *, output: int | None = None) -> Json:
    """The usage of a message. output: what was produced so far."""
    usage = made.usage
    document: Json = {
        "input_tokens": usage.fresh,
        "cache_creation_input_tokens": usage.written_5m + usage.written_1h,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.written_5m,
            "ephemeral_1h_input_tokens": usage.written_1h,
        },
        "output_tokens": usage.completion if output is None else output,
    }
    if made.thinks and output is None:
        document["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    if made.searches and output is None:
        document["server_tool_use"] = {"web_search_requests": made.searches, "web_fetch_requests": 0}
    return document | {"service_tier": "standard"}


def _container(made: Reply) -> Json:
    """Where code ran."""
    return {"id": made.container, "expires_at": _MOMENT}


def refused(answer: Answer) -> Answer:
    """An answer that the provider's classifier stopped: it keeps its text, and ends with the reason `refusal`."""
    return replace(answer, body=_refused(answer.body), events=tuple(map(_refused, answer.events)))


def _refused(data: bytes) -> bytes:
    start = data.rfind(_REASON)
    if start < 0:
        return data
    start += len(_REASON)
    return data[:start] + b"refusal" + data[data.index(b'"', start) :]


@dataclass(slots=True)
class _Writing:
    """A stream while it is written, with how much of it is out after each token."""

    events: list[bytes] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    produced: list[int] = field(default_factory=list)
    tokens: int = 0

    def add(self, event: bytes) -> None:
        self.events.append(event)

    def step(self, tokens: int) -> None:
        """So many more tokens are there."""
        self.tokens += tokens
        self.steps.append(len(self.events))
        self.produced.append(self.tokens)

    def block(self, index: int, block: Said) -> None:
        """All events of one content block."""
        self.add(_event("content_block_start", index=index, content_block=_opened(block)))
        if index == 0:
            self.add(PING)
        if block.type in _CALLS:
            self.add(_delta(index, "input_json_delta", "partial_json", ""))
        kind, name = _DELTAS.get(block.type, ("", ""))
        pieces = [piece for piece in block.pieces if piece]
        for piece in pieces:
            self.add(_delta(index, kind, name, piece))
            self.step(1)
        if block.type == "thinking":
            self.add(_delta(index, "signature_delta", "signature", block.signature))
        self.add(_event("content_block_stop", index=index))
        self.step(block.tokens - len(pieces))


_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
    "server_tool_use": ("input_json_delta", "partial_json"),
}
_CALLS = frozenset(("tool_use", "server_tool_use"))


def _message(made: Reply, output: int, *, whole: bool) -> Json:
    message: Json = {
        "model": made.model.name,
        "id": f"msg_01{_MARK}",
        "type": "message",
        "role": "assistant",
        "content": [_content(block) for block in made.blocks] if whole else [],
        "stop_reason": made.stop_reason if whole else None,
        "stop_sequence": made.stop_sequence if whole else None,
        "usage": usage_document(made, output=None if whole else output),
    }
    if made.container and whole:
        message["container"] = _container(made)
    return message


def _content(block: Said) -> Json:
    """A content block as a whole."""
    if block.type == "thinking":
        return {"type": "thinking", "thinking": block.text, "signature": block.signature}
    if block.type == "text":
        return {"type": "text", "text": block.text}
    if block.result is not None:
        return block.result
    return {"type": block.type, "id": block.id, "name": block.name, "input": _input(block.text)}


def _opened(block: Said) -> Json:
    """A content block at its start, still empty."""
    if block.type == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.type == "text":
        return {"type": "text", "text": ""}
    if block.result is not None:
        return block.result
    return {"type": block.type, "id": block.id, "name": block.name, "input": {}}


def _input(text: str) -> Json:
    """The input of a tool call; {} for one that was cut off."""
    try:
        made = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return made if isinstance(made, dict) else {}


def _delta(index: int, kind: str, name: str, piece: str) -> bytes:
    return _event("content_block_delta", index=index, delta={"type": kind, name: piece})


def _event(kind: str, **fields: object) -> bytes:
    """An event with its name and its data."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _marked({"type": kind} | fields))


def _marked(document: Json) -> bytes:
    """JSON in which the marks stand as themselves."""
    data = msgspec.json.encode(document).replace(b'"msg_01\\u0000"', b'"msg_01\x00"')
    return data.replace(b'"expires_at":"\\u0002"', b'"expires_at":"\x02"')

"""Answers of Anthropic's, as bytes: messages, and streams of every kind of event."""

from __future__ import annotations

import json

from tests.proxy.fakes import STREAM_END, STREAM_HEAD, chunk

USAGE = {
    "input_tokens": 9,
    "cache_creation_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 2},
    "cache_read_input_tokens": 4,
    "output_tokens": 3,
    "service_tier": "standard",
}
NO_CACHE_USAGE = {"input_tokens": 9, "output_tokens": 3}


def message(text: str = "Hello", usage: object = None, **more: object) -> bytes:
    """The body of a message."""
    document = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": NO_CACHE_USAGE if usage is None else usage,
    }
    return json.dumps(document | more, separators=(",", ":")).encode()


def sent_event(kind: str, **fields: object) -> bytes:
    """One event, by its type."""
    data = json.dumps({"type": kind, **fields}, separators=(",", ":"), ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def start(usage: object = None) -> bytes:
    """The first event."""
    document = json.loads(message()) | {
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 9, "output_tokens": 1} if usage is None else usage,
    }
    return sent_event("message_start", message=document)


def text_block(*texts: str, index: int = 0) -> bytes:
    """A block of text, from its start to its stop."""
    begin = sent_event("content_block_start", index=index, content_block={"type": "text", "text": ""})
    deltas = (sent_event("content_block_delta", index=index, delta={"type": "text_delta", "text": t}) for t in texts)
    return begin + b"".join(deltas) + sent_event("content_block_stop", index=index)


def stop(usage: object = None, reason: str = "end_turn") -> bytes:
    """The end of a message, but for its very last event."""
    delta = {"stop_reason": reason, "stop_sequence": None}
    return sent_event("message_delta", delta=delta, usage={"output_tokens": 3} if usage is None else usage)


PING = sent_event("ping")
MESSAGE_STOP = sent_event("message_stop")
OVERLOADED = sent_event("error", error={"type": "overloaded_error", "message": "Overloaded"})


def streamed(*events: bytes) -> bytes:
    """An HTTP answer with these events."""
    return STREAM_HEAD + chunk(b"".join(events)) + STREAM_END


def whole_message(*texts: str) -> bytes:
    """A stream that ends as it should."""
    return streamed(start(), PING, text_block(*texts), stop(), MESSAGE_STOP)

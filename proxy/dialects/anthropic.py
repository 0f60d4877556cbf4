"""Anthropic's wire language, as far as the proxy must read and write it: for now the shape of an error."""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode


def error_body(*, message: str, kind: str, request_id: str) -> bytes:
    """An error as Anthropic's clients expect it."""
    return _encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def error_event(*, message: str, kind: str, request_id: str) -> bytes:
    """The same inside a stream."""
    return b"event: error\ndata: " + error_body(message=message, kind=kind, request_id=request_id) + b"\n\n"

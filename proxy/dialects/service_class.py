"""In which service class an upstream served, where its reply says so: each has prices of its own.

OpenAI and Anthropic name a tier: `batch`, `flex`, `priority`. Anthropic says besides whether it was `fast`, and whether it kept to
the `us`; both cost more. What comes together is joined by `+`, in this order.
"""

from __future__ import annotations

import msgspec

MARK = b'"service_tier"'
_MESSAGES_MARKS = (MARK, b'"speed"', b'"inference_geo"')
_STANDARD = frozenset(("auto", "default", "standard", "standard_only"))


class _Inner(msgspec.Struct):
    service_tier: str | None = None


class _Usage(msgspec.Struct):
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Said(msgspec.Struct):
    """Where the protocols put it: beside the usage, within it, within a stream's first message or its last response."""

    service_tier: str | None = None
    usage: _Usage | None = None
    message: _Message | None = None
    response: _Inner | None = None


_FAST, _US, _PRIORITY = "fast", "us", "priority"  # OpenAI has two names for `priority`
_DEARER = frozenset((_FAST, _US))
_decode = msgspec.json.Decoder(_Said).decode


def service_class_of(data: bytes) -> str:
    """The class that a reply, or the events of a stream, name; empty for the standard one and where nothing is said.

    Only the protocol's own places count, so that nothing a client or a model writes elsewhere in the reply changes a price.
    """
    if MARK not in data:
        return ""
    documents = [data] if data[:1] == b"{" else [line[5:] for line in data.split(b"\n") if line.startswith(b"data:")]
    found = ""
    for document in documents:
        if MARK in document:
            found = _of_document(document) or found
    return "" if found in _STANDARD else found


def may_ask_for_one(operation: str, body: bytes) -> bool:
    """Whether a request may ask for another class than the standard one."""
    return any(mark in body for mark in _MESSAGES_MARKS) if operation == "messages" else MARK in body


def _of_document(document: bytes) -> str:
    try:
        said = _decode(document)
    except (msgspec.DecodeError, RecursionError):
        return ""
    usage = said.usage or (said.message.usage if said.message is not None else None)
    places = (said, usage, said.response)
    tier = next((place.service_tier for place in places if place is not None and place.service_tier), "")
    if usage is None or (usage.speed != _FAST and usage.inference_geo != _US):
        return _PRIORITY if tier == _FAST else tier
    names = (
        tier if tier not in _STANDARD else "",
        *(name for name in (usage.speed, usage.inference_geo) if name in _DEARER),
    )
    return "+".join(name for name in names if name)

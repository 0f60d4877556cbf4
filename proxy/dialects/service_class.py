"""In which service class an upstream served, where its reply says so: `batch`, `flex` and `priority` have prices of their own."""

from __future__ import annotations

import msgspec

MARK = b'"service_tier"'
_STANDARD = frozenset(("auto", "default", "standard", "standard_only"))


class _Inner(msgspec.Struct):
    service_tier: str | None = None


class _Message(msgspec.Struct):
    usage: _Inner | None = None


class _Said(msgspec.Struct):
    """Where the protocols put it: beside the usage, within it, within a stream's first message or its last response."""

    service_tier: str | None = None
    usage: _Inner | None = None
    message: _Message | None = None
    response: _Inner | None = None


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


def _of_document(document: bytes) -> str:
    try:
        said = _decode(document)
    except (msgspec.DecodeError, RecursionError):
        return ""
    places = (said, said.usage, said.response, said.message.usage if said.message is not None else None)
    return next((place.service_tier for place in places if place is not None and place.service_tier), "")

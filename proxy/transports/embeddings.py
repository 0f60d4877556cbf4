"""Embeddings by input: a request as a list of items, an answer as one object for each, and both put together again. Pure.

Vectors are never decoded: an item's object goes through as the bytes that the upstream sent, floats and base64 alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

Fields: TypeAlias = dict[str, msgspec.Raw]

ITEMS_MAX = 2048  # as many as providers take; a body may hold millions, each of which would cost a key

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_items = msgspec.json.Decoder(list[Fields]).decode
_decode_index = msgspec.json.Decoder(int).decode
_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="sorted").encode
_BROKEN = (msgspec.DecodeError, ValueError, RecursionError)


class Ask(msgspec.Struct, frozen=True):
    """What an embeddings request asks for. rest: everything but the input, canonical; items: the inputs, canonical JSON each.

    weights: tokens where an input is an array of tokens, bytes where it is text; exact: whether all are counts of tokens.
    """

    fields: Fields
    rest: bytes
    items: tuple[bytes, ...]
    weights: tuple[int, ...]
    exact: bool


class Answered(msgspec.Struct, frozen=True):
    """What an upstream answered. items: each input's object without its `index`, in the order of the inputs; model: as JSON."""

    fields: Fields
    items: tuple[bytes, ...]
    model: bytes
    tokens: int  # 0: the upstream did not say


def read_ask(body: bytes, *, without: Sequence[str] = ()) -> Ask | None:
    """The request by inputs; None for one whose input is not a text, an array of tokens, or a list of ITEMS_MAX of either at most.

    without: fields that `rest` leaves out.
    """
    try:
        fields = _decode_fields(body)
        asked = _decode(fields.pop("input"))
        rest = _canonical({name: _decode(value) for name, value in fields.items() if name not in without})
    except (*_BROKEN, KeyError):
        return None
    inputs = [asked] if isinstance(asked, str) or _is_tokens(asked) else asked
    if not isinstance(inputs, list) or not 0 < len(inputs) <= ITEMS_MAX:
        return None
    exact = all(map(_is_tokens, inputs))
    if not exact and not all(isinstance(one, str) for one in inputs):
        return None
    items = tuple(_encode(one) for one in inputs)
    weights = tuple(len(one) if exact else len(item) - 2 for one, item in zip(inputs, items, strict=True))
    return Ask(fields, rest, items, weights, exact)


def write_ask(ask: Ask, items: Sequence[bytes]) -> bytes:
    """A request for these inputs, otherwise as it was."""
    return _encode({**ask.fields, "input": msgspec.Raw(b"[" + b",".join(items) + b"]")})


def read_answer(body: bytes, *, count: int) -> Answered | None:
    """The answer by inputs, of which there were so many; None if it does not have exactly one for each."""
    try:
        fields = _decode_fields(body)
        data = _decode_items(fields.pop("data"))
        found: list[bytes | None] = [None] * count
        for at, item in enumerate(data):
            raw = item.pop("index", None)
            index = at if raw is None else _decode_index(raw)
            if "embedding" not in item or not 0 <= index < count or found[index] is not None:
                return None
            found[index] = _encode(item)
        items = tuple(item for item in found if item is not None)
        usage = fields.pop("usage", None)
        tokens = 0 if usage is None else _tokens_of(_decode(usage))
    except (*_BROKEN, KeyError):
        return None
    return Answered(fields, items, bytes(fields.get("model", b"null")), tokens) if len(items) == count else None


def write_answer(items: Sequence[bytes], *, model: bytes, tokens: int, fields: Fields | None = None) -> bytes:
    """An answer of these objects in this order. fields: what else the upstream said."""
    data = b",".join([b'{"index":%d,%b' % (at, item[1:]) for at, item in enumerate(items)])
    document = {"object": msgspec.Raw(b'"list"'), **(fields or {})}
    document["model"] = msgspec.Raw(model)
    document["data"] = msgspec.Raw(b"[%b]" % data)
    document["usage"] = msgspec.Raw(b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens))
    return _encode(document)


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _tokens_of(usage: object) -> int:
    found = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) and found >= 0 else 0

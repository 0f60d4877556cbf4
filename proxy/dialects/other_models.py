"""Models that a request names beside its own: its upstream may answer with them, and whoever may not use them could have them all the same.

Anthropic asks its `fallbacks` where the model declines, and an advisor wherever the model wants advice; OpenRouter takes a list of `models`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

_ESCAPE = b"\\u"
_ADVISOR = "advisor_"
_UNREADABLE = "(unreadable)"


class _Request(msgspec.Struct):
    fallbacks: msgspec.Raw = msgspec.Raw(b"null")
    models: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Request).decode
_decode_any = msgspec.json.Decoder().decode


def may_name_others(body: bytes) -> bool:
    """Cheap tests of a request's bytes: most name none, and are not decoded."""
    return b'"models"' in body or b'"fallbacks"' in body or b'"advisor_' in body or _ESCAPE in body


def others_named(body: bytes) -> tuple[str, ...]:
    """The other models of a request, in its upstream's words: `default` stands for whichever that chooses. None where the body is no JSON object.

    What cannot be read, an upstream may read all the same: it stands for a model that nobody has.
    """
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ()
    try:
        places = (_named_in(_decode_any(raw)) for raw in (asked.fallbacks, asked.models))
        found = [name for names in places for name in names]
        tools = _decode_any(asked.tools)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return (_UNREADABLE,)
    own = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    found += [str(tool.get("model")) for tool in own if str(tool.get("type")).startswith(_ADVISOR)]
    return tuple(dict.fromkeys(found))


def _named_in(value: object) -> Iterator[str]:
    """A name, or a list of names or of objects with one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield str(item.get("model")) if isinstance(item, dict) else str(item)

"""Which of the provider's own tools a request lets the model use, and how often at most: what of their cost can be bounded before the call."""

from __future__ import annotations

import re

import msgspec

from controlplane.contract.pricing import Price

HOSTING = frozenset(("messages", "passthrough", "responses"))  # operations with tools of the provider's own
_TOOLS = b'"tools"'
_ESCAPE = b"\\u"
_KINDS = (  # by how their types begin; Anthropic's end with a date
    ("web_search", "search"),
    ("file_search", "file_search"),
    ("code_interpreter", "container"),
    ("code_execution", "container"),
    ("shell", "container"),
    ("image_generation", "picture"),
)
_GIGABYTES = re.compile(r"([1-9]\d{0,2})g\Z")
_USES_MAX = 10_000


class _Place(msgspec.Struct):
    memory_limit: msgspec.Raw = msgspec.Raw(b"null")
    type: msgspec.Raw = msgspec.Raw(b"null")


class _Tool(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw(b"null")
    max_uses: msgspec.Raw = msgspec.Raw(b"null")
    container: msgspec.Raw = msgspec.Raw(b"null")
    environment: msgspec.Raw = msgspec.Raw(b"null")


class _Request(msgspec.Struct):
    tools: list[_Tool] | None = None
    max_tool_calls: msgspec.Raw = msgspec.Raw(b"null")


class Hosted(msgspec.Struct, frozen=True):
    """What may be used. uses: by kind, how often at most, where the request says; calls: of all tools together, None: it does not say."""

    kinds: tuple[str, ...] = ()
    uses: tuple[tuple[str, int], ...] = ()
    calls: int | None = None


NOTHING_HOSTED = Hosted()
_decode = msgspec.json.Decoder(_Request).decode
_decode_place = msgspec.json.Decoder(_Place).decode
_decode_any = msgspec.json.Decoder().decode


def read_hosted(body: bytes) -> Hosted:
    """What a request lets the provider do for the model. Nothing where it names no tools, or what no provider would take."""
    if _TOOLS not in body and _ESCAPE not in body:
        return NOTHING_HOSTED
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return NOTHING_HOSTED
    if not asked.tools:
        return NOTHING_HOSTED
    kinds: dict[str, None] = {}
    uses: list[tuple[str, int]] = []
    for tool in asked.tools:
        name = _text(tool.type)
        kind = next((kind for beginning, kind in _KINDS if name.startswith(beginning)), "")
        if not kind or (name == "shell" and _is_local(tool.environment)):
            continue
        kinds[kind] = None
        most = _gigabytes(tool) if kind == "container" else _count(tool.max_uses)
        if most is not None:
            uses.append((kind, most))
    return Hosted(tuple(kinds), tuple(uses), _count(asked.max_tool_calls))


def hosted_nanousd_max(hosted: Hosted, price: Price) -> int:
    """The most that these tools can cost, as far as the request bounds it, in nano-USD; a kind without a price counts for nothing."""
    bounded = sum(count * (getattr(price, kind) or 0) for kind, count in hosted.uses)
    if hosted.calls is None:
        return bounded
    open_kinds = [kind for kind in hosted.kinds if kind not in dict(hosted.uses)]
    return bounded + hosted.calls * max((getattr(price, kind) or 0 for kind in open_kinds), default=0)


def _gigabytes(tool: _Tool) -> int:
    """The memory of the one container that a call is given."""
    for raw in (tool.container, tool.environment):
        try:
            found = _GIGABYTES.match(_text(_decode_place(raw).memory_limit))
        except (msgspec.DecodeError, RecursionError):
            continue  # the id of one
        if found is not None:
            return int(found[1])
    return 1


def _is_local(environment: msgspec.Raw) -> bool:
    """Whether commands run at the client."""
    try:
        return _text(_decode_place(environment).type) not in ("container_auto", "container_reference")
    except (msgspec.DecodeError, RecursionError):
        return True


def _text(raw: msgspec.Raw) -> str:
    value = _decode_any(raw)
    return value if isinstance(value, str) else ""


def _count(raw: msgspec.Raw) -> int | None:
    value = _decode_any(raw)
    return min(value, _USES_MAX) if isinstance(value, int) and value > 0 else None

"""How many searches of the web an upstream made for an answer: it bills them one by one, beside the tokens.

Anthropic counts them in its usage, OpenAI's responses list them among their output.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.dialects.events import data_of

SEARCHES_MAX = 10_000  # more than any answer makes; a count above it makes no sense
_MARKS = (b'"web_search_requests"', b'"web_search_call"')
_SEARCH = "web_search_call"


class ServerToolUse(msgspec.Struct):
    """What Anthropic's own tools did."""

    web_search_requests: Annotated[int, Meta(ge=0, le=SEARCHES_MAX)] | None = None


class _Usage(msgspec.Struct):
    server_tool_use: ServerToolUse | None = None


class _Action(msgspec.Struct):
    type: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    action: _Action | None = None


class _Said(msgspec.Struct):
    """Where the protocols put it: in the usage, among the output, and there within a stream's last response."""

    usage: _Usage | None = None
    output: list[_Item] | None = None
    response: _Said | None = None


_decode = msgspec.json.Decoder(_Said).decode
_decode_use = msgspec.json.Decoder(ServerToolUse | None).decode


def searches_of(answer: bytes) -> int:
    """Searches that an answer, or a stream's last event, names; 0 where nothing is said or it makes no sense.

    Only the protocol's own places count. Looking at a page that was found is no search.
    """
    if not any(mark in answer for mark in _MARKS):
        return 0
    document = answer if answer[:1] == b"{" else data_of(answer.rstrip(b"\n"))
    try:
        said = _decode(document or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return 0
    if said.response is not None:
        said = said.response
    counted = said.usage.server_tool_use if said.usage is not None else None
    listed = sum(1 for item in said.output or () if item.type == _SEARCH and _is_search(item.action))
    return min(SEARCHES_MAX, listed + ((counted.web_search_requests or 0) if counted is not None else 0))


def searches_in_use(raw: msgspec.Raw) -> int:
    """The same of a `server_tool_use` object alone."""
    try:
        use = _decode_use(raw)
    except (msgspec.DecodeError, RecursionError):
        return 0
    return (use.web_search_requests or 0) if use is not None else 0


def _is_search(action: _Action | None) -> bool:
    return action is None or action.type in (None, "search")

"""What a provider's own tools did for an answer: it bills them one by one, beside the tokens.

Anthropic counts its searches in the usage and names the container in which code ran; OpenAI's responses list every call among their
output. Chat completions say nothing, but some models search for every answer. Only the protocol's own places count, so that nothing a
client or a model writes elsewhere changes a price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from proxy.dialects.events import data_of

# Kinds of `controlplane.contract.pricing.ITEM_KINDS`, each once, and how many. A number below zero is a guess at so many: they were
# counted, but the count cannot be read, which does not make them free.
Used = tuple[tuple[str, int], ...]
SEARCHED: Used = (("search", 1),)
CALLS_MAX = 10_000  # more than any answer makes; a count above it makes no sense
_CALL, _COUNT = b'_call"', b'_requests"'
_USE, _NO_USE = b'"server_tool_use"', b'"server_tool_use":null'
_CALLS = re.compile(rb'"(?:(?:web|file)_search|code_interpreter|image_generation|shell)_call"')
_CONTAINER, _NO_CONTAINER = b'"container"', b'"container":null'
_BY_CALL = {"web_search_call": "search", "file_search_call": "file_search", "image_generation_call": "picture"}
_IN_CONTAINER = frozenset(("code_interpreter_call", "shell_call"))
_GIGABYTES = re.compile(r"([1-9]\d{0,2})g\Z")
_ALWAYS_SEARCHES = re.compile(r"-search-(?:preview|api)(?:-|\Z)")
_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_GUESS = -1


class Use(NamedTuple):
    """What a usage counts of its provider's own tools; None: it counts them, but the count cannot be read."""

    searches: int | None = 0
    ran_code: bool | None = False


class _ServerToolUse(msgspec.Struct):
    """What Anthropic's own tools did; pages that they fetch cost nothing but tokens. litellm says the same of the prompt's tokens."""

    web_search_requests: msgspec.Raw = _NOTHING
    code_execution_requests: msgspec.Raw = _NOTHING


class _Usage(msgspec.Struct):
    server_tool_use: msgspec.Raw = _NOTHING
    prompt_tokens_details: msgspec.Raw = _NOTHING


class _Requests(msgspec.Struct):
    num_requests: msgspec.Raw = _NOTHING


class _ToolUsage(msgspec.Struct):
    web_search: _Requests | None = None


class _Said(msgspec.Struct):
    """Where the protocols put it: in the usage, among the output, beside both, and there within a stream's last response."""

    usage: msgspec.Raw = _NOTHING
    output: list[msgspec.Raw] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_usage: msgspec.Raw = _NOTHING
    container: msgspec.Raw = _NOTHING
    response: _Said | None = None


class _Action(msgspec.Struct):
    type: str | None = None


class _Environment(msgspec.Struct):
    container_id: str | None = None
    memory_limit: str | None = None


class _Call(msgspec.Struct):
    """An item of output, or a tool that may be used."""

    type: str | None = None
    action: _Action | list[msgspec.Raw] | str | None = None
    container_id: str | None = None
    container: _Environment | str | None = None
    environment: _Environment | str | None = None


class _Typed(msgspec.Struct):
    type: str | None = None


_decode = msgspec.json.Decoder(_Said).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_use = msgspec.json.Decoder(_ServerToolUse).decode
_decode_count = msgspec.json.Decoder(Annotated[int, Meta(ge=0, le=CALLS_MAX)]).decode
_decode_tool_usage = msgspec.json.Decoder(_ToolUsage | None).decode
_decode_call = msgspec.json.Decoder(_Call).decode
_decode_typed = msgspec.json.Decoder(_Typed).decode


def always_searches(model: str) -> bool:
    """Whether a model searches the web for every answer, as its name says, since its answers do not."""
    return _ALWAYS_SEARCHES.search(model) is not None


def used_in(answer: bytes) -> Used:
    """What an answer, or a stream's last event, names; nothing where nothing is said or it makes no sense."""
    if not _may_tell(answer):
        return ()
    document = answer if answer[:1] == b"{" else data_of(answer.rstrip(b"\n"))
    try:
        said = _decode(document or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return ()
    said = said.response or said
    use = _use_in(said.usage)
    counts = {"search": use.searches or 0, "container": int(use.ran_code or bytes(said.container) not in _EMPTY)}
    unread = _count_calls(said, counts) if said.output else False
    if (unread or use.searches is None) and not counts["search"]:
        counts["search"] = _GUESS
    if use.ran_code is None and not counts["container"]:
        counts["container"] = _GUESS
    return as_used(counts)


def _may_tell(answer: bytes) -> bool:
    """Cheap tests of an answer's bytes: most say nothing, and are not decoded."""
    if _COUNT in answer or (_CALL in answer and _CALLS.search(answer) is not None):
        return True
    if _CONTAINER in answer and answer.count(_CONTAINER) != answer.count(_NO_CONTAINER):
        return True
    return _USE in answer and answer.count(_USE) != answer.count(_NO_USE)


def as_used(counts: Mapping[str, int]) -> Used:
    """The kinds of which there are any."""
    return tuple((kind, max(-CALLS_MAX, min(CALLS_MAX, count))) for kind, count in counts.items() if count)


def use_of(raw: msgspec.Raw) -> Use:
    """What a `server_tool_use` counts. Where it is no object, it is taken for searches; that code ran is said elsewhere, too."""
    if bytes(raw) in _EMPTY:
        return Use()
    try:
        use = _decode_use(raw)
    except (msgspec.DecodeError, RecursionError):
        return Use(searches=None)
    ran = _count_of(use.code_execution_requests)
    return Use(_count_of(use.web_search_requests), None if ran is None else ran > 0)


def _use_in(usage: msgspec.Raw) -> Use:
    """What a `usage` counts; nothing where it is none, for then the tokens are not known either."""
    if bytes(usage) in _EMPTY:
        return Use()
    try:
        said = _decode_usage(usage)
    except (msgspec.DecodeError, RecursionError):
        return Use()
    use = use_of(said.server_tool_use)
    try:
        details = None if bytes(said.prompt_tokens_details) in _EMPTY else _decode_use(said.prompt_tokens_details)
    except (msgspec.DecodeError, RecursionError):
        details = None
    detailed = 0 if details is None else _count_of(details.web_search_requests)
    known = max(use.searches or 0, detailed or 0)
    unread = not known and None in (use.searches, detailed)
    return Use(None if unread else known, use.ran_code)


def _count_of(raw: msgspec.Raw) -> int | None:
    """A count; 0 where nothing is said, None where it makes no sense."""
    if bytes(raw) in (b"", b"null"):
        return 0
    try:
        count: int = _decode_count(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return count


def call_kind(event_type: str) -> str:
    """The kind of item that an event of a stream says is done, as in `response.file_search_call.completed`; empty: none."""
    name = event_type.removeprefix("response.").removesuffix(".completed")
    return "container" if name in _IN_CONTAINER else _BY_CALL.get(name, "")


def _count_calls(said: _Said, counts: dict[str, int]) -> bool:
    """Adds what the output of a response lists; whether its own count of searches cannot be read.

    Looking at a page that was found is no search; calls share a container by its id.
    """
    containers: set[str] = set()
    for raw in said.output or ():
        kind, call = _call_of(raw)
        if kind in _IN_CONTAINER:
            container = _container_of(kind, call)
            if container is not None:
                containers.add(container)
        elif kind in _BY_CALL and (kind != "web_search_call" or _is_search(call)):
            counts[_BY_CALL[kind]] = counts.get(_BY_CALL[kind], 0) + 1
    if containers:
        counts["container"] = len(containers) * _gigabytes(said.tools)
    raw = _searches_reported(said.tool_usage)
    reported = _count_of(raw)
    if reported is not None and bytes(raw) not in _EMPTY:
        counts["search"] = reported
    return reported is None


def _call_of(raw: msgspec.Raw) -> tuple[str, _Call | None]:
    """The type of an item, and the item if it has the usual form: one in a form that nobody knows is billed all the same."""
    try:
        call = _decode_call(raw)
    except (msgspec.DecodeError, RecursionError):
        try:
            return _decode_typed(raw).type or "", None
        except (msgspec.DecodeError, RecursionError):
            return "", None
    return call.type or "", call


def _container_of(kind: str, call: _Call | None) -> str | None:
    """The id of the provider's container in which it ran; None: it ran at the client."""
    if kind == "code_interpreter_call" or call is None:
        return "" if call is None else call.container_id or ""
    return call.environment.container_id if isinstance(call.environment, _Environment) else None


def _is_search(call: _Call | None) -> bool:
    action = None if call is None else call.action
    return not isinstance(action, _Action) or action.type in (None, "search")


def _searches_reported(raw: msgspec.Raw) -> msgspec.Raw:
    try:
        said = _decode_tool_usage(raw) if bytes(raw) not in _EMPTY else None
    except (msgspec.DecodeError, RecursionError):
        return _NOTHING
    return _NOTHING if said is None or said.web_search is None else said.web_search.num_requests


def _gigabytes(tools: list[msgspec.Raw] | None) -> int:
    """The memory of the containers that the request had made, which is what they are billed by; 1 is the usual."""
    most = 1
    for raw in tools or ():
        _, tool = _call_of(raw)
        if tool is None:
            continue
        for place in (tool.container, tool.environment):
            found = _GIGABYTES.match(place.memory_limit or "") if isinstance(place, _Environment) else None
            most = max(most, int(found[1]) if found is not None else 1)
    return most

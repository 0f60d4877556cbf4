"""What a provider's own tools did for an answer: it bills them one by one, beside the tokens.

Anthropic counts its searches in the usage and names the container in which code ran; OpenAI's responses list every call among their
output. Chat completions say nothing, but some models search for every answer. Only the protocol's own places count, so that nothing a
client or a model writes elsewhere changes a price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.dialects.events import data_of

Used = tuple[tuple[str, int], ...]  # kinds of `controlplane.contract.pricing.ITEM_KINDS`, and how many; each kind once
SEARCHED: Used = (("search", 1),)
CALLS_MAX = 10_000  # more than any answer makes; a count above it makes no sense
_CALL, _COUNT = b'_call"', b'_requests"'
_CALLS = re.compile(rb'"(?:(?:web|file)_search|code_interpreter|image_generation|shell)_call"')
_CONTAINER, _NO_CONTAINER = b'"container"', b'"container":null'
_BY_CALL = {"web_search_call": "search", "file_search_call": "file_search", "image_generation_call": "picture"}
_IN_CONTAINER = frozenset(("code_interpreter_call", "shell_call"))
_GIGABYTES = re.compile(r"([1-9]\d{0,2})g\Z")
_ALWAYS_SEARCHES = re.compile(r"-search-(?:preview|api)(?:-|\Z)")
_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_Count = Annotated[int, Meta(ge=0, le=CALLS_MAX)] | None


class _ServerToolUse(msgspec.Struct):
    """What Anthropic's own tools did; pages that they fetch cost nothing but tokens."""

    web_search_requests: _Count = None
    code_execution_requests: _Count = None


class _PromptDetails(msgspec.Struct):
    web_search_requests: _Count = None  # as litellm says it


class _Usage(msgspec.Struct):
    server_tool_use: msgspec.Raw = _NOTHING
    prompt_tokens_details: _PromptDetails | None = None


class _Requests(msgspec.Struct):
    num_requests: _Count = None


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
_decode_use = msgspec.json.Decoder(_ServerToolUse | None).decode
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
    searches, ran = searches_and_code(said.usage)
    counts = {"search": searches, "container": int(ran or bytes(said.container) not in _EMPTY)}
    if said.output:
        _count_calls(said, counts)
    return as_used(counts)


def _may_tell(answer: bytes) -> bool:
    """Cheap tests of an answer's bytes: most say nothing, and are not decoded."""
    if _COUNT in answer or (_CALL in answer and _CALLS.search(answer) is not None):
        return True
    return _CONTAINER in answer and answer.count(_CONTAINER) != answer.count(_NO_CONTAINER)


def as_used(counts: Mapping[str, int]) -> Used:
    """The kinds of which there are any."""
    return tuple((kind, min(CALLS_MAX, count)) for kind, count in counts.items() if count)


def searches_and_code(usage: msgspec.Raw) -> tuple[int, bool]:
    """Searches of the web that a `usage` counts, and whether code ran."""
    if bytes(usage) in _EMPTY:
        return 0, False
    try:
        said = _decode_usage(usage)
    except (msgspec.DecodeError, RecursionError):
        return 0, False
    searches, ran = use_of(said.server_tool_use)
    details = said.prompt_tokens_details
    return max(searches, (details.web_search_requests or 0) if details is not None else 0), ran


def use_of(raw: msgspec.Raw) -> tuple[int, bool]:
    """The same of a `server_tool_use` object alone."""
    try:
        use = _decode_use(raw) if bytes(raw) not in _EMPTY else None
    except (msgspec.DecodeError, RecursionError):
        return 0, False
    return (0, False) if use is None else (use.web_search_requests or 0, bool(use.code_execution_requests))


def call_kind(event_type: str) -> str:
    """The kind of item that an event of a stream says is done, as in `response.file_search_call.completed`; empty: none."""
    name = event_type.removeprefix("response.").removesuffix(".completed")
    return "container" if name in _IN_CONTAINER else _BY_CALL.get(name, "")


def _count_calls(said: _Said, counts: dict[str, int]) -> None:
    """Adds what the output of a response lists. Looking at a page that was found is no search; calls share a container by its id."""
    containers: set[str] = set()
    for raw in said.output or ():
        kind, call = _call_of(raw)
        if kind in _IN_CONTAINER:
            container = _container_of(kind, call)
            if container is not None:
                containers.add(container)
        elif kind in _BY_CALL and (kind != "web_search_call" or _is_search(call)):
            counts[_BY_CALL[kind]] = counts.get(_BY_CALL[kind], 0) + 1
    reported = _searches_reported(said.tool_usage)
    if reported is not None:
        counts["search"] = reported
    if containers:
        counts["container"] = len(containers) * _gigabytes(said.tools)


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


def _searches_reported(raw: msgspec.Raw) -> int | None:
    try:
        said = _decode_tool_usage(raw) if bytes(raw) not in _EMPTY else None
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if said is None or said.web_search is None else said.web_search.num_requests


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

"""What a response builds on and what it leaves behind at the upstream, by id: the part of the language that tenants must not share.

All tenants of a deployment share one account there, and the upstream finds anything of that account by its id alone. So the proxy reads which
ids a request names, and which ids an answer has made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from proxy.dialects.dialect import Malformed

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

ID_CHARS_MAX = 256
IDS_MAX = 1024  # in one request, or made by one answer
# Items that carry their content with them: their id is only a name. What any other item with an id stands for, the upstream looks up.
_WHOLE = frozenset(
    (
        "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "computer_call",
        "computer_call_output", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
        "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
        "tool_search_call", "tool_search_output", "compaction", "compaction_trigger", "program", "program_output",
    )
)  # fmt: skip
_WHOLE_WITH = {"reasoning": "encrypted_content", "image_generation_call": "result", "file_search_call": "results"}
# An escape that writes a letter of a name, so that a search for the name would miss it.
_ESCAPED_LETTER = re.compile(rb"\\u00[2-7]")
_NAMES = (b'"id"', b"container")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Made(msgspec.Struct, frozen=True):
    """What an answer has made at the upstream. ids: all that can be named later, the answer's own first."""

    id: str = ""
    status: str = ""
    ids: tuple[str, ...] = ()
    usage: msgspec.Raw = msgspec.Raw(b"")
    conversation: str = ""  # in which a response was made


class _Fields(msgspec.Struct):
    """Of an object that the upstream answered with, or of the one inside a stream's event."""

    id: str = ""
    status: str | None = None
    output: msgspec.Raw = msgspec.Raw(b"[]")
    conversation: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"[]")
    usage: msgspec.Raw = msgspec.Raw(b"")
    store: bool | None = None
    response: msgspec.Raw = msgspec.Raw(b"")


class _Given(msgspec.Struct):
    items: msgspec.Raw = msgspec.Raw(b"[]")


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_given = msgspec.json.Decoder(_Given).decode


def names_ids(body: bytes) -> bool:
    """Whether a request may name ids below its top level; then it is read whole, and written anew so that no name is there twice."""
    return any(name in body for name in _NAMES) or (b"\\u00" in body and _ESCAPED_LETTER.search(body) is not None)


def written_anew(body: bytes | msgspec.Raw) -> msgspec.Raw:
    """The same values with each name once at every level: the last, which is the one that was read."""
    return msgspec.Raw(_encode(_decode(body)))


def ids_named(*, conversation: bytes, items: bytes, tools: bytes) -> tuple[tuple[str, str], ...]:
    """Field and id of everything below the top level of a request that the upstream would look up. Raises Malformed.

    Each argument is a JSON value.
    """
    found: list[tuple[str, str]] = []
    home = _decode(conversation)
    if home is not None:
        found.append(("conversation", _id_of(home, "conversation")))
    for item in _objects(_decode(items)):
        found.extend(("input", name) for name in _named_by(item))
    for tool in _objects(_decode(tools)):
        found.extend(("tools", name) for name in _containers(tool))
    if len(found) > IDS_MAX:
        raise Malformed(f"`input` names more than {IDS_MAX} stored items", "input")
    for field, name in found:
        check_id(name, field)
    return tuple(dict.fromkeys(found))


def check_id(name: str, field: str) -> str:
    """The id, if it can be one. Raises Malformed."""
    if not name or len(name) > ID_CHARS_MAX:
        raise Malformed(f"`{field}` holds an id that is empty or longer than {ID_CHARS_MAX} characters", field)
    return name


def made_by(body: bytes | msgspec.Raw, *, kept: bool) -> Made:
    """What an answer, or an event of its stream, says that it made; an empty Made if it is not what was expected.

    kept: the upstream keeps all of it; else only what can be looked up all the same is listed.
    """
    try:
        fields = _decode_fields(body)
        if bytes(fields.response) not in (b"", b"null"):
            fields = _decode_fields(fields.response)
        kept = kept and fields.store is not False  # whoever does not keep it says so: a translation's upstream cannot
        ids = [fields.id] if fields.id and kept else []
        home = _decode(fields.conversation)
        conversation = "" if home is None else _id_of(home, "conversation")
        if conversation:
            ids.append(conversation)
        for part in (fields.output, fields.data):
            for item in _objects(_decode(part)):
                ids.extend(_left_by(item, kept=kept))
    except (msgspec.DecodeError, RecursionError, Malformed):
        return Made()
    known = [name for name in dict.fromkeys(ids) if 0 < len(name) <= ID_CHARS_MAX]
    status = fields.status or ""
    return Made(fields.id, status, tuple(known[:IDS_MAX]), fields.usage, conversation=conversation)


def ids_given(body: bytes) -> frozenset[str]:
    """The ids that a request's own items bear. Whoever sends an item whole may call it what they like, so these prove nothing."""
    try:
        given = _decode_given(body).items
    except (msgspec.DecodeError, RecursionError):
        return frozenset()
    return frozenset(name for item in _objects(_decode(given)) if isinstance(name := item.get("id"), str))


def _id_of(value: Json, field: str) -> str:
    """The id that stands for itself or in an object."""
    found = value.get("id") if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise Malformed(f"`{field}` must be an id, or an object with one", field)
    return found


def _named_by(item: dict[str, Json]) -> Iterator[str]:
    """The ids that the upstream would look up for an item of the input."""
    name = item.get("id")
    kind = item.get("type")
    if isinstance(name, str) and not _is_whole(item, kind):
        yield name
    yield from _containers(item)


def _left_by(item: dict[str, Json], *, kept: bool) -> Iterator[str]:
    """The ids under which an item of an answer can be named later."""
    name = item.get("id")
    if isinstance(name, str) and (kept or not _is_whole(item, item.get("type"))):
        yield name
    yield from _containers(item)


def _is_whole(item: dict[str, Json], kind: Json) -> bool:
    if not isinstance(kind, str):
        return kind is None and "role" in item and "content" in item
    return kind in _WHOLE or bool(item.get(_WHOLE_WITH.get(kind, "")))


def _containers(holder: dict[str, Json]) -> Iterator[str]:
    """The containers that a tool or an item names: machines with files, kept between answers."""
    environment = holder.get("environment")
    inner = environment.get("container_id") if isinstance(environment, dict) else None
    for name in (holder.get("container"), holder.get("container_id"), inner):
        if isinstance(name, str) and name:
            yield name


def _objects(value: Json) -> Iterator[dict[str, Json]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))

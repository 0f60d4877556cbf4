"""Labels from headers: who inside the tenant calls, and for what. They never grant anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from proxy.call import Call
from proxy.ledger import SETTLES
from proxy.view import LABEL_CHARS_MAX, label

TAGS_MAX = 32
TAG_NAME_CHARS_MAX = 64

_FOREIGN_PREFIXES = (b"x-litellm-", b"helicone-", b"x-portkey-", b"cf-aig-", b"x-bf-", b"x-claude-code-")
_OWN = {
    b"x-heph-agent": "agent",
    b"x-heph-session": "session",
    b"x-heph-user": "user",
    b"x-heph-channel": "channel",
    b"x-heph-priority": "priority",
    b"x-heph-tags": "",  # these two are more than a text
    b"traceparent": "",
}
_ALIASES = {
    b"x-litellm-session-id": "session",
    b"x-litellm-trace-id": "trace_id",
    b"helicone-user-id": "user",
    b"helicone-session-id": "session",
    b"x-portkey-trace-id": "trace_id",
    b"x-bf-session-id": "session",
    b"x-claude-code-session-id": "session",
    b"x-claude-code-agent-id": "agent",
}
_PROPERTY = b"helicone-property-"
_decode = msgspec.json.Decoder().decode
_NAME_BYTES_MAX = 128


def read_labels(call: Call, *, aliases: bool) -> None:
    """Fills in the call's labels from its headers; our own names win over the aliases of other proxies."""
    own, foreign = _labels_in(tuple(call.headers))
    if not own and not foreign:
        return
    headers = call.headers
    tags: dict[str, str] = {}
    if aliases:
        for name in foreign:
            _read_alias(call, name, tags)
    for name, attribute in own:
        if attribute:
            setattr(call, attribute, text_of(headers[name]))
        elif name == b"x-heph-tags":
            _add_object(tags, headers[name])
        else:
            call.trace_id = _trace_id(headers[name])
    call.tags = tags


@lru_cache(maxsize=256)
def _labels_in(names: tuple[bytes, ...]) -> tuple[tuple[tuple[bytes, str], ...], tuple[bytes, ...]]:
    """Which headers are labels of our own, with what they set, and which are those of other proxies; a client nearly always sends the same ones."""
    own = tuple([(name, _OWN[name]) for name in names if name in _OWN])
    foreign = [name for name in names if len(name) <= _NAME_BYTES_MAX and name.startswith(_FOREIGN_PREFIXES)]
    return own, tuple(foreign)


def _read_alias(call: Call, name: bytes, tags: dict[str, str]) -> None:
    value = call.headers[name]
    attribute = _ALIASES.get(name)
    if attribute is not None:
        setattr(call, attribute, text_of(value))
    elif name.startswith(_PROPERTY):
        add_tag(tags, text_of(name[len(_PROPERTY) :]), text_of(value))
    elif name in _TAG_READERS:
        _TAG_READERS[name](tags, value)


def text_of(value: bytes) -> str:
    """A header's value as a label: UTF-8, printable, of bounded length."""
    return label(value[: LABEL_CHARS_MAX * 4].decode("utf-8", "replace").strip())


def add_tag(tags: dict[str, str], name: str, value: str) -> None:
    """Adds a tag, as long as there is room and it has a name, which is not the one that only the proxy gives."""
    name = label(name, TAG_NAME_CHARS_MAX)
    if name and name != SETTLES and (len(tags) < TAGS_MAX or name in tags):
        tags[name] = label(value)


def merge_tags(call: Call, tags: Mapping[str, str]) -> None:
    """Adds the request body's own metadata where no header has said otherwise."""
    merged = dict(call.tags)
    for name, value in tags.items():
        if name not in merged:
            add_tag(merged, name, value)
    call.tags = merged


def _add_object(tags: dict[str, str], value: bytes) -> None:
    """A JSON object of plain values; anything else is left out, it only labels."""
    try:
        found = _decode(value)
    except (msgspec.DecodeError, RecursionError):
        return
    if isinstance(found, dict):
        for name, item in found.items():
            if isinstance(item, (str, int, float, bool)):
                add_tag(tags, str(name), str(item))


def _add_list(tags: dict[str, str], value: bytes) -> None:
    """Tags without values, separated by commas."""
    for name in text_of(value).split(","):
        add_tag(tags, name.strip(), "true")


def _trace_id(value: bytes) -> str:
    """The trace id of a W3C `traceparent`; empty if it is none."""
    parts = value.split(b"-")
    if len(parts) < 4 or len(parts[1]) != 32 or not parts[1].isalnum():
        return ""
    return parts[1].decode("ascii", "replace")


def _add_plain(name: str) -> Callable[[dict[str, str], bytes], None]:
    """Reads a header that is one tag."""

    def read(tags: dict[str, str], value: bytes) -> None:
        add_tag(tags, name, text_of(value))

    return read


_TAG_READERS: dict[bytes, Callable[[dict[str, str], bytes], None]] = {
    b"x-claude-code-parent-agent-id": _add_plain("parent_agent"),
    b"x-claude-code-request-class": _add_plain("request_class"),
    b"x-claude-code-compaction": _add_plain("compaction"),
    b"x-claude-code-context-compacted": _add_plain("context_compacted"),
    b"x-litellm-tags": _add_list,
    b"x-portkey-metadata": _add_object,
    b"cf-aig-metadata": _add_object,
}

"""How each operation is asked for at each upstream: head bytes, dialect and translation, made once when a snapshot is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from controlplane.contract.snapshot import Upstream
from proxy.dialects.dialect import Dialect, Translation
from proxy.dialects.operations import OPERATIONS, Operation, Protocol, speaks
from proxy.dialects.translations import TRANSLATIONS

_TRACE = (b"traceparent", b"tracestate", b"idempotency-key")
_FORWARDED_OPENAI = frozenset((*_TRACE, b"openai-organization", b"openai-project", b"openai-beta"))
_FORWARDED_ANTHROPIC = frozenset(_TRACE)
_ANTHROPIC_VERSION = (b"anthropic-version", b"2023-06-01")


@dataclass(frozen=True, slots=True)
class Wire:
    """One operation at one upstream.

    line: the request line. lines: the headers that never change, credential included; so they are never shown.
    dialect: reads the upstream's answers, and rewrites requests; with a translation, that of the upstream.
    forwarded, prefix: the client's headers that the upstream may see, by name and by how their names begin (b"": none).
    default: a header for a client that did not send it.
    """

    head: bytes = field(repr=False)  # line and lines
    lines: bytes = field(repr=False)
    dialect: Dialect
    translation: Translation | None = None
    forwarded: frozenset[bytes] = frozenset()
    prefix: bytes = b""
    default: tuple[bytes, bytes] | None = None
    reports_cost: bool = False
    raw: bool = False  # an answer that is no JSON goes on as it comes
    queried: bool = False  # the upstream gets the query of the client's path
    base: bytes = b""  # method and base path, for a call with a target of its own


def wires_of(upstream: Upstream, credential: str) -> Mapping[str, Wire]:
    """What this upstream can be asked for, by operation."""
    wires: dict[str, Wire] = {}
    for name, operation in OPERATIONS.items():
        wire = _wire(upstream, credential, operation)
        if wire is not None:
            wires[name] = wire
    return wires


def _wire(upstream: Upstream, credential: str, operation: Operation) -> Wire | None:
    dialect, translation, asked = operation.dialect, None, operation
    if dialect is None or operation.local:
        return None
    if not speaks(upstream.dialect, operation):
        factory = TRANSLATIONS.get((operation.name, upstream.dialect))
        if factory is None:
            return None
        translation = factory()
        dialect = translation.upstream
        asked = OPERATIONS[dialect.name]
    if upstream.dialect == "litellm":
        return Wire(head=b"", lines=b"", dialect=dialect, translation=translation)
    url = urlsplit(upstream.base_url)
    line = f"{asked.method.decode()} {url.path.rstrip('/')}{asked.upstream_path} HTTP/1.1\r\n".encode("latin-1")
    lines = fixed_lines(upstream, credential, content_type=not asked.client_content_type)
    anthropic = asked.protocol is Protocol.ANTHROPIC
    forwarded = _FORWARDED_ANTHROPIC if anthropic else _FORWARDED_OPENAI
    return Wire(
        head=line + lines,
        lines=lines,
        dialect=dialect,
        translation=translation,
        forwarded=forwarded | {b"content-type"} if asked.client_content_type else forwarded,
        prefix=b"" if translation is not None else asked.forwarded_prefix,
        default=default_header(upstream.dialect),
        reports_cost=upstream.reports_cost,
        raw=asked.raw,
        queried=translation is None and asked.query_forwarded,
        base=f"{asked.method.decode()} {url.path.rstrip('/')}".encode("latin-1"),
    )


def fixed_lines(upstream: Upstream, credential: str, *, content_type: bool = False) -> bytes:
    """The headers that are the same for every request to an upstream. content_type: all of them carry JSON."""
    lines = [
        f"host: {urlsplit(upstream.base_url).netloc.rpartition('@')[2]}",
        "accept-encoding: identity",  # usage must be readable
        "user-agent: hephaestus",
    ]
    if content_type:
        lines.append("content-type: application/json")
    if credential:
        lines.append(credential_line(upstream.dialect, credential))
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


def default_header(dialect: str) -> tuple[bytes, bytes] | None:
    """A header that an upstream wants even of clients that do not send it."""
    return _ANTHROPIC_VERSION if dialect == "anthropic" else None


def credential_line(dialect: str, credential: str) -> str:
    """The header that carries our credential, where this dialect expects it."""
    return f"x-api-key: {credential}" if dialect == "anthropic" else f"authorization: Bearer {credential}"

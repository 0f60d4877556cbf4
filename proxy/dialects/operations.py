"""What a client can ask for: a row for each operation, with its paths, its dialect, and what the proxy may do with its answer.

To add an operation: a row here and one `Dialect` object. The row alone makes its paths known, gives it an entry at every upstream that
speaks its protocol, and shapes its refusals; where an upstream speaks another language, `translations.py` says who translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from proxy.dialects.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from proxy.dialects.dialect import Dialect
from proxy.dialects.filed import FiledDialect
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.openai_completions import OpenAiCompletions
from proxy.dialects.openai_embeddings import OpenAiEmbeddings
from proxy.dialects.openai_kept import Kept
from proxy.dialects.openai_media import (
    AudioSpeech,
    AudioTranscriptions,
    AudioTranslations,
    ImagesEdits,
    ImagesGenerations,
    ImagesVariations,
    Moderations,
)
from proxy.dialects.responses import InputTokens, Responses


class Protocol(StrEnum):
    """Whose client asks: it decides the shape of our own answers."""

    OPENAI = "openai"
    RESPONSES = "responses"  # OpenAI's too; errors inside its streams look different
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing a client can ask for. `{}` in a path stands for one segment of it, `{*}` for all the rest."""

    name: str
    protocol: Protocol | None  # None: clients of every protocol ask for it, and their headers tell
    method: bytes
    paths: tuple[str, ...]
    dialect: Dialect | None = None  # None: it has no body that the stages must read
    upstream_path: str = ""  # behind an upstream's base URL
    local: bool = (
        False  # the proxy answers it (`models`, or `Pipeline.local`): only the stages that say who calls are entered
    )
    cached: bool = False
    storable_reasons: frozenset[str] = frozenset()  # finish reasons of answers worth keeping; empty: all
    client_content_type: bool = False  # the upstream gets the client's own `content-type`
    kept: bool = False  # upstreams keep what it makes or asks for: `transports.kept` holds it against its owner
    named: bool = False  # its path names what is kept, which alone decides where it goes: no body is decoded
    raw: bool = False  # its answer may be sound, which goes on as it comes, without a word of ours behind it
    unit: str = ""  # `second`, `character` or `picture`: what is billed where an answer reports no tokens, if the price knows it

    @property
    def forwarded_prefix(self) -> bytes:
        """How the names of the client's headers begin that an upstream of its protocol gets, all of them; b"": by name only."""
        return b"anthropic-" if self.protocol is Protocol.ANTHROPIC else b""

    @property
    def query_forwarded(self) -> bool:
        """Whether an upstream of its protocol gets the query, by which SDKs say that they want what is still being tried."""
        return self.protocol in (Protocol.ANTHROPIC, Protocol.RESPONSES)


def _both(path: str) -> tuple[str, ...]:
    """With and without `/v1`, for base URLs differ in whether they end with it."""
    return f"/v1{path}", path


def _form(name: str, path: str, dialect: Dialect, unit: str) -> Operation:
    """An operation of OpenAI's that takes a form with files."""
    return Operation(name, Protocol.OPENAI, b"POST", _both(path), dialect, path, client_content_type=True, unit=unit)


def _kept(name: str, method: bytes, path: str) -> Operation:
    """An operation on what an upstream keeps."""
    return Operation(name, Protocol.RESPONSES, method, _both(path), Kept(), kept=True, named=True)


def _filed(name: str, method: bytes, path: str, *, form: bool = False, raw: bool = False) -> Operation:
    """An operation on OpenAI's files and batches."""
    return Operation(
        name, Protocol.OPENAI, method, _both(path), FiledDialect(), named=True, client_content_type=form, raw=raw
    )


def _batched(name: str, method: bytes, path: str, *, raw: bool = False) -> Operation:
    """An operation on Anthropic's batches."""
    dialect = FiledDialect(of_anthropic=True)
    return Operation(name, Protocol.ANTHROPIC, method, _both(path), dialect, named=True, raw=raw)


_ROWS: tuple[Operation, ...] = (
    Operation(
        "chat",
        Protocol.OPENAI,
        b"POST",
        _both("/chat/completions"),
        OpenAiChat(),
        "/chat/completions",
        cached=True,
        storable_reasons=frozenset(("stop", "length", "tool_calls", "function_call")),
    ),
    Operation(
        "embeddings", Protocol.OPENAI, b"POST", _both("/embeddings"), OpenAiEmbeddings(), "/embeddings", cached=True
    ),
    Operation(
        "messages",
        Protocol.ANTHROPIC,
        b"POST",
        _both("/messages"),
        AnthropicMessages(),
        "/v1/messages",
        cached=True,
        storable_reasons=frozenset(("end_turn", "max_tokens", "stop_sequence", "tool_use")),
    ),
    Operation(
        "count_tokens",
        Protocol.ANTHROPIC,
        b"POST",
        _both("/messages/count_tokens"),
        AnthropicCountTokens(),
        "/v1/messages/count_tokens",
        cached=True,
    ),
    Operation(
        "completions",
        Protocol.OPENAI,
        b"POST",
        _both("/completions"),
        OpenAiCompletions(),
        "/completions",
        cached=True,
        storable_reasons=frozenset(("stop", "length")),
    ),
    Operation(
        "responses",
        Protocol.RESPONSES,
        b"POST",
        _both("/responses"),
        Responses(),
        "/responses",
        kept=True,
        cached=True,
        storable_reasons=frozenset(("completed", "max_output_tokens")),
    ),
    Operation(
        "responses_compact",
        Protocol.RESPONSES,
        b"POST",
        _both("/responses/compact"),
        Responses(),
        "/responses/compact",
        kept=True,
    ),
    Operation(
        "responses_input_tokens",
        Protocol.RESPONSES,
        b"POST",
        _both("/responses/input_tokens"),
        InputTokens(),
        "/responses/input_tokens",
        kept=True,
    ),
    _kept("responses_get", b"GET", "/responses/{}"),
    _kept("responses_delete", b"DELETE", "/responses/{}"),
    _kept("responses_cancel", b"POST", "/responses/{}/cancel"),
    _kept("responses_input_items", b"GET", "/responses/{}/input_items"),
    _kept("conversations_create", b"POST", "/conversations"),
    _kept("conversations_get", b"GET", "/conversations/{}"),
    _kept("conversations_update", b"POST", "/conversations/{}"),
    _kept("conversations_delete", b"DELETE", "/conversations/{}"),
    _kept("conversations_items_create", b"POST", "/conversations/{}/items"),
    _kept("conversations_items_list", b"GET", "/conversations/{}/items"),
    _kept("conversations_items_get", b"GET", "/conversations/{}/items/{}"),
    _kept("conversations_items_delete", b"DELETE", "/conversations/{}/items/{}"),
    Operation(
        "moderations", Protocol.OPENAI, b"POST", _both("/moderations"), Moderations(), "/moderations", cached=True
    ),
    Operation(
        "audio_speech",
        Protocol.OPENAI,
        b"POST",
        _both("/audio/speech"),
        AudioSpeech(),
        "/audio/speech",
        raw=True,
        unit="character",
    ),
    _form("audio_transcriptions", "/audio/transcriptions", AudioTranscriptions(), "second"),
    _form("audio_translations", "/audio/translations", AudioTranslations(), "second"),
    Operation(
        "images_generations",
        Protocol.OPENAI,
        b"POST",
        _both("/images/generations"),
        ImagesGenerations(),
        "/images/generations",
        unit="picture",
    ),
    _form("images_edits", "/images/edits", ImagesEdits(), "picture"),
    _form("images_variations", "/images/variations", ImagesVariations(), "picture"),
    _filed("files_create", b"POST", "/files", form=True),
    _filed("files_list", b"GET", "/files"),
    _filed("files_get", b"GET", "/files/{}"),
    _filed("files_delete", b"DELETE", "/files/{}"),
    _filed("files_content", b"GET", "/files/{}/content", raw=True),
    _filed("batches_create", b"POST", "/batches"),
    _filed("batches_list", b"GET", "/batches"),
    _filed("batches_get", b"GET", "/batches/{}"),
    _filed("batches_cancel", b"POST", "/batches/{}/cancel"),
    _batched("messages_batches_create", b"POST", "/messages/batches"),
    _batched("messages_batches_list", b"GET", "/messages/batches"),
    _batched("messages_batches_get", b"GET", "/messages/batches/{}"),
    _batched("messages_batches_delete", b"DELETE", "/messages/batches/{}"),
    _batched("messages_batches_results", b"GET", "/messages/batches/{}/results", raw=True),
    _batched("messages_batches_cancel", b"POST", "/messages/batches/{}/cancel"),
    Operation("models", None, b"GET", (*_both("/models"), *_both("/models/{*}")), local=True),
)

# Any method and path of an upstream, known by how it begins.
PASSTHROUGH_PREFIX = b"/passthrough/"
_PASSTHROUGH = Operation("passthrough", None, b"", ())

OPERATIONS: Mapping[str, Operation] = {row.name: row for row in (*_ROWS, _PASSTHROUGH)}

BATCH_OPERATIONS: frozenset[str] = frozenset(row.name for row in _ROWS if isinstance(row.dialect, FiledDialect))

_SPOKEN: Mapping[str, frozenset[Protocol]] = {
    "openai": frozenset((Protocol.OPENAI, Protocol.RESPONSES)),
    "anthropic": frozenset((Protocol.ANTHROPIC,)),
}
# What the litellm transport answers without a translation of ours; it speaks OpenAI's language to us.
_LITELLM = frozenset(("chat", "embeddings"))


def speaks(upstream_dialect: str, operation: Operation) -> bool:
    """Whether an upstream of this dialect answers the operation in the client's own words."""
    if operation.local or operation.dialect is None:
        return False
    if upstream_dialect == "litellm":
        return operation.name in _LITELLM
    return operation.protocol in _SPOKEN.get(upstream_dialect, ())


def exact_paths() -> dict[str, Operation]:
    """Operations by path; where several share a path, the first row, and `resolve` knows the others."""
    found: dict[str, Operation] = {}
    for row in _ROWS:
        for path in row.paths:
            if "{" not in path:
                found.setdefault(path, row)
    return found


def resolve(path: str, method: bytes) -> Operation | None:
    """The operation of a path that is not exact or whose first operation has another method.

    With the method of none of them, the first operation of the path, so that it can be refused by its name; None: no such path.
    """
    segments = path.split("/")
    first: Operation | None = None
    for row in _ROWS:
        if any(_matches(pattern, path, segments) for pattern in row.paths):
            if row.method == method:
                return row
            first = first or row
    return first


def methods_of(path: str) -> list[str]:
    """What may be asked of a path that has operations."""
    segments = path.split("/")
    return [
        row.method.decode()
        for row in _ROWS
        if any(_matches(pattern, path, segments) for pattern in row.paths) and row.method
    ]


def protocol_of(operation: str, headers: Mapping[bytes, bytes]) -> Protocol:
    """Whose client this is: by the operation, else by the header that every client of Anthropic's sends."""
    row = OPERATIONS.get(operation)
    if row is not None and row.protocol is not None:
        return row.protocol
    return Protocol.ANTHROPIC if b"anthropic-version" in headers else Protocol.OPENAI


def dialect_of(operation: str) -> Dialect:
    """The language of an operation that has one. Raises LookupError for one that has none."""
    dialect = OPERATIONS[operation].dialect
    if dialect is None:
        raise LookupError(f"operation {operation} has no body")
    return dialect


def _matches(pattern: str, path: str, segments: list[str]) -> bool:
    if "{" not in pattern:
        return pattern == path
    if pattern.endswith("{*}"):
        return path.startswith(pattern[:-3]) and len(path) > len(pattern) - 3
    wanted = pattern.split("/")
    return len(wanted) == len(segments) and all(
        bool(given) if want == "{}" else want == given for want, given in zip(wanted, segments, strict=True)
    )

"""OpenAI's wire language, as far as the proxy must read it: the few fields of a request, the usage of a reply, the shape of an error."""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed

TOKENS_MAX = 1_000_000_000  # a count above this is a provider's mistake, not a usage
CHOICES_MAX = 128
METADATA_BYTES_MAX = (
    64 * 1024
)  # more labels nothing, whatever the upstream does with it; millions of names would hold up all calls
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"[]", b"{}"))
NOTHING = msgspec.Raw(b"")
NO_LABELS: dict[str, str] = {}


class StreamOptions(msgspec.Struct):
    """The one option of a stream that the proxy reads."""

    include_usage: bool | None = None


class ChatFields(msgspec.Struct):
    """What is read of a chat completion request; everything else is forwarded unseen."""

    model: str
    messages: msgspec.Raw
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    user: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING


class EmbeddingFields(msgspec.Struct):
    """What is read of an embeddings request."""

    model: str
    input: msgspec.Raw
    user: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING


class CacheWriteDetails(msgspec.Struct):
    """Parts of `cache_write_tokens`, by how long they are kept, as litellm says it."""

    ephemeral_1h_input_tokens: int | None = None


class CachedDetails(msgspec.Struct):
    """Parts of `cached_tokens`."""

    audio_tokens: int | None = None


class PromptDetails(msgspec.Struct):
    """Parts of `prompt_tokens`."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    cached_tokens_details: CachedDetails | None = None
    cache_creation_token_details: CacheWriteDetails | None = None


class CompletionDetails(msgspec.Struct):
    """Parts of `completion_tokens`."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class Usage(msgspec.Struct):
    """Usage as the provider reports it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    cached_tokens: int | None = None  # where Kimi says it
    prompt_cache_hit_tokens: int | None = None  # where DeepSeek says it


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _ReplyFields(msgspec.Struct):
    usage: msgspec.Raw = NOTHING
    choices: tuple[_Choice, ...] = ()


class _ErrorDetail(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _ErrorFields(msgspec.Struct):
    error: _ErrorDetail | str | None = None


decode_chat = msgspec.json.Decoder(ChatFields).decode
decode_embeddings = msgspec.json.Decoder(EmbeddingFields).decode
_decode_usage = msgspec.json.Decoder(Usage).decode
_decode_reply = msgspec.json.Decoder(_ReplyFields).decode
_decode_error = msgspec.json.Decoder(_ErrorFields).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def error_body(*, message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """An error as OpenAI's clients expect it."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def read_error(body: bytes) -> tuple[str, str]:
    """Code (or else type) and message of a provider's error body; empty strings where it says nothing we understand."""
    try:
        detail = _decode_error(body).error
    except (msgspec.DecodeError, RecursionError):
        return "", ""
    if detail is None:
        return "", ""
    if isinstance(detail, str):
        return "", detail
    return str(detail.code or detail.type or ""), detail.message or ""


def rewritten(body: bytes, *, model: str, include_usage: bool, output_ceiling: int | None = None) -> bytes:
    """The request with another model name, usage switched on for a stream, and a ceiling; every other value as it came.

    One shallow pass: the values of the top-level keys are copied, never decoded. Of a key that is there twice, the last
    counts, as it did for the stages that decided about the call.
    """
    fields = _decode_shallow(body)
    fields["model"] = msgspec.Raw(_encode(model))
    if include_usage:
        options = fields.get("stream_options")
        known = {} if options is None or bytes(options) == b"null" else _decode_shallow(options)
        known["include_usage"] = msgspec.Raw(b"true")
        fields["stream_options"] = msgspec.Raw(_encode(known))
    if output_ceiling is not None:
        fields["max_completion_tokens"] = msgspec.Raw(b"%d" % output_ceiling)
    return _encode(fields)


def is_ambiguous(body: bytes, *, ceiling: bool = False, n: bool = False) -> bool:
    """Whether two readers could find different values in this body: a repeated key, or one written with escapes.

    ceiling, n: whether the request has them; one that a reader missed or took from the wrong place would cost more than was reserved.
    """
    return (
        body.count(b'"model"') != 1
        or (b"\\" in body and b"\\u00" in body)  # looking for a single byte costs next to nothing
        or (ceiling and body.count(b'_tokens"') > 1 and _has_two_ceilings(body))
        or (n and body.count(b'"n"') > 1)
    )


def _has_two_ceilings(body: bytes) -> bool:
    """Whether one of the names for it may be there twice."""
    return body.count(b'"max_tokens"') > 1 or body.count(b'"max_completion_tokens"') > 1


def read_usage(raw: bytes | msgspec.Raw) -> Tokens | None:
    """Tokens by disjoint kinds from a `usage` object; None if there is none or it makes no sense, as one that counts nothing at all.

    OpenAI counts cached, newly cached and audio tokens inside `prompt_tokens`, reasoning and audio inside `completion_tokens`. Some
    providers leave reasoning out of `completion_tokens`, and Gemini names it nowhere else; some leave cached tokens out of
    `prompt_tokens`; their total tells. The kinds always sum to the two counts, and to the provider's total wherever that total is
    consistent with them.
    """
    try:
        usage = _decode_usage(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not (0 <= prompt <= TOKENS_MAX and 0 <= completion <= TOKENS_MAX and prompt + completion):
        return None
    cache_read = cache_write = hour = audio_input = reasoning = audio_output = image_output = 0
    total = usage.total_tokens
    if total is not None and prompt + completion < total <= TOKENS_MAX:
        prompt, completion, reasoning = _with_hidden(usage, total - prompt - completion)
    details = usage.prompt_tokens_details
    if details is not None and (details.cached_tokens or details.cache_write_tokens or details.audio_tokens):
        cache_read = _within(details.cached_tokens, prompt)
        cache_write = _within(details.cache_write_tokens, prompt - cache_read)
        audio_input = _within(_fresh_audio(details), prompt - cache_read - cache_write)
        if cache_write and details.cache_creation_token_details is not None:
            hour = _within(details.cache_creation_token_details.ephemeral_1h_input_tokens, cache_write)
    if not cache_read and (usage.cached_tokens or usage.prompt_cache_hit_tokens):
        told = usage.cached_tokens or usage.prompt_cache_hit_tokens
        cache_read = _within(told, prompt - cache_write - audio_input)
    parts = usage.completion_tokens_details
    if parts is not None and (parts.reasoning_tokens or parts.audio_tokens or parts.image_tokens):
        if parts.reasoning_tokens:
            reasoning = _within(parts.reasoning_tokens, completion)
        audio_output = _within(parts.audio_tokens, completion - reasoning)
        image_output = _within(parts.image_tokens, completion - reasoning - audio_output)
    if not (cache_read or cache_write or audio_input or reasoning or audio_output or image_output):  # nearly all
        return Tokens(input=prompt, output=completion)
    return Tokens(
        input=prompt - cache_read - cache_write - audio_input,
        cache_read=cache_read,
        cache_write=cache_write - hour,
        cache_write_1h=hour,
        output=completion - reasoning - audio_output - image_output,
        reasoning=reasoning,
        audio_input=audio_input,
        audio_output=audio_output,
        image_output=image_output,
    )


def _with_hidden(usage: Usage, hidden: int) -> tuple[int, int, int]:
    """Prompt, completion and reasoning, where the total says that so many more tokens are in neither of the two counts.

    They are what the details name and the counts leave out; where these name nothing of the kind, the model thought. Else they stay unknown.
    """
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    inside, outside = usage.prompt_tokens_details, usage.completion_tokens_details
    reported = (outside.reasoning_tokens if outside is not None else None) or 0
    if hidden == reported:
        return prompt, completion + hidden, hidden
    cached = 0 if inside is None else max(0, inside.cached_tokens or 0) + max(0, inside.cache_write_tokens or 0)
    if hidden == cached:
        return prompt + hidden, completion, 0
    return (prompt, completion, 0) if reported else (prompt, completion + hidden, hidden)


def _fresh_audio(details: PromptDetails) -> int | None:
    """Audio that was not read from a prompt cache; what was is among the cached tokens, and in one kind alone."""
    cached = details.cached_tokens_details
    if cached is None or not cached.audio_tokens or details.audio_tokens is None:
        return details.audio_tokens
    return details.audio_tokens - max(0, cached.audio_tokens)


def _within(count: int | None, most: int) -> int:
    """A reported part of a whole, clamped to what is possible."""
    if count is None or count < 0:
        return 0
    return min(count, most)


def read_reply(body: bytes) -> tuple[Tokens | None, str]:
    """Usage (None if it was not reported) and finish reason of a complete reply.

    Raises Malformed if the body is no JSON object of the expected kind.
    """
    try:
        fields = _decode_reply(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"the upstream's reply is not valid: {error}") from error
    tokens = read_usage(fields.usage) if bytes(fields.usage) not in _EMPTY else None
    finish_reason = fields.choices[0].finish_reason or "" if fields.choices else ""
    return tokens, finish_reason


def labels_of(user: msgspec.Raw, metadata: msgspec.Raw) -> tuple[str, dict[str, str]]:
    """The request's own `user` and `metadata` as labels; whatever is not text is left out, it only labels."""
    name, tags = "", {}
    if bytes(user) not in _EMPTY:
        value = _decode_any(user)
        name = value if isinstance(value, str) else ""
    if bytes(metadata) not in _EMPTY and len(bytes(metadata)) <= METADATA_BYTES_MAX:
        found = _decode_any(metadata)
        if isinstance(found, dict):
            tags = {str(key): str(value) for key, value in found.items() if isinstance(value, (str, int, float, bool))}
    return name, tags

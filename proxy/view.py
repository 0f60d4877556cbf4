"""The few fields of a request that decide something: a view, not the document. The bytes are kept as they came."""

from __future__ import annotations

import msgspec

from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView

_IMAGE_PART = b'"image_url"'
LABEL_CHARS_MAX = 256


def label(text: str, chars_max: int = LABEL_CHARS_MAX) -> str:
    """A text that somebody else chose, as it may stand in a record: printable, of bounded length."""
    if len(text) > chars_max:
        text = text[:chars_max]
    return text if text.isprintable() else "".join(character for character in text if character.isprintable())


def read_view(operation: str, body: bytes) -> RequestView:
    """The view of a chat or embeddings request.

    Raises Malformed, with what to correct, if the body is not JSON in UTF-8 or a field that we read is not valid.
    """
    try:
        if not body.isascii():
            body.decode()
        return _chat_view(body) if operation == "chat" else _embeddings_view(body)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except msgspec.ValidationError as error:
        raise Malformed(str(error), _param_of(str(error))) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"the body is not valid JSON: {error}") from error


def _chat_view(body: bytes) -> RequestView:
    fields = openai.decode_chat(body)
    if not fields.model:
        raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
    messages = fields.messages
    if memoryview(messages)[:1].tobytes() != b"[":
        raise Malformed("`messages` must be an array", "messages")
    ceiling = _ceiling(fields)
    n = 1 if fields.n is None else fields.n
    if not 1 <= n <= openai.CHOICES_MAX:
        raise Malformed(f"`n` must be between 1 and {openai.CHOICES_MAX}", "n")
    user, metadata = openai.labels_of(fields.user, fields.metadata)
    return RequestView(
        model=fields.model,
        stream=bool(fields.stream),
        include_usage=fields.stream_options is not None and bool(fields.stream_options.include_usage),
        max_output_tokens=ceiling,
        n=n,
        image_parts=(body.count(_IMAGE_PART) + 1) // 2,
        user=user,
        metadata=metadata,
        ambiguous=openai.is_ambiguous(body, ceiling=ceiling is not None, n=fields.n is not None),
    )


def _ceiling(fields: openai.ChatFields) -> int | None:
    """The larger of the two names for it, because upstreams differ in which one they read."""
    ceilings = [
        (value, param)
        for value, param in (
            (fields.max_completion_tokens, "max_completion_tokens"),
            (fields.max_tokens, "max_tokens"),
        )
        if value is not None
    ]
    for value, param in ceilings:
        if not 1 <= value <= openai.TOKENS_MAX:
            raise Malformed(f"`{param}` must be between 1 and {openai.TOKENS_MAX}", param)
    return max(ceilings)[0] if ceilings else None


def _embeddings_view(body: bytes) -> RequestView:
    fields = openai.decode_embeddings(body)
    if not fields.model:
        raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
    if memoryview(fields.input)[:1].tobytes() not in (b"[", b'"'):
        raise Malformed("`input` must be a string or an array", "input")
    user, metadata = openai.labels_of(fields.user, fields.metadata)
    return RequestView(
        model=fields.model, max_output_tokens=0, user=user, metadata=metadata, ambiguous=openai.is_ambiguous(body)
    )


def _param_of(message: str) -> str | None:
    """The field that a validation error names, as in ``... - at `$.n` `` or ``missing required field `model` ``."""
    if "required field `" in message:
        return message.split("required field `", 1)[1].split("`", 1)[0]
    if "`$." in message:
        return message.rsplit("`$.", 1)[1].split("`", 1)[0]
    return None

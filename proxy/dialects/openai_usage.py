"""Usage as OpenAI's newer endpoints report it: `input_tokens` and `output_tokens`, with the parts that are counted inside them.

Responses, images, transcriptions and speech share these words; they differ in what an output token is when nobody says.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects.openai import TOKENS_MAX

OutputKind = Literal["output", "image_output", "audio_output"]


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    input_token_details: _InputDetails | None = None  # as audio has it
    output_tokens_details: _OutputDetails | None = None
    output_token_details: _OutputDetails | None = None


_decode = msgspec.json.Decoder(_Usage).decode


def read_io_usage(raw: bytes | msgspec.Raw, *, output_kind: OutputKind = "output") -> Tokens | None:
    """Tokens by disjoint kinds; None if it makes no sense, counts nothing at all, or counts something else, such as seconds.

    output_kind: what an output token is that no detail speaks of. The kinds always sum to the two counts.
    """
    try:
        usage = _decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    given, made = usage.input_tokens, usage.output_tokens
    if not (0 <= given <= TOKENS_MAX and 0 <= made <= TOKENS_MAX and given + made):
        return None
    inside = usage.input_tokens_details or usage.input_token_details or _InputDetails()
    left = given
    parts: dict[str, int] = {}
    for kind, count in (
        ("cache_read", inside.cached_tokens),
        ("cache_write", inside.cache_write_tokens),
        ("audio_input", inside.audio_tokens),
        ("image_input", inside.image_tokens),
    ):
        parts[kind] = _within(count, left)
        left -= parts[kind]
    parts["input"] = left
    outside = usage.output_tokens_details or usage.output_token_details or _OutputDetails()
    reported = _within(outside.reasoning_tokens, TOKENS_MAX)
    if reported and usage.total_tokens == given + made + reported:  # some providers count it beside their output
        made += reported
    left = made
    for kind, count in (
        ("reasoning", outside.reasoning_tokens),
        ("audio_output", outside.audio_tokens),
        ("image_output", outside.image_tokens),
        ("output", outside.text_tokens if output_kind != "output" else None),
    ):
        parts[kind] = _within(count, left)
        left -= parts[kind]
    parts[output_kind] += left
    return Tokens(**parts)


def _within(count: int | None, most: int) -> int:
    """A reported part of a whole, clamped to what is possible."""
    return 0 if count is None or count < 0 else min(count, most)

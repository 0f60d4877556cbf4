"""OpenAI's wire language: usage into disjoint tokens, requests rewritten, errors read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.openai import error_body, read_error, read_reply, read_usage, rewritten
from proxy.dialects.openai_chat import OpenAiChat

COUNTS = st.integers(-10, 3_000_000_000) | st.integers(0, 1000) | st.none()


def usage(prompt: int, completion: int, total: int | None = None, **details: dict[str, int]) -> bytes:
    """A usage object."""
    document: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return json.dumps(document if total is None else document | {"total_tokens": total}).encode()


@pytest.mark.parametrize(
    ("expected", "raw"),
    [
        (Tokens(input=9, output=3), usage(9, 3, 12)),
        (Tokens(input=4, cache_read=5, output=3), usage(9, 3, 12, prompt_tokens_details={"cached_tokens": 5})),
        (
            Tokens(input=2, cache_read=5, audio_input=2, output=3),
            usage(9, 3, 12, prompt_tokens_details={"cached_tokens": 5, "audio_tokens": 2}),
        ),
        (
            Tokens(input=1, cache_read=5, cache_write=3, output=3),
            usage(9, 3, 12, prompt_tokens_details={"cached_tokens": 5, "cache_write_tokens": 3}),
        ),
        (
            Tokens(input=9, output=1, reasoning=6, audio_output=3),
            usage(9, 10, 19, completion_tokens_details={"reasoning_tokens": 6, "audio_tokens": 3}),
        ),
        # reasoning left out of completion_tokens: the total tells
        (Tokens(input=9, output=3, reasoning=6), usage(9, 3, 18, completion_tokens_details={"reasoning_tokens": 6})),
        # and where it is named nowhere else, as Gemini does it
        (Tokens(input=9, output=1, reasoning=93), usage(9, 1, 103)),
        (Tokens(input=9, output=1, reasoning=93), usage(9, 1, 103, completion_tokens_details={"reasoning_tokens": 0})),
        (
            Tokens(input=4, cache_read=5, output=1, reasoning=93),
            usage(9, 1, 103, prompt_tokens_details={"cached_tokens": 5}),
        ),
        # cached tokens left out of prompt_tokens
        (
            Tokens(input=9, cache_read=60, cache_write=30, output=1),
            usage(9, 1, 100, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 30}),
        ),
        # cached tokens beside the details: Kimi's and DeepSeek's words
        (Tokens(input=4, cache_read=5, output=3), usage(9, 3, 12, cached_tokens=5)),  # type: ignore[arg-type]
        (Tokens(input=4, cache_read=5, output=3), usage(9, 3, 12, prompt_cache_hit_tokens=5)),  # type: ignore[arg-type]
        (
            Tokens(input=7, cache_read=2, output=3),
            usage(9, 3, 12, cached_tokens=5, prompt_tokens_details={"cached_tokens": 2}),  # type: ignore[arg-type]
        ),
        (Tokens(cache_read=9, output=3), usage(9, 3, 12, cached_tokens=50)),  # type: ignore[arg-type]
        # a total that nothing explains, or that makes no sense
        (Tokens(input=9, output=1, reasoning=2), usage(9, 3, 50, completion_tokens_details={"reasoning_tokens": 2})),
        (Tokens(input=9, output=3), usage(9, 3, 5)),
        (Tokens(input=9, output=3), usage(9, 3, 10**12)),
        # nonsense is clamped: no more cached than prompt
        (
            Tokens(cache_read=9, output=3),
            usage(9, 3, 12, prompt_tokens_details={"cached_tokens": 50, "audio_tokens": 4}),
        ),
        (Tokens(input=9, output=3), usage(9, 3, 12, prompt_tokens_details={"cached_tokens": -5})),
        (None, usage(-1, 3)),
        (None, usage(1, 10**12)),
        (None, b'{"prompt_tokens":"many"}'),
        (None, b"[]"),
        (None, b"7"),
    ],
)
def test_usage_becomes_disjoint_tokens(expected: Tokens | None, raw: bytes) -> None:
    """Cached and audio tokens are taken out of the prompt, reasoning and audio out of the completion."""
    assert expected == read_usage(raw)


@given(
    prompt=COUNTS,
    completion=COUNTS,
    cached=COUNTS,
    audio_in=COUNTS,
    written=COUNTS,
    reasoning=COUNTS,
    audio_out=COUNTS,
    extra=st.booleans(),
)
def test_kinds_always_sum_to_what_the_provider_reported(
    prompt: int | None, completion: int | None, cached: int | None, audio_in: int | None, written: int | None,
    reasoning: int | None, audio_out: int | None, extra: bool,
) -> None:  # fmt: skip
    """Whatever the details say, no kind is negative and the sum is the provider's."""
    known = (prompt or 0) + (completion or 0)
    total = known + (reasoning or 0) if extra else known
    raw = json.dumps(
        {
            "prompt_tokens": prompt or 0,
            "completion_tokens": completion or 0,
            "total_tokens": total,
            "prompt_tokens_details": {
                "cached_tokens": cached,
                "audio_tokens": audio_in,
                "cache_write_tokens": written,
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": audio_out},
        }
    ).encode()
    tokens = read_usage(raw)
    if tokens is None:
        assert not known or not (0 <= (prompt or 0) <= 10**9 and 0 <= (completion or 0) <= 10**9)
        return
    assert min(getattr(tokens, kind) for kind in Tokens.__struct_fields__) >= 0
    assert tokens.total_input == (prompt or 0)
    assert tokens.total in (known, total)
    if 0 <= (reasoning or 0) <= 10**9:
        assert total == tokens.total


KEYS = st.text(max_size=8).filter(lambda key: key not in ("model", "stream_options"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(fields=st.dictionaries(KEYS, VALUES, max_size=6), options=st.none() | st.just({"include_usage": False, "x": 1}))
def test_rewriting_changes_what_it_must_and_nothing_else(
    fields: dict[str, object], options: dict[str, object] | None
) -> None:
    """Model and usage option are set; every other field means what it meant."""
    body = json.dumps({"model": "a", **fields, "stream_options": options}).encode()
    changed = json.loads(rewritten(body, model="b", include_usage=True))
    assert {"model": "b", **fields, "stream_options": {**(options or {}), "include_usage": True}} == changed


def test_rewriting_keeps_numbers_and_order_as_they_were_written() -> None:
    """Values are copied as bytes: a float keeps its digits, an integer its size."""
    body = b'{"seed":123456789012345678901234567890,"model":"a","temperature":0.70000000000000010}'
    expected = b'{"seed":123456789012345678901234567890,"model":"b","temperature":0.70000000000000010}'
    assert expected == rewritten(body, model="b", include_usage=False)


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (("rate", "slow down"), error_body(message="slow down", kind="t", code="rate")),
        (("t", "m"), b'{"error":{"message":"m","type":"t","code":null}}'),
        (("", "plain"), b'{"error":"plain"}'),
        (("", ""), b'{"detail":"other"}'),
        (("", ""), b"<html>bad gateway</html>"),
        (("", ""), b""),
    ],
)
def test_errors_are_read_as_far_as_they_go(expected: tuple[str, str], body: bytes) -> None:
    """A provider's error body, in its own shape or in none."""
    assert expected == read_error(body)


def test_a_reply_without_usage_is_no_usage() -> None:
    """Missing usage is not zero usage."""
    assert (None, "stop") == read_reply(b'{"choices":[{"finish_reason":"stop"}]}')


@pytest.mark.parametrize(("names", "kept"), [(1_000, 1_000), (100_000, 0)])
def test_endless_metadata_labels_nothing(names: int, kept: int) -> None:
    """What is far beyond any provider's limit goes on as it came, and is not looked at."""
    metadata = {str(number): "" for number in range(names)}
    body = json.dumps({"model": "m", "messages": [], "metadata": metadata}).encode()
    assert kept == len(OpenAiChat().read_view(body).metadata)

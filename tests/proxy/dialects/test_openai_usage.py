"""Usage in the words of OpenAI's newer endpoints: disjoint kinds that sum to what was reported."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.openai_usage import OutputKind, read_io_usage

PARTS = st.none() | st.integers(-5, 2000)
KINDS = st.sampled_from(("output", "image_output", "audio_output"))


@pytest.mark.parametrize(
    ("usage", "kind", "expected"),
    [
        (
            {
                "input_tokens": 100,
                "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
                "output_tokens": 50,
                "output_tokens_details": {"reasoning_tokens": 20},
                "total_tokens": 150,
            },
            "output",
            Tokens(input=30, cache_read=60, cache_write=10, output=30, reasoning=20),
        ),
        (
            {"input_tokens": 14, "input_token_details": {"text_tokens": 4, "audio_tokens": 10}, "output_tokens": 7},
            "output",
            Tokens(input=4, audio_input=10, output=7),
        ),
        (
            {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 200,
                "output_tokens_details": {"image_tokens": 190, "text_tokens": 10},
            },
            "image_output",
            Tokens(input=10, image_input=40, image_output=190, output=10),
        ),
        ({"input_tokens": 5, "output_tokens": 20}, "audio_output", Tokens(input=5, audio_output=20)),
        (
            {
                "input_tokens": 5,
                "output_tokens": 2,
                "output_tokens_details": {"reasoning_tokens": 8},
                "total_tokens": 15,
            },
            "output",
            Tokens(input=5, output=2, reasoning=8),  # counted beside the output; the total tells
        ),
        ({"type": "duration", "seconds": 7}, "output", None),
        ({"input_tokens": 0, "output_tokens": 0}, "output", None),
        ({"input_tokens": -1, "output_tokens": 5}, "output", None),
        ({"input_tokens": 10**10, "output_tokens": 5}, "output", None),
        ({"input_tokens": "many"}, "output", None),
        ("nonsense", "output", None),
    ],
)
def test_known_usages(usage: object, kind: OutputKind, expected: Tokens | None) -> None:
    """What each endpoint reports, by our kinds; None for what makes no sense."""
    assert expected == read_io_usage(json.dumps(usage).encode(), output_kind=kind)


@given(
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.lists(PARTS, min_size=4, max_size=4),
    st.lists(PARTS, min_size=4, max_size=4),
    KINDS,
)
def test_kinds_always_sum_to_the_counts(
    given_: int, made: int, inside: list[int | None], outside: list[int | None], kind: OutputKind
) -> None:
    """Whatever parts are reported, even ones that cannot be, no token is counted twice and none is lost."""
    names = ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens")
    usage = {
        "input_tokens": given_,
        "output_tokens": made,
        "input_tokens_details": dict(zip(names, inside, strict=True)),
        "output_tokens_details": dict(
            zip(("reasoning_tokens", "audio_tokens", "image_tokens", "text_tokens"), outside, strict=True)
        ),
        "total_tokens": given_ + made,
    }
    tokens = read_io_usage(json.dumps(usage).encode(), output_kind=kind)
    assert tokens is not None
    assert (given_, made) == (tokens.total_input, tokens.total_output)
    assert all(getattr(tokens, name) >= 0 for name in Tokens.__struct_fields__)

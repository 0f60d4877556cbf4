"""What names of models say."""

from __future__ import annotations

import pytest

from proxy.dialects.translate_models import reasons, takes_effort_xhigh, takes_sampling, thinks_adaptively


@pytest.mark.parametrize(
    ("model", "adaptive", "sampling"),
    [
        ("claude-haiku-4-5-20251001", False, True),
        ("claude-3-7-sonnet-20250219", False, True),
        ("claude-sonnet-4-20250514", False, True),
        ("claude-opus-4-6", True, True),
        ("claude-opus-4-7", True, False),
        ("claude-sonnet-5", True, False),
        ("claude-fable-5-1-20260901", True, False),
        ("anthropic.claude-opus-4-6-v1", True, True),
        ("my-own-name", False, True),
    ],
)
def test_claude(model: str, adaptive: bool, sampling: bool) -> None:
    """By version; a date is none, and an unknown name counts as old."""
    assert (adaptive, sampling, not sampling) == (
        thinks_adaptively(model),
        takes_sampling(model),
        takes_effort_xhigh(model),
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("o3-mini", True),
        ("gpt-5.1", True),
        ("openai/gpt-5", True),
        ("gpt-5-chat-latest", False),
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("llama-3", False),
    ],
)
def test_openai(model: str, expected: bool) -> None:
    """Reasoning models are known by their names."""
    assert expected is reasons(model)

"""What the name of a model says about the words it understands: providers change their language from one model to the next."""

from __future__ import annotations

import re

_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_ADAPTIVE_SINCE = (4, 6)
_THINKING_SINCE = (3, 7)
_NO_SAMPLING_SINCE = (4, 7)
_REASONING = re.compile(r"(?:^|[/.])(?:o[1-9]|gpt-(?:[5-9]|\d\d)|codex)")


def thinks_adaptively(model: str) -> bool:
    """Whether a Claude model chooses itself how much to think: since 4.6 it can, and later ones refuse a budget."""
    return _version(model) >= _ADAPTIVE_SINCE


def thinks(model: str) -> bool:
    """Whether a Claude model can think before it answers, since 3.7; unknown names cannot."""
    return _version(model) >= _THINKING_SINCE


def takes_sampling(model: str) -> bool:
    """Whether a Claude model takes `temperature` and `top_p`; since 4.7 they are refused."""
    return _version(model) < _NO_SAMPLING_SINCE


def takes_effort_xhigh(model: str) -> bool:
    """Whether a Claude model knows the effort between `high` and `max`, since 4.7."""
    return _version(model) >= _NO_SAMPLING_SINCE


def reasons(model: str) -> bool:
    """Whether a model of OpenAI's takes `reasoning_effort`, and so no sampling parameters; unknown names do not."""
    return _REASONING.search(model) is not None and "-chat" not in model


def _version(model: str) -> tuple[int, int]:
    """Major and minor version of a Claude model; (0, 0) for a name that does not tell, which is treated as an old one."""
    found = _CLAUDE.search(model)
    return (0, 0) if found is None else (int(found[1]), int(found[2] or 0))

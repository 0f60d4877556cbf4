"""Models that a request names beside its own."""

from __future__ import annotations

import json

import pytest

from proxy.dialects.other_models import may_name_others, others_named


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fallbacks": [{"model": "b"}, {"model": "c", "max_tokens": 5}]}, ("b", "c")),
        ({"fallbacks": "default"}, ("default",)),
        ({"models": ["a", "b"]}, ("a", "b")),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "b"}, {"name": "f"}]}, ("b",)),
        ({"fallbacks": [7, {}]}, ("7", "None")),
        ({"fallbacks": None, "models": [], "tools": None}, ()),
        ({"metadata": {"models": ["b"]}, "messages": [{"content": '"fallbacks"'}]}, ()),
        ({"tools": [{"type": "custom", "model": "b"}]}, ()),
    ],
)
def test_what_is_named(fields: dict[str, object], expected: tuple[str, ...]) -> None:
    """At the places where the protocols name them, and nowhere else."""
    body = json.dumps({"model": "a", **fields}).encode()
    assert expected == others_named(body)
    assert may_name_others(body) or not expected


def test_a_plain_request_is_not_read_for_them() -> None:
    """Unless it may write their names in another way."""
    assert not may_name_others(b'{"model":"a","messages":[]}')
    assert may_name_others(b'{"model":"a","\\u0066allbacks":[{"model":"b"}]}')
    assert ("b",) == others_named(b'{"model":"a","\\u0066allbacks":[{"model":"b"}]}')
    assert () == others_named(b"--form")


@pytest.mark.parametrize("name", [b'"\xff"', b'{"model": "\xff"}'], ids=["name", "model"])
def test_names_that_cannot_be_read_are_names_all_the_same(name: bytes) -> None:
    """An upstream may read them in its own way, and with them the others that stand there."""
    assert ("(unreadable)",) == others_named(b'{"model": "gpt", "models": ["theirs", %b]}' % name)

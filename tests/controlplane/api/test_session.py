"""The signed cookie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.api import session

NOW_S = 1_800_000_000
GOOD = session.sign(operator_token="token", expires_s=NOW_S + 60)


def test_a_signed_cookie_holds_until_it_expires() -> None:
    """A cookie holds before its moment and not from then on."""
    assert session.holds(GOOD, operator_token="token", now_s=NOW_S + 59)
    assert not session.holds(GOOD, operator_token="token", now_s=NOW_S + 60)


def test_a_new_token_ends_all_sessions() -> None:
    """A cookie is worth nothing under another operator token."""
    assert not session.holds(GOOD, operator_token="other", now_s=NOW_S)


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        GOOD[:-1],
        GOOD + "0",
        GOOD.replace("18", "99", 1),
        "x" * 100_000,
        "\N{SNOWMAN}.a.b",
    ],
    ids=["empty", "one dot", "two dots", "three dots", "letters", "shorter", "longer", "later", "long", "snowman"],
)
def test_a_damaged_cookie_is_refused(value: str) -> None:
    """Whatever we did not sign does not hold, and nothing raises."""
    assert not session.holds(value, operator_token="token", now_s=NOW_S)


@given(st.text(max_size=250))
def test_no_text_passes_for_a_cookie(value: str) -> None:
    """Texts out of nowhere never hold."""
    assert not session.holds(value, operator_token="token", now_s=0)

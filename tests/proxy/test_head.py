"""Headers by name, and lists that came in several lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.head import LISTS, by_name, whole_list

_name = st.text("aAbB-", min_size=1, max_size=3).map(str.encode)


@given(raw=st.dictionaries(_name, st.binary(max_size=3), max_size=6), remember=st.booleans())
def test_of_equal_names_the_last_counts(raw: dict[bytes, bytes], remember: bool) -> None:
    """Names are looked up in lower case, whether or not they are remembered."""
    expected: dict[bytes, bytes] = {}
    for name, value in raw.items():
        expected[name.lower()] = value
    assert expected == by_name(raw, remember=remember)


@pytest.mark.parametrize("remember", [False, True])
def test_an_address_in_two_spellings_is_none(remember: bool) -> None:
    """A client cannot write a line that is taken for the load balancer's."""
    raw = {b"X-Forwarded-For": b"198.51.100.1", b"x-forwarded-for": b"192.0.2.7"}
    assert {b"x-forwarded-for": b"unknown"} == by_name(raw, remember=remember)
    assert b"192.0.2.7" == by_name({b"X-FORWARDED-FOR": b"192.0.2.7"}, remember=remember)[b"x-forwarded-for"]


@pytest.mark.parametrize("name", sorted(LISTS))
def test_the_parts_of_a_list_are_joined_in_their_order(name: bytes) -> None:
    """Whatever the spelling; lines of the body, and headers that only look alike, are no parts."""
    head = b"POST / HTTP/1.1\r\n%b: a,b\r\nx-%b: no\r\n%b:c \r\n\r\n%b: no\r\n" % (name.title(), name, name, name)
    assert b"a,b, c" == whole_list(name, head, last=b"c")


@pytest.mark.parametrize(
    "head", [b"", b"anthropic-beta: a\r\n\r\n", b"a\r\n\r\nanthropic-beta: b\r\nanthropic-beta: c"]
)
def test_one_line_is_what_the_parser_made_of_it(head: bytes) -> None:
    """Also where the head is not all there."""
    assert b"last" == whole_list(b"anthropic-beta", head, last=b"last")

"""Tests of identifiers."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.ids import new_id, ulid

MOMENTS = st.integers(0, 2**48 - 1)
ENTROPY = st.binary(min_size=10, max_size=10)
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@given(MOMENTS, MOMENTS, ENTROPY, ENTROPY)
def test_ids_sort_by_the_moment_they_were_made(one: int, other: int, entropy_one: bytes, entropy_other: bytes) -> None:
    """An id of a later millisecond sorts after one of an earlier, whatever their random parts."""
    first, second = ulid(now_ms=one, entropy=entropy_one), ulid(now_ms=other, entropy=entropy_other)
    if one != other:
        assert (one < other) == (first < second)
    else:
        assert (entropy_one < entropy_other) == (first < second)


@given(MOMENTS, ENTROPY)
def test_an_id_holds_its_moment_and_its_entropy(now_ms: int, entropy: bytes) -> None:
    """The 26 characters are base 32 of 48 bits of milliseconds and 80 random bits, and nothing is lost."""
    text = ulid(now_ms=now_ms, entropy=entropy)
    value = 0
    for character in text:
        value = value * 32 + CROCKFORD.index(character)
    assert len(text) == 26
    assert (now_ms << 80) | int.from_bytes(entropy, "big") == value


@pytest.mark.parametrize(
    ("now_ms", "entropy", "expected"),
    [
        (0, bytes(10), "0" * 26),
        (2**48 - 1, b"\xff" * 10, "7" + "Z" * 25),
        (1_469_918_176_385, bytes(10), "01ARYZ6S41" + "0" * 16),  # the example of the ULID specification
    ],
)
def test_known_ids(now_ms: int, entropy: bytes, expected: str) -> None:
    """The layout is that of a ULID."""
    assert expected == ulid(now_ms=now_ms, entropy=entropy)


def test_new_ids_are_unique_and_prefixed() -> None:
    """A thousand fresh ids differ and are made of safe characters."""
    ids = {new_id("call") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(one.startswith("call_") and set(one) <= set(string.ascii_letters + string.digits + "_") for one in ids)

"""Tests of what clients may ask of the cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.transports.cache_control import PLAIN, SECONDS_MAX, CacheControl, read_cache_control


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", PLAIN),
        (b"no-store", CacheControl(no_store=True)),
        (b"No-Cache", CacheControl(no_cache=True)),
        (b"only-if-cached, max-age=60", CacheControl(only_if_cached=True, max_age_s=60)),
        (b" max-age=5 ,no-store ", CacheControl(max_age_s=5, no_store=True)),
        (b'max-age="7"', CacheControl(max_age_s=7)),
        (b"max-age=0", CacheControl(max_age_s=0, no_cache=True)),
        (b"max-age", PLAIN),
        (b"max-age=-1", PLAIN),
        (b"max-age=1.5", PLAIN),
        (b"max-age=\xb2", PLAIN),
        (b"max-age=" + b"9" * 19, CacheControl(max_age_s=SECONDS_MAX)),
        (b"max-age=" + b"9" * 5000, PLAIN),
        (b"private, invented-later=1", PLAIN),
        (b",,,", PLAIN),
    ],
)
def test_directives_of_cache_control(value: bytes, expected: CacheControl) -> None:
    """Standard directives are read in any case and order; what is unknown or malformed is ignored."""
    assert expected == read_cache_control({b"cache-control": value})


@pytest.mark.parametrize(
    ("value", "expected"), [(b"60", 60), (b"0", 0), (b" 5 ", 5), (b"x", None), (b"", None), (b"-1", None)]
)
def test_the_ttl_header(value: bytes, expected: int | None) -> None:
    """`x-heph-cache-ttl` is whole seconds or nothing."""
    assert CacheControl(ttl_s=expected) == read_cache_control({b"x-heph-cache-ttl": value})


@given(st.binary(max_size=100), st.binary(max_size=30))
def test_any_bytes_are_read(control: bytes, ttl: bytes) -> None:
    """Hostile headers neither raise nor give a negative or boundless time."""
    read = read_cache_control({b"cache-control": control, b"x-heph-cache-ttl": ttl})
    for seconds in (read.max_age_s, read.ttl_s):
        assert seconds is None or 0 <= seconds <= SECONDS_MAX


def test_without_headers_there_is_nothing_to_ask() -> None:
    """The usual request costs nothing."""
    assert read_cache_control({b"accept": b"*/*"}) is PLAIN

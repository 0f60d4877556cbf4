"""Tests of the address of a Redis: what can be written, and that nothing secret is repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.redis_address import RedisAddress, parse_redis_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", RedisAddress("cache")),
        ("redis://cache/", RedisAddress("cache")),
        ("redis://cache:6380/3", RedisAddress("cache", 6380, database=3)),
        ("rediss://user@cache.example:6379/0", RedisAddress("cache.example", tls=True, username="user")),
        ("redis://[::1]:1/15", RedisAddress("::1", 1, database=15)),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        ("redis+sentinel://a,b:1/main", RedisAddress(nodes=(("a", 26379), ("b", 1)), master="main")),
        (
            "rediss+sentinel://heph@a/main/3",
            RedisAddress(nodes=(("a", 26379),), master="main", database=3, tls=True, username="heph"),
        ),
        ("redis+cluster://a,[::1]:7001", RedisAddress(nodes=(("a", 6379), ("::1", 7001)))),
        ("rediss+cluster://heph@a:7000/", RedisAddress(nodes=(("a", 7000),), tls=True, username="heph")),
    ],
)
def test_addresses(url: str, expected: RedisAddress) -> None:
    """Host, port, database, user, encryption and socket are read from the URL, with Redis' own port as the default."""
    assert expected == parse_redis_address(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:hunter2@cache", "password"),
        ("rediss://user:hunter2@cache/0", "password"),
        ("redis://cache/0?password=hunter2", "options"),
        ("redis://cache/0#hunter2", "options"),
        ("redis://cache:hunter2", "not a URL"),
        ("redis://[hunter2", "not a URL"),
        ("redis://cache:70000", "not a URL"),
        ("redis://", "host"),
        ("redis:///0", "host"),
        ("redis://cache/hunter2", "number"),
        ("redis://cache/-1", "number"),
        ("redis://cache/99999999999999999999", "number"),
        ("redis://cache/0/1", "number"),
        ("unix://hunter2", "whole path"),
        ("unix://host/hunter2", "whole path"),
        ("http://hunter2", "scheme"),
        ("hunter2:6379", "scheme"),
        ("", "scheme"),
        ("redis+sentinel://a", "name of the master"),
        ("redis+sentinel://a/main/hunter2", "number of a database"),
        ("redis+sentinel://a/main/0/1", "name of the master"),
        ("redis+sentinel:///main", "hosts"),
        ("redis+sentinel://a:hunter2/main", "hosts"),
        ("redis+cluster://:hunter2@a", "password"),
        ("redis+cluster://a/1", "no databases"),
        ("redis+cluster://a,,b", "hosts"),
        ("redis+cluster://a?b=hunter2", "options"),
        ("redis+cluster://" + ",".join("a" * 101), "more than 100"),
    ],
)
def test_bad_addresses(url: str, says: str) -> None:
    """Each mistake has a message that says what to write and never repeats what was written."""
    with pytest.raises(ValueError, match=says) as caught:
        parse_redis_address(url)
    assert "hunter2" not in str(caught.value)


@given(st.text() | st.from_regex(r"(redis|rediss|unix|redis[+]sentinel|redis[+]cluster)://[^\s]{0,30}", fullmatch=True))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """No text raises anything else."""
    try:
        address = parse_redis_address(text)
    except ValueError:
        return
    assert bool(address.host) + bool(address.path) + bool(address.nodes) == 1

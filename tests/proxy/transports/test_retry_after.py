"""How long an upstream asks us to wait: every way to say it, and every way to say nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.transports.retry_after import ASKED_S_MAX, asked_s, with_whole_seconds
from tests.proxy.fakes import World, answer, completion, fails, replies

NOW_S = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("said", "asked", "shown"),
    [
        (b"30", 30.0, b"30"),
        (b"0", 0.0, b"0"),
        (b"1.2", 1.2, b"2"),
        (b"-5", 0.0, b"0"),
        (b"99999999999999999999", ASKED_S_MAX, b"86400"),
        (b"Wed, 21 Oct 2015 07:28:09 GMT", 9.0, b"9"),
        (b"Wed, 21 Oct 2015 07:27:00 GMT", 0.0, b"0"),
        (b"Wed, 21 Oct 2099 07:28:00 GMT", ASKED_S_MAX, b"86400"),
        (b"Wed, 21 Oct 99999999999 07:28:00 GMT", 0.0, None),
        (b"Wed, 21 Oct 2015 07:28:00 +99999999999999999999", 0.0, None),
        (b"nan", 0.0, None),
        (b"inf", 0.0, None),
        (b"1e400", 0.0, None),
        (b"soon", 0.0, None),
        (b"\xff", 0.0, None),
    ],
)
def test_seconds_and_dates_are_understood_and_nonsense_is_no_wait(
    said: bytes, asked: float, shown: bytes | None
) -> None:
    """What a deployment asks for, whatever its clock prints, and what its client is told: whole seconds or nothing."""
    headers = [(b"content-type", b"x"), (b"retry-after", said)]
    assert asked == asked_s(headers, now_s=lambda: NOW_S)
    told = dict(with_whole_seconds(headers, now_s=lambda: NOW_S))
    assert (b"x", shown) == (told[b"content-type"], told.get(b"retry-after"))


@pytest.mark.parametrize(("said", "asked"), [(b"250", 0.25), (b"nan", 7.0), (b"-1", 0.0), (b"x", 7.0)])
def test_milliseconds_come_first(said: bytes, asked: float) -> None:
    """`retry-after-ms` is the exact one of the two; where it makes no sense, the other holds."""
    assert asked == asked_s([(b"retry-after", b"7"), (b"retry-after-ms", said)])


@given(
    st.binary(max_size=40) | st.from_regex(rb"[A-Z][a-z]{2}, \d{1,13} [A-Z][a-z]{2} \d{1,13} \d\d:\d\d(:\d\d)? .{0,8}")
)
def test_no_value_fails_or_waits_for_ever(said: bytes) -> None:
    """Whatever stands there, what comes of it is a time that can be waited for."""
    for name in (b"retry-after", b"retry-after-ms"):
        found = asked_s([(name, said)])
        assert math.isfinite(found)
        assert 0.0 <= found <= ASKED_S_MAX
    with_whole_seconds([(b"retry-after", said)])


@pytest.mark.parametrize("said", ["nan", "Mon, 01 Jan 99999999999 00:00:00 GMT"])
async def test_a_wait_that_makes_no_sense_is_the_usual_one(world: World, said: str) -> None:
    """The same deployment is asked again after the usual pause, and the worker lives."""
    upstream = await world.upstream(
        fails(429, "rate_limit_exceeded", f"retry-after: {said}"), replies(answer(completion()))
    )
    world.apply()
    assert [200, 200] == [(await world.chat()).status_code for _ in range(2)]
    assert 3 == len(upstream.received)

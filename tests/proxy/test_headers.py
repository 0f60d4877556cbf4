"""Numbers as headers write them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.snapshot import Snapshot
from proxy.call import Call, Reply
from proxy.headers import closing_comment, response_headers, usd
from proxy.runtime import compile_runtime


def call() -> Call:
    """A call of which nothing is known."""
    return Call(
        compile_runtime(Snapshot(version=1, created_us=0), {}),
        "chat",
        "/",
        {},
        b"",
        call_id="c",
        started_us=0,
        started_ns=0,
    )


@given(nanousd=st.integers(0, 10**18))
def test_money_is_written_exactly(nanousd: int) -> None:
    """The decimal number is the integer, to the last nano-USD."""
    assert Decimal(nanousd) / 1_000_000_000 == Decimal(usd(nanousd).decode())


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [
        (b"0ms", 0.0),
        (b"12ms", 0.012),
        (b"1s", 1.0),
        (b"59s", 59.4),
        (b"1m0s", 60.0),
        (b"6m0s", 360.2),
        (b"1440m0s", 86_400.0),
    ],
)
def test_durations_are_written_as_openai_does(expected: bytes, seconds: float) -> None:
    """Milliseconds below a second, then seconds, then minutes and seconds."""
    target = call()
    target.ratelimit_requests = (60, 1, seconds)
    headers = dict(response_headers(target, Reply(200, []), stream=False))
    assert expected == headers[b"x-ratelimit-reset-requests"]


def test_our_limits_replace_the_upstreams() -> None:
    """Two families with the same names would contradict each other."""
    target = call()
    target.ratelimit_tokens = (100, 40, 1.0)
    headers = response_headers(
        target, Reply(200, [(b"x-ratelimit-limit-tokens", b"9"), (b"x-request-id", b"r")]), stream=False
    )
    assert [b"100"] == [value for name, value in headers if name == b"x-ratelimit-limit-tokens"]
    assert (b"x-request-id", b"r") in headers


def test_a_name_that_no_header_can_carry_is_made_safe() -> None:
    """A model's name cannot break the response."""
    reply = Reply(200, [])
    reply.deployment, reply.model = "d\r\nx: y", "modèle"
    headers = dict(response_headers(call(), reply, stream=False))
    assert (b"?", b"mod?le") == (headers[b"x-heph-deployment"], headers[b"x-heph-model"])


def test_the_closing_comment_is_a_comment() -> None:
    """Readers of event streams skip lines that begin with a colon."""
    assert b": x-heph-cost-usd=0.000000000 x-heph-cost-state=final\n\n" == closing_comment(call())

"""Numbers as headers write them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.snapshot import Snapshot
from proxy.call import Call, Reply
from proxy.headers import closing_comment, header_lines, response_lines, usd
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


def shown(target: Call, reply: Reply) -> list[tuple[bytes, bytes]]:
    """The headers of a complete answer, one by one."""
    lines = response_lines(target, reply, stream=False).split(b"\r\n")
    assert b"" == lines.pop()
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


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
    headers = dict(shown(target, Reply(200, [])))
    assert expected == headers[b"x-ratelimit-reset-requests"]


def test_our_limits_replace_the_upstreams() -> None:
    """Two families with the same names would contradict each other."""
    target = call()
    target.ratelimit_tokens = (100, 40, 1.0)
    headers = shown(target, Reply(200, [(b"x-ratelimit-limit-tokens", b"9"), (b"x-request-id", b"r")]))
    assert [b"100"] == [value for name, value in headers if name == b"x-ratelimit-limit-tokens"]
    assert (b"x-request-id", b"r") in headers


OURS = {
    b"x-ratelimit-limit-requests": b"60",
    b"x-ratelimit-remaining-requests": b"5",
    b"x-ratelimit-reset-requests": b"55s",
}
OURS_TOKENS = {
    b"x-ratelimit-limit-tokens": b"900",
    b"x-ratelimit-remaining-tokens": b"400",
    b"x-ratelimit-reset-tokens": b"34s",
}


def openai_limits(requests: bytes, tokens: bytes) -> dict[bytes, bytes]:
    """Limits as OpenAI tells them, with so much left."""
    return {
        b"x-ratelimit-limit-requests": b"5000",
        b"x-ratelimit-remaining-requests": requests,
        b"x-ratelimit-reset-requests": b"12ms",
        b"x-ratelimit-limit-tokens": b"80000",
        b"x-ratelimit-remaining-tokens": tokens,
        b"x-ratelimit-reset-tokens": b"6m0s",
    }


def limits_shown(target: Call, told: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The rate-limit headers of an answer whose upstream told these; each must be there once."""
    headers = [(b"x-request-id", b"r"), *told.items(), (b"openai-version", b"1")]
    found = [(name, value) for name, value in shown(target, Reply(200, headers)) if b"ratelimit-" in name]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize(
    ("requests", "tokens", "ours"),
    [
        (b"4999", b"79999", "requests tokens"),
        (b"4", b"79999", "tokens"),
        (b"0", b"399", ""),
        (b"4999", b"0", "requests"),
        (b"5", b"400", "requests tokens"),  # as much: ours
        (b"-1", b"", "requests tokens"),  # what cannot be read decides nothing
        (b"0x0", b"1.5", "requests tokens"),
        (b"9" * 400, b"unlimited", "requests tokens"),
    ],
)
def test_of_two_limits_of_a_kind_the_tighter_is_shown(requests: bytes, tokens: bytes, ours: str) -> None:
    """Whoever has less left, with its own limit and reset, so that a client's pace suits both."""
    target = call()
    target.ratelimit_requests, target.ratelimit_tokens = (60, 5, 55.0), (900, 400, 34.0)
    told = openai_limits(requests, tokens)
    theirs = {name: value for name, value in told.items() if not name.endswith(tuple(ours.encode().split()))}
    expected = theirs | (OURS if "requests" in ours else {}) | (OURS_TOKENS if "tokens" in ours else {})
    assert expected == limits_shown(target, told)


def test_a_kind_that_we_do_not_limit_shows_the_upstreams() -> None:
    """A tenant with a limit of requests sees what is left of the upstream's tokens, as one without any limit does."""
    told = openai_limits(b"4999", b"79999") | {b"x-ratelimit-remaining-requests-day": b"3"}
    target = call()
    assert told == limits_shown(target, told)
    target.ratelimit_requests = (60, 5, 55.0)
    assert told | OURS == limits_shown(target, told)


def test_anthropics_limits_are_compared_as_openais_are() -> None:
    """By their names, with the moment of the reset as it was told; kinds of its own stay, OpenAI's family goes."""
    target = call()
    target.headers = {b"anthropic-version": b"2023-06-01"}
    target.operation = "messages"
    target.ratelimit_requests, target.ratelimit_tokens = (60, 5, 55.0), (900, 400, 34.0)
    told = {
        b"anthropic-ratelimit-requests-limit": b"50",
        b"anthropic-ratelimit-requests-remaining": b"2",
        b"anthropic-ratelimit-requests-reset": b"2026-01-01T00:00:00Z",
        b"anthropic-ratelimit-tokens-limit": b"9000",
        b"anthropic-ratelimit-tokens-remaining": b"8000",
        b"anthropic-ratelimit-tokens-reset": b"2026-01-01T00:00:09Z",
        b"anthropic-ratelimit-input-tokens-remaining": b"7",
    }
    headers = limits_shown(target, told | {b"x-ratelimit-remaining-requests": b"1"})
    assert told.keys() == headers.keys()
    changed = {name for name in told if told[name] != headers[name]}
    assert {b"anthropic-ratelimit-tokens-" + part for part in (b"limit", b"remaining", b"reset")} == changed
    assert (b"900", b"400") == (
        headers[b"anthropic-ratelimit-tokens-limit"],
        headers[b"anthropic-ratelimit-tokens-remaining"],
    )


def test_a_name_that_no_header_can_carry_is_made_safe() -> None:
    """A model's name cannot break the response."""
    reply = Reply(200, [])
    reply.deployment, reply.model = "d\r\nx: y", "modèle"
    headers = dict(shown(call(), reply))
    assert (b"?", b"mod?le") == (headers[b"x-heph-deployment"], headers[b"x-heph-model"])


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b=c", b"a\nb", b"a\rb"])
def test_a_value_cannot_break_out_of_its_line(value: bytes) -> None:
    """What would become a header of its own is refused."""
    with pytest.raises(ValueError, match="end of a line"):
        response_lines(call(), Reply(200, [(b"x-request-id", value)]), stream=False)
    with pytest.raises(ValueError, match="end of a line"):
        response_lines(call(), Reply(200, [(value, b"x")]), stream=False)


_word = st.binary(max_size=6).filter(lambda text: b"\r" not in text and b"\n" not in text)


@given(st.lists(st.tuples(st.sampled_from((b"x-", b"y-", b"%b")).flatmap(lambda at: _word.map(at.__add__)), _word)))
def test_headers_go_out_in_order_less_those_whose_names_begin_so(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever names and values hold, a per cent sign among them, each shown header is its own line."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers if not name.startswith(b"x-"))
    assert lines == header_lines(headers, without=(b"x-",))


def test_the_closing_comment_is_a_comment() -> None:
    """Readers of event streams skip lines that begin with a colon."""
    assert b": x-heph-cost-usd=0.000000000 x-heph-cost-state=final\n\n" == closing_comment(call())

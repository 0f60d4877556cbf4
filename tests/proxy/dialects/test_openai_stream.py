"""The scanner of event streams: what goes on, what is learned, and that neither depends on how the network cuts the bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.openai_stream import StreamScanner
from tests.proxy.fakes import DONE, event, usage_event

TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"usage":null', "[DONE]", ',"usage":null', '"error"', "\n\n", "\r", "é"]
)


def compact(document: object) -> bytes:
    """As OpenAI writes it."""
    return b"data: " + json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def content(text: str, *, spaced: bool, usage: bool) -> bytes:
    """A content event, in one of the ways in which providers write it."""
    document: dict[str, object] = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    if usage:
        document["usage"] = None
    return b"data: " + json.dumps(document).encode() + b"\n\n" if spaced else compact(document)


EVENTS = st.one_of(
    st.builds(content, TEXTS, spaced=st.booleans(), usage=st.booleans()),
    st.just(event()),
    st.just(b": keep-alive\n\n"),
    st.just(event("", delta={}, finish_reason="stop")),
    st.just(usage_event()),
    st.just(compact({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]})),
)


def scan(pieces: list[bytes], *, hide_usage: bool) -> tuple[bytes, tuple[object, ...]]:
    """Everything that comes out, and everything that is learned."""
    scanner = StreamScanner(hide_usage=hide_usage, event_bytes_max=100_000)
    out = b"".join([scanner.feed(piece) for piece in pieces]) + scanner.finish()
    learned = (scanner.done, scanner.content_seen, scanner.events, scanner.finish_reason, scanner.tokens)
    return out, learned


@given(
    events=st.lists(EVENTS, max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=20), hide=st.booleans(),
    done=st.booleans(), line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)  # fmt: skip
def test_any_cutting_gives_the_same_bytes_and_the_same_knowledge(
    events: list[bytes], cuts: list[int], hide: bool, done: bool, line_end: bytes
) -> None:
    """Wherever the stream is cut, the client gets the same events and the record says the same."""
    stream = b"".join(events) + (DONE if done else b"")
    stream = stream.replace(b"\n", line_end)
    places = sorted({min(cut, len(stream)) for cut in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    whole = scan([stream], hide_usage=hide)
    assert whole == scan([piece for piece in pieces if piece], hide_usage=hide)
    assert whole == scan([stream[at : at + 1] for at in range(len(stream))], hide_usage=hide)
    assert done == whole[1][0]


@given(events=st.lists(EVENTS, max_size=8))
def test_a_client_that_asked_for_usage_gets_every_byte(events: list[bytes]) -> None:
    """With usage wanted, nothing is changed but the closing `[DONE]`, which the pump writes."""
    stream = b"".join(events)
    assert stream == scan([stream + DONE], hide_usage=False)[0]


@given(events=st.lists(EVENTS, max_size=8))
def test_a_client_that_did_not_ask_sees_the_same_choices_and_no_usage(events: list[bytes]) -> None:
    """Hidden usage takes nothing else away: the choices of all events are the same, in the same order."""

    def documents(stream: bytes) -> list[dict[str, object]]:
        return [json.loads(item[6:]) for item in stream.split(b"\n\n") if item.startswith(b"data: {")]

    before = documents(b"".join(events))
    after = documents(scan([b"".join(events)], hide_usage=True)[0])
    assert [d["choices"] for d in before if d["choices"]] == [d["choices"] for d in after]
    assert not any("usage" in document for document in after)


def test_a_role_alone_is_not_content() -> None:
    """The commit point is the first content; a role and an empty text are not it."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    scanner.feed(event())
    assert not scanner.content_seen
    scanner.feed(event("x"))
    assert scanner.content_seen


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]},
        {"reasoning_content": "hm"},
        {"function_call": {"name": "f"}},
    ],
)
def test_what_counts_as_content(delta: dict[str, object]) -> None:
    """Text, refusals, tool calls and reasoning commit a call."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    scanner.feed(event(None, delta=delta))
    assert scanner.content_seen


def test_usage_and_finish_reason_are_learned_after_the_content() -> None:
    """What the cheap tests let through is decoded, and counted once."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    for piece in (event("a"), event("b"), event("", delta={}, finish_reason="length"), usage_event(), DONE):
        scanner.feed(piece)
    assert (True, "length", Tokens(input=9, output=3)) == (scanner.done, scanner.finish_reason, scanner.tokens)


def test_usage_in_the_last_event_with_choices_is_learned_and_hidden() -> None:
    """Providers that put usage beside choices are understood; the rest of the event stays."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    scanner.feed(event("a"))
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    }
    assert {"choices": last["choices"]} == json.loads(scanner.feed(compact(last))[6:])
    assert Tokens(input=2, output=1) == scanner.tokens


@pytest.mark.parametrize("hide", [False, True])
def test_usage_within_a_choice_is_learned(hide: bool) -> None:
    """Kimi says it there, asked or not."""
    said = {"prompt_tokens": 19, "completion_tokens": 13, "total_tokens": 32, "cached_tokens": 12}
    last = compact({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": said}]})
    out, learned = scan([event("x"), last, DONE], hide_usage=hide)
    assert last in out
    assert Tokens(input=7, cache_read=12, output=13) == learned[-1]


def test_an_error_event_is_held_for_whoever_ends_the_stream() -> None:
    """The upstream's error is kept as it came and nothing behind it goes on."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    error = compact({"error": {"message": "boom"}})
    assert b"" == scanner.feed(error + event("late"))
    assert error == scanner.error_event
    assert b"" == scanner.feed(event("later"))


@pytest.mark.parametrize("data", [b"data: {broken\n\n", b"data: 7\n\n", b"data: " + b"[" * 100_000 + b"\n\n"])
def test_what_is_no_event_is_malformed(data: bytes) -> None:
    """Bytes that are not the protocol's raise, whatever they are."""
    with pytest.raises(Malformed):
        StreamScanner(hide_usage=True, event_bytes_max=1_000_000).feed(data)


def test_an_event_without_end_is_bounded() -> None:
    """An upstream cannot fill memory with one event."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    scanner.feed(b"data: " + b"x" * 900)
    with pytest.raises(Malformed, match="larger than 1000"):
        scanner.feed(b"x" * 100)


def test_a_last_event_without_its_blank_line_counts() -> None:
    """A stream that ends right behind `[DONE]` has ended well."""
    scanner = StreamScanner(hide_usage=True, event_bytes_max=1000)
    scanner.feed(event("a") + b"data: [DONE]")
    assert not scanner.done
    assert b"" == scanner.finish()
    assert scanner.done

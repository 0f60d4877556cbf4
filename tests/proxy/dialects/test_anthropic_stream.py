"""The scanner of Anthropic's streams: every kind of event goes on as it came, and what is learned does not depend on the network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.anthropic_stream import MessagesScanner
from proxy.dialects.dialect import Malformed
from tests.proxy.anthropic_fakes import MESSAGE_STOP, OVERLOADED, PING, sent_event, start, stop, text_block

TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"message_stop"', '"type":"error"', "\n\n", "\r", "é", '"message_delta"']
)
BLOCKS = (
    {"type": "text", "text": ""},
    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "redacted_thinking", "data": "abc"},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
)
DELTAS = st.one_of(
    st.builds(lambda text: {"type": "text_delta", "text": text}, TEXTS),
    st.builds(lambda text: {"type": "thinking_delta", "thinking": text}, TEXTS),
    st.builds(lambda text: {"type": "input_json_delta", "partial_json": text}, TEXTS),
    st.just({"type": "signature_delta", "signature": "sig"}),
    st.just({"type": "citations_delta", "citation": {"cited_text": "x"}}),
)
EVENTS = st.one_of(
    st.builds(lambda block: sent_event("content_block_start", index=0, content_block=block), st.sampled_from(BLOCKS)),
    st.builds(lambda delta: sent_event("content_block_delta", index=0, delta=delta), DELTAS),
    st.just(sent_event("content_block_stop", index=0)),
    st.just(PING),
    st.just(sent_event("an_event_of_the_future", anything=[1])),
    st.just(stop()),
    st.just(stop({"output_tokens": 5, "input_tokens": 11}, reason="tool_use")),
    st.just(start()),
    st.just(b": a comment\n\n"),
)


def scan(pieces: list[bytes]) -> tuple[bytes, tuple[object, ...]]:
    """Everything that comes out, and everything that is learned."""
    scanner = MessagesScanner(100_000)
    out = b"".join([scanner.feed(piece) for piece in pieces]) + scanner.finish()
    learned = (scanner.done, scanner.ending, scanner.error_event, scanner.content_seen, scanner.events)
    return out, (*learned, scanner.finish_reason, scanner.tokens, scanner.tokens_in)


@given(
    events=st.lists(EVENTS, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
    end=st.sampled_from([b"", MESSAGE_STOP, OVERLOADED, MESSAGE_STOP + b"data: more\n\n"]),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_any_cutting_gives_the_same_bytes_and_the_same_knowledge(
    events: list[bytes], cuts: list[int], end: bytes, line_end: bytes
) -> None:
    """Wherever the stream is cut, the client gets the same events and the record says the same."""
    stream = (b"".join(events) + end).replace(b"\n", line_end)
    places = sorted({min(cut, len(stream)) for cut in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    whole = scan([stream])
    assert b"".join(events) == whole[0]
    assert whole == scan([piece for piece in pieces if piece])
    assert whole == scan([stream[at : at + 1] for at in range(len(stream))])


def test_the_last_event_is_held_back() -> None:
    """It waits for the settlement, so that the cost can be told before it; what follows it is nobody's."""
    scanner = MessagesScanner(1000)
    shown = scanner.feed(start() + text_block("a") + stop() + MESSAGE_STOP + PING)
    assert start() + text_block("a") + stop() == shown
    assert (True, MESSAGE_STOP) == (scanner.done, scanner.ending)
    assert b"" == scanner.feed(PING)


@pytest.mark.parametrize(
    ("expected", "event"),
    [
        (False, start()),
        (False, PING),
        (False, sent_event("content_block_start", index=0, content_block={"type": "text", "text": ""})),
        (False, sent_event("content_block_delta", index=0, delta={"type": "text_delta", "text": ""})),
        (False, sent_event("content_block_stop", index=0)),
        (True, sent_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})),
        (True, sent_event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a"})),
        (True, sent_event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "a"})),
        (True, sent_event("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "n"})),
        (True, sent_event("content_block_start", index=0, content_block={"type": "redacted_thinking", "data": "x"})),
    ],
)
def test_where_content_begins(expected: bool, event: bytes) -> None:
    """Lifecycle events commit to nothing; whatever a client would show or act upon does."""
    scanner = MessagesScanner(1000)
    scanner.feed(event)
    assert expected == scanner.content_seen


def test_usage_is_only_known_when_the_output_is() -> None:
    """A stream that breaks off has said what went in, not what came out."""
    scanner = MessagesScanner(1000)
    scanner.feed(start({"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1}) + text_block("a"))
    assert (None, Tokens(input=9, cache_read=4, output=1)) == (scanner.tokens, scanner.tokens_in)
    scanner.feed(stop())
    assert Tokens(input=9, cache_read=4, output=3) == scanner.tokens


def test_an_error_event_is_held_for_whoever_ends_the_stream() -> None:
    """It comes out nowhere but in `error_event`, and nothing after it."""
    scanner = MessagesScanner(1000)
    assert start() == scanner.feed(start() + OVERLOADED + PING)
    assert OVERLOADED == scanner.error_event
    assert b"" == scanner.feed(PING)


@pytest.mark.parametrize("data", [b"data: {]\n\n", b"data: " + b"x" * 2000])
def test_what_is_no_event_is_malformed(data: bytes) -> None:
    """Broken JSON, and an event that never ends."""
    with pytest.raises(Malformed):
        MessagesScanner(1000).feed(data)

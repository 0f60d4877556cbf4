"""Pieces of tool calls that come mixed, put one behind the other."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.translate_call_order import CallOrder
from proxy.dialects.translate_chat_words import CalledFunction, CallPart
from proxy.dialects.translate_messages_stream import MessagesStream
from proxy.dialects.translate_responses_stream import ResponsesStream
from proxy.dialects.translate_tool_names import ToolNames
from tests.proxy.fakes import DONE, event, usage_event


def begins(index: int, arguments: str = "") -> CallPart:
    """The first piece of a call."""
    return CallPart(index, f"call_{index}", "function", CalledFunction(f"f{index}", arguments))


def goes_on(index: int, arguments: str) -> CallPart:
    """Another piece."""
    return CallPart(index, function=CalledFunction(None, arguments))


def told(*pieces: CallPart) -> list[tuple[int | None, str]]:
    """What can be told after each piece and at the end, as index and arguments."""
    order = CallOrder()
    found = [ready for piece in pieces for ready in order.put(piece)] + order.rest()
    return [(piece.index, (piece.function.arguments or "") if piece.function else "") for piece in found]


def test_calls_that_come_one_behind_the_other_wait_for_nothing() -> None:
    """Each piece is told when it comes, as long as the call before it is whole."""
    order = CallOrder()
    for piece in (begins(0), goes_on(0, '{"a"'), goes_on(0, ":1}"), begins(1), goes_on(1, "{}")):
        assert [piece] == order.put(piece)
    assert [] == order.rest()


def test_a_mixed_call_waits_until_the_one_before_it_is_whole() -> None:
    """Its pieces are kept in their order and told at once then."""
    order = CallOrder()
    first, second = [begins(0), goes_on(0, '{"a":'), goes_on(0, "1}")], [begins(1, '{"b"'), goes_on(1, ":2}")]
    assert [first[0]] == order.put(first[0])
    assert [] == order.put(second[0])
    assert [first[1]] == order.put(first[1])
    assert [first[2], second[0]] == order.put(first[2])
    assert [second[1]] == order.put(second[1])


def test_calls_without_arguments_are_told_at_the_end() -> None:
    """Nobody knows before whether more comes for them."""
    assert [(0, ""), (1, ""), (2, "{}")] == told(begins(0), begins(1), begins(2, "{}"))


def test_a_new_identity_is_a_new_call_whatever_its_index() -> None:
    """Some servers count from zero each time."""
    again = CallPart(0, "call_9", "function", CalledFunction("g", "{}"))
    assert [(0, "{}"), (0, "{}")] == told(begins(0, "{}"), again)


def test_a_piece_for_a_call_that_is_ended_is_malformed() -> None:
    """It cannot be told any more; an empty one says nothing."""
    order = CallOrder()
    for piece in (begins(0, "{}"), begins(1, "{}")):
        order.put(piece)
    assert [] == order.put(goes_on(0, ""))
    with pytest.raises(Malformed, match="has ended"):
        order.put(goes_on(0, "x"))


def test_what_waits_is_bounded() -> None:
    """An upstream that never ends its first call cannot fill the memory."""
    order = CallOrder()
    order.put(begins(0))
    order.put(begins(1))
    for _ in range(10):
        order.put(goes_on(1, "x" * 100_000))
    with pytest.raises(Malformed, match="before one was whole"):
        order.put(goes_on(1, "x" * 100_000))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=4), max_size=2), min_size=1, max_size=4
    ),
    st.lists(st.integers(0, 3), max_size=60),
)
def test_any_mixture_gives_the_same_calls(calls: list[dict[str, object]], turns: list[int]) -> None:
    """However the pieces are mixed, the calls stand in the order in which they were begun, whole."""
    texts = [json.dumps(call) for call in calls]
    pieces = [begins(index) for index in range(len(calls))]
    left = [list(text) for text in texts]
    for turn in [*turns, *(index for index, text in enumerate(texts) for _ in text)]:
        if turn < len(left) and left[turn]:
            pieces.append(goes_on(turn, left[turn].pop(0)))
    found: dict[int, str] = {}
    for index, text in told(*pieces):
        assert index is not None
        assert index >= max(found, default=0)
        found[index] = found.get(index, "") + text
    assert dict(enumerate(texts)) == found


MIXED = b"".join(
    (
        event(),
        event("", delta={"tool_calls": [msgspec.to_builtins(begins(0)), msgspec.to_builtins(begins(1))]}),
        event("", delta={"tool_calls": [msgspec.to_builtins(goes_on(1, '{"b":2}'))]}),
        event("", delta={"tool_calls": [msgspec.to_builtins(goes_on(0, '{"a":1}'))]}),
        event("", delta={}, finish_reason="tool_calls"),
        usage_event(),
        DONE,
    )
)


def test_clients_of_both_other_protocols_get_whole_calls() -> None:
    """Blocks of Anthropic's and items of a response are finished one before the next."""
    inner = OpenAiChat().scanner(view=RequestView("m", stream=True, include_usage=True), event_bytes_max=10_000)
    stream = MessagesStream(inner, alias="m", names=ToolNames())
    shown = stream.feed(MIXED) + stream.finish()
    assert [b'{\\"a\\":1}', b'{\\"b\\":2}'] == [
        line.partition(b'"partial_json":"')[2].partition(b'"}')[0]
        for line in shown.split(b"\n")
        if b"partial_json" in line
    ]
    inner = OpenAiChat().scanner(view=RequestView("m", stream=True, include_usage=True), event_bytes_max=10_000)
    items = ResponsesStream(inner, alias="m", created_s=0)
    shown = items.feed(MIXED) + items.finish() + items.ending
    assert shown.index(b'"name":"f0","arguments":"{\\"a\\":1}"') < shown.index(b'"name":"f1","arguments":"{\\"b\\":2}"')

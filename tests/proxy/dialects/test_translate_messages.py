"""OpenAI's replies and streams as a client of Anthropic's reads them: the same message, whole or streamed, in the exact order of events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.anthropic_messages import AnthropicMessages
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.translate_chat import ChatToMessages
from proxy.dialects.translate_messages import MessagesToChat

TRANSLATION = MessagesToChat(OpenAiChat())
USAGE = {
    "prompt_tokens": 117,
    "completion_tokens": 20,
    "total_tokens": 137,
    "prompt_tokens_details": {"cached_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
IN_MESSAGES = {
    "input_tokens": 17,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 100,
    "output_tokens": 20,
}
Call = dict[str, Any]


def completion(content: str | None, calls: list[Call], finish_reason: str = "stop") -> dict[str, Any]:
    """A whole reply of OpenAI's."""
    said: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        said["tool_calls"] = calls
    choice = {"index": 0, "message": said, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-x",
        "choices": [choice],
        "usage": USAGE,
    }


def replied(content: str | None, calls: list[Call], finish_reason: str = "stop") -> dict[str, Any]:
    """What the client of Anthropic's gets for it."""
    return json.loads(TRANSLATION.reply(json.dumps(completion(content, calls, finish_reason)).encode(), alias="m"))


def call(identity: str, name: str, arguments: str) -> Call:
    """A call as OpenAI writes it."""
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """One event of OpenAI's stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return data({"choices": [choice], "usage": None})


def data(fields: dict[str, Any]) -> bytes:
    """An event with the fields that every one has."""
    return (
        b"data: "
        + json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o-x", **fields}).encode()
        + b"\n\n"
    )


def cut(text: str, piece: int) -> list[str]:
    """The text in pieces."""
    return [text[start : start + piece] for start in range(0, len(text), piece)]


def stream(content: str | None, calls: list[Call], *, finish_reason: str = "stop", piece: int = 3) -> bytes:
    """The same reply as a stream."""
    out = [chunk({"role": "assistant", "content": ""})]
    out += [chunk({"content": part}) for part in cut(content or "", piece)]
    for index, item in enumerate(calls):
        function = {"name": item["function"]["name"], "arguments": ""}
        out.append(
            chunk({"tool_calls": [{"index": index, "id": item["id"], "type": "function", "function": function}]})
        )
        for part in cut(item["function"]["arguments"], piece):
            out.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    out += [chunk({}, finish_reason), data({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"]
    return b"".join(out)


def scanned(raw: bytes, *, size: int) -> tuple[bytes, Any]:
    """All bytes that the client gets of a stream cut into chunks, and the scanner at its end."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=100_000)
    shown = b"".join(scanner.feed(raw[start : start + size]) for start in range(0, len(raw), size))
    return shown + scanner.finish() + scanner.ending, scanner


def events_of(shown: bytes) -> list[dict[str, Any]]:
    """The events that a client reads; each name is that of its data."""
    events = []
    for part in shown.split(b"\n\n")[:-1]:
        name, line = part.split(b"\n")
        event = json.loads(line.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    return events


def accumulated(shown: bytes) -> dict[str, Any]:
    """A message put together as the vendor's SDK does it, with its order checked."""
    answer: dict[str, Any] = {}
    texts: dict[int, str] = {}
    is_open: int | None = None
    for event in events_of(shown):
        kind = event["type"]
        if kind == "message_start":
            assert answer == {}
            answer = event["message"]
        elif kind == "content_block_start":
            assert is_open is None
            assert event["index"] == len(answer["content"])
            is_open = event["index"]
            answer["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            assert is_open == event["index"]
            delta = event["delta"]
            texts[is_open] = texts.get(is_open, "") + (delta.get("text") or delta.get("partial_json") or "")
        elif kind == "content_block_stop":
            assert is_open == event["index"]
            is_open = None
        elif kind == "message_delta":
            assert is_open is None
            answer |= event["delta"]
            answer["usage"] |= event["usage"]
    for index, text in texts.items():
        block = answer["content"][index]
        if block["type"] == "text":
            block["text"] += text
        else:
            block["input"] = json.loads(text)
    return answer


words = st.text(max_size=12)
objects = st.dictionaries(words, st.one_of(st.integers(), words), max_size=2)
call_lists = st.lists(st.tuples(st.sampled_from(["add", "sub"]), objects), max_size=3).map(
    lambda found: [call(f"call_{place}", name, json.dumps(given)) for place, (name, given) in enumerate(found)]
)


def test_a_reply_with_text_alone() -> None:
    """Every field that a client of Anthropic's looks for."""
    assert {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "gpt-4o-x",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": IN_MESSAGES,
    } == replied("hello", [])


@pytest.mark.parametrize(
    ("finish_reason", "calls", "expected"),
    [
        ("stop", [], "end_turn"),
        ("length", [], "max_tokens"),
        ("content_filter", [], "refusal"),
        ("tool_calls", [call("c", "f", "{}")], "tool_use"),
        ("stop", [call("c", "f", "")], "tool_use"),
        ("length", [call("c", "f", "{}")], "max_tokens"),
        ("a_new_one", [], "end_turn"),
    ],
)
def test_finish_reasons(finish_reason: str, calls: list[Call], expected: str) -> None:
    """Each has its like; servers that say `stop` where they call tools are understood."""
    assert expected == replied("x", calls, finish_reason)["stop_reason"]
    shown, scanner = scanned(stream("x", calls, finish_reason=finish_reason), size=100)
    assert (expected, expected) == (accumulated(shown)["stop_reason"], scanner.finish_reason)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.none(), words), call_lists, st.integers(1, 9), st.integers(1, 400))
def test_a_stream_comes_to_the_same_message_wherever_it_is_cut(
    content: str | None, calls: list[Call], piece: int, size: int
) -> None:
    """Text and calls: the client accumulates what it would have got whole, and the usage is the same."""
    raw = stream(content, calls, piece=piece)
    shown, scanner = scanned(raw, size=size)
    assert replied(content, calls) == accumulated(shown)
    assert scanned(raw, size=len(raw))[0] == shown
    assert Tokens(input=17, cache_read=100, output=15, reasoning=5) == scanner.tokens
    assert scanner.done


def test_the_order_of_events() -> None:
    """Exactly Anthropic's."""
    shown, scanner = scanned(stream("ab", [call("c", "f", "{}")], finish_reason="tool_calls", piece=9), size=10_000)
    assert [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ] == [event["type"] for event in events_of(shown)]
    assert b'event: message_stop\ndata: {"type":"message_stop"}\n\n' == scanner.ending


def test_reasoning_is_not_shown_but_keeps_the_client_awake() -> None:
    """An unsigned thinking block would be refused by Anthropic later on; a ping is not."""
    raw = chunk({"role": "assistant", "reasoning_content": "hm"}) + stream("x", [])
    shown, _ = scanned(raw, size=1000)
    assert b"hm" not in shown
    assert ["message_start", "ping", "ping"] == [event["type"] for event in events_of(shown)[:3]]


def test_calls_that_share_an_index_are_told_apart_by_their_identity() -> None:
    """Some servers number every call 0."""
    parts = [
        {"index": 0, "id": name, "type": "function", "function": {"name": name, "arguments": '{"a":1}'}}
        for name in "fg"
    ]
    raw = chunk({"tool_calls": parts}) + chunk({}, "stop") + b"data: [DONE]\n\n"
    found = accumulated(scanned(raw, size=1000)[0])
    assert [{"type": "tool_use", "id": name, "name": name, "input": {"a": 1}} for name in "fg"] == found["content"]
    assert "tool_use" == found["stop_reason"]


def test_text_after_a_call_is_a_block_of_its_own() -> None:
    """Blocks are told in the order in which they come."""
    raw = (
        chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]})
        + chunk({"content": "x"})
        + chunk({}, "tool_calls")
        + b"data: [DONE]\n\n"
    )
    assert ["tool_use", "text"] == [block["type"] for block in accumulated(scanned(raw, size=1000)[0])["content"]]


def test_a_piece_of_a_call_that_has_ended_is_malformed() -> None:
    """It cannot be told any more: better a broken stream than a call with half its arguments."""
    raw = stream(None, [call("a", "f", "{}"), call("b", "g", "{}")])
    late = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "late"}}]})
    with pytest.raises(Malformed):
        scanned(raw.replace(b"data: [DONE]\n\n", late), size=10_000)


def test_a_refusal_is_text_and_a_reason() -> None:
    """Clients of Anthropic's show the text and read the reason."""
    body = completion(None, [])
    body["choices"][0]["message"]["refusal"] = "I may not"
    found = json.loads(TRANSLATION.reply(json.dumps(body).encode(), alias="m"))
    assert [{"type": "text", "text": "I may not"}] == found["content"]
    assert "refusal" == found["stop_reason"]
    raw = chunk({"refusal": "I may not"}) + chunk({}, "stop") + b"data: [DONE]\n\n"
    assert (found["content"], "refusal") == (
        accumulated(scanned(raw, size=99)[0])["content"],
        accumulated(scanned(raw, size=99)[0])["stop_reason"],
    )


def test_an_upstream_that_never_says_its_usage() -> None:
    """The client gets zeros; the call is estimated."""
    shown, scanner = scanned(chunk({"content": "x"}) + chunk({}, "stop") + b"data: [DONE]\n\n", size=1000)
    assert scanner.tokens is None
    assert 0 == accumulated(shown)["usage"]["output_tokens"]


def test_an_error_inside_the_stream_is_one_in_the_clients_words() -> None:
    """Named as Anthropic names it."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=10_000)
    scanner.feed(chunk({"content": "x"}) + b'data: {"error":{"message":"slow down","code":"rate_limit_exceeded"}}\n\n')
    assert (
        b'event: error\ndata: {"error":{"type":"rate_limit_error","message":"slow down"},"type":"error"}\n\n'
        == scanner.error_event
    )


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"choices":[]}', json.dumps(completion("x", [call("c", "f", "[1]")])).encode()]
)
def test_a_reply_that_is_none_is_malformed(body: bytes) -> None:
    """It ends as a try that failed."""
    with pytest.raises(Malformed):
        TRANSLATION.reply(body, alias="m")


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_a_call_that_was_cut_short_is_told_with_what_came_of_it(finish_reason: str) -> None:
    """The answer is billed, and another try would end the same: the client learns from the reason that the call is not whole."""
    found = replied("x", [call("c", "f", '{"a": "on')], finish_reason)
    assert {"invalid_arguments": '{"a": "on'} == found["content"][1]["input"]
    assert {"length": "max_tokens", "content_filter": "refusal"}[finish_reason] == found["stop_reason"]


def test_a_message_is_named_by_the_answer_and_not_by_what_comes_before_it() -> None:
    """Some servers first say what they found in the prompt, in an event that names no answer."""
    before = b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}\n\n'
    raw = stream("x", [])
    assert scanned(raw, size=100)[0] == scanned(before + raw, size=100)[0]


turn_lists = st.lists(
    st.one_of(
        st.builds(
            lambda text: {"role": "user", "content": text}, st.text("abc \n", min_size=1, max_size=6).filter(str.strip)
        ),
        st.builds(
            lambda text, calls: {
                "role": "assistant",
                "content": text or None,
                **({"tool_calls": calls} if calls else {}),
            },
            st.sampled_from(["", "word", "two words"]),
            call_lists,
        ),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(turn_lists)
def test_there_and_back_keeps_roles_text_and_calls(turns: list[dict[str, Any]]) -> None:
    """A chat in Anthropic's words and back again says what it said, with what follows each other in one role made one."""
    asked = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "go"}, *turns]}
    body = json.dumps(asked).encode()
    there = ChatToMessages(AnthropicMessages()).request(body, view=RequestView("m"), model="claude-x", output_ceiling=9)
    back = json.loads(TRANSLATION.request(there, view=RequestView("m"), model="m", output_ceiling=None))
    assert said(asked["messages"]) == said(back["messages"])


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str, list[tuple[str, str, Any]]]]:
    """Role, text and calls of each turn; neighbours of one role together, and no turn that says nothing."""
    turns: list[tuple[str, str, list[tuple[str, str, Any]]]] = []
    for message in messages:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        calls = [
            (item["id"], item["function"]["name"], json.loads(item["function"]["arguments"]))
            for item in message.get("tool_calls", ())
        ]
        if turns and turns[-1][0] == message["role"]:
            turns[-1] = (message["role"], turns[-1][1] + text, turns[-1][2] + calls)
        elif text or calls:
            turns.append((message["role"], text, calls))
    return turns

"""Responses served by chats: requests field by field, answers whole and streamed, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from controlplane.contract.pricing import Tokens
from proxy.dialects.anthropic_messages import AnthropicMessages
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.responses import Responses
from proxy.dialects.translate_chat import ChatToMessages
from proxy.dialects.translate_responses import ResponsesToChat
from proxy.dialects.translate_stream import STREAM_BYTES_MAX
from tests.proxy.dialects.test_translate_messages import Call, call, call_lists, chunk, completion, stream, words

TRANSLATION = ResponsesToChat(OpenAiChat(), now_s=lambda: 5.5)
SCHEMA = {"type": "object", "properties": {}}


def translated(**fields: Any) -> dict[str, Any]:
    """The chat that the upstream gets for these fields."""
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    view = Responses().read_view(body)
    return json.loads(TRANSLATION.request(body, view=view, model="up", output_ceiling=None))


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"instructions": "s"}, {"messages": [{"role": "system", "content": "s"}, *HI]}),
        ({"max_output_tokens": 9}, {"max_completion_tokens": 9}),
        ({"temperature": 0.1, "top_p": 0.2}, {"temperature": 0.1, "top_p": 0.2}),
        ({"user": "u", "service_tier": "auto"}, {"user": "u", "service_tier": "auto"}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        (
            {"store": False, "include": ["reasoning.encrypted_content"], "truncation": "auto", "metadata": {"a": "b"}},
            {},
        ),
        ({"background": False, "previous_response_id": None}, {}),
        (
            {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "tool_choice": "required"},
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
                "tool_choice": "required",
            },
        ),
        (
            {
                "tools": [{"type": "function", "name": "f"}],
                "tool_choice": {"type": "function", "name": "f"},
                "parallel_tool_calls": False,
            },
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_each_field_is_mapped_or_left_out(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """The fields of the table in docs/reference/translations.md."""
    assert {"model": "up", "messages": HI, **expected} == translated(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "bard", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """No state, no tools of OpenAI's own."""
    with pytest.raises(Malformed) as caught:
        translated(**fields)
    assert param == caught.value.param


def test_items_become_turns() -> None:
    """Calls of one turn are one message; thinking is left out; results follow."""
    found = translated(
        input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "s"}]},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
                ],
            },
            {"type": "reasoning", "id": "rs", "summary": []},
            {"type": "message", "id": "msg", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        ]
    )
    assert [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            ],
        },
        {"role": "assistant", "content": "ok", "tool_calls": [call("a", "f", "{}"), call("b", "g", "{}")]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
    ] == found["messages"]


def replied(content: str | None, calls: list[Call], finish_reason: str = "stop") -> dict[str, Any]:
    """What the client gets for a whole chat."""
    return json.loads(TRANSLATION.reply(json.dumps(completion(content, calls, finish_reason)).encode(), alias="m"))


def scanned(raw: bytes, *, size: int) -> tuple[bytes, Any]:
    """All bytes that the client gets of a stream cut into chunks, and the scanner at its end."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=100_000)
    shown = b"".join(scanner.feed(part) for part in (raw[at : at + size] for at in range(0, len(raw), size)))
    return shown + scanner.finish() + scanner.ending, scanner


def test_a_response_is_named_by_the_answer_and_not_by_what_comes_before_it() -> None:
    """Some servers first say what they found in the prompt, in an event that names no answer."""
    before = b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}\n\n'
    raw = stream("x", [])
    assert scanned(raw, size=100)[0] == scanned(before + raw, size=100)[0]


def events_of(shown: bytes) -> list[dict[str, Any]]:
    """The events that a client reads, numbered without a gap and named as their data."""
    events = []
    for number, part in enumerate(part for part in shown.split(b"\n\n") if part.startswith(b"event")):
        name, line = part.split(b"\n")
        event = json.loads(line.removeprefix(b"data: "))
        assert (name, number) == (b"event: " + event["type"].encode(), event["sequence_number"])
        events.append(event)
    return events


@settings(max_examples=40, deadline=None)
@given(words, call_lists)
def test_a_stream_ends_with_the_same_response(content: str, calls: list[Call]) -> None:
    """Its last event holds the whole answer, its deltas sum to it, and neither depends on how chunks were cut."""
    raw = stream(content, calls)
    shown, scanner = scanned(raw, size=7)
    assert shown == scanned(raw, size=len(raw))[0]
    events = events_of(shown)
    whole = replied(content, calls)
    assert ("response.completed", whole) == (events[-1]["type"], events[-1]["response"])
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert content == text
    arguments = "".join(event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta")
    assert "".join(item["function"]["arguments"] for item in calls) == arguments
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in whole["output"]] == added
    assert Tokens(input=17, cache_read=100, output=15, reasoning=5) == scanner.tokens
    assert "completed" == scanner.finish_reason


@pytest.mark.parametrize(
    ("finish_reason", "status", "reason"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_how_an_answer_ends(finish_reason: str, status: str, reason: str | None) -> None:
    """Whole and streamed."""
    whole = replied("x", [], finish_reason)
    streamed = events_of(scanned(stream("x", [], finish_reason=finish_reason), size=99)[0])[-1]
    assert f"response.{status}" == streamed["type"]
    for response in (whole, streamed["response"]):
        assert status == response["status"]
        assert (None if reason is None else {"reason": reason}) == response["incomplete_details"]


def test_an_error_inside_the_stream() -> None:
    """As clients of responses read it."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=10_000)
    scanner.feed(chunk({"content": "x"}) + b'data: {"error":{"message":"gone","code":"server_error"}}\n\n')
    fields = json.loads(scanner.error_event.split(b"data: ")[1])
    assert ("error", "gone", "server_error") == (fields["type"], fields["message"], fields["code"])


def test_through_two_translations() -> None:
    """A response of Anthropic's: the request in Messages, the answer as a response."""
    both = ResponsesToChat(OpenAiChat(), ChatToMessages(AnthropicMessages()), now_s=lambda: 5.5)
    body = json.dumps({"model": "m", "input": "hi", "instructions": "s"}).encode()
    asked = json.loads(both.request(body, view=RequestView("m"), model="claude-x", output_ceiling=7))
    assert ("claude-x", 7, [{"type": "text", "text": "s"}]) == (asked["model"], asked["max_tokens"], asked["system"])
    answer = {
        "id": "msg_1",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 2, "output_tokens": 1},
    }
    found = json.loads(both.reply(json.dumps(answer).encode(), alias="m"))
    assert ("resp_1", "yes", 3) == (
        found["id"],
        found["output"][0]["content"][0]["text"],
        found["usage"]["total_tokens"],
    )
    status, error = both.error(529, b'{"error":{"type":"overloaded_error","message":"no"}}')
    assert (503, "no") == (status, json.loads(error)["error"]["message"])


def test_a_stream_without_end_is_given_up() -> None:
    """What was said is repeated at the end, so it is kept; an upstream that never stops is cut off before it fills our memory."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=10_000_000)
    choice = {"index": 0, "delta": {"content": "x" * 8_000_000}, "finish_reason": None}
    event = b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"
    for _ in range(STREAM_BYTES_MAX // len(event)):
        scanner.feed(event)
    with pytest.raises(Malformed, match="larger"):
        scanner.feed(event)

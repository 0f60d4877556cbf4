"""A Messages request in OpenAI's words: what is mapped, what is approximated, what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.translate_messages_request import chat_request
from proxy.dialects.translate_tool_names import ToolNames

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "add", "description": "adds", "input_schema": SCHEMA}
USER = {"role": "user", "content": "hi"}
ADD = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": SCHEMA}}

STRICT_ADD = {"type": "function", "function": {**ADD["function"], "strict": True}}  # type: ignore[dict-item]


def translated(*, upstream_model: str = "gpt-4o", ceiling: int | None = None, **fields: Any) -> dict[str, Any]:
    """The request that OpenAI gets for these fields."""
    asked = {"model": "m", "max_tokens": 50, "messages": [USER], **fields}
    view = RequestView(model="m", stream=bool(fields.get("stream")), max_output_tokens=asked["max_tokens"])
    body, names = json.dumps(asked).encode(), ToolNames()
    return json.loads(chat_request(body, view=view, model=upstream_model, output_ceiling=ceiling, names=names))


def messages(*turns: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that OpenAI gets for these turns."""
    return translated(messages=list(turns))["messages"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"max_tokens": None, "ceiling": 9}, {"max_completion_tokens": 9}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"temperature": 0.2, "top_p": 0.9}, {"temperature": 0.2, "top_p": 0.9}),
        ({"temperature": 0.2, "upstream_model": "gpt-5.1"}, {}),
        ({"top_k": 3, "anthropic_beta": ["x"], "context_management": {}}, {}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5000}, "upstream_model": "o3"},
            {"reasoning_effort": "medium"},
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "upstream_model": "o3"}, {"reasoning_effort": "low"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 31_999}, "upstream_model": "o3"},
            {"reasoning_effort": "high"},
        ),
        ({"thinking": {"type": "adaptive"}, "upstream_model": "o3"}, {}),
        ({"output_config": {"effort": "max"}, "upstream_model": "gpt-5"}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}},
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object"}, "strict": False},
                }
            },
        ),
        ({"tool_choice": {"type": "any"}}, {}),
        ({"tools": [TOOL]}, {"tools": [ADD]}),
        ({"tools": [{**TOOL, "strict": True}]}, {"tools": [STRICT_ADD]}),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {}}}, "strict": True}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
                    }
                ]
            },
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [ADD], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [ADD], "tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "add"}},
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tools": [ADD], "tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_each_field_is_mapped_or_left_out(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """The fields of the table in docs/reference/translations.md, each alone."""
    found = translated(**fields)
    if "response_format" in expected:
        expected["response_format"]["json_schema"]["name"] = "answer"
    plain = {"model": fields.get("upstream_model", "gpt-4o"), "messages": [USER], "max_completion_tokens": 50}
    assert {**plain, **expected} == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"mcp_servers": [{"url": "https://h"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": ["a", "b", "c", "d", "e"]}, "stop_sequences"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"messages": [{"role": "bard", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0.type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "https://h"}}]}
                ]
            },
            "messages.0.content.0.source",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """Nothing that the model would have to know is left out in silence."""
    with pytest.raises(Malformed) as caught:
        translated(**fields)
    assert param == caught.value.param


def test_a_long_user_is_told_by_its_hash() -> None:
    """OpenAI takes 64 characters; two long users are still two."""
    one, two = (translated(metadata={"user_id": f"user_{'a' * 90}_{name}"})["user"] for name in ("x", "y"))
    assert (64, 64) == (len(one), len(two))
    assert one != two


def test_system_blocks_become_one_text_without_the_bill() -> None:
    """Cache marks go, and so does the block that differs from call to call."""
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1"},
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    assert {"role": "system", "content": "a\n\nb"} == translated(system=blocks)["messages"][0]
    assert {"role": "system", "content": "s"} == translated(system="s")["messages"][0]


def test_calls_results_and_their_images() -> None:
    """Results follow their calls; an image inside one follows as what the user shows; thinking is left out."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    found = messages(
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "zz"},
                {"type": "text", "text": "look"},
                {"type": "tool_use", "id": "toolu_1", "name": "shot", "input": {"w": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "rm", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "go on"},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "seen"}, image]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "denied", "is_error": True},
            ],
        },
    )
    assert [
        USER,
        {
            "role": "assistant",
            "content": "look",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "shot", "arguments": '{"w": 1}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "rm", "arguments": "{}"}},
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "toolu_1",
            "content": "seen\n(The files of this result are in the message below.)",
        },
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: denied"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "go on"},
            ],
        },
    ] == found


def test_documents() -> None:
    """Bytes become a file, plain text becomes text, one text alone becomes a string."""
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "BB"}
    plain = {"type": "text", "media_type": "text/plain", "data": "body"}
    found = messages(
        {"role": "user", "content": [{"type": "document", "source": pdf, "title": "a.pdf"}]},
        {"role": "user", "content": [{"type": "document", "source": plain, "title": "T"}]},
        {"role": "user", "content": [{"type": "document", "source": pdf}]},
    )
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BB"}
    assert [{"type": "file", "file": file}] == found[0]["content"]
    assert "T\n\nbody" == found[1]["content"]
    assert "document.pdf" == found[2]["content"][0]["file"]["filename"]


def test_a_part_that_the_other_language_lacks_is_refused_by_its_kind() -> None:
    """The message names the part, and that another upstream is the reason."""
    part = {"type": "search_result", "source": "s", "title": "t", "content": []}
    with pytest.raises(Malformed, match="`search_result` cannot be said to this model's upstream") as refused:
        messages({"role": "user", "content": [part]})
    assert "messages.0.content.0.type" == refused.value.param


def test_an_answer_of_thinking_alone_is_no_message() -> None:
    """OpenAI refuses an assistant's message without content."""
    assert [USER, USER] == messages(
        USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]}, USER
    )


def test_a_request_as_claude_code_sends_it() -> None:
    """Marks for caches, hints, new fields and reminders in the middle of a conversation: all of it is borne."""
    marked = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    found = translated(
        stream=True,
        thinking={"type": "adaptive", "display": "summarized"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        metadata={"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s"})},
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=abcde;"},
            {"type": "text", "text": "You are Claude Code.", **marked},
        ],
        tools=[{**TOOL, "eager_input_streaming": True, "strict": True, **marked}],
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "<system-reminder>", **marked}, {"type": "text", "text": "go"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "", "signature": "s"},
                    {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}, "caller": {"type": "direct"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t",
                        "content": [{"type": "text", "text": "1"}],
                        "is_error": False,
                        **marked,
                    }
                ],
            },
            {"role": "system", "content": "be quick"},
        ],
    )
    assert ["system", "user", "assistant", "tool", "system"] == [turn["role"] for turn in found["messages"]]
    assert "You are Claude Code." == found["messages"][0]["content"]
    assert 64 == len(found["user"])
    assert [STRICT_ADD] == found["tools"]
    assert "cache_control" not in json.dumps(found)

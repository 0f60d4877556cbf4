"""A chat request in Anthropic's words: what is mapped, what is approximated, what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.translate_chat_request import MAX_TOKENS, messages_request

HAIKU = "claude-haiku-4-5"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": SCHEMA, "strict": True}}
USER = {"role": "user", "content": "hi"}


def translated(*, upstream_model: str = HAIKU, ceiling: int | None = None, **fields: Any) -> dict[str, Any]:
    """The request that Anthropic gets for these fields."""
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    view = OpenAiChat().read_view(body)
    return json.loads(messages_request(body, view=view, model=upstream_model, output_ceiling=ceiling))


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns that Anthropic gets for these messages."""
    return translated(messages=list(messages))["messages"]


def text(value: str) -> dict[str, Any]:
    """A text block."""
    return {"type": "text", "text": value}


def test_a_plain_request_says_the_same_in_the_other_words() -> None:
    """Model, system, turn and a ceiling, and nothing that was not asked for."""
    expected = {
        "model": HAIKU,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": [text("hi")]}],
        "system": [text("be short")],
    }
    assert expected == translated(messages=[{"role": "system", "content": "be short"}, USER])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 9, "max_tokens": 7}, {"max_tokens": 9}),
        ({"ceiling": 100}, {"max_tokens": 100}),
        ({"max_tokens": 7, "ceiling": 100}, {"max_tokens": 7}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "\n", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"temperature": 1.7}, {"temperature": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 0.5, "temperature": 0.5}, {"temperature": 0.5}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": 5, "reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (
            {"top_k": 5, "temperature": 0.3, "thinking": {"type": "disabled"}},
            {"top_k": 5, "temperature": 0.3, "thinking": {"type": "disabled"}},
        ),
        ({"temperature": 0.3, "top_p": 0.2, "upstream_model": "claude-sonnet-5"}, {}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"service_tier": "flex"}, {}),
        ({"stream": True}, {"stream": True}),
        ({"n": 1, "seed": 4, "store": True, "presence_penalty": 0.1, "metadata": {"a": "b"}}, {}),
        ({"logprobs": False, "top_logprobs": 0, "logit_bias": {}, "functions": None}, {}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
        ({"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ({"reasoning_effort": "high", "max_tokens": 1500}, {"max_tokens": 1500}),
        ({"reasoning_effort": "none"}, {}),
        (
            {"reasoning_effort": "medium", "temperature": 0.2, "top_p": 0.1},
            {"thinking": {"type": "enabled", "budget_tokens": 4096}},
        ),
        (
            {"reasoning_effort": "xhigh", "upstream_model": "claude-opus-4-7"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}},
        ),
        (
            {"reasoning_effort": "xhigh", "upstream_model": "claude-opus-4-6"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"parallel_tool_calls": False}, {}),
    ],
)
def test_each_field_is_mapped_or_left_out(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """The fields of the table in docs/reference/translations.md, each alone."""
    found = translated(**fields)
    plain = {"model": fields.get("upstream_model", HAIKU), "messages": [{"role": "user", "content": [text("hi")]}]}
    assert {"max_tokens": MAX_TOKENS, **plain, **expected} == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities.1"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"temperature": "warm"}, "temperature"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"messages": [{"role": "bard", "content": "o"}]}, "messages.0.role"),
        ({"messages": [{"role": "function", "name": "f", "content": "o"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
                ]
            },
            "messages.0.content.0.type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/i.png"}}]}
                ]
            },
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
            "messages.0.content.0.file.file_data",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """Nothing that a client would look for in the answer is left out in silence."""
    with pytest.raises(Malformed) as caught:
        translated(**fields)
    assert param == caught.value.param


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, {"type": "tool", "name": "add"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "required"}, {"type": "any", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_choices_of_tools(fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    """Each way to choose a tool has its like."""
    found = translated(tools=[TOOL], **fields)
    assert [{"name": "add", "description": "adds", "input_schema": SCHEMA}] == found["tools"]
    assert expected == found.get("tool_choice")


def test_allowed_tools_are_the_only_ones_sent() -> None:
    """Anthropic has no list of allowed tools, so the others are not offered."""
    other = {"type": "function", "function": {"name": "sub"}}
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "sub"}}]},
    }
    found = translated(tools=[TOOL, other], tool_choice=choice)
    assert [{"name": "sub", "input_schema": {"type": "object", "properties": {}}}] == found["tools"]
    assert {"type": "any"} == found["tool_choice"]


def test_a_forced_tool_leaves_no_room_for_thinking() -> None:
    """Anthropic refuses both together; the choice was explicit, so it wins."""
    found = translated(tools=[TOOL], tool_choice="required", reasoning_effort="high")
    assert "thinking" not in found


def test_a_schema_becomes_structured_output() -> None:
    """Closed objects, and in words what cannot be enforced."""
    found = translated(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    )
    assert {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"a": {"type": "integer", "description": "{minimum: 1}"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        }
    } == found["output_config"]


def test_a_json_object_is_asked_for_in_words() -> None:
    """Anthropic has no such form: the last instruction says it."""
    found = translated(messages=[{"role": "system", "content": "s"}, USER], response_format={"type": "json_object"})
    assert "s" == found["system"][0]["text"]
    assert "JSON object" in found["system"][1]["text"]


def test_instructions_anywhere_come_first() -> None:
    """System and developer messages keep their order among themselves."""
    found = translated(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            USER,
            {"role": "system", "content": "b"},
        ]
    )
    assert [{**text("a"), "cache_control": {"type": "ephemeral"}}, text("b")] == found["system"]
    assert 1 == len(found["messages"])


def test_instructions_alone_are_what_the_user_says() -> None:
    """Anthropic demands a message."""
    assert [{"role": "user", "content": [text("go")]}] == turns({"role": "system", "content": "go"})


def test_tool_calls_and_their_results_take_turns() -> None:
    """All results of one turn, and what the user says after them, are one message."""
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "call:2", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    found = turns(
        USER,
        {"role": "assistant", "content": "let me see", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call:2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "user", "content": "and?"},
    )
    assert [
        {"role": "user", "content": [text("hi")]},
        {
            "role": "assistant",
            "content": [
                text("let me see"),
                {"type": "tool_use", "id": "call_1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "1"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [text("noon")]},
                text("and?"),
            ],
        },
    ] == found


def test_arguments_that_are_no_object_are_kept_as_text() -> None:
    """A model's earlier mistake does not end the conversation."""
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{oops"}}
    found = turns(USER, {"role": "assistant", "tool_calls": [call]})
    assert {"invalid_arguments": "{oops"} == found[1]["content"][0]["input"]


def test_images_and_documents_by_bytes_and_by_address() -> None:
    """A data URL becomes a source in base64, an https address stays one."""
    found = turns(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://h/i.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
                {"type": "text", "text": " "},
            ],
        }
    )
    assert [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://h/i.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
            "title": "a.pdf",
        },
    ] == found[0]["content"]


def parts(*content: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks that Anthropic gets for these parts of what the user says."""
    return turns({"role": "user", "content": list(content)})[0]["content"]


def test_media_types_are_written_as_anthropic_writes_them() -> None:
    """OpenAI takes `image/jpg` and capital letters; Anthropic takes four types, each in one spelling."""
    urls = ("data:image/jpg;base64,AAAA", "data:Image/PNG;base64,AAAA", "HTTPS://h/i.png")
    assert [
        {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"},
        {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        {"type": "url", "url": "HTTPS://h/i.png"},
    ] == [parts({"type": "image_url", "image_url": {"url": url}})[0]["source"] for url in urls]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("data:text/csv;charset=utf-8;base64,YSxiCjEsw6k=", {"type": "text", "data": "a,b\n1,é", "media_type": "text/plain"}),
        ("data:application/json;base64,e30=", {"type": "text", "data": "{}", "media_type": "text/plain"}),
        ("data:image/jpg;base64,AAAA", {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}),
    ],
)  # fmt: skip
def test_files_that_are_no_pdf(url: str, expected: dict[str, Any]) -> None:
    """Anthropic takes no bytes but PDF in a document: text is sent as text, and an image as an image."""
    assert expected == parts({"type": "file", "file": {"filename": "a", "file_data": url}})[0]["source"]


@pytest.mark.parametrize(
    "url", ["data:text/plain;base64,/w==", "data:text/plain;base64,A", "data:application/zip;base64,AAAA"]
)
def test_a_file_that_anthropic_cannot_read_is_refused(url: str) -> None:
    """By its name, so that a deployment of another vendor is asked."""
    with pytest.raises(Malformed) as caught:
        parts({"type": "file", "file": {"filename": "a", "file_data": url}})
    assert "messages.0.content.0.file.file_data" == caught.value.param


def test_thinking_goes_on_only_with_the_thinking_before_it() -> None:
    """In the middle of a turn a model that thinks by budget needs its own earlier thinking, which clients may send back."""
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    block = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    without = translated(messages=[USER, {"role": "assistant", "tool_calls": [call]}, result], reasoning_effort="low")
    assert "thinking" not in without
    kept = {"role": "assistant", "tool_calls": [call], "thinking_blocks": [block]}
    found = translated(messages=[USER, kept, result], reasoning_effort="low")
    assert "enabled" == found["thinking"]["type"]
    assert block == found["messages"][1]["content"][0]
    streamed = {**kept, "thinking_blocks": [{**block, "index": 0}]}  # as OpenAI's SDK puts it together
    assert block == translated(messages=[USER, streamed, result])["messages"][1]["content"][0]
    strange = {**kept, "thinking_blocks": [["index"]]}
    assert ["index"] == translated(messages=[USER, strange, result])["messages"][1]["content"][0]
    later = translated(
        messages=[USER, {"role": "assistant", "tool_calls": [call]}, result, USER], reasoning_effort="low"
    )
    assert "enabled" == later["thinking"]["type"]


def test_the_last_answer_ends_without_white_space() -> None:
    """Anthropic refuses an answer to be continued that ends with it."""
    assert "The answer is" == turns(USER, {"role": "assistant", "content": "The answer is "})[1]["content"][0]["text"]


def test_a_body_that_nests_without_end_is_refused() -> None:
    """No recursion of a decoder reaches the pipeline."""
    body = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(Malformed):
        messages_request(body, view=RequestView("m"), model=HAIKU, output_ceiling=None)

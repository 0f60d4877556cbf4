"""Bad input in OpenAI's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import ChatRequest, EmbeddingsRequest, check_conversation, model_of, read

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look"}}


def refused(document: object) -> Problem:
    """The problem with a chat completion's body."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Problem) as problem:
        check_conversation(read(body, ChatRequest))
    return problem.value


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b"[" * 100_000, b'{"model":"a",}'])
def test_what_is_not_a_json_object(body: bytes) -> None:
    """Anything but a JSON object is told so, however deep or broken it is."""
    problem = refused(body)
    assert (400, None, None) == (problem.status, problem.param, problem.code)
    assert "could not parse the JSON body" in problem.message


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"model": None}, None, None, "you must provide a model"),
        ({"model": ""}, None, None, "you must provide a model"),
        ({"model": 3}, "model", "invalid_type", "expected a string, but got an integer"),
        ({"messages": None}, "messages", "invalid_type", "expected an array, but got null"),
        ({"messages": []}, "messages", "empty_array", "minimum length 1"),
        ({"messages": "hi"}, "messages", "invalid_type", "expected an array, but got a string"),
        ({"messages": [3]}, "messages[0]", "invalid_type", "expected an object"),
        (
            {"messages": [{"content": "a"}]},
            "messages[0].role",
            "missing_required_parameter",
            "Missing required parameter",
        ),
        ({"messages": [*HELLO, {"role": "robot", "content": "a"}]}, "messages[1].role", "invalid_value", "'robot'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "Missing"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content",
            "invalid_type",
            "expected a string or an array",
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "a", "tool_call_id": "x"}]},
            "messages.[1].role",
            None,
            "preceeding",
        ),
        ({"temperature": 3}, "temperature", "decimal_above_max_value", "Expected a value <= 2, but got 3 instead"),
        (
            {"temperature": -0.1},
            "temperature",
            "decimal_below_min_value",
            "Expected a value >= 0, but got -0.1 instead",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_type", "expected a decimal, but got a string"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", "Expected a value >= 1, but got 0 instead"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "expected an integer"),
        ({"n": 129}, "n", "integer_above_max_value", "<= 128"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length", "maximum length 4, but got an array with length 5"),
        ({"stream": "yes"}, "stream", "invalid_type", "expected a boolean"),
        ({"surprise": 1}, "surprise", "unknown_parameter", "Unknown parameter: 'surprise'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "only allowed when 'stream' is enabled"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "xml"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
            "Missing",
        ),
        ({"response_format": {"type": "json_object"}}, "messages", None, "must contain the word 'json'"),
        ({"tools": []}, "tools", "empty_array", "minimum length 1"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter", "Missing"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "invalid_value",
            "name",
        ),
        ({"tool_choice": "required"}, "tool_choice", None, "only allowed when 'tools' are specified"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "leap"}}},
            "tool_choice",
            None,
            "'leap' not found",
        ),
        ({"top_logprobs": 2}, "top_logprobs", None, "only allowed when 'logprobs' is enabled"),
    ],
)
def test_bad_field(fields: dict[str, object], param: str | None, code: str | None, words: str) -> None:
    """Each mistake names its place and its kind as OpenAI does."""
    problem = refused({"model": "gpt-4o", "messages": HELLO} | fields)
    assert (400, param, code) == (problem.status, problem.param, problem.code)
    assert words in problem.message
    assert set(json.loads(problem.body())["error"]) == {"message", "type", "param", "code"}


def test_missing_messages() -> None:
    """A body without messages is told which field is missing."""
    problem = refused({"model": "gpt-4o"})
    assert ("messages", "missing_required_parameter") == (problem.param, problem.code)


@pytest.mark.parametrize("given_input", [None, 3, [], [[]] * 2049, ["a"] * 2049, {"a": 1}, [True]])
def test_bad_embeddings_input(given_input: object) -> None:
    """An input of the wrong shape or length is refused."""
    body = json.dumps({"model": "text-embedding-3-small", "input": given_input}).encode()
    with pytest.raises(Problem) as problem:
        read(body, EmbeddingsRequest)
    assert problem.value.status == 400
    assert "input" in problem.value.message


def problem_of(body: bytes) -> Problem | None:
    """The problem with a body, if there is one."""
    try:
        check_conversation(read(body, ChatRequest))
    except Problem as problem:
        return problem
    return None


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_breaks_the_reader(body: bytes) -> None:
    """Whatever the bytes are, they are told what is wrong with them, and the model in them can be asked for."""
    model_of(body)
    problem = problem_of(body)
    assert problem is not None
    assert problem.status == 400


@given(
    st.dictionaries(
        st.sampled_from(ChatRequest.__struct_fields__), st.none() | st.integers() | st.text() | st.lists(st.none())
    )
)
def test_no_field_breaks_the_reader(fields: dict[str, object]) -> None:
    """Whatever is in a known field, the answer is a request or a problem that names a place."""
    problem = problem_of(json.dumps({"model": "gpt-4o", "messages": HELLO} | fields).encode())
    assert problem is None or (400, True) == (problem.status, bool(problem.message))

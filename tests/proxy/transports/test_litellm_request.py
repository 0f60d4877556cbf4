"""What reaches litellm of a client's request: the fields of OpenAI's that we read, at every depth, and nothing else."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from proxy.dialects.dialect import Malformed
from proxy.transports.litellm_request import chat_arguments, embedding_arguments, floats_as_asked

HI = [{"role": "user", "content": "hi"}]


def told(**fields: Any) -> dict[str, Any]:
    """The arguments for these fields."""
    return chat_arguments(json.dumps({"model": "m", "messages": HI, **fields}).encode(), output_ceiling=None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"temperature": 0, "seed": 7, "stop": ["a"]}, {"temperature": 0, "seed": 7, "stop": ["a"]}),
        ({"logit_bias": {"1": 2}, "logprobs": True}, {"logit_bias": {"1": 2}, "logprobs": True}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking": {"type": "enabled", "budget_tokens": 9}}),
        ({"stream": True, "stream_options": {"include_usage": True}, "store": True, "metadata": {"a": "b"}}, {}),
        ({"user": None, "tools": None}, {}),
    ],
)
def test_fields_that_it_may_know(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """OpenAI's go on; those that the transport says itself do not."""
    assert {"messages": HI, **expected} == told(**fields)


def test_a_ceiling_where_the_client_names_none() -> None:
    """The tenant's."""
    assert 9 == chat_arguments(json.dumps({"model": "m", "messages": HI}).encode(), output_ceiling=9)["max_tokens"]


def test_nothing_unknown_goes_on_at_any_depth() -> None:
    """litellm fetches what it finds in fields that OpenAI does not have, `images` of an earlier answer for one."""
    turns = [
        {"role": "assistant", "content": "x", "images": [{"image_url": {"url": "http://10.0.0.1/"}}], "odd": 1},
        {"role": "user", "content": [{"type": "text", "text": "y", "url": "http://10.0.0.1/"}]},
    ]
    tool = {"type": "function", "function": {"name": "f", "server_url": "http://10.0.0.1/"}, "server_url": "http://h"}
    found = told(messages=turns, tools=[tool])
    assert "http" not in json.dumps(found)
    assert [{"type": "function", "function": {"name": "f"}}] == found["tools"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"api_base": "http://h"}, "api_base"),
        ({"base_url": "http://h"}, "base_url"),
        ({"extra_body": {}}, "extra_body"),
        ({"custom_llm_provider": "openai"}, "custom_llm_provider"),
        ({"tools": [{"type": "mcp", "server_url": "http://h"}]}, "tools.0.type"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"moderation": {"model": "m"}}, "moderation"),
    ],
)
def test_what_would_steer_it_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its name."""
    with pytest.raises(Malformed) as caught:
        told(**fields)
    assert param == caught.value.param


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "https://h/i.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "image_url.url"),
        ({"type": "file", "file": {"file_id": "https://h/f.pdf"}}, "file.file_id"),
        ({"type": "file", "file": {"file_id": "gs://b/f", "file_data": "data:text/plain;base64,AA"}}, "file.file_id"),
        ({"type": "file", "file": {"file_data": "https://h/f.pdf"}}, "file.file_data"),
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_nothing_is_fetched(part: dict[str, Any], param: str, role: str) -> None:
    """Images and files come with their bytes, whoever shows them."""
    turn = {"role": role, "content": [part]} | ({"tool_call_id": "c"} if role == "tool" else {})
    with pytest.raises(Malformed) as caught:
        told(messages=[turn])
    assert f"messages.0.content.0.{param}" == caught.value.param


def test_bytes_go_on() -> None:
    """An image as a data URL."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    assert [part] == told(messages=[{"role": "user", "content": [part]}])["messages"][0]["content"]


def test_embeddings() -> None:
    """The encoding is ours to make."""
    body = json.dumps(
        {"model": "m", "input": ["a"], "dimensions": 4, "encoding_format": "base64", "user": "u"}
    ).encode()
    assert {"input": ["a"], "dimensions": 4, "user": "u"} == embedding_arguments(body)
    with pytest.raises(Malformed) as caught:
        embedding_arguments(b'{"model":"m","input":"a","api_key":"k"}')
    assert "api_key" == caught.value.param


def test_vectors_in_the_encoding_that_was_asked_for() -> None:
    """Numbers as they are, or their bytes; a vector that is encoded already stays so."""
    reply = {
        "object": "list",
        "model": "m",
        "data": [{"embedding": [1.0, -2.0], "index": 0}, {"embedding": "AAAA", "index": 1}],
    }
    body = json.dumps(reply).encode()
    assert body == floats_as_asked(body, b'{"encoding_format":"float"}')
    encoded = json.loads(floats_as_asked(body, b'{"encoding_format":"base64"}'))["data"]
    assert struct.pack("<2f", 1.0, -2.0) == base64.b64decode(encoded[0]["embedding"])
    assert "AAAA" == encoded[1]["embedding"]
    with pytest.raises(Malformed):
        floats_as_asked(b'{"data":[{"embedding":5}]}', b'{"encoding_format":"base64"}')

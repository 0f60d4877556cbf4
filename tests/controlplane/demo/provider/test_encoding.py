"""The bytes of answers, compared with what OpenAI sends: order of fields, layout, framing of events."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.controlplane.demo.fakes import RawClient, post, question

ID = re.compile(rb"chatcmpl-[0-9a-f]{29}")
CREATED = re.compile(rb'("created": ?)\d+')
ECHO: Any = {
    "type": "function",
    "function": {
        "name": "echo",
        "parameters": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
    },
}
EVENT = (
    'data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"gpt-4o-mini-2024-07-18","service_tier":"default",'
    '"system_fingerprint":"fp_bd5517ee56","choices":[%s]%s}\n\n'
)


def leveled(body: bytes) -> str:
    """A body with its id and its time made equal."""
    return CREATED.sub(rb"\g<1>0", ID.sub(b"ID", body)).decode()


async def answer(raw: RawClient, **fields: object) -> str:
    """The leveled body of an answer."""
    await raw.send(post(question("Say 2 words", **fields)))
    return leveled((await raw.answer())[2])


async def test_whole_answer_is_laid_out_like_openais(raw: RawClient) -> None:
    """A JSON answer has OpenAI's fields, in OpenAI's order, indented by two."""
    expected = """{
  "id": "ID",
  "object": "chat.completion",
  "created": 0,
  "model": "gpt-4o-mini-2024-07-18",
  "choices": [
    {
      "index": 0,
      "message": {
        "role": "assistant",
        "content": "TEXT",
        "refusal": null,
        "annotations": []
      },
      "logprobs": null,
      "finish_reason": "stop"
    }
  ],
  "usage": {
    "prompt_tokens": 11,
    "completion_tokens": 2,
    "total_tokens": 13,
    "prompt_tokens_details": {
      "cached_tokens": 0,
      "audio_tokens": 0
    },
    "completion_tokens_details": {
      "reasoning_tokens": 0,
      "audio_tokens": 0,
      "accepted_prediction_tokens": 0,
      "rejected_prediction_tokens": 0
    }
  },
  "service_tier": "default",
  "system_fingerprint": "fp_bd5517ee56"
}
"""
    got = await answer(raw)
    assert expected == re.sub(r'"content": "[^"]*"', '"content": "TEXT"', got)


@pytest.mark.parametrize("with_usage", [True, False])
async def test_stream_is_framed_like_openais(raw: RawClient, *, with_usage: bool) -> None:
    """A stream is exactly: the role, a token each, the finish reason, the usage where it was asked for, [DONE]."""
    fields: dict[str, object] = {"stream_options": {"include_usage": True}} if with_usage else {}
    text = json.loads(await answer(raw))["choices"][0]["message"]["content"]
    first, rest = text.split(" ")
    other = ',"usage":null' if with_usage else ""
    choice = '{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}'
    expected = EVENT % (choice % ('{"role":"assistant","content":"","refusal":null}', "null"), other)
    expected += EVENT % (choice % (f'{{"content":"{first}"}}', "null"), other)
    expected += EVENT % (choice % (f'{{"content":" {rest}"}}', "null"), other)
    expected += EVENT % (choice % ("{}", '"stop"'), other)
    if with_usage:
        usage = (
            ',"usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":0,'
            '"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,'
            '"rejected_prediction_tokens":0}}'
        )
        expected += EVENT % ("", usage)
    assert expected + "data: [DONE]\n\n" == await answer(raw, stream=True, **fields)


async def test_tool_call_is_streamed_like_openais(raw: RawClient) -> None:
    """One tool call opens with its id and name beside the role, then come pieces of its arguments, then the reason."""
    got = await answer(raw, stream=True, tools=[ECHO], tool_choice="required")
    got = re.sub(r"call_[A-Za-z0-9]{24}", "CALL", got)
    choice = '{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}'
    opened = '{"index":0,"id":"CALL","type":"function","function":{"name":"echo","arguments":""}}'
    expected = EVENT % (
        choice % (f'{{"role":"assistant","content":null,"tool_calls":[{opened}],"refusal":null}}', "null"),
        "",
    )
    for piece in (r"{\"", "a", r"\":", "1", "}"):
        delta = f'{{"tool_calls":[{{"index":0,"function":{{"arguments":"{piece}"}}}}]}}'
        expected += EVENT % (choice % (delta, "null"), "")
    expected += EVENT % (choice % ("{}", '"tool_calls"'), "")
    assert expected + "data: [DONE]\n\n" == got


async def test_two_tool_calls_are_told_apart(raw: RawClient) -> None:
    """Parallel calls follow each other with their own index, after a first event with the role alone."""
    tools = [ECHO, {**ECHO, "function": {**ECHO["function"], "name": "reverse"}}]
    await raw.send(post(question("please echo and reverse this", tools=tools, stream=True)))
    events = [json.loads(event[6:]) for event in (await raw.answer())[2].split(b"\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert {"role": "assistant", "content": None, "refusal": None} == deltas[0]
    opened = [call for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]
    assert [(0, "echo"), (1, "reverse")] == [(call["index"], call["function"]["name"]) for call in opened]
    await raw.send(post(question("please echo and reverse this", tools=tools, parallel_tool_calls=False)))
    assert len(json.loads((await raw.answer())[2])["choices"][0]["message"]["tool_calls"]) == 1


async def test_obfuscation_on_request(raw: RawClient) -> None:
    """Padding is added to every event when a client asks for it."""
    got = await answer(raw, stream=True, stream_options={"include_obfuscation": True})
    events = got.split("\n\n")[:-2]
    assert len(events) == sum('"obfuscation":"' in event for event in events)


async def test_each_answer_has_its_own_id(raw: RawClient) -> None:
    """A repeated prompt gets the same words under a new id."""
    seen = set()
    for _ in range(5):
        await raw.send(post(question()))
        _, headers, body = await raw.answer()
        seen.add((json.loads(body)["id"], headers["x-request-id"]))
    assert len(seen) == 5
    assert len({first for first, _ in seen}) == 5


async def test_headers_are_openais_in_their_order(raw: RawClient) -> None:
    """The headers of an answer, in the order in which they are sent."""
    await raw.send(post(question()))
    _, headers, _ = await raw.answer()
    expected = [
        "date", "content-type", "connection", "access-control-expose-headers", "openai-organization", "openai-processing-ms",
        "openai-version", "x-ratelimit-limit-requests", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-request-id", "content-length",
    ]  # fmt: skip
    assert expected == list(headers)
    assert headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert headers["openai-version"] == "2020-10-01"


async def test_embeddings_are_laid_out_like_openais(raw: RawClient) -> None:
    """An answer with embeddings has OpenAI's fields in OpenAI's order."""
    body = {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 2}
    await raw.send(post(body, path="/v1/embeddings"))
    got = re.sub(r"-?\d+\.\d+(?:e-\d+)?", "X", (await raw.answer())[2].decode())
    item = '    {\n      "object": "embedding",\n      "index": %d,\n      "embedding": [\n        X,\n        X\n      ]\n    }'
    expected = f"""{{
  "object": "list",
  "data": [
{item % 0},
{item % 1}
  ],
  "model": "text-embedding-3-small",
  "usage": {{
    "prompt_tokens": 2,
    "total_tokens": 2
  }}
}}
"""
    assert expected == got

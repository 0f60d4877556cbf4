"""The official SDK, pointed at the proxy and otherwise unchanged."""

from __future__ import annotations

import base64
import json

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
QUESTION = [{"role": "user", "content": "Name three uses of a hammer."}]


def test_a_call_succeeds_unchanged(calm: World) -> None:
    """A plain call through the proxy gives a typed completion with usage."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_gives_the_same_text_as_the_plain_call(calm: World) -> None:
    """A stream's deltas add up to the text of the plain answer."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        plain = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)  # type: ignore[arg-type]
        stream = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert plain.choices[0].message.content == text


def test_a_stream_without_the_option_shows_no_usage(calm: World) -> None:
    """Usage that the proxy asked for is hidden from a client that did not."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        chunks = list(client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True))  # type: ignore[arg-type]
    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert all(chunk.choices for chunk in chunks)


async def test_async_calls_and_streams_succeed(calm: World) -> None:
    """The asynchronous client works the same, streaming with usage included."""
    async with AsyncOpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)  # type: ignore[arg-type]
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    usage = chunks[-1].usage
    assert usage is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == usage.completion_tokens


def test_tools_and_structured_answers_pass_through(calm: World) -> None:
    """Tool calls carry valid arguments and a json_schema answer parses."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        called = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Weather in Porto?"}], tools=[tool],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
        )  # fmt: skip
        shaped = client.chat.completions.create(
            model="gpt-4o-mini", messages=QUESTION,  # type: ignore[arg-type]
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        )  # fmt: skip
    calls = called.choices[0].message.tool_calls
    assert calls
    assert set(json.loads(calls[0].function.arguments)) == {"city"}  # type: ignore[union-attr]
    assert set(json.loads(shaped.choices[0].message.content or "")) == {"answer"}


def test_embeddings_have_unit_norm(calm: World) -> None:
    """Embeddings arrive as vectors, whatever encoding the SDK asked for."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        answer = client.embeddings.create(model="text-embedding-3-small", input=["a hammer", "a nail"])
        encoded = client.embeddings.create(model="text-embedding-3-small", input="a hammer", encoding_format="base64")
    assert len(answer.data) == 2
    vector = encoded.data[0].embedding
    floats = np.frombuffer(base64.b64decode(vector), dtype="<f4") if isinstance(vector, str) else np.asarray(vector)
    assert float(np.linalg.norm(floats)) == pytest.approx(1.0, abs=1e-3)


def test_the_models_page_lists_the_aliases(calm: World) -> None:
    """`models.list` shows what this key may call."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        names = {model.id for model in client.models.list()}
    assert names == {"gpt-4o-mini", "text-embedding-3-small"}


@pytest.mark.parametrize(
    ("key", "model", "error", "code"),
    [
        ("sk-heph-wrong", "gpt-4o-mini", openai.AuthenticationError, "denied"),
        ("", "no-such-model", openai.NotFoundError, "no_route"),
    ],
)
def test_refusals_become_the_sdk_s_own_errors(
    calm: World, key: str, model: str, error: type[openai.APIStatusError], code: str
) -> None:
    """A refusal has the shape that the SDK maps to its typed errors, with our stable code."""
    with (
        OpenAI(base_url=calm.base_url, api_key=key or calm.key(), max_retries=0) as client,
        pytest.raises(error) as refused,
    ):
        client.chat.completions.create(model=model, messages=QUESTION)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert refused.value.response.headers["x-heph-error-source"] in {"gateway", "client"}


def test_every_call_becomes_a_row_with_its_cost(calm: World) -> None:
    """A call's row carries the cost that its response header said."""
    with OpenAI(base_url=calm.base_url, api_key=calm.key()) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "A question asked only here."}]
        )
    call_id, cost = raw.headers["x-heph-call-id"], raw.headers["x-heph-cost-usd"]
    rows = eventually(
        lambda: calm.sql(f"SELECT toString(cost_usd) AS cost FROM calls WHERE call_id = '{call_id}'"), what="the row"
    )
    assert [float(cost)] == [float(str(row["cost"])) for row in rows]
    assert float(cost) > 0

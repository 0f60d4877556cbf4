"""Legacy completions as the official client sees them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import tiktoken
from openai.types import Completion

from tests.controlplane.demo.fakes import RawClient, post
from tests.controlplane.demo.provider.vendor_types import strictly

MODEL = "gpt-3.5-turbo-instruct"


def count(text: str) -> int:
    """Tokens of a text by the real tokenizer."""
    return len(tiktoken.get_encoding("cl100k_base").encode_ordinary(text))


async def test_tokens_are_exact_and_sixteen_by_default(client: openai.AsyncOpenAI) -> None:
    """A prompt costs its own tokens alone; without a ceiling an answer has sixteen."""
    made = await client.completions.create(model=MODEL, prompt="Once upon a time")
    assert made.usage is not None
    assert (count("Once upon a time"), 16) == (made.usage.prompt_tokens, made.usage.completion_tokens)
    assert ("length", 16) == (made.choices[0].finish_reason, count(made.choices[0].text))


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2}, {"prompt": ["a story", "a song"]}, {"echo": True}, {"prompt": [9906, 1917]}]
)
async def test_stream_says_what_the_answer_says(client: openai.AsyncOpenAI, fields: dict[str, Any]) -> None:
    """A stream carries the same texts, reasons and usage."""
    asked: Any = {"model": MODEL, "prompt": "Tell me about gardens.", "max_tokens": 300} | fields
    whole = await client.completions.create(**asked)
    texts = [""] * len(whole.choices)
    reasons: dict[int, str] = {}
    usage = None
    stream: Any = await client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    async for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert [choice.text for choice in whole.choices] == texts
    assert {choice.index: choice.finish_reason for choice in whole.choices} == reasons
    assert whole.usage == usage


async def test_answers_parse_into_the_vendors_type(raw: RawClient) -> None:
    """An answer has the fields of the SDK's type and no others."""
    await raw.send(post({"model": MODEL, "prompt": "Hi"}, path="/v1/completions"))
    strictly(Completion, json.loads((await raw.answer())[2]))


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "gpt-4o"}, 404, "chat model"),
        ({"prompt": None}, 400, "Missing required parameter: 'prompt'"),
        ({"max_tokens": 5_000}, 400, "maximum context length is 4096"),
        ({"nonsense": 1}, 400, "Unknown parameter"),
    ],
)
async def test_mistakes_are_told(raw: RawClient, fields: dict[str, Any], status: int, words: str) -> None:
    """Each mistake has OpenAI's status and words."""
    await raw.send(post({"model": MODEL, "prompt": "Hi"} | fields, path="/v1/completions"))
    got, _, body = await raw.answer()
    assert status == got
    assert words in json.loads(body)["error"]["message"]

"""Prompt tokens, the provider's prompt cache and what decides an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.demo.provider.composition import PromptCache, compose, count_prompt
from controlplane.demo.provider.models import MODELS
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import ChatRequest, read
from controlplane.demo.provider.tokens import Tokenizer

MODEL = MODELS["gpt-4o"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer of the newer models."""
    return Tokenizer("o200k_base")


def asked(messages: list[dict[str, Any]], **fields: object) -> ChatRequest:
    """A request as it comes off the wire."""
    return read(json.dumps({"model": "gpt-4o", "messages": messages} | fields).encode(), ChatRequest)


def test_prompt_tokens_of_the_published_example(tokenizer: Tokenizer) -> None:
    """The cookbook's example conversation counts 124 tokens with gpt-4o, as the API does."""
    lines = [
        ("system", "", "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."),
        ("system", "example_user", "New synergies will help drive top-line growth."),
        ("system", "example_assistant", "Things working well together will increase revenue."),
        ("system", "example_user", "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."),
        ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
        ("user", "", "This late pivot means we don't have time to boil the ocean for the client deliverable."),
    ]  # fmt: skip
    messages = [{"role": role, "content": text} | ({"name": name} if name else {}) for role, name, text in lines]
    assert count_prompt(asked(messages), tokenizer) == 124


def test_prompt_tokens_of_the_published_example_with_a_tool(tokenizer: Tokenizer) -> None:
    """The cookbook's example with a function counts 101 tokens with gpt-4o, as the API does."""
    unit = {"type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"]}
    location = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
    tool = {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {"location": location, "unit": unit},
                "required": ["location"],
            },
        },
    }
    messages = [
        {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    assert count_prompt(asked(messages, tools=[tool]), tokenizer) == 101


@pytest.mark.parametrize(("detail", "tokens"), [("low", 85), ("high", 765), ("auto", 765)])
def test_prompt_tokens_of_a_picture(tokenizer: Tokenizer, detail: str, tokens: int) -> None:
    """A picture adds its tokens to those of the text."""
    text = {"type": "text", "text": "what is this?"}
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": detail}}
    bare = count_prompt(asked([{"role": "user", "content": [text]}]), tokenizer)
    assert tokens == count_prompt(asked([{"role": "user", "content": [text, picture]}]), tokenizer) - bare


@given(tokens=st.lists(st.integers(0, 50_000), min_size=0, max_size=2000), extra=st.integers(0, 400))
def test_prompt_cache_knows_prefixes(tokens: list[int], extra: int) -> None:
    """What is cached is a known prefix of at least 1024 tokens in whole steps of 128, and never more than the prompt."""
    cache = PromptCache()
    assert cache.read(tokens) == 0
    cached = cache.read(tokens + [7] * extra)
    if len(tokens) < 1024:
        assert cached == 0 or tokens[: len(tokens)] == (tokens + [7] * extra)[: len(tokens)]
    else:
        assert cached % 128 == 0
        assert len(tokens) - 128 < cached <= len(tokens)
    assert cache.read([50_001, *tokens]) == 0


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"stream": True}, True),
        ({"temperature": 1.5}, True),
        ({"user": "somebody"}, True),
        ({"n": 2}, True),
        ({"messages": [{"role": "user", "content": "another question"}]}, False),
        ({"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a question"}]}, False),
    ],
)
def test_what_decides_the_words(tokenizer: Tokenizer, changed: dict[str, Any], *, same: bool) -> None:
    """The conversation decides the words of the first choice; the way of delivery and the sampling do not."""
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "a question"}]}
    texts = [
        compose(asked(**(base | fields)), MODEL, tokenizer, seed=0, prompts=PromptCache()).choices[0].text
        for fields in ({}, changed)
    ]
    assert same == (texts[0] == texts[1])


@given(words=st.integers(1, 60), ceiling=st.integers(1, 80), choices=st.integers(1, 3))
def test_tokens_never_exceed_the_ceiling_and_add_up(
    tokenizer: Tokenizer, words: int, ceiling: int, choices: int
) -> None:
    """Each choice keeps to the ceiling, and the usage is the sum of the choices."""
    request = asked([{"role": "user", "content": f"Write {words} words"}], max_tokens=ceiling, n=choices)
    made = compose(request, MODEL, tokenizer, seed=0, prompts=PromptCache())
    assert made.usage.completion == sum(choice.completion_tokens for choice in made.choices)
    for choice in made.choices:
        assert choice.completion_tokens <= ceiling
        assert ("length" == choice.finish_reason) == (
            choice.completion_tokens == ceiling
        ) or choice.completion_tokens == ceiling


@pytest.mark.parametrize(("words", "expected"), [(1, 1), (7, 7), (500, 500)])
def test_asked_number_of_words(tokenizer: Tokenizer, words: int, expected: int) -> None:
    """A prompt that asks for so many words gets as many."""
    request = asked([{"role": "user", "content": f"Write about the sea in {words} words."}])
    text = compose(request, MODEL, tokenizer, seed=0, prompts=PromptCache()).choices[0].text
    assert expected == len((text or "").split(" "))


def test_too_long_prompt(tokenizer: Tokenizer) -> None:
    """A prompt beyond the context is refused with its length."""
    request = asked([{"role": "user", "content": "word " * 9_000}])
    with pytest.raises(Problem) as problem:
        compose(request, MODELS["gpt-4"], tokenizer, seed=0, prompts=PromptCache())
    assert (400, "context_length_exceeded", "messages") == (
        problem.value.status,
        problem.value.code,
        problem.value.param,
    )
    assert "8192 tokens" in problem.value.message


def test_too_high_ceiling(tokenizer: Tokenizer) -> None:
    """A ceiling beyond the model's is refused under the name that was used."""
    with pytest.raises(Problem) as problem:
        compose(
            asked([{"role": "user", "content": "a"}], max_tokens=99_999),
            MODEL,
            tokenizer,
            seed=0,
            prompts=PromptCache(),
        )
    assert ("max_tokens", "invalid_value") == (problem.value.param, problem.value.code)

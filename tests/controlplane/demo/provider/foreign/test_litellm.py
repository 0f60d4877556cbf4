"""The foreign protocols as litellm's own clients see them: the same suite for all of them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Provider

ASK: Any = [{"role": "user", "content": "How do I reset my password?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}


@dataclass(frozen=True)
class Spoken:
    """How litellm is told to speak one of them."""

    model: str
    path: str  # behind the host
    options: dict[str, str]
    filtered: str  # the finish reason of a filtered answer in litellm's words


SPOKEN = {
    "azure": Spoken("azure/gpt-4o-mini", "", {"api_version": "2024-10-21"}, "content_filter"),
    "ollama": Spoken("ollama_chat/llama3.1", "", {}, "content_filter"),
    "gemini": Spoken("gemini/gemini-2.5-flash", "/v1beta", {}, "content_filter"),
    "bedrock": Spoken(
        "bedrock/converse/anthropic.claude-3-5-sonnet-20240620-v1:0",
        "",
        {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret", "aws_region_name": "us-east-1"},
        "content_filter",
    ),
}


@pytest.fixture
def litellm() -> Iterator[Any]:
    """The library, which warns of itself."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads its price table when it is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm  # noqa: PLC0415 - it takes seconds

        yield litellm


@pytest.fixture(params=SPOKEN)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    """Each of them."""
    return SPOKEN[request.param]


def arguments(provider: Provider, spoken: Spoken, **more: Any) -> dict[str, Any]:
    """What litellm is called with."""
    base = {
        "model": spoken.model,
        "api_base": f"http://127.0.0.1:{provider.port}{spoken.path}",
        "messages": ASK,
        "num_retries": 0,
        "max_retries": 0,
        "timeout": 10,
        "_skip_mcp_handler": True,  # needs a package that litellm does not bring
    }
    if "aws_access_key_id" not in spoken.options:
        base["api_key"] = "sk-test"
    return base | spoken.options | more


async def test_answer_and_stream_say_the_same(litellm: Any, provider: Provider, spoken: Spoken) -> None:
    """A call and a stream have the same text, the same reason and the same usage, which is the one billed."""
    whole = await litellm.acompletion(**arguments(provider, spoken))
    text, reason, usage = "", "", None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await litellm.acompletion(**arguments(provider, spoken, **options)):
        usage = getattr(chunk, "usage", None) or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
    assert whole.choices[0].message.content == text != ""
    assert ("stop", "stop") == (whole.choices[0].finish_reason, reason)
    assert usage is not None
    (counts,) = provider.upstreams[0].stats.by_model.values()
    assert (2, 2 * usage.prompt_tokens, 2 * usage.completion_tokens) == (
        counts.completed,
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_and_answered(
    litellm: Any,
    provider: Provider,
    spoken: Spoken,
    stream: bool,
) -> None:
    """A prompt that names a tool gets its call, and the result of the call gets a text."""
    messages: Any = [{"role": "user", "content": "Please get the weather in Paris"}]
    made = await litellm.acompletion(**arguments(provider, spoken, messages=messages, tools=[WEATHER], stream=stream))
    if stream:
        made = litellm.stream_chunk_builder([chunk async for chunk in made], messages=messages)
    message = made.choices[0].message
    call = message.tool_calls[0]
    assert ("tool_calls", "get_weather") == (made.choices[0].finish_reason, call.function.name)
    assert json.loads(call.function.arguments)["unit"] in ("c", "f")
    messages += [
        message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "21"},
    ]
    answer = await litellm.acompletion(**arguments(provider, spoken, messages=messages, tools=[WEATHER]))
    assert answer.choices[0].message.content


async def test_a_ceiling_cuts_the_answer(litellm: Any, provider: Provider, spoken: Spoken) -> None:
    """An answer ends at its ceiling, and says so."""
    made = await litellm.acompletion(**arguments(provider, spoken, max_tokens=5))
    assert ("length", 5) == (made.choices[0].finish_reason, made.usage.completion_tokens)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Fault(FaultKind.OUTAGE_503), ("ServiceUnavailableError", "APIConnectionError")),
        (Fault(FaultKind.RATE_LIMITED), ("RateLimitError", "APIConnectionError")),
        (
            Fault(FaultKind.REVOKED_KEY),
            ("AuthenticationError", "BadRequestError", "PermissionDeniedError", "APIConnectionError"),
        ),
        (
            Fault(FaultKind.OUTAGE_500),
            ("InternalServerError", "ServiceUnavailableError", "APIError", "APIConnectionError"),
        ),
        (Fault(FaultKind.RESET), ("InternalServerError", "APIConnectionError", "ServiceUnavailableError")),
    ],
)
async def test_faults_are_errors_of_the_client(
    litellm: Any, provider: Provider, spoken: Spoken, fault: Fault, raised: tuple[str, ...]
) -> None:
    """Each fault is one of the client's own errors."""
    provider.faults.add(fault)
    with pytest.raises(Exception) as caught:
        await litellm.acompletion(**arguments(provider, spoken))
    assert type(caught.value).__name__ in raised


@pytest.mark.parametrize("stream", [False, True])
async def test_wrong_usage_is_told_and_the_truth_billed(
    litellm: Any,
    provider: Provider,
    spoken: Spoken,
    stream: bool,
) -> None:
    """Ten times the tokens are told, once the tokens are billed."""
    provider.faults.add(Fault(FaultKind.WRONG_USAGE))
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    made = await litellm.acompletion(**arguments(provider, spoken, **options))
    if stream:
        made = [chunk async for chunk in made if getattr(chunk, "usage", None)][-1]
    (counts,) = provider.upstreams[0].stats.by_model.values()
    assert (10 * counts.prompt_tokens, 10 * counts.completion_tokens) == (
        made.usage.prompt_tokens,
        made.usage.completion_tokens,
    )


async def test_filtered_answers_say_so(litellm: Any, provider: Provider, spoken: Spoken) -> None:
    """An answer that a filter stopped has its own finish reason."""
    provider.faults.add(Fault(FaultKind.CONTENT_FILTERED))
    made = await litellm.acompletion(**arguments(provider, spoken))
    assert spoken.filtered == made.choices[0].finish_reason


async def test_embeddings(litellm: Any, provider: Provider) -> None:
    """Vectors have their order and their tokens, in each protocol that has them."""
    for model, path, options in (
        ("azure/text-embedding-3-small", "", {"api_version": "2024-10-21"}),
        ("ollama/nomic-embed-text", "", {}),
        ("gemini/gemini-embedding-001", "/v1beta", {}),
    ):
        base = f"http://127.0.0.1:{provider.port}{path}"
        made = await litellm.aembedding(model=model, input=["a", "b"], api_base=base, api_key="sk-test", **options)
        assert 2 == len(made.data)
        assert made.data[0]["embedding"] != made.data[1]["embedding"]

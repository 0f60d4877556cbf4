"""Anthropic's own client for Python."""

from __future__ import annotations

from typing import Any  # the SDK's typed dictionaries accept plain ones

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from tests.clients.shows import shows
from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
QUESTION: Any = [{"role": "user", "content": "Name three uses of a hammer."}]
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CLAUDE = "claude-sonnet-4-6"


def root(gateway: World) -> str:
    """The base URL as this SDK wants it: without `/v1`."""
    return gateway.base_url.removesuffix("/v1")


@pytest.fixture
def client(gateway: World) -> Anthropic:
    """The client, as the documentation says."""
    return Anthropic(base_url=root(gateway), api_key=gateway.key(), max_retries=0)


@shows("Anthropic, Python", "plain", "stream")
def test_the_stream_says_what_the_whole_answer_says(client: Anthropic) -> None:
    """Content, stop reason and output tokens are the same, streamed or not."""
    whole = client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
    with client.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as stream:
        streamed = stream.get_final_message()
    assert [block.to_dict() for block in whole.content] == [
        {key: value for key, value in block.to_dict().items() if key != "parsed_output"} for block in streamed.content
    ]
    assert (whole.stop_reason, whole.usage.output_tokens) == (streamed.stop_reason, streamed.usage.output_tokens)


@shows("Anthropic, Python", "async")
async def test_the_asynchronous_client(gateway: World) -> None:
    """Calls and streams work asynchronously, and a bearer token is a key too."""
    async with AsyncAnthropic(base_url=root(gateway), auth_token=gateway.key(), api_key=None) as client:
        whole = await client.messages.create(model=CLAUDE, max_tokens=50, messages=QUESTION)
        async with client.messages.stream(model=CLAUDE, max_tokens=50, messages=QUESTION) as stream:
            text = "".join([part async for part in stream.text_stream])
    assert [text] == [block.text for block in whole.content if block.type == "text"]


@shows("Anthropic, Python", "tools")
def test_tools(client: Anthropic) -> None:
    """A tool is used with an input, the same streamed or not, and its result is answered."""
    messages: Any = [{"role": "user", "content": "Use the weather tool for Paris."}]
    asked: Any = {"model": CLAUDE, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "any"}}
    whole = client.messages.create(**asked, messages=messages)
    with client.messages.stream(**asked, messages=messages) as stream:
        streamed = stream.get_final_message()
    (use,) = [block for block in whole.content if block.type == "tool_use"]
    (other,) = [block for block in streamed.content if block.type == "tool_use"]
    assert ("weather", use.input) == (other.name, other.input)
    messages += [
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
    ]
    answer = client.messages.create(model=CLAUDE, max_tokens=2_000, tools=[TOOL], messages=messages)
    assert "end_turn" == answer.stop_reason


@shows("Anthropic, Python", "images", "usage")
def test_thinking_images_and_the_prompt_cache(client: Anthropic) -> None:
    """Thinking comes signed, images are read, and what the provider wrote to its prompt cache it reads the next time."""
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    answer = client.messages.create(
        model=CLAUDE,
        max_tokens=2_000,
        thinking={"type": "enabled", "budget_tokens": 1_024},
        messages=[{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}],
    )
    thoughts = [block for block in answer.content if block.type == "thinking"]
    assert [True] == [bool(block.signature) for block in thoughts]
    system: Any = [{"type": "text", "text": "You are a hammer. " * 600, "cache_control": {"type": "ephemeral"}}]
    first, second = (
        client.messages.create(model=CLAUDE, max_tokens=20, system=system, messages=QUESTION).usage for _ in range(2)
    )
    assert 1_024 < (first.cache_creation_input_tokens or 0) == second.cache_read_input_tokens
    assert (0, first.input_tokens) == (second.cache_creation_input_tokens, second.input_tokens)


@shows("Anthropic, Python", "usage", "models")
def test_counting_and_models(client: Anthropic) -> None:
    """Tokens are counted as they are billed, and the list of models is in this protocol's shape."""
    counted = client.messages.count_tokens(model=CLAUDE, messages=QUESTION).input_tokens
    assert counted == client.messages.create(model=CLAUDE, max_tokens=10, messages=QUESTION).usage.input_tokens
    assert CLAUDE in {model.id for model in client.models.list()}
    assert CLAUDE == client.models.retrieve(CLAUDE).id


@shows("Anthropic, Python", "errors")
def test_errors_are_its_own_exceptions(gateway: World, client: Anthropic) -> None:
    """Who may not, what is not there and what makes no sense are the exceptions that programs catch, in this protocol's shape."""
    with pytest.raises(anthropic.AuthenticationError):
        Anthropic(base_url=root(gateway), api_key="sk-heph-nobody").messages.create(
            model=CLAUDE, max_tokens=10, messages=QUESTION
        )
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-nothing", max_tokens=10, messages=QUESTION)
    body: Any = missing.value.body
    assert ("error", "not_found_error") == (body["type"], body["error"]["type"])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=CLAUDE, max_tokens=-1, messages=QUESTION)


@shows("Anthropic, Python", "retries", "time-outs")
def test_its_retries_and_time_outs(gateway: World) -> None:
    """Over a limit its own retries wait as long as they are told, with this protocol's headers; its time-out is its own exception."""
    asked: Any = {"model": CLAUDE, "max_tokens": 10, "messages": QUESTION}
    patient = Anthropic(base_url=root(gateway), api_key=gateway.key("brisk-too"), max_retries=3)
    assert any(patient.models.with_raw_response.list().retries_taken for _ in range(61))
    hasty = Anthropic(base_url=root(gateway), api_key=gateway.key("modest-too"), max_retries=0)
    with pytest.raises(anthropic.RateLimitError) as limited:
        [hasty.messages.create(**asked) for _ in range(6)]
    late = Anthropic(base_url=root(gateway), api_key=gateway.key(), max_retries=0, timeout=0.5)
    with pytest.raises(anthropic.APITimeoutError):
        late.messages.create(**{**asked, "model": "hanging"})
    headers = limited.value.response.headers
    assert ("true", True) == (headers["x-should-retry"], 0 < int(headers["retry-after"]) <= 60)
    assert "5" == headers["anthropic-ratelimit-requests-limit"]


@shows("Anthropic, Python", "cross")
def test_a_model_of_openai(client: Anthropic) -> None:
    """A model of OpenAI's answers this client: plain, streamed, with tools and with images."""
    whole = client.messages.create(model="gpt-4o-mini", max_tokens=100, messages=QUESTION)
    with client.messages.stream(model="gpt-4o-mini", max_tokens=100, messages=QUESTION) as stream:
        streamed = stream.get_final_message()
    texts = [[block.text for block in answer.content if block.type == "text"] for answer in (whole, streamed)]
    assert texts[0] == texts[1]
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    messages: Any = [{"role": "user", "content": "Use the weather tool for Paris."}]
    called = client.messages.create(
        model="gpt-4o-mini", max_tokens=100, messages=messages, tools=[TOOL], tool_choice={"type": "any"}
    )
    assert ("tool_use", ["weather"]) == (
        called.stop_reason,
        [block.name for block in called.content if block.type == "tool_use"],
    )


@shows("Anthropic, Python", "tools", "cross")
def test_its_tool_runner(client: Anthropic) -> None:
    """Its own loop calls a tool and comes to an answer, though neither model keeps the conversation that it would rather not send again."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        return f"sun in {city}"

    for model in (CLAUDE, "gpt-4o-mini"):
        messages: Any = [{"role": "user", "content": "Use the weather tool for Paris."}]
        runner = client.beta.messages.tool_runner(model=model, max_tokens=2_000, messages=messages, tools=[weather])
        assert ["tool_use", "end_turn"] == [answer.stop_reason for answer in runner]


class Hammer(BaseModel):
    """A hammer."""

    name: str
    weight_kg: float


@shows("Anthropic, Python", "structured")
def test_structured_answers(client: Anthropic) -> None:
    """Its helper gives objects of the asked type, whole and streamed, from a model of Anthropic's and from one of OpenAI's."""
    for model in (CLAUDE, "gpt-4o-mini"):
        asked: Any = {"model": model, "max_tokens": 1_000, "messages": QUESTION, "output_format": Hammer}
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message().parsed_output
        whole = client.messages.parse(**asked).parsed_output
        assert isinstance(whole, Hammer)
        assert whole == streamed


@shows("Anthropic, Python", "batches")
def test_batches(client: Anthropic, gateway: World) -> None:
    """A batch is made, done, read by the address that it names, booked at the price of batches, and deleted."""
    params: Any = {"model": "claude-haiku-4-5", "max_tokens": 60, "messages": QUESTION}
    made = client.messages.batches.create(requests=[{"custom_id": str(n), "params": params} for n in range(2)])
    assert "ended" == client.messages.batches.retrieve(made.id).processing_status
    results = [line.result for line in client.messages.batches.results(made.id)]
    assert made.id in [batch.id for batch in client.messages.batches.list(limit=1)]
    total = "tokens_input + tokens_cache_read + tokens_output AS total"
    query = f"SELECT {total}, cost_usd FROM calls WHERE operation = 'batch_usage' AND tags['heph-batch'] = '{made.id}'"
    (row,) = eventually(lambda: gateway.sql(query), what="the batch to be booked")
    usage = [result.message.usage for result in results if result.type == "succeeded"]
    cost = sum(one.input_tokens * 500 + one.output_tokens * 2_500 for one in usage)  # nano-USD
    assert 2 == len(usage)
    assert sum(one.input_tokens + one.output_tokens for one in usage) == int(str(row["total"]))
    assert cost == round(float(str(row["cost_usd"])) * 1e9)
    assert made.id == client.messages.batches.delete(made.id).id

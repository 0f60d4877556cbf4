"""Frameworks at the edges: models of the other protocol, images, state, errors and time-outs, as their users would see them."""

from __future__ import annotations

from typing import Any  # the frameworks' own types differ by version

import anthropic
import openai
import pytest
from pydantic import BaseModel, SecretStr

from tests.clients.shows import shows
from tests.e2e.processes import World

pytestmark = pytest.mark.e2e
QUESTION = "Name three uses of a hammer."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = f"data:image/png;base64,{PIXEL}"


class Hammer(BaseModel):
    """A hammer."""

    name: str
    weight_kg: float


def langchain_openai(gateway: World, model: str = "gpt-4o-mini", **more: Any) -> Any:
    """LangChain's client of OpenAI's."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - takes a second to import

    fields: Any = {"base_url": gateway.base_url, "api_key": SecretStr(gateway.key()), "max_retries": 0, **more}
    return ChatOpenAI(model=model, **fields)


def langchain_anthropic(gateway: World, model: str = "claude-sonnet-4-6", **more: Any) -> Any:
    """LangChain's client of Anthropic's."""
    from langchain_anthropic import ChatAnthropic  # noqa: PLC0415 - takes a second to import

    fields: Any = {"base_url": gateway.base_url.removesuffix("/v1"), "api_key": SecretStr(gateway.key())}
    return ChatAnthropic(model=model, max_retries=0, max_tokens=200, **fields, **more)


def picture(url: str = IMAGE) -> list[Any]:
    """A question about an image, as LangChain's messages have it for all providers."""
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


@shows("LangChain, OpenAI", "cross", "images", "state", "errors", "time-outs")
def test_langchain_with_openai(gateway: World) -> None:
    """A model of Anthropic's answers, images are read, responses continue each other, and failures are OpenAI's exceptions."""
    assert langchain_openai(gateway, "claude-sonnet-4-6", max_tokens=50).invoke(QUESTION).text
    assert langchain_openai(gateway).invoke(picture()).text
    stateful = langchain_openai(gateway, use_responses_api=True, use_previous_response_id=True)
    first = stateful.invoke(QUESTION)
    again = stateful.invoke([("user", QUESTION), first, ("user", "And a saw?")])
    assert again.response_metadata["id"].startswith("resp_")
    assert again.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
    with pytest.raises(openai.NotFoundError):
        langchain_openai(gateway, "gpt-nothing").invoke(QUESTION)
    with pytest.raises(openai.APITimeoutError):
        langchain_openai(gateway, "hanging", timeout=0.5).invoke(QUESTION)


@shows("LangChain, Anthropic", "cross", "images", "errors", "time-outs")
def test_langchain_with_anthropic(gateway: World) -> None:
    """A model of OpenAI's answers, images are read by both, and failures are Anthropic's exceptions."""
    for model in ("gpt-4o-mini", "claude-sonnet-4-6"):
        assert langchain_anthropic(gateway, model).invoke(picture()).text
    with pytest.raises(anthropic.NotFoundError):
        langchain_anthropic(gateway, "claude-nothing").invoke(QUESTION)
    with pytest.raises(anthropic.APITimeoutError):
        langchain_anthropic(gateway, "hanging", timeout=0.5).invoke(QUESTION)


@shows("LlamaIndex, OpenAI", "structured", "cross", "errors", "time-outs")
def test_llamaindex_with_openai(gateway: World) -> None:
    """A schema is kept, a model of Anthropic's answers under a name that it knows, and failures are OpenAI's exceptions."""
    from llama_index.core.llms import ChatMessage  # noqa: PLC0415 - takes seconds to import
    from llama_index.llms.openai import OpenAI  # noqa: PLC0415

    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(), "max_retries": 0}
    typed = OpenAI(model="gpt-4o-mini", **places).as_structured_llm(Hammer).complete("A hammer?")
    assert isinstance(typed.raw, Hammer)
    assert OpenAI(model="gpt-4.1", **places).chat([ChatMessage(role="user", content=QUESTION)]).message.content
    with pytest.raises(openai.AuthenticationError):
        OpenAI(model="gpt-4o-mini", **{**places, "api_key": "sk-heph-nobody"}).complete(QUESTION)
    with pytest.raises(openai.APITimeoutError):
        OpenAI(model="gpt-4", timeout=0.5, **places).chat([ChatMessage(role="user", content=QUESTION)])


@shows("LiteLLM, Python", "structured", "images", "usage", "state", "cross", "time-outs")
async def test_the_litellm_client(gateway: World) -> None:
    """Schemas, images, counts, responses that continue each other, and Anthropic's protocol for a model of OpenAI's."""
    import litellm  # noqa: PLC0415 - takes seconds to import

    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(), "num_retries": 0}
    asked: Any = [{"role": "user", "content": "A hammer?"}]
    typed: Any = await litellm.acompletion(model="openai/gpt-4o-mini", messages=asked, response_format=Hammer, **places)
    assert Hammer.model_validate_json(typed.choices[0].message.content)
    seen: Any = await litellm.acompletion(model="openai/gpt-4o-mini", messages=picture(), **places)
    assert seen.usage.total_tokens == seen.usage.prompt_tokens + seen.usage.completion_tokens > 0
    first: Any = await litellm.aresponses(model="openai/gpt-4o-mini", input=QUESTION, **places)
    again: Any = await litellm.aresponses(
        model="openai/gpt-4o-mini", input="And a saw?", previous_response_id=first.id, **places
    )
    assert again.usage.input_tokens > first.usage.input_tokens
    other: Any = await litellm.acompletion(model="openai/claude-sonnet-4-6", messages=asked, max_tokens=50, **places)
    assert other.choices[0].message.content
    native: Any = await litellm.anthropic_messages(
        model="anthropic/gpt-4o-mini",
        messages=asked,
        max_tokens=50,
        api_base=gateway.base_url.removesuffix("/v1"),
        api_key=gateway.key(),
    )
    assert native["content"][0]["text"]
    with pytest.raises(litellm.Timeout):
        await litellm.acompletion(model="openai/hanging", messages=asked, timeout=0.5, **places)


@shows("OpenAI Agents SDK", "state", "images", "usage", "errors")
async def test_the_agents_sdk(gateway: World) -> None:
    """Runs continue a response or a conversation that the provider keeps; images are read; a refusal is OpenAI's exception."""
    import agents  # noqa: PLC0415 - takes seconds to import

    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key(), max_retries=0) as client:
        agent = agents.Agent(name="plain", model=agents.OpenAIResponsesModel("gpt-4o-mini", client))
        first = await agents.Runner.run(agent, QUESTION)
        again = await agents.Runner.run(agent, "And a saw?", previous_response_id=first.last_response_id)
        assert again.context_wrapper.usage.input_tokens > first.context_wrapper.usage.input_tokens > 0
        session = agents.OpenAIConversationsSession(openai_client=client)
        for text in (QUESTION, "And a saw?"):
            await agents.Runner.run(agent, text, session=session)
        assert 4 == len(await session.get_items())
        parts: Any = [{"type": "input_image", "image_url": IMAGE}, {"type": "input_text", "text": "What is it?"}]
        assert (await agents.Runner.run(agent, [{"role": "user", "content": parts}])).final_output
        lost = agents.Agent(name="lost", model=agents.OpenAIResponsesModel("gpt-nothing", client))
        with pytest.raises(openai.NotFoundError):
            await agents.Runner.run(lost, QUESTION)


@pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")  # of its own types, once in a process
@shows("LiteLLM, Python", "plain", "stream", "tools")
def test_the_blocking_litellm_client(gateway: World) -> None:
    """Whole and streamed say the same, and a tool is called, without an event loop."""
    import litellm  # noqa: PLC0415 - takes seconds to import

    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(), "num_retries": 0}
    asked: Any = [{"role": "user", "content": QUESTION}]
    whole: Any = litellm.completion(model="openai/gpt-4o-mini", messages=asked, **places)
    stream: Any = litellm.completion(model="openai/gpt-4o-mini", messages=asked, stream=True, **places)
    assert whole.choices[0].message.content == "".join(part.choices[0].delta.content or "" for part in stream)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    called: Any = litellm.completion(
        model="openai/gpt-4o-mini", messages=asked, tools=tools, tool_choice="required", **places
    )
    assert ["weather"] == [call.function.name for call in called.choices[0].message.tool_calls]


@shows("OpenAI Agents SDK", "plain")
def test_the_blocking_agents_sdk(gateway: World) -> None:
    """A run without an event loop of the program's own."""
    import agents  # noqa: PLC0415 - takes seconds to import

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key(), max_retries=0)
    agent = agents.Agent(name="plain", model=agents.OpenAIResponsesModel("gpt-4o-mini", client))
    assert agents.Runner.run_sync(agent, QUESTION).final_output

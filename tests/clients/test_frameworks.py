"""Frameworks that agents are written in, each with a base URL and a key."""

from __future__ import annotations

from typing import Any  # the frameworks' own types differ by version

import httpx
import pytest
from pydantic import BaseModel, SecretStr

from tests.clients.shows import shows
from tests.e2e.processes import World

pytestmark = pytest.mark.e2e
QUESTION = "Name three uses of a hammer."


class Hammer(BaseModel):
    """A hammer."""

    name: str
    weight_kg: float


def weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


@shows("LangChain, OpenAI", "plain", "stream", "async", "tools", "structured", "embeddings", "usage")
async def test_langchain_with_openai(gateway: World) -> None:
    """Invoked, streamed, with tools, with a schema, and as embeddings."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings  # noqa: PLC0415 - takes a second to import

    key = SecretStr(gateway.key())
    model = ChatOpenAI(model="gpt-4o-mini", base_url=gateway.base_url, api_key=key, max_retries=0, stream_usage=True)
    whole = await model.ainvoke(QUESTION)
    parts = [part async for part in model.astream(QUESTION)]
    assert whole.text == "".join(part.text for part in parts)
    usage: Any = whole.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    called = model.bind_tools([weather], tool_choice="required").invoke("Use the weather tool for Paris.")
    calls: Any = called
    assert ["weather"] == [call["name"] for call in calls.tool_calls]
    assert isinstance(model.with_structured_output(Hammer).invoke("A hammer?"), Hammer)
    embeddings = OpenAIEmbeddings(
        check_embedding_ctx_length=False,  # else it fetches a tokenizer
        model="text-embedding-3-small",
        base_url=gateway.base_url,
        api_key=key,
        dimensions=64,
    )
    first, second = embeddings.embed_documents(["a", "b"])
    assert (64, False) == (len(first), first == second)


@shows("LangChain, Anthropic", "plain", "stream", "async", "tools", "structured", "usage")
async def test_langchain_with_anthropic(gateway: World) -> None:
    """Invoked, streamed, with tools and with a schema."""
    from langchain_anthropic import ChatAnthropic  # noqa: PLC0415 - takes a second to import

    model: Any = ChatAnthropic(  # type: ignore[call-arg]  # its fields have other names for type checkers
        model="claude-sonnet-4-6",
        base_url=gateway.base_url.removesuffix("/v1"),
        api_key=SecretStr(gateway.key()),
        max_retries=0,
        max_tokens=200,
    )
    whole = await model.ainvoke(QUESTION)
    parts = [part async for part in model.astream(QUESTION)]
    assert whole.text == "".join(part.text for part in parts)
    assert whole.usage_metadata["total_tokens"] > 0
    called = model.bind_tools([weather], tool_choice="any").invoke("Use the weather tool for Paris.")
    assert ["weather"] == [call["name"] for call in called.tool_calls]
    assert isinstance(model.with_structured_output(Hammer).invoke("A hammer?"), Hammer)


@shows("LlamaIndex, OpenAI", "plain", "stream", "async", "tools", "embeddings")
async def test_llamaindex(gateway: World) -> None:
    """Chats whole and streamed, a tool, and embeddings."""
    from llama_index.core.llms import ChatMessage  # noqa: PLC0415 - takes seconds to import
    from llama_index.core.tools import FunctionTool  # noqa: PLC0415
    from llama_index.embeddings.openai import (  # type: ignore[import-untyped]  # noqa: PLC0415  # it has no types
        OpenAIEmbedding,
    )
    from llama_index.llms.openai import OpenAI  # noqa: PLC0415

    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(), "max_retries": 0}
    model = OpenAI(model="gpt-4o-mini", **places)
    message = [ChatMessage(role="user", content=QUESTION)]
    whole = await model.achat(message)
    streamed = [part.delta or "" async for part in await model.astream_chat(message)]
    assert whole.message.content == "".join(streamed)
    tool = FunctionTool.from_defaults(weather)
    called = await model.achat_with_tools([tool], "Use the weather tool for Paris.", tool_required=True)
    assert ["weather"] == [call.tool_name for call in model.get_tool_calls_from_response(called)]
    vectors = OpenAIEmbedding(model="text-embedding-3-small", dimensions=64, **places).get_text_embedding_batch(
        ["a", "b"]
    )
    assert [64, 64] == [len(vector) for vector in vectors]


@shows("LiteLLM, Python", "plain", "stream", "async", "tools", "embeddings", "errors")
async def test_the_litellm_client(gateway: World) -> None:
    """As a client of a proxy: completions, streams, tools, embeddings, Anthropic's protocol, and its own exceptions."""
    import litellm  # noqa: PLC0415 - takes seconds to import

    messages: Any = [{"role": "user", "content": QUESTION}]
    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(), "num_retries": 0}
    whole: Any = await litellm.acompletion(model="openai/gpt-4o-mini", messages=messages, **places)
    stream: Any = await litellm.acompletion(model="openai/gpt-4o-mini", messages=messages, stream=True, **places)
    text = "".join([part.choices[0].delta.content or "" async for part in stream])
    assert whole.choices[0].message.content == text
    claude: Any = await litellm.acompletion(
        model="anthropic/claude-sonnet-4-6",
        messages=messages,
        max_tokens=50,
        api_base=gateway.base_url.removesuffix("/v1"),
        api_key=gateway.key(),
    )
    assert claude.choices[0].message.content
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    called: Any = await litellm.acompletion(
        model="openai/gpt-4o-mini", messages=messages, tools=[tool], tool_choice="required", **places
    )
    assert ["weather"] == [call.function.name for call in called.choices[0].message.tool_calls]
    vectors: Any = await litellm.aembedding(model="openai/text-embedding-3-small", input=["a", "b"], **places)
    assert 2 == len(vectors.data)
    with pytest.raises(litellm.BadRequestError):  # its own reading of a 404
        await litellm.acompletion(model="openai/gpt-nothing", messages=messages, **places)


@shows("OpenAI Agents SDK", "plain", "stream", "async", "tools", "structured", "cross")
async def test_the_agents_sdk(gateway: World) -> None:
    """An agent answers with a type, uses a tool and is streamed, over responses and over chat completions."""
    import agents  # noqa: PLC0415 - takes seconds to import
    from openai import AsyncOpenAI  # noqa: PLC0415

    agents.set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key(), max_retries=0) as client:
        for model in (
            agents.OpenAIResponsesModel("gpt-4o-mini", client),
            agents.OpenAIChatCompletionsModel("gpt-4o-mini", client),
            agents.OpenAIChatCompletionsModel("claude-sonnet-4-6", client),
        ):
            tool = agents.function_tool(weather)
            settings = agents.ModelSettings(tool_choice="required", max_tokens=300)
            user = agents.Agent(name="user", model=model, tools=[tool], model_settings=settings)
            used = await agents.Runner.run(user, "Use the weather tool for Paris.", max_turns=4)
            kinds = [item.type for item in used.new_items]
            assert {"tool_call_item", "tool_call_output_item", "message_output_item"} <= set(kinds)
            typed = agents.Agent(name="typed", model=model, output_type=Hammer)
            assert isinstance((await agents.Runner.run(typed, "A hammer?")).final_output, Hammer)
            plain = agents.Agent(name="plain", model=model)
            streamed = agents.Runner.run_streamed(plain, QUESTION)
            events = [event.type async for event in streamed.stream_events()]
            assert "raw_response_event" in events
            assert streamed.final_output


@shows("curl and plain HTTP", "plain", "stream", "errors")
def test_plain_http(gateway: World) -> None:
    """A request made by hand is answered, with or without `/v1`, and a wrong one is told what to do."""
    headers = {"authorization": f"Bearer {gateway.key()}"}
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": QUESTION}]}
    for url in (gateway.base_url, gateway.base_url.removesuffix("/v1")):
        answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30)
        assert 200 == answer.status_code
        with httpx.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}, headers=headers) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert ("data: {", "data: [DONE]") == (lines[0][:7], lines[-1])
    wrong = httpx.post(f"{gateway.base_url}/chat/completions", content=b"{", headers=headers, timeout=30)
    assert (400, "malformed") == (wrong.status_code, wrong.json()["error"]["code"])

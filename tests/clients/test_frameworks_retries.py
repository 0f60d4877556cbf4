"""Frameworks whose calls come too fast: their own retries come back when they were told to, and the program never notices."""

from __future__ import annotations

import time
from typing import Any  # the frameworks' own types differ by version

import httpx
import openai
import pytest
from pydantic import SecretStr

from tests.clients.shows import shows
from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
TENANT = "brisk-frameworks"
QUESTION = "Name three uses of a hammer."


def used_up(gateway: World) -> int:
    """Leaves the tenant nothing of its rate; the moment."""
    headers = {"authorization": f"Bearer {gateway.key(TENANT)}"}
    with httpx.Client(headers=headers, timeout=30) as client:
        while client.get(f"{gateway.base_url}/models").status_code == 200:
            pass
    return time.time_ns() // 1000


def assert_it_came_again(gateway: World, since_us: int) -> None:
    """Of the calls for an answer the first was refused, and the last one served."""
    after = f"operation != 'models' AND toUnixTimestamp64Micro(started) >= {since_us}"
    query = f"SELECT outcome FROM calls WHERE tenant = '{TENANT}' AND {after} ORDER BY started"
    outcomes = [row["outcome"] for row in eventually(lambda: served(gateway.sql(query)), what="the records")]
    assert ("rate_limited", "ok") == (outcomes[0], outcomes[-1])


def served(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows, when one of them is that of an answer."""
    return rows if any(row["outcome"] == "ok" for row in rows) else []


@shows("LangChain, OpenAI", "retries")
def test_langchain_with_openai(gateway: World) -> None:
    """As OpenAI's client, which it is."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - takes a second to import

    key = SecretStr(gateway.key(TENANT))
    model = ChatOpenAI(model="gpt-4o-mini", base_url=gateway.base_url, api_key=key, max_retries=4)
    since_us = used_up(gateway)
    assert model.invoke(QUESTION).text
    assert_it_came_again(gateway, since_us)


@shows("LangChain, Anthropic", "retries")
def test_langchain_with_anthropic(gateway: World) -> None:
    """As Anthropic's client, which it is."""
    from langchain_anthropic import ChatAnthropic  # noqa: PLC0415 - takes a second to import

    fields: Any = {"model": "claude-sonnet-4-6", "max_tokens": 50, "max_retries": 4}
    places: Any = {"base_url": gateway.base_url.removesuffix("/v1"), "api_key": SecretStr(gateway.key(TENANT))}
    model = ChatAnthropic(**fields, **places)
    since_us = used_up(gateway)
    assert model.invoke(QUESTION).text
    assert_it_came_again(gateway, since_us)


@shows("LlamaIndex, OpenAI", "retries")
def test_llamaindex(gateway: World) -> None:
    """By its own pauses."""
    from llama_index.core.llms import ChatMessage  # noqa: PLC0415 - takes seconds to import
    from llama_index.llms.openai import OpenAI  # noqa: PLC0415

    model = OpenAI(model="gpt-4o-mini", api_base=gateway.base_url, api_key=gateway.key(TENANT), max_retries=6)
    since_us = used_up(gateway)
    assert model.chat([ChatMessage(role="user", content=QUESTION)]).message.content
    assert_it_came_again(gateway, since_us)


@shows("LiteLLM, Python", "retries")
async def test_the_litellm_client(gateway: World) -> None:
    """Asynchronously, as it is told with the call."""
    import litellm  # noqa: PLC0415 - takes seconds to import

    places: Any = {"api_base": gateway.base_url, "api_key": gateway.key(TENANT), "max_retries": 4}
    messages: Any = [{"role": "user", "content": QUESTION}]
    await litellm.acompletion(model="openai/gpt-4o-mini", messages=messages, **places)  # the first one takes seconds
    since_us = used_up(gateway)
    answer: Any = await litellm.acompletion(model="openai/gpt-4o-mini", messages=messages, **places)
    assert answer.choices[0].message.content
    assert_it_came_again(gateway, since_us)


@shows("OpenAI Agents SDK", "retries", "time-outs")
async def test_the_agents_sdk(gateway: World) -> None:
    """A run goes on behind a refusal; one whose client waits no longer ends with OpenAI's exception."""
    import agents  # noqa: PLC0415 - takes seconds to import

    agents.set_tracing_disabled(True)
    key = gateway.key(TENANT)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=key, max_retries=4) as client:
        agent = agents.Agent(name="plain", model=agents.OpenAIResponsesModel("gpt-4o-mini", client))
        since_us = used_up(gateway)
        assert (await agents.Runner.run(agent, QUESTION)).final_output
    assert_it_came_again(gateway, since_us)
    async with openai.AsyncOpenAI(
        base_url=gateway.base_url, api_key=gateway.key(), max_retries=0, timeout=0.5
    ) as client:
        hanging = agents.Agent(name="late", model=agents.OpenAIChatCompletionsModel("hanging", client))
        with pytest.raises(openai.APITimeoutError):
            await agents.Runner.run(hanging, QUESTION)

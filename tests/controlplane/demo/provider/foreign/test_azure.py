"""What is Azure's own, as its official client sees it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Provider

ASK: Any = [{"role": "user", "content": "How do I reset my password?"}]


def azure(provider: Provider, **options: Any) -> openai.AsyncAzureOpenAI:
    """The official client for Azure."""
    endpoint = f"http://127.0.0.1:{provider.port}"
    given: Any = {"api_version": "2024-10-21", "api_key": "az-test"} | options
    return openai.AsyncAzureOpenAI(azure_endpoint=endpoint, max_retries=0, **given)


async def test_answers_carry_the_filters_verdicts(provider: Provider) -> None:
    """An answer is OpenAI's, with verdicts on prompt and text; a stream begins with those on the prompt."""
    async with azure(provider) as client:
        made = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
        assert made.choices[0].message.content
        assert not made.choices[0].content_filter_results["violence"]["filtered"]  # type: ignore[attr-defined]
        assert made.prompt_filter_results[0]["prompt_index"] == 0  # type: ignore[attr-defined]
        chunks = [c async for c in await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, stream=True)]
    assert chunks[0].choices == []
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[1:])
    assert made.choices[0].message.content == text


async def test_errors_are_azures(provider: Provider) -> None:
    """An unknown deployment, a filtered prompt and a bad key are told in Azure's words."""
    async with azure(provider) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="mine", messages=ASK)
        assert "DeploymentNotFound" == missing.value.code
        provider.faults.add(Fault(FaultKind.CONTENT_POLICY))
        with pytest.raises(openai.BadRequestError) as filtered:
            await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
        assert "content_filter" == filtered.value.code
        provider.faults.clear()
        provider.faults.add(Fault(FaultKind.REVOKED_KEY))
        with pytest.raises(openai.AuthenticationError, match="Access denied"):
            await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)


async def test_newest_path_is_openais_own(provider: Provider) -> None:
    """Below /openai/v1 the model stands in the body."""
    base_url = f"http://127.0.0.1:{provider.port}/openai/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="az-test", max_retries=0) as client:
        made = await client.embeddings.create(model="text-embedding-3-small", input="a")
    assert 1536 == len(made.data[0].embedding)

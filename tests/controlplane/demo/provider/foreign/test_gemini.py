"""What litellm does not ask of Gemini: the stream as an array, counts, listings, thoughts, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Provider
from tests.controlplane.demo.fakes import RawClient, post

ASK: Any = {"contents": [{"role": "user", "parts": [{"text": "How do I reset my password?"}]}]}
KEY = {"x-goog-api-key": "g-test"}


async def call(raw: RawClient, verb: str, body: object, model: str = "gemini-2.5-flash") -> tuple[int, Any]:
    """The status and the document of an answer."""
    await raw.send(post(body, path=f"/v1beta/models/{model}:{verb}", key=None, headers=KEY))
    status, _, answer = await raw.answer()
    return status, json.loads(answer)


async def test_stream_without_sse_is_one_array(raw: RawClient) -> None:
    """The chunks are the elements of an array; their texts make the answer, and the last one has its usage."""
    _, whole = await call(raw, "generateContent", ASK)
    _, chunks = await call(raw, "streamGenerateContent", ASK)
    text = "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks)
    assert whole["candidates"][0]["content"]["parts"][0]["text"] == text
    assert whole["usageMetadata"] == chunks[-1]["usageMetadata"]
    assert "STOP" == chunks[-1]["candidates"][0]["finishReason"]


async def test_counting_costs_nothing_and_is_exact(provider: Provider, raw: RawClient) -> None:
    """countTokens says what a call will cost."""
    _, counted = await call(raw, "countTokens", ASK)
    assert {} == provider.upstreams[0].stats.by_model
    _, made = await call(raw, "generateContent", ASK)
    assert counted["totalTokens"] == made["usageMetadata"]["promptTokenCount"]


async def test_thoughts_are_counted_apart(raw: RawClient) -> None:
    """Thoughts are part of the total, and no part of the candidates."""
    _, made = await call(raw, "generateContent", ASK, model="gemini-2.5-pro")
    usage = made["usageMetadata"]
    assert usage["thoughtsTokenCount"] > 0
    parts = usage["promptTokenCount"] + usage["candidatesTokenCount"] + usage["thoughtsTokenCount"]
    assert usage["totalTokenCount"] == parts


async def test_fields_in_snake_case_are_understood(raw: RawClient) -> None:
    """A schema with types in capitals, under the other spelling, is followed."""
    schema = {"type": "OBJECT", "properties": {"urgent": {"type": "BOOLEAN"}}, "required": ["urgent"]}
    config = {"response_mime_type": "application/json", "response_schema": schema}
    system = {"parts": [{"text": "Be brief."}]}
    _, made = await call(raw, "generateContent", ASK | {"generation_config": config, "system_instruction": system})
    assert json.loads(made["candidates"][0]["content"]["parts"][0]["text"])["urgent"] in (True, False)


@pytest.mark.parametrize(
    ("body", "model", "status", "kind"),
    [
        ({}, "gemini-2.5-flash", 400, "INVALID_ARGUMENT"),
        (ASK, "gpt-4o", 404, "NOT_FOUND"),
        (b"{", "gemini-2.5-flash", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_mistakes_are_told(raw: RawClient, body: object, model: str, status: int, kind: str) -> None:
    """Each mistake has Google's shape."""
    got, document = await call(raw, "generateContent", body, model)
    assert (status, status, kind) == (got, document["error"]["code"], document["error"]["status"])


async def test_models_are_listed(raw: RawClient) -> None:
    """The models are listed with their limits, all or one."""
    for path in ("/v1beta/models", "/v1beta/models/gemini-2.5-pro"):
        await raw.send(f"GET {path}?key=g-test HTTP/1.1\r\nhost: provider\r\n\r\n".encode())
        status, _, body = await raw.answer()
        assert 200 == status
        assert b"models/gemini-2.5-pro" in body


async def test_error_in_the_middle_of_an_array(provider: Provider, raw: RawClient) -> None:
    """The error is an element of the array, which ends in good order."""
    provider.faults.add(Fault(FaultKind.STREAM_ERROR, after_chunks=2))
    _, chunks = await call(raw, "streamGenerateContent", ASK)
    assert 3 == len(chunks)
    assert "INTERNAL" == chunks[-1]["error"]["status"]

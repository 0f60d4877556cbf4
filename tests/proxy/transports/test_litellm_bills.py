"""What calls through litellm cost, and what Anthropic's models keep behind it: cache marks, an hour's cache writes, thinking, service classes."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from controlplane.contract.pricing import Item, Price, ServicePrice, Tokens
from controlplane.contract.records import CostState
from tests.proxy.fakes import DONE, KEY, World, answer, completion, event, replies
from tests.proxy.transports.test_litellm import BEDROCK as OLD_BEDROCK
from tests.proxy.transports.test_litellm import GEMINI, HI, Tail, converse, frame, gemini, http

# Of litellm and the models it is made of, which would otherwise fail inside it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MILLION = 1_000_000
BEDROCK = "bedrock/converse/anthropic.claude-sonnet-4-5-20250929-v1:0"
PRICE = Price(
    input=MILLION,
    output=2 * MILLION,
    cache_read=MILLION,
    cache_write=3 * MILLION,
    cache_write_1h=5 * MILLION,
    search=7_000,
    service=(ServicePrice("priority", Price(input=100 * MILLION, output=100 * MILLION)),),
)
KEPT = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.fixture
async def tail(world: World) -> Tail:
    """A world and its provider."""
    return Tail(world)


def _priced(tail: Tail, model: str, base: str, price: Price = PRICE) -> None:
    upstream: dict[str, Any] = {"dialect": "litellm"}
    if model in (BEDROCK, OLD_BEDROCK):
        upstream["options"] = {
            "aws_region_name": "eu-west-1",
            "aws_access_key_id": "AKIATEST",
            "aws_secret_access_key": "env:UP_KEY",
            "aws_bedrock_runtime_endpoint": base,
        }
        upstream["credential"], base = None, ""
    tail.world.apply(urls=(base,), model=model, upstream=upstream, price=price, route={"attempts_max": 1})


async def _served(tail: Tail, model: str, reply: bytes, price: Price = PRICE) -> None:
    await tail.serve(model, replies(reply))
    _priced(tail, model, f"http://127.0.0.1:{tail.upstream.port}", price)


def _streamed(document: dict[str, Any]) -> bytes:
    """An answer of Converse as its stream, thinking and its signature piece by piece."""
    frames = [frame("messageStart", {"role": "assistant"})]
    for index, block in enumerate(document["output"]["message"]["content"]):
        place = {"contentBlockIndex": index}
        thought = block.get("reasoningContent", {}).get("reasoningText")
        if thought is None:
            frames.append(frame("contentBlockDelta", place | {"delta": {"text": block["text"]}}))
        else:
            for piece in ({"text": thought["text"]}, {"signature": thought["signature"]}):
                frames.append(frame("contentBlockDelta", place | {"delta": {"reasoningContent": piece}}))
        frames.append(frame("contentBlockStop", place))
    frames.append(frame("messageStop", {"stopReason": document["stopReason"]}))
    frames.append(frame("metadata", {"usage": document["usage"], "metrics": {"latencyMs": 1}}))
    return http(b"".join(frames), "application/vnd.amazon.eventstream")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_cache_writes_of_an_hour_have_their_own_price(tail: Tail, *, stream: bool) -> None:
    """Five of the seven tokens written are kept for an hour, as the provider's details say."""
    document = converse()
    document["usage"]["cacheDetails"] = [{"ttl": "1h", "inputTokens": 5}, {"ttl": "5m", "inputTokens": 2}]
    await _served(tail, BEDROCK, _streamed(document) if stream else answer(json.dumps(document).encode()))
    assert 200 == (await tail.world.chat(stream=stream)).status_code
    (record,) = tail.world.records()
    assert Tokens(input=9, cache_read=4, cache_write=2, cache_write_1h=5, output=3) == record.tokens
    assert (9 + 4 + 2 * 3 + 5 * 5 + 3 * 2, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_claude_behind_bedrock_thinks_and_caches(tail: Tail, *, stream: bool) -> None:
    """`cache_control` and `thinking` of a client of Anthropic's reach the model, and its thinking comes back with the signature."""
    document = converse()
    thought = {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}}
    document["output"]["message"]["content"].insert(0, thought)
    await _served(tail, BEDROCK, _streamed(document) if stream else answer(json.dumps(document).encode()))
    asked: dict[str, Any] = {
        "model": "gpt",
        "max_tokens": 2048,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "system": [{"type": "text", "text": "Be brief."} | KEPT],
        "tools": [{"name": "add", "input_schema": {"type": "object"}} | KEPT],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Greet.", "signature": "b2xk"},
                    {"type": "text", "text": "Hello."},
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "again"} | KEPT]},
        ],
    }
    async with anthropic.AsyncAnthropic(base_url=tail.world.url, api_key=KEY, max_retries=0) as client:
        if stream:
            async with client.messages.stream(**asked) as events:
                found = await events.get_final_message()
        else:
            found = await client.messages.create(**asked)
    assert ["thinking", "text"] == [block.type for block in found.content]
    assert {"thinking": "Hm.", "signature": "c2ln"}.items() <= found.content[0].model_dump().items()
    sent: dict[str, Any] = json.loads(tail.upstream.received[0].body)
    assert {"type": "enabled", "budget_tokens": 1024} == sent["additionalModelRequestFields"]["thinking"]
    assert [{"text": "Be brief."}, "cachePoint"] == [sent["system"][0], *sent["system"][1]]
    assert "cachePoint" in sent["toolConfig"]["tools"][-1]
    assert "cachePoint" in sent["messages"][-1]["content"][-1]
    assert "Greet." == sent["messages"][1]["content"][0]["reasoningContent"]["reasoningText"]["text"]
    assert {"cachePoint": {"type": "default", "ttl": "1h"}} == sent["system"][1]


async def test_a_model_that_cannot_think_is_not_asked_to(tail: Tail) -> None:
    """Claude before 3.7 would be refused with `thinking`; clients send it to all."""
    await _served(tail, OLD_BEDROCK, answer(json.dumps(converse()).encode()))
    body = {"model": "gpt", "max_tokens": 50, "messages": HI, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert 200 == (await tail.world.client.post("/v1/messages", json=body)).status_code
    assert b"thinking" not in tail.upstream.received[0].body


async def test_other_models_behind_litellm_get_no_marks_of_anthropics(tail: Tail) -> None:
    """What only Anthropic's models take is left out for all others."""
    await _served(tail, GEMINI, answer(json.dumps(gemini()).encode()))
    body: dict[str, Any] = {
        "model": "gpt",
        "max_tokens": 50,
        "messages": HI,
        "system": [{"type": "text", "text": "a"} | KEPT],
    }
    response = await tail.world.client.post("/v1/messages", json=body | {"thinking": {"type": "adaptive"}})
    assert 200 == response.status_code
    assert b"cache_control" not in tail.upstream.received[0].body
    assert b"ephemeral" not in tail.upstream.received[0].body


def _claude(tier: str, searches: int, *, stream: bool) -> bytes:
    """An answer of Anthropic's, with its class and its searches in the usage."""
    usage: dict[str, Any] = {"input_tokens": 9, "output_tokens": 3, "service_tier": tier}
    use = {"server_tool_use": {"web_search_requests": searches}} if searches else {}
    said: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
    if not stream:
        content = [{"type": "text", "text": "Hello"}]
        whole = said | {"content": content, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage | use}
        return answer(json.dumps(whole).encode())
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": said | {"content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3} | use},
        {"type": "message_stop"},
    ]
    sent = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    return http(sent, "text/event-stream")


@pytest.mark.parametrize(
    ("tier", "factor", "stream"), [("standard", 1, False), ("standard", 1, True), ("priority", 100, False)]
)
async def test_classes_and_searches(tail: Tail, tier: str, factor: int, *, stream: bool) -> None:
    """The class in which the provider served decides the price, and searches of the web are billed one by one."""
    await _served(tail, "anthropic/claude-sonnet-4-5", _claude(tier, 2, stream=stream))
    assert 200 == (await tail.world.chat(stream=stream)).status_code
    (record,) = tail.world.records()
    output = 2 if factor == 1 else factor
    assert (9 * factor + 3 * output + 14_000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
    assert (Item("search", 2_000_000, 14_000),) == record.items


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_class_that_openai_names(tail: Tail, *, stream: bool) -> None:
    """A server of that dialect says its class beside the usage, in a stream too; the one that was asked for does not count."""
    usage: dict[str, object] = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    reply = answer(completion(usage=usage, service_tier="priority"))
    if stream:
        documents = [
            json.loads(one[5:]) | {"service_tier": "priority"}
            for one in (event("Hi"), event("", delta={}, finish_reason="stop"))
        ]
        documents.append({**documents[0], "choices": [], "usage": usage})
        sent = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents) + DONE
        reply = http(sent, "text/event-stream")
    await _served(tail, "openai/gpt-4o", reply)
    assert 200 == (await tail.world.chat(stream=stream, service_tier="default")).status_code
    (record,) = tail.world.records()
    assert (12 * 100, CostState.FINAL) == (record.cost_nanousd, record.cost_state)

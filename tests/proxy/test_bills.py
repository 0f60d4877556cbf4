"""What a call costs beside the standard price: service classes, long prompts and searches, for each protocol, whole and streamed alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from controlplane.contract.pricing import Item, LongPrice, Price, ServicePrice
from controlplane.contract.records import CallRecord, CostState
from tests.proxy.anthropic_fakes import MESSAGE_STOP, PING, message, sent_event, start, stop, streamed, text_block
from tests.proxy.fakes import DONE, STREAM_END, STREAM_HEAD, World, answer, chunk, completion, event, replies

IN, OUT = 250_000, 40
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
BODIES: dict[str, dict[str, object]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "responses": {"input": "hi", "store": False},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
}
MILLION = 1_000_000
# One nano-USD a token of input and two of output; a class and a long prompt are told apart by their factors.
FLEX = Price(input=10 * MILLION, output=20 * MILLION, version="flex")
PRICE = Price(
    input=MILLION,
    output=2 * MILLION,
    search=7,
    version="p",
    long=(LongPrice(200_000, Price(input=3 * MILLION, output=6 * MILLION, version="long")),),
    service=(
        ServicePrice("flex", FLEX),
        ServicePrice("priority", Price(input=100 * MILLION, output=200 * MILLION, version="priority")),
        ServicePrice("batch", Price(input=0, output=MILLION, version="batch")),
    ),
)
Said = dict[str, Any]


def chat(*, tokens_in: int, tier: str | None, searches: int, stream: bool) -> bytes:
    """An answer of chat completions; it says its class beside the usage, and a stream in every event."""
    usage: Said = {"prompt_tokens": tokens_in, "completion_tokens": OUT, "total_tokens": tokens_in + OUT}
    if not stream:
        return answer(completion(usage=usage, service_tier=tier))
    events = [event(), event("Hello"), event("", delta={}, finish_reason="stop")]
    documents = [json.loads(item[5:]) | {"service_tier": tier} for item in events]
    documents.append({**documents[0], "choices": [], "usage": usage})
    sent = b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents)
    return STREAM_HEAD + chunk(sent + DONE) + STREAM_END


def responses(*, tokens_in: int, tier: str | None, searches: int, stream: bool) -> bytes:
    """A response; its class stands beside the usage, its searches among the output, with what is no search."""
    usage = {"input_tokens": tokens_in, "output_tokens": OUT, "total_tokens": tokens_in + OUT}
    said: Said = {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "content": [{"type": "output_text", "text": '"web_search_call"'}],
    }
    calls: list[Said] = [{"type": "web_search_call", "action": {"type": "search"}} for _ in range(searches)]
    calls += [{"type": "web_search_call", "action": {"type": "open_page"}}] * searches
    done: Said = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "service_tier": tier}
    done |= {"output": [*calls, said], "usage": usage}
    if not stream:
        return answer(json.dumps(done).encode())
    begun = {**done, "status": "in_progress", "output": [], "usage": None, "service_tier": "auto"}
    events = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": "Hello"},
        {"type": "response.completed", "response": done},
    ]
    sent = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    return STREAM_HEAD + chunk(sent) + STREAM_END


def messages(*, tokens_in: int, tier: str | None, searches: int, stream: bool, extra: Said | None = None) -> bytes:
    """A message; class and searches stand in its usage, of a stream the class at its start and the searches at its end."""
    first: Said = {"input_tokens": tokens_in, "output_tokens": 1, "service_tier": tier or "standard", **(extra or {})}
    use = {"server_tool_use": {"web_search_requests": searches}} if searches else {"server_tool_use": None}
    if not stream:
        return answer(message(usage={**first, "output_tokens": OUT, **use}))
    block = sent_event("content_block_start", index=0, content_block={"type": "server_tool_use", "name": "web_search"})
    parts = (start(first), PING, block, text_block("Hello", index=1), stop({"output_tokens": OUT, **use}), MESSAGE_STOP)
    return streamed(*parts)


SAYS = {"chat": chat, "responses": responses, "messages": messages}
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def billed(world: World, protocol: str, *, price: Price = PRICE, stream: bool, **said: Any) -> CallRecord:
    """The record of a call whose upstream says this."""
    default: Said = {"tokens_in": 100, "tier": None, "searches": 0}
    upstream = await world.upstream(replies(SAYS[protocol](**default | said, stream=stream)))
    base = f"http://127.0.0.1:{upstream.port}"
    world.apply(
        urls=(base if protocol == "messages" else f"{base}/v1",),
        upstream={"dialect": "anthropic" if protocol == "messages" else "openai"},
        price=price,
    )
    found = await world.client.post(PATHS[protocol], json={"model": "gpt", "stream": stream} | BODIES[protocol])
    assert 200 == found.status_code, found.text
    await world.until_idle()
    return world.records()[-1]


@both
@pytest.mark.parametrize("protocol", list(PATHS))
async def test_each_service_class_has_its_price(world: World, protocol: str, *, stream: bool) -> None:
    """The class in which the upstream says that it served decides, not the one that was asked for."""
    for tier, factor, output_factor in ((None, 1, 1), ("flex", 10, 10), ("priority", 100, 100), ("scale", 1, 1)):
        record = await billed(world, protocol, tier=tier, stream=stream)
        wanted = 100 * factor + 2 * OUT * output_factor
        assert (wanted, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
        assert (tier if factor > 1 else "p") == record.price_version
    assert OUT == (await billed(world, protocol, tier="batch", stream=stream)).cost_nanousd


@both
async def test_a_fast_answer_and_one_that_stays_in_a_country(world: World, *, stream: bool) -> None:
    """What Anthropic's usage says of speed and place is a class too; several at once cost as their first where they have no price together."""
    dear = ServicePrice("fast+us", Price(input=9 * MILLION, output=0, version="fast+us"))
    us = ServicePrice("us", Price(input=4 * MILLION, output=0, version="us"))
    price = structs.replace(PRICE, service=(*PRICE.service, dear, us))
    for extra, wanted in (
        ({"speed": "fast", "inference_geo": "us"}, 900),
        ({"speed": "standard", "inference_geo": "us"}, 400),
        ({"speed": "standard", "inference_geo": "global"}, 100 + 2 * OUT),
        ({"service_tier": "batch", "inference_geo": "us"}, OUT),
    ):
        record = await billed(world, "messages", price=price, stream=stream, extra=extra)
        assert (wanted, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


@both
@pytest.mark.parametrize("protocol", list(PATHS))
async def test_a_long_prompt_has_its_price(world: World, protocol: str, *, stream: bool) -> None:
    """Above the threshold all tokens cost more, exactly at it none; a class without long prices of its own stays as it is."""
    above = await billed(world, protocol, tokens_in=200_001, stream=stream)
    at = await billed(world, protocol, tokens_in=200_000, stream=stream)
    flex = await billed(world, protocol, tokens_in=IN, tier="flex", stream=stream)
    assert (3 * 200_001 + 6 * OUT, "long") == (above.cost_nanousd, above.price_version)
    assert (200_000 + 2 * OUT, "p") == (at.cost_nanousd, at.price_version)
    assert (10 * IN + 20 * OUT, "flex") == (flex.cost_nanousd, flex.price_version)


@both
@pytest.mark.parametrize("protocol", ["responses", "messages"])
async def test_searches_are_billed_one_by_one(world: World, protocol: str, *, stream: bool) -> None:
    """Each search costs its price beside the tokens; pages that were opened and words about searches cost nothing."""
    assert 100 + 2 * OUT == (await billed(world, protocol, stream=stream)).cost_nanousd
    record = await billed(world, protocol, searches=3, stream=stream)
    assert (100 + 2 * OUT + 3 * 7, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts)
    assert (Item("search", 3_000_000, 21),) == record.items


@both
@pytest.mark.parametrize("protocol", ["responses", "messages"])
async def test_searches_without_a_price_are_never_silently_free(world: World, protocol: str, *, stream: bool) -> None:
    """The tokens are booked, the cost is called unpriced, and the searches stand in the record and in a metric."""
    record = await billed(world, protocol, price=FLEX, searches=3, stream=stream)
    assert (1_000 + 20 * OUT, CostState.UNPRICED) == (record.cost_nanousd, record.cost_state)
    assert (Item("search", 3_000_000),) == record.items
    shown = world.worker.metrics.render().decode()
    assert f'heph_proxy_unpriced_items_total{{kind="search",worker="{world.worker.metrics._worker}"}} 3.0' in shown

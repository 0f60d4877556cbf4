"""What is billed that is no token, end to end: tools of the provider's own, models that always search, pictures; reserved, priced, on the record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from controlplane.contract.pricing import Item, Price
from controlplane.contract.records import CallRecord, CostState
from controlplane.contract.snapshot import Budget, CachePolicy, PassthroughGrant, TenantPolicy, Unpriced, Window
from tests.proxy.anthropic_fakes import MESSAGE_STOP, message, start, stop, streamed, text_block
from tests.proxy.fakes import STREAM_END, STREAM_HEAD, World, answer, chunk, completion, event, replies, usage_event

MILLION = 1_000_000
PRICE = Price(
    input=MILLION, output=2 * MILLION, search=7_000, file_search=300, container=50_000, picture=900_000, version="p"
)
BARE = Price(input=MILLION, output=2 * MILLION, version="p")
USAGE = {"input_tokens": 100, "output_tokens": 40, "total_tokens": 140}
TOKENS_NANOUSD = 100 + 2 * 40
Said = dict[str, Any]
OUTPUT: list[Said] = [
    {"type": "file_search_call", "id": "fs_1", "status": "completed"},
    {"type": "file_search_call", "id": "fs_2", "status": "completed"},
    {"type": "code_interpreter_call", "id": "ci_1", "container_id": "c1", "status": "completed"},
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}, "status": "completed"},
    {"type": "image_generation_call", "id": "ig_1", "result": "aGk=", "status": "completed"},
]
ITEMS = (
    Item("search", MILLION, 7_000),
    Item("container", MILLION, 50_000),
    Item("file_search", 2 * MILLION, 600),
    Item("picture", MILLION, 900_000),
)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
UNCACHED = CachePolicy(enabled=False)


def responded(*, stream: bool, end: bool = True) -> bytes:
    """A response whose model used every tool. end: a stream says its last word."""
    done = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": OUTPUT, "usage": USAGE}
    if not stream:
        return answer(json.dumps(done).encode())
    events: list[Said] = [
        {"type": "response.created", "response": done | {"output": [], "usage": None}},
        *({"type": f"response.{item['type']}.completed", "item_id": item["id"]} for item in OUTPUT),
        {"type": "response.output_text.delta", "delta": "Hello"},
    ]
    events += [{"type": "response.completed", "response": done}] if end else []
    sent = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    return STREAM_HEAD + chunk(sent) + STREAM_END


def messaged(*, stream: bool, searches: Any = 2) -> bytes:
    """A message whose model searched twice and ran code."""
    use = {"server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 1}}
    usage: Said = {"input_tokens": 100, "output_tokens": 40}
    container = {"id": "container_1", "expires_at": "2026-11-20T00:00:00Z"}
    if not stream:
        return answer(message(usage=usage | use, container=container))
    ending = stop(usage | use).replace(
        b'"stop_reason"', b'"container":' + json.dumps(container).encode() + b',"stop_reason"'
    )
    return streamed(start(usage), text_block("Hello"), ending, MESSAGE_STOP)


async def asked(world: World, path: str, body: Said, reply: bytes, price: Price | None, **knobs: Any) -> CallRecord:
    """The record of a call that is answered like this."""
    upstream = await world.upstream(replies(reply))
    base = f"http://127.0.0.1:{upstream.port}"
    claude = path == "/v1/messages"
    dialect = {"dialect": "anthropic" if claude else "openai"} | knobs.pop("upstream", {})
    world.apply(urls=(base if claude else f"{base}/v1",), upstream=dialect, price=price, **knobs)
    found = await world.client.post(path, json={"model": "gpt"} | body)
    assert 200 == found.status_code, found.text
    await world.until_idle()
    return world.records()[-1]


@both
@pytest.mark.parametrize("reports_cost", [False, True])
async def test_each_tool_of_a_response_is_an_item(world: World, *, stream: bool, reports_cost: bool) -> None:
    """Every item stands on the record with its part of the cost; an upstream that reports costs of its own changes nothing."""
    body = {"input": "hi", "store": False, "stream": stream}
    record = await asked(
        world, "/v1/responses", body, responded(stream=stream), PRICE, upstream={"reports_cost": reports_cost}
    )
    assert set(ITEMS) == set(record.items)
    assert record.items == record.attempts[0].items
    expected = TOKENS_NANOUSD + sum(item.nanousd or 0 for item in ITEMS)
    assert (expected, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
    assert expected == world.worker.ledger.nanousd


@both
async def test_a_message_that_searched_and_ran_code(world: World, *, stream: bool) -> None:
    """Two searches and one container; the page that it fetched costs nothing but tokens."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": stream}
    record = await asked(world, "/v1/messages", body, messaged(stream=stream), PRICE)
    assert {Item("search", 2 * MILLION, 14_000), Item("container", MILLION, 50_000)} == set(record.items)
    assert (TOKENS_NANOUSD + 64_000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


@both
async def test_an_item_without_a_price_leaves_the_call_unpriced(world: World, *, stream: bool) -> None:
    """What is known is booked and counts against budgets; that it is not all, the state says, and the items have no cost."""
    body = {"input": "hi", "store": False, "stream": stream}
    price = structs.replace(PRICE, container=None)
    record = await asked(world, "/v1/responses", body, responded(stream=stream), price)
    assert CostState.UNPRICED is record.cost_state
    assert TOKENS_NANOUSD + 7_000 + 600 + 900_000 == record.cost_nanousd == world.worker.ledger.nanousd
    assert Item("container", MILLION) in record.items
    shown = world.worker.metrics.render().decode()
    assert 'heph_proxy_unpriced_items_total{kind="container"' in shown


@both
@pytest.mark.parametrize("count", ["2", -2, 2.5, 10**30])
async def test_a_count_of_tools_that_cannot_be_read_is_an_estimate(world: World, *, stream: bool, count: Any) -> None:
    """It was counted, so it is not free: one search at its price, the container that is named, and a state that says it is no more than a guess."""
    reply = messaged(stream=stream, searches=count)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": stream}
    record = await asked(world, "/v1/messages", body, reply, PRICE)
    assert {Item("search", MILLION, 7_000), Item("container", MILLION, 50_000)} == set(record.items)
    assert (TOKENS_NANOUSD + 57_000, CostState.ESTIMATED) == (record.cost_nanousd, record.cost_state)
    record = await asked(world, "/v1/messages", body | {"top_k": 1}, reply, BARE)
    assert (TOKENS_NANOUSD, CostState.UNPRICED) == (record.cost_nanousd, record.cost_state)


async def test_a_price_of_zero_is_a_price(world: World) -> None:
    """An operator who is not billed for containers says so."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    record = await asked(world, "/v1/messages", body, messaged(stream=False), structs.replace(PRICE, container=0))
    assert (TOKENS_NANOUSD + 14_000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


async def test_tools_of_a_stream_that_breaks_off_are_billed(world: World) -> None:
    """What was seen of them on the way counts, though the last word never came."""
    upstream = await world.upstream(replies(responded(stream=True, end=False)))
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}/v1",), price=PRICE)
    body = {"model": "gpt", "input": "hi", "store": False, "stream": True}
    await world.client.post("/v1/responses", json=body)
    await world.until_idle()
    (record,) = world.records()
    assert {item.kind: item.micros for item in ITEMS} == {item.kind: item.micros for item in record.items}
    assert CostState.ESTIMATED is record.cost_state
    assert record.cost_nanousd > sum(item.nanousd or 0 for item in ITEMS)


async def test_tools_of_a_message_that_breaks_off_are_billed(world: World) -> None:
    """Its results are in the stream before the usage counts them; a search that failed is not billed, and a result in a text is none."""
    found: list[Said] = [
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result", "url": "u"}]},
        {"type": "web_search_tool_result", "tool_use_id": "s2", "content": []},
        {"type": "web_search_tool_result", "tool_use_id": "s3", "content": {"type": "web_search_tool_result_error"}},
        {"type": "bash_code_execution_tool_result", "tool_use_id": "c1", "content": {"return_code": 0}},
        {"type": "text", "text": '{"type":"web_search_tool_result","content":[]}'},
    ]
    events = [{"type": "content_block_start", "index": n, "content_block": block} for n, block in enumerate(found, 1)]
    sent = [f"event: content_block_start\ndata: {json.dumps(each)}\n\n".encode() for each in events]
    upstream = await world.upstream(replies(streamed(start(), text_block("Hello"), *sent)))
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}",), upstream={"dialect": "anthropic"}, price=PRICE)
    body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": True}
    await world.client.post("/v1/messages", json=body)
    await world.until_idle()
    (record,) = world.records()
    assert {Item("search", 2 * MILLION, 14_000), Item("container", MILLION, 50_000)} == set(record.items)
    assert CostState.ESTIMATED is record.cost_state


@both
async def test_a_model_that_always_searches(world: World, *, stream: bool) -> None:
    """Chat says nothing of it: one search for each answer, and without its price the call is unpriced."""
    usage: Said = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
    sent = event("Hello") + event("", delta={}, finish_reason="stop") + usage_event(usage) + b"data: [DONE]\n\n"
    reply = STREAM_HEAD + chunk(sent) + STREAM_END if stream else answer(completion(usage=usage))
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    record = await asked(world, "/v1/chat/completions", body, reply, PRICE, model="gpt-4o-search-preview")
    assert (TOKENS_NANOUSD + 7_000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
    assert (Item("search", MILLION, 7_000),) == record.items
    record = await asked(world, "/v1/chat/completions", body | {"seed": 1}, reply, BARE, model="gpt-4o-search-preview")
    assert (TOKENS_NANOUSD, CostState.UNPRICED) == (record.cost_nanousd, record.cost_state)


@pytest.mark.parametrize(
    ("path", "body", "worst"),
    [
        ("/v1/responses", {"input": "hi", "tools": [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}]}, 200_000),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, 50_000),
        ("/v1/responses", {"input": "hi", "max_tool_calls": 9, "tools": [{"type": "file_search"}, {"type": "web_search_preview"}]}, 63_000),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "file_search"}]}, 0),  # nothing bounds it
        ("/v1/responses", {"input": "hi", "tools": [{"type": "shell", "environment": {"type": "local"}}]}, 0),
        ("/v1/messages", {"max_tokens": 1, "messages": [], "tools": [{"type": "web_search_20250305", "name": "w", "max_uses": 3}]}, 21_000),
        ("/v1/messages", {"max_tokens": 1, "messages": [], "tools": [{"type": "code_execution_20250825", "name": "c"}]}, 50_000),
        ("/v1/messages", {"max_tokens": 1, "messages": [], "tools": [{"name": "web_search", "input_schema": {}}]}, 0),
    ],
)  # fmt: skip
async def test_what_tools_may_cost_is_reserved(world: World, path: str, body: Said, worst: int) -> None:
    """A budget that has room for the tokens alone refuses a call whose tools may cost more than is left, and bears one nano-USD less."""
    claude = path == "/v1/messages"
    content = json.dumps({"model": "gpt", "max_output_tokens": 1} | body).encode()
    price = structs.replace(PRICE, output=MILLION)
    exactly = len(content) + 1 + worst
    reply = messaged(stream=False) if claude else responded(stream=False)
    for budget, status in ((exactly - 1, 429), (exactly, 200)):
        upstream = await world.upstream(replies(reply))
        base = f"http://127.0.0.1:{upstream.port}"
        tenant = TenantPolicy("acme", cache=UNCACHED, budgets=(Budget(f"b{budget}", Window.TOTAL, nanousd=budget),))
        kind: dict[str, object] = {"dialect": "anthropic" if claude else "openai"}
        world.apply(urls=(base if claude else f"{base}/v1",), upstream=kind, price=price, tenant=tenant)
        assert status == (await world.client.post(path, content=content)).status_code
        await world.until_idle()


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/responses", {"input": "hi", "tools": [{"type": "file_search"}]}, "gpt-4o"),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "\\u0066ile_search"}]}, "gpt-4o"),
        ("/v1/messages", {"max_tokens": 1, "messages": [], "tools": [{"type": "web_search_20250305", "name": "w"}]}, "c"),
        ("/v1/messages", {"max_tokens": 1, "messages": [], "tools": [{"type": "code_execution_20250825", "name": "c"}]}, "c"),
        ("/v1/chat/completions", {"messages": []}, "gpt-4o-search-preview"),
    ],
)  # fmt: skip
async def test_who_refuses_what_has_no_price_refuses_such_tools(
    world: World, path: str, body: Said, model: str
) -> None:
    """A tool whose price is not known, however it is written, never reaches the upstream."""
    upstream = await world.upstream(replies(answer(b"{}")))
    dialect: dict[str, object] = {"dialect": "anthropic" if path == "/v1/messages" else "openai"}
    world.apply(upstream=dialect, price=BARE, model=model, tenant=TenantPolicy("acme", unpriced=Unpriced.REFUSE))
    content = json.dumps({"model": "gpt"} | body).replace("\\\\u", "\\u").encode()
    got = await world.client.post(path, content=content)
    assert (403, []) == (got.status_code, upstream.received), got.text


async def test_a_tool_list_written_twice_reaches_the_upstream_once(world: World) -> None:
    """A reader that takes the first of two equal names cannot be led to tools that were neither reserved nor allowed."""
    upstream = await world.upstream(replies(responded(stream=False)))
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}/v1",), price=PRICE, model="gpt")
    content = b'{"model":"gpt","input":"hi","store":false,"tools":[{"type":"file_search"}],"tools":[]}'
    assert 200 == (await world.client.post("/v1/responses", content=content)).status_code
    assert [] == upstream.received[0].document["tools"]
    assert 1 == upstream.received[0].body.count(b'"tools"')


async def test_tools_in_what_is_passed_through(world: World) -> None:
    """No path escapes: a response and its stream through /passthrough are billed alike."""
    grant = (PassthroughGrant("u0", ()),)
    for stream in (False, True):
        upstream = await world.upstream(replies(responded(stream=stream)))
        tenant = TenantPolicy("acme", cache=UNCACHED, passthrough=grant)
        world.apply(urls=(f"http://127.0.0.1:{upstream.port}/v1",), price=PRICE, tenant=tenant, model="gpt")
        body = {"model": "gpt", "input": "hi", "stream": stream}
        assert 200 == (await world.client.post("/passthrough/u0/responses", json=body)).status_code
        await world.until_idle()
    expected = TOKENS_NANOUSD + sum(item.nanousd or 0 for item in ITEMS)
    assert [expected, expected] == [record.cost_nanousd for record in world.records()]


PICTURES = Price(
    input=0, output=0, version="i",
    pictures={"standard/1024x1024": 40, "hd/1024x1024": 80, "hd/1024x1792": 120, "256x256": 16, "low/1024x1024": 11, "high/1024x1024": 167},
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked_for", "said", "cost", "state"),
    [
        ({}, {}, 40, CostState.FINAL),
        ({"quality": "hd"}, {}, 80, CostState.FINAL),
        ({"quality": "hd", "size": "1024x1792"}, {}, 120, CostState.FINAL),
        ({"size": "256x256"}, {}, 16, CostState.FINAL),
        ({"size": "640x480"}, {}, 0, CostState.UNPRICED),
        ({"quality": "auto"}, {}, 0, CostState.UNPRICED),
        ({"quality": "auto"}, {"quality": "low", "size": "1024x1024"}, 11, CostState.FINAL),
        ({"quality": "low"}, {"quality": "high", "size": "1024x1024"}, 167, CostState.FINAL),
    ],
)
async def test_a_picture_costs_by_its_quality_and_size(
    world: World, asked_for: Said, said: Said, cost: int, state: CostState
) -> None:
    """The answer's words count before the request's; a form sees the same as JSON; what is not known is unpriced."""
    drawn = {"created": 1, "data": [{"url": "a"}, {"url": "b"}], **said}
    upstream = await world.upstream(*[replies(answer(json.dumps(drawn).encode()))] * 2)
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}/v1",), price=PICTURES)
    await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a", "n": 2} | asked_for)
    files = {"image": ("a.png", b"png", "image/png")}
    await world.client.post("/v1/images/edits", data={"model": "gpt", "prompt": "a", "n": "2"} | asked_for, files=files)
    await world.until_idle()
    for record in world.records():
        assert (2 * cost, state) == (record.cost_nanousd, record.cost_state)
        assert (Item("picture", 2 * MILLION, 2 * cost if cost else None),) == record.items


@pytest.mark.parametrize(
    ("asked_for", "worst"), [({}, 40), ({"quality": "hd"}, 80), ({"quality": "auto"}, 167), ({"size": "1x1"}, 167)]
)
async def test_the_dearest_picture_possible_is_reserved(world: World, asked_for: Said, worst: int) -> None:
    """What the request decides has its own price, what it leaves open that of the dearest."""
    await world.upstream(replies(answer(b'{"data":[{}]}')))
    for budget, status in ((3 * worst - 1, 429), (3 * worst, 200)):
        tenant = TenantPolicy("acme", budgets=(Budget(f"b{budget}", Window.TOTAL, nanousd=budget),))
        world.apply(price=PICTURES, tenant=tenant)
        body = {"model": "gpt", "prompt": "a", "n": 3} | asked_for
        assert status == (await world.client.post("/v1/images/generations", json=body)).status_code

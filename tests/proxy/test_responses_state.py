"""Responses and conversations that an upstream keeps: each is its tenant's alone, and is found again where it was made."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from controlplane.contract.pricing import Price, ServicePrice, Tokens
from controlplane.contract.records import CostState, Outcome
from controlplane.contract.snapshot import Budget, Window
from proxy.settlement import Settlement
from proxy.transports.owners import Claim, Unsettled
from tests.proxy.fakes import (
    PRICE,
    STREAM_END,
    STREAM_HEAD,
    Clock,
    Received,
    Wire,
    World,
    chunk,
    sends_then_hangs,
    until,
)
from tests.proxy.responses_account import ANN, BOB, Account, snapshot, two_tenants

TOKENS = Tokens(input=5, cache_read=4, output=1, reasoning=5)


async def ask(
    world: World, key: str, method: str, path: str, document: object = None, **headers: str
) -> httpx.Response:
    """One request of a tenant."""
    body = None if document is None else json.dumps(document).encode()
    return await world.client.request(method, path, content=body, headers={"authorization": f"Bearer {key}", **headers})


async def make(world: World, key: str = ANN, **more: object) -> str:
    """The id of a new response."""
    got = await ask(world, key, "POST", "/v1/responses", {"model": "gpt", "input": "hi"} | more)
    assert 200 == got.status_code, got.text
    return str(got.json()["id"])


async def test_its_tenant_reads_continues_cancels_and_deletes_a_response(world: World) -> None:
    """Every call on a response reaches the deployment that made it, and leaves one record that costs nothing."""
    account = Account()
    await two_tenants(world, account)
    id_ = await make(world)
    got = await ask(world, ANN, "GET", f"/v1/responses/{id_}?include[]=reasoning.encrypted_content")
    assert (200, id_) == (got.status_code, got.json()["id"])
    next_id = await make(world, previous_response_id=id_)
    assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{id_}/input_items?limit=5")).status_code
    assert "cancelled" == (await ask(world, ANN, "POST", f"/responses/{next_id}/cancel")).json()["status"]
    assert (await ask(world, ANN, "DELETE", f"/v1/responses/{id_}")).json()["deleted"]
    assert [
        ("POST", "/v1/responses"),
        ("GET", f"/v1/responses/{id_}?include[]=reasoning.encrypted_content"),
        ("POST", "/v1/responses"),
        ("GET", f"/v1/responses/{id_}/input_items?limit=5"),
        ("POST", f"/v1/responses/{next_id}/cancel"),
        ("DELETE", f"/v1/responses/{id_}"),
    ] == [(method, target) for method, target, _ in account.asked]
    records = world.records()
    assert ["", "_get", "", "_input_items", "_cancel", "_delete"] == [
        record.operation.removeprefix("responses") for record in records
    ]
    assert [TOKENS, Tokens(), TOKENS, Tokens(), Tokens(), Tokens()] == [record.tokens for record in records]
    assert {("ann", "u0/m", CostState.FINAL, Outcome.OK)} == {
        (record.tenant, record.deployment, record.cost_state, record.outcome) for record in records
    }
    assert 404 == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).status_code


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}?stream=true&starting_after=1"),
        ("DELETE", "/v1/responses/{}"),
        ("POST", "/v1/responses/{}/cancel"),
        ("GET", "/v1/responses/{}/input_items"),
        ("GET", "/responses/%72esp_a0002"),
        ("GET", "/v1/responses/..%2Fmodels"),
        ("GET", "/v1/responses/x%0d%0ahost:evil"),
    ],
)
async def test_a_foreign_response_and_an_unknown_one_are_the_same(world: World, method: str, path: str) -> None:
    """Another tenant's id gets a 404 in OpenAI's shape, word for word that of an id that never was, and never reaches the upstream."""
    account = Account()
    await two_tenants(world, account)
    id_ = await make(world)
    foreign = await ask(world, BOB, method, path.format(id_))
    unknown = await ask(world, BOB, method, path.format("resp_none0"))
    assert (404, 404) == (foreign.status_code, unknown.status_code)
    if "{}" in path:
        assert foreign.json() == json.loads(unknown.text.replace("resp_none0", id_))
        assert f"Response with id '{id_}' not found." == foreign.json()["error"]["message"]
    assert ["POST"] == [asked[0] for asked in account.asked]
    assert id_ in account.things


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("previous_response_id", {"previous_response_id": "RESP"}),
        ("conversation", {"conversation": "CONV"}),
        ("conversation", {"conversation": {"id": "CONV"}}),
        ("input", {"input": [{"type": "item_reference", "id": "MSG"}]}),
        ("input", {"input": [{"id": "MSG"}]}),
        ("input", {"input": [{"type": "reasoning", "id": "MSG", "summary": []}]}),
        ("input", {"input": [{"type": "image_generation_call", "id": "MSG", "result": None}]}),
        ("tools", {"tools": [{"type": "code_interpreter", "container": "MSG"}]}),
    ],
)
async def test_nothing_foreign_can_be_built_on(world: World, field: str, request_: dict[str, object]) -> None:
    """Whatever way a request names something that is kept, it must be its tenant's own; its own works."""
    account = Account()
    await two_tenants(world, account)
    got = (await ask(world, ANN, "POST", "/v1/responses", {"model": "gpt", "input": "hi"})).json()
    home = (await ask(world, ANN, "POST", "/v1/conversations", {})).json()
    text = json.dumps({"model": "gpt", "input": "go on"} | request_)
    for name, id_ in (("RESP", got["id"]), ("CONV", home["id"]), ("MSG", got["output"][0]["id"])):
        text = text.replace(name, id_)
    before = len(account.asked)
    refused = await ask(world, BOB, "POST", "/v1/responses", json.loads(text))
    assert (404, "not_found", field) == (refused.status_code, *(refused.json()["error"][x] for x in ("code", "param")))
    assert before == len(account.asked)
    assert 200 == (await ask(world, ANN, "POST", "/v1/responses", json.loads(text))).status_code


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"gpt","input":"x","previous_response_id":"RESP","previous_response_id":"resp_mine"}',
        '{"model":"gpt","input":[{"type":"item_reference","id":"RESP","id":"resp_mine"}]}',
        '{"model":"gpt","input":[{"\\u0069d":"RESP","id":"resp_mine"}]}',
        '{"model":"gpt","input":"x","conversation":{"id":"RESP","id":"resp_mine"}}',
        '{"model":"gpt","input":"x","tools":[{"type":"t","container":"RESP","container":"resp_mine"}]}',
    ],
)
async def test_a_name_that_is_there_twice_hides_nothing(world: World, body: str) -> None:
    """The upstream reads only the value that was held against its owner."""
    account = Account()
    await two_tenants(world, account, models=("model-0",))  # its own name there, so that nothing else makes a new body
    foreign, mine = await make(world, model="model-0"), await make(world, BOB, model="model-0")
    sent = body.replace("gpt", "model-0").replace("RESP", foreign).replace("resp_mine", mine)
    got = await world.client.post("/v1/responses", content=sent, headers={"authorization": f"Bearer {BOB}"})
    assert 200 == got.status_code
    assert foreign.encode() not in account.asked[-1][2]
    assert mine.encode() in account.asked[-1][2]


async def test_items_that_carry_their_content_need_no_owner(world: World) -> None:
    """A conversation that the client keeps itself goes through, whatever ids its items have."""
    await two_tenants(world, Account())
    items = [
        {"type": "message", "id": "msg_elsewhere", "role": "assistant", "content": "hi"},
        {"role": "user", "id": "mine", "content": "and?"},
        {"type": "reasoning", "id": "rs_elsewhere", "summary": [], "encrypted_content": "abc"},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    got = await ask(world, ANN, "POST", "/v1/responses", {"model": "gpt", "input": items, "store": False})
    assert 200 == got.status_code


async def test_nobody_comes_to_own_what_they_only_named(world: World) -> None:
    """An upstream that lists whole items under the ids that a client gave them makes nothing of another tenant's that client's."""
    account = Account()
    await two_tenants(world, account)
    foreign = (await ask(world, ANN, "POST", "/v1/responses", {"model": "gpt", "input": "hi"})).json()["output"][0][
        "id"
    ]
    item = {"type": "message", "id": foreign, "role": "user", "content": "mine"}
    id_ = await make(world, BOB, input=[item])
    account.things[id_]["items"] = [item]
    home = (await ask(world, BOB, "POST", "/v1/conversations", {})).json()["id"]
    account.renames = False
    assert 200 == (await ask(world, BOB, "POST", f"/v1/conversations/{home}/items", {"items": [item]})).status_code
    for path in (
        f"responses/{id_}/input_items",
        f"conversations/{home}/items",
        f"conversations/{home}/items/{foreign}",
    ):
        assert foreign in (await ask(world, BOB, "GET", f"/v1/{path}")).text
    for named in ({"type": "item_reference", "id": foreign}, {"id": foreign}):
        got = await ask(world, BOB, "POST", "/v1/responses", {"model": "gpt", "input": [named]})
        assert (404, "not_found") == (got.status_code, got.json()["error"]["code"])


async def test_a_response_is_found_where_it_was_made(world: World) -> None:
    """With several deployments, what is kept is asked for and continued at its own, whatever the route prefers now."""
    first, second = Account("a"), Account("b")
    await two_tenants(world, first, second, models=("one", "two"))
    id_ = await make(world, model="two")
    assert id_.startswith("resp_b")
    await two_tenants(world, version=2)  # one model now, which prefers the first account
    assert (await make(world)).startswith("resp_a")
    assert id_ == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).json()["id"]
    assert (await make(world, previous_response_id=id_)).startswith("resp_b")
    assert [1, 3] == [len(first.asked), len(second.asked)]


async def test_a_model_of_another_upstream_cannot_continue(world: World) -> None:
    """A tenant that asks another upstream to go on hears what is wrong, before anything is asked."""
    first, second = Account("a"), Account("b")
    await two_tenants(world, first, second, models=("one", "two"))
    id_ = await make(world, model="one")
    got = await ask(world, ANN, "POST", "/v1/responses", {"model": "two", "input": "x", "previous_response_id": id_})
    assert (400, "previous_response_id") == (got.status_code, got.json()["error"]["param"])
    assert [] == second.asked


async def test_owners_survive_a_restart(tmp_path: Path) -> None:
    """What was made before a worker stopped is its tenant's after it started again, and nobody else's."""
    account = Account()
    world = await World(tmp_path).start()
    await two_tenants(world, account)
    id_ = await make(world)
    kept_upstreams, world.upstreams = world.upstreams, []
    await world.stop()
    again = await World(tmp_path).start()
    again.upstreams = kept_upstreams
    await two_tenants(again)
    assert 200 == (await ask(again, ANN, "GET", f"/v1/responses/{id_}")).status_code
    assert 404 == (await ask(again, BOB, "GET", f"/v1/responses/{id_}")).status_code
    await again.stop()


async def test_a_streamed_response_is_owned_from_its_first_event(world: World) -> None:
    """A client that leaves after the first event can read what was made; so can one that comes back for the stream."""
    account = Account()
    await two_tenants(world, account)
    body = {"model": "gpt", "input": "hi", "stream": True}
    headers = {"authorization": f"Bearer {ANN}"}
    async with world.client.stream("POST", "/v1/responses", json=body, headers=headers) as got:
        async for line in got.aiter_lines():
            if line.startswith("data:"):
                id_ = json.loads(line[5:])["response"]["id"]
                break
        assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).status_code
    again = await ask(world, ANN, "GET", f"/v1/responses/{id_}?stream=true&starting_after=2")
    assert again.headers["content-type"].startswith("text/event-stream")
    assert "response.completed" in again.text
    await world.until_idle()
    assert [Tokens()] * 2 == [record.tokens for record in world.records() if record.operation == "responses_get"]


async def test_a_background_response_is_booked_at_its_class_with_its_searches(world: World) -> None:
    """Who asks for it later pays what it was served for: the price of its service class, and each search."""
    account = Account(busy=True)
    await two_tenants(world, account)
    current = snapshot([item.port for item in world.upstreams], version=2)
    (route,) = current.routes
    flex = Price(input=10, output=10, cache_read=10, version="flex")
    price = structs.replace(PRICE, service=(ServicePrice("flex", flex),), search=7)
    deployment = structs.replace(route.deployments[0], price=price)
    world.worker.apply(structs.replace(current, routes=(structs.replace(route, deployments=(deployment,)),)))
    id_ = await make(world, background=True)
    account.finish(id_)
    account.things[id_] |= {"service_tier": "flex", "output": [{"type": "web_search_call", "id": "ws_1"}]}
    await ask(world, ANN, "GET", f"/v1/responses/{id_}")
    record = world.records()[-1]
    assert (TOKENS, 7, "flex") == (record.tokens, record.cost_nanousd, record.price_version)


async def test_a_background_response_is_booked_once_when_its_usage_is_known(world: World) -> None:
    """Making it costs nothing yet and says so; the first look that finds it finished books it, later ones do not."""
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    await ask(world, ANN, "GET", f"/v1/responses/{id_}")
    account.finish(id_)
    for _ in range(2):
        assert "completed" == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).json()["status"]
    records = world.records()
    assert [Tokens(), Tokens(), TOKENS, Tokens()] == [record.tokens for record in records]
    assert [0, 0, 19_000, 0] == [record.cost_nanousd for record in records]
    assert CostState.ESTIMATED is records[0].cost_state


async def test_a_background_response_that_nobody_reads_is_booked_all_the_same(world: World) -> None:
    """The proxy asks for it itself until it is finished, less and less often, as a call of its tenant."""
    account, clock = Account(busy=True), Clock()
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    settlement = Settlement(
        world.worker.pipeline, world.worker.owners, lambda: world.worker.app.runtime, every_s=5.0, monotonic=clock
    )
    for now in (0.0, 1.0, 5.0, 6.0, 14.0, 15.0):  # looked at when 0, 5 and 15 seconds old
        clock.now = 1000.0 + now
        await settlement.look_at_all()
    assert (3, 1) == (settlement.looks_total, settlement.waiting)
    account.finish(id_)
    clock.now += 100.0
    await settlement.look_at_all()
    await settlement.look_at_all()
    assert (4, 0) == (settlement.looks_total, settlement.waiting)
    records = world.records()
    assert ["", "settlement", "settlement", "settlement", "settlement"] == [record.channel for record in records]
    assert ["ann"] * 5 == [record.tenant for record in records]
    assert [0, 0, 0, 0, 19_000] == [record.cost_nanousd for record in records]
    await ask(world, ANN, "GET", f"/v1/responses/{id_}")
    assert 0 == world.records()[-1].cost_nanousd


async def test_what_runs_in_the_background_is_held_against_its_tenant_s_budget(world: World) -> None:
    """A budget for one response is one for one at a time, whoever settles it: the proxy, its client, or another worker."""
    account = Account(busy=True)
    await two_tenants(world, account, budgets=(Budget("b", Window.TOTAL, nanousd=2_000_000),))
    ends = (
        lambda id_: ask(world, ANN, "GET", f"/v1/responses/{id_}"),
        lambda _: world.worker.settlement.look_at_all(),
        lambda id_: world.worker.owners.confirm(Unsettled("ann", "key_ann", id_)),  # as another worker
    )
    body = {"model": "gpt", "input": "hi", "max_output_tokens": 500, "background": True}
    for settle in ends:
        id_ = str((await ask(world, ANN, "POST", "/v1/responses", body)).json()["id"])
        assert {0} == {account.held.requests for account in world.worker.ledger.accounts()}
        assert 1 == world.worker.promises.held
        got = await ask(world, ANN, "POST", "/v1/responses", body)
        assert (429, "over_budget") == (got.status_code, got.json()["error"]["code"])
        await world.worker.promises.look()
        assert 1 == world.worker.promises.held
        account.finish(id_)
        await settle(id_)
        await world.worker.promises.look()
        assert (0, (0, 0)) == (world.worker.promises.held, world.worker.ledger.reserved("ann"))


async def test_no_more_run_in_the_background_than_can_be_settled(tmp_path: Path) -> None:
    """One more would push out one whose usage nobody could learn any more; when some are finished there is room again."""
    account = Account(busy=True)
    world = await World(tmp_path).start(background_responses_max=2)
    await two_tenants(world, account)
    body = {"model": "gpt", "input": "hi", "background": True}
    first, _ = await make(world, background=True), await make(world, background=True)
    got = await ask(world, ANN, "POST", "/v1/responses", body)
    assert (503, "overloaded") == (got.status_code, got.json()["error"]["code"])
    account.finish(first)
    await ask(world, ANN, "GET", f"/v1/responses/{first}")
    await until(lambda: not world.worker.kept._claims)
    await world.worker.promises.look()
    await make(world, background=True)
    await world.stop()


async def test_a_background_stream_whose_client_leaves_is_booked_later(world: World) -> None:
    """It goes on at the upstream: leaving costs nothing yet, and what it used is booked when it is finished."""
    account = Account()
    made: list[str] = []

    async def begins(wire: Wire, request: Received) -> None:
        if request.line.startswith("GET"):
            await account.script(wire, request)
            return
        document = account.response(json.loads(request.body))
        made.append(str(document["id"]))
        begun = document | {"status": "in_progress", "output": [], "usage": None}
        event = json.dumps({"type": "response.created", "sequence_number": 0, "response": begun})
        await wire.send(STREAM_HEAD + chunk(f"event: response.created\ndata: {event}\n\n".encode()))
        await wire.hang()

    await world.upstream(begins)
    await two_tenants(world)
    body = {"model": "gpt", "input": "hi", "background": True, "stream": True}
    async with world.client.stream(
        "POST", "/v1/responses", json=body, headers={"authorization": f"Bearer {ANN}"}
    ) as got:
        await anext(got.aiter_lines())
    await world.until_idle()
    assert [Tokens()] == [record.tokens for record in world.records()]
    assert set(made) == set(await world.worker.owners.find("ann", made))
    await world.worker.settlement.look_at_all()
    assert [Tokens(), TOKENS] == [record.tokens for record in world.records()]


@pytest.mark.parametrize("ends", ["completed", "failed"])
@pytest.mark.parametrize("looked_at", [True, False])
async def test_a_background_stream_is_booked_once_whoever_sees_its_end_first(
    world: World, looked_at: bool, ends: str
) -> None:
    """The proxy may look while the stream's last event is still on its way: one of them books it, and however it ends."""
    account, gate = Account(), asyncio.Event()

    async def slow(wire: Wire, request: Received) -> None:
        if request.line.startswith("GET"):
            await account.script(wire, request)
            return
        document = account.response(json.loads(request.body))
        document["status"] = ends
        events = [("created", document | {"status": "in_progress", "output": [], "usage": None}), (ends, document)]
        for number, (kind, response) in enumerate(events):
            said = {"type": f"response.{kind}", "sequence_number": number, "response": response}
            await wire.send((b"" if number else STREAM_HEAD) + chunk(f"data: {json.dumps(said)}\n\n".encode()))
            await gate.wait()
        await wire.send(STREAM_END)

    await world.upstream(slow)
    await two_tenants(world)
    body = {"model": "gpt", "input": "hi", "background": True, "stream": True}
    asking = asyncio.create_task(ask(world, ANN, "POST", "/v1/responses", body))
    await until(lambda: world.worker.owners.unsettled_disk.entries)
    if looked_at:
        await world.worker.settlement.look_at_all()
    gate.set()
    await asking
    await world.until_idle()
    await world.worker.settlement.look_at_all()
    records = world.records()
    assert TOKENS.total == sum(record.tokens.total for record in records) == world.worker.ledger.tokens
    assert 19_000 == sum(record.cost_nanousd for record in records)


async def test_leaving_before_a_background_response_has_an_id_is_not_free(world: World) -> None:
    """Nobody will ever be able to ask what it used, so it is estimated."""
    upstream = await world.upstream(sends_then_hangs(b""))
    await two_tenants(world)
    asking = asyncio.create_task(make(world, background=True))
    await until(lambda: upstream.received)
    asking.cancel()
    await until(upstream.client_left.is_set)
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.CLIENT_CLOSED, CostState.ESTIMATED) == (record.outcome, record.cost_state)
    assert record.tokens.input


async def test_a_number_that_nobody_can_write_again_is_said_to_be_wrong(world: World) -> None:
    """Where a body that names ids is to be written anew; it never reaches the upstream, and is no fault of ours."""
    account = Account()
    await two_tenants(world, account)
    body = b'{"metadata":{"a":1e999},"items":[{"type":"message","id":"msg_1","role":"user","content":"x"}]}'
    got = await world.client.post("/v1/conversations", content=body, headers={"authorization": f"Bearer {ANN}"})
    assert (400, 0) == (got.status_code, len(account.asked))


async def test_leaving_while_a_background_response_is_booked_is_not_free(world: World) -> None:
    """Who sees it finished and leaves in the moment in which that is written down pays: nobody is asked a second time."""
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    account.finish(id_)
    lock = sqlite3.connect(Path(world.worker.settings.data_dir) / "proxy" / "owners" / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    asking = asyncio.create_task(ask(world, ANN, "GET", f"/v1/responses/{id_}"))
    await until(lambda: len(account.asked) == 2 and world.worker.owners.waiting)
    asking.cancel()
    await until(asking.done)
    for _ in range(50):  # so that the proxy knows it
        await world.client.get("/livez")
    lock.execute("ROLLBACK")
    lock.close()
    await world.until_idle()
    assert [Tokens(), TOKENS] == [record.tokens for record in world.records()]


async def test_a_background_response_is_booked_before_it_is_deleted(world: World) -> None:
    """Afterwards nobody could learn what it used; one that is gone at the upstream is estimated, and counted."""
    account = Account(busy=True)
    await two_tenants(world, account)
    first, second = await make(world, background=True), await make(world, background=True)
    account.finish(first)
    assert 200 == (await ask(world, ANN, "DELETE", f"/v1/responses/{first}")).status_code
    assert [0, 0, 19_000, 0] == [record.cost_nanousd for record in world.records()]
    del account.things[second]
    await world.worker.settlement.look_at_all()
    await world.worker.settlement.look_at_all()
    assert (0, 0) == (world.worker.settlement.given_up_total, world.worker.settlement.waiting)
    assert 1 == world.worker.kept.estimated_total
    assert CostState.ESTIMATED is world.records()[-1].cost_state
    assert world.records()[-1].tokens.input


@pytest.mark.parametrize(
    ("method", "after"), [("DELETE", ""), ("POST", "/cancel"), ("GET", "")], ids=["deleted", "cancelled", "gone"]
)
async def test_a_background_response_that_ends_without_a_word_is_estimated(
    tmp_path: Path, method: str, after: str
) -> None:
    """Deleted while it runs, cancelled, or gone at its upstream: booked once, as long as it ran and at most at what was reserved."""
    world = await World(tmp_path).start(abandoned_tokens_per_s=1e9)
    account = Account(busy=True)
    await two_tenants(world, account, budgets=(Budget("b", Window.MONTH, nanousd=10**12),))
    body = {"model": "gpt", "input": "hi" * 100, "max_output_tokens": 500, "background": True}
    id_ = (await ask(world, ANN, "POST", "/v1/responses", body)).json()["id"]
    assert 1 == world.worker.kept.promises.held
    if method == "GET":
        del account.things[id_]
    got = await ask(world, ANN, method, f"/v1/responses/{id_}{after}")
    assert (404 if method == "GET" else 200) == got.status_code
    for _ in range(2):
        await world.worker.settlement.look_at_all()
        await ask(world, ANN, method, f"/v1/responses/{id_}{after}")
    await world.until_idle()
    (booked,) = [record for record in world.records() if record.tokens.total]
    sent = len(account.asked[0][2])
    assert (sent // 4, 500, CostState.ESTIMATED) == (booked.tokens.input, booked.tokens.output, booked.cost_state)
    assert 0 < booked.cost_nanousd == world.worker.ledger.nanousd
    assert (0, 0) == (world.worker.kept.promises.held, world.worker.settlement.waiting)
    assert (1, (0, 0)) == (world.worker.kept.estimated_total, world.worker.ledger.reserved("ann"))
    await world.stop()


async def test_a_background_response_that_never_ends_is_estimated_before_it_is_forgotten(world: World) -> None:
    """What nobody has seen finished in nearly all the time there is counts as used, and is not looked at any more."""
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    (item,) = await world.worker.owners.unsettled()
    assert item.estimate is not None
    await world.worker.settlement.look_at_all()
    assert (0, 1) == (world.worker.ledger.tokens, world.worker.settlement.waiting)
    old = structs.replace(item.estimate, made_us=item.estimate.made_us - 80_000_000_000)
    await world.worker.owners.promise(structs.replace(item, estimate=old))
    world.worker.settlement._next.clear()
    await world.worker.settlement.look_at_all()
    await world.worker.settlement.look_at_all()
    assert (1, 0) == (world.worker.kept.estimated_total, world.worker.settlement.waiting)
    assert old.output_max <= world.worker.ledger.tokens
    account.finish(id_)
    assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).status_code
    assert 0 == world.records()[-1].tokens.total


async def _restarted(world: World, tmp_path: Path) -> World:
    """The next life of the same worker, before anything in it has looked at anything."""
    ports = world.upstreams
    again = await World(tmp_path).start(background_look_every_s=3600.0)
    again.upstreams = ports
    await two_tenants(again, version=2)
    return again


@pytest.mark.parametrize("settled", [False, True], ids=["claimed", "settled"])
async def test_a_kill_between_the_claim_and_the_record_loses_nothing(tmp_path: Path, settled: bool) -> None:
    """A worker that claimed a response and died without a record is seen by its next life: looked at again, and booked once."""
    world = await World(tmp_path).start(background_look_every_s=3600.0)
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    account.finish(id_)
    owners, dead = world.worker.owners, Claim("0", 1, "call_dead")
    if settled:
        assert await owners.settle(Unsettled("ann", "key_ann", id_), dead)
    else:  # one step earlier
        (item,) = await owners.unsettled()
        await owners.promise(structs.replace(item, claim=dead))
    await world.worker.settlement.look_at_all()
    assert 0 == world.worker.ledger.tokens  # it is the other's
    ups, world.upstreams = world.upstreams, []
    await world.stop()
    world.upstreams = ups
    again = await _restarted(world, tmp_path)
    await until(lambda: again.worker.promises.released_total)
    await again.worker.settlement.look_at_all()
    assert TOKENS.total == again.worker.ledger.tokens
    await ask(again, ANN, "GET", f"/v1/responses/{id_}")
    await again.worker.settlement.look_at_all()
    assert (TOKENS.total, 0) == (again.worker.ledger.tokens, again.worker.settlement.waiting)
    await again.stop()


async def test_a_disk_that_fails_after_the_record_books_nothing_twice(tmp_path: Path) -> None:
    """The record is in the spool and the note that it is could not be written: the next life knows from its ledger."""
    world = await World(tmp_path).start(background_look_every_s=3600.0)
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    account.finish(id_)
    await ask(world, ANN, "GET", f"/v1/responses/{id_}")
    await world.until_idle()
    (booked,) = [record for record in world.records() if record.tokens.total]
    assert {"heph-settles": id_} == booked.tags
    owners = world.worker.owners
    await until(lambda: not world.worker.kept._claims)
    assert [] == await owners.unsettled()
    unconfirmed = Unsettled("ann", "key_ann", id_, claim=Claim("0", 1, booked.call_id))
    await owners.promise(unconfirmed)
    ups, world.upstreams = world.upstreams, []
    await world.stop()
    world.upstreams = ups
    again = await _restarted(world, tmp_path)
    await again.worker.promises.look()
    assert ([], 0) == (await again.worker.owners.unsettled(), again.worker.promises.released_total)
    await again.worker.settlement.look_at_all()
    assert (TOKENS.total, 0) == (again.worker.ledger.tokens, again.worker.settlement.looks_total)
    await again.stop()


async def test_a_claim_of_a_living_worker_is_its_own(world: World) -> None:
    """Nobody else looks at what is about to be booked, gives it up, or ends the claim; those of workers that are no more are the first one's."""
    account = Account(busy=True)
    await two_tenants(world, account)
    id_ = await make(world, background=True)
    owners = world.worker.owners
    (item,) = await owners.unsettled()
    await owners.promise(structs.replace(item, claim=Claim("1", 1, "call_x")))
    await world.worker.settlement.look_at_all()
    await owners.give_up(item)
    assert not await owners.settle(item, Claim("0", 2, "call_y"))
    assert (0, 1) == (world.worker.settlement.looks_total, len(await owners.unsettled()))
    world.worker.promises._recovered = False
    await world.worker.promises.look()  # there is one worker, so "1" is no more
    assert (1, None) == (world.worker.promises.released_total, (await owners.unsettled())[0].claim)
    account.finish(id_)
    await world.worker.settlement.look_at_all()
    assert TOKENS.total == world.worker.ledger.tokens


async def test_a_stream_that_cannot_be_claimed_is_booked_later_and_once(world: World) -> None:
    """While the disk cannot be used its own record has no usage, for the proxy will look for it again."""
    gate = asyncio.Event()
    account = Account()

    async def slow(wire: Wire, request: Received) -> None:
        if not request.line.startswith("POST"):
            await account.script(wire, request)
            return
        document = account.response(json.loads(request.body))
        for number, kind in enumerate(("created", "completed")):
            response = document if number else document | {"status": "in_progress", "output": [], "usage": None}
            said = {"type": f"response.{kind}", "sequence_number": number, "response": response}
            await wire.send((b"" if number else STREAM_HEAD) + chunk(f"data: {json.dumps(said)}\n\n".encode()))
            await gate.wait()
        await wire.send(STREAM_END)

    await world.upstream(slow)
    await two_tenants(world)
    body = {"model": "gpt", "input": "hi", "background": True, "stream": True}
    asking = asyncio.create_task(ask(world, ANN, "POST", "/v1/responses", body))
    await until(lambda: world.worker.owners.unsettled_disk.entries)
    lock = sqlite3.connect(
        Path(world.worker.settings.data_dir) / "proxy" / "unsettled" / "cache.db", isolation_level=None
    )
    lock.execute("BEGIN IMMEDIATE")
    gate.set()
    assert 200 == (await asking).status_code
    lock.execute("ROLLBACK")
    lock.close()
    await world.until_idle()
    assert 0 == world.worker.ledger.tokens
    await until(lambda: not world.worker.kept._doubtful)
    world.worker.settlement._next.clear()
    await world.worker.settlement.look_at_all()
    assert TOKENS.total == world.worker.ledger.tokens


async def test_conversations_and_their_items(world: World) -> None:
    """Made, read, changed, filled, listed and deleted by their tenant; each call one record; for all others they are not there."""
    account = Account()
    await two_tenants(world, account)
    item = {"type": "message", "role": "user", "content": "hi"}
    home = (await ask(world, ANN, "POST", "/v1/conversations", {"items": [item]})).json()["id"]
    path = f"/v1/conversations/{home}"
    calls = [
        ("GET", path, None), ("POST", path, {"metadata": {"a": "b"}}), ("POST", f"{path}/items", {"items": [item]}),
        ("GET", f"{path}/items?limit=2", None), ("GET", f"{path}/items/msg_a0001", None),
    ]  # fmt: skip
    for method, target, document in calls:
        assert 404 == (await ask(world, BOB, method, target, document)).status_code
        assert 200 == (await ask(world, ANN, method, target, document)).status_code
    listed = (await ask(world, ANN, "GET", f"{path}/items")).json()["data"][0]["id"]
    reference = {"items": [{"type": "item_reference", "id": listed}]}
    assert 200 == (await ask(world, ANN, "POST", f"{path}/items", reference)).status_code
    bobs = (await ask(world, BOB, "POST", "/v1/conversations", {})).json()["id"]
    assert 404 == (await ask(world, BOB, "POST", f"/v1/conversations/{bobs}/items", reference)).status_code
    assert 404 == (await ask(world, BOB, "POST", "/v1/conversations", reference)).status_code
    assert 200 == (await ask(world, ANN, "DELETE", path)).status_code
    assert 404 == (await ask(world, ANN, "GET", path)).status_code
    operations = [record.operation for record in world.records()]
    assert {
        "conversations_create", "conversations_get", "conversations_update", "conversations_items_create", "conversations_items_list",
        "conversations_items_get", "conversations_delete",
    } == set(operations)  # fmt: skip
    assert 1 + 2 * len(calls) + 1 + 1 + 1 + 1 + 1 + 2 == len(operations)


async def test_a_conversation_goes_where_its_client_says(world: World) -> None:
    """`x-heph-model` names the model whose upstream shall keep it, among those that the key may use."""
    first, second = Account("a"), Account("b")
    await two_tenants(world, first, second, models=("one", "two"))
    got = await ask(world, ANN, "POST", "/v1/conversations", {}, **{"x-heph-model": "two"})
    assert got.json()["id"].startswith("conv_b")
    got = await ask(world, ANN, "POST", "/v1/conversations", {}, **{"x-heph-model": "none"})
    assert (404, "no_route") == (got.status_code, got.json()["error"]["code"])


async def test_owners_are_bounded_and_what_gives_way_is_counted(tmp_path: Path) -> None:
    """Above the bound the oldest are forgotten: then they are not there, as if they had never been."""
    world = await World(tmp_path).start(state_entries_max=16)
    await two_tenants(world, Account())
    ids = [await make(world) for _ in range(12)]  # each with the id of its message
    assert 404 == (await ask(world, ANN, "GET", f"/v1/responses/{ids[0]}")).status_code
    assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{ids[-1]}")).status_code
    assert 8 == world.worker.owners.disk.evicted_total
    assert b"heph_proxy_owners_evicted_total" in world.worker.metrics.render()
    await world.stop()


async def test_an_unusable_disk_is_no_404(tmp_path: Path) -> None:
    """What cannot be looked up is neither found nor missing: 503, try again; a new response is served, and its loss counted."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "owners").write_bytes(b"in the way")
    world = await World(tmp_path).start()
    await two_tenants(world, Account())
    id_ = await make(world)
    got = await ask(world, ANN, "GET", f"/v1/responses/{id_}")
    assert (503, "not_ready", "true") == (got.status_code, got.json()["error"]["code"], got.headers["x-should-retry"])
    assert 2 == world.worker.owners.lost_total
    await world.stop()


NAMES = itertools.count()
STEPS = st.lists(
    st.tuples(
        st.sampled_from((ANN, BOB)), st.sampled_from(("make", "continue", "get", "delete", "stream")), st.integers(0, 9)
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_two_tenants_never_meet(world: World, steps: list[tuple[str, str, int]]) -> None:
    """In any order of making, going on, reading and deleting, a tenant finds all of its own things and none of the other's."""
    account = Account(f"x{next(NAMES)}")  # ids that no other run has made
    world.upstreams[:] = []
    await two_tenants(world, account)
    made: list[tuple[str, str]] = []
    gone: set[str] = set()
    for key, step, at in steps:
        owner, id_ = made[at % len(made)] if made else (BOB if key == ANN else ANN, "resp_none")
        path = f"/v1/responses/{id_}"
        if step == "make":
            made.append((key, await make(world, key)))
            continue
        if step == "continue":
            body = {"model": "gpt", "input": "x", "previous_response_id": id_}
            got = await ask(world, key, "POST", "/v1/responses", body)
        else:
            method = "DELETE" if step == "delete" else "GET"
            got = await ask(world, key, method, path + ("?stream=true" if step == "stream" else ""))
        mine = owner == key and id_ not in gone
        assert (200 if mine else 404) == got.status_code
        if mine and step == "delete":
            gone.add(id_)
        elif mine and step == "continue":
            made.append((key, got.json()["id"]))

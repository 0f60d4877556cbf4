"""Paths of an upstream that no operation covers: who may ask for them, how they go out, and what is recorded."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.pricing import Price
from controlplane.contract.records import AttemptError, CallRecord, CostState, Outcome
from controlplane.contract.snapshot import (
    Budget,
    CachePolicy,
    KeyEntry,
    PassthroughGrant,
    Quota,
    QuotaScope,
    TenantPolicy,
    Unpriced,
    Window,
)
from tests.proxy.anthropic_fakes import whole_message
from tests.proxy.fakes import (
    DONE,
    KEY,
    PEPPER,
    PRICE,
    STREAM_END,
    STREAM_HEAD,
    Script,
    ScriptedUpstream,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    sends_then_aborts,
    usage_event,
)

ALL = (PassthroughGrant("u0"),)
COST_NANOUSD = 9 * 1_000 + 3 * 2_000


def tenant(
    grants: tuple[PassthroughGrant, ...] = ALL, *, budgets: tuple[Budget, ...] = (), unpriced: Unpriced = Unpriced.ALLOW
) -> TenantPolicy:
    """A tenant with these grants."""
    return TenantPolicy(
        id="acme", passthrough=grants, cache=CachePolicy(enabled=False), budgets=budgets, unpriced=unpriced
    )


async def serve(
    world: World,
    *scripts: Script,
    policy: TenantPolicy | None = None,
    price: Price | None = PRICE,
    dialect: str = "openai",
    keys: tuple[KeyEntry, ...] = (),
) -> ScriptedUpstream:
    """An upstream `u0` whose base address ends with `/v1`."""
    upstream = await world.upstream(*scripts)
    world.apply(tenant=policy or tenant(), price=price, upstream={"dialect": dialect}, keys=keys)
    return upstream


def only(world: World) -> CallRecord:
    """The one record."""
    (record,) = world.records()
    return record


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_any_method_and_path_goes_on_as_it_came(world: World, method: str) -> None:
    """Path and query byte for byte below the base address, the body untouched; our credential, never the client's."""
    upstream = await serve(world, replies(answer(b'{"id":"file-1"}')))
    headers = {"cookie": "a=b", "x-secret": "s", "openai-beta": "assistants=v2", "x-heph-agent": "planner"}
    target = "/passthrough/u0/files/a%20b?limit=2&after=x%2Fy"
    response = await world.client.request(method, target, content=b"{ }", headers=headers)
    assert (200, b'{"id":"file-1"}') == (response.status_code, response.content)
    (seen,) = upstream.received
    assert f"{method} /v1/files/a%20b?limit=2&after=x%2Fy HTTP/1.1" == seen.line
    assert b"{ }" == seen.body
    assert "Bearer sk-upstream-secret" == seen.headers["authorization"]
    assert "assistants=v2" == seen.headers["openai-beta"]
    assert not {"cookie", "x-secret", "x-heph-agent"} & seen.headers.keys()
    record = only(world)
    assert ("passthrough", Outcome.OK, "planner", "u0/passthrough") == (
        record.operation, record.outcome, record.agent, record.deployment,
    )  # fmt: skip
    assert (0, CostState.UNPRICED) == (record.cost_nanousd, record.cost_state)


async def test_usage_of_a_known_model_is_priced(world: World) -> None:
    """By the deployment that has this model at this upstream."""
    await serve(world, replies(answer(completion())))
    body = {"model": "upstream-model", "messages": []}
    response = await world.client.post("/passthrough/u0/chat/completions", json=body)
    record = only(world)
    assert (COST_NANOUSD, CostState.FINAL) == (record.cost_nanousd, record.cost_state)
    assert ("u0/m", "upstream-model") == (record.deployment, record.model)
    assert "0.000015000" == response.headers["x-heph-cost-usd"]


async def test_a_model_of_unknown_price_is_unpriced_not_free(world: World) -> None:
    """Its tokens count; its cost is unknown, which is said."""
    await serve(world, replies(answer(completion())))
    await world.client.post("/passthrough/u0/chat/completions", json={"model": "another", "messages": []})
    record = only(world)
    assert (12, 0, CostState.UNPRICED) == (record.tokens.total, record.cost_nanousd, record.cost_state)


async def test_an_answer_that_hides_its_usage_is_estimated(world: World) -> None:
    """A client cannot make a priced model free by not asking for usage."""
    stream = STREAM_HEAD + chunk(event() + event("a") + event("b") + DONE) + STREAM_END
    await serve(world, replies(stream))
    body = {"model": "upstream-model", "messages": [], "stream": True}
    await world.client.post("/passthrough/u0/chat/completions", json=body)
    record = only(world)
    assert CostState.ESTIMATED == record.cost_state
    assert record.cost_nanousd > 0


@pytest.mark.parametrize(
    "odd", [{"stream": None}, {"stream": "yes"}, {"n": "two"}, {"n": 10**30}, {"messages": "\\u0000"}]
)
async def test_an_odd_request_is_billed_like_any_other(world: World, odd: dict[str, object]) -> None:
    """Nothing in a body that names a priced model hides it."""
    await serve(world, replies(answer(completion())))
    await world.client.post("/passthrough/u0/chat/completions", json={"model": "upstream-model"} | odd)
    assert COST_NANOUSD == only(world).cost_nanousd


async def test_a_model_named_twice_reaches_the_upstream_as_it_is_billed(world: World) -> None:
    """The last one counts, for both."""
    upstream = await serve(world, replies(answer(completion())))
    body = b'{"model":"dear","messages":[],"model":"upstream-model"}'
    await world.client.post("/passthrough/u0/chat/completions", content=body)
    assert b'{"model":"upstream-model","messages":[]}' == upstream.received[0].body
    assert COST_NANOUSD == only(world).cost_nanousd


async def test_a_stream_goes_through_event_by_event(world: World) -> None:
    """Every byte as it came, then the cost; the usage in it counts."""
    events = event() + event("a") + usage_event() + DONE
    await serve(world, replies(STREAM_HEAD + chunk(events[:40]) + chunk(events[40:]) + STREAM_END))
    body = {"model": "upstream-model", "messages": [], "stream": True}
    response = await world.client.post("/passthrough/u0/chat/completions", json=body)
    assert events + b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\n\n" == response.content
    assert COST_NANOUSD == only(world).cost_nanousd


async def test_anthropics_streams_are_metered_too(world: World) -> None:
    """By their own words, with Anthropic's version where the client names none."""
    upstream = await serve(world, replies(whole_message("a")), dialect="anthropic")
    body = {"model": "upstream-model", "messages": [], "stream": True}
    response = await world.client.post("/passthrough/u0/messages", json=body)
    assert b"event: message_stop" in response.content
    assert COST_NANOUSD == only(world).cost_nanousd
    assert "2023-06-01" == upstream.received[0].headers["anthropic-version"]


async def test_responses_streams_are_metered_too(world: World) -> None:
    """Their usage comes inside the last event's response."""
    usage = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
    done = json.dumps({"type": "response.completed", "response": {"usage": usage}}).encode()
    events = b"event: response.completed\ndata: " + done + b"\n\n"
    await serve(world, replies(STREAM_HEAD + chunk(events) + STREAM_END))
    await world.client.post("/passthrough/u0/responses", json={"model": "upstream-model", "input": "x"})
    assert COST_NANOUSD == only(world).cost_nanousd


async def test_a_stream_that_breaks_off_is_said_to_be_broken(world: World) -> None:
    """The end of the connection is not the end of a stream."""
    await serve(world, sends_then_aborts(STREAM_HEAD + chunk(event("a"))))
    response = await world.client.post("/passthrough/u0/chat/completions", json={"model": "m", "stream": True})
    assert "broken_stream" in response.text
    assert Outcome.BROKEN_STREAM == only(world).outcome


@pytest.mark.parametrize(
    "target",
    [
        "/passthrough/u0/../admin", "/passthrough/u0/%2e%2e/admin", "/passthrough/u0/files/..", "/passthrough/u0/./files",
        "/passthrough/u0/%252e%252e/admin", "/passthrough/u0/%25252e%25252e/x", "/passthrough/u0/..;/admin",
        "/passthrough/u0/files%2f..%2fadmin", "/passthrough/u0/files%2Fadmin", "/passthrough/u0/files%5cadmin",
        "/passthrough/u0//evil.example/x", "/passthrough/u0/files//admin", "/passthrough/u0/a%0d%0ahost:%20evil",
        "/passthrough/u0/a%00b", "/passthrough/u0/%ff", "/passthrough/", "/passthrough//files",
    ],
)  # fmt: skip
async def test_a_path_that_two_readers_could_understand_differently_is_refused(world: World, target: str) -> None:
    """Nothing leaves the upstream's base address or a grant by way of dots, slashes, line ends or decoding."""
    upstream = await serve(world, replies(answer(b"{}")), policy=tenant((PassthroughGrant("u0", ("/files",)),)))
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET {target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
    )  # as no client would
    status = (await reader.readline()).split()[1]
    writer.close()
    assert b"400" == status
    assert not upstream.received
    assert Outcome.MALFORMED == only(world).outcome


@pytest.mark.parametrize(
    ("allowed", "grants", "path"),
    [
        (True, ALL, "u0/anything/at/all"),
        (True, (PassthroughGrant("u0", ("/files",)),), "u0/files"),
        (True, (PassthroughGrant("u0", ("/files",)),), "u0/files/1/content"),
        (True, (PassthroughGrant("u0", ("/files",)),), "u0/%66iles"),
        (False, (PassthroughGrant("u0", ("/files",)),), "u0/filesystem"),
        (False, (PassthroughGrant("u0", ("/files",)),), "u0/FILES"),
        (False, (PassthroughGrant("u0", ("/files",)),), "u0"),
        (False, (PassthroughGrant("u1"),), "u0/files"),
        (False, ALL, "none/files"),
        (False, (), "u0/files"),
    ],
)
async def test_only_what_was_granted(
    world: World, allowed: bool, grants: tuple[PassthroughGrant, ...], path: str
) -> None:
    """Nobody has a grant unless an operator gave it, and it holds for its upstream and its paths alone."""
    upstream = await serve(world, replies(answer(b"{}")), policy=tenant(grants))
    response = await world.client.get(f"/passthrough/{path}")
    assert (200 if allowed else 403) == response.status_code
    assert allowed == bool(upstream.received)
    assert (Outcome.OK if allowed else Outcome.FORBIDDEN) == only(world).outcome


async def test_a_key_that_is_limited_to_models_may_not(world: World) -> None:
    """Its list could not be held to on a path."""
    key = KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant="acme", models=("gpt",))
    upstream = await serve(world, replies(answer(b"{}")), keys=(key,))
    assert 403 == (await world.client.get("/passthrough/u0/files")).status_code
    assert not upstream.received


async def test_a_stranger_may_not(world: World) -> None:
    """It is a call like any other: refused and recorded."""
    await serve(world, replies(answer(b"{}")))
    response = await world.client.get("/passthrough/u0/files", headers={"authorization": "Bearer x"})
    assert 401 == response.status_code
    assert Outcome.DENIED == only(world).outcome


async def test_budgets_hold(world: World) -> None:
    """The worst case of a priced model is held, whatever ceiling the request names, for only the endpoint knows which it reads."""
    upstream = await serve(
        world, replies(answer(completion())), policy=tenant(budgets=(Budget("day", Window.DAY, nanousd=20_000_000),))
    )
    body = {"model": "upstream-model", "messages": [], "max_tokens": 1}
    response = await world.client.post("/passthrough/u0/chat/completions", json=body)
    assert (429, "over_budget") == (response.status_code, response.json()["error"]["code"])
    assert not upstream.received


async def test_an_operator_says_what_a_call_is_held_at(world: World) -> None:
    """With `passthrough_usd_per_call` a budget that has no room for the worst case has room for that; one that costs more is counted."""
    await serve(
        world, replies(answer(completion())), policy=tenant(budgets=(Budget("day", Window.DAY, nanousd=20_000_000),))
    )
    runtime = world.worker.app.runtime
    assert runtime is not None
    snapshot = runtime.snapshot
    upstreams = tuple(msgspec.structs.replace(one, passthrough_nanousd=10_000) for one in snapshot.upstreams)
    world.worker.apply(msgspec.structs.replace(snapshot, version=snapshot.version + 1, upstreams=upstreams))
    body = {"model": "upstream-model", "messages": []}
    assert 200 == (await world.client.post("/passthrough/u0/chat/completions", json=body)).status_code
    assert COST_NANOUSD > 10_000
    assert (COST_NANOUSD, 1) == (world.worker.ledger.nanousd, world.worker.ledger.exceeded_total)


async def test_quotas_of_a_model_count_it_on_every_path(world: World) -> None:
    """What a path uses of a model is settled where it was held: under the alias of its deployment."""
    quota = Quota("two", per=QuotaScope.MODEL, window=Window.DAY, requests=2)
    policy = msgspec.structs.replace(tenant(), quotas=(quota,))
    await serve(world, replies(answer(completion())), policy=policy)
    asked = [
        await world.client.post("/passthrough/u0/chat/completions", json={"model": "upstream-model"}),
        await world.chat(),
        await world.chat(),
    ]
    assert [200, 200, 429] == [response.status_code for response in asked]
    assert ["gpt", "", ""] == [record.routed for record in world.records()]


async def test_nothing_passes_when_the_money_is_spent(world: World) -> None:
    """What has no known price may cost anything: a file or a batch passes while something is left of every budget in USD, and then no more."""
    upstream = await serve(
        world,
        replies(answer(completion())),
        policy=tenant(budgets=(Budget("usd", Window.TOTAL, nanousd=2 * COST_NANOUSD),)),
    )
    assert 200 == (await world.client.post("/passthrough/u0/batches", json={"input_file_id": "f"})).status_code
    world.apply(tenant=tenant(budgets=(Budget("usd", Window.TOTAL, nanousd=10**9),)))
    body = {"model": "upstream-model", "messages": []}
    for _ in range(2):
        assert 200 == (await world.client.post("/passthrough/u0/chat/completions", json=body)).status_code
    world.apply(tenant=tenant(budgets=(Budget("usd", Window.TOTAL, nanousd=2 * COST_NANOUSD),)))
    for path, content in (
        ("batches", b'{"input_file_id":"f"}'),
        ("files", b"--x"),
        ("chat/completions", b'{"model":"new"}'),
    ):
        response = await world.client.post(f"/passthrough/u0/{path}", content=content)
        assert (429, "over_budget") == (response.status_code, response.json()["error"]["code"])
    assert 3 == len(upstream.received)


async def test_quotas_in_requests_and_for_one_agent_hold(world: World) -> None:
    """A call that is passed through is a request like any other."""
    quota = Quota("calls", per=QuotaScope.AGENT, window=Window.DAY, requests=1)
    policy = msgspec.structs.replace(tenant(), quotas=(quota,))
    upstream = await serve(world, replies(answer(b"{}")), policy=policy)
    statuses = [
        (await world.client.get("/passthrough/u0/files", headers={"x-heph-agent": agent})).status_code
        for agent in ("a", "a", "b")
    ]
    assert [200, 429, 200] == statuses
    assert 2 == len(upstream.received)


async def test_what_has_no_price_is_refused_where_the_tenant_says_so(world: World) -> None:
    """`unpriced: refuse` closes every path that is not a priced model's."""
    policy = tenant(unpriced=Unpriced.REFUSE)
    upstream = await serve(world, replies(answer(completion())), policy=policy)
    assert 403 == (await world.client.get("/passthrough/u0/files")).status_code
    body = {"model": "upstream-model", "messages": []}
    assert 200 == (await world.client.post("/passthrough/u0/chat/completions", json=body)).status_code
    assert 1 == len(upstream.received)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE"])
async def test_methods_without_an_answer_of_their_own_are_refused(world: World, method: str) -> None:
    """And recorded."""
    upstream = await serve(world, replies(answer(b"{}")))
    assert 405 == (await world.client.request(method, "/passthrough/u0/files")).status_code
    assert not upstream.received
    assert Outcome.MALFORMED == only(world).outcome


async def test_an_error_of_the_upstream_is_passed_on(world: World) -> None:
    """Body and status as they came."""
    await serve(world, fails(404, "not_found"))
    response = await world.client.get("/passthrough/u0/files/1")
    assert (404, "not_found") == (response.status_code, response.json()["error"]["code"])
    assert Outcome.UPSTREAM_REFUSED == only(world).outcome


async def test_what_an_upstream_says_of_our_credential_stays_here(world: World) -> None:
    """Such an answer often quotes it."""
    await serve(world, fails(401, "invalid_api_key"))
    response = await world.client.get("/passthrough/u0/files")
    assert (503, "misconfigured") == (response.status_code, response.json()["error"]["code"])
    assert AttemptError.AUTH == only(world).attempts[0].error


async def test_an_upstream_that_is_away_is_tried_once(world: World) -> None:
    """A request that may have had its effect is not sent again."""
    upstream = await serve(world, replies(answer(b"{}")))
    await upstream.stop()
    response = await world.client.post("/passthrough/u0/files")
    assert (502, "exhausted") == (response.status_code, response.json()["error"]["code"])
    assert 1 == len(only(world).attempts)


async def test_files_go_up_and_down(world: World) -> None:
    """A form and a binary answer pass untouched, with the client's content type; the bytes of a file are no tokens."""
    data = bytes(range(256)) * 40
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {len(data)}\r\n\r\n".encode()
    upstream = await serve(world, replies(head + data))
    async with httpx.AsyncClient(base_url=world.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        response = await client.post("/passthrough/u0/files", files={"file": ("f", data)})
    assert data == response.content
    assert data in upstream.received[0].body
    assert upstream.received[0].headers["content-type"].startswith("multipart/form-data; boundary=")
    assert 0 == only(world).tokens.total

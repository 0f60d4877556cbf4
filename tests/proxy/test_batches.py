"""OpenAI's files and batches through the proxy: whose they are, what may be in them, and what they cost, booked once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from msgspec import structs

from controlplane.clock import ManualClock
from controlplane.contract.records import CostState, Outcome
from controlplane.contract.snapshot import Budget, Quota, QuotaMatch, TenantPolicy, Unpriced, Window
from controlplane.demo.faults import Fault, FaultKind, FaultMatch
from controlplane.demo.provider.server import Provider
from tests.proxy.batch_world import (
    BATCH_S,
    CHAT,
    PRICE,
    begin,
    billed,
    line,
    sdk,
    simulated,
    snapshot,
    upload,
    usage_records,
)
from tests.proxy.fakes import World, until
from tests.proxy.redis_server import RedisServer

SMALL, LARGE = "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06"


@pytest.fixture
def clock() -> ManualClock:
    """The provider's clock."""
    return ManualClock()


@pytest.fixture
async def provider(clock: ManualClock, world: World) -> AsyncIterator[Provider]:
    """A provider that the worker knows."""
    async with simulated(clock) as made:
        world.worker.apply(snapshot(made.ports))
        yield made


async def settle(world: World) -> None:
    """One round of the loop that settles."""
    await world.worker.settlement.look_at_all()


async def settle_now(world: World) -> None:
    """A look at everything, due or not."""
    for item in await world.worker.owners.unsettled():
        await world.worker.settlement.look(item)


async def test_a_batch_is_made_done_read_and_booked(world: World, provider: Provider, clock: ManualClock) -> None:
    """Its answers are the provider's, and what the provider billed is on one record for each model, at the batch price, once."""
    client = sdk(world)
    batch_id = await begin(
        client, line("a"), line("b"), line("c", model="large"), line("d", model="large", temperature=99)
    )
    await settle(world)
    assert [] == usage_records(world)
    clock.move(BATCH_S)
    done = await client.batches.retrieve(batch_id)
    assert ("completed", 3) == (done.status, done.request_counts and done.request_counts.completed)
    assert done.output_file_id is not None
    answers = [json.loads(text) for text in (await client.files.content(done.output_file_id)).text.splitlines()]
    assert {"a", "b", "c"} == {answer["custom_id"] for answer in answers}
    for _ in range(3):
        await settle(world)
    records = {record.alias: record for record in usage_records(world)}
    assert {"small": SMALL, "large": LARGE}.keys() == records.keys()
    for alias, model in (("small", SMALL), ("large", LARGE)):
        record = records[alias]
        tokens_in, tokens_out = billed(provider, model)
        assert (tokens_in, tokens_out) == (record.tokens.total_input, record.tokens.total_output)
        cached = record.tokens.cache_read
        assert (tokens_in - cached) * 1_000 + cached * 500 + tokens_out * 4_000 == record.cost_nanousd
        assert (CostState.FINAL, "p1/batch", "ann", "key_ann") == (
            record.cost_state,
            record.price_version,
            record.tenant,
            record.key_id,
        )
        assert batch_id == record.tags["heph-batch"]
    assert sum(record.cost_nanousd for record in records.values()) == world.worker.ledger.nanousd
    assert {Outcome.OK} == {record.outcome for record in world.records()}


async def test_nothing_of_another_tenant_can_be_reached(world: World, provider: Provider, clock: ManualClock) -> None:
    """Files, batches and results of one tenant are for the other one word for word what never was, and reach no upstream."""
    ann, bob = sdk(world), sdk(world, "bob")
    batch_id = await begin(ann, line("a"))
    clock.move(BATCH_S)
    done = await ann.batches.retrieve(batch_id)
    assert done.output_file_id is not None
    before = provider.upstreams[0].stats.requests
    for file_id in (done.input_file_id, done.output_file_id, "file-none"):
        for ask in (bob.files.retrieve, bob.files.delete, bob.files.content):
            with pytest.raises(openai.NotFoundError, match=f"File with id '{file_id}' not found"):
                await ask(file_id)
        with pytest.raises(openai.NotFoundError, match=f"File with id '{file_id}' not found"):
            await bob.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    for name in (batch_id, "batch_none", "..%2Fmodels"):
        for at in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await at(name)
    assert before == provider.upstreams[0].stats.requests
    assert "completed" == (await ann.batches.retrieve(batch_id)).status


async def test_lists_show_a_tenant_s_own_alone(world: World, provider: Provider) -> None:
    """Page by page, in the provider's order, however many of others lie between."""
    ann, bob = sdk(world), sdk(world, "bob")
    made: dict[str, list[str]] = {"ann": [], "bob": []}
    for n in range(9):
        name, client = ("bob", bob) if n % 3 else ("ann", ann)
        made[name].insert(0, await begin(client, line(str(n))))
    for name, client in (("ann", ann), ("bob", bob)):
        assert made[name] == [batch.id async for batch in client.batches.list(limit=2)]
        files = [file.id async for file in client.files.list(limit=4, purpose="batch")]
        inputs = [(await client.batches.retrieve(batch)).input_file_id for batch in made[name]]
        assert inputs == files
    with pytest.raises(openai.NotFoundError):
        await ann.batches.list(after=made["bob"][0])
    assert provider.upstreams[0].stats.requests


async def test_a_list_that_others_fill_is_looked_through_only_so_far(tmp_path: Path, clock: ManualClock) -> None:
    """Beyond `batch_list_pages_max` pages it says that there is more, and counts that."""
    world = await World(tmp_path).start(batch_list_pages_max=1)
    async with simulated(clock) as provider:
        world.worker.apply(snapshot(provider.ports))
        await upload(sdk(world), [line("a")])
        bob = sdk(world, "bob")
        for n in range(100):
            await upload(bob, [line(str(n))])
        page = await sdk(world).files.list()
        assert ([], True) == (page.data, page.has_more)
        assert 'batch_list_pages_max"' in (await world.client.get("/metrics")).text
    await world.stop()


REFUSED: list[tuple[list[str], str, str]] = [
    ([line("a", model="large"), line("b")], "forbidden", "line 2: model `small` is not allowed for this key"),
    ([line("a", model="large", models=["small"])], "forbidden", "line 1: model `small`, which the line names besides,"),
    ([line("a", model="large"), "{"], "malformed", "line 2: it is no request of a batch"),
    ([line("a", model="large", stream=True)], "malformed", "line 1: a request of a batch has no `stream`"),
    ([line("a", model="large", messages="hi")], "malformed", "line 1: `messages`"),
    ([line("a", model="large", url="/v1/moderations")], "malformed", "line 1: `/v1/moderations` cannot be asked for"),
    (
        [line("a", model="large"), line("b", model="vectors", url="/v1/embeddings", input="hi")],
        "malformed",
        "line 2: `/v1/embeddings` and `/v1/chat/completions` cannot be in one batch",
    ),
    ([""], "malformed", "line 1: the file holds no request"),
]


@pytest.mark.parametrize(("lines", "code", "message"), REFUSED)
async def test_a_line_that_may_not_be_is_refused_with_its_number(
    world: World, provider: Provider, lines: list[str], code: str, message: str
) -> None:
    """Before anything of the file has left the proxy."""
    with pytest.raises(openai.APIStatusError) as refused:
        await upload(sdk(world, "narrow"), lines)
    assert (code, "file") == (refused.value.code, refused.value.param)
    assert message in refused.value.message
    assert 0 == provider.upstreams[0].stats.requests


async def test_lines_meet_their_tenant_s_policy(world: World, provider: Provider) -> None:
    """Its ceiling for an answer, its wish for prices, and one upstream for all."""
    policy = TenantPolicy("ann", max_output_tokens=50, unpriced=Unpriced.REFUSE)
    world.worker.apply(snapshot(provider.ports, version=2, ann=policy))
    for lines, message in (
        ([line("a"), line("b", model="none")], "line 2: there is no model `none`"),
        ([line("a", max_tokens=51)], "line 1: tenant ann may ask for at most 50 output tokens"),
        ([line("a"), line("b", model="free")], "line 2: model `free` has no price"),
        ([line("a"), line("b", model="elsewhere")], "line 2: model `elsewhere` is not at the upstream"),
        ([line("a", model="claude")], "line 1: no upstream of model `claude` takes batches of chat"),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            await upload(sdk(world), lines)
        assert message in refused.value.message
    client = sdk(world)
    file_id = await upload(client, [line("a")])
    (sent,) = [json.loads(text)["body"] for text in (await client.files.content(file_id)).text.splitlines()]
    assert ("gpt-4o-mini", 50) == (sent["model"], sent["max_completion_tokens"])


async def test_a_line_end_within_a_line_goes_no_further(world: World, provider: Provider) -> None:
    """A carriage return is white space in JSON and the end of a line to some upstreams, which would find a request that nobody has read."""
    client = sdk(world)
    hidden = line("evil", model="gpt-4.1")
    outer = line("a").replace('"messages"', f'"metadata": {{"x": \r{hidden}\r}}, "messages"')
    file_id = await upload(client, [outer + "\r", line("b") + "\r"])
    sent = (await client.files.content(file_id)).content
    assert (2, 0) == (sent.count(b"\n"), sent.count(b"\r"))
    assert hidden == json.dumps(json.loads(sent.splitlines()[0])["body"]["metadata"]["x"])


async def test_tools_of_the_provider_count_in_lines_as_in_calls(world: World, provider: Provider) -> None:
    """A tenant that allows only what has a price is refused those without one; with one, what a line bounds of their cost is held."""
    url = "/v1/responses"
    asked = line("a", url=url, input="hi", tools=[{"type": "web_search"}], max_tool_calls=7)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", unpriced=Unpriced.REFUSE)))
    with pytest.raises(openai.APIStatusError, match="has no price for `search`"):
        await upload(sdk(world), [asked])
    held = []
    for version, price in ((3, PRICE), (4, structs.replace(PRICE, search=10_000_000))):
        budget = Budget("total", Window.TOTAL, nanousd=10**12)
        policy = TenantPolicy("ann", budgets=(budget,), unpriced=Unpriced.ALLOW)
        world.worker.apply(snapshot(provider.ports, version=version, price=price, ann=policy))
        before = world.worker.ledger.reserved("ann")[1]
        await begin(sdk(world), asked, endpoint=url)
        held.append(world.worker.ledger.reserved("ann")[1] - before)
    assert 7 * 10_000_000 == held[1] - held[0]


async def test_a_line_builds_only_on_what_is_its_tenant_s(world: World, provider: Provider) -> None:
    """A response that another tenant has made is not found; its own goes on."""
    url = "/v1/responses"
    ann, bob = sdk(world), sdk(world, "bob")
    made = await ann.responses.create(model="small", input="hi")
    asked = line("a", url=url, input="go on", previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError, match="line 1: `previous_response_id`"):
        await upload(bob, [asked])
    assert await begin(ann, asked, endpoint=url)
    assert provider.upstreams[0].stats.requests


async def test_only_files_for_batches_are_taken(world: World, provider: Provider) -> None:
    """Whatever else could be named in requests of all tenants stays outside."""
    with pytest.raises(openai.BadRequestError, match="only files with `purpose: batch`"):
        await sdk(world).files.create(file=("a.txt", b"hi"), purpose="user_data")
    assert 0 == provider.upstreams[0].stats.requests


async def test_a_batch_has_no_more_lines_than_the_setting_says(tmp_path: Path, clock: ManualClock) -> None:
    """The first that is too many is named."""
    world = await World(tmp_path).start(batch_lines_max=2)
    async with simulated(clock) as provider:
        world.worker.apply(snapshot(provider.ports))
        with pytest.raises(openai.APIStatusError, match="line 3: a batch may hold 2 requests"):
            await upload(sdk(world), [line(str(n)) for n in range(3)])
    await world.stop()


async def test_a_batch_for_another_endpoint_than_its_file_s_is_refused(world: World, provider: Provider) -> None:
    """As is one of a key that may not use its models."""
    client = sdk(world)
    file_id = await upload(client, [line("a")])
    with pytest.raises(openai.BadRequestError, match="are for `/v1/chat/completions`"):
        await client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.PermissionDeniedError, match="model `small`"):
        await sdk(world, "narrow").batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert 1 == provider.upstreams[0].stats.requests


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/embeddings", {"model": "vectors", "input": ["one", "two"]}),
        ("/v1/responses", {"model": "large", "input": "hi"}),
    ],
)
async def test_other_endpoints_are_booked_too(
    world: World, provider: Provider, clock: ManualClock, url: str, body: dict[str, object]
) -> None:
    """Embeddings and responses, by their own usage."""
    asked = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body})
    await begin(sdk(world), asked, endpoint=url)
    clock.move(BATCH_S)
    await settle(world)
    (record,) = usage_records(world)
    (model,) = provider.upstreams[0].stats.by_model
    assert billed(provider, model) == (record.tokens.total_input, record.tokens.total_output)
    assert record.tokens.total_input * 1_000 + record.tokens.total_output * 4_000 == record.cost_nanousd > 0


async def test_a_cancelled_batch_books_what_was_done(world: World, provider: Provider, clock: ManualClock) -> None:
    """And no more."""
    client = sdk(world)
    batch_id = await begin(client, *(line(str(n)) for n in range(8)))
    clock.move(BATCH_S / 2)
    assert "cancelling" == (await client.batches.cancel(batch_id)).status
    clock.move(BATCH_S / 10)
    await settle(world)
    (record,) = usage_records(world)
    assert ("4", billed(provider, SMALL)) == (
        record.tags["heph-batch-requests"],
        (record.tokens.total_input, record.tokens.total_output),
    )


async def test_a_batch_that_fails_costs_nothing(world: World, provider: Provider) -> None:
    """It is settled without a record of usage, and nothing stays held."""
    budget = Budget("day", Window.DAY, nanousd=10**12)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", budgets=(budget,))))
    await begin(sdk(world), line("a"), line("a"))
    assert 0 < world.worker.ledger.reserved("ann")[1]
    await settle(world)
    assert [] == usage_records(world)
    assert (0, 0) == world.worker.ledger.reserved("ann")
    assert [] == await world.worker.owners.unsettled()


async def test_what_a_batch_may_cost_is_held_until_it_is_booked(
    world: World, provider: Provider, clock: ManualClock
) -> None:
    """At batch prices and worst; a second batch that has no room is refused, and has it when the first is booked."""
    lines = [line("a"), line("b")]
    worst = sum(len(json.dumps(json.loads(text)["body"])) * 1_000 + 100 * 4_000 for text in lines)
    budget = Budget("day", Window.DAY, nanousd=worst + worst // 2)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", budgets=(budget,))))
    client = sdk(world)
    await begin(client, *lines)
    assert (0, worst) == world.worker.ledger.reserved("ann")
    with pytest.raises(openai.RateLimitError, match="budget `day` of tenant `ann` has not enough left"):
        await begin(client, *lines)
    clock.move(BATCH_S)
    await settle(world)
    (record,) = usage_records(world)
    assert (0, 0) == world.worker.ledger.reserved("ann")
    assert record.cost_nanousd <= worst
    await begin(client, line("c"))


async def test_a_budget_of_any_of_its_models_is_held(world: World, provider: Provider) -> None:
    """Also of one that is not in the first line."""
    quota = Quota("large", match=QuotaMatch(models=("large",)), nanousd=10_000_000)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", quotas=(quota,))))
    client = sdk(world)
    lines = [line("a"), *(line(str(n), model="large") for n in range(14))]
    await begin(client, *lines)
    with pytest.raises(openai.RateLimitError, match="`large`"):
        await begin(client, *lines)
    assert await begin(client, line("a"))


@pytest.mark.parametrize("worker", ["0", "3"])
async def test_a_restart_holds_again_what_its_batches_may_cost(tmp_path: Path, clock: ManualClock, worker: str) -> None:
    """As long as they are not booked; also what a worker had begun that there is no more."""
    budget = Budget("day", Window.DAY, nanousd=10**12)
    async with simulated(clock) as provider:
        made = snapshot(provider.ports, ann=TenantPolicy("ann", budgets=(budget,)))
        held = 0
        for _ in range(2):
            world = await World(tmp_path).start()
            world.worker.apply(made)
            if not held:
                await begin(sdk(world), line("a"))
                held = world.worker.ledger.reserved("ann")[1]
                (item,) = await world.worker.owners.unsettled()
                assert item.batch is not None
                await world.worker.owners.promise(
                    structs.replace(item, batch=structs.replace(item.batch, worker=worker))
                )
            await world.worker.promises.look()
            assert held == world.worker.ledger.reserved("ann")[1] > 0
            await world.stop()


async def test_results_are_booked_before_they_are_deleted(world: World, provider: Provider, clock: ManualClock) -> None:
    """Afterwards nobody could."""
    client = sdk(world)
    batch_id = await begin(client, line("a"))
    clock.move(BATCH_S)
    done = await client.batches.retrieve(batch_id)
    assert done.output_file_id is not None
    assert (await client.files.delete(done.output_file_id)).deleted
    (record,) = usage_records(world)
    assert billed(provider, SMALL) == (record.tokens.total_input, record.tokens.total_output)


async def test_results_that_are_gone_are_estimated_by_the_batch_s_own_sum(
    world: World, provider: Provider, clock: ManualClock
) -> None:
    """Somebody with the provider's own key has deleted them."""
    batch_id = await begin(sdk(world), line("a"))
    clock.move(BATCH_S)
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-operator") as operator:
        done = await operator.batches.retrieve(batch_id)
        assert done.output_file_id is not None
        await operator.files.delete(done.output_file_id)
    await settle(world)
    (record,) = usage_records(world)
    assert billed(provider, SMALL) == (record.tokens.total_input, record.tokens.total_output)
    assert CostState.ESTIMATED is record.cost_state


async def test_a_batch_that_was_booked_is_not_booked_again(tmp_path: Path, clock: ManualClock) -> None:
    """Also when the note that it was is lost, and the worker is a new one: the ledger knows."""
    async with simulated(clock) as provider:
        for life in range(3):
            world = await World(tmp_path).start()
            world.worker.apply(snapshot(provider.ports))
            if not life:
                await begin(sdk(world), line("a"))
                clock.move(BATCH_S)
                (item,) = await world.worker.owners.unsettled()
            await world.worker.owners.promise(item)
            await settle(world)
            assert [] == await world.worker.owners.unsettled()
            (record,) = usage_records(world)
            assert billed(provider, SMALL) == (record.tokens.total_input, record.tokens.total_output)
            assert record.cost_nanousd == world.worker.ledger.nanousd
            await world.stop()


async def test_a_record_of_usage_says_who_made_the_batch(world: World, provider: Provider, clock: ManualClock) -> None:
    """Agent, session, user and tags are those of the call that made it."""
    client = sdk(world).with_options(
        default_headers={
            "x-heph-agent": "night",
            "x-heph-session": "s1",
            "x-heph-user": "u1",
            "x-heph-tags": "team=red",
        }
    )
    await begin(client, line("a"))
    clock.move(BATCH_S)
    await settle(world)
    (record,) = usage_records(world)
    assert ("night", "s1", "u1") == (record.agent, record.session, record.user)
    assert billed(provider, SMALL)[0] == record.tokens.total_input


async def test_a_price_without_batches_is_an_estimate(world: World, provider: Provider, clock: ManualClock) -> None:
    """The standard price is too high for a batch, and nobody has said how much; no price at all is unpriced."""
    price = structs.replace(PRICE, service=())
    world.worker.apply(snapshot(provider.ports, version=2, price=price))
    await begin(sdk(world), line("a"), line("b", model="free"))
    clock.move(BATCH_S)
    await settle(world)
    states = {record.alias: (record.cost_state, record.cost_nanousd > 0) for record in usage_records(world)}
    assert {"small": (CostState.ESTIMATED, True), "free": (CostState.UNPRICED, False)} == states


async def test_a_list_asks_only_where_its_tenant_has_something(world: World, provider: Provider) -> None:
    """Whoever has made nothing gets an empty page, and no upstream is asked; nor is one that cannot be reached asked for others."""
    ports = provider.ports | {"secondary": 9}
    world.worker.apply(snapshot(ports, version=2))
    file_id = await upload(sdk(world), [line("a")])
    before = provider.upstreams[0].stats.requests
    page = await sdk(world, "bob").files.list()
    assert ([], False, before) == (page.data, page.has_more, provider.upstreams[0].stats.requests)
    assert [file_id] == [file.id async for file in sdk(world).files.list()]


async def test_a_batch_whose_upstream_is_away_for_a_while_is_booked_later(
    world: World, provider: Provider, clock: ManualClock
) -> None:
    """An upstream that the configuration does not have now, or that fails, says nothing about a batch."""
    await begin(sdk(world), line("a"))
    clock.move(BATCH_S)
    made = snapshot(provider.ports, version=2)
    world.worker.apply(
        structs.replace(made, routes=tuple(route for route in made.routes if route.alias == "elsewhere"))
    )
    await settle(world)
    assert 1 == len(await world.worker.owners.unsettled())
    world.worker.apply(structs.replace(made, version=3))
    provider.faults.add(Fault(FaultKind.OUTAGE_500, match=FaultMatch(path="/v1/files*")))
    await settle_now(world)
    assert 1 == len(await world.worker.owners.unsettled())
    provider.faults.clear()
    await settle_now(world)
    (record,) = usage_records(world)
    assert billed(provider, SMALL) == (record.tokens.total_input, record.tokens.total_output)


async def test_a_batch_is_made_once(world: World, provider: Provider) -> None:
    """An upstream that fails is not asked a second time, for there might be two batches then; nothing stays held."""
    budget = Budget("day", Window.DAY, nanousd=10**12)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", budgets=(budget,))))
    client = sdk(world)
    file_id = await upload(client, [line("a")])
    before = provider.upstreams[0].stats.requests
    provider.faults.add(Fault(FaultKind.OUTAGE_500, match=FaultMatch(path="/v1/batches")))
    with pytest.raises(openai.InternalServerError):
        await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert before + 1 == provider.upstreams[0].stats.requests
    assert 1 == world.worker.batches.doubtful_total
    assert (0, 0) == world.worker.ledger.reserved("ann")


async def test_hosts_share_batches_and_what_they_may_cost(tmp_path: Path, clock: ManualClock) -> None:
    """Over a Redis each finds what the other has made, and both together hold no more than a budget has; who made a batch books it."""
    redis = await RedisServer(tmp_path).start()
    hosts = [World(tmp_path / name) for name in ("one", "two")]
    lines = [line(str(n)) for n in range(4)]
    worst = sum(len(json.dumps(json.loads(text)["body"])) * 1_000 + 100 * 4_000 for text in lines)
    budget = Budget("total", Window.TOTAL, nanousd=2 * worst + worst // 2)
    try:
        async with simulated(clock) as provider:
            for host in hosts:
                await host.start(redis=redis.url, redis_timeout_s=5.0)
                assert host.worker.shared is not None
                await host.worker.shared.ready()
                host.worker.apply(snapshot(provider.ports, ann=TenantPolicy("ann", budgets=(budget,))))
            first, second = sdk(hosts[0]), sdk(hosts[1])
            file_id = await upload(first, lines)
            made = [
                await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
                for client in (first, second)
            ]
            for client in (first, second):
                with pytest.raises(openai.RateLimitError, match="budget `total`"):
                    await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
            clock.move(BATCH_S)
            for client in (first, second):
                assert [batch.id for batch in reversed(made)] == [batch.id async for batch in client.batches.list()]
            for host in hosts:
                await settle(host)
                await settle(host)
                (record,) = usage_records(host)
                assert made[hosts.index(host)].id == record.tags["heph-batch"]
    finally:
        for host in hosts:
            await host.stop()
        redis.kill()


async def test_results_are_deleted_by_another_host_only_when_they_are_booked(
    tmp_path: Path, clock: ManualClock
) -> None:
    """The host that made the batch books it; the other one tells its client to come again until then."""
    redis = await RedisServer(tmp_path).start()
    hosts = [World(tmp_path / name) for name in ("one", "two")]
    try:
        async with simulated(clock) as provider:
            for host in hosts:
                await host.start(redis=redis.url, redis_timeout_s=5.0)
                assert host.worker.shared is not None
                await host.worker.shared.ready()
                host.worker.apply(snapshot(provider.ports))
            batch_id = await begin(sdk(hosts[0]), line("a"))
            clock.move(BATCH_S)
            other = sdk(hosts[1])
            done = await other.batches.retrieve(batch_id)
            assert done.output_file_id is not None
            with pytest.raises(openai.InternalServerError, match="is not booked yet"):
                await other.files.delete(done.output_file_id)
            await settle(hosts[0])
            (record,) = usage_records(hosts[0])
            assert billed(provider, SMALL) == (record.tokens.total_input, record.tokens.total_output)
            assert (await other.files.delete(done.output_file_id)).deleted
    finally:
        for host in hosts:
            await host.stop()
        redis.kill()


async def test_a_client_that_leaves_while_a_batch_is_made_makes_it_all_the_same(
    world: World, provider: Provider, clock: ManualClock
) -> None:
    """The provider has it then, so it must be known here: it is held, listed and booked."""
    client = sdk(world)
    file_id = await upload(client, [line("a")])
    body = json.dumps({"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}).encode()
    head = f"POST /v1/batches HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-heph-ann\r\ncontent-length: {len(body)}\r\n\r\n"
    before = provider.upstreams[0].stats.requests
    _, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
    writer.write(head.encode() + body)
    await writer.drain()
    await until(lambda: provider.upstreams[0].stats.requests > before)
    writer.transport.abort()
    await world.until_idle()
    (made,) = [batch async for batch in client.batches.list()]
    clock.move(BATCH_S)
    await settle(world)
    (record,) = usage_records(world)
    assert made.id == record.tags["heph-batch"]


async def test_a_batch_that_does_not_end_is_given_up_in_time(tmp_path: Path, clock: ManualClock) -> None:
    """After `batch_settle_s_max`, and counted; one that has ended by then is booked."""
    world = await World(tmp_path).start(batch_settle_s_max=1e-6)
    async with simulated(clock) as provider:
        world.worker.apply(snapshot(provider.ports))
        client = sdk(world)
        first = await begin(client, line("a"))
        clock.move(BATCH_S)
        second = await begin(client, line("b"))
        await settle(world)
        assert {first} == {record.tags["heph-batch"] for record in usage_records(world)}
        assert (1, []) == (world.worker.bills.given_up_total, await world.worker.owners.unsettled())
        assert first != second
    await world.stop()

"""Tests of quotas about requests: what costs no tokens and no money counts under them all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import Budget, KeyEntry, Quota, QuotaAction, QuotaScope, TenantPolicy, Window
from tests.proxy.fakes import PEPPER, World, answer, completion, replies
from tests.proxy.redis_server import RedisServer
from tests.proxy.responses_account import ANN, Account, snapshot
from tests.proxy.test_responses_state import ask, make

COUNT = {"model": "gpt", "input": "hi"}


def _requests(limit: int, **more: object) -> Quota:
    return Quota("q", window=Window.DAY, requests=limit, **more)  # type: ignore[arg-type]  # fields of a quota


async def _with_account(world: World, *quotas: Quota, budgets: tuple[Budget, ...] = ()) -> Account:
    account = Account()
    upstream = await world.upstream(account.script)
    made = snapshot([upstream.port])
    tenants = (TenantPolicy("ann", quotas=quotas, budgets=budgets),)
    keys = tuple(
        KeyEntry(hash_key(f"sk-heph-{name}".encode(), PEPPER), f"key_{name}", "ann") for name in ("ann", "eva")
    )
    world.worker.apply(type(made)(1, 1, tenants=tenants, keys=keys, upstreams=made.upstreams, routes=made.routes))
    return account


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/gpt", None),
        ("POST", "/v1/responses/input_tokens", COUNT),
        ("POST", "/v1/conversations", {}),
    ],
)
async def test_each_is_a_request_and_nothing_besides(
    world: World, method: str, path: str, body: dict[str, object] | None
) -> None:
    """Two of three are answered under a quota of two requests, with nothing left of tokens and money; the third is refused and not counted."""
    none_left = (Budget("usd", Window.DAY, nanousd=0), Budget("tokens", Window.DAY, tokens=0))
    account = await _with_account(world, _requests(2), budgets=none_left)
    account.things["input_tokens"] = {"object": "response.input_tokens", "input_tokens": 3}
    statuses = [(await ask(world, ANN, method, path, body)).status_code for _ in range(3)]
    assert [200, 200, 429] == statuses
    refused = await ask(world, ANN, method, path, body)
    assert "quota `q` of tenant `ann`" in refused.text
    settled = world.worker.ledger.settled("ann", Window.DAY, now_us=world.records()[-1].started_us)
    assert (2, 0, 0) == (settled.requests, settled.tokens, settled.nanousd)
    assert (0, 0) == world.worker.ledger.reserved("ann")


async def test_reads_of_what_is_kept_count_and_the_proxys_own_looks_do_not(world: World) -> None:
    """One made, one read: two requests; what the proxy asks to learn the usage is none, and nobody becomes the proxy by saying so."""
    account = await _with_account(world, _requests(3, per=QuotaScope.KEY))
    account.busy = True
    id_ = await make(world, background=True)
    for _ in range(5):
        world.worker.settlement._next.clear()
        await world.worker.settlement.look_at_all()
    assert 5 == world.worker.settlement.looks_total
    path = f"/v1/responses/{id_}"
    assert 200 == (await ask(world, ANN, "GET", path, **{"x-heph-channel": "settlement"})).status_code
    assert 200 == (await ask(world, ANN, "DELETE", path)).status_code
    assert 429 == (await ask(world, ANN, "GET", "/v1/conversations/conv_1")).status_code
    assert 404 == (await ask(world, "sk-heph-eva", "GET", "/v1/conversations/conv_1")).status_code


async def test_a_quota_that_sends_calls_to_another_model_or_warns_lets_them_pass(world: World) -> None:
    """Where there is no model there is nothing to downgrade."""
    softly = (
        _requests(0, action=QuotaAction.DOWNGRADE, to="small"),
        Quota("s", window=Window.DAY, requests=0, action=QuotaAction.SOFT),
    )
    await _with_account(world, *softly)
    assert 200 == (await ask(world, ANN, "GET", "/v1/models")).status_code


async def test_without_such_a_quota_nothing_is_held(world: World) -> None:
    """Budgets about money and tokens alone have no say."""
    await _with_account(world, budgets=(Budget("b", Window.DAY, tokens=0),))
    assert 200 == (await ask(world, ANN, "GET", "/v1/models")).status_code
    assert 0 == world.worker.ledger.instances()


async def test_with_redis_a_list_of_models_waits_for_a_larger_slice(tmp_path: Path) -> None:
    """The first request finds no slice, gets one and is answered; what all workers may have is not passed."""
    server = await RedisServer(tmp_path).start()
    world = await World(tmp_path).start(redis=server.url, redis_timeout_s=2.0)
    try:
        shared = world.worker.shared
        assert shared is not None
        await shared.ready()
        await world.upstream(replies(answer(completion())))
        world.apply(tenant=TenantPolicy("acme", requests_per_minute=600, quotas=(_requests(2),)))
        got = [(await world.client.get("/v1/models")).status_code for _ in range(3)]
        assert [200, 200, 429] == got
    finally:
        await world.stop()
        server.kill()

"""Tests of what a continued response reserves: the tokens of what it builds on, as its owner's entry has them."""

from __future__ import annotations

import json

import pytest

from controlplane.contract.snapshot import Budget, Window
from proxy.transports.owners import Owner
from tests.proxy.fakes import Received, Wire, World, answer
from tests.proxy.responses_account import ANN, USAGE, Account, two_tenants
from tests.proxy.test_responses_state import ask, make

GREAT = (Budget("b", Window.MONTH, tokens=10**9),)


def _usage(total: int) -> dict[str, object]:
    return USAGE | {"input_tokens": total - 6, "output_tokens": 6, "total_tokens": total}


class Told(Account):
    """An account whose responses say that they used so many tokens."""

    total = 15

    async def script(self, wire: Wire, request: Received) -> None:
        """Answers one request."""
        method, target, _ = request.line.split(" ")
        if method == "POST" and target == "/v1/responses":
            document = json.loads(request.body)
            self.asked.append((method, target, request.body))
            made = self.response(document) | {"conversation": document.get("conversation")}
            if made["usage"]:
                made["usage"] = _usage(self.total)
            self.things[str(made["id"])] = made
            await wire.send(self.stream(made) if document.get("stream") else answer(json.dumps(made).encode()))
            return
        await super().script(wire, request)


async def _tokens_of(world: World, name: str) -> int:
    found = await world.worker.owners.find("ann", [name])
    return found[name].tokens


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_a_response_builds_on_must_fit_into_the_budget(world: World, stream: bool) -> None:
    """A short request that continues a long conversation is refused where the conversation has no room; one that continues nothing is served."""
    account = Told()
    account.total = 5_000
    await two_tenants(world, account, budgets=(Budget("b", Window.MONTH, tokens=9_000),))
    body = {"model": "gpt", "input": "hi", "max_output_tokens": 50}
    first = await ask(world, ANN, "POST", "/v1/responses", body | {"stream": stream})
    assert 200 == first.status_code
    id_ = next(iter(account.things))
    assert 5_000 == await _tokens_of(world, id_)
    refused = await ask(world, ANN, "POST", "/v1/responses", body | {"previous_response_id": id_})
    assert (429, "over_budget") == (refused.status_code, refused.json()["error"]["code"])
    assert 1 == len(account.asked)
    account.total = 60
    assert 200 == (await ask(world, ANN, "POST", "/v1/responses", body)).status_code


async def test_a_chain_never_costs_more_than_was_reserved(world: World) -> None:
    """Each answer is billed for all before it, and each reservation has held that."""
    account = Told()
    await two_tenants(world, account, budgets=GREAT)
    body = {"model": "gpt", "input": "hi", "max_output_tokens": 50}
    id_ = (await ask(world, ANN, "POST", "/v1/responses", body)).json()["id"]
    for number in range(1, 12):
        account.total = 15 + number * 40  # what came before, this input and this output
        got = await ask(world, ANN, "POST", "/v1/responses", body | {"previous_response_id": id_})
        assert 200 == got.status_code
        id_ = got.json()["id"]
        assert account.total == await _tokens_of(world, id_)
    assert (0, 0) == (world.worker.ledger.exceeded_total, world.worker.chains.unknown_total)


async def test_a_conversation_knows_its_last_response_and_what_was_put_in_since(world: World) -> None:
    """Its figure is that of its last response and the bytes of items that clients add; reading an old response does not put it back."""
    account = Told()
    await two_tenants(world, account, budgets=GREAT)
    item = {"type": "message", "role": "user", "content": "hi"}
    home = (await ask(world, ANN, "POST", "/v1/conversations", {"items": [item]})).json()["id"]
    begun = len(account.asked[-1][2])
    assert begun == await _tokens_of(world, home)
    account.total = 700
    old = (await ask(world, ANN, "POST", "/v1/responses", {"model": "gpt", "input": "x", "conversation": home})).json()
    account.total, exceeded = 740, world.worker.ledger.exceeded_total
    body = {"model": "gpt", "input": "x", "conversation": home, "max_output_tokens": 50}
    assert 200 == (await ask(world, ANN, "POST", "/v1/responses", body)).status_code
    assert 740 == await _tokens_of(world, home)
    assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{old['id']}")).status_code
    assert 740 == await _tokens_of(world, home)
    assert 200 == (await ask(world, ANN, "POST", f"/v1/conversations/{home}/items", {"items": [item]})).status_code
    assert 740 + len(account.asked[-1][2]) == await _tokens_of(world, home)
    assert exceeded == world.worker.ledger.exceeded_total


async def test_one_that_still_runs_counts_with_what_it_may_become(world: World) -> None:
    """What continues an unfinished response reserves its worst case, and its true size once somebody has seen it finished."""
    account = Told(busy=True)
    await two_tenants(world, account, budgets=GREAT)
    id_ = await make(world, background=True, max_output_tokens=300)
    sent = json.dumps({"model": "gpt", "input": "hi", "background": True, "max_output_tokens": 300})
    assert len(sent) + 300 == await _tokens_of(world, id_)
    account.finish(id_)
    assert 200 == (await ask(world, ANN, "GET", f"/v1/responses/{id_}")).status_code
    assert 15 == await _tokens_of(world, id_)


async def test_a_size_that_nobody_knows_is_counted(world: World) -> None:
    """What was written down without a size lets the call pass and is counted; without limits nothing is looked up ahead."""
    await two_tenants(world, Told(), budgets=GREAT)
    id_ = await make(world)
    (owner,) = (await world.worker.owners.find("ann", [id_])).values()
    await world.worker.owners.keep("ann", [id_], Owner(owner.upstream, owner.deployment))
    found = world.worker.owners.found_total
    await make(world, previous_response_id=id_)
    assert (1, 2) == (world.worker.chains.unknown_total, world.worker.owners.found_total - found)
    await two_tenants(world, version=2)
    await make(world, previous_response_id=id_)
    assert (1, 3) == (world.worker.chains.unknown_total, world.worker.owners.found_total - found)

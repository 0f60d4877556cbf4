"""No route escapes the ledger: every path that the proxy serves leaves one record and moves the ledger."""

from __future__ import annotations

import json

import pytest

from controlplane.contract.records import CostState, Outcome
from controlplane.contract.snapshot import CachePolicy, PassthroughGrant, TenantPolicy
from proxy.app import PATHS
from proxy.dialects.operations import OPERATIONS, Operation, Protocol, resolve
from tests.proxy.anthropic_fakes import message
from tests.proxy.fakes import World, answer, completion, replies

MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
FORM = "multipart/form-data; boundary=b"
# A request and an upstream's answer for each operation that has a body; one that is not here fails the test below.
BODIES: dict[str, dict[str, object]] = {
    "chat": {"messages": MESSAGES},
    "embeddings": {"input": "hi"},
    "messages": {"messages": MESSAGES, "max_tokens": 9},
    "count_tokens": {"messages": MESSAGES},
    "completions": {"prompt": "hi"},
    "responses": {"input": "hi"},
    "responses_compact": {"input": "hi"},
    "responses_input_tokens": {"input": "hi"},
    "moderations": {"input": "hi"},
    "audio_speech": {"input": "hi", "voice": "alloy"},
    "images_generations": {"prompt": "hi"},
    "audio_transcriptions": {},
    "audio_translations": {},
    "images_edits": {"prompt": "hi"},
    "images_variations": {},
}
ANSWERS: dict[str, bytes] = {
    "chat": completion(),
    "completions": completion(),
    "embeddings": completion(),
    "messages": message(),
    "count_tokens": b'{"input_tokens":9}',
}
RESPONSE = json.dumps({"id": "resp_1", "object": "response", "status": "completed", "usage": USAGE}).encode()
ROUTES = [(row, path) for row in OPERATIONS.values() for path in row.paths]
FREE = {"count_tokens", "responses_input_tokens"}  # of those that ask a model


def form(fields: dict[str, object]) -> bytes:
    """A form with these fields and a file."""
    parts = [
        f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    names = ("file", "image")
    files = [f'--b\r\ncontent-disposition: form-data; name="{n}"; filename="f.png"\r\n\r\nxyz\r\n' for n in names]
    return "".join([*parts, *files, "--b--\r\n"]).encode()


def body_of(row: Operation) -> tuple[bytes, str]:
    """A request that this operation takes, and its content type."""
    if row.local or row.named:
        return b"{}", "application/json"
    fields = {"model": "gpt"} | BODIES[row.name]
    return (form(fields), FORM) if row.client_content_type else (json.dumps(fields).encode(), "application/json")


@pytest.mark.parametrize(("row", "path"), ROUTES, ids=[f"{row.method.decode()} {path}" for row, path in ROUTES])
async def test_a_route_leaves_one_record_and_moves_the_ledger(world: World, row: Operation, path: str) -> None:
    """Served, priced where it costs, and booked before the client has its answer; its refusals are recorded too."""
    await world.upstream(replies(answer(ANSWERS.get(row.name, RESPONSE))))
    anthropic = row.protocol is Protocol.ANTHROPIC
    url = f"http://127.0.0.1:{world.upstreams[0].port}" + ("" if anthropic else "/v1")
    world.apply(urls=(url,), upstream={"dialect": "anthropic" if anthropic else "openai"})
    body, content_type = body_of(row)
    target = path.replace("{*}", "gpt").replace("{}", "x")
    headers = {"content-type": content_type}
    ledger = world.worker.ledger
    response = await world.client.request(row.method.decode(), target, content=body, headers=headers)
    (record,) = world.records()
    assert (row.name, "acme", response.status_code) == (record.operation, record.tenant, record.status)
    assert (1, record.cost_nanousd) == (ledger.calls, ledger.nanousd)
    assert response.headers["x-heph-call-id"] == record.call_id
    if row.name in BODIES:
        assert Outcome.OK == record.outcome, response.text
        costs = record.cost_nanousd > 0 or record.cost_state is CostState.UNPRICED
        assert costs == (row.name not in FREE), record
    refused = await world.client.request(
        row.method.decode(), target, content=body, headers=headers | {"authorization": "Bearer nobody"}
    )
    assert 401 == refused.status_code
    assert 2 == ledger.calls == len(world.records())


async def test_a_path_that_is_passed_through_is_on_the_ledger(world: World) -> None:
    """As every other."""
    await world.upstream(replies(answer(completion())))
    world.apply(tenant=TenantPolicy(id="acme", passthrough=(PassthroughGrant("u0"),), cache=CachePolicy(enabled=False)))
    await world.client.post("/passthrough/u0/any", json={"model": "upstream-model"})
    ledger = world.worker.ledger
    (record,) = world.records()
    assert (1, 15_000, 15_000) == (ledger.calls, ledger.nanousd, record.cost_nanousd)


def test_every_exact_path_is_one_of_the_table() -> None:
    """What the front door knows is what the table says; and each route is found by its own path and method."""
    known = {path for row, path in ROUTES if "{" not in path}
    assert known == set(PATHS)
    for row, path in ROUTES:
        assert row is resolve(path.replace("{*}", "a/b").replace("{}", "x"), row.method)


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/models/", "/v1/chat/completions/x", "/v1/responses//cancel", "/passthrough"]
)
async def test_a_path_that_is_no_route_reaches_nobody(world: World, path: str) -> None:
    """It has no call behind it, so no record."""
    upstream = await world.upstream(replies(answer(completion())))
    world.apply()
    assert 404 == (await world.client.post(path, json={"model": "gpt"})).status_code
    assert not upstream.received
    assert [] == world.records()

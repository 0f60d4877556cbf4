"""What a key and a tenant allow, held against real requests."""

from __future__ import annotations

import json

import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import KeyEntry
from tests.proxy.anthropic_fakes import message
from tests.proxy.fakes import KEY, PEPPER, World, answer, replies

HI = [{"role": "user", "content": "hi"}]
NARROW = (KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant="acme", models=("gpt",)),)


async def asked(world: World, keys: tuple[KeyEntry, ...], fields: str) -> tuple[int, list[bytes]]:
    """The status of a message with these fields, and what the upstream got."""
    upstream = await world.upstream(replies(answer(message())))
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}",), upstream={"dialect": "anthropic"}, model="gpt", keys=keys)
    body = f'{{"model":"gpt","max_tokens":9,"messages":{json.dumps(HI)},{fields}}}'
    reply = await world.client.post("/v1/messages", content=body)
    return reply.status_code, [item.body for item in upstream.received]


@pytest.mark.parametrize(
    "fields",
    [
        '"fallbacks":[{"model":"gpt"},{"model":"claude-opus-5"}]',
        '"fallbacks":"default"',
        '"models":["claude-opus-5"]',
        '"tools":[{"type":"advisor_20260301","name":"advisor","model":"claude-opus-5"}]',
        '"\\u0066allbacks":[{"model":"claude-opus-5"}]',
    ],
)
async def test_a_key_has_no_model_that_it_may_not_use_by_another_field(world: World, fields: str) -> None:
    """What an upstream falls back to, or asks for advice, is a model like any other."""
    assert (403, []) == await asked(world, NARROW, fields)


async def test_a_key_names_the_models_that_it_may_use(world: World) -> None:
    """And a key that may use all names whichever it likes."""
    status, got = await asked(world, NARROW, '"fallbacks":[{"model":"claude-opus-5"}],"fallbacks":[{"model":"gpt"}]')
    assert 200 == status
    assert b"claude-opus-5" not in got[0]
    status, got = await asked(world, (), '"fallbacks":[ {"model":"claude-opus-5"}]')
    assert 200 == status
    assert b'[ {"model":"claude-opus-5"}]' in got[0]

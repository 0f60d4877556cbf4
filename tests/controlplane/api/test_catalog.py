"""Tenants, models, proxies and keys over HTTP."""

from __future__ import annotations

import httpx

from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import ProxyStatus
from tests.controlplane.api.fakes import START_US, World


async def test_the_catalog_is_what_proxies_have(operator: httpx.AsyncClient) -> None:
    """Tenants and models come from the current snapshot."""
    assert [{"id": "acme"}] == (await operator.get("/api/v1/tenants")).json()["tenants"]
    assert "gpt-4o-mini" == (await operator.get("/api/v1/models")).json()["models"][0]["alias"]


async def test_proxies_are_shown_whole(world: World, operator: httpx.AsyncClient) -> None:
    """Every number of a proxy's status is there, zeros too."""
    world.publisher.confirm(ProxyStatus(proxy_id="p1", at_us=START_US, snapshot_version=7))
    answer = (await operator.get("/api/v1/proxies")).json()
    assert 7 == answer["snapshot_version"]
    (shown,) = answer["proxies"]
    assert ("p1", 0, 0, 0) == (shown["id"], shown["ledger_calls"], shown["ledger_nanousd"], shown["spool_dropped"])


async def test_a_key_is_made_shown_once_and_revoked(world: World, operator: httpx.AsyncClient) -> None:
    """The secret is in the first answer alone; the list never shows it nor its hash."""
    made = await operator.post("/api/v1/keys", json={"tenant": "acme", "name": "ci", "expires_in_s": 60})
    assert (201, "sk-heph-secret") == (made.status_code, made.json()["key"])
    listed = await operator.get("/api/v1/keys")
    assert "secret" not in listed.text
    assert "hash" not in listed.text
    (key,) = listed.json()["keys"]
    assert ("ci", START_US + 60 * US_PER_S, 0) == (key["name"], key["expires_us"], key["revoked_us"])
    assert START_US == (await operator.delete(f"/api/v1/keys/{key['id']}")).json()["revoked_us"]
    assert ["operator", "operator"] == world.keys.actors


async def test_a_key_for_an_unknown_tenant_is_not_made(operator: httpx.AsyncClient) -> None:
    """The tenant must exist."""
    assert 404 == (await operator.post("/api/v1/keys", json={"tenant": "nobody"})).status_code


async def test_a_key_is_rotated(world: World, operator: httpx.AsyncClient) -> None:
    """The new secret is in the answer alone, with the moment until which the one before is good."""
    made = (await operator.post("/api/v1/keys", json={"tenant": "acme", "addresses": ["10.0.0.0/8"]})).json()
    rotated = await operator.post(f"/api/v1/keys/{made['id']}/rotate", json={"grace_s": 60})
    assert (201, "sk-heph-other") == (rotated.status_code, rotated.json()["key"])
    (key,) = (await operator.get("/api/v1/keys")).json()["keys"]
    assert (["10.0.0.0/8"], START_US + 60 * US_PER_S) == (key["addresses"], key["grace_until_us"])
    assert 404 == (await operator.post("/api/v1/keys/key_9/rotate", json={})).status_code
    assert 400 == (await operator.post(f"/api/v1/keys/{made['id']}/rotate", json={"grace_s": -1})).status_code
    assert ["operator", "operator"] == world.keys.actors

"""Invalidation of stored answers over HTTP."""

from __future__ import annotations

import httpx
import pytest

from controlplane.catalog.invalidations import Selection
from tests.controlplane.api.fakes import START_US, World

URL = "/api/v1/cache/invalidate"


async def test_a_dry_run_counts_and_does_nothing(world: World, operator: httpx.AsyncClient) -> None:
    """It says how many answers and bytes would go at most, and makes no rule."""
    answer = await operator.post(URL, json={"tenant": "acme", "tag": "team=search", "dry_run": True})
    assert (200, {"entries_at_most": 3, "bytes_at_most": 3072}) == (answer.status_code, answer.json()["count"])
    assert ([], [Selection(tenant="acme", tag="team=search")]) == (world.cache.rules, world.cache.counted)
    assert answer.json()["rule"] is None


async def test_an_invalidation_makes_a_rule_that_is_listed(world: World, operator: httpx.AsyncClient) -> None:
    """Every selector arrives, who did it is known, and the rule is among those in force."""
    body = {"tenant": "acme", "route": "fast", "model": "m", "agent": "a", "before_us": START_US - 5, "reason": "wrong"}
    rule = (await operator.post(URL, json=body)).json()["rule"]
    assert ("acme", "fast", "m", "a", START_US - 5, "wrong") == tuple(
        rule[name] for name in ("tenant", "alias", "model", "agent", "before_us", "reason")
    )
    listed = (await operator.get("/api/v1/cache/invalidations")).json()["invalidations"]
    assert ([rule["id"]], ["operator"]) == ([one["id"] for one in listed], world.cache.actors)


async def test_an_invalidation_does_without_a_store_that_does_not_answer(
    world: World, operator: httpx.AsyncClient
) -> None:
    """The rule is made before anything is counted, and stands; only a dry run, which is nothing but a count, fails."""
    world.cache.uncountable = True
    answer = await operator.post(URL, json={"tenant": "acme"})
    assert (200, None, 1) == (answer.status_code, answer.json()["count"], len(world.cache.rules))
    assert answer.json()["rule"]["tenant"] == "acme"
    assert 503 == (await operator.post(URL, json={"tenant": "acme", "dry_run": True})).status_code
    world.cache.uncountable = False
    rule = (await operator.post(URL, json={"agent": "a"})).json()["rule"]
    assert [Selection(agent="a", before_us=rule["before_us"])] == world.cache.counted


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"dry_run": True}, 400),
        ({"everything": True}, 200),
        ({"tag": "=x"}, 400),
        ({"tenant": 3}, 400),
        ({"tenants": "acme"}, 400),
        ({"before_us": -1, "everything": True}, 400),
    ],
)
async def test_everything_must_be_said(operator: httpx.AsyncClient, body: dict[str, object], status: int) -> None:
    """Without a selector nothing is done unless all answers are meant; a word that is not known is refused."""
    assert status == (await operator.post(URL, json=body)).status_code


async def test_only_operators_invalidate(world: World, anonymous: httpx.AsyncClient) -> None:
    """Without the operator's token nothing happens."""
    assert 401 == (await anonymous.post(URL, json={"everything": True})).status_code
    assert [] == world.cache.rules

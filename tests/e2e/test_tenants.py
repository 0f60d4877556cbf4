"""No tenant sees another's answers; budgets hold under concurrency."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.load import Load
from tests.e2e.processes import World, eventually, world

pytestmark = pytest.mark.e2e
PROMPT = "The same prompt from two tenants."


async def test_two_tenants_with_the_same_prompt_never_share_a_cache_entry(calm: World) -> None:
    """The first call of each tenant is a miss, the second a hit of its own."""
    states = []
    for tenant in ("acme", "globex", "acme", "globex"):
        seen = await Load(calm.base_url, calm.key(tenant)).burst(1, prompt=PROMPT)
        states.append((tenant, seen[0].cache))
    assert states == [("acme", "miss"), ("globex", "miss"), ("acme", "hit"), ("globex", "hit")]


async def test_identical_calls_at_once_cost_one_upstream_call(calm: World) -> None:
    """Fifty identical calls in flight are one call to the provider; everybody gets the same text."""
    before = _provider_calls(calm)
    seen = await Load(calm.base_url, calm.key()).burst(50, prompt="Asked fifty times at once.")
    assert before + 1 == _provider_calls(calm)
    assert {one.status for one in seen} == {200}
    assert len({json.loads(one.body)["choices"][0]["message"]["content"] for one in seen}) == 1
    assert Counter(one.cache for one in seen)["miss"] == 1


def _provider_calls(made: World) -> int:
    """Chat completions that the provider served since its start."""
    upstreams: Any = made.provider_stats()  # JSON of the provider
    return sum(model["calls"] for upstream in upstreams.values() for model in upstream["by_model"].values())


CALLS_PAID_FOR = 50
WORST_CASE_TOKENS = 400  # of one call: what it reserves before it is sent
PROMPT_TOKENS_MAX = 150
BUDGETED = """
models:
  - name: gpt-4o-mini
    deployments:
      - {upstream: primary, model: gpt-4o-mini}
tenants:
  - name: acme
    cache: {enabled: false}
    limits: {concurrency: 1000}
    budgets: [{tokens: %d, window: total}]
"""


async def test_two_hundred_calls_against_a_budget_for_fifty_never_overspend(tmp_path: Path) -> None:
    """Whatever the interleaving, settled tokens stay within the budget, and refusals say which budget it was."""
    budget = CALLS_PAID_FOR * WORST_CASE_TOKENS
    with world(tmp_path, catalog=BUDGETED % budget, latency_scale=0.2) as made:
        load = Load(made.base_url, made.key(), max_tokens=WORST_CASE_TOKENS - PROMPT_TOKENS_MAX)
        seen = await load.burst(200)
        served = [one for one in seen if one.status == 200]
        refused = [one for one in seen if one.status == 429]
        assert len(served) + len(refused) == 200
        assert len(served) >= CALLS_PAID_FOR
        assert refused
        assert {json.loads(one.body)["error"]["code"] for one in refused} == {"over_budget"}
        while len(served) < 2_000:  # what was reserved and not used is given back, until not even one more call fits
            more = [one for one in await load.burst(40) if one.status == 200]
            served += more
            if not more:
                break
        total = await asyncio.to_thread(eventually, lambda: _settled(made, len(served)), what="rows")
        assert budget - WORST_CASE_TOKENS <= total <= budget


def _settled(made: World, calls: int) -> int:
    row = made.sql(
        "SELECT count() AS n, sum(tokens_input + tokens_cache_read + tokens_output + tokens_reasoning) AS tokens FROM calls WHERE outcome = 'ok'"
    )[0]
    return int(str(row["tokens"])) if int(str(row["n"])) == calls else 0

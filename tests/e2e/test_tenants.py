"""No tenant sees another's answers; budgets hold under concurrency."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

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
    before = json.dumps(calm.provider_stats())
    seen = await Load(calm.base_url, calm.key()).burst(50, prompt="Asked fifty times at once.")
    assert before != json.dumps(calm.provider_stats())
    assert {one.status for one in seen} == {200}
    assert len({json.loads(one.body)["choices"][0]["message"]["content"] for one in seen}) == 1
    assert Counter(one.cache for one in seen)["miss"] == 1


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
    with world(tmp_path, catalog=BUDGETED % 50_000, latency_scale=0.2) as made:
        load = Load(made.base_url, made.key(), max_tokens=300)
        seen = await load.burst(200, prompt=None)
        served = [one for one in seen if one.status == 200]
        refused = [one for one in seen if one.status == 429]
        assert len(served) + len(refused) == 200
        assert refused
        assert {json.loads(one.body)["error"]["code"] for one in refused} == {"over_budget"}
        again = Load(made.base_url, made.key(), max_tokens=300)
        spent_up = [await again.burst(40) for _ in range(8)]
        total = eventually(
            lambda: _settled(made, len(served) + sum(one.status == 200 for burst in spent_up for one in burst)),
            what="rows",
        )
        assert total <= 50_000


def _settled(made: World, calls: int) -> int:
    row = made.sql(
        "SELECT count() AS n, sum(tokens_input + tokens_cache_read + tokens_output + tokens_reasoning) AS tokens FROM calls WHERE outcome = 'ok'"
    )[0]
    return int(str(row["tokens"])) if int(str(row["n"])) == calls else 0

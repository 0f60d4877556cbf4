"""Routing in the configuration file: what the how-to pages show is accepted, and arrives at the proxies as it was meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlplane.catalog.compile import NoPrices, compile_snapshot
from controlplane.catalog.load import parse
from controlplane.catalog.state import CatalogState
from controlplane.contract.records import AttemptError
from controlplane.contract.routing import (
    Affinity,
    Again,
    Canary,
    Concurrency,
    Fallbacks,
    Hedge,
    Principal,
    Priority,
    Retries,
    RetryRule,
    Shadow,
    Strategy,
    rules_of,
)
from controlplane.contract.snapshot import Snapshot, decode_snapshot, encode_snapshot

PAGES = ("routing-strategies.md", "retries-and-fallbacks.md", "overload-and-breakers.md")
FOLDER = Path(__file__).parents[3] / "docs" / "how-to"
EXAMPLES = [
    (page, text) for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", (FOLDER / page).read_text(), re.DOTALL)
]
ALL = """
upstreams: [{name: u, base_url: http://127.0.0.1:9/v1}]
retries: {connect: {on: none}}
models:
  - name: m
    strategy: least_busy
    deployments:
      - {upstream: u, model: a, concurrency: {max: 9, queue_s: 2m}}
      - {upstream: u, model: b}
    retries: {status_429: {on: same, tries: 2}}
    fallbacks: {general: [n], budget: [n]}
    hedge: {after_ms: 800, max_extra_usd: 0.5, second_worth_usd: 0.002}
    canary: {deployment: u/b, share: 0.25, by: agent}
    affinity: {by: prompt, ttl_s: 10m}
    shadow: {deployment: u/c, ratio: 0.5}
  - {name: n, deployments: [{upstream: u, model: c}]}
tenants: [{name: acme, priority_max: high}]
"""


def snapshot_of(text: str) -> Snapshot:
    """The file as proxies get it, over the wire and back."""
    config = parse(text, file="f").config
    return decode_snapshot(encode_snapshot(compile_snapshot(config, CatalogState(), NoPrices(), now_us=0)))


@pytest.mark.parametrize(("page", "text"), EXAMPLES)
def test_every_example_of_the_pages_is_accepted(page: str, text: str) -> None:
    """What can be copied from them works."""
    assert snapshot_of(text).hash, page


def test_everything_arrives() -> None:
    """Each field of the file in its place, amounts in nano-USD."""
    snapshot = snapshot_of(ALL)
    route, _ = snapshot.routes
    assert Strategy.LEAST_BUSY is route.strategy
    assert Concurrency(max=9, queue_s=120.0) == route.deployments[0].concurrency
    assert Retries(status_429=RetryRule(on=Again.SAME, tries=2)) == route.retries
    assert Fallbacks(general=("n",), budget=("n",)) == route.fallbacks
    assert Hedge(after_ms=800, extra_nanousd_max=500_000_000, second_nanousd=2_000_000) == route.hedge
    assert Canary(deployment="u/b", share=0.25, by=Principal.AGENT) == route.canary
    assert Affinity(by=Principal.PROMPT, ttl_s=600.0) == route.affinity
    assert Shadow(deployment="u/c", ratio=0.5) == route.shadow
    assert Priority.HIGH is snapshot.tenants[0].priority_max


def test_rules_come_from_the_nearest_level() -> None:
    """The route's, else the file's, else the default; credentials and credit are not worth the same deployment again."""
    snapshot = snapshot_of(ALL)
    rules = rules_of(snapshot.routes[0].retries, snapshot.retries)
    found = [
        rules[error].on
        for error in (AttemptError.STATUS_429, AttemptError.CONNECT, AttemptError.TRUNCATED, AttemptError.QUOTA)
    ]
    assert [Again.SAME, Again.NONE, Again.ANY, Again.ANOTHER] == found
    assert AttemptError.REJECTED not in rules

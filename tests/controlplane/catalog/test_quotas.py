"""Tests of quotas on their way from the file to the proxies."""

from __future__ import annotations

from controlplane.catalog.compile import NoPrices, compile_snapshot
from controlplane.catalog.load import parse
from controlplane.catalog.state import CatalogState
from controlplane.contract.snapshot import Quota, QuotaAction, QuotaMatch, QuotaScope, TenantPolicy, Window

HEAD = """
upstreams: [{name: u, base_url: "http://127.0.0.1:1/v1"}]
models:
  - {name: large, deployments: [{upstream: u, model: l}]}
  - {name: small, deployments: [{upstream: u, model: s}]}
tenants:
  - name: acme
"""


def _policy(text: str) -> TenantPolicy:
    config = parse(HEAD + text, file="x.yaml").config
    (policy,) = compile_snapshot(config, CatalogState(), NoPrices(), now_us=0).tenants
    return policy


def test_a_quota_reaches_the_proxies_as_it_was_written() -> None:
    """Scope, amount, window, zone, action and match; the name says scope, unit and window where none was given."""
    policy = _policy(
        """    quotas:
      - {per: agent, usd: 5, window: day, timezone: America/Sao_Paulo, action: downgrade, to: small, match: {models: [large]}}
      - {per: key, concurrency: 3}
      - {id: team, per: tag, tag: team, requests: 100, window: hour, action: soft, match: {tags: {env: prod}}}
"""
    )
    assert policy.quotas == (
        Quota(
            "agent-usd-day",
            QuotaScope.AGENT,
            window=Window.DAY,
            timezone="America/Sao_Paulo",
            nanousd=5_000_000_000,
            action=QuotaAction.DOWNGRADE,
            to="small",
            match=QuotaMatch(models=("large",)),
        ),
        Quota("key-concurrency", QuotaScope.KEY, concurrency=3),
        Quota(
            "team",
            QuotaScope.TAG,
            tag="team",
            window=Window.HOUR,
            requests=100,
            action=QuotaAction.SOFT,
            match=QuotaMatch(tags={"env": "prod"}),
        ),
    )


def test_fair_shares_are_off_until_they_are_written() -> None:
    """`fair_share: {}` shares evenly; without it calls are taken as they come."""
    assert _policy("").fair_weights is None
    assert {} == _policy("    fair_share: {}\n").fair_weights
    assert {"research": 3} == _policy("    fair_share: {weights: {research: 3}}\n").fair_weights

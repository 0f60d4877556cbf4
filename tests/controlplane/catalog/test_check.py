"""The check names what a valid file still lacks, each with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.catalog.check import Severity, check
from controlplane.catalog.compile import NoPrices
from controlplane.catalog.load import load, parse
from controlplane.contract.pricing import Price

ROOT = Path(__file__).parents[3]

GOOD = """
upstreams:
  - {name: a, base_url: https://a.example/v1, credential: env:A_KEY}
  - {name: b, base_url: https://b.example/v1, credential: env:B_KEY}
models:
  - name: fast
    deployments:
      - {upstream: a, model: m}
      - {upstream: b, model: m, order: 1}
tenants:
  - {name: acme, budgets: [{usd: 50, window: month}]}
"""


class Book:
    """A price book that knows everything."""

    def price(self, model: str) -> Price | None:
        """A price."""
        return Price(input=1, output=1)

    def output_tokens_max(self, model: str) -> int | None:
        """Not known."""
        return None


def rules(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The rules that find something in a text."""
    return [finding.rule for finding in check(parse(text, file="h.yaml").bound, Book(), environ=environ)]


def test_a_good_file_has_no_findings() -> None:
    """Two upstreams, prices, budgets and resolvable credentials leave nothing to say."""
    assert [] == rules(GOOD, {"A_KEY": "x", "B_KEY": "y"})


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("      - {upstream: b, model: m, order: 1}\n", "", "no-failover"),
        ("upstream: b, model: m,", "upstream: a, model: other,", "one-upstream"),
        (
            "tenants:\n  - {name: acme,",
            (
                "    fallbacks: {general: [b]}\n  - {name: b, deployments: [{upstream: b, model: m}], fallbacks: {general: [fast]}}\n"
                "tenants:\n  - {name: acme, models: [fast],"
            ),
            "fallback-not-allowed",
        ),
        ("- name: fast\n", "- name: fast\n    attempts_max: 1\n", "one-attempt"),
        ("- name: fast\n", "- name: fast\n    timeout_s: 30\n", "no-time-to-fail-over"),
        (
            "  - {name: b,",
            "  - {name: c, base_url: https://c.example/v1, credential: env:A_KEY}\n  - {name: b,",
            "unused-upstream",
        ),
        ("https://a.", "http://a.", "clear-text"),
        (", credential: env:A_KEY", "", "no-credential"),
        ("a.example/v1", "a.example", "no-v1"),
        ("a.example/v1", "a.invalid/v1", "placeholder"),
        ("base_url: https://a.", "dialect: anthropic, base_url: https://a.", "v1-twice"),
        ("{name: acme,", "{name: acme, passthrough: [{upstream: a}],", "open-passthrough"),
        ("{name: acme,", "{name: acme, passthrough: [{upstream: a, paths: [/files]}],", "unstated-passthrough"),
        (", budgets: [{usd: 50, window: month}]", "", "no-budget"),
        ("usd: 50", "usd: 0", "odd-budget"),
        ("[{usd: 50, window: month}]", "[{usd: 50, window: month}, {usd: 20, window: total}]", "odd-budget"),
        ("{name: acme,", "{name: acme, models: [],", "no-models-allowed"),
        ("\nupstreams", "\nserver: {host: 0.0.0.0}\nupstreams", "door-password"),
        ("\nupstreams", "\nserver: {workers: 4}\nupstreams", "no-redis"),
        ("\nupstreams", "\nserver: {proxy: {hosts: 2}}\nupstreams", "no-redis"),
        ("\nupstreams", "\nserver: {redis: redis://r.example, redis_password: env:R}\nupstreams", "clear-text"),
        (
            "\nupstreams",
            "\nserver: {redis: redis://r.example, proxy: {redis_timeout_s: 4.1}}\nupstreams",
            "lease-too-short",
        ),
        (
            "\nupstreams",
            "\nserver: {redis: redis://r.example, proxy: {hosts: 2, quota_lease_s: 1}}\nupstreams",
            "lease-below-clocks",
        ),
        ("{name: acme,", "{name: acme, quotas: [{per: agent, usd: 1, window: month}],", "quota-forgotten"),
        ("{name: acme,", "{name: acme, quotas: [{per: session, usd: 1, window: total}],", "quota-forgotten"),
    ],
)
def test_each_lack_is_found(old: str, new: str, rule: str) -> None:
    """One thing taken away from a good file is found by its rule."""
    assert old in GOOD
    assert rule in rules(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("server", "tenant"),
    [
        ("{redis: redis://r.example, proxy: {redis_timeout_s: 4.0}}", ""),
        ("{proxy: {redis_timeout_s: 9.0}}", ""),
        ("{redis: redis://r.example, proxy: {hosts: 2, quota_lease_s: 2}}", ""),
        (
            "{}",
            "quotas: [{per: agent, usd: 1, window: day}, {per: tenant, usd: 1, window: month}, {per: key, concurrency: 1}],",
        ),
        ("{redis: redis://r.example, workers: 4}", "limits: {concurrency: 1},"),
    ],
)
def test_settings_that_keep_the_stated_bound_have_no_findings(server: str, tenant: str) -> None:
    """The largest timeout of a lease, and limits smaller than the workers where these share them."""
    text = GOOD.replace("\nupstreams", f"\nserver: {server}\nupstreams", 1)
    assert [] == rules(text.replace("{name: acme,", f"{{name: acme, {tenant}", 1))


def test_a_limit_that_not_every_worker_has_a_part_of_is_named() -> None:
    """Without Redis, with the workers that divide it and what to do."""
    text = GOOD.replace("\nupstreams", "\nserver: {workers: 4}\nupstreams", 1)
    text = text.replace("{name: acme,", "{name: acme, limits: {concurrency: 3, requests_per_minute: 4},", 1)
    (finding,) = [one for one in check(parse(text, file="h.yaml").bound, Book()) if one.rule == "limit-below-workers"]
    assert "concurrency 3, and 4 workers divide it" in finding.message


def test_a_passthrough_with_paths_has_no_findings() -> None:
    """An upstream that only a grant uses is used."""
    more = "  - {name: c, base_url: https://c.example/v1, credential: env:A_KEY, passthrough_usd_per_call: 0.25}\n  - {name: b,"
    text = GOOD.replace("  - {name: b,", more, 1)
    assert [] == rules(text.replace("{name: acme,", "{name: acme, passthrough: [{upstream: c, paths: [/files]}],", 1))


def test_an_empty_file_serves_nobody() -> None:
    """Nothing to call and nobody to call it are both told."""
    assert {"no-models", "no-tenants"} == set(rules(""))


@pytest.mark.parametrize(
    "server",
    [
        "{workers: 4, redis: redis://r.example}",
        "{redis: rediss://r.example, redis_password: env:R}",
        "{redis: redis://127.0.0.1, redis_password: env:R}",
        "{redis: unix:///run/redis.sock, redis_password: env:R}",
    ],
)
def test_a_redis_that_is_well_set_up_has_no_findings(server: str) -> None:
    """Workers that share one, and a password that travels encrypted or not at all."""
    assert [] == rules(GOOD.replace("\nupstreams", f"\nserver: {server}\nupstreams", 1))


def test_unpriced_models_are_named_with_what_to_do() -> None:
    """Each deployment without a price is named at its line, with the lines to write, and only once."""
    findings = [f for f in check(parse(GOOD, file="h.yaml").bound, NoPrices()) if f.rule == "unpriced"]
    assert [(8, Severity.WARNING), (9, Severity.WARNING)] == [(finding.line, finding.severity) for finding in findings]
    assert "there is no price for `a/m`, so its calls count in no money budget" == findings[0].message
    assert "add `m: {input: ..., output: ...}` under `prices`" in findings[0].todo
    assert "h.yaml:8: warning: " in str(findings[0])
    refused = GOOD.replace("{name: acme,", "{name: acme, unpriced: refuse,")
    assert any("cannot call it" in f.message for f in check(parse(refused, file="h.yaml").bound, NoPrices()))


def test_credentials_that_cannot_be_resolved_are_errors() -> None:
    """References are looked up only where an environment is given, and a missing one is an error at its line."""
    assert [] == rules(GOOD)
    findings = check(parse(GOOD, file="h.yaml").bound, Book(), environ={"A_KEY": "x"})
    assert [("secret", Severity.ERROR, 4)] == [(finding.rule, finding.severity, finding.line) for finding in findings]
    assert "B_KEY is not set" in findings[0].message
    redis = GOOD.replace("\nupstreams", "\nserver: {redis: rediss://r, redis_password: env:R_KEY}\nupstreams", 1)
    assert ["secret"] == rules(redis, {"A_KEY": "x", "B_KEY": "y"})
    assert [] == rules(redis, {"A_KEY": "x", "B_KEY": "y", "R_KEY": "z"})


def test_the_starter_configuration_is_sound() -> None:
    """The file in the repository's root loads, and the check has no error for it."""
    loaded = load(ROOT / "hephaestus.yaml")
    assert {"openai"} <= {upstream.name for upstream in loaded.config.upstreams}
    assert [] == [finding for finding in check(loaded.bound, Book()) if finding.severity is Severity.ERROR]

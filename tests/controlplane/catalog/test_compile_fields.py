"""Whatever the file or the journal can say reaches the proxies: no field of the contract is forgotten on the way."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from controlplane.catalog.compile import NoPrices, compile_snapshot
from controlplane.catalog.issuers import source_of
from controlplane.catalog.load import parse
from controlplane.catalog.state import CatalogState, KeyRecord
from controlplane.contract.routing import Retries
from controlplane.contract.snapshot import (
    CacheInvalidation,
    Lease,
    LeaseKind,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
)

# Every setting, and none of them what it would be without being said. A class of price cannot have classes of its own.
KINDS = (
    "{input: 1, output: 2, cache_read: 3, cache_write: 4, cache_write_1h: 5, reasoning: 6, audio_input: 7, audio_output: 8, "
    "image_input: 9, image_output: 10, second: 11, character: 12, picture: 13, search: 14, file_search: 15, container: 16, "
    "pictures: {high/1024x1024: 17}, long: [{above_tokens: 5, input: 2, output: 4}], "
    "service: {batch: {input: 1, output: 1}}}"
)
CLASSES = Retries.__struct_fields__
RETRIES = "{" + ", ".join(f"{name}: {{on: same, tries: 2}}" for name in CLASSES) + "}"
WEIGHTS = "{" + ", ".join(f"{name}: 3" for name in CLASSES) + "}"
CACHE = "{enabled: false, ttl_s: 1, stale_while_revalidate_s: 2, stale_if_error_s: 3, negative_ttl_s: 4, coalesce_cost: split}"
ALL = f"""
upstreams:
  - name: u
    dialect: litellm
    base_url: https://u.example
    credential: env:U
    connect_timeout_s: 1
    first_byte_timeout_s: 2
    idle_timeout_s: 3
    connections_max: 4
    reports_cost: true
    passthrough_usd_per_call: 0.5
    options: {{api_version: "1"}}
  - {{name: v, base_url: "https://v.example"}}
models:
  - name: m
    timeout_s: 9
    attempts_max: 2
    cache_ttl_s: 5
    cache_stale_while_revalidate_s: 6
    cache_stale_if_error_s: 7
    batch: {{window_s: 0.02, items_max: 8}}
    strategy: cheapest
    retries: {RETRIES}
    fallbacks: {{general: [n], context_window: [n], content_policy: [n], budget: [n]}}
    hedge: {{after_ms: 5, budget_ratio: 0.5, max_extra_usd: 1, second_worth_usd: 1}}
    canary: {{deployment: d, share: 0.5, by: user}}
    affinity: {{by: user, ttl_s: 5}}
    shadow: {{deployment: d, ratio: 0.5}}
    deployments:
      - upstream: u
        model: a
        id: d
        weight: 2
        order: 1
        max_output_tokens: 7
        price: {KINDS}
        concurrency: {{max: 5, min: 1, adaptive: false, queue_max: 1, queue_s: 1}}
      - {{upstream: v, model: b}}
  - name: n
    hedge: {{after_percentile: 90}}
    deployments: [{{upstream: u, model: n}}, {{upstream: v, model: n}}]
tenants:
  - name: t
    models: [m]
    limits: {{requests_per_minute: 1, tokens_per_minute: 2, concurrency: 3, max_output_tokens: 4}}
    budgets: [{{usd: 1, window: day}}, {{tokens: 1, window: day}}]
    cache: {CACHE}
    payloads: {{store: true, retention_days: 1}}
    unpriced: refuse
    priority_max: high
    fair_share: {{weights: {{a: 2}}}}
    passthrough: [{{upstream: v, paths: [/x]}}]
    quotas:
      - {{per: tag, tag: x, window: day, timezone: Asia/Tokyo, usd: 1, action: downgrade, to: n,
         match: {{models: [m], keys: [k], agents: [a], users: [b], tags: {{c: d}}}}}}
      - {{per: key, window: hour, tokens: 1}}
      - {{per: key, window: hour, requests: 1}}
      - {{per: key, concurrency: 1}}
issuers:
  - {{name: claims, issuer: "https://i", audience: [h], jwks_url: "https://i/keys", algorithms: [ES256], tenant_claim: org,
     models_claim: models, user_claim: email, leeway_s: 5}}
  - {{name: plain, issuer: "https://p", audience: [h], tenant: t}}
breaker: {{window_s: 1, requests_min: 1, error_ratio: 0.1, slow_s: 1, slow_ratio: 0.1, open_s: 1, probes: 1, failures_in_row: 1,
  all_open: try, probe_idle: false, weights: {WEIGHTS}}}
retries: {RETRIES}
label_aliases: false
"""
STATE = CatalogState(
    keys={"k": KeyRecord("k", "t", "hash", models=("m",), expires_us=90, addresses=("192.0.2.0/24",))},
    leases={"l": Lease("l", LeaseKind.SHARE, "d", 90, run_id="r", share=0.5, reason="why")},
    invalidations={
        "i": CacheInvalidation("i", 5, 90, tenant="t", tag="x", alias="m", model="a", agent="b", reason="why")
    },
)


def snapshot() -> Snapshot:
    """All of it as proxies get it, over the wire and back."""
    config = parse(ALL, file="h.yaml").config
    public_keys = {source_of(entry): ('{"kty":"EC"}',) for entry in config.issuers}
    compiled = compile_snapshot(config, STATE, NoPrices(), now_us=9, public_keys=public_keys)
    return decode_snapshot(encode_snapshot(compiled))


def structs_in(value: object) -> Iterator[msgspec.Struct]:
    """A value and all that it holds, as far as it is made of structs."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from structs_in(getattr(value, name))
    elif isinstance(value, tuple):
        for one in value:
            yield from structs_in(one)


def test_no_field_is_left_behind() -> None:
    """With everything said, each field of everything that proxies are told has a value of its own somewhere."""
    told: set[tuple[str, str]] = set()
    known: set[tuple[str, str]] = set()
    for struct in structs_in(snapshot()):
        of = type(struct)
        for field in msgspec.structs.fields(of):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            known.add((of.__name__, field.name))
            if getattr(struct, field.name) != default:
                told.add((of.__name__, field.name))
    assert set() == known - told
    assert {"Upstream", "Route", "Deployment", "TenantPolicy", "Issuer", "BatchPolicy", "Shadow"} <= {
        of for of, _ in told
    }

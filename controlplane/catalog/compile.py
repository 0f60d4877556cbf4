"""From what should be true to what proxies are told: a pure function of the file, the journal's state, the prices and the moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec

from controlplane.catalog.file import BudgetEntry, ConfigFile, DeploymentEntry, ModelEntry, PriceEntry, TenantEntry
from controlplane.catalog.invalidations import ended, in_force
from controlplane.catalog.issuers import issuer_of, source_of
from controlplane.catalog.own_prices import change_moments_us, own_price
from controlplane.catalog.quotas import quota_of
from controlplane.catalog.routing import hedge_of
from controlplane.catalog.state import CatalogState, KeyRecord
from controlplane.contract.pricing import Price
from controlplane.contract.snapshot import (
    OUTPUT_TOKENS_USUAL,
    Budget,
    Deployment,
    KeyEntry,
    PassthroughGrant,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
    encode_snapshot,
)


class Prices(Protocol):
    """Where prices come from that the file does not state itself."""

    def price(self, model: str) -> Price | None:
        """The price of a model by the name an upstream knows it by; None: unpriced."""
        ...

    def output_tokens_max(self, model: str) -> int | None:
        """The longest answer of a model, in tokens; None: not known."""
        ...


class NoPrices:
    """A price book with nothing in it."""

    def price(self, model: str) -> Price | None:  # noqa: ARG002 - the protocol's signature
        """None for every model."""
        return None

    def output_tokens_max(self, model: str) -> int | None:  # noqa: ARG002 - the protocol's signature
        """None for every model."""
        return None


def compile_snapshot(
    config: ConfigFile,
    state: CatalogState,
    prices: Prices,
    *,
    now_us: int,
    public_keys: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Snapshot:
    """A snapshot with version 0 and created_us 0, which `Publisher` gives out; equal inputs give an equal hash.

    Left out are revoked and expired keys, keys of tenants that the file no longer has, and expired leases. Everything is sorted but the
    deployments of a route, whose order the file decides.
    """
    tenants = {tenant.name for tenant in config.tenants}
    snapshot = Snapshot(
        version=0,
        created_us=0,
        tenants=tuple(_tenant(entry, config) for entry in sorted(config.tenants, key=lambda entry: entry.name)),
        keys=tuple(
            sorted(
                (
                    entry
                    for key in state.keys.values()
                    if not key.revoked_us and key.tenant in tenants
                    for entry in key_entries(key)
                    if entry.expires_us is None or entry.expires_us > now_us
                ),
                key=lambda entry: entry.hash,
            )
        ),
        upstreams=tuple(
            Upstream(
                id=entry.name,
                dialect=entry.dialect.value,
                base_url=(entry.base_url or "").rstrip("/"),
                credential=entry.credential,
                connect_timeout_s=entry.connect_timeout_s,
                first_byte_timeout_s=entry.first_byte_timeout_s,
                idle_timeout_s=entry.idle_timeout_s,
                connections_max=entry.connections_max,
                reports_cost=entry.reports_cost,
                options=dict(sorted(entry.options.items())),
                passthrough_nanousd=entry.passthrough_usd_per_call,
            )
            for entry in sorted(config.upstreams, key=lambda entry: entry.name)
        ),
        routes=tuple(
            _route(model, config, prices, now_us=now_us)
            for model in sorted(config.models, key=lambda model: model.name)
        ),
        leases=tuple(lease for _, lease in sorted(state.leases.items()) if lease.expires_us > now_us),
        breaker=config.breaker,
        issuers=tuple(
            issuer_of(entry, public_keys.get(source_of(entry), ()))
            for entry in sorted(config.issuers, key=lambda entry: entry.name)
        ),
        retries=config.retries,
        label_aliases=config.label_aliases,
        invalidations=ended(state, now_us=now_us) + in_force(state.invalidations.values(), now_us=now_us),
    )
    return msgspec.structs.replace(snapshot, hash=content_hash(snapshot))


def key_entries(key: KeyRecord) -> Iterator[KeyEntry]:
    """A key as proxies know it: under the hash of its secret, and for a while under that of the one before."""
    entry = KeyEntry(
        hash=key.hash,
        id=key.id,
        tenant=key.tenant,
        models=key.models,
        expires_us=key.expires_us,
        addresses=key.addresses,
    )
    yield entry
    if key.former_hash:
        until_us = key.grace_until_us if key.expires_us is None else min(key.grace_until_us, key.expires_us)
        yield msgspec.structs.replace(entry, hash=key.former_hash, expires_us=until_us)


def content_hash(snapshot: Snapshot) -> str:
    """32 hex characters over everything but version, moment and hash."""
    content = encode_snapshot(msgspec.structs.replace(snapshot, version=0, created_us=0, hash=""))
    return hashlib.sha256(content).hexdigest()[:32]


def price_of(
    entry: DeploymentEntry, overrides: Mapping[str, PriceEntry], prices: Prices, *, now_us: int
) -> Price | None:
    """A deployment's price now: its own, else the file's for its id or model, else the price book's; None: unpriced."""
    own = own_entry(entry, overrides)
    return prices.price(entry.model) if own is None else own_price(own, now_us=now_us)


def own_entry(entry: DeploymentEntry, overrides: Mapping[str, PriceEntry]) -> PriceEntry | None:
    """What the file itself says about a deployment's price."""
    return entry.price or overrides.get(entry.deployment_id) or overrides.get(entry.model)


def next_change_us(state: CatalogState, config: ConfigFile, *, now_us: int) -> int | None:
    """The next moment at which time alone changes the snapshot: a lease or a key expires, a price changes; None: never."""
    moments = [lease.expires_us for lease in state.leases.values()]
    moments += [rule.expires_us for rule in state.invalidations.values()]
    moments += [
        entry.expires_us
        for key in state.keys.values()
        if not key.revoked_us
        for entry in key_entries(key)
        if entry.expires_us is not None
    ]
    moments += change_moments_us(config)
    return min((moment for moment in moments if moment > now_us), default=None)


def _tenant(entry: TenantEntry, config: ConfigFile) -> TenantPolicy:
    return TenantPolicy(
        id=entry.name,
        models=None if entry.models is None else tuple(sorted(set(entry.models))),
        requests_per_minute=entry.limits.requests_per_minute,
        tokens_per_minute=entry.limits.tokens_per_minute,
        concurrency=entry.limits.concurrency,
        budgets=tuple(_budget(budget) for budget in entry.budgets),
        max_output_tokens=entry.limits.max_output_tokens,
        cache=config.cache if entry.cache is None else entry.cache,
        payloads=config.payloads if entry.payloads is None else entry.payloads,
        unpriced=entry.unpriced,
        priority_max=entry.priority_max,
        quotas=tuple(quota_of(quota) for quota in entry.quotas),
        fair_weights=None if entry.fair_share is None else entry.fair_share.weights,
        passthrough=tuple(PassthroughGrant(grant.upstream, grant.paths) for grant in entry.passthrough),
    )


def _budget(entry: BudgetEntry) -> Budget:
    return Budget(id=entry.budget_id, window=entry.window, nanousd=entry.usd, tokens=entry.tokens)


def _route(model: ModelEntry, config: ConfigFile, prices: Prices, *, now_us: int) -> Route:
    return Route(
        alias=model.name,
        deployments=tuple(_deployment(entry, config.prices, prices, now_us=now_us) for entry in model.deployments),
        timeout_s=model.timeout_s,
        attempts_max=model.attempts_max,
        cache_ttl_s=model.cache_ttl_s,
        cache_stale_while_revalidate_s=model.cache_stale_while_revalidate_s,
        cache_stale_if_error_s=model.cache_stale_if_error_s,
        batch=model.batch,
        strategy=model.strategy,
        retries=model.retries,
        fallbacks=model.fallbacks,
        hedge=hedge_of(model.hedge),
        canary=model.canary,
        affinity=model.affinity,
        shadow=model.shadow,
    )


def _deployment(
    entry: DeploymentEntry, overrides: Mapping[str, PriceEntry], prices: Prices, *, now_us: int
) -> Deployment:
    longest = entry.max_output_tokens or prices.output_tokens_max(entry.model)
    return Deployment(
        id=entry.deployment_id,
        upstream=entry.upstream,
        model=entry.model,
        price=price_of(entry, overrides, prices, now_us=now_us),
        weight=entry.weight,
        order=entry.order,
        max_output_tokens=entry.max_output_tokens or min(longest or OUTPUT_TOKENS_USUAL, OUTPUT_TOKENS_USUAL),
        concurrency=entry.concurrency,
        output_tokens_max=longest,
    )

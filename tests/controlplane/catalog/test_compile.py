"""Compiling is pure: equal inputs give equal snapshots, and time takes away what has expired."""

from __future__ import annotations

import random

import msgspec
import pytest

from controlplane.catalog.compile import NoPrices, compile_snapshot, content_hash, next_change_us
from controlplane.catalog.file import ConfigFile, PriceEntry
from controlplane.catalog.load import parse
from controlplane.catalog.own_prices import own_price
from controlplane.catalog.state import CatalogState, KeyRecord
from controlplane.contract.pricing import Price
from controlplane.contract.snapshot import (
    Budget,
    CachePolicy,
    Lease,
    LeaseKind,
    PayloadPolicy,
    Window,
    decode_snapshot,
    encode_snapshot,
)

TEXT = """
upstreams:
  - {name: b, base_url: https://b.example/v1/, credential: env:B}
  - {name: a, base_url: https://a.example/v1}
models:
  - name: fast
    cache_ttl_s: 60
    deployments:
      - {upstream: b, model: known, weight: 3}
      - {upstream: a, model: listed}
      - {upstream: a, model: unknown, order: 1}
      - {upstream: a, model: known, id: special, price: {input: 1, output: 2}}
tenants:
  - {name: beta}
  - name: acme
    models: [fast]
    budgets: [{usd: 50, window: month}]
    limits: {concurrency: 5}
    cache: {enabled: false}
    payloads: {store: true, retention_days: 3}
prices:
  listed: {input: 0.15, output: 0.6}
cache: {ttl_s: 10}
"""
NOW_US = 1_000


class Book:
    """A price book with one model."""

    def price(self, model: str) -> Price | None:
        """The one price."""
        return Price(input=7, output=8, version="book/known") if model == "known" else None

    def output_tokens_max(self, model: str) -> int | None:
        """The one longest answer."""
        return 9_000 if model == "known" else None


def config(text: str = TEXT) -> ConfigFile:
    """The configuration of a text."""
    return parse(text, file="h.yaml").config


def key(name: str, *, tenant: str = "acme", expires_us: int | None = None, revoked_us: int = 0) -> KeyRecord:
    """A key whose hash is its name."""
    return KeyRecord(id=f"key_{name}", tenant=tenant, hash=name, expires_us=expires_us, revoked_us=revoked_us)


def lease(name: str, expires_us: int) -> Lease:
    """A lease on some deployment."""
    return Lease(id=name, kind=LeaseKind.DRAIN, deployment="b/known", expires_us=expires_us)


def state(*, keys: tuple[KeyRecord, ...] = (), leases: tuple[Lease, ...] = ()) -> CatalogState:
    """A state with these keys and leases."""
    return CatalogState(keys={k.id: k for k in keys}, leases={held.id: held for held in leases})


def test_everything_in_the_file_reaches_the_proxies() -> None:
    """Names, limits, budgets, policies with their defaults, and prices by their order of precedence are in the snapshot."""
    snapshot = compile_snapshot(config(), state(), Book(), now_us=NOW_US)
    assert ["a", "b"] == [upstream.id for upstream in snapshot.upstreams]
    assert ("https://b.example/v1", "env:B") == (snapshot.upstreams[1].base_url, snapshot.upstreams[1].credential)
    (route,) = snapshot.routes
    assert [
        ("b/known", 3, 0, Price(input=7, output=8, version="book/known")),
        (
            "a/listed",
            1,
            0,
            msgspec.structs.replace(own_price(PriceEntry(input=150_000_000, output=600_000_000), now_us=0)),
        ),
        ("a/unknown", 1, 1, None),
        ("special", 1, 0, own_price(PriceEntry(input=10**9, output=2 * 10**9), now_us=0)),
    ] == [(d.id, d.weight, d.order, d.price) for d in route.deployments]
    assert [(9_000, 9_000), (16_384, None), (16_384, None), (9_000, 9_000)] == [
        (d.max_output_tokens, d.output_tokens_max) for d in route.deployments
    ]
    acme, beta = snapshot.tenants
    assert (("fast",), 5, (Budget(id="usd-month", window=Window.MONTH, nanousd=50 * 10**9),)) == (
        acme.models,
        acme.concurrency,
        acme.budgets,
    )
    assert (CachePolicy(enabled=False), PayloadPolicy(store=True, retention_days=3)) == (acme.cache, acme.payloads)
    assert (None, CachePolicy(ttl_s=10), PayloadPolicy()) == (beta.models, beta.cache, beta.payloads)


def test_a_longest_answer_of_ones_own_counts() -> None:
    """What the file says is the model's longest answer, else the book; of that, no more than usual is held against budgets."""

    class LongBook(Book):
        def output_tokens_max(self, model: str) -> int | None:
            return 128_000

    text = TEXT.replace("model: listed", "model: listed, max_output_tokens: 40000")
    found = compile_snapshot(config(text), state(), LongBook(), now_us=NOW_US).routes[0].deployments
    assert [(16_384, 128_000), (40_000, 40_000)] == [(d.max_output_tokens, d.output_tokens_max) for d in found[:2]]


def test_what_a_passed_through_call_may_cost_goes_with_its_upstream() -> None:
    """In nano-USD, and nothing where the file says nothing."""
    text = TEXT.replace("credential: env:B}", "credential: env:B, passthrough_usd_per_call: 0.25}")
    upstreams = compile_snapshot(config(text), state(), Book(), now_us=NOW_US).upstreams
    assert {"a": None, "b": 250_000_000} == {one.id: one.passthrough_nanousd for one in upstreams}


def test_order_in_the_file_does_not_matter() -> None:
    """Tenants, upstreams, models and keys in any order give the same hash; another order of deployments does not."""
    first = config()
    shuffled = msgspec.structs.replace(first, upstreams=first.upstreams[::-1], tenants=first.tenants[::-1])
    keys = [key(str(number)) for number in range(20)]
    one = compile_snapshot(first, state(keys=tuple(keys)), Book(), now_us=NOW_US)
    random.Random(3).shuffle(keys)
    assert one == compile_snapshot(shuffled, state(keys=tuple(keys)), Book(), now_us=NOW_US + 1)
    routes = (msgspec.structs.replace(first.models[0], deployments=first.models[0].deployments[::-1]),)
    assert (
        one.hash
        != compile_snapshot(
            msgspec.structs.replace(first, models=routes), state(keys=tuple(keys)), Book(), now_us=NOW_US
        ).hash
    )


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("weight: 3", "weight: 4"),
        TEXT.replace("usd: 50", "usd: 50.000000001"),
        TEXT.replace("0.15", "0.16"),
        TEXT.replace("concurrency: 5", "concurrency: 6"),
        TEXT + "label_aliases: false\n",
        TEXT + "breaker: {open_s: 6}\n",
        TEXT.replace("env:B", "env:C"),
    ],
)
def test_every_change_changes_the_hash(other: str) -> None:
    """Whatever proxies would do differently gives another hash."""
    one = compile_snapshot(config(), state(), Book(), now_us=NOW_US)
    assert one.hash != compile_snapshot(config(other), state(), Book(), now_us=NOW_US).hash


def test_what_has_ended_is_left_out() -> None:
    """Expired leases, revoked and expired keys, and keys of tenants that are gone do not reach the proxies."""
    keys = (
        key("good"),
        key("until", expires_us=NOW_US + 1),
        key("expired", expires_us=NOW_US),
        key("revoked", revoked_us=1),
        key("orphan", tenant="gone"),
    )
    snapshot = compile_snapshot(
        config(), state(keys=keys, leases=(lease("l1", NOW_US), lease("l2", NOW_US + 1))), NoPrices(), now_us=NOW_US
    )
    assert ["good", "until"] == [entry.hash for entry in snapshot.keys]
    assert ["l2"] == [held.id for held in snapshot.leases]


def test_the_next_change_by_time_alone() -> None:
    """The earliest expiry in the future is when the snapshot changes by itself."""
    held = state(
        keys=(key("a", expires_us=50), key("r", expires_us=20, revoked_us=1)), leases=(lease("l", 30), lease("past", 5))
    )
    assert [30, 50, None] == [next_change_us(held, ConfigFile(), now_us=now) for now in (10, 30, 50)]


def test_the_hash_is_of_the_content_alone() -> None:
    """Version and moment do not change the hash, and the snapshot survives the wire."""
    snapshot = compile_snapshot(config(), state(keys=(key("a"),)), Book(), now_us=NOW_US)
    numbered = msgspec.structs.replace(snapshot, version=9, created_us=5)
    assert snapshot.hash == content_hash(numbered)
    assert numbered == decode_snapshot(encode_snapshot(numbered))

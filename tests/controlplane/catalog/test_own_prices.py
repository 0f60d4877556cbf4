"""Tests of the operator's own prices: what holds when, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.catalog.compile import NoPrices, compile_snapshot, next_change_us
from controlplane.catalog.file import PriceEntry
from controlplane.catalog.load import parse
from controlplane.catalog.own_prices import own_price
from controlplane.catalog.state import CatalogState
from controlplane.contract.pricing import Tokens, cost_nanousd
from controlplane.errors import ConfigError

DAY_US = 1_764_547_200_000_000  # 2025-12-01
TEXT = """
upstreams: [{name: a, base_url: "http://a/v1"}]
models: [{name: m, deployments: [{upstream: a, model: m}]}]
prices:
  m:
    input: 1
    output: 2
    cache_read: 0.5
    long: [{above_tokens: 200, input: 10, output: 20}]
    service: {batch: {input: 0.5, output: 1, long: [{above_tokens: 200, input: 5, output: 10}]}}
    changes:
      - {from: 2025-12-01, input: 3, output: 4}
      - {from: 2026-01-01, input: 5, output: 6}
"""


def test_an_own_price_names_its_content() -> None:
    """Two equal prices have one version, and a changed price has another."""
    one, same, other = (own_price(PriceEntry(input=1, output=amount), now_us=0) for amount in (2, 2, 3))
    assert one.version == same.version != other.version
    assert one.version.startswith("config/")


@pytest.mark.parametrize(
    ("tokens", "service_class", "expected"),
    [
        (Tokens(input=200), "", 200_000),
        (Tokens(input=200), "unknown", 200_000),
        (Tokens(input=100, cache_read=100), "", 150_000),
        (
            Tokens(input=100, cache_read=101, output=1),
            "",
            1_070_500,
        ),  # the threshold counts what was read from the cache
        (Tokens(input=200), "batch", 100_000),
        (Tokens(input=201), "batch", 1_005_000),
    ],
)
def test_long_prompts_and_service_classes(tokens: Tokens, service_class: str, expected: int) -> None:
    """All tokens of a long prompt cost the long price, and a service class has prices of its own; other kinds stay as they are."""
    price = own_price(parse(TEXT, file="h.yaml").config.prices["m"], now_us=0)
    assert expected == cost_nanousd(tokens, price, service_class=service_class)


def test_a_price_begins_on_its_day() -> None:
    """Snapshots carry the price of their day, under a version that names the day, and the next change is known beforehand."""
    config = parse(TEXT, file="h.yaml").config
    found = []
    for now_us in (0, DAY_US - 1, DAY_US, DAY_US + 31 * 86_400_000_000):
        route = compile_snapshot(config, CatalogState(), NoPrices(), now_us=now_us).routes[0]
        price = route.deployments[0].price
        assert price is not None
        found.append((price.input, price.version.split("/")[1]))
    assert [1_000_000_000, 1_000_000_000, 3_000_000_000, 5_000_000_000] == [amount for amount, _ in found]
    assert ["2025-12-01", "2026-01-01"] == [version for _, version in found[2:]]
    moments = [next_change_us(CatalogState(), config, now_us=now_us) for now_us in (0, DAY_US, DAY_US * 2)]
    assert [DAY_US, DAY_US + 31 * 86_400_000_000, None] == moments


def test_a_price_of_one_deployment_changes_too() -> None:
    """A deployment's own price may have changes, which are known beforehand like those under `prices`."""
    text = TEXT.replace(
        "model: m}]", "model: m, price: {input: 1, output: 1, changes: [{from: 2025-11-30, input: 2, output: 2}]}}]"
    )
    config = msgspec.structs.replace(parse(text, file="h.yaml").config, prices={})
    assert DAY_US - 86_400_000_000 == next_change_us(CatalogState(), config, now_us=0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("from: 2026-01-01", "from: 2026-02-31", "no day 2026-02-31"),
        ("from: 2026-01-01", "from: tomorrow", "a day"),
        ("from: 2026-01-01", "from: 2025-12-01", "two prices begin on 2025-12-01"),
        ("{above_tokens: 200, input: 10, output: 20}", "{above_tokens: 2, input: 1, output: 1}, {above_tokens: 2, input: 1, output: 1}", "above 2 tokens"),
        ("input: 10, output: 20", "input: 10", "output"),
        ("above_tokens: 200, input: 10", "input: 10", "above_tokens"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(old: str, new: str, says: str) -> None:
    """A day that does not exist, two prices at once and half a price are mistakes with their line."""
    with pytest.raises(ConfigError, match=says):
        parse(TEXT.replace(old, new, 1), file="h.yaml")

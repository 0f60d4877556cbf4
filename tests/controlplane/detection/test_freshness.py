"""Whether telemetry may be believed."""

from __future__ import annotations

import pytest

from controlplane.contract.snapshot import ProxyStatus
from controlplane.detection.freshness import Freshness

S = 1_000_000


def _status(proxy: str, spool_bytes: int) -> ProxyStatus:
    return ProxyStatus(proxy_id=proxy, at_us=0, snapshot_version=1, spool_bytes=spool_bytes)


def test_without_any_proxy_telemetry_is_stale() -> None:
    """Nobody reports, so nothing is known."""
    assert Freshness().is_stale(0)
    assert float("inf") == Freshness().lag_s(0)


def test_an_empty_spool_is_fresh_however_quiet() -> None:
    """No traffic is not a loss of telemetry."""
    fresh = Freshness()
    fresh.saw(_status("1", 0), now_us=1000 * S)
    assert 0.0 == fresh.lag_s(1005 * S)


def test_records_that_wait_make_telemetry_older_until_a_batch_arrives() -> None:
    """The lag counts from when records were first seen waiting, and a stored batch ends it."""
    fresh = Freshness(lag_s_max=60.0)
    for second in range(0, 71, 2):
        fresh.saw(_status("1", 500), now_us=second * S)
    assert 70.0 == fresh.lag_s(70 * S)
    assert fresh.is_stale(70 * S)
    fresh.stored("1", now_us=70 * S)
    fresh.saw(_status("1", 500), now_us=72 * S)
    assert 2.0 == fresh.lag_s(72 * S)
    assert not fresh.is_stale(72 * S)


def test_a_batch_of_one_proxy_says_nothing_about_another() -> None:
    """The worst live worker decides, one that is gone does not."""
    fresh = Freshness(expiry_s=10.0)
    for second in range(0, 62, 2):
        fresh.saw(_status("sick", 500), now_us=second * S)
        fresh.saw(_status("well", 500), now_us=second * S)
        fresh.stored("well", now_us=second * S)
    assert 60.0 == fresh.lag_s(60 * S)
    fresh.saw(_status("well", 0), now_us=75 * S)
    assert 0.0 == fresh.lag_s(75 * S)


@pytest.mark.parametrize("known", [True, False])
def test_a_batch_of_an_unknown_or_idle_proxy_is_harmless(known: bool) -> None:
    """Late batches of a worker that is gone change nothing."""
    fresh = Freshness()
    if known:
        fresh.saw(_status("1", 0), now_us=0)
    fresh.stored("1", now_us=5 * S)
    assert (0.0 if known else float("inf")) == fresh.lag_s(6 * S)


def test_the_number_of_known_proxies_is_bounded() -> None:
    """Those not heard of for longest are forgotten."""
    fresh = Freshness(proxies_max=2, expiry_s=100.0)
    fresh.saw(_status("1", 500), now_us=0)
    fresh.saw(_status("2", 0), now_us=1 * S)
    fresh.saw(_status("3", 0), now_us=2 * S)
    assert 0.0 == fresh.lag_s(50 * S)

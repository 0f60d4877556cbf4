"""Rates and slots: what fits passes, what does not is refused, and everything comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.snapshot import KeyEntry, Snapshot, TenantPolicy
from proxy.call import Call
from proxy.metrics import ProxyMetrics
from proxy.runtime import KeyIdentity, compile_runtime
from proxy.stages.admit import Admit
from tests.proxy.fakes import Clock


def call_of(tenant: TenantPolicy) -> Call:
    """A call of that tenant."""
    runtime = compile_runtime(Snapshot(version=1, created_us=0), {})
    call = Call(runtime, "chat", "/", {}, b"", call_id="c", started_us=0, started_ns=0)
    call.identity = KeyIdentity(tenant, KeyEntry(hash="", id="k", tenant=tenant.id), None)
    return call


@given(
    limit=st.integers(1, 600),
    workers=st.integers(1, 8),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40)), max_size=30),
)
def test_no_more_than_burst_and_rate_allow(limit: int, workers: int, steps: list[tuple[float, int]]) -> None:
    """Over any time t at most its share of limit + limit * t / 60 requests pass, and at least one share is never refused at rest."""
    clock = Clock()
    stage = Admit(ProxyMetrics("0"), workers=workers, monotonic=clock)
    tenant = TenantPolicy(id="t", requests_per_minute=limit)
    share = max(1, limit // workers)
    passed, elapsed = 0, 0.0
    for wait_s, requests in steps:
        clock.now += wait_s
        elapsed += wait_s
        for _ in range(requests):
            call = call_of(tenant)
            if stage.enter(call) is None:
                passed += 1
                stage.leave(call)
        assert passed <= share + share * elapsed / 60.0 + 1e-6
    clock.now += 61
    assert stage.enter(call_of(tenant)) is None


def test_slots_come_back_exactly_once() -> None:
    """Leaving twice frees one slot, and a refused call frees none."""
    stage = Admit(ProxyMetrics("0"), workers=1, monotonic=Clock())
    tenant = TenantPolicy(id="t", concurrency=2)
    first, second, third = (call_of(tenant) for _ in range(3))
    assert stage.enter(first) is None
    assert stage.enter(second) is None
    refused = stage.enter(third)
    assert refused is not None
    assert 429 == refused.status
    stage.leave(third)
    assert stage.enter(call_of(tenant)) is not None
    stage.leave(first)
    stage.leave(first)
    assert stage.enter(call_of(tenant)) is None
    assert stage.enter(call_of(tenant)) is not None


def test_tenants_do_not_share_limits_and_the_gone_are_forgotten() -> None:
    """One tenant at its limit is no matter of another's; a tenant that left the catalog leaves no state behind."""
    stage = Admit(ProxyMetrics("0"), workers=1, monotonic=Clock())
    one, other = (TenantPolicy(id=name, requests_per_minute=1) for name in ("one", "other"))
    assert stage.enter(call_of(one)) is None
    assert stage.enter(call_of(one)) is not None
    last = call_of(other)
    assert stage.enter(last) is None
    stage.leave(last)
    stage.retain({"one"})
    assert stage.enter(call_of(other)) is None

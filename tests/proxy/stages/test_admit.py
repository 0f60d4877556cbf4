"""Rates and slots: what fits passes, what does not is refused, and everything comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.snapshot import KeyEntry, Snapshot, TenantPolicy
from proxy.call import Call
from proxy.metrics import ProxyMetrics
from proxy.quotas.account import Share
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
    worker=st.integers(0, 7),
    workers=st.integers(8, 16) | st.just(8),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40)), max_size=30),
)
def test_no_more_than_burst_and_rate_allow(
    limit: int, worker: int, workers: int, steps: list[tuple[float, int]]
) -> None:
    """Over any time t at most its share of limit + limit * t / 60 requests pass, and a worker with a share serves after a rest."""
    clock = Clock()
    mine = Share(worker, workers)
    stage = Admit(ProxyMetrics("0"), share=mine, monotonic=clock)
    tenant = TenantPolicy(id="t", requests_per_minute=limit)
    share = mine.of(limit)
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
    assert (stage.enter(call_of(tenant)) is None) == (share > 0)


@given(limit=st.integers(0, 20), workers=st.integers(1, 8))
def test_all_workers_together_never_exceed_a_limit(limit: int, workers: int) -> None:
    """The calls in flight at all workers reach the limit and never pass it, also where it is smaller than their number."""
    tenant = TenantPolicy(id="t", concurrency=limit, requests_per_minute=1000)
    inflight = 0
    for number in range(workers):
        stage = Admit(ProxyMetrics("0"), share=Share(number, workers), monotonic=Clock())
        while stage.enter(call_of(tenant)) is None:
            inflight += 1
    assert limit == inflight


def test_a_worker_without_a_part_says_so_and_sends_the_client_to_another() -> None:
    """429 with what is wrong, and `connection: close`, because another connection may come to a worker with a part."""
    stage = Admit(ProxyMetrics("1"), share=Share(1, 2), monotonic=Clock())
    for tenant in (TenantPolicy(id="t", concurrency=1), TenantPolicy(id="t", requests_per_minute=1)):
        reply = stage.enter(call_of(tenant))
        assert reply is not None
        assert 429 == reply.status
        assert (b"connection", b"close") in reply.headers
        assert b"smaller than the number of workers" in reply.body
    never = Admit(ProxyMetrics("0"), monotonic=Clock()).enter(call_of(TenantPolicy(id="t", requests_per_minute=0)))
    assert never is not None
    assert b"its limit is zero" in never.body


def test_slots_come_back_exactly_once() -> None:
    """Leaving twice frees one slot, and a refused call frees none."""
    stage = Admit(ProxyMetrics("0"), monotonic=Clock())
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
    stage = Admit(ProxyMetrics("0"), monotonic=Clock())
    one, other = (TenantPolicy(id=name, requests_per_minute=1) for name in ("one", "other"))
    assert stage.enter(call_of(one)) is None
    assert stage.enter(call_of(one)) is not None
    last = call_of(other)
    assert stage.enter(last) is None
    stage.leave(last)
    stage.retain({"one"})
    assert stage.enter(call_of(other)) is None

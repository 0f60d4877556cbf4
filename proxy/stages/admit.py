"""How much at once: requests per minute as a token bucket, and calls in flight as slots, for each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import ClassVar

from controlplane.contract.snapshot import TenantPolicy
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.quotas.account import ALL, Share
from proxy.refusals import refuse

_SLOT_RETRY_S = 1.0


class _Admission:
    """What one tenant has used: a bucket that fills up again with time, and the calls in flight."""

    __slots__ = ("inflight", "level", "updated")

    def __init__(self, level: float, now: float) -> None:
        self.level = level
        self.updated = now
        self.inflight = 0


class Admit:
    """Takes a request from the tenant's bucket and one of its slots; `leave` gives the slot back.

    share: this worker's part of each limit. It is zero where the limit is smaller than the number of workers; then this worker always
    refuses and asks the client to close its connection, because the next one may come to a sibling that has a part.
    """

    name: ClassVar[str] = "admit"

    def __init__(
        self, metrics: ProxyMetrics, *, share: Share = ALL, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._share = share
        self._monotonic = monotonic
        self._admissions: dict[str, _Admission] = {}

    def enter(self, call: Call) -> Reply | None:
        """Refuses what exceeds a limit, naming it and when to come back."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        tenant = call.identity.tenant
        now = self._monotonic()
        per_minute = None if tenant.requests_per_minute is None else self._share.of(tenant.requests_per_minute)
        admission = self._admissions.get(tenant.id)
        if admission is None:
            admission = self._admissions[tenant.id] = _Admission(float(per_minute or 0), now)
        concurrency = None if tenant.concurrency is None else self._share.of(tenant.concurrency)
        if concurrency == 0 or per_minute == 0:
            return self._refuse_without_part(tenant)
        if concurrency is not None and admission.inflight >= concurrency:
            self._metrics.bound_hit("tenant_concurrency")
            message = f"tenant {tenant.id} already has {admission.inflight} calls in flight, its limit on this worker"
            return refuse(refusals.RATE_LIMITED, message, retry_after_s=_SLOT_RETRY_S)
        if per_minute is not None:
            refusal = self._take(call, admission, per_minute, now)
            if refusal is not None:
                return refusal
        admission.inflight += 1
        call.admitted = True
        return None

    def leave(self, call: Call) -> None:
        """Gives the slot back; the request stays taken."""
        if call.admitted and call.identity is not None:
            call.admitted = False
            admission = self._admissions.get(call.identity.tenant.id)
            if admission is not None:
                admission.inflight = max(0, admission.inflight - 1)

    def retain(self, tenants: Collection[str]) -> None:
        """Forgets tenants that the catalog no longer has, unless they still have calls in flight."""
        for gone in self._admissions.keys() - set(tenants):
            if not self._admissions[gone].inflight:
                del self._admissions[gone]

    def _take(self, call: Call, admission: _Admission, per_minute: int, now: float) -> Reply | None:
        rate = per_minute / 60.0
        admission.level = min(float(per_minute), admission.level + (now - admission.updated) * rate)
        admission.updated = now
        if admission.level < 1.0:
            wait_s = (1.0 - admission.level) / rate
            call.ratelimit_requests = (per_minute, 0, wait_s)
            self._metrics.bound_hit("tenant_requests_per_minute")
            message = (
                f"tenant {call.identity.tenant.id if call.identity else ''} may make {per_minute} requests per minute"
            )
            return refuse(refusals.RATE_LIMITED, message, retry_after_s=wait_s)
        admission.level -= 1.0
        call.ratelimit_requests = (per_minute, int(admission.level), (per_minute - admission.level) / rate)
        return None

    def _refuse_without_part(self, tenant: TenantPolicy) -> Reply:
        """A limit of zero, or one that is smaller than the number of workers."""
        if tenant.concurrency == 0 or tenant.requests_per_minute == 0:
            return refuse(refusals.RATE_LIMITED, f"tenant {tenant.id} may make no requests at all: its limit is zero")
        self._metrics.bound_hit("worker_without_part")
        message = (
            f"a limit of tenant {tenant.id} is smaller than the number of workers, and this worker has no part of it; "
            "connect again, or have the limit raised or the workers reduced"
        )
        reply = refuse(refusals.RATE_LIMITED, message, retry_after_s=_SLOT_RETRY_S)
        reply.headers.append((b"connection", b"close"))
        return reply

"""How much at once: requests per minute as a token bucket, and calls in flight as slots, for each tenant; shared fairly by its agents if it says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import ClassVar, Protocol

from controlplane.contract.snapshot import TenantPolicy
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.quotas.account import ALL, SLOTS, Account, Line, Share
from proxy.quotas.bucket import Bucket, Stock
from proxy.quotas.fair import Agent, FairShares
from proxy.refusals import refuse

_SLOT_RETRY_S = 1.0
_CONCURRENCY = "concurrency"
_WAITED_SLOT, _WAITED_RATE = 1, 2  # for more of them


class Lenders(Protocol):
    """Who keeps slots and requests that workers share, where there is a Redis."""

    def lend(self, line: Line) -> None:
        """Takes over a line's cap."""
        ...

    async def refill(self, short: tuple[tuple[Line, int], ...]) -> None:
        """Asks for larger slices."""
        ...

    def stock(self, tenant: str, limit: int) -> Stock:
        """A source of requests for a tenant's rate."""
        ...

    async def restock(self, stock: Stock) -> None:
        """Asks it for one more."""
        ...


class _Admission:
    """What one tenant has used: a bucket that fills up again with time, the calls in flight, and which agent has how much of both."""

    __slots__ = ("account", "bucket", "fair", "policy", "slots")

    def __init__(self, policy: TenantPolicy) -> None:
        self.policy: TenantPolicy | None = None  # by which the rest was made
        self.account = Account(policy.id, "admit")
        self.bucket: Bucket | None = None
        self.slots: Line | None = None
        self.fair: FairShares | None = None


class Admit:
    """Takes a request from the tenant's bucket and one of its slots; `leave` gives the slot back.

    share: this worker's part of each limit. It is zero where the limit is smaller than the number of workers; then this worker always
    refuses and asks the client to close its connection, because the next one may come to a sibling that has a part. With `lenders` the
    parts are slices of the whole, and nobody is without one.
    """

    name: ClassVar[str] = "admit"

    def __init__(
        self,
        metrics: ProxyMetrics,
        *,
        share: Share = ALL,
        lenders: Lenders | None = None,
        agents_max: int = 100,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """agents_max: of each tenant that are told apart where it shares fairly; more share one part."""
        self._metrics = metrics
        self._share = share
        self._lenders = lenders
        self._agents_max = agents_max
        self._monotonic = monotonic
        self._now_us = now_us
        self._admissions: dict[str, _Admission] = {}

    def enter(self, call: Call) -> Reply | None:
        """Refuses what exceeds a limit, naming it and when to come back."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        policy = call.identity.tenant
        now_s = self._monotonic()
        admission = self._admissions.get(policy.id)
        if admission is None or admission.policy is not policy:
            admission = self._admission(policy, now_s)
        slots, bucket, fair = admission.slots, admission.bucket, admission.fair
        agent = None if fair is None else fair.arrived(call.agent, now_s)
        if slots is not None:
            refusal = self._slot(call, admission, slots, agent, now_s)
            if refusal is not None:
                return refusal
        if bucket is not None:
            refusal = self._request(call, admission, bucket, agent, now_s)
            if refusal is not None:
                return refusal
        admission.account.held.requests += 1
        if agent is None:
            call.admitted = True
        else:
            agent.took(now_s)
            call.admitted = agent
        return None

    def leave(self, call: Call) -> None:
        """Gives the slot back; the request stays taken."""
        admitted = call.admitted
        if admitted and call.identity is not None:
            call.admitted = False
            if isinstance(admitted, Agent):
                admitted.left()
            admission = self._admissions.get(call.identity.tenant.id)
            if admission is not None:
                held = admission.account.held
                if held.requests:
                    held.requests -= 1

    def retain(self, tenants: Collection[str]) -> None:
        """Forgets tenants that the catalog no longer has, unless they still have calls in flight."""
        for gone in self._admissions.keys() - set(tenants):
            if not self._admissions[gone].account.held.requests:
                self._admissions.pop(gone).account.lines = {}

    def _admission(self, policy: TenantPolicy, now_s: float) -> _Admission:
        """What a tenant's limits are now, with what was used under those it had before."""
        admission = self._admissions.get(policy.id)
        if admission is None:
            admission = self._admissions[policy.id] = _Admission(policy)
        admission.policy = policy
        admission.slots = None if policy.concurrency is None else self._slots(admission, policy.concurrency)
        if policy.requests_per_minute is None:
            admission.bucket = None
        elif admission.bucket is None or admission.bucket.limit != policy.requests_per_minute:
            admission.bucket = self._bucket(policy.id, policy.requests_per_minute, admission.bucket, now_s)
        if policy.fair_weights is None:
            admission.fair = None
        elif admission.fair is None or admission.fair.weights != policy.fair_weights:
            admission.fair = FairShares(policy.fair_weights, agents_max=self._agents_max)
        return admission

    def _slots(self, admission: _Admission, limit: int) -> Line:
        line = admission.account.lines.get(_CONCURRENCY)
        if line is None:
            line = Line(admission.account, None, id_=_CONCURRENCY, unit=SLOTS, limit=limit)
            admission.account.lines = {_CONCURRENCY: line}
        line.limit = limit
        if self._lenders is None:
            line.cap = self._share.of(limit)
        else:
            self._lenders.lend(line)
        return line

    def _bucket(self, tenant: str, limit: int, before: Bucket | None, now_s: float) -> Bucket:
        stock = None if self._lenders is None else self._lenders.stock(tenant, limit)
        bucket = Bucket(limit, self._share.of(limit), now_s, stock)
        if stock is not None:
            bucket.level = 0.0
        elif before is not None:  # a changed limit gives nobody a fresh minute
            bucket.level = min(bucket.level, before.level)
        return bucket

    def _slot(self, call: Call, admission: _Admission, slots: Line, agent: Agent | None, now_s: float) -> Reply | None:
        if slots.limit == 0 or (slots.cap == 0 and slots.lease is None):
            return self._refuse_without_part(admission, slots.limit)
        inflight, promised = admission.account.held.requests, 0
        if slots.lease is not None:
            slots.lease.look(slots, 1, self._now_us())
            promised = slots.lease.promised
        if inflight + promised >= slots.cap:
            refusal = self._refuse_slot(admission, f"already has {inflight} calls in flight, its limit on this worker")
            if self._lenders is not None and slots.lease is not None and not call.refilled & _WAITED_SLOT:
                call.refilled |= _WAITED_SLOT
                call.shortage = partial(self._lenders.refill, ((slots, 1),))
            return refusal
        if agent is not None and admission.fair is not None:
            capacity = slots.limit if slots.lease is not None else slots.cap
            if not admission.fair.may_have_slot(agent, capacity=capacity, free=capacity - inflight, now_s=now_s):
                self._metrics.bound_hit("fair_share")
                who = f"agent `{call.agent}`" if call.agent else "calls without agent"
                return self._refuse_slot(admission, f"keeps its other slots for other agents: {who} has its part")
        return None

    def _refuse_slot(self, admission: _Admission, why: str) -> Reply:
        self._metrics.bound_hit("tenant_concurrency")
        return refuse(refusals.RATE_LIMITED, f"tenant {admission.account.tenant} {why}", retry_after_s=_SLOT_RETRY_S)

    def _request(
        self, call: Call, admission: _Admission, bucket: Bucket, agent: Agent | None, now_s: float
    ) -> Reply | None:
        if bucket.limit == 0 or (bucket.per_minute == 0 and not bucket.shared):
            return self._refuse_without_part(admission, bucket.limit)
        bucket.refresh(now_s)
        full, tenant = bucket.full, admission.account.tenant
        if bucket.free < 1.0:
            wait_s = bucket.wait_s()
            call.ratelimit_requests = (full, 0, wait_s)
            self._metrics.bound_hit("tenant_requests_per_minute")
            if (
                self._lenders is not None
                and bucket.stock is not None
                and bucket.shared
                and not call.refilled & _WAITED_RATE
            ):
                call.refilled |= _WAITED_RATE
                call.shortage = partial(self._lenders.restock, bucket.stock)
            message = (
                f"tenant {tenant} may make {full} requests per minute; the next one in {max(1, math.ceil(wait_s))} s"
            )
            return refuse(refusals.RATE_LIMITED, message, retry_after_s=wait_s)
        if agent is not None and admission.fair is not None:
            level = bucket.level + bucket.elsewhere
            if not admission.fair.may_request(agent, per_minute=full, level=level, now_s=now_s):
                self._metrics.bound_hit("fair_share")
                call.ratelimit_requests = (full, 0, _SLOT_RETRY_S)
                who = f"agent `{call.agent}`" if call.agent else "calls without agent"
                message = f"tenant {tenant} keeps the rest of its {full} requests per minute for other agents: {who} has its part"
                return refuse(refusals.RATE_LIMITED, message, retry_after_s=_SLOT_RETRY_S)
        bucket.level -= 1.0
        left = bucket.level + bucket.elsewhere
        call.ratelimit_requests = (full, int(left), (full - left) / (full / 60.0))
        return None

    def _refuse_without_part(self, admission: _Admission, limit: int) -> Reply:
        """A limit of zero, or one that is smaller than the number of workers."""
        tenant = admission.account.tenant
        if limit == 0:
            return refuse(refusals.RATE_LIMITED, f"tenant {tenant} may make no requests at all: its limit is zero")
        self._metrics.bound_hit("worker_without_part")
        message = (
            f"a limit of tenant {tenant} is smaller than the number of workers, and this worker has no part of it; "
            "connect again, or have the limit raised or the workers reduced"
        )
        reply = refuse(refusals.RATE_LIMITED, message, retry_after_s=_SLOT_RETRY_S)
        reply.headers.append((b"connection", b"close"))
        return reply

"""Counts calls that need no route - lists of models, and whatever is done with what upstreams keep - under the quotas about requests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import ClassVar

from proxy.call import Call, Reply
from proxy.ledger import OWN_CHANNEL, Ledger, Reservation
from proxy.quotas.account import Line
from proxy.quotas.plan import Who
from proxy.stages.counted import hold_request


class Tally:
    """The stage of operations that go to no model: one request, no tokens, no money."""

    name: ClassVar[str] = "tally"

    def __init__(
        self,
        ledger: Ledger,
        *,
        refill: Callable[[tuple[tuple[Line, int], ...]], Awaitable[None]] | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """refill: asks Redis for larger leases; None: there is no Redis."""
        self._ledger = ledger
        self._refill = refill
        self._now_us = now_us

    def enter(self, call: Call) -> Reply | None:
        """Refuses what a quota about requests or calls at once has no room for."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        call.tally = None
        if call.channel == OWN_CHANNEL:
            call.channel = ""  # the proxy's own calls do not come this way
        policy, now_us = call.identity.tenant, self._now_us()
        plan = self._ledger.plan(policy, now_us=now_us)
        if not plan.counts_requests:
            return None
        who = Who(call.identity.key.id, call.agent, call.user, call.session, "", call.tags) if plan.rules else None
        held = hold_request(self._ledger, self._refill, call, plan, who, now_us=now_us)
        if isinstance(held, Reply):
            return held
        call.tally = held
        return None

    def leave(self, call: Call) -> None:
        """Gives the request back; the call's record, booked right after, counts it."""
        held, call.tally = call.tally, None
        if isinstance(held, Reservation):
            self._ledger.release(held)

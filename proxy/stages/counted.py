"""One request held under the quotas that count requests or calls at once: for calls that need no tokens and cost nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from controlplane.contract.snapshot import QuotaAction
from proxy.call import Call, Reply
from proxy.ledger import Ledger, Refused, Reservation
from proxy.quotas.account import Line
from proxy.quotas.plan import Plan, Who
from proxy.stages.over import refuse_over

WAITED = 4  # bit of `Call.refilled`: for larger leases
_DOWNGRADES_MAX = 8  # quotas that send a call to another model, which a call without a price has no use for

Refill = Callable[[tuple[tuple[Line, int], ...]], Awaitable[None]]


def hold_request(
    ledger: Ledger, refill: Refill | None, call: Call, plan: Plan, who: Who | None, *, now_us: int
) -> Reservation | Reply:
    """Holds it, or refuses; a refusal that a larger lease may lift leaves `Call.shortage` to be waited for, once."""
    accounts, lines = ledger.meets(plan.policy, who, now_us=now_us)
    passed: tuple[str, ...] = ()
    held: Reservation | Refused = ledger.hold(accounts, lines, tokens=0, nanousd=0, now_us=now_us)
    while isinstance(held, Refused) and held.action is QuotaAction.DOWNGRADE and len(passed) < _DOWNGRADES_MAX:
        passed += (held.scope,)
        held = ledger.hold(accounts, lines, tokens=0, nanousd=0, now_us=now_us, passed=passed)
    if isinstance(held, Reservation):
        return held
    if ledger.short and refill is not None and not call.refilled & WAITED:
        call.refilled |= WAITED
        call.shortage = partial(refill, ledger.short)
    return refuse_over(plan.policy, held, now_us=now_us)

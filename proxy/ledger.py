"""The worker's ledger: what each tenant, key, agent... has spent in each window, and what calls in flight may still spend.

Two amounts, two ways in:

- *Held* is what calls in flight may cost at worst. It belongs to an account, not to a window: a call that is in flight when a window
  ends will be settled in the next one, so its reservation is held against that one from its first moment.
- *Settled* moves only in `book`, which takes a record: the ledger is the sum of the spooled records by construction, over restarts too
  (see `proxy.spool`). A record belongs to the window in which its call was settled, `started_us + latency_us`.

A call is let in when, under every ceiling over every account that it moves, settled + held + its own worst case is within the cap. So no
window is ever overspent, as long as no call costs more than its reservation; those that do are counted (`exceeded_total`).

All is synchronous, in one event loop: nothing runs between the check and the move. A reservation is released and the call's record is
booked without an `await` in between. A cap is the worker's `Share` of the limit, or what `proxy.leases` has leased for it from Redis.

Clients can invent agents and sessions, so the instances of one counter are bounded. One that is full makes room only by dropping an instance
in which nothing counts any more, or which was idle for `idle_s` (`forgiven_total`, the only way in which spending is ever forgotten);
else the newcomer shares one common instance with all others that found no room (`crowded_total`), under the limit of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest
from itertools import islice

import msgspec

from controlplane.contract.records import CallRecord, Outcome
from controlplane.contract.snapshot import BudgetStatus, Quota, QuotaAction, QuotaScope, TenantPolicy, Window
from proxy.dialects.operations import OPERATIONS
from proxy.quotas.account import ALL, Account, Line, Meter, Settled, Share, empty
from proxy.quotas.plan import Plan, Rule, Who, lines_of, who_of
from proxy.quotas.windows import WINDOWS

OTHERS = "(others)"  # the instance that newcomers share when there is no room
OWN_CHANNEL = "settlement"  # of what the proxy asks by itself; a client that names it in an operation that goes to no model is not believed
UNITS = ("requests", "tokens", "nanousd", "calls")
BATCH_USAGE = "batch_usage"  # the operation of a record of what a batch used: there is one of each id
SETTLES = "heph-settles"  # tag of a record with what something used that was made earlier: its id
_ONCE_MAX = 4_096  # ids of both; each is asked for again only until what it settles is noted as settled
_UNROUTED = frozenset((BATCH_USAGE, *(name for name, row in OPERATIONS.items() if row.named)))
_EVICTION_TRIES = 8  # of the least recently used instances


class CounterState(msgspec.Struct):
    """One meter of an account that is not a tenant's own, or that follows another calendar than UTC's."""

    tenant: str
    counter: str
    value: str
    window: Window
    timezone: str
    now: Settled
    ended: Settled | None = None
    used_us: int = 0


class LedgerState(msgspec.Struct):
    """All that must survive the process: the settled amounts, never the reservations of calls that died with it."""

    calls: int = 0
    nanousd: int = 0
    tokens: int = 0
    tenants: dict[str, dict[Window, Settled]] = {}  # the window that is current
    ended: dict[str, dict[Window, Settled]] = {}  # the one before it, of the kinds in KEPT
    counters: list[CounterState] = []
    quotas: dict[str, tuple[Quota, ...]] = {}  # those by which records are booked, by tenant
    once: list[str] = []  # ids of the last records of batches, oldest first


class Refused(msgspec.Struct, frozen=True):
    """A ceiling that the call would pass."""

    scope: str  # the quota's id: `tokens_per_minute`, a budget's, a quota's
    unit: str  # "requests", "tokens", "nanousd" or "calls"
    limit: int  # of this worker
    limit_all: int  # of all workers
    used: int  # settled in this window
    reserved: int  # by calls in flight
    wanted: int  # by this call, at worst
    resets_us: int  # when the window ends; NEVER_US for a total, 0 for calls at once
    per: QuotaScope = QuotaScope.TENANT
    value: str = ""
    action: QuotaAction = QuotaAction.HARD
    to: str = ""  # with DOWNGRADE: the alias
    budget: bool = False  # it was written as a budget
    minute: bool = False  # its window is a minute
    leased: bool = False  # `limit` is what Redis leased to this worker


class Reservation:
    """What one call may cost at worst, held until it is released. warnings: the soft quotas that it passed. requests: 0 when it has ended."""

    __slots__ = ("accounts", "nanousd", "requests", "tokens", "warnings")

    def __init__(
        self, accounts: tuple[Account, ...], *, tokens: int, nanousd: int, warnings: tuple[Refused, ...] = ()
    ) -> None:
        self.accounts = accounts
        self.requests = 1
        self.tokens = tokens
        self.nanousd = nanousd
        self.warnings = warnings


class Ledger:
    """Settled and held amounts by account, and the worker's totals."""

    def __init__(self, *, share: Share = ALL, instances_max: int = 10_000, idle_s: float = 86_400.0) -> None:
        """share: this worker's part of each limit. instances_max, idle_s: of each counter of each tenant, see above."""
        self._share = share
        self._instances_max = instances_max
        self._idle_us = int(idle_s * 1_000_000)
        self._accounts: dict[str, Account] = {}  # the tenants' own
        self._tables: dict[tuple[str, str], dict[str, Account]] = {}  # by tenant and counter, then by value
        self._plans: dict[str, Plan] = {}
        self._lend: Callable[[Line], None] | None = None
        self._once: dict[str, None] = {}
        self.calls = 0  # settled since this worker's first start
        self.nanousd = 0
        self.tokens = 0
        self.exceeded_total = 0  # calls that cost more than their reservation
        self.crowded_total = 0  # calls counted in the common instance because a counter was full
        self.forgiven_total = 0  # idle instances dropped while their spending still counted
        self.short: tuple[
            tuple[Line, int], ...
        ] = ()  # at the last `hold`: ceilings over which a lease was too small, and what was wanted

    def lend(self, lend: Callable[[Line], None]) -> None:
        """From now on somebody else keeps the caps up to date: called with each line there is and each that comes."""
        self._lend = lend
        for account in self.accounts():
            for line in account.lines.values():
                lend(line)

    def configure(self, policies: Iterable[TenantPolicy], *, now_us: int) -> None:
        """Takes the tenants of a new snapshot, and drops the counters that none of their quotas reads any more."""
        read: set[tuple[str, str]] = set()
        for policy in policies:
            plan = self._plan(policy, now_us)
            read |= {(policy.id, rule.counter) for rule in plan.rules}
        for gone in self._tables.keys() - read:
            for account in self._tables.pop(gone).values():
                account.lines = {}

    def meets(
        self, policy: TenantPolicy, who: Who | None, *, now_us: int
    ) -> tuple[tuple[Account, ...], tuple[Line, ...]]:
        """The accounts that a call moves, and the ceilings it meets. who: needed where `tells_apart` says so."""
        plan = self._plans.get(policy.id)
        if plan is None or plan.policy is not policy:
            plan = self._plan(policy, now_us)
        if who is None or not plan.rules:
            return plan.own, plan.lines
        others = tuple(self._instances(policy.id, plan.rules, who, now_us))
        return (*plan.own, *others), (*plan.lines, *(line for one in others for line in one.lines.values()))

    def hold(
        self,
        accounts: tuple[Account, ...],
        lines: tuple[Line, ...],
        *,
        tokens: int,
        nanousd: int,
        now_us: int,
        passed: tuple[str, ...] = (),
    ) -> Reservation | Refused:
        """Holds a call's worst case under every ceiling it meets, or under none and says which one is in the way.

        tokens, nanousd: the worst case, >= 0. now_us: Unix microseconds. passed: quotas that have had their say about this call.
        A quota that downgrades comes before those that refuse. `short` are the ceilings that Redis may raise.
        """
        warnings: tuple[Refused, ...] = ()
        refused = downgraded = None
        wanted = (1, tokens, nanousd, 1)
        self.short = ()
        for line in lines:
            want = wanted[line.unit]
            if not want or (passed and line.id in passed) or line.has_room(want, now_us):
                continue
            if line.lease is not None and line.lease.may_grow(line, want, now_us):
                self.short += ((line, want),)
            over = _over(line, want, now_us)
            if line.action is QuotaAction.SOFT:
                warnings += (over,)
            elif line.action is QuotaAction.DOWNGRADE:
                downgraded = downgraded or over
            else:
                refused = refused or over
        in_the_way = downgraded or refused
        if in_the_way is not None:
            return in_the_way
        for account in accounts:
            held = account.held
            held.requests += 1
            held.tokens += tokens
            held.nanousd += nanousd
        return Reservation(accounts, tokens=tokens, nanousd=nanousd, warnings=warnings)

    def reserve(
        self, policy: TenantPolicy, *, tokens: int, nanousd: int, now_us: int, who: Who | None = None
    ) -> Reservation | Refused:
        """Both in one step."""
        accounts, lines = self.meets(policy, who, now_us=now_us)
        return self.hold(accounts, lines, tokens=tokens, nanousd=nanousd, now_us=now_us)

    def plan(self, policy: TenantPolicy, *, now_us: int) -> Plan:
        """A tenant's policy, compiled."""
        plan = self._plans.get(policy.id)
        return plan if plan is not None and plan.policy is policy else self._plan(policy, now_us)

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back; safe to call twice. What the call did cost is booked from its record."""
        accounts, reservation.accounts = reservation.accounts, ()
        for account in accounts:
            held = account.held
            held.requests -= reservation.requests
            held.tokens -= reservation.tokens
            held.nanousd -= reservation.nanousd

    def outlive(self, reservation: Reservation) -> None:
        """The call has ended and is no request any more, but what it may cost stays held."""
        for account in reservation.accounts:
            account.held.requests -= reservation.requests
        reservation.requests = 0

    def book(self, record: CallRecord) -> None:
        """Settles one call: the only way in which settled amounts move."""
        tokens, nanousd = record.tokens.total, record.cost_nanousd
        self.calls += 1
        self.tokens += tokens
        self.nanousd += nanousd
        if record.operation == BATCH_USAGE or (record.tags and SETTLES in record.tags):
            self._once[record.call_id] = None
            while len(self._once) > _ONCE_MAX:
                del self._once[next(iter(self._once))]
        requests = 1 if record.attempts and record.channel != OWN_CHANNEL else int(_is_request(record))
        tenant = record.tenant
        if not tenant or not (tokens or nanousd or requests):
            return
        at_us = record.started_us + record.latency_us
        own = self._accounts.get(tenant) or self._account(tenant, at_us)
        own.settle(tokens=tokens, nanousd=nanousd, requests=requests, at_us=at_us)
        plan = self._plans.get(tenant)
        if plan is not None and plan.rules:
            for account in self._instances(tenant, plan.rules, who_of(record), at_us):
                account.settle(tokens=tokens, nanousd=nanousd, requests=requests, at_us=at_us)

    def has_booked(self, call_id: str) -> bool:
        """Whether this record of a batch, or of a response in the background, is among those booked: known for as long as the amounts are, over restarts."""
        return call_id in self._once

    def state(self) -> LedgerState:
        """The settled amounts as they are now; shares its parts with the ledger, so encode it before anything else runs."""
        state = LedgerState(calls=self.calls, nanousd=self.nanousd, tokens=self.tokens)
        for tenant, account in self._accounts.items():
            for (window, timezone), meter in account.meters.items():
                if timezone != "UTC":
                    state.counters.append(_counter_state(account, meter))
                    continue
                if meter.ended is not None or meter.now.nanousd or meter.now.tokens or meter.now.requests:
                    state.tenants.setdefault(tenant, {})[window] = meter.now
                if meter.ended is not None:
                    state.ended.setdefault(tenant, {})[window] = meter.ended
        for table in self._tables.values():
            for account in table.values():
                state.counters += [_counter_state(account, meter) for meter in account.meters.values()]
        state.once = list(self._once)
        state.quotas = {tenant: plan.policy.quotas for tenant, plan in self._plans.items() if plan.policy.quotas}
        return state

    def replace(self, state: LedgerState) -> None:
        """Forgets what it holds and goes on from other amounts; nothing may be reserved."""
        self._accounts.clear()
        self._tables.clear()
        self._plans.clear()
        self.restore(state)

    def restore(self, state: LedgerState) -> None:
        """Continues from an earlier life's amounts; the ledger must be new."""
        self.calls, self.nanousd, self.tokens = state.calls, state.nanousd, state.tokens
        self._once = dict.fromkeys(state.once)
        for tenant, windows in state.tenants.items():
            for window, settled in windows.items():
                self._account(tenant, settled.start_us).meters[window, "UTC"] = Meter(window, "UTC", settled)
        for tenant, windows in state.ended.items():
            for window, settled in windows.items():
                meters = self._account(tenant, settled.start_us).meters
                meters[window, "UTC"].ended = settled
        for one in state.counters:
            account = self._account(one.tenant, one.now.start_us)
            if one.counter:
                table = self._tables.setdefault((one.tenant, one.counter), {})
                account = table.get(one.value) or Account(one.tenant, one.counter, one.value)
                table[one.value] = account
                account.used_us = max(account.used_us, one.used_us)
            account.meters[one.window, one.timezone] = Meter(one.window, one.timezone, one.now, one.ended)
        for tenant, quotas in state.quotas.items():
            self._plan(TenantPolicy(tenant, quotas=quotas), 0)

    def budgets(
        self, policies: Iterable[TenantPolicy], *, now_us: int, instances_max: int = 500
    ) -> tuple[BudgetStatus, ...]:
        """Each ceiling of these tenants as this worker has it, those of tenants without any spending left out.

        instances_max: of the ceilings for each key, agent... those nearest to their limits, at most so many.
        """
        found: list[BudgetStatus] = []
        near: list[Line] = []
        for policy in policies:
            account = self._accounts.get(policy.id)
            if account is None or not _touched(account):
                continue
            plan = self._plan(policy, now_us)
            found += [_status(line, now_us) for line in plan.lines]
            for rule in plan.rules:
                for instance in self._tables.get((policy.id, rule.counter), {}).values():
                    near += instance.lines.values()
        if len(near) > instances_max:
            near = nlargest(instances_max, near, key=lambda line: _fullness(line, now_us))
        return (*found, *(_status(line, now_us) for line in near))

    def reserved(self, tenant: str) -> tuple[int, int]:
        """Tokens and nano-USD that the tenant's calls in flight hold."""
        account = self._accounts.get(tenant)
        return (0, 0) if account is None else (account.held.tokens, account.held.nanousd)

    def settled(self, tenant: str, window: Window, *, now_us: int, counter: str = "", value: str = "") -> Settled:
        """What was settled in the UTC window that holds `now_us`: by the tenant, or by one instance of one of its counters."""
        account = self._tables.get((tenant, counter), {}).get(value) if counter else self._accounts.get(tenant)
        return empty(window, now_us) if account is None else account.meter(window, now_us).at(now_us)

    def instances(self) -> int:
        """How many instances all counters have."""
        return sum(map(len, self._tables.values()))

    def accounts(self) -> Iterator[Account]:
        """Every account there is."""
        yield from self._accounts.values()
        for table in self._tables.values():
            yield from table.values()

    def _cap(self, line: Line) -> None:
        """Sets what a new or changed ceiling lets this worker use."""
        if self._lend is None:
            line.cap = self._share.of(line.limit)
        else:
            self._lend(line)

    def _plan(self, policy: TenantPolicy, now_us: int) -> Plan:
        plan = self._plans.get(policy.id)
        if plan is None or plan.policy is not policy:
            account = self._account(policy.id, now_us)
            plan = self._plans[policy.id] = Plan(policy, account, cap=self._cap, now_us=now_us)
        return plan

    def _account(self, tenant: str, now_us: int) -> Account:
        """A tenant's own: it counts all UTC windows whatever its budgets are today, so that a budget added later counts the past."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(tenant)
            for window in WINDOWS:
                account.meter(window, now_us)
        return account

    def _instances(self, tenant: str, rules: tuple[Rule, ...], who: Who, now_us: int) -> Iterator[Account]:
        """The accounts besides the tenant's own that a call moves."""
        for rule in rules:
            value = rule.value(who)
            if value is None:
                continue
            table = self._tables.get((tenant, rule.counter))
            if table is None:
                table = self._tables[tenant, rule.counter] = {}
            account = table.pop(value, None)  # and back in at the end: the least recently used comes first
            if account is None:
                value = self._room_for(table, value, now_us)
                account = table.pop(value, None) or Account(tenant, rule.counter, value)
            table[value] = account
            account.used_us = max(account.used_us, now_us)
            if account.rule is not rule:
                self._adopt(account, rule, now_us)
            yield account

    def _adopt(self, account: Account, rule: Rule, now_us: int) -> None:
        """Gives an account the meters and ceilings of its rule."""
        account.rule = rule
        for window, timezone in rule.windows:
            account.meter(window, now_us, timezone)
        lines_of(account, rule.quotas, cap=self._cap, now_us=now_us)

    def _room_for(self, table: dict[str, Account], value: str, now_us: int) -> str:
        """Where a newcomer is counted: under its own name if there is room or can be made, else with the others."""
        if len(table) < self._instances_max:
            return value
        for name, account in list(islice(table.items(), _EVICTION_TRIES)):
            idle = not account.held.anything() and account.used_us + self._idle_us <= now_us
            if name != OTHERS and (idle or account.is_over(now_us)):
                self.forgiven_total += not account.is_over(now_us)
                del table[name]
                account.lines = {}  # whoever keeps their caps sees that they are gone
                return value
        self.crowded_total += 1
        return OTHERS


def watch_ledger(watch: Callable[[str, str, Callable[[], float]], None], ledger: Ledger) -> None:
    """Shows the ledger's figures."""
    watch("budget_exceeded_total", "Calls that cost more than was reserved.", lambda: ledger.exceeded_total)
    watch("quota_instances", "Agents, keys, sessions... that quotas tell apart now.", ledger.instances)
    watch(
        "quota_crowded_total",
        "Calls counted together with others because a quota had too many instances.",
        lambda: ledger.crowded_total,
    )
    watch(
        "quota_forgiven_total",
        "Idle instances of quotas dropped while what they had spent still counted.",
        lambda: ledger.forgiven_total,
    )


def _is_request(record: CallRecord) -> bool:
    """Whether a call counts where a quota is about requests: it reached an upstream, or it was a list of models."""
    if not record.attempts:
        return record.operation == "models" and record.outcome is Outcome.OK
    return record.channel != OWN_CHANNEL or record.operation not in _UNROUTED


def _over(line: Line, wanted: int, now_us: int) -> Refused:
    meter = line.meter
    return Refused(
        line.id,
        UNITS[line.unit],
        line.cap,
        line.limit,
        line.settled(now_us),
        line.held(),
        wanted,
        0 if meter is None else meter.now.end_us,
        per=line.per,
        value=line.account.value,
        action=line.action,
        to=line.to,
        budget=line.budget,
        minute=meter is not None and meter.window is Window.MINUTE,
        leased=line.lease is not None,
    )


def _status(line: Line, now_us: int) -> BudgetStatus:
    """A ceiling for the control plane, amounts in the unit it is about."""
    now = None if line.meter is None else line.meter.at(now_us)
    return BudgetStatus(
        tenant=line.account.tenant,
        budget=line.id,
        value=line.account.value,
        window_start_us=0 if now is None else now.start_us,
        window_end_us=0 if now is None else now.end_us,
        settled_nanousd=0 if now is None else now.nanousd,
        reserved_nanousd=line.account.held.nanousd,
        settled_tokens=0 if now is None else now.tokens,
        reserved_tokens=line.account.held.tokens,
        settled_requests=0 if now is None else now.requests,
        reserved_requests=line.account.held.requests,
        degraded=line.lease is not None and line.lease.degraded,
        unit=UNITS[line.unit],
        limit=line.limit,
    )


def _fullness(line: Line, now_us: int) -> float:
    return (line.settled(now_us) + line.held()) / max(1, line.limit)


def _touched(account: Account) -> bool:
    """Whether a tenant has done anything in the windows that its meters show."""
    if account.held.requests:
        return True
    return any(meter.now.nanousd or meter.now.tokens or meter.now.requests for meter in account.meters.values())


def _counter_state(account: Account, meter: Meter) -> CounterState:
    return CounterState(
        account.tenant,
        account.counter,
        account.value,
        meter.window,
        meter.timezone,
        meter.now,
        meter.ended,
        account.used_us,
    )

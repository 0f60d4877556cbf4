"""Which accounts a tenant's calls move, and which ceilings stand over them: a tenant's policy, compiled once.

The usual tenant has one account with a few ceilings, known before any call comes. Only quotas for each key, agent, user, session, model or tag,
and those about some calls alone, are looked up by what the call says of itself; quotas that count the same calls share one account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import Quota, QuotaScope, TenantPolicy, Window
from proxy.quotas.account import NANOUSD, REQUESTS, SLOTS, TOKENS, Account, Line, shown

TOKENS_PER_MINUTE = "tokens_per_minute"  # the id of the policy's own token limit, beside those of its budgets


class Who(NamedTuple):
    """What a call says of itself, as far as quotas tell calls apart."""

    key: str
    agent: str
    user: str
    session: str
    model: str
    tags: Mapping[str, str]


class Rule:
    """One counter of a tenant and the quotas that read it."""

    __slots__ = ("_allowed", "_pick", "_tags", "counter", "quotas", "windows")

    def __init__(self, counter: str, quotas: tuple[Quota, ...]) -> None:
        first = quotas[0]
        match = first.match
        self.counter = counter
        self.quotas = quotas
        self.windows = {(quota.window, quota.timezone) for quota in quotas if quota.concurrency is None}
        self._pick = _PICKS.get(first.per) or _tag_picker(first.tag)
        self._allowed = tuple(
            (_PICKS[scope], frozenset(values))
            for scope, values in (
                (QuotaScope.MODEL, match.models),
                (QuotaScope.KEY, match.keys),
                (QuotaScope.AGENT, match.agents),
                (QuotaScope.USER, match.users),
            )
            if values
        )
        self._tags = tuple(match.tags.items())

    def value(self, who: Who) -> str | None:
        """The instance to which a call belongs; None when the quota is not about it."""
        for pick, values in self._allowed:
            if pick(who) not in values:
                return None
        for name, wanted in self._tags:
            if who.tags.get(name) != wanted:
                return None
        return self._pick(who)


class Plan:
    """A tenant's policy as accounts and ceilings.

    own: the tenant's own account, alone. lines: those over it; shown_tokens, shown_requests: of these, what clients are told of.
    rules: what has to be looked up for each call. free: nothing limits this tenant here. counts_requests: something limits what calls do
    that cost nothing.
    """

    __slots__ = ("counts_requests", "free", "lines", "own", "policy", "rules", "shown_requests", "shown_tokens")

    def __init__(self, policy: TenantPolicy, account: Account, *, cap: Callable[[Line], None], now_us: int) -> None:
        self.policy = policy
        self.own = (account,)
        budgets = [*_tokens_per_minute(policy), *_budgets(policy)]
        own = [quota for quota in policy.quotas if is_own(quota)]
        self.lines = lines_of(account, [*budgets, *own], cap=cap, now_us=now_us)
        for line in self.lines[: len(budgets)]:
            line.budget = True
        self.shown_tokens, self.shown_requests = shown(self.lines, TOKENS), shown(self.lines, REQUESTS)
        self.rules = rules_of(policy.quotas)
        self.free = not self.lines and not self.rules
        self.counts_requests = any(amount_of(quota)[0] in (REQUESTS, SLOTS) for quota in policy.quotas)


def is_own(quota: Quota) -> bool:
    """Whether a quota counts all calls of the tenant together."""
    return quota.per is QuotaScope.TENANT and _matches_all(quota)


def counter_of(quota: Quota) -> str:
    """The name of what a quota counts; equal for quotas that count the same calls for the same values."""
    name = f"tag:{quota.tag}" if quota.per is QuotaScope.TAG else quota.per.value
    return name if _matches_all(quota) else f"{name}@{quota.id}"


def rules_of(quotas: Iterable[Quota]) -> tuple[Rule, ...]:
    """The counters of a tenant besides its own account."""
    groups: dict[str, list[Quota]] = {}
    for quota in quotas:
        if not is_own(quota):
            groups.setdefault(counter_of(quota), []).append(quota)
    return tuple(Rule(counter, tuple(group)) for counter, group in groups.items())


def lines_of(
    account: Account, quotas: Iterable[Quota], *, cap: Callable[[Line], None], now_us: int
) -> tuple[Line, ...]:
    """The ceilings of some quotas over an account. A line that was there goes on, with the lease that it has.

    cap: sets the cap of a line that is new or whose limit has changed.
    """
    lines: dict[str, Line] = {}
    for quota in quotas:
        unit, limit = amount_of(quota)
        meter = None if unit == SLOTS else account.meter(quota.window, now_us, quota.timezone)
        line = account.lines.get(quota.id)
        if line is None or line.unit != unit or line.meter is not meter:
            line = Line(account, meter, id_=quota.id, unit=unit, limit=limit)
            cap(line)
        elif line.limit != limit:
            line.limit = limit
            cap(line)
        line.per, line.action, line.to = quota.per, quota.action, quota.to
        lines[quota.id] = line
    account.lines = lines
    return tuple(lines.values())


def amount_of(quota: Quota) -> tuple[int, int]:
    """What a quota is about, and how much of it."""
    for unit, limit in (
        (REQUESTS, quota.requests),
        (TOKENS, quota.tokens),
        (NANOUSD, quota.nanousd),
        (SLOTS, quota.concurrency),
    ):
        if limit is not None:
            return unit, limit
    return TOKENS, 2**62  # it limits nothing; the control plane refuses such a quota


def who_of(record: CallRecord) -> Who:
    """What a record says of its call."""
    model = record.routed or record.alias
    return Who(record.key_id, record.agent, record.user, record.session, model, record.tags)


def _matches_all(quota: Quota) -> bool:
    match = quota.match
    return not (match.models or match.keys or match.agents or match.users or match.tags)


def _tokens_per_minute(policy: TenantPolicy) -> Iterable[Quota]:
    if policy.tokens_per_minute is not None:
        yield Quota(TOKENS_PER_MINUTE, window=Window.MINUTE, tokens=policy.tokens_per_minute)


def _budgets(policy: TenantPolicy) -> Iterable[Quota]:
    """A budget is a hard quota of the tenant; one with both amounts is two."""
    for budget in policy.budgets:
        if budget.tokens is not None:
            id_ = budget.id if budget.nanousd is None else f"{budget.id}/tokens"
            yield Quota(id_, window=budget.window, tokens=budget.tokens)
        if budget.nanousd is not None:
            yield Quota(budget.id, window=budget.window, nanousd=budget.nanousd)


def _tag_picker(name: str) -> Callable[[Who], str]:
    def pick(who: Who) -> str:
        return who.tags.get(name, "")

    return pick


_PICKS: dict[QuotaScope, Callable[[Who], str]] = {
    QuotaScope.TENANT: lambda who: "",  # noqa: ARG005 - one instance for all
    QuotaScope.KEY: lambda who: who.key,
    QuotaScope.AGENT: lambda who: who.agent,
    QuotaScope.USER: lambda who: who.user,
    QuotaScope.SESSION: lambda who: who.session,
    QuotaScope.MODEL: lambda who: who.model,
}

"""Invalidations of stored answers: rules that travel in the snapshot, journalled like keys and leases.

A rule says "what was asked for before this moment, and fits these selectors, must not be served again". It ends when no answer can be that
old any more, going by the longest time that the configuration allowed when the rule was made. From then on one rule without selectors stands
for all that have ended: answers that a configuration before that had kept for longer would else be back with the next one that allows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from controlplane.catalog.file import ConfigFile
from controlplane.catalog.state import CacheInvalidated, CatalogState, StateReader
from controlplane.clock import US_PER_S
from controlplane.contract.ids import new_id
from controlplane.contract.snapshot import CacheInvalidation, CachePolicy
from controlplane.errors import BadRequest, TooMany
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal

RULES_MAX = 200
ENDED = "ended"  # the rule that stands for those
REASON_CHARS_MAX = 500
FOREVER_US = 2**62
SLACK_S = 60  # for clocks that differ, and for answers that were on their way
SELECTORS = ("tenant", "tag", "alias", "model", "agent")


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which stored answers are meant: those that fit every selector which is set. before_us: 0 means now."""

    tenant: str = ""
    tag: str = ""
    alias: str = ""
    model: str = ""
    agent: str = ""
    before_us: int = 0

    @property
    def is_everything(self) -> bool:
        """Whether it has no selector: an epoch."""
        return not any(getattr(self, name) for name in SELECTORS)


class Invalidations:
    """Makes rules. Blocking: asynchronous callers use a thread. longest_s: how old a stored answer can be, by the configuration now."""

    def __init__(self, journal: Journal, *, now_us: Callable[[], int], longest_s: Callable[[], int]) -> None:
        self._journal = journal
        self._reader = StateReader(journal)
        self._now_us = now_us
        self._longest_s = longest_s

    def longest_s(self) -> int:
        """How old a stored answer can be."""
        return self._longest_s()

    def moment_us(self, selection: Selection) -> int:
        """The moment before which answers are meant. Raises BadRequest for one to come."""
        now_us = self._now_us()
        if selection.before_us > now_us:
            raise BadRequest("answers cannot be invalidated before they are asked for; choose a moment that has passed")
        return selection.before_us or now_us

    def invalidate(self, selection: Selection, *, reason: str = "", actor: str = "") -> CacheInvalidation:
        """A rule, in force from the next snapshot on. Raises BadRequest, and TooMany when too many are in force."""
        before_us = self.moment_us(selection)
        active = self.active()
        replaced = [one for one in active if one.before_us <= before_us and _selects_all_of(selection, one)]
        if len(active) - len(replaced) >= RULES_MAX:
            raise TooMany(
                f"{RULES_MAX} invalidations are in force; name a whole tenant or route, or everything, which replaces them"
            )
        ends_us = before_us + (self._longest_s() + SLACK_S) * US_PER_S
        rule = CacheInvalidation(
            id=new_id("inval"),
            before_us=before_us,
            expires_us=max([ends_us, *(one.expires_us for one in replaced)]),
            reason=reason[:REASON_CHARS_MAX],
            **{name: getattr(selection, name) for name in SELECTORS},
        )
        event = NewEvent(
            payload=CacheInvalidated(rule), actor=actor, tenant=selection.tenant, occurred_us=self._now_us()
        )
        self._journal.append(f"cache/{rule.id}", 0, [event])
        return rule

    def active(self) -> tuple[CacheInvalidation, ...]:
        """The rules in force, oldest first."""
        return in_force(self._reader.refresh().invalidations.values(), now_us=self._now_us())


def in_force(rules: Iterable[CacheInvalidation], *, now_us: int) -> tuple[CacheInvalidation, ...]:
    """What proxies must know of these rules: neither expired nor covered by a wider one; by moment and id."""
    alive = sorted((rule for rule in rules if rule.expires_us > now_us), key=lambda rule: (rule.before_us, rule.id))
    return tuple(rule for at, rule in enumerate(alive) if not any(_covers(wider, rule) for wider in alive[at + 1 :]))


def ended(state: CatalogState, *, now_us: int) -> tuple[CacheInvalidation, ...]:
    """What proxies must know of rules that have ended: nothing is as old as that, or it has no business to be there."""
    over = [rule.before_us for rule in state.invalidations.values() if rule.expires_us <= now_us]
    before_us = max([*over, state.ended_before_us])
    return (CacheInvalidation(id=ENDED, before_us=before_us, expires_us=FOREVER_US),) if before_us else ()


def longest_cached_s(config: ConfigFile) -> int:
    """How old an answer can be that some proxy still has a use for."""
    policies = [config.cache, *(tenant.cache for tenant in config.tenants if tenant.cache is not None)]
    ttl_s = max(_largest(policy.ttl_s for policy in policies), _largest(model.cache_ttl_s for model in config.models))
    stale_s = max(
        _largest(map(_stale_s, policies)),
        _largest(model.cache_stale_if_error_s for model in config.models),
        _largest(model.cache_stale_while_revalidate_s for model in config.models),
    )
    return ttl_s + stale_s


def _stale_s(policy: CachePolicy) -> int:
    return max(policy.stale_if_error_s, policy.stale_while_revalidate_s)


def _largest(seconds: Iterable[int | None]) -> int:
    return max((one or 0 for one in seconds), default=0)


def _covers(wider: CacheInvalidation, rule: CacheInvalidation) -> bool:
    """Whether whatever fits a rule fits this later one too."""
    return wider.expires_us >= rule.expires_us and _selects_all_of(wider, rule)


def _selects_all_of(wider: CacheInvalidation | Selection, rule: CacheInvalidation) -> bool:
    return all(getattr(wider, name) in ("", getattr(rule, name)) for name in SELECTORS)

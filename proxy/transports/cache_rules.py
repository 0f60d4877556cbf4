"""Invalidation: which stored answers must not be served again, whatever tier they lie in.

Nothing is searched and deleted: an entry that fits a rule is dead, and is dropped when somebody asks for it. So a rule holds in memory, on
disk and in Redis from the moment at which a worker has the snapshot. What counts is when an answer was asked for, not when it came. So a call
that comes after a rule does not join one that may have been asked for before it either, here or on another worker: their flights differ in name.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.contract.snapshot import CacheInvalidation
from proxy.transports.cache_entry import CacheEntry

LABELS_MAX = 512  # sets of them that are remembered, each of some 40 KiB at the most


class Rules:
    """The rules of one snapshot."""

    __slots__ = ("_moments", "_newest_us", "_of", "_rules")

    def __init__(self, rules: Sequence[CacheInvalidation] = ()) -> None:
        self._rules = tuple(rules)
        self._newest_us = max((rule.before_us for rule in rules), default=0)
        self._of: dict[
            tuple[str, str], tuple[CacheInvalidation, ...]
        ] = {}  # those of a tenant and an alias; there are only so many

        self._moments: dict[tuple[object, ...], int] = {}  # by the labels of answers

    def __bool__(self) -> bool:
        return bool(self._rules)

    def forbid(self, entry: CacheEntry) -> bool:
        """Whether a rule fits this entry."""
        if entry.asked_us >= self._newest_us:
            return False
        labels = (entry.tenant, entry.alias, entry.model, entry.agent, *entry.tags.items())
        moment = self._moments.get(labels)
        if moment is None:  # a request may have thousands of inputs stored, and there may be hundreds of rules
            if len(self._moments) >= LABELS_MAX:
                self._moments.clear()
            rules = self._about(entry.tenant, entry.alias)
            moment = self._moments[labels] = next((rule.before_us for rule in rules if _is_about(rule, entry)), 0)
        return entry.asked_us < moment

    def flight_key(self, key: bytes, *, tenant: str, alias: str) -> bytes:
        """What an answer in flight is called since these rules: whichever of them may fit it, for its leader's labels are not known to others."""
        rules = self._about(tenant, alias)
        return b"%b@%d" % (key, rules[0].before_us) if rules else key

    def _about(self, tenant: str, alias: str) -> tuple[CacheInvalidation, ...]:
        """The rules that may fit answers of a tenant and an alias, newest first."""
        found = self._of.get((tenant, alias))
        if found is None:
            rules = [rule for rule in self._rules if rule.tenant in ("", tenant) and rule.alias in ("", alias)]
            found = self._of[tenant, alias] = tuple(sorted(rules, key=_moment, reverse=True))
        return found


def fits(rule: CacheInvalidation, entry: CacheEntry) -> bool:
    """Whether an entry was asked for before the rule's moment and is what each of its selectors says."""
    return entry.asked_us < rule.before_us and _is_about(rule, entry)


def _is_about(rule: CacheInvalidation, entry: CacheEntry) -> bool:
    return (
        rule.tenant in ("", entry.tenant)
        and rule.alias in ("", entry.alias)
        and rule.model in ("", entry.model)
        and rule.agent in ("", entry.agent)
        and _has_tag(rule.tag, entry)
    )


def _moment(rule: CacheInvalidation) -> int:
    return rule.before_us


def _has_tag(tag: str, entry: CacheEntry) -> bool:
    if not tag:
        return True
    name, equals, value = tag.partition("=")
    return name in entry.tags and (not equals or entry.tags[name] == value)

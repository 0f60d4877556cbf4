"""Invalidation: which stored answers must not be served again, whatever tier they lie in.

Nothing is searched and deleted: an entry that fits a rule is dead, and is dropped when somebody asks for it. So a rule holds in memory, on
disk and in Redis from the moment at which a worker has the snapshot. What counts is when an answer was asked for, not when it came. So a call
that comes after a rule does not join one that may have been asked for before it either, here or on another worker: their flights differ in name.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.contract.snapshot import CacheInvalidation
from proxy.transports.cache_entry import CacheEntry


class Rules:
    """The rules of one snapshot."""

    __slots__ = ("_moments", "_newest_us", "_rules")

    def __init__(self, rules: Sequence[CacheInvalidation] = ()) -> None:
        self._rules = tuple(rules)
        self._newest_us = max((rule.before_us for rule in rules), default=0)
        self._moments: dict[tuple[str, str], bytes] = {}  # by tenant and alias, of which there are only so many

    def __bool__(self) -> bool:
        return bool(self._rules)

    def forbid(self, entry: CacheEntry) -> bool:
        """Whether a rule fits this entry."""
        return entry.asked_us < self._newest_us and any(fits(rule, entry) for rule in self._rules)

    def flight_key(self, key: bytes, *, tenant: str, alias: str) -> bytes:
        """What an answer in flight is called since these rules: whichever of them may fit it, for its leader's labels are not known to others."""
        moment = self._moments.get((tenant, alias))
        if moment is None:
            found = [one.before_us for one in self._rules if one.tenant in ("", tenant) and one.alias in ("", alias)]
            moment = self._moments[tenant, alias] = b"@%d" % max(found) if found else b""
        return key + moment


def fits(rule: CacheInvalidation, entry: CacheEntry) -> bool:
    """Whether an entry was asked for before the rule's moment and is what each of its selectors says."""
    return (
        entry.asked_us < rule.before_us
        and rule.tenant in ("", entry.tenant)
        and rule.alias in ("", entry.alias)
        and rule.model in ("", entry.model)
        and rule.agent in ("", entry.agent)
        and _has_tag(rule.tag, entry)
    )


def _has_tag(tag: str, entry: CacheEntry) -> bool:
    if not tag:
        return True
    name, equals, value = tag.partition("=")
    return name in entry.tags and (not equals or entry.tags[name] == value)

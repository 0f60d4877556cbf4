"""What the API asks about stored answers: how many an invalidation would take, and that it be done."""

from __future__ import annotations

import asyncio

from controlplane.api.views import CachedCount
from controlplane.catalog.invalidations import Invalidations, Selection
from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import CacheInvalidation
from controlplane.store.client import Store
from controlplane.store.queries.cached import count_cached


class StoredAnswers:
    """Invalidations from the journal, counts from the store."""

    def __init__(self, store: Store, invalidations: Invalidations) -> None:
        self._store = store
        self._invalidations = invalidations

    async def count(self, selection: Selection) -> CachedCount:
        """At most so many answers fit a selection now; raises BadRequest."""
        before_us = self._invalidations.moment_us(selection)
        found = await self._store.run(
            count_cached,
            self._store,
            from_us=max(0, before_us - self._invalidations.longest_s() * US_PER_S),
            before_us=before_us,
            tenant=selection.tenant,
            tag=selection.tag,
            alias=selection.alias,
            model=selection.model,
            agent=selection.agent,
        )
        return CachedCount(entries_at_most=found.entries, bytes_at_most=found.bytes)

    async def invalidate(self, selection: Selection, *, reason: str, actor: str) -> CacheInvalidation:
        """A rule, in force from the next snapshot on; raises BadRequest or TooMany."""
        return await asyncio.to_thread(self._invalidations.invalidate, selection, reason=reason, actor=actor)

    async def active(self) -> tuple[CacheInvalidation, ...]:
        """The rules in force."""
        return await asyncio.to_thread(self._invalidations.active)

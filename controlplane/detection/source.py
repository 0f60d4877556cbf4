"""Series from the telemetry store: one query for each kind and step and sweep, whatever the number of watches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from controlplane.detection.watch import Watch, WatchKind
from controlplane.store.client import Store
from controlplane.store.queries.series import Grid, Series, attempt_success_ratio, call_success_ratio, first_token_p95_s

_CACHED_MAX = 16


class StoreSeries:
    """Fetches all series of a kind at once and hands them out one by one; a `SeriesSource`.

    Blocks; used by one thread at a time. What was read for one moment serves all watches of that sweep, and no later one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cached: dict[tuple[WatchKind, int, int, float], Mapping[str, Series]] = {}

    def fetch(self, watch: Watch, now_s: float) -> Series:
        """The watch's series; all NaN where nothing was ever seen. Raises HephaestusError when the store cannot answer."""
        grid = Grid(now_s=now_s, step_s=watch.step_s, window_s=watch.window_s)
        key = (watch.kind, watch.step_s, watch.window_s, now_s)
        if key not in self._cached:
            while len(self._cached) >= _CACHED_MAX:
                del self._cached[next(iter(self._cached))]
            self._cached[key] = self._read(watch.kind, grid)
        name = watch.alias if watch.kind is WatchKind.ALIAS_SUCCESS_RATIO else watch.deployment
        found = self._cached[key].get(name)
        return _silence(grid) if found is None else found

    def _read(self, kind: WatchKind, grid: Grid) -> Mapping[str, Series]:
        if kind is WatchKind.SUCCESS_RATIO:
            return attempt_success_ratio(self._store, grid)
        if kind is WatchKind.FIRST_TOKEN_P95:
            return first_token_p95_s(self._store, grid)
        return call_success_ratio(self._store, grid)


def _silence(grid: Grid) -> Series:
    """The series of a name that never occurred."""
    return Series(
        t=np.arange(grid.start_s, grid.end_s, grid.step_s, dtype=np.int64),
        y=np.full(grid.points, np.nan),
        samples=np.zeros(grid.points, dtype=np.int64),
    )

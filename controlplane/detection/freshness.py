"""Whether telemetry is fresh enough to conclude anything from it."""

from __future__ import annotations

import msgspec

from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import ProxyStatus


class _Proxy(msgspec.Struct, frozen=True):
    seen_us: int
    waiting_since_us: int | None  # None: everything it had was shipped


class Freshness:
    """How long records have been waiting to be stored, from what proxies say about their spools.

    Owned by the app: the status endpoint calls `saw`, the ingest calls `stored`. A worker whose spool is empty, or who shipped a batch, is up to
    date at that moment. Telemetry is stale when some live worker has had records for longer than `lag_s_max` without a batch of its own
    arriving, or when no worker has reported within `expiry_s`.
    """

    def __init__(self, *, lag_s_max: float = 60.0, expiry_s: float = 10.0, proxies_max: int = 1_000) -> None:
        self._lag_us_max = round(lag_s_max * US_PER_S)
        self._expiry_us = round(expiry_s * US_PER_S)
        self._proxies_max = proxies_max
        self._proxies: dict[str, _Proxy] = {}

    def saw(self, status: ProxyStatus, *, now_us: int) -> None:
        """Takes a worker's word; beyond `proxies_max` workers those not heard of for longest are forgotten."""
        known = self._proxies.get(status.proxy_id)
        since_us = None
        if status.spool_bytes > 0:
            since_us = now_us if known is None or known.waiting_since_us is None else known.waiting_since_us
        self._proxies[status.proxy_id] = _Proxy(seen_us=now_us, waiting_since_us=since_us)
        while len(self._proxies) > self._proxies_max:
            del self._proxies[min(self._proxies, key=lambda proxy: self._proxies[proxy].seen_us)]

    def stored(self, proxy_id: str, *, now_us: int) -> None:
        """A batch of this worker is durably stored."""
        known = self._proxies.get(proxy_id)
        if known is not None and known.waiting_since_us is not None:
            self._proxies[proxy_id] = msgspec.structs.replace(known, waiting_since_us=now_us)

    def lag_s(self, now_us: int) -> float:
        """Age of the oldest record that is not stored, in seconds; infinite when no worker reports."""
        live = [proxy for proxy in list(self._proxies.values()) if now_us - proxy.seen_us <= self._expiry_us]
        if not live:
            return float("inf")
        waiting = [now_us - proxy.waiting_since_us for proxy in live if proxy.waiting_since_us is not None]
        return max(waiting, default=0) / US_PER_S

    def is_stale(self, now_us: int) -> bool:
        """Whether nothing may be concluded now."""
        return self.lag_s(now_us) * US_PER_S > self._lag_us_max

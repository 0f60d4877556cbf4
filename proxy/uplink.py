"""The proxy's own calls to the control plane: few and small, so a full HTTP client with TLS may carry them."""

from __future__ import annotations

import random
from collections.abc import Callable

import httpx

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 30.0
CONNECTIONS_MAX = 4  # one long poll, one batch, one status, one to spare


def open_uplink(control_plane_url: str, *, token: str) -> httpx.AsyncClient:
    """A client for the internal API: base URL, bearer token and bounds set. The caller closes it.

    token: the internal token, shown to nobody else; environment variables for HTTP proxies are not followed with it.
    """
    return httpx.AsyncClient(
        base_url=control_plane_url,
        headers={"authorization": f"Bearer {token}"},
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, write=WRITE_TIMEOUT_S),
        limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
        trust_env=False,
        follow_redirects=False,
    )


class Backoff:
    """How long to wait after each failure in a row: doubling, with jitter, up to a limit."""

    __slots__ = ("_failures", "_jitter", "_max_s", "_min_s")

    def __init__(self, *, min_s: float, max_s: float, jitter: Callable[[], float] = random.random) -> None:
        """jitter: uniform in [0, 1)."""
        self._min_s = min(min_s, max_s)
        self._max_s = max_s
        self._jitter = jitter
        self._failures = 0

    def failed(self) -> float:
        """Counts a failure; the seconds to wait: half of the step is certain, half is chance."""
        step_s = min(self._max_s, self._min_s * float(1 << min(self._failures, 32)))
        self._failures += 1
        return step_s * (0.5 + 0.5 * self._jitter())

    def succeeded(self) -> None:
        """Starts anew."""
        self._failures = 0

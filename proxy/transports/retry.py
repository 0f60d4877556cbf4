"""How often and how soon an upstream may be asked again: a budget of all calls together, the pause before a try, and who rests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from controlplane.contract.proxy_settings import ProxySettings
from proxy.runtime import Candidate
from proxy.transports.attempt import AttemptFailed

_WINDOW_S = 10
_DOUBLINGS_MAX = 6


class RetryBudget:
    """How often all calls together may ask an upstream again: a share of the calls of the last ten seconds, and at least a few."""

    def __init__(self, *, ratio: float, min_per_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.ratio = ratio
        self._least = min_per_s * _WINDOW_S
        self._monotonic = monotonic
        self._second = 0
        self._calls = [0] * _WINDOW_S
        self._retries = [0] * _WINDOW_S

    def count_call(self) -> None:
        """Counts a call's first try."""
        self._calls[self._slot()] += 1

    def take(self) -> bool:
        """Takes one retry, if the budget still has one."""
        slot = self._slot()
        if sum(self._retries) + 1 > max(self.ratio * sum(self._calls), self._least):
            return False
        self._retries[slot] += 1
        return True

    def _slot(self) -> int:
        now = int(self._monotonic())
        if now != self._second:
            for passed in range(max(self._second + 1, now - _WINDOW_S + 1), now + 1):
                self._calls[passed % _WINDOW_S] = self._retries[passed % _WINDOW_S] = 0
            self._second = now
        return now % _WINDOW_S


class Rests:
    """Deployments that asked to be left alone for a while: other calls ask them last until then.

    rest_s_max: longer than this nobody is left alone, whatever it asks for.
    """

    def __init__(self, *, rest_s_max: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rest_s_max = rest_s_max
        self._monotonic = monotonic
        self.until: dict[str, float] = {}  # as many as have asked and not yet been looked at again

    def __len__(self) -> int:
        return len(self.until)

    def note(self, deployment: str, retry_after_s: float) -> None:
        """A deployment has asked for so many seconds."""
        until = self._monotonic() + min(retry_after_s, self._rest_s_max)
        self.until[deployment] = max(until, self.until.get(deployment, 0.0))

    def last(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        """The same candidates, those that rest behind the others."""
        now = self._monotonic()
        self.until = {name: until for name, until in self.until.items() if until > now}
        awake = tuple(item for item in candidates if item.deployment.id not in self.until)
        if not awake or len(awake) == len(candidates):
            return candidates
        return awake + tuple(item for item in candidates if item.deployment.id in self.until)


def pause_s(
    failures: Sequence[AttemptFailed],
    settings: ProxySettings,
    *,
    tries: int,
    draw: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """How long to wait before the deployments that failed are asked again; None: longer than we may wait.

    What all of them asked for by `retry-after`, the least of it; but at least a pause that doubles with each try, of which the second
    half is drawn, so that calls that failed together do not come again together.
    """
    asked_s = min((failure.retry_after_s for failure in failures), default=0.0)
    if asked_s > settings.retry_after_s_max:
        return None
    backoff_s = settings.retry_backoff_s * 2.0 ** min(tries, _DOUBLINGS_MAX)
    return max(asked_s, backoff_s * draw(0.5, 1.0))

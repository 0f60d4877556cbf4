"""Small real parts for tests of detection: a source of prepared series, a telemetry that is fresh or not, a prober that does as told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from controlplane.clock import ManualClock
from controlplane.detection.probes import ProbeResult
from controlplane.detection.watch import Watch
from controlplane.errors import StoreUnavailable
from detectors.base import Floats, Ints


@dataclass
class GivenSeries:
    """A series as the store gives it."""

    t: Ints
    y: Floats
    samples: Ints


def ratio_series(
    ratios: list[float], *, samples: int | list[int] = 20, step_s: int = 5, end_s: int = 1_800_000_000
) -> GivenSeries:
    """A series of success ratios that ends at `end_s`; NaN has no samples."""
    y = np.array(ratios, dtype=np.float64)
    counts = np.where(np.isnan(y), 0, np.array(samples)).astype(np.int64)
    t = end_s - step_s * np.arange(y.size - 1, -1, -1, dtype=np.int64)
    return GivenSeries(t=t, y=y, samples=counts)


@dataclass
class GivenSource:
    """Series by watch id; a watch it does not know cannot be read. before: called with each fetch."""

    series: dict[str, GivenSeries] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def fetch(self, watch: Watch, now_s: float) -> GivenSeries:
        """The prepared series."""
        self.before()
        self.fetched.append(watch.id)
        if watch.id not in self.series:
            raise StoreUnavailable(f"no series for {watch.id}")
        return self.series[watch.id]


@dataclass
class GivenTelemetry:
    """Telemetry of a given age; stale above one minute."""

    lag: float = 0.0

    def lag_s(self, now_us: int) -> float:
        """The given age."""
        return self.lag

    def is_stale(self, now_us: int) -> bool:
        """Whether the given age is above a minute."""
        return self.lag > 60.0


@dataclass
class GivenProber:
    """Answers as told, by deployment; True is a good answer, an exception is raised, None never answers."""

    answers: dict[str, bool | Exception | None]
    clock: ManualClock
    probed: list[str] = field(default_factory=list)

    async def probe(self, deployment: str) -> ProbeResult:
        """The given answer."""
        self.probed.append(deployment)
        answer = self.answers[deployment]
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise TimeoutError
        return ProbeResult(ok=answer, detail="as told")

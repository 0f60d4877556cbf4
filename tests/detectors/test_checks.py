"""Every detector passes every check, and the checks catch detectors that do not keep the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Claim, Detector, Floats, Ints
from detectors.checks import CHECKS, Check, CheckFailed, Example
from detectors.forest import Forest
from detectors.ratio import Ratio
from detectors.seasonal import Seasonal
from detectors.synth import latency, success_ratio

LATENCY = Example(calm=latency(seed=3, points=400), worse=lambda value, size: value * (1.0 + 9.0 * size))
RATIO = Example(calm=success_ratio(seed=3, points=400), worse=lambda value, size: value * (1.0 - size))

DETECTORS: dict[str, tuple[Detector, Example]] = {
    "seasonal": (Seasonal(), LATENCY),
    "seasonal-with-a-season": (Seasonal(period_s=6000), LATENCY),
    "seasonal-without-floor": (Seasonal(floor_relative=0.0, direction="high"), LATENCY),
    "seasonal-with-absolute-floor": (Seasonal(floor=0.1), LATENCY),
    "ratio": (Ratio(), RATIO),
    "ratio-with-long-memory": (Ratio(recent_points=6, baseline_points=300), RATIO),
    "forest": (Forest(), LATENCY),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_passes_every_check(name: str, check: Check) -> None:
    """A detector of ours keeps the protocol and its own claims."""
    check(*DETECTORS[name])


class _Constant:
    """A detector with one fault, chosen by name; the fake that shows what each check is for."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.calls = 0

    @property
    def claims(self) -> frozenset[Claim]:
        """Whatever the fault pretends."""
        return frozenset({Claim.CAUSAL, Claim.SCALE, Claim.SHIFT})

    def score(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """A score that never alarms, with the chosen fault in it."""
        self.calls += 1
        if self.fault != "accepts-anything":
            _refuse_malformed(t, y, samples)
        if self.fault == "mutates":
            y[:1] = 0.0
        if self.fault == "wrong-type":
            return np.zeros(y.size, dtype=np.float32)  # type: ignore[return-value]
        if self.fault == "wrong-shape":
            return np.zeros(y.size + 1)
        if self.fault == "nan-is-calm":
            return np.zeros(y.size)
        known = y[~np.isnan(y)]
        values = {
            "not-causal": np.abs(y - (known.mean() if known.size else 0.0)) / 1e6,
            "out-of-range": np.full(y.size, 2.0),
            "random": np.full(y.size, self.calls / 1000.0),
            "constant-alarms": np.full(y.size, 0.9),
            "upside-down": 1.0 / (1.0 + np.abs(y)),
        }.get(self.fault, np.zeros(y.size))
        return np.where(np.isnan(y), np.nan, values)

    def expect(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """Nothing is expected."""
        return np.zeros(y.size)


def _refuse_malformed(t: Ints, y: Floats, samples: Ints | None) -> None:
    if t.shape != y.shape or (samples is not None and samples.shape != y.shape):
        raise ValueError("shapes differ")
    if t.size > 1 and int(np.diff(t).min()) <= 0:
        raise ValueError("t does not increase")


@pytest.mark.parametrize(
    "fault",
    [
        "accepts-anything", "mutates", "not-causal", "nan-is-calm", "out-of-range", "wrong-shape", "wrong-type", "random",
        "constant-alarms", "upside-down", "never-alarms",
    ],
)  # fmt: skip
def test_the_checks_catch_a_faulty_detector(fault: str) -> None:
    """Each way to break the protocol fails at least one check."""
    failures = []
    for check in CHECKS:
        try:
            check(_Constant(fault), LATENCY)
        except (CheckFailed, ValueError) as failure:
            failures.append(failure)
    assert failures

"""What every detector must pass, as `river.checks` does for its models.

Each check takes a detector and an example series of its domain, and raises CheckFailed with what went wrong. `tests/detectors` runs all of them over all
detectors; whoever writes a detector of their own can do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import numpy as np

from detectors.base import Claim, Detector, Floats
from detectors.synth import Labelled


class CheckFailed(AssertionError):
    """A detector that does not keep the protocol; the message says which part."""


class Example(msgspec.Struct, frozen=True):
    """A series a detector is made for, and how a fault looks in it.

    calm: no fault, no gap, long enough to be judged at its end. worse: moves a value towards a fault, by 0 (not at all) to 1 (a total one).
    """

    calm: Labelled
    worse: Callable[[float, float], float]


Check = Callable[[Detector, Example], None]


def check_shape_range_and_type(detector: Detector, example: Example) -> None:
    """Scores and expectations are float64 of shape (n,); scores lie in [0, 1] or are NaN; the last point of a calm series is judged."""
    for name, values in (("score", _score(detector, example.calm)), ("expect", _expect(detector, example.calm))):
        _require(values.dtype == np.float64, f"{name} has type {values.dtype}")
        _require(values.shape == example.calm.y.shape, f"{name} has shape {values.shape}")
    scores = _score(detector, example.calm)
    known = scores[~np.isnan(scores)]
    _require(bool(((known >= 0.0) & (known <= 1.0)).all()), "scores leave [0, 1]")
    _require(not np.isnan(scores[-1]), "the last point of a calm series is not judged")


def check_nan_in_nan_out(detector: Detector, example: Example) -> None:
    """A point without data is never judged, and its neighbours still are."""
    y = example.calm.y.copy()
    y[-4] = y[-2] = np.nan
    scores = _score(detector, example.calm._replace(y=y))
    _require(bool(np.isnan(scores[[-4, -2]]).all()), "a point without data has a score")
    _require(not np.isnan(scores[-1]), "a gap silences the point after it")


def check_all_nan(detector: Detector, example: Example) -> None:
    """A series without any data has no score at all."""
    y = np.full_like(example.calm.y, np.nan)
    _require(bool(np.isnan(_score(detector, example.calm._replace(y=y))).all()), "silence has a score")


def check_constant_is_calm(detector: Detector, example: Example) -> None:
    """A series that never changes is not anomalous."""
    y = np.full_like(example.calm.y, float(np.median(example.calm.y)))
    samples = np.full_like(example.calm.samples, 20)
    scores = _score(detector, example.calm._replace(y=y, samples=samples))
    _require(bool((scores[~np.isnan(scores)] <= 0.6).all()), "a constant series alarms")


def check_short_series(detector: Detector, example: Example) -> None:
    """No points give no scores, and one or two points give one or two scores or NaNs, never an error."""
    for length in range(3):
        part = example.calm.head(length)
        _require(_score(detector, part).shape == (length,), f"a series of {length} has another shape")
        _require(
            _expect(detector, part).shape == (length,), f"the expectation of a series of {length} has another shape"
        )


def check_is_deterministic(detector: Detector, example: Example) -> None:
    """The same series scores the same twice, to the last bit."""
    first, second = _score(detector, example.calm), _score(detector, example.calm)
    _require(np.array_equal(first, second, equal_nan=True), "two runs differ")


def check_inputs_stay(detector: Detector, example: Example) -> None:
    """Inputs are not changed; read-only arrays are accepted."""
    frozen = Labelled(*(column.copy() for column in example.calm))  # type: ignore[arg-type]  # unpacking keeps the order of types
    for column in frozen:
        column.flags.writeable = False
    _score(detector, frozen)
    _expect(detector, frozen)
    _require(
        all(np.array_equal(a, b, equal_nan=True) for a, b in zip(frozen, example.calm, strict=True)), "inputs changed"
    )


def check_bad_input_is_refused(detector: Detector, example: Example) -> None:
    """Shapes that differ and times that do not increase are a ValueError."""
    t, y, samples, _ = example.calm
    for bad in ((t[:-1], y, samples), (t[::-1].copy(), y, samples), (t, y, samples[:-1])):
        try:
            detector.score(*bad)
        except ValueError:
            continue
        raise CheckFailed("a malformed series was scored")


def check_worse_scores_higher(detector: Detector, example: Example) -> None:
    """A growing fault in the last point never lowers its score, and a total one scores clearly above the calm point."""
    scores = []
    for size in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        y = example.calm.y.copy()
        y[-1] = example.worse(float(y[-1]), size)
        scores.append(float(_score(detector, example.calm._replace(y=y))[-1]))
    _require(
        all(a <= b + 1e-9 for a, b in pairwise(scores)),
        f"scores fall as the fault grows: {scores}",
    )
    _require(scores[-1] > scores[0] + 0.1, f"a total fault hardly scores: {scores}")


def check_keeps_its_claims(detector: Detector, example: Example) -> None:
    """What the detector claims of causality, scale and shift holds."""
    whole = _score(detector, example.calm)
    y = example.calm.y
    if Claim.CAUSAL in detector.claims:
        for length in (y.size // 2, y.size - 1):
            part = _score(detector, example.calm.head(length))
            _require(_same(part, whole[:length]), "later points change earlier scores")
    if Claim.SCALE in detector.claims:
        _require(_same(_score(detector, example.calm._replace(y=y * 1000.0)), whole), "scale changes scores")
    if Claim.SHIFT in detector.claims:
        _require(_same(_score(detector, example.calm._replace(y=y + 7.0)), whole), "shift changes scores")


CHECKS: tuple[Check, ...] = (
    check_shape_range_and_type,
    check_nan_in_nan_out,
    check_all_nan,
    check_constant_is_calm,
    check_short_series,
    check_is_deterministic,
    check_inputs_stay,
    check_bad_input_is_refused,
    check_worse_scores_higher,
    check_keeps_its_claims,
)


def _score(detector: Detector, series: Labelled) -> Floats:
    return detector.score(series.t, series.y, series.samples)


def _expect(detector: Detector, series: Labelled) -> Floats:
    return detector.expect(series.t, series.y, series.samples)


def _same(left: Floats, right: Floats) -> bool:
    return bool(np.allclose(left, right, rtol=0.0, atol=1e-6, equal_nan=True))


def _require(holds: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not holds:
        raise CheckFailed(message)

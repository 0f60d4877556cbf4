"""Which series are watched, and the watches that every deployment and alias gets by default."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from controlplane.contract.snapshot import Snapshot
from controlplane.detection.signals import Severity, signal_id
from controlplane.settings import DetectionSettings
from detectors.forest import Forest
from detectors.ratio import Ratio
from detectors.seasonal import Seasonal
from detectors.threshold import Threshold

FIRST_TOKEN_STEPS = (
    6  # a percentile needs more calls for a point than a ratio does, so its points are this many times as wide
)

AnyDetector = Seasonal | Ratio | Forest


class WatchKind(StrEnum):
    """What is measured."""

    SUCCESS_RATIO = "success_ratio"  # attempts of a deployment that did not fail by its own fault
    FIRST_TOKEN_P95 = "first_token_p95"  # noqa: S105 - a series: seconds from the start of an attempt on a deployment to its first content
    ALIAS_SUCCESS_RATIO = "alias_success_ratio"  # calls for an alias that clients got a good answer to


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One series, its detector and when a score matters.

    threshold: its `raise_points` is the patience before an anomaly, in points. samples_min: a point with fewer samples counts as silent.
    silent_points: after this many points without a verdict at the end nothing is said any more.
    """

    id: str
    kind: WatchKind
    detector: AnyDetector
    threshold: Threshold
    deployment: str = ""
    upstream: str = ""
    alias: str = ""
    severity: Severity = "high"
    step_s: Annotated[int, msgspec.Meta(ge=1)] = 5
    window_s: Annotated[int, msgspec.Meta(ge=1)] = 3_600
    samples_min: Annotated[int, msgspec.Meta(ge=1)] = 1
    silent_points: Annotated[int, msgspec.Meta(ge=1)] = 4

    @property
    def points(self) -> int:
        """How many points the window holds."""
        return max(1, self.window_s // self.step_s)


def default_watches(snapshot: Snapshot, settings: DetectionSettings) -> tuple[Watch, ...]:
    """Success ratio and first-token latency of each deployment, and success ratio of each alias, in a stable order.

    A deployment that several routes share is watched once.
    """
    step_s, window_s = max(1, round(settings.step_s)), round(settings.history_s)
    deployments = {deployment.id: deployment.upstream for route in snapshot.routes for deployment in route.deployments}
    watches: list[Watch] = []
    for deployment, upstream in sorted(deployments.items()):
        watches.append(success_ratio_watch(deployment, upstream, step_s=step_s, window_s=window_s))
        watches.append(first_token_watch(deployment, upstream, step_s=step_s, window_s=window_s))
    aliases = sorted({route.alias for route in snapshot.routes})
    watches.extend(alias_watch(alias, step_s=step_s, window_s=window_s) for alias in aliases)
    return tuple(watches)


def success_ratio_watch(deployment: str, upstream: str, *, step_s: int, window_s: int) -> Watch:
    """Whether a deployment answers."""
    return Watch(
        id=signal_id(WatchKind.SUCCESS_RATIO, deployment),
        kind=WatchKind.SUCCESS_RATIO,
        detector=Ratio(),
        threshold=Threshold(raise_at=0.95, clear_at=0.6, raise_points=2, clear_points=3),
        deployment=deployment,
        upstream=upstream,
        severity="high",
        step_s=step_s,
        window_s=window_s,
    )


def first_token_watch(deployment: str, upstream: str, *, step_s: int, window_s: int) -> Watch:
    """Whether a deployment has become slow to begin; half a second more than usual is never an anomaly by itself."""
    return Watch(
        id=signal_id(WatchKind.FIRST_TOKEN_P95, deployment),
        kind=WatchKind.FIRST_TOKEN_P95,
        detector=Seasonal(
            recent_points=60,
            lag_points=4,
            history_min=10,
            floor=0.05,
            floor_relative=0.15,
            z_half=4.0,
            direction="high",
        ),
        threshold=Threshold(raise_at=0.8, clear_at=0.5, raise_points=3, clear_points=3),
        deployment=deployment,
        upstream=upstream,
        severity="medium",
        step_s=step_s * FIRST_TOKEN_STEPS,
        window_s=window_s,
        samples_min=5,
    )


def alias_watch(alias: str, *, step_s: int, window_s: int) -> Watch:
    """Whether clients who ask for an alias get an answer, whoever gives it."""
    return Watch(
        id=signal_id(WatchKind.ALIAS_SUCCESS_RATIO, alias),
        kind=WatchKind.ALIAS_SUCCESS_RATIO,
        detector=Ratio(),
        threshold=Threshold(raise_at=0.95, clear_at=0.6, raise_points=2, clear_points=3),
        alias=alias,
        severity="critical",
        step_s=step_s,
        window_s=window_s,
    )

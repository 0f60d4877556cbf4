"""Active probes: small calls to deployments that are sick or drained, the only witness where there is no traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from controlplane.clock import Clock
from controlplane.detection.metrics import ProbeMetrics
from controlplane.detection.signals import PROBE_FAILED, PROBE_OK, Anomaly, Cleared, Signal, signal_id
from controlplane.settings import DetectionSettings


class ProbeResult(msgspec.Struct, frozen=True):
    """How one probe went. detail: for people, without secrets."""

    ok: bool
    detail: str = ""


class Prober(Protocol):
    """Sends one small call to a deployment, past the proxies."""

    async def probe(self, deployment: str) -> ProbeResult:
        """Whether the deployment answers. Raises OSError or TimeoutError when it cannot be reached."""
        ...


class ProbeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of probing."""

    timeout_s: float = 10.0
    targets_max: int = 20  # deployments probed at once
    ok_needed: int = 3  # good probes in a row before a deployment counts as well
    failed_needed: int = 2  # bad probes in a row before it counts as sick

    @classmethod
    def of(cls, settings: DetectionSettings) -> ProbeSettings:
        """The bounds that the settings give."""
        return cls(
            timeout_s=settings.probe_timeout_s,
            targets_max=settings.probe_targets_max,
            ok_needed=settings.probe_ok_needed,
            failed_needed=settings.probe_failed_needed,
        )


class Streak(msgspec.Struct, frozen=True):
    """Probes of one deployment in a row with the same result; one of the two counts is zero. since_us: of the first of them."""

    ok: int = 0
    failed: int = 0
    since_us: int = 0
    at_us: int = 0
    detail: str = ""


class Probes:
    """Probes all targets in one turn and counts results in a row; forgets a deployment that is no longer a target.

    targets: deployment to upstream, asked anew each turn: those with an open incident or a drain lease.
    """

    def __init__(
        self,
        *,
        prober: Prober,
        targets: Callable[[], Mapping[str, str]],
        settings: ProbeSettings,
        metrics: ProbeMetrics,
        clock: Clock,
    ) -> None:
        self._prober = prober
        self._targets = targets
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._streaks: dict[str, Streak] = {}

    def streak(self, deployment: str) -> Streak:
        """The deployment's results so far; empty when it is not probed."""
        return self._streaks.get(deployment, Streak())

    async def turn(self) -> tuple[Signal, ...]:
        """One probe of each target, all at once; the signals of those whose streak is long enough."""
        wanted = sorted(self._targets().items())
        targets = dict(wanted[: self._settings.targets_max])
        self._metrics.targets.set(len(targets))
        self._metrics.targets_dropped.inc(len(wanted) - len(targets))
        results = await asyncio.gather(*(self._probe(deployment) for deployment in targets))
        now_us = self._clock.now_us()
        self._streaks = {
            deployment: grown(self.streak(deployment), result, now_us=now_us)
            for deployment, result in zip(targets, results, strict=True)
        }
        signals = (self._signal(deployment, upstream, now_us) for deployment, upstream in targets.items())
        return tuple(signal for signal in signals if signal is not None)

    async def _probe(self, deployment: str) -> ProbeResult:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                result = await self._prober.probe(deployment)
        except TimeoutError:
            self._metrics.probes.labels("timed_out").inc()
            return ProbeResult(ok=False, detail=f"no answer within {self._settings.timeout_s:g} s")
        except OSError as error:
            result = ProbeResult(ok=False, detail=f"cannot be reached: {error}")
        self._metrics.probes.labels("ok" if result.ok else "failed").inc()
        return result

    def _signal(self, deployment: str, upstream: str, now_us: int) -> Signal | None:
        streak = self._streaks[deployment]
        if streak.ok >= self._settings.ok_needed:
            return Cleared(
                signal_id=signal_id(PROBE_FAILED, deployment),
                kind=PROBE_OK,
                source="probe",
                at_us=now_us,
                deployment=deployment,
                upstream=upstream,
                evidence=(f"{deployment}: {streak.ok} probes in a row succeeded",),
            )
        if streak.failed >= self._settings.failed_needed:
            return Anomaly(
                signal_id=signal_id(PROBE_FAILED, deployment),
                kind=PROBE_FAILED,
                source="probe",
                severity="high",
                score=min(0.9, 1.0 - 0.5 ** (streak.failed + 1)),
                started_us=streak.since_us,
                at_us=now_us,
                deployment=deployment,
                upstream=upstream,
                value=0.0,
                expected=1.0,
                evidence=(f"{deployment}: {streak.failed} probes in a row failed: {streak.detail}",),
            )
        return None


def grown(streak: Streak, result: ProbeResult, *, now_us: int) -> Streak:
    """The streak after one more result."""
    ok, failed = (streak.ok + 1, 0) if result.ok else (0, streak.failed + 1)
    since_us = streak.since_us if ok + failed > 1 else now_us
    return Streak(ok=ok, failed=failed, since_us=since_us, at_us=now_us, detail=result.detail)

"""Active probes: streaks, failures of all kinds, and bounds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from controlplane.clock import ManualClock
from controlplane.detection.metrics import ProbeMetrics
from controlplane.detection.probes import Probes, ProbeSettings
from controlplane.detection.signals import Anomaly, Cleared
from controlplane.settings import DetectionSettings
from tests.controlplane.detection.fakes import GivenProber


def test_the_settings_give_the_bounds() -> None:
    """What is written in the file is what probes are bounded by, and both have the same defaults."""
    assert ProbeSettings() == ProbeSettings.of(DetectionSettings())
    changed = ProbeSettings.of(DetectionSettings(probe_timeout_s=1.0, probe_targets_max=2, probe_ok_needed=4))
    assert ProbeSettings(timeout_s=1.0, targets_max=2, ok_needed=4) == changed


class _Rig:
    """Probes of given deployments with given answers."""

    def __init__(self, answers: dict[str, bool | Exception | None], **settings: int) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.prober = GivenProber(answers, self.clock)
        self.targets = {deployment: deployment.split("/")[0] for deployment in answers}
        self.probes = Probes(
            prober=self.prober,
            targets=lambda: self.targets,
            settings=ProbeSettings(**settings),
            metrics=ProbeMetrics(self.registry),
            clock=self.clock,
        )


async def test_good_probes_clear_only_after_several_in_a_row() -> None:
    """Two good ones say nothing yet, the third says well; the statement is about the whole deployment."""
    rig = _Rig({"a/m": True})
    assert [(), ()] == [await rig.probes.turn(), await rig.probes.turn()]
    (signal,) = await rig.probes.turn()
    assert isinstance(signal, Cleared)
    assert ("probe_ok", "probe_failed/a/m", "a/m", "a") == (
        signal.kind,
        signal.signal_id,
        signal.deployment,
        signal.upstream,
    )
    assert (3, 0) == (rig.probes.streak("a/m").ok, rig.probes.streak("a/m").failed)


async def test_bad_probes_raise_dated_from_the_first() -> None:
    """Each way to fail counts, and confidence grows with the streak but is never certainty."""
    rig = _Rig({"a/m": False, "b/m": ConnectionRefusedError("refused"), "c/m": None})
    began_us = rig.clock.now_us()
    assert () == await rig.probes.turn()
    rig.clock.move(5.0)
    signals = await rig.probes.turn()
    assert ["a/m", "b/m", "c/m"] == [signal.deployment for signal in signals]
    first = signals[0]
    assert isinstance(first, Anomaly)
    assert (began_us, rig.clock.now_us(), "probe") == (first.started_us, first.at_us, first.source)
    assert "refused" in signals[1].evidence[0]
    assert "no answer within 10 s" in signals[2].evidence[0]
    for _ in range(20):
        signals = await rig.probes.turn()
    assert isinstance(signals[0], Anomaly)
    assert first.score < signals[0].score < 0.95


async def test_one_good_probe_ends_a_bad_streak() -> None:
    """Results count only in a row."""
    rig = _Rig({"a/m": False})
    await rig.probes.turn()
    await rig.probes.turn()
    rig.prober.answers["a/m"] = True
    assert () == await rig.probes.turn()
    assert (1, 0) == (rig.probes.streak("a/m").ok, rig.probes.streak("a/m").failed)


async def test_a_deployment_that_is_no_target_is_forgotten() -> None:
    """A later incident begins with a new streak."""
    rig = _Rig({"a/m": True})
    for _ in range(3):
        await rig.probes.turn()
    rig.targets = {}
    assert () == await rig.probes.turn()
    assert 0 == rig.probes.streak("a/m").ok
    assert 3 == len(rig.prober.probed)


async def test_too_many_targets_are_dropped_and_counted() -> None:
    """A control plane that sees everything sick does not storm everything."""
    rig = _Rig({f"{letter}/m": True for letter in "abcde"}, targets_max=2)
    await rig.probes.turn()
    assert ["a/m", "b/m"] == rig.prober.probed
    assert 3.0 == rig.registry.get_sample_value("heph_detection_probe_targets_dropped_total")

"""The default watches of a snapshot."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.contract.snapshot import Deployment, Route, Snapshot
from controlplane.detection.watch import Watch, WatchKind, default_watches
from controlplane.settings import DetectionSettings
from detectors.ratio import Ratio
from detectors.threshold import Threshold

ONE = Deployment(id="a/m", upstream="a", model="m")
TWO = Deployment(id="b/m", upstream="b", model="m")
SNAPSHOT = Snapshot(
    version=1,
    created_us=0,
    routes=(Route(alias="fast", deployments=(ONE, TWO)), Route(alias="cheap", deployments=(ONE,))),
)


def test_each_deployment_and_alias_is_watched_once() -> None:
    """A deployment that two routes share has one success ratio and one latency watch."""
    assert [
        "success_ratio/a/m",
        "first_token_p95/a/m",
        "success_ratio/b/m",
        "first_token_p95/b/m",
        "alias_success_ratio/cheap",
        "alias_success_ratio/fast",
    ] == [watch.id for watch in default_watches(SNAPSHOT, DetectionSettings())]


def test_watches_carry_where_they_look() -> None:
    """Deployment watches name their upstream, alias watches only the alias."""
    watches = {watch.id: watch for watch in default_watches(SNAPSHOT, DetectionSettings(step_s=10, history_s=600))}
    deployment, alias = watches["success_ratio/b/m"], watches["alias_success_ratio/fast"]
    assert ("b/m", "b", "", 10, 60) == (
        deployment.deployment, deployment.upstream, deployment.alias, deployment.step_s, deployment.points,
    )  # fmt: skip
    assert ("", "", "fast", "critical") == (alias.deployment, alias.upstream, alias.alias, alias.severity)
    assert 60 == watches["first_token_p95/b/m"].step_s


def test_an_empty_snapshot_has_no_watches() -> None:
    """Before anything is configured there is nothing to watch."""
    assert () == default_watches(Snapshot(version=0, created_us=0), DetectionSettings())


def test_a_watch_can_be_written_in_a_file() -> None:
    """Detector and threshold are read by their kind, with every parameter they have."""
    watch = msgspec.json.decode(
        b'{"id": "w", "kind": "success_ratio", "deployment": "a/m", "detector": {"kind": "ratio", "margin": 0.1},'
        b' "threshold": {"raise_points": 4}}',
        type=Watch,
    )
    assert (
        Watch(
            id="w",
            kind=WatchKind.SUCCESS_RATIO,
            deployment="a/m",
            detector=Ratio(margin=0.1),
            threshold=Threshold(raise_points=4),
        )
        == watch
    )


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "w", "kind": "nonsense", "detector": {"kind": "ratio"}, "threshold": {}}',
        b'{"id": "w", "kind": "success_ratio", "detector": {"kind": "oracle"}, "threshold": {}}',
        b'{"id": "w", "kind": "success_ratio", "detector": {"kind": "ratio", "magin": 0.1}, "threshold": {}}',
        b'{"id": "w", "kind": "success_ratio", "detector": {"kind": "ratio"}, "threshold": {"raise_points": 0}}',
        b'{"id": "w", "kind": "success_ratio", "detector": {"kind": "ratio"}, "threshold": {}, "severity": "dire"}',
        b'{"id": "w", "kind": "success_ratio", "detector": {"kind": "ratio"}, "threshold": {}, "step_s": 0}',
    ],
)
def test_a_watch_with_a_mistake_is_refused(text: bytes) -> None:
    """Unknown kinds, misspelt parameters and impossible bounds are errors, not defaults."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Watch)

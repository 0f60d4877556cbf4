"""The topology of a snapshot, and how far targets are from each other."""

from __future__ import annotations

import pytest

from controlplane.contract.snapshot import Deployment, Route, Snapshot
from controlplane.incidents.signal import Raised
from controlplane.incidents.topology import Topology
from tests.controlplane.incidents.fakes import TOPOLOGY, alias_raised, raised


def test_a_snapshot_has_a_topology() -> None:
    """Routes of one alias are joined, deployments know their upstream."""
    one, two = Deployment(id="a/m", upstream="a", model="m"), Deployment(id="b/m", upstream="b", model="m")
    routes = (
        Route(alias="fast", deployments=(one,)),
        Route(alias="fast", deployments=(two,)),
        Route(alias="cheap", deployments=(one,)),
    )
    topology = Topology.of(Snapshot(version=1, created_us=0, routes=routes))
    assert {"a/m": "a", "b/m": "b"} == topology.upstreams
    assert {"fast": frozenset({"a/m", "b/m"}), "cheap": frozenset({"a/m"})} == topology.aliases
    assert frozenset({"a/m"}) == topology.siblings("a")


@pytest.mark.parametrize(
    ("left", "right", "hops"),
    [
        (raised(), raised("breaker_open"), 0),
        (raised(), raised(deployment="a/m2"), 1),
        (raised(), raised(deployment="b/m3"), None),
        (raised(), alias_raised("fast"), 1),
        (alias_raised("cheap"), raised(), None),
        (alias_raised("fast"), alias_raised("fast"), 0),
        (alias_raised("fast"), alias_raised("cheap"), None),
        (raised(deployment="gone/m"), raised(deployment="gone/n"), 1),
    ],
)
def test_hops(left: Raised, right: Raised, hops: int | None) -> None:
    """Along the way that faults flow, in both directions."""
    assert hops == TOPOLOGY.hops(left, right)
    assert hops == TOPOLOGY.hops(right, left)


def test_targets_that_are_gone_are_not_known() -> None:
    """By deployment and by alias."""
    known = [
        TOPOLOGY.knows(one)
        for one in (raised(), raised(deployment="gone/m"), alias_raised("fast"), alias_raised("gone"))
    ]
    assert [True, False, True, False] == known

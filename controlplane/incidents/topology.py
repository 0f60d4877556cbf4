"""How faults flow: from an upstream to its deployments to the aliases that use them, never back.

Two deployments of one upstream may share a cause. Two deployments of one alias share only a symptom, which says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from controlplane.contract.snapshot import Snapshot
from controlplane.incidents.signal import Raised


class Topology(msgspec.Struct, frozen=True):
    """Which deployment hangs on which upstream, and which alias on which deployments."""

    upstreams: Mapping[str, str] = {}  # deployment to upstream
    aliases: Mapping[str, frozenset[str]] = {}  # alias to deployments

    @classmethod
    def of(cls, snapshot: Snapshot) -> Topology:
        """The topology that a snapshot describes."""
        upstreams = {
            deployment.id: deployment.upstream for route in snapshot.routes for deployment in route.deployments
        }
        aliases: dict[str, frozenset[str]] = {}
        for route in snapshot.routes:
            members = frozenset(deployment.id for deployment in route.deployments)
            aliases[route.alias] = aliases.get(route.alias, frozenset()) | members
        return cls(upstreams=upstreams, aliases=aliases)

    def knows(self, signal: Raised) -> bool:
        """Whether the signal's target still exists."""
        return signal.alias in self.aliases if signal.alias else signal.deployment in self.upstreams

    def deployments_of(self, signal: Raised) -> frozenset[str]:
        """The deployments a signal may be about: its own, or all of its alias."""
        return self.aliases.get(signal.alias, frozenset()) if signal.alias else frozenset({signal.deployment})

    def causes_of(self, signal: Raised) -> frozenset[str]:
        """The signal's own entity and everything a fault may have flowed from, as `deployment:x`, `upstream:y`, `alias:z`."""
        deployments = self.deployments_of(signal)
        entities = {f"deployment:{deployment}" for deployment in deployments}
        entities |= {f"upstream:{self.upstream_of(deployment, signal)}" for deployment in deployments}
        if signal.alias:
            entities.add(f"alias:{signal.alias}")
        return frozenset(entities)

    def upstream_of(self, deployment: str, signal: Raised) -> str:
        """The deployment's upstream; the signal's own word where the topology does not know it (any more)."""
        return self.upstreams.get(deployment, signal.upstream)

    def siblings(self, upstream: str) -> frozenset[str]:
        """All deployments of an upstream."""
        return frozenset(deployment for deployment, owner in self.upstreams.items() if owner == upstream)

    def hops(self, left: Raised, right: Raised) -> int | None:
        """How far two signals' targets are from each other along the way that faults flow; None: no way.

        0: the same target. 1: one depends on the other, or both depend directly on the same thing.
        """
        if (left.deployment, left.alias) == (right.deployment, right.alias):
            return 0
        if bool(left.alias) == bool(right.alias):
            shared = self._parents(left) & self._parents(right)
            return 1 if shared else None
        alias, deployment = (left, right) if left.alias else (right, left)
        return 1 if deployment.deployment in self.deployments_of(alias) else None

    def _parents(self, signal: Raised) -> frozenset[str]:
        """What the target depends on directly."""
        if signal.alias:
            return self.deployments_of(signal)
        return frozenset({self.upstream_of(signal.deployment, signal)})

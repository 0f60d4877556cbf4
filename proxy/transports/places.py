"""Where what upstreams keep can be asked for: deployments and upstreams of one snapshot, and routes that lead to one place alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from proxy.runtime import Candidate, RouteEntry, Runtime
from proxy.transports.owners import Owner


class Places:
    """Where deployments and upstreams are, in one snapshot."""

    __slots__ = ("candidates", "entries")

    def __init__(self, runtime: Runtime) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.entries: dict[str, RouteEntry] = {}
        for entry in runtime.routes.values():
            for candidate in all_of(entry):
                self.candidates.setdefault(candidate.deployment.id, candidate)
                self.entries.setdefault(candidate.deployment.id, entry)

    def at(self, owner: Owner, operation: str) -> Candidate | None:
        """The deployment that made something, or where it is gone any other at the same upstream; None: nobody asks there any more."""
        made = self.candidates.get(owner.deployment)
        choices = [made] if made is not None and made.upstream.id == owner.upstream else []
        choices += [item for item in self.candidates.values() if item.upstream.id == owner.upstream]
        return next((item for item in choices if serves(item, operation)), None)

    def each(self, operation: str) -> list[Candidate]:
        """One deployment at each upstream that serves an operation, in the order of the configuration."""
        found: dict[str, Candidate] = {}
        for item in self.candidates.values():
            if serves(item, operation):
                found.setdefault(item.upstream.id, item)
        return list(found.values())


def all_of(entry: RouteEntry) -> Iterator[Candidate]:
    """The deployments of a route, those to be tried first in front."""
    for group in entry.groups:
        yield from group


def serves(candidate: Candidate, operation: str) -> bool:
    """Whether an upstream answers an operation in the client's own words."""
    endpoint = candidate.endpoint
    return endpoint is not None and operation in endpoint.wires and endpoint.wires[operation].translation is None


def pinned(entry: RouteEntry, candidates: tuple[Candidate, ...], *, attempts_max: int | None = None) -> RouteEntry:
    """A route for a call that must go to these and nowhere else: no other model, no second try beside the first, no copy.

    attempts_max: None: as many as the route has.
    """
    most = entry.route.attempts_max if attempts_max is None else attempts_max
    route = msgspec.structs.replace(entry.route, hedge=None, shadow=None, affinity=None, attempts_max=most)
    return replace(entry, route=route, groups=(candidates,), plain=candidates, narrowed={}, spares=(), shadow=None)

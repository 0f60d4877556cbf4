"""Leases: overrides with an expiry, the only way in which healing changes what proxies do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from controlplane.catalog.state import (
    LEASE_CODEC,
    LeaseEvent,
    LeaseGranted,
    LeaseRenewed,
    LeaseRevoked,
    StateReader,
    evolve_lease,
)
from controlplane.clock import US_PER_S
from controlplane.contract.ids import new_id
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import BadRequest, NotFound
from controlplane.journal.events import Guard, NewEvent
from controlplane.journal.fold import Changes, execute
from controlplane.journal.journal import Journal

TTL_S_MAX = 86_400.0
REASON_CHARS_MAX = 500
_GUARD = "leases"


class Leases:
    """Grants, renews and revokes overrides. Blocking: asynchronous callers use a thread.

    leases_max: how many may be in force at once over all processes; held as guard tokens in the journal, so that it cannot be raced past.
    """

    def __init__(self, journal: Journal, *, now_us: Callable[[], int], leases_max: int = 50) -> None:
        self._journal = journal
        self._now_us = now_us
        self._leases_max = leases_max
        self._reader = StateReader(journal)

    def grant(
        self,
        kind: LeaseKind,
        deployment: str,
        ttl_s: float,
        *,
        run_id: str = "",
        reason: str = "",
        share: float = 0.0,
        actor: str = "",
    ) -> Lease:
        """An override of a deployment for `ttl_s` seconds, at least one and at most a day.

        share: with SHARE, the most of its route's calls that the deployment may get, 0..1.
        One run holds at most one lease of a kind on a deployment: granting again what is in force changes nothing and returns it
        (another share replaces it), granting again what has expired or was revoked brings it back under the same id. Without a run each grant is a new lease.
        Raises BadRequest for numbers out of range and GuardRefused when too many leases are in force.
        """
        if not 0.0 <= share <= 1.0:
            raise BadRequest(f"a share is between 0 and 1, not {share}")
        expires_us = self._expiry(ttl_s)
        lease = Lease(
            id=_lease_id(run_id, deployment, kind),
            kind=kind,
            deployment=deployment,
            expires_us=expires_us,
            run_id=run_id,
            share=share,
            reason=reason[:REASON_CHARS_MAX],
        )

        def decide(held: Lease | None) -> Changes:
            if held is not None and held.expires_us > self._now_us() and held.share == share:
                return Changes()
            return self._changes(LeaseGranted(lease), lease.id, expires_us, actor=actor, run_id=run_id)

        done = self._execute(lease.id, decide)
        return lease if done is None else done

    def renew(self, lease_id: str, ttl_s: float, *, actor: str = "") -> Lease:
        """The lease, in force for `ttl_s` seconds from now, even if it has just expired; never shortens it.

        Raises NotFound for a lease that does not exist or was revoked.
        """
        expires_us = self._expiry(ttl_s)

        def decide(held: Lease | None) -> Changes:
            if held is None:
                raise _not_found(lease_id)
            if held.expires_us >= expires_us:
                return Changes()
            return self._changes(
                LeaseRenewed(lease_id, expires_us), lease_id, expires_us, actor=actor, run_id=held.run_id
            )

        self._execute(lease_id, decide)
        renewed = self._load(lease_id)
        if renewed is None:  # revoked between the two
            raise _not_found(lease_id)
        return renewed

    def revoke(self, lease_id: str, *, reason: str = "", actor: str = "") -> None:
        """Ends a lease; ending one that is not there (any more) changes nothing."""

        def decide(held: Lease | None) -> Changes:
            if held is None:
                return Changes()
            revoked = NewEvent(
                payload=LeaseRevoked(lease_id, reason[:REASON_CHARS_MAX]),
                actor=actor,
                correlation_id=held.run_id,
                occurred_us=self._now_us(),
            )
            return Changes(events=(revoked,), guards_released=(lease_id,))

        self._execute(lease_id, decide)

    def active(self, now_us: int | None = None) -> tuple[Lease, ...]:
        """The leases in force at a moment (now by default), by id."""
        moment_us = self._now_us() if now_us is None else now_us
        leases = self._reader.refresh().leases
        return tuple(leases[lease_id] for lease_id in sorted(leases) if leases[lease_id].expires_us > moment_us)

    def _expiry(self, ttl_s: float) -> int:
        if not 1.0 <= ttl_s <= TTL_S_MAX:
            raise BadRequest(f"a lease lasts from 1 s to {TTL_S_MAX:.0f} s, not {ttl_s} s")
        return self._now_us() + round(ttl_s * US_PER_S)

    def _changes(self, event: LeaseEvent, lease_id: str, expires_us: int, *, actor: str, run_id: str) -> Changes:
        guard = Guard(scope=_GUARD, holder=lease_id, limit=self._leases_max, expires_us=expires_us)
        new = NewEvent(payload=event, actor=actor, correlation_id=run_id, occurred_us=self._now_us())
        return Changes(events=(new,), guards=(guard,))

    def _execute(self, lease_id: str, decide: Callable[[Lease | None], Changes]) -> Lease | None:
        """Runs a command on a lease's stream; the lease as it was when nothing had to be changed, else None."""
        initial: Lease | None = None
        done = execute(
            self._journal, f"lease/{lease_id}", decide, initial=initial, evolve=evolve_lease, codec=LEASE_CODEC
        )
        return done.state if done.result is None else None

    def _load(self, lease_id: str) -> Lease | None:
        lease: Lease | None = None
        for event in self._journal.load(f"lease/{lease_id}"):
            lease = evolve_lease(lease, LEASE_CODEC.decode(event))
        return lease


def _lease_id(run_id: str, deployment: str, kind: LeaseKind) -> str:
    """The same id for the same override of the same run, so that a step that is done twice does it once."""
    if not run_id:
        return new_id("lease")
    digest = hashlib.sha256(f"{run_id}\x00{deployment}\x00{kind.value}".encode()).hexdigest()
    return f"lease_{digest[:26]}"


def _not_found(lease_id: str) -> NotFound:
    return NotFound(f"there is no lease `{lease_id}`, or it was revoked; grant a new one")

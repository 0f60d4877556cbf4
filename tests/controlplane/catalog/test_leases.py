"""Leases are granted once for a step, bounded, and end by themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from controlplane.catalog.leases import Leases
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import BadRequest, NotFound
from controlplane.journal.events import GuardRefused
from controlplane.journal.journal import Journal

DRAIN, SHARE = LeaseKind.DRAIN, LeaseKind.SHARE


@pytest.fixture
def leases(journal: Journal, clock: ManualClock) -> Leases:
    """Leases, at most three at once."""
    return Leases(journal, now_us=clock.now_us, leases_max=3)


def test_a_lease_is_in_force_until_it_expires(leases: Leases, clock: ManualClock) -> None:
    """A granted lease is active to the microsecond before its expiry and not at it."""
    lease = leases.grant(DRAIN, "openai/gpt", 60.0, run_id="run_1", reason="outage")
    assert (
        Lease(
            id=lease.id,
            kind=DRAIN,
            deployment="openai/gpt",
            expires_us=clock.now_us() + 60_000_000,
            run_id="run_1",
            reason="outage",
        )
        == lease
    )
    clock.move(59.999999)
    assert (lease,) == leases.active()
    clock.move(0.000001)
    assert () == leases.active()


def test_the_same_step_done_twice_grants_once(leases: Leases, journal: Journal, clock: ManualClock) -> None:
    """A step that is repeated after a crash finds its lease and appends nothing; another kind, deployment or run is another lease."""
    first = leases.grant(DRAIN, "d", 60.0, run_id="run_1")
    clock.move(10)
    before = journal.position()
    assert first == leases.grant(DRAIN, "d", 60.0, run_id="run_1")
    assert before == journal.position()
    others = {
        leases.grant(SHARE, "d", 60.0, run_id="run_1", share=0.5).id,
        leases.grant(DRAIN, "d", 60.0, run_id="run_2").id,
    }
    assert 3 == len(others | {first.id})


def test_a_share_can_be_changed_by_granting_again(leases: Leases) -> None:
    """Granting another share replaces the lease under its own id."""
    first = leases.grant(SHARE, "d", 60.0, run_id="run_1", share=0.1)
    second = leases.grant(SHARE, "d", 60.0, run_id="run_1", share=0.5)
    assert (first.id, (second,)) == (second.id, leases.active())


def test_what_has_ended_can_be_granted_again(leases: Leases, clock: ManualClock) -> None:
    """After expiry or revocation the same run gets its lease back."""
    lease = leases.grant(DRAIN, "d", 5.0, run_id="run_1")
    clock.move(6)
    again = leases.grant(DRAIN, "d", 5.0, run_id="run_1")
    assert (lease.id, (again,)) == (again.id, leases.active())
    leases.revoke(lease.id)
    assert () == leases.active()
    assert (leases.grant(DRAIN, "d", 5.0, run_id="run_1"),) == leases.active()


def test_renewal_lengthens_and_never_shortens(leases: Leases, clock: ManualClock) -> None:
    """Renewing sets the expiry from now, even just after the end; a shorter wish changes nothing."""
    lease = leases.grant(DRAIN, "d", 60.0, run_id="run_1")
    clock.move(30)
    assert clock.now_us() + 60_000_000 == leases.renew(lease.id, 60.0).expires_us
    assert clock.now_us() + 60_000_000 == leases.renew(lease.id, 5.0).expires_us
    clock.move(70)
    assert (leases.renew(lease.id, 10.0),) == leases.active()


def test_what_was_revoked_is_not_renewed(leases: Leases) -> None:
    """Renewing a revoked or unknown lease is refused; revoking it again is harmless."""
    lease = leases.grant(DRAIN, "d", 60.0, run_id="run_1")
    leases.revoke(lease.id)
    leases.revoke(lease.id)
    leases.revoke("lease_nope")
    for lease_id in (lease.id, "lease_nope"):
        with pytest.raises(NotFound):
            leases.renew(lease_id, 60.0)


def test_the_bound_holds_for_all_who_grant_at_once(journal: Journal, clock: ManualClock) -> None:
    """Twelve grants from twelve threads against a bound of three: three are in force, the others are refused."""

    def grant(number: int) -> bool:
        try:
            Leases(journal, now_us=clock.now_us, leases_max=3).grant(DRAIN, f"d{number}", 60.0, run_id=f"run_{number}")
        except GuardRefused:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        granted = list(pool.map(grant, range(12)))
    leases = Leases(journal, now_us=clock.now_us, leases_max=3)
    assert (3, 3) == (sum(granted), len(leases.active()))
    leases.revoke(leases.active()[0].id)
    leases.grant(DRAIN, "one more", 60.0, run_id="run_x")
    clock.move(61)
    for number in range(3):
        leases.grant(DRAIN, f"later {number}", 60.0, run_id="run_y")


@pytest.mark.parametrize(
    ("ttl_s", "share"),
    [(0.5, 0.0), (-1.0, 0.0), (90_000.0, 0.0), (float("nan"), 0.0), (60.0, -0.1), (60.0, 1.1), (60.0, float("nan"))],
)
def test_numbers_out_of_range_are_refused(leases: Leases, ttl_s: float, share: float) -> None:
    """A lease without an end, of no length, or with an impossible share cannot be granted."""
    with pytest.raises(BadRequest):
        leases.grant(SHARE, "d", ttl_s, run_id="run_1", share=share)
    assert () == leases.active()


def test_without_a_run_each_grant_is_its_own(leases: Leases) -> None:
    """An operator who drains the same deployment twice holds two leases."""
    assert leases.grant(DRAIN, "d", 60.0).id != leases.grant(DRAIN, "d", 60.0).id

"""Whole runs in a world in memory: they heal, give up, stop, wait for people and survive crashes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from controlplane.alerts.alert import Notification
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import Conflict, NotFound
from controlplane.healing.actions import RouteShare, RouteView
from controlplane.healing.commands import Commands
from controlplane.healing.killswitch import Mode
from controlplane.healing.runs import RunDetail
from controlplane.healing.worker import Healing
from controlplane.journal.events import AppendResult
from controlplane.journal.journal import Journal
from controlplane.settings import Autonomy, HealingSettings
from tests.controlplane.healing.fakes import INCIDENT, SICK, FakeWorld, make_healing, quick_library


async def live(
    world: FakeWorld, healing: Healing, seconds: int, at: Mapping[int, Callable[[], object]] | None = None
) -> None:
    """Let seconds pass, one turn each; `at`: what happens in which second."""
    for second in range(seconds):
        (at or {}).get(second, lambda: None)()
        await healing.turn()
        world.clock.move(1)


async def begin(healing: Healing) -> str:
    """Open the run for the one incident."""
    run_id = await healing.consider(INCIDENT)
    assert run_id is not None
    return run_id


def types(detail: RunDetail) -> list[str]:
    """The events of a run, without repeated measurements and renewals."""
    left_out = {"validation.sample", "run.lease_renewed"}
    return [entry.type for entry in detail.timeline if entry.type not in left_out]


def told(journal: Journal) -> list[str]:
    """What people were told."""
    entries = journal.due_outbox(2**62, 100)
    return [msgspec.json.decode(entry.payload, type=Notification).type for entry in entries]


def recover(world: FakeWorld) -> Callable[[], None]:
    """The provider comes back."""
    return lambda: setattr(world, "sick", False)


async def test_an_outage_is_healed(world: FakeWorld, journal: Journal, healing: Healing) -> None:
    """Drain, confirm, validate, hold while the outage lasts, let go when probes succeed, watch, close."""
    run_id = await begin(healing)
    await live(world, healing, 80, at={45: recover(world)})
    detail = healing.runs.show(run_id)
    assert [
        "run.matched",
        "run.planned",
        "run.queued",
        "run.started",
        "step.dispatched",
        "step.succeeded",
        "step.dispatched",
        "run.lease_granted",
        "step.confirmed",
        "step.succeeded",
        "validation.started",
        "validation.passed",
        "run.succeeded",
        "probe.counted",
        "probe.counted",
        "release.started",
        "run.lease_revoked",
        "rollback.step_done",
        "probation.started",
        "run.closed",
    ] == types(detail)
    assert [(LeaseKind.DRAIN, SICK, run_id)] == [(g.kind, g.deployment, g.run_id) for g in world.leases.grants]
    assert world.leases.renewed >= 3
    assert not world.leases.active()
    assert ["run.succeeded", "run.closed"] == told(journal)
    assert [] == journal.due_timers(2**62, 10)
    assert [] == journal.guard_holders("healing/global")


async def test_the_lease_is_held_as_long_as_the_outage_lasts(world: FakeWorld, healing: Healing) -> None:
    """While probes fail the override never lapses, even past many times its life."""
    await begin(healing)
    await live(world, healing, 15)
    for _ in range(200):
        assert world.drained
        await live(world, healing, 1)


async def test_a_fix_that_does_not_help_is_rolled_back_and_escalated(
    world: FakeWorld, journal: Journal, healing: Healing
) -> None:
    """Measured success stays bad: the override goes and people are called."""
    world.fix_helps = False
    run_id = await begin(healing)
    await live(world, healing, 30)
    detail = healing.runs.show(run_id)
    assert "escalated" == detail.run.status
    assert [
        "validation.failed",
        "rollback.started",
        "run.lease_revoked",
        "rollback.step_done",
        "rollback.completed",
        "run.escalated",
    ] == types(detail)[-6:]
    assert "it did not help: route.success_ratio >= 0.95 (is 0.1)" == detail.run.cause
    assert not world.leases.active()
    assert ["run.escalated"] == told(journal)


async def test_harm_is_rolled_back_before_the_bake_is_over(world: FakeWorld, healing: Healing) -> None:
    """When the deployments that take over break, the run does not wait for its validation to end."""
    run_id = await begin(healing)
    world.failover_breaks = True
    await live(world, healing, 8)
    run = healing.runs.show(run_id).run
    assert "escalated" == run.status
    assert run.cause.startswith("it did harm: deployment.success_ratio < 0.5")
    assert not world.leases.active()


async def test_harm_while_holding_is_rolled_back(world: FakeWorld, healing: Healing) -> None:
    """After success the world is still watched: when the failover breaks later, the override goes."""
    run_id = await begin(healing)
    await live(world, healing, 40, at={25: lambda: setattr(world, "failover_breaks", True)})
    assert "escalated" == healing.runs.show(run_id).run.status
    assert not world.leases.active()


async def test_a_relapse_after_release_ends_the_run_and_allows_another(world: FakeWorld, healing: Healing) -> None:
    """A provider that is well only for the probes regresses in probation, and a new run may begin at once."""
    run_id = await begin(healing)
    await live(world, healing, 60, at={20: recover(world), 33: lambda: setattr(world, "sick", True)})
    assert "regressed" == healing.runs.show(run_id).run.status
    again = await healing.consider(INCIDENT)
    assert again not in {None, run_id}


async def test_proxies_that_do_not_confirm_fail_the_step(world: FakeWorld, healing: Healing) -> None:
    """An override that no proxy reports is taken back, and people are called."""
    world.deaf = True
    run_id = await begin(healing)
    await live(world, healing, 20)
    run = healing.runs.show(run_id).run
    assert ("escalated", "step drain failed: 0 of 2 proxies had its override in time") == (run.status, run.cause)
    assert not world.leases.active()


async def test_with_no_live_proxy_nothing_is_confirmed(world: FakeWorld, healing: Healing) -> None:
    """No proxy that reports is not the same as all proxies that report."""
    world.proxies = 0
    run_id = await begin(healing)
    await live(world, healing, 20)
    assert "escalated" == healing.runs.show(run_id).run.status


async def test_proxies_that_keep_an_override_fail_the_rollback(world: FakeWorld, healing: Healing) -> None:
    """An override that proxies still report after it was revoked is a failed rollback, and people are called."""
    world.fix_helps = False
    run_id = await begin(healing)
    await live(world, healing, 40, at={5: lambda: setattr(world, "deaf", True)})
    detail = healing.runs.show(run_id)
    assert ["rollback.failed", "run.escalated"] == types(detail)[-2:]


async def test_probes_that_succeed_say_there_is_no_fault(world: FakeWorld, healing: Healing) -> None:
    """When no probe fails, however often tried, nothing is applied and the run is blocked."""
    world.sick = False
    run_id = await begin(healing)
    await live(world, healing, 40)
    run = healing.runs.show(run_id).run
    assert ("blocked", "5 of 5 probes succeeded") == (run.status, run.cause)
    assert [] == world.leases.grants
    assert 20 == world.probes


async def test_no_other_healthy_deployment_blocks_the_run(world: FakeWorld, healing: Healing) -> None:
    """Nothing is drained when nobody could take over."""
    world.routes_now = (RouteView("chat", (RouteShare(SICK, 1.0),)),)
    run_id = await begin(healing)
    await live(world, healing, 2)
    run = healing.runs.show(run_id).run
    assert ("blocked", "a route would be left with 0 healthy deployments of 1") == (run.status, run.cause)


async def test_stale_telemetry_means_no_action(world: FakeWorld, healing: Healing) -> None:
    """With telemetry older than allowed the run waits, and is blocked when it stays so."""
    world.telemetry_age_s = 61.0
    run_id = await begin(healing)
    await live(world, healing, 40)
    detail = healing.runs.show(run_id)
    assert ["run.deferred", "run.blocked"] == types(detail)[-2:]
    assert [] == world.leases.grants


async def test_telemetry_that_comes_late_only_defers(world: FakeWorld, healing: Healing) -> None:
    """A run that waited for fresh telemetry goes on when it comes."""
    world.telemetry_age_s = 61.0
    run_id = await begin(healing)
    await live(world, healing, 30, at={10: lambda: setattr(world, "telemetry_age_s", 1.0)})
    assert "holding" == healing.runs.show(run_id).run.status


def hush(world: FakeWorld) -> Callable[[], None]:
    """Hardly anybody calls the route any more."""
    return lambda: setattr(world, "calls_per_s", 0.2)


async def test_too_few_samples_say_nothing_and_the_override_is_held(
    world: FakeWorld, journal: Journal, healing: Healing
) -> None:
    """A quiet route passes no validation; calls stay away from a deployment that fails its probes, and people hear that it is unproven."""
    run_id = await begin(healing)
    await live(world, healing, 90, at={1: hush(world)})
    detail = healing.runs.show(run_id)
    assert "holding" == detail.run.status
    assert "validation.inconclusive" in types(detail)
    assert not {"validation.passed", "validation.failed"} & set(types(detail))
    assert world.drained
    assert ["validation.inconclusive"] == told(journal)


async def test_an_unproven_fix_is_closed_when_probes_succeed(world: FakeWorld, healing: Healing) -> None:
    """Once the deployment answers again, the run of a quiet route ends like any other."""
    run_id = await begin(healing)
    await live(world, healing, 100, at={1: hush(world), 60: recover(world)})
    assert "closed" == healing.runs.show(run_id).run.status
    assert not world.leases.active()


async def test_a_quiet_validation_ends_with_its_incident(world: FakeWorld, healing: Healing) -> None:
    """When the incident looks over after the bake, nobody waits for calls that may never come; the probes decide at once."""
    run_id = await begin(healing)
    over: dict[int, Callable[[], None]] = {
        1: hush(world),
        14: recover(world),
        15: lambda: setattr(world, "incident", "resolved"),
    }
    await live(world, healing, 26, at=over)
    assert healing.runs.show(run_id).run.status in {"releasing", "probation"}
    assert not world.drained


@pytest.mark.parametrize("second", [8, 15, 30, 50])
async def test_a_clock_that_goes_back_delays_nothing(world: FakeWorld, healing: Healing, second: int) -> None:
    """Whatever the run waited for, it goes on within the usual time, and nobody is probed more often than usual."""
    run_id = await begin(healing)
    await live(world, healing, second)
    world.clock.move(-7_200)
    before = world.probes
    await live(world, healing, 45)
    assert healing.runs.show(run_id).run.status == "holding"
    assert world.probes - before <= 45 / 5 + 2
    recover(world)()
    await live(world, healing, 45)
    assert "closed" == healing.runs.show(run_id).run.status


async def test_a_quiet_route_whose_failover_breaks_is_still_harm(world: FakeWorld, journal: Journal) -> None:
    """What is measured as harm ends an unproven fix, however few calls validation has."""
    library = quick_library(validate__min_samples=10_000)
    healing = make_healing(world, journal, library=library)
    run_id = await begin(healing)
    await live(world, healing, 60, at={45: lambda: setattr(world, "failover_breaks", True)})
    assert "validation.inconclusive" in types(healing.runs.show(run_id))
    assert "escalated" == healing.runs.show(run_id).run.status


async def test_a_lease_that_somebody_revoked_is_granted_again(world: FakeWorld, healing: Healing) -> None:
    """While the incident is open a vanished override is put back and validated again."""
    run_id = await begin(healing)
    await live(world, healing, 50, at={25: world.leases.held.clear})
    assert 2 == len(world.leases.grants)
    assert world.drained
    assert "holding" == healing.runs.show(run_id).run.status


async def test_an_override_past_its_max_ttl_is_given_up(world: FakeWorld, journal: Journal) -> None:
    """An outage that outlasts max_ttl ends in a rollback and a person, not in an override for ever."""
    healing = make_healing(world, journal, library=quick_library(steps__drain__lease__max_ttl="40s"))
    run_id = await begin(healing)
    await live(world, healing, 60)
    run = healing.runs.show(run_id).run
    assert ("escalated", "the override of step drain reached its max_ttl of 40 s") == (run.status, run.cause)
    assert not world.leases.active()


async def test_a_resolved_incident_does_not_end_the_override_while_probes_fail(
    world: FakeWorld, healing: Healing
) -> None:
    """The drain hides the fault; only the deployment's own answers count."""
    await begin(healing)
    await live(world, healing, 90, at={20: lambda: setattr(world, "incident", "resolved")})
    assert world.drained


async def test_a_store_that_is_away_only_delays(world: FakeWorld, healing: Healing) -> None:
    """While telemetry cannot be read the run neither succeeds nor fails; the override stays in force and the run goes on later."""
    run_id = await begin(healing)
    at = {3: lambda: setattr(world, "telemetry_down", True), 60: lambda: setattr(world, "telemetry_down", False)}
    await live(world, healing, 60, at=at)
    assert "validating" == healing.runs.show(run_id).run.status
    assert world.drained
    await live(world, healing, 10, at={0: lambda: setattr(world, "telemetry_down", False)})
    assert "holding" == healing.runs.show(run_id).run.status


async def test_a_grant_that_takes_too_long_is_looked_up_not_repeated(world: FakeWorld, journal: Journal) -> None:
    """When time runs out while an override is granted, the run looks whether it is there and goes on with it."""
    healing = make_healing(world, journal, library=quick_library(steps__drain__timeout="50ms"))
    may_return, grant = threading.Event(), world.leases.grant

    def slow_grant(kind: LeaseKind, deployment: str, *, ttl_s: float, run_id: str, reason: str, share: float) -> Lease:
        lease = grant(kind, deployment, ttl_s=ttl_s, run_id=run_id, reason=reason, share=share)
        may_return.wait(timeout=30)
        return lease

    world.leases.grant = slow_grant  # type: ignore[method-assign]  # the fake is ours to bend
    run_id = await begin(healing)
    await live(world, healing, 3)
    may_return.set()
    steps = [name for name in types(healing.runs.show(run_id)) if name.startswith(("step.", "run.lease"))]
    assert ["step.outcome_unknown", "step.reconciled", "run.lease_granted", "step.confirmed"] == steps[3:7]
    assert 1 == len(world.leases.grants)


async def test_a_second_look_at_an_incident_opens_no_second_run(world: FakeWorld, journal: Journal) -> None:
    """The same fingerprint has one run at a time, whoever asks; another fingerprint may have its own."""
    first, second = make_healing(world, journal), make_healing(world, journal)
    run_id = await begin(first)
    assert [run_id, run_id] == [await first.consider(INCIDENT), await second.consider(INCIDENT)]
    other = msgspec.structs.replace(INCIDENT, id="incident_2", fingerprint="other")
    assert await second.consider(other) not in {None, run_id}


async def test_two_runs_never_override_one_deployment(world: FakeWorld, healing: Healing) -> None:
    """A run for the same deployment waits for the first one's token, and is blocked in the end."""
    await begin(healing)
    other = await healing.consider(msgspec.structs.replace(INCIDENT, id="incident_2", fingerprint="other"))
    assert other is not None
    await live(world, healing, 40)
    statuses = sorted(str(run.status) for run in healing.runs.list())
    assert ["blocked", "holding"] == statuses
    assert 1 == len(world.leases.grants)


async def test_an_incident_that_no_playbook_answers_opens_nothing(journal: Journal, healing: Healing) -> None:
    """Another kind of incident leaves no trace."""
    assert await healing.consider(msgspec.structs.replace(INCIDENT, kind="first_token_p95")) is None
    assert 0 == journal.position()


async def test_more_runs_than_the_settings_allow_are_suppressed(world: FakeWorld, journal: Journal) -> None:
    """runs_max bounds how many runs are open at once."""
    healing = make_healing(world, journal, settings=HealingSettings(runs_max=1))
    await begin(healing)
    assert await healing.consider(msgspec.structs.replace(INCIDENT, id="incident_2", fingerprint="other")) is None
    assert ["suppressed", "matched"] == [run.status for run in healing.runs.list()]


async def test_the_loop_turns_at_its_pace_until_it_is_cancelled(world: FakeWorld, healing: Healing) -> None:
    """`run` looks every poll_every_s and ends when cancelled."""
    run_id = await begin(healing)
    loop = asyncio.create_task(healing.run())
    for _ in range(400):
        await asyncio.to_thread(lambda: None)
        await world.clock.advance(0.1)
        if "holding" == healing.runs.show(run_id).run.status:
            break
    assert "holding" == healing.runs.show(run_id).run.status
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


# The kill switch and shadow mode.


@pytest.mark.parametrize("scope", ["global", "playbook:provider-outage-failover", f"target:{SICK}"])
@pytest.mark.parametrize("second", [3, 8, 20])
async def test_the_kill_switch_rolls_back_what_runs(
    world: FakeWorld, healing: Healing, scope: str, second: int
) -> None:
    """Pulled at any moment, in any scope that covers the run: the override is gone and nobody is paged."""
    run_id = await begin(healing)
    await live(world, healing, 25, at={second: lambda: healing.kill_switch.engage(scope, by="ann", reason="drill")})
    run = healing.runs.show(run_id).run
    assert ("rolled_back", f"kill switch {scope} engaged by ann: drill") == (run.status, run.cause)
    assert not world.leases.active()


async def test_another_targets_kill_switch_changes_nothing(world: FakeWorld, healing: Healing) -> None:
    """A switch for another deployment leaves the run alone."""
    healing.kill_switch.engage("target:other/m", by="ann")
    run_id = await begin(healing)
    await live(world, healing, 20)
    assert "holding" == healing.runs.show(run_id).run.status


async def test_an_engaged_kill_switch_suppresses_new_runs_once(world: FakeWorld, healing: Healing) -> None:
    """Nothing opens while it is engaged, the refusal is recorded once, and after release runs open again."""
    healing.kill_switch.engage("global", by="ann")
    assert [None, None] == [await healing.consider(INCIDENT), await healing.consider(INCIDENT)]
    assert ["suppressed"] == [run.status for run in healing.runs.list()]
    healing.kill_switch.release("global", by="ann")
    assert await healing.consider(INCIDENT) is not None
    await live(world, healing, 5)
    assert world.drained


async def test_healing_that_is_switched_off_in_settings_does_nothing(world: FakeWorld, journal: Journal) -> None:
    """enabled: false rolls back what an earlier process left running, and opens nothing."""
    first = make_healing(world, journal)
    run_id = await begin(first)
    await live(world, first, 20)
    second = make_healing(world, journal, settings=HealingSettings(enabled=False))
    await live(world, second, 3)
    assert "rolled_back" == second.runs.show(run_id).run.status
    assert await second.consider(INCIDENT) is None


@pytest.mark.parametrize("way", ["settings", "switch", "observe", "suggest"])
async def test_shadow_and_low_levels_plan_but_apply_nothing(world: FakeWorld, journal: Journal, way: str) -> None:
    """The plan is recorded and not one effect happens, not even a probe."""
    settings = {
        "settings": HealingSettings(shadow=True),
        "switch": HealingSettings(),
        "observe": HealingSettings(autonomy=Autonomy.OBSERVE),
        "suggest": HealingSettings(overrides={"provider-outage-failover": Autonomy.SUGGEST}),
    }[way]
    healing = make_healing(world, journal, settings=settings)
    if way == "switch":
        healing.kill_switch.engage("global", by="ann", mode=Mode.SHADOW)
    run_id = await begin(healing)
    await live(world, healing, 30)
    detail = healing.runs.show(run_id)
    assert ["run.matched", "run.planned", "run.shadowed"] == types(detail)
    assert detail.plan is not None
    assert ["probe alpha/m 5 times", "send alpha/m no calls"] == [step.change for step in detail.plan.steps]
    assert ([], 0) == (world.leases.grants, world.probes)
    assert (["run.shadowed"] if way == "suggest" else []) == told(journal)


# People.


@pytest.fixture
def asking(world: FakeWorld, journal: Journal) -> Healing:
    """A worker that must ask."""
    return make_healing(world, journal, settings=HealingSettings(autonomy=Autonomy.APPROVE))


async def test_an_approved_run_goes_on(world: FakeWorld, journal: Journal, asking: Healing) -> None:
    """Nothing is applied before somebody says yes; then the run heals and names them."""
    run_id = await begin(asking)
    await live(world, asking, 10)
    assert ([], ["approval.requested"]) == (world.leases.grants, told(journal))
    Commands(journal, world.clock.now_us).approve(run_id, by="ann")
    await live(world, asking, 20)
    run = asking.runs.show(run_id).run
    assert ("holding", "ann") == (run.status, run.approved_by)


async def test_a_rejected_run_ends(world: FakeWorld, journal: Journal, asking: Healing) -> None:
    """No means no, and gives the fingerprint free."""
    run_id = await begin(asking)
    await live(world, asking, 2)
    Commands(journal, world.clock.now_us).reject(run_id, by="ann", reason="maintenance")
    await live(world, asking, 2)
    run = asking.runs.show(run_id).run
    assert ("rejected", "maintenance") == (run.status, run.cause)
    assert ([], []) == (
        journal.due_timers(2**62, 10),
        journal.guard_holders(f"healing/fingerprint/{INCIDENT.fingerprint}"),
    )


async def test_an_approval_expires(world: FakeWorld, journal: Journal, asking: Healing) -> None:
    """After its time nobody can approve any more, and with `escalate` people are called."""
    run_id = await begin(asking)
    await live(world, asking, 31)
    with pytest.raises(Conflict, match="escalated"):
        Commands(journal, world.clock.now_us).approve(run_id, by="ann")
    assert ["approval.requested", "approval.expired", "run.escalated"] == types(asking.runs.show(run_id))[-3:]
    assert [] == world.leases.grants


async def test_an_expired_approval_may_just_reject(world: FakeWorld, journal: Journal) -> None:
    """With `reject` the run ends quietly."""
    settings = HealingSettings(autonomy=Autonomy.APPROVE)
    healing = make_healing(world, journal, settings=settings, library=quick_library(approval__on_expire="reject"))
    run_id = await begin(healing)
    await live(world, healing, 31)
    assert "expired" == healing.runs.show(run_id).run.status


async def test_an_approval_is_bound_to_the_plan_that_was_seen(
    world: FakeWorld, journal: Journal, asking: Healing
) -> None:
    """A yes for another plan is refused; the right hash is taken, twice without harm."""
    run_id = await begin(asking)
    await live(world, asking, 1)
    commands = Commands(journal, world.clock.now_us)
    with pytest.raises(Conflict, match="another plan"):
        commands.approve(run_id, by="ann", plan_hash="0" * 16)
    plan = asking.runs.show(run_id).plan
    assert plan is not None
    commands.approve(run_id, by="ann", plan_hash=plan.plan_hash)
    commands.approve(run_id, by="ann", plan_hash=plan.plan_hash)
    assert 1 == types(asking.runs.show(run_id)).count("approval.granted")
    with pytest.raises(Conflict, match="cancel it instead"):
        commands.reject(run_id, by="bob")


@pytest.mark.parametrize("second", [3, 8, 20])
async def test_a_cancelled_run_leaves_nothing(
    world: FakeWorld, journal: Journal, healing: Healing, second: int
) -> None:
    """Whenever a person cancels, what was applied is taken back and the run ends as cancelled."""
    commands = Commands(journal, world.clock.now_us)
    run_id = await begin(healing)
    await live(world, healing, 25, at={second: lambda: commands.cancel(run_id, by="ann")})
    assert "cancelled" == healing.runs.show(run_id).run.status
    assert not world.leases.active()
    with pytest.raises(Conflict, match="has ended as cancelled"):
        commands.cancel(run_id, by="ann")


def test_commands_on_a_run_that_does_not_exist_say_so(world: FakeWorld, journal: Journal) -> None:
    """Approve, reject, cancel and show name the run that is not there."""
    commands = Commands(journal, world.clock.now_us)
    for command in (commands.approve, commands.reject, commands.cancel):
        with pytest.raises(NotFound, match="run_x"):
            command("run_x", by="ann")


# Crashes.


class CrashedError(BaseException):
    """The process died."""


class MortalJournal(Journal):
    """A journal whose process dies at its nth append: before it is durable, or just after."""

    appends = 0
    dies_at = 0
    dies_after = False

    def append(self, *args: object, **kwargs: object) -> AppendResult:
        """Append, or die."""
        self.appends += 1
        if self.appends == self.dies_at and not self.dies_after:
            raise CrashedError
        result = super().append(*args, **kwargs)  # type: ignore[arg-type]
        if self.appends == self.dies_at:
            raise CrashedError
        return result


async def _live_with_deaths(world: FakeWorld, journal: MortalJournal, library_helps: bool) -> tuple[str, int]:
    """A whole outage; each time the process dies a new worker takes over. The run's end and the deaths."""
    world.fix_helps = library_helps
    healing, deaths, run_id = make_healing(world, journal), 0, None
    for second in range(110):
        if second == 40:
            world.sick = False
        try:
            run_id = await healing.consider(INCIDENT) if run_id is None else run_id
            await healing.turn()
        except CrashedError:
            deaths += 1
            healing = make_healing(world, journal)
        world.clock.move(1)
    (run,) = healing.runs.list()
    return run.status, deaths


@pytest.mark.parametrize("dies_after", [False, True])
@pytest.mark.parametrize(("helps", "end", "appends_min"), [(True, "closed", 22), (False, "escalated", 14)])
async def test_a_crash_at_any_event_ends_as_without_it(
    tmp_path: Path, *, dies_after: bool, helps: bool, end: str, appends_min: int
) -> None:
    """Killed before or after each append in turn, the run ends the same and its override was granted once."""
    died_at = 0
    for dies_at in range(1, 100):
        world = FakeWorld()
        journal = MortalJournal.open(f"sqlite:///{tmp_path}/journal{dies_at}.db", now_us=world.clock.now_us)
        assert isinstance(journal, MortalJournal)
        journal.dies_at, journal.dies_after = dies_at, dies_after
        status, deaths = await _live_with_deaths(world, journal, helps)
        assert (end, 1) == (status, len(world.leases.grants)), f"died at append {dies_at}"
        assert not world.leases.active()
        assert [] == journal.due_timers(2**62, 10)
        assert [] == journal.guard_holders("healing/global")
        journal.close()
        if deaths == 0:
            break
        died_at = dies_at
    assert died_at >= appends_min

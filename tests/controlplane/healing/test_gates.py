"""Guards, reach and measured conditions."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.clock import US_PER_S
from controlplane.healing.actions import Measurement, RouteShare, RouteView
from controlplane.healing.gates import Past, Reading, admit, judge, matches, reach, too_far
from controlplane.healing.playbook import Condition, Missing, Of, Op, Playbook
from controlplane.healing.state import Status
from controlplane.healing.values import Threshold
from controlplane.settings import Autonomy
from tests.controlplane.healing.fakes import INCIDENT, SICK, WELL, quick_library

NOW_US = 1_000_000 * US_PER_S
LIMITS: dict[str, str | int | float | bool] = {
    "guards.cooldown.per_fingerprint": "15m",
    "guards.cooldown.after_rollback": "2h",
    "guards.rate.per_playbook": "3/h",
    "guards.rate.global": "5/h",
    "guards.flap.max_runs": 2,
    "guards.flap.window": "3h",
    "guards.circuit.open_after_failed_runs": 2,
    "guards.circuit.reset_after": "24h",
}


def playbook(**more: str | int | float | bool) -> Playbook:
    """The built-in playbook with guards that tests know."""
    (loaded,) = quick_library(**{**LIMITS, **more})
    return loaded.playbook


def past(status: str, minutes_ago: float, *, fingerprint: str = INCIDENT.fingerprint, playbook_id: str = "") -> Past:
    """A run that matched and ended so long ago."""
    at_us = NOW_US - round(minutes_ago * 60 * US_PER_S)
    name = playbook_id or "provider-outage-failover"
    ended = Status(status) not in {Status.RUNNING, Status.HOLDING}
    return Past(f"run_{minutes_ago}", name, fingerprint, Status(status), at_us, at_us if ended else 0)


def guard_after(*runs: Past) -> str:
    """Which guard refuses a run after these."""
    return admit(playbook(), INCIDENT, runs, cap=Autonomy.AUTO, now_us=NOW_US).refused_by


@pytest.mark.parametrize(
    ("runs", "guard"),
    [
        ([], ""),
        ([past("closed", 14)], "cooldown"),
        ([past("closed", 16)], ""),
        ([past("closed", 14, fingerprint="other")], ""),
        ([past("rolled_back", 119)], "cooldown"),
        ([past("escalated", 119)], "cooldown"),
        ([past("escalated", 121)], ""),
        ([past("rejected", 10)], "cooldown"),
        ([past("blocked", 10)], "cooldown"),
        ([past("suppressed", 1)], ""),
        ([past("regressed", 1)], ""),
        ([past("closed", n, fingerprint=f"f{n}") for n in (10, 20, 30)], "rate.per_playbook"),
        ([past("closed", n, fingerprint=f"f{n}") for n in (10, 20, 70)], ""),
        ([past("suppressed", n, fingerprint=f"f{n}") for n in (10, 20, 30)], ""),
        ([past("closed", n, fingerprint=f"f{n}", playbook_id="p") for n in (1, 2, 3, 4, 5)], "rate.global"),
        ([past("escalated", 300, fingerprint="a"), past("regressed", 200, fingerprint="b")], "circuit"),
        ([past("escalated", 300, fingerprint="a"), past("closed", 200, fingerprint="b")], ""),
        ([past("escalated", 300, fingerprint="a"), past("rolled_back", 200, fingerprint="b")], ""),
        ([past("escalated", 3000, fingerprint="a"), past("escalated", 2000, fingerprint="b")], ""),
    ],
)
def test_guards_refuse_by_what_happened_before(runs: list[Past], guard: str) -> None:
    """Cool-down, rates and the circuit on the automation itself, each on either side of its limit."""
    assert guard == guard_after(*runs)


def test_a_fingerprint_that_flaps_is_left_to_people() -> None:
    """After so many runs within the window the level falls to approve, with the reason."""
    runs = [past("regressed", 20), past("closed", 100)]
    admission = admit(playbook(), INCIDENT, runs, cap=Autonomy.AUTO, now_us=NOW_US)
    assert ("", Autonomy.APPROVE) == (admission.refused_by, admission.level)
    assert "2 runs within" in admission.why_level
    assert Autonomy.AUTO is admit(playbook(), INCIDENT, runs[:1], cap=Autonomy.AUTO, now_us=NOW_US).level


@pytest.mark.parametrize("cap", list(Autonomy))
def test_the_settings_cap_the_level(cap: Autonomy) -> None:
    """A playbook never does more by itself than the settings allow."""
    assert cap is admit(playbook(), INCIDENT, (), cap=cap, now_us=NOW_US).level


def test_settings_never_raise_the_level() -> None:
    """A playbook that asks by itself goes on asking."""
    admission = admit(playbook(autonomy__default="approve"), INCIDENT, (), cap=Autonomy.AUTO, now_us=NOW_US)
    assert Autonomy.APPROVE is admission.level


@pytest.mark.parametrize(
    ("sources", "confidence", "probe", "guard"),
    [
        (("telemetry",), 0.9, "failing", ""),
        (("telemetry",), 0.9, "any", "evidence"),
        (("telemetry", "telemetry"), 0.9, "any", "evidence"),
        (("telemetry", "breaker"), 0.9, "any", ""),
        (("telemetry",), 0.96, "any", ""),
        ((), 0.5, "failing", "evidence"),
    ],
)
def test_two_independent_signals_or_one_that_is_sure(
    sources: tuple[str, ...], confidence: float, probe: str, guard: str
) -> None:
    """A probe that must fail counts as a signal of its own; the same source twice does not."""
    incident = msgspec.structs.replace(INCIDENT, sources=sources, confidence=confidence)
    asked = playbook(**{"steps.probe.params.expect": probe})
    assert guard == admit(asked, incident, (), cap=Autonomy.AUTO, now_us=NOW_US).refused_by


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"kind": "first_token_p95"}, False),
        ({"severity": "low"}, False),
        ({"confidence": 0.4}, False),
        ({"kind": "breaker_open", "severity": "medium"}, True),
    ],
)
def test_a_trigger_is_about_kind_severity_and_confidence(changes: dict[str, object], *, expected: bool) -> None:
    """All three must fit."""
    assert expected == matches(playbook(), msgspec.structs.replace(INCIDENT, **changes))


# Reach.

ROUTES = (
    RouteView("chat", (RouteShare(SICK, 0.7), RouteShare(WELL, 0.3))),
    RouteView("code", (RouteShare(WELL, 1.0), RouteShare("gamma/m", 0.0))),
)


def test_the_reach_of_a_drain_is_the_whole_share() -> None:
    """The share of the route, of all routes, and who takes over, are predicted."""
    predicted = reach(playbook(), SICK, ROUTES, [])
    assert (("chat",), (WELL,), 1, 0.7, 0.35) == (
        predicted.aliases,
        predicted.failover,
        predicted.healthy_targets,
        predicted.route_share,
        predicted.total_share,
    )


@pytest.mark.parametrize(
    ("changes", "leased", "deployment", "reason"),
    [
        ({}, [], SICK, ""),
        ({}, [], "nobody/m", "no route"),
        ({"blast_radius.max_per_run": "60%"}, [], SICK, "70% of a route's calls"),
        ({"blast_radius.max_concurrent_global": "30%"}, [], SICK, "35% of all calls"),
        ({"blast_radius.max_concurrent_global": "50%"}, ["gamma/m"], SICK, ""),
        ({"blast_radius.max_concurrent_global": "50%"}, [WELL], SICK, "100% of all calls"),
        ({}, [WELL], SICK, "left with 0 healthy"),
        ({"blast_radius.min_healthy_targets": 2}, [], SICK, "left with 1 healthy"),
        ({}, ["gamma/m", "delta/m"], SICK, "2 deployments are under overrides"),
        ({}, ["gamma/m", SICK], SICK, ""),
    ],
)
def test_what_reaches_too_far_is_refused(
    changes: dict[str, str | int], leased: list[str], deployment: str, reason: str
) -> None:
    """Each limit of the blast radius, on either side."""
    limited = playbook(**changes)
    found = too_far(limited, reach(limited, deployment, ROUTES, leased), leases_max=2)
    assert reason in found
    assert bool(reason) == bool(found)


# Conditions.


def measured(value: float, samples: int = 100, age_s: float = 1.0) -> Measurement:
    """A measurement."""
    return Measurement(value, samples, age_s)


def condition(
    op: str, value: float | Threshold, *, on_missing: Missing | None = None, min_samples: int = 1
) -> Condition:
    """A condition on the success ratio of routes."""
    threshold = value if isinstance(value, Threshold) else Threshold(number=value)
    return Condition(
        op=Op(op), value=threshold, metric="route.success_ratio", on_missing=on_missing, min_samples=min_samples
    )


@pytest.mark.parametrize(
    ("op", "value", "limit", "good"),
    [
        (">=", 0.95, 0.95, True),
        (">=", 0.94, 0.95, False),
        ("<=", 0.95, 0.95, True),
        ("<=", 0.96, 0.95, False),
        (">", 0.95, 0.95, False),
        (">", 0.96, 0.95, True),
        ("<", 0.95, 0.95, False),
        ("<", 0.94, 0.95, True),
        ("==", 0.95, 0.95, True),
        ("==", 0.96, 0.95, False),
    ],
)
def test_comparisons_are_what_they_say(op: str, value: float, limit: float, *, good: bool) -> None:
    """Each operator at its edge."""
    verdict = judge([Reading(condition(op, limit), (measured(value),))], baseline={}, known={}, max_age_s=60)
    assert good is verdict.good


def test_every_route_must_be_good_but_one_harmed_is_enough() -> None:
    """Success is for all targets, harm for any."""
    mixed = (measured(0.99), measured(0.5))
    good = judge([Reading(condition(">=", 0.95), mixed)], baseline={}, known={}, max_age_s=60)
    assert (False, "route.success_ratio >= 0.95 (is 0.5)", 200) == (good.good, good.which, good.samples)
    harm = judge([Reading(condition("<", 0.6), mixed)], baseline={}, known={}, max_age_s=60, harms=True)
    assert "route.success_ratio < 0.6 (is 0.5)" == harm.harm


@pytest.mark.parametrize(
    "measurements",
    [
        (),
        (measured(float("nan")),),
        (measured(0.99, samples=0),),
        (measured(0.99, age_s=61.0),),
        (measured(0.99, samples=9),),
    ],
)
@pytest.mark.parametrize(("on_missing", "good"), [(None, None), (Missing.TRUE, True), (Missing.FALSE, False)])
def test_no_few_or_stale_data_is_no_answer(
    measurements: tuple[Measurement, ...], on_missing: Missing | None, *, good: bool | None
) -> None:
    """What cannot be measured is not success, unless the condition says what it should count as."""
    asked = condition(">=", 0.95, on_missing=on_missing, min_samples=10)
    assert good is judge([Reading(asked, measurements)], baseline={}, known={}, max_age_s=60).good


def test_missing_data_is_no_harm() -> None:
    """Harm must be seen."""
    asked = [Reading(condition("<", 0.5), ())]
    assert "" == judge(asked, baseline={}, known={}, max_age_s=60, on_missing=Missing.FALSE, harms=True).harm


@pytest.mark.parametrize(("value", "good"), [(0.74, False), (0.76, True)])
def test_a_threshold_may_stand_on_the_baseline(value: float, *, good: bool) -> None:
    """`baseline * 1.5` with a baseline of 0.5 is 0.75; without a baseline nothing can be said."""
    asked = [Reading(condition(">", Threshold(of_baseline=True, factor=1.5)), (measured(value),))]
    assert good is judge(asked, baseline={f"route.success_ratio@{Of.ROUTES}": 0.5}, known={}, max_age_s=60).good
    assert judge(asked, baseline={}, known={}, max_age_s=60).good is None


@pytest.mark.parametrize(
    ("baseline", "threshold", "value", "harm"),
    [
        (1.0, Threshold(of_baseline=True, factor=10.0), 10.5, True),
        (1.0, Threshold(of_baseline=True, factor=10.0), 9.5, False),
        (0.0, Threshold(of_baseline=True, factor=10.0), 10.5, False),
        (None, Threshold(of_baseline=True, factor=10.0), 10.5, False),
        (0.0, Threshold(of_baseline=True), 0.1, False),
        (0.0, Threshold(of_baseline=True, offset=0.5), 0.6, True),
        (0.0, Threshold(of_baseline=True, offset=0.5), 0.4, False),
        (None, Threshold(of_baseline=True, offset=0.5), 0.6, False),
    ],
)
@pytest.mark.parametrize("on_missing", [None, Missing.FALSE])
def test_a_multiple_of_nothing_is_no_threshold(
    baseline: float | None, threshold: Threshold, value: float, on_missing: Missing | None, *, harm: bool
) -> None:
    """A baseline of 0 or none cannot be multiplied, so `cost > baseline * 10` harms nothing after an outage that cost nothing."""
    known = {} if baseline is None else {f"route.success_ratio@{Of.ROUTES}": baseline}
    asked = [Reading(condition(">", threshold, on_missing=on_missing), (measured(value),))]
    verdict = judge(asked, baseline=known, known={}, max_age_s=60, on_missing=Missing.FALSE, harms=True)
    assert harm is bool(verdict.harm)


@pytest.mark.parametrize(("on_missing", "good"), [(None, None), (Missing.TRUE, True), (Missing.FALSE, False)])
def test_a_success_that_compares_with_nothing_follows_on_missing(
    on_missing: Missing | None, *, good: bool | None
) -> None:
    """With a baseline of 0 the condition's own word for missing data counts."""
    asked = [Reading(condition(">=", Threshold(of_baseline=True, factor=0.9), on_missing=on_missing), (measured(1.0),))]
    key = f"route.success_ratio@{Of.ROUTES}"
    assert good is judge(asked, baseline={key: 0.0}, known={}, max_age_s=60).good


def test_the_metric_with_fewest_samples_counts() -> None:
    """Samples are summed over targets, and the least of all conditions is what there is."""
    readings = [
        Reading(condition(">=", 0.5), (measured(1.0, 10), measured(1.0, 20))),
        Reading(condition(">=", 0.5), (measured(1.0, 25),)),
    ]
    assert 25 == judge(readings, baseline={}, known={}, max_age_s=60).samples

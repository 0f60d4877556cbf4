"""Links between signals and incidents, part by part."""

from __future__ import annotations

import pytest

from controlplane.clock import US_PER_S
from controlplane.incidents.correlate import best, link
from controlplane.incidents.incident import Incident, IncidentPolicy, Opened, SignalAttached, evolve
from controlplane.incidents.signal import Raised
from tests.controlplane.incidents.fakes import START_US, TOPOLOGY, alias_raised, raised

POLICY = IncidentPolicy()


def _incident(*signals: Raised) -> Incident:
    first, *others = signals
    incident = evolve(Incident(), Opened(incident_id="inc_1", at_us=START_US, fingerprint="f", title="t", signal=first))
    for signal in others:
        incident = evolve(incident, SignalAttached(at_us=START_US, signal=signal, link=1.0))
    return incident


@pytest.mark.parametrize(
    ("signal", "incident", "joins"),
    [
        (raised("breaker_open", "a/m1"), _incident(raised()), True),  # the same deployment, another witness
        (raised(deployment="a/m2"), _incident(raised()), True),  # the same provider
        (raised("first_token_p95", "a/m2"), _incident(raised()), True),  # the same provider, another complaint
        (alias_raised("fast"), _incident(raised()), True),  # its symptom
        (raised(), _incident(alias_raised("fast")), True),  # the symptom came first
        (alias_raised("odd"), _incident(raised()), False),
        (raised(deployment="z/m9"), _incident(raised()), False),
        (raised(deployment="b/m3"), _incident(raised()), False),  # only an alias in common
        (raised(deployment="b/m3"), _incident(raised(), alias_raised("fast")), False),  # which conducts nothing
        (raised(deployment="b/m3"), _incident(alias_raised("fast")), True),  # unless it is all there is
    ],
)
def test_who_joins_whom_at_the_same_time(signal: Raised, incident: Incident, joins: bool) -> None:
    """Faults flow from upstreams to deployments to aliases; signals on one such way are one problem."""
    score = link(signal, incident, TOPOLOGY, now_us=START_US, policy=POLICY).score
    assert joins == (score >= POLICY.link_min)
    assert 0.0 <= score <= 1.0


def test_the_parts_of_a_link() -> None:
    """The weighted sum of nearness in time, shared causes, hops and words."""
    one = link(raised("breaker_open", "a/m1"), _incident(raised()), TOPOLOGY, now_us=START_US, policy=POLICY)
    assert (1.0, 1.0, 1.0, 0.0) == (one.time, one.labels, one.topology, one.text)
    assert 0.9 == pytest.approx(one.score)
    sibling = link(raised(deployment="a/m2"), _incident(raised()), TOPOLOGY, now_us=START_US, policy=POLICY)
    assert (1.0, pytest.approx(1 / 3), 0.5, 1.0) == (sibling.time, sibling.labels, sibling.topology, sibling.text)


def test_signals_too_far_apart_are_not_linked() -> None:
    """Two minutes before the incident began is another story."""
    incident = _incident(raised())
    near = link(raised("breaker_open", started_s=-100), incident, TOPOLOGY, now_us=START_US, policy=POLICY)
    far = link(raised("breaker_open", started_s=-121), incident, TOPOLOGY, now_us=START_US, policy=POLICY)
    assert near.score > POLICY.link_min
    assert 0.0 == far.score


def test_an_incident_that_goes_on_is_near_to_now() -> None:
    """Whatever begins while a signal is raised is near in time, even hours after the onset."""
    later = link(
        raised("breaker_open", at_s=7200),
        _incident(raised()),
        TOPOLOGY,
        now_us=START_US + 7200 * US_PER_S,
        policy=POLICY,
    )
    assert 1.0 == later.time


def test_the_strongest_link_wins() -> None:
    """A signal joins the incident of its own deployment rather than its sibling's."""
    own, sibling = _incident(raised()), _incident(raised(deployment="a/m2"))
    found = best(raised("breaker_open"), [sibling, own], TOPOLOGY, now_us=START_US, policy=POLICY)
    assert found is not None
    assert own is found[0]
    assert best(raised(deployment="z/m9"), [sibling, own], TOPOLOGY, now_us=START_US, policy=POLICY) is None

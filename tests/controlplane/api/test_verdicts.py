"""What the numbers mean, in words."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from controlplane.api import verdicts
from controlplane.api.views import DeploymentView, KillSwitch, Ledger, Overview, TimelineEntry, TrafficPoint
from controlplane.clock import US_PER_S
from controlplane.healing.events import RunEvent
from controlplane.incidents.incident import IncidentEvent
from tests.controlplane.api.fakes import START_US, busy_overview, healed_outage

CALM = msgspec.structs.replace(busy_overview(), deployments=())
OPEN = DeploymentView("a/m", "a", "m", breaker="open", attempts=5, failures=5)


@pytest.mark.parametrize(
    ("overview", "expected"),
    [
        (CALM, ("good", "All is well.")),
        (msgspec.structs.replace(CALM, incidents=(healed_outage(),)), ("good", "All is well.")),
        (
            msgspec.structs.replace(CALM, incidents=(healed_outage(title="t", resolved=False), healed_outage())),
            ("bad", "Incident open: t."),
        ),
        (
            msgspec.structs.replace(CALM, incidents=(healed_outage(title="t", resolved=False),) * 3),
            ("bad", "Incident open: t and 2 more."),
        ),
        (
            msgspec.structs.replace(CALM, kill_switch=KillSwitch(engaged=True)),
            ("warn", "Healing is switched off."),
        ),
        (msgspec.structs.replace(CALM, deployments=(OPEN,)), ("warn", "Calls avoid a/m.")),
        (msgspec.structs.replace(CALM, deployments=(OPEN, OPEN)), ("warn", "Calls avoid a/m and 1 more.")),
        (msgspec.structs.replace(CALM, proxies=()), ("warn", "No proxy has reported yet.")),
    ],
)
def test_the_page_begins_with_one_sentence(overview: Overview, expected: tuple[str, str]) -> None:
    """The worst that is known comes first."""
    assert expected == verdicts.summary(overview)


@pytest.mark.parametrize(
    ("view", "word", "tone"),
    [
        (OPEN, "Breaker open", "bad"),
        (DeploymentView("a", "a", "m", breaker="half_open"), "Probing", "warn"),
        (DeploymentView("a", "a", "m", lease="drained", attempts=3), "Overridden", "warn"),
        (DeploymentView("a", "a", "m", attempts=3), "Healthy", "good"),
        (DeploymentView("a", "a", "m", attempts=4, failures=4), "Failing", "bad"),
        (DeploymentView("a", "a", "m", attempts=100, failures=10), "Degraded", "warn"),
        (DeploymentView("a", "a", "m"), "Idle", "idle"),
    ],
)
def test_a_deployment_has_a_word_and_a_tone(view: DeploymentView, word: str, tone: str) -> None:
    """State is said in words; colour only repeats it."""
    assert (word, tone) == (verdicts.state(view), verdicts.tone(view))


@pytest.mark.parametrize(
    ("ledger", "tone", "words"),
    [
        (Ledger(5, 100, 5, 100), "good", "Every settled call is stored"),
        (Ledger(0, 0, 0, 0), "good", "Every settled call is stored"),
        (Ledger(6, 100, 5, 100), "warn", "1 settled call is on the way"),
        (Ledger(1500, 200, 5, 100), "warn", "1,495 settled calls are on the way"),
        (Ledger(4, 100, 5, 100), "good", "1 call ahead of what the proxies reported last"),
        (Ledger(5, 100, 5, 101), "bad", "costs differ by $0.000000001"),
    ],
)
def test_the_ledger_is_checked_to_the_nano_dollar(ledger: Ledger, tone: str, words: str) -> None:
    """Equal counts with unequal money is the one thing that is really wrong."""
    found = verdicts.ledger_check(ledger)
    assert tone == found[0]
    assert words in found[1]


def test_open_incidents_come_first_then_the_newest() -> None:
    """A resolved incident never stands before an open one."""
    old_open, new_resolved = healed_outage(resolved=False), healed_outage()
    late = msgspec.structs.replace(new_resolved.summary, opened_us=START_US)
    newer = msgspec.structs.replace(new_resolved, summary=late)
    assert [old_open, newer, new_resolved] == verdicts.newest_first((new_resolved, newer, old_open))


def test_every_event_has_a_tone() -> None:
    """No event of a run or an incident is drawn by chance."""
    tags = {
        shape.__struct_config__.tag
        for union in (IncidentEvent, RunEvent)
        for shape in get_args(getattr(union, "__value__", union))
    }
    assert len(tags) > 40
    assert set() == tags - set(verdicts._EVENT_TONES)
    assert set() == set(verdicts._EVENT_TONES) - tags


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("incident.fired", "Fired"),
        ("run.lease_granted", "Run lease granted"),
        ("rollback.step_done", "Rollback step done"),
    ],
)
def test_events_are_named_in_words(kind: str, expected: str) -> None:
    """Types become words."""
    assert expected == verdicts.event_words(kind)


def test_repetition_is_told_once() -> None:
    """Probes in a row are one line with their number; everything else stays."""
    kinds = ("run.started", "probe.counted", "probe.counted", "probe.counted", "run.closed", "probe.counted")
    entries = tuple(TimelineEntry(at, kind, "") for at, kind in enumerate(kinds))
    story = [(entry.at_us, times) for entry, times in verdicts.condensed(entries)]
    assert [(0, 1), (3, 3), (4, 1), (5, 1)] == story
    twice = (TimelineEntry(1, "step.failed", "a"), TimelineEntry(2, "step.failed", "b"))
    assert 2 == len(verdicts.condensed(twice))


def test_a_chart_has_no_gaps() -> None:
    """Minutes without calls are drawn as such, and the last half hour is always there."""
    now_us = START_US + 30 * US_PER_S
    minutes = verdicts.every_minute([TrafficPoint(START_US - 2 * verdicts.MINUTE_US, 7, 1)], now_us)
    assert 30 == len(minutes)
    assert [7, 0, 0] == [minute.calls for minute in minutes[-3:]]
    assert START_US == minutes[-1].at_us
    assert 30 == len(verdicts.every_minute([], now_us))


def test_a_chart_is_bounded() -> None:
    """A point from long ago does not make an endless chart."""
    assert 24 * 60 == len(verdicts.every_minute([TrafficPoint(0, 1, 0)], START_US))
    hour_ago = TrafficPoint(START_US - 59 * verdicts.MINUTE_US, 1, 0)
    assert 60 == len(verdicts.every_minute([hour_ago], START_US))


def test_the_first_page_tells_the_turns_of_a_story() -> None:
    """What was only noted is left out, and of a long story its beginning and its end are told."""
    turns = tuple(TimelineEntry(at, "step.failed", "") for at in range(40))
    noted = TimelineEntry(99, "validation.sample", "")
    assert [*range(5), *range(31, 40)] == [entry.at_us for entry, _ in verdicts.highlights((*turns, noted))]
    assert [0, 1] == [entry.at_us for entry, _ in verdicts.highlights((turns[0], noted, turns[1]))]

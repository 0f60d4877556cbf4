"""What the numbers mean, in a tone and in words: "good", "warn", "bad", "act" or "idle". Pure; colour never says more than the words."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from controlplane.api import words
from controlplane.api.views import DeploymentView, IncidentDetail, Ledger, Overview, TimelineEntry, TrafficPoint
from controlplane.clock import US_PER_S

OVER = frozenset({"resolved", "dismissed"})
"""States of an incident that is over."""

HIGHLIGHTS_FIRST = 5
HIGHLIGHTS_LAST = 9
STORY_MAX = 1_000
MINUTE_US = 60 * US_PER_S
CHART_MINUTES_MIN = 30
CHART_MINUTES_MAX = 24 * 60

FAILING_BELOW = 0.5
DEGRADED_BELOW = 0.95

_STATES = MappingProxyType(
    {
        "Breaker open": "bad",
        "Failing": "bad",
        "Probing": "warn",
        "Overridden": "warn",
        "Degraded": "warn",
        "Healthy": "good",
        "Idle": "idle",
    }
)

_EVENT_TONES = MappingProxyType(
    {
        kind: tone
        for tone, kinds in {
            "bad": """incident.opened incident.fired incident.reopened incident.signal_raised step.failed validation.failed
                run.escalated rollback.failed probation.regressed approval.rejected approval.expired""",
            "warn": """rollback.started run.blocked run.deferred run.suppressed step.outcome_unknown run.cancel_requested
                run.cancelled approval.requested run.lease_expired validation.inconclusive""",
            "good": """incident.resolved incident.signal_cleared validation.passed run.succeeded run.closed approval.granted
                rollback.completed""",
            "act": """run.matched run.planned run.started step.dispatched run.lease_granted step.confirmed step.succeeded
                step.reconciled run.lease_renewed run.lease_revoked release.started probation.started rollback.step_done""",
            "idle": """incident.signal_attached incident.causes_ranked incident.dismissed run.shadowed run.queued probe.counted
                validation.started validation.sample""",
        }.items()
        for kind in kinds.split()
    }
)
_REPEATING = frozenset(
    {"probe.counted", "validation.sample", "run.lease_renewed", "run.deferred", "incident.causes_ranked"}
)


def summary(overview: Overview) -> tuple[str, str]:
    """The state of everything as a tone ("good", "warn", "bad") and one sentence."""
    open_incidents = [detail.summary for detail in overview.incidents if detail.summary.state not in OVER]
    if open_incidents:
        first = words.name(open_incidents[0].title)
        more = f" and {len(open_incidents) - 1} more" if len(open_incidents) > 1 else ""
        return "bad", f"Incident open: {first}{more}."
    if overview.kill_switch.engaged:
        return "warn", "Healing is switched off."
    sick = [view.id for view in overview.deployments if view.breaker == "open"]
    if sick:
        return "warn", f"Calls avoid {words.name(sick[0])}" + (f" and {len(sick) - 1} more." if len(sick) > 1 else ".")
    if not overview.proxies:
        return "warn", "No proxy has reported yet."
    return "good", "All is well."


def tone(view: DeploymentView) -> str:
    """How a deployment's state looks."""
    return _STATES[state(view)]


def state(view: DeploymentView) -> str:
    """A deployment's state in a word or two; what holds calls back comes before how they do."""
    if view.breaker == "open":
        return "Breaker open"
    if view.breaker == "half_open":
        return "Probing"
    if view.lease:
        return "Overridden"
    if view.success_ratio is None:
        return "Idle"
    if view.success_ratio < FAILING_BELOW:
        return "Failing"
    return "Degraded" if view.success_ratio < DEGRADED_BELOW else "Healthy"


def ledger_check(ledger: Ledger) -> tuple[str, str]:
    """Whether the store holds all that the proxies settled: a tone and a sentence."""
    calls = ledger.proxy_calls - ledger.stored_calls
    nanousd = ledger.proxy_nanousd - ledger.stored_nanousd
    if calls == 0 and nanousd == 0:
        return "good", "Every settled call is stored, to the nano-dollar."
    if calls > 0:
        return "warn", f"{calls:,} settled {'call is' if calls == 1 else 'calls are'} on the way to the store."
    if calls < 0:
        return (
            "good",
            f"The store is {-calls:,} {'call' if calls == -1 else 'calls'} ahead of what the proxies reported last.",
        )
    return "bad", f"Counts agree, but costs differ by {words.usd(abs(nanousd))}."


def event_tone(kind: str) -> str:
    """How an event of a timeline looks."""
    return _EVENT_TONES.get(kind, "idle")


def event_words(kind: str) -> str:
    """An event's type as people read it: `run.lease_granted` is "Run lease granted"."""
    return words.name(kind.removeprefix("incident.").replace(".", " ").replace("_", " ").capitalize())


def condensed(timeline: tuple[TimelineEntry, ...]) -> list[tuple[TimelineEntry, int]]:
    """The story without repetition, at most its last STORY_MAX events: of several of one kind in a row the last, with their number."""
    story: list[tuple[TimelineEntry, int]] = []
    for entry in timeline[-STORY_MAX:]:
        if story and story[-1][0].kind == entry.kind and entry.kind in _REPEATING:
            story[-1] = (entry, story[-1][1] + 1)
        else:
            story.append((entry, 1))
    return story


def highlights(timeline: tuple[TimelineEntry, ...]) -> list[tuple[TimelineEntry, int]]:
    """The turns of the story alone: how it began and what happened last, without what was only noted on the way."""
    story = [(entry, times) for entry, times in condensed(timeline) if event_tone(entry.kind) != "idle"]
    if len(story) <= HIGHLIGHTS_FIRST + HIGHLIGHTS_LAST:
        return story
    return story[:HIGHLIGHTS_FIRST] + story[-HIGHLIGHTS_LAST:]


def every_minute(points: Sequence[TrafficPoint], at_us: int) -> list[TrafficPoint]:
    """The minutes of a chart without gaps, up to `at_us`: the last half hour, or as far back as there are points, bounded."""
    known = {point.at_us // MINUTE_US: point for point in points}
    last = at_us // MINUTE_US
    first = max(last - CHART_MINUTES_MAX + 1, min([last - CHART_MINUTES_MIN + 1, *known]))
    return [known.get(minute, TrafficPoint(minute * MINUTE_US, 0, 0)) for minute in range(first, last + 1)]


def newest_first(incidents: tuple[IncidentDetail, ...]) -> list[IncidentDetail]:
    """Open ones before resolved ones, newest first."""
    return sorted(incidents, key=lambda one: (one.summary.state in OVER, -one.summary.opened_us))

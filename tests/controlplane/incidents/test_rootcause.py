"""Which cause comes first."""

from __future__ import annotations

import pytest

from controlplane.clock import US_PER_S
from controlplane.incidents.rootcause import CAUSES_MAX, Change, rank
from controlplane.incidents.signal import Raised
from tests.controlplane.incidents.fakes import START_US, TOPOLOGY, alias_raised, raised


def _change(before_s: float, *names: str, position: int = 1) -> Change:
    return Change(
        position=position,
        at_us=START_US - round(before_s * US_PER_S),
        type="catalog.published",
        actor="ana",
        names=frozenset(names),
    )


@pytest.mark.parametrize(
    ("signals", "kind", "entity"),
    [
        ([raised(deployment="a/m1"), raised(deployment="a/m2")], "provider", "a"),
        (
            [raised(deployment="a/m1"), raised(deployment="a/m2"), alias_raised("fast"), alias_raised("cheap")],
            "provider",
            "a",
        ),
        ([raised(deployment="z/m9")], "provider", "z"),  # all it has
        ([raised(deployment="a/m1")], "deployment", "a/m1"),  # its sibling is well
        ([raised(deployment="a/m1"), raised("breaker_open", "a/m1"), alias_raised("fast")], "deployment", "a/m1"),
        ([alias_raised("fast")], "alias", "fast"),  # nothing below it complains
        ([raised(deployment="gone/m")], "provider", "gone"),  # not in the topology any more
    ],
)
def test_the_likeliest_cause_without_changes(signals: list[Raised], kind: str, entity: str) -> None:
    """What explains all signals and has few dependants that are well; the deeper of two that explain the same."""
    first = rank(signals, [], TOPOLOGY, change_window_s=1800)[0]
    assert (kind, entity) == (first.kind, first.entity)


def test_a_recent_change_that_touches_the_incident_comes_first() -> None:
    """People change things, and things break: the newest touching change leads, with its reasons."""
    changes = [_change(600, "a/m1", position=3), _change(60, "fast", position=7), _change(30, "zzz", position=9)]
    causes = rank([raised(deployment="a/m1")], changes, TOPOLOGY, change_window_s=1800)
    assert [7, 3] == [cause.position for cause in causes[:2]]
    assert ("60 s before the first signal", "touches fast", "by ana") == causes[0].reasons
    assert ("change", 9) == (causes[-1].kind, causes[-1].position)


@pytest.mark.parametrize("before_s", [-1.0, 1801.0])
def test_changes_after_the_onset_or_long_before_are_no_causes(before_s: float) -> None:
    """Healing's own changes come after the onset and are never blamed for it."""
    causes = rank([raised()], [_change(before_s, "a/m1")], TOPOLOGY, change_window_s=1800)
    assert all(cause.kind != "change" for cause in causes)


def test_what_was_affected_first_is_likelier() -> None:
    """Of two deployments that explain the same, the earlier one is the cause."""
    causes = rank(
        [raised(deployment="a/m1", started_s=0), raised(deployment="z/m9", started_s=120)],
        [],
        TOPOLOGY,
        change_window_s=0,
    )
    deployments = [cause.entity for cause in causes if cause.kind == "deployment"]
    assert ["a/m1", "z/m9"] == deployments


def test_the_list_is_short_and_scores_fall() -> None:
    """At most five, and nothing at all without signals."""
    changes = [_change(60 + place, "a/m1", position=place) for place in range(10)]
    causes = rank([raised()], changes, TOPOLOGY, change_window_s=1800)
    assert CAUSES_MAX == len(causes)
    assert [0, 1, 2, 3, 4] == [cause.position for cause in causes]
    assert () == rank([], changes, TOPOLOGY, change_window_s=1800)

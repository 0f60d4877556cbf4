"""Routing of notifications to sinks."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.alerts.alert import AlertRouter, AlertSink, Kind, Notification, Severity, message_id


def note(**changes: object) -> Notification:
    """A notification."""
    plain = Notification(
        id="run_1/7",
        type="run.escalated",
        kind=Kind.ESCALATED,
        severity=Severity.CRITICAL,
        title="could not heal",
        summary="it did not help",
        occurred_us=1_800_000_000_123_456,
        dedup_key="run_1",
        incident_id="incident_1",
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    ("events", "event_type", "wanted"),
    [
        (None, "run.escalated", True),
        ((), "run.escalated", False),
        (("run.escalated",), "run.escalated", True),
        (("run.*",), "run.escalated", True),
        (("*",), "run.escalated", True),
        (("incident.*", "run.closed"), "run.escalated", False),
        (("run.esc",), "run.escalated", False),
    ],
)
def test_a_sink_hears_of_the_types_it_wants(events: tuple[str, ...] | None, event_type: str, *, wanted: bool) -> None:
    """Exact names and prefixes with a star choose; no list means all, an empty one nothing."""
    assert wanted == AlertSink(name="a", url="https://x", events=events).wants(event_type)


def test_one_entry_per_sink_that_wants_it_under_one_id() -> None:
    """All sinks get the same message id; asking again gives the same entries."""
    router = AlertRouter(
        [
            AlertSink(name="a", url="https://x"),
            AlertSink(name="b", url="https://y", events=("run.*",)),
            AlertSink(name="c", url="https://z", events=("incident.*",)),
        ]
    )
    entries = router.entries(note())
    assert ["alert:a", "alert:b"] == [entry.sink for entry in entries]
    assert {message_id(note())} == {entry.id for entry in entries}
    assert note() == msgspec.json.decode(entries[0].payload, type=Notification)
    assert entries == router.entries(note())


def test_other_notifications_have_other_ids() -> None:
    """The id of a message follows the notification's own."""
    assert message_id(note()) != message_id(note(id="run_1/8"))
    assert message_id(note(title="other")) == message_id(note())

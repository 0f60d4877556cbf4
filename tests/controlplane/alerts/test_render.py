"""The CloudEvents body."""

from __future__ import annotations

import msgspec

from controlplane.alerts.alert import Field
from controlplane.alerts.render import cloud_event
from tests.controlplane.alerts.test_alert import note


def test_the_body_is_a_cloud_event() -> None:
    """All required attributes of CloudEvents 1.0 are there, the notification is its data."""
    body = msgspec.json.decode(cloud_event(note(), "msg_1"))
    data = body.pop("data")
    assert {
        "specversion": "1.0",
        "id": "msg_1",
        "source": "hephaestus",
        "type": "hephaestus.run.escalated",
        "subject": "incident_1",
        "time": "2027-01-15T08:00:00.123456Z",
        "datacontenttype": "application/json",
    } == body
    assert ("could not heal", "critical", "run_1") == (data["title"], data["severity"], data["dedup_key"])


def test_long_texts_are_cut_with_an_ellipsis() -> None:
    """Whatever the length of its parts, a body stays small and says where it was cut."""
    fields = tuple(Field(f"f{n}", "v" * 10_000) for n in range(100))
    body = cloud_event(note(title="t" * 10_000, summary="s" * 100_000, fields=fields), "msg_1")
    assert 20_000 > len(body)
    data = msgspec.json.decode(body)["data"]
    assert (200, "…", 20) == (len(data["title"]), data["summary"][-1], len(data["fields"]))


def test_the_same_notification_gives_the_same_bytes() -> None:
    """A repeated delivery carries the same body, so that its signature covers the same text."""
    assert cloud_event(note(), "msg_1") == cloud_event(note(), "msg_1")

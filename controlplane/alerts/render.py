"""A notification as a body: CloudEvents 1.0, structured JSON, bounded in size. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from controlplane.alerts.alert import Notification

SOURCE = "hephaestus"
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
TITLE_CHARS_MAX = 200
SUMMARY_CHARS_MAX = 3000
FIELDS_MAX = 20
VALUE_CHARS_MAX = 500


class CloudEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope; attribute names are CloudEvents'."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    data: Notification


def cloud_event(notification: Notification, message_id: str) -> bytes:
    """The body to send; the same notification gives the same bytes, so that a repeat is a repeat."""
    moment = datetime.fromtimestamp(notification.occurred_us / 1e6, tz=UTC)
    event = CloudEvent(
        specversion="1.0",
        id=message_id,
        source=SOURCE,
        type=f"{SOURCE}.{notification.type}",
        subject=notification.incident_id or notification.run_id or notification.dedup_key,
        time=moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        datacontenttype="application/json",
        data=shortened(notification),
    )
    return msgspec.json.encode(event)


def shortened(notification: Notification) -> Notification:
    """The notification with every part within its limit; what was cut ends in an ellipsis."""
    return msgspec.structs.replace(
        notification,
        title=_cut(notification.title, TITLE_CHARS_MAX),
        summary=_cut(notification.summary, SUMMARY_CHARS_MAX),
        fields=tuple(
            msgspec.structs.replace(
                field, name=_cut(field.name, TITLE_CHARS_MAX), value=_cut(field.value, VALUE_CHARS_MAX)
            )
            for field in notification.fields[:FIELDS_MAX]
        ),
        links=notification.links[:FIELDS_MAX],
    )


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"

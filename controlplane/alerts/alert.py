"""What people are told, and which sinks hear it.

A component that has something to say makes a `Notification` and asks the `AlertRouter` for outbox entries, which it appends with the event that
is the cause; `controlplane.alerts.dispatch` sends them. So nothing is said that did not happen, and nothing that happened goes unsaid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.journal.events import NewOutbox

ALERTS_PREFIX = "alert:"  # of the outbox sinks that are ours


class Kind(StrEnum):
    """What a notification is about."""

    OPENED = "opened"
    UPDATED = "updated"
    RESOLVED = "resolved"
    APPROVAL = "approval"  # a person must decide
    ESCALATED = "escalated"  # automation gave up, a person must act
    REPORT = "report"


class Severity(StrEnum):
    """How bad it is, from least to worst."""

    INFO = "info"
    WARNING = "warning"
    HIGH = "high"
    CRITICAL = "critical"


class Field(msgspec.Struct, frozen=True):
    """A named fact of a notification."""

    name: str
    value: str


class Link(msgspec.Struct, frozen=True):
    """A place to look, or the command to run, next."""

    title: str
    url: str


class Notification(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to tell people.

    id: of this message; who receives it twice knows it by this. type: the event that caused it, such as `run.escalated`; sinks choose by it.
    dedup_key: of the matter (an incident, a run), the same for all that is said about it; thread_key: what to show together.
    """

    id: str
    type: str
    kind: Kind
    severity: Severity
    title: str
    summary: str
    occurred_us: int
    dedup_key: str
    thread_key: str = ""
    incident_id: str = ""
    run_id: str = ""
    fields: tuple[Field, ...] = ()
    links: tuple[Link, ...] = ()


class AlertSink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where notifications go, as a person configures it.

    secret: a reference (`env:NAME`, `file:/path`) to a Standard Webhooks secret (`whsec_...`); without one nothing is signed.
    events: types it wants, `*` at the end allowed; None means all.
    allow_private: addresses or networks in private ranges that this sink may reach, e.g. `10.0.0.0/8`.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    kind: str = "webhook"
    secret: str | None = None
    events: tuple[str, ...] | None = None
    allow_private: tuple[str, ...] = ()
    per_minute: Annotated[int, Meta(ge=1)] = 60

    def wants(self, event_type: str) -> bool:
        """Whether this sink hears of an event type."""
        if self.events is None:
            return True
        return any(
            event_type.startswith(wanted[:-1]) if wanted.endswith("*") else event_type == wanted
            for wanted in self.events
        )


class AlertRouter:
    """Which sinks hear which notification; holds configuration only."""

    def __init__(self, sinks: Iterable[AlertSink]) -> None:
        self._sinks = tuple(sinks)

    def entries(self, notification: Notification) -> tuple[NewOutbox, ...]:
        """The outbox entries of a notification, one per sink that wants it; append them with the cause."""
        payload = msgspec.json.encode(notification)
        return tuple(
            NewOutbox(id=message_id(notification), sink=ALERTS_PREFIX + sink.name, payload=payload)
            for sink in self._sinks
            if sink.wants(notification.type)
        )


def message_id(notification: Notification) -> str:
    """The `webhook-id` of a notification: the same for the same notification, whoever asks, however often."""
    return "msg_" + hashlib.sha256(notification.id.encode()).hexdigest()[:32]

"""What every sink is."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from controlplane.alerts.alert import Notification


class Result(StrEnum):
    """How one try to deliver went."""

    OK = "ok"
    RETRY = "retry"  # try again by the schedule
    GONE = "gone"  # the receiver wants no more, ever
    REFUSED = "refused"  # it can never work as configured, such as an address that is not allowed


class Delivery(msgspec.Struct, frozen=True):
    """The result of one try. retry_after_s: what the receiver asked for, if it did."""

    result: Result
    detail: str = ""
    retry_after_s: float | None = None


class Sink(Protocol):
    """A place that is told."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    @property
    def kind(self) -> str:
        """Its kind, for metrics."""
        ...

    @property
    def address(self) -> str:
        """Where it delivers to; a sink that was gone is tried again when this changes. Holds no secret that others may not see."""
        ...

    @property
    def per_minute(self) -> int:
        """How many deliveries a minute it takes."""
        ...

    async def deliver(self, message_id: str, notification: Notification) -> Delivery:
        """Try once; never raises for what the network or the receiver does."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...

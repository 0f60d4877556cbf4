"""How far a batch is: decided by the time since it was made alone, so that nothing runs beside the calls."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 86_400  # what is not done by then expires
_CANCEL_SHARE = 0.1  # of its whole time a batch needs to stop


@dataclass(slots=True)
class Course:
    """The course of one batch, in seconds of the monotonic clock."""

    started: float
    duration_s: float
    cancelled: float | None = None  # when that was asked for

    @property
    def end(self) -> float:
        """When it is over, one way or another."""
        done = self.started + min(self.duration_s, WINDOW_S)
        return done if self.cancelled is None else min(done, self.cancelled + _CANCEL_SHARE * self.duration_s)

    @property
    def expires(self) -> bool:
        """Whether its time is over before it is done."""
        return self.cancelled is None and self.duration_s > WINDOW_S

    def ended(self, now: float) -> bool:
        """Whether nothing more will happen."""
        return now >= self.end

    def cancel(self, now: float) -> None:
        """Stops it, if it has not ended; safe to call twice."""
        if self.cancelled is None and not self.ended(now):
            self.cancelled = now

    def share(self, now: float) -> float:
        """How much of the work is done: from 0 to 1."""
        if self.duration_s <= 0:
            return 1.0
        until = min(now, self.end) if self.cancelled is None else min(now, self.cancelled)
        return min(1.0, max(0.0, (until - self.started) / self.duration_s))

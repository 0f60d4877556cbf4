"""A rate: requests per minute as a token bucket that fills evenly and holds one minute's worth."""

from __future__ import annotations

from typing import Protocol


class Stock(Protocol):
    """Where requests come from when the rate is shared with other workers."""

    degraded: bool  # there is nobody to ask: the bucket's own level counts, at this worker's part of the rate
    waiting: int  # calls for which requests are being brought: nobody who comes later may take those

    def look(self, bucket: Bucket, now_s: float) -> None:
        """Makes the level what may be taken at this moment, and asks for more ahead of need; never waits."""
        ...

    def filled(self, level: float) -> None:
        """Hears what the level is, where the bucket refills itself: what it lacks at the next look was used."""
        ...


class Bucket:
    """What may be asked for now. Without a stock it refills itself; with one its level is what the stock has brought."""

    __slots__ = ("elsewhere", "level", "limit", "per_minute", "stock", "updated_s")

    def __init__(self, limit: int, per_minute: int, now_s: float, stock: Stock | None = None) -> None:
        """limit: of all workers. per_minute: this worker's part."""
        self.limit = limit
        self.per_minute = per_minute
        self.level = float(per_minute)
        self.updated_s = now_s
        self.stock = stock
        self.elsewhere = 0.0  # what all workers could have besides, where that is known

    def refresh(self, now_s: float) -> None:
        """Adds what has come since the last look."""
        stock = self.stock
        if stock is not None:
            stock.look(self, now_s)
        if stock is None or stock.degraded:
            filled = self.level + (now_s - self.updated_s) * self.per_minute / 60.0
            self.level = filled if filled < self.per_minute else float(self.per_minute)
            if stock is not None:
                stock.filled(self.level)
        self.updated_s = now_s

    @property
    def shared(self) -> bool:
        """Whether the level is a slice of something larger."""
        return self.stock is not None and not self.stock.degraded

    @property
    def free(self) -> float:
        """The level less what is being brought for calls that wait."""
        return self.level if self.stock is None or self.stock.degraded else self.level - self.stock.waiting

    @property
    def full(self) -> int:
        """The level when nobody asks for anything."""
        return self.per_minute if self.stock is None or self.stock.degraded else self.limit

    def wait_s(self) -> float:
        """Seconds until there is one request, if nobody else takes it."""
        rate = self.full / 60.0
        return max(0.0, 1.0 - self.level - self.elsewhere) / rate if rate else 60.0

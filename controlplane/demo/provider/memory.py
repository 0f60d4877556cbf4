"""Answers that were encoded before, for requests that come again: the encoded bytes are what makes the provider fast."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

Place = tuple[bytes, bytes]  # the path and the body of a request


class Sized(Protocol):
    """What knows about how much memory it takes."""

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        ...


Kept = TypeVar("Kept", bound=Sized)


class Memory(Generic[Kept]):
    """Keeps answers within a number of bytes; the ones unused for the longest time are forgotten first."""

    def __init__(self, bytes_max: int) -> None:
        self.kept_bytes = 0
        self.evicted = 0
        self._bytes_max = bytes_max
        self._answers: OrderedDict[Place, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, place: Place) -> Kept | None:
        """The answer that is kept for a request."""
        known = self._answers.get(place)
        if known is not None:
            self._answers.move_to_end(place)
        return known

    def keep(self, place: Place, made: Kept) -> None:
        """Remembers an answer that is small enough."""
        size = made.size_bytes + len(place[1])
        if size > self._bytes_max // 4 or place in self._answers:
            return
        self._answers[place] = made
        self.kept_bytes += size
        while self.kept_bytes > self._bytes_max:
            (_, body), forgotten = self._answers.popitem(last=False)
            self.kept_bytes -= forgotten.size_bytes + len(body)
            self.evicted += 1

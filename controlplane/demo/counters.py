"""What the fleet counts: every call, how it ended, what the proxy said about it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Self

import anthropic
import httpx
import httpx2
import msgspec
import openai

NANOUSD_PER_USD = 1_000_000_000
COST = "x-heph-cost-usd"
_HITS = ("hit", "stale", "semantic")
_ERROR_CODES_MAX = 100  # different codes that are told apart; the rest are counted as "other"


class AgentCounters(msgspec.Struct):
    """Counts of one agent."""

    calls: int = 0
    ok: int = 0
    failed: int = 0
    cache_hits: int = 0
    cost_nanousd: int = 0


class FleetCounters(msgspec.Struct):
    """Live counts of a fleet. calls = ok + failed + abandoned + in_flight."""

    calls: int = 0
    ok: int = 0
    abandoned: int = 0  # streams that an agent left on purpose
    in_flight: int = 0
    failed_by_code: dict[str, int] = msgspec.field(default_factory=dict)  # the error's code, else its status or kind
    cache: dict[str, int] = msgspec.field(default_factory=dict)  # answers by their x-heph-cache header
    cost_nanousd: int = 0  # as the answers' x-heph-cost-usd says
    agents: dict[str, AgentCounters] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Calls that ended with an error."""
        return sum(self.failed_by_code.values())

    @property
    def cache_hits(self) -> int:
        """Answers that came out of the cache."""
        return sum(self.cache.get(state, 0) for state in _HITS)

    @property
    def coalesced(self) -> int:
        """Answers that came from a call of somebody else in flight."""
        return self.cache.get("coalesced", 0)


class Count:
    """The counting of one call: waits for a slot, and swallows the call's error once it is counted."""

    def __init__(self, fleet: FleetCounters, own: AgentCounters, slots: asyncio.Semaphore) -> None:
        self._fleet = fleet
        self._own = own
        self._slots = slots
        self._open = False

    async def __aenter__(self) -> Self:
        await self._slots.acquire()
        self._open = True
        self._fleet.calls += 1
        self._fleet.in_flight += 1
        self._own.calls += 1
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._slots.release()
        known = isinstance(error, _KNOWN)
        if known and isinstance(error, Exception):
            self._failed(code_of(error))
        elif self._open:  # cancelled before its answer
            self.abandoned()
        return known

    def answered(self, headers: Mapping[str, str]) -> None:
        """A whole answer with its headers."""
        self._end()
        self._fleet.ok += 1
        self._own.ok += 1
        cache = headers.get("x-heph-cache")
        if cache:
            self._fleet.cache[cache] = self._fleet.cache.get(cache, 0) + 1
            self._own.cache_hits += cache in _HITS
        self.cost(headers.get(COST, ""))

    def abandoned(self) -> None:
        """The agent left."""
        self._end()
        self._fleet.abandoned += 1

    def cost(self, usd: str) -> None:
        """Money as a header or the last comment of a stream tells it."""
        try:
            nanousd = int(Decimal(usd) * NANOUSD_PER_USD)
        except (InvalidOperation, ValueError, OverflowError):
            return
        self._fleet.cost_nanousd += nanousd
        self._own.cost_nanousd += nanousd

    def _failed(self, code: str) -> None:
        """An error; after an answer was counted it is not counted again."""
        if not self._open:
            return
        self._end()
        self._own.failed += 1
        known = self._fleet.failed_by_code
        if code not in known and len(known) >= _ERROR_CODES_MAX:
            code = "other"
        known[code] = known.get(code, 0) + 1

    def _end(self) -> None:
        self._open = False
        self._fleet.in_flight -= 1


class Incomplete(Exception):
    """A stream that ended too early, or with an error event; carries the code."""


def code_of(error: Exception) -> str:
    """A short, stable name for an error."""
    match error:
        case (
            openai.APITimeoutError()
            | anthropic.APITimeoutError()
            | httpx.TimeoutException()
            | httpx2.TimeoutException()
        ):
            return "timeout"
        case openai.APIStatusError():
            return str(error.code or error.status_code)
        case anthropic.APIStatusError():
            return str(error.type or error.status_code)
        case (
            openai.APIConnectionError()
            | anthropic.APIConnectionError()
            | httpx.TransportError()
            | httpx2.TransportError()
        ):
            return "connection"
        case Incomplete():
            return str(error)
        case _:
            return "malformed_answer"


_KNOWN = (openai.OpenAIError, anthropic.AnthropicError, httpx.HTTPError, httpx2.HTTPError, ValueError, Incomplete)

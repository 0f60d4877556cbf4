"""What is counted for one tenant, key, agent...: settled amounts by window, what calls in flight hold, and the ceilings over both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from controlplane.contract.snapshot import QuotaAction, QuotaScope, Window
from proxy.quotas.windows import CLOCK_STEP_US, KEPT, window_bounds

REQUESTS, TOKENS, NANOUSD, SLOTS = range(4)
"""What a ceiling is about: upstream requests, tokens, money, or calls at once."""
FIELDS = ("requests", "tokens", "nanousd", "requests")  # of `Settled` and `Held`, by unit


class Settled(msgspec.Struct):
    """What was settled in one window, start included and end excluded."""

    start_us: int
    end_us: int
    nanousd: int = 0
    tokens: int = 0
    requests: int = 0


class Share(msgspec.Struct, frozen=True):
    """The part of each limit that is one worker's. The parts of all workers sum to the limit, so some are zero where it is smaller.

    hosts: machines among which a limit is divided first, rounded down, since none of them knows its number.
    """

    worker: int = 0  # 0 <= worker < workers
    workers: int = 1
    hosts: int = 1

    def of(self, amount: int) -> int:
        """This worker's part of an amount >= 0; never falls when the amount grows."""
        part, rest = divmod(amount // self.hosts, self.workers)
        return part + (self.worker < rest)


ALL = Share()


class Held:
    """What calls in flight may still use at worst."""

    __slots__ = ("nanousd", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.nanousd = 0

    def anything(self) -> bool:
        """Whether a call in flight holds something, or one that has ended and goes on at its upstream."""
        return bool(self.requests or self.tokens or self.nanousd)


class Meter:
    """The settled amounts of one kind of window: the one that is current, and of some kinds the one before it.

    A clock that is put back finds the hour, day or month that it left, with what was spent in it.
    """

    __slots__ = ("ended", "now", "timezone", "window")

    def __init__(self, window: Window, timezone: str, now: Settled, ended: Settled | None = None) -> None:
        self.window = window
        self.timezone = timezone
        self.now = now
        self.ended = ended

    def at(self, now_us: int) -> Settled:
        """The window that is current at `now_us`, opened anew if time has moved on."""
        settled = self.now
        if now_us >= settled.end_us or now_us < settled.start_us - CLOCK_STEP_US:
            settled = self.now = self._turn(settled, now_us)
        return settled

    def _turn(self, left: Settled, now_us: int) -> Settled:
        """The window of now in place of the one that time has left: the one before it if the clock was put back, else a new one."""
        before, self.ended = self.ended, None
        if self.window in KEPT and (left.nanousd or left.tokens or left.requests):
            self.ended = left
        if before is not None and before.start_us <= now_us < before.end_us:
            return before
        return empty(self.window, now_us, self.timezone)


class Account:
    """One instance of a scope: its meters, and what its calls in flight hold. A reservation belongs to no window.

    A call that is in flight when a window ends will be settled in the next one, so it is held against that one from its first moment.
    """

    __slots__ = ("counter", "held", "lines", "meters", "rule", "tenant", "used_us", "value")

    def __init__(self, tenant: str, counter: str = "", value: str = "") -> None:
        """counter: which of the tenant's counters, as `plan` names them; value: of its scope. Both empty: the tenant itself."""
        self.tenant = tenant
        self.counter = counter
        self.value = value
        self.meters: dict[tuple[Window, str], Meter] = {}
        self.held = Held()
        self.lines: dict[str, Line] = {}  # by quota
        self.rule: object | None = None  # by which the lines were made, owned by proxy/ledger.py
        self.used_us = 0

    def meter(self, window: Window, now_us: int, timezone: str = "UTC") -> Meter:
        """The meter of a kind of window, made at its first use."""
        meter = self.meters.get((window, timezone))
        if meter is None:
            meter = self.meters[window, timezone] = Meter(window, timezone, empty(window, now_us, timezone))
        return meter

    def settle(self, *, tokens: int, nanousd: int, requests: int, at_us: int) -> None:
        """Adds to each window that holds `at_us`; one that has ended since then keeps its spending to itself."""
        for meter in self.meters.values():
            settled = meter.now
            if not settled.start_us <= at_us < settled.end_us:
                settled = meter.at(at_us)
                if at_us < settled.start_us:
                    continue
            settled.tokens += tokens
            settled.nanousd += nanousd
            settled.requests += requests

    def is_over(self, now_us: int) -> bool:
        """Whether nothing that was counted here matters any more: all its windows have ended and nothing is held."""
        return not self.held.anything() and all(meter.now.end_us <= now_us for meter in self.meters.values())


class Lease(Protocol):
    """What keeps a line's cap up to date, where the limit is shared with other workers."""

    degraded: bool  # the cap is this worker's part, because the others cannot be asked
    promised: int  # of the cap, to calls that waited and are about to try again: nobody who comes later may take it

    def look(self, line: Line, want: int, now_us: int) -> None:
        """Makes the cap what it is at this moment, and asks for more ahead of need; never waits."""
        ...

    def may_grow(self, line: Line, want: int, now_us: int) -> bool:
        """Whether a larger slice may hold so much: not when too much of the whole limit has been used."""
        ...

    def left(self, line: Line, now_us: int) -> int:
        """What of the whole limit nobody has used or leased elsewhere, as far as this worker has heard; below 0 when it is passed."""
        ...


class Line:
    """One ceiling over one account.

    cap: what settled and held may reach together on this worker; the worker's share of the limit, or what its lease allows.
    """

    __slots__ = ("account", "action", "budget", "cap", "field", "id", "lease", "limit", "meter", "per", "to", "unit")

    def __init__(
        self,
        account: Account,
        meter: Meter | None,
        *,
        id_: str,
        unit: int,
        limit: int,
    ) -> None:
        """meter: None for calls at once, which no window counts."""
        self.account = account
        self.meter = meter
        self.id = id_
        self.unit = unit
        self.field = FIELDS[unit]
        self.limit = limit
        self.cap = limit
        self.per = QuotaScope.TENANT
        self.action = QuotaAction.HARD
        self.to = ""
        self.budget = False
        self.lease: Lease | None = None  # None: the cap is the worker's share

    def settled(self, now_us: int) -> int:
        """What counts as used in the window of now."""
        if self.meter is None:
            return 0
        amount: int = getattr(self.meter.at(now_us), self.field)
        return amount

    def held(self) -> int:
        """What calls in flight hold of it."""
        amount: int = getattr(self.account.held, self.field)
        return amount

    def used(self, now_us: int) -> int:
        """Both together. Every call asks each of its ceilings, so the usual units are read without a detour."""
        meter, held, unit = self.meter, self.account.held, self.unit
        if meter is None:
            return held.requests
        settled = meter.now
        if now_us >= settled.end_us or now_us < settled.start_us - CLOCK_STEP_US:
            settled = meter.at(now_us)
        if unit == NANOUSD:
            return settled.nanousd + held.nanousd
        if unit == TOKENS:
            return settled.tokens + held.tokens
        return settled.requests + held.requests

    def has_room(self, want: int, now_us: int) -> bool:
        """Whether so much more stays within the cap, which a lease brings up to date first."""
        lease = self.lease
        if lease is not None:
            lease.look(self, want, now_us)
            want += lease.promised
        return self.used(now_us) + want <= self.cap


def empty(window: Window, at_us: int, timezone: str = "UTC") -> Settled:
    """A window in which nothing was settled yet."""
    start_us, end_us = window_bounds(window, at_us, timezone)
    return Settled(start_us=start_us, end_us=end_us)


def shown(lines: Iterable[Line], unit: int) -> tuple[Line, ...]:
    """The ceilings about a unit that clients are told of: those that refuse, over amounts of a window."""
    return tuple(
        [line for line in lines if line.unit == unit and line.action is QuotaAction.HARD and line.meter is not None]
    )


def left_of(lines: tuple[Line, ...], now_us: int) -> tuple[int, int, float] | None:
    """Of these `shown` ceilings the tightest: its cap, what is neither settled nor held of it, and the seconds until it is whole.

    Of a limit that workers share the whole, and what is left of it as far as is known: a slice is no limit of the client's.
    """
    found: tuple[int, int, float] | None = None
    for line in lines:
        if line.lease is not None and not line.lease.degraded:
            cap, left = line.limit, line.lease.left(line, now_us) - line.held()
        else:
            cap, left = line.cap, line.cap - line.used(now_us)
        if left < 0:
            left = 0
        if line.meter is not None and (found is None or left < found[1]):
            found = cap, left, max(0, line.meter.now.end_us - now_us) / 1e6
    return found

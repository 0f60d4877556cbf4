"""Slices of limits that workers and hosts share: each worker leases what it will need soon from Redis, and decides with that alone.

For every ceiling, window by window, one hash in Redis has a row for each worker: what it has settled (a count that only grows, so saying it twice
changes nothing), the slice it may still use beyond that, and until when. A worker may go on as long as

    settled + held <= cap = settled at its last report + slice,

and Redis gives no slice that would let the sum of all rows pass the limit. So the sum of what is settled and held never passes
the limit while every worker reports in time. docs/explanation/quotas.md states what happens when one does not. Nobody believes Redis over what it
knows itself, nor a row that no worker sealed (`proxy.sealed_rows`).

A slice is as large as the use of the next second, at most half of a fair part of what is left, so that slices shrink toward the end of a limit. It is
renewed before it runs out, returned when nothing was asked of it for a while, and when the worker stops. A call that finds it too small waits for one
report, and if others hold what is missing, for them to give back what they do not use; only then is it refused.

When Redis does not answer, a slice is used until it ends. Then the worker goes on with its part of what was left when it heard of the others
last, or of the whole limit in a window in which it never did: degraded, and never more than its part. The settled counts put everything right when
Redis is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from hashlib import blake2b

from proxy.quotas.account import NANOUSD, Line, Share
from proxy.sealed_rows import REPORT, RowSeals, SealedRows, Told
from proxy.shared import SharedState, SharedUnavailable

_HORIZON_S = 1.0  # of use that a slice is made for
_RATE_S_MIN = 0.5  # a rate is measured over so long at least
_VALID = 0.8  # of a lease is used here, so that it ends here before it does in Redis
_HUNGRY_S = 0.1  # between two requests to the others to give back
_ROUNDS = 3  # of waiting for them
_AT_ONCE_MAX = 32  # reports of the keeper under way
_EXACT_MAX = 2**50  # numbers up to this are exact in Lua
_SCALE = 4_096  # of larger limits, which are counted in so many nano-USD
_HOUR_US = 3_600_000_000
_KEEP_US_MAX = 400 * 24 * _HOUR_US
_ASK, _BACK = b"?", b"!"


class LineLease:
    """What one worker has leased of one ceiling; keeps its line's cap up to date."""

    __slots__ = (
        "_alone", "_leases", "_others", "_own", "_total", "active", "asking", "degraded", "demand", "hungry_s", "line", "lock", "low",
        "name", "promised", "rate", "rows", "seen", "spare", "start_us", "synced_s", "unanswered", "until_s", "waiting", "went_back",
    )  # fmt: skip

    def __init__(self, leases: Leases, line: Line, name: bytes) -> None:
        self._leases = leases
        self.line = line
        self.name = name
        self.lock = asyncio.Lock()  # one report at a time
        self.went_back = asyncio.Event()  # another worker gave back
        self.active = False  # Redis does not know yet all that is to be known
        self.degraded = False
        self.unanswered = False  # the last report had no answer
        self.start_us = -1  # the window that everything here is about
        self.until_s = 0.0  # the slice may be used before this moment, of the monotonic clock
        self.hungry_s = 0.0
        self.asking = 0  # calls that wait for others to give back
        self.synced_s = leases.monotonic()
        self.demand = 0  # asked for since the last report
        self.seen = False  # since the keeper's last tick
        self.waiting = 0  # what calls wait for
        self.promised = 0  # to those of them that are about to try again
        self.spare = 0  # what the others had leased and did not hold when Redis answered last
        self.rate = 0.0  # a second
        self.low = 0  # more is asked for ahead of need below this
        self.rows: SealedRows | None = None  # of this window, once it has reported in it
        self._total = self._others = self._own = -1  # as of the last answer in this window; -1: none
        self._alone: tuple[int, int] | None = (
            None  # settled here, and known of all, when it first was on its own after that
        )

    def look(self, line: Line, want: int, now_us: int) -> None:
        """Makes the cap what it is at this moment, and asks for more ahead of need."""
        leases = self._leases
        start_us = 0 if line.meter is None else line.meter.at(now_us).start_us
        if start_us != self.start_us:
            self._turn(start_us)
        self.demand += want
        self.seen = self.active = True
        leases.active[self.name] = self
        out = leases.shared.degraded or self.unanswered
        if self.degraded:
            if out:
                return
            self.degraded = False
            self.until_s = 0.0
        if leases.monotonic() >= self.until_s:
            line.cap = 0
            if out:
                self._degrade(now_us)
            return
        left = line.cap - line.settled(now_us) - line.held() - want
        if left < 0 and out:
            self._degrade(now_us)  # nobody would make the slice larger
        elif left < self.low:
            leases.ask(self)

    def left(self, line: Line, now_us: int) -> int:
        """What of the whole limit nobody has used or leased elsewhere, as far as this worker has heard; below 0 when it is passed."""
        own = line.settled(now_us)
        return line.limit - (own if self._total < 0 else self._total + self._others + own - self._own)

    def may_grow(self, line: Line, want: int, now_us: int) -> bool:
        """Whether a larger slice may hold so much: not when too much of the whole limit has been used, whoever gives back what he holds."""
        own = line.settled(now_us)
        return (own if self._total < 0 else self._total + own - self._own) + want <= line.limit

    async def report(self, *, ahead: bool = True, shrink: bool = False) -> None:
        """Tells Redis how things stand, and takes the slice that it gives. Raises SharedUnavailable.

        ahead: whether more is wanted than what is held and waited for. shrink: whether the rest of the slice is given up.
        """
        leases, line = self._leases, self.line
        now_us, asked_s, limit = leases.now_us(), leases.monotonic(), line.limit
        start_us = 0 if line.meter is None else line.meter.at(now_us).start_us
        if start_us != self.start_us:
            self._turn(start_us)
        own, held = line.settled(now_us), line.held()
        need = held + self.waiting
        if shrink and own + need > line.cap:
            need = held + self.promised  # too little for who waits here may be enough for somebody elsewhere
        want = need + (self._ahead(asked_s) if ahead else 0)
        must = held
        if asked_s < self.until_s and not self.degraded:
            if shrink:  # what is given up is given up before it is said
                line.cap = min(line.cap, own + want)
            must = max(held, line.cap - own)
        try:
            told = await leases.send(self, own, held=held, must=must, need=need, want=want, now_us=now_us)
        except SharedUnavailable:
            self.unanswered = True
            raise
        self.unanswered = False
        if start_us != self.start_us or limit != line.limit:
            return  # the window has ended meanwhile, or this is a slice of another limit
        self.degraded = False
        line.cap = own + told.grant
        self.until_s = asked_s + leases.lease_s * _VALID
        self._total, self._others, self._own, self.spare = told.total, told.others, own, told.spare
        self._alone = None
        self.active = told.grant > 0 or own != line.settled(now_us)

    def has_room(self, want: int) -> bool:
        """Whether one more of the calls that wait would pass now."""
        line, now_us = self.line, self._leases.now_us()
        return self.is_valid() and line.settled(now_us) + line.held() + self.promised + want <= line.cap

    def is_valid(self) -> bool:
        """Whether there is a slice that may be used."""
        return self._leases.monotonic() < self.until_s

    def is_idle(self) -> bool:
        """Whether nothing was asked since the keeper's last tick and nothing is in flight."""
        return not self.seen and not self.line.held()

    def _ahead(self, now_s: float) -> int:
        """What the next second will probably need: as the last did, and twice as much where a slice did not last half a second."""
        passed_s = now_s - self.synced_s
        if passed_s >= _RATE_S_MIN:
            measured = self.demand / passed_s
            self.rate = (self.rate + measured) / 2 if self.rate else measured
            self.demand, self.synced_s = 0, now_s
        else:
            self.rate = min(max(self.rate * 2, self.demand / _RATE_S_MIN), float(self.line.limit))
        ahead = int(self.rate * _HORIZON_S)
        self.low = ahead // 2
        return ahead

    def _turn(self, start_us: int) -> None:
        """A window in which nothing is leased yet."""
        self.start_us = start_us
        self.until_s = 0.0
        self.degraded = False
        self._total = self._others = self._own = -1
        self._alone = None
        self.rows = None
        self.line.cap = 0

    def _degrade(self, now_us: int) -> None:
        """This worker's part of what was left when it heard of the others last, else of the whole limit; the same however often it is taken."""
        self.degraded = True
        leases, line = self._leases, self.line
        if self._total < 0:
            line.cap = max(line.cap, leases.share.of(line.limit))
            return
        if self._alone is None:
            own = line.settled(now_us)
            self._alone = own, self._total + self._others + (own - self._own)
        own, known = self._alone
        line.cap = max(line.cap, own + leases.share.of(max(0, line.limit - known)))


class Leases:
    """All slices of one worker, and what keeps them."""

    def __init__(
        self,
        shared: SharedState,
        *,
        worker: str,
        share: Share,
        lease_s: float,
        wait_s: float,
        gone: Iterable[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        redis_now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """worker: its name among all workers of all hosts, the same over restarts. share: its part when it is on its own.

        wait_s: how long a call waits for others to give back. gone: workers that will never report again and whose settled amounts live
        on in others. redis_now_ms: the clock of the leases in Redis; 0: its own.
        """
        self.shared = shared
        self.share = share
        self.lease_s = lease_s
        self.monotonic = monotonic
        self.now_us = now_us
        self.active: dict[bytes, LineLease] = {}
        self.refills_total = 0
        self.asked_back_total = 0
        self.seals = RowSeals(shared.secret, worker, lease_s=lease_s, now_us=now_us)
        self._wait_s = wait_s
        self._gone = tuple(gone)
        self._redis_now_ms = redis_now_ms
        self._prefix = shared.prefix + b"s:{"
        self._channel = shared.prefix + b"quota"
        self._seq = time.time_ns() // 1000
        self._leases: dict[bytes, LineLease] = {}
        self._asked: dict[bytes, LineLease] = {}
        self._wanted_back: dict[bytes, LineLease] = {}
        self._wake = asyncio.Event()
        shared.subscribe(self._channel, self._heard)

    @property
    def degraded(self) -> int:
        """Ceilings under which this worker is on its own now."""
        return sum(lease.degraded for lease in self.active.values())

    def lend(self, line: Line) -> None:
        """Takes over the cap of a ceiling; what was settled under it before is told to Redis soon."""
        name = _name_of(line)
        known = self._leases.get(name)
        if known is not None and known.line is line:
            known.until_s, known.degraded = 0.0, False  # its limit has changed
            return
        lease = self._leases[name] = LineLease(self, line, name)
        line.lease, line.cap = lease, 0
        if line.meter is not None and line.settled(self.now_us()):
            self.active[name] = lease
            lease.active = True
            self.ask(lease)

    def ask(self, lease: LineLease) -> None:
        """Has the keeper report about this one soon."""
        if lease.name not in self._asked:
            self._asked[lease.name] = lease
            self._wake.set()

    async def refill(self, short: tuple[tuple[Line, int], ...]) -> None:
        """Asks for what a call lacks, and for what others do not use if that is needed; bounded in time, never raises."""
        self.refills_total += 1
        leases = [(line.lease, want) for line, want in short if isinstance(line.lease, LineLease)]
        promised: list[tuple[LineLease, int]] = []
        for lease, want in leases:
            lease.waiting += want
        try:
            await asyncio.gather(*(self._need(lease, want, promised) for lease, want in leases))
        finally:  # nothing runs between this and the call's second try
            for lease, want in leases:
                lease.waiting -= want
            for lease, want in promised:
                lease.promised -= want

    async def run(self) -> None:
        """Keeps the slices: more ahead of need, renewed in time, returned when idle. Cancel it to stop."""
        tick_s = self.lease_s / 10
        due_s = self.monotonic() + tick_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due_s - self.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            if self.monotonic() >= due_s:
                due_s = self.monotonic() + tick_s
                self._review()
            await self.keep()

    async def keep(self) -> None:
        """Makes all reports that are due, some at a time."""
        asked, self._asked = self._asked, {}
        back, self._wanted_back = self._wanted_back, {}
        work: list[Awaitable[None]] = [self._give_back(lease) for lease in back.values()]
        work += [
            self._renew(lease) for name, lease in asked.items() if name not in back
        ]  # or it took back what it gave
        for start in range(0, len(work), _AT_ONCE_MAX):
            await asyncio.gather(*work[start : start + _AT_ONCE_MAX])

    async def aclose(self) -> None:
        """Gives everything back, with what was settled as the last word; at most as long as Redis may take."""
        for lease in list(self.active.values()):
            try:
                await lease.report(ahead=False, shrink=True)
            except SharedUnavailable:
                return

    async def send(
        self, lease: LineLease, own: int, *, held: int, must: int, need: int, want: int, now_us: int
    ) -> Told:
        """One report, and what its answer is worth. Raises SharedUnavailable."""
        line = lease.line
        scale = _SCALE if line.unit == NANOUSD and line.limit > _EXACT_MAX else 1
        end_us = now_us + _HOUR_US if line.meter is None else line.meter.now.end_us
        keep_ms = (min(max(0, end_us - now_us), _KEEP_US_MAX) + _HOUR_US) // 1000
        key = b"%b%b}:%d" % (self._prefix, lease.name, max(0, lease.start_us))
        rows = lease.rows
        if rows is None or rows.key != key:
            rows = lease.rows = SealedRows(self.seals, key, self._gone)
        limit, settled, must_up, held_up = line.limit // scale, -(-own // scale), -(-must // scale), -(-held // scale)
        for _ in range(2):
            self._seq += 1
            answer = await self.shared.run(
                REPORT,
                (key,),
                self.seals.worker,
                self._seq,
                self._redis_now_ms(),
                limit,
                settled,
                must_up,
                -(-need // scale),
                -(-want // scale),
                self.seals.lease_ms,
                keep_ms,
                *rows.words(self._seq, settled=settled, held=held_up, must=must_up),
            )
            newer = rows.newer(answer)
            if newer < 0:
                told = rows.take(answer, limit=limit, own=settled, must=must_up)
                return Told(*(amount * scale for amount in told))
            self._seq = max(self._seq, newer)  # a clock was put back between two starts
        raise SharedUnavailable("a report came too late")

    def _review(self) -> None:
        """Finds what is due: slices that will end soon, and those that nobody uses."""
        now_s = self.monotonic()
        for name, lease in list(self.active.items()):
            if self._leases.get(name) is not lease or _is_gone(lease.line) or (lease.is_idle() and not lease.active):
                del self.active[name]
            else:
                if lease.is_idle():
                    lease.demand = 0  # what nobody asks for now is not wanted ahead
                if lease.is_idle() or lease.unanswered or lease.until_s - now_s < self.lease_s / 2:
                    self.ask(lease)
                lease.seen = False
        for name in [name for name, lease in self._leases.items() if _is_gone(lease.line)]:
            del self._leases[name]

    async def _renew(self, lease: LineLease) -> None:
        async with lease.lock:
            with contextlib.suppress(SharedUnavailable):
                idle = not lease.demand and not lease.line.held()
                await lease.report(ahead=not idle, shrink=idle)

    async def _need(self, lease: LineLease, want: int, promised: list[tuple[LineLease, int]]) -> None:
        """Waits for room for one call; it is promised to that call, which must end the promise."""
        try:
            if await self._report_for(lease, want, promised):
                return
            now_s = self.monotonic()
            if lease.spare <= 0 or (now_s < lease.hungry_s and not lease.asking):
                return
            lease.asking += 1  # whoever comes now waits for the same answer
            try:
                if now_s >= lease.hungry_s:
                    lease.hungry_s = now_s + _HUNGRY_S
                    lease.went_back.clear()
                    self.asked_back_total += 1
                    await self.shared.publish(self._channel, _ASK + lease.name)
                async with asyncio.timeout(self._wait_s):
                    for _ in range(_ROUNDS):
                        await lease.went_back.wait()
                        lease.went_back.clear()
                        if await self._report_for(lease, want, promised) or lease.spare <= 0:
                            return
            finally:
                lease.asking -= 1
        except (SharedUnavailable, TimeoutError):
            return

    async def _report_for(self, lease: LineLease, want: int, promised: list[tuple[LineLease, int]]) -> bool:
        """Whether there is room for a call, after a report if need be."""
        async with lease.lock:
            if not lease.has_room(want):  # else the one before has brought enough
                await lease.report()
            if not lease.is_valid():  # the window has ended meanwhile, or the limit has changed
                await lease.report()
            if not lease.has_room(want):
                return False
            lease.promised += want
            promised.append((lease, want))
            return True

    def _heard(self, message: bytes) -> None:
        """Another worker lacks what this one may hold, or has given back what this one lacks."""
        lease = self._leases.get(message[1:])
        if lease is None:
            return
        if message[:1] == _BACK:
            lease.went_back.set()
        elif lease.is_valid():
            self._wanted_back[lease.name] = lease
            self._wake.set()

    async def _give_back(self, lease: LineLease) -> None:
        with contextlib.suppress(SharedUnavailable):
            async with lease.lock:
                await lease.report(ahead=False, shrink=True)
            await self.shared.publish(self._channel, _BACK + lease.name)


def watch_leases(watch: Callable[[str, str, Callable[[], float]], None], leases: Leases | None) -> None:
    """Shows the figures of the slices; without Redis they are there all the same, and stay zero."""
    for name, text in (
        ("degraded", "Ceilings under which this worker goes on with its own part because Redis does not answer."),
        ("refills_total", "Calls that waited for a larger slice of a shared limit."),
        ("asked_back_total", "Times that other workers were asked to give back what they did not use."),
    ):
        watch(f"quota_{name}", text, _figure(leases, name))
    for name, text in (
        (
            "rows_forged_total",
            "Rows of limits in Redis that no worker wrote; what they are about is held to this worker's part.",
        ),
        (
            "rows_restored_total",
            "Rows of limits that vanished from Redis or went back, put as they were heard of last.",
        ),
        ("grants_cut_total", "Slices of limits that Redis gave and that the sealed rows do not allow."),
    ):
        watch(f"quota_{name}", text, _figure(None if leases is None else leases.seals, name))


def _figure(source: Leases | RowSeals | None, name: str) -> Callable[[], float]:
    return lambda: 0.0 if source is None else float(getattr(source, name))


def _is_gone(line: Line) -> bool:
    return line.account.lines.get(line.id) is not line


def _name_of(line: Line) -> bytes:
    """The same for all workers, of one length, and without what a client chose to say."""
    account, meter = line.account, line.meter
    window = ("", "") if meter is None else (meter.window.value, meter.timezone)
    parts = (account.tenant, account.counter, account.value, line.id, str(line.unit), *window)
    return blake2b("\x00".join(parts).encode(), digest_size=12).hexdigest().encode()

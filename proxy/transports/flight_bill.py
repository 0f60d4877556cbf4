"""The bill of a flight whose calls are on several workers: in parts that sum to it exactly, and what nobody books is counted.

Where the tenant's policy is to split, the flight has a hash in Redis beside its lease:

1. *Seats.* A worker that follows writes down how many of its calls are in the flight, and keeps that right as they come and go. A seat is a
   lease: that of a dead worker is empty when it runs out. Seats are sealed, and so is all that follows: see `flight_fields`.
2. *The close.* When the upstream's answer has ended, and before anybody settles, the leader's worker puts the bill into the hash. The same
   script reads the seats, and from then on they do not change. Those count whose seals are right and whose workers the bill names, for they
   follow and will hear it. So the parts follow from the hash alone: largest remainders by the number of calls, the leader's worker first.
   Without a seat there is no close; without a follower nothing is asked of Redis.
3. *Paying.* The leader's worker books its part and sends the bill behind the answer; who hears it books its own. Within a worker the calls
   that are in the flight then have equal parts.
4. *The count.* Each worker writes into the hash what its settled calls have booked. Some time later the first of them to look takes what is
   missing as *orphaned*, and counts it: parts of workers that died or left after the close, on whose behalf nobody can settle any more.
   What is booked later still is counted as returned. So always: booked + orphaned - returned = bill. Only what a worker has settled
   in its last moment, and could not say before it was killed, is counted though it is booked: never too little.

A close that Redis did not answer is void: the leader's worker pays everything, says so to Redis when it can, and sends no bill, without
which nobody pays. A leader that died before the close has settled nothing, like every killed call, and nobody pays for it. Nothing is paid twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

import structlog

from controlplane.contract.records import AttemptRecord
from controlplane.contract.snapshot import CoalesceCost
from proxy.call import Call
from proxy.shared import Answer, Script, SharedState, SharedUnavailable
from proxy.transports.flight_fields import (
    BILL,
    FIELDS_MAX,
    PAID,
    bill_of,
    offer_text,
    opened_fields,
    opened_number,
    parts_of,
    sealed_field,
    seat_text,
)
from proxy.transports.flight_words import Bill, Seals

LOOK_S = 0.005  # how soon those who wait for settlements look again; then ever less often
LOOKS = 10  # of those who wait for a count, at the least
HASH_MS = 3_600_000  # seats that nobody leaves, and bills that nobody looks at, are forgotten after this
_TAKER_BYTES = 8

_SEAT = Script(
    "flight_seat",
    "if redis.call('HEXISTS', KEYS[1], '!bill') == 1 then return 0 end "
    "if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) return 1 end "
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) redis.call('PEXPIRE', KEYS[1], ARGV[3]) return 1",
)
_CLOSE = Script(
    "flight_close",
    "if redis.call('HEXISTS', KEYS[1], '!taken') == 1 then return {} end "
    "local found, seats = redis.call('HGETALL', KEYS[1]), false "
    "if #found > 2 * ARGV[3] then return -1 end if redis.call('HEXISTS', KEYS[1], '!bill') == 1 then return found end "
    "for at = 1, #found, 2 do local first = string.sub(found[at], 1, 1) seats = seats or (first ~= '!' and first ~= '$') end "
    "if not seats then return {} end "
    "redis.call('HSET', KEYS[1], '!bill', ARGV[1]) redis.call('PEXPIRE', KEYS[1], ARGV[2]) "
    "found[#found + 1] = '!bill' found[#found + 1] = ARGV[1] return found",
)
_BOOKED = Script(
    "flight_booked",
    "if redis.call('HEXISTS', KEYS[1], '!bill') == 0 then return ARGV[2] end "
    "if redis.call('HEXISTS', KEYS[1], '!taken') == 1 then return redis.call('HGET', KEYS[1], ARGV[1]) or '' end "
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return ARGV[2]",
)
_COUNT = Script(
    "flight_count",
    "if redis.call('HEXISTS', KEYS[1], '!bill') == 0 then return {} end "
    "if redis.call('HSETNX', KEYS[1], '!taken', ARGV[1]) == 0 and redis.call('HGET', KEYS[1], '!taken') ~= ARGV[1] "
    "then return {} end "  # asked again by the same, it says the same
    "local found = redis.call('HGETALL', KEYS[1]) if #found > 2 * ARGV[2] then return {} end return found",
)
_VOID = Script(
    "flight_void",
    "redis.call('HSET', KEYS[1], '!taken', 'void') redis.call('PEXPIRE', KEYS[1], ARGV[1]) return 1",
)

log = structlog.get_logger("proxy.flights")


@dataclass(slots=True, eq=False)
class Seat:
    """A followed flight's place among those who pay, one after the other for each call here that follows it.

    told: calls that Redis knows of. left: nobody follows now. Paid once, it is paid for good. news: one of these has changed.
    """

    key: bytes
    call: Call | None  # None: it is paid
    news: asyncio.Event
    told: int = 0
    left: bool = False

    @property
    def paid(self) -> bool:
        """Whether the part is on calls of this worker."""
        return self.call is None


class Booking:
    """What calls of this worker have booked of a bill; one that is settled is let go of, for it may be large."""

    def __init__(self, calls: list[Call]) -> None:
        """calls: those that have parts of it, or are about to."""
        self.pending = [(call, 0) for call in calls]
        self._nanousd = 0

    def begin(self) -> None:
        """The parts are on the calls now; what they may cost besides, later, is no part of this bill."""
        self.pending = [(call, _nanousd(call.attempts)) for call, _ in self.pending]

    def booked(self) -> int:
        """So far, in nano-USD."""
        self._nanousd += sum(part for call, part in self.pending if call.settled)
        self.pending = [one for one in self.pending if not one[0].settled]
        return self._nanousd


class Bills:
    """What is due of flights that this worker leads or follows.

    members: the calls of this worker that share a call's flight; it is the first of them.
    """

    def __init__(
        self,
        shared: SharedState | None,
        *,
        inbox: bytes,
        seals: Seals,
        lease_s: float,
        count_after_s: float,
        bills_max: int,
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """inbox: this worker's. seals: of what is written into Redis. lease_s: of a seat. now_ms: of this host's clock.

        count_after_s: how long a part may remain unbooked. bills_max: seats and bills at any moment.
        """
        self._shared = shared
        self._inbox = inbox
        self._seals = seals
        self._lease_s = lease_s
        self._count_after_s = count_after_s
        self._bills_max = bills_max
        self._monotonic = monotonic
        self._now_ms = now_ms
        self._seats: dict[bytes, Seat] = {}
        self._sitting: dict[str, Seat] = {}  # by the call that follows
        self._tasks: set[asyncio.Task[None]] = set()
        self.members: Callable[[Call], Sequence[Call]] = lambda call: (call,)
        self.split_total = 0
        self.unsplit_total = 0
        self.full_total = 0
        self.orphaned_total = 0
        self.orphaned_nanousd = 0
        self.returned_nanousd = 0
        self.forged_total = 0

    @property
    def open(self) -> int:
        """Seats and bills that are not done with."""
        return len(self._tasks)

    def sit(self, call: Call, key: bytes) -> None:
        """The calls of this worker will pay their part of a flight that another leads, if their tenant's policy is to split."""
        if not splits(call) or call.call_id in self._sitting:
            return
        seat = self._seats.get(key)
        if seat is None:
            if self.open >= self._bills_max:
                self.full_total += 1
                return
            seat = self._seats[key] = Seat(key, call, asyncio.Event())
            self._spawn(self._keep(seat))
        seat.call, seat.left = (None if seat.paid else call), False
        seat.news.set()
        self._sitting[call.call_id] = seat

    def recount(self, call: Call) -> None:
        """More or fewer calls share the flight of this one."""
        seat = self._sitting.get(call.call_id)
        if seat is not None:
            seat.news.set()

    def rise(self, call: Call) -> None:
        """The call follows no more. If its worker's part was fixed by then, and nobody else here pays it, it is orphaned. Safe to call twice."""
        seat = self._sitting.pop(call.call_id, None)
        if seat is not None:
            seat.left = True
            seat.news.set()

    def pay(self, call: Call, bill: Bill) -> None:
        """Puts this worker's part of a bill on the call that follows, and sees to it."""
        seat = self._sitting.get(call.call_id)
        own = parts_of(bill).get(self._inbox)
        if seat is not None and not seat.paid and own is not None:
            seat.call = None
            seat.news.set()
            call.attempts.extend(own)
            self._see_to(seat.key, call)

    async def close(self, call: Call, key: bytes, followers: Iterable[bytes]) -> Bill | None:
        """Closes the flight that this call leads to all who would pay, and leaves on it only this worker's part.

        followers: inboxes that follow now and hear the bill; other seats do not count, for nobody would book what is theirs.
        None: nobody else pays, or Redis did not answer. May be cancelled, and asked again; whoever gives up in between calls `void`.
        """
        shared = self._shared
        if shared is None or not splits(call) or not any(one.cost_nanousd or one.tokens.total for one in call.attempts):
            return None
        if self.open >= self._bills_max:
            self.full_total += 1
            self.void(key)  # it may have been asked before
            return None
        attempts = tuple(call.attempts)
        count = len(self.members(call))
        text = offer_text(attempts, leader=self._inbox, count=count, followers=followers, now_ms=self._now_ms())
        offer = sealed_field(self._seals, key, BILL, text)
        began_ns = time.monotonic_ns()
        try:
            answer = await shared.run(_CLOSE, [key], offer, HASH_MS, FIELDS_MAX)
        except SharedUnavailable:
            self.unsplit_total += 1
            self.void(key)
            return None
        finally:
            call.waited_ns += time.monotonic_ns() - began_ns
        if not answer:  # nobody has a seat
            return None
        bill = bill_of(self._opened(key, answer))  # asked again, the offer of the first time counts
        if bill is None or bill.attempts != attempts:  # another has written there in the leader's place
            self.unsplit_total += 1
            self.void(key)
            return None
        if len(bill.shares) == 1:  # no seat that counts
            self.void(key)
            return None
        self.split_total += 1
        own = parts_of(bill)[self._inbox]
        call.attempts[:] = own
        call.saved_nanousd += _nanousd(attempts) - _nanousd(own)
        self._see_to(key, call)
        return bill

    def void(self, key: bytes) -> None:
        """The leader's worker pays everything: of a bill that Redis may have nothing is due."""
        self._spawn(self._say_void(key))

    async def aclose(self) -> None:
        """Says a last time what was booked; what is not looked after any more the other workers count."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, seat: Seat) -> None:
        """Holds a seat with the number of calls as it is, until it is left or paid; what is due and nobody here pays is counted in time."""
        shared, closed = self._shared, False
        try:
            while shared is not None and not closed and seat.call is not None:
                seat.news.clear()
                leaving, count = seat.left, 0 if seat.left else len(self.members(seat.call))
                with contextlib.suppress(SharedUnavailable):
                    closed = not await shared.run(
                        _SEAT, [seat.key], self._inbox, self._seat_field(seat.key, count), HASH_MS
                    )
                    seat.told = seat.told if closed else count
                if leaving and seat.left:
                    break
                if not closed:
                    await _within(self._lease_s / 3, seat.news)
            while closed and not (seat.paid or seat.left):
                await seat.news.wait()
                seat.news.clear()
            if closed and not seat.paid and seat.told:
                await asyncio.sleep(self._count_after_s)
                await self._count(seat.key, taker=_taker())
        finally:
            if not seat.paid:
                self._seats.pop(seat.key, None)

    def _seat_field(self, key: bytes, count: int) -> bytes:
        """A seat for so many calls; empty for none."""
        if not count:
            return b""
        return sealed_field(
            self._seals, key, self._inbox, seat_text(count, self._now_ms() + round(self._lease_s * 1000))
        )

    def _opened(self, key: bytes, answer: Answer) -> dict[bytes, bytes]:
        fields = opened_fields(self._seals, key, answer)
        self.forged_total += fields.refused
        return fields.texts

    def _see_to(self, key: bytes, call: Call) -> None:
        self._spawn(self._watch(key, Booking(list(self.members(call)))))

    async def _watch(self, key: bytes, due: Booking) -> None:
        """Writes down what its calls have booked, as they settle; in time, looks who has not. Begins when their parts are on them."""
        due.begin()
        told = returned = 0
        pause_s = LOOK_S
        taker = _taker()
        counted, begun = False, self._monotonic()
        try:
            while True:
                booked = due.booked()
                if booked > told:
                    with contextlib.suppress(SharedUnavailable):
                        known = await self._say_booked(key, booked)
                        told = booked
                        self.returned_nanousd += booked - known - returned
                        returned = booked - known
                past_s = self._monotonic() - begun
                if not counted and past_s >= self._count_after_s:
                    counted = await self._count(key, taker=taker)
                if (counted and told == booked and not due.pending) or past_s > HASH_MS / 1000:
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._count_after_s / LOOKS)
        except asyncio.CancelledError:
            booked = due.booked()
            if booked > told:
                with contextlib.suppress(SharedUnavailable):
                    await self._say_booked(key, booked)
            raise
        finally:
            self._seats.pop(key, None)

    async def _say_booked(self, key: bytes, nanousd: int) -> int:
        """What Redis takes as booked by this worker: less, if it was counted before. Raises SharedUnavailable."""
        shared, name = self._shared, PAID + self._inbox
        if shared is None:
            return 0
        answer = await shared.run(_BOOKED, [key], name, sealed_field(self._seals, key, name, b"%d" % nanousd))
        return opened_number(self._seals, key, name, answer) if isinstance(answer, bytes) else 0

    async def _count(self, key: bytes, *, taker: bytes) -> bool:
        """Counts what nobody has booked, unless somebody else does; False: Redis did not answer."""
        try:
            answer = None if self._shared is None else await self._shared.run(_COUNT, [key], taker, FIELDS_MAX)
        except SharedUnavailable:
            return False
        found = self._opened(key, answer)
        bill = bill_of(found)
        if bill is None:
            return True
        for inbox, attempts in parts_of(bill).items():
            missing = _nanousd(attempts) - int(found.get(PAID + inbox, b"0"))
            if missing > 0:
                self.orphaned_total += 1
                self.orphaned_nanousd += missing
                log.warning("nobody booked a part of a shared bill", nanousd=missing, worker=inbox.decode())
        return True

    async def _say_void(self, key: bytes) -> None:
        """As long as it can be of use: before anybody counts."""
        for _ in range(LOOKS):
            with contextlib.suppress(SharedUnavailable):
                if self._shared is not None:
                    await self._shared.run(_VOID, [key], HASH_MS)
                return
            await asyncio.sleep(self._count_after_s / LOOKS)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="flight-bill")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def watch_bills(watch: Callable[[str, str, Callable[[], float]], None], bills: Bills) -> None:
    """Shows what became of bills that workers share."""
    watch("flight_bills", "Seats and bills of flights between workers that are not done with.", lambda: bills.open)
    watch("flight_bills_split_total", "Bills split between workers.", lambda: bills.split_total)
    watch(
        "flight_bills_unsplit_total",
        "Bills left whole because Redis did not answer, or not with the bill that it was given.",
        lambda: bills.unsplit_total,
    )
    watch(
        "flight_fields_forged_total",
        "Seats, bills and bookings of flights in Redis that no proxy of ours has written there.",
        lambda: bills.forged_total,
    )
    watch("flight_bills_full_total", "Bills not split because too many were.", lambda: bills.full_total)
    watch("flight_parts_orphaned_total", "Parts of bills that nobody booked in time.", lambda: bills.orphaned_total)
    watch(
        "flight_parts_orphaned_nanousd_total",
        "Cost of the parts that nobody booked in time, in nano-USD.",
        lambda: bills.orphaned_nanousd,
    )
    watch(
        "flight_parts_returned_nanousd_total",
        "Of that cost, what was booked later all the same, in nano-USD.",
        lambda: bills.returned_nanousd,
    )


def splits(call: Call) -> bool:
    """Whether its tenant wants the bills of flights split."""
    return call.identity is not None and call.identity.tenant.cache.coalesce_cost is CoalesceCost.SPLIT


def _nanousd(attempts: Sequence[AttemptRecord]) -> int:
    return sum(attempt.cost_nanousd for attempt in attempts)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _taker() -> bytes:
    """Whoever counts, among all workers."""
    return os.urandom(_TAKER_BYTES).hex().encode()

"""Requests per minute that workers and hosts share: one token bucket in Redis, from which each worker takes what it needs soon.

What a worker has taken and not used within `HOLD_S` it gives back. So over any time t all workers together let in at most

    limit + limit / 60 * (t + HOLD_S)

requests. The level in Redis is not sealed, so each worker keeps a bucket of the whole limit beside it and takes no more than that would give, whatever
it is told: who may write to Redis makes a rate that of each worker, at most.

When Redis does not answer, each worker refills its own part of the bucket (`proxy.quotas.bucket`), from its part of the level that it heard of last.
What it let in meanwhile it says when Redis is back, and all workers wait until that has been made up for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from hashlib import blake2b

from proxy.quotas.account import Share
from proxy.quotas.bucket import Bucket, Stock
from proxy.shared import Script, SharedState, SharedUnavailable

TAKE = Script(
    "rate-take",
    """
    local key, now, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
    local need, want, back = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
    if now == 0 then
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local known = redis.call('HMGET', key, 'level', 'at')
    local level, at = tonumber(known[1] or limit) or 0, math.min(tonumber(known[2] or now) or now, now)
    if not (level >= -limit) then level = 0 end
    if not (at >= 0) then at = now end
    level = math.min(limit, level + math.max(0, now - at) * limit / 60000 + math.max(0, back))
    level = math.max(-limit, level + math.min(0, back))
    local taken = math.max(0, math.min(need, math.floor(level)))
    taken = taken + math.min(math.max(want - taken, 0), math.max(0, math.floor((level - taken) / 2)))
    redis.call('HSET', key, 'level', string.format('%.6f', level - taken), 'at', string.format('%.0f', now))
    redis.call('PEXPIRE', key, 120000)
    return {taken, math.floor(level - taken)}
    """,
)
"""Gives back (below zero: says what was used on one's own), refills, takes: what was taken, and what is left for all."""

HOLD_S = 2.0
_MEASURED_S_MIN = 0.5


class SharedRate:
    """One tenant's rate as one worker has it."""

    __slots__ = (
        "_alone", "_began_s", "_demand", "_filled", "_rates", "_room", "_room_s", "bucket", "degraded", "key", "left", "limit", "lock",
        "low", "rate", "stock_until_s", "unanswered", "waiting",
    )  # fmt: skip

    def __init__(self, rates: Rates, key: bytes, limit: int) -> None:
        self._rates = rates
        self.key = key
        self.limit = limit
        self.bucket: Bucket | None = None
        self.lock = asyncio.Lock()
        self.degraded = False
        self.unanswered = False  # the last question had no answer
        self.stock_until_s = 0.0  # what is held may be used before this moment
        self.left = limit  # in Redis, when it answered last; a bucket of which nobody has heard is full there too
        self.low = 0.0
        self.rate = 0.0  # requests a second
        self.waiting = 0  # calls that wait for one
        self._demand = 0
        self._alone = 0.0  # requests let in on its own that Redis was not told of
        self._filled = 0.0  # the level on its own, before somebody used of it
        self._began_s = self._room_s = rates.monotonic()
        self._room = float(limit)  # what a bucket of the whole limit would give to this worker alone

    def look(self, bucket: Bucket, now_s: float) -> None:
        """Makes the level what may be taken now, and asks for more ahead of need."""
        rates = self._rates
        self._demand += 1
        out = rates.shared.degraded or self.unanswered
        if self.degraded:
            self._count_alone(now_s)
            if not out:
                self.degraded = False
                bucket.level = 0.0
        self.bucket = bucket
        if self.degraded:
            return
        if out:
            self.degraded = True
            bucket.level += rates.share.of(self.left)
            self.left = 0  # it has its part of that
            bucket.elsewhere = 0.0
            return
        bucket.elsewhere = float(self.left)
        if now_s >= self.stock_until_s:
            bucket.level = 0.0  # nobody was there to give it back in time
        if bucket.level - 1.0 < self.low or now_s >= self.stock_until_s - HOLD_S / 2:
            rates.ask(self)

    def filled(self, level: float) -> None:
        """Hears what it may let in on its own."""
        self._filled = level

    def _count_alone(self, now_s: float) -> None:
        """Counts what was used on its own since the last look: never more than its part lacks, for the rest has come back since."""
        bucket = self.bucket
        if bucket is None:
            return
        if bucket.level < self._filled:
            self._alone += self._filled - bucket.level
            self._filled = bucket.level
        level = bucket.level + (now_s - bucket.updated_s) * bucket.per_minute / 60.0
        self._alone = min(self._alone, max(0.0, bucket.per_minute - level))

    async def take(self) -> None:
        """Gives back what was held too long, and takes what is needed soon. Raises SharedUnavailable."""
        rates, bucket = self._rates, self.bucket
        if bucket is None:
            return
        now_s = rates.monotonic()
        if self.degraded:
            self._count_alone(now_s)
        idle = not self._demand and not self.waiting
        back = 0 if self.degraded or now_s >= self.stock_until_s else int(bucket.level)
        kept = 0 if idle else back
        bucket.level -= back - kept  # given up before it is said
        want = 0 if idle or self.degraded else self._ahead(now_s)
        need = 0 if self.degraded else max(kept, self.waiting)
        owed = int(self._alone)
        back -= owed
        try:
            taken, left = await rates.take(self, need=need, want=max(need, want), back=back)
        except SharedUnavailable:
            self.unanswered = True
            raise
        taken = self._believed(taken, back, now_s)
        self.unanswered = False
        self._alone = max(0.0, self._alone - owed)
        self.left = max(0, min(left, self.limit))
        if not self.degraded:
            if now_s >= self.stock_until_s:
                bucket.level = 0.0
            self.stock_until_s = now_s + HOLD_S
            bucket.level += taken - kept
            bucket.elsewhere = float(max(0, left))

    def _believed(self, taken: int, back: int, now_s: float) -> int:
        """What may be used of what was given; a second's worth is left for clocks and ways that differ."""
        spare = self.limit / 60.0
        self._room = min(self.limit + spare, self._room + max(0.0, now_s - self._room_s) * spare + back)
        self._room_s = now_s
        believed = max(0, min(taken, int(self._room)))
        self._rates.grants_cut_total += believed < taken
        self._room -= believed
        return believed

    def _ahead(self, now_s: float) -> int:
        """What the next second will probably need."""
        passed_s = now_s - self._began_s
        if passed_s >= _MEASURED_S_MIN:
            measured = self._demand / passed_s
            self.rate = (self.rate + measured) / 2 if self.rate else measured
            self._demand, self._began_s = 0, now_s
        else:
            self.rate = min(max(self.rate * 2, self._demand / _MEASURED_S_MIN), float(self.limit))
        self.low = self.rate / 2
        return int(self.rate) + 1


class Rates:
    """The shared rates of one worker."""

    def __init__(
        self,
        shared: SharedState,
        *,
        share: Share,
        monotonic: Callable[[], float] = time.monotonic,
        redis_now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """share: this worker's part when it is on its own. redis_now_ms: the clock of the bucket; 0: Redis' own."""
        self.shared = shared
        self.share = share
        self.monotonic = monotonic
        self._redis_now_ms = redis_now_ms
        self._prefix = shared.prefix + b"r:{"
        self._rates: dict[str, SharedRate] = {}
        self._asked: dict[bytes, SharedRate] = {}
        self._wake = asyncio.Event()
        self.restocks_total = 0
        self.grants_cut_total = 0  # times that more was given than the whole limit

    @property
    def degraded(self) -> int:
        """Tenants whose rate this worker keeps on its own now."""
        return sum(rate.degraded for rate in self._rates.values())

    def stock(self, tenant: str, limit: int) -> Stock:
        """The source of a tenant's requests; a changed limit goes on with the same bucket."""
        rate = self._rates.get(tenant)
        if rate is None:
            digest = blake2b(tenant.encode(), digest_size=12).hexdigest().encode()
            rate = self._rates[tenant] = SharedRate(self, self._prefix + digest + b"}", limit)
        rate.limit = limit
        return rate

    def ask(self, rate: SharedRate) -> None:
        """Has the keeper take more soon."""
        if rate.key not in self._asked:
            self._asked[rate.key] = rate
            self._wake.set()

    async def restock(self, stock: Stock) -> None:
        """Takes one request for a call that waits; bounded in time, never raises."""
        if not isinstance(stock, SharedRate):
            return
        self.restocks_total += 1
        stock.waiting += 1
        try:
            async with stock.lock:
                bucket = stock.bucket
                if bucket is not None and bucket.level < stock.waiting:
                    await stock.take()
        except SharedUnavailable:
            return
        finally:
            stock.waiting -= 1

    async def run(self) -> None:
        """Takes ahead of need, and gives back what is not used. Cancel it to stop."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S / 2):
                    await self._wake.wait()
            self._wake.clear()
            await self.keep()

    async def keep(self) -> None:
        """One round of that."""
        now_s = self.monotonic()
        asked, self._asked = self._asked, {}
        for rate in self._rates.values():
            held = rate.bucket is not None and rate.bucket.level >= 1.0 and not rate.degraded
            if rate.unanswered or rate.degraded or (held and now_s >= rate.stock_until_s - HOLD_S / 2):
                asked[rate.key] = rate
        for rate in asked.values():
            with contextlib.suppress(SharedUnavailable):
                async with rate.lock:
                    await rate.take()

    async def aclose(self) -> None:
        """Gives back what is held."""
        for rate in self._rates.values():
            rate._demand = 0  # noqa: SLF001 - one machine in two classes
            try:
                await rate.take()
            except SharedUnavailable:
                return

    async def take(self, rate: SharedRate, *, need: int, want: int, back: int) -> tuple[int, int]:
        """One question to Redis: what was taken, and what is left for all. Raises SharedUnavailable."""
        answer = await self.shared.run(TAKE, (rate.key,), self._redis_now_ms(), rate.limit, need, want, back)
        if not isinstance(answer, list) or len(answer) != 2:
            raise SharedUnavailable("Redis answered something else")
        taken, left = (item if isinstance(item, int) else 0 for item in answer)
        return taken, left


def watch_rates(watch: Callable[[str, str, Callable[[], float]], None], rates: Rates | None) -> None:
    """Shows the figures of shared rates; without Redis they are there all the same, and stay zero."""
    watch(
        "rate_degraded",
        "Tenants whose request rate this worker holds to its own part because Redis does not answer.",
        lambda: 0.0 if rates is None else float(rates.degraded),
    )
    watch(
        "rate_restocks_total",
        "Calls that waited for a larger part of a shared request rate.",
        lambda: 0.0 if rates is None else float(rates.restocks_total),
    )
    watch(
        "rate_grants_cut_total",
        "Times that Redis gave one worker more requests than the whole rate allows.",
        lambda: 0.0 if rates is None else float(rates.grants_cut_total),
    )

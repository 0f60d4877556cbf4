"""The third tier of the cache: answers that several workers and hosts share, in Redis.

A call waits for Redis at most `redis_timeout_s`, and only when neither memory nor disk has the answer. Nobody waits for a write, for a
connection or for a breaker's probe: connections are made behind, and when Redis is gone, refuses, or answered too late `redis_failures_max`
times in a row, the tier is *out*: look-ups are skipped until a probe, `redis_pause_s` later, was answered in time. A slow Redis is
worse than a dead one, so it is treated as one. Whatever is wrong here is a miss.

A value is `cache_entry`'s encoding behind a seal: a keyed hash of the key and the value, under a secret that only the proxies
of this installation have. What is damaged, was put there by somebody else, or lies under another's key is a miss, and two installations
that share a Redis never share an answer. Redis expires entries itself; keys are `heph:cache:<hex>`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from redis.exceptions import ReadOnlyError, ResponseError

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import parse_redis_address
from proxy.settings import ProxySecrets
from proxy.transports.cache_behind import Batch, WriteBehind
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_seal import EntrySeals
from proxy.transports.redis_line import LINE_TROUBLE, LineLost, RedisLine, open_line

STALL_FACTOR = 2  # a deadline missed by this factor was missed by our own event loop

log = structlog.get_logger("proxy.cache_redis")


class SharedTier(Protocol):
    """Entries that workers and hosts share. Nothing here ever fails: whatever is wrong is a miss."""

    @property
    def degraded(self) -> bool:
        """Whether it is out: look-ups and writes are skipped."""
        ...

    def open(self) -> None:
        """Begins to connect."""
        ...

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, within a bounded time."""
        ...

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Has an entry written some time soon, or not at all; never waits."""
        ...

    async def flush(self) -> None:
        """Waits until all that was put is written or dropped."""
        ...

    async def aclose(self) -> None:
        """Writes what waits, within bounds, and closes; safe to call twice."""
        ...


class RedisTier(WriteBehind):
    """Entries by key in a Redis that others use too. Every wait and every queue has a bound of the settings."""

    def __init__(
        self,
        settings: ProxySettings,
        secrets: ProxySecrets,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Nothing is connected yet; until `open`, and until Redis has answered, every look-up is skipped. now_us: the wall clock.

        Raises ValueError if `settings.redis` is not an address.
        """
        super().__init__(settings)
        self._address = parse_redis_address(settings.redis or "")
        self._password = secrets.redis_password
        self._seals = EntrySeals(secrets.pepper_bytes)
        self._now_us = now_us
        self._readers: tuple[RedisLine, ...] = ()
        self._writer: RedisLine | None = None
        self._out = asyncio.Event()
        self._failures = 0
        self._keeper: asyncio.Task[None] | None = None
        self._complained = False
        self.misses_total = 0
        self.skipped_total = 0
        self.busy_total = 0
        self.errors_total = 0
        self.damaged_total = 0

    @property
    def degraded(self) -> bool:
        """Whether the tier is out: look-ups and writes are skipped."""
        return not self._readers

    def open(self) -> None:
        """Begins to connect; calls need not wait for that."""
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="redis-keeper")

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, or None: not there, not ours, or Redis is out, refuses or is too slow. Takes at most `redis_timeout_s`."""
        if not self._readers:
            self.skipped_total += 1
            return None
        line = min(self._readers, key=_waiting)
        if line.waiting * len(self._readers) >= self._settings.redis_waiting_max:
            self.busy_total += 1
            return None
        data = await self._ask(line, key)
        if not data:
            return None
        entry = self._seals.opened(key, data)
        self.damaged_total += entry is None
        return entry

    async def aclose(self) -> None:
        """Writes what waits, within the time of one connection, and closes; safe to call twice."""
        try:
            async with asyncio.timeout(self._settings.redis_connect_timeout_s):
                await self.flush()
        except TimeoutError:
            self._take_out("the proxy stops")
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _ask(self, line: RedisLine, key: bytes) -> bytes | None:
        """What lies under a key, cut off behind the largest value that can be ours; None or b"": nothing that is of use."""
        loop, timeout_s = asyncio.get_running_loop(), self._settings.redis_timeout_s
        asked_s = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                # unlike GET, this bounds what a foreign value can cost us
                data = await line.ask("GETRANGE", self._seals.name_of(key), 0, self._settings.redis_entry_bytes_max)
        except TimeoutError:
            self.errors_total += 1
            if loop.time() - asked_s < timeout_s * STALL_FACTOR:
                self._failed("it answers too late")
            return None
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                self.damaged_total += 1
            else:
                self.errors_total += 1
                self._failed(f"it refuses a look-up: {error}")
            return None
        except LineLost:
            self.errors_total += 1
            self._take_out("the connection was lost")
            return None
        self._failures = 0
        self.misses_total += not data
        return data if isinstance(data, bytes) else None

    async def _keep(self) -> None:
        """Connects, waits until the tier is out, closes, pauses, and connects again, for ever."""
        while True:
            lines: list[RedisLine] = []
            try:
                await self._connect(lines)
            except (*LINE_TROUBLE, LineLost) as error:
                self.errors_total += 1
                self._complain(str(error) or type(error).__name__)
            else:
                self._failures = 0
                self._out.clear()
                self._writer, self._readers = lines[0], tuple(lines[1:])
                if self._complained:
                    self._complained = False
                    log.info("Redis is used again")
                await self._out.wait()
            finally:
                self._writer, self._readers = None, ()
                for line in lines:
                    await line.aclose()
            await asyncio.sleep(self._settings.redis_pause_s)

    async def _connect(self, lines: list[RedisLine]) -> None:
        """Adds all lines, of which the last has just answered as fast as a look-up must be answered."""
        settings = self._settings
        password = None if self._password is None else self._password.reveal()
        async with asyncio.timeout(settings.redis_connect_timeout_s):
            while len(lines) < settings.redis_connections_max:
                line = await open_line(
                    self._address,
                    password=password,
                    timeout_s=settings.redis_connect_timeout_s,
                    on_lost=self._line_lost,
                )
                lines.append(line)
        async with asyncio.timeout(settings.redis_timeout_s):
            await lines[-1].ask("PING")

    def _line_lost(self) -> None:
        if self._readers:
            self.errors_total += 1
            self._take_out("the connection was lost")

    def _failed(self, reason: str) -> None:
        """One more failure in a row."""
        self._failures += 1
        if self._failures >= self._settings.redis_failures_max:
            self._take_out(reason)

    def _take_out(self, reason: str) -> None:
        """Opens the breaker: nothing is asked from now on; the keeper closes the lines."""
        if self._readers:
            self._complain(reason)
        self._writer, self._readers = None, ()
        self._out.set()

    def _complain(self, reason: str) -> None:
        """Once until Redis is used again."""
        if not self._complained:
            self._complained = True
            log.warning("Redis is not used; going on with what each worker has itself", reason=reason)

    async def _write(self, batch: Batch) -> int:
        """Writes some entries at once; returns how many."""
        line = self._writer
        if line is None:
            return 0
        asks = []
        for key, entry in batch:
            ttl_ms = (entry.expires_us - self._now_us()) // 1000
            value = self._seals.sealed(key, entry)
            if len(value) > self._settings.redis_entry_bytes_max:
                self.too_large_total += 1
            elif ttl_ms > 0:
                asks.append(line.ask("SET", self._seals.name_of(key), value, "PX", ttl_ms))
        try:
            async with asyncio.timeout(self._settings.redis_connect_timeout_s):
                answers = await asyncio.gather(*asks, return_exceptions=True)
        except TimeoutError:
            self.errors_total += 1
            self._take_out("a write takes too long")
            return 0
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        self.errors_total += len(refused)
        if any(isinstance(answer, ReadOnlyError) for answer in refused):  # the master is another by now
            self._take_out("it takes no writes any more")
        return len(answers) - len(refused)


def watch_redis(watch: Callable[[str, str, Callable[[], float]], None], tier: SharedTier | None) -> None:
    """Shows the tier's figures; without a tier they are there all the same, and stay zero."""
    for name, text in (
        ("misses", "Look-ups that found nothing in Redis."),
        ("errors", "What went wrong with Redis: late or refused look-ups, refused writes, connections lost or not made."),
        ("skipped", "Look-ups not made because Redis was out."),
        ("busy", "Look-ups not made because too many waited for Redis."),
        ("damaged", "Values in Redis that are not what this installation wrote there."),
        ("written", "Answers written to Redis."),
        ("too_large", "Answers not written to Redis because of their size."),
        ("dropped", "Answers not written to Redis because it was out, failed, or too many waited."),
    ):  # fmt: skip
        watch(f"cache_redis_{name}_total", text, _figure(tier, f"{name}_total"))
    watch("cache_redis_degraded", "1 while a configured Redis is out, else 0.", _figure(tier, "degraded"))


def _figure(tier: SharedTier | None, name: str) -> Callable[[], float]:
    return lambda: 0.0 if tier is None else float(getattr(tier, name))


def _waiting(line: RedisLine) -> int:
    return line.waiting

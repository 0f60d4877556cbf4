"""Stored answers: an exact cache in up to three tiers: memory, disk, and a Redis that workers and hosts share.

What is stored: a complete answer of an upstream, HTTP 200, whose protocol ended as it should, for a reason that would come again
(`Operation.storable_reasons`: an answer cut by the client's own `max_tokens` is the whole answer to that request; a content filter's is not),
and which is not too large. Refusals, errors, broken or abandoned streams are never stored. A stream is stored as its events and
replayed as a stream in few writes; streams and whole answers have different keys, because `stream` is part of the body.

For whom: the key begins with the tenant (`cache_key`), and the entry's tenant is compared once more at each hit. For how long: the
route's `cache_ttl_s`, else the tenant's; `x-heph-cache-ttl` can shorten it. Every answer may be stored whatever its temperature:
who wants a fresh one says `Cache-Control: no-cache` (or `no-store` to leave no trace), and an operator can switch the cache off for a tenant.

A hit costs nothing: `call.tokens` and `call.cost_nanousd` stay zero, `call.saved_nanousd` is what the stored answer cost.
Headers of the first call are not kept, but for the content type.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from controlplane.contract.pricing import NO_TOKENS
from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, ChunkStream, Reply, Transport
from proxy.dialects.openai_stream import DONE
from proxy.dialects.operations import OPERATIONS
from proxy.refusals import NOT_CACHED, refuse
from proxy.savings import avoided_nanousd
from proxy.transports.cache_control import CacheControl, read_cache_control
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import CacheEntry, joined
from proxy.transports.cache_key import cache_key, variant_of
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_redis import RedisTier

CACHEABLE_OPERATIONS = frozenset(name for name, row in OPERATIONS.items() if row.cached)
CLOCK_SLACK_US = 1_000_000  # an entry from further in the future was written under another clock
FLUSH_TIMEOUT_S = 5.0

_OK = 200


class Cache:
    """Serves stored answers, and stores what the inner transport brings."""

    def __init__(
        self,
        inner: Transport,
        *,
        memory: MemoryTier,
        disk: DiskTier | None,
        entry_bytes_max: int,
        redis: RedisTier | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """The tiers belong to the cache from now on. now_us: the wall clock."""
        self._inner = inner
        self._memory = memory
        self._disk = disk
        self._redis = redis
        self._entry_bytes_max = entry_bytes_max
        self._now_us = now_us
        self.hits_memory_total = 0
        self.hits_disk_total = 0
        self.hits_redis_total = 0
        self.misses_total = 0
        self.stored_total = 0
        self.too_large_total = 0

    @property
    def memory(self) -> MemoryTier:
        """The first tier, for its figures."""
        return self._memory

    @property
    def disk(self) -> DiskTier | None:
        """The second tier, for its figures."""
        return self._disk

    @property
    def redis(self) -> RedisTier | None:
        """The third tier, for its figures."""
        return self._redis

    async def open(self) -> None:
        """Opens the disk tier and begins to connect to Redis; calls may come before that."""
        if self._redis is not None:
            self._redis.open()
        if self._disk is not None:
            await self._disk.open()

    def lookup(self, call: Call) -> Reply | None:
        """A stored answer from memory, at once; None if there is none there, and then `send` goes on from here.

        Decides how the call stands to the cache: sets `request_cache`, `cache_key`, `cache_ttl_s` and `cache`.
        """
        if not self._prepare(call):
            return None
        entry = self._memory.get(call.cache_key)
        if entry is None:
            return None
        reply = self._serve(call, entry)
        if reply is None:
            if entry.expires_us <= self._now_us():
                self._memory.remove(call.cache_key)
            return None
        self.hits_memory_total += 1
        return reply

    async def send(self, call: Call) -> Reply:
        """A stored answer from any tier, or what the inner transport says, stored on its way if it is worth it."""
        if call.request_cache is None:
            reply = self.lookup(call)
            if reply is not None:
                return reply
        if call.cache is CacheState.MISS:
            reply = await self._from_disk(call)
            if reply is None and self._redis is not None:
                reply = await self._from_redis(call, self._redis)
            if reply is not None:
                return reply
            self.misses_total += 1
        control = call.request_cache
        if isinstance(control, CacheControl) and control.only_if_cached:
            return refuse(NOT_CACHED, "no stored answer, and `Cache-Control: only-if-cached` forbids to ask for one")
        reply = await self._inner.send(call)
        if call.cache_key and call.cache is not CacheState.COALESCED:
            if reply.stream is not None:
                reply.stream = _Recording(self, call, reply, reply.stream, bytes_max=self._entry_bytes_max)
            elif self._store(call, reply, body=reply.body):
                reply.stored_ttl_s = call.cache_ttl_s
        return reply

    async def aclose(self) -> None:
        """Hands memory to the disk for the next start, within bounds, and closes all below; safe to call twice."""
        disk, self._disk = self._disk, None
        if disk is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_TIMEOUT_S):
                    await self._hand_over(disk)
            await disk.aclose()
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()
        await self._inner.aclose()

    async def _hand_over(self, disk: DiskTier) -> None:
        """Puts what memory holds on disk, the most useful first."""
        for key, entry in self._memory.newest_first():
            if entry.expires_us > self._now_us():
                if not disk.has_room(entry):
                    await disk.flush()
                disk.put(key, entry)

    def _prepare(self, call: Call) -> bool:
        """Whether to look for a stored answer; all the call's cache fields are set behind this."""
        call.cache = CacheState.BYPASS
        call.request_cache = control = read_cache_control(call.headers)
        identity, route, view = call.identity, call.route, call.view
        if identity is None or route is None or view is None or call.operation not in CACHEABLE_OPERATIONS:
            return False
        policy = identity.tenant.cache
        ttl_s = policy.ttl_s if route.route.cache_ttl_s is None else route.route.cache_ttl_s
        if control.ttl_s is not None:
            ttl_s = min(ttl_s, control.ttl_s)
        if not policy.enabled or ttl_s <= 0 or control.no_store:
            return False
        key = cache_key(
            tenant=identity.tenant.id,
            operation=call.operation,
            alias=route.route.alias,
            body=call.body,
            variant=variant_of(call.headers, prefix=OPERATIONS[call.operation].forwarded_prefix),
        )
        if key is None:
            return False
        call.cache_key = key
        call.cache_ttl_s = ttl_s
        if control.no_cache:
            return False
        call.cache = CacheState.MISS
        return True

    async def _from_disk(self, call: Call) -> Reply | None:
        disk, key = self._disk, call.cache_key
        if disk is None or not disk.holds(key, now_us=self._now_us()):
            return None
        entry = await disk.get(key)
        if entry is None:
            return None
        reply = self._serve(call, entry)
        if reply is not None:
            self.hits_disk_total += 1
            self._remember(key, entry)
        return reply

    async def _from_redis(self, call: Call, redis: RedisTier) -> Reply | None:
        key = call.cache_key
        entry = await redis.get(key)
        reply = None if entry is None else self._serve(call, entry)
        if entry is not None and reply is not None:
            self.hits_redis_total += 1
            self._remember(key, entry)
        return reply

    def _serve(self, call: Call, entry: CacheEntry) -> Reply | None:
        """The reply made of an entry, or None if this call may not have it."""
        age_us = self._now_us() - entry.created_us
        control = call.request_cache
        age_us_max = min(entry.ttl_s, call.cache_ttl_s) * 1_000_000
        if isinstance(control, CacheControl) and control.max_age_s is not None:
            age_us_max = min(age_us_max, control.max_age_s * 1_000_000)
        if age_us >= age_us_max or age_us < -CLOCK_SLACK_US:
            return None
        if call.identity is None or entry.tenant != call.identity.tenant.id:
            return None
        content_type = (b"content-type", entry.content_type.encode("latin-1"))
        reply = Reply(_OK, [content_type], body=entry.body, stream=_Replay(entry.blocks) if entry.stream else None)
        reply.age_s = max(0, age_us) / 1_000_000
        reply.stored_ttl_s = entry.ttl_s
        reply.deployment = entry.deployment
        reply.model = entry.model
        reply.finish_reason = entry.finish_reason
        reply.ending = entry.ending
        reply.complete = True
        reply.usage_known = True
        call.cache = CacheState.HIT
        call.saved_nanousd = entry.nanousd
        if entry.stream:
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
        return reply

    def _store(self, call: Call, reply: Reply, *, body: bytes = b"", blocks: tuple[bytes, ...] = ()) -> bool:
        """Keeps an answer if it is one to keep."""
        identity = call.identity
        if identity is None or not _storable(call, reply):
            return False
        ending = b"" if reply.ending == DONE else reply.ending
        if len(body) + len(ending) + sum(map(len, blocks)) > self._entry_bytes_max:
            self.too_large_total += 1
            return False
        tokens = reply.tokens if reply.usage_known else NO_TOKENS
        entry = CacheEntry(
            tenant=identity.tenant.id,
            created_us=self._now_us(),
            ttl_s=call.cache_ttl_s,
            content_type=_content_type(reply),
            body=body,
            blocks=blocks,
            stream=bool(blocks),
            deployment=reply.deployment,
            model=reply.model,
            finish_reason=reply.finish_reason,
            tokens=tokens,
            nanousd=avoided_nanousd(call, reply.deployment, tokens),
            ending=ending,
        )
        self._remember(call.cache_key, entry)
        if self._redis is not None:
            self._redis.put(call.cache_key, entry)
        self.stored_total += 1
        return True

    def _remember(self, key: bytes, entry: CacheEntry) -> None:
        for evicted_key, evicted in self._memory.put(key, entry):
            if self._disk is not None and evicted.expires_us > self._now_us():
                self._disk.put(evicted_key, evicted)


class _Recording:
    """A stream on its way to the client, kept in passing and stored at its end."""

    __slots__ = ("_bytes", "_bytes_max", "_cache", "_call", "_chunks", "_inner", "_reply")

    def __init__(self, cache: Cache, call: Call, reply: Reply, inner: ChunkStream, *, bytes_max: int) -> None:
        self._cache = cache
        self._call = call
        self._reply = reply
        self._inner = inner
        self._bytes_max = bytes_max
        self._chunks: list[bytes] | None = []  # None: not to be stored
        self._bytes = 0

    async def read(self) -> bytes:
        """The inner stream's next chunk."""
        chunk = await self._inner.read()
        chunks = self._chunks
        if chunks is None:
            return chunk
        if not chunk:
            self._chunks = None
            self._cache._store(self._call, self._reply, blocks=joined(chunks))  # noqa: SLF001 - one machine in two classes
            return chunk
        self._bytes += len(chunk)
        if self._bytes > self._bytes_max:
            self._chunks = None
            self._cache.too_large_total += 1
        else:
            chunks.append(chunk)
        return chunk

    def close(self) -> None:
        """What was not read to its end is not stored."""
        self._chunks = None
        self._inner.close()


class _Replay:
    """A stored stream, sent again."""

    __slots__ = ("_blocks", "_next")

    def __init__(self, blocks: tuple[bytes, ...]) -> None:
        self._blocks = blocks
        self._next = 0

    async def read(self) -> bytes:
        """The next block."""
        index = self._next
        if index >= len(self._blocks):
            return b""
        self._next = index + 1
        return self._blocks[index]

    def close(self) -> None:
        """Nothing is held."""
        self._next = len(self._blocks)


def _storable(call: Call, reply: Reply) -> bool:
    if reply.status != _OK or not reply.complete or reply.outcome is not Outcome.OK or reply.source != "upstream":
        return False
    reasons = OPERATIONS[call.operation].storable_reasons
    return not reasons or reply.finish_reason in reasons


def _content_type(reply: Reply) -> str:
    for name, value in reply.headers:
        if name == b"content-type":
            return value.decode("latin-1")
    return "application/json"

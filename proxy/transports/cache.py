"""Stored answers: an exact cache in up to three tiers: memory, disk, and a Redis that workers and hosts share.

What is stored: a complete answer of an upstream, HTTP 200, whose protocol ended as it should, for a reason that would come again
(`Operation.storable_reasons`: an answer cut by the client's own `max_tokens` is the whole answer to that request; a content filter's is not),
and which is not too large. Broken or abandoned streams, errors and our own refusals are never stored. A stream is stored as its events and
replayed as a stream in few writes; streams and whole answers have different keys, because `stream` is part of the body.

For whom: the key begins with the tenant (`cache_key`), and the entry's tenant is compared once more at each hit. For how long:
`cache_policy`. Every answer may be stored whatever its temperature: who wants a fresh one says `Cache-Control: no-cache` (or
`no-store` to leave no trace), and an operator can switch the cache off for a tenant. Past its time an answer is *stale*: it may be served
at once while one background call asks anew, and instead of an error where the upstreams fail; both where the policy says so.

Where the policy says so, an upstream's permanent refusal of a request is kept for a short while too, in memory, under a key of its own,
so that it never takes the place of a good answer. It is about the very bytes of the request, for a provider may refuse a user that no
answer depends on, and about one snapshot, for it may be our credential that has no access to a model.

A hit costs nothing: `call.tokens` and `call.cost_nanousd` stay zero, `call.saved_nanousd` is what the stored answer cost.
Headers of the first call are not kept, but for the content type.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

from controlplane.contract.pricing import NO_TOKENS
from controlplane.contract.records import CacheState, Outcome
from controlplane.contract.snapshot import CacheInvalidation
from proxy.call import Call, Reply, Transport
from proxy.dialects.openai_stream import DONE
from proxy.refusals import NOT_CACHED, refuse
from proxy.repeats import Repeats
from proxy.savings import avoided_nanousd
from proxy.transports.cache_control import PLAIN, CacheControl
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_items import Items, Parts
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_policy import (
    STALE_OUTCOMES,
    holds_answer,
    is_storable,
    known_of,
    negative_ttl_s,
    prepare,
    staleness,
)
from proxy.transports.cache_redis import SharedTier
from proxy.transports.cache_refresh import Refreshes
from proxy.transports.cache_replay import Recording, content_type_of, reply_of
from proxy.transports.cache_rules import Rules
from proxy.transports.cache_store import Store

CLOCK_SLACK_US = 1_000_000  # an entry from further in the future was written under another clock
_BODY_BYTES = 16  # of a digest


class Cache:
    """Serves stored answers, and stores what the inner transport brings."""

    def __init__(
        self,
        inner: Transport,
        *,
        memory: MemoryTier,
        disk: DiskTier | None,
        entry_bytes_max: int,
        redis: SharedTier | None = None,
        refreshes: Refreshes | None = None,
        repeats: Repeats | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """The tiers belong to the cache from now on.

        refreshes: who asks stale answers anew; None: nobody. repeats: learns the requests that memory answers. now_us: the wall clock.
        """
        self._inner = inner
        self.store = Store(memory, disk, redis, now_us=now_us)
        self._memory = memory
        self._entry_bytes_max = entry_bytes_max
        self._refreshes = refreshes
        self.repeats = Repeats(bytes_max=0) if repeats is None else repeats
        self._now_us = now_us
        self._items = Items(
            self.store,
            may_serve=self._may_serve,
            may_serve_on_error=self._may_serve_on_error,
            entry_bytes_max=entry_bytes_max,
            now_us=now_us,
        )
        self._rules: Rules | None = None  # None: there are none
        self.misses_total = 0
        self.stored_total = 0
        self.too_large_total = 0
        self.stale_total = 0
        self.stale_if_error_total = 0
        self.negative_total = 0
        self.invalidated_total = 0

    @property
    def memory(self) -> MemoryTier:
        """The first tier, for its figures."""
        return self._memory

    @property
    def disk(self) -> DiskTier | None:
        """The second tier, for its figures."""
        return self.store.disk

    @property
    def redis(self) -> SharedTier | None:
        """The third tier, for its figures."""
        return self.store.redis

    async def open(self) -> None:
        """Opens the disk tier and begins to connect to Redis; calls may come before that."""
        await self.store.open()

    def configure(self, rules: tuple[CacheInvalidation, ...]) -> None:
        """Takes the invalidations in force; from now on nothing that fits one is served."""
        self._rules = self._items.rules = Rules(rules) if rules else None

    def lookup(self, call: Call) -> Reply | None:
        """A stored answer from memory, at once; None if there is none there, and then `send` goes on from here.

        Decides how the call stands to the cache: sets `request_cache`, `cache_key`, `cache_ttl_s` and `cache`.
        """
        if not prepare(call):
            return None
        if call.operation == "embeddings":
            reply = self._items.lookup(call)
            if reply is not None or call.parts is not None:
                return reply or (self._negative(call) if _keeps_refusals(call) else None)
        key = call.cache_key
        entry = self._memory.get(key)
        if entry is None:
            return self._negative(call) if _keeps_refusals(call) else None
        reply = self._serve(call, entry)
        if reply is None:
            if entry.expires_us <= self._now_us() or (self._rules is not None and self._rules.forbid(entry)):
                self._memory.remove(key)
            return self._negative(call) if _keeps_refusals(call) else None
        self.store.hits_memory_total += 1
        if call.known is None:
            self._learn(call)
        return reply

    def _learn(self, call: Call) -> None:
        known = known_of(call)
        if known is not None and call.identity is not None:
            self.repeats.note(call.identity.tenant.id, call.operation, call.body, known)

    def deeper(self, call: Call) -> Callable[[], Awaitable[None]] | None:
        """After a `lookup` without an answer: what brings one up into memory, if a tier below may have it; it never raises."""
        if call.cache is not CacheState.MISS:
            return None
        parts = call.parts
        if isinstance(parts, Parts):
            if any(self.store.may_hold(parts.keys[at]) for at in parts.missing):
                return partial(self._items.bring_up, call, parts)
        elif self.store.may_hold(call.cache_key):
            return partial(self._bring_up, call)
        return None

    async def _bring_up(self, call: Call) -> None:
        store, key = self.store, call.cache_key
        entry = await store.from_disk(key)
        if entry is None or not self._may_serve(call, entry):
            entry = await store.from_redis(key) or entry
        if entry is not None:
            store.remember(key, entry)

    async def send(self, call: Call) -> Reply:
        """A stored answer from any tier, or what the inner transport says, stored on its way if it is worth it."""
        if call.request_cache is None:
            reply = self.lookup(call)
            if reply is not None:
                return reply
        if call.operation == "embeddings" and call.cache_key:
            reply = await self._send_items(call)
            if reply is not None:
                return reply
        if call.cache is CacheState.MISS:
            below = await self._from_below(call, self._serve) if self.store.may_hold(call.cache_key) else None
            reply = below or self._stored_since(call)
            if reply is not None:
                return reply
            self.misses_total += 1
        if call.request_cache is not PLAIN and _only_if_cached(call):
            return _not_cached()
        rules = self._rules
        reply = await (self._inner.send(call) if rules is None else self._ask_since(call, rules))
        if not call.cache_key:
            return reply
        if reply.outcome is not Outcome.OK and reply.outcome in STALE_OUTCOMES and call.cache is not CacheState.BYPASS:
            return await self._stale_instead(call) or reply
        if call.cache is not CacheState.COALESCED:
            self._record(call, reply)
        return reply

    async def _ask_since(self, call: Call, rules: Rules) -> Reply:
        """What the inner transport says, where an answer that a rule fits may be in flight."""
        key, identity, route = call.cache_key, call.identity, call.route
        if key and identity is not None and route is not None:
            call.cache_key = rules.flight_key(key, tenant=identity.tenant.id, alias=route.route.alias)
        try:
            return await self._inner.send(call)
        finally:
            call.cache_key = key

    def _stored_since(self, call: Call) -> Reply | None:
        """The answer to an identical call that has ended since the look-up."""
        entry = self._memory.get(call.cache_key)
        if entry is None:
            return None
        reply = self._serve(call, entry)
        self.store.hits_memory_total += reply is not None
        return reply

    def _record(self, call: Call, reply: Reply) -> None:
        """Has an answer kept: now if it is whole, else when it ends."""
        if reply.stream is None:
            if self._keep(call, reply, body=reply.body):
                reply.stored_ttl_s = call.cache_ttl_s
            return
        reply.stream = Recording(
            reply.stream,
            bytes_max=self._entry_bytes_max,
            on_end=partial(self._keep_stream, call, reply),
            on_large=self._count_large,
        )

    async def _send_items(self, call: Call) -> Reply | None:
        """The same for embeddings, by input: what is stored is not asked for again. None: the request has no list of inputs."""
        if call.fell_back:  # another model stands in
            return None
        items = self._items
        if call.parts is None:
            items.lookup(call)
        parts = call.parts
        if not isinstance(parts, Parts):
            return None
        if call.cache is CacheState.MISS:
            known = await items.from_below(call, parts)
            if known is not None:
                return known
            self.misses_total += 1
        if call.request_cache is not PLAIN and _only_if_cached(call):
            return _not_cached()
        missing = items.narrow(call, parts)
        try:
            reply = await self._inner.send(call)
        finally:
            items.widen(call, parts)
        if reply.outcome in STALE_OUTCOMES and call.cache is not CacheState.BYPASS:
            stale = items.stale_whole(call, parts)
            self.stale_if_error_total += stale is not None
            return stale or reply
        narrowed = len(missing) < len(parts.keys)
        if not is_storable(call, reply):
            if narrowed and reply.outcome is Outcome.OK:
                return await self._ask_whole(call)  # another model stood in for what was missing
            if not narrowed:
                self._keep(call, reply, body=reply.body)
            return reply
        whole = items.complete(call, parts, missing, reply)
        if whole is not None:
            self.stored_total += call.cache is not CacheState.COALESCED
            whole.stored_ttl_s = call.cache_ttl_s
            return whole
        return await self._ask_whole(call) if narrowed else reply

    async def _ask_whole(self, call: Call) -> Reply:
        """The answer to all inputs, where one to some of them does not fit what is stored of the others."""
        call.cache = CacheState.BYPASS
        return await self._inner.send(call)

    async def aclose(self) -> None:
        """Ends the background calls, hands memory to the disk for the next start, and closes all below; safe to call twice."""
        if self._refreshes is not None:
            await self._refreshes.aclose()
        await self.store.aclose()
        await self._inner.aclose()

    def _serve(self, call: Call, entry: CacheEntry) -> Reply | None:
        """The reply made of an entry, or None if this call may not have it. A stale one that it may have is asked anew behind."""
        age_us = self._now_us() - entry.created_us
        if call.request_cache is not PLAIN and _too_old(call, age_us):
            return None
        fresh_us = min(entry.ttl_s, call.cache_ttl_s) * 1_000_000
        if age_us < fresh_us:
            return self._reply_of(call, entry, age_us, CacheState.HIT)
        if not entry.stale_s or age_us >= fresh_us + staleness(call)[0] * 1_000_000:
            return None
        reply = self._reply_of(call, entry, age_us, CacheState.STALE)
        if reply is not None:
            self.stale_total += 1
            if self._refreshes is not None:
                self._refreshes.want(call)
        return reply

    def _serve_on_error(self, call: Call, entry: CacheEntry) -> Reply | None:
        """The same where the upstreams have failed."""
        if not self._may_serve_on_error(call, entry):
            return None
        return self._reply_of(call, entry, self._now_us() - entry.created_us, CacheState.STALE)

    def _reply_of(self, call: Call, entry: CacheEntry, age_us: int, state: CacheState) -> Reply | None:
        """The reply, unless the entry is from the future, another tenant's, or invalidated."""
        if not self._is_valid(call, entry, age_us):
            return None
        reply = reply_of(entry, age_us=age_us)
        call.cache = state
        call.saved_nanousd = entry.nanousd
        if entry.stream:
            call.first_token_us = (time.monotonic_ns() - call.started_ns) // 1000
        return reply

    def _may_serve(self, call: Call, entry: CacheEntry) -> bool:
        """Whether this call may have an entry now, as fresh."""
        age_us = self._now_us() - entry.created_us
        if age_us >= min(entry.ttl_s, call.cache_ttl_s) * 1_000_000 or _too_old(call, age_us):
            return False
        return self._is_valid(call, entry, age_us)

    def _may_serve_on_error(self, call: Call, entry: CacheEntry) -> bool:
        """The same where the upstreams have failed."""
        age_us = self._now_us() - entry.created_us
        keep_us = (min(entry.ttl_s, call.cache_ttl_s) + staleness(call)[1]) * 1_000_000
        return age_us < keep_us and not _too_old(call, age_us) and self._is_valid(call, entry, age_us)

    def _is_valid(self, call: Call, entry: CacheEntry, age_us: int) -> bool:
        """Whether the entry is neither from the future, another tenant's, nor invalidated."""
        if age_us < -CLOCK_SLACK_US or call.identity is None or entry.tenant != call.identity.tenant.id:
            return False
        if self._rules is not None and self._rules.forbid(entry):
            self.invalidated_total += 1
            return False
        return True

    async def _from_below(self, call: Call, serve: Callable[[Call, CacheEntry], Reply | None]) -> Reply | None:
        """What the tiers below memory can serve, the next one asked only when the first has nothing."""
        store, key = self.store, call.cache_key
        entry = await store.from_disk(key)
        reply = None if entry is None else serve(call, entry)
        if entry is not None and reply is not None:
            store.hits_disk_total += 1
            store.remember(key, entry)
            return reply
        entry = await store.from_redis(key)
        reply = None if entry is None else serve(call, entry)
        if entry is not None and reply is not None:
            store.hits_redis_total += 1
            store.remember(key, entry)
        return reply

    async def has_fresher(self, call: Call) -> bool:
        """Whether another worker has put a fresh answer to this call into Redis; then memory has it too."""
        entry = await self.store.from_redis(call.cache_key)
        if entry is None or not self._may_serve(call, entry):
            return False
        self.store.remember(call.cache_key, entry)
        return True

    def has_fresh(self, call: Call) -> bool:
        """Whether memory has a fresh answer to this call now."""
        entry = self._memory.get(call.cache_key)
        return entry is not None and self._may_serve(call, entry)

    async def _stale_instead(self, call: Call) -> Reply | None:
        """A stale answer instead of an error, where the policy allows it and there is one."""
        _, on_error_s = staleness(call)
        if not on_error_s:
            return None
        entry = self._memory.get(call.cache_key)
        reply = None if entry is None else self._serve_on_error(call, entry)
        if reply is None:
            reply = await self._from_below(call, self._serve_on_error)
        self.stale_if_error_total += reply is not None
        return reply

    def _negative(self, call: Call) -> Reply | None:
        """An upstream's refusal of this very request, if it is kept."""
        key = _negative_key(call)
        entry = self._memory.get(key)
        if entry is None or call.identity is None:
            return None
        age_us = self._now_us() - entry.created_us
        if age_us >= min(entry.ttl_s, call.identity.tenant.cache.negative_ttl_s) * 1_000_000:
            self._memory.remove(key)
            return None
        if call.request_cache is not PLAIN and _too_old(call, age_us):
            return None
        reply = self._reply_of(call, entry, age_us, CacheState.HIT)
        self.negative_total += reply is not None
        return reply

    def _keep(self, call: Call, reply: Reply, *, body: bytes = b"", blocks: tuple[bytes, ...] = ()) -> bool:
        """Keeps an answer if it is one to keep."""
        if not is_storable(call, reply):
            ttl_s = negative_ttl_s(call, reply)
            if ttl_s > 0:
                self.store.remember(_negative_key(call), self._entry_of(call, reply, ttl_s=ttl_s, body=body))
            return False
        if not holds_answer(call, body, blocks):
            return False
        ending = b"" if reply.ending == DONE else reply.ending
        size_bytes = len(body) + len(ending) + (sum(map(len, blocks)) if blocks else 0)
        if size_bytes > self._entry_bytes_max:
            self._count_large()
            return False
        entry = self._entry_of(call, reply, ttl_s=call.cache_ttl_s, body=body, blocks=blocks, ending=ending)
        if self._rules is not None and self._rules.forbid(entry):  # since it was asked for
            return False
        self.store.put(call.cache_key, entry)
        self.stored_total += 1
        return True

    def _keep_stream(self, call: Call, reply: Reply, blocks: tuple[bytes, ...]) -> None:
        self._keep(call, reply, blocks=blocks)

    def _count_large(self) -> None:
        self.too_large_total += 1

    def _entry_of(
        self, call: Call, reply: Reply, *, ttl_s: int, body: bytes, blocks: tuple[bytes, ...] = (), ending: bytes = b""
    ) -> CacheEntry:
        tokens, nanousd = reply.tokens if reply.usage_known else NO_TOKENS, reply.list_nanousd
        now_us = self._now_us()
        anew_s, on_error_s = staleness(call)
        identity, route, deployment, started_us = call.identity, call.route, reply.deployment, call.started_us
        return CacheEntry(  # by position: twenty names would cost a microsecond on the way of every miss
            "" if identity is None else identity.tenant.id,
            now_us,
            ttl_s,
            content_type_of(reply),
            body,
            blocks,
            bool(blocks),
            deployment,
            reply.model,
            reply.finish_reason,
            tokens,
            avoided_nanousd(call, deployment, tokens) if nanousd is None else nanousd,
            ending,
            min(now_us, started_us),
            max(on_error_s, anew_s),
            reply.status,
            reply.error_code,
            "" if route is None else route.route.alias,
            call.agent,
            call.tags,
        )


def _negative_key(call: Call) -> bytes:
    """Of a request that an upstream has refused."""
    digest = hashlib.blake2b(call.body, digest_size=_BODY_BYTES).digest()
    return b"%b-%d-%b" % (call.cache_key, call.runtime.version, digest)


def _keeps_refusals(call: Call) -> bool:
    return call.identity is not None and call.identity.tenant.cache.negative_ttl_s > 0


def _only_if_cached(call: Call) -> bool:
    control = call.request_cache
    return isinstance(control, CacheControl) and control.only_if_cached


def _not_cached() -> Reply:
    return refuse(NOT_CACHED, "no stored answer, and `Cache-Control: only-if-cached` forbids to ask for one")


def _too_old(call: Call, age_us: int) -> bool:
    """Whether the client wants nothing that old."""
    control = call.request_cache
    return (
        isinstance(control, CacheControl) and control.max_age_s is not None and age_us >= control.max_age_s * 1_000_000
    )

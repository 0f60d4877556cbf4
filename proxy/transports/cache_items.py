"""Embeddings, stored by input: of a request for ten texts of which nine are known, the upstream is asked for one.

An input's vector depends on that input and the rest of the request (model, dimensions, encoding...), never on its neighbours; so the key of
an input is the tenant, the rest of the request and the input. The answer is put together in the order of the request, and never of vectors of
two models, which mean nothing beside each other: a route may have deployments of several. Tokens that an upstream reports for several
inputs are split between them: exactly where inputs are arrays of tokens, else by their length in bytes, so that the parts sum to what
was reported.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from controlplane.contract.records import CacheState
from proxy.call import Call, Reply
from proxy.savings import avoided_nanousd, split, split_tokens
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_key import IGNORED_FIELDS, KEY_BYTES, item_keys, variant_of
from proxy.transports.cache_policy import staleness
from proxy.transports.cache_rules import Rules
from proxy.transports.cache_store import Store
from proxy.transports.embeddings import Ask, read_answer, read_ask, write_answer, write_ask

_JSON = (b"content-type", b"application/json")
_OK = 200
_AT_ONCE_MAX = 16  # inputs of one call that are looked for at the same time


@dataclass(slots=True)
class Parts:
    """An embeddings request by inputs, and what is known of each."""

    ask: Ask
    keys: list[bytes]
    found: dict[bytes, CacheEntry]
    body: bytes  # of the whole request
    whole_key: bytes
    rules: Rules | None  # as they were when these were found

    @property
    def missing(self) -> list[int]:
        """Places of inputs that nothing is known of, equal ones once."""
        first = {key: at for at, key in reversed(list(enumerate(self.keys)))}
        return [at for at, key in enumerate(self.keys) if key not in self.found and first[key] == at]


class Items:
    """Looks inputs up, asks for the others, and keeps what comes."""

    def __init__(
        self,
        store: Store,
        *,
        may_serve: Callable[[Call, CacheEntry], bool],
        may_serve_on_error: Callable[[Call, CacheEntry], bool],
        entry_bytes_max: int,
        now_us: Callable[[], int],
    ) -> None:
        """may_serve: whether a call may have an entry now; may_serve_on_error: where the upstreams have failed."""
        self._store = store
        self._may_serve = may_serve
        self._may_serve_on_error = may_serve_on_error
        self._entry_bytes_max = entry_bytes_max
        self._now_us = now_us
        self.rules: Rules | None = None  # the invalidations in force
        self.known_total = 0
        self.asked_total = 0

    def lookup(self, call: Call) -> Reply | None:
        """The whole answer if memory has every input of it; remembers in `call.parts` what it has."""
        identity, route = call.identity, call.route
        ask = read_ask(call.body, without=IGNORED_FIELDS)
        if ask is None or identity is None or route is None:
            return None
        keys = item_keys(
            tenant=identity.tenant.id,
            alias=route.route.alias,
            rest=ask.rest,
            items=ask.items,
            variant=variant_of(call.headers),
        )
        parts = call.parts = Parts(ask, keys, {}, call.body, call.cache_key, self.rules)
        if call.cache is not CacheState.MISS:
            return None
        for key in set(keys):
            entry = self._store.memory.get(key)
            if entry is not None and self._may_serve(call, entry):
                parts.found[key] = entry
        _keep_one_model(parts)
        if len(parts.found) < len(set(keys)):
            return None
        self._store.hits_memory_total += 1
        return self._whole(call, parts, CacheState.HIT)

    async def from_below(self, call: Call, parts: Parts) -> Reply | None:
        """The whole answer if the tiers below memory have what memory lacks, or identical calls have brought it since."""
        await self.bring_up(call, parts)
        self._drop_forbidden(parts)
        for at in parts.missing:
            entry = self._store.memory.get(parts.keys[at])
            if entry is not None and self._may_serve(call, entry):
                parts.found[parts.keys[at]] = entry
        _keep_one_model(parts)
        return None if parts.missing else self._whole(call, parts, CacheState.HIT)

    async def bring_up(self, call: Call, parts: Parts) -> None:
        """Finds below what memory lacks, and leaves it in memory."""
        keys = [key for at in parts.missing if self._store.may_hold(key := parts.keys[at])]
        for start in range(0, len(keys), _AT_ONCE_MAX):
            await asyncio.gather(*(self._find(call, parts, key) for key in keys[start : start + _AT_ONCE_MAX]))

    async def _find(self, call: Call, parts: Parts, key: bytes) -> None:
        store = self._store
        entry = await store.from_disk(key)
        if entry is None or not self._may_serve(call, entry):
            entry = await store.from_redis(key)
        if entry is not None and self._may_serve(call, entry):
            parts.found[key] = entry
            store.remember(key, entry)

    def narrow(self, call: Call, parts: Parts) -> list[int]:
        """Makes the call one for what is missing; returns the places of that. `widen` must follow."""
        missing = parts.missing
        if len(missing) < len(parts.keys):
            call.body = write_ask(parts.ask, [parts.ask.items[at] for at in missing])
        if call.cache is CacheState.MISS:
            digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"heph-items-1")
            for at in missing:
                digest.update(parts.keys[at])
            call.cache_key = digest.digest()
            if self.rules is not None and call.identity is not None and call.route is not None:
                tenant, alias = call.identity.tenant.id, call.route.route.alias
                call.cache_key = self.rules.flight_key(call.cache_key, tenant=tenant, alias=alias)
        return missing

    def widen(self, call: Call, parts: Parts) -> None:
        """The call is the client's again."""
        call.body, call.cache_key = parts.body, parts.whole_key

    def complete(self, call: Call, parts: Parts, missing: Sequence[int], reply: Reply) -> Reply | None:
        """Keeps what a good reply brought, and returns the whole answer; None if it cannot be read by inputs, or the others are invalidated or another model's.

        The reply is left as it is: others who share it have to make their own of it.
        """
        answered = read_answer(reply.body, count=len(missing))
        if answered is None:
            return None
        weights = [parts.ask.weights[at] for at in missing]
        counts = split(answered.tokens, weights)
        known = sum(parts.found[key].nanousd for key in parts.keys if key in parts.found)
        total = sum(parts.found[key].tokens.input for key in parts.keys if key in parts.found)
        fresh: dict[bytes, tuple[bytes, int]] = {}
        for at, item, count in zip(missing, answered.items, counts, strict=True):
            fresh[parts.keys[at]] = (item, count)
        if call.cache is not CacheState.COALESCED:
            self._keep(call, parts, missing, reply, answered.items, answered.model)
        if self._drop_forbidden(parts):
            return None
        model = _named(answered.model, reply.model)
        if any(_model_of(entry) != model for entry in parts.found.values()):
            return None
        self.asked_total += len(missing)
        self.known_total += len(parts.keys) - len(missing)
        call.saved_nanousd += known
        if len(missing) == len(parts.keys):
            return reply
        total += sum(fresh[key][1] for key in parts.keys if key in fresh)
        objects = [fresh[key][0] if key in fresh else parts.found[key].blocks[0] for key in parts.keys]
        body = write_answer(objects, model=answered.model, tokens=total, fields=answered.fields)
        stored = (b"x-heph-cache-items", b"%d/%d" % (len(parts.keys) - len(missing), len(parts.keys)))
        whole = Reply(_OK, [*reply.headers, stored], body=body)
        whole.deployment, whole.model, whole.tokens = reply.deployment, reply.model, reply.tokens
        whole.complete, whole.usage_known, whole.finish_reason = True, reply.usage_known, reply.finish_reason
        return whole

    def _drop_forbidden(self, parts: Parts) -> bool:
        """Forgets what was invalidated since it was found; whether there was anything."""
        if parts.rules is self.rules:
            return False
        rules = parts.rules = self.rules
        gone = [key for key, entry in parts.found.items() if rules is not None and rules.forbid(entry)]
        for key in gone:
            del parts.found[key]
        return bool(gone)

    def stale_whole(self, call: Call, parts: Parts) -> Reply | None:
        """The whole answer, what is missing from what is stale in memory; None if that is not all."""
        self._drop_forbidden(parts)
        for at in parts.missing:
            entry = self._store.memory.get(parts.keys[at])
            if entry is None or not self._may_serve_on_error(call, entry):
                return None
            parts.found[parts.keys[at]] = entry
        _keep_one_model(parts)
        return None if parts.missing else self._whole(call, parts, CacheState.STALE)

    def _whole(self, call: Call, parts: Parts, state: CacheState) -> Reply:
        """An answer of stored inputs alone; as old as the oldest."""
        entries = [parts.found[key] for key in parts.keys]
        oldest = min(entries, key=_created)
        tokens = sum(entry.tokens.total for entry in entries)
        body = write_answer([entry.blocks[0] for entry in entries], model=oldest.blocks[1], tokens=tokens)
        reply = Reply(_OK, [_JSON], body=body)
        reply.age_s = max(0, self._now_us() - oldest.created_us) / 1_000_000
        reply.stored_ttl_s = oldest.ttl_s
        reply.deployment, reply.model = oldest.deployment, oldest.model
        reply.complete = reply.usage_known = True
        call.cache = state
        call.saved_nanousd = sum(entry.nanousd for entry in entries)
        self.known_total += len(entries)
        return reply

    def _keep(
        self, call: Call, parts: Parts, missing: Sequence[int], reply: Reply, items: Sequence[bytes], model: bytes
    ) -> None:
        weights = [parts.ask.weights[at] for at in missing]
        tokens = split_tokens(reply.tokens, weights)
        nanousd = split(avoided_nanousd(call, reply.deployment, reply.tokens), weights)
        now_us = self._now_us()
        plain = CacheEntry(
            tenant="" if call.identity is None else call.identity.tenant.id,
            created_us=now_us,
            ttl_s=call.cache_ttl_s,
            content_type="application/json",
            deployment=reply.deployment,
            model=reply.model,
            asked_us=min(call.started_us, now_us),
            alias="" if call.route is None else call.route.route.alias,
            agent=call.agent,
            tags=call.tags,
        )
        if self.rules is not None and self.rules.forbid(plain):  # since it was asked for
            return
        stale_s = max(staleness(call))
        for at, item, own, cost in zip(missing, items, tokens, nanousd, strict=True):
            entry = msgspec.structs.replace(plain, blocks=(item, model), tokens=own, nanousd=cost, stale_s=stale_s)
            if entry.size_bytes <= self._entry_bytes_max:
                self._store.put(parts.keys[at], entry)


def _keep_one_model(parts: Parts) -> None:
    """Forgets what was found of other models than the one that answered last."""
    found = parts.found
    if len({_model_of(entry) for entry in found.values()}) > 1:
        model = _model_of(max(found.values(), key=_created))
        parts.found = {key: entry for key, entry in found.items() if _model_of(entry) == model}


def _model_of(entry: CacheEntry) -> bytes:
    return _named(entry.blocks[1], entry.model)


def _named(said: bytes, configured: str) -> bytes:
    """The model that gave a vector: as its upstream calls it, for two may serve the same under names of their own."""
    return configured.encode() if said == b"null" else said


def _created(entry: CacheEntry) -> int:
    return entry.created_us

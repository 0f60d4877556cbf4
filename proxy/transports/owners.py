"""Which tenant made what an upstream keeps, and at which deployment: on this host's disk, and in Redis where hosts share one.

An entry is found by tenant and id together, so what is another tenant's is not there: unknown and foreign ids cannot be told apart, in words or
in time. Nobody waits longer than `state_wait_s`. What cannot be looked up is neither found nor missing: `OwnersUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar  # what threads answer

import msgspec
import structlog

from controlplane.contract.pricing import Price
from controlplane.contract.proxy_settings import ProxySettings
from proxy.shared import Answer, SharedState, SharedUnavailable
from proxy.transports.owners_disk import TROUBLE, OwnersDisk

THREADS = 2
AT_ONCE_MAX = 32  # questions of one call to Redis; a request may name a thousand things
RECENT_MAX = 4096  # keys that this process has just written and need not write again
_KEY_PERSON = b"heph-owners-1"
_SEAL_PERSON = b"heph-owners-2"
_SEAL_BYTES = 16
_SETTLED, _OPEN = "settled\0", "open\0"
_GRACE_S = 86_400.0  # that a batch is in the file for longer, so that it is given up by whoever settles, who counts it
_Answer = TypeVar("_Answer")

log = structlog.get_logger("proxy.owners")


class BatchModel(msgspec.Struct, frozen=True, array_like=True):
    """A model that lines of a batch ask for. model: as its upstream calls it; price: as it was when they were checked."""

    alias: str
    deployment: str
    model: str
    price: Price | None = None


class Batched(msgspec.Struct, frozen=True, array_like=True):
    """The requests of a file, or of a batch: what they ask for, and what they may cost at worst."""

    operation: str
    lines: int
    nanousd: int
    models: tuple[BatchModel, ...]


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """Where something is kept. background: its usage was not known when it was made.

    batched: of a file of requests. batch: of a file that a batch has left, the batch. tokens: that a request begins with which names it, at most;
    0: not known.
    """

    upstream: str
    deployment: str
    background: bool = False
    batched: Batched | None = None
    batch: str = ""
    tokens: int = 0


class Promised(msgspec.Struct, frozen=True, array_like=True):
    """A batch that is to be booked when it has ended, on whose account, and which worker of the host holds its cost.

    ended: somebody has seen that it has.
    """

    batched: Batched
    upstream: str
    worker: str
    made_ms: int  # Unix milliseconds
    of_anthropic: bool = False
    agent: str = ""
    session: str = ""
    user: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    ended: bool = False


class Estimate(msgspec.Struct, frozen=True, array_like=True):
    """What a response is booked at when its upstream will never tell. output_max: tokens, as reserved."""

    made_us: int
    input: int
    output_max: int


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Who books a response now: a worker of this host, in one of its lives, with the record of a call."""

    worker: str
    life: int
    call_id: str


class Unsettled(msgspec.Struct, frozen=True, array_like=True):
    """A response in the background, or a batch, whose usage is not booked yet. claim: somebody is about to."""

    tenant: str
    key_id: str
    name: str
    batch: Promised | None = None
    estimate: Estimate | None = None
    claim: Claim | None = None


class OwnersUnavailable(Exception):
    """Neither the disk nor Redis could say in time whose it is."""


class Owners:
    """Looks owners up and remembers them, without ever blocking the event loop."""

    def __init__(self, directory: Path, settings: ProxySettings, *, shared: SharedState | None, secret: bytes) -> None:
        """Nothing is opened yet. shared: of all hosts; None: this host is the only one. secret: of the installation, at most 64 bytes."""
        self._secret = secret
        self._disk = OwnersDisk(
            directory,
            entries_max=settings.state_entries_max,
            bytes_max=settings.state_bytes_max,
            ttl_s=settings.state_ttl_s,
        )
        self._open = OwnersDisk(
            directory.with_name("unsettled"),
            entries_max=settings.background_responses_max,
            bytes_max=settings.state_bytes_max,
            ttl_s=settings.background_settle_s_max,
        )
        self._settings = settings
        self._shared = shared
        self._threads: ThreadPoolExecutor | None = None
        self._opening: asyncio.Future[None] | None = None
        self._recent: dict[bytes, bytes] = {}
        self._late: set[asyncio.Future[Any]] = set()  # work of the threads, also that for which nobody waits any more
        self.waiting = 0  # calls, now
        self.lost_total = 0  # entries that could not be written
        self.unavailable_total = 0
        self.forged_total = 0  # values that we did not write
        self.found_total = 0
        self.missed_total = 0

    @property
    def disk(self) -> OwnersDisk:
        """The file, for its figures."""
        return self._disk

    @property
    def unsettled_disk(self) -> OwnersDisk:
        """The file of what is unsettled, for its figures."""
        return self._open

    async def find(self, tenant: str, names: Sequence[str]) -> dict[str, Owner]:
        """The owners of those names that this tenant made. Raises OwnersUnavailable."""
        keys = {name: self._key(tenant, name) for name in names}
        try:
            values = dict(zip(keys, await self._run(self._disk.get, list(keys.values())), strict=True))
            disk_failed = False
        except OwnersUnavailable:
            if self._shared is None:
                raise
            values, disk_failed = dict.fromkeys(keys), True
        missing = [name for name, value in values.items() if value is None]
        if missing and self._shared is not None:
            try:
                answers = await self._each(self._shared, [("GET", self._name(keys[name])) for name in missing])
                for name, value in zip(missing, answers, strict=True):
                    values[name] = value if isinstance(value, bytes) else None
            except SharedUnavailable as error:
                self.unavailable_total += 1
                raise OwnersUnavailable(str(error)) from error
        elif missing and disk_failed:
            raise OwnersUnavailable("the disk cannot be read")
        found = {
            name: owner
            for name, value in values.items()
            if value and (owner := self._opened_value(keys[name], value)) is not None
        }
        self.found_total += len(found)
        self.missed_total += len(keys) - len(found)
        return found

    async def keep(
        self, tenant: str, names: Sequence[str], owner: Owner, *, sizes: Mapping[str, int] | None = None
    ) -> None:
        """Remembers who made what; it is on disk, and in Redis if there is one, when this returns. What fails is counted.

        sizes: tokens by name, where they are not the owner's.
        """
        sealed: dict[bytes, bytes] = {}
        for name in names:
            tokens = owner.tokens if sizes is None else sizes.get(name, owner.tokens)
            key = self._key(tenant, name)
            sealed[key] = self._sealed(key, msgspec.msgpack.encode(msgspec.structs.replace(owner, tokens=tokens)))
        entries = {key: value for key, value in sealed.items() if self._recent.get(key) != value}
        if not entries:
            return
        kept = True
        try:
            await self._run(self._disk.put, entries)
        except OwnersUnavailable:
            kept = False
        if self._shared is not None:
            ttl_ms = int(self._settings.state_ttl_s * 1000)
            commands = [("SET", self._name(key), value, "PX", ttl_ms) for key, value in entries.items()]
            try:
                await self._each(self._shared, commands)
            except SharedUnavailable:
                kept = False
        if kept:
            self._recent.update(entries)
            while len(self._recent) > RECENT_MAX:
                del self._recent[next(iter(self._recent))]
        else:
            self.lost_total += len(entries)

    async def forget(self, tenant: str, names: Sequence[str]) -> None:
        """What was deleted is nobody's any more; where that cannot be written down, its upstream still says so."""
        keys = [self._key(tenant, name) for name in names]
        for key in keys:
            self._recent.pop(key, None)
        try:
            await self._run(self._disk.remove, keys)
            if self._shared is not None:
                await self._each(self._shared, [("DEL", self._name(key)) for key in keys])
        except (OwnersUnavailable, SharedUnavailable):
            self.lost_total += len(keys)

    async def settle(self, item: Unsettled, claim: Claim) -> bool:
        """Whether the usage of a background response is to be booked now: true once, whoever asks. Raises OwnersUnavailable.

        The claim stands until it is `confirmed`, when the record is in the spool, or is `released`, when it is known not to be:
        so a kill between the two loses nothing, and nothing is booked twice.
        """
        key, place = self._key(item.tenant, _SETTLED + item.name), self._key(item.tenant, item.name)
        (settled,) = await self._run(self._disk.read, [key])
        if settled is None and not await self._run(self._open.change, place, partial(_claimed, item, claim)):
            return False
        if settled is not None or not await self._run(self._disk.add, key, b"1"):
            with contextlib.suppress(OwnersUnavailable):  # then it is looked at once more, and found settled
                await self._run(self._open.change, place, partial(_done, claim))
            return False
        if self._shared is None:
            return True
        ttl_ms = int(self._settings.state_ttl_s * 1000)
        try:
            shared = self._name(key)
            said = claim.call_id.encode()  # by which `release` knows its own word
            first = await self._shared.ask("SET", shared, said, "NX", "PX", ttl_ms, key=shared) is not None
        except SharedUnavailable:
            return True  # the other hosts cannot settle what they cannot look up either
        if not first:
            await self.confirm(item)
        return first

    async def confirm(self, item: Unsettled) -> None:
        """The usage of a response is booked: the record is in the spool. Raises OwnersUnavailable."""
        await self._run(self._disk.add, self._key(item.tenant, _SETTLED + item.name), b"1")
        await self._run(self._open.remove, [self._key(item.tenant, item.name)])

    async def release(self, item: Unsettled) -> None:
        """Whoever claimed it died before its record was in the spool: it is to be looked at again. Raises OwnersUnavailable."""
        key = self._key(item.tenant, _SETTLED + item.name)
        if self._shared is not None and item.claim is not None:
            shared = self._name(key)
            try:
                if await self._shared.ask("GET", shared, key=shared) == item.claim.call_id.encode():
                    await self._shared.ask("DEL", shared, key=shared)
            except SharedUnavailable as error:  # else nobody could ever settle it
                self.unavailable_total += 1
                raise OwnersUnavailable(str(error)) from error
        await self._run(self._disk.remove, [key])
        await self.promise(msgspec.structs.replace(item, claim=None))

    async def promise(self, item: Unsettled) -> bool:
        """Writes down that a response or a batch is to be settled; whether it is. What fails is counted."""
        ttl_s = None if item.batch is None else self._settings.batch_settle_s_max + _GRACE_S
        try:
            await self._waited(self._open.put, {self._key(item.tenant, item.name): msgspec.msgpack.encode(item)}, ttl_s)
        except OwnersUnavailable:
            self.lost_total += 1
            return False
        if item.batch is not None:
            await self._mark(item, ttl_ms=int((self._settings.batch_settle_s_max + _GRACE_S) * 1000))
        return True

    async def _mark(self, item: Unsettled, *, ttl_ms: int) -> None:
        """Tells all hosts that a batch is not booked yet, so that none lets its results be deleted; 0: that it is. What fails is counted."""
        if self._shared is None:
            return
        name = self._name(self._key(item.tenant, _OPEN + item.name))
        try:
            if ttl_ms:
                await self._shared.ask("SET", name, b"1", "PX", ttl_ms, key=name)
            else:
                await self._shared.ask("DEL", name, key=name)
        except SharedUnavailable:
            self.lost_total += 1

    async def promised_elsewhere(self, tenant: str, name: str) -> bool:
        """Whether any host is still to book a batch. Raises OwnersUnavailable."""
        if self._shared is None:
            return False
        mark = self._name(self._key(tenant, _OPEN + name))
        try:
            return await self._shared.ask("GET", mark, key=mark) is not None
        except SharedUnavailable as error:
            self.unavailable_total += 1
            raise OwnersUnavailable(str(error)) from error

    async def promised(self, tenant: str, name: str) -> Unsettled | None:
        """What this host has promised to settle under a name; None: nothing, or not any more. Raises OwnersUnavailable."""
        if self._threads is None and not self._open.exists:
            return None
        (value,) = await self._run(self._open.read, [self._key(tenant, name)])
        return None if value is None else msgspec.msgpack.decode(value, type=Unsettled)

    async def withdraw(self, item: Unsettled) -> None:
        """Ends a claim that could not be made for sure: what nobody waited for may have been written all the same. Raises OwnersUnavailable."""
        if self._late:
            await asyncio.wait(self._late.copy())
        stored = await self.promised(item.tenant, item.name)
        if stored is not None and stored.claim == item.claim:
            await self.release(stored)

    async def give_up(self, item: Unsettled) -> None:
        """Nothing more will be learned of it, unless somebody is about to book it. Raises OwnersUnavailable."""
        await self._run(self._open.change, self._key(item.tenant, item.name), partial(_done, None))
        if item.batch is not None:
            await self._mark(item, ttl_ms=0)

    async def unsettled(self) -> list[Unsettled]:
        """What this host has promised to settle. Raises OwnersUnavailable."""
        if self._threads is None and not self._open.exists:
            return []  # nobody here has ever made one
        values = await self._run(self._open.values)
        return [msgspec.msgpack.decode(value, type=Unsettled) for value in values]

    async def aclose(self) -> None:
        """Closes the file; safe to call twice."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.get_running_loop().run_in_executor(threads, self._close)
            threads.shutdown(wait=False)

    async def _each(
        self, shared: SharedState, commands: Sequence[tuple[str, bytes, *tuple[bytes | str | int, ...]]]
    ) -> list[Answer]:
        """What Redis answers, some commands at once: one call's many must not keep all others away. Raises SharedUnavailable."""
        answers: list[Answer] = []
        for start in range(0, len(commands), AT_ONCE_MAX):
            asked = (shared.ask(*command, key=command[1]) for command in commands[start : start + AT_ONCE_MAX])
            answers += await asyncio.gather(*asked)
        return answers

    async def _run(self, work: Callable[..., _Answer], *arguments: object) -> _Answer:
        """What a method of the file answers, from a thread. Raises OwnersUnavailable."""
        if self.waiting >= self._settings.state_waiting_max:
            self.unavailable_total += 1
            raise OwnersUnavailable("too many calls wait for the file of owners")
        return await self._waited(work, *arguments)

    async def _waited(self, work: Callable[..., _Answer], *arguments: object) -> _Answer:
        """The same, however many wait: of what must be written down, or it would be free. Raises OwnersUnavailable."""
        self.waiting += 1
        try:
            async with asyncio.timeout(self._settings.state_wait_s):
                threads = await self._opened()
                working = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
                self._late.add(working)
                working.add_done_callback(self._late.discard)
                return await asyncio.shield(working)
        except (*TROUBLE, TimeoutError, RuntimeError) as error:
            self._failed(error)
            raise OwnersUnavailable(str(error) or "the disk is too slow") from error
        finally:
            self.waiting -= 1

    async def _opened(self) -> ThreadPoolExecutor:
        """The threads, with the file open: whoever comes first opens it, so that what no call uses costs nothing."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="owners")
            self._opening = asyncio.ensure_future(
                asyncio.get_running_loop().run_in_executor(self._threads, self._open_both)
            )
        if self._opening is not None:
            try:
                await asyncio.shield(self._opening)
            except TROUBLE:
                self._threads.shutdown(wait=False)
                self._threads = self._opening = None
                raise
            self._opening = None
        return self._threads

    def _open_both(self) -> None:
        """In a thread."""
        self._disk.open()
        self._open.open()

    def _close(self) -> None:
        """In a thread."""
        self._disk.close()
        self._open.close()

    def _failed(self, error: BaseException) -> None:
        self.unavailable_total += 1
        log.warning("the file of owners cannot be used", reason=str(error) or type(error).__name__)

    def _key(self, tenant: str, name: str) -> bytes:
        """Of one tenant's thing; of fixed length, whatever the two names are, and not to be found without our secret."""
        text = f"{len(tenant)}:{tenant}{name}".encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=16, person=_KEY_PERSON).digest()

    def _sealed(self, key: bytes, payload: bytes) -> bytes:
        """A value as it is stored: whoever can write to Redis can make up neither a value nor a place for it."""
        return (
            hashlib.blake2b(key + payload, key=self._secret, digest_size=_SEAL_BYTES, person=_SEAL_PERSON).digest()
            + payload
        )

    def _opened_value(self, key: bytes, value: bytes) -> Owner | None:
        """The owner in a value; None if it was not sealed by us for this key."""
        payload = value[_SEAL_BYTES:]
        if not hmac.compare_digest(self._sealed(key, payload), value):
            self.forged_total += 1
            return None
        return msgspec.msgpack.decode(payload, type=Owner)

    def _name(self, key: bytes) -> bytes:
        assert self._shared is not None, "asked for only where there is one"  # noqa: S101
        return self._shared.prefix + b"own:" + key.hex().encode()


def _claimed(item: Unsettled, claim: Claim, value: bytes | None) -> bytes | None:
    """What is written where nobody else has claimed it."""
    if value is not None:
        item = msgspec.msgpack.decode(value, type=Unsettled)
        if item.claim is not None:
            return None
    return msgspec.msgpack.encode(msgspec.structs.replace(item, claim=claim))


def _done(claim: Claim | None, value: bytes | None) -> bytes | None:
    """Removes it, unless it is claimed by somebody else."""
    if value is None:
        return None
    held = msgspec.msgpack.decode(value, type=Unsettled).claim
    return b"" if held is None or held == claim else None

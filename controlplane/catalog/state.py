"""The part of the catalog that is decided at run time: virtual keys and leases, folded from the journal.

Each key and each lease has a stream of its own, so that a command loads a handful of events. `StateReader` follows them all by their
position, whoever appended them: this process, another replica, or the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from controlplane.contract.snapshot import CacheInvalidation, Lease
from controlplane.journal.events import Codec
from controlplane.journal.journal import Journal

_PAGE = 1_000


class KeyCreated(msgspec.Struct, frozen=True, tag="key.created", omit_defaults=True):
    """A virtual key was made; its keyed hash is all that is kept of it."""

    id: str
    tenant: str
    hash: str
    name: str = ""
    models: tuple[str, ...] | None = None
    expires_us: int | None = None
    addresses: tuple[str, ...] | None = None


class KeyRotated(msgspec.Struct, frozen=True, tag="key.rotated"):
    """A virtual key got a new secret; the one before is good until a moment."""

    id: str
    hash: str
    grace_until_us: int


class KeyRevoked(msgspec.Struct, frozen=True, tag="key.revoked", omit_defaults=True):
    """A virtual key became worthless."""

    id: str
    reason: str = ""


class LeaseGranted(msgspec.Struct, frozen=True, tag="lease.granted"):
    """An override came into force, or came into force again."""

    lease: Lease


class LeaseRenewed(msgspec.Struct, frozen=True, tag="lease.renewed"):
    """An override lasts until another moment."""

    id: str
    expires_us: int


class LeaseRevoked(msgspec.Struct, frozen=True, tag="lease.revoked", omit_defaults=True):
    """An override was ended before its time."""

    id: str
    reason: str = ""


class CacheInvalidated(msgspec.Struct, frozen=True, tag="cache.invalidated"):
    """Stored answers must not be served again."""

    rule: CacheInvalidation


KeyEvent: TypeAlias = KeyCreated | KeyRotated | KeyRevoked
LeaseEvent: TypeAlias = LeaseGranted | LeaseRenewed | LeaseRevoked
StateEvent: TypeAlias = KeyEvent | LeaseEvent | CacheInvalidated

STREAM_PREFIXES = (
    "key/",
    "lease/",
    "cache/",
)  # runs tell of their leases under the same types, in streams of their own
STATE_TYPES = (
    "key.created",
    "key.rotated",
    "key.revoked",
    "lease.granted",
    "lease.renewed",
    "lease.revoked",
    "cache.invalidated",
)

KEY_CODEC: Codec[KeyEvent] = Codec(KeyCreated | KeyRotated | KeyRevoked)
LEASE_CODEC: Codec[LeaseEvent] = Codec(LeaseGranted | LeaseRenewed | LeaseRevoked)
STATE_CODEC: Codec[StateEvent] = Codec(
    KeyCreated | KeyRotated | KeyRevoked | LeaseGranted | LeaseRenewed | LeaseRevoked | CacheInvalidated
)


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A virtual key as operators see it. revoked_us: 0 while it is good; rotated_us: 0 while it has its first secret.

    former_hash: of the secret before the last one, good until grace_until_us; empty if there was none.
    """

    id: str
    tenant: str
    hash: str
    name: str = ""
    models: tuple[str, ...] | None = None
    created_us: int = 0
    expires_us: int | None = None
    revoked_us: int = 0
    addresses: tuple[str, ...] | None = None
    rotated_us: int = 0
    former_hash: str = ""
    grace_until_us: int = 0


class CatalogState(msgspec.Struct, frozen=True):
    """All keys, and all leases that were not revoked (expired ones among them), by id. position: of the last event that it holds."""

    keys: Mapping[str, KeyRecord] = {}
    leases: Mapping[str, Lease] = {}
    invalidations: Mapping[str, CacheInvalidation] = {}  # ended ones among them, until another comes
    ended_before_us: int = 0  # the newest moment of those that have ended and are not among them
    position: int = 0


def evolve_key(key: KeyRecord | None, event: KeyEvent, occurred_us: int) -> KeyRecord | None:
    """The key after an event; revoking what does not exist, or twice, changes nothing."""
    if isinstance(event, KeyCreated):
        return KeyRecord(
            id=event.id,
            tenant=event.tenant,
            hash=event.hash,
            name=event.name,
            models=event.models,
            created_us=occurred_us,
            expires_us=event.expires_us,
            addresses=event.addresses,
        )
    if key is None or key.revoked_us:
        return key
    if isinstance(event, KeyRotated):
        return msgspec.structs.replace(
            key,
            hash=event.hash,
            former_hash=key.hash,
            rotated_us=occurred_us,
            grace_until_us=event.grace_until_us,
        )
    return msgspec.structs.replace(key, revoked_us=occurred_us)


def evolve_lease(lease: Lease | None, event: LeaseEvent) -> Lease | None:
    """The lease after an event; None while there is none. Renewing what was revoked does not bring it back."""
    if isinstance(event, LeaseGranted):
        return event.lease
    if isinstance(event, LeaseRevoked) or lease is None:
        return None
    return msgspec.structs.replace(lease, expires_us=event.expires_us)


def evolve(state: CatalogState, events: Iterable[tuple[StateEvent, int, int]]) -> CatalogState:
    """The state after events, each with the moment it occurred at and its position; pure, copies the state once."""
    keys, leases, position = dict(state.keys), dict(state.leases), state.position
    rules, ended_before_us = dict(state.invalidations), state.ended_before_us
    for event, occurred_us, at in events:
        position = at
        if isinstance(event, KeyCreated | KeyRotated | KeyRevoked):
            if (key := evolve_key(keys.get(event.id), event, occurred_us)) is not None:
                keys[event.id] = key
            continue
        if isinstance(event, CacheInvalidated):
            over = [rule for rule in rules.values() if rule.expires_us <= occurred_us]
            ended_before_us = max(ended_before_us, *(rule.before_us for rule in over), 0)
            for rule in over:
                del rules[rule.id]
            rules[event.rule.id] = event.rule
            continue
        lease_id = event.lease.id if isinstance(event, LeaseGranted) else event.id
        lease = evolve_lease(leases.get(lease_id), event)
        if lease is None:
            leases.pop(lease_id, None)
        else:
            leases[lease_id] = lease
    return CatalogState(
        keys=keys, leases=leases, invalidations=rules, ended_before_us=ended_before_us, position=position
    )


class StateReader:
    """Keeps a `CatalogState` up with the journal. Blocking, as the journal is; may be called from any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._state = CatalogState()

    @property
    def state(self) -> CatalogState:
        """As of the last `refresh`."""
        return self._state

    def refresh(self) -> CatalogState:
        """The state with all that was appended until now."""
        with self._lock:
            while True:
                page = self._journal.read(self._state.position, _PAGE, STATE_TYPES)
                if page:
                    self._state = evolve(
                        self._state,
                        (
                            (STATE_CODEC.decode(event), event.occurred_us, event.global_pos)
                            for event in page
                            if event.stream_id.startswith(STREAM_PREFIXES)
                        ),
                    )
                    self._state = msgspec.structs.replace(self._state, position=page[-1].global_pos)
                if len(page) < _PAGE:
                    return self._state

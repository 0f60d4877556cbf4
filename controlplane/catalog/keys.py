"""Virtual keys: made, listed, rotated, revoked. The secret exists only in the answer to `create`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import ip_network

import msgspec

from controlplane.catalog.bind import nearest
from controlplane.catalog.state import (
    KEY_CODEC,
    KeyCreated,
    KeyRecord,
    KeyRevoked,
    KeyRotated,
    StateReader,
    evolve_key,
)
from controlplane.contract.ids import new_id
from controlplane.contract.keys import hash_key, new_key
from controlplane.errors import BadRequest, NotFound
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from controlplane.secrets import Secret

NAME_CHARS_MAX = 200
MODELS_MAX = 1_000
ADDRESSES_MAX = 100
GRACE_US_MAX = 30 * 86_400_000_000


class IssuedKey(msgspec.Struct, frozen=True):
    """A virtual key at the only moment when its secret is known."""

    record: KeyRecord
    secret: Secret


class Keys:
    """What operators do with virtual keys. Blocking: asynchronous callers use a thread.

    pepper: of the keyed hash, 32 bytes. tenants, models: the names that the configuration knows now; asked at each `create`.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        pepper: bytes,
        now_us: Callable[[], int],
        tenants: Callable[[], Collection[str]],
        models: Callable[[], Collection[str]],
    ) -> None:
        self._journal = journal
        self._reader = StateReader(journal)
        self._pepper = pepper
        self._now_us = now_us
        self._tenants = tenants
        self._models = models

    def create(
        self,
        tenant: str,
        *,
        name: str = "",
        models: tuple[str, ...] | None = None,
        expires_us: int | None = None,
        addresses: tuple[str, ...] | None = None,
        actor: str = "",
    ) -> IssuedKey:
        """A fresh key for a tenant. models: aliases it is limited to; addresses: networks it may be used from.

        Raises NotFound for a tenant or a model that the configuration does not have, BadRequest for an expiry in the past or an
        address that is none.
        """
        now_us = self._now_us()
        if tenant not in (tenants := self._tenants()):
            raise NotFound(
                f"there is no tenant `{tenant}`; {nearest(tenant, tenants) or 'add it to the configuration'}"
            )
        if models is not None:
            known = self._models()
            for model in models[:MODELS_MAX]:
                if model not in known:
                    raise NotFound(
                        f"there is no model `{model}`; {nearest(model, known) or 'add it to the configuration'}"
                    )
        if expires_us is not None and expires_us <= now_us:
            raise BadRequest("a key cannot expire before it is made; choose a later moment")
        if len(name) > NAME_CHARS_MAX or (models is not None and len(models) > MODELS_MAX):
            raise BadRequest(f"a key has a name of at most {NAME_CHARS_MAX} characters and at most {MODELS_MAX} models")
        secret = new_key()
        created = KeyCreated(
            id=new_id("key"),
            tenant=tenant,
            hash=hash_key(secret.encode(), self._pepper),
            name=name,
            models=models,
            expires_us=expires_us,
            addresses=None if addresses is None else _networks(addresses),
        )
        self._journal.append(
            f"key/{created.id}", 0, [NewEvent(payload=created, actor=actor, tenant=tenant, occurred_us=now_us)]
        )
        record = evolve_key(None, created, now_us)
        assert record is not None  # noqa: S101 - a created key exists
        return IssuedKey(record=record, secret=Secret(secret))

    def list(self, *, tenant: str | None = None) -> list[KeyRecord]:
        """All keys, newest last, revoked and expired ones too."""
        keys = self._reader.refresh().keys.values()
        return sorted((key for key in keys if tenant in (None, key.tenant)), key=lambda key: (key.created_us, key.id))

    def rotate(self, key_id: str, *, grace_us: int, actor: str = "") -> IssuedKey:
        """Gives a key a new secret; the one before is good for a while longer, and one before that no more.

        grace_us: how long, from 0. Raises NotFound, and BadRequest for a key that is revoked or has expired.
        """
        key, version = self._load(key_id)
        now_us = self._now_us()
        if key.revoked_us or (key.expires_us is not None and key.expires_us <= now_us):
            raise BadRequest(f"key `{key_id}` is revoked or has expired; make a new one")
        if not 0 <= grace_us <= GRACE_US_MAX:
            raise BadRequest(f"the grace of a rotation is from 0 to {GRACE_US_MAX // 86_400_000_000} days")
        secret = new_key()
        rotated = KeyRotated(id=key_id, hash=hash_key(secret.encode(), self._pepper), grace_until_us=now_us + grace_us)
        event = NewEvent(payload=rotated, actor=actor, tenant=key.tenant, occurred_us=now_us)
        self._journal.append(f"key/{key_id}", version, [event])  # nobody else may have rotated it in between
        record = evolve_key(key, rotated, now_us)
        assert record is not None  # noqa: S101 - a rotated key exists
        return IssuedKey(record=record, secret=Secret(secret))

    def revoke(self, key_id: str, *, reason: str = "", actor: str = "") -> KeyRecord:
        """Makes a key worthless from the next snapshot on; revoking it again changes nothing. Raises NotFound."""
        key, _ = self._load(key_id)
        if key.revoked_us:
            return key
        revoked, now_us = KeyRevoked(id=key_id, reason=reason[:NAME_CHARS_MAX]), self._now_us()
        # Wherever the stream is: nothing but another revocation can come in between, and that is harmless.
        self._journal.append(
            f"key/{key_id}", None, [NewEvent(payload=revoked, actor=actor, tenant=key.tenant, occurred_us=now_us)]
        )
        return msgspec.structs.replace(key, revoked_us=now_us)

    def _load(self, key_id: str) -> tuple[KeyRecord, int]:
        """The key and the version of its stream. Raises NotFound."""
        events = self._journal.load(f"key/{key_id}")
        key: KeyRecord | None = None
        for event in events:
            key = evolve_key(key, KEY_CODEC.decode(event), event.occurred_us)
        if key is None:
            raise NotFound(f"there is no key `{key_id}`; `hephaestus keys list` shows those there are")
        return key, events[-1].version


def _networks(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses and networks in CIDR notation. Raises BadRequest."""
    if not 1 <= len(addresses) <= ADDRESSES_MAX:
        raise BadRequest(f"a key may be limited to 1 to {ADDRESSES_MAX} addresses or networks")
    found = []
    for address in addresses:
        try:
            found.append(str(ip_network(address.strip())))
        except ValueError as error:
            message = (
                f"`{address[:64]}` is no address and no network; write it as 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32"
            )
            raise BadRequest(message) from error
    return tuple(sorted(set(found)))

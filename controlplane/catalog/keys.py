"""Virtual keys: made, listed, revoked. The secret exists only in the answer to `create`."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from controlplane.catalog.bind import nearest
from controlplane.catalog.state import KEY_CODEC, KeyCreated, KeyRecord, KeyRevoked, StateReader, evolve_key
from controlplane.contract.ids import new_id
from controlplane.contract.keys import hash_key, new_key
from controlplane.errors import BadRequest, NotFound
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from controlplane.secrets import Secret

NAME_CHARS_MAX = 200
MODELS_MAX = 1_000


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
        actor: str = "",
    ) -> IssuedKey:
        """A fresh key for a tenant. models: aliases it is limited to.

        Raises NotFound for a tenant or a model that the configuration does not have, BadRequest for an expiry in the past.
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

    def revoke(self, key_id: str, *, reason: str = "", actor: str = "") -> KeyRecord:
        """Makes a key worthless from the next snapshot on; revoking it again changes nothing. Raises NotFound."""
        stream = f"key/{key_id}"
        events = self._journal.load(stream)
        key: KeyRecord | None = None
        for event in events:
            key = evolve_key(key, KEY_CODEC.decode(event), event.occurred_us)
        if key is None:
            raise NotFound(f"there is no key `{key_id}`; `hephaestus keys list` shows those there are")
        if key.revoked_us:
            return key
        revoked, now_us = KeyRevoked(id=key_id, reason=reason[:NAME_CHARS_MAX]), self._now_us()
        # Wherever the stream is: nothing but another revocation can come in between, and that is harmless.
        self._journal.append(
            stream, None, [NewEvent(payload=revoked, actor=actor, tenant=key.tenant, occurred_us=now_us)]
        )
        return msgspec.structs.replace(key, revoked_us=now_us)

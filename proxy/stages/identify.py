"""Who calls: the tenant behind the virtual key, and the labels the client gives itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from controlplane.contract.keys import hash_key
from proxy import refusals
from proxy.call import Call, Reply
from proxy.refusals import refuse
from proxy.runtime import Runtime
from proxy.stages.addresses import client_address, may_come_from, networks_of
from proxy.stages.labels import read_labels

_KEY_BYTES_MAX = 512


class Identify:
    """One keyed hash and one look-up; no list of keys is ever searched, and no key is kept."""

    name: ClassVar[str] = "identify"

    def __init__(
        self,
        pepper: bytes,
        *,
        trusted_proxies: Sequence[str] = (),
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """trusted_proxies: networks of load balancers whose word about the client's address is taken.

        Raises ValueError for one that is no network.
        """
        self._pepper = pepper
        self._trusted = networks_of(trusted_proxies)
        self._now_us = now_us

    def knows(self, runtime: Runtime, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the key in these headers is one of ours, expired or not."""
        key = _key_of(headers)
        return 0 < len(key) <= _KEY_BYTES_MAX and hash_key(key, self._pepper) in runtime.keys

    def enter(self, call: Call) -> Reply | None:
        """Refuses a key that is missing, unknown or expired."""
        key = _key_of(call.headers)
        if not key:
            return refuse(refusals.DENIED, "no API key: send `Authorization: Bearer sk-heph-...`")
        identity = call.runtime.keys.get(hash_key(key, self._pepper)) if len(key) <= _KEY_BYTES_MAX else None
        if identity is None:
            return refuse(refusals.DENIED, "this API key is not known or was revoked; ask its tenant for another")
        expires_us = identity.key.expires_us
        if expires_us is not None and self._now_us() >= expires_us:
            return refuse(refusals.DENIED, f"API key {identity.key.id} has expired; ask its tenant for another")
        addresses = identity.key.addresses
        if addresses is not None and not may_come_from(
            client_address(call.peer, call.headers, self._trusted), addresses
        ):
            message = f"API key {identity.key.id} may not be used from this address; ask its tenant to allow it"
            return refuse(refusals.FORBIDDEN, message)
        call.identity = identity
        read_labels(call, aliases=call.runtime.snapshot.label_aliases)
        return None

    def leave(self, call: Call) -> None:
        """Nothing was taken."""


def _key_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The virtual key, wherever the client's protocol puts it."""
    authorization = headers.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return (headers.get(b"x-api-key") or headers.get(b"api-key") or b"").strip()

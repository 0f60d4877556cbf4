"""Who calls: the tenant behind the virtual key or the token, and the labels the client gives itself."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from controlplane.contract.keys import KEY_PREFIX, hash_key
from controlplane.contract.proxy_settings import ProxySettings
from proxy import refusals
from proxy.call import Call, Reply
from proxy.refusals import refuse
from proxy.runtime import KeyIdentity, Runtime
from proxy.stages.addresses import client_address, may_come_from, networks_of
from proxy.stages.labels import read_labels

if TYPE_CHECKING:
    from proxy.stages.tokens import Tokens

_KEY_BYTES_MAX = 512
_PREFIX = KEY_PREFIX.encode()
_UNKNOWN = "this API key is not known or was revoked; ask its tenant for another"


class Identify:
    """One keyed hash and one look-up; no list of keys is ever searched, and no key is kept."""

    name: ClassVar[str] = "identify"

    def __init__(
        self,
        pepper: bytes,
        *,
        trusted_proxies: Sequence[str] = (),
        tokens_remembered_max: int = ProxySettings().tokens_remembered_max,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """trusted_proxies: networks of load balancers whose word about the client's address is taken.

        Raises ValueError for one that is no network.
        """
        self._pepper = pepper
        self._trusted = networks_of(trusted_proxies)
        self._tokens_remembered_max = tokens_remembered_max
        self._now_us = now_us
        self._tokens: Tokens | None = None

    @property
    def tokens_forgotten_total(self) -> int:
        """Tokens whose signature must be checked again because too many were remembered."""
        return 0 if self._tokens is None else self._tokens.forgotten_total

    def knows(self, runtime: Runtime, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the key in these headers is one of ours, expired or not."""
        key = _key_of(headers)
        if not key:
            return False
        return self._known(runtime, key) is not None or not isinstance(self._by_token(runtime, key), str)

    def enter(self, call: Call) -> Reply | None:
        """Refuses a key that is missing, unknown or expired, or used from where it may not be."""
        key = _key_of(call.headers)
        if not key:
            return refuse(refusals.DENIED, "no API key: send `Authorization: Bearer sk-heph-...`")
        identity = self._known(call.runtime, key)
        if identity is None:
            borne = self._by_token(call.runtime, key)
            if isinstance(borne, str):
                return refuse(refusals.DENIED, borne)
            identity = borne
        entry = identity.key
        if entry.expires_us is not None and self._now_us() >= entry.expires_us:
            return refuse(refusals.DENIED, f"API key {entry.id} has expired; ask its tenant for another")
        if entry.addresses is not None and not may_come_from(
            client_address(call.peer, call.headers, self._trusted), entry.addresses
        ):
            message = f"API key {entry.id} may not be used from this address; ask its tenant to allow it"
            return refuse(refusals.FORBIDDEN, message)
        call.identity = identity
        read_labels(call, aliases=call.runtime.snapshot.label_aliases)
        if not entry.hash and not call.user:  # of a token, which says who bears it
            call.user = entry.id.partition(":")[2]
        return None

    def _known(self, runtime: Runtime, key: bytes) -> KeyIdentity | None:
        return runtime.keys.get(hash_key(key, self._pepper)) if len(key) <= _KEY_BYTES_MAX else None

    def _by_token(self, runtime: Runtime, key: bytes) -> KeyIdentity | str:
        """Who bears a token of one of the snapshot's issuers, or why it counts for nothing."""
        if not runtime.snapshot.issuers or key.startswith(_PREFIX):
            return _UNKNOWN
        module = importlib.import_module("proxy.stages.tokens")
        if self._tokens is None:
            self._tokens = module.Tokens(now_us=self._now_us, remembered_max=self._tokens_remembered_max)
        if len(key) > module.TOKEN_BYTES_MAX:
            return "this is neither an API key of ours nor a token that can be read"
        try:
            return self._tokens.identify(runtime, key)
        except module.NotAccepted as refusal:
            return str(refusal)


def _key_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The virtual key, wherever the client's protocol puts it."""
    authorization = headers.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return (headers.get(b"x-api-key") or headers.get(b"api-key") or b"").strip()

"""How a stored answer lies in a Redis that others use too: under a name, and behind a seal, that only this installation can make."""

from __future__ import annotations

import hashlib
import hmac

from proxy.transports.cache_entry import CacheEntry, decode_entry, encode_entry

KEY_PREFIX = "heph:cache:"
SEAL_BYTES = 16

# Values of another meaning of this module, or of `cache_entry`, never match.
_PERSON = b"heph-redis-1"


class EntrySeals:
    """Names, seals and opens entries. pepper: of this installation's keyed hashes."""

    def __init__(self, pepper: bytes) -> None:
        self._secret = hashlib.blake2b(pepper, digest_size=32, person=_PERSON).digest()

    def name_of(self, key: bytes) -> str:
        """A key in Redis: from which, without the secret, nobody can tell what was asked."""
        return KEY_PREFIX + hashlib.blake2b(key, key=self._secret, digest_size=20, person=_PERSON).hexdigest()

    def sealed(self, key: bytes, entry: CacheEntry) -> bytes:
        """An entry as it lies in Redis."""
        payload = encode_entry(entry)
        return self._seal(key, payload) + payload

    def opened(self, key: bytes, data: bytes) -> CacheEntry | None:
        """The entry, or None if this is not what was written under this key; so is what was cut off at a bound."""
        payload = memoryview(data)[SEAL_BYTES:]
        if not hmac.compare_digest(self._seal(key, payload), data[:SEAL_BYTES]):
            return None
        return decode_entry(bytes(payload))

    def _seal(self, key: bytes, payload: bytes | memoryview) -> bytes:
        seal = hashlib.blake2b(key, key=self._secret, digest_size=SEAL_BYTES, person=_PERSON)
        seal.update(payload)
        return seal.digest()

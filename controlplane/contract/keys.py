"""Virtual keys: how they look and how they are hashed. The hash is keyed, so a leaked table of hashes cannot be searched offline."""

from __future__ import annotations

import hashlib
import secrets

KEY_PREFIX = "sk-heph-"
PEPPER_BYTES = 32


def new_key() -> str:
    """A fresh virtual key with 192 random bits; shown once, never stored."""
    return KEY_PREFIX + secrets.token_urlsafe(24)


def hash_key(key: bytes, pepper: bytes) -> str:
    """The keyed hash under which a virtual key is stored and looked up: 32 hex characters."""
    return hashlib.blake2b(key, key=pepper, digest_size=16).hexdigest()

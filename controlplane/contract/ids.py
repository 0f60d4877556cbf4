"""Identifiers: opaque strings that sort by the time they were made.

An id is a prefix, an underscore and 26 characters of Crockford base 32: 48 bits of milliseconds followed by 80 random bits
(the ULID layout), so that ids made later sort later and two processes never make the same one.
"""

from __future__ import annotations

import os
import time
from typing import NewType

CallId = NewType("CallId", str)
TenantId = NewType("TenantId", str)
KeyId = NewType("KeyId", str)
DeploymentId = NewType("DeploymentId", str)
LeaseId = NewType("LeaseId", str)
RunId = NewType("RunId", str)
IncidentId = NewType("IncidentId", str)
ProxyId = NewType("ProxyId", str)

ALPHABET = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS = tuple(a + b for a in ALPHABET.decode() for b in ALPHABET.decode())
"""Ten bits as two digits."""


def ulid(*, now_ms: int, entropy: bytes) -> str:
    """26 characters for a moment and ten random bytes; pure, so that tests can pin it.

    now_ms: Unix milliseconds, 0 <= now_ms < 2**48.
    entropy: exactly 10 bytes.
    """
    value = (now_ms << 80) | int.from_bytes(entropy, "big")
    pairs = PAIRS
    return (
        pairs[value >> 120 & 1023]
        + pairs[value >> 110 & 1023]
        + pairs[value >> 100 & 1023]
        + pairs[value >> 90 & 1023]
        + pairs[value >> 80 & 1023]
        + pairs[value >> 70 & 1023]
        + pairs[value >> 60 & 1023]
        + pairs[value >> 50 & 1023]
        + pairs[value >> 40 & 1023]
        + pairs[value >> 30 & 1023]
        + pairs[value >> 20 & 1023]
        + pairs[value >> 10 & 1023]
        + pairs[value & 1023]
    )


def new_id(prefix: str) -> str:
    """A fresh id such as `call_01JD...`, unique across processes."""
    return f"{prefix}_{ulid(now_ms=time.time_ns() // 1_000_000, entropy=os.urandom(10))}"

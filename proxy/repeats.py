"""Requests that come again word for word: what reading them has found, so that it is not found again.

Agents repeat themselves, and an answer from the cache's memory costs less than reading the request does: its fields, and the canonical form
that its cache key is a hash of. Who was served from memory once is remembered here, by the very bytes of the body, for each tenant and
operation; a request that differs in one byte is another one and is read as ever. What is remembered depends on the bytes alone, so nothing can
make it wrong. A request that never comes again costs one look-up.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.dialects.dialect import RequestView

_SHARE_MAX = 16  # of the whole, that one request may take
_OVERHEAD_BYTES = 1024  # of a remembered request, beside its body

Body = tuple[str, str, bytes]  # tenant, operation, the body as it came


class Known(NamedTuple):
    """What one body says."""

    view: RequestView
    scope: bytes  # for which the key was made: tenant, operation, alias, headers that vary the answer
    key: bytes  # of the stored answer


class Repeats:
    """Known bodies, bounded in bytes; the oldest give way, and are soon known again if they still come."""

    def __init__(self, *, bytes_max: int) -> None:
        """bytes_max: 0: nothing is remembered."""
        self._bytes_max = bytes_max
        self._body_bytes_max = bytes_max // _SHARE_MAX - _OVERHEAD_BYTES
        self._known: dict[Body, Known] = {}
        self.bytes_used = 0
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, tenant: str, operation: str, body: bytes) -> Known | None:
        """What a body says, if it is known."""
        if not self._known or len(body) > self._body_bytes_max:
            return None
        return self._known.get((tenant, operation, body))

    def note(self, tenant: str, operation: str, body: bytes, known: Known) -> None:
        """Remembers a body, unless it is so large that it would take the place of too many others."""
        if len(body) > self._body_bytes_max:
            return
        self._put((tenant, operation, body), known)

    def _put(self, body: Body, known: Known) -> None:
        size_bytes = len(body[2]) + _OVERHEAD_BYTES
        if self._known.pop(body, None) is None:
            self.bytes_used += size_bytes
        self._known[body] = known
        while self.bytes_used > self._bytes_max:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self.bytes_used -= len(oldest[2]) + _OVERHEAD_BYTES
            self.evicted_total += 1

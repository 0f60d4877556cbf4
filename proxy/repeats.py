"""Requests that come again word for word: what reading them has found, so that it is not found again.

Agents repeat themselves, and an answer from the cache's memory costs less than reading the request does: its fields, and the canonical form
that its cache key is a hash of. Who was served from memory once is remembered here, by the very bytes of the body, for each tenant and
operation; a request that differs in one byte is another one and is read as ever. What is remembered depends on the bytes alone, so nothing can
make it wrong. A request that never comes again costs one look-up. What headers and labels add to a body counts as a part of it.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.dialects.dialect import RequestView

_SHARE_MAX = 16  # of the whole, that one request may take
_OVERHEAD_BYTES = 1024  # of a remembered request, beside its body
_PAIR_BYTES = 256  # of two texts and their place, beside their characters
_TEXT_BYTES = 4  # of one character, at most

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
        if _size_bytes(body, known) > self._body_bytes_max + _OVERHEAD_BYTES:
            return
        self._put((tenant, operation, body), known)

    def _put(self, body: Body, known: Known) -> None:
        before = self._known.pop(body, None)
        if before is not None:
            self.bytes_used -= _size_bytes(body[2], before)
        self.bytes_used += _size_bytes(body[2], known)
        self._known[body] = known
        while self.bytes_used > self._bytes_max:
            oldest = next(iter(self._known))
            self.bytes_used -= _size_bytes(oldest[2], self._known.pop(oldest))
            self.evicted_total += 1


def _size_bytes(body: bytes, known: Known) -> int:
    """What a remembered body takes, about; never less than what its sender can make large."""
    view = known.view
    size_bytes = len(body) + len(known.scope) + _TEXT_BYTES * len(view.user) + _OVERHEAD_BYTES
    if view.metadata:
        size_bytes += sum(_PAIR_BYTES + _TEXT_BYTES * (len(name) + len(value)) for name, value in view.metadata.items())
    return size_bytes + _PAIR_BYTES * len(view.continues)

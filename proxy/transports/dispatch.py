"""Which way a try goes: over HTTP in a language that we speak, or through a transport that is made for one dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

from proxy.call import Reply
from proxy.transports.attempt import Attempt, AttemptTransport


class Dispatch:
    """Hands each try to the transport of its upstream's dialect.

    special: by dialect; every other dialect goes to `usual`.
    """

    def __init__(self, usual: AttemptTransport, special: Mapping[str, AttemptTransport]) -> None:
        self._usual = usual
        self._special = special

    def send(self, attempt: Attempt) -> Coroutine[object, object, Reply]:
        """The reply of the transport in charge."""
        return self._special.get(attempt.candidate.upstream.dialect, self._usual).send(attempt)

    async def aclose(self) -> None:
        """Closes them all."""
        await asyncio.gather(self._usual.aclose(), *(transport.aclose() for transport in self._special.values()))

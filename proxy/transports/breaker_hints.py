"""What workers and hosts tell each other about their breakers: hints, which make a breaker sceptical and never decide for it.

A breaker that opens says so on one channel, and again every few seconds while it is open; one that closes says that too. A sibling whose
own breaker is closed then opens it at its first own failure, instead of after a whole window of them; one whose breaker is open
probes with its next call. A message that is lost costs only what the hint would have saved.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from controlplane.contract.snapshot import BreakerStatus
from proxy.shared import OnMessage, SharedUnavailable
from proxy.transports.breaker import BreakerTransport
from proxy.view import label

REPEAT_S = 10.0
_REASON_CHARS_MAX = 200


class Messages(Protocol):
    """The part of the shared state that is needed here."""

    prefix: bytes

    async def publish(self, channel: bytes, data: bytes) -> None:
        """Sends a message to all subscribers. Raises SharedUnavailable."""
        ...

    def subscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Calls `on_message` with each message from now on."""
        ...


class Hint(msgspec.Struct, frozen=True):
    """One worker's word about one deployment."""

    sender: str
    deployment: str
    healthy: bool
    reason: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Hint).decode


class BreakerHints:
    """Sends this worker's hints and takes in those of the others. sender: this worker's id, which it does not listen to."""

    def __init__(self, shared: Messages, breakers: BreakerTransport, *, sender: str) -> None:
        self._shared = shared
        self._breakers = breakers
        self._sender = sender
        self._channel = shared.prefix + b"breakers"
        self._open: dict[str, str] = {}  # deployments whose breaker is open here, and why; as many as the catalog has
        self._news: dict[str, Hint] = {}
        self._changed = asyncio.Event()
        self.sent_total = 0
        self.taken_total = 0
        self.lost_total = 0
        breakers.on_change = self._note
        shared.subscribe(self._channel, self._take)

    async def run(self) -> None:
        """Sends for ever; cancel it to stop."""
        while True:
            try:
                async with asyncio.timeout(REPEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                self._open = {name: why for name, why in self._open.items() if name in self._breakers.sick}
                self._news = {name: self._hint(name, why) for name, why in self._open.items()} | self._news
            self._changed.clear()
            await self.send()

    async def send(self) -> None:
        """Sends what is new."""
        news, self._news = self._news, {}
        for hint in news.values():
            try:
                await self._shared.publish(self._channel, _encode(hint))
            except SharedUnavailable:
                self.lost_total += 1
            else:
                self.sent_total += 1

    def _note(self, status: BreakerStatus) -> None:
        """One of this worker's breakers has changed."""
        name = status.deployment
        if status.state == "open":
            self._open[name] = status.reason
            self._news[name] = self._hint(name, status.reason)
        elif status.state == "closed" and self._open.pop(name, None) is not None:
            self._news[name] = self._hint(name)
        else:
            return
        self._changed.set()

    def _hint(self, deployment: str, reason: str | None = None) -> Hint:
        return Hint(self._sender, deployment, healthy=reason is None, reason=reason or "")

    def _take(self, data: bytes) -> None:
        try:
            hint = _decode(data)
        except (msgspec.DecodeError, RecursionError):  # of another version
            return
        if hint.sender != self._sender:
            self.taken_total += 1
            reason = label(hint.reason, _REASON_CHARS_MAX)  # anybody who can write to Redis may have sent it
            self._breakers.hint(hint.deployment, healthy=hint.healthy, reason=reason)

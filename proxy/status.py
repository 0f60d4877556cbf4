"""Tells the control plane every few seconds how this worker is: the proof that a snapshot was applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx
import msgspec

from controlplane.contract.snapshot import ProxyStatus
from controlplane.contract.wire import STATUS_PATH

TIMEOUT_S = 5.0


class StatusReporter:
    """Posts what a callable builds. A lost status is not repeated: the next one says more.

    build: the statuses of this worker and of those it speaks for.
    """

    def __init__(
        self, uplink: httpx.AsyncClient, *, build: Callable[[], Sequence[ProxyStatus]], every_s: float
    ) -> None:
        self._uplink = uplink
        self._build = build
        self._every_s = every_s
        self._hurry = asyncio.Event()
        self.sent_total = 0
        self.failures_total = 0

    def hurry(self) -> None:
        """Reports at once, as after a new snapshot, so that a waiting run need not wait for the next turn."""
        self._hurry.set()

    async def run(self) -> None:
        """Reports for ever; cancel it to stop."""
        while True:
            self._hurry.clear()
            await self.send()
            try:
                async with asyncio.timeout(self._every_s):
                    await self._hurry.wait()
            except TimeoutError:
                continue

    async def send(self) -> bool:
        """Posts each status; False at the first that the control plane did not take."""
        for status in self._build():
            if not await self._post(status):
                self.failures_total += 1
                return False
            self.sent_total += 1
        return True

    async def _post(self, status: ProxyStatus) -> bool:
        content = msgspec.json.encode(status)
        headers = {"content-type": "application/json"}
        try:
            answer = await self._uplink.post(STATUS_PATH, content=content, headers=headers, timeout=TIMEOUT_S)
        except (httpx.HTTPError, OSError):
            return False
        return answer.is_success

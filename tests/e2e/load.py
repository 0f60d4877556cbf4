"""Load for end-to-end tests: many concurrent calls over plain HTTP, each remembered with what the client saw."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import httpx

REFUSED_PAUSE_S = 0.02  # a client that finds nobody listening does not spin


@dataclass
class Seen:
    """What a client saw of one call: a complete answer, a refusal, or nothing. at_s: when it began, by the monotonic clock."""

    status: int
    at_s: float = 0.0
    stream: bool = False
    call_id: str = ""
    deployment: str = ""
    cache: str = ""
    cost_usd: str = ""
    complete: bool = False
    body: str = ""


@dataclass
class Load:
    """A closed loop of workers against one base URL; `seen` grows while it runs."""

    base_url: str
    key: str
    model: str = "gpt-4o-mini"
    workers: int = 8
    stream_every: int = 4  # each so many-th call is a stream; 0: none
    max_tokens: int = 16
    pause_s: float = 0.0  # of each worker between two calls
    seen: list[Seen] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def one(self, client: httpx.AsyncClient, *, prompt: str | None = None, stream: bool = False) -> Seen:
        """One call; a broken connection is a Seen with status 0."""
        number = next(self._numbers)
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt or f"What is {number} plus {number}? ({id(self)})"}],
            "max_tokens": self.max_tokens,
        }
        if stream:
            body["stream"] = True
        seen = Seen(0, at_s=time.monotonic(), stream=stream)
        try:
            async with client.stream(
                "POST", f"{self.base_url}/chat/completions", json=body, headers={"authorization": f"Bearer {self.key}"}
            ) as answer:
                seen.status = answer.status_code
                seen.call_id = answer.headers.get("x-heph-call-id", "")
                seen.deployment = answer.headers.get("x-heph-deployment", "")
                seen.cache = answer.headers.get("x-heph-cache", "")
                seen.cost_usd = answer.headers.get("x-heph-cost-usd", "")
                seen.body = (await answer.aread()).decode(errors="replace")
                seen.complete = seen.status == 200 and ("data: [DONE]" in seen.body if stream else bool(seen.body))
        except httpx.HTTPError:
            pass
        self.seen.append(seen)
        return seen

    async def _worker(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            number = len(self.seen)
            seen = await self.one(client, stream=bool(self.stream_every) and number % self.stream_every == 0)
            await asyncio.sleep(self.pause_s if seen.status else max(self.pause_s, REFUSED_PAUSE_S))

    async def run(self) -> None:
        """Calls until stopped."""
        limits = httpx.Limits(max_connections=self.workers, max_keepalive_connections=self.workers)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            await asyncio.gather(*(self._worker(client) for _ in range(self.workers)))

    def stop(self) -> None:
        """Lets the calls in flight end and no new ones begin."""
        self._stop.set()

    async def burst(self, count: int, *, prompt: str | None = None, stream: bool = False) -> list[Seen]:
        """So many calls at once."""
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            return list(await asyncio.gather(*(self.one(client, prompt=prompt, stream=stream) for _ in range(count))))


def complete(seen: list[Seen]) -> list[Seen]:
    """Those that a client saw to their end."""
    return [one for one in seen if one.complete]


def failed_share(seen: list[Seen]) -> float:
    """The part of the calls that a client did not see to their end, 0..1; 0 of none."""
    return 1 - len(complete(seen)) / len(seen) if seen else 0.0

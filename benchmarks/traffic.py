"""Mixed traffic as agents make it: every protocol, whole and streamed, repeated, shared, abandoned; for soaking a proxy.

What clients get is counted by status and never judged: with faults on, refusals are right answers. What must hold is told by the proxy itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

CHAT, MODEL, CLAUDE, EMBEDDING = "/v1/chat/completions", "gpt-4o-mini", "claude", "text-embedding-3-small"
_SHARED = 3  # identical streams at once
_TIMEOUT_S = 30.0

Body = dict[str, object]


@dataclass(slots=True)
class Traffic:
    """A number of clients, each with its next call as soon as its last has ended, and a pause between.

    kinds: names of the methods below and how often each is made; leave out what the catalog under load does not serve.
    """

    url: str
    key: str
    clients: int
    pause_s: float
    kinds: dict[str, int]
    seed: int = 7
    counts: Counter[str] = field(default_factory=Counter)  # `kind status`
    _number: int = 0
    _draw: random.Random = field(default_factory=random.Random)

    async def run(self, until: asyncio.Event) -> None:
        """Makes calls until it is told to stop, and waits for those under way."""
        self._draw.seed(self.seed)
        headers = {"authorization": f"Bearer {self.key}", "x-heph-agent": "soak"}
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with aiohttp.ClientSession(self.url, headers=headers, timeout=timeout) as session:
            await asyncio.gather(*(self._client(session, until) for _ in range(self.clients)))

    async def _client(self, session: aiohttp.ClientSession, until: asyncio.Event) -> None:
        makers: dict[str, Callable[[aiohttp.ClientSession], Awaitable[str]]] = {
            "chat": self._chat, "hit": self._hit, "stream": self._stream, "shared": self._shared, "leaves_stream": self._leaves_stream,
            "leaves": self._leaves, "embeddings": self._embeddings, "messages": self._messages, "messages_stream": self._messages_stream,
            "responses": self._responses, "responses_stream": self._responses_stream, "malformed": self._malformed,
        }  # fmt: skip
        while not until.is_set():
            (kind,) = self._draw.choices(list(self.kinds), list(self.kinds.values()))
            try:
                ended = await makers[kind](session)
            except (aiohttp.ClientError, TimeoutError) as error:
                ended = type(error).__name__
            self.counts[f"{kind} {ended}"] += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), self.pause_s * self._draw.uniform(0.5, 1.5))

    def _prompt(self) -> str:
        self._number += 1
        return f"What does incident {self.seed}-{self._number} mean for the release?"

    async def _post(self, session: aiohttp.ClientSession, path: str, body: Body) -> str:
        """Sends a call and reads all of its answer."""
        async with session.post(path, json=body) as answer:
            await answer.read()
            return str(answer.status)

    async def _chat(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, CHAT, _chat(self._prompt()))

    async def _hit(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, CHAT, _chat(f"common question {self._draw.randrange(5)}"))

    async def _stream(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, CHAT, _chat(self._prompt(), stream=True))

    async def _shared(self, session: aiohttp.ClientSession) -> str:
        body = _chat(self._prompt(), stream=True)
        ended = await asyncio.gather(*(self._post(session, CHAT, body) for _ in range(_SHARED)), return_exceptions=True)
        return "/".join(sorted({item if isinstance(item, str) else type(item).__name__ for item in ended}))

    async def _leaves_stream(self, session: aiohttp.ClientSession) -> str:
        """Reads the beginning of a stream and leaves."""
        async with session.post(CHAT, json=_chat(self._prompt(), stream=True)) as answer:
            await answer.content.readany()
            answer.close()
            return "left"

    async def _leaves(self, session: aiohttp.ClientSession) -> str:
        """Leaves before there is an answer."""
        try:
            async with asyncio.timeout(0.01):
                return await self._chat(session)
        except TimeoutError:
            return "left"

    async def _embeddings(self, session: aiohttp.ClientSession) -> str:
        texts = [f"common text {self._draw.randrange(20)}" for _ in range(4)] + [self._prompt()]
        return await self._post(session, "/v1/embeddings", {"model": EMBEDDING, "input": texts})

    async def _messages(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, "/v1/messages", _message(self._prompt()))

    async def _messages_stream(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, "/v1/messages", _message(self._prompt(), stream=True))

    async def _responses(self, session: aiohttp.ClientSession) -> str:
        return await self._post(session, "/v1/responses", {"model": MODEL, "input": self._prompt(), "store": False})

    async def _responses_stream(self, session: aiohttp.ClientSession) -> str:
        body: Body = {"model": MODEL, "input": self._prompt(), "stream": True}
        return await self._post(session, "/v1/responses", body)

    async def _malformed(self, session: aiohttp.ClientSession) -> str:
        async with session.post(CHAT, data=b'{"model": "gpt-4o-mini", "messages": [') as answer:
            await answer.read()
            return str(answer.status)


def _chat(text: str, *, stream: bool = False) -> Body:
    body: Body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 60}
    return body | ({"stream": True} if stream else {})


def _message(text: str, *, stream: bool = False) -> Body:
    return {"model": CLAUDE, "messages": [{"role": "user", "content": text}], "max_tokens": 60, "stream": stream}

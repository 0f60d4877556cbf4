"""How the agents of the fleet call: the official OpenAI client, with every answer and every error counted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import httpx
import msgspec
import openai

NANOUSD_PER_USD = 1_000_000_000
_COST = "x-heph-cost-usd"
_HITS = ("hit", "stale", "semantic")
_ERROR_CODES_MAX = 100  # different codes that are told apart; the rest are counted as "other"
Message = dict[str, Any]  # a message as the official client takes it
Tool = dict[str, Any]  # a tool as the official client takes it


class AgentCounters(msgspec.Struct):
    """Counts of one agent."""

    calls: int = 0
    ok: int = 0
    failed: int = 0
    cache_hits: int = 0
    cost_nanousd: int = 0


class FleetCounters(msgspec.Struct):
    """Live counts of a fleet. calls = ok + failed + abandoned + in_flight."""

    calls: int = 0
    ok: int = 0
    abandoned: int = 0  # streams that an agent left on purpose
    in_flight: int = 0
    failed_by_code: dict[str, int] = msgspec.field(default_factory=dict)  # the error's code, else its status or kind
    cache: dict[str, int] = msgspec.field(default_factory=dict)  # answers by their x-heph-cache header
    cost_nanousd: int = 0  # as the answers' x-heph-cost-usd says
    agents: dict[str, AgentCounters] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Calls that ended with an error."""
        return sum(self.failed_by_code.values())

    @property
    def cache_hits(self) -> int:
        """Answers that came out of the cache."""
        return sum(self.cache.get(state, 0) for state in _HITS)

    @property
    def coalesced(self) -> int:
        """Answers that came from a call of somebody else in flight."""
        return self.cache.get("coalesced", 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent needs of an answer."""

    text: str
    calls: tuple[tuple[str, str, str], ...] = ()  # tool calls: id, name, arguments

    def as_message(self) -> Message:
        """The answer as a part of the conversation."""
        message: Message = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for call_id, name, arguments in self.calls
            ]
        return message


class Caller:
    """One agent's way to the proxy. A failed call is counted and gives None; nothing but a cancellation is raised."""

    def __init__(
        self, client: openai.AsyncOpenAI, agent: str, counters: FleetCounters, slots: asyncio.Semaphore
    ) -> None:
        """slots: the calls that the whole fleet may have in flight."""
        self.agent = agent
        self._client = client
        self._counters = counters
        self._own = counters.agents.setdefault(agent, AgentCounters())
        self._slots = slots

    async def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        session: str,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
    ) -> Answer | None:
        """One chat completion."""
        options: dict[str, Any] = {"tools": list(tools), "tool_choice": tool_choice} if tools else {}
        create: Any = (
            self._client.chat.completions.with_raw_response.create
        )  # typed for literals, not for what a variable holds
        async with self._counted() as call:
            raw = await create(model=model, messages=list(messages), extra_headers=self._headers(session), **options)
            answer = raw.parse().choices[0].message
            call.answered(raw.headers)
            calls = tuple((made.id, made.function.name, made.function.arguments) for made in answer.tool_calls or ())
            return Answer(answer.content or "", calls)
        return None

    async def stream(
        self, model: str, messages: Sequence[Message], *, session: str, leave_after: int | None = None
    ) -> Answer | None:
        """One streamed chat completion, read to its end or, with leave_after, abandoned after so many events."""
        create: Any = self._client.chat.completions.with_streaming_response.create  # as above
        text: list[str] = []
        async with self._counted() as call:
            async with create(
                model=model, messages=list(messages), stream=True, extra_headers=self._headers(session)
            ) as response:
                seen = 0
                async for line in response.iter_lines():
                    if line.startswith(f": {_COST}="):
                        call.cost(line.removeprefix(f": {_COST}=").partition(" ")[0])
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        call.answered(response.headers)
                        return Answer("".join(text))
                    text.append(_text_of(line.removeprefix("data: ")))
                    seen += 1
                    if leave_after is not None and seen > leave_after:
                        call.abandoned()
                        return Answer("".join(text))
            raise _Incomplete("stream_incomplete")
        return None

    async def embed(self, model: str, texts: Sequence[str], *, session: str) -> bool:
        """One call for embeddings; says whether it succeeded."""
        async with self._counted() as call:
            raw = await self._client.embeddings.with_raw_response.create(
                model=model, input=list(texts), extra_headers=self._headers(session)
            )
            call.answered(raw.headers)
            return len(raw.parse().data) == len(texts)
        return False

    def _headers(self, session: str) -> dict[str, str]:
        return {"x-heph-agent": self.agent, "x-heph-session": session}

    def _counted(self) -> _Count:
        return _Count(self._counters, self._own, self._slots)


class _Count:
    """The counting of one call: waits for a slot, and swallows the call's error once it is counted."""

    def __init__(self, fleet: FleetCounters, own: AgentCounters, slots: asyncio.Semaphore) -> None:
        self._fleet = fleet
        self._own = own
        self._slots = slots
        self._open = False

    async def __aenter__(self) -> Self:
        await self._slots.acquire()
        self._open = True
        self._fleet.calls += 1
        self._fleet.in_flight += 1
        self._own.calls += 1
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._slots.release()
        known = isinstance(error, (openai.OpenAIError, httpx.HTTPError, ValueError, _Incomplete))
        if known and isinstance(error, Exception):
            self._failed(_code_of(error))
        elif self._open:  # cancelled before its answer
            self.abandoned()
        return known

    def answered(self, headers: Mapping[str, str]) -> None:
        """A whole answer with its headers."""
        self._end()
        self._fleet.ok += 1
        self._own.ok += 1
        cache = headers.get("x-heph-cache")
        if cache:
            self._fleet.cache[cache] = self._fleet.cache.get(cache, 0) + 1
            self._own.cache_hits += cache in _HITS
        self.cost(headers.get(_COST, ""))

    def abandoned(self) -> None:
        """The agent left."""
        self._end()
        self._fleet.abandoned += 1

    def cost(self, usd: str) -> None:
        """Money as a header or the last comment of a stream tells it."""
        try:
            nanousd = int(Decimal(usd) * NANOUSD_PER_USD)
        except (InvalidOperation, ValueError, OverflowError):
            return
        self._fleet.cost_nanousd += nanousd
        self._own.cost_nanousd += nanousd

    def _failed(self, code: str) -> None:
        """An error; after an answer was counted it is not counted again."""
        if not self._open:
            return
        self._end()
        self._own.failed += 1
        known = self._fleet.failed_by_code
        if code not in known and len(known) >= _ERROR_CODES_MAX:
            code = "other"
        known[code] = known.get(code, 0) + 1

    def _end(self) -> None:
        self._open = False
        self._fleet.in_flight -= 1


class _Incomplete(Exception):
    """A stream that ended too early, or with an error event; carries the code."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    error: _Error | None = None


def _text_of(data: str) -> str:
    """The text in one event. Raises _Incomplete for an error event, ValueError for one that is not JSON."""
    event = msgspec.json.decode(data, type=_Event)
    if event.error is not None:
        raise _Incomplete(str(event.error.code or event.error.type or "error_event"))
    return "".join(choice.delta.content or "" for choice in event.choices)


def _code_of(error: Exception) -> str:
    """A short, stable name for an error."""
    match error:
        case openai.APITimeoutError() | httpx.TimeoutException():
            return "timeout"
        case openai.APIStatusError():
            return str(error.code or error.status_code)
        case openai.APIConnectionError() | httpx.TransportError():
            return "connection"
        case _Incomplete():
            return str(error)
        case _:
            return "malformed_answer"

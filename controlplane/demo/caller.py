"""How the agents of the fleet call: the official clients in three protocols, with every answer and every error counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import anthropic
import msgspec
import openai

from controlplane.demo.counters import COST, AgentCounters, Count, FleetCounters, Incomplete

Message = dict[str, Any]  # a message as an official client takes it
Tool = dict[str, Any]  # a tool as an official client takes it
Block = dict[str, Any]  # a content block as Anthropic's client takes it


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent needs of an answer."""

    text: str
    calls: tuple[tuple[str, str, str], ...] = ()  # tool calls: id, name, arguments
    id: str = ""  # of a response that is remembered

    def as_message(self) -> Message:
        """The answer as a part of the conversation."""
        message: Message = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for call_id, name, arguments in self.calls
            ]
        return message


@dataclass(frozen=True, slots=True)
class Clients:
    """The official clients of one virtual key."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    @classmethod
    def to(cls, base_url: str, api_key: str, *, timeout_s: float) -> Clients:
        """Clients that try once. base_url: as OpenAI's client takes it, ending with `/v1`, which Anthropic's adds itself."""
        return cls(
            openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout_s),
            anthropic.AsyncAnthropic(
                base_url=base_url.removesuffix("/v1"), api_key=api_key, max_retries=0, timeout=timeout_s
            ),
        )

    async def close(self) -> None:
        """Closes their connections."""
        await self.openai.close()
        await self.anthropic.close()


class Caller:
    """One agent's way to the proxy. A failed call is counted and gives None; nothing but a cancellation is raised."""

    def __init__(self, clients: Clients, agent: str, counters: FleetCounters, slots: asyncio.Semaphore) -> None:
        """slots: the calls that the whole fleet may have in flight."""
        self.agent = agent
        self._clients = clients
        self._counters = counters
        self._own = counters.agents.setdefault(agent, AgentCounters())
        self._slots = slots

    # --- OpenAI's chat completions and embeddings ------------------------------------------------------------------------

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
        # Typed for literals, not for what a variable holds; so are its neighbours below.
        create: Any = self._clients.openai.chat.completions.with_raw_response.create
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
        create: Any = self._clients.openai.chat.completions.with_streaming_response.create
        text: list[str] = []
        async with self._counted() as call:
            async with create(
                model=model, messages=list(messages), stream=True, extra_headers=self._headers(session)
            ) as response:
                seen = 0
                async for data in _events(response.iter_lines(), call):
                    if data == "[DONE]":
                        call.answered(response.headers)
                        return Answer("".join(text))
                    text.append(_text_of(data))
                    seen += 1
                    if leave_after is not None and seen > leave_after:
                        call.abandoned()
                        return Answer("".join(text))
            raise Incomplete("stream_incomplete")
        return None

    async def embed(self, model: str, texts: Sequence[str], *, session: str) -> bool:
        """One call for embeddings; says whether it succeeded."""
        async with self._counted() as call:
            raw = await self._clients.openai.embeddings.with_raw_response.create(
                model=model, input=list(texts), extra_headers=self._headers(session)
            )
            call.answered(raw.headers)
            return len(raw.parse().data) == len(texts)
        return False

    # --- OpenAI's responses ----------------------------------------------------------------------------------------------

    async def respond(
        self, model: str, question: str, *, session: str, instructions: str = "", previous: str | None = None
    ) -> Answer | None:
        """One response that is remembered, or that goes on from the one with the id `previous`."""
        create: Any = self._clients.openai.responses.with_raw_response.create
        options = {"previous_response_id": previous} if previous else {}
        async with self._counted() as call:
            raw = await create(
                model=model,
                input=question,
                instructions=instructions or None,
                extra_headers=self._headers(session),
                **options,
            )
            made = raw.parse()
            call.answered(raw.headers)
            return Answer(made.output_text, id=made.id)
        return None

    # --- Anthropic's messages --------------------------------------------------------------------------------------------

    async def message(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        session: str,
        tools: Sequence[Tool] = (),
        tool_choice: dict[str, str] | None = None,
        tokens_max: int = 1_000,
    ) -> Answer | None:
        """One message."""
        create: Any = self._clients.anthropic.messages.with_raw_response.create
        options: dict[str, Any] = (
            {"tools": list(tools), "tool_choice": tool_choice or {"type": "auto"}} if tools else {}
        )
        async with self._counted() as call:
            raw = await create(
                model=model,
                messages=list(messages),
                max_tokens=tokens_max,
                extra_headers=self._headers(session),
                **options,
            )
            made = await raw.parse()
            call.answered(raw.headers)
            text = "".join(block.text for block in made.content if block.type == "text")
            calls = [block for block in made.content if block.type == "tool_use"]
            return Answer(text, tuple((call.id, call.name, msgspec.json.encode(call.input).decode()) for call in calls))
        return None

    async def message_stream(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        session: str,
        system: Sequence[Block] = (),
        tokens_max: int = 1_000,
    ) -> Answer | None:
        """One streamed message, read to its end."""
        create: Any = self._clients.anthropic.messages.with_streaming_response.create
        text: list[str] = []
        async with self._counted() as call:
            async with create(
                model=model,
                messages=list(messages),
                max_tokens=tokens_max,
                system=list(system),
                stream=True,
                extra_headers=self._headers(session),
            ) as response:
                async for data in _events(response.iter_lines(), call):
                    event = msgspec.json.decode(data, type=_MessageEvent)
                    if event.type == "message_stop":
                        call.answered(response.headers)
                        return Answer("".join(text))
                    if event.error is not None:
                        raise Incomplete(event.error.type or "error_event")
                    text.append(event.delta.text if event.delta is not None else "")
            raise Incomplete("stream_incomplete")
        return None

    def _headers(self, session: str) -> dict[str, str]:
        return {"x-heph-agent": self.agent, "x-heph-session": session}

    def _counted(self) -> Count:
        return Count(self._counters, self._own, self._slots)


async def _events(lines: AsyncIterator[str], call: Count) -> AsyncIterator[str]:
    """The data of a stream's events; the comment in which the proxy tells the cost is counted on the way."""
    async for line in lines:
        if line.startswith(f": {COST}="):
            call.cost(line.removeprefix(f": {COST}=").partition(" ")[0])
        elif line.startswith("data: "):
            yield line.removeprefix("data: ")


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


class _TextDelta(msgspec.Struct):
    text: str = ""


class _MessageEvent(msgspec.Struct):
    type: str
    delta: _TextDelta | None = None
    error: _Error | None = None


def _text_of(data: str) -> str:
    """The text in one event. Raises Incomplete for an error event, ValueError for one that is not JSON."""
    event = msgspec.json.decode(data, type=_Event)
    if event.error is not None:
        raise Incomplete(str(event.error.code or event.error.type or "error_event"))
    return "".join(choice.delta.content or "" for choice in event.choices)

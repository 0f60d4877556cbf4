"""When litellm is imported, what happens until it is there, and what its answers may not do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import Upstream
from proxy.transports.litellm import LitellmTransport
from tests.proxy.fakes import World, until

REPLY = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}


class Document:
    """An answer as pydantic would give it."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def model_dump_json(self, *, exclude_none: bool, warnings: bool) -> str:
        """The document."""
        return json.dumps(self.fields)


class Library:
    """Stands in for litellm, which takes seconds to import and cannot be made to wait."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = REPLY if answer is None else answer
        self.asked: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.closed = 0

    async def acompletion(self, **arguments: Any) -> Any:
        """Answers, or streams, or fails, as it was told."""
        self.asked.append(arguments)
        await self.go_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if hasattr(self.answer, "__anext__") else Document(self.answer)

    async def aembedding(self, **arguments: Any) -> Any:
        """Answers too."""
        return await self.acompletion(**arguments)

    async def close_litellm_async_clients(self) -> None:
        """Counts."""
        self.closed += 1


def use(world: World, load: Callable[[], Any], **knobs: Any) -> None:
    """Serves every call through a library that is loaded so."""
    world.worker.litellm._load = load
    world.apply(urls=("",), upstream={"dialect": "litellm"} | knobs, route={"attempts_max": 1})


def test_a_worker_that_needs_no_litellm_does_not_import_it() -> None:
    """Neither the package nor one of its parts, however much of the proxy is imported."""
    program = "import sys, proxy.worker, proxy.transports.litellm; sys.exit('litellm' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", program], check=False).returncode


async def test_the_import_begins_with_the_snapshot_and_the_first_call_waits_for_it(world: World) -> None:
    """The event loop goes on meanwhile, and the library is imported once."""
    there = threading.Event()
    library = Library()
    began: list[str] = []

    def load() -> Library:
        began.append(threading.current_thread().name)
        there.wait(30)
        return library

    use(world, load)
    calls = [asyncio.create_task(world.chat()) for _ in range(2)]
    await until(lambda: world.worker.app.inflight == 2)
    assert 200 == (await world.client.get("/livez")).status_code
    assert [] == library.asked
    there.set()
    assert [200, 200] == [reply.status_code for reply in await asyncio.gather(*calls)]
    assert ["import-litellm"] == began


async def test_an_import_that_takes_too_long_ends_the_try(world: World) -> None:
    """A call waits for it no longer than for a first byte."""
    there = threading.Event()
    use(world, lambda: there.wait(30) and Library(), first_byte_timeout_s=0.05)
    response = await world.chat()
    there.set()
    assert 502 == response.status_code
    assert AttemptError.CONNECT == world.records()[0].attempts[0].error


async def test_an_import_that_fails_is_told_without_details(world: World) -> None:
    """The operator finds the reason in the log."""

    def load() -> Library:
        raise ModuleNotFoundError("No module named 'secret_place'")

    use(world, load)
    response = await world.chat()
    assert 502 == response.status_code
    assert "secret_place" not in response.text


async def test_no_more_tries_than_connections(world: World) -> None:
    """A full upstream refuses at once, and a try that ended gives its place back."""
    library = Library()
    library.go_on.clear()
    use(world, lambda: library, connections_max=1)
    first = asyncio.create_task(world.chat())
    await until(lambda: library.asked)
    assert 502 == (await world.chat()).status_code
    library.go_on.set()
    assert 200 == (await first).status_code
    assert 200 == (await world.chat()).status_code


async def test_what_litellm_is_told(world: World) -> None:
    """Our model, key and address; one try; a deadline; and of the client's only what is OpenAI's."""
    library = Library()
    use(world, lambda: library, options={"api_version": "2024-10-21", "drop_params": "true"})
    await world.chat(temperature=0.5, user="u", max_completion_tokens=7, store=True, metadata={"a": "b"})
    (asked,) = library.asked
    timeout = asked.pop("timeout")
    allowed_s = Upstream("u0", "openai", "http://u0").first_byte_timeout_s
    assert allowed_s - 60 < timeout <= allowed_s
    assert {
        "model": "upstream-model",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "user": "u",
        "max_tokens": 7,
        "api_key": "sk-upstream-secret",
        "api_base": None,
        "api_version": "2024-10-21",
        "drop_params": True,
        "num_retries": 0,
        "max_retries": 0,
        "_skip_mcp_handler": True,
    } == asked


async def test_a_stream_that_fails_after_its_first_content(world: World) -> None:
    """The client gets an error event; the try is recorded as what it was, with what was used by then."""

    async def stream() -> AsyncIterator[Document]:
        yield Document({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]})
        raise RuntimeError("at http://10.0.0.1/ with sk-upstream-secret")

    use(world, lambda: Library(stream()))
    response = await world.chat(stream=True)
    assert b"Hel" in response.content
    assert b'data: {"error"' in response.content
    assert b"10.0.0.1" not in response.content
    assert b"sk-upstream" not in response.content
    (record,) = world.records()
    assert record.attempts[0].tokens.output > 0


async def test_a_stream_that_fails_before_any_content_can_be_tried_elsewhere(world: World) -> None:
    """Nothing has been shown, so it is an ordinary failed try."""

    async def stream() -> AsyncIterator[Document]:
        yield Document({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        raise TimeoutError

    use(world, lambda: Library(stream()))
    assert 504 == (await world.chat(stream=True)).status_code
    assert AttemptError.FIRST_BYTE_TIMEOUT == world.records()[0].attempts[0].error


@pytest.mark.parametrize("answer", [{"choices": 5}, {"choices": [{"finish_reason": 7}]}])
async def test_an_answer_that_makes_no_sense(world: World, answer: dict[str, Any]) -> None:
    """It is a try that failed, not an answer."""
    use(world, lambda: Library(answer))
    assert 502 == (await world.chat()).status_code
    assert AttemptError.MALFORMED == world.records()[0].attempts[0].error


async def test_a_reply_beyond_the_bound(world: World) -> None:
    """It is refused and counted."""
    huge = {**REPLY, "padding": "x" * world.settings.reply_bytes_max}
    use(world, lambda: Library(huge))
    assert 502 == (await world.chat()).status_code
    metrics = (await world.client.get("/metrics")).text
    assert 'bound="reply_bytes_max"' in metrics


async def test_closing_closes_the_librarys_connections(world: World) -> None:
    """And is safe to call twice, also when nothing was ever imported."""
    library = Library()
    transport = LitellmTransport(world.settings, world.worker.metrics, load=lambda: library)
    await transport.aclose()
    assert 0 == library.closed
    transport.prepare()
    await until(lambda: transport._library is not None and transport._library.done())
    await transport.aclose()
    await transport.aclose()
    assert 2 == library.closed

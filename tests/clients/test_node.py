"""The vendors' own clients for Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any  # findings are JSON

import pytest

from tests.clients.install import HERE, PLACE, missing, node_executable
from tests.clients.shows import shows
from tests.e2e.processes import World

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing() or "installed")]


def run(gateway: World, script: str, scenario: str, *, tenant: str = "acme") -> dict[str, Any]:
    """The findings of one scenario."""
    shutil.copy(HERE / script, PLACE / script)
    base_url = gateway.base_url if script == "openai.mjs" else gateway.base_url.removesuffix("/v1")
    done = subprocess.run(
        [str(node_executable()), script, scenario, base_url, gateway.key(tenant)],
        cwd=PLACE, capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@shows("OpenAI, Node", "plain", "stream", "async", "usage")
def test_openai_chat(gateway: World) -> None:
    """Text and usage are the same, streamed or not."""
    found = run(gateway, "openai.mjs", "chat")
    assert (found["whole"], found["usage"][0]) == (found["text"], found["usage"][1])


@shows("OpenAI, Node", "tools", "structured")
def test_openai_tools_and_schemas(gateway: World) -> None:
    """Tool calls are the same, streamed or not; its helper for schemas gives objects."""
    called, typed = run(gateway, "openai.mjs", "tools"), run(gateway, "openai.mjs", "structured")
    assert ("weather", called["whole"]) == (called["name"], called["streamed"])
    assert [{"name", "weight_kg"}] * 2 == [set(typed["chat"]), set(typed["response"])]


@shows("OpenAI, Node", "state")
def test_openai_responses(gateway: World) -> None:
    """Responses are made, streamed, continued, retrieved and deleted."""
    found = run(gateway, "openai.mjs", "responses")
    assert (True, True) == (found["previous"], found["same"])
    assert {"response.created", "response.output_text.delta", "response.completed"} <= set(found["kinds"])


@shows("OpenAI, Node", "images", "media")
def test_openai_images_and_sound(gateway: World) -> None:
    """Images are read and drawn, sound is made and heard, texts are moderated."""
    wanted = {"seen": True, "sound": True, "heard": True, "drawn": True, "flagged": 1}
    assert wanted == run(gateway, "openai.mjs", "media")


@shows("OpenAI, Node", "embeddings", "models", "cross")
def test_openai_embeddings_models_and_a_claude_model(gateway: World) -> None:
    """Embeddings in order, the list of models, and an answer of a model of Anthropic's."""
    assert {"length": 64, "same": True, "different": True} == run(gateway, "openai.mjs", "embeddings")
    assert {"gpt-4o-mini", "claude-sonnet-4-6"} <= set(run(gateway, "openai.mjs", "models")["names"])
    assert run(gateway, "openai.mjs", "cross")["text"]


@shows("OpenAI, Node", "errors", "time-outs")
def test_openai_errors(gateway: World) -> None:
    """Refusals and its own time-out are its own exceptions."""
    found = run(gateway, "openai.mjs", "errors")
    assert ["AuthenticationError", 401, "denied"] == found["denied"]
    assert ["NotFoundError", 404, "no_route"] == found["missing"]
    assert "APIConnectionTimeoutError" == found["late"][0]


@pytest.mark.parametrize(("script", "tenant"), [("openai.mjs", "brisk-node"), ("anthropic.mjs", "brisk-node-too")])
@shows("OpenAI, Node", "retries")
@shows("Anthropic, Node", "retries")
def test_retries_wait_as_long_as_they_are_told(gateway: World, script: str, tenant: str) -> None:
    """Over a limit a client's own retries come back when they were told to, and its program never notices."""
    statuses = run(gateway, script, "retries", tenant=tenant)
    assert 61 == statuses["200"]
    assert 1 <= statuses["429"] <= 4


@shows("Anthropic, Node", "plain", "stream", "async", "usage")
def test_anthropic_messages(gateway: World) -> None:
    """Content, stop reason and usage are the same, streamed or not."""
    found = run(gateway, "anthropic.mjs", "messages")
    assert found["whole"] == found["streamed"]


@shows("Anthropic, Node", "tools", "models", "cross")
def test_anthropic_tools_counting_and_a_model_of_openai(gateway: World) -> None:
    """Tool use is the same, streamed or not; tokens are counted, models listed, and a model of OpenAI's answers."""
    called, counted = run(gateway, "anthropic.mjs", "tools"), run(gateway, "anthropic.mjs", "counting")
    assert ("weather", called["whole"]) == (called["name"], called["streamed"])
    assert counted["tokens"] > 0
    assert "claude-sonnet-4-6" in counted["names"]
    assert run(gateway, "anthropic.mjs", "cross")["text"]


@shows("Anthropic, Node", "structured", "images")
def test_anthropic_schemas_and_images(gateway: World) -> None:
    """Its helper for schemas gives objects and images are read, by a model of Anthropic's and by one of OpenAI's."""
    found = run(gateway, "anthropic.mjs", "typed")
    assert [{"keys": ["name", "weight_kg"], "seen": True}] * 2 == [found["claude-sonnet-4-6"], found["gpt-4o-mini"]]


@shows("Anthropic, Node", "errors", "time-outs")
def test_anthropic_errors(gateway: World) -> None:
    """Refusals, in this protocol's shape, and its own time-out are its own exceptions."""
    found = run(gateway, "anthropic.mjs", "errors")
    assert ["AuthenticationError", 401, "authentication_error"] == found["denied"]
    assert ["NotFoundError", 404, "not_found_error"] == found["missing"]
    assert "APIConnectionTimeoutError" == found["late"][0]


@shows("OpenAI, Node", "batches")
def test_openai_batches(gateway: World) -> None:
    """A batch of a file is made, done, read and listed."""
    assert {"status": "completed", "answer": 200, "listed": True} == run(gateway, "openai.mjs", "batches")


@shows("Anthropic, Node", "batches")
def test_anthropic_batches(gateway: World) -> None:
    """A batch is made, done, read by the address that it names, and listed."""
    wanted = {"status": "ended", "results": ["succeeded"], "listed": True}
    assert wanted == run(gateway, "anthropic.mjs", "batches")

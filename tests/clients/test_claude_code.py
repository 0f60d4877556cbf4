"""The gateway protocol of Claude Code, as its documentation says what a gateway must do."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.clients.shows import shows
from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
CLAUDE = "claude-sonnet-4-6"
SYSTEM = [
    {"type": "text", "text": "You are Claude Code."},
    {"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral"}},
]
BODY = {
    "model": CLAUDE,
    "max_tokens": 50,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": "hello"}],
    "metadata": {"user_id": "u"},
    "a_field_of_tomorrow": {"b": [1, None]},
}


@pytest.fixture
def client(gateway: World) -> httpx.Client:
    """As Claude Code asks: its own headers, the key as a bearer token."""
    headers = {
        "authorization": f"Bearer {gateway.key()}",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-claude-code-session-id": "session-7",
        "x-claude-code-agent-id": "agent-3",
        "user-agent": "claude-cli/2.0",
    }
    return httpx.Client(base_url=gateway.base_url.removesuffix("/v1"), headers=headers, timeout=30)


@shows("Claude Code, gateway protocol", "plain", "stream")
def test_messages_whole_and_streamed(client: httpx.Client) -> None:
    """A stream is `text/event-stream`, begins with `message_start`, holds pings and ends with `message_stop`."""
    assert 200 == client.post("/v1/messages?beta=true", json=BODY).status_code
    with client.stream("POST", "/v1/messages?beta=true", json={**BODY, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert ("message_start", "message_stop") == (events[0], events[-1])
    assert {"ping", "content_block_delta", "message_delta"} <= set(events)


@shows("Claude Code, gateway protocol", "usage", "models")
def test_counting_and_discovery(client: httpx.Client) -> None:
    """Tokens can be counted, and models discovered, on the paths that it asks."""
    counted = client.post("/v1/messages/count_tokens?beta=true", json={"model": CLAUDE, "messages": BODY["messages"]})
    assert 0 < counted.json()["input_tokens"]
    found = client.get("/v1/models").json()
    assert CLAUDE in {model["id"] for model in found["data"]}
    assert {"first_id", "last_id", "has_more"} <= found.keys()


@shows("Claude Code, gateway protocol", "errors")
def test_errors_are_the_providers_own(gateway: World, client: httpx.Client) -> None:
    """An overloaded provider is 529 with its body unmodified, and `x-should-retry` and whole seconds say what to do."""
    gateway.fault("overloaded", on="primary", id="busy", match={"path": "/v1/messages"})
    try:
        answer = client.post("/v1/messages", json={**BODY, "model": "claude-haiku-4-5"})
    finally:
        gateway.clear_faults()
        gateway.fault("hang", on="secondary")
    assert (529, "overloaded_error") == (answer.status_code, answer.json()["error"]["type"])
    assert answer.headers.get("retry-after", "1").isdigit()
    unknown = client.post("/v1/messages", json={**BODY, "model": "claude-nothing"})
    assert ("error", "not_found_error") == (unknown.json()["type"], unknown.json()["error"]["type"])
    assert unknown.json()["request_id"]


@shows("Claude Code, gateway protocol", "state")
def test_its_sessions_and_agents_are_labels(gateway: World, client: httpx.Client) -> None:
    """Session and agent of its headers are those of the record, without any setting."""
    call_id = client.post("/v1/messages", json=BODY).headers["x-heph-call-id"]
    query = f"SELECT session, agent, operation FROM calls WHERE call_id = '{call_id}'"
    (row,) = eventually(lambda: gateway.sql(query), what="the record of the call")
    assert {"session": "session-7", "agent": "agent-3", "operation": "messages"} == row


@shows("Claude Code, gateway protocol", "plain", "usage")
def test_a_body_it_sends_is_the_body_that_arrives(gateway: World, client: httpx.Client) -> None:
    """Unknown fields and the order of `system` are forwarded untouched: counting at the provider itself gives the same number."""
    through = client.post("/v1/messages", json=BODY).json()["usage"]
    straight = httpx.post(
        f"http://127.0.0.1:{gateway.primary_port}/v1/messages",
        content=json.dumps(BODY),
        headers={"x-api-key": "sk-sim-primary", "anthropic-version": "2023-06-01", "content-type": "application/json"},
        timeout=30,
    ).json()["usage"]
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    assert [straight[kind] for kind in kinds] == [through[kind] for kind in kinds]


@shows("Claude Code, gateway protocol", "cross", "tools")
def test_a_model_of_openais_with_the_ceiling_that_it_always_names(client: httpx.Client) -> None:
    """It asks for up to 32,000 tokens whatever the model: one that gives fewer answers all the same, and uses its tools."""
    tool = {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}
    messages = [{"role": "user", "content": "Use the Bash tool."}]
    body = {**BODY, "messages": messages, "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 32_000}
    for model in ("gpt-4o-mini", CLAUDE):
        answer = client.post("/v1/messages?beta=true", json={**body, "model": model})
        assert 200 == answer.status_code, answer.text
        assert ("tool_use", "Bash") == (answer.json()["stop_reason"], answer.json()["content"][-1]["name"])

"""Anthropic's clients, end to end over real sockets: what they get, what the upstream sees, and what is recorded."""

from __future__ import annotations

import json

import httpx
import pytest

from controlplane.contract.pricing import Price, Tokens
from controlplane.contract.records import AttemptError, CacheState, CostState, Outcome
from controlplane.contract.snapshot import CachePolicy, TenantPolicy
from tests.proxy.anthropic_fakes import (
    MESSAGE_STOP,
    OVERLOADED,
    PING,
    USAGE,
    message,
    start,
    stop,
    streamed,
    text_block,
    whole_message,
)
from tests.proxy.fakes import (
    KEY,
    PRICE,
    STREAM_HEAD,
    Script,
    ScriptedUpstream,
    World,
    answer,
    chunk,
    replies,
    sends_then_aborts,
    sends_then_hangs,
)

COST = b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\n"
BODY = {"model": "gpt", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
CACHED = TenantPolicy(id="acme")


class Claude:
    """A client of Anthropic's, and the upstream behind the proxy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.upstream: ScriptedUpstream

    async def serve(
        self,
        *scripts: Script,
        tenant: TenantPolicy | None = None,
        route: dict[str, object] | None = None,
        price: Price | None = PRICE,
    ) -> None:
        """Starts an upstream of Anthropic's dialect."""
        self.upstream = await self.world.upstream(*scripts)
        self.world.apply(
            urls=(f"http://127.0.0.1:{self.upstream.port}",),
            upstream={"dialect": "anthropic"},
            tenant=tenant,
            route=route,
            price=price,
        )

    async def send(
        self, path: str = "/v1/messages", headers: dict[str, str] | None = None, /, **body: object
    ) -> httpx.Response:
        """One request, with the headers that every client of Anthropic's sends."""
        async with httpx.AsyncClient(base_url=self.world.url, timeout=60.0) as client:
            known = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
            return await client.post(path, json=BODY | body, headers=known | (headers or {}))


@pytest.fixture
async def claude(world: World) -> Claude:
    """A client and its world."""
    return Claude(world)


async def test_a_message_comes_back_byte_for_byte_with_its_cost(claude: Claude) -> None:
    """Body, usage by kinds, stop reason and cost; the headers of the answer that belong to the client."""
    usage = {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 4}
    body = message(usage=usage)
    headers = ("request-id: req_1", "anthropic-ratelimit-unified-status: allowed", "x-secret: s")
    await claude.serve(replies(answer(body, 200, *headers)))
    response = await claude.send()
    assert (200, body) == (response.status_code, response.content)
    assert ("req_1", "allowed") == (
        response.headers["request-id"],
        response.headers["anthropic-ratelimit-unified-status"],
    )
    assert "x-secret" not in response.headers
    (record,) = claude.world.records()
    assert ("messages", "end_turn", Outcome.OK) == (record.operation, record.finish_reason, record.outcome)
    assert Tokens(input=9, cache_read=4, output=3) == record.tokens
    assert (9 * 1000 + 4 * 500 + 3 * 2000, CostState.FINAL) == (record.cost_nanousd, record.cost_state)


async def test_the_upstream_sees_what_anthropic_wants_and_never_our_key(claude: Claude) -> None:
    """Our credential where Anthropic looks for it; `anthropic-*` headers, unknown fields and the query untouched."""
    await claude.serve(replies(answer(message())))
    sent = {"anthropic-beta": "context-1m,tools", "anthropic-version": "2099-01-01", "anthropic-new": "1"}
    system = [{"type": "text", "text": "b"}, {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    await claude.send("/v1/messages?beta=true", {**sent, "cookie": "c=d"}, system=system, future={"x": 1})
    (seen,) = claude.upstream.received
    assert "POST /v1/messages?beta=true HTTP/1.1" == seen.line
    assert "sk-upstream-secret" == seen.headers["x-api-key"]
    assert sent == {name: value for name, value in seen.headers.items() if name.startswith("anthropic-")}
    assert {**BODY, "model": "upstream-model", "system": system, "future": {"x": 1}} == seen.document
    assert "sk-heph" not in json.dumps(seen.headers)
    assert not {"authorization", "cookie"} & seen.headers.keys()


async def test_a_client_that_names_no_version_gets_ours(claude: Claude) -> None:
    """Anthropic refuses requests without one."""
    await claude.serve(replies(answer(message())))
    async with httpx.AsyncClient(base_url=claude.world.url) as client:
        await client.post("/v1/messages", json=BODY, headers={"authorization": f"Bearer {KEY}"})
    assert "2023-06-01" == claude.upstream.received[0].headers["anthropic-version"]


async def test_a_stream_arrives_whole_with_its_cost_before_its_last_event(claude: Claude) -> None:
    """Every event as it came, pings too; the closing comment stands where an SDK still reads."""
    await claude.serve(replies(whole_message("Hel", "lo")))
    response = await claude.send(stream=True)
    assert start() + PING + text_block("Hel", "lo") + stop() + COST + MESSAGE_STOP == response.content
    assert "text/event-stream" == response.headers["content-type"]
    (record,) = claude.world.records()
    assert (True, "end_turn", 15_000) == (record.stream, record.finish_reason, record.cost_nanousd)
    assert record.first_token_us > 0


async def test_a_call_costs_the_same_streamed_or_not(claude: Claude) -> None:
    """The same usage, at the end of a body or spread over events."""
    first = {**USAGE, "output_tokens": 1}
    await claude.serve(
        replies(answer(message(usage=USAGE))), replies(streamed(start(first), text_block("a"), stop(), MESSAGE_STOP)),
        price=None,
    )  # fmt: skip
    await claude.send()
    await claude.send(stream=True)
    whole, parts = claude.world.records()
    assert whole.tokens == parts.tokens
    assert 23 == whole.tokens.total


async def test_a_stored_stream_ends_as_it_did(claude: Claude) -> None:
    """A replay has the protocol's own last event, and a comment of its own."""
    await claude.serve(replies(whole_message("Hello")), tenant=CACHED)
    first = await claude.send(stream=True)
    again = await claude.send(stream=True)
    free = COST.replace(b"0.000015000", b"0.000000000")
    assert first.content.replace(COST, free) == again.content
    assert "hit" == again.headers["x-heph-cache"]
    assert 1 == len(claude.upstream.received)


async def test_a_beta_header_is_part_of_the_cache_key(claude: Claude) -> None:
    """What reaches the upstream may change the answer."""
    await claude.serve(replies(answer(message())), tenant=CACHED)
    for headers in ({}, {"anthropic-beta": "a"}, {"anthropic-beta": "b"}, {"anthropic-beta": "a"}):
        await claude.send("/v1/messages", headers)
    states = [record.cache for record in claude.world.records()]
    assert [CacheState.MISS, CacheState.MISS, CacheState.MISS, CacheState.HIT] == states


async def test_a_query_that_the_upstream_gets_is_part_of_the_cache_key(claude: Claude) -> None:
    """`?beta=true`, as Anthropic's clients send it, is another request than the same body without it."""
    await claude.serve(replies(answer(message())), tenant=CACHED)
    paths = ("/v1/messages", "/v1/messages?beta=true", "/v1/messages?beta=false", "/v1/messages?beta=true")
    states = [(await claude.send(path)).headers["x-heph-cache"] for path in paths]
    assert ["miss", "miss", "miss", "hit"] == states
    asked = [request.line.split(" ")[1] for request in claude.upstream.received]
    assert list(paths[:3]) == asked


async def test_what_goes_on_in_a_container_is_nobody_else_s(claude: Claude) -> None:
    """Its files are others each time, and what a tool does there is not done by a stored answer; skills alone are no container."""
    await claude.serve(replies(answer(message())), tenant=CACHED)
    tool = {"type": "code_execution_20250825", "name": "code_execution"}
    asked: list[tuple[dict[str, object], str]] = [
        ({"container": "container_1"}, "bypass"),
        ({"container": {"id": "container_1", "skills": []}}, "bypass"),
        ({"tools": [tool]}, "bypass"),
        ({"container": {"skills": [{"skill_id": "pdf"}]}}, "miss"),
        ({"container": None}, "miss"),
        ({"tools": [{"name": "run", "input_schema": {"properties": {"container": {"type": "string"}}}}]}, "miss"),
    ]
    assert [how for _, how in asked] == [(await claude.send(**body)).headers["x-heph-cache"] for body, _ in asked]


async def test_a_refused_answer_is_not_stored(claude: Claude) -> None:
    """The next try may be answered."""
    await claude.serve(replies(answer(message(stop_reason="refusal"))), tenant=CACHED)
    await claude.send()
    await claude.send()
    assert 2 == len(claude.upstream.received)


async def test_an_error_before_any_content_is_tried_elsewhere(claude: Claude) -> None:
    """An overloaded upstream that began a stream has committed nobody."""
    await claude.serve(replies(streamed(start(), PING, OVERLOADED)))
    second = await claude.world.upstream(replies(whole_message("Hello")))
    urls = tuple(f"http://127.0.0.1:{item.port}" for item in (claude.upstream, second))
    claude.world.apply(urls=urls, upstream={"dialect": "anthropic"})
    response = await claude.send(stream=True)
    assert response.content.endswith(MESSAGE_STOP)
    assert 1 == response.content.count(b"event: message_start")
    (record,) = claude.world.records()
    assert [AttemptError.STATUS_5XX, AttemptError.NONE] == [attempt.error for attempt in record.attempts]


async def test_an_error_inside_a_stream_is_forwarded_as_it_came(claude: Claude) -> None:
    """Behind the content, Anthropic's own event is the last thing a client sees."""
    await claude.serve(replies(streamed(start(), text_block("a"), OVERLOADED)))
    response = await claude.send(stream=True)
    assert response.content.endswith(OVERLOADED)
    (record,) = claude.world.records()
    assert (Outcome.BROKEN_STREAM, CostState.ESTIMATED) == (record.outcome, record.cost_state)
    assert 9 == record.tokens.input


async def test_a_stream_that_breaks_off_ends_with_anthropics_error_event(claude: Claude) -> None:
    """Never a silent end; the input was reported, the output is estimated."""
    await claude.serve(sends_then_aborts(STREAM_HEAD + chunk(start() + text_block("a", "b"))))
    response = await claude.send(stream=True)
    last = response.text.rstrip().rpartition("\n\n")[2]
    assert last.startswith("event: error\ndata: ")
    error = json.loads(last.partition("data: ")[2])
    (record,) = claude.world.records()
    assert {"type": "api_error", "message": error["error"]["message"]} == error["error"]
    assert ("error", record.call_id) == (error["type"], error["request_id"])
    assert (9, CostState.ESTIMATED) == (record.tokens.input, record.cost_state)


async def test_a_stalled_stream_says_that_it_timed_out(claude: Claude) -> None:
    """By Anthropic's own name for it."""
    data = STREAM_HEAD + chunk(start() + text_block("a"))
    upstream = await claude.world.upstream(sends_then_hangs(data))
    claude.world.apply(
        urls=(f"http://127.0.0.1:{upstream.port}",), upstream={"dialect": "anthropic", "idle_timeout_s": 0.05}
    )
    response = await claude.send(stream=True)
    assert '"type":"timeout_error"' in response.text


@pytest.mark.parametrize(
    ("status", "kind", "code", "headers", "body"),
    [
        (401, "authentication_error", "denied", {"x-api-key": "sk-wrong"}, {}),
        (400, "invalid_request_error", "malformed", {}, {"messages": "hi"}),
        (404, "not_found_error", "no_route", {}, {"model": "none"}),
    ],
)
async def test_refusals_have_anthropics_shape(
    claude: Claude, status: int, kind: str, code: str, headers: dict[str, str], body: dict[str, object]
) -> None:
    """Type, message and request id, in the body and as the header that the SDK reads."""
    await claude.serve(replies(answer(message())))
    response = await claude.send("/v1/messages", headers, **body)
    error = response.json()
    assert (status, "error", kind) == (response.status_code, error["type"], error["error"]["type"])
    (record,) = claude.world.records()
    assert record.call_id == error["request_id"] == response.headers["request-id"]
    assert ("false", code) == (response.headers["x-should-retry"], response.headers["x-heph-error-code"])
    assert record.response_bytes == len(response.content)


@pytest.mark.parametrize("status", [400, 413, 429, 529])
async def test_an_upstreams_error_body_is_unmodified(claude: Claude, status: int) -> None:
    """Also its status 529, and what it says about trying again, in whole seconds."""
    body = b'{"type":"error","error":{"type":"x","message":"no"},"request_id":"req_1"}'
    hints = ("x-should-retry: true", "retry-after: 0.2")
    await claude.serve(replies(answer(body, status, *hints)), route={"attempts_max": 1})
    response = await claude.send()
    assert (status, body) == (response.status_code, response.content)
    assert ("true", "1") == (response.headers["x-should-retry"], response.headers["retry-after"])


async def test_an_account_without_credit_is_the_operators_trouble(claude: Claude) -> None:
    """Another deployment is tried, and the client reads nothing of the account."""
    said = "Your credit balance is too low to access the Anthropic API."
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    await claude.serve(replies(answer(json.dumps(error).encode(), 400)))
    response = await claude.send()
    assert (502, "api_error") == (response.status_code, response.json()["error"]["type"])
    assert "credit" not in response.text
    assert AttemptError.QUOTA == claude.world.records()[0].attempts[0].error


async def test_limits_are_shown_as_anthropic_shows_them(claude: Claude) -> None:
    """Limit, what is left and the moment of the reset; the upstream's own for one window stay out, those of its account stay."""
    headers = ("anthropic-ratelimit-requests-limit: 99", "anthropic-ratelimit-unified-reset: 1")
    await claude.serve(
        replies(answer(message(), 200, *headers)),
        tenant=TenantPolicy(
            id="acme", requests_per_minute=7, tokens_per_minute=10_000, cache=CachePolicy(enabled=False)
        ),
    )
    response = await claude.send()
    shown = response.headers
    assert ("7", "6") == (
        shown["anthropic-ratelimit-requests-limit"],
        shown["anthropic-ratelimit-requests-remaining"],
    )
    assert shown["anthropic-ratelimit-requests-reset"].startswith("20")
    assert shown["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert "10000" == shown["anthropic-ratelimit-tokens-limit"]
    assert "1" == shown["anthropic-ratelimit-unified-reset"]
    assert not [name for name in shown if name.startswith("x-ratelimit-")]


async def test_counting_tokens_is_recorded_and_costs_nothing(claude: Claude) -> None:
    """Also for a tenant whose budget is spent."""
    await claude.serve(replies(answer(b'{"input_tokens":2095}')))
    response = await claude.send("/v1/messages/count_tokens")
    assert {"input_tokens": 2095} == response.json()
    assert "POST /v1/messages/count_tokens HTTP/1.1" == claude.upstream.received[0].line
    (record,) = claude.world.records()
    assert ("count_tokens", 0, 0, CostState.FINAL) == (
        record.operation, record.tokens.total, record.cost_nanousd, record.cost_state,
    )  # fmt: skip
    assert "0.000000000" == response.headers["x-heph-cost-usd"]


async def test_models_have_anthropics_shape_for_its_clients(claude: Claude) -> None:
    """By the header that its clients send; everybody else gets OpenAI's."""
    await claude.serve(replies(answer(message())))
    async with httpx.AsyncClient(base_url=claude.world.url, headers={"x-api-key": KEY}) as client:
        headers = {"anthropic-version": "2023-06-01"}
        listed = (await client.get("/v1/models", headers=headers)).json()
        one = (await client.get("/v1/models/gpt", headers=headers)).json()
        none = (await client.get("/v1/models/none", headers=headers)).json()
        openais = (await client.get("/v1/models")).json()
    assert (False, "gpt", "gpt") == (listed["has_more"], listed["first_id"], listed["last_id"])
    assert [one] == listed["data"]
    assert ("model", "gpt", "gpt") == (one["type"], one["id"], one["display_name"])
    assert "not_found_error" == none["error"]["type"]
    assert "list" == openais["object"]


async def test_a_worker_without_a_configuration_says_so_in_anthropics_words(world: World) -> None:
    """Also to a client that names no version: the path tells whose it is."""
    async with httpx.AsyncClient(base_url=world.url) as client:
        response = await client.post("/v1/messages", json=BODY)
        wrong = await client.get("/v1/messages")
    assert (503, "overloaded_error") == (response.status_code, response.json()["error"]["type"])
    assert (405, "invalid_request_error") == (wrong.status_code, wrong.json()["error"]["type"])


async def test_claude_codes_headers_are_labels(claude: Claude) -> None:
    """Who within the session calls, and for what; none of it travels on."""
    await claude.serve(replies(answer(message())))
    await claude.send(
        "/v1/messages",
        {
            "x-claude-code-session-id": "s1", "x-claude-code-agent-id": "a1", "x-claude-code-parent-agent-id": "a0",
            "x-claude-code-request-class": "subagent",
        },
        metadata={"user_id": "u1"},
    )  # fmt: skip
    (record,) = claude.world.records()
    assert ("s1", "a1", "u1") == (record.session, record.agent, record.user)
    assert {"parent_agent": "a0", "request_class": "subagent"} == record.tags
    assert not [name for name in claude.upstream.received[0].headers if name.startswith("x-claude")]


async def test_a_look_at_the_base_address_is_answered(claude: Claude) -> None:
    """Claude Code sees with HEAD whether anything is there; it needs no key and leaves no record."""
    await claude.serve(replies(answer(message())))
    async with httpx.AsyncClient(base_url=claude.world.url) as client:
        assert [200, 200] == [(await client.head("/")).status_code, (await client.get("/")).status_code]
    assert [] == claude.world.records()


async def test_an_operation_that_no_upstream_of_the_model_serves_is_refused(claude: Claude) -> None:
    """Embeddings of a model that only Anthropic has."""
    await claude.serve(replies(answer(message())))
    response = await claude.world.client.post("/v1/embeddings", json={"model": "gpt", "input": "x"})
    assert (404, "no_route") == (response.status_code, response.json()["error"]["code"])
    assert not claude.upstream.received

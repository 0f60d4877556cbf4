"""Probes over real sockets, against endpoints that are well, sick in many ways, or not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from controlplane.contract.pricing import Price, Tokens
from controlplane.contract.records import CallRecord, CostState
from controlplane.contract.snapshot import Deployment, Route, Snapshot, Upstream
from controlplane.detection.http_probe import ANSWER_BYTES_MAX, HttpProber

CHAT = json.dumps({"choices": [{"index": 0}]}).encode()
EMBEDDING = json.dumps({"data": [{"embedding": [0.1]}]}).encode()
Answers = dict[str, tuple[int, bytes]]


class _Endpoint:
    """An HTTP endpoint that answers by path, and keeps what it was asked. cut: closes in the middle of an answer."""

    def __init__(self) -> None:
        self.answers: Answers = {"/v1/chat/completions": (200, CHAT)}
        self.asked: list[tuple[str, dict[str, str], dict[str, object]]] = []
        self.cut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        path = head[0].split(" ")[1]
        self.asked.append((path, headers, body))
        status, answer = self.answers.get(path, (404, b"{}"))
        length = len(answer) + (100 if self.cut else 0)
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n".encode() + answer)
        await writer.drain()
        writer.close()


@pytest.fixture
def endpoint() -> _Endpoint:
    """An endpoint that is well."""
    return _Endpoint()


@pytest.fixture
async def prober(endpoint: _Endpoint) -> AsyncIterator[HttpProber]:
    """A prober whose snapshot has one deployment at the endpoint and one where nobody listens."""
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = HttpProber(_snapshot(port), environ={"HEPH_TEST_CREDENTIAL": "up-secret"})
    yield made
    await made.aclose()
    server.close()
    await server.wait_closed()


def _snapshot(port: int) -> Callable[[], Snapshot]:
    upstreams = (
        Upstream(
            id="a", dialect="openai", base_url=f"http://127.0.0.1:{port}/v1", credential="env:HEPH_TEST_CREDENTIAL"
        ),
        Upstream(id="b", dialect="openai", base_url="http://127.0.0.1:9/v1"),
        Upstream(id="c", dialect="openai", base_url=f"http://127.0.0.1:{port}/v1", credential="env:HEPH_TEST_ABSENT"),
        Upstream(
            id="d", dialect="anthropic", base_url=f"http://127.0.0.1:{port}", credential="env:HEPH_TEST_CREDENTIAL"
        ),
    )
    deployments = tuple(Deployment(id=f"{one.id}/m", upstream=one.id, model="m") for one in upstreams)
    snapshot = Snapshot(
        version=1, created_us=0, upstreams=upstreams, routes=(Route(alias="fast", deployments=deployments),)
    )
    return lambda: snapshot


async def test_a_well_deployment_is_asked_for_one_token(endpoint: _Endpoint, prober: HttpProber) -> None:
    """The smallest possible call, with the upstream's own credential."""
    result = await prober.probe("a/m")
    assert (True, "it answers") == (result.ok, result.detail)
    ((path, headers, body),) = endpoint.asked
    assert ("/v1/chat/completions", "Bearer up-secret") == (path, headers["authorization"])
    assert ("m", 1) == (body["model"], body["max_tokens"])


async def test_a_deployment_of_anthropics_is_asked_in_its_own_words(endpoint: _Endpoint, prober: HttpProber) -> None:
    """Its path, its header for the key, its version; and what it says that this cost."""
    message = {"content": [{"type": "text", "text": "p"}], "usage": {"input_tokens": 8, "output_tokens": 1}}
    endpoint.answers = {"/v1/messages": (200, json.dumps(message).encode())}
    records: list[CallRecord] = []
    prober._record = records.append
    assert (await prober.probe("d/m")).ok
    ((path, headers, _),) = endpoint.asked
    assert ("/v1/messages", "up-secret", "2023-06-01") == (path, headers["x-api-key"], headers["anthropic-version"])
    assert "authorization" not in headers
    assert Tokens(input=8, output=1) == records[0].tokens
    endpoint.answers = {}
    assert "HTTP status 404" in (await prober.probe("d/m")).detail


@pytest.mark.parametrize(
    ("price", "count", "cost", "state"),
    [
        (Price(1_000_000_000, 0, version="p"), 8, 8_000, CostState.FINAL),
        (Price(1_000_000_000, 0, version="p"), 2**60, 0, CostState.ESTIMATED),  # no answer to one word took that
        (Price(0, 0, second=100), 8, 0, CostState.UNPRICED),
        (None, 8, 0, CostState.UNPRICED),
    ],
)
async def test_what_a_probe_cost(
    endpoint: _Endpoint, prober: HttpProber, price: Price | None, count: int, cost: int, state: CostState
) -> None:
    """What the answer says at the deployment's price, unless it cannot be, or nobody knows what a token costs."""
    records: list[CallRecord] = []
    found = prober._snapshot()
    (route,) = found.routes
    deployments = tuple(msgspec.structs.replace(one, price=price) for one in route.deployments)
    changed = msgspec.structs.replace(found, routes=(msgspec.structs.replace(route, deployments=deployments),))
    prober._record, prober._snapshot = records.append, lambda: changed
    endpoint.answers = {
        "/v1/chat/completions": (200, json.dumps({"choices": [{}], "usage": {"prompt_tokens": count}}).encode())
    }
    assert (await prober.probe("a/m")).ok
    assert (cost, state) == (records[0].cost_nanousd, records[0].cost_state)


@pytest.mark.parametrize("status", [400, 404, 405, 422])
async def test_a_model_that_does_not_chat_is_asked_for_an_embedding(
    endpoint: _Endpoint, prober: HttpProber, status: int
) -> None:
    """Embedding deployments are well when they embed."""
    endpoint.answers = {"/v1/chat/completions": (status, b"{}"), "/v1/embeddings": (200, EMBEDDING)}
    assert (await prober.probe("a/m")).ok
    endpoint.answers = {"/v1/chat/completions": (status, b"{}")}
    assert "HTTP status 404" in (await prober.probe("a/m")).detail


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500, 502, 503, 302])
async def test_an_error_status_is_sick(endpoint: _Endpoint, prober: HttpProber, status: int) -> None:
    """Also a revoked key, an exhausted quota and a redirect: clients would fail as well."""
    endpoint.answers = {"/v1/chat/completions": (status, b"{}")}
    result = await prober.probe("a/m")
    assert (False, f"it answers with HTTP status {status}") == (result.ok, result.detail)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"choices": []}',
        b"<html>",
        b'{"choices": 5}',
        b"[" * 100,
        b'{"choices": ' + b"[" * 100_000,
        b" " * (ANSWER_BYTES_MAX + 1),
    ],
)
async def test_an_answer_that_is_none_is_sick(endpoint: _Endpoint, prober: HttpProber, body: bytes) -> None:
    """Status 200 with rubbish is not well; a body without end is not read to its end."""
    endpoint.answers = {"/v1/chat/completions": (200, body)}
    assert (False, "its answer is not whole") == ((result := await prober.probe("a/m")).ok, result.detail)


async def test_an_answer_that_is_cut_short_is_sick(endpoint: _Endpoint, prober: HttpProber) -> None:
    """Less came than was promised."""
    endpoint.cut = True
    assert not (await prober.probe("a/m")).ok


async def test_nobody_there_is_an_os_error(prober: HttpProber) -> None:
    """The caller counts it as a failed probe."""
    with pytest.raises(OSError):
        await prober.probe("b/m")


async def test_what_cannot_be_asked_is_said_without_secrets(endpoint: _Endpoint, prober: HttpProber) -> None:
    """A deployment that is gone, and one whose credential is not in this environment."""
    assert "not configured" in (await prober.probe("gone/m")).detail
    assert "HEPH_TEST_ABSENT" in (await prober.probe("c/m")).detail
    assert [] == endpoint.asked

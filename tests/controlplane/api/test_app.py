"""The face as a whole: process routes, schema, headers."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from litestar.types import Receive, Scope, Send

from controlplane.api.app import create_app
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import World


async def test_a_running_process_is_live(anonymous: httpx.AsyncClient) -> None:
    """`/livez` answers without a token."""
    answer = await anonymous.get("/livez")
    assert (200, "ok") == (answer.status_code, answer.text)


async def test_readiness_names_what_is_wrong(world: World, anonymous: httpx.AsyncClient) -> None:
    """`/readyz` is 200 when all checks are fine, else 503 with a reason by name."""
    assert {"ready": True, "reasons": {}} == (await anonymous.get("/readyz")).json()
    world.not_ready = "the store is starting"
    answer = await anonymous.get("/readyz")
    assert 503 == answer.status_code
    assert {"ready": False, "reasons": {"store": "the store is starting"}} == answer.json()


async def test_a_check_that_fails_is_not_ready_and_tells_no_secrets(world: World, anonymous: httpx.AsyncClient) -> None:
    """An exception in a check is a reason without its text."""

    async def broken() -> str:
        raise RuntimeError("password=hunter2")

    world.parts.ready["journal"] = broken
    answer = await anonymous.get("/readyz")
    assert {"journal": "failed: RuntimeError"} == answer.json()["reasons"]


async def test_metrics_are_shown_as_prometheus_reads_them(anonymous: httpx.AsyncClient) -> None:
    """`/metrics` is text with the requests counted by route template."""
    await anonymous.get("/livez")
    answer = await anonymous.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'heph_api_requests_total{route="/livez",status="2xx"} 1.0' in answer.text


async def test_the_schema_names_every_operator_route(operator: httpx.AsyncClient) -> None:
    """`/schema` is OpenAPI JSON, with a way to authenticate and without pages."""
    schema = (await operator.get("/schema")).json()
    assert schema["openapi"].startswith("3.")
    assert {"/api/v1/keys", "/api/v1/calls", "/api/v1/costs", "/api/v1/incidents"} <= set(schema["paths"])
    assert "/" not in schema["paths"]
    assert "operator" in schema["components"]["securitySchemes"]
    assert schema == (await operator.get("/schema/openapi.json")).json()


@pytest.mark.parametrize("path", ["/", "/api/v1/keys", "/nope", "/livez", "/api/v1/calls/none"])
async def test_every_answer_tells_browsers_to_be_careful(operator: httpx.AsyncClient, path: str) -> None:
    """Answers are not sniffed, framed or stored, and run nothing from elsewhere."""
    headers = (await operator.get(path)).headers
    assert "nosniff" == headers["x-content-type-options"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "no-store" == headers["cache-control"]


async def test_two_apps_live_side_by_side() -> None:
    """Each app has its own state; making two in one process is fine."""
    apps = [create_app(World().parts) for _ in range(2)]
    for app in apps:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:
            assert 200 == (await client.get("/livez")).status_code


async def test_a_check_that_hangs_is_not_ready(world: World, anonymous: httpx.AsyncClient) -> None:
    """A check that never answers is given up after its time."""
    never = asyncio.Event()

    async def hangs() -> str:
        await never.wait()
        return ""

    world.parts.ready["journal"] = hangs
    assert {"journal": "does not answer"} == (await anonymous.get("/readyz")).json()["reasons"]


async def test_the_door_is_mounted_and_guards_itself(world: World) -> None:
    """The ClickHouse door gets its requests without our token, whole, and nothing beside its path."""
    seen: list[tuple[str, bytes]] = []

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        seen.append((scope["path"], message["body"] if message["type"] == "http.request" else b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1\n", "more_body": False})

    transport = httpx.ASGITransport(create_app(world.parts, door=door))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
        for path in ("/clickhouse/?query=SELECT+1", "/clickhouse?query=SELECT+1", "/clickhouse/ping"):
            answer = await client.get(path)
            assert (200, "1\n") == (answer.status_code, answer.text)
        assert 200 == (await client.post("/clickhouse/", content=b"SELECT 1")).status_code
        assert 401 == (await client.get("/api/v1/keys")).status_code
    assert 4 == len(seen)
    assert b"SELECT 1" == seen[-1][1]
    assert "ping" == seen[2][0].strip("/").rsplit("/", 1)[-1]

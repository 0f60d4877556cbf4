"""Errors as clients see them."""

from __future__ import annotations

import httpx
import pytest

from controlplane.api import problems
from controlplane.errors import ConfigError, Conflict, HephaestusError, NotFound, Problem, StoreUnavailable
from controlplane.store.client import QueryFailed
from tests.controlplane.api.fakes import World

HOSTILE_REQUESTS = [
    ("GET", "/api/v1/calls?limit=0", 400),
    ("GET", "/api/v1/calls?limit=-1", 400),
    ("GET", "/api/v1/calls?limit=1e999", 400),
    ("GET", "/api/v1/calls?limit=99999999999999999999999", 200),
    ("GET", "/api/v1/calls?from_us=-1", 400),
    ("GET", "/api/v1/calls?from_us=9999999999999999999", 400),
    ("GET", "/api/v1/calls?from_us=5&to_us=5", 400),
    ("GET", "/api/v1/calls?outcome=fine", 400),
    ("GET", "/api/v1/calls?tenant=" + "x" * 300, 400),
    ("GET", "/api/v1/calls?tenant='; DROP TABLE calls --", 200),
    ("GET", "/api/v1/calls/" + "x" * 200, 400),
    ("GET", "/api/v1/calls/%00", 404),
    ("GET", "/api/v1/calls/..%2f..%2fetc%2fpasswd", 404),
    ("GET", "/api/v1/costs?by=", 400),
    ("GET", "/api/v1/costs?by=tenant,tenant", 400),
    ("GET", "/api/v1/costs?by=a,b,c,d,e,f", 400),
    ("GET", "/api/v1/costs?by=password", 400),
    ("GET", "/api/v1/costs?format=xml", 400),
    ("GET", "/api/v1/incidents?state=angry", 400),
    ("GET", "/api/v1/incidents/nope", 404),
    ("GET", "/api/v1/runs/nope", 404),
    ("GET", "/console/static/../../secrets", 404),
    ("GET", "/console/static/..%2fconsole.py", 404),
    ("GET", "/console/static/frame.html", 404),
    ("GET", "/nope", 404),
    ("GET", "//", 200),
    ("DELETE", "/api/v1/calls", 405),
    ("PATCH", "/api/v1/keys", 405),
    ("DELETE", "/api/v1/keys/nope", 404),
]
HOSTILE_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'{"tenant": ""}',
    b'{"tenant": 7}',
    b'{"tenant": "acme", "admin": true}',
    b'{"tenant": "acme", "expires_in_s": 0}',
    b'{"tenant": "acme", "expires_in_s": 1e99}',
    b'{"tenant": "acme", "models": "all"}',
    b'{"tenant": "' + b"x" * 200 + b'"}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize(("method", "path", "status"), HOSTILE_REQUESTS)
async def test_hostile_requests_get_clean_answers(
    operator: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """A senseless request is refused as a problem document that tells nothing about the inside."""
    answer = await operator.request(method, path)
    assert status == answer.status_code
    if status >= 400:
        assert "application/problem+json" == answer.headers["content-type"]
        assert status == answer.json()["status"]
        assert answer.json()["type"].startswith("urn:hephaestus:problem:")
    assert "Traceback" not in answer.text
    assert "controlplane/" not in answer.text


@pytest.mark.parametrize("body", HOSTILE_BODIES)
async def test_hostile_bodies_make_no_keys(world: World, operator: httpx.AsyncClient, body: bytes) -> None:
    """A body that is no wish for a key is a bad request."""
    answer = await operator.post("/api/v1/keys", content=body, headers={"content-type": "application/json"})
    assert 400 == answer.status_code
    assert "bad_request" == answer.json()["code"]
    assert {} == world.keys.keys


async def test_a_body_that_is_too_large_is_refused(operator: httpx.AsyncClient) -> None:
    """A body above the setting is 413."""
    answer = await operator.post("/api/v1/keys", content=b" " * (1024 * 1024 + 1))
    assert (413, "too_large") == (answer.status_code, answer.json()["code"])


async def test_a_bad_parameter_is_named(operator: httpx.AsyncClient) -> None:
    """The answer says which parameter was wrong, and not what it held."""
    answer = await operator.get("/api/v1/calls?limit=hunter2")
    assert ["query limit: Expected `int`, got `str`"] == answer.json()["errors"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("gone"), 404, "not_found"),
        (Conflict("again"), 409, "conflict"),
        (StoreUnavailable("down"), 503, "store_unavailable"),
    ],
)
def test_a_named_error_is_told_as_it_is(error: HephaestusError, status: int, code: str) -> None:
    """Status, code and sentence of the error reach the client."""
    document = problems.of_named(error)
    assert (status, code, error.message) == (document.status, document.code, document.detail)


def test_a_refused_configuration_names_every_mistake() -> None:
    """All mistakes with file and line are in the document."""
    mistakes = (Problem("a.yaml", 3, "no such model"), Problem("a.yaml", 9, "weight below 0"))
    assert mistakes == problems.of_named(ConfigError(mistakes)).problems


@pytest.mark.parametrize(
    "trouble",
    [RuntimeError("password=hunter2"), QueryFailed("Table hunter2 does not exist", number=60), KeyError("hunter2")],
)
async def test_the_unexpected_is_told_by_its_id_alone(
    world: World, operator: httpx.AsyncClient, trouble: Exception
) -> None:
    """What nobody expected is counted and answered with an id, without its text."""

    async def broken(incident_id: str) -> None:
        raise trouble

    object.__setattr__(world.parts.incidents, "show", broken)
    answer = await operator.get("/api/v1/incidents/inc_1")
    assert (500, "internal") == (answer.status_code, answer.json()["code"])
    assert answer.json()["id"].startswith("prob_")
    assert "hunter2" not in answer.text
    assert 1.0 == world.metrics.registry.get_sample_value("heph_api_unexpected_errors_total")


async def test_an_unavailable_store_says_when_to_come_back(world: World, operator: httpx.AsyncClient) -> None:
    """503 carries `retry-after` in whole seconds."""
    answer = problems.respond(problems.of_named(StoreUnavailable("down")))
    assert "5" == answer.headers["retry-after"]

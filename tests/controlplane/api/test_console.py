"""The console's pages as text; `tests/e2e/test_console.py` looks at them in a browser."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from controlplane.api.views import CacheSavings, Overview, Spend, Traffic
from controlplane.errors import StoreUnavailable
from tests.controlplane.api.fakes import HOSTILE, World, busy_overview, healed_outage

PAGE = {"accept": "text/html"}


@pytest.mark.parametrize("path", ["/", "/console/live", "/incidents/inc_2", "/console/live?incident=inc_2"])
async def test_hostile_names_are_escaped(world: World, operator: httpx.AsyncClient, path: str) -> None:
    """Markup in any name that comes from outside is written as text."""
    hostile = healed_outage(title=HOSTILE, resolved=False)
    entry = msgspec.structs.replace(hostile.timeline[0], kind=HOSTILE, text=HOSTILE, actor=HOSTILE)
    hostile = msgspec.structs.replace(hostile, timeline=(entry,))
    world.incidents.details.append(hostile)
    overview = busy_overview(incidents=(hostile,))
    sick = msgspec.structs.replace(
        overview.deployments[0], id=HOSTILE, breaker_reason=HOSTILE, lease=HOSTILE, aliases=(HOSTILE,)
    )
    proxy = msgspec.structs.replace(overview.proxies[0], id=HOSTILE)
    world.health.now = msgspec.structs.replace(overview, deployments=(sick,), proxies=(proxy,), troubles=(HOSTILE,))
    text = (await operator.get(path, headers=PAGE)).text
    assert "&lt;script&gt;" in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text


async def test_an_empty_fleet_has_a_page(world: World, operator: httpx.AsyncClient) -> None:
    """Before the first call every part says in words that there is nothing yet."""
    empty = busy_overview()
    world.health.now = Overview(
        at_us=empty.at_us,
        snapshot_version=1,
        traffic=Traffic(window_s=300, calls=0, errors=0),
        spend=Spend(0, 0),
        cache=CacheSavings(0, 0, 0, 0),
        ledger=msgspec.structs.replace(empty.ledger, proxy_calls=0, proxy_nanousd=0, stored_calls=0, stored_nanousd=0),
        kill_switch=empty.kill_switch,
    )
    answer = await operator.get("/", headers=PAGE)
    assert 200 == answer.status_code
    for sentence in (
        "No calls yet",
        "None so far",
        "names no deployment",
        "No proxy has reported",
        "Nothing spent yet",
    ):
        assert sentence in answer.text


async def test_the_page_stands_while_the_store_is_down(world: World, operator: httpx.AsyncClient) -> None:
    """A store that does not answer is said on the page, not thrown at the reader."""
    world.health.trouble = StoreUnavailable("clickhouse at 10.0.0.9 refused")
    answer = await operator.get("/", headers=PAGE)
    assert 200 == answer.status_code
    assert "does not answer just now" in answer.text
    assert "10.0.0.9" not in answer.text


async def test_a_missing_incident_is_a_page_for_people(operator: httpx.AsyncClient) -> None:
    """A browser gets a page with the same status, a program the problem document."""
    page = await operator.get("/incidents/nope", headers=PAGE)
    assert (404, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
    assert "there is no incident nope" in page.text
    assert "application/problem+json" == (await operator.get("/incidents/nope")).headers["content-type"]


async def test_a_stranger_is_sent_to_the_login(anonymous: httpx.AsyncClient) -> None:
    """A browser without a session is redirected, the script of a page hears 401."""
    answer = await anonymous.get("/", headers=PAGE)
    assert (303, "/console/login") == (answer.status_code, answer.headers["location"])
    assert 401 == (await anonymous.get("/console/live", headers=PAGE)).status_code


@pytest.mark.parametrize("path", ["/", "/incidents/inc_1", "/console/login"])
async def test_pages_run_nothing_inline(operator: httpx.AsyncClient, path: str) -> None:
    """The content policy allows our own files alone, and the pages need nothing else."""
    answer = await operator.get(path, headers=PAGE)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "style=" not in answer.text
    assert "<style" not in answer.text
    assert " onclick" not in answer.text


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("console.css", "text/css"), ("console.js", "text/javascript"), ("mark.svg", "image/svg+xml")],
)
async def test_the_files_of_the_console_are_open(anonymous: httpx.AsyncClient, name: str, media_type: str) -> None:
    """Style, script and mark need no session."""
    answer = await anonymous.get(f"/console/static/{name}")
    assert 200 == answer.status_code
    assert answer.headers["content-type"].startswith(media_type)


async def test_the_files_fetch_nothing_from_elsewhere(anonymous: httpx.AsyncClient) -> None:
    """The console works on a network without internet."""
    for name in ("console.css", "console.js"):
        assert "http" not in (await anonymous.get(f"/console/static/{name}")).text

"""Who may call what."""

from __future__ import annotations

import httpx
import pytest
from litestar import Litestar
from litestar.routes import ASGIRoute, HTTPRoute

from controlplane.api import auth, session
from controlplane.api.app import create_app
from controlplane.clock import US_PER_S
from controlplane.settings import ConsoleSettings
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import INTERNAL, OPERATOR, START_US, World

FILLED = {"{key_id}": "key_1", "{call_id}": "call_1", "{incident_id}": "inc_1", "{run_id}": "run_1", "{path}": "x"}


def _routes(app: Litestar) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            found += [(method, route.path_format) for method in route.route_handler_map if method != "OPTIONS"]
        elif isinstance(route, ASGIRoute):
            found.append(("GET", route.path_format))
    return found


def _url(path: str) -> str:
    for mark, value in FILLED.items():
        path = path.replace(mark, value)
    return path


def _client(world: World, *, host: str = "127.0.0.1", base_url: str = BASE_URL) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(world.parts), client=(host, 5555))
    return httpx.AsyncClient(transport=transport, base_url=base_url)


async def test_every_route_that_is_not_listed_refuses_without_a_token(world: World) -> None:
    """Each route of the app but those of the short list answers 401 to a stranger, whatever the method."""
    app = create_app(world.parts)
    walked = 0
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:
        for method, path in _routes(app):
            if path in auth.OPEN:
                continue
            answer = await client.request(method, _url(path), json={} if method in {"POST", "PUT"} else None)
            assert (401, path) == (answer.status_code, path)
            walked += 1
    assert walked > 20


async def test_every_listed_exception_is_a_route_that_exists(world: World) -> None:
    """The list of open routes names nothing that is not there."""
    paths = {path for _, path in _routes(create_app(world.parts))}
    assert set() == set(auth.OPEN) - paths
    assert set() == auth.CONSOLE - paths


@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        OPERATOR,
        f"Basic {OPERATOR}",
        f"Bearer {OPERATOR}x",
        f"Bearer {INTERNAL}",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
        "",
    ],
)
async def test_a_wrong_token_is_refused(anonymous: httpx.AsyncClient, header: str) -> None:
    """Whatever is not exactly the operator token gets 401, the internal token too."""
    answer = await anonymous.get("/api/v1/keys", headers={"authorization": header.encode("latin-1")})
    assert 401 == answer.status_code
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_internal_token_opens_internal_routes_alone(proxy: httpx.AsyncClient) -> None:
    """A proxy gets its snapshot, but neither keys nor pages."""
    assert 200 == (await proxy.get("/api/v1/internal/snapshot")).status_code
    assert 401 == (await proxy.get("/api/v1/keys")).status_code
    assert 401 == (await proxy.get("/")).status_code


async def test_the_operator_token_does_not_open_internal_routes(operator: httpx.AsyncClient) -> None:
    """An operator cannot pass for a proxy."""
    assert 401 == (await operator.get("/api/v1/internal/snapshot")).status_code


async def test_refusals_are_counted(world: World, anonymous: httpx.AsyncClient) -> None:
    """Each request without a valid token counts as denied."""
    await anonymous.get("/api/v1/keys")
    await anonymous.get("/api/v1/runs")
    assert 2.0 == world.metrics.registry.get_sample_value("heph_api_denied_total")


async def test_a_session_lets_a_browser_read_and_change(world: World) -> None:
    """The cookie of a login opens pages and API; its changes must come from our own page."""
    async with _client(world) as client:
        answer = await client.post("/console/login", data={"token": OPERATOR}, headers={"origin": BASE_URL})
        assert (303, "/") == (answer.status_code, answer.headers["location"])
        assert 200 == (await client.get("/")).status_code
        wish = {"engaged": True, "reason": "drill"}
        assert 403 == (await client.put("/api/v1/kill-switch", json=wish)).status_code
        evil = {"origin": "http://evil.example"}
        assert 403 == (await client.put("/api/v1/kill-switch", json=wish, headers=evil)).status_code
        assert not world.runs.switch.engaged
        assert 200 == (await client.put("/api/v1/kill-switch", json=wish, headers={"origin": BASE_URL})).status_code
        assert ("console", "drill") == (world.runs.switch.actor, world.runs.switch.reason)


async def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(world: World) -> None:
    """The cookie is HttpOnly and SameSite=Strict, and Secure where the browser spoke TLS."""
    form = {"token": OPERATOR}
    async with _client(world) as client:
        plain = (await client.post("/console/login", data=form, headers={"origin": BASE_URL})).headers["set-cookie"]
        headers = {"origin": "https://127.0.0.1:4001", "x-forwarded-proto": "https"}
        secure = (await client.post("/console/login", data=form, headers=headers)).headers["set-cookie"]
    assert "httponly" in plain.lower()
    assert "samesite=strict" in plain.lower()
    assert "secure" not in plain.lower()
    assert "secure" in secure.lower()


async def test_a_session_ends(world: World) -> None:
    """A cookie is worth nothing once its time is over."""
    async with _client(world) as client:
        await client.post("/console/login", data={"token": OPERATOR}, headers={"origin": BASE_URL})
        world.clock.move(world.parts.console.session_s + 1)
        assert 401 == (await client.get("/")).status_code


async def test_logging_out_forgets_the_cookie(world: World) -> None:
    """After logging out the browser holds no session."""
    async with _client(world) as client:
        await client.post("/console/login", data={"token": OPERATOR}, headers={"origin": BASE_URL})
        assert 303 == (await client.post("/console/logout", headers={"origin": BASE_URL})).status_code
        assert 401 == (await client.get("/")).status_code


async def test_too_many_failed_logins_are_refused_unread(world: World) -> None:
    """After the bound of failures within a minute even the right token has to wait."""
    world.parts = World(console=ConsoleSettings(login_failures_per_minute_max=3)).parts
    world.clock = world.parts.clock  # type: ignore[assignment] # the clock of the other world
    own = {"origin": BASE_URL}
    async with _client(world) as client:
        for _ in range(3):
            assert 401 == (await client.post("/console/login", data={"token": "no"}, headers=own)).status_code
        assert 429 == (await client.post("/console/login", data={"token": OPERATOR}, headers=own)).status_code
        world.clock.move(61)
        assert 303 == (await client.post("/console/login", data={"token": OPERATOR}, headers=own)).status_code


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": BASE_URL}, 303),
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"origin": "null", "sec-fetch-site": "same-origin"}, 303),
        ({}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:4001.evil.example"}, 403),
        ({"origin": "http://127.0.0.1:4002"}, 403),
        ({"origin": "garbage"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
async def test_logins_come_from_our_own_page(world: World, headers: dict[str, str], status: int) -> None:
    """A login that another site submits is refused."""
    async with _client(world) as client:
        answer = await client.post("/console/login", data={"token": OPERATOR}, headers=headers)
    assert status == answer.status_code


@pytest.mark.parametrize(
    ("host", "base_url", "headers", "status"),
    [
        ("127.0.0.1", "http://127.0.0.1:4001", {}, 200),
        ("127.0.0.1", "http://localhost:4001", {}, 200),
        ("::1", "http://[::1]:4001", {}, 200),
        ("::ffff:127.0.0.1", "http://localhost:4001", {}, 200),
        ("10.0.0.7", "http://127.0.0.1:4001", {}, 401),
        ("127.0.0.1", "http://rebound.evil.example:4001", {}, 401),
        ("127.0.0.1", "http://localhost.evil.example", {}, 401),
        ("127.0.0.1", "http://127.0.0.1:4001", {"x-forwarded-for": "1.2.3.4"}, 401),
        ("127.0.0.1", "http://127.0.0.1:4001", {"forwarded": "for=1.2.3.4"}, 401),
        ("127.0.0.1", "http://127.0.0.1:4001", {"authorization": "Bearer wrong"}, 401),
    ],
)
async def test_an_open_console_is_open_to_this_machine_alone(
    host: str, base_url: str, headers: dict[str, str], status: int
) -> None:
    """With the setting on, a browser on this machine reads the pages; relayed, lured and distant ones do not."""
    world = World(console=ConsoleSettings(open_loopback=True))
    async with _client(world, host=host, base_url=base_url) as client:
        assert status == (await client.get("/", headers=headers)).status_code


async def test_an_open_console_opens_no_api() -> None:
    """The setting opens pages for reading; the API and every change still want the token."""
    world = World(console=ConsoleSettings(open_loopback=True))
    async with _client(world) as client:
        assert 200 == (await client.get("/incidents/inc_1")).status_code
        assert 401 == (await client.get("/api/v1/keys")).status_code
        answer = await client.put("/api/v1/kill-switch", json={"engaged": True}, headers={"origin": BASE_URL})
        assert 401 == answer.status_code
        assert 401 == (await client.get("/api/v1/internal/snapshot")).status_code


async def test_a_forged_cookie_is_refused(world: World) -> None:
    """A cookie signed with another token opens nothing."""
    forged = session.sign(operator_token="other", expires_s=START_US // US_PER_S + 999)
    async with _client(world) as client:
        client.cookies.set(session.COOKIE, forged)
        assert 401 == (await client.get("/")).status_code


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("", False),
        ("localhost.", False),
        ("127.0.0.1.nip.io", False),
    ],
)
def test_only_this_machine_is_loopback(name: str, expected: bool) -> None:
    """A name is loopback only when it can mean nothing else."""
    assert expected == auth.is_loopback(name)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/keys/",
        "//api/v1/keys",
        "/API/v1/keys",
        "/api/v1/./keys",
        "/console/static/../../api/v1/keys",
        "/console/static/..%2f..%2fapi%2fv1%2fkeys",
        "/livez/../api/v1/keys",
        "/livez;/api/v1/keys",
        "/api/v1/internal/../keys",
        "/clickhouse/../api/v1/keys",
        "/clickhousex",
    ],
)
async def test_no_spelling_of_a_path_gets_around_the_gatekeeper(anonymous: httpx.AsyncClient, path: str) -> None:
    """However a path is written, what it leads to is refused or not there."""
    assert (await anonymous.get(path)).status_code in {401, 404}

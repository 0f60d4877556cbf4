"""The console: pages drawn on the server that work without script; a small script keeps them fresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Annotated
from urllib.parse import quote

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie, ResponseHeader, State
from litestar.di import NamedDependency, Provide
from litestar.enums import MediaType
from litestar.params import FromPath, PathParameter, QueryParameter, SkipValidation, URLEncodedBody
from markupsafe import Markup

from controlplane.api import problems, session, sparkline, verdicts, words
from controlplane.api.auth import LOGIN_PATH, Gatekeeper
from controlplane.api.counters import ApiCounters
from controlplane.api.parts import Parts
from controlplane.api.reading import SharedReading
from controlplane.api.views import TrafficPoint
from controlplane.errors import HephaestusError, NotFound, Unauthorized

CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_STATIC = MappingProxyType({"console.css": "text/css", "console.js": "text/javascript", "mark.svg": "image/svg+xml"})
_AnyRequest = Request[object, object, State]


class LoginForm(msgspec.Struct, frozen=True):
    """What the login page sends."""

    token: Annotated[str, msgspec.Meta(max_length=1024)]


@dataclass(frozen=True, slots=True)
class Console:
    """What the pages are drawn from."""

    parts: Parts
    gatekeeper: Gatekeeper
    reading: SharedReading
    pages: Environment
    files: dict[str, bytes]

    def draw(self, template: str, *, status: int = 200, **values: object) -> Response[str]:
        """A page; every value is escaped where it is written."""
        text = self.pages.get_template(template).render(poll_s=self.parts.console.poll_s, **values)
        return Response(text, status_code=status, media_type=MediaType.HTML)


ConsoleOf = NamedDependency[SkipValidation[Console]]
_IncidentId = Annotated[str, PathParameter(max_length=128)]


@get("/")
async def first_page(console: ConsoleOf, request: _AnyRequest) -> Response[str]:
    """Traffic, money, deployments, incidents and proxies at a glance."""
    return console.draw(
        "overview.html",
        overview=await console.reading.overview(),
        live="/console/live",
        signed_in=session.COOKIE in request.cookies,
    )


@get("/console/live")
async def live(
    console: ConsoleOf, incident: Annotated[str | None, QueryParameter(max_length=128)] = None
) -> Response[str]:
    """The parts of a page that change, for the script that puts them in place."""
    if incident is not None:
        detail = await console.parts.incidents.show(incident)
        return console.draw("incident_live.html", incident=detail, now_us=console.parts.clock.now_us())
    return console.draw("overview_live.html", overview=await console.reading.overview())


@get("/incidents/{incident_id:str}")
async def incident_page(incident_id: _IncidentId, console: ConsoleOf, request: _AnyRequest) -> Response[str]:
    """One incident with its timeline."""
    detail = await console.parts.incidents.show(incident_id)
    return console.draw(
        "incident.html",
        incident=detail,
        now_us=console.parts.clock.now_us(),
        live=f"/console/live?incident={quote(detail.summary.id)}",
        signed_in=session.COOKIE in request.cookies,
    )


@get(LOGIN_PATH)
async def login_page(console: ConsoleOf) -> Response[str]:
    """Asks for the operator token."""
    return console.draw("login.html", refusal="")


@post(LOGIN_PATH, status_code=303)
async def log_in(
    data: URLEncodedBody[LoginForm],
    request: _AnyRequest,
    console: ConsoleOf,
) -> Response[str]:
    """Trades the operator token for a session cookie."""
    try:
        value = console.gatekeeper.log_in(request.headers, data.token.strip())
    except HephaestusError as error:
        return console.draw("login.html", status=error.status, refusal=error.message)
    cookie = Cookie(
        key=session.COOKIE,
        value=value,
        max_age=console.parts.console.session_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https",
        path="/",
    )
    return Response("", status_code=303, headers={"location": "/"}, cookies=[cookie])


@post("/console/logout", status_code=303)
async def log_out() -> Response[str]:
    """Forgets the session in this browser."""
    gone = Cookie(key=session.COOKIE, value="", max_age=0, httponly=True, samesite="strict", path="/")
    return Response("", status_code=303, headers={"location": LOGIN_PATH}, cookies=[gone])


@get("/console/static/{name:str}", response_headers=[ResponseHeader(name="cache-control", value="no-cache")])
async def static(name: FromPath[str], console: ConsoleOf) -> Response[bytes]:
    """The style, the script and the mark of the console."""
    if name not in console.files:
        raise NotFound("there is no such file")
    return Response(console.files[name], media_type=_STATIC[name])


def routes(*, parts: Parts, gatekeeper: Gatekeeper, counters: ApiCounters) -> Router:
    """The console's routes with what they are drawn from."""
    folder = resources.files("controlplane.api") / "static"
    console = Console(
        parts=parts,
        gatekeeper=gatekeeper,
        reading=SharedReading(
            health=parts.health, clock=parts.clock, fresh_s=parts.console.poll_s / 2, counters=counters
        ),
        pages=_environment(),
        files={name: (folder / name).read_bytes() for name in _STATIC},
    )
    return Router(
        path="/",
        route_handlers=[first_page, live, incident_page, login_page, log_in, log_out, static],
        dependencies={"console": Provide(lambda: console, sync_to_thread=False)},
        exception_handlers={HephaestusError: _refusal_page(console)},
        response_headers=[ResponseHeader(name="content-security-policy", value=CONTENT_POLICY)],
        include_in_schema=False,
    )


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("controlplane.api", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for word in (
        "usd",
        "duration",
        "span",
        "ago",
        "percent",
        "rate",
        "size",
        "name",
        "time_of_day",
        "moment",
        "machine_time",
    ):
        pages.filters[word] = getattr(words, word)
    pages.globals.update(
        traffic_chart=_traffic_chart,
        every_minute=verdicts.every_minute,
        share=lambda part, whole: Markup(sparkline.share(part, whole)),  # noqa: S704 - made of numbers alone
        summary=verdicts.summary,
        tone=verdicts.tone,
        state=verdicts.state,
        ledger_check=verdicts.ledger_check,
        event_tone=verdicts.event_tone,
        event_words=verdicts.event_words,
        condensed=verdicts.condensed,
        highlights=verdicts.highlights,
        over=verdicts.OVER,
        newest_first=verdicts.newest_first,
    )
    return pages


def _traffic_chart(minutes: Sequence[TrafficPoint]) -> Markup:
    return Markup(sparkline.traffic([m.calls for m in minutes], [m.errors for m in minutes]))  # noqa: S704 - numbers alone


def _refusal_page(console: Console) -> problems.Handler:
    """What a browser sees instead of a problem document; scripts and programs still get the document."""

    def handle(request: problems.AnyRequest, error: Exception) -> Response[bytes] | Response[str]:
        assert isinstance(error, HephaestusError)  # noqa: S101 - the framework looks handlers up by type
        if not _wants_page(request):
            return problems.respond(problems.of_named(error))
        if isinstance(error, Unauthorized):
            return Response("", status_code=303, headers={"location": LOGIN_PATH, "cache-control": "no-store"})
        return console.draw("refusal.html", status=error.status, error=error)

    return handle


def _wants_page(connection: ASGIConnection) -> bool:  # type: ignore[type-arg] # any user, auth and state
    return "text/html" in connection.headers.get("accept", "") and connection.scope["path"] != "/console/live"

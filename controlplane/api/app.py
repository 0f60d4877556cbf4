"""The control plane's HTTP face as one ASGI app: every route behind the gatekeeper, every error a problem document."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import Litestar, Response, asgi, get
from litestar.datastructures import MutableScopeHeaders
from litestar.di import Provide
from litestar.enums import MediaType
from litestar.middleware import DefineMiddleware
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, ControllerRouterHandler, Message, Scope
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from controlplane import __version__
from controlplane.api import budgets, cache, calls, catalog, console, costs, incidents, internal, problems, runs
from controlplane.api.auth import Gatekeeper
from controlplane.api.bodies import BodyDeadline
from controlplane.api.counters import ApiCounters
from controlplane.api.measured import Measured
from controlplane.api.parts import Parts, PartsOf

READY_TIMEOUT_S = 2.0
DOOR_PATH = "/clickhouse"
METRICS_TYPE = CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # the framework says the character set itself
CAREFUL = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer, errors included, unless a route says otherwise."""


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests can be served, and by name what is wrong."""

    ready: bool
    reasons: dict[str, str] = {}


@get("/livez", media_type=MediaType.TEXT, tags=["process"], summary="Whether the process runs")
async def livez() -> str:
    """Answers as long as the process runs."""
    return "ok"


@get("/readyz", tags=["process"], summary="Whether requests can be served")
async def readyz(parts: PartsOf) -> Response[Readiness]:
    """200 when every part is ready, else 503 with a reason for each that is not."""
    names = list(parts.ready)
    answers = await asyncio.gather(*(_ask(parts, name) for name in names))
    reasons = {name: answer for name, answer in zip(names, answers, strict=True) if answer}
    return Response(Readiness(ready=not reasons, reasons=reasons), status_code=503 if reasons else 200)


@get("/metrics", media_type=METRICS_TYPE, tags=["process"], summary="Counts for Prometheus")
async def metrics(parts: PartsOf) -> bytes:
    """The registry in Prometheus' text format."""
    return generate_latest(parts.metrics.registry)


def create_app(parts: Parts, *, door: ASGIApp | None = None) -> Litestar:
    """The whole face over these parts.

    door: the ClickHouse door, mounted at `/clickhouse`; it guards itself.
    """
    counters = ApiCounters(parts.metrics)
    gatekeeper = Gatekeeper(secrets=parts.secrets, console=parts.console, clock=parts.clock, counters=counters)
    routes: list[ControllerRouterHandler] = [
        livez,
        readyz,
        metrics,
        internal.routes(batch_bytes_max=parts.settings.ingest.batch_bytes_max),
        *catalog.ROUTES,
        *budgets.ROUTES,
        *cache.ROUTES,
        *calls.ROUTES,
        *incidents.ROUTES,
        *runs.ROUTES,
        *costs.ROUTES,
        console.routes(parts=parts, gatekeeper=gatekeeper, counters=counters),
    ]
    if door is not None:
        routes.append(asgi(DOOR_PATH, is_mount=True, copy_scope=True)(door))
    return Litestar(
        routes,
        guards=[gatekeeper.guard],
        dependencies={"parts": Provide(lambda: parts, sync_to_thread=False)},
        exception_handlers=problems.handlers(counters),
        middleware=[
            DefineMiddleware(Measured, metrics=parts.metrics.api),
            DefineMiddleware(BodyDeadline, timeout_s=parts.settings.proxy.body_timeout_s, counters=counters),
        ],
        request_max_body_size=parts.settings.api.body_bytes_max,
        before_send=[_be_careful],
        openapi_config=_openapi(),
        logging_config=None,
        debug=False,
    )


async def _be_careful(message: Message, _: Scope) -> None:
    """Adds the careful headers that an answer lacks."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders.from_message(message)
        for name, value in CAREFUL.items():
            headers.setdefault(name, value)


async def _ask(parts: Parts, name: str) -> str:
    """What one check says; a check that hangs or fails is not ready, and says no more than that."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await parts.ready[name]()
    except TimeoutError:
        return "does not answer"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the answer is "not ready"
        return f"failed: {type(error).__name__}"


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Hephaestus control plane",
        version=__version__,
        description=(
            "Operator API. Money is integer nano-USD (`_nanousd`), time integer microseconds since 1970 in UTC (`_us`). "
            "Every error is a problem document (RFC 9457) with a stable `code`."
        ),
        path="/schema",
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "operator": SecurityScheme(type="http", scheme="bearer", description="The operator token.")
            }
        ),
        security=[{"operator": []}],
    )

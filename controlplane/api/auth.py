"""Who may call what: every route wants the operator's token unless it is named here.

Programs send `Authorization: Bearer <operator token>`; the console sends a session cookie that it got for the same token. Proxies
send the internal token, which opens the internal routes and nothing else. Requests that change something and carry no bearer
token must come from our own pages.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.handlers import ASGIRouteHandler
from litestar.handlers.base import BaseRouteHandler

from controlplane.api import session
from controlplane.api.counters import ApiCounters
from controlplane.clock import US_PER_S, Clock
from controlplane.errors import Forbidden, TooMany, Unauthorized
from controlplane.secrets import ServerSecrets
from controlplane.settings import ConsoleSettings

LOGIN_PATH = "/console/login"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

OPEN: Mapping[str, str] = MappingProxyType(
    {
        "/livez": "says only that the process runs",
        "/readyz": "names parts that are not ready, for load balancers",
        "/metrics": "counts for Prometheus; no content, no names of agents",
        LOGIN_PATH: "where one shows the token",
        "/console/static/{name}": "style and script of the console; the same for everybody",
    }
)
"""Routes that need no token, each with its reason."""

GUARDS_ITSELF: Mapping[str, str] = MappingProxyType(
    {"/clickhouse": "the ClickHouse door has its own user and password, as ClickHouse clients expect"}
)
"""Routes, with all below them, that check who calls by themselves."""

CONSOLE: frozenset[str] = frozenset({"/", "/incidents/{incident_id}", "/console/live", "/schema"})
"""Pages that `open_loopback` opens for reading to browsers on this machine."""

INTERNAL_PREFIX = "/api/v1/internal/"


class Access(StrEnum):
    """What a route asks of its caller."""

    OPEN = "open"
    CONSOLE = "console"
    INTERNAL = "internal"
    OPERATOR = "operator"


def access_of(path_template: str) -> Access:
    """What the route asks of its caller; the operator's token unless it is listed above."""
    if path_template in OPEN or any(_is_below(path_template, prefix) for prefix in GUARDS_ITSELF):
        return Access.OPEN
    if path_template.startswith(INTERNAL_PREFIX):
        return Access.INTERNAL
    return Access.CONSOLE if path_template in CONSOLE else Access.OPERATOR


class Gatekeeper:
    """Lets a request through or raises; stands before every route of the app."""

    def __init__(
        self, *, secrets: ServerSecrets, console: ConsoleSettings, clock: Clock, counters: ApiCounters
    ) -> None:
        self._secrets = secrets
        self._console = console
        self._clock = clock
        self._counters = counters
        self._failed_logins: deque[int] = deque(maxlen=console.login_failures_per_minute_max)

    def guard(self, connection: ASGIConnection, handler: BaseRouteHandler) -> None:  # type: ignore[type-arg] # any user, auth and state
        """The guard of every route: raises Unauthorized or Forbidden, or notes who acts in the connection's state."""
        access = access_of(_template(connection, handler))
        if access is Access.OPEN:
            return
        try:
            connection.state.actor = self._actor(connection, access)
        except (Unauthorized, Forbidden):
            self._counters.denied.inc()
            raise

    def log_in(self, headers: Headers, token: str) -> str:
        """The session cookie for a right operator token; raises Unauthorized, Forbidden, or TooMany after many failures."""
        require_own_page(headers)
        now_us = self._clock.now_us()
        failed = self._failed_logins
        if len(failed) == failed.maxlen and now_us - failed[0] < 60 * US_PER_S:
            self._counters.login_throttled.inc()
            raise TooMany("too many logins have failed; wait a minute, then try again")
        if not self._secrets.operator_token.matches(token):
            failed.append(now_us)
            raise Unauthorized(
                "this is not the operator token; it lies in the data directory under secrets/operator-token"
            )
        expires_s = now_us // US_PER_S + self._console.session_s
        return session.sign(operator_token=self._secrets.operator_token.reveal(), expires_s=expires_s)

    def _actor(self, connection: ASGIConnection, access: Access) -> str:  # type: ignore[type-arg] # as above
        bearer = _bearer(connection.headers)
        if access is Access.INTERNAL:
            if bearer is None or not self._secrets.internal_token.matches(bearer):
                raise Unauthorized("this path is for proxies and wants the internal token")
            return "proxy"
        if bearer is not None:
            if not self._secrets.operator_token.matches(bearer):
                raise Unauthorized("the bearer token is not the operator token")
            return "operator"
        method = str(connection.scope.get("method", "GET"))
        if self._has_session(connection):
            if method not in SAFE_METHODS:
                require_own_page(connection.headers)
            return "console"
        if access is Access.CONSOLE and method in SAFE_METHODS and self._is_open_here(connection):
            return "console"
        raise Unauthorized("show the operator token as `Authorization: Bearer <token>`, or log in to the console")

    def _has_session(self, connection: ASGIConnection) -> bool:  # type: ignore[type-arg] # as above
        value = connection.cookies.get(session.COOKIE)
        if value is None:
            return False
        now_s = self._clock.now_us() // US_PER_S
        return session.holds(value, operator_token=self._secrets.operator_token.reveal(), now_s=now_s)

    def _is_open_here(self, connection: ASGIConnection) -> bool:  # type: ignore[type-arg] # as above
        """Whether the setting opens the console and the caller is a browser on this machine, not relayed and not lured.

        A relay in front of us makes everybody look local, so its marks close the door. A page of a stranger's domain that
        resolves to this machine reaches us under that domain's name, so the name must be this machine's.
        """
        if not self._console.open_loopback or connection.client is None:
            return False
        headers = connection.headers
        if "x-forwarded-for" in headers or "forwarded" in headers or "x-real-ip" in headers:
            return False
        return is_loopback(connection.client.host) and is_loopback(_host_name(headers.get("host", "")))


def require_own_page(headers: Headers) -> None:
    """Raises Forbidden unless the browser says that the request comes from a page of ours.

    The scheme is not compared: behind a relay that ends TLS the browser says https and we hear http.
    """
    origin = headers.get("origin", "")
    if origin and origin != "null":
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return
    elif headers.get("sec-fetch-site") == "same-origin":
        return
    raise Forbidden("a request without a bearer token that changes something must come from the console's own page")


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _template(connection: ASGIConnection, handler: BaseRouteHandler) -> str:  # type: ignore[type-arg] # as above
    """The route's path as it was declared; what is mounted has it on the handler alone."""
    if isinstance(handler, ASGIRouteHandler):
        return min(handler.paths)
    return str(connection.scope.get("path_template", ""))


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty when it makes no sense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str | None:
    """The bearer token, or None when the request has no Authorization header; another scheme counts as a wrong token."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""

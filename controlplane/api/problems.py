"""Errors as clients see them: problem documents (RFC 9457), made from the tree of errors in one place.

What has a name is told as it is. What nobody expected is logged under an id, and the client gets the id and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException

from controlplane.api.counters import ApiCounters
from controlplane.contract.ids import new_id
from controlplane.errors import ConfigError, HephaestusError, Problem

MEDIA_TYPE = "application/problem+json"

AnyRequest = Request[object, object, State]
Handler = Callable[[AnyRequest, Exception], Response[bytes] | Response[str]]


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error answer. code: stable, for programs; detail: a sentence, for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    id: str = ""  # under which the log tells more
    errors: tuple[str, ...] = ()  # each part of the request that was wrong
    problems: tuple[Problem, ...] = ()  # each mistake in a refused configuration


def of_named(error: HephaestusError) -> ProblemDocument:
    """The document for an error with a name."""
    return _document(
        error.status,
        code=error.code,
        detail=error.message,
        problems=error.problems if isinstance(error, ConfigError) else (),
    )


def of_http(error: HTTPException) -> ProblemDocument:
    """The document for what the framework refuses: an unknown path, a bad parameter, a body that is too large."""
    status = error.status_code if error.status_code in set(HTTPStatus) else 500
    code = HTTPStatus(status).name.lower() if status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE else "too_large"
    if isinstance(error, ValidationException):
        return _document(status, code=code, detail="the request is not valid", errors=_validation_errors(error))
    detail = "the request could not be read" if status == HTTPStatus.BAD_REQUEST else ""
    return _document(status, code=code, detail=detail)


def handlers(counters: ApiCounters) -> dict[int | type[Exception], Handler]:
    """The exception handlers of the app, one for each kind of error."""

    def named(request: AnyRequest, error: Exception) -> Response[bytes]:
        assert isinstance(error, HephaestusError)  # noqa: S101 - the framework looks handlers up by type
        if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:  # has a name, but nothing that a client could do about
            return unexpected(request, error)
        return respond(of_named(error))

    def http(request: AnyRequest, error: Exception) -> Response[bytes]:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return unexpected(request, error)
        return respond(of_http(error))

    def unexpected(request: AnyRequest, error: Exception) -> Response[bytes]:
        if isinstance(error, RecursionError) and "deserializing" in str(error):
            return respond(_document(400, code="bad_request", detail="the body is nested too deeply"))
        problem_id = new_id("prob")
        counters.unexpected.inc()
        structlog.get_logger(__name__).error(
            "request failed", id=problem_id, method=request.method, path=request.url.path, exc_info=error
        )
        detail = "something failed that should not; the control plane's log tells more under this id"
        return respond(_document(500, code="internal", detail=detail, id=problem_id))

    return {HephaestusError: named, HTTPException: http, Exception: unexpected}


def respond(document: ProblemDocument) -> Response[bytes]:
    """The document as an answer."""
    headers = {"cache-control": "no-store"}
    if document.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="hephaestus"'
    if document.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        headers["retry-after"] = "5" if document.status == HTTPStatus.SERVICE_UNAVAILABLE else "60"
    return Response(msgspec.json.encode(document), status_code=document.status, media_type=MEDIA_TYPE, headers=headers)


def _document(
    status: int,
    *,
    code: str,
    detail: str,
    id: str = "",  # noqa: A002 - the word of the document
    errors: tuple[str, ...] = (),
    problems: tuple[Problem, ...] = (),
) -> ProblemDocument:
    return ProblemDocument(
        type=f"urn:hephaestus:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        id=id,
        errors=errors,
        problems=problems,
    )


def _validation_errors(error: ValidationException) -> tuple[str, ...]:
    """What the framework found wrong, as sentences; nothing but names and types, never values."""
    found = error.extra if isinstance(error.extra, list) else []
    return tuple(
        f"{getattr(entry.get('source'), 'value', 'request')} {entry.get('key', '')}: {entry.get('message', '')}"
        for entry in found
        if isinstance(entry, dict)
    )

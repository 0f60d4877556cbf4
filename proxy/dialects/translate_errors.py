"""Errors of one protocol in the words of the other, and what a decoder says as the field at fault."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from proxy.dialects import openai
from proxy.dialects.dialect import Malformed

_OVERLOADED = 529  # Anthropic's own status
_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_FIELD = re.compile(r"(?:required|unknown) field `([^`]+)`")
_STRANGE = re.compile(r"Invalid (?:enum )?value '([^']*)'")  # of a closed set, such as the types of a message's parts
_TOO_LONG = "prompt is too long"  # what clients of Anthropic's look for before they make their conversation shorter
_KIND_OF_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_STATUS_OF_KIND: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 503,
}
# OpenAI's `type` and `code` for what Anthropic calls its errors.
_IN_OPENAI: Mapping[str, tuple[str, str | None]] = {
    "authentication_error": ("authentication_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "permission_error": ("permission_error", None),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "invalid_request_error": ("invalid_request_error", None),
    "timeout_error": ("server_error", "timeout"),
    "overloaded_error": ("server_error", "overloaded"),
    "api_error": ("server_error", None),
}


class _OpenAiError(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _OpenAiBody(msgspec.Struct):
    error: _OpenAiError


class _AnthropicError(msgspec.Struct):
    type: str
    message: str


class _AnthropicBody(msgspec.Struct):
    error: _AnthropicError
    type: str = "error"


class _AnyError(msgspec.Struct):
    type: str = ""
    message: str = ""


class _AnyBody(msgspec.Struct):
    error: _AnyError | str | None = None


_decode = msgspec.json.Decoder(_AnyBody).decode
_encode = msgspec.json.Encoder().encode


def openai_error(status: int, body: bytes) -> tuple[int, bytes]:
    """Anthropic's error, or whatever else a server on the way said, as a client of OpenAI's reads it."""
    kind, message = _said(body)
    kind = kind if kind in _IN_OPENAI else _KIND_OF_STATUS.get(status, "api_error" if status >= 500 else "")
    type_, code = _IN_OPENAI.get(kind, ("invalid_request_error", None))
    if kind == "invalid_request_error" and _TOO_LONG in message:
        code = "context_length_exceeded"
    error = _OpenAiError(message or f"the upstream answered with status {status}", type_, None, code)
    return 503 if status == _OVERLOADED else status, _encode(_OpenAiBody(error))


def openai_event(body: bytes) -> bytes:
    """The data of an error event inside Anthropic's stream as OpenAI's clients read it."""
    kind, _ = _said(body)
    _, shaped = openai_error(_STATUS_OF_KIND.get(kind, 500), body)
    return b"data: " + shaped + b"\n\n"


def anthropic_error(status: int, body: bytes) -> tuple[int, bytes]:
    """OpenAI's error, or whatever else a server on the way said, as a client of Anthropic's reads it."""
    code, message = openai.read_error(body)
    kind = _KIND_OF_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = message or f"the upstream answered with status {status}"
    if code in ("context_length_exceeded", "string_above_max_length") and _TOO_LONG not in message:
        message = f"{_TOO_LONG}: {message}"
    shaped = _encode(_AnthropicBody(_AnthropicError(kind, message)))
    return _OVERLOADED if status == 503 else status, shaped


def anthropic_event(body: bytes) -> bytes:
    """The data of an error inside OpenAI's stream as Anthropic's clients read it."""
    code, _ = openai.read_error(body)
    status = 429 if "rate_limit" in code or code in ("429", "insufficient_quota") else 500
    _, shaped = anthropic_error(status, body)
    return b"event: error\ndata: " + shaped + b"\n\n"


def malformed(error: msgspec.MsgspecError | RecursionError) -> Malformed:
    """What a decoder found wrong with a client's request; the field as OpenAI writes it, `messages.0.role`."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return Malformed(f"the body is not valid JSON: {text}")
    path, field = _PATH.search(text), _FIELD.search(text)
    steps = [] if path is None else [path[1].replace("[", ".").replace("]", "").replace("...", "*")]
    steps += [] if field is None else [field[1]]
    param = ".".join(step for step in steps if step).strip(".") or None
    said = text if path is None else text[: path.start()]
    strange = _STRANGE.match(said)
    if strange is not None:
        said = (
            f"`{strange[1][:64]}` cannot be said to this model's upstream, which speaks another language; leave it out"
        )
    return Malformed(f"`{param}`: {said}" if param else said, param)


def _said(body: bytes) -> tuple[str, str]:
    try:
        error = _decode(body).error
    except (msgspec.MsgspecError, RecursionError):
        return "", ""
    if isinstance(error, _AnyError):
        return error.type, error.message
    return "", error or ""

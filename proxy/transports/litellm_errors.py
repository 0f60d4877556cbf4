"""What litellm raises, in the words of a try; and without the secrets and addresses that such messages hold."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from controlplane.contract.records import AttemptError
from proxy.call import Headers, Reply
from proxy.dialects import openai
from proxy.runtime import Foreign
from proxy.transports.attempt import Attempt, AttemptFailed, error_of, failed_by
from proxy.transports.retry_after import seconds_of
from proxy.wires import Wire

_JSON = (b"content-type", b"application/json")
_SAID_CHARS_MAX = 500
_SECRET_CHARS_MIN = 4
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception|Timeout): )*(?:\w+Exception - )?")
_URL = re.compile(r"(?:https?|wss?)://\S+")
_CAUSES_MAX = 20
_NETWORK = frozenset(
    ("ConnectError", "ReadError", "WriteError", "RemoteProtocolError", "ProxyError", "ClientConnectionError")
)
# By the names of litellm's exceptions, which are the map that retry code in the wild keys on; others by their status.
_BY_NAME: Mapping[str, AttemptError] = {
    "APIConnectionError": AttemptError.CONNECT,
    "APIResponseValidationError": AttemptError.MALFORMED,
    "AuthenticationError": AttemptError.AUTH,
    "JSONSchemaValidationError": AttemptError.MALFORMED,
    "LiteLLMUnknownProvider": AttemptError.AUTH,  # our configuration, none of the client's business
    "PaymentRequiredError": AttemptError.QUOTA,
    "PermissionDeniedError": AttemptError.AUTH,
    "Timeout": AttemptError.FIRST_BYTE_TIMEOUT,
}
_CODES: Mapping[str, str] = {
    "ContextWindowExceededError": "context_length_exceeded",
    "ContentPolicyViolationError": "content_policy_violation",
    "NotFoundError": "model_not_found",
    "RateLimitError": "rate_limit_exceeded",
    "UnsupportedParamsError": "unsupported_parameter",
}
_KINDS: Mapping[int, str] = {404: "invalid_request_error", 429: "rate_limit_error"}


def as_failed(error: Exception, attempt: Attempt, wire: Wire, foreign: Foreign) -> AttemptFailed:
    """The try that this error ended.

    The client reads the provider's own words about its request, and about a limit; about everything else it learns only that it failed.
    """
    if isinstance(error, AttemptFailed):
        return error
    name = attempt.candidate.upstream.id
    if isinstance(error, TimeoutError):
        late = time.monotonic() >= attempt.call.deadline - 0.002
        kind = AttemptError.DEADLINE if late else AttemptError.FIRST_BYTE_TIMEOUT
        return AttemptFailed(kind, f"upstream {name} did not answer in time")
    error = _inner(error)
    status = _status_of(error)
    names = [base.__name__ for base in type(error).__mro__]
    kind = next((_BY_NAME[base] for base in names if base in _BY_NAME), None) or error_of(status, "")
    if kind is AttemptError.CONNECT and not _is_of_the_network(error):
        kind = AttemptError.STATUS_5XX  # litellm calls everything so that it does not know
    if kind is AttemptError.MALFORMED and status < 400:  # an error without a status: a defect, or a provider's nonsense
        status = 500
    attempt.status = status
    said = redacted(str(error), foreign)
    message = f"upstream {name} answered with status {status}"
    if kind not in (AttemptError.REJECTED, AttemptError.STATUS_429):
        return AttemptFailed(kind, message, detail=f"{message}: {said}")
    code = next((_CODES[base] for base in names if base in _CODES), "")
    retry_after = _retry_after(error)
    reply = _reply(status, said, code, retry_after, wire)
    return failed_by(kind, message, said=said, reply=reply, retry_after_s=retry_after)


def redacted(text: str, foreign: Foreign) -> str:
    """A message without secrets, addresses, tracebacks and litellm's own names, of bounded length."""
    text = text.partition("\nTraceback")[0]
    host = urlsplit(foreign.api_base).netloc
    for secret in (*foreign.secrets, host):
        if len(secret) >= _SECRET_CHARS_MIN:
            text = text.replace(secret, "***")
    text = _URL.sub("***", text)
    return _PREFIX.sub("", text).strip()[:_SAID_CHARS_MAX]


def _inner(error: Exception) -> Exception:
    """The reason inside litellm's wrapper for errors in the middle of a stream."""
    inner = getattr(error, "original_exception", None)
    return inner if isinstance(inner, Exception) else error


def _is_of_the_network(error: BaseException) -> bool:
    """Whether a connection could not be made or broke: among what led to this error is one of the system's or a client's."""
    cause: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return False
        if isinstance(cause, OSError) or type(cause).__name__ in _NETWORK:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _status_of(error: Exception) -> int:
    status = getattr(error, "status_code", 0)
    try:
        return int(status)
    except (TypeError, ValueError):
        return 0


def _reply(status: int, said: str, code: str, retry_after_s: float, wire: Wire) -> Reply:
    """The error as the client reads it."""
    kind = _KINDS.get(status, "invalid_request_error")
    body = openai.error_body(message=said, kind=kind, code=code or kind)
    if wire.translation is not None:
        status, body = wire.translation.error(status, body)
    headers: Headers = [_JSON]
    if retry_after_s:
        headers.append((b"retry-after", b"%d" % -(-retry_after_s // 1)))
    return Reply(status, headers, body=body)


def _retry_after(error: Exception) -> float:
    """Seconds that the provider wants us to wait; 0.0 if it does not say."""
    for holder in (getattr(error, "response", None), error):
        headers = getattr(holder, "headers", None) or getattr(holder, "litellm_response_headers", None)
        said = headers.get("retry-after") if isinstance(headers, Mapping) else None
        found = seconds_of(said.encode("latin-1", "replace")) if isinstance(said, str) else None
        if found:
            return found
    return 0.0

"""Error answers, in Anthropic's words and layout."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider.problems import Problem

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_MESSAGES = {500: "Internal server error", 503: "Service unavailable", 529: "Overloaded"}
CONTEXT_TOKENS_MAX = 200_000
_AGAIN = ("x-should-retry", "true")


@dataclass(eq=False, slots=True)
class AnthropicProblem(Problem):
    """An error answer of the Messages API. `type` is its kind, `code` that of its details where it has any; `param` stays empty."""

    def body(self, request_id: str = "") -> bytes:
        """The body, in one line."""
        error: dict[str, object] = {"type": self.type, "message": self.message}
        if self.code:
            error["details"] = {"error_code": self.code}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def invalid(message: str) -> Problem:
    """The request is wrong."""
    return problem(400, message)


def no_threads() -> Problem:
    """Conversations are not kept here, as for some organizations there: clients go on without a thread."""
    message = "thread: Message threads are not supported for this organization."
    return AnthropicProblem(400, message, _TYPES[400], code="thread_unsupported_request")


def problem(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Problem:
    """An error with the type that belongs to its status."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return AnthropicProblem(status, message, kind, headers=headers)


def worded(raised: Problem) -> Problem:
    """A problem that was raised in OpenAI's words, in Anthropic's."""
    if isinstance(raised, AnthropicProblem):
        return raised
    if raised.status == 401:
        return problem(401, "invalid x-api-key" if raised.code else "x-api-key header is required")
    if raised.status == 405:
        return problem(405, "Method Not Allowed")
    if raised.status == 413:
        return problem(413, "Request exceeds the maximum size")
    if raised.status == 404:
        return problem(404, "Not found")
    message = _MESSAGES.get(raised.status, raised.message)
    kept = tuple((name, value) for name, value in raised.headers if name == "retry-after")
    return problem(raised.status, message, headers=kept)


def unknown_model(name: str) -> Problem:
    """No such model."""
    return problem(404, f"model: {name}")


def too_long(tokens: int, tokens_max: int) -> Problem:
    """The prompt is longer than the model's context."""
    return invalid(f"prompt is too long: {tokens} tokens > {tokens_max} maximum")


def refusal(fault: Fault, *, organization: str, limit: int) -> Problem | None:
    """The error that a fault answers instead of the truth; None for the faults that let an answer begin."""
    after = ("retry-after", str(max(1, -int(-fault.retry_after_s // 1))))
    match fault.kind:
        case FaultKind.OUTAGE_500:
            return problem(500, _MESSAGES[500], headers=(_AGAIN,))
        case FaultKind.OUTAGE_503:
            return problem(503, _MESSAGES[503], headers=(_AGAIN, after))
        case FaultKind.OVERLOADED:
            return problem(529, _MESSAGES[529], headers=(_AGAIN,))
        case FaultKind.RATE_LIMITED:
            return problem(429, rate_limited_message(organization, limit), headers=(_AGAIN, after))
        case FaultKind.REVOKED_KEY:
            return problem(401, "invalid x-api-key")
        case FaultKind.QUOTA_EXHAUSTED:
            return invalid(
                "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase "
                "credits."
            )
        case FaultKind.CONTEXT_EXCEEDED:
            return too_long(CONTEXT_TOKENS_MAX + 1, CONTEXT_TOKENS_MAX)
        case FaultKind.CONTENT_POLICY:
            return invalid("Output blocked by content filtering policy")
        case FaultKind.STATUS:
            return problem(fault.status, _MESSAGES.get(fault.status, f"The request failed with status {fault.status}."))
        case _:
            return None


def rate_limited_message(organization: str, limit: int) -> str:
    """Which limit was reached."""
    return (
        f"This request would exceed your organization's rate limit of {limit:,} requests per minute (org: {organization}). For "
        "details, refer to: https://docs.claude.com/en/api/rate-limits. You can see the response headers for current usage. Please "
        "reduce the prompt length or the maximum tokens requested, or try again later."
    )

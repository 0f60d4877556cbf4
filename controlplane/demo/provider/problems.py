"""Error answers, in OpenAI's words and layout."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

INVALID = "invalid_request_error"
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. "
    "Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the API from your "
    "browser and are prompted for a username and password. You can obtain an API key from "
    "https://platform.openai.com/account/api-keys."
)
NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library correctly. "
    "The OpenAI API expects a JSON payload, but what was sent was not valid JSON. If you have trouble figuring out how to fix "
    "this, please contact us through our help center at help.openai.com.)"
)


@dataclass(eq=False, slots=True)  # an exception is compared by identity
class Problem(Exception):
    """An error answer. Raised while a request is read, returned by the functions below."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, request_id: str = "") -> bytes:  # noqa: ARG002 - other protocols say it in the body
        """The body; OpenAI indents the answer to a bad key by four, every other one by two."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        indent = 4 if self.status == 401 else 2
        return msgspec.json.format(msgspec.json.encode({"error": error}), indent=indent) + b"\n"


def no_key() -> Problem:
    """No key was sent."""
    return Problem(401, NO_KEY)


def bad_key(key: str) -> Problem:
    """The key is unknown or revoked; only its ends are shown."""
    shown = key if len(key) <= 8 else f"{key[:8]}{'*' * max(1, len(key) - 12)}{key[-4:]}"
    return Problem(
        401,
        f"Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def not_json() -> Problem:
    """The body is not JSON."""
    return Problem(400, NOT_JSON)


def no_model() -> Problem:
    """The body names no model."""
    return Problem(400, "you must provide a model parameter")


def unknown_model(model: str) -> Problem:
    """No such model."""
    return Problem(404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found")


def unknown_model_listed(model: str) -> Problem:
    """No such model, as the models endpoint says it."""
    return Problem(404, f"The model '{model}' does not exist", param="model", code="model_not_found")


def unknown_url(method: str, path: str) -> Problem:
    """No such path."""
    return Problem(404, f"Invalid URL ({method} {path})")


def wrong_method(method: str, path: str) -> Problem:
    """The path exists, for another method."""
    return Problem(
        405, f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to make a different kind of request?)"
    )


def too_large(limit_bytes: int) -> Problem:
    """The body is larger than the limit."""
    return Problem(
        413,
        f"Maximum content size limit ({limit_bytes}) exceeded ({limit_bytes + 1} bytes read)",
        code="payload_too_large",
    )


def server_error() -> Problem:
    """The provider broke."""
    return Problem(
        500,
        "The server had an error while processing your request. Sorry about that!",
        type="server_error",
    )


def overloaded(retry_after_s: float) -> Problem:
    """The provider has too much to do."""
    return Problem(
        503,
        "The engine is currently overloaded, please try again later",
        type="server_error",
        headers=(("retry-after", _whole_seconds(retry_after_s)),),
    )


def forbidden() -> Problem:
    """The key is good, and not for this."""
    return Problem(403, "You are not allowed to use this resource.", code="permission_denied")


def context_exceeded(tokens_max: int, tokens: int) -> Problem:
    """The prompt is longer than the model's context."""
    return Problem(
        400,
        f"This model's maximum context length is {tokens_max} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


def against_policy() -> Problem:
    """The prompt is refused by the provider's policy."""
    return Problem(
        400,
        "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed by our "
        "safety system.",
        code="content_policy_violation",
    )


def of_status(status: int) -> Problem:
    """Any status, for those that nothing above is named after."""
    kind = INVALID if status < 500 else "server_error"
    return Problem(status, f"The request failed with status {status}.", type=kind)


def rate_limited(model: str, organization: str, *, kind: str, limit: int, retry_after_s: float) -> Problem:
    """A rate limit is used up. kind: `requests` or `tokens`."""
    short = "RPM" if kind == "requests" else "TPM"
    retry_after_ms = round(retry_after_s * 1000)
    wait = f"{retry_after_ms}ms" if retry_after_ms < 1000 else f"{retry_after_s:g}s"
    return Problem(
        429,
        f"Rate limit reached for {model or 'default'} in organization {organization} on {kind} per min ({short}): Limit {limit}, "
        f"Used {limit}, Requested 1. Please try again in {wait}. Visit https://platform.openai.com/account/rate-limits to learn more.",
        type=kind,
        code="rate_limit_exceeded",
        headers=(("retry-after", _whole_seconds(retry_after_s)), ("retry-after-ms", str(retry_after_ms))),
    )


def quota_exhausted() -> Problem:
    """The account has no money left."""
    return Problem(
        429,
        "You exceeded your current quota, please check your plan and billing details. For more information on this error, read "
        "the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
        type="insufficient_quota",
        code="insufficient_quota",
    )


def _whole_seconds(seconds: float) -> str:
    """Rounded up, at least 1: a client must not come back too early."""
    return str(max(1, -int(-seconds // 1)))

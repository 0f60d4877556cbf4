"""The console's session: a signed cookie that says until when it holds, and nothing else.

It is signed with a key made from the operator token, so a new operator token ends every session. Nothing is kept on the server.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

COOKIE = "heph_console"
_COOKIE_CHARS_MAX = 200
_CONTEXT = b"hephaestus console session 1"


def sign(*, operator_token: str, expires_s: int) -> str:
    """A cookie value that holds until `expires_s`, in Unix seconds."""
    body = f"{expires_s}.{secrets.token_urlsafe(12)}"
    return f"{body}.{_signature(body, operator_token)}"


def holds(value: str, *, operator_token: str, now_s: int) -> bool:
    """Whether we signed this cookie and it has not expired."""
    if len(value) > _COOKIE_CHARS_MAX:
        return False
    body, _, signature = value.rpartition(".")
    if not body or not hmac.compare_digest(_signature(body, operator_token).encode(), signature.encode()):
        return False
    return int(body.partition(".")[0]) > now_s


def _signature(body: str, operator_token: str) -> str:
    key = hmac.digest(operator_token.encode(), _CONTEXT, hashlib.sha256)
    return hmac.digest(key, body.encode(), hashlib.sha256).hex()

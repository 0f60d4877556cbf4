"""Response headers in the order in which OpenAI sends them, and the ids of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from email.utils import formatdate

from controlplane.demo.provider.limits import Allowance, Limits

DURATIONS_MAX = 4_096  # texts of durations that are kept
_ID_SPACE = 1 << 48
_ODD = 0x9E3779B97F4A7C15  # odd, so that multiplying modulo 2**48 gives each number its own id
_START = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-type: %b\r\nconnection: %b\r\n"
_FIXED = (
    b"access-control-expose-headers: X-Request-ID\r\nopenai-organization: %b\r\nopenai-processing-ms: %d\r\n"
    b"openai-version: 2020-10-01\r\n"
)
_LIMITS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-requests: %b\r\nx-ratelimit-reset-tokens: %b\r\n"
)


class HeaderWriter:
    """Writes the header blocks of one upstream, as OpenAI's."""

    def __init__(self, identity: str, limits: Limits, now_s: Callable[[], int]) -> None:
        """identity: makes the ids of this upstream its own, the same again for the same seed."""
        digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self.organization = f"org-{digest[:24]}"
        self._id_start = digest[:17].encode()  # with 12 more characters: the 29 of a completion id
        self._request_id_start = digest[:20].encode()
        self._organization = self.organization.encode()
        self._limits = limits
        self._now_s = now_s
        self._second = 0
        self._date = b""
        self._durations: dict[int, bytes] = {}

    def answer_id(self, call_number: int) -> bytes:
        """The number of an answer, in which every id of it ends."""
        return b"%b%012x" % (self._id_start, call_number * _ODD % _ID_SPACE)

    def request_id(self, call_number: int) -> str:
        """The id of a request; here it is in the headers only."""
        return f"req_{self._request_id_start.decode()}{call_number * _ODD % _ID_SPACE:012x}"

    def success(
        self, call_number: int, allowance: Allowance | None, *, delay_s: float, keep_alive: bool, content_type: bytes
    ) -> bytes:
        """The block of a 200, without the length and the empty line at the end."""
        return b"%b%b%bx-request-id: req_%b%012x\r\n" % (
            _START % (self._now(), content_type, b"keep-alive" if keep_alive else b"close"),
            _FIXED % (self._organization, delay_s * 1000),
            b"" if allowance is None else self._of(allowance),
            self._request_id_start,
            call_number * _ODD % _ID_SPACE,
        )  # fmt: skip

    def failure(self, call_number: int, allowance: Allowance | None = None) -> bytes:
        """The lines that an error answer carries besides its own."""
        return b"date: %b\r\n%b%bx-request-id: req_%b%012x\r\n" % (
            self._now(),
            _FIXED % (self._organization, 0),
            b"" if allowance is None else self._of(allowance),
            self._request_id_start,
            call_number * _ODD % _ID_SPACE,
        )

    def _of(self, allowance: Allowance) -> bytes:
        return _LIMITS % (
            self._limits.requests_per_minute,
            self._limits.tokens_per_minute,
            allowance.remaining_requests,
            allowance.remaining_tokens,
            self._duration(allowance.reset_requests_ms),
            self._duration(allowance.reset_tokens_ms),
        )

    def _now(self) -> bytes:
        second = self._now_s()
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True).encode()
        return self._date

    def _duration(self, milliseconds: int) -> bytes:
        known = self._durations.get(milliseconds)
        if known is None:
            if len(self._durations) >= DURATIONS_MAX:
                self._durations.clear()
            known = self._durations[milliseconds] = duration(milliseconds).encode()
        return known


def duration(milliseconds: int) -> str:
    """A duration as rate-limit headers write it: `3ms`, `8.64s`, `6m0s`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds

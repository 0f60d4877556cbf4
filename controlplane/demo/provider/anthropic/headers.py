"""Response headers in the way Anthropic sends them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from email.utils import formatdate

from controlplane.demo.provider.answer import moment
from controlplane.demo.provider.limits import Allowance, Limits

_ID_SPACE = 1 << 48
_ODD = 0x9E3779B97F4A7C15  # odd, so that multiplying modulo 2**48 gives each number its own id
_OUTPUT_SHARE = 5  # the limit of output tokens is this part of the one of input tokens
_MOMENTS_MAX = 4_096  # texts of moments that are kept
_FAMILY = b"".join(
    b"anthropic-ratelimit-%b-limit: %%d\r\nanthropic-ratelimit-%b-remaining: %%d\r\nanthropic-ratelimit-%b-reset: %%b\r\n"
    % (name, name, name)
    for name in (b"requests", b"input-tokens", b"output-tokens", b"tokens")
)


class AnthropicHeaders:
    """Writes the header blocks of one upstream, as Anthropic's."""

    def __init__(self, identity: str, limits: Limits, now_s: Callable[[], int]) -> None:
        """identity: makes the ids of this upstream its own, the same again for the same seed."""
        digest = hashlib.blake2b(f"anthropic/{identity}".encode(), digest_size=16)
        self.organization = str(uuid.UUID(bytes=digest.digest(), version=4))
        self._organization = self.organization.encode()
        self._start = digest.hexdigest()[:10].encode()
        self._second = 0
        self._date = b""
        self._moments: dict[int, bytes] = {}
        self._limits = limits
        self._now_s = now_s

    def answer_id(self, call_number: int) -> bytes:
        """22 characters, as they follow `msg_01`."""
        return b"%b%012x" % (self._start, call_number * _ODD % _ID_SPACE)

    def request_id(self, call_number: int) -> str:
        """The id of a request, which error bodies carry too."""
        return f"req_01{self.answer_id(call_number).decode()}"

    def success(
        self, call_number: int, allowance: Allowance | None, *, delay_s: float, keep_alive: bool, content_type: bytes
    ) -> bytes:
        """The block of a 200, without the length and the empty line at the end."""
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: %b\r\nx-envoy-upstream-service-time: %d\r\n%b" % (
            content_type,
            b"keep-alive" if keep_alive else b"close",
            delay_s * 1000,
            self.failure(call_number, allowance),
        )

    def failure(self, call_number: int, allowance: Allowance | None = None) -> bytes:
        """The lines that an error answer carries besides its own."""
        now_s = self._now_s()
        if now_s != self._second:
            self._second, self._date = now_s, formatdate(now_s, usegmt=True).encode()
        return b"date: %b\r\nrequest-id: req_01%b\r\nanthropic-organization-id: %b\r\n%b" % (
            self._date,
            self.answer_id(call_number),
            self._organization,
            b"" if allowance is None else self._of(allowance, now_s),
        )

    def _of(self, allowance: Allowance, now_s: int) -> bytes:
        """The four families of rate limits; a reset is a moment, not a duration."""
        limits = self._limits
        tokens_max, out_max = limits.tokens_per_minute, limits.tokens_per_minute // _OUTPUT_SHARE
        left, reset = allowance.remaining_tokens, self._moment(now_s - (-allowance.reset_tokens_ms // 1000))
        requests_reset = self._moment(now_s - (-allowance.reset_requests_ms // 1000))
        return _FAMILY % (
            *(limits.requests_per_minute, allowance.remaining_requests, requests_reset),
            *(tokens_max, left, reset),
            *(out_max, out_max, self._moment(now_s)),
            *(tokens_max + out_max, left + out_max, reset),
        )

    def _moment(self, second: int) -> bytes:
        known = self._moments.get(second)
        if known is None:
            if len(self._moments) >= _MOMENTS_MAX:
                self._moments.clear()
            known = self._moments[second] = moment(second)
        return known

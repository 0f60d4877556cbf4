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


class AnthropicHeaders:
    """Writes the header blocks of one upstream, as Anthropic's."""

    def __init__(self, identity: str, limits: Limits, now_s: Callable[[], int]) -> None:
        """identity: makes the ids of this upstream its own, the same again for the same seed."""
        digest = hashlib.blake2b(f"anthropic/{identity}".encode(), digest_size=16)
        self.organization = str(uuid.UUID(bytes=digest.digest(), version=4))
        self._start = digest.hexdigest()[:10]
        self._limits = limits
        self._now_s = now_s

    def answer_id(self, call_number: int) -> bytes:
        """22 characters, as they follow `msg_01`."""
        return self._number(call_number).encode()

    def request_id(self, call_number: int) -> str:
        """The id of a request, which error bodies carry too."""
        return f"req_01{self._number(call_number)}"

    def success(
        self, call_number: int, allowance: Allowance | None, *, delay_s: float, keep_alive: bool, content_type: bytes
    ) -> bytes:
        """The block of a 200, without the length and the empty line at the end."""
        return (
            b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-type: %b\r\nconnection: %b\r\nx-envoy-upstream-service-time: %d\r\n%b"
            % (
                formatdate(self._now_s(), usegmt=True).encode(),
                content_type,
                b"keep-alive" if keep_alive else b"close",
                delay_s * 1000,
                self._own(call_number, allowance),
            )
        )

    def failure(self, call_number: int, allowance: Allowance | None = None) -> bytes:
        """The lines that an error answer carries besides its own."""
        return f"date: {formatdate(self._now_s(), usegmt=True)}\r\n".encode() + self._own(call_number, allowance)

    def _own(self, call_number: int, allowance: Allowance | None) -> bytes:
        lines = [f"request-id: {self.request_id(call_number)}", f"anthropic-organization-id: {self.organization}"]
        if allowance is not None:
            limits = self._limits
            tokens_max, out_max = limits.tokens_per_minute, limits.tokens_per_minute // _OUTPUT_SHARE
            left, reset = allowance.remaining_tokens, allowance.reset_tokens_ms
            lines += self._family(
                "requests", limits.requests_per_minute, allowance.remaining_requests, allowance.reset_requests_ms
            )
            lines += self._family("input-tokens", tokens_max, left, reset)
            lines += self._family("output-tokens", out_max, out_max, 0)
            lines += self._family("tokens", tokens_max + out_max, left + out_max, reset)
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _family(self, name: str, limit: int, remaining: int, reset_ms: int) -> list[str]:
        """The three headers of one limit; the reset is a moment, not a duration."""
        reset = moment(self._now_s() + -(-reset_ms // 1000)).decode()
        start = f"anthropic-ratelimit-{name}"
        return [f"{start}-limit: {limit}", f"{start}-remaining: {remaining}", f"{start}-reset: {reset}"]

    def _number(self, call_number: int) -> str:
        return f"{self._start}{call_number * _ODD % _ID_SPACE:012x}"

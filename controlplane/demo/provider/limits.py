"""The provider's own rate limits: a bucket of requests and one of tokens for each key and model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

BUCKETS_MAX = 10_000  # the one unused for the longest time is forgotten, which fills it


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """What is left after a request, or which bucket was empty."""

    granted: bool
    kind: str  # "requests" or "tokens": the bucket that was empty
    remaining_requests: int
    remaining_tokens: int
    reset_requests_ms: int  # until the bucket is full again
    reset_tokens_ms: int
    retry_after_s: float  # until it could be granted


class _Bucket:
    __slots__ = ("at", "requests", "tokens")

    def __init__(self, at: float, requests: float, tokens: float) -> None:
        self.at = at
        self.requests = requests
        self.tokens = tokens


class Limits:
    """Buckets that refill continuously; when they are not enforced, they only make the headers true."""

    def __init__(
        self, *, requests_per_minute: int, tokens_per_minute: int, enforced: bool, now: Callable[[], float]
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._enforced = enforced
        self._now = now
        self._buckets: OrderedDict[tuple[bytes, str], _Bucket] = OrderedDict()

    def take(self, key: bytes, model: str, tokens: int) -> Allowance:
        """Takes one request and its prompt tokens out of the buckets; takes nothing when one of them is too empty."""
        now = self._now()
        requests_max, tokens_max = self.requests_per_minute, self.tokens_per_minute
        place = (key, model)
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = _Bucket(now, requests_max, tokens_max)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        elif len(self._buckets) > 1:
            self._buckets.move_to_end(place)
        minutes = (now - bucket.at) / 60
        bucket.at = now
        has_requests = min(requests_max, bucket.requests + minutes * requests_max)
        has_tokens = min(tokens_max, bucket.tokens + minutes * tokens_max)
        left_requests, left_tokens = has_requests - 1, has_tokens - tokens
        granted, kind, retry_after_s = True, "", 0.0
        if left_requests < 0 or left_tokens < 0:
            if self._enforced:
                granted = False
                kind = "requests" if left_requests < 0 else "tokens"
                retry_after_s = 60 * max(-left_requests / requests_max, -left_tokens / tokens_max)
                left_requests, left_tokens = has_requests, has_tokens
            else:
                left_requests, left_tokens = max(0.0, left_requests), max(0.0, left_tokens)
        bucket.requests, bucket.tokens = left_requests, left_tokens
        return Allowance(
            granted,
            kind,
            int(left_requests),
            int(left_tokens),
            int((1 - left_requests / requests_max) * 60_000),
            int((1 - left_tokens / tokens_max) * 60_000),
            retry_after_s,
        )

"""How long an answer takes: lognormal times, drawn from the seed and the number of the call."""

from __future__ import annotations

import random

from controlplane.demo.provider.config import Latency

_DRAWS = 4096  # a power of two; drawn once, walked through by every call


class Pace:
    """The times of one provider. Drawing costs one look-up, so that it can be done for each token."""

    def __init__(self, latency: Latency, *, seed: int) -> None:
        draw = random.Random(f"{seed}/latency")
        self._factors = [draw.lognormvariate(0.0, latency.sigma) for _ in range(_DRAWS)]
        self._first_token_s = latency.first_token_s * latency.scale
        self._between_tokens_s = latency.between_tokens_s * latency.scale
        self.spread = self._between_tokens_s > 0  # False: all tokens come with the first one
        self.instant = self._first_token_s == 0 and self._between_tokens_s == 0

    def first_token_s(self, call_number: int) -> float:
        """From the request to the first token of this call."""
        return self._first_token_s * self._factors[call_number * 2654435761 % _DRAWS]

    def between_tokens_s(self, call_number: int, token: int) -> float:
        """From token number `token` to the next one."""
        return self._between_tokens_s * self._factors[(call_number * 40503 + token) % _DRAWS]

    def whole_s(self, call_number: int, tokens: int) -> float:
        """From the request to the last of so many tokens."""
        if self.instant:
            return 0.0
        if self._between_tokens_s == 0:
            return self.first_token_s(call_number)
        start = call_number * 40503
        factors = self._factors
        between = sum(factors[(start + token) % _DRAWS] for token in range(1, tokens))
        return self.first_token_s(call_number) + self._between_tokens_s * between

"""What the HTTP face counts about itself."""

from __future__ import annotations

from prometheus_client import Counter

from controlplane.metrics import Metrics


class ApiCounters:
    """Counters of refusals and failures, beside those that all metrics have for the API; made once for each registry."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.denied = metrics.api.denied
        self.login_throttled = Counter(
            "heph_api_login_throttled_total",
            "Logins refused unread because too many had failed within a minute.",
            registry=registry,
        )
        self.unexpected = Counter(
            "heph_api_unexpected_errors_total",
            "Requests that failed in a way nobody expected; the log holds each under its id.",
            registry=registry,
        )
        self.slow_bodies = Counter(
            "heph_api_slow_bodies_total",
            "Requests cut off because their body did not arrive in time.",
            registry=registry,
        )
        self.console_troubles = Counter(
            "heph_api_console_troubles_total",
            "Console pages drawn without data because it could not be read.",
            registry=registry,
        )

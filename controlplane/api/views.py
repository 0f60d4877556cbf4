"""What the operator API answers with and the console draws: frozen, JSON-ready, money in integer nano-USD, time in integer microseconds."""

from __future__ import annotations

import msgspec

from controlplane.contract.snapshot import ProxyStatus


class CachedCount(msgspec.Struct, frozen=True):
    """Stored answers that fit, told from the calls that brought them: no more than this, fewer if some were dropped already."""

    entries_at_most: int
    bytes_at_most: int


class TimelineEntry(msgspec.Struct, frozen=True):
    """One thing that happened to an incident or a run; kind is the event's type in words, text a sentence about it."""

    at_us: int
    kind: str
    text: str
    actor: str = ""
    run_id: str = ""


class IncidentSummary(msgspec.Struct, frozen=True):
    """One incident as a list shows it. state: "pending", "firing", "resolved" or "dismissed"."""

    id: str
    title: str
    state: str
    opened_us: int
    resolved_us: int = 0
    cause: str = ""
    severity: str = ""
    run_ids: tuple[str, ...] = ()


class IncidentDetail(msgspec.Struct, frozen=True):
    """One incident with all that happened to it, oldest first, the steps of its runs among them."""

    summary: IncidentSummary
    timeline: tuple[TimelineEntry, ...] = ()


class RunSummary(msgspec.Struct, frozen=True):
    """One playbook run as a list shows it. waits_for: what it waits for now, such as an approval; empty when nothing."""

    id: str
    playbook: str
    state: str
    incident_id: str
    opened_us: int
    ended_us: int = 0
    shadow: bool = False
    waits_for: str = ""


class RunDetail(msgspec.Struct, frozen=True):
    """One playbook run with its events, oldest first."""

    summary: RunSummary
    timeline: tuple[TimelineEntry, ...] = ()


class KillSwitch(msgspec.Struct, frozen=True):
    """Whether healing may act at all; while engaged, no run takes a step."""

    engaged: bool
    since_us: int = 0
    actor: str = ""
    reason: str = ""


class KeyView(msgspec.Struct, frozen=True):
    """A virtual key without its secret. models: null for all that its tenant may use; expires_us: null for never; revoked_us: 0 while good.

    addresses: null for any; grace_until_us: how long the secret before the last rotation is good.
    """

    id: str
    tenant: str
    name: str = ""
    models: tuple[str, ...] | None = None
    created_us: int = 0
    expires_us: int | None = None
    revoked_us: int = 0
    addresses: tuple[str, ...] | None = None
    rotated_us: int = 0
    grace_until_us: int = 0


class NewKey(msgspec.Struct, frozen=True):
    """A virtual key at the only moment when its secret is known. grace_until_us: of a rotation, how long the secret before is good."""

    id: str
    tenant: str
    key: str
    grace_until_us: int = 0


class TrafficPoint(msgspec.Struct, frozen=True):
    """One minute of traffic."""

    at_us: int
    calls: int
    errors: int


class Traffic(msgspec.Struct, frozen=True):
    """Calls of the last `window_s` seconds; a latency of 0 means that there was nothing to measure."""

    window_s: int
    calls: int
    errors: int
    latency_us_p50: int = 0
    latency_us_p95: int = 0
    first_token_us_p50: int = 0
    first_token_us_p95: int = 0
    points: tuple[TrafficPoint, ...] = ()

    @property
    def requests_per_s(self) -> float:
        """Mean rate over the window."""
        return self.calls / self.window_s if self.window_s else 0.0

    @property
    def error_ratio(self) -> float | None:
        """Share of calls that failed; None when there were none."""
        return self.errors / self.calls if self.calls else None


class SpendLine(msgspec.Struct, frozen=True):
    """What one tenant, one model or one agent cost."""

    name: str
    calls: int
    nanousd: int


class Spend(msgspec.Struct, frozen=True):
    """Money of today (UTC) and of the last hour; unpriced calls are counted, never added as zero."""

    today_nanousd: int
    hour_nanousd: int
    unpriced_calls: int = 0
    by_tenant: tuple[SpendLine, ...] = ()
    by_model: tuple[SpendLine, ...] = ()
    by_agent: tuple[SpendLine, ...] = ()


class CacheSavings(msgspec.Struct, frozen=True):
    """What the cache and joined calls saved today. calls: those that could have been answered without an upstream."""

    calls: int
    hits: int
    coalesced: int
    saved_nanousd: int

    @property
    def hit_ratio(self) -> float | None:
        """Share of calls answered without an upstream; None when there were none."""
        return (self.hits + self.coalesced) / self.calls if self.calls else None


class DeploymentView(msgspec.Struct, frozen=True):
    """One deployment as the proxies see it now, with its record of the last minutes. breaker: the worst state any proxy reports."""

    id: str
    upstream: str
    model: str
    aliases: tuple[str, ...] = ()
    breaker: str = "closed"
    breaker_reason: str = ""
    lease: str = ""
    lease_expires_us: int = 0
    attempts: int = 0
    failures: int = 0
    latency_us_p95: int = 0

    @property
    def success_ratio(self) -> float | None:
        """Share of attempts that succeeded; None when there were none."""
        return (self.attempts - self.failures) / self.attempts if self.attempts else None


class ProxyView(msgspec.Struct, frozen=True):
    """One proxy worker by its last status. ledger_*: calls it settled since its first start, and their cost."""

    id: str
    seen_us: int
    snapshot_version: int
    calls_inflight: int
    spool_bytes: int
    spool_dropped: int
    ledger_calls: int
    ledger_nanousd: int
    lease_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, status: ProxyStatus) -> ProxyView:
        """What a status says."""
        return cls(
            id=status.proxy_id,
            seen_us=status.at_us,
            snapshot_version=status.snapshot_version,
            calls_inflight=status.calls_inflight,
            spool_bytes=status.spool_bytes,
            spool_dropped=status.spool_dropped,
            ledger_calls=status.ledger_calls,
            ledger_nanousd=status.ledger_nanousd,
            lease_ids=status.lease_ids,
        )


class Ledger(msgspec.Struct, frozen=True):
    """The proxies' own count of settled calls and their cost, beside what the store holds of them."""

    proxy_calls: int
    proxy_nanousd: int
    stored_calls: int
    stored_nanousd: int


class Overview(msgspec.Struct, frozen=True):
    """Everything on the console's first page, as of one moment."""

    at_us: int
    snapshot_version: int
    traffic: Traffic
    spend: Spend
    cache: CacheSavings
    ledger: Ledger
    kill_switch: KillSwitch
    deployments: tuple[DeploymentView, ...] = ()
    proxies: tuple[ProxyView, ...] = ()
    incidents: tuple[IncidentDetail, ...] = ()
    troubles: tuple[str, ...] = ()  # parts of this page that could not be read just now

"""What the journal tells Prometheus about itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class JournalMetrics:
    """Counters of one journal, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter("heph_journal_events", "Events appended by this process.", registry=registry)
        self.conflicts = Counter(
            "heph_journal_conflicts", "Appends refused because the stream had moved on.", registry=registry
        )
        self.append_seconds = Histogram(
            "heph_journal_append_seconds", "Time of one append, waiting for the write lock included.", registry=registry
        )

"""A small installation for tests of the joining code: configuration, publisher, topology and incidents over a real journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from controlplane.alerts.alert import AlertRouter, AlertSink
from controlplane.app.incidents import IncidentNews
from controlplane.app.watching import CatalogView
from controlplane.catalog.compile import NoPrices
from controlplane.catalog.leases import Leases
from controlplane.catalog.load import load
from controlplane.catalog.publish import Publisher
from controlplane.catalog.reload import Reloader
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.incidents.incident import IncidentPolicy
from controlplane.incidents.metrics import SignalMetrics
from controlplane.incidents.register import Incidents
from controlplane.journal.journal import Journal
from controlplane.metrics import Metrics
from controlplane.settings import DetectionSettings

TEXT = """upstreams:
  - {name: alpha, base_url: "http://127.0.0.1:9/v1"}
  - {name: beta, base_url: "http://127.0.0.1:9/v1"}
models:
  - name: chat
    deployments:
      - {upstream: alpha, model: m, weight: 3}
      - {upstream: beta, model: m, weight: 1}
      - {upstream: beta, model: big, order: 1}
  - name: code
    deployments: [{upstream: beta, model: big}]
tenants:
  - {name: acme}
"""


@dataclass
class Scene:
    """What the control plane joins, without its loops."""

    journal: Journal
    clock: ManualClock
    metrics: Metrics
    reloader: Reloader
    view: CatalogView
    incidents: Incidents
    leases: Leases
    router: AlertRouter
    changes: list[int] = field(default_factory=list)

    @classmethod
    async def open(cls, folder: Path, journal: Journal, clock: ManualClock, text: str = TEXT) -> Scene:
        """The scene, with nothing wrong in it."""
        path = folder / "hephaestus.yaml"
        path.write_text(text)
        metrics = Metrics(CollectorRegistry())
        reloader = await Reloader.open(
            load(path), journal=journal, prices=NoPrices(), clock=clock, metrics=metrics.catalog
        )
        view = CatalogView(reloader.publisher, DetectionSettings())
        router = AlertRouter((AlertSink(name="ops", url="https://alerts.example/hook"),))
        incidents = Incidents(
            journal,
            topology=view.topology,
            policy=IncidentPolicy(),
            metrics=metrics.incidents,
            signal_metrics=SignalMetrics(metrics.registry),
            clock=clock,
            outbox=IncidentNews(router),
        )
        leases = Leases(journal, now_us=clock.now_us, leases_max=10)
        return cls(journal, clock, metrics, reloader, view, incidents, leases, router)

    @property
    def publisher(self) -> Publisher:
        """Who hands out snapshots."""
        return self.reloader.publisher

    def report(self, proxy: str = "p1", *, breakers: dict[str, str] | None = None, **more: object) -> ProxyStatus:
        """A proxy's word about itself, now."""
        states = {} if breakers is None else breakers
        status = ProxyStatus(
            proxy_id=proxy,
            at_us=self.clock.now_us(),
            snapshot_version=self.publisher.current.version,
            breakers=tuple(
                BreakerStatus(deployment=name, state=state, since_us=self.clock.now_us(), reason=f"{proxy} says so")
                for name, state in states.items()
            ),
            **more,  # type: ignore[arg-type]  # fields of the status
        )
        self.publisher.confirm(status)
        return status

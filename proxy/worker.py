"""One worker: the only place where the proxy's parts are made, joined, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import ProxyStatus, Snapshot, TenantPolicy
from proxy.app import ProxyApp
from proxy.background import Background
from proxy.balance import Balancer
from proxy.batch_bills import BatchBills
from proxy.call import Call, Stage, Transport
from proxy.dialects.operations import BATCH_OPERATIONS
from proxy.ledger import Ledger, watch_ledger
from proxy.lending import open_lending, watch_lending
from proxy.load import Loads
from proxy.loops import keep_running
from proxy.metrics import ProxyMetrics
from proxy.ops import ModelsList
from proxy.pipeline import Pipeline
from proxy.quotas.account import Share
from proxy.repeats import Repeats
from proxy.runtime import compile_runtime
from proxy.settings import ProxySecrets
from proxy.settlement import Settlement, watch_batches, watch_kept
from proxy.shared import SharedState, watch_shared
from proxy.shipper import Shipper, watch_spool
from proxy.snapshots import Snapshots, watch_snapshots
from proxy.stages.admit import Admit
from proxy.stages.decode import Decode
from proxy.stages.guard import Guard
from proxy.stages.identify import Identify
from proxy.stages.over import refuse_over
from proxy.stages.pass_through import PassThrough
from proxy.stages.reserve import Reserve
from proxy.stages.route import RouteStage
from proxy.stages.tally import Tally
from proxy.status import StatusReporter
from proxy.succession import Retired, cache_of, drop_caches, open_spool, places_of, retired_ids
from proxy.transports.batch import Batch, watch_batch
from proxy.transports.batches import Batches
from proxy.transports.breaker import BreakerTransport
from proxy.transports.breaker_hints import BreakerHints
from proxy.transports.cache import Cache
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_group import shared_tier
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_refresh import Refreshes
from proxy.transports.cache_watch import watch_cache
from proxy.transports.chains import Chains, watch_chains
from proxy.transports.coalesce import Coalesce, watch_coalesce
from proxy.transports.coalesce_shared import SharedFlights, watch_flights
from proxy.transports.concurrency import ConcurrencyTransport
from proxy.transports.dispatch import Dispatch
from proxy.transports.failover import Failover
from proxy.transports.hedge import HedgedTransport
from proxy.transports.http import HttpTransport
from proxy.transports.kept import KEPT_OPERATIONS, Kept
from proxy.transports.litellm import LitellmTransport
from proxy.transports.owners import Owners
from proxy.transports.passthrough import Passthrough
from proxy.transports.promises import Promises
from proxy.transports.shadow import Shadow
from proxy.transports.threads import Threads
from proxy.uplink import open_uplink

_SHIP_AT_STOP_S = 3.0

log = structlog.get_logger("proxy.worker")


class Worker:
    """Everything that one process serves with. Made before the event loop runs; started and stopped by it."""

    def __init__(
        self,
        settings: ProxySettings,
        secrets: ProxySecrets,
        *,
        name: str = "0",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Opens the worker's spool, and starts from the last snapshot on disk if there is one.

        name: of the worker among its siblings; it names a directory.
        environ: where upstream credentials are found; None: this process's environment.
        """
        self.settings = settings
        self._environ = os.environ if environ is None else environ
        place = places_of(settings)
        self._share = Share(int(name), settings.workers, settings.hosts)
        self.metrics = ProxyMetrics(name)
        self.shared = SharedState(settings, secrets) if settings.redis else None
        self.owners = Owners(place / "owners", settings, shared=self.shared, secret=secrets.pepper_bytes)
        self.ledger = Ledger(
            share=self._share, instances_max=settings.quota_instances_max, idle_s=settings.quota_idle_s
        )
        self.spool = open_spool(settings, name, self.ledger)
        gone = () if self._share.worker else retired_ids(settings)
        self.lending = open_lending(
            self.shared, self.ledger, settings, worker=self.spool.proxy_id, share=self._share, gone=gone
        )
        self._join(name, secrets)
        self.hints = (
            None
            if self.shared is None
            else BreakerHints(self.shared, self.breaker, sender=f"{self.spool.proxy_id}/{name}")
        )
        self._uplink = open_uplink(settings.control_plane_url, token=secrets.internal_token.reveal())
        self.snapshots = Snapshots(
            self._uplink,
            path=place / "snapshot.json",
            proxy_id=self.spool.proxy_id,
            apply=self.apply,
            poll_s=settings.snapshot_poll_s,
            retry_s_max=settings.snapshot_retry_s_max,
        )
        self.shipper = Shipper(
            self.spool, self._uplink, tick_s=settings.segment_age_s / 2, retry_s_max=settings.ship_retry_s_max
        )
        self.retired = Retired(settings, self._uplink) if self._share.worker == 0 else None
        self.reporter = StatusReporter(self._uplink, build=self._statuses, every_s=settings.status_every_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._watch()
        self.snapshots.load()

    def _join(self, name: str, secrets: ProxySecrets) -> None:
        """Stages and transports in the order in which a call meets them."""
        settings, metrics = self.settings, self.metrics
        failover, balancer = self._join_upstreams()
        self.batch = Batch(failover)
        self.flights = SharedFlights(
            self.batch,
            self.shared,
            secret=secrets.pepper_bytes,
            lease_s=settings.coalesce_lease_s,
            buffer_bytes_max=settings.cache_entry_bytes_max,
            flights_max=settings.coalesce_calls_max,
            buffers_bytes_max=settings.cache_memory_bytes,
        )
        self.coalesce = Coalesce(
            self.flights,
            calls_max=settings.coalesce_calls_max,
            buffer_bytes_max=settings.cache_entry_bytes_max,
            buffers_bytes_max=settings.cache_memory_bytes,
            elsewhere=self.flights.followers,
            recount=self.flights.bills.recount,
        )
        self.flights.on_left, self.flights.bills.members = self.coalesce.left_elsewhere, self.coalesce.sharers
        self.flights.on_followed = self.coalesce.followed_elsewhere
        disk_bytes = settings.cache_disk_bytes // settings.workers
        self.refreshes = Refreshes(
            self._ask_again,
            running_max=settings.cache_refreshes_max,
            pause_s=settings.cache_refresh_pause_s,
            elsewhere=self._is_refreshed_elsewhere if self.shared is not None else None,
        )
        self.cache = Cache(
            self.coalesce,
            memory=MemoryTier(bytes_max=settings.cache_memory_bytes // settings.workers),
            disk=DiskTier(cache_of(settings, name), bytes_max=disk_bytes) if disk_bytes else None,
            entry_bytes_max=settings.cache_entry_bytes_max,
            redis=shared_tier(self.shared, settings, secrets),
            refreshes=self.refreshes,
            repeats=Repeats(bytes_max=settings.cache_repeats_bytes),
        )
        self.admit = Admit(metrics, share=self._share, lenders=self.lending, agents_max=settings.quota_fair_agents_max)
        identify = self.identify = Identify(
            secrets.pepper_bytes,
            trusted_proxies=settings.trusted_proxies,
            tokens_remembered_max=settings.tokens_remembered_max,
        )
        passthrough = self._join_pipelines(identify, balancer)
        self.app = ProxyApp(settings, self.pipeline, passthrough, self.unrouted, self.coalesce, metrics, self, identify)
        if self.lending is not None:
            self.app.degraded = self.lending.lacks
        self.app.sick = self.breaker.sick
        self.background = Background(self.pipeline, lambda: self.app.runtime)

    def _join_pipelines(self, identify: Identify, balancer: Balancer) -> Pipeline:
        """The stages that calls go through; returns the pipeline of those that are passed through."""
        settings, metrics = self.settings, self.metrics
        self.chains = Chains(self.owners)
        reserve = Reserve(
            self.ledger,
            image_tokens_max=settings.image_tokens_max,
            sound_tokens_max=settings.sound_tokens_max,
            metrics=metrics,
            stored=self.cache.lookup,
            deeper=self.cache.deeper,
            chain=self.chains.ahead,
            order=balancer.order,
            refill=None if self.lending is None else self.lending.refill,
        )
        self._join_kept(
            (
                identify,
                self.admit,
                Decode(self.cache.repeats),
                Guard(),
                RouteStage(
                    balancer, timeout_s_max=settings.timeout_s_max, copy=self.shadow.copy, sick=self.breaker.sick
                ),
                reserve,
            )
        )
        return Pipeline(
            (identify, self.admit, PassThrough(timeout_s=settings.timeout_s_max), reserve),
            Passthrough(self.http, settings, metrics),
            self.cache,
            self.spool,
            metrics,
        )

    def _join_upstreams(self) -> tuple[Failover, Balancer]:
        """The way to the upstreams, and who chooses among them."""
        settings, metrics = self.settings, self.metrics
        self.http = HttpTransport(settings, metrics)
        self.loads = Loads()
        self.litellm = LitellmTransport(settings, metrics)
        upstreams = Dispatch(self.http, special={"litellm": self.litellm})
        self.breaker = BreakerTransport(upstreams, metrics)
        places = ConcurrencyTransport(self.breaker, self.loads, metrics)
        self.hedged = HedgedTransport(places, self.loads, metrics)
        sick = self.breaker.sick
        balancer = Balancer(
            metrics,
            self.loads,
            probe_due=self.breaker.probe_due,
            sick=sick,
            affinity_max=settings.affinity_entries_max,
        )
        failover = Failover(
            self.breaker,
            places,
            self.hedged,
            settings,
            metrics,
            order=balancer.order,
            tries_when_all_open=lambda: self.breaker.tries_when_all_open,
        )
        self.shadow = Shadow(places, self.spool, settings, metrics, sick=sick, probe_due=self.breaker.probe_due)
        self._watch_routing(balancer, places, failover)
        return failover, balancer

    def _join_kept(self, stages: Sequence[Stage]) -> None:
        """The pipeline, with what knows whose the things are that upstreams keep."""
        settings = self.settings
        self.promises = Promises(
            self.owners,
            self.ledger,
            unsettled_max=settings.background_responses_max,
            every_s=settings.background_look_every_s,
            worker=str(self._share.worker),
            workers=settings.workers,
            policy_of=self._policy_of,
        )
        if self.lending is not None:
            self.promises.refill = self.lending.refill
        self.kept = Kept(self.cache, self.owners, settings, self.metrics, self.promises)
        self.batches = Batches(
            self.cache,
            self.owners,
            settings,
            self.metrics,
            self.promises,
            over=lambda policy, refused, now_us: refuse_over(policy, refused, now_us=now_us),
        )
        local: dict[str, Transport] = dict.fromkeys(KEPT_OPERATIONS, self.kept)
        local |= dict.fromkeys(BATCH_OPERATIONS, self.batches)
        local["messages"] = Threads(self.cache, self.owners)
        self.pipeline = Pipeline(stages, self.cache, self.cache, self.spool, self.metrics, local=local)
        refill = None if self.lending is None else self.lending.refill
        self.unrouted = Pipeline(
            (*stages[:2], Tally(self.ledger, refill=refill)),
            self.kept,
            ModelsList(),
            self.spool,
            self.metrics,
            local=local,
        )
        self.bills = BatchBills(
            self.pipeline, self.spool, self.ledger, self.owners, self.promises, settings, self.metrics
        )
        self.settlement = Settlement(
            self.pipeline,
            self.owners,
            lambda: self.app.runtime,
            every_s=settings.background_look_every_s,
            bills=None if self._share.worker else self.bills,
        )
        self.kept.look = self.settlement.look
        if not self._share.worker:  # it alone books batches
            self.batches.look = self.settlement.look_soon

    def _policy_of(self, tenant: str) -> TenantPolicy | None:
        runtime = self.app.runtime
        if runtime is None:
            return None
        return next((policy for policy in runtime.snapshot.tenants if policy.id == tenant), None)

    def _watch_routing(self, balancer: Balancer, places: ConcurrencyTransport, failover: Failover) -> None:
        watch, loads = self.metrics.watch, self.loads
        watch("affinity_conversations", "Conversations whose deployment is remembered.", lambda: balancer.conversations)
        watch(
            "resting_deployments",
            "Deployments that sent `retry-after` and are asked last.",
            lambda: len(failover.rests),
        )
        watch("places_waiting", "Calls that wait for a place at a deployment.", lambda: places.waiting)
        watch("places", "Places at all limited deployments, as the adaptive limits have them.", loads.places)
        watch("places_taken", "Places that are taken.", loads.places_taken)
        watch("shadow_calls", "Copies of calls that run now.", lambda: self.shadow.running)
        watch("shadow_calls_total", "Copies of calls that were sent.", lambda: self.shadow.sent_total)

    def _watch(self) -> None:
        """Shows the figures that the parts keep themselves."""
        watch = self.metrics.watch
        pools = self.http.pools
        watch("upstream_connections", "Connections to upstreams.", lambda: sum(pool.open_count for pool in pools()))
        watch("inflight_calls", "Calls being served now.", lambda: self.app.inflight)
        watch("asyncio_tasks", "Tasks of the worker's event loop; at rest always as many.", _tasks_running)
        watch("snapshot_version", "Version of the snapshot in use.", lambda: self.status().snapshot_version)
        watch_snapshots(watch, self.snapshots)
        watch("status_sent_total", "Status reports that the control plane took.", lambda: self.reporter.sent_total)
        watch(
            "status_failures_total",
            "Status reports that the control plane did not take.",
            lambda: self.reporter.failures_total,
        )
        watch_shared(watch, self.shared)
        watch_lending(watch, self.lending)
        watch(
            "tokens_forgotten_total",
            "JSON Web Tokens to be checked again because too many were remembered.",
            lambda: self.identify.tokens_forgotten_total,
        )
        watch_chains(watch, self.chains)
        watch_ledger(watch, self.ledger)
        watch_spool(
            watch, self.spool, self.shipper, retired=lambda: 0 if self.retired is None else self.retired.bytes_stored
        )
        watch_cache(watch, self.cache, self.refreshes)
        watch_coalesce(watch, self.coalesce)
        watch_flights(watch, self.flights)
        watch_batch(watch, self.batch)
        watch_kept(watch, self.owners, self.kept, self.settlement, self.batches, self.bills)
        watch_batches(watch, self.batches, self.bills)

    def apply(self, snapshot: Snapshot) -> None:
        """Compiles a snapshot and swaps it in; raises, changing nothing, if it cannot be compiled."""
        runtime = compile_runtime(snapshot, self._environ)
        deployments = {item.id for route in snapshot.routes for item in route.deployments}
        self.app.runtime = runtime
        if any(upstream.dialect == "litellm" for upstream in snapshot.upstreams):
            self.litellm.prepare()
        self.breaker.configure(snapshot.breaker, deployments)
        self.loads.configure(runtime.measured)
        self.hedged.configure({route.alias for route in snapshot.routes if route.hedge is not None})
        self.cache.configure(snapshot.invalidations)
        self.admit.retain({tenant.id for tenant in snapshot.tenants})
        self.ledger.configure(snapshot.tenants, now_us=time.time_ns() // 1000)
        for missing in runtime.missing_credentials:
            log.warning("an upstream has no credential; its deployments refuse calls", upstream=missing)
        if self._tasks:
            self.reporter.hurry()

    async def _is_refreshed_elsewhere(self, call: Call) -> bool:
        return await self.cache.has_fresher(call) or await self.flights.is_refreshed_elsewhere(call.cache_key)

    async def _ask_again(self, call: Call) -> bool:
        return await self.background.ask_again(call) and self.cache.has_fresh(call)

    def status(self) -> ProxyStatus:
        """What this worker says about itself."""
        now_us = time.time_ns() // 1000
        runtime = self.app.runtime
        snapshot = None if runtime is None else runtime.snapshot
        return ProxyStatus(
            proxy_id=self.spool.proxy_id,
            at_us=now_us,
            snapshot_version=0 if snapshot is None else snapshot.version,
            lease_ids=() if snapshot is None else tuple(x.id for x in snapshot.leases if x.expires_us > now_us),
            breakers=self.breaker.statuses(),
            budgets=()
            if snapshot is None
            else self.ledger.budgets(snapshot.tenants, now_us=now_us, instances_max=self.settings.quota_status_max),
            calls_inflight=self.app.inflight,
            ledger_calls=self.ledger.calls,
            ledger_nanousd=self.ledger.nanousd,
            spool_bytes=self.spool.bytes_stored,
            spool_dropped=self.spool.dropped,
            calls_total=self.app.calls_total,
        )

    def _statuses(self) -> list[ProxyStatus]:
        """This worker's status, and those of the retired ones it speaks for."""
        own = self.status()
        return [own] if self.retired is None else [own, *self.retired.statuses(own)]

    async def start(self) -> None:
        """Opens the cache's disk tier and begins to talk to the control plane; calls need not wait for either.

        Only at the very first start does it wait for a snapshot, for a while: clients that connect meanwhile are answered a little later
        then, instead of being told that this worker knows nothing yet.
        """
        if self.shared is not None:
            self.shared.open()
        if not self._share.worker:
            await asyncio.to_thread(drop_caches, self.settings)
        await self.cache.open()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(keep_running(work, name=name, failed=self.metrics.loop_failed), name=name)
            for name, work in (
                ("snapshots", self.snapshots.run),
                ("shipper", self.shipper.run),
                ("status", self.reporter.run),
                *(() if self.lending is None else (("lending", self.lending.run),)),
                *(() if self.hints is None else (("hints", self.hints.run),)),
                *(() if self.retired is None else (("retired", self.retired.run),)),
                *(() if self._share.worker else (("settlement", self.settlement.run),)),
                ("promises", self.promises.run),
            )
        ]
        if self.app.runtime is None and self.settings.first_snapshot_wait_s > 0:
            await self.snapshots.first(within_s=self.settings.first_snapshot_wait_s)

    async def stop(self) -> None:
        """Ends the talk with the control plane, ships what can be shipped soon, and closes everything; safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.shadow.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHIP_AT_STOP_S):
                await self.shipper.drain()
                await self.reporter.send()
        await self.kept.aclose()
        if self.lending is not None:
            await self.lending.aclose()
        if self.shared is not None:
            await self.shared.aclose()
        await self._uplink.aclose()
        self.spool.close()
        if self.retired is not None:
            self.retired.close()


def _tasks_running() -> int:
    """Tasks of the running event loop; 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0

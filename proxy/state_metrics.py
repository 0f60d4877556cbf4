"""Prometheus metrics of what the worker remembers, read at the moment of a scrape: nothing is counted twice, nothing costs a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.ledger import Ledger
from proxy.shipper import Shipper
from proxy.snapshots import Snapshots
from proxy.spool import Spool
from proxy.status import StatusReporter
from proxy.transports.cache import Cache
from proxy.transports.coalesce import Coalesce

Line = tuple[str, str, float]  # name, help, value


class StateCollector(Collector):
    """The figures of ledger, spool, shipper, snapshots, status, cache and coalesce; register it once for each worker."""

    def __init__(
        self,
        worker: str,
        *,
        ledger: Ledger,
        spool: Spool,
        shipper: Shipper,
        snapshots: Snapshots,
        status: StatusReporter,
        cache: Cache,
        coalesce: Coalesce,
    ) -> None:
        self._worker = worker
        self._ledger = ledger
        self._spool = spool
        self._shipper = shipper
        self._snapshots = snapshots
        self._status = status
        self._cache = cache
        self._coalesce = coalesce

    def collect(self) -> Iterator[Metric]:
        """All families, each with this worker's one value."""
        for name, help_, value in (*self._record_counters(), *self._link_counters(), *self._reply_counters()):
            yield self._family(CounterMetricFamily(f"heph_proxy_{name}", help_, labels=("worker",)), value)
        for name, help_, value in (*self._record_gauges(), *self._reply_gauges()):
            yield self._family(GaugeMetricFamily(f"heph_proxy_{name}", help_, labels=("worker",)), value)

    def _family(self, family: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
        family.add_metric((self._worker,), value)
        return family

    def _record_counters(self) -> Iterable[Line]:
        ledger, spool = self._ledger, self._spool
        return (
            ("ledger_calls_total", "Calls settled by this worker since its first start.", ledger.calls),
            ("ledger_cost_nanousd_total", "Cost of those calls in nano-USD.", ledger.nanousd),
            ("ledger_tokens_total", "Tokens of those calls.", ledger.tokens),
            ("reservation_exceeded_total", "Calls that cost more than their reservation.", ledger.exceeded_total),
            (
                "spool_dropped_total",
                "Records dropped because spool or disk were full, since the first start.",
                spool.dropped,
            ),
            ("spool_dropped_nanousd_total", "Cost of the dropped records in nano-USD.", spool.dropped_nanousd),
            (
                "spool_payloads_cut_total",
                "Records stored without their payload, which made them too large.",
                spool.payloads_cut_total,
            ),
            ("spool_torn_bytes_total", "Bytes of torn records cut off at this start.", spool.torn_bytes),
            (
                "ledger_checkpoint_failures_total",
                "Checkpoints that could not be written.",
                spool.checkpoint_failures_total,
            ),
        )

    def _link_counters(self) -> Iterable[Line]:
        shipper, snapshots, status = self._shipper, self._snapshots, self._status
        return (
            ("batches_shipped_total", "Batches that the control plane has confirmed.", shipper.shipped_total),
            ("batches_shipped_bytes_total", "Bytes of those batches.", shipper.shipped_bytes_total),
            ("batch_failures_total", "Batches that must be sent again.", shipper.failures_total),
            ("batches_lost_total", "Segments that somebody took out of the spool's directory.", shipper.lost_total),
            (
                "snapshots_refused_total",
                "Snapshots refused as unreadable, uncompilable or old.",
                snapshots.refused_total,
            ),
            ("snapshot_failures_total", "Polls for a snapshot that had no answer.", snapshots.failures_total),
            ("snapshots_unsaved_total", "Snapshots in use that could not be written to disk.", snapshots.unsaved_total),
            ("status_failures_total", "Status reports that the control plane did not take.", status.failures_total),
        )

    def _reply_counters(self) -> Iterable[Line]:
        cache, coalesce, memory, disk = self._cache, self._coalesce, self._cache.memory, self._cache.disk
        lines: list[Line] = [
            ("cache_hits_memory_total", "Answers served from memory.", cache.hits_memory_total),
            ("cache_hits_disk_total", "Answers served from disk.", cache.hits_disk_total),
            ("cache_misses_total", "Look-ups without an answer in either tier.", cache.misses_total),
            ("cache_stored_total", "Answers stored.", cache.stored_total),
            ("cache_too_large_total", "Answers not stored because of their size.", cache.too_large_total),
            ("cache_memory_evicted_total", "Answers that left memory for newer ones.", memory.evicted_total),
            ("coalesced_calls_total", "Calls that joined another's flight.", coalesce.joined_total),
            ("coalesce_full_total", "Calls that went alone because too many waited on flights.", coalesce.full_total),
            ("coalesce_unjoinable_total", "Flights closed to others because of their size.", coalesce.unjoinable_total),
            ("coalesce_ejected_total", "Clients that read a shared answer too slowly.", coalesce.ejected_total),
        ]
        if disk is not None:
            lines += [
                ("cache_disk_written_total", "Answers written to disk.", disk.written_total),
                ("cache_disk_skipped_total", "Answers not written because too much waited.", disk.skipped_total),
                ("cache_disk_busy_total", "Look-ups given up because the disk was slow or busy.", disk.busy_total),
                ("cache_disk_corrupt_total", "Damaged answers found on disk.", disk.corrupt_total),
                ("cache_disk_errors_total", "Failures of the disk tier.", disk.errors_total),
            ]
        return lines

    def _record_gauges(self) -> Iterable[Line]:
        spool = self._spool
        return (
            ("spool_bytes", "Bytes in the spool, quarantine included.", spool.bytes_stored),
            ("spool_segments", "Sealed segments that wait to be shipped.", spool.segments),
            ("spool_quarantined_segments", "Segments that the control plane refused for good.", spool.quarantined),
            (
                "ledger_checkpoint_damaged",
                "1 if the ledger's checkpoint was unreadable at this start.",
                spool.checkpoint_damaged,
            ),
        )

    def _reply_gauges(self) -> Iterable[Line]:
        cache, coalesce = self._cache, self._coalesce
        lines: list[Line] = [
            ("cache_memory_bytes", "Bytes of the answers in memory.", cache.memory.bytes_used),
            ("cache_memory_entries", "Answers in memory.", len(cache.memory)),
            ("coalesce_flights", "Upstream calls that can be joined now.", coalesce.flights),
            ("coalesce_followers", "Calls that wait on others' flights now.", coalesce.followers),
            ("coalesce_buffered_bytes", "Bytes kept for those who join later.", coalesce.buffered_bytes),
        ]
        if cache.disk is not None:
            lines += [
                ("cache_disk_bytes", "Bytes of the answers on disk, as of the last write.", cache.disk.bytes_used),
                ("cache_disk_entries", "Answers known to be on disk.", len(cache.disk)),
            ]
        return lines

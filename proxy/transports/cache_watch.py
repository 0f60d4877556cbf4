"""The cache's figures, for `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from proxy.transports.cache import Cache
from proxy.transports.cache_redis import watch_redis
from proxy.transports.cache_refresh import Refreshes

Watch: TypeAlias = Callable[[str, str, Callable[[], float]], None]


def watch_cache(watch: Watch, cache: Cache, refreshes: Refreshes) -> None:
    """Shows what the cache's tiers and its background calls count."""
    memory, disk = cache.memory, cache.disk
    _watch_stale(watch, cache, refreshes)
    watch("cache_memory_hits_total", "Answers from the cache's memory.", lambda: cache.store.hits_memory_total)
    watch("cache_disk_hits_total", "Answers from the cache's disk.", lambda: cache.store.hits_disk_total)
    watch("cache_redis_hits_total", "Answers from Redis.", lambda: cache.store.hits_redis_total)
    watch_redis(watch, cache.redis)
    watch("cache_misses_total", "Look-ups that found nothing.", lambda: cache.misses_total)
    watch("cache_stored_total", "Answers stored.", lambda: cache.stored_total)
    watch("cache_too_large_total", "Answers not stored because of their size.", lambda: cache.too_large_total)
    watch("cache_memory_bytes", "Bytes of answers in memory.", lambda: memory.bytes_used)
    watch("cache_memory_evicted_total", "Answers dropped from memory to make room.", lambda: memory.evicted_total)
    repeats = cache.repeats
    watch("repeats_bytes", "Bytes of requests that are known word for word.", lambda: repeats.bytes_used)
    watch("repeats_evicted_total", "Known requests forgotten to make room.", lambda: repeats.evicted_total)
    if disk is None:
        return
    watch("cache_disk_bytes", "Bytes on the cache's disk, as of its last write.", lambda: disk.bytes_used)
    watch("cache_disk_written_total", "Answers written to disk.", lambda: disk.written_total)
    watch("cache_disk_skipped_total", "Answers not written because too much waited.", lambda: disk.skipped_total)
    watch("cache_disk_busy_total", "Reads given up because the disk was too busy.", lambda: disk.busy_total)
    watch("cache_disk_corrupt_total", "Answers on disk that were damaged.", lambda: disk.corrupt_total)
    watch("cache_disk_errors_total", "Failures of the cache's disk.", lambda: disk.errors_total)


def _watch_stale(watch: Watch, cache: Cache, refreshes: Refreshes) -> None:
    watch("cache_stale_total", "Stale answers served while they were asked anew.", lambda: cache.stale_total)
    watch(
        "cache_stale_if_error_total",
        "Stale answers served because the upstreams failed.",
        lambda: cache.stale_if_error_total,
    )
    watch("cache_negative_total", "Upstreams' refusals given again.", lambda: cache.negative_total)
    watch("cache_invalidated_total", "Stored answers found invalidated.", lambda: cache.invalidated_total)
    watch("cache_refreshes_total", "Background calls for stale answers.", lambda: refreshes.started_total)
    watch("cache_refreshes_running", "Background calls for stale answers now.", lambda: refreshes.running)
    watch("cache_refreshes_failed_total", "Background calls without a fresh answer.", lambda: refreshes.failed_total)
    watch(
        "cache_refreshes_skipped_total",
        "Stale answers not asked anew because too many were.",
        lambda: refreshes.skipped_total,
    )

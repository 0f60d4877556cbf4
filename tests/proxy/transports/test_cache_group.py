"""Tests of the cache's shared tier where Redis is a group: behind sentinels, and a cluster, both real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from controlplane.contract.proxy_settings import ProxySettings
from proxy.settings import ProxySecrets, Secret
from proxy.shared import SharedState
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_group import GroupTier, shared_tier
from proxy.transports.cache_redis import RedisTier
from tests.proxy.redis_groups import RedisCluster, RedisSentinel

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("token"))
KEYS = [b"key %d" % number for number in range(20)]


def _entry(body: bytes = b"answer", *, ttl_s: int = 60) -> CacheEntry:
    return CacheEntry("acme", time.time_ns() // 1000, ttl_s, "application/json", body=body)


@pytest.fixture(params=["sentinel", "cluster"])
async def tier(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GroupTier]:
    """A tier over one of the two."""
    group = await (RedisSentinel(tmp_path) if request.param == "sentinel" else RedisCluster(tmp_path)).start()
    url = group.url if isinstance(group, RedisSentinel) else group.url(0)
    settings = ProxySettings(redis=url, redis_timeout_s=5.0, redis_entry_bytes_max=4096)
    shared = SharedState(settings, SECRETS)
    shared.open()
    async with asyncio.timeout(30):
        await shared.ready()
    tier = shared_tier(shared, settings, SECRETS)
    assert isinstance(tier, GroupTier)
    yield tier
    await tier.aclose()
    await shared.aclose()
    group.kill()


async def test_a_group_keeps_answers_for_all_workers(tier: GroupTier) -> None:
    """Whatever node a key is on: another worker's look-up finds it, and what was never written is a miss."""
    for key in KEYS:
        tier.put(key, _entry(key))
    tier.put(b"large", _entry(b"x" * 5000))
    tier.put(b"expired", _entry(ttl_s=-1))
    await tier.flush()
    assert KEYS == [entry.body for key in KEYS if (entry := await tier.get(key)) is not None]
    assert [None] * 3 == [await tier.get(key) for key in (b"large", b"expired", b"never")]
    assert (20, 1, 1) == (tier.written_total, tier.too_large_total, tier.dropped_total)


async def test_what_lies_under_another_s_key_is_a_miss(tier: GroupTier) -> None:
    """The seal holds the key, so a value that was moved is damaged."""
    tier.put(b"mine", _entry())
    await tier.flush()
    data = await tier._shared.ask("GET", name := tier._seals.name_of(b"mine").encode(), key=name)
    assert isinstance(data, bytes)
    await tier._shared.ask("SET", other := tier._seals.name_of(b"other").encode(), data, key=other)
    assert (None, 1) == (await tier.get(b"other"), tier.damaged_total)


def test_one_server_has_connections_of_its_own() -> None:
    """The tier for one Redis is as before; without Redis there is none."""
    settings = ProxySettings(redis="redis://127.0.0.1:1/0")
    assert isinstance(shared_tier(SharedState(settings, SECRETS), settings, SECRETS), RedisTier)
    assert shared_tier(None, msgspec.structs.replace(settings, redis=None), SECRETS) is None


async def test_a_group_that_is_out_is_skipped() -> None:
    """Nothing waits: look-ups are skipped, writes dropped, and both counted."""
    settings = ProxySettings(redis="redis+cluster://127.0.0.1:1")
    tier = GroupTier(SharedState(settings, SECRETS), settings, SECRETS)
    tier.put(b"key", _entry())
    assert (True, None, 1, 1) == (tier.degraded, await tier.get(b"key"), tier.skipped_total, tier.dropped_total)
    await tier.aclose()

"""One proxy worker with a snapshot of its own and no control plane, for measuring what each feature costs.

`python -m benchmarks.worker --port P --upstream-port U [--without cache,limits] [--profile FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import time
from pathlib import Path

import structlog
import uvloop

from benchmarks.sampling import Sampler
from controlplane.contract.keys import hash_key
from controlplane.contract.pricing import Price
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import (
    Budget,
    CachePolicy,
    Deployment,
    KeyEntry,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
    Window,
)
from proxy.listening import listen, make_server
from proxy.settings import ProxySecrets, Secret
from proxy.worker import Worker

KEY = "sk-bench"
MODEL = "gpt-4o-mini"
FEATURES = ("cache", "disk", "limits", "budgets")
_PEPPER = b"\x07" * 32


def snapshot(upstream_port: int, without: frozenset[str]) -> Snapshot:
    """One tenant, one key, one model; all features on but those named."""
    limits = "limits" not in without
    tenant = TenantPolicy(
        id="bench",
        models=(MODEL,),
        requests_per_minute=100_000_000 if limits else None,
        tokens_per_minute=100_000_000_000 if limits else None,
        concurrency=20_000 if limits else None,
        budgets=()
        if "budgets" in without
        else (
            Budget("month", Window.MONTH, nanousd=10**14),
            Budget("day", Window.DAY, nanousd=10**14),
        ),
        cache=CachePolicy(enabled="cache" not in without),
    )
    price = Price(input=150_000_000, output=600_000_000, version="bench")
    deployment = Deployment(id=f"sim/{MODEL}", upstream="sim", model=MODEL, price=price)
    return Snapshot(
        version=1,
        created_us=time.time_ns() // 1000,
        tenants=(tenant,),
        keys=(KeyEntry(hash=hash_key(KEY.encode(), _PEPPER), id="key_1", tenant="bench"),),
        upstreams=(
            Upstream(
                id="sim",
                dialect="openai",
                base_url=f"http://127.0.0.1:{upstream_port}/v1",
                credential="env:UPSTREAM_KEY",
                connections_max=20_000,
            ),
        ),
        routes=(Route(alias=MODEL, deployments=(deployment,)),),
    )


async def _serve(worker: Worker, settings: ProxySettings) -> None:
    server = make_server(worker.app, settings, worker.metrics)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: setattr(server, "should_exit", True))
    await server.serve(sockets=[listen(settings)])


def main() -> None:
    """Serves until SIGUSR1; then writes the profile, if one was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--without", default="", help=f"of {', '.join(FEATURES)}, comma-separated")
    parser.add_argument(
        "--memory", type=int, default=128 << 20, help="bytes of the cache's memory; few: it fills, and spills to disk"
    )
    parser.add_argument("--profile", type=Path, help="where a profile by samples goes")
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    without = frozenset(given.without.split(","))
    settings = ProxySettings(
        port=given.port,
        data_dir=str(given.data),
        control_plane_url="http://127.0.0.1:9",
        segment_age_s=60.0,
        cache_memory_bytes=given.memory,
        cache_disk_bytes=0 if "disk" in without else ProxySettings().cache_disk_bytes,
    )
    secrets = ProxySecrets(key_pepper=Secret(_PEPPER.hex()), internal_token=Secret("bench"))
    worker = Worker(settings, secrets, environ={"UPSTREAM_KEY": "sk-bench"})
    worker.apply(snapshot(given.upstream_port, frozenset(given.without.split(","))))
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)  # as `python -m proxy` does
    sampler = Sampler() if given.profile else None
    if sampler:
        sampler.start()
        signal.signal(signal.SIGUSR2, lambda *_: sampler.clear())  # when all is warm
    uvloop.run(_serve(worker, settings))
    if sampler:
        sampler.stop()
        sampler.save(given.profile)


if __name__ == "__main__":
    main()

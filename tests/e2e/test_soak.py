"""A short soak: every kind of call with provider faults in turn, after which the proxy is as it was before.

The long one is `python -m benchmarks soak`; its result is benchmarks/results/soak.json.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.bench_soak import FAULTS, KINDS, soak
from benchmarks.processes import Measured
from benchmarks.traffic import Traffic
from tests.e2e.processes import World, eventually

SECONDS = 7.0
SERVER = "  proxy: {cache_memory_bytes: 2000000, cache_disk_bytes: 16000000, cache_entry_bytes_max: 500000}"
CATALOG = """
  - {{name: first, dialect: openai, base_url: "http://127.0.0.1:{0}/v1", credential: "env:SIM_KEY", first_byte_timeout_s: 1, idle_timeout_s: 1}}
  - {{name: second, dialect: openai, base_url: "http://127.0.0.1:{1}/v1", credential: "env:SIM_KEY", first_byte_timeout_s: 1, idle_timeout_s: 1}}
  - {{name: claude, dialect: anthropic, base_url: "http://127.0.0.1:{1}", credential: "env:SIM_KEY", first_byte_timeout_s: 1, idle_timeout_s: 1}}
breaker: {{open_s: 1}}
models:
  - name: gpt-4o-mini
    deployments: [{{upstream: first, model: gpt-4o-mini, order: 0}}, {{upstream: second, model: gpt-4o-mini, order: 1}}]
  - name: text-embedding-3-small
    deployments: [{{upstream: first, model: text-embedding-3-small}}]
  - name: claude
    deployments: [{{upstream: claude, model: claude-sonnet-4-5, price: {{input: 3, output: 15}}}}]
tenants:
  - name: acme
    limits: {{requests_per_minute: 1000000, concurrency: 2000}}
    budgets: [{{usd: 1000, window: month}}]
"""


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[World]:
    """Every protocol, bounds so low that they are reached, and upstreams that are not waited for."""
    made = World(tmp_path, server=SERVER, latency_scale=0.05)
    made.catalog = CATALOG.format(made.primary_port, made.secondary_port)
    made.write_config()
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_nothing_is_left_behind(soaked: World, measured: Callable[[str], None]) -> None:
    """No task, no socket but those that are kept for the next call, little memory; and the calls have their rows."""
    made = soaked
    proxy = Measured("proxy", made.running["proxy"])
    traffic = Traffic(f"http://127.0.0.1:{made.proxy_port}", made.key(), clients=12, pause_s=0.02, kinds=KINDS, seed=11)
    before, samples, after = asyncio.run(
        soak(
            traffic,
            proxy,
            port=made.proxy_port,
            admin_port=made.admin_port,
            seconds=SECONDS,
            fault_s=SECONDS / (2 * len(FAULTS)),
            every_s=0.5,
        )
    )
    answered = {name.split()[0] for name in traffic.counts if name.endswith(" 200")}
    assert set(KINDS) - {"leaves", "leaves_stream", "malformed", "shared"} <= answered
    assert (before.tasks, 0) == (after.tasks, after.inflight)
    assert after.files - before.files < 100  # connections to upstreams, kept for the next calls
    grown_mib = after.rss_mib - before.rss_mib
    assert grown_mib < 80
    total = sum(traffic.counts.values())
    assert len(samples) > 5
    assert total > 200
    eventually(lambda: _rows(made.sql("SELECT count() AS n FROM calls")) >= total * 0.9, what="the rows of the calls")
    measured(f"short soak: {total} calls, the proxy grew by {grown_mib:.1f} MiB")


def _rows(answer: list[dict[str, object]]) -> int:
    return int(str(answer[0]["n"]))

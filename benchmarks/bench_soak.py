"""Does anything grow? Mixed traffic with provider faults for half an hour: memory, sockets and tasks must stay flat.

The bounds of the cache and the spool are set low, so that they are reached while it warms up and what grows later is a leak. The first third
of the time warms up; the median of the second third is compared with that of the last. At the end traffic stops, and
what is left then must be what an idle proxy has.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import gateways, results
from benchmarks.processes import Measured, free_port, start, wait_for_port
from benchmarks.results import Goal
from benchmarks.traffic import Traffic

FAULTS = (
    {"kind": "outage_503", "upstream": "primary"},
    {"kind": "truncated_stream", "upstream": "primary"},
    {"kind": "rate_limited", "upstream": "secondary"},
    {"kind": "stalled_stream", "upstream": "primary"},
    {"kind": "malformed_json", "upstream": "secondary"},
    {"kind": "reset", "upstream": "primary"},
    {"kind": "outage_refused", "upstream": "primary"},
    {"kind": "slow_first_token", "upstream": "secondary"},
)
KINDS = {
    "chat": 30, "hit": 20, "stream": 15, "shared": 5, "leaves_stream": 5, "leaves": 5, "embeddings": 10, "messages": 8,
    "messages_stream": 8, "responses": 5, "responses_stream": 5, "malformed": 2,
}  # fmt: skip
RSS_GROWTH_MAX = 0.05
FILES_GROWTH_MAX = 0.10
_METRIC = re.compile(rb"^heph_proxy_(asyncio_tasks|inflight_calls)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the proxy."""

    at_s: float
    rss_mib: float
    files: int
    tasks: int  # that do not serve a call
    inflight: int


def sample(measured: Measured, port: int, *, began: float) -> Sample | None:
    """A look at a proxy of one worker; None if it does not answer just now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found = dict(_METRIC.findall(answer.read()))
    except (OSError, urllib.error.URLError):
        return None
    inflight = int(float(found[b"inflight_calls"]))
    return Sample(
        at_s=round(time.monotonic() - began, 1),
        rss_mib=round(measured.rss_bytes() / 2**20, 1),
        files=measured.files_open(),
        tasks=int(float(found[b"asyncio_tasks"])) - inflight,
        inflight=inflight,
    )


def switch(admin_port: int, fault: dict[str, str] | None) -> None:
    """Has the simulated provider show one fault, or none."""
    url = f"http://127.0.0.1:{admin_port}/_faults"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()
    if fault is not None:
        urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(fault).encode()), timeout=10).close()


async def soak(
    traffic: Traffic, measured: Measured, *, port: int, admin_port: int, seconds: float, fault_s: float, every_s: float
) -> tuple[Sample, list[Sample], Sample]:
    """The proxy at rest before, under traffic, and at rest after it.

    fault_s: how long each fault lasts; as long again there is none.
    """
    began = time.monotonic()
    before = await asyncio.to_thread(sample, measured, port, began=began)
    stop = asyncio.Event()
    running = asyncio.create_task(traffic.run(stop))
    samples: list[Sample] = []
    step = -1
    while (elapsed := time.monotonic() - began) < seconds:
        if int(elapsed / fault_s) != step:
            step = int(elapsed / fault_s)
            await asyncio.to_thread(switch, admin_port, FAULTS[step // 2 % len(FAULTS)] if step % 2 else None)
        found = await asyncio.to_thread(sample, measured, port, began=began)
        if found is not None:
            samples.append(found)
        await asyncio.sleep(every_s)
    await asyncio.to_thread(switch, admin_port, None)
    stop.set()
    await running
    after = await asyncio.to_thread(_at_rest, measured, port, began)
    if before is None or after is None:
        raise RuntimeError("the proxy did not answer")
    return before, samples, after


def _at_rest(measured: Measured, port: int, began: float) -> Sample | None:
    """A look when the last call has ended."""
    found = sample(measured, port, began=began)
    for _ in range(100):
        if found is not None and found.inflight == 0:
            break
        subprocess.run(["sleep", "0.1"], check=True)
        found = sample(measured, port, began=began)
    return found


def growth(samples: list[Sample], figure: str) -> tuple[float, float]:
    """Medians of the second and of the last third."""
    third = max(1, len(samples) // 3)
    values = [float(getattr(item, figure)) for item in samples]
    return statistics.median(values[third : 2 * third]), statistics.median(values[-third:])


def configuration(work: Path, *, port: int, proxy_port: int, provider_ports: tuple[int, int]) -> Path:
    """An installation with low bounds and every protocol."""
    openai, claude = (f"http://127.0.0.1:{number}" for number in provider_ports)
    config = work / "hephaestus.yaml"
    config.write_text(f"""
server:
  proxy_port: {proxy_port}
  port: {port}
  data_dir: {work}/data
  proxy: {{cache_memory_bytes: 4000000, cache_disk_bytes: 32000000, cache_entry_bytes_max: 1000000}}
upstreams:
  - {{name: primary, dialect: openai, base_url: "{openai}/v1", credential: "env:SIM_KEY", first_byte_timeout_s: 3, idle_timeout_s: 3}}
  - {{name: secondary, dialect: openai, base_url: "{claude}/v1", credential: "env:SIM_KEY", first_byte_timeout_s: 3, idle_timeout_s: 3}}
  - {{name: claude, dialect: anthropic, base_url: "{claude}", credential: "env:SIM_KEY", first_byte_timeout_s: 3, idle_timeout_s: 3}}
breaker: {{open_s: 2}}
models:
  - name: gpt-4o-mini
    deployments: [{{upstream: primary, model: gpt-4o-mini, order: 0}}, {{upstream: secondary, model: gpt-4o-mini, order: 1}}]
  - name: text-embedding-3-small
    deployments: [{{upstream: primary, model: text-embedding-3-small}}]
  - name: claude
    deployments: [{{upstream: claude, model: claude-sonnet-4-5, price: {{input: 3, output: 15}}}}]
tenants:
  - name: bench
    limits: {{requests_per_minute: 100000000, concurrency: 20000}}
    budgets: [{{usd: 100000, window: month}}]
""")
    return config


def main(minutes: float) -> None:
    """Soaks one worker and writes benchmarks/results/soak.json."""
    console = Console()
    work = gateways.WORK / "soak"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    provider_ports, admin = (free_port(), free_port()), free_port()
    provider = start(
        "provider",
        [
            sys.executable, "-m", "controlplane.demo.provider", "--port", str(provider_ports[0]), "--port", str(provider_ports[1]),
            "--admin-port", str(admin), "--latency-scale", "0.2",
        ],
        log=work / "provider.log",
    )  # fmt: skip
    if not wait_for_port(provider_ports[0], provider, seconds=30):
        raise RuntimeError(f"the simulated provider did not start; see {work}/provider.log")
    try:
        port, proxy_port = free_port(), free_port()
        config = configuration(work, port=port, proxy_port=proxy_port, provider_ports=provider_ports)
        gateway = gateways.installation(
            work, config, port=port, proxy_port=proxy_port, environment={"SIM_KEY": "sk-sim"}
        )
        try:
            traffic = Traffic(f"http://127.0.0.1:{proxy_port}", gateway.key, clients=24, pause_s=0.05, kinds=KINDS)
            before, samples, after = asyncio.run(
                soak(
                    traffic, gateway.measured, port=proxy_port, admin_port=admin, seconds=minutes * 60,
                    fault_s=max(2.0, minutes * 60 / 48), every_s=5.0 if minutes > 2 else 1.0,
                )
            )  # fmt: skip
        finally:
            gateway.stop()
    finally:
        provider.stop()
    results.save(
        console,
        "soak",
        command=f"python -m benchmarks soak --minutes {minutes:g}",
        figures={
            "minutes": minutes,
            "calls": sum(traffic.counts.values()),
            "ended": dict(sorted(traffic.counts.items())),
            "before": asdict(before),
            "after": asdict(after),
            "samples": [asdict(item) for item in samples[:: max(1, len(samples) // 120)]],
        },
        goals=verdicts(before, samples, after),
        shows_not="Several workers, Redis, days. Clients, provider and control plane run beside the proxy.",
    )


def verdicts(before: Sample, samples: list[Sample], after: Sample) -> list[Goal]:
    """Flat, or not."""
    goals = []
    for figure, name, most in (
        ("rss_mib", "memory, MiB", RSS_GROWTH_MAX), ("files", "files and sockets", FILES_GROWTH_MAX), ("tasks", "tasks", FILES_GROWTH_MAX),
    ):  # fmt: skip
        middle, last = growth(samples, figure)
        goals.append(
            Goal(
                f"soak: {name}, second third against last",
                f"at most {most:.0%} more",
                f"{middle:.0f}, then {last:.0f}",
                met=last <= middle * (1 + most),
            )
        )
    reached = f"{before.tasks} tasks before, {after.tasks} after; {after.inflight} calls in flight"
    goals.append(Goal("soak: at rest", "as before", reached, met=after.tasks <= before.tasks and after.inflight == 0))
    return goals

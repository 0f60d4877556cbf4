"""What each feature costs, and where the time of a call goes.

Two looks at one worker: features switched off one at a time, by CPU time per call, interleaved; and a profile by samples
of CPU time, summed up by part of the proxy, so that also what cannot be switched off has its figure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import gateways, results
from benchmarks.gateways import Gateway
from benchmarks.processes import free_port, start, wait_for_port
from benchmarks.worker import FEATURES, KEY

_TOP = 40
_PROFILED_S = 8.0  # the kernel samples a hundred times a second or a little more often
_FULL_BYTES = (
    4_000_000  # of cache memory: full after the warming up, so that answers go to disk as they do in a long run
)
VARIANTS = ("", *FEATURES, ",".join(FEATURES))

# What a module's time is spent for; the first prefix that fits counts.
PARTS = (
    ("sockets and HTTP of clients", ("proxy/server", "proxy/exchange", "proxy/outbox")),
    ("sockets and HTTP of upstreams", ("proxy/transports/connection", "proxy/transports/pool", "proxy/transports/http", "proxy/transports/upstream_stream")),
    ("authentication and labels", ("proxy/stages/identify", "proxy/stages/labels", "proxy/stages/addresses", "controlplane/contract/keys")),
    ("rate limits", ("proxy/stages/admit",)),
    ("budgets and quotas", ("proxy/stages/reserve", "proxy/stages/over", "proxy/ledger", "proxy/quotas")),
    ("reading requests and answers", ("proxy/view", "proxy/wires", "proxy/dialects", "proxy/stages/decode", "proxy/stages/guard")),
    ("routing and balancing", ("proxy/stages/route", "proxy/balance", "proxy/load", "proxy/runtime")),
    ("cache, its disk, embeddings", ("proxy/transports/cache", "proxy/transports/owners", "proxy/transports/embed", "proxy/transports/batch", "proxy/savings")),
    ("coalescing", ("proxy/transports/coalesce",)),
    ("breakers", ("proxy/transports/breaker",)),
    ("retries, fallbacks, hedges, concurrency", ("proxy/transports",)),
    ("metering", ("proxy/meter", "controlplane/contract/pricing", "controlplane/contract/records")),
    ("record to the spool", ("proxy/spool", "controlplane/contract/wire")),
    ("metrics", ("proxy/metrics",)),
    ("response headers", ("proxy/headers",)),
    ("the call's own life", ("proxy/pipeline", "proxy/app", "proxy/call", "controlplane/contract/ids")),
)  # fmt: skip


def worker(
    work: Path, upstream_port: int, *, without: str = "", profile: Path | None = None, memory: int = _FULL_BYTES
) -> Gateway:
    """A worker without a control plane; profile: where its figures go when it stops."""
    port = free_port()
    name = f"worker-{without.replace(',', '-') or 'all'}{'-profiled' if profile else ''}"
    command = [
        sys.executable, "-m", "benchmarks.worker", "--port", str(port), "--upstream-port", str(upstream_port), "--data",
        str(work / name), "--without", without, "--memory", str(memory),
    ]  # fmt: skip
    command += ["--profile", str(profile)] if profile else []
    process = start(name, command, log=work / f"{name}.log")
    if not wait_for_port(port, process, seconds=30):
        raise RuntimeError(f"the worker did not start; see {work}/{name}.log")
    return Gateway(name, port, KEY, process)


def features(work: Path, upstream_port: int, *, rounds: int, seconds: float) -> dict[str, float]:
    """CPU time of a pass-through call with all features and without each, in microseconds; medians of interleaved runs."""
    running = {variant: worker(work, upstream_port, without=variant) for variant in VARIANTS}
    samples: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    try:
        for number in range(rounds + 1):
            for variant, gateway in running.items():
                before = gateway.measured.cpu_s()
                calls = gateways.load(gateway, "--unique", "--seconds", str(seconds))["calls"]
                if number:  # the first round warms up
                    samples[variant].append((gateway.measured.cpu_s() - before) / max(1.0, calls) * 1e6)
    finally:
        for gateway in running.values():
            gateway.stop()
    return {f"without {variant}" if variant else "all": statistics.median(runs) for variant, runs in samples.items()}


def profiled(work: Path, upstream_port: int, *arguments: str) -> dict[str, object]:
    """Where the CPU time of one kind of call goes, by samples."""
    place = work / "profile.json"
    place.unlink(missing_ok=True)
    gateway = worker(work, upstream_port, profile=place)
    gateways.load(gateway, "--seconds", "1", *arguments)
    os.kill(gateway.measured.process.pid, signal.SIGUSR2)
    before = gateway.measured.cpu_s()
    figures = gateways.load(gateway, "--seconds", str(_PROFILED_S), *arguments)
    cpu_us = (gateway.measured.cpu_s() - before) / max(1.0, figures["calls"]) * 1e6
    os.kill(gateway.measured.process.pid, signal.SIGUSR1)
    gateway.measured.process.wait(20)
    by_part: Counter[str] = Counter()
    by_function: Counter[str] = Counter()
    for stack, count in json.loads(place.read_text()):
        function = _function(stack)
        by_function[function] += count
        by_part[_part(function)] += count
    total = sum(by_part.values())
    shutil.rmtree(work / gateway.name, ignore_errors=True)
    return {
        "cpu_us_per_call": round(cpu_us, 1),
        "events_per_call": round(figures["events"] / max(1.0, figures["calls"]), 1),
        "us_by_part": {name: round(count / total * cpu_us, 1) for name, count in by_part.most_common()},
        "us_by_function": {name: round(count / total * cpu_us, 2) for name, count in by_function.most_common(_TOP)},
    }


def _function(stack: list[str]) -> str:
    """The innermost function that is ours, under its module; what it calls elsewhere is its own time."""
    root = str(gateways.ROOT) + "/"
    for frame in reversed(stack):
        if frame.startswith((f"{root}proxy/", f"{root}controlplane/")):
            return frame.removeprefix(root)
    return "event loop"


def _part(function: str) -> str:
    return next((name for name, prefixes in PARTS if function.startswith(prefixes)), "event loop and everything else")


def main(*, rounds: int = 3, seconds: float = 1.5) -> None:
    """Takes both looks and writes benchmarks/results/profile.json."""
    console = Console()
    work = gateways.WORK / "profile"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    upstream = gateways.upstream(work)
    try:
        costs = features(work, upstream.port, rounds=rounds, seconds=seconds)
        profiles = {
            "pass-through": profiled(work, upstream.port, "--unique"),
            "cache hit": profiled(work, upstream.port),
            "stream": profiled(work, upstream.port, "--unique", "--stream"),
        }
    finally:
        upstream.stop()
    table = Table(title="CPU time of a pass-through call", title_justify="left")
    table.add_column("features")
    table.add_column("us", justify="right")
    for name, cost_us in costs.items():
        table.add_row(name, f"{cost_us:.0f}")
    console.print(table)
    results.save(
        console,
        "profile",
        command="python -m benchmarks profile",
        figures={"cpu_us_by_features": costs, "profiles": profiles},
        shows_not="The control plane beside the proxy. Time in the event loop's own C code counts for the function that runs next.",
    )

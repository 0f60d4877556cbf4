"""Ten thousand streams at once on two workers: is any lost, and what memory does each take? And what an event costs that comes alone.

Events come at a pace, each a write, a read and a write of its own: the dearest way, and the usual one. nginx stands beside it as the floor.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import gateways, results
from benchmarks.gateways import Gateway, Unavailable
from benchmarks.results import Goal

STREAMS = 10_000
STREAM_KIB_MAX = 60
PACE_S = 0.5
LONE_STREAMS = 1_000
LONE_PACE_S = 0.1


def many(work: Path, streams: int) -> dict[str, float]:
    """All streams at once through two workers."""
    upstream = gateways.upstream(work, pace_s=PACE_S)
    gateway = gateways.hephaestus(work, upstream.port, workers=2)
    try:
        idle, cpu_s = gateway.measured.rss_bytes(), gateway.measured.cpu_s()
        load = subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.load", "--port", str(gateway.port), "--key", gateway.key, "--connections",
                str(streams), "--calls", str(streams), "--seconds", "240", "--stream", "--unique",
            ],
            stdout=subprocess.PIPE, cwd=gateways.ROOT,
        )  # fmt: skip
        peak = idle
        while load.poll() is None:
            peak = max(peak, gateway.measured.rss_bytes())
            subprocess.run(["sleep", "0.5"], check=True)
        figures: dict[str, float] = json.loads(load.stdout.read() if load.stdout else b"{}")
        figures["cpu_us_per_event"] = (gateway.measured.cpu_s() - cpu_s) / max(1, figures["events"]) * 1e6
    finally:
        gateway.stop()
        upstream.stop()
    figures["streams"] = streams
    figures["lost"] = streams - figures["calls"]
    figures["rss_kib_per_stream"] = (peak - idle) / streams / 1024
    return figures


def lone_events(work: Path, console: Console, *, rounds: int) -> dict[str, float]:
    """CPU time of an event that comes alone, in microseconds, by gateway."""
    upstream = gateways.upstream(work, pace_s=LONE_PACE_S)
    running: dict[str, Gateway] = {}
    samples: dict[str, list[float]] = {}
    try:
        for name in ("nginx", "hephaestus"):
            try:
                running[name] = gateways.PEERS[name](work, upstream.port)
            except Unavailable as reason:
                console.print(f"[yellow]left out:[/] {reason}")
        for _ in range(rounds):
            for name, gateway in running.items():
                before = gateway.measured.cpu_s()
                count = str(LONE_STREAMS)
                figures = gateways.load(
                    gateway, "--connections", count, "--calls", count, "--seconds", "60", "--stream", "--unique"
                )
                spent_s = gateway.measured.cpu_s() - before
                samples.setdefault(name, []).append(spent_s / max(1, figures["events"]) * 1e6)
    finally:
        for gateway in running.values():
            gateway.stop()
        upstream.stop()
    return {name: statistics.median(runs) for name, runs in samples.items()}


def main(streams: int = STREAMS, *, rounds: int = 2) -> None:
    """Takes both looks and writes benchmarks/results/streams.json."""
    console = Console()
    work = gateways.WORK / "streams"
    shutil.rmtree(work, ignore_errors=True)
    for part in ("many", "lone"):
        (work / part).mkdir(parents=True)
    figures = many(work / "many", streams)
    lone = lone_events(work / "lone", console, rounds=rounds)
    lost, each_kib, ours = figures["lost"], figures["rss_kib_per_stream"], lone["hephaestus"]
    floor = f"; nginx {lone['nginx']:.0f} us" if "nginx" in lone else ""
    results.save(
        console,
        "streams",
        command="python -m benchmarks streams",
        figures={"many": figures, "cpu_us_per_lone_event": lone},
        goals=[
            Goal(f"{streams} concurrent streams on two workers, lost", "none", f"{lost:.0f}", met=lost == 0),
            Goal(
                "memory of each stream",
                f"under {STREAM_KIB_MAX} KiB",
                f"{each_kib:.0f} KiB",
                met=each_kib < STREAM_KIB_MAX,
            ),
            Goal(
                "stream: CPU time of an event that comes alone",
                "at most 10 us",
                f"{ours:.0f} us{floor}",
                met=ours <= 10,
            ),
        ],
        shows_not="Slow clients and networks. At once are as many streams as `active_max` says, each with the events of the others between its own.",
    )

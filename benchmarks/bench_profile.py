"""What each feature costs, and where the time of a call goes.

Two looks at one worker: features switched off one at a time, by CPU time per call, interleaved; and cProfile's figures by module and by
function. A profile makes Python's own calls look dearer than they are, so its shares are shares and not microseconds.
"""

from __future__ import annotations

import json
import os
import pstats
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import gateways, results
from benchmarks.processes import Measured, free_port, start, wait_for_port
from benchmarks.worker import FEATURES, KEY

_TOP = 40
VARIANTS = ("", *FEATURES, ",".join(FEATURES))


def worker(work: Path, upstream_port: int, *, without: str = "", profile: Path | None = None) -> tuple[int, Measured]:
    """A worker without a control plane; profile: where its figures go when it stops."""
    port = free_port()
    name = f"worker-{without.replace(',', '-') or 'all'}{'-profiled' if profile else ''}"
    command = [
        sys.executable, "-m", "benchmarks.worker", "--port", str(port), "--upstream-port", str(upstream_port), "--data",
        str(work / name), "--without", without,
    ]  # fmt: skip
    command += ["--profile", str(profile)] if profile else []
    process = start(name, command, log=work / f"{name}.log")
    if not wait_for_port(port, process, seconds=30):
        raise RuntimeError(f"the worker did not start; see {work}/{name}.log")
    return port, process


def load(port: int, *arguments: str) -> dict[str, float]:
    """One run of the load generator."""
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--key", KEY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=gateways.ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def features(work: Path, upstream_port: int, *, rounds: int, seconds: float) -> dict[str, float]:
    """CPU time of a pass-through call with all features and without each, in microseconds; medians of interleaved runs."""
    running = {variant: worker(work, upstream_port, without=variant) for variant in VARIANTS}
    samples: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    try:
        for number in range(rounds + 1):
            for variant, (port, process) in running.items():
                before = process.cpu_s()
                calls = load(port, "--unique", "--seconds", str(seconds))["calls"]
                if number:  # the first round warms up
                    samples[variant].append((process.cpu_s() - before) / max(1.0, calls) * 1e6)
    finally:
        for _, process in running.values():
            process.stop()
    return {f"without {variant}" if variant else "all": statistics.median(runs) for variant, runs in samples.items()}


def profiled(work: Path, upstream_port: int, *arguments: str) -> dict[str, object]:
    """cProfile's figures of one kind of call."""
    place = work / "profile.out"
    place.unlink(missing_ok=True)
    port, process = worker(work, upstream_port, profile=place)
    load(port, "--seconds", "30", "--calls", "3000", *arguments)
    os.kill(process.process.pid, signal.SIGUSR1)
    process.process.wait(20)
    by_module: dict[str, float] = {}
    rows: list[tuple[float, int, str]] = []
    # pstats keeps its figures in an attribute that its type stubs leave out
    for (file, _, function), (_, calls, own_s, _, _) in pstats.Stats(str(place)).stats.items():  # type: ignore[attr-defined]
        module = _module(file)
        by_module[module] = by_module.get(module, 0.0) + own_s
        rows.append((own_s, calls, f"{module}:{function}"))
    total = sum(by_module.values())
    rows.sort(reverse=True)
    return {
        "share_by_module": {
            name: round(own_s / total, 4) for name, own_s in sorted(by_module.items(), key=lambda item: -item[1])[:25]
        },
        "functions": [
            {"function": name, "share": round(own_s / total, 4), "calls_per_call": round(calls / 3000, 1)}
            for own_s, calls, name in rows[:_TOP]
        ],
    }


def _module(file: str) -> str:
    for root in (str(gateways.ROOT) + "/", f"{sys.prefix}/lib/"):
        if file.startswith(root):
            return file.removeprefix(root)
    return "C" if file.startswith("~") else Path(file).name


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
    saved = results.save(
        "profile",
        command="python -m benchmarks.bench_profile",
        figures={"cpu_us_by_features": costs, "profiles": profiles},
        shows_not="What metrics, the spool, the breaker and coalescing cost by themselves: they cannot be switched off; see the profiles.",
    )
    console.print(f"written: {saved.relative_to(gateways.ROOT)}")


if __name__ == "__main__":
    main()

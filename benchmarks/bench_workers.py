"""What a second worker adds.

On the two cores that everybody has, two workers, the upstream and the load cannot all run at once, so calls per second say what the machine
can do and not what the workers could. What workers of one machine may cost each other shows in CPU time: the same call on two workers must
not be dearer than on one, and connections must be spread evenly, for the busiest worker is full first. So

    scaling = CPU time per call with one worker / (CPU time of the busiest of two / calls of both)

is what two workers carry on cores of their own, in units of one worker, with as many connections each. Calls per second of this machine stand beside it.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from rich.console import Console

from benchmarks import gateways, results
from benchmarks.gateways import Gateway
from benchmarks.results import Goal

SCALING_MIN = 1.8
CONNECTIONS = 256  # for each worker; the kernel spreads them by chance, and more of them more evenly


def one_run(gateway: Gateway, seconds: float, *, workers: int) -> dict[str, float]:
    """One run against one gateway, with the CPU time of its busiest process."""
    before = gateway.measured.cpu_s_by_process()
    figures = gateways.load(gateway, "--connections", str(CONNECTIONS * workers), "--seconds", str(seconds), "--unique")
    after = gateway.measured.cpu_s_by_process()
    spent = [after[pid] - before.get(pid, 0.0) for pid in after]
    figures["cpu_us_per_call"] = sum(spent) / figures["calls"] * 1e6
    figures["busiest_us_per_call"] = max(spent) / figures["calls"] * 1e6
    return figures


def main(*, rounds: int = 4, seconds: float = 2.5) -> None:
    """Compares one worker with two, interleaved, and writes benchmarks/results/workers.json."""
    console = Console()
    work = gateways.WORK / "workers"
    shutil.rmtree(work, ignore_errors=True)
    running: dict[int, Gateway] = {}
    samples: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    (work / "upstream").mkdir(parents=True)
    upstream = gateways.upstream(work / "upstream")
    try:
        for workers in samples:
            place: Path = work / str(workers)
            place.mkdir()
            running[workers] = gateways.hephaestus(place, upstream.port, workers=workers)
            one_run(running[workers], 2.0, workers=workers)
        for _ in range(rounds):
            for workers, gateway in running.items():
                samples[workers].append(one_run(gateway, seconds, workers=workers))
    finally:
        for gateway in running.values():
            gateway.stop()
        upstream.stop()
    figures = {
        str(workers): {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for workers, runs in samples.items()
    }
    scaling = figures["1"]["cpu_us_per_call"] / figures["2"]["busiest_us_per_call"]
    together = figures["2"]["calls_per_s"] / figures["1"]["calls_per_s"]
    reached = f"{scaling:.2f} by CPU time; {together:.2f} in calls per second where load and upstream take part of the same cores"
    results.save(
        console,
        "workers",
        command="python -m benchmarks workers",
        figures={"workers": figures, "scaling": scaling},
        goals=[Goal("two workers, times one", f"at least {SCALING_MIN}", reached, met=scaling >= SCALING_MIN)],
        shows_not="Cores of their own for each worker, and what they share beyond one machine (memory bandwidth, Redis).",
    )

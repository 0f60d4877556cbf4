"""What a second worker adds.

On the two cores that everybody has, two workers, the upstream and the load cannot all run at once, so calls per second say what the machine
can do and not what the workers could. What workers of one installation cost each other shows in CPU time: a call must not be dearer than on
proxies that have nothing to do with each other, and connections must be spread evenly, for the busiest worker is full first. So

    scaling = CPU time per call on one worker / CPU time per call on two workers / largest part of the connections

(the first quotient at most one: what is above it is chance)

is what two workers carry on cores of their own, in units of one worker, with as many connections each.

Processes that take turns on a core find its caches cold, and calls are dearer for that, which two workers on cores of their own would not be.
So the same is shown beside two proxies that have nothing to do with each other and share the core as the workers do (`apart`): all
workers and proxies run on one core, the load and the upstream on the other, so that both pairs are equally busy and equally disturbed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from benchmarks import gateways, results
from benchmarks.gateways import Gateway
from benchmarks.results import Goal

SCALING_MIN = 1.8
CONNECTIONS = 256  # for each worker; the kernel spreads them by chance, and more of them more evenly


def one_run(proxies: list[Gateway], seconds: float, *, connections: int) -> dict[str, float]:
    """One run against all of some proxies at once, with their CPU time and what part of all connections the busiest process had."""
    held: list[int] = []

    def look() -> None:
        time.sleep(seconds / 2)
        held.extend(count for one in proxies for count in one.measured.connections_by_process(one.port).values())

    def run(proxy: Gateway) -> dict[str, float]:
        return gateways.load(
            proxy, "--connections", str(connections // len(proxies)), "--seconds", str(seconds), "--unique"
        )

    before = sum(one.measured.cpu_s() for one in proxies)
    with ThreadPoolExecutor(len(proxies) + 1) as threads:
        looked = threads.submit(look)
        runs = list(threads.map(run, proxies))
        looked.result()
    calls = sum(figures["calls"] for figures in runs)
    return {
        "calls_per_s": sum(figures["calls_per_s"] for figures in runs),
        "errors": sum(figures["errors"] for figures in runs),
        "cpu_us_per_call": (sum(one.measured.cpu_s() for one in proxies) - before) / calls * 1e6,
        "largest_part": max(held) / sum(held),
    }


def main(*, rounds: int = 6, seconds: float = 2.0) -> None:
    """Compares one worker, two proxies and two workers, interleaved, and writes benchmarks/results/workers.json."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:2] or cores)  # and so all that is started here
    try:
        _compare(cores, rounds=rounds, seconds=seconds)
    finally:
        os.sched_setaffinity(0, cores)


def _compare(cores: list[int], *, rounds: int, seconds: float) -> None:
    console = Console()
    work = gateways.WORK / "workers"
    shutil.rmtree(work, ignore_errors=True)
    (work / "upstream").mkdir(parents=True)
    upstream = gateways.upstream(work / "upstream")
    started: list[Gateway] = []
    try:
        for name, workers in (("one", 1), ("other", 1), ("two", 2)):
            place: Path = work / name
            place.mkdir()
            started.append(gateways.hephaestus(place, upstream.port, workers=workers))
            if len(cores) > 1:
                started[-1].measured.pin(cores[0])
        one, other, two = started
        setups = {"1": [one], "apart": [one, other], "2": [two]}
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in setups}
        for number in range(rounds + 1):
            for name, proxies in setups.items():
                figures = one_run(proxies, seconds, connections=CONNECTIONS * (1 if name == "1" else 2))
                if number:  # the first round warms up
                    samples[name].append(figures)
    finally:
        for gateway in started:
            gateway.stop()
        upstream.stop()
    _save(console, samples)


def _save(console: Console, samples: dict[str, list[dict[str, float]]]) -> None:
    figures = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in samples.items()
    }
    part = figures["2"]["largest_part"]
    alone_us, apart_us, two_us = (figures[name]["cpu_us_per_call"] for name in ("1", "apart", "2"))
    scaling = min(1.0, alone_us / two_us) / part
    beside = min(1.0, apart_us / two_us) / part  # what is cheaper than proxies apart is chance
    reached = (
        f"{scaling:.2f} by CPU time and connections: {two_us:.0f} us for a call, {alone_us:.0f} on one worker that has the core to itself; "
        f"{beside:.2f} against two proxies that share the core, {apart_us:.0f} us; {part:.0%} of the connections on the busier worker"
    )
    results.save(
        console,
        "workers",
        command="python -m benchmarks workers",
        figures={"workers": figures, "scaling": scaling, "scaling_beside_strangers": beside},
        goals=[Goal("two workers, times one", f"at least {SCALING_MIN}", reached, met=scaling >= SCALING_MIN)],
        shows_not="Cores of their own for each worker, and what workers then share of the machine (memory bandwidth), and Redis.",
    )

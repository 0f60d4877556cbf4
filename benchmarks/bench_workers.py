"""What a second worker adds: calls per second on two cores with two workers, beside one core with one worker.

Load, upstream and control plane need the machine as well, and where workers share the cores with them as it comes, calls per second say how
the kernel dealt out two cores and not what the workers could. So whatever stands on the first core stands on the second as well:

- one core: a worker, an upstream and a generator of load; the control plane of the installation shares it;
- two cores: two workers of one installation, two upstreams and two generators, one of each on either core; the control plane runs on both.

The load's connections go to either worker, as the kernel deals them out, and cross the cores as those of agents would. What workers of an
installation have in common (its files, limits and data folder, the memory of the machine, a worker that got more connections than the other)
makes two less than twice one, and shows.
"""

from __future__ import annotations

import os
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import gateways, results
from benchmarks.gateways import Gateway
from benchmarks.results import Goal

SCALING_MIN = 1.8
CONNECTIONS = 128  # for each worker; the kernel spreads them by chance, and more of them more evenly

Figures = dict[str, float]


def one_run(installation: Gateway, upstreams: list[Gateway], cores: list[int], seconds: float) -> Figures:
    """One run against an installation whose workers, upstreams and generators stand one on each of some cores."""
    for upstream, core in zip(upstreams, cores * len(upstreams), strict=False):
        upstream.measured.pin({core})
    share = CONNECTIONS * len(cores) // len(upstreams)

    def run(core: int) -> Figures:
        os.sched_setaffinity(0, {core})  # of this thread, and so of the generator that it starts
        arguments = ("--connections", str(share), "--seconds", str(seconds), "--unique")
        return gateways.load(installation, *arguments)

    before, behind = installation.measured.cpu_s(), installation.also[0].cpu_s()
    with ThreadPoolExecutor(len(upstreams)) as threads:  # as many generators as upstreams, whatever the number of cores
        runs = list(threads.map(run, (cores * len(upstreams))[: len(upstreams)]))
    calls = sum(figures["calls"] for figures in runs)
    return {
        "calls_per_s": sum(figures["calls_per_s"] for figures in runs),
        "errors": sum(figures["errors"] for figures in runs),
        "cpu_us_per_call": (installation.measured.cpu_s() - before) / calls * 1e6,
        "control_plane_us_per_call": (installation.also[0].cpu_s() - behind) / calls * 1e6,
    }


def main(*, rounds: int = 7, seconds: float = 3.0) -> None:
    """Compares one worker on one core with two on two, interleaved, and writes benchmarks/results/workers.json."""
    console = Console()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        console.print("[yellow]left out:[/] two workers are compared on two cores, and this machine has one")
        return
    work = gateways.WORK / "workers"
    shutil.rmtree(work, ignore_errors=True)
    upstreams: list[Gateway] = []
    installations: list[Gateway] = []
    try:
        for number in range(2):
            place = _made(work / f"upstream{number}")
            upstreams.append(gateways.upstream(place, port=upstreams[0].port if upstreams else 0))
        for workers in (1, 2):
            place = _made(work / f"workers{workers}")
            installations.append(gateways.hephaestus(place, upstreams[0].port, workers=workers))
        one, two = installations
        one.measured.pin(set(cores[:1]))
        one.also[0].pin(set(cores[:1]))
        two.measured.spread(cores)
        samples: dict[str, list[Figures]] = {"1": [], "2": []}
        for number in track(range(rounds + 1), "measuring", console=console):
            for name, installation in (("1", one), ("2", two)):
                figures = one_run(installation, upstreams, cores[: int(name)], seconds)
                if number:  # the first round warms up
                    samples[name].append(figures)
    finally:
        for gateway in (*installations, *upstreams):
            gateway.stop()
    _save(console, samples)


def _made(place: Path) -> Path:
    place.mkdir(parents=True)
    return place


def _save(console: Console, samples: dict[str, list[Figures]]) -> None:
    figures = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in samples.items()
    }
    pairs = zip(samples["1"], samples["2"], strict=True)
    scaling = statistics.median(two["calls_per_s"] / one["calls_per_s"] for one, two in pairs)
    one, two = figures["1"], figures["2"]
    reached = (
        f"{scaling:.2f} ({two['calls_per_s']:.0f} calls/s on two cores, {one['calls_per_s']:.0f} on one; "
        f"{two['cpu_us_per_call']:.0f} and {one['cpu_us_per_call']:.0f} us for a call)"
    )
    results.save(
        console,
        "workers",
        command="python -m benchmarks workers",
        figures={"workers": figures, "scaling": scaling},
        goals=[
            Goal(
                "two workers on two cores, times one on one",
                f"at least {SCALING_MIN}",
                reached,
                met=scaling >= SCALING_MIN,
            )
        ],
        shows_not="More than two workers, several machines, and Redis.",
    )

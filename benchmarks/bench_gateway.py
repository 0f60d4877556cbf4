"""CPU time per call, throughput and added latency of the gateways, measured in one run, interleaved.

CPU time per call (user and system time of the gateway's process tree divided by completed calls) is the steadiest figure on a shared
machine; goals are ratios of it between gateways of the same run. Added latency is looked at where it matters: at 30 % of what one worker
can do, calls paced and not in a closed loop, less the latency of direct calls at the same pace.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import gateways, results
from benchmarks.gateways import Gateway, Unavailable
from benchmarks.results import Goal

LITELLM_SHARE_MAX = 1 / 50
PORTKEY_SHARE_MAX = 1 / 6
NGINX_TIMES_MAX = 8
HIT_SHARE_MAX = 1 / 2
EVENT_US_MAX = 10
LOAD_SHARE = 0.3
ADDED_P50_MS_MAX = 0.3
ADDED_P99_MS_MAX = 1.5
_STREAMING = frozenset(
    ("direct", "nginx", "hephaestus", "litellm")
)  # Portkey 1.15.2 answers streams of this upstream with 500
_PACED = frozenset(("direct", "nginx", "hephaestus"))  # the others cannot take this pace

Figures = dict[str, float]
Rows = dict[str, Figures]  # by gateway


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load."""

    name: str
    connections: int
    stream: bool
    unique: bool
    only: frozenset[str] = frozenset()  # empty: all gateways


SCENARIOS = (
    Scenario("pass-through", 32, stream=False, unique=True),
    Scenario("pass-through, 1 connection", 1, stream=False, unique=True),
    Scenario("cache hit", 32, stream=False, unique=False, only=frozenset({"hephaestus"})),
    Scenario("cache hit, 1 connection", 1, stream=False, unique=False, only=frozenset({"hephaestus"})),
    Scenario("stream", 32, stream=True, unique=True, only=_STREAMING),
)
_PACED_TIMES = (
    3  # as many rounds: one moment in which the machine is somebody else's is the worst hundredth of a whole run
)
_AT_30 = Scenario("pass-through, 30 % load", 32, stream=False, unique=True, only=_PACED)


def one_run(gateway: Gateway, scenario: Scenario, seconds: float, *, rate: float = 0.0) -> Figures:
    """One run of the load generator against one gateway, with the gateway's CPU time beside it."""
    arguments = ["--seconds", str(seconds), "--connections", str(scenario.connections), "--rate", str(rate)]
    arguments += ["--stream"] if scenario.stream else []
    arguments += ["--unique"] if scenario.unique else []
    before = gateway.measured.cpu_s()
    figures = gateways.load(gateway, *arguments)
    cpu_s = gateway.measured.cpu_s() - before
    figures["cpu_us_per_call"] = cpu_s / max(1.0, figures["calls"]) * 1e6
    figures["cpu_share"] = cpu_s / figures["seconds"]
    if figures["events"]:
        figures["cpu_us_per_event"] = cpu_s / figures["events"] * 1e6
    figures["rss_mib"] = gateway.measured.rss_bytes() / 2**20
    return figures


def start_all(work: Path, console: Console) -> dict[str, Gateway]:
    """All gateways that can be had here; a peer that cannot is named and left out."""
    direct = gateways.upstream(work)
    running = {"direct": direct}
    for name, make in gateways.PEERS.items():
        try:
            running[name] = make(work, direct.port)
            gateways.until_ready(running[name])
        except Unavailable as reason:
            console.print(f"[yellow]left out:[/] {reason}")
    return running


def measure(running: dict[str, Gateway], *, rounds: int, seconds: float) -> dict[str, Rows]:
    """Medians over interleaved rounds: figures[scenario][gateway][figure]."""
    samples: dict[tuple[str, str], list[Figures]] = {}
    plan = [(s, n) for _ in range(rounds) for s in SCENARIOS for n in running if not s.only or n in s.only]
    paced = [(_AT_30, n) for _ in range(rounds * _PACED_TIMES) for n in running if n in _PACED]
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(plan) + len(paced))
        for scenario, name in plan:
            progress.update(task, description=f"{scenario.name}: {name}")
            samples.setdefault((scenario.name, name), []).append(one_run(running[name], scenario, seconds))
            progress.advance(task)
        busy = [run["calls_per_s"] for run in samples["pass-through", "hephaestus"]]
        rate = LOAD_SHARE * statistics.median(busy)
        for scenario, name in paced:
            progress.update(task, description=f"{scenario.name}: {name}")
            run = one_run(running[name], scenario, seconds, rate=rate)
            samples.setdefault((scenario.name, name), []).append(run)
            progress.advance(task)
    figures: dict[str, Rows] = {}
    for (scenario_name, name), runs in samples.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        medians["errors"] = sum(run["errors"] for run in runs)
        figures.setdefault(scenario_name, {})[name] = medians
    return figures


def verdicts(figures: dict[str, Rows]) -> list[Goal]:
    """The goals, each with what was reached."""
    passing = {name: row["cpu_us_per_call"] for name, row in figures["pass-through"].items()}
    ours, hit = passing["hephaestus"], figures["cache hit"]["hephaestus"]["cpu_us_per_call"]
    goals = [
        Goal(f"pass-through: CPU time per call, share of {label}'s", f"at most 1/{1 / most:.0f}",
             f"1/{passing[name] / ours:.0f} ({ours:.0f} of {passing[name]:.0f} us)", met=ours <= most * passing[name])
        for name, label, most in (("litellm", "LiteLLM", LITELLM_SHARE_MAX), ("portkey", "Portkey", PORTKEY_SHARE_MAX))
        if name in passing
    ]  # fmt: skip
    if "nginx" in passing:
        reached = f"{ours / passing['nginx']:.1f} ({ours:.0f} against {passing['nginx']:.0f} us)"
        met = ours <= NGINX_TIMES_MAX * passing["nginx"]
        goals.append(
            Goal("pass-through: CPU time per call, times nginx's", f"at most {NGINX_TIMES_MAX}", reached, met=met)
        )
    goals.append(
        Goal("cache hit: share of pass-through", "at most 1/2", f"{hit / ours:.2f} ({hit:.0f} us)",
             met=hit <= HIT_SHARE_MAX * ours)
    )  # fmt: skip
    event_us = figures["stream"]["hephaestus"]["cpu_us_per_event"]
    goals.append(
        Goal("stream: CPU time per event, 32 connections", f"at most {EVENT_US_MAX} us", f"{event_us:.1f} us",
             met=event_us <= EVENT_US_MAX)
    )  # fmt: skip
    return goals + _latency(figures[_AT_30.name])


def _latency(rows: Rows) -> list[Goal]:
    """What nginx adds stands beside it: what a machine takes to wake up a process is in both."""
    goals = []
    through = rows["hephaestus"]
    for quantile, most in (("p50_ms", ADDED_P50_MS_MAX), ("p99_ms", ADDED_P99_MS_MAX)):
        added = {name: row[quantile] - rows["direct"][quantile] for name, row in rows.items()}
        beside = f" (nginx {added['nginx']:.2f} ms)" if "nginx" in added else ""
        name = f"added latency at 30 % load ({through['calls_per_s']:.0f} calls/s), {quantile[:3]}"
        reached = f"{added['hephaestus']:.2f} ms{beside}"
        goals.append(Goal(name, f"at most {most} ms", reached, met=added["hephaestus"] <= most))
    return goals


def show(console: Console, figures: dict[str, Rows]) -> None:
    """Prints the tables."""
    for scenario, rows in figures.items():
        table = Table(title=scenario, title_justify="left")
        for heading in ("gateway", "CPU us/call", "calls/s", "p50 ms", "p99 ms", "RSS MiB", "errors"):
            table.add_column(heading, justify="left" if heading == "gateway" else "right")
        for name, row in rows.items():
            table.add_row(
                name, f"{row['cpu_us_per_call']:.0f}", f"{row['calls_per_s']:.0f}", f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}", f"{row['rss_mib']:.0f}", f"{row['errors']:.0f}",
            )  # fmt: skip
        console.print(table)


def main(*, rounds: int = 3, seconds: float = 2.0) -> None:
    """Runs the whole comparison and writes benchmarks/results/gateway.json."""
    console = Console()
    work = gateways.WORK / "gateway"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    running = start_all(work, console)
    try:
        for gateway in running.values():  # warm up: imports, caches and pools
            one_run(gateway, SCENARIOS[0], 2.0)
        figures = measure(running, rounds=rounds, seconds=seconds)
    finally:
        for gateway in running.values():
            gateway.stop()
    show(console, figures)
    results.save(
        console,
        "gateway",
        command="python -m benchmarks gateway",
        figures={"rounds": rounds, "seconds": seconds, "scenarios": figures},
        goals=verdicts(figures),
        shows_not="Networks, TLS, large bodies and real providers' latency; all processes share one machine with the load generator.",
    )

"""CPU time per call, throughput and added latency of the gateways, measured in one run, interleaved.

CPU time per call (user and system time of the gateway's process tree divided by completed calls) is the steadiest figure on a shared
machine; goals are ratios of it between gateways of the same run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import gateways, results
from benchmarks.gateways import Gateway, Unavailable

LITELLM_SHARE_MAX = 1 / 30
NGINX_TIMES_MAX = 12


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
    Scenario("stream", 32, stream=True, unique=True),
    Scenario("stream, 1 connection", 1, stream=True, unique=True),
)


def one_run(gateway: Gateway, scenario: Scenario, seconds: float) -> dict[str, float]:
    """One run of the load generator against one gateway, with the gateway's CPU time beside it."""
    command = [
        sys.executable, "-m", "benchmarks.load", "--port", str(gateway.port), "--key", gateway.key, "--seconds", str(seconds),
        "--connections", str(scenario.connections),
    ]  # fmt: skip
    command += ["--stream"] if scenario.stream else []
    command += ["--unique"] if scenario.unique else []
    before = gateway.measured.cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=gateways.ROOT)
    cpu_s = gateway.measured.cpu_s() - before
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_us_per_call"] = cpu_s / max(1.0, figures["calls"]) * 1e6
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


def measure(running: dict[str, Gateway], *, rounds: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over interleaved rounds: figures[scenario][gateway][figure]."""
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    plan = [(s, n) for _ in range(rounds) for s in SCENARIOS for n in running if not s.only or n in s.only]
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(plan))
        for scenario, name in plan:
            progress.update(task, description=f"{scenario.name}: {name}")
            samples.setdefault((scenario.name, name), []).append(one_run(running[name], scenario, seconds))
            progress.advance(task)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (scenario_name, name), runs in samples.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        medians["errors"] = sum(run["errors"] for run in runs)
        figures.setdefault(scenario_name, {})[name] = medians
    return figures


def verdicts(figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, object]]:
    """The goals, each with what was reached."""
    passing = {name: row["cpu_us_per_call"] for name, row in figures["pass-through"].items()}
    ours = passing["hephaestus"]
    goals: dict[str, dict[str, object]] = {}
    if "litellm" in passing:
        share = ours / passing["litellm"]
        goals["CPU time per call, share of LiteLLM's (goal: at most 1/30)"] = {
            "reached": f"1/{1 / share:.0f}",
            "met": share <= LITELLM_SHARE_MAX,
        }
    if "nginx" in passing:
        times = ours / passing["nginx"]
        goals["CPU time per call, times nginx's (goal: at most 12)"] = {
            "reached": f"{times:.1f}",
            "met": times <= NGINX_TIMES_MAX,
        }
    hit = figures["cache hit"]["hephaestus"]["cpu_us_per_call"]
    goals["cache hit cheaper than pass-through"] = {"reached": f"{hit:.0f} us against {ours:.0f} us", "met": hit < ours}
    return goals


def show(
    console: Console, figures: dict[str, dict[str, dict[str, float]]], goals: dict[str, dict[str, object]]
) -> None:
    """Prints the tables."""
    for scenario, rows in figures.items():
        table = Table(title=scenario, title_justify="left")
        for heading in (
            "gateway",
            "CPU us/call",
            "calls/s",
            "p50 ms",
            "p99 ms",
            "first byte p50 ms",
            "RSS MiB",
            "errors",
        ):
            table.add_column(heading, justify="left" if heading == "gateway" else "right")
        for name, row in rows.items():
            table.add_row(
                name, f"{row['cpu_us_per_call']:.0f}", f"{row['calls_per_s']:.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}",
                f"{row['first_byte_p50_ms']:.2f}", f"{row['rss_mib']:.0f}", f"{row['errors']:.0f}",
            )  # fmt: skip
        console.print(table)
    for goal, verdict in goals.items():
        console.print(f"{'[green]met[/]   ' if verdict['met'] else '[red]missed[/]'} {goal}: {verdict['reached']}")


def main(*, rounds: int = 3, seconds: float = 3.0) -> None:
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
    goals = verdicts(figures)
    show(console, figures, goals)
    saved = results.save(
        "gateway",
        command="make bench",
        figures={"rounds": rounds, "seconds": seconds, "scenarios": figures, "goals": goals},
        shows_not="Networks, TLS, large bodies and real providers' latency; all processes share one machine with the load generator.",
    )
    console.print(f"written: {saved.relative_to(gateways.ROOT)}")


if __name__ == "__main__":
    main()

"""Which server and which HTTP client: the same bare gateway on each of them, side by side (decision 0009).

granian and pyreqwest are not among our dependencies: they are installed into an environment of this benchmark's own, and left out, with a
line that says so, where they cannot be had.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import gateways, results
from benchmarks.processes import Measured, free_port, start, wait_for_port

EXTRAS = {"granian": "granian==2.8.7", "pyreqwest": "pyreqwest==0.15.1"}
# Servers are compared without an upstream, clients on the server that we use and on uvicorn.
PAIRS = (
    ("own", "none"),
    ("uvicorn", "none"),
    ("granian-asgi", "none"),
    ("granian-rsgi", "none"),
    ("own", "own"),
    ("uvicorn", "own"),
    ("own", "pyreqwest"),
    ("own", "aiohttp"),
    ("own", "httpx"),
)


def environment(console: Console) -> tuple[Path, set[str]]:
    """A Python that sees our own packages and the extras, and the names of the extras that could not be had."""
    home = gateways.WORK / "choices"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    site = next((home / "lib").glob("python*")) / "site-packages"
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    missing: set[str] = set()
    for name, requirement in EXTRAS.items():
        if (site / name).exists():
            continue
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", requirement], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            console.print(f"[yellow]left out:[/] {name}: cannot be installed here ({done.stderr.strip()[-200:]})")
            missing.add(name)
    return python, missing


def one_run(port: int, measured: Measured, seconds: float) -> dict[str, float]:
    """One run of the load generator, with the CPU time of the process under load."""
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--seconds", str(seconds), "--unique"]
    before = measured.cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=gateways.ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_us_per_call"] = (measured.cpu_s() - before) / max(1.0, figures["calls"]) * 1e6
    return figures


def main(*, rounds: int = 3, seconds: float = 1.5) -> None:
    """Runs every pair in turn, several times, and writes benchmarks/results/choices.json."""
    console = Console()
    work = gateways.WORK / "choices-run"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    python, missing = environment(console)
    pairs = [pair for pair in PAIRS if not any(name in "-".join(pair) for name in missing)]
    upstream = gateways.upstream(work)
    running: dict[tuple[str, str], tuple[int, Measured]] = {}
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        for server, client in pairs:
            port = free_port()
            command = [
                str(python), "-m", "benchmarks.prototype", "--server", server, "--client", client, "--port", str(port),
                "--upstream-port", str(upstream.port),
            ]  # fmt: skip
            process = start(f"{server}-{client}", command, log=work / f"{server}-{client}.log")
            running[server, client] = (port, process)
            if not wait_for_port(port, process, seconds=30):
                console.print(f"[yellow]left out:[/] {server} with {client}: see {work}/{server}-{client}.log")
                del running[server, client]
                process.stop()
        for pair, (port, process) in running.items():  # warm up, and find out who cannot serve
            if not one_run(port, process, 0.5)["calls"]:
                console.print(f"[yellow]left out:[/] {pair}: no call succeeded; see {work}")
        for _ in range(rounds):
            for pair, (port, process) in running.items():
                samples.setdefault(pair, []).append(one_run(port, process, seconds))
    finally:
        for _, process in running.values():
            process.stop()
        upstream.stop()
    figures = [
        {"server": server, "client": client}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        | {"errors": sum(run["errors"] for run in runs)}
        for (server, client), runs in samples.items()
        if all(run["calls"] for run in runs)
    ]
    table = Table(title="bare gateway: server and client", title_justify="left")
    for heading in ("server", "client", "CPU us/call", "calls/s", "p50 ms", "errors"):
        table.add_column(heading)
    for row in figures:
        table.add_row(
            str(row["server"]), str(row["client"]), f"{row['cpu_us_per_call']:.0f}", f"{row['calls_per_s']:.0f}", f"{row['p50_ms']:.2f}",
            f"{row['errors']:.0f}",
        )  # fmt: skip
    console.print(table)
    results.save(
        console,
        "choices",
        command="python -m benchmarks choices",
        figures={"rounds": rounds, "seconds": seconds, "rows": figures},
        shows_not="TLS, HTTP/2, streams, cancellation and real networks; granian runs embedded in one event loop.",
    )

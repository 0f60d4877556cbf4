"""A thousand streams at once through one worker: is any lost, and what memory does each take?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from rich.console import Console

from benchmarks import gateways, results
from benchmarks.processes import free_port, start, wait_for_port

STREAMS = 1_000


def main(streams: int = STREAMS) -> None:
    """Opens all streams, reads them to their end and writes benchmarks/results/streams.json."""
    console = Console()
    work = gateways.WORK / "streams"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    port, admin = free_port(), free_port()
    slow = [
        sys.executable, "-m", "controlplane.demo.provider", "--port", str(port), "--admin-port", str(admin), "--latency-scale", "8",
    ]  # fmt: skip
    provider = start("provider", slow, log=work / "provider.log")
    if not wait_for_port(port, provider, seconds=30):
        raise RuntimeError(f"the simulated provider did not start; see {work}/provider.log")
    gateway = gateways.hephaestus(work, port)
    try:
        idle = gateway.measured.rss_bytes()
        cpu = gateway.measured.cpu_s()
        load = subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.load", "--port", str(gateway.port), "--key", gateway.key, "--connections", str(streams),
                "--calls", str(streams), "--seconds", "120", "--stream", "--unique",
            ],
            stdout=subprocess.PIPE, cwd=gateways.ROOT,
        )  # fmt: skip
        peak = idle
        while load.poll() is None:
            peak = max(peak, gateway.measured.rss_bytes())
            subprocess.run(["sleep", "0.2"], check=True)
        figures = json.loads(load.stdout.read() if load.stdout else b"{}")
        figures["streams"] = streams
        figures["lost"] = streams - int(figures["calls"])
        figures["cpu_us_per_stream"] = (gateway.measured.cpu_s() - cpu) / streams * 1e6
        figures["cpu_us_per_event"] = figures["cpu_us_per_stream"] * streams / max(1, figures["events"])
        figures["rss_kib_per_stream"] = (peak - idle) / streams / 1024
    finally:
        gateway.stop()
        provider.stop()
    lost = figures["lost"]
    console.print(
        f"{'[green]met[/]   ' if lost == 0 else '[red]missed[/]'} {streams} concurrent streams on one worker, none lost: {lost} lost, "
        f"{figures['rss_kib_per_stream']:.0f} KiB each, {figures['cpu_us_per_event']:.0f} us CPU for each of "
        f"{figures['events'] / streams:.0f} events"
    )
    results.save(
        "streams",
        command="make bench",
        figures=figures,
        shows_not="Slow clients and networks. Events come one by one, each in a read and a write of its own: the dearest way.",
    )


if __name__ == "__main__":
    main()

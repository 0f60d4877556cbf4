"""`hephaestus demo`: the whole system on this machine, with a fleet of agents and an outage that heals."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from controlplane.api.incidents import IncidentList
from controlplane.api.views import IncidentSummary
from controlplane.catalog.keys import Keys
from controlplane.cli.children import Child, Children, python_module
from controlplane.cli.installation import Installation, open_installation
from controlplane.cli.output import speaks_plainly, usd
from controlplane.cli.serve import control_plane_child, proxy_child, wait_for_signal
from controlplane.demo.fleet import Fleet
from controlplane.demo.scene import CREDENTIAL, CREDENTIAL_FILE, PRIMARY, TENANTS, Ports, configuration
from controlplane.errors import Conflict, UpstreamFailed

READY_S = 60.0
REFRESH_S = 0.5
PLAIN_EVERY_S = 10.0


@dataclass(slots=True)
class Story:
    """When the outage begins and how long it lasts, in seconds after the fleet began; and what has come of it."""

    outage_at_s: float
    outage_s: float
    phase: str = "all is well"
    began: bool = False
    ended: bool = False


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/demo"),
    show_default=True,
    help="Made anew at each start.",
)
@click.option(
    "--outage-after",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds until the primary provider fails.",
)
@click.option("--outage-for", type=click.FloatRange(1), default=45.0, show_default=True, help="How long it fails.")
@click.option("--seconds", type=click.FloatRange(0), default=0.0, help="Stop by itself after so long; 0: at Ctrl-C.")
@click.option(
    "--scale", type=click.FloatRange(0.1, 20), default=1.0, show_default=True, help="How busy the agents are."
)
@click.option(
    "--ports-from",
    type=click.IntRange(1024, 65_000),
    default=None,
    help="Five ports from here on, instead of 4000, 4001, 4010 to 4012.",
)
@speaks_plainly
def demo(
    data: Path, outage_after: float, outage_for: float, seconds: float, scale: float, ports_from: int | None
) -> None:
    """Control plane, proxy, a simulated provider and a fleet of agents; after a minute the provider fails, and the system heals."""
    ports = Ports() if ports_from is None else Ports(*range(ports_from, ports_from + 5))
    _must_be_free(ports)
    folder = data.resolve()
    installation = _prepare(folder, ports)
    keys = [_key(installation, tenant) for tenant in TENANTS]
    operator = {"authorization": f"Bearer {installation.secrets.operator_token.reveal()}"}
    children, stop = Children(), wait_for_signal()
    out = Console(highlight=False, soft_wrap=True)
    try:
        with out.status("starting the simulated provider, the control plane and the proxy ..."):
            for child in _children(installation, ports):
                children.start(child)
            _wait_ready(ports, children, stop)
        _welcome(ports, keys[0], installation, out)
        story = Story(outage_after, outage_for)
        asyncio.run(_play(ports, keys, operator, story, children, out, stop, seconds=seconds, scale=scale))
    finally:
        out.print("stopping ...")
        children.stop()


def _must_be_free(ports: Ports) -> None:
    for port in (ports.proxy, ports.control_plane, ports.primary, ports.secondary, ports.admin):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise Conflict(f"port {port} is taken; stop who has it, or choose others with --ports-from") from error


def _prepare(folder: Path, ports: Ports) -> Installation:
    """A fresh data folder with a configuration in it; refuses a folder that is somebody else's."""
    path = folder / "hephaestus.yaml"
    if folder.exists() and any(folder.iterdir()):
        if not path.is_file() or "hephaestus demo" not in path.read_text()[:200]:
            raise Conflict(f"{folder} is not empty and was not made by a demo; name another folder with --data")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(configuration(folder, ports))
    credential = folder / CREDENTIAL_FILE
    credential.write_text(CREDENTIAL + "\n")
    credential.chmod(0o600)
    return open_installation(path)


def _key(installation: Installation, tenant: str) -> str:
    journal = installation.journal()
    config = installation.loaded.config
    keys = Keys(
        journal,
        pepper=installation.secrets.key_pepper_bytes,
        now_us=lambda: time.time_ns() // 1_000,
        tenants=lambda: [one.name for one in config.tenants],
        models=lambda: [one.name for one in config.models],
    )
    try:
        return keys.create(tenant, name="demo", actor="demo").secret.reveal()
    finally:
        journal.close()


def _children(installation: Installation, ports: Ports) -> list[Child]:
    logs = installation.settings.data_path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    provider = Child(
        "simulated provider",
        python_module(
            "controlplane.demo.provider", "--port", str(ports.primary), "--port", str(ports.secondary), "--admin-port", str(ports.admin),
            "--latency-scale", "1", "--seed", "7",
        ),
        dict(os.environ),
        logs / "provider.log",
    )  # fmt: skip
    return [
        provider,
        control_plane_child(installation, log=logs / "controlplane.out"),
        proxy_child(installation, log=logs / "proxy.log"),
    ]


def _wait_ready(ports: Ports, children: Children, stop: threading.Event) -> None:
    until = time.monotonic() + READY_S
    waiting = [f"http://127.0.0.1:{port}/readyz" for port in (ports.control_plane, ports.proxy)]
    while waiting and not stop.is_set():
        children.tend()
        try:
            if httpx.get(waiting[0], timeout=2).status_code == httpx.codes.OK:
                waiting.pop(0)
                continue
        except httpx.HTTPError:
            pass
        if time.monotonic() > until:
            raise UpstreamFailed(f"{waiting[0]} was not ready within {READY_S:.0f} s; the logs are in the data folder")
        stop.wait(0.2)


def _welcome(ports: Ports, key: str, installation: Installation, out: Console) -> None:
    """Where everything is, and examples to copy; those are never broken by the width of the terminal."""
    base = f"http://127.0.0.1:{ports.proxy}/v1"
    places = Table.grid(padding=(0, 2))
    for name, value in (
        ("Base URL", base),
        ("Virtual key", key),
        ("Console", f"http://127.0.0.1:{ports.control_plane}/"),
        ("Configuration", str(installation.path)),
    ):
        places.add_row(f"[bold]{name}[/]", value)
    out.print(Panel(places, title="Hephaestus is running", title_align="left", expand=False))
    body = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'
    click.echo(f"""
Try it from another terminal:

curl {base}/chat/completions -H 'authorization: Bearer {key}' -H 'content-type: application/json' -d '{body}'

{sys.executable} -c "
from openai import OpenAI
client = OpenAI(base_url='{base}', api_key='{key}')
print(client.chat.completions.create(model='gpt-4o-mini', messages=[{{'role': 'user', 'content': 'Hello'}}]).choices[0].message.content)"

{sys.executable} -c "
from anthropic import Anthropic
client = Anthropic(base_url='{base.removesuffix("/v1")}', api_key='{key}')
print(client.messages.create(model='claude-haiku-4-5', max_tokens=200, messages=[{{'role': 'user', 'content': 'Hello'}}]).content[0].text)"

Ctrl-C stops everything.
""")


async def _play(
    ports: Ports,
    keys: list[str],
    operator: dict[str, str],
    story: Story,
    children: Children,
    out: Console,
    stop: threading.Event,
    *,
    seconds: float,
    scale: float,
) -> None:
    """Runs the fleet and the story until it is over, showing live counters."""
    fleet = Fleet(f"http://127.0.0.1:{ports.proxy}/v1", keys, seed=7, scale=scale)
    running = asyncio.create_task(fleet.run())
    began, said = time.monotonic(), 0.0
    live = Live(console=out, refresh_per_second=4, transient=False) if sys.stdout.isatty() else None
    try:
        if live:
            live.start()
        async with httpx.AsyncClient(timeout=3, headers=operator) as client:
            while not stop.is_set() and (not seconds or time.monotonic() - began < seconds):
                elapsed = time.monotonic() - began
                await _tell(story, elapsed, client, ports)
                incidents = await _incidents(client, ports)
                for sentence in children.tend():
                    out.print(sentence)
                if live:
                    live.update(_picture(fleet, story, incidents, elapsed))
                elif elapsed - said >= PLAIN_EVERY_S:
                    said = elapsed
                    out.print(_line(fleet, story, incidents, elapsed))
                await asyncio.sleep(REFRESH_S)
    finally:
        if live:
            live.stop()
        await fleet.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _tell(story: Story, elapsed: float, client: httpx.AsyncClient, ports: Ports) -> None:
    """Breaks the primary provider when it is time, and mends it."""
    faults = f"http://127.0.0.1:{ports.admin}/_faults"
    if not story.began and elapsed >= story.outage_at_s:
        await client.post(faults, json={"kind": "outage_503", "upstream": PRIMARY})
        story.began, story.phase = True, "the primary provider is down"
    elif story.began and not story.ended and elapsed >= story.outage_at_s + story.outage_s:
        await client.delete(faults)
        story.ended, story.phase = True, "the primary provider is back"


async def _incidents(client: httpx.AsyncClient, ports: Ports) -> list[IncidentSummary]:
    """The newest incidents; none while the control plane does not answer."""
    try:
        answer = await client.get(f"http://127.0.0.1:{ports.control_plane}/api/v1/incidents", params={"limit": 3})
        return list(msgspec.json.decode(answer.content, type=IncidentList).incidents) if answer.is_success else []
    except (httpx.HTTPError, msgspec.DecodeError):
        return []


def _numbers(fleet: Fleet) -> list[tuple[str, str]]:
    counters = fleet.counters
    return [
        ("calls", f"{counters.calls:,}"),
        ("answered", f"{counters.ok:,}"),
        ("failed", f"{counters.failed:,}"),
        ("from the cache", f"{counters.cache_hits:,}"),
        ("joined a call in flight", f"{counters.coalesced:,}"),
        ("cost", usd(counters.cost_nanousd)),
    ]


def _picture(fleet: Fleet, story: Story, incidents: list[IncidentSummary], elapsed: float) -> Group:
    counts = Table.grid(padding=(0, 3))
    for _ in _numbers(fleet):
        counts.add_column(justify="left")
    counts.add_row(*(f"[dim]{name}[/] [bold]{value}[/]" for name, value in _numbers(fleet)))
    agents = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("agent", "calls", "answered", "failed", "cached", "cost"):
        agents.add_column(column, justify="left" if column == "agent" else "right")
    for name, one in sorted(fleet.counters.agents.items()):
        agents.add_row(name, str(one.calls), str(one.ok), str(one.failed), str(one.cache_hits), usd(one.cost_nanousd))
    news = [f"[dim]{elapsed:5.0f} s[/]  {story.phase}"]
    colours = {"firing": "red", "pending": "yellow", "resolved": "green"}
    news += [f"         [{colours.get(one.state, 'white')}]{one.state}[/]  {one.title}" for one in incidents[:3]]
    return Group(counts, agents, *news)


def _line(fleet: Fleet, story: Story, incidents: list[IncidentSummary], elapsed: float) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in _numbers(fleet))
    newest = f"; incident {incidents[0].state}: {incidents[0].title}" if incidents else ""
    return f"{elapsed:5.0f} s  {numbers}; {story.phase}{newest}"


COMMANDS = (demo,)

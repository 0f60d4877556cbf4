"""Commands that serve: both planes together, one of them alone, and the simulated provider."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import click
import msgspec

from controlplane.cli.children import Child, Children, python_module
from controlplane.cli.installation import Installation, config_option, data_option, open_installation
from controlplane.cli.output import errors, speaks_plainly
from controlplane.contract.lifeline import hold_lifeline
from controlplane.errors import ConfigError
from controlplane.secrets import OPERATOR_TOKEN_ENV, REDIS_PASSWORD_ENV, resolve

WATCH_EVERY_S = 0.5


def proxy_child(installation: Installation, *, log: Path | None = None) -> Child:
    """The proxy as a process, with its settings in a file and its secrets in the environment."""
    folder = installation.settings.data_path / "proxy"
    folder.mkdir(parents=True, exist_ok=True)
    settings_file = folder / "settings.json"
    draft = settings_file.with_suffix(f".{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(installation.settings.proxy_settings()))
    draft.replace(settings_file)
    environment = {**os.environ, **installation.secrets.proxy_environment()}
    if installation.settings.redis and installation.settings.redis_password:
        environment[REDIS_PASSWORD_ENV] = resolve(installation.settings.redis_password).reveal()
    return Child("proxy", python_module("proxy", "--settings", str(settings_file)), environment, log)


def control_plane_child(installation: Installation, *, log: Path | None = None) -> Child:
    """The control plane as a process."""
    settings = installation.settings
    command = python_module(
        "controlplane", "controlplane", "--config", str(installation.path), "--data", settings.data_dir
    )
    token = installation.secrets.operator_token.reveal()
    return Child("control plane", command, {**os.environ, OPERATOR_TOKEN_ENV: token}, log)


def hear_hangup() -> threading.Event:
    """An event that SIGHUP sets."""
    heard = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        heard.set()

    signal.signal(signal.SIGHUP, on_signal)
    return heard


def renew_proxy(children: Children, config: Path, data: Path | None, workers: int | None) -> str:
    """Writes the proxy's settings as the file has them now and has its workers replaced; a sentence about it."""
    try:
        fresh = proxy_child(open_installation(config, data=data, workers=workers))
    except ConfigError as error:
        return f"the configuration is refused, the proxy goes on as it is: {error}"
    proxy = next(child for child in children.members if child.name == fresh.name)
    if proxy.process is None or proxy.process.poll() is not None:
        return "the proxy is down; it starts with the new settings"
    proxy.process.send_signal(signal.SIGHUP)
    return "the proxy's workers are replaced one by one"


def wait_for_signal() -> threading.Event:
    """An event that SIGINT or SIGTERM sets."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


@click.command()
@config_option
@data_option
@click.option("--workers", type=click.IntRange(1, 256), default=None, help="Proxy workers, instead of the file's.")
@speaks_plainly
def up(config: Path, data: Path | None, workers: int | None) -> None:
    """Control plane and proxy together, until Ctrl-C; a process that dies is started again, and SIGHUP replaces the proxy's workers."""
    installation = open_installation(config, data=data, workers=workers)
    settings = installation.settings
    stop, renew, children, out = wait_for_signal(), hear_hangup(), Children(), errors()
    try:
        children.start(control_plane_child(installation))
        children.start(proxy_child(installation))
        out.print(f"proxy          http://{settings.proxy_host}:{settings.proxy_port}/v1")
        out.print(f"control plane  {settings.control_plane_url}")
        while not stop.wait(WATCH_EVERY_S):
            for sentence in children.tend():
                out.print(sentence)
            if renew.is_set():
                renew.clear()
                out.print(renew_proxy(children, config, data, workers))
    finally:
        children.stop()


@click.command()
@config_option
@data_option
@speaks_plainly
def controlplane(config: Path, data: Path | None) -> None:
    """The control plane alone."""
    from controlplane.app.serve import serve  # noqa: PLC0415 - the heavy half of the program, needed by this command alone

    hold_lifeline(os.environ)
    installation = open_installation(config, data=data)
    serve(installation.loaded, installation.secrets)


@click.command()
@config_option
@data_option
@click.option("--workers", type=click.IntRange(1, 256), default=None, help="Workers, instead of the file's.")
@speaks_plainly
def proxy(config: Path, data: Path | None, workers: int | None) -> None:
    """The proxy alone; it starts from its last snapshot when the control plane is down."""
    child = proxy_child(open_installation(config, data=data, workers=workers))
    os.execve(child.command[0], list(child.command), dict(child.environment))  # noqa: S606 - becomes the proxy


@click.command("simulate-provider")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    multiple=True,
    default=(4010,),
    show_default=True,
    help="Where it listens; may be repeated.",
)
@click.option(
    "--faults",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="YAML file with scripted faults.",
)
@click.option("--latency-scale", type=click.FloatRange(0), default=1.0, show_default=True, help="0: as fast as it can.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything it does follows from it.")
@speaks_plainly
def simulate_provider(port: tuple[int, ...], faults: Path | None, latency_scale: float, seed: int) -> None:
    """A provider that speaks OpenAI's, Anthropic's and other protocols, with faults on demand and at no cost."""
    arguments = [word for one in port for word in ("--port", str(one))]
    arguments += ["--latency-scale", str(latency_scale), "--seed", str(seed)]
    arguments += ["--faults", str(faults)] if faults else []
    command = python_module("controlplane.demo.provider", *arguments)
    os.execv(command[0], command)  # noqa: S606 - becomes the provider


COMMANDS = (up, controlplane, proxy, simulate_provider)

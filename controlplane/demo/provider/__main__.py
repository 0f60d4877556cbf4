"""`python -m controlplane.demo.provider`: a simulated provider in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import click

from controlplane.contract.lifeline import hold_lifeline
from controlplane.demo.faults import FaultError, load_fault_script
from controlplane.demo.provider.config import Latency, ProviderConfig, upstreams_on
from controlplane.demo.provider.server import Provider, run


@click.command()
@click.option(
    "--port",
    "ports",
    type=int,
    multiple=True,
    default=(4010,),
    show_default=True,
    help="One simulated upstream each; may be repeated.",
)
@click.option("--admin-port", type=int, help="Faults and counts; default: the highest port plus one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--faults", "faults_file", type=click.Path(dir_okay=False, path_type=Path), help="A YAML file of scripted faults."
)
@click.option(
    "--latency-scale", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0 answers at once."
)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    ports: tuple[int, ...], admin_port: int | None, host: str, faults_file: Path | None, latency_scale: float, seed: int
) -> None:
    """Simulates a provider that speaks the protocols of OpenAI, Anthropic, Azure, Gemini, Bedrock and Ollama."""
    hold_lifeline(os.environ)
    try:
        faults = load_fault_script(faults_file) if faults_file is not None else ()
    except FaultError as error:
        raise click.UsageError(str(error)) from error
    config = ProviderConfig(
        upstreams=upstreams_on(ports),
        admin_port=admin_port,
        host=host,
        seed=seed,
        latency=Latency(scale=latency_scale),
        faults=faults,
    )
    try:
        run(config, started=_announce)
    except FaultError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot listen: {error.strerror or error}") from error


def _announce(provider: Provider) -> None:
    for name, port in provider.ports.items():
        click.echo(f"{name}: http://{provider.config.host}:{port}/v1")
    click.echo(f"faults: {provider.admin_url}/_faults  counts: {provider.admin_url}/_stats")


if __name__ == "__main__":
    main()

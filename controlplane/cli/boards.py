"""Grafana dashboards as code: build them, check them, push them."""

from __future__ import annotations

import os
from pathlib import Path

import click

from controlplane.cli.output import EXIT_NO, speaks_plainly
from controlplane.errors import UpstreamFailed
from dashboards.build import build, drifted
from dashboards.push import PushFailed, push

TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - a name, not a secret


@click.group("dashboards")
def dashboards() -> None:
    """Grafana dashboards as code."""


@dashboards.command("build")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the files go; the repository's unless set.",
)
def build_boards(folder: Path | None) -> None:
    """Writes the dashboards' JSON files."""
    for path in build() if folder is None else build(folder):
        click.echo(str(path))


@dashboards.command("check")
def check_boards() -> None:
    """Compares the committed files with what `build` would write; exit status 1 when they differ."""
    if names := drifted():
        click.echo(f"out of step: {', '.join(names)}; run `hephaestus dashboards build`", err=True)
        raise SystemExit(EXIT_NO)
    click.echo("the dashboards are in step")


@dashboards.command("push")
@click.option("--url", required=True, help="Grafana's address.")
@click.option(
    "--token-variable",
    default=TOKEN_VARIABLE,
    show_default=True,
    help="Environment variable with a service account token.",
)
@speaks_plainly
def push_boards(url: str, token_variable: str) -> None:
    """Sends the dashboards to a running Grafana."""
    token = os.environ.get(token_variable, "")
    if not token:
        raise UpstreamFailed(
            f"the environment variable {token_variable} is not set; make a service account token in Grafana"
        )
    try:
        addresses = push(url, token)
    except PushFailed as error:
        raise UpstreamFailed(str(error)) from error
    for address in addresses:
        click.echo(address)


COMMANDS = (dashboards,)

"""What this is."""

from __future__ import annotations

import click

from controlplane import __version__


@click.command()
def version() -> None:
    """Prints the version."""
    click.echo(__version__)


COMMANDS = (version,)

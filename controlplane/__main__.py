"""The command `hephaestus`, also `python -m controlplane`."""

from __future__ import annotations

import click

from controlplane import __version__
from controlplane.cli import boards, demo, doctor, healing, keys, report, serve

GROUPS = (serve, demo, keys, report, healing, doctor, boards)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Observability and optimization control plane for fleets of LLM agents."""


@main.command()
def version() -> None:
    """Prints the version."""
    click.echo(__version__)


for group in GROUPS:
    for command in group.COMMANDS:
        main.add_command(command)

if __name__ == "__main__":
    main()

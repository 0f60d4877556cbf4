"""The command `hephaestus`, also `python -m controlplane`."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "budgets": "budgets",
    "cache": "cache",
    "check-config": "doctor",
    "controlplane": "serve",
    "dashboards": "boards",
    "demo": "demo",
    "doctor": "doctor",
    "import": "imports",
    "incidents": "healing",
    "keys": "keys",
    "models": "keys",
    "playbooks": "healing",
    "proxy": "serve",
    "report": "report",
    "simulate-provider": "serve",
    "tenants": "keys",
    "up": "serve",
    "version": "about",
}
"""Each command and the module of `controlplane.cli` that has it; only the module of the command that is called is imported."""


class Commands(click.Group):
    """The commands, found by name and imported when they are needed, so that `keys list` does not load a simulated provider."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"controlplane.cli.{COMMANDS[cmd_name]}")
        commands: tuple[click.Command, ...] = module.COMMANDS
        return next(command for command in commands if command.name == cmd_name)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Observability and optimization control plane for fleets of LLM agents."""


if __name__ == "__main__":
    main()

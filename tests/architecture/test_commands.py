"""The command line knows all its commands."""

from __future__ import annotations

import importlib
import pkgutil

import click

from controlplane import cli
from controlplane.__main__ import COMMANDS, main


def test_every_command_is_found_by_its_name() -> None:
    """Each name of the table leads to a command of that name, with a sentence of help."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert (name, True) == (command.name, bool(command.help))


def test_no_command_is_forgotten() -> None:
    """Whatever a module of the command line offers is in the table."""
    offered = {
        command.name
        for info in pkgutil.iter_modules(cli.__path__)
        for command in getattr(importlib.import_module(f"controlplane.cli.{info.name}"), "COMMANDS", ())
    }
    assert set(COMMANDS) == offered

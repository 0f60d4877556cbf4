"""How commands speak: tables on a terminal, JSON with `--json`, errors as one sentence, and exit status 0, 1 or 2."""

from __future__ import annotations

import datetime as dt
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from controlplane.errors import ConfigError, HephaestusError

P = ParamSpec("P")
R = TypeVar("R")

EXIT_NO = 1  # the answer is no, or it could not be done
EXIT_USAGE = 2  # the command was used wrongly
PIPE_COLUMNS = 1_000  # width where nobody says how wide it is: whoever reads a pipe line by line gets each row on one


def console() -> Console:
    """Standard output, without colour when it is not a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON document, indented on a terminal."""
    text = msgspec.json.encode(value)
    if sys.stdout.isatty():
        text = msgspec.json.format(text, indent=2)
    click.echo(text.decode())


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """A table with a title; an empty one says so."""
    if not rows:
        click.echo(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console().print(table)


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Adds `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def speaks_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Turns the errors that we expect into one sentence on standard error and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(str(problem), err=True)
            raise SystemExit(EXIT_NO) from error
        except HephaestusError as error:
            click.echo(f"error: {error.message}", err=True)
            raise SystemExit(EXIT_NO) from error

    return wrapped


def usd(nanousd: int, *, digits: int = 6) -> str:
    """Nano-USD as dollars for people to read; reports for machines carry the integer."""
    sign, amount = ("-", -nanousd) if nanousd < 0 else ("", nanousd)
    scale = 10 ** (9 - digits)
    rounded = (amount + scale // 2) // scale
    return f"{sign}${rounded // 10**digits:,}.{rounded % 10**digits:0{digits}d}"


def moment(us: int) -> str:
    """Unix microseconds as UTC text; empty for zero."""
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M:%S") if us else ""

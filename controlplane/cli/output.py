"""How commands speak: tables on a terminal, JSON with `--json`, errors as one sentence, and exit status 0, 1 or 2."""

from __future__ import annotations

import datetime as dt
import functools
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import click
import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from controlplane.errors import ConfigError, HephaestusError

P = ParamSpec("P")
R = TypeVar("R")

EXIT_NO = 1  # the answer is no, or it could not be done
EXIT_USAGE = 2  # the command was used wrongly
PIPE_COLUMNS = 1_000  # width where nobody says how wide it is: whoever reads a pipe line by line gets each row on one


WIDE = 200  # columns, where nobody looks at a terminal


def console(*, width_min: int = 0) -> Console:
    """Standard output, without colour when it is not a terminal; never narrower than `width_min`."""
    natural = Console(highlight=False, soft_wrap=True)
    width = natural.width if natural.is_terminal else max(natural.width, WIDE)
    return Console(highlight=False, soft_wrap=True, width=max(width, width_min))


def print_whole(table: Table) -> None:
    """A table as wide as it needs to be: what must not be cut stays whole even where the terminal is narrow."""
    measuring = console()
    needed = Measurement.get(measuring, measuring.options.update(width=100_000), table).minimum
    console(width_min=needed).print(table)


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
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = ("id", "state"),
) -> None:
    """A table with a title; an empty one says so. right: numbers; they and the `whole` columns are never broken over lines."""
    if not rows:
        click.echo(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        kept = column in right or column in whole
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=kept)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    print_whole(table)


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


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 model, 2 models."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def moment(us: int) -> str:
    """Unix microseconds as UTC text; empty for zero."""
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M:%S") if us else ""

"""Reports for finance: where money went, what was saved, and whether the books agree."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import click

from controlplane.cli.installation import config_option, data_option, open_installation
from controlplane.cli.output import EXIT_NO, moment, print_json, print_table, print_whole, speaks_plainly, usd
from controlplane.clock import US_PER_S
from controlplane.costs import formats
from controlplane.costs.report import CostReport, Reconciliation
from controlplane.costs.savings import Savings

_FORMATS = ("table", "json", "csv")
_DAY_S = 86_400


@click.group()
def report() -> None:
    """Where money went, what was saved, and whether the books agree."""


@report.command()
@config_option
@data_option
@click.option(
    "--by",
    default="tenant",
    show_default=True,
    help="Dimensions with commas between: tenant, agent, session, model, day ...",
)
@click.option(
    "--from",
    "from_",
    default=None,
    help="First day or moment in UTC, such as 2026-11-01; the first of this month unless set.",
)
@click.option("--to", default=None, help="First day or moment that is left out; now unless set.")
@click.option("--tenant", default="", help="Only this tenant.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="Amounts are exact in all of them.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@speaks_plainly
def costs(
    config: Path, data: Path | None, by: str, from_: str | None, to: str | None, tenant: str, format_: str, as_json: bool
) -> None:  # fmt: skip
    """Cost by tenant, agent, session, model, day or any of them together; the total equals the sum of the rows."""
    remote = open_installation(config, data=data).remote
    wanted = {**_period(from_, to), "by": by, "tenant": tenant}
    found = remote.get("/costs", CostReport, **wanted)
    if as_json or format_ == "json":
        click.echo(formats.as_json(found).decode())
    elif format_ == "csv":
        click.echo(formats.as_csv(found), nl=False)
    else:
        print_whole(formats.as_table(found))


@report.command()
@config_option
@data_option
@click.option("--from", "from_", default=None, help="First day or moment in UTC; the first of this month unless set.")
@click.option("--to", default=None, help="First day or moment that is left out; now unless set.")
@click.option("--tenant", default="", help="Only this tenant.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@speaks_plainly
def savings(config: Path, data: Path | None, from_: str | None, to: str | None, tenant: str, as_json: bool) -> None:
    """What the cache and joined calls saved, and how well that is known."""
    found = open_installation(config, data=data).remote.get("/savings", Savings, **_period(from_, to), tenant=tenant)
    if as_json:
        print_json(found)
        return
    rows = [(one.tenant, one.source, one.confidence, f"{one.calls:,}", usd(one.saved_nanousd)) for one in found.lines]
    print_table("savings", ("tenant", "by", "known", "calls", "saved"), rows, right=("calls", "saved"))
    click.echo(f"Saved {usd(found.saved_nanousd)}; spent all the same {usd(found.spent_nanousd)}.")


@report.command()
@config_option
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@speaks_plainly
def reconcile(config: Path, data: Path | None, as_json: bool) -> None:
    """Compares the stored rows with the proxies' own ledgers, to the nano-USD; exit status 1 when they differ."""
    found = open_installation(config, data=data).remote.get("/reconciliation", Reconciliation)
    if as_json:
        print_json(found)
    else:
        rows = [
            ("rows in the store", f"{found.rows_calls:,}", usd(found.rows_nanousd, digits=9)),
            ("ledgers of the live proxies", f"{found.ledger_calls:,}", usd(found.ledger_nanousd, digits=9)),
            ("difference", f"{found.difference_calls:,}", usd(found.difference_nanousd, digits=9)),
        ]
        print_table("books", ("", "calls", "cost"), rows, right=("calls", "cost"))
        if found.spool_bytes:
            click.echo(f"{found.spool_bytes:,} bytes of records are still on their way from the proxies.")
        if found.spool_dropped:
            click.echo(f"{found.spool_dropped:,} records were dropped by full spools.")
        click.echo("The books agree." if found.agrees else "The books do not agree (yet).")
    if not found.agrees:
        raise SystemExit(EXIT_NO)


def _period(from_: str | None, to: str | None) -> dict[str, str | int]:
    """The period in microseconds; the current month until now where nothing is said."""
    now_us = time.time_ns() // 1_000
    today = dt.datetime.fromtimestamp(now_us / US_PER_S, dt.UTC)
    first = today.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    from_us = round(first.timestamp()) * US_PER_S if from_ is None else _moment_us(from_)
    to_us = now_us + 1 if to is None else _moment_us(to)
    if from_us >= to_us:
        raise click.UsageError(
            f"the period ends ({moment(to_us)}) before it begins ({moment(from_us)}); check --from and --to"
        )
    return {"from_us": from_us, "to_us": to_us}


def _moment_us(text: str) -> int:
    try:
        parsed = dt.datetime.fromisoformat(text)
        since = parsed.replace(tzinfo=dt.UTC) if parsed.tzinfo is None else parsed.astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"{text!r} is no moment; say 2026-11-01 or 2026-11-01T12:00:00Z") from error
    return (since - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)


COMMANDS = (report,)

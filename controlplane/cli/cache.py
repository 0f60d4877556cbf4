"""Stored answers: which of them must not be served again."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from controlplane.api.cache import InvalidationAnswer, InvalidationList
from controlplane.cli.installation import config_option, data_option, open_installation
from controlplane.cli.output import json_option, moment, print_json, print_table, speaks_plainly

_SELECTORS = ("tenant", "tag", "alias", "model", "agent")


@click.group()
def cache() -> None:
    """Stored answers."""


@cache.command("invalidate")
@config_option
@data_option
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--tag", default="", help="Only those of calls with this label: name=value, or name for any value.")
@click.option("--route", default="", help="Only those of this alias.")
@click.option("--model", default="", help="Only those that this model gave.")
@click.option("--agent", default="", help="Only those that this agent asked for first.")
@click.option(
    "--before-us", type=click.IntRange(min=0), default=0, help="Only those asked for earlier; now unless set."
)
@click.option("--everything", is_flag=True, help="All of them: an epoch. Must be said where no selector is.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--reason", default="", help="Kept in the journal.")
@json_option
@speaks_plainly
def invalidate(
    config: Path, data: Path | None, tenant: str, tag: str, route: str, model: str, agent: str, before_us: int,
    everything: bool, dry_run: bool, reason: str, as_json: bool,
) -> None:  # fmt: skip
    """Invalidates stored answers that fit every selector, on all proxies and in all tiers within a second."""
    if everything == any((tenant, tag, route, model, agent)):
        raise click.UsageError(
            "Say `--everything`, or which stored answers are meant: --tenant, --tag, --route, --model, --agent."
            if not everything
            else "`--everything` means all stored answers of all tenants; leave it out, or the selectors."
        )
    body = {
        "tenant": tenant, "tag": tag, "route": route, "model": model, "agent": agent, "before_us": before_us,
        "everything": everything, "dry_run": dry_run, "reason": reason,
    }  # fmt: skip
    remote = open_installation(config, data=data).remote
    answer = remote.send("POST", "/cache/invalidate", body, InvalidationAnswer)
    if as_json:
        print_json(answer)
        return
    count = answer.count
    found = "stored answers, which the store cannot count now"
    if count is not None:
        found = f"at most {count.entries_at_most:,} stored answers, {count.bytes_at_most:,} bytes"
    if answer.rule is None:
        click.echo(f"A dry run: {found} would be invalidated. Nothing was done.")
    else:
        click.echo(f"Invalidation {answer.rule.id}: {found}.")


@cache.command("invalidations")
@config_option
@data_option
@json_option
@speaks_plainly
def invalidations(config: Path, data: Path | None, as_json: bool) -> None:
    """Lists the invalidations in force, oldest first."""
    found = open_installation(config, data=data).remote.get("/cache/invalidations", InvalidationList).invalidations
    if as_json:
        print_json([msgspec.to_builtins(one) for one in found])
        return
    rows = [
        (
            one.id,
            " ".join(f"{name}={getattr(one, name)}" for name in _SELECTORS if getattr(one, name)) or "everything",
            moment(one.before_us),
            moment(one.expires_us),
            one.reason,
        )
        for one in found
    ]
    print_table("invalidations", ("id", "what", "before", "in force until", "reason"), rows)


COMMANDS = (cache,)

"""Incidents and playbooks: what went wrong, what was done, and what a person decides."""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from controlplane.api.incidents import IncidentList
from controlplane.api.runs import RunList
from controlplane.api.views import IncidentDetail, KillSwitch, RunDetail
from controlplane.cli.installation import config_option, data_option, open_installation
from controlplane.cli.output import count, json_option, moment, print_json, print_table, speaks_plainly
from controlplane.errors import ConfigError, Problem
from controlplane.healing.lint import lint, load_library


@click.group()
def incidents() -> None:
    """What went wrong, and what came of it."""


@incidents.command("list")
@config_option
@data_option
@click.option("--state", type=click.Choice(("pending", "firing", "resolved")), default=None, help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@json_option
@speaks_plainly
def list_incidents(config: Path, data: Path | None, state: str | None, limit: int, as_json: bool) -> None:
    """Lists incidents, newest first."""
    remote = open_installation(config, data=data).remote
    wanted: dict[str, str | int] = {"limit": limit} if state is None else {"limit": limit, "state": state}
    found = remote.get("/incidents", IncidentList, **wanted).incidents
    if as_json:
        print_json(found)
        return
    rows = [
        (one.id, one.state, one.severity, moment(one.opened_us), moment(one.resolved_us), one.title, one.cause)
        for one in found
    ]
    print_table("incidents", ("id", "state", "severity", "opened", "resolved", "what", "likely cause"), rows)


@incidents.command("show")
@config_option
@data_option
@click.argument("incident_id")
@json_option
@speaks_plainly
def show_incident(config: Path, data: Path | None, incident_id: str, as_json: bool) -> None:
    """Shows one incident with every transition, the steps of its runs among them."""
    found = open_installation(config, data=data).remote.get(f"/incidents/{incident_id}", IncidentDetail)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.summary.id}  {found.summary.state}  {found.summary.title}")
    rows = [(moment(one.at_us), one.kind, one.text, one.run_id) for one in found.timeline]
    print_table("timeline", ("at (UTC)", "event", "what happened", "run"), rows, whole=("at (UTC)", "event", "run"))


@click.group()
def playbooks() -> None:
    """What is done about incidents, and what a person decides about it."""


@playbooks.command("list")
@config_option
@json_option
@speaks_plainly
def list_playbooks(config: Path, as_json: bool) -> None:
    """Lists the playbooks in force."""
    settings = open_installation(config).settings.healing
    library = load_library(None if settings.library is None else Path(settings.library), settings.playbook_values)
    if as_json:
        print_json(
            [
                {"id": one.playbook.id, "version": one.playbook.metadata.version, "hash": one.hash, "file": one.file}
                for one in library
            ]
        )
        return
    rows = [
        (one.playbook.id, one.playbook.metadata.version, one.playbook.metadata.fault_class, one.playbook.spec.autonomy.default, one.hash[:12], one.file)
        for one in library
    ]  # fmt: skip
    print_table("playbooks", ("playbook", "version", "fault class", "autonomy", "hash", "file"), rows)


@playbooks.command("lint")
@click.argument("files", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@speaks_plainly
def lint_playbooks(files: tuple[Path, ...]) -> None:
    """Checks playbook files; prints mistakes with file and line."""
    problems: list[Problem] = []
    for file in files:
        try:
            lint(file.read_text(), str(file))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    click.echo(f"{count(len(files), 'playbook')}, no mistakes")


@playbooks.command("runs")
@config_option
@data_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@json_option
@speaks_plainly
def runs(config: Path, data: Path | None, limit: int, as_json: bool) -> None:
    """Lists runs, newest first."""
    found = open_installation(config, data=data).remote.get("/runs", RunList, limit=limit).runs
    if as_json:
        print_json(found)
        return
    rows = [
        (one.id, one.state, one.playbook, one.incident_id, moment(one.opened_us), moment(one.ended_us), one.waits_for)
        for one in found
    ]
    columns = ("id", "state", "playbook", "incident", "opened", "ended", "waits for")
    print_table("runs", columns, rows, whole=("id", "state", "incident"))


def _decide(config: Path, data: Path | None, run_id: str, verb: str, reason: str) -> None:
    remote = open_installation(config, data=data).remote
    text = f"{reason} (by {getpass.getuser()} on the command line)".strip()
    found = remote.send("POST", f"/runs/{run_id}/{verb}", {"reason": text}, RunDetail)
    done = {
        "approve": "approved; it goes on at its next turn",
        "reject": "rejected",
        "abort": "told to stop; what it did is rolled back",
    }[verb]
    click.echo(f"{found.summary.id} is {done}.")


@playbooks.command("approve")
@config_option
@data_option
@click.argument("run_id")
@click.option("--reason", default="", help="Kept in the journal.")
@speaks_plainly
def approve(config: Path, data: Path | None, run_id: str, reason: str) -> None:
    """Lets a run go on that waits for a person."""
    _decide(config, data, run_id, "approve", reason)


@playbooks.command("reject")
@config_option
@data_option
@click.argument("run_id")
@click.option("--reason", default="", help="Kept in the journal.")
@speaks_plainly
def reject(config: Path, data: Path | None, run_id: str, reason: str) -> None:
    """Refuses what a run waits for."""
    _decide(config, data, run_id, "reject", reason)


@playbooks.command("abort")
@config_option
@data_option
@click.argument("run_id")
@click.option("--reason", default="", help="Kept in the journal.")
@speaks_plainly
def abort(config: Path, data: Path | None, run_id: str, reason: str) -> None:
    """Stops a run and rolls back what it did."""
    _decide(config, data, run_id, "abort", reason)


@playbooks.command("stop")
@config_option
@data_option
@click.option("--reason", default="", help="Kept in the journal.")
@click.option("--release", is_flag=True, help="Let healing act again.")
@speaks_plainly
def stop(config: Path, data: Path | None, reason: str, release: bool) -> None:
    """The kill switch: stops all healing and rolls back what runs."""
    remote = open_installation(config, data=data).remote
    now = remote.send("PUT", "/kill-switch", {"engaged": not release, "reason": reason}, KillSwitch)
    click.echo("healing stands still; release it with --release" if now.engaged else "healing may act")


COMMANDS = (incidents, playbooks)

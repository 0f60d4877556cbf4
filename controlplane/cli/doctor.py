"""Is all well? The configuration alone (`check-config`), or everything it names (`doctor`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import click
import httpx
import msgspec

from controlplane.catalog.check import Finding, Severity, check
from controlplane.catalog.file import Dialect
from controlplane.catalog.load import Loaded, load
from controlplane.cli.installation import config_option, data_option, open_installation
from controlplane.cli.output import EXIT_NO, console, count, json_option, print_json, speaks_plainly
from controlplane.cli.remote import NotRunning, Remote
from controlplane.costs.prices import PriceBook
from controlplane.errors import ConfigError, HephaestusError, SecretUnavailable
from controlplane.journal.journal import Journal
from controlplane.secrets import resolve
from controlplane.settings import Settings

DISK_FREE_MIN_BYTES = 2 * 1024**3
TIMEOUT_S = 10.0
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.ADVICE: "cyan"}


class Checked(msgspec.Struct, frozen=True):
    """One thing that was looked at. todo: what to do when it is not well."""

    what: str
    ok: bool
    detail: str
    todo: str = ""


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=Path("hephaestus.yaml"))
@json_option
@speaks_plainly
def check_config(file: Path, as_json: bool) -> None:
    """Checks a configuration file; exit status 1 when calls would fail with it."""
    try:
        loaded = load(file)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": error.problems})
        raise SystemExit(EXIT_NO) from error
    findings = check(loaded.bound, PriceBook.packaged(), environ=os.environ)
    ok = not any(one.severity is Severity.ERROR for one in findings)
    if as_json:
        print_json({"ok": ok, "findings": findings})
    else:
        _print_findings(findings)
        models, tenants = count(len(loaded.config.models), "model"), count(len(loaded.config.tenants), "tenant")
        click.echo(f"{file}: {'fine' if ok else 'not fit to serve yet'}; {models}, {tenants}")
    if not ok:
        raise SystemExit(EXIT_NO)


@click.command()
@config_option
@data_option
@json_option
@speaks_plainly
def doctor(config: Path, data: Path | None, as_json: bool) -> None:
    """Looks at configuration, stores, upstreams, credentials, disk and processes, and says what to do."""
    installation = open_installation(config, data=data)
    loaded, settings = installation.loaded, installation.settings
    findings = check(loaded.bound, PriceBook.packaged(), environ=os.environ)
    looks: list[Callable[[], Checked]] = [
        lambda: _data_folder(settings),
        lambda: _journal(settings),
        lambda: _control_plane(installation.remote),
        lambda: _proxy(settings),
    ]
    checked = [look() for look in looks] + asyncio.run(_upstreams(loaded))
    ok = all(one.ok for one in checked) and not any(one.severity is Severity.ERROR for one in findings)
    if as_json:
        print_json({"ok": ok, "checked": checked, "findings": findings})
    else:
        out = console()
        for one in checked:
            out.print(
                f"[{'green' if one.ok else 'red'}]{'ok  ' if one.ok else 'bad '}[/] {one.what}: {one.detail}",
                markup=True,
            )
            if not one.ok and one.todo:
                out.print(f"     {one.todo}", markup=False)
        _print_findings(findings)
    if not ok:
        raise SystemExit(EXIT_NO)


def _print_findings(findings: list[Finding]) -> None:
    out = console()
    for one in findings:
        out.print(f"[{_COLOURS[one.severity]}]{one.severity.value}[/] ", end="")
        out.print(f"{one.file}:{one.line}: {one.message}; {one.todo}", markup=False)


def _data_folder(settings: Settings) -> Checked:
    free = shutil.disk_usage(settings.data_path).free
    ok = os.access(settings.data_path, os.W_OK) and free >= DISK_FREE_MIN_BYTES
    detail = f"{settings.data_dir}, {free / 1024**3:.1f} GiB free"
    return Checked("data folder", ok, detail, "make it writable, or free some disk; telemetry and spools grow there")


def _journal(settings: Settings) -> Checked:
    try:
        journal = Journal.open(settings.journal)
        try:
            head = journal.verify_chain()
        finally:
            journal.close()
    except HephaestusError as error:
        return Checked("journal", ok=False, detail=error.message, todo="restore it from a backup of the data folder")
    return Checked("journal", ok=True, detail=f"{settings.journal}, {head.events} events, chain unbroken")


def _control_plane(remote: Remote) -> Checked:
    todo = "start it with `hephaestus up` or `hephaestus controlplane`"
    try:
        ready, detail = remote.ready()
    except NotRunning as error:
        return Checked("control plane", ok=False, detail=error.message, todo=todo)
    return Checked("control plane", ready, detail, "its log says more")


def _proxy(settings: Settings) -> Checked:
    url = settings.proxy_url
    todo = "start it with `hephaestus up` or `hephaestus proxy`"
    try:
        answer = httpx.get(f"{url}/readyz", timeout=TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        return Checked("proxy", ok=False, detail=f"nothing answers at {url} ({type(error).__name__})", todo=todo)
    if not answer.is_success:
        return Checked(
            "proxy", ok=False, detail=f"{url} answered {answer.status_code}", todo="it has no snapshot yet; see its log"
        )
    if lacks := _degraded(answer):
        todo = "see whether `server.redis` and its password are right, and the proxy's log"
        return Checked("proxy", ok=False, detail=f"{url} is ready, but degraded: {lacks}", todo=todo)
    return Checked("proxy", ok=True, detail=f"{url} answered {answer.status_code}")


def _degraded(answer: httpx.Response) -> str:
    """What a proxy that is ready does without."""
    try:
        said = answer.json()
    except ValueError:
        return ""
    return str(said.get("degraded", ""))[:300] if isinstance(said, dict) else ""


async def _upstreams(loaded: Loaded) -> list[Checked]:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        return list(
            await asyncio.gather(
                *(
                    _upstream(client, one.name, one.base_url, one.credential, one.dialect)
                    for one in loaded.config.upstreams
                    if one.base_url is not None and one.dialect is not Dialect.LITELLM
                )
            )
        )


async def _upstream(
    client: httpx.AsyncClient, name: str, base_url: str, credential: str | None, dialect: Dialect
) -> Checked:
    """Whether an upstream can be reached with its credential; its list of models costs nothing."""
    what = f"upstream {name}"
    try:
        secret = "" if credential is None else resolve(credential).reveal()
        anthropic = dialect is Dialect.ANTHROPIC
        headers = {"x-api-key": secret} if anthropic else {"authorization": f"Bearer {secret}"}
        headers = (headers if secret else {}) | ({"anthropic-version": "2023-06-01"} if anthropic else {})
        answer = await client.get(f"{base_url.rstrip('/')}{'/v1' if anthropic else ''}/models", headers=headers)
    except SecretUnavailable as error:
        return Checked(what, ok=False, detail=error.message, todo="set it where the proxy runs, too")
    except (httpx.HTTPError, socket.gaierror) as error:
        return Checked(
            what,
            ok=False,
            detail=f"{base_url} cannot be reached ({type(error).__name__})",
            todo="check the address and the network",
        )
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return Checked(
            what,
            ok=False,
            detail=f"{base_url} refuses the credential ({answer.status_code})",
            todo="renew the key that the reference names",
        )
    return Checked(
        what, answer.is_success, f"{base_url} answered {answer.status_code}", "see the provider's status page"
    )


COMMANDS = (check_config, doctor)

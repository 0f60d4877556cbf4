"""Virtual keys and what they may use: keys, tenants, models."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import msgspec

from controlplane.catalog.keys import Keys
from controlplane.catalog.load import load
from controlplane.catalog.state import KeyRecord
from controlplane.cli.installation import Installation, config_option, data_option, open_installation
from controlplane.cli.output import json_option, moment, print_json, print_table, speaks_plainly
from controlplane.clock import US_PER_S

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_EXPIRY_S_MAX = 36_525 * 86_400  # a hundred years; a key for ever needs no expiry


def _now_us() -> int:
    return time.time_ns() // 1_000


@contextmanager
def _keys(installation: Installation) -> Iterator[Keys]:
    config = installation.loaded.config
    with closing(installation.journal()) as journal:
        yield Keys(
            journal,
            pepper=installation.secrets.key_pepper_bytes,
            now_us=_now_us,
            tenants=lambda: [tenant.name for tenant in config.tenants],
            models=lambda: [model.name for model in config.models],
        )


@click.group()
def keys() -> None:
    """Virtual keys: what agents show the proxy."""


@keys.command("create")
@config_option
@data_option
@click.option("--tenant", required=True, help="Who pays.")
@click.option("--name", default="", help="What it is for.")
@click.option("--model", "models", multiple=True, help="An alias it is limited to; may be repeated.")
@click.option(
    "--address", "addresses", multiple=True, help="An address or network it may be used from; may be repeated."
)
@click.option("--expires-in", default=None, help="How long it is good, such as 12h or 30d; for ever unless set.")
@json_option
@speaks_plainly
def create(
    config: Path,
    data: Path | None,
    tenant: str,
    name: str,
    models: tuple[str, ...],
    addresses: tuple[str, ...],
    expires_in: str | None,
    as_json: bool,
) -> None:
    """Makes a key and shows its secret, this once."""
    expires_us = None if expires_in is None else _now_us() + _seconds(expires_in, "--expires-in") * US_PER_S
    installation = open_installation(config, data=data)
    with _keys(installation) as known:
        issued = known.create(
            tenant,
            name=name,
            models=models or None,
            expires_us=expires_us,
            addresses=addresses or None,
            actor=f"cli:{getpass.getuser()}",
        )
    if as_json:
        print_json({"id": issued.record.id, "key": issued.secret.reveal()})
        return
    click.echo(f"{issued.secret.reveal()}\n")
    click.echo(f"Key {issued.record.id} of tenant {tenant}. It is not shown again; proxies accept it within a second.")


@keys.command("list")
@config_option
@data_option
@click.option("--tenant", default=None, help="Only this tenant's.")
@json_option
@speaks_plainly
def list_keys(config: Path, data: Path | None, tenant: str | None, as_json: bool) -> None:
    """Lists all keys, without their secrets."""
    with _keys(open_installation(config, data=data)) as known:
        found = known.list(tenant=tenant)
    if as_json:
        print_json([_without_hash(record) for record in found])
        return
    now_us = _now_us()
    print_table(
        "keys",
        ("id", "tenant", "name", "models", "made", "state"),
        [
            (
                one.id,
                one.tenant,
                one.name,
                ", ".join(one.models or ("all",)),
                moment(one.created_us),
                _state(one, now_us),
            )
            for one in found
        ],
    )


@keys.command("rotate")
@config_option
@data_option
@click.argument("key_id")
@click.option(
    "--grace", default="24h", show_default=True, help="How long the secret before stays good, such as 0s or 7d."
)
@json_option
@speaks_plainly
def rotate(config: Path, data: Path | None, key_id: str, grace: str, as_json: bool) -> None:
    """Gives a key a new secret and shows it, this once; the one before stays good for a while."""
    grace_us = 0 if grace.strip() in {"0", "0s"} else _seconds(grace, "--grace") * US_PER_S
    with _keys(open_installation(config, data=data)) as known:
        issued = known.rotate(key_id, grace_us=grace_us, actor=f"cli:{getpass.getuser()}")
    if as_json:
        print_json(
            {"id": issued.record.id, "key": issued.secret.reveal(), "grace_until_us": issued.record.grace_until_us}
        )
        return
    click.echo(f"{issued.secret.reveal()}\n")
    until = f"stays good until {moment(issued.record.grace_until_us)}" if grace_us else "is worthless within a second"
    click.echo(f"The new secret of key {key_id}. It is not shown again; the one before {until}.")


@keys.command("revoke")
@config_option
@data_option
@click.argument("key_id")
@click.option("--reason", default="", help="Kept in the journal.")
@json_option
@speaks_plainly
def revoke(config: Path, data: Path | None, key_id: str, reason: str, as_json: bool) -> None:
    """Makes a key worthless, on all proxies within a second."""
    with _keys(open_installation(config, data=data)) as known:
        record = known.revoke(key_id, reason=reason, actor=f"cli:{getpass.getuser()}")
    if as_json:
        print_json(_without_hash(record))
        return
    click.echo(f"Key {record.id} of tenant {record.tenant} is revoked.")


@click.command()
@config_option
@json_option
@speaks_plainly
def tenants(config: Path, as_json: bool) -> None:
    """Lists tenants with their limits."""
    found = load(config).config.tenants
    if as_json:
        print_json(found)
        return
    rows = []
    for tenant in found:
        limits = msgspec.structs.asdict(tenant.limits)
        said = ", ".join(f"{name} {value:,}" for name, value in limits.items() if value is not None)
        rows.append((tenant.name, ", ".join(tenant.models or ("all",)), said or "none"))
    print_table("tenants", ("tenant", "models", "limits"), rows)


@click.command()
@config_option
@json_option
@speaks_plainly
def models(config: Path, as_json: bool) -> None:
    """Lists model aliases and the deployments that serve them."""
    found = load(config).config.models
    if as_json:
        print_json(found)
        return
    rows = [
        (model.name, one.deployment_id, one.order, one.weight, f"{model.timeout_s:g}")
        for model in found
        for one in model.deployments
    ]
    print_table(
        "models", ("alias", "deployment", "order", "weight", "timeout s"), rows, right=("order", "weight", "timeout s")
    )


def _seconds(text: str, option: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    seconds = 0 if match is None else int(match[1]) * _UNITS_S[match[2]]
    if not 0 < seconds <= _EXPIRY_S_MAX:
        raise click.BadParameter(
            f"{text!r} is no length of time up to 100 years; say 90s, 15m, 12h or 30d", param_hint=f"'{option}'"
        )
    return seconds


def _state(key: KeyRecord, now_us: int) -> str:
    if key.revoked_us:
        return f"revoked {moment(key.revoked_us)}"
    if key.grace_until_us > now_us:
        return f"good, the former secret until {moment(key.grace_until_us)}"
    if key.expires_us is not None:
        return f"{'expired' if key.expires_us <= now_us else 'good until'} {moment(key.expires_us)}"
    return "good"


def _without_hash(record: KeyRecord) -> dict[str, object]:
    """All of a key but its hashes; every field is there, also one that says nothing."""
    return {
        name: value for name, value in msgspec.structs.asdict(record).items() if name not in ("hash", "former_hash")
    }


COMMANDS = (keys, tenants, models)

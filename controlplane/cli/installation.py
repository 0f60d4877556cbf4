"""The installation that a command works on: its configuration file, settings and secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click
import msgspec

from controlplane.catalog.load import Loaded, load
from controlplane.cli.remote import Remote
from controlplane.errors import ConfigError
from controlplane.secrets import ServerSecrets, load_secrets
from controlplane.settings import Settings

if TYPE_CHECKING:
    from controlplane.journal.journal import Journal

P = ParamSpec("P")
R = TypeVar("R")
DEFAULT_CONFIG = "hephaestus.yaml"


@dataclass(frozen=True, slots=True)
class Installation:
    """What the configuration file names; opening it makes the data folder and its secrets when they are missing."""

    path: Path
    loaded: Loaded
    secrets: ServerSecrets

    @property
    def settings(self) -> Settings:
        """The server section."""
        return self.loaded.settings

    @property
    def remote(self) -> Remote:
        """The running control plane's API."""
        return Remote(self.settings, self.secrets)

    def journal(self) -> Journal:
        """The journal, opened; several processes may have it open at once."""
        from controlplane.journal.journal import Journal  # noqa: PLC0415 - a database's tools, which a proxy starts without

        self.settings.data_path.mkdir(parents=True, exist_ok=True)
        return Journal.open(self.settings.journal)


def open_installation(path: Path, *, data: Path | None = None, workers: int | None = None) -> Installation:
    """Reads the configuration file and the secrets beside it; options of the command line win over the file."""
    loaded = load(path)
    server = loaded.config.server
    if data is not None:
        server = msgspec.structs.replace(server, data_dir=str(data))
    if workers is not None:
        server = msgspec.structs.replace(server, workers=workers)
    settings = server.resolved()
    loaded = msgspec.structs.replace(loaded, settings=settings)
    try:
        settings.data_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError.at(
            str(path),
            f"the data folder {settings.data_path} cannot be made: {error.strerror}",
            hint="see server.data_dir",
        ) from error
    return Installation(path=path, loaded=loaded, secrets=load_secrets(settings.data_path))


def config_option(command: Callable[P, R]) -> Callable[P, R]:
    """Adds `--config`."""
    return click.option(
        "--config", "config", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_CONFIG, show_default=True,
        envvar="HEPHAESTUS_CONFIG", help="Configuration file.",
    )(command)  # fmt: skip


def data_option(command: Callable[P, R]) -> Callable[P, R]:
    """Adds `--data`."""
    return click.option(
        "--data", "data", type=click.Path(path_type=Path, file_okay=False), default=None,
        help="Data folder, instead of the file's `server.data_dir`.",
    )(command)  # fmt: skip

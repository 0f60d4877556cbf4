"""Loads what the proxy is started with: the settings file, and the secrets from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import msgspec

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import parse_redis_address

PEPPER_VARIABLE = "HEPH_KEY_PEPPER"
TOKEN_VARIABLE = "HEPH_INTERNAL_TOKEN"  # noqa: S105 - a name, not a secret
REDIS_PASSWORD_VARIABLE = "HEPH_REDIS_PASSWORD"  # noqa: S105 - a name, not a secret


class SettingsError(Exception):
    """Settings with which the proxy cannot start; the message says what to change."""


class Secret:
    """A value that is never shown by accident: its text and its representation are stars."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def reveal(self) -> str:
        """The value itself, for the one place that needs it."""
        return self._value


class ProxySecrets(msgspec.Struct, frozen=True):
    """What a worker knows and never writes down."""

    key_pepper: Secret
    internal_token: Secret
    redis_password: Secret | None = None

    @property
    def pepper_bytes(self) -> bytes:
        """The key of the virtual keys' hash."""
        return bytes.fromhex(self.key_pepper.reveal())


def load_settings(path: Path) -> ProxySettings:
    """The settings in a JSON file.

    Raises SettingsError if the file cannot be read or does not fit.
    """
    try:
        settings = msgspec.json.decode(path.read_bytes(), type=ProxySettings)
    except OSError as error:
        raise SettingsError(f"cannot read the proxy's settings at {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"the proxy's settings at {path} are not valid: {error}") from error
    try:
        if settings.redis is not None:
            parse_redis_address(settings.redis)
    except ValueError as error:
        raise SettingsError(f"`redis` in the proxy's settings at {path} {error}") from error
    for network in settings.trusted_proxies:
        try:
            ip_network(network)
        except ValueError as error:
            raise SettingsError(f"`trusted_proxies` in the proxy's settings at {path}: {error}") from error
    return settings


def load_secrets(environ: Mapping[str, str]) -> ProxySecrets:
    """The secrets that the command line hands over in the environment.

    Raises SettingsError if one is missing or the pepper is not hexadecimal.
    """
    for name in (PEPPER_VARIABLE, TOKEN_VARIABLE):
        if not environ.get(name):
            raise SettingsError(f"{name} is not set; start the proxy with `hephaestus proxy`, which sets it")
    try:
        bytes.fromhex(environ[PEPPER_VARIABLE])
    except ValueError as error:
        raise SettingsError(f"{PEPPER_VARIABLE} is not hexadecimal; copy it again from `secrets/key-pepper`") from error
    redis_password = environ.get(REDIS_PASSWORD_VARIABLE)
    return ProxySecrets(
        key_pepper=Secret(environ[PEPPER_VARIABLE]),
        internal_token=Secret(environ[TOKEN_VARIABLE]),
        redis_password=Secret(redis_password) if redis_password else None,
    )

"""Secrets: a type that does not show what it holds, references to secrets, and the three that Hephaestus makes for itself."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from controlplane.errors import SecretUnavailable

SECRET_BYTES_MAX = 64 * 1024
KEY_PEPPER_ENV = "HEPH_KEY_PEPPER"
INTERNAL_TOKEN_ENV = "HEPH_INTERNAL_TOKEN"  # noqa: S105 - a name, not a secret
OPERATOR_TOKEN_ENV = "HEPH_OPERATOR_TOKEN"  # noqa: S105 - a name, not a secret
REDIS_PASSWORD_ENV = "HEPH_REDIS_PASSWORD"  # noqa: S105 - a name, not a secret

_PEPPER_HEX = 64


class Secret:
    """A text that is never shown: `repr`, `str` and formatting give `***`, pickling and hashing are refused."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._text

    def matches(self, candidate: str) -> bool:
        """Whether the candidate is the secret, in time that does not depend on where they differ."""
        return hmac.compare_digest(self._text.encode(), candidate.encode("utf-8", "surrogateescape"))

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other.reveal())

    __hash__ = None  # type: ignore[assignment]  # a secret is no key of anything

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down")


class ServerSecrets(msgspec.Struct, frozen=True):
    """What one installation keeps to itself.

    key_pepper: 64 hex characters; the key of the keyed hash of virtual keys. Changing it makes all virtual keys invalid.
    internal_token: what proxies and the control plane show each other. operator_token: what operators show the API.
    """

    key_pepper: Secret
    internal_token: Secret
    operator_token: Secret

    @property
    def key_pepper_bytes(self) -> bytes:
        """The pepper as `controlplane.contract.keys.hash_key` wants it: 32 bytes."""
        return bytes.fromhex(self.key_pepper.reveal())

    def proxy_environment(self) -> dict[str, str]:
        """What a proxy process gets in its environment."""
        return {KEY_PEPPER_ENV: self.key_pepper.reveal(), INTERNAL_TOKEN_ENV: self.internal_token.reveal()}


def load_secrets(data_dir: Path, environ: Mapping[str, str] | None = None) -> ServerSecrets:
    """The installation's own secrets; those that do not exist yet are made, readable by their owner only.

    A value in the environment wins and writes no file. Safe to call from several processes at once: whoever creates the file first
    decides, the others read it.
    Raises SecretUnavailable when a file cannot be made or read, or holds something else.
    """
    environ = os.environ if environ is None else environ
    folder = data_dir / "secrets"
    pepper = _own_secret(folder / "key-pepper", environ.get(KEY_PEPPER_ENV), f"env:{KEY_PEPPER_ENV}")
    if len(pepper) != _PEPPER_HEX or any(c not in "0123456789abcdefABCDEF" for c in pepper):
        where = f"env:{KEY_PEPPER_ENV}" if environ.get(KEY_PEPPER_ENV) else str(folder / "key-pepper")
        raise SecretUnavailable(
            f"{where} must hold {_PEPPER_HEX} hex characters (32 bytes); make one with `openssl rand -hex 32`"
        )
    return ServerSecrets(
        key_pepper=Secret(pepper),
        internal_token=Secret(
            _own_secret(folder / "internal-token", environ.get(INTERNAL_TOKEN_ENV), f"env:{INTERNAL_TOKEN_ENV}")
        ),
        operator_token=Secret(
            _own_secret(folder / "operator-token", environ.get(OPERATOR_TOKEN_ENV), f"env:{OPERATOR_TOKEN_ENV}")
        ),
    )


def resolve(reference: str, environ: Mapping[str, str] | None = None) -> Secret:
    """The secret that a reference names: `env:NAME` or `file:/path` (surrounding white space is dropped).

    Raises SecretUnavailable, saying what to do, when there is none or it is empty. Reads a file: not for the hot path.
    """
    environ = os.environ if environ is None else environ
    kind, _, name = reference.partition(":")
    if kind == "env" and name:
        if not (text := environ.get(name, "").strip()):
            raise SecretUnavailable(
                f"environment variable {name} is not set; set it, or change the reference `{reference}`"
            )
        return Secret(text)
    if kind == "file" and name:
        return Secret(_read(Path(name), reference))
    raise SecretUnavailable("a secret is written as `env:NAME` or `file:/path`, never as the secret itself")


def is_reference(text: str) -> bool:
    """Whether a text has the form of a reference; says nothing about whether it can be resolved."""
    kind, _, name = text.partition(":")
    return kind in {"env", "file"} and name.strip() == name != ""


def _own_secret(path: Path, from_environment: str | None, name: str) -> str:
    """A value from the environment, else from its file, else a fresh one that is written to the file."""
    if from_environment is not None:
        if not from_environment.strip():
            raise SecretUnavailable(f"{name} is set but empty; unset it or give it a value")
        return from_environment.strip()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path, secrets.token_hex(_PEPPER_HEX // 2))
    except FileExistsError:
        pass
    except OSError as error:
        raise SecretUnavailable(f"cannot make {path}: {error.strerror}; is the data folder writable?") from error
    return _read(path, str(path))


def _create(path: Path, text: str) -> None:
    """Writes a whole new file or none: it appears under its name only when it is complete.

    Raises FileExistsError when the name is taken.
    """
    if path.exists():
        raise FileExistsError(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails when somebody was faster, unlike a rename
    finally:
        draft.unlink()


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
        text = data.decode().strip()
    except OSError as error:
        raise SecretUnavailable(f"cannot read the secret {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretUnavailable(f"the secret {name} is not text") from error
    if len(data) > SECRET_BYTES_MAX:
        raise SecretUnavailable(f"the secret {name} is larger than {SECRET_BYTES_MAX} bytes; is it the right file?")
    if not text:
        raise SecretUnavailable(f"the secret {name} is empty")
    return text

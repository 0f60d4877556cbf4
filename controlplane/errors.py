"""The one tree of control-plane errors; `controlplane.api.problems` maps it to HTTP once, the CLI prints it once.

Raise these for what an operator or client can do something about. What nobody expects rises as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class HephaestusError(Exception):
    """Something went wrong that has a name: a stable code, a sentence for people, and the HTTP status it maps to.

    message: what happened, to what, and what to do; never holds a secret.
    """

    code: str = "internal"
    status: int = 500

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class BadRequest(HephaestusError):
    """The caller asked for something that makes no sense; repeating it will not help."""

    code = "bad_request"
    status = 400


class Unauthorized(HephaestusError):
    """The caller showed no valid token."""

    code = "unauthorized"
    status = 401


class Forbidden(HephaestusError):
    """The caller is known but may not do this."""

    code = "forbidden"
    status = 403


class NotFound(HephaestusError):
    """What was asked for does not exist."""

    code = "not_found"
    status = 404


class Conflict(HephaestusError):
    """Somebody else changed it first, or it is already there; read it again, then decide."""

    code = "conflict"
    status = 409


class TooLarge(HephaestusError):
    """A body, a result or a file exceeds its bound."""

    code = "too_large"
    status = 413


class TooMany(HephaestusError):
    """A bound on how many may wait or run at once was reached; try again later."""

    code = "too_many"
    status = 429


class SecretUnavailable(HephaestusError):
    """A secret that a reference names cannot be read."""

    code = "secret_unavailable"
    status = 500


class StoreUnavailable(HephaestusError):
    """The telemetry store does not answer; what was not stored is kept and sent again."""

    code = "store_unavailable"
    status = 503


class JournalUnavailable(HephaestusError):
    """The journal does not answer; nothing is decided until it does."""

    code = "journal_unavailable"
    status = 503


class UpstreamFailed(HephaestusError):
    """A service that we call (a webhook, a provider) did not do what was asked."""

    code = "upstream_failed"
    status = 502


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mistake in a file that a person wrote. line: from 1; 0 when the file as a whole is meant."""

    file: str
    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(HephaestusError):
    """A configuration was refused as a whole; carries every mistake found, so that all can be mended in one go."""

    code = "bad_config"
    status = 422

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems) or "the configuration is not valid")

    @classmethod
    def at(cls, file: str, message: str, *, line: int = 0, hint: str = "") -> ConfigError:
        """A refusal for one mistake."""
        return cls((Problem(file=file, line=line, message=message, hint=hint),))

"""Errors carry what the API and the CLI need."""

from __future__ import annotations

import pytest

from controlplane import errors
from controlplane.errors import ConfigError, HephaestusError, NotFound, Problem


def all_errors() -> list[type[HephaestusError]]:
    """Every kind of error in the tree."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HephaestusError)]


def test_every_error_has_its_own_code() -> None:
    """Two kinds of error never share a code, so that a client can tell them apart."""
    codes = [kind.code for kind in all_errors()]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_maps_to_an_error_status(kind: type[HephaestusError]) -> None:
    """Each kind maps to a status of 400 or more."""
    assert 400 <= kind.status <= 599


def test_message_is_kept() -> None:
    """The sentence for people is both the text and an attribute; code and status come from the kind."""
    error = NotFound("no incident inc_1; `hephaestus incidents list` shows those there are")
    assert ("not_found", 404, str(error)) == (error.code, error.status, error.message)


def test_code_and_status_can_be_narrowed() -> None:
    """One error may say more than its kind, without changing the kind."""
    error = HephaestusError("boom", code="boom", status=507)
    assert ("boom", 507, "internal", 500) == (error.code, error.status, HephaestusError.code, HephaestusError.status)


def test_config_error_names_every_mistake() -> None:
    """All mistakes of a file are told at once, each with its place and hint."""
    error = ConfigError(
        [Problem("h.yaml", 3, "unknown key `prot`", "did you mean `port`?"), Problem("h.yaml", 0, "too large")]
    )
    assert str(error) == "h.yaml:3: unknown key `prot` (did you mean `port`?)\nh.yaml: too large"

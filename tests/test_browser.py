"""Finding a browser for the tests that look at pages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.browser import find_chromium, install_commands, succeeds


def test_a_named_browser_wins_also_when_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEPH_CHROMIUM decides alone, so that a test run can be told to have no browser."""
    named = tmp_path / "my-chromium"
    named.write_text("#!/bin/sh\n")
    named.chmod(0o755)
    monkeypatch.setenv("HEPH_CHROMIUM", str(named))
    assert str(named) == find_chromium()
    monkeypatch.setenv("HEPH_CHROMIUM", str(tmp_path / "missing"))
    assert find_chromium() is None


def test_a_browser_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the usual names will do; without one there is none."""
    monkeypatch.delenv("HEPH_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_chromium() is None
    (tmp_path / "google-chrome").write_text("#!/bin/sh\n")
    (tmp_path / "google-chrome").chmod(0o755)
    assert str(tmp_path / "google-chrome") == find_chromium()


@pytest.mark.parametrize(
    ("apt_get", "is_root", "sudo", "begins"),
    [
        ("/usr/bin/apt-get", True, None, ["/usr/bin/apt-get", "--quiet"]),
        ("/usr/bin/apt-get", False, "/usr/bin/sudo", ["/usr/bin/sudo", "--non-interactive"]),
        ("/usr/bin/apt-get", False, None, None),
        (None, True, "/usr/bin/sudo", None),
    ],
)
def test_nothing_is_installed_without_leave(
    apt_get: str | None, is_root: bool, sudo: str | None, begins: list[str] | None
) -> None:
    """Only root, or who may become root without a password, installs a browser, and nobody is asked."""
    commands = install_commands(apt_get=apt_get, is_root=is_root, sudo=sudo)
    assert ([begins, begins] if begins else []) == [command[:2] for command, _ in commands]


def test_a_command_that_hangs_is_given_up(tmp_path: Path) -> None:
    """A package manager that waits for a lock or a network costs its seconds and no more, also if its children live on."""
    began = time.monotonic()
    assert not succeeds(["sh", "-c", "sleep 30 & sleep 30"], seconds=0.2)
    assert time.monotonic() - began < 20
    assert succeeds(["true"], seconds=30)
    assert not succeeds(["false"], seconds=30)
    assert not succeeds([str(tmp_path / "missing")], seconds=30)

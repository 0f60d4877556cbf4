"""A Chromium for the tests that look at pages: `make test` runs this first, and the tests ask `find_chromium`.

Looks at HEPH_CHROMIUM and the PATH. When there is none and Debian's package manager may be used, installs Debian's `chromium`; else
says how to get one. Never fails: tests that need a browser are skipped without one, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
HOW = (
    "no Chromium found: the tests that look at the console are skipped.\n"
    "Install Chromium or Chrome, or set HEPH_CHROMIUM to its executable."
)
INSTALL_TIMEOUT_S = 600


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, or None. HEPH_CHROMIUM wins, also when it names nothing that can run."""
    if (named := os.environ.get("HEPH_CHROMIUM")) is not None:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install_command(*, apt_get: str | None, is_root: bool, sudo: str | None) -> list[str] | None:
    """How this machine can install Debian's Chromium without asking anybody, or None when it cannot."""
    if apt_get is None or not (is_root or sudo):
        return None
    prefix = [] if is_root else [str(sudo), "--non-interactive"]
    return [*prefix, apt_get, "install", "--yes", "--quiet", "--no-install-recommends", "chromium"]


def main() -> int:
    """Finds or installs a Chromium, or says how to get one; always 0, since tests run without one too."""
    if find_chromium() is None and "HEPH_CHROMIUM" not in os.environ:
        command = install_command(
            apt_get=shutil.which("apt-get"), is_root=os.geteuid() == 0, sudo=_sudo_without_password()
        )
        if command is not None:
            sys.stdout.write("installing Debian's chromium for the tests of the console ...\n")
            sys.stdout.flush()
            update = [*command[: command.index("install")], "update", "--quiet"]
            _run(update)
            _run(command)
    if find_chromium() is None:
        sys.stdout.write(HOW + "\n")
    return 0


def _sudo_without_password() -> str | None:
    sudo = shutil.which("sudo")
    return sudo if sudo is not None and _run([sudo, "--non-interactive", "true"]) else None


def _run(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())

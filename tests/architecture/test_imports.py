"""Imports point one way: the contracts of `pyproject.toml` hold, and importing does nothing."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("controlplane", "proxy", "detectors", "dashboards")
RUNS_ON_IMPORT = {"__main__"}

_QUIET = """
import sys, builtins, importlib, socket, threading, subprocess
name = ""
def refuse(what):
    def f(*a, **k):
        raise AssertionError(f"importing {name} must not {what}: {a[:1]}")
    return f
# third parties first: what they do at import is theirs
import asyncio, importlib.util
for third in ("msgspec", "numpy", "litestar", "uvicorn", "clickhouse_connect", "sqlalchemy", "alembic", "structlog", "rich",
              "click", "httpx", "prometheus_client", "yaml", "jinja2", "openai", "tiktoken", "diskcache", "pybreaker", "sklearn.ensemble",
              "standardwebhooks", "watchfiles", "grafana_client", "litestar.openapi.plugins", "litestar.testing", "logging.handlers"):
    try:
        importlib.import_module(third)
    except ImportError:
        pass
opened = builtins.open
def watched(file, mode="r", *a, **k):
    if any(c in mode for c in "wax+"):
        raise AssertionError(f"importing {name} must not write files: {file}")
    return opened(file, mode, *a, **k)
sys.dont_write_bytecode = True
builtins.open = watched
socket.socket.connect = refuse("open sockets")
socket.socket.bind = refuse("open sockets")
threading.Thread.start = refuse("start threads")
subprocess.Popen.__init__ = refuse("start processes")
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def _modules() -> list[str]:
    names = []
    for package in PACKAGES:
        names.append(package)
        for info in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}."):
            if info.name.rsplit(".", 1)[-1] not in RUNS_ON_IMPORT and ".migrations" not in info.name:
                names.append(info.name)
    return names


def test_the_import_contracts_hold() -> None:
    """Every import contract of the project is kept."""
    outcome = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_importing_does_nothing() -> None:
    """Importing any module opens no socket, starts no thread or process and writes no file."""
    outcome = subprocess.run(
        [sys.executable, "-c", _QUIET, *_modules()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def test_the_proxy_starts_light() -> None:
    """Importing the proxy loads neither a web framework nor a database driver nor litellm."""
    script = "import sys, proxy.app; print([m for m in ('litestar','litellm','chdb','sqlalchemy','pandas','numpy') if m in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


def test_the_commands_that_serve_start_light() -> None:
    """What starts the proxy, and what starts both planes, loads no database's tools and none of the control plane itself."""
    script = "import sys, controlplane.cli.serve; print([m for m in ('litestar','chdb','sqlalchemy','alembic','numpy') if m in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"

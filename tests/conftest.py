"""What tests of several packages share: the one embedded store that a process can open, and what makes every run alike."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from controlplane.store.client import Store
from controlplane.store.migrate import migrate
from controlplane.store.schema import TABLES
from tests.guardian import STARTED_BY, started_by


def _parse_undisturbed(parse: Callable[..., ast.AST], *arguments: Any, **more: Any) -> ast.AST:
    """`ast.parse` while nothing is collected.

    A finalizer that parses too, as the report of a warning does, makes CPython 3.11 give the outer one up: "AST constructor recursion depth mismatch".
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return parse(*arguments, **more)
    finally:
        if enabled:
            gc.enable()


ast.parse = functools.partial(_parse_undisturbed, ast.parse)  # the reports and sources that pytest and hypothesis read

MEMORY_DISK = Path("/dev/shm")
MEMORY_DISK_FREE_MIN_BYTES = 4 * 1024**3
FOLDER_PREFIX = "hephaestus-tests-"
AUTHORITY = Path(__file__).with_name("authority.pem")  # long expired, and its key is lost
LONG = (
    "tests/e2e/test_crashes.py",
    "tests/proxy/test_hosts.py",
    "tests/e2e/test_tenants.py",
    "tests/e2e/test_hostile.py",
    "tests/proxy/test_supervisor.py",
    "tests/proxy/test_workers_shared.py",
)
"""Files that take long, the longest first."""
LEAVING_S_MAX = 30.0  # for processes that are about to end when the tests have
_GUARDIAN = pytest.StashKey["subprocess.Popen[bytes]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes runs alike: the same examples each time, temporary folders in memory, a mark on each process that is started, and nobody to trust.

    `--hypothesis-profile=explore` looks for examples that nobody has seen yet.
    """
    settings.register_profile("alike", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("alike")
    config.stash[_GUARDIAN] = start_guardian()
    os.environ[STARTED_BY] = str(os.getpid())
    os.environ["SSL_CERT_FILE"] = str(
        AUTHORITY
    )  # each HTTP client reads all whom it is to trust, or 20 ms of the system's
    if config.option.basetemp is None and MEMORY_DISK.is_dir():
        remove_folders_of_the_dead(MEMORY_DISK)
        if shutil.disk_usage(MEMORY_DISK).free > MEMORY_DISK_FREE_MIN_BYTES:
            # A journal waits for the disk at each append, and tests make thousands.
            config.option.basetemp = str(MEMORY_DISK / f"{FOLDER_PREFIX}{os.getpid()}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts long files first: of the processes that share the tests none is alone with one of them at the end."""
    rank = {str(config.rootpath / name): at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives the memory disk back; a worker's folders are within those of the process that started it, and go with them."""
    guardian = config.stash.get(_GUARDIAN, None)
    if guardian is not None:
        guardian.communicate()
    if config.option.basetemp == str(MEMORY_DISK / f"{FOLDER_PREFIX}{os.getpid()}"):
        shutil.rmtree(config.option.basetemp, ignore_errors=True)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names cases of bytes by number: the processes that share the tests must agree on names, and compressed bytes hold the time."""
    return argname if isinstance(val, bytes) else None


def remove_folders_of_the_dead(parent: Path) -> None:
    """Removes what test processes left behind that were killed before they could."""
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        pid = folder.name.removeprefix(FOLDER_PREFIX)
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def start_guardian() -> subprocess.Popen[bytes]:
    """Whoever ends what this process has started when this process is killed; it has no mark of ours, and no signal for us reaches it."""
    environ = {name: value for name, value in os.environ.items() if name != STARTED_BY}
    command = [sys.executable, str(Path(__file__).with_name("guardian.py")), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, start_new_session=True)


def started_here() -> dict[psutil.Process, str]:
    """The processes that this one started, and those that they started; each with its command."""
    return started_by(os.getpid())


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """After the last test no process that a test started is left; what is left is named and ended."""
    yield
    found = started_here()
    _, left = psutil.wait_procs(found, timeout=LEAVING_S_MAX)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert [] == [found[process] for process in left]


@pytest.fixture(scope="session")
def opened_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The embedded store of this test process, migrated; an engine can be opened on one path only, so nobody opens another."""
    data_dir = tmp_path_factory.mktemp("store")
    store = Store.open(f"chdb://{data_dir}/telemetry", data_dir=data_dir)
    migrate(store)
    yield store
    store.close()


@pytest.fixture
def store(opened_store: Store) -> Store:
    """The embedded store with every table empty."""
    for table in TABLES:
        opened_store.command(f"TRUNCATE TABLE {table.name}")
    return opened_store

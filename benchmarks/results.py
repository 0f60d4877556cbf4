"""Result files: what was measured, on what, with which versions and command."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("uvicorn", "uvloop", "httptools", "msgspec", "hephaestus-controlplane")


@dataclass(frozen=True, slots=True)
class Goal:
    """What was wanted, and what was reached."""

    name: str
    limit: str
    reached: str
    met: bool


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (
                line.split(":", 1)[1].strip()
                for line in cpuinfo.read_text().splitlines()
                if line.startswith("model name")
            ),
            "",
        )
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_optimized": _python_optimized(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _python_optimized() -> bool | None:
    """Whether the interpreter was built with profile-guided optimization; None where what it says is of another build, as on Debian."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    maps = Path("/proc/self/maps")
    if "--enable-shared" in arguments and maps.exists() and "libpython" not in maps.read_text():
        return None
    return "--enable-optimizations" in arguments


def commit() -> str:
    """The commit that was measured, marked when the tree had changes on top, other than results."""
    root = Path(__file__).parents[1]
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return head + ("+changes" if dirty else "")


def save(
    console: Console, name: str, *, command: str, figures: object, shows_not: str, goals: Sequence[Goal] = ()
) -> None:
    """Writes one result file, replacing the former of that name, and says what was met."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = {
        "benchmark": name,
        "command": command,
        "commit": commit(),
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "goals": [asdict(goal) for goal in goals],
        "figures": figures,
        "what_it_does_not_show": shows_not,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    for goal in goals:
        met = "[green]met[/]   " if goal.met else "[red]missed[/]"
        console.print(f"{met} {goal.name} (goal: {goal.limit}): {goal.reached}")
    console.print(f"written: {path.relative_to(FOLDER.parents[1])}")

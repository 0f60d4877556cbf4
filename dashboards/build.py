"""Writes the boards as the files that Grafana mounts, and finds those that are not as the code says. Byte-stable: no times, no ids of the day."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dashboards.model import Dashboard
from dashboards.overview import overview

DASHBOARDS_DIR = Path("grafana/dashboards")


def boards() -> dict[str, Dashboard]:
    """Every board by its file's name."""
    return {"overview.json": overview()}


def render(board: Dashboard) -> bytes:
    """A board as Grafana reads it, with a line end at the end."""
    return msgspec.json.format(msgspec.json.encode(board), indent=2) + b"\n"


def build(folder: Path = DASHBOARDS_DIR) -> list[Path]:
    """Writes all boards into a folder, which is made if need be; returns the files that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name in drifted(folder):
        path = folder / name
        if name in boards():
            path.write_bytes(render(boards()[name]))
        else:
            path.unlink()
        changed.append(path)
    return changed


def drifted(folder: Path = DASHBOARDS_DIR) -> list[str]:
    """Names of files that are missing, differ from the code, or belong to no board; empty when all is well."""
    wanted = {name: render(board) for name, board in boards().items()}
    found = {path.name: path.read_bytes() for path in folder.glob("*.json")} if folder.is_dir() else {}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))

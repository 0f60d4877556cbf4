"""Tests of how the planes are started."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from controlplane.cli.installation import open_installation
from controlplane.cli.serve import proxy_child
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.errors import SecretUnavailable


def _config(folder: Path, *lines: str) -> Path:
    path = folder / "hephaestus.yaml"
    path.write_text("\n".join(["server:", f"  data_dir: {folder / 'data'}", *(f"  {line}" for line in lines)]) + "\n")
    return path


def test_the_password_of_redis_reaches_the_proxy_by_its_environment_alone(tmp_path: Path) -> None:
    """The settings file has the address without the password, which stands in one variable; without Redis it is not handed on."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    config = _config(tmp_path, "redis: rediss://heph@cache:6379/1", f"redis_password: file:{secret}")
    child = proxy_child(open_installation(config))
    assert "hunter2" == child.environment["HEPH_REDIS_PASSWORD"]
    text = Path(child.command[-1]).read_bytes()
    assert "rediss://heph@cache:6379/1" == msgspec.json.decode(text, type=ProxySettings).redis
    assert b"hunter2" not in text
    assert "hunter2" not in " ".join(child.command)
    unused = proxy_child(open_installation(_config(tmp_path, f"redis_password: file:{secret}")))
    assert "HEPH_REDIS_PASSWORD" not in unused.environment


def test_a_password_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """Its reference is named, as for every other secret."""
    config = _config(tmp_path, "redis: redis://cache", f"redis_password: file:{tmp_path / 'none'}")
    with pytest.raises(SecretUnavailable, match="none"):
        proxy_child(open_installation(config))

"""What the proxy is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.contract.proxy_settings import ProxySettings
from proxy.settings import Secret, SettingsError, load_secrets, load_settings


def test_settings_are_read_and_checked(tmp_path: Path) -> None:
    """Defaults where nothing is said, an error with the path where something is wrong."""
    path = tmp_path / "settings.json"
    path.write_text('{"port": 4444}')
    assert ProxySettings(port=4444) == load_settings(path)
    for text in (
        "{",
        '{"prot": 1}',
        '{"port": "x"}',
        '{"redis": "redis://:pw@h"}',
        '{"redis_timeout_s": 0}',
        '{"workers": 0}',
        '{"port": 65536}',
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=r"settings\.json"):
            load_settings(path)
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(tmp_path / "none")


@pytest.mark.parametrize(
    "environ", [{}, {"HEPH_KEY_PEPPER": "ab"}, {"HEPH_KEY_PEPPER": "zz", "HEPH_INTERNAL_TOKEN": "t"}]
)
def test_secrets_that_are_missing_or_wrong_are_named(environ: dict[str, str]) -> None:
    """The variable is named, its value is not."""
    with pytest.raises(SettingsError, match="HEPH_"):
        load_secrets(environ)


def test_a_secret_is_not_shown() -> None:
    """Neither as text nor inside something else."""
    secrets = load_secrets({"HEPH_KEY_PEPPER": "00ff", "HEPH_INTERNAL_TOKEN": "token-value"})
    assert b"\x00\xff" == secrets.pepper_bytes
    assert "token-value" not in repr(secrets) + str(secrets) + f"{secrets.internal_token}"
    assert "***" == repr(Secret("x"))


def test_the_password_of_redis_may_be_absent() -> None:
    """It comes in the environment alone; an empty one is none, and one that is there is not shown."""
    environ = {"HEPH_KEY_PEPPER": "00ff", "HEPH_INTERNAL_TOKEN": "t"}
    assert load_secrets(environ).redis_password is None
    assert load_secrets(environ | {"HEPH_REDIS_PASSWORD": ""}).redis_password is None
    secrets = load_secrets(environ | {"HEPH_REDIS_PASSWORD": "hunter2"})
    assert secrets.redis_password is not None
    assert ("hunter2", False) == (secrets.redis_password.reveal(), "hunter2" in repr(secrets))

"""Settings say what they are and fit together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.settings import DECIDED_BY_SERVER, PROXY_SENTENCES, Autonomy, Settings, described


@pytest.mark.parametrize("setting", list(described()), ids=lambda setting: setting.path)
def test_every_setting_has_a_sentence(setting: msgspec.Struct) -> None:
    """Each setting is described by a sentence that ends with a full stop, and its type and default can be shown."""
    assert setting.sentence.endswith(".")  # type: ignore[attr-defined]
    assert setting.type  # type: ignore[attr-defined]
    assert setting.default  # type: ignore[attr-defined]


def test_reference_covers_every_proxy_setting() -> None:
    """A field added to the proxy's settings must be described here or be decided by the server section."""
    assert set(ProxySettings.__struct_fields__) == set(PROXY_SENTENCES) | set(DECIDED_BY_SERVER)


def test_reference_shows_unit_type_and_default() -> None:
    """A line of the reference has the path, the type in plain words and the default as it is written in the file."""
    lines = {setting.path: setting for setting in described()}
    assert ("whole number", "4001") == (lines["server.port"].type, lines["server.port"].default)
    assert ("text or null", "null") == (lines["server.redis"].type, lines["server.redis"].default)
    assert "`observe` | `suggest` | `approve` | `auto`" == lines["server.healing.autonomy"].type
    assert "{}" == lines["server.healing.overrides"].default


def test_data_dir_is_filled_in_everywhere(tmp_path: Path) -> None:
    """`${data_dir}` becomes the absolute folder in every place that may hold it, and resolving twice changes nothing."""
    settings = msgspec.convert({"data_dir": "d", "log": {"file": "${data_dir}/heph.log"}}, Settings).resolved(tmp_path)
    folder = (tmp_path / "d").resolve()
    assert f"chdb:///{folder}/telemetry" == settings.telemetry
    assert f"sqlite:///{folder}/journal.db" == settings.journal
    assert f"{folder}/heph.log" == settings.log.file
    assert folder == settings.data_path
    assert settings == settings.resolved(Path("/"))


def test_proxy_settings_take_their_places_from_the_server_section() -> None:
    """The proxy gets its address, workers and folder from `server:` and its bounds from `server.proxy`."""
    settings = msgspec.convert(
        {
            "proxy_port": 4100,
            "workers": 3,
            "data_dir": "/d",
            "port": 4101,
            "redis": "redis://h",
            "redis_password": "env:P",
            "proxy": {"drain_s": 1.5, "redis_timeout_s": 0.01},
        },
        Settings,
    )
    expected = ProxySettings(
        port=4100,
        workers=3,
        data_dir="/d",
        control_plane_url="http://127.0.0.1:4101",
        drain_s=1.5,
        redis="redis://h",
        redis_timeout_s=0.01,
    )
    assert expected == settings.proxy_settings()


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:4001"), ("::1", "http://[::1]:4001"), ("h", "http://h:4001")]
)
def test_control_plane_url_can_be_dialled(host: str, url: str) -> None:
    """An address that means every interface is dialled at the loopback address, and IPv6 gets its brackets."""
    assert url == Settings(host=host).control_plane_url


@pytest.mark.parametrize(
    "bad",
    [
        {"port": 70_000},
        {"workers": 0},
        {"prot": 1},
        {"healing": {"autonomy": "full"}},
        {"proxy": {"drain": 1}},
        {"detection": {"sweep_every_s": 0}},
        {"retention": {"calls_days": "many"}},
    ],
    ids=str,
)
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    """Unknown keys, wrong types and values out of bounds do not make settings."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Settings)


def test_defaults_are_within_their_own_bounds() -> None:
    """The defaults themselves pass the validation that files have to pass."""
    assert Settings() == msgspec.convert(msgspec.to_builtins(Settings()), Settings)
    assert Autonomy.AUTO is Settings().healing.autonomy

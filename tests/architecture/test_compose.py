"""The deployment files can be read and keep their promises: pinned, bounded, unprivileged, and pointing at what exists."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
import yaml

from controlplane.catalog.load import load
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import parse_redis_address
from controlplane.secrets import INTERNAL_TOKEN_ENV, KEY_PEPPER_ENV, OPERATOR_TOKEN_ENV

ROOT = Path(__file__).parents[2]
# Any: a document whose shape these tests check
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLICKHOUSE = ROOT / "deploy" / "clickhouse"
HEAVY_LOGS = {
    "trace_log",
    "text_log",
    "metric_log",
    "asynchronous_metric_log",
    "processors_profile_log",
    "query_thread_log",
}

every_service = pytest.mark.parametrize("name", SERVICES)


def _variables() -> set[str]:
    text = (ROOT / "docker-compose.yml").read_text()
    return set(re.findall(r"\$\{([A-Z_]+)", text))


def _example() -> dict[str, str]:
    """Each variable of the example with the comment above its paragraph."""
    found, comment = {}, ""
    for line in (ROOT / "deploy" / "env.example").read_text().splitlines():
        if line.startswith("#"):
            comment = line
        elif line:
            found[line.partition("=")[0]] = comment
    return found


def test_all_parts_of_the_fleet_are_there() -> None:
    """Both planes, the store, shared state, metrics and dashboards."""
    assert {"proxy", "controlplane", "clickhouse", "redis", "prometheus", "grafana"} == set(SERVICES)


@every_service
def test_every_image_is_pinned(name: str) -> None:
    """An image has a full version, so that tomorrow's start is today's."""
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", SERVICES[name]["image"])


@every_service
def test_every_service_is_unprivileged(name: str) -> None:
    """No root, no capabilities, no new privileges, no writable image, no host namespaces."""
    service = SERVICES[name]
    assert "0" != service["user"].partition(":")[0]
    assert service["read_only"] is True
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode"} & set(service)


@every_service
def test_every_service_is_bounded_and_watched(name: str) -> None:
    """Processor, memory, processes and log have limits, and something says whether it is well."""
    service = SERVICES[name]
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert {"max-size", "max-file"} == set(service["logging"]["options"])
    assert "unless-stopped" == service["restart"]


@every_service
def test_every_port_is_bound_to_this_machine(name: str) -> None:
    """Nothing is reachable from elsewhere until somebody decides so."""
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


@every_service
def test_every_mount_exists_and_what_is_kept_has_a_volume(name: str) -> None:
    """A mounted path is in the repository and read-only; any other volume is declared."""
    for mount in SERVICES[name].get("volumes", []):
        source, _, rest = mount.partition(":")
        if source.startswith("./"):
            assert rest.endswith(":ro")
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]


def test_only_those_with_an_open_port_are_on_the_open_network() -> None:
    """The stores are on internal networks alone."""
    for name, service in SERVICES.items():
        assert bool(service.get("ports")) == ("edge" in service["networks"]), name
    internal = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    assert set(COMPOSE["networks"]) - internal == {"edge"}
    assert {"telemetry"} == set(SERVICES["clickhouse"]["networks"])
    assert {"shared"} == set(SERVICES["redis"]["networks"])


def test_every_variable_is_explained() -> None:
    """What the compose file reads from the environment stands in the example with a comment, and nothing else does."""
    example = _example()
    assert _variables() == set(example)
    assert all(len(comment) > 20 for comment in example.values())


def test_secrets_have_no_default() -> None:
    """A secret that is missing stops the start; only the provider's credential may be empty."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"} == set(re.findall(r"\$\{([A-Z_]+):-", text))
    assert not re.search(r"(?i)(password|token|pepper|secret)\w*: *[\"']?[a-z0-9]{4,}", text)


def test_the_planes_get_the_secrets_they_read() -> None:
    """Names in the compose file are those of the code; the proxy never gets the operator's token."""
    shared = {KEY_PEPPER_ENV, INTERNAL_TOKEN_ENV}
    assert shared <= set(SERVICES["proxy"]["environment"])
    assert OPERATOR_TOKEN_ENV not in SERVICES["proxy"]["environment"]
    assert shared | {OPERATOR_TOKEN_ENV} <= set(SERVICES["controlplane"]["environment"])


def test_the_configuration_is_good() -> None:
    """The mounted configuration loads as it stands and points at the services by name and port."""
    loaded = load(ROOT / "deploy" / "config" / "hephaestus.yaml")
    assert "clickhouse://hephaestus@clickhouse:8123/hephaestus" == loaded.settings.telemetry
    assert (4001, "/data") == (loaded.settings.port, loaded.settings.data_dir)
    assert loaded.settings.redis == "redis://redis:6379/0"


def test_the_proxy_finds_its_control_plane() -> None:
    """The proxy's settings are of its type and name the control plane's service."""
    settings = msgspec.json.decode((ROOT / "deploy" / "config" / "proxy.json").read_bytes(), type=ProxySettings)
    assert ("http://controlplane:4001", 4000, "/data") == (settings.control_plane_url, settings.port, settings.data_dir)


def test_the_proxy_shares_its_answers() -> None:
    """It uses the Redis of the configuration, on a network they both are on, which forgets before it refuses to write."""
    settings = msgspec.json.decode((ROOT / "deploy" / "config" / "proxy.json").read_bytes(), type=ProxySettings)
    redis = load(ROOT / "deploy" / "config" / "hephaestus.yaml").settings.redis
    assert redis is not None
    assert redis == settings.redis
    assert "redis" == parse_redis_address(redis).host
    assert set(SERVICES["redis"]["networks"]) <= set(SERVICES["proxy"]["networks"])
    command = SERVICES["redis"]["command"]
    assert ("256mb", "volatile-lru") == tuple(
        command[command.index(name) + 1] for name in ("--maxmemory", "--maxmemory-policy")
    )


def test_prometheus_scrapes_what_runs() -> None:
    """Each target is a service on a network that Prometheus shares."""
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target.partition(":") for job in jobs for group in job["static_configs"] for target in group["targets"]]
    assert {"proxy": "4000", "controlplane": "4001", "clickhouse": "9363"} == {host: port for host, _, port in targets}
    for host, _, _ in targets:
        assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES[host]["networks"]) - {"edge"}


def test_grafana_gets_what_its_data_source_reads() -> None:
    """Every variable of the provisioned data source is set, and the boards are mounted where the provider looks."""
    source = (ROOT / "grafana" / "provisioning" / "datasources" / "hephaestus.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", source)) <= set(SERVICES["grafana"]["environment"])
    provider = yaml.safe_load((ROOT / "grafana" / "provisioning" / "dashboards" / "hephaestus.yaml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in SERVICES["grafana"]["volumes"]
    assert "grafana-clickhouse-datasource@" in SERVICES["grafana"]["environment"]["GF_PLUGINS_PREINSTALL_SYNC"]


def test_clickhouse_does_not_fill_the_disk_with_itself() -> None:
    """Its heavy system logs are off, the others expire, and its memory stays below the container's."""
    config = ET.parse(CLICKHOUSE / "config.d" / "hephaestus.xml").getroot()
    logs = [element for element in config if element.tag.endswith("_log")]
    assert {element.tag for element in logs if element.get("remove")} >= HEAVY_LOGS
    for kept in (element for element in logs if not element.get("remove")):
        assert "1" == kept.get("replace")
        assert re.search(r"TTL event_date \+ INTERVAL \d DAY DELETE", kept.findtext("engine", ""))
    memory = int(config.findtext("max_server_memory_usage", "0"))
    assert 0 < memory < 4 * 2**30
    assert "4g" == SERVICES["clickhouse"]["deploy"]["resources"]["limits"]["memory"]


def test_the_readers_of_clickhouse_can_only_read() -> None:
    """Three users and no default one; the reader is read-only, bounded, sees the telemetry alone and has a password."""
    users = ET.parse(CLICKHOUSE / "users.d" / "hephaestus.xml").getroot()
    assert "1" == users.find("users/default").get("remove")  # type: ignore[union-attr] # absent: the test fails
    named = {element.tag: element for element in users.find("users") or [] if element.tag != "default"}
    assert {"hephaestus", "reader", "probe"} == set(named)
    reader = named["reader"]
    assert ["GRANT SELECT ON hephaestus.*"] == [query.text for query in reader.findall("grants/query")]
    assert "HEPH_READER_PASSWORD" == reader.find("password").get("from_env")  # type: ignore[union-attr] # as above
    profile = users.find("profiles/reader")
    assert profile is not None
    assert "2" == profile.findtext("readonly")
    for bound in ("max_execution_time", "max_memory_usage", "max_result_rows", "max_result_bytes", "max_threads"):
        assert profile.find(bound) is not None
        assert profile.find(f"constraints/{bound}/max") is not None
        assert "1" == profile.findtext(f"constraints/{bound}/min")  # 0 would lift the bound
    assert ["controlplane"] == [host.text for host in named["hephaestus"].findall("networks/*")]
    assert {"127.0.0.1", "::1"} == {ip.text for ip in named["probe"].findall("networks/*")}


def test_the_image_is_built_from_the_lock_file_and_runs_unprivileged() -> None:
    """Pinned base, dependencies by hash, no root, and every package of the distribution in it."""
    text = (ROOT / "Dockerfile").read_text()
    assert {"python:3.11.14-slim-bookworm"} == set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert "--require-hashes -r requirements.lock" in text
    assert "10001:10001" == re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == SERVICES["proxy"]["user"]
    for package in ("controlplane", "proxy", "detectors", "dashboards"):
        assert f"COPY {package} {package}" in text
        assert f"!{package}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_fresh_secrets_are_made_once(tmp_path: Path) -> None:
    """The script fills every secret with 64 hex characters, readable by their owner alone, and never overwrites."""
    for name in ("make-env.sh", "env.example"):
        (tmp_path / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    command = ["sh", str(tmp_path / "make-env.sh")]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    written = tmp_path / ".env"
    values = dict(line.split("=", 1) for line in written.read_text().splitlines() if line and not line.startswith("#"))
    assert set(_example()) == set(values)
    secrets = [value for name, value in values.items() if name not in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in secrets)
    assert len(secrets) == len(set(secrets))
    assert 0o600 == stat.S_IMODE(written.stat().st_mode)
    before = written.read_bytes()
    subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    assert before == written.read_bytes()

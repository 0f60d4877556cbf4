"""The files under grafana/ are what the code says, and stay so."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from dashboards.build import DASHBOARDS_DIR, boards, build, drifted, render
from dashboards.overview import DATASOURCE_UID

REPOSITORY = Path(__file__).parents[2]


def test_the_committed_files_are_up_to_date() -> None:
    """Whoever changes a board commits its file: `hephaestus dashboards build`."""
    assert [] == drifted(REPOSITORY / DASHBOARDS_DIR)


def test_building_is_byte_stable(tmp_path: Path) -> None:
    """Twice the same bytes, and a second build changes nothing."""
    assert [tmp_path / "overview.json"] == build(tmp_path)
    first = (tmp_path / "overview.json").read_bytes()
    assert [] == build(tmp_path)
    assert first == (tmp_path / "overview.json").read_bytes() == render(boards()["overview.json"])


def test_drift_is_found_and_mended(tmp_path: Path) -> None:
    """A changed, a missing and a stray file are each named, and the next build puts them right."""
    assert ["overview.json"] == drifted(tmp_path / "nowhere")
    build(tmp_path)
    (tmp_path / "overview.json").write_text("{}")
    (tmp_path / "stray.json").write_text("{}")
    assert ["overview.json", "stray.json"] == drifted(tmp_path)
    build(tmp_path)
    assert [] == drifted(tmp_path)
    assert not (tmp_path / "stray.json").exists()


def test_the_json_has_what_grafana_asks_for() -> None:
    """The names are Grafana's, and what it always wants is always there."""
    board = json.loads(render(boards()["overview.json"]))
    assert {
        "uid",
        "title",
        "panels",
        "templating",
        "annotations",
        "time",
        "schemaVersion",
        "refresh",
        "editable",
    } <= board.keys()
    assert ("heph-overview", False, {"from": "now-1h", "to": "now"}) == (board["uid"], board["editable"], board["time"])
    panel = next(one for one in board["panels"] if one["type"] == "timeseries")
    assert {"gridPos", "fieldConfig", "datasource", "targets", "options"} <= panel.keys()
    assert {"refId", "rawSql", "editorType", "queryType", "format", "datasource"} == panel["targets"][0].keys()
    assert ["datasource", "tenant", "deployment"] == [one["name"] for one in board["templating"]["list"]]
    assert all(one["includeAll"] and one["multi"] for one in board["templating"]["list"][1:])


def test_the_provisioned_data_source_is_the_boards() -> None:
    """The uid that the board chooses first is the provisioned one, over HTTP, with the place from the environment."""
    (source,) = yaml.safe_load((REPOSITORY / "grafana/provisioning/datasources/hephaestus.yaml").read_text())[
        "datasources"
    ]
    assert (DATASOURCE_UID, "grafana-clickhouse-datasource") == (source["uid"], source["type"])
    data = source["jsonData"]
    assert ("http", "hephaestus", "${HEPH_CLICKHOUSE_PATH}") == (
        data["protocol"],
        data["defaultDatabase"],
        data["path"],
    )
    assert source["secureJsonData"]["password"].startswith("${")
    board = json.loads(render(boards()["overview.json"]))
    assert DATASOURCE_UID == board["templating"]["list"][0]["current"]["value"]


def test_provisioned_boards_cannot_be_edited_by_hand() -> None:
    """The files are the truth: changes made in Grafana would be lost, so they are not offered."""
    (provider,) = yaml.safe_load((REPOSITORY / "grafana/provisioning/dashboards/hephaestus.yaml").read_text())[
        "providers"
    ]
    assert (False, "file") == (provider["allowUiUpdates"], provider["type"])

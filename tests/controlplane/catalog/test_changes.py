"""What changed is told in names, never in values."""

from __future__ import annotations

from controlplane.catalog.changes import config_changes, restart_needed, state_changes
from controlplane.catalog.load import parse
from controlplane.catalog.state import CatalogState, KeyRecord
from controlplane.settings import Settings

ONE = "upstreams:\n  - {name: a, base_url: https://a.example/v1, credential: env:SECRET_NAME}\n"
TWO = "upstreams:\n  - {name: a, base_url: https://a.example/v2, credential: env:OTHER_NAME}\n  - {name: b, base_url: https://b.example/v1}\n"


def test_sections_tell_what_came_went_and_changed() -> None:
    """Each section names its entries; values do not appear."""
    one, two = (
        parse(text, file="h.yaml").config
        for text in (ONE, TWO + "breaker: {open_s: 1}\nprices: {m: {input: 1, output: 1}}\n")
    )
    assert ("upstreams: added b", "upstreams: changed a", "prices: added m", "breaker: changed") == config_changes(
        one, two
    )
    assert ("upstreams: removed b", "upstreams: changed a", "prices: removed m", "breaker: changed") == config_changes(
        two, one
    )
    assert () == config_changes(two, two)


def test_many_names_are_cut() -> None:
    """More than ten names end in a count."""
    text = "tenants:\n" + "".join(f"  - {{name: t{n:02d}}}\n" for n in range(13))
    (line,) = config_changes(parse("", file="h").config, parse(text, file="h").config)
    assert "tenants: added t00, t01, t02, t03, t04, t05, t06, t07, t08, t09 and 3 more" == line


def test_settings_that_differ_are_named_by_their_path() -> None:
    """Only what differs from the running process waits for a restart."""
    one, two = Settings(), parse("server: {port: 1, proxy: {drain_s: 5}}", file="h").config.server
    assert ("server.port", "server.proxy.drain_s") == restart_needed(one, two)
    assert () == restart_needed(two, two)


def test_keys_and_leases_are_named() -> None:
    """Keys that came are told by their id."""
    key = KeyRecord(id="key_1", tenant="t", hash="h")
    assert ("keys: added key_1",) == state_changes(CatalogState(), CatalogState(keys={"key_1": key}))

"""A provider fails: the outage is seen, worked around, validated, and undone when it is over; and what happens when that does not help."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from tests.e2e.load import Load, Seen, complete, failed_share
from tests.e2e.processes import DEFAULT_CATALOG, World, eventually, world
from tests.e2e.receiver import SECRET, Receiver

pytestmark = pytest.mark.e2e
PRIMARY, SECONDARY = "primary/gpt-4o-mini", "secondary/gpt-4o-mini"
LEASE_TTL_S = 8
FAILED_SHARE_MAX = 0.05  # of the calls during an outage; streams in flight are cut when the upstream goes away
HEALING = "{{shadow: {shadow}, playbooks: {{provider-outage-failover: {values}}}}}"
QUICK = {
    "preconditions.wait": "4s",
    "guards.cooldown.per_fingerprint": "1s",
    "guards.cooldown.after_rollback": "1s",
    "guards.rate.per_playbook": "1000/h",
    "guards.rate.global": "1000/h",
    "guards.flap.max_runs": "1000",
    "guards.circuit.open_after_failed_runs": "1000",
    "steps.drain.lease.ttl": f"{LEASE_TTL_S}s",
    "validate.bake": "4s",
    "validate.every": "1s",
    "recovery.probe_every": "1s",
    "probation.for": "4s",
}
"""Seconds where production takes its time, and guards out of the way of one outage after the other."""


def _server(*, shadow: bool = False) -> str:
    healing = HEALING.format(shadow=str(shadow).lower(), values=json.dumps(QUICK))
    return f"""
  detection: {{sweep_every_s: 1, step_s: 2, history_s: 600, probe_every_s: 1}}
  incidents: {{resolve_after_s: 3}}
  alerts: {{poll_every_s: 0.2}}
  proxy: {{status_every_s: 0.5}}
  healing: {healing}
"""


CATALOG = (
    DEFAULT_CATALOG
    + """
breaker: {{window_s: 10, requests_min: 5, error_ratio: 0.5, open_s: 2}}
alerts:
  - {{name: hook, url: "{url}", secret: "env:HOOK_SECRET", allow_private: ["127.0.0.1/32"], per_minute: 6000}}
"""
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Who is told in `swift`."""
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[World]:
    """A world that detects and heals within seconds."""
    catalog = CATALOG.replace("{{", "{").replace("}}", "}").replace("{url}", receiver.url)
    with world(
        tmp_path_factory.mktemp("swift"),
        server=_server(),
        catalog=catalog,
        latency_scale=0.02,
        variables={"HOOK_SECRET": SECRET},
    ) as made:
        yield made


# --- what the control plane says


def _firing(made: World) -> str:
    """The id of the incident that fires now; empty if none does."""
    found = made.api("/incidents?limit=1&state=firing").json()["incidents"]
    return str(found[0]["id"]) if found else ""


def _runs(made: World, *, since_us: int, state: str = "") -> list[dict[str, Any]]:
    """Runs that were opened since then, oldest first, in any state or in one."""
    found = [one for one in reversed(made.api("/runs?limit=200").json()["runs"]) if one["opened_us"] >= since_us]
    return [one for one in found if state in ("", one["state"])]


def _kinds(made: World, runs: Sequence[dict[str, Any]]) -> list[str]:
    """What happened to these runs, each with its events in order."""
    return [str(entry["kind"]) for run in runs for entry in made.api(f"/runs/{run['id']}").json()["timeline"]]


def _leases(made: World) -> list[str]:
    """The leases that proxies say they have."""
    return [lease for proxy in made.api("/proxies").json()["proxies"] for lease in proxy["lease_ids"]]


def _timeline(made: World, incident: str, *, since_us: int) -> list[dict[str, Any]]:
    """What `hephaestus incidents show` says of an incident since then."""
    shown = json.loads(made.cli("incidents", "show", incident, "--json").stdout)
    return [entry for entry in shown["timeline"] if entry["at_us"] >= since_us]


def _quiet(made: World) -> bool:
    """Whether no incident is open, no run goes on and no override is in force."""
    ends = {"suppressed", "shadowed", "blocked", "rolled_back", "regressed", "escalated", "closed", "cancelled"}
    open_incidents = [one for one in made.api("/incidents?limit=20").json()["incidents"] if one["state"] != "resolved"]
    going_on = [one for one in made.api("/runs?limit=100").json()["runs"] if one["state"] not in ends]
    return not open_incidents and not going_on and not _leases(made)


def _in_order(kinds: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether all wanted kinds are there, in this order, whatever is between them."""
    remaining = iter(kinds)
    return all(kind in remaining for kind in wanted)


async def _until(probe: Any, what: str, *, seconds: float = 60.0) -> Any:
    """`eventually`, while the load of this event loop goes on."""
    return await asyncio.to_thread(eventually, probe, seconds=seconds, every_s=0.2, what=what)


@asynccontextmanager
async def _load(made: World, *, peace_after: bool = True) -> AsyncIterator[Load]:
    """A steady load around a test, which begins and, if others follow, ends in peace."""
    load = Load(made.base_url, made.key(), workers=6, pause_s=0.1)
    running = asyncio.create_task(load.run())
    try:
        await _until(lambda: len(complete(load.seen)) >= 100 and _quiet(made), "peace before the test")
        yield load
        made.clear_faults()
        if peace_after:
            await _until(lambda: _quiet(made), "peace after the test", seconds=90)
    finally:
        made.clear_faults()
        load.stop()
        await running


async def _restarted(made: World) -> None:
    """The control plane stopped as an operator stops it, and started with the settings of now."""
    made.write_config()
    await asyncio.to_thread(made.kill, "controlplane", signal.SIGTERM)
    made.start("controlplane")
    await asyncio.to_thread(made.wait_ready)


def _between(load: Load, begin: float, end: float = float("inf")) -> list[Seen]:
    return [one for one in load.seen if begin <= one.at_s < end]


# --- an outage that heals


@pytest.mark.parametrize("kind", ["outage_503", "outage_refused"])
async def test_an_outage_is_detected_failed_over_validated_and_resolved(
    swift: World, receiver: Receiver, kind: str, measured: Callable[[str], None]
) -> None:
    """From the first error to the last event, with the share of calls that clients lost on the way."""
    async with _load(swift) as load:
        since_us, broken = time.time_ns() // 1000, time.monotonic()
        swift.fault(kind, on="primary")
        incident = await _until(lambda: _firing(swift), "an incident")
        fired = time.monotonic()
        await _until(lambda: _leases(swift), "the drain, confirmed by the proxy")
        drained = time.monotonic()
        await _until(lambda: _runs(swift, since_us=since_us, state="holding"), "validated")
        under = len(load.seen)
        await _until(lambda: len(load.seen) > under + 20, "calls under the override")
        mended = time.monotonic()
        swift.clear_faults()
        await _until(lambda: _quiet(swift), "resolved and undone")
        healed = time.monotonic()
        seen_after = len(load.seen)
        await _until(lambda: len(load.seen) > seen_after + 50, "calls after it")
    spans = {
        "before": _between(load, 0, broken),
        "outage, not drained": _between(load, broken, drained),
        "outage, drained": _between(load, drained, mended),
        "after": _between(load, mended),
    }
    shares = {name: f"{failed_share(seen):.2%} of {len(seen)}" for name, seen in spans.items()}
    measured(
        f"{kind}: fired {fired - broken:.1f} s, drained {drained - broken:.1f} s, healed {healed - mended:.1f} s; {shares}"
    )
    assert all(len(seen) > 20 for seen in spans.values()), shares
    states = Counter(run["state"] for run in _runs(swift, since_us=since_us))
    assert states["closed"] == 1
    assert states.keys() <= {"closed", "suppressed", "blocked"}  # an incident that outlives its run is looked at again
    assert failed_share(spans["before"]) == 0
    assert failed_share(_between(load, broken, mended)) <= FAILED_SHARE_MAX
    assert failed_share(spans["outage, drained"]) == 0
    assert failed_share(spans["after"]) == 0
    assert {SECONDARY} == {one.deployment for one in spans["outage, drained"]}
    assert PRIMARY in {one.deployment for one in _between(load, healed)}
    _assert_told_in_order(swift, incident, since_us)
    await _until(lambda: _rows_agree(swift, load.seen, since_us), "rows as clients saw them")
    await _until(lambda: "hephaestus.run.closed" in receiver.types(), "people are told")


def _assert_told_in_order(made: World, incident: str, since_us: int) -> None:
    """Every transition is in the timeline, those of the incident and those of its run each in their order."""
    timeline = _timeline(made, incident, since_us=since_us)
    kinds = [str(entry["kind"]) for entry in timeline]
    assert sorted(entry["at_us"] for entry in timeline) == [entry["at_us"] for entry in timeline]
    assert _in_order(kinds, ["incident.fired", "run.matched"]), kinds
    assert _in_order(kinds, ["incident.fired", "incident.signal_cleared", "incident.resolved"]), kinds
    assert {"incident.opened", "incident.reopened"} & set(kinds)
    steps = [
        "run.matched", "run.planned", "run.queued", "run.started", "step.dispatched", "step.succeeded", "step.dispatched",
        "run.lease_granted", "step.confirmed", "step.succeeded", "validation.started", "validation.sample", "validation.passed",
        "run.succeeded", "probe.counted", "release.started", "run.lease_revoked", "rollback.step_done", "probation.started",
        "validation.sample", "run.closed",
    ]  # fmt: skip
    assert _in_order(kinds, steps), kinds
    printed = made.cli("incidents", "show", incident).stdout
    assert incident in printed
    assert all(kind in printed for kind in {*steps, "incident.fired", "incident.resolved"}), printed


def _rows_agree(made: World, seen: list[Seen], since_us: int) -> bool:
    """Whether each call that got an id is one row that ended as its client saw it, and attempts tell of the outage."""
    rows = made.sql(
        f"SELECT call_id, outcome, deployment FROM calls WHERE proxy != 'control' AND toUnixTimestamp64Micro(started) >= {since_us}"
    )
    stored = {str(row["call_id"]): (str(row["outcome"]) == "ok", str(row["deployment"])) for row in rows}
    assert len(stored) == len(rows)
    begin = time.monotonic() - (time.time_ns() // 1000 - since_us) / 1e6 + 0.5
    mine = {one.call_id: (one.complete, one.deployment) for one in seen if one.call_id and one.at_s >= begin}
    if mine.keys() - stored.keys():
        return False
    assert {call_id: stored[call_id] for call_id in mine if mine[call_id][0]} == {
        call_id: saw for call_id, saw in mine.items() if saw[0]
    }
    failed = made.sql(
        f"SELECT countIf(error != '') AS n FROM attempts WHERE deployment = '{PRIMARY}' AND toUnixTimestamp64Micro(started) >= {since_us}"
    )
    return int(str(failed[0]["n"])) > 0


# --- the control plane dies while an override is in force


async def test_an_override_expires_by_itself_when_the_control_plane_is_dead(swift: World) -> None:
    """Calls go on without the control plane, the drain ends at its expiry in the proxy, and the records arrive later."""
    async with _load(swift) as load:
        since_us = time.time_ns() // 1000
        swift.fault("outage_503", on="primary")
        await _until(lambda: _leases(swift), "the drain, confirmed by the proxy")
        await asyncio.to_thread(swift.kill, "controlplane")
        killed = time.monotonic()
        swift.clear_faults()  # the primary is well again, and nobody is there to end the drain
        await _until(lambda: any(one.deployment == PRIMARY for one in _between(load, killed)), "the override's end")
        served = _between(load, killed)
        first = next(one for one in served if one.deployment == PRIMARY)
        assert first.at_s - killed <= LEASE_TTL_S + 1
        assert failed_share(served) == 0
        await _until(lambda: len(_between(load, first.at_s)) >= 50, "calls after the override's end")
        swift.start("controlplane")
        await asyncio.to_thread(swift.wait_ready)
        before_it_was_back = list(load.seen)
        await _until(
            lambda: _rows_agree(swift, before_it_was_back, since_us), "records of the time without a control plane"
        )
        assert failed_share(_between(load, killed)) == 0


# --- healing that may not act, or does not help


async def test_the_kill_switch_stands_above_an_outage(swift: World) -> None:
    """With the kill switch engaged the incident fires, the run is refused and nothing is changed; calls still fail over."""
    async with _load(swift) as load:
        since_us, broken = time.time_ns() // 1000, time.monotonic()
        swift.cli("playbooks", "stop", "--reason", "test")
        try:
            swift.fault("outage_503", on="primary")
            incident = await _until(lambda: _firing(swift), "an incident")
            runs = await _until(lambda: _runs(swift, since_us=since_us), "a refused run")
            assert ["suppressed"] == [run["state"] for run in runs]
            assert "kill_switch" in str(_timeline(swift, incident, since_us=since_us))
            assert _leases(swift) == []
            swift.clear_faults()
            await _until(lambda: _quiet(swift), "peace")
        finally:
            swift.cli("playbooks", "stop", "--release", "--reason", "test is over")
        assert failed_share(_between(load, broken)) <= FAILED_SHARE_MAX
        granted = [entry for entry in _timeline(swift, incident, since_us=since_us) if "lease" in entry["kind"]]
        assert granted == []


async def test_in_shadow_mode_the_plan_is_recorded_and_nothing_applied(swift: World) -> None:
    """A control plane started in shadow mode writes down what it would have done."""
    swift.server = _server(shadow=True)
    await _restarted(swift)
    async with _load(swift):
        since_us = time.time_ns() // 1000
        swift.fault("outage_503", on="primary")
        runs = await _until(lambda: _runs(swift, since_us=since_us, state="shadowed"), "a plan")
        events = swift.api(f"/runs/{runs[0]['id']}").json()["timeline"]
        assert _in_order([entry["kind"] for entry in events], ["run.matched", "run.planned", "run.shadowed"])
        assert PRIMARY in next(entry["text"] for entry in events if entry["kind"] == "run.planned")
        assert _leases(swift) == []
    kinds = set(_kinds(swift, _runs(swift, since_us=since_us)))
    assert not kinds & {"run.started", "step.dispatched", "run.lease_granted"}


async def test_a_fix_that_does_not_help_is_rolled_back_and_people_are_called(swift: World, receiver: Receiver) -> None:
    """The secondary fails too once the drain is in force: nothing of it is left, the run is escalated, further ones are refused."""
    swift.server = _server()
    await _restarted(swift)
    async with _load(swift, peace_after=False) as load:
        since_us = time.time_ns() // 1000
        swift.fault("outage_503", on="primary")
        await _until(lambda: _leases(swift), "the drain, confirmed by the proxy")
        swift.fault("outage_503", on="secondary")
        escalated = await _until(lambda: _runs(swift, since_us=since_us, state="escalated"), "an escalated run")
        wanted = [
            "run.lease_granted", "step.confirmed", "validation.started", "validation.failed", "rollback.started",
            "run.lease_revoked", "rollback.step_done", "rollback.completed", "run.escalated",
        ]  # fmt: skip
        kinds = _kinds(swift, escalated)
        assert _in_order(kinds, wanted), kinds
        await _until(lambda: _runs(swift, since_us=since_us, state="blocked"), "a run refused: nobody could take over")
        await _until(lambda: not _leases(swift), "no override is left")
        refused = _kinds(swift, _runs(swift, since_us=since_us, state="blocked"))
        assert not {"step.dispatched", "run.lease_granted"} & set(refused)
        assert not {"validation.passed", "run.succeeded"} & set(_kinds(swift, _runs(swift, since_us=since_us)))
        swift.clear_faults()
        mended = time.monotonic()
        told = await _until(
            lambda: [event for event in receiver.taken.values() if event["type"] == "hephaestus.run.escalated"],
            "people are called",
        )
        assert escalated[0]["id"] in {event["data"]["run_id"] for event in told}
        await _until(lambda: len(complete(_between(load, mended))) >= 50, "calls succeed again")


# --- what people and the books say at the end of it all


async def test_people_were_told_at_least_once_and_can_tell_repetitions(swift: World, receiver: Receiver) -> None:
    """Each message came signed, again after a failed delivery, under one id; fired and resolved are among them."""
    await _until(lambda: set(receiver.tries) == receiver.taken.keys(), "the last deliveries")
    assert receiver.forged == 0
    told = Counter(receiver.types())
    assert {"hephaestus.incident.fired", "hephaestus.incident.resolved", "hephaestus.run.closed"} <= told.keys()
    tries = Counter(receiver.tries)
    assert min(tries.values()) >= 2  # each first try was refused
    occurrences = [(event["type"], event["subject"], event["time"]) for event in receiver.taken.values()]
    assert len(occurrences) == len(set(occurrences))  # nothing was said twice under two ids
    assert {event["specversion"] for event in receiver.taken.values()} == {"1.0"}


async def test_ledger_and_rows_agree_after_all_outages(swift: World) -> None:
    """Whatever failed on the way, the proxy's ledger is the sum of its rows to the nano-USD."""

    def agree() -> bool:
        (proxy,) = swift.api("/proxies").json()["proxies"]
        row = swift.sql(
            f"SELECT count() AS n, toString(sum(cost_usd)) AS usd FROM calls WHERE proxy = '{proxy['id']}'"
        )[0]
        stored = int(str(row["n"])), int(Decimal(str(row["usd"])).scaleb(9))
        return (proxy["ledger_calls"], proxy["ledger_nanousd"]) == stored

    await _until(agree, "ledger equals rows")

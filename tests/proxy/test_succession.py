"""Tests of what a start inherits: budgets over any sequence of worker counts, and the spools of retired workers."""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import Budget, ProxyStatus, TenantPolicy, Window
from controlplane.contract.wire import decode_batch
from proxy.ledger import Ledger, LedgerState, Refused
from proxy.quotas.account import Settled, Share
from proxy.spool import Spool, SpoolLocked
from proxy.succession import Retired, cache_of, dealt_out, drop_caches, open_spool, places_of, retired_names, share_out
from proxy.uplink import open_uplink
from tests.proxy.control_plane_fake import control_plane
from tests.proxy.state_fakes import NOON_US, make_record
from tests.proxy.test_spool import _files_limited_to as files_limited_to

LIMIT = 1000
POLICY = TenantPolicy("acme", budgets=(Budget("t", Window.MONTH, nanousd=LIMIT),))


def _settings(directory: Path, workers: int) -> ProxySettings:
    return ProxySettings(data_dir=str(directory), workers=workers)


def _workers(config: ProxySettings) -> list[tuple[Spool, Ledger]]:
    """All workers of a start, as `share_out` leaves them."""
    made = []
    for number in range(config.workers):
        ledger = Ledger(share=Share(number, config.workers))
        made.append((open_spool(config, str(number), ledger), ledger))
    return made


def _spend(spool: Spool, ledger: Ledger, nanousd: int) -> int:
    """A call that costs all that it reserves; what it cost."""
    held = ledger.reserve(POLICY, tokens=0, nanousd=nanousd, now_us=NOON_US)
    if isinstance(held, Refused):
        return 0
    ledger.release(held)
    spool.append(make_record(nanousd=nanousd))
    return nanousd


def _die(spool: Spool) -> None:
    os.close(spool._lock)
    if spool._active is not None:
        os.close(spool._active.fd)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    lives=st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 400)), max_size=6)),
        min_size=2,
        max_size=5,
    )
)
def test_budgets_neither_forget_nor_overspend_over_any_sequence_of_worker_counts(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, list[tuple[int, int]]]]
) -> None:
    """However many workers each start has, and however it ends: spent is what was spent, never above the limit; rows equal ledgers."""
    directory = tmp_path_factory.mktemp("lives")
    spent = calls = 0
    for workers, works in lives:
        config = _settings(directory, workers)
        share_out(config, now_us=NOON_US)
        running = _workers(config)
        for number, nanousd in works:
            spool, ledger = running[number % workers]
            cost = _spend(spool, ledger, nanousd)
            spent += cost
            calls += cost > 0
        settled = [ledger.settled("acme", Window.MONTH, now_us=NOON_US).nanousd for _, ledger in running]
        assert spent == sum(settled) <= LIMIT
        for number, (spool, _) in enumerate(running):
            spool.close() if number % 2 else _die(spool)
        found = [path for path in places_of(config).iterdir() if path.name.isdecimal()]
        totals = []
        for path in found:
            ledger = Ledger()
            open_spool(config, path.name, ledger).close()
            totals.append((ledger.calls, ledger.nanousd))
        assert (calls, spent) == (sum(total[0] for total in totals), sum(total[1] for total in totals))
    config = _settings(directory, 1)
    share_out(config, now_us=NOON_US)
    ((spool, ledger),) = _workers(config)
    assert isinstance(ledger.reserve(POLICY, tokens=0, nanousd=LIMIT - spent + 1, now_us=NOON_US), Refused)
    assert LIMIT == spent or LIMIT - spent == _spend(spool, ledger, LIMIT - spent)
    spool.close()


@pytest.mark.parametrize("done", range(4))
def test_a_start_killed_while_it_shares_out_is_finished_by_the_next(tmp_path: Path, done: int) -> None:
    """With the plan written and any number of ledgers replaced, the next start comes to the same sums."""
    config = _settings(tmp_path, 3)
    share_out(config, now_us=NOON_US)
    for number, (spool, _) in enumerate(_workers(config)):
        spool.append(make_record(nanousd=100 + number))
        spool.close()
    found = {}
    for name in ("0", "1", "2"):
        ledger = Ledger()
        open_spool(config, name, ledger).close()
        found[name] = ledger.state()
    states = dealt_out(found, ["0"], now_us=NOON_US)
    payload = msgspec.msgpack.encode(states)
    (places_of(config) / "share-out.plan").write_bytes(zlib.crc32(payload).to_bytes(4, "little") + payload)
    for name in list(states)[:done]:
        spool = open_spool(config, name, Ledger())
        spool.replace_ledger(states[name])
        spool.close()
    share_out(_settings(tmp_path, 2), now_us=NOON_US)
    running = _workers(_settings(tmp_path, 2))
    assert [152, 151] == [ledger.settled("acme", Window.MONTH, now_us=NOON_US).nanousd for _, ledger in running]
    assert [100, 101] == [ledger.nanousd for _, ledger in running]
    assert not (places_of(config) / "share-out.plan").exists()
    for spool, _ in running:
        spool.close()


def test_a_damaged_plan_is_set_aside(tmp_path: Path) -> None:
    """Each ledger is then taken as it is, and the start goes on."""
    config = _settings(tmp_path, 2)
    share_out(config, now_us=NOON_US)
    plan = places_of(config) / "share-out.plan"
    plan.write_bytes(b"damaged")
    share_out(config, now_us=NOON_US)
    assert not plan.exists()
    assert plan.with_suffix(".damaged").exists()


def test_nothing_is_shared_out_while_an_earlier_worker_runs(tmp_path: Path) -> None:
    """Its ledger still moves, so the start has to wait for its end."""
    old = open_spool(_settings(tmp_path, 3), "2", Ledger())
    with pytest.raises(SpoolLocked):
        share_out(_settings(tmp_path, 1))
    old.close()
    share_out(_settings(tmp_path, 1))


def test_a_full_disk_stops_only_a_start_that_must_share_out(tmp_path: Path) -> None:
    """The same workers start with what each has; a retired one's spending that nobody could take over is an error."""
    config = _settings(tmp_path, 2)
    share_out(config, now_us=NOON_US)
    for number, (spool, _) in enumerate(_workers(config)):
        spool.append(make_record(nanousd=100 * number + 1))
        spool.close()
    with files_limited_to(0):
        share_out(config, now_us=NOON_US)
        with pytest.raises(OSError, match="large"):
            share_out(_settings(tmp_path, 1), now_us=NOON_US)
    running = _workers(config)
    assert [1, 101] == [ledger.settled("acme", Window.MONTH, now_us=NOON_US).nanousd for _, ledger in running]
    for spool, _ in running:
        spool.close()


def test_a_single_worker_that_never_had_siblings_costs_nothing(tmp_path: Path) -> None:
    """The usual case opens and writes no file."""
    share_out(_settings(tmp_path, 1))
    assert [] == list(tmp_path.iterdir())


def test_windows_of_different_ages_are_not_mixed() -> None:
    """The window of now is dealt out, the one before it is kept apart, older ones are history."""
    day = 86_400_000_000
    today = NOON_US - NOON_US % day

    def spent(days_ago: int, nanousd: int) -> dict[str, dict[Window, Settled]]:
        start = today - days_ago * day
        return {"acme": {Window.DAY: Settled(start, start + day, nanousd, 0)}}

    found = {
        "0": LedgerState(tenants=spent(0, 5)),
        "1": LedgerState(tenants=spent(1, 7), ended=spent(2, 100)),
        "2": LedgerState(tenants=spent(0, 6), ended=spent(1, 1)),
    }
    states = dealt_out(found, ["0", "1"], now_us=NOON_US)
    assert [6, 5, 0] == [state.tenants["acme"][Window.DAY].nanousd if state.tenants else 0 for state in states.values()]
    assert [4, 4] == [states[name].ended["acme"][Window.DAY].nanousd for name in ("0", "1")]


async def test_a_retired_spool_is_shipped_in_its_own_name_and_still_reported(tmp_path: Path) -> None:
    """Its records arrive once under its own id, and its totals stay among the statuses, so that rows equal ledgers."""
    before = open_spool(_settings(tmp_path, 2), "1", Ledger())
    before.append(make_record(nanousd=7, call_id="call_old"))
    _die(before)
    config = _settings(tmp_path, 1)
    share_out(config, now_us=NOON_US)
    assert ["1"] == retired_names(config)
    async with control_plane() as plane, open_uplink(plane.url, token="t") as uplink:
        retired = Retired(config, uplink)
        (status,) = retired.statuses(ProxyStatus("prx_live", at_us=9, snapshot_version=4))
        assert (before.proxy_id, 4, 1, 7) == (
            status.proxy_id,
            status.snapshot_version,
            status.ledger_calls,
            status.ledger_nanousd,
        )
        assert 0 < status.spool_bytes == retired.bytes_stored
        async with asyncio.timeout(60):
            await retired.run()
        assert 0 == retired.bytes_stored
        retired.close()
        again = Retired(config, uplink)
        async with asyncio.timeout(60):
            await again.run()
        assert [(1, 7)] == [(s.ledger_calls, s.ledger_nanousd) for s in again.statuses(status)]
        again.close()
    (asked,) = plane.asked
    assert f"{before.proxy_id}/000000000001" == asked.headers["x-heph-batch-token"]
    assert ["call_old"] == [record.call_id for record in decode_batch(asked.body)]


@pytest.mark.parametrize(("workers", "disk_bytes", "left"), [(4, 100, "0123"), (2, 100, "01"), (2, 1, ""), (1, 0, "")])
def test_answers_that_no_worker_asks_for_leave_the_disk(
    tmp_path: Path, workers: int, disk_bytes: int, left: str
) -> None:
    """Those of retired workers go, and all where the disk tier is off; nothing else of a worker does, and nothing is made."""
    before = _settings(tmp_path, 4)
    for name in "0123":
        cache_of(before, name).mkdir(parents=True)
        (cache_of(before, name) / "000000000001.page").write_bytes(b"answer")
        (places_of(before) / name / "proxy-id").write_text(name)
    now = msgspec.structs.replace(_settings(tmp_path, workers), cache_disk_bytes=disk_bytes)
    drop_caches(now)
    assert list(left) == [name for name in "0123" if cache_of(now, name).exists()]
    assert ["0", "1", "2", "3"] == sorted(path.parent.name for path in places_of(now).glob("*/proxy-id"))
    drop_caches(_settings(tmp_path / "new", 1))
    assert not (tmp_path / "new").exists()


def test_the_sums_hold_for_many_tenants_and_odd_amounts() -> None:
    """No nano-USD and no token is lost or made when the parts are dealt out."""
    draw = random.Random(7)
    found = {
        str(number): LedgerState(
            tenants={
                f"t{n}": {Window.TOTAL: Settled(0, 2**63 - 1, draw.randrange(10**9), draw.randrange(10**6))}
                for n in range(20)
            }
        )
        for number in range(7)
    }

    def sums(states: dict[str, LedgerState]) -> list[tuple[int, int]]:
        return [
            (
                sum(s.tenants[f"t{n}"][Window.TOTAL].nanousd for s in states.values() if s.tenants),
                sum(s.tenants[f"t{n}"][Window.TOTAL].tokens for s in states.values() if s.tenants),
            )
            for n in range(20)
        ]

    for workers in (1, 2, 3, 7, 11):
        names = [str(number) for number in range(workers)]
        full = found | {name: LedgerState() for name in names if name not in found}
        assert sums(found) == sums(dealt_out(full, names, now_us=NOON_US))


def test_the_first_worker_knows_what_those_that_are_no_more_have_booked() -> None:
    """Ids of records that are booked once go to it, each once, however often it is dealt out."""
    found = {"0": LedgerState(once=["b"]), "1": LedgerState(once=["c"]), "2": LedgerState(once=["a"])}
    for _ in range(2):
        found = dealt_out(found, ["0", "1"], now_us=1)
        assert [["a", "b"], ["c"], ["a"]] == [found[name].once for name in ("0", "1", "2")]

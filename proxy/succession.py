"""What a start inherits: what was spent is shared out among the workers there are, and what retired workers left is shipped.

Each worker has a directory of its own, with a spool and a ledger. The number of workers can change from one start to the next, and
two promises must hold over any sequence of numbers:

- *No budget forgets, and none is overspent.* A worker enforces its `Share` of each limit, so it must carry the same share of what
  was spent. `share_out`, which runs before any worker does, adds up the current windows of all ledgers, retired ones included, and
  deals the sums out again. As a share never falls when the amount grows, each part of what was spent is within its part of the limit.
- *Rows equal ledgers.* The totals of a ledger (calls, money) stay where they are: they are the sum of the records that were written
  there. `Retired` ships what a retired spool still holds, under its own id, and goes on reporting its totals.
- *No answer stays on disk that nobody will ask for.* The disk tiers of all workers have one bound, which retired ones are not to exceed.

`share_out` writes several checkpoints, which cannot be done at once. So it writes down first what they are to be (`share-out.plan`), in one
atomic step; a start that finds the plan carries it out before anything else. Doing it twice changes nothing, because no worker runs in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import ProxyStatus, Window
from proxy.ledger import CounterState, Ledger, LedgerState
from proxy.quotas.account import Settled, Share
from proxy.quotas.windows import CLOCK_STEP_US, KEPT, window_bounds
from proxy.shipper import Shipper
from proxy.spool import Spool, SpoolLocked, replace_file

_PLAN = "share-out.plan"

_log = logging.getLogger(__name__)


def share_out(settings: ProxySettings, *, now_us: int | None = None) -> None:
    """Deals what was spent in the current windows out among the workers that will run; blocks, and is safe to repeat after a kill.

    now_us: the wall clock, Unix microseconds; None: now.
    Raises SpoolLocked while a worker of an earlier start still runs, OSError when a directory cannot be used.
    """
    root = places_of(settings)
    plan = root / _PLAN
    names = [str(number) for number in range(settings.workers)]
    retired = retired_names(settings)
    if len(names) == 1 and not retired and not plan.exists():
        return  # the usual case: one worker, and never more
    complete = all((root / name).exists() for name in names)
    with contextlib.ExitStack() as stack:
        spools: dict[str, Spool] = {}
        for name in (*names, *retired):
            spools[name] = open_spool(settings, name, Ledger())
            stack.callback(spools[name].close)
        states = _read_plan(plan)
        if states is not None:
            _carry_out(plan, states, spools)
        found = {name: spool.ledger.state() for name, spool in spools.items()}
        states = dealt_out(found, names, now_us=time.time_ns() // 1000 if now_us is None else now_us)
        if states == found:
            return
        payload = msgspec.msgpack.encode(states)
        try:
            replace_file(plan, zlib.crc32(payload).to_bytes(4, "little") + payload)
        except OSError as error:
            if not complete or any(found[name].tenants for name in retired):
                raise
            # The same workers as before, each within its part: a full disk must not keep them from serving.
            _log.warning(
                "what was spent cannot be shared out evenly and stays with the workers that have it: %s", error
            )
            return
        _carry_out(plan, states, spools)


def dealt_out(found: dict[str, LedgerState], names: Sequence[str], *, now_us: int) -> dict[str, LedgerState]:
    """All ledgers with their own totals, and the tenants' current spending in equal parts with the workers in `names`; pure."""
    pools: dict[_Place, dict[int, Settled]] = {}
    used_us: dict[_Place, int] = {}
    for state in found.values():
        for kept in (state.tenants, state.ended):
            for tenant, windows in kept.items():
                for window, settled in windows.items():
                    _add(pools.setdefault(_Place(tenant, "", "", window, "UTC"), {}), settled)
        for one in state.counters:
            place = _Place(one.tenant, one.counter, one.value, one.window, one.timezone)
            used_us[place] = max(used_us.get(place, 0), one.used_us)
            for part in (one.now, one.ended):
                if part is not None:
                    _add(pools.setdefault(place, {}), part)
    states = {
        name: LedgerState(state.calls, state.nanousd, state.tokens, once=state.once) for name, state in found.items()
    }
    if names:
        others = [id_ for name, state in found.items() if name not in names for id_ in state.once]
        states[names[0]].once = list(dict.fromkeys((*others, *states[names[0]].once)))
    for place, pool in pools.items():
        current = _current(pool, place, now_us)
        ended = max((start for start in pool if start < current), default=None) if place.window in KEPT else None
        for number, name in enumerate(names):
            share = Share(number, len(names))
            was = None if ended is None else _part(pool[ended], share)
            _put(states[name], place, _part(pool[current], share), was, used_us.get(place, 0))
    quotas = {tenant: rules for state in found.values() for tenant, rules in state.quotas.items()}
    for name in names:
        states[name].quotas = quotas
    return states


class Retired:
    """The spools of workers that no longer run, in the hands of one that does: opened, shipped, reported, closed at the end."""

    def __init__(self, settings: ProxySettings, uplink: httpx.AsyncClient) -> None:
        """Opens them all. One that cannot be opened is left for the next start and told of, it stops nothing."""
        self._spools: list[Spool] = []
        for name in retired_names(settings):
            try:
                self._spools.append(open_spool(settings, name, Ledger()))
            except (SpoolLocked, OSError) as error:
                _log.error("the spool of the retired worker %s cannot be opened: %s", name, error)
        self._shippers = [
            Shipper(spool, uplink, tick_s=settings.segment_age_s, retry_s_max=settings.ship_retry_s_max)
            for spool in self._spools
        ]

    @property
    def bytes_stored(self) -> int:
        """Bytes of records that still wait."""
        return sum(spool.bytes_stored for spool in self._spools)

    async def run(self) -> None:
        """Ships what they hold, one after the other, and ends; cancel it to stop."""
        for spool, shipper in zip(self._spools, self._shippers, strict=True):
            while spool.oldest is not None:
                try:
                    pause_s = await shipper.step()
                except OSError as error:
                    _log.error("a retired worker's spool cannot be read: %s", error)
                    break
                await asyncio.sleep(pause_s)

    def statuses(self, living: ProxyStatus) -> Iterator[ProxyStatus]:
        """Their totals, in the name of each; otherwise as the worker that speaks for them, so that nothing waits for their word."""
        for spool in self._spools:
            yield ProxyStatus(
                proxy_id=spool.proxy_id,
                at_us=living.at_us,
                snapshot_version=living.snapshot_version,
                lease_ids=living.lease_ids,
                ledger_calls=spool.ledger.calls,
                ledger_nanousd=spool.ledger.nanousd,
                spool_bytes=spool.bytes_stored,
                spool_dropped=spool.dropped,
            )

    def close(self) -> None:
        """Gives the directories free; safe to call twice."""
        for spool in self._spools:
            spool.close()


def places_of(settings: ProxySettings) -> Path:
    """Where the workers' directories are."""
    return Path(settings.data_dir) / "proxy"


def retired_names(settings: ProxySettings) -> list[str]:
    """The workers of earlier starts that have a directory but will not run."""
    try:
        numbers = sorted(int(path.name) for path in places_of(settings).iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []
    return [str(number) for number in numbers if number >= settings.workers]


def retired_ids(settings: ProxySettings) -> tuple[str, ...]:
    """The ids under which they reported, as far as they had one."""
    files = [places_of(settings) / name / "proxy-id" for name in retired_names(settings)]
    return tuple(file.read_text().strip() for file in files if file.exists())


def cache_of(settings: ProxySettings, name: str) -> Path:
    """Where a worker's stored answers are."""
    return places_of(settings) / name / "cache"


def drop_caches(settings: ProxySettings) -> None:
    """Removes stored answers that no worker will ask for: of retired ones, and of all where the disk tier is off; blocks."""
    off = settings.cache_disk_bytes < settings.workers
    names = [str(number) for number in range(settings.workers)] if off else []
    for name in (*names, *retired_names(settings)):
        shutil.rmtree(cache_of(settings, name), ignore_errors=True)


def open_spool(settings: ProxySettings, name: str, ledger: Ledger) -> Spool:
    """The spool of a worker, by the worker's name."""
    return Spool(
        places_of(settings) / name,
        ledger=ledger,
        bytes_max=settings.spool_bytes_max // settings.workers,
        segment_bytes=settings.segment_bytes,
        segment_age_s=settings.segment_age_s,
    )


def _carry_out(plan: Path, states: dict[str, LedgerState], spools: dict[str, Spool]) -> None:
    for name, state in states.items():
        if name in spools:
            spools[name].replace_ledger(state)
    plan.unlink(missing_ok=True)


def _read_plan(plan: Path) -> dict[str, LedgerState] | None:
    """What an earlier start wrote down and did not finish; None: nothing."""
    try:
        data = plan.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little"):
            return msgspec.msgpack.decode(data[4:], type=dict[str, LedgerState])
    except msgspec.DecodeError:
        pass
    _log.error("%s is damaged and set aside; each ledger is taken as it is", plan)
    plan.rename(plan.with_suffix(".damaged"))
    return None


class _Place(NamedTuple):
    """Which meter of which account."""

    tenant: str
    counter: str
    value: str
    window: Window
    timezone: str


def _put(state: LedgerState, place: _Place, now: Settled, ended: Settled | None, used_us: int) -> None:
    """One meter's part, where `Ledger.restore` looks for it."""
    if place.counter or place.timezone != "UTC":
        state.counters.append(CounterState(*place, now, ended, used_us))
        return
    state.tenants.setdefault(place.tenant, {})[place.window] = now
    if ended is not None:
        state.ended.setdefault(place.tenant, {})[place.window] = ended


def _add(pool: dict[int, Settled], settled: Settled) -> None:
    known = pool.get(settled.start_us)
    if known is None:
        pool[settled.start_us] = msgspec.structs.replace(settled)
    else:
        known.nanousd += settled.nanousd
        known.tokens += settled.tokens
        known.requests += settled.requests


def _current(starts: Iterable[int], place: _Place, now_us: int) -> int:
    """The window to go on with: that of now, else the last before it, else the first there is (the clock may be wrong at a start)."""
    begun = [start for start in starts if start <= now_us + CLOCK_STEP_US]
    now = window_bounds(place.window, now_us, place.timezone)[0]
    if now in begun:
        return now
    return max(begun) if begun else min(starts)


def _part(settled: Settled, share: Share) -> Settled:
    part = share.of
    return Settled(
        settled.start_us, settled.end_us, part(settled.nanousd), part(settled.tokens), part(settled.requests)
    )

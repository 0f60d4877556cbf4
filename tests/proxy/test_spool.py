"""Tests of the spool: what was appended is there after any death, in order, once, and the ledger is its sum."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.records import CallRecord, Payload
from controlplane.contract.wire import decode_batch, encode_frame
from proxy.ledger import Ledger
from proxy.spool import Spool, SpoolLocked
from tests.proxy.state_fakes import NOON_US, FakeClock, make_record

FRAME_BYTES = len(encode_frame(make_record(nanousd=1)))


def _open(
    directory: Path, *, bytes_max: int = 10**9, segment_bytes: int = 10**6, clock: FakeClock | None = None
) -> tuple[Spool, Ledger]:
    ledger = Ledger()
    spool = Spool(
        directory,
        ledger=ledger,
        bytes_max=bytes_max,
        segment_bytes=segment_bytes,
        segment_age_s=1.0,
        monotonic=(clock or FakeClock()).s,
    )
    return spool, ledger


def _die(spool: Spool) -> None:
    """What the kernel does for a killed process: it lets go of its files, and nothing is finished."""
    os.close(spool._lock)
    if spool._active is not None:
        os.close(spool._active.fd)


def _stored(directory: Path) -> list[CallRecord]:
    return [record for path in sorted(directory.glob("*.seg")) for record in decode_batch(path.read_bytes())]


def _ids(directory: Path) -> list[str]:
    return [record.call_id for record in _stored(directory)]


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond a size: short writes first, then errors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_appended_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    """Before `append` returns, another process can read the record, and the ledger has it."""
    spool, ledger = _open(tmp_path)
    assert spool.append(make_record(nanousd=7))
    assert [make_record(nanousd=7)] == _stored(tmp_path)
    assert (1, 7) == (ledger.calls, ledger.nanousd)
    spool.close()


def test_a_segment_is_sealed_by_size(tmp_path: Path) -> None:
    """The segment that has reached its size can be shipped, and the next record opens another."""
    spool, _ = _open(tmp_path, segment_bytes=2 * FRAME_BYTES)
    for number in range(5):
        spool.append(make_record(nanousd=1, call_id=f"call_{number}"))
    assert (1, 2) == (spool.oldest, spool.segments)
    assert ["call_0", "call_1"] == [record.call_id for record in decode_batch(spool.read(1))]
    spool.close()


def test_a_segment_is_sealed_by_age(tmp_path: Path) -> None:
    """A segment that has been open for its time is sealed by the next tick, no earlier."""
    clock = FakeClock()
    spool, _ = _open(tmp_path, clock=clock)
    spool.append(make_record())
    clock.advance(0.9)
    spool.tick()
    assert spool.oldest is None
    clock.advance(0.1)
    spool.tick()
    assert 1 == spool.oldest
    spool.close()


def test_an_idle_spool_writes_no_segments(tmp_path: Path) -> None:
    """Time alone makes no files."""
    clock = FakeClock()
    spool, _ = _open(tmp_path, clock=clock)
    for _ in range(5):
        clock.advance(10)
        spool.tick()
    spool.close()
    assert [] == list(tmp_path.glob("*.seg"))


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Records can hold prompts: nobody else may read a segment, the checkpoint or the quarantine."""
    spool, _ = _open(tmp_path / "worker")
    spool.append(make_record())
    spool.seal()
    spool.close()
    for path in (tmp_path / "worker").iterdir():
        assert 0 == stat.S_IMODE(path.stat().st_mode) & 0o077, path.name


def test_two_processes_never_share_a_directory(tmp_path: Path) -> None:
    """The second one is refused with a message that says what to do, and may come when the first has gone."""
    spool, _ = _open(tmp_path)
    with pytest.raises(SpoolLocked, match="its own directory"):
        _open(tmp_path)
    spool.close()
    again, _ = _open(tmp_path)
    again.close()


def test_the_proxy_id_is_made_once(tmp_path: Path) -> None:
    """The directory keeps its id over restarts, and another directory has another."""
    first, _ = _open(tmp_path / "0")
    first.close()
    again, _ = _open(tmp_path / "0")
    other, _ = _open(tmp_path / "1")
    assert first.proxy_id == again.proxy_id != other.proxy_id
    again.close()
    other.close()


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    """Not after deletion, restart, death, quarantine, or a lost checkpoint."""
    seen: list[int] = []
    for ending in ("remove", "die", "set_aside", "lose"):
        spool, _ = _open(tmp_path)
        spool.append(make_record())
        spool.seal()
        number = spool._sealed[-1][0]
        seen.append(number)
        if ending == "remove":
            assert spool.remove(number)
        if ending == "set_aside":
            assert spool.set_aside(number)
        if ending == "die":
            _die(spool)
        else:
            spool.close()
        if ending == "lose":
            (tmp_path / "ledger.checkpoint").write_bytes(b"damaged")
            for path in tmp_path.glob("*.seg"):
                path.unlink()
    spool, _ = _open(tmp_path)
    assert spool.checkpoint_damaged
    spool.append(make_record())
    spool.seal()
    seen.append(spool._sealed[-1][0])
    spool.close()
    assert [1, 2, 3, 4, 5] == seen


@pytest.mark.parametrize("cut", range(1, FRAME_BYTES + 1))
def test_a_torn_tail_is_cut_off_and_reported(tmp_path: Path, cut: int) -> None:
    """However much of the last record is missing, the ones before it stay and the torn bytes are counted."""
    spool, _ = _open(tmp_path)
    spool.append(make_record(nanousd=1, call_id="call_0"))
    spool.append(make_record(nanousd=1, call_id="call_1"))
    _die(spool)
    path = tmp_path / f"{1:012d}.seg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again, ledger = _open(tmp_path)
    first_bytes = len(encode_frame(make_record(nanousd=1, call_id="call_0")))
    assert max(0, len(whole) - cut - first_bytes) == again.torn_bytes
    assert (1, 1) == (ledger.calls, ledger.nanousd)
    assert first_bytes == len(again.read(1))
    again.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    steps=st.lists(st.sampled_from(["append", "append", "append", "seal", "ship", "die", "close", "age"]), max_size=40)
)
def test_the_ledger_is_the_sum_of_all_records_ever_appended(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """Whatever is sealed, shipped, killed and restarted in whatever order: nothing is lost, doubled or out of order."""
    directory = tmp_path_factory.mktemp("spool")
    clock = FakeClock()
    spool, ledger = _open(directory, segment_bytes=4 * FRAME_BYTES, clock=clock)
    appended: list[str] = []
    shipped: list[str] = []
    for step in [*steps, "die"]:
        if step == "append":
            appended.append(f"call_{len(appended)}")
            spool.append(make_record(nanousd=len(appended), call_id=appended[-1]))
        elif step == "seal":
            spool.seal()
        elif step == "age":
            clock.advance(1)
            spool.tick()
        elif step == "ship" and spool.oldest is not None:
            shipped += [record.call_id for record in decode_batch(spool.read(spool.oldest))]
            assert spool.remove(spool.oldest)
        elif step in ("die", "close"):
            _die(spool) if step == "die" else spool.close()
            spool, ledger = _open(directory, segment_bytes=4 * FRAME_BYTES, clock=clock)
        assert (len(appended), sum(range(len(appended) + 1))) == (ledger.calls, ledger.nanousd)
        assert appended == shipped + _ids(directory)
        assert spool.bytes_stored == sum(path.stat().st_size for path in directory.glob("*.seg"))
    spool.close()


def test_a_full_spool_drops_the_new_and_counts_it(tmp_path: Path) -> None:
    """Above its limit the spool keeps what it has; the drop is counted with its cost and moves the ledger, over a restart too."""
    clock = FakeClock()
    spool, ledger = _open(tmp_path, bytes_max=2 * FRAME_BYTES, clock=clock)
    outcomes = [spool.append(make_record(nanousd=1, call_id=f"call_{number}")) for number in range(5)]
    assert [True, True, False, False, False] == outcomes
    assert (3, 3) == (spool.dropped, spool.dropped_nanousd)
    assert (5, 5) == (ledger.calls, ledger.nanousd)
    spool.tick()
    _die(spool)
    again, restored = _open(tmp_path, bytes_max=2 * FRAME_BYTES, clock=clock)
    assert (3, 3, 5, 5) == (again.dropped, again.dropped_nanousd, restored.calls, restored.nanousd)
    assert ["call_0", "call_1"] == _ids(tmp_path)
    assert again.oldest is not None
    again.remove(again.oldest)
    assert again.append(make_record(nanousd=1))
    again.close()


def test_a_full_disk_drops_and_counts_and_leaves_no_torn_record(tmp_path: Path) -> None:
    """A write that the kernel cuts short is undone, so that records appended later can be read."""
    spool, ledger = _open(tmp_path)
    spool.append(make_record(nanousd=1, call_id="call_0"))
    with _files_limited_to(FRAME_BYTES + FRAME_BYTES // 2):
        assert not spool.append(make_record(nanousd=1, call_id="call_1"))
    assert spool.append(make_record(nanousd=1, call_id="call_2"))
    assert (1, 3) == (spool.dropped, ledger.calls)
    assert ["call_0", "call_2"] == _ids(tmp_path)
    spool.close()


def test_a_segment_stays_while_no_checkpoint_can_be_written(tmp_path: Path) -> None:
    """A shipped segment that only an older checkpoint knows is kept until the disk has room for a newer one."""
    spool, _ = _open(tmp_path)
    spool.append(make_record(nanousd=5))
    with _files_limited_to(0):
        spool.seal()
        assert not spool.remove(1)
        assert not spool.set_aside(1)
    assert spool.checkpoint_failures_total >= 2
    assert spool.remove(1)
    _die(spool)
    again, ledger = _open(tmp_path)
    assert 5 == ledger.nanousd
    again.close()


def test_a_record_too_large_for_the_wire_is_kept_without_its_payload(tmp_path: Path) -> None:
    """A payload that would make the frame unreadable is left out and counted; the facts of the call stay."""
    spool, _ = _open(tmp_path)
    huge = Payload(request=b"x" * (65 * 1024 * 1024), response=b"", retention_days=1)
    assert spool.append(msgspec.structs.replace(make_record(nanousd=9), payload=huge))
    assert [make_record(nanousd=9)] == _stored(tmp_path)
    assert 1 == spool.payloads_cut_total
    spool.close()


def test_quarantine_is_kept_counted_and_bounded_with_the_rest(tmp_path: Path) -> None:
    """A segment set aside is out of the way, still on disk, counted over restarts, and its bytes count."""
    spool, _ = _open(tmp_path)
    spool.append(make_record())
    spool.seal()
    size = spool.bytes_stored
    assert spool.set_aside(1)
    assert (None, 1, size) == (spool.oldest, spool.quarantined, spool.bytes_stored)
    spool.close()
    again, ledger = _open(tmp_path)
    assert (1, size, 1) == (again.quarantined, again.bytes_stored, ledger.calls)
    assert [make_record()] == _stored(tmp_path / "quarantine")
    again.close()


def test_a_damaged_checkpoint_is_reported_and_what_is_left_is_counted(tmp_path: Path) -> None:
    """The ledger then is the sum of what is still here, says that it is incomplete, and keeps the damaged file."""
    spool, _ = _open(tmp_path)
    spool.append(make_record(nanousd=3))
    spool.close()
    path = tmp_path / "ledger.checkpoint"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again, ledger = _open(tmp_path)
    assert again.checkpoint_damaged
    assert 3 == ledger.nanousd
    assert bytes(data) == (tmp_path / "ledger.damaged").read_bytes()
    again.close()


_WRITER = """
import sys
from pathlib import Path
from proxy.ledger import Ledger
from proxy.spool import Spool
from tests.proxy.state_fakes import make_record
spool = Spool(Path(sys.argv[1]), ledger=Ledger(), bytes_max=10**9, segment_bytes=900, segment_age_s=1.0)
for number in range(100_000):
    spool.append(make_record(nanousd=1, call_id=f"call_{number}"))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 333])
def test_kill_9_loses_no_settled_record(tmp_path: Path, after: int) -> None:
    """A writer killed with SIGKILL in the middle: all it had settled is there, in order, and the ledger equals it."""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= after:
                break
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().splitlines()
    settled = int(rest[-1]) + 1 if rest else after + 1
    spool, ledger = _open(tmp_path)
    assert settled <= ledger.calls <= settled + 1
    assert [f"call_{number}" for number in range(ledger.calls)] == _ids(tmp_path)
    spool.close()


def test_records_of_windows_long_gone_are_replayed_into_totals_only(tmp_path: Path) -> None:
    """After a long stop, today's windows hold today's records alone."""
    spool, _ = _open(tmp_path)
    spool.append(make_record(nanousd=3, at_us=NOON_US - 40 * 86_400_000_000))
    spool.append(make_record(nanousd=4, at_us=NOON_US))
    _die(spool)
    again, ledger = _open(tmp_path)
    (window,) = [settled for name, settled in ledger.state().tenants["acme"].items() if name == "month"]
    assert (4, 7) == (window.nanousd, ledger.nanousd)
    again.close()

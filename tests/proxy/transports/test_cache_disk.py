"""Tests of the disk tier on a real directory: it never raises, never grows beyond its bounds, and never gives a damaged answer."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import CacheEntry
from tests.proxy.fakes import Clock
from tests.proxy.state_fakes import NOON_US

TIER_BYTES = 64 * 1024 * 1024


def _entry(name: str, *, size: int = 10) -> CacheEntry:
    return CacheEntry("acme", NOON_US, 3600, "application/json", body=name.encode() * size)


async def _opened(directory: Path, *, bytes_max: int = TIER_BYTES, pending_bytes_max: int = 10**8) -> DiskTier:
    tier = DiskTier(
        directory, bytes_max=bytes_max, pending_bytes_max=pending_bytes_max, read_timeout_s=10, now_us=lambda: NOON_US
    )
    assert await tier.open()
    return tier


def _files(directory: Path) -> list[Path]:
    """The files of the pages."""
    return list(directory.glob("*.page"))


def _all(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[DiskTier]:
    """An open, empty tier."""
    opened = await _opened(tmp_path / "cache")
    yield opened
    await opened.aclose()


async def test_an_entry_comes_back_small_or_large(tier: DiskTier) -> None:
    """Entries of any size share a page and come back equal."""
    small, large = _entry("s"), _entry("l", size=200_000)
    tier.put(b"small", small)
    tier.put(b"large", large)
    await tier.flush()
    assert tier.holds(b"small", now_us=NOON_US)
    assert [small, large] == [await tier.get(b"small"), await tier.get(b"large")]
    assert (2, 2, True) == (len(tier), tier.written_total, tier.bytes_used > 200_000)


async def test_what_waits_to_be_written_can_be_read(tier: DiskTier) -> None:
    """Between `put` and the disk an entry is not lost to readers."""
    tier.put(b"k", _entry("x"))
    assert tier.holds(b"k", now_us=NOON_US)
    assert _entry("x") == await tier.get(b"k")


async def test_a_miss_costs_no_disk(tier: DiskTier) -> None:
    """The index alone says that a key is not there, or no longer."""
    assert not tier.holds(b"k", now_us=NOON_US)
    tier.put(b"k", _entry("x"))
    await tier.flush()
    assert not tier.holds(b"k", now_us=NOON_US + 3_600_000_000)


async def test_entries_survive_a_restart(tmp_path: Path) -> None:
    """The next process finds what this one wrote."""
    first = await _opened(tmp_path)
    first.put(b"k", _entry("x"))
    await first.aclose()
    await first.aclose()
    second = await _opened(tmp_path)
    assert second.holds(b"k", now_us=NOON_US)
    assert _entry("x") == await second.get(b"k")
    await second.aclose()


async def test_before_it_is_open_and_after_it_is_closed_all_is_a_miss(tmp_path: Path) -> None:
    """Nothing raises at either end of its life."""
    tier = DiskTier(tmp_path, bytes_max=TIER_BYTES)
    tier.put(b"k", _entry("x"))
    assert (False, None) == (tier.holds(b"k", now_us=NOON_US), await tier.get(b"k"))
    await tier.open()
    await tier.aclose()
    tier.put(b"k", _entry("x"))
    assert (False, None) == (tier.holds(b"k", now_us=NOON_US), await tier.get(b"k"))


async def test_a_damaged_entry_is_a_miss_and_is_forgotten(tmp_path: Path) -> None:
    """A bit that changed on disk is noticed and counted, and the entry is not asked for again."""
    tier = await _opened(tmp_path)
    tier.put(b"k", _entry("x", size=100_000))
    await tier.flush()
    (file,) = _files(tmp_path)
    data = bytearray(file.read_bytes())
    data[50_000] ^= 1
    file.write_bytes(data)
    assert await tier.get(b"k") is None
    assert (1, False) == (tier.corrupt_total, tier.holds(b"k", now_us=NOON_US))
    await tier.aclose()


async def test_a_file_that_is_gone_is_a_miss(tmp_path: Path) -> None:
    """Somebody who cleans up the directory breaks nothing."""
    tier = await _opened(tmp_path)
    tier.put(b"k", _entry("x", size=100_000))
    await tier.flush()
    for file in _files(tmp_path):
        file.unlink()
    assert await tier.get(b"k") is None
    assert not tier.holds(b"k", now_us=NOON_US)
    await tier.aclose()


async def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """Somebody who removes the whole directory costs what lay in it."""
    tier = await _opened(tmp_path / "cache")
    tier.put(b"k", _entry("x"))
    await tier.flush()
    shutil.rmtree(tmp_path / "cache")
    tier.put(b"l", _entry("y"))
    await tier.flush()
    assert (None, _entry("y"), 0) == (await tier.get(b"k"), await tier.get(b"l"), tier.errors_total)
    await tier.aclose()


async def test_what_an_older_version_left_is_removed_and_what_others_left_stays(tmp_path: Path) -> None:
    """Its database and its folders are of no use any more; a stranger's file is none of our business."""
    (tmp_path / "cache.db").write_bytes(b"a database" * 1000)
    (tmp_path / "cache.db-wal").write_bytes(b"a journal")
    (tmp_path / "a7").mkdir()
    (tmp_path / "a7" / "page.val").write_bytes(b"a page")
    (tmp_path / "notes.txt").write_text("mine")
    tier = await _opened(tmp_path)
    tier.put(b"k", _entry("x"))
    await tier.flush()
    assert (1, _entry("x")) == (len(tier), await tier.get(b"k"))
    assert {"notes.txt", "000000000001.page"} == {path.name for path in _all(tmp_path)}
    await tier.aclose()


async def test_expired_pages_make_room_for_others(tmp_path: Path) -> None:
    """When all entries of the oldest pages have expired, the next write takes them from the disk."""
    now = Clock(NOON_US / 1e6)
    tier = DiskTier(tmp_path, bytes_max=TIER_BYTES, read_timeout_s=10, now_us=now.us)
    await tier.open()
    for name, ttl_s in (("long", 7200), ("short", 60), ("next", 7200)):
        tier.put(name.encode(), msgspec.structs.replace(_entry(name), ttl_s=ttl_s))
        await tier.flush()
        now.now += 100
    assert 3 == len(_files(tmp_path))
    now.now += 7200
    tier.put(b"last", _entry("last"))
    await tier.flush()
    assert (1, sum(file.stat().st_size for file in _files(tmp_path))) == (len(_files(tmp_path)), tier.bytes_used)
    await tier.aclose()


async def test_a_smaller_bound_holds_from_the_start_on(tmp_path: Path) -> None:
    """The oldest pages leave the disk when it is opened, not with the first write, which may be long in coming."""
    before = await _opened(tmp_path, bytes_max=TIER_BYTES)
    for number in range(4):
        before.put(b"%d" % number, _entry(str(number), size=10_000))
        await before.flush()
    await before.aclose()
    bound = 25_000
    tier = await _opened(tmp_path, bytes_max=bound)
    used = sum(file.stat().st_size for file in _files(tmp_path))
    assert (2, 2, True) == (len(_files(tmp_path)), len(tier), used == tier.bytes_used <= bound)
    found = [await tier.get(b"%d" % number) for number in range(4)]
    assert [False, False, True, True] == [entry is not None for entry in found]
    await tier.aclose()


async def test_entries_share_a_page(tmp_path: Path) -> None:
    """Hundreds of entries are few files: what the disk costs is shared."""
    tier = await _opened(tmp_path)
    for number in range(600):
        tier.put(b"%d" % number, _entry(str(number)))
    await tier.flush()
    assert (600, 3) == (tier.written_total, len(_files(tmp_path)))
    assert [_entry(str(number)) for number in range(600)] == [await tier.get(b"%d" % number) for number in range(600)]
    await tier.aclose()


async def test_the_newest_of_equal_keys_counts_after_a_restart(tmp_path: Path) -> None:
    """An answer that was renewed lies in two pages; the later one is found."""
    first = await _opened(tmp_path)
    for name in ("old", "new"):
        first.put(b"k", msgspec.structs.replace(_entry(name), ttl_s=len(name) + (name == "new")))
        await first.flush()
    await first.aclose()
    second = await _opened(tmp_path)
    found = await second.get(b"k")
    assert found is not None
    assert (_entry("new").body, 1) == (found.body, len(second))
    await second.aclose()


async def test_a_page_whose_directory_is_damaged_is_passed_over(tmp_path: Path) -> None:
    """A bit that changed in a page's directory costs its entries at the next start, nothing else."""
    first = await _opened(tmp_path)
    first.put(b"k", _entry("x"))
    await first.aclose()
    (file,) = _files(tmp_path)
    data = bytearray(file.read_bytes())
    data[12] ^= 1
    file.write_bytes(data)
    second = await _opened(tmp_path)
    assert 0 == len(second)
    await second.aclose()


async def test_a_page_whose_places_make_no_sense_is_passed_over(tmp_path: Path) -> None:
    """A directory with the right checksum and places of another length, as no version of ours writes them, stops no start."""
    head = msgspec.msgpack.encode([(b"k", b"short")])
    (tmp_path / "000000000007.page").write_bytes(struct.pack("<II", len(head), zlib.crc32(head)) + head)
    tier = await _opened(tmp_path)
    assert (0, []) == (len(tier), _files(tmp_path))
    tier.put(b"k", _entry("x"))
    await tier.flush()
    assert _entry("x") == await tier.get(b"k")
    await tier.aclose()


async def test_a_directory_that_cannot_be_used_leaves_an_empty_tier(tmp_path: Path) -> None:
    """The proxy starts without its second tier, and says so."""
    (tmp_path / "cache").write_text("a file")
    tier = DiskTier(tmp_path / "cache" / "below", bytes_max=TIER_BYTES)
    assert not await tier.open()
    tier.put(b"k", _entry("x"))
    assert await tier.get(b"k") is None
    assert tier.errors_total == 2
    await tier.aclose()


async def test_trouble_while_writing_loses_only_entries(tmp_path: Path) -> None:
    """A page that cannot be written is counted, and the tier goes on."""
    tier = await _opened(tmp_path)
    (tmp_path / "000000000001.page").mkdir()  # where the first page would go
    tier.put(b"k", _entry("x"))
    await tier.flush()
    assert (1, 0, False) == (tier.errors_total, tier.written_total, tier.holds(b"k", now_us=NOON_US))
    tier.put(b"k", _entry("x"))
    await tier.flush()
    assert _entry("x") == await tier.get(b"k")
    await tier.aclose()


async def test_a_page_that_was_torn_gives_what_is_whole(tmp_path: Path) -> None:
    """A process that was killed while it wrote leaves the entries that had been written, and no others are believed."""
    first = await _opened(tmp_path)
    first.put(b"whole", _entry("a", size=1000))
    first.put(b"torn", _entry("b", size=1000))
    await first.aclose()
    (file,) = _files(tmp_path)
    os.truncate(file, file.stat().st_size - 500)
    second = await _opened(tmp_path)
    assert [_entry("a", size=1000), None] == [await second.get(b"whole"), await second.get(b"torn")]
    assert (1, 1) == (second.corrupt_total, len(second))
    await second.aclose()


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """When more is put than the disk can take, entries are left out and counted, not queued without end."""
    tier = await _opened(tmp_path, pending_bytes_max=20_000)
    for number in range(100):
        tier.put(b"%d" % number, _entry("x", size=1000))
    await tier.flush()
    assert tier.skipped_total > 80
    assert 100 == tier.skipped_total + tier.written_total
    await tier.aclose()


async def test_the_tier_stays_within_its_bytes(tmp_path: Path) -> None:
    """The oldest entries go when the bytes are used up."""
    bytes_max = 1024 * 1024
    tier = await _opened(tmp_path, bytes_max=bytes_max)
    for number in range(60):
        tier.put(b"%d" % number, _entry("x", size=50_000))
        await tier.flush()
    files = sum(file.stat().st_size for file in _files(tmp_path))
    assert files <= bytes_max
    assert await tier.get(b"0") is None
    assert await tier.get(b"59") is not None
    await tier.aclose()


async def test_the_index_stays_within_its_entries(tmp_path: Path) -> None:
    """Many tiny answers cannot make the index grow without end: the oldest keys go."""
    tier = await _opened(tmp_path, bytes_max=4096 * 20)
    for number in range(50):
        tier.put(b"%d" % number, _entry("x"))
        await tier.flush()
        assert len(tier) <= 20
    assert (False, True) == (tier.holds(b"29", now_us=NOON_US), tier.holds(b"30", now_us=NOON_US))
    await tier.aclose()
    again = await _opened(tmp_path, bytes_max=4096 * 20)
    assert len(again) <= 20
    await again.aclose()


async def test_a_reader_that_leaves_disturbs_nobody(tier: DiskTier) -> None:
    """A cancelled look-up frees its place."""
    tier.put(b"k", _entry("x", size=100_000))
    await tier.flush()
    for _ in range(200):
        reading = asyncio.create_task(tier.get(b"k"))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    for _ in range(10_000_000):  # until the threads are through with what nobody waits for
        if not tier._reads:
            break
        await asyncio.sleep(0)
    assert await tier.get(b"k") is not None

"""Tests of how a worker's parts are joined: what they count is shown, and what they leave is picked up."""

from __future__ import annotations

from tests.proxy.fakes import World


async def test_whatever_a_part_counts_is_shown(world: World) -> None:
    """No counter of spool, shipper, cache, coalescing, snapshots, status or ledger is kept for nobody."""
    worker = world.worker
    parts = (
        worker.spool,
        worker.shipper,
        worker.cache,
        worker.cache.memory,
        worker.cache.disk,
        worker.coalesce,
        worker.snapshots,
        worker.reporter,
        worker.ledger,
    )
    expected: dict[str, float] = {}
    for part in parts:
        for name in (name for name in vars(part) if name.endswith("_total")):
            expected[f"{type(part).__name__}.{name}"] = value = 7_000_001 + len(expected)
            setattr(part, name, value)
    worker.spool.dropped, worker.spool.dropped_nanousd, worker.spool.torn_bytes = 1_001, 1_002, 1_003
    expected |= {"dropped": 1_001, "dropped_nanousd": 1_002, "torn_bytes": 1_003}
    shown = [float(line.rsplit(" ", 1)[1]) for line in worker.metrics.render().decode().splitlines() if line[0] != "#"]
    assert [] == [name for name, value in expected.items() if value not in shown]
    assert len(expected) > 20

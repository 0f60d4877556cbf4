"""Puts records into the store the way ingest does, without waiting for anyone."""

from __future__ import annotations

from controlplane.contract.records import CallRecord
from controlplane.ingest import steps
from controlplane.store.client import Store
from controlplane.store.rows import batch_rows


def fill(store: Store, *records: CallRecord, proxy: str = "proxy-1", segment: int = 0) -> None:
    """Stores the records as one batch of a proxy."""
    token = f"{proxy}/{segment:012d}"
    for table, columns in steps(batch_rows(records, token=token, body_bytes=100)):
        store.insert(table, columns, token=f"{token}:{table.name}")

"""Native blocks with headers: the same data for a client that announces a protocol version."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.store.client import Store
from controlplane.store.native import UnknownLayout, parse_type, with_block_headers
from controlplane.store.schema import TABLES

HEADER = b"\x01\x00\x02\xff\xff\xff\xff\x00"


def native(store: Store, sql: str) -> bytes:
    """A result as the embedded engine writes it."""
    with store.reader() as client:
        return client.raw_query(sql, fmt="Native")


def test_one_column() -> None:
    """A block gets its header, and each type the byte behind it."""
    plain = b"\x01\x02" + b"\x01n" + b"\x05UInt8" + b"\x07\x08"
    assert HEADER + b"\x01\x02" + b"\x01n" + b"\x05UInt8" + b"\x00" + b"\x07\x08" == with_block_headers(plain)
    assert with_block_headers(plain + plain) == with_block_headers(plain) * 2
    assert with_block_headers(b"") == b""


EXPRESSIONS = [
    "number",
    "toString(number)",
    "repeat('x', number * 100)",
    "toLowCardinality(toString(number % 3))",
    "if(number % 2 = 0, NULL, number)",
    "if(number % 2 = 0, NULL, toString(number))",
    "toLowCardinality(if(number % 2 = 0, NULL, toString(number)))",
    "range(number)",
    "arrayMap(x -> range(x), range(number % 5))",
    "CAST(arrayMap(x -> toString(x), range(number % 4)), 'Array(LowCardinality(String))')",
    "map('a', number, 'b', number + 1)",
    "CAST(map(toString(number), 'v'), 'Map(LowCardinality(String), String)')",
    "(number, toString(number), [number])",
    "CAST((number, 'x'), 'Tuple(a UInt64, `b c` String)')",
    "toDecimal64(number, 9)",
    "toDecimal128(number, 9)",
    "toDecimal32(number, 2)",
    "toDecimal256(number, 2)",
    "toDateTime64(number, 6, 'UTC')",
    "toDateTime(number, 'UTC')",
    "toDate(number)",
    "number % 2 = 0",
    "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')",
    "toFixedString('ab', 4)",
    "CAST('a', 'Enum8(\\'a\\' = 1, \\'b,)\\' = 2)')",
    "toIPv4('127.0.0.1')",
    "toFloat64(number)",
    "INTERVAL number DAY",
    "[]",
    "NULL",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_ends_of_columns_are_found(store: Store, expression: str) -> None:
    """For each type, taking the header and the bytes behind the types out again gives what the engine wrote."""
    data = native(store, f"SELECT {expression} AS a, 'end' AS z FROM numbers(300)")
    assert b"\x03end" * 2 in data
    found = with_block_headers(data)
    assert found.count(HEADER) >= 1
    assert len(found) == len(data) + found.count(HEADER) * (len(HEADER) + 2)
    tail = b"\x01z" + b"\x06String"
    assert found.replace(HEADER, b"").replace(tail + b"\x00", tail).endswith(data[data.rindex(tail) :])


@pytest.mark.parametrize("table", [t for t in TABLES if not t.name.endswith("_minute")], ids=lambda t: t.name)
def test_every_table_can_be_sent(store: Store, table: object) -> None:
    """No column of ours has a type that a client could not be sent."""
    for column in table.columns:  # type: ignore[attr-defined]
        assert parse_type(column.type)


@pytest.mark.parametrize(
    "name", ["AggregateFunction(sum, UInt64)", "Dynamic", "JSON", "Variant(String, UInt8)", "", "(", "Array", "Array()"]
)
def test_other_types_are_refused(name: str) -> None:
    """A type whose length is not known is refused by name instead of sent as garbage."""
    with pytest.raises(UnknownLayout, match="convert them to text"):
        parse_type(name)


def test_deep_types_are_refused() -> None:
    """Nesting has a bound."""
    with pytest.raises(UnknownLayout):
        parse_type("Array(" * 100 + "UInt8" + ")" * 100)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """Any bytes give blocks or a refusal, nothing else."""
    with suppress(UnknownLayout):
        with_block_headers(data)


def test_cut_results_are_refused(store: Store) -> None:
    """A result that was cut anywhere within a block is no result."""
    data = native(store, "SELECT toString(number), [number] FROM numbers(3)")
    for end in range(1, len(data)):
        with pytest.raises(UnknownLayout):
            with_block_headers(data[:end])

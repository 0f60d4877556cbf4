"""Native blocks for clients that announce a protocol version.

The embedded engine writes Native blocks as a server does for a client that announces none. A client that does (Grafana's data source, through
its Go driver) expects two things more: a block header, and one byte behind each column's type that says how the column is laid out.
To put them in, the end of every column has to be found; nothing is decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

CUSTOM_SERIALIZATION_VERSION = 54_454  # from this protocol version on a client expects the byte behind each type
TYPE_DEPTH_MAX = 32

_BLOCK_HEADER = bytes(
    [1, 0, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0]
)  # field 1: no overflow row; field 2: bucket -1; field 0: the end
_PLAIN_LAYOUT = b"\x00"
_U64 = struct.Struct("<Q")
_LOW_CARDINALITY_INDEX_BYTES = (1, 2, 4, 8)

_WIDTHS = {
    "UInt8": 1, "UInt16": 2, "UInt32": 4, "UInt64": 8, "UInt128": 16, "UInt256": 32,
    "Int8": 1, "Int16": 2, "Int32": 4, "Int64": 8, "Int128": 16, "Int256": 32,
    "Float32": 4, "Float64": 8, "BFloat16": 2, "Bool": 1, "Nothing": 1, "UUID": 16, "IPv4": 4, "IPv6": 16,
    "Date": 2, "Date32": 4, "DateTime": 4, "DateTime64": 8, "Time": 4, "Time64": 8, "Enum8": 1, "Enum16": 2,
}  # fmt: skip
_PIECE = re.compile(r"""'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[(),]|[^'`(),]+|.""", re.DOTALL)
_NAMED = re.compile(r"(?:`(?:[^`\\]|\\.)*`|\w+)\s+(.+)", re.DOTALL)
_TYPE = re.compile(r"^(\w+)(?:\((.*)\))?$", re.DOTALL)


class UnknownLayout(ValueError):
    """A type whose end in a block is not known here, or bytes that are no block."""


class _Type:
    """A column type as far as its length goes."""

    __slots__ = ("inner", "name", "width")

    def __init__(self, name: str, *, width: int = 0, inner: Sequence[_Type] = ()) -> None:
        self.name = name
        self.width = width
        self.inner = tuple(inner)


def with_block_headers(data: bytes) -> bytes:
    """The same blocks as a client of a protocol version from 54454 on expects them. Raises UnknownLayout."""
    out: list[bytes] = []
    at = 0
    try:
        while at < len(data):
            at = _block(data, at, out)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise UnknownLayout("the result ends within a block") from error
    if at != len(data):
        raise UnknownLayout("the result ends within a block")
    return b"".join(out)


def _block(data: bytes, start: int, out: list[bytes]) -> int:
    """Copies one block and returns where the next one begins."""
    columns, at = _varint(data, start)
    rows, at = _varint(data, at)
    out += (_BLOCK_HEADER, data[start:at])
    for _ in range(columns):
        begin = at
        _, at = _text(data, at)
        type_name, at = _text(data, at)
        column = parse_type(type_name)
        out += (data[begin:at], _PLAIN_LAYOUT)
        begin = at
        if rows:
            at = _skip(column, data, _skip_prefix(column, at), rows)
        out.append(data[begin:at])
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _text(data: bytes, at: int) -> tuple[str, int]:
    length, at = _varint(data, at)
    return data[at : at + length].decode(), at + length


def parse_type(text: str, depth: int = 0) -> _Type:
    """Reads a type's name. Raises UnknownLayout for types whose length in a block is not known here."""
    match = _TYPE.match(text.strip())
    if match is None or depth > TYPE_DEPTH_MAX:
        raise UnknownLayout(f"columns of type {text} cannot be sent to this client; convert them to text")
    name, arguments = match[1], match[2] or ""
    if name in _WIDTHS:
        return _Type("fixed", width=_WIDTHS[name])
    if name.startswith("Interval"):
        return _Type("fixed", width=8)
    if name == "FixedString":
        return _Type("fixed", width=int(arguments))
    if name == "Decimal":
        digits = int(arguments.split(",")[0])
        return _Type("fixed", width=4 if digits <= 9 else 8 if digits <= 18 else 16 if digits <= 38 else 32)
    if name == "String":
        return _Type("String")
    inner = [parse_type(_without_name(part), depth + 1) for part in _arguments(arguments)] if name in _NESTED else []
    if name == "Map" and len(inner) == 2:
        return _Type("Array", inner=[_Type("Tuple", inner=inner)])
    if name == "SimpleAggregateFunction":
        return parse_type(_arguments(arguments)[1], depth + 1)
    if inner and (name == "Tuple" or len(inner) == 1):
        return _Type(name, inner=inner)
    raise UnknownLayout(f"columns of type {text} cannot be sent to this client; convert them to text")


_NESTED = frozenset({"Array", "LowCardinality", "Map", "Nullable", "Tuple"})


def _arguments(text: str) -> list[str]:
    """Splits at the commas that are outside of any brackets and quotes."""
    parts: list[str] = []
    depth = begin = 0
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece in "()":
            depth += 1 if piece == "(" else -1
        elif piece == "," and depth == 0:
            parts.append(text[begin : match.start()])
            begin = match.end()
    return [*parts, text[begin:]]


def _without_name(part: str) -> str:
    """An element of a named tuple without its name."""
    match = _NAMED.match(part.strip())
    return match[1] if match else part


def _skip_prefix(column: _Type, at: int) -> int:
    """Behind what comes once before a column's data: the version of each dictionary in it."""
    if column.name == "LowCardinality":
        return at + 8
    for inner in column.inner:
        at = _skip_prefix(inner, at)
    return at


def _skip(column: _Type, data: bytes, at: int, rows: int) -> int:
    """Behind the data of so many rows."""
    if column.name == "fixed":
        at += column.width * rows
    elif column.name == "String":
        at = _skip_strings(data, at, rows)
    elif column.name == "Nullable":
        at = _skip(column.inner[0], data, at + rows, rows)
    elif column.name == "Array":
        at += 8 * rows
        at = _skip(column.inner[0], data, at, _U64.unpack_from(data, at - 8)[0] if rows else 0)
    elif column.name == "Tuple":
        for inner in column.inner:
            at = _skip(inner, data, at, rows)
    elif rows:
        at = _skip_dictionary(column.inner[0], data, at)
    if at > len(data):
        raise UnknownLayout("the result ends within a block")
    return at


def _skip_strings(data: bytes, at: int, rows: int) -> int:
    for _ in range(rows):
        length = data[at]
        at += 1
        if length >= 0x80:
            length, at = _varint(data, at - 1)
        at += length
    return at


def _skip_dictionary(keys: _Type, data: bytes, at: int) -> int:
    """Behind a dictionary of keys and the rows' indexes into it."""
    (flags,) = _U64.unpack_from(data, at)
    (count,) = _U64.unpack_from(data, at + 8)
    at = _skip(keys.inner[0] if keys.name == "Nullable" else keys, data, at + 16, count)
    (rows,) = _U64.unpack_from(data, at)
    return at + 8 + int(rows) * _LOW_CARDINALITY_INDEX_BYTES[flags & 0xFF]

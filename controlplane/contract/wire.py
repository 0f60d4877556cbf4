"""How records lie in a spool segment and travel in a batch: frames of msgpack that detect a torn tail.

A frame is `length: u32 little-endian, crc32: u32 little-endian, payload: length bytes of msgpack`. A process that is killed while it
writes leaves at most one torn frame at the end of its segment; reading stops there. A batch is a whole segment, sent as it lies on disk,
under a token made of the proxy's id and the segment's number: sending it twice changes nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgspec

from controlplane.contract.records import CallRecord

BATCH_PATH = "/api/v1/internal/batches"
SNAPSHOT_PATH = "/api/v1/internal/snapshot"
STATUS_PATH = "/api/v1/internal/status"
TOKEN_HEADER = "x-heph-batch-token"  # noqa: S105 - a name, not a secret
RECORD_BYTES_MAX = 64 * 1024 * 1024

_HEADER = struct.Struct("<II")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallRecord)


class TornFrame(ValueError):
    """A frame whose length or checksum does not hold; carries the offset where the good bytes end."""

    def __init__(self, good_bytes: int) -> None:
        super().__init__(f"torn or damaged frame after {good_bytes} good bytes")
        self.good_bytes = good_bytes


def encode_frame(record: CallRecord) -> bytes:
    """One record as a frame, ready to be appended to a segment in a single write."""
    payload = _encoder.encode(record)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def frames(data: bytes) -> Iterator[tuple[int, CallRecord]]:
    """Each record of a segment with the offset just behind it.

    Raises TornFrame at the first frame that is cut short or damaged; everything yielded before it is good.
    """
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise TornFrame(at)
        length, checksum = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        if length > RECORD_BYTES_MAX or len(body) < length or zlib.crc32(body) != checksum:
            raise TornFrame(at)
        try:
            record = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TornFrame(at) from error
        at += _HEADER.size + length
        yield at, record


def decode_batch(data: bytes) -> list[CallRecord]:
    """All good records of a segment; a torn tail is left out, as the proxy that wrote it never counted it as settled."""
    records: list[CallRecord] = []
    try:
        for _, record in frames(data):
            records.append(record)
    except TornFrame:
        pass
    return records


def batch_token(*, proxy_id: str, segment: int) -> str:
    """The name under which a batch is inserted at most once."""
    return f"{proxy_id}/{segment:012d}"

"""A stored answer and how it lies on disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens

BLOCK_BYTES = 64 * 1024  # a replayed stream is sent in blocks of about this size
_OK = 200
OVERHEAD_BYTES = 1024  # of an entry in memory, beside its answer
_TEXT_BYTES = 64  # of a text, beside its characters
_WIDE_BYTES = 8  # of a character that is not ASCII, at most: a text that was ever written keeps its UTF-8, too


class CacheEntry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One complete answer, without anything that belongs to the call which brought it.

    The tenant is kept to be compared at each hit: a second lock behind the key. `tokens` and `nanousd` are what the answer used and cost;
    a hit saves that much. The garbage collector does not look at entries: they are all that calls leave behind, nothing in them can refer
    back to them, and a look at thousands of them stopped every call for milliseconds.
    """

    tenant: str
    created_us: int
    ttl_s: int
    content_type: str
    body: bytes = b""
    blocks: tuple[bytes, ...] = ()  # of a stream, whole events; of an embedded input, its object and the model's name
    stream: bool = False
    deployment: str = ""
    model: str = ""
    finish_reason: str = ""
    tokens: Tokens = NO_TOKENS
    nanousd: int = 0
    ending: bytes = b""  # of a stream: its protocol's last event; b"": `data: [DONE]`
    asked_us: int = 0  # when the call began that brought it; what invalidation goes by
    stale_s: int = 0  # how long past its time it may still be of use
    status: int = 200
    error_code: str = ""  # with a status of 400 and above: an upstream's refusal of this request
    alias: str = ""
    agent: str = ""
    tags: dict[str, str] = {}

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        size_bytes = OVERHEAD_BYTES + len(self.body)
        if self.tags:  # which clients choose, and may be larger than the answer
            size_bytes += sum(map(_weight, self.tags)) + sum(map(_weight, self.tags.values()))
        return size_bytes + len(self.ending) + sum(map(len, self.blocks)) if self.blocks else size_bytes

    @property
    def keep_s(self) -> int:
        """How long it is of any use."""
        return self.ttl_s + self.stale_s

    @property
    def expires_us(self) -> int:
        """When it is of no more use, not even as a stale answer."""
        return self.created_us + (self.ttl_s + self.stale_s) * 1_000_000

    @property
    def negative(self) -> bool:
        """Whether it is an upstream's refusal; those stay in memory."""
        return self.status != _OK


def _weight(text: str) -> int:
    """About what a text takes, and always the same: what was added to a sum is taken from it again later."""
    return _TEXT_BYTES + (len(text) if text.isascii() else _WIDE_BYTES * len(text))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CacheEntry)


def encode_entry(entry: CacheEntry) -> bytes:
    """The entry with a checksum before it."""
    payload = _encoder.encode(entry)
    return zlib.crc32(payload).to_bytes(4, "little") + payload


def decode_entry(data: bytes) -> CacheEntry | None:
    """The entry, or None if a bit of it is not as it was written."""
    payload = data[4:]
    if zlib.crc32(payload) != int.from_bytes(data[:4], "little"):
        return None
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:
        return None


def joined(chunks: Iterable[bytes]) -> tuple[bytes, ...]:
    """The same bytes in few pieces, cut only where a chunk ended."""
    blocks: list[bytes] = []
    block: list[bytes] = []
    size = 0
    for chunk in chunks:
        block.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            blocks.append(b"".join(block))
            block, size = [], 0
    if block:
        blocks.append(b"".join(block))
    return tuple(blocks)

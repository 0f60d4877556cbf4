"""Tests of frames and batches."""

import struct
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import (
    AttemptError,
    AttemptRecord,
    CacheState,
    CallRecord,
    CostState,
    Outcome,
    Payload,
)
from controlplane.contract.wire import TornFrame, batch_token, decode_batch, encode_frame, frames

TIMES = st.integers(0, 2**62)
WORDS = st.text(max_size=20)
COUNTS = st.integers(0, 2**40)
TOKENS = st.builds(Tokens, input=COUNTS, output=COUNTS, cache_read=COUNTS, reasoning=COUNTS)
ATTEMPTS = st.builds(
    AttemptRecord,
    deployment=WORDS,
    upstream=WORDS,
    model=WORDS,
    started_us=TIMES,
    latency_us=COUNTS,
    error=st.sampled_from(AttemptError),
    tokens=TOKENS,
    cost_nanousd=COUNTS,
    cost_state=st.sampled_from(CostState),
)
RECORDS = st.builds(
    CallRecord,
    call_id=WORDS,
    started_us=TIMES,
    latency_us=COUNTS,
    operation=st.sampled_from(["chat", "embeddings", "models"]),
    outcome=st.sampled_from(Outcome),
    status=st.integers(0, 599),
    tenant=WORDS,
    tags=st.dictionaries(WORDS, WORDS, max_size=3),
    cache=st.sampled_from(CacheState),
    tokens=TOKENS,
    cost_nanousd=COUNTS,
    attempts=st.lists(ATTEMPTS, max_size=3).map(tuple),
    payload=st.none()
    | st.builds(Payload, request=st.binary(), response=st.binary(), retention_days=st.integers(0, 99)),
)


def _record(call_id: str) -> CallRecord:
    return CallRecord(call_id, 1, 2, "chat", Outcome.OK, 200)


@given(st.lists(RECORDS, max_size=5))
def test_a_batch_gives_back_what_was_framed(records: list[CallRecord]) -> None:
    """Any records framed one after the other are read back equal, with the offset behind each."""
    data, ends = b"", []
    for record in records:
        data += encode_frame(record)
        ends.append(len(data))
    assert records == decode_batch(data)
    assert list(zip(ends, records, strict=True)) == list(frames(data))


def test_a_tail_torn_at_any_byte_loses_only_the_torn_record() -> None:
    """Cut anywhere, a segment gives every record that is whole and says where the good bytes end."""
    parts = [encode_frame(_record(f"call_{number}")) for number in range(3)]
    data = b"".join(parts)
    ends = [0, len(parts[0]), len(parts[0]) + len(parts[1]), len(data)]
    for cut in range(len(data)):
        whole = max(index for index, end in enumerate(ends) if end <= cut)
        assert [f"call_{number}" for number in range(whole)] == [record.call_id for record in decode_batch(data[:cut])]
        if cut not in ends:
            with pytest.raises(TornFrame) as caught:
                list(frames(data[:cut]))
            assert ends[whole] == caught.value.good_bytes


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    """No damage to a single bit of a frame goes unseen, or reads as another record."""
    good = encode_frame(_record("call_1"))
    for at in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[at] ^= 1 << bit
            with pytest.raises(TornFrame):
                list(frames(bytes(damaged)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    """A batch of garbage is an empty batch, never a crash."""
    assert [] == decode_batch(b"\xff\xff\xff\xff" + data)
    decode_batch(data)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\xde\x00",
        b"\xa2\xff\xfe",
        b"\x81\xa7call_id\xa2\xff\xfe",
        b"\x91" * 100_000,
        b"\x80" + b"trailing",
    ],
)
def test_a_frame_whose_checksum_holds_over_garbage_is_damaged(payload: bytes) -> None:
    """What no proxy of ours has written ends the good bytes like any damage, and raises nothing else."""
    good = encode_frame(_record("call_1"))
    data = good + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    assert [_record("call_1")] == decode_batch(data)
    with pytest.raises(TornFrame) as caught:
        list(frames(data))
    assert len(good) == caught.value.good_bytes


def test_a_newer_proxy_can_be_read() -> None:
    """A field that this version does not know is skipped."""
    payload = msgspec.msgpack.encode({**msgspec.to_builtins(_record("call_1")), "invented_later": [1, 2]})
    frame = struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    assert [_record("call_1")] == decode_batch(frame)


def test_batch_tokens_name_proxy_and_segment() -> None:
    """The token is the proxy's id and the segment's number, of a width that sorts."""
    assert "prx_1/000000000042" == batch_token(proxy_id="prx_1", segment=42)

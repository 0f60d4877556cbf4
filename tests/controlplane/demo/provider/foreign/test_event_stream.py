"""Frames as Amazon's own reader sees them."""

from __future__ import annotations

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer

from controlplane.demo.provider.foreign import event_stream


def test_frames_are_read_back() -> None:
    """Amazon's reader finds headers and payload, and accepts both checksums."""
    reader = EventStreamBuffer()
    reader.add_data(event_stream.event("messageStop", b"{}") + event_stream.exception("throttlingException", b"{1}"))
    first, second = reader
    assert b"{}" == first.payload
    assert {
        ":event-type": "messageStop",
        ":content-type": "application/json",
        ":message-type": "event",
    } == first.headers
    assert b"{1}" == second.payload
    assert "exception" == second.headers[":message-type"]


def test_broken_frame_is_noticed() -> None:
    """One changed byte does not pass."""
    data = bytearray(event_stream.event("messageStop", b"{}"))
    data[-5] ^= 1
    reader = EventStreamBuffer()
    reader.add_data(bytes(data))
    with pytest.raises(ChecksumMismatch):
        list(reader)

"""Amazon's event stream: binary frames with headers and two checksums.

Source: the AWS SDK specification, "vnd.amazon.event-stream encoding".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
_STRING = 7  # the type of a header's value


def frame(payload: bytes, **headers: str) -> bytes:
    """One frame. headers: names without their colon, with underscores for hyphens."""
    return _framed(b"".join(_header(f":{name.replace('_', '-')}", value) for name, value in headers.items()), payload)


def _framed(block: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind: str, payload: bytes) -> bytes:
    """A frame with an event."""
    return frame(payload, event_type=kind, content_type="application/json", message_type="event")


def exception(kind: str, payload: bytes) -> bytes:
    """A frame with an error, which ends the stream."""
    return frame(payload, exception_type=kind, content_type="application/json", message_type="exception")


def changed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A frame whose payload was changed, with lengths and checksums that are right again."""
    headers_bytes = int.from_bytes(data[4:8])
    block, payload = data[12 : 12 + headers_bytes], data[12 + headers_bytes : -4]
    return _framed(block, change(payload))


def _header(name: str, value: str) -> bytes:
    name_bytes, value_bytes = name.encode(), value.encode()
    return b"%c%b%c%b%b" % (len(name_bytes), name_bytes, _STRING, struct.pack(">H", len(value_bytes)), value_bytes)

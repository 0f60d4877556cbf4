"""Cuts a stream of server-sent events into whole events, wherever the network cut it into chunks.

For streams whose events say their own `type`: the responses endpoint's, and those of images and audio.
"""

from __future__ import annotations

from proxy.dialects.dialect import Malformed

_BLANK = b"\n\n"


class EventCutter:
    """What has come and is not a whole event yet. Line ends become LF, as in every stream that the proxy passes on."""

    __slots__ = ("_carriage_return", "_event_bytes_max", "_pending")

    def __init__(self, event_bytes_max: int) -> None:
        """event_bytes_max: an event larger than this is malformed."""
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._carriage_return = False

    def feed(self, data: bytes) -> bytes:
        """The whole events that there are now, each with the blank line that ends it; b"" if none is whole yet. Raises Malformed."""
        if self._carriage_return or b"\r" in data:
            data = self._unify_line_ends(data)
        pending = self._pending
        if not pending:
            cut = data.rfind(_BLANK)
            if cut == len(data) - 2 and cut >= 0:
                return data
            whole, rest = (data[: cut + 2], data[cut + 2 :]) if cut >= 0 else (b"", data)
            pending += rest
        else:
            before = len(pending)
            pending += data
            cut = pending.rfind(_BLANK, max(0, before - 1))
            whole = bytes(pending[: cut + 2]) if cut >= 0 else b""
            del pending[: len(whole)]
        if len(pending) > self._event_bytes_max:
            raise Malformed(f"an event of the upstream's stream is larger than {self._event_bytes_max} bytes")
        return whole

    def finish(self) -> bytes:
        """The end of the bytes: a last event that lacks its blank line is taken as whole."""
        rest = bytes(self._pending).strip(b"\n")
        self._pending.clear()
        self._carriage_return = False
        return rest + _BLANK if rest else b""

    def _unify_line_ends(self, data: bytes) -> bytes:
        """CRLF and CR as LF; a CR at the very end waits for what follows it."""
        if self._carriage_return:
            data = b"\r" + data
        self._carriage_return = data.endswith(b"\r")
        if self._carriage_return:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def events_in(block: bytes) -> list[bytes]:
    """The events of a block of whole ones, without the blank lines around them."""
    return [event for part in block.split(_BLANK) if (event := part.strip(b"\n"))]


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None if it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None

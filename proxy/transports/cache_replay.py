"""A stored answer on its way out, and an answer on its way in."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.contract.records import Outcome
from proxy.call import ChunkStream, Reply, Sink, tap
from proxy.transports.cache_entry import CacheEntry, joined
from proxy.transports.flight import Reader

_ERROR_STATUS_MIN = 400
_NEGATIVE = (b"x-heph-cache-detail", b"negative")


def reply_of(entry: CacheEntry, *, age_us: int) -> Reply:
    """The reply made of an entry."""
    content_type = (b"content-type", entry.content_type.encode("latin-1"))
    reply = Reply(entry.status, [content_type], body=entry.body, stream=Replay(entry.blocks) if entry.stream else None)
    reply.age_s = max(0, age_us) / 1_000_000
    reply.stored_ttl_s = entry.ttl_s
    reply.deployment = entry.deployment
    reply.model = entry.model
    reply.finish_reason = entry.finish_reason
    reply.ending = entry.ending
    reply.complete = True
    reply.usage_known = True
    if entry.status >= _ERROR_STATUS_MIN:
        reply.outcome, reply.error_code = Outcome.UPSTREAM_REFUSED, entry.error_code
        reply.headers.append(_NEGATIVE)
    return reply


def content_type_of(reply: Reply) -> str:
    """Of an answer, as its upstream said it."""
    for name, value in reply.headers:
        if name == b"content-type":
            return value.decode("latin-1")
    return "application/json"


class Recording:
    """A stream on its way to the client, kept in passing and handed over at its end.

    What was not read to its end, or grew beyond bytes_max, is not handed over; nor is one of a flight whose chunks are too much to be kept, for
    they are the same: so all that are recorded have the bound of all flights.
    """

    __slots__ = ("_bytes", "_bytes_max", "_chunks", "_inner", "_on_end", "_on_large", "_sink")

    def __init__(
        self,
        inner: ChunkStream,
        *,
        bytes_max: int,
        on_end: Callable[[tuple[bytes, ...]], object],
        on_large: Callable[[], object],
    ) -> None:
        self._inner = inner
        self._bytes_max = bytes_max
        self._on_end: Callable[[tuple[bytes, ...]], object] | None = on_end
        self._on_large = on_large
        self._chunks: list[bytes] | None = []  # None: not to be stored
        self._bytes = 0
        self._sink: Sink | None = None
        if isinstance(inner, Reader):
            inner.on_trimmed = self._give_up

    async def read(self) -> bytes:
        """The inner stream's next chunk."""
        chunk = await self._inner.read()
        if chunk:
            self._keep(chunk)
        elif self._chunks is not None:
            chunks, self._chunks = self._chunks, None
            if self._on_end is not None:
                self._on_end(joined(chunks))
        return chunk

    def tap(self, sink: Sink) -> None:
        """Chunks that a sink takes in passing are kept too."""
        self._sink = sink
        tap(self._inner, self._pass)
        if isinstance(self._inner, Reader):  # which keeps the same chunks: both keep the same blocks then
            self._inner.on_joined = self._joined

    def _joined(self, count: int, block: bytes) -> None:
        """So many chunks, the last ones, are one."""
        if self._chunks is not None:
            self._chunks[-count:] = (block,)

    def _pass(self, chunk: bytes) -> bool:
        if self._sink is None or not self._sink(chunk):
            return False
        self._keep(chunk)
        return True

    def _keep(self, chunk: bytes) -> None:
        chunks = self._chunks
        if chunks is None:
            return
        self._bytes += len(chunk)
        if self._bytes > self._bytes_max:
            self._give_up()
        else:
            chunks.append(chunk)

    def _give_up(self) -> None:
        """It is not stored: alone or with others it takes too much room."""
        if self._chunks is not None:
            self._chunks = None
            self._on_large()

    def close(self) -> None:
        """What was not read to its end is not stored. Lets go of whoever listened, or thousands of calls would wait for the garbage collector."""
        self._chunks = self._on_end = self._sink = None
        self._inner.close()
        self._inner = _NOTHING


class Replay:
    """A stored stream, sent again."""

    __slots__ = ("_blocks", "_next")

    def __init__(self, blocks: tuple[bytes, ...]) -> None:
        self._blocks = blocks
        self._next = 0

    async def read(self) -> bytes:
        """The next block."""
        index = self._next
        if index >= len(self._blocks):
            return b""
        self._next = index + 1
        return self._blocks[index]

    def close(self) -> None:
        """Nothing is held."""
        self._next = len(self._blocks)


_NOTHING = Replay(())

"""Bodies that an upstream has compressed although it was asked not to."""

from __future__ import annotations

import zlib

_RAW = -zlib.MAX_WBITS
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_WINDOWS = {
    b"gzip": (_ZLIB_OR_GZIP,),
    b"x-gzip": (_ZLIB_OR_GZIP,),
    b"deflate": (_ZLIB_OR_GZIP, _RAW),  # servers mean either by it
}


def decoded(body: bytes, encoding: bytes, *, bytes_max: int) -> bytes | None:
    """The body without its encoding; None: it cannot be read, or would have more than bytes_max bytes."""
    name = encoding.strip().lower()
    if name == b"identity" or not body:
        return body
    for window in _WINDOWS.get(name, ()):
        reader = zlib.decompressobj(window)
        try:
            plain = reader.decompress(body, bytes_max + 1)
        except zlib.error:
            continue
        return plain if reader.eof and len(plain) <= bytes_max else None
    return None

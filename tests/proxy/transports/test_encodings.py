"""Bodies in encodings that nobody asked for: read where we can, never more than allowed, and never an error of ours."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.records import AttemptError
from proxy.transports.encodings import decoded
from tests.proxy.fakes import STREAM_HEAD, World, answer, completion, replies

BODY = completion()
NO = b'{"error":{"message":"no","type":"x","param":null,"code":"context_length_exceeded"}}'
RAW = zlib.compressobj(wbits=-15)
DEFLATED = RAW.compress(BODY) + RAW.flush()


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        (b"gzip", gzip.compress(BODY), BODY),
        (b" X-GZIP ", gzip.compress(BODY), BODY),
        (b"deflate", zlib.compress(BODY), BODY),
        (b"deflate", DEFLATED, BODY),
        (b"identity", BODY, BODY),
        (b"gzip", b"", b""),
        (b"gzip", gzip.compress(BODY)[:-9], None),
        (b"gzip", BODY, None),
        (b"br", BODY, None),
        (b"gzip, br", gzip.compress(BODY), None),
        (b"gzip", gzip.compress(b" " * 10_001), None),
    ],
)
def test_what_can_be_read_is_read(encoding: bytes, body: bytes, expected: bytes | None) -> None:
    """Each name that servers use, both things that `deflate` means; not what is cut short, foreign or larger than allowed."""
    assert expected == decoded(body, encoding, bytes_max=10_000)


@given(st.sampled_from([b"gzip", b"deflate"]), st.binary(max_size=200))
def test_rubbish_is_no_error_of_ours(encoding: bytes, body: bytes) -> None:
    """Whatever the bytes are, they are read or not."""
    found = decoded(body, encoding, bytes_max=100)
    assert found is None or len(found) <= 100


async def test_an_answer_that_was_compressed_all_the_same_is_read(world: World) -> None:
    """The client gets it plain, and it costs what it says; the same with an error and its code."""
    await world.upstream(
        replies(answer(gzip.compress(BODY), 200, "content-encoding: gzip")),
        replies(answer(gzip.compress(NO), 400, "Content-Encoding: gzip")),
    )
    world.apply()
    good, bad = await world.chat(), await world.chat()
    assert (200, BODY, 400, NO) == (good.status_code, good.content, bad.status_code, bad.content)
    assert {"content-encoding"}.isdisjoint((*good.headers, *bad.headers))
    assert [15_000, 0] == [record.cost_nanousd for record in world.records()]


async def test_what_nobody_can_read_is_said(world: World) -> None:
    """A foreign encoding of an answer, any of a stream: the try fails and says why; an error goes on with its label."""
    stream = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    await world.upstream(
        replies(answer(b"\x0b\x02", 200, "content-encoding: br")),
        replies(stream),
        replies(answer(b"", 400, "content-encoding: br")),
    )
    world.apply(route={"attempts_max": 1})
    for asked, encoding in ((False, "br"), (True, "gzip")):
        response = await world.chat(stream=asked)
        assert (502, True) == (response.status_code, f"`{encoding}`" in response.json()["error"]["message"])
    assert 400 == (await world.chat()).status_code
    assert [AttemptError.MALFORMED] * 2 + [AttemptError.REJECTED] == [r.attempts[0].error for r in world.records()]

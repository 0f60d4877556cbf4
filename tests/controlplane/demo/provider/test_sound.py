"""Each format is recognised by its own beginning, and wav by Python's own reader."""

from __future__ import annotations

import io
import wave

import pytest

from controlplane.demo.provider import sound


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [("mp3", b"\xff\xfb"), ("opus", b"OggS"), ("aac", b"\xff\xf1"), ("flac", b"fLaC"), ("wav", b"RIFF")],
)
def test_files_begin_as_their_format_does(kind: str, beginning: bytes) -> None:
    """The first bytes of a file say what it is."""
    assert sound.silence(kind, 0.2).startswith(beginning)


def test_wav_is_as_long_as_it_was_asked_for() -> None:
    """The file opens, and its length is what it is said to be."""
    content = sound.silence("wav", 0.5)
    with wave.open(io.BytesIO(content)) as opened:
        assert 0.5 == opened.getnframes() / opened.getframerate()
    assert 0.5 == sound.seconds_of(content)


def test_raw_samples_have_no_head() -> None:
    """Raw samples are two bytes at 24 kHz."""
    assert bytes(24_000) == sound.silence("pcm", 0.5)

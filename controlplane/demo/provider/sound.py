"""Files of silence: valid in each format that a speech model is asked for, and small."""

from __future__ import annotations

import struct

RATE_HZ = 8_000  # of wav and flac; small on purpose
PCM_RATE_HZ = 24_000  # what OpenAI's raw samples have
CONTENT_TYPES = {
    "mp3": b"audio/mpeg", "opus": b"audio/opus", "aac": b"audio/aac", "flac": b"audio/flac", "wav": b"audio/wav", "pcm": b"audio/pcm",
}  # fmt: skip
_MP3_FRAME_S = 1152 / 44_100
_MP3_FRAME = bytes.fromhex("fffb1064") + bytes(
    100
)  # MPEG-1 layer III, 32 kbit/s, 44.1 kHz, joint stereo, all samples zero
_ADTS_FRAME = bytes.fromhex("fff15c4001fffc") + bytes.fromhex("00c80000000000")  # AAC-LC, one frame of silence


def silence(kind: str, seconds: float) -> bytes:
    """A file of about so many seconds. kind: a key of CONTENT_TYPES."""
    match kind:
        case "wav":
            return wav(seconds)
        case "pcm":
            return bytes(2 * int(PCM_RATE_HZ * seconds))
        case "flac":
            return _flac(int(RATE_HZ * seconds))
        case "opus":
            return _ogg()
        case "aac":
            return _ADTS_FRAME * max(1, int(seconds * 10))
        case _:
            return _MP3_FRAME * max(1, int(seconds / _MP3_FRAME_S))


def wav(seconds: float) -> bytes:
    """A RIFF file: one channel of 16 bits."""
    samples = bytes(2 * int(RATE_HZ * seconds))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def seconds_of(content: bytes) -> float:
    """How long a recording is: exactly for wav, else guessed from its size at 128 kbit/s."""
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE" and len(content) > 44:
        bytes_per_s = int.from_bytes(content[28:32], "little") or 1
        return (len(content) - 44) / bytes_per_s
    return len(content) / 16_000


def _flac(samples: int) -> bytes:
    """The mandatory first block, which says the length; without frames."""
    packed = (RATE_HZ << 44) | (0 << 41) | (15 << 36) | samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8) + bytes(16)
    return b"fLaC" + bytes([0x80]) + len(info).to_bytes(3) + info


def _ogg() -> bytes:
    """The two header packets of Opus in Ogg."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 4) + b"demo" + struct.pack("<I", 0)
    return _ogg_page(head, 0, flags=2) + _ogg_page(tags, 1, flags=4)


def _ogg_page(packet: bytes, number: int, *, flags: int) -> bytes:
    head = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, 1, number, 0) + bytes([1, len(packet)])
    page = head + packet
    return page[:22] + _ogg_checksum(page).to_bytes(4, "little") + page[26:]


def _ogg_checksum(page: bytes) -> int:
    """Ogg's CRC: polynomial 0x04c11db7, not reflected, from zero."""
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = ((register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return register

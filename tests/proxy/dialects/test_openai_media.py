"""What is read of requests for moderations, speech, transcriptions and images, and of what is kept."""

from __future__ import annotations

import json

import pytest

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.openai_kept import Kept
from proxy.dialects.openai_media import (
    AudioSpeech,
    AudioTranscriptions,
    ImagesEdits,
    ImagesGenerations,
    Moderations,
    heard_us,
)
from proxy.dialects.openai_media_stream import SoundScanner


def form(**fields: str | bytes) -> bytes:
    """A form; bytes are files."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (
            name.encode(),
            b'; filename="f"' if isinstance(value, bytes) else b"",
            value if isinstance(value, bytes) else value.encode(),
        )
        for name, value in fields.items()
    ]
    return b"".join(parts) + b"--b--\r\n"


def test_models_that_need_not_be_named() -> None:
    """Where the upstream has a default, it is the alias that is asked for, and is written into the request."""
    for dialect, body, model in (
        (Moderations(), b'{"input":"x"}', "omni-moderation-latest"),
        (ImagesGenerations(), b'{"prompt":"x"}', "dall-e-2"),
        (ImagesEdits(), form(image=b"x"), "dall-e-2"),
    ):
        view = dialect.read_view(body)
        assert (model, True) == (view.model, view.ambiguous)
        assert b"other" in dialect.rewritten(body, view=view, model="other", output_ceiling=None)
    with pytest.raises(Malformed, match="`model` is missing"):
        AudioSpeech().read_view(b'{"input":"x"}')
    with pytest.raises(Malformed, match="`model` is missing"):
        AudioTranscriptions().read_view(form(file=b"x"))


def test_what_a_form_says() -> None:
    """Files are counted by kind, the stream and the number of answers are read as text."""
    view = AudioTranscriptions().read_view(form(model="m", stream="true", file=b"1234", user="ann"))
    assert ("m", True, 1, 0, 4, "ann") == (
        view.model, view.stream, view.sound_parts, view.image_parts, view.file_bytes, view.user,
    )  # fmt: skip
    view = ImagesEdits().read_view(form(model="m", n="3", image=b"12", mask=b"3"))
    assert (3, 2, 0, 3, False) == (view.n, view.image_parts, view.sound_parts, view.file_bytes, view.stream)


@pytest.mark.parametrize("n", ["0", "129", "-1", "1.5", "\u00b2", "99999"])
def test_a_number_of_answers_that_makes_no_sense(n: str) -> None:
    """Refused by its name, in a form as in JSON."""
    with pytest.raises(Malformed, match="`n`"):
        ImagesEdits().read_view(form(model="m", n=n))


def test_speech_as_events_is_a_stream() -> None:
    """`stream_format` says so, not `stream`."""
    assert AudioSpeech().read_view(b'{"model":"m","stream_format":"sse"}').stream
    assert not AudioSpeech().read_view(b'{"model":"m","stream_format":"audio"}').stream


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage":{"input_tokens":1,"output_tokens":2}}', Tokens(input=1, image_output=2)),
        (b'{"data":[]}', None),
        (b"WEBVTT\n\n00:00", None),
        (b"\x00\xff", None),
        (b"{broken", None),
        (b"", None),
    ],
)
def test_an_answer_may_be_anything(body: bytes, tokens: Tokens | None) -> None:
    """Only JSON that names tokens is counted."""
    assert (tokens, "") == ImagesGenerations().read_reply(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage":{"type":"duration","seconds":7}}', 7_000_000),
        (b'{"usage":{"type":"duration","seconds":1.25},"duration":9}', 1_250_000),
        (b'{"duration":"8.47"}', 8_470_000),  # some upstreams write it as text
        (b'{"usage":{"seconds":-1}}', None),
        (b'{"usage":{"seconds":1e12}}', None),
        (b'{"text":"x"}', None),
        (b"1\n00:00:00", None),
    ],
)
def test_how_much_sound_was_heard(body: bytes, expected: int | None) -> None:
    """As the usage says it, else as the answer does; what cannot be is not said."""
    assert expected == heard_us(body)


def test_sound_goes_on_as_it_comes() -> None:
    """It is content from the first byte, and whole when its bytes end."""
    scanner = SoundScanner()
    assert b"\n\ndata: [DONE]\n\n" == scanner.feed(b"\n\ndata: [DONE]\n\n")
    assert (True, False, b"") == (scanner.content_seen, scanner.done, scanner.finish())
    assert (True, b"") == (scanner.done, scanner.ending)


def test_what_is_kept_costs_nothing_when_it_is_asked_for() -> None:
    """Whatever usage an answer repeats; only the ids that a body names are read, and then it is written anew."""
    kept = Kept()
    answer = {"id": "resp_1", "status": "completed", "usage": {"input_tokens": 9, "output_tokens": 9}}
    assert (NO_TOKENS, "completed") == kept.read_reply(json.dumps(answer).encode())
    assert (NO_TOKENS, "") == kept.read_reply(b"")
    assert (True, True, ()) == ((view := kept.read_view(b"")).free, view.kept, view.continues)
    body = b'{"items": [{"type": "item_reference", "id": "msg_1", "id": "msg_2"}]}'
    view = kept.read_view(body)
    assert (("items", "msg_2"),) == view.continues
    assert b"msg_1" not in kept.rewritten(body, view=view, model="", output_ceiling=None)
    plain = b'{"metadata": {"a": "b"}}'
    assert plain == kept.rewritten(plain, view=kept.read_view(plain), model="", output_ceiling=None)

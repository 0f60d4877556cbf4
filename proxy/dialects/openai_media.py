"""OpenAI's endpoints around the model's text: moderations, speech, transcriptions, images. Passed through, and metered where they say how.

Some models there report tokens, some seconds, some nothing at all. What reports no tokens is never guessed: it is unpriced.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.multipart import Form, read_form, rewritten_form
from proxy.dialects.openai_media_stream import MediaScanner
from proxy.dialects.openai_usage import OutputKind, read_io_usage

_NOTHING = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")
SOUND_S_MAX = 7 * 86_400.0  # more than this is a provider's mistake, not a duration
_TRUE = frozenset(("true", "True", "TRUE", "1"))


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_format: str | None = None
    n: int | None = None
    user: msgspec.Raw = _NOTHING


class _Asked(msgspec.Struct):
    quality: str | None = None
    size: str | None = None


class _Spoken(msgspec.Struct):
    input: str = ""


class _Reply(msgspec.Struct):
    usage: msgspec.Raw = _NULL


class Drawn(msgspec.Struct, frozen=True):
    """What an answer says of its pictures. pictures: how many; None: it does not say. quality, size: of each; empty: it does not say."""

    pictures: int | None = None
    quality: str = ""
    size: str = ""


class _Pictures(msgspec.Struct):
    data: list[msgspec.Raw] | None = None
    quality: str | None = None
    size: str | None = None


class _Duration(msgspec.Struct):
    seconds: float | None = None


class _Heard(msgspec.Struct):
    usage: _Duration | None = None
    duration: float | None = None


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_pictures = msgspec.json.Decoder(_Pictures).decode
_decode_spoken = msgspec.json.Decoder(_Spoken).decode
_decode_heard = msgspec.json.Decoder(_Heard, strict=False).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Media:
    """What these endpoints have in common: an answer that may be anything, with tokens if it is JSON that names them."""

    output_kind: ClassVar[OutputKind] = "output"
    default_model: ClassVar[str] = ""  # what the upstream takes when the client names none

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage of a complete answer, if it is one that says it; text, subtitles and sound say nothing."""
        if body[:1] != b"{":
            return None, ""
        try:
            usage = _decode_reply(body).usage
        except (msgspec.DecodeError, RecursionError):
            return None, ""
        return read_io_usage(usage, output_kind=self.output_kind), ""

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> MediaScanner:  # noqa: ARG002 - the seam's
        """A reader for one stream."""
        return MediaScanner(event_bytes_max=event_bytes_max, output_kind=self.output_kind)

    def _named(self, model: str | None) -> str:
        if not (model or self.default_model):
            raise Malformed("`model` is missing; name one of the models of GET /v1/models", "model")
        return model or self.default_model


class _JsonMedia(_Media):
    """An endpoint that takes JSON."""

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = _decode_fields(body)
        user, _ = openai.labels_of(fields.user, _NOTHING)
        return RequestView(
            model=self._named(fields.model),
            stream=bool(fields.stream) or fields.stream_format == "sse",
            include_usage=True,  # nothing has to be switched on
            n=_count(fields.n),
            user=user,
            ambiguous=openai.is_ambiguous(body, n=fields.n is not None),
        )

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The request with its upstream's name of the model; there is no ceiling to set."""
        fields = _decode_shallow(body)
        fields["model"] = msgspec.Raw(_encode(model))
        return _encode(fields)


class _FormMedia(_Media):
    """An endpoint that takes a multipart form with files. The form is always written anew."""

    sound: ClassVar[bool] = False  # its files are sound, else images

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed."""
        form = read_form(body)
        files = sum(part.filename is not None for part in form.parts)
        return RequestView(
            model=self._named(form.value(body, b"model")),
            stream=form.value(body, b"stream") in _TRUE,
            include_usage=True,
            n=_count(_number(form, body)),
            image_parts=0 if self.sound else files,
            sound_parts=files if self.sound else 0,
            file_bytes=form.file_bytes,
            quality=form.value(body, b"quality") or "",
            size=form.value(body, b"size") or "",
            user=(form.value(body, b"user") or "")[:256],
            ambiguous=True,
        )

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The form with its upstream's name of the model."""
        return rewritten_form(body, read_form(body), model=model)


class Moderations(_JsonMedia):
    """`POST /v1/moderations`."""

    name: ClassVar[str] = "moderations"
    default_model: ClassVar[str] = "omni-moderation-latest"


class AudioSpeech(_JsonMedia):
    """`POST /v1/audio/speech`: JSON in, sound out."""

    name: ClassVar[str] = "audio_speech"
    output_kind: ClassVar[OutputKind] = "audio_output"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        return msgspec.structs.replace(super().read_view(body), characters=len(_decode_spoken(body).input))


class ImagesGenerations(_JsonMedia):
    """`POST /v1/images/generations`."""

    name: ClassVar[str] = "images_generations"
    output_kind: ClassVar[OutputKind] = "image_output"
    default_model: ClassVar[str] = "dall-e-2"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        asked = _decode_asked(body)
        view = super().read_view(body)
        decisive = any(body.count(name) > 1 for name in (b'"quality"', b'"size"'))
        return msgspec.structs.replace(
            view, quality=asked.quality or "", size=asked.size or "", ambiguous=view.ambiguous or decisive
        )


class AudioTranscriptions(_FormMedia):
    """`POST /v1/audio/transcriptions`."""

    name: ClassVar[str] = "audio_transcriptions"
    sound: ClassVar[bool] = True


class AudioTranslations(_FormMedia):
    """`POST /v1/audio/translations`."""

    name: ClassVar[str] = "audio_translations"
    sound: ClassVar[bool] = True


class ImagesEdits(_FormMedia):
    """`POST /v1/images/edits`."""

    name: ClassVar[str] = "images_edits"
    output_kind: ClassVar[OutputKind] = "image_output"
    default_model: ClassVar[str] = "dall-e-2"


class ImagesVariations(_FormMedia):
    """`POST /v1/images/variations`."""

    name: ClassVar[str] = "images_variations"
    output_kind: ClassVar[OutputKind] = "image_output"
    default_model: ClassVar[str] = "dall-e-2"


def heard_us(body: bytes) -> int | None:
    """How much sound an answer says that it heard, in microseconds; None if it does not say."""
    if body[:1] != b"{":
        return None
    try:
        heard = _decode_heard(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    seconds = heard.duration if heard.usage is None or heard.usage.seconds is None else heard.usage.seconds
    return None if seconds is None or not 0 <= seconds <= SOUND_S_MAX else round(seconds * 1_000_000)


def drawn_in(body: bytes) -> Drawn | None:
    """What an answer says of its pictures; None if it is none."""
    if body[:1] != b"{":
        return None
    try:
        said = _decode_pictures(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return Drawn(len(said.data or ()) or None, said.quality or "", said.size or "")


def _number(form: Form, body: bytes) -> int | None:
    text = form.value(body, b"n")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise Malformed(f"`n` must be between 1 and {openai.CHOICES_MAX}", "n")
    return int(text)


def _count(n: int | None) -> int:
    if n is None:
        return 1
    if not 1 <= n <= openai.CHOICES_MAX:
        raise Malformed(f"`n` must be between 1 and {openai.CHOICES_MAX}", "n")
    return n

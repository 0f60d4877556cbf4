"""OpenAI's endpoints beyond chat, embeddings and responses: which path is answered by what."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.demo.provider import completions, images, moderations, speech, transcriptions
from controlplane.demo.provider.answer import Answer
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference

Endpoint = Callable[[Request, Inference], Answer]
ENDPOINTS: dict[bytes, Endpoint] = {
    b"/v1/completions": completions.answer,
    b"/v1/moderations": moderations.answer,
    b"/v1/audio/speech": speech.answer,
    b"/v1/audio/transcriptions": transcriptions.transcription,
    b"/v1/audio/translations": transcriptions.translation,
    b"/v1/images/generations": images.generation,
    b"/v1/images/edits": images.edit,
    b"/v1/images/variations": images.variation,
}

"""Moderations: a text is flagged when it says so itself, in words that no honest prompt contains by chance."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import ID, Answer, Usage
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import MODELS
from controlplane.demo.provider.request import Schema, missing, read

DEFAULT_MODEL = "omni-moderation-latest"
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
_OF_PICTURES = ("self-harm", "sexual", "violence")
_MARK = "<number>"
Json = dict[str, Any]  # JSON on its way to bytes


class ModerationsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/moderations."""

    model: str = DEFAULT_MODEL
    input: str | list[str | Schema] | None = None


def answer(request: Request, inference: Inference) -> Answer:
    """The encoded verdicts on a text, several texts, or the parts of one message. Raises Problem."""
    asked = read(request.body, ModerationsRequest, model_needed=False)
    model = MODELS.get(asked.model)
    if model is None or model.kind != "moderation":
        raise problems.unknown_model(asked.model)
    if not asked.input:
        raise missing("input")
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [part for part in given if isinstance(part, str)]
    if not texts:  # the parts of one message are judged together
        parts = [part for part in given if isinstance(part, dict)]
        texts = [" ".join(str(part.get("text", "")) for part in parts)]
        pictures = any(part.get("type") == "image_url" for part in parts)
    else:
        pictures = False
    tokenizer = inference.tokenizer(model)
    usage = Usage(sum(map(tokenizer.count, texts)), 0)
    results = [_verdict(text, pictures=pictures, seed=inference.seed) for text in texts]
    document = {"id": f"modr-{_MARK}", "model": model.name, "results": results}
    body = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    return Answer(model.name, usage, None, body.replace(_MARK.encode(), ID, 1), marked=True)


def _verdict(text: str, *, pictures: bool, seed: int) -> Json:
    """A category is flagged when the text contains `flag:` and its name."""
    draw = random.Random(hashlib.blake2b(f"{seed}/moderations/{text}".encode(errors="replace")).digest())
    flags = {category: f"flag:{category}" in text.split() for category in CATEGORIES}
    scores = {
        category: round((0.9 if flagged else 0.0) + draw.random() * (0.09 if flagged else 0.01), 8)
        for category, flagged in flags.items()
    }
    types = {
        category: ["text", "image"]
        if pictures and category.partition("/")[0] in _OF_PICTURES and "minors" not in category
        else ["text"]
        for category in CATEGORIES
    }
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": types,
    }

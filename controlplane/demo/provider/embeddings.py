"""Embeddings from the words of a text: the same text always gets the same vector, texts that share words get near ones."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from controlplane.demo.provider.answer import Answer, Usage
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import EmbeddingsRequest
from controlplane.demo.provider.tokens import Tokenizer

WORDS_MAX = 2_000  # word vectors kept, about 12 KB each
TOKENS_MAX = 300_000  # of one request
OWN_SHARE = 0.2  # of a text's vector that it shares with no other text
_WORD = re.compile(r"\w+")
Vector = NDArray[np.float32]


@dataclass(slots=True)
class Embedder:
    """Makes vectors for texts; remembers the vectors of words."""

    seed: int
    _words: OrderedDict[str, Vector] = field(default_factory=OrderedDict)

    def vector(self, text: str, model: Model, dimensions: int) -> Vector:
        """A float32 unit vector, shape (dimensions,); a shorter one is the beginning of the longer one, scaled."""
        words = sorted(_WORD.findall(text.lower()))
        own = self._drawn(f"{model.name}/text/{text}", model.dimensions)
        total = OWN_SHARE * own if words else own
        for word in words:
            total = total + self._word(f"{model.name}/word/{word}", model.dimensions) / np.sqrt(len(words))
        short = total[:dimensions]
        return (short / np.linalg.norm(short)).astype(np.float32)

    def _word(self, name: str, dimensions: int) -> Vector:
        found = self._words.get(name)
        if found is None:
            found = self._words[name] = self._drawn(name, dimensions)
            if len(self._words) > WORDS_MAX:
                self._words.popitem(last=False)
        return found

    def _drawn(self, name: str, dimensions: int) -> Vector:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(errors="replace"), digest_size=16).digest()
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
        return draw.standard_normal(dimensions, dtype=np.float32)


def embeddings_answer(request: EmbeddingsRequest, model: Model, tokenizer: Tokenizer, embedder: Embedder) -> Answer:
    """The encoded answer to a request. Raises Problem in OpenAI's words."""
    if request.dimensions is not None and not model.shortens:
        raise Problem(400, "This model does not support specifying dimensions.")
    dimensions = request.dimensions or model.dimensions
    if dimensions > model.dimensions:
        message = f"Invalid value for 'dimensions' = {dimensions}. Must be less than or equal to {model.dimensions} for this model."
        raise Problem(400, message, param="dimensions")
    texts, tokens = _read(request, tokenizer)
    if max(tokens) > model.context_tokens_max:
        message = (
            f"This model's maximum context length is {model.context_tokens_max} tokens, however you requested {max(tokens)} tokens "
            f"({max(tokens)} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
        )
        raise Problem(400, message)
    if sum(tokens) > TOKENS_MAX:
        message = f"Requested {sum(tokens)} tokens, max {TOKENS_MAX} tokens per request"
        raise Problem(400, message, type="max_tokens_per_request", code="max_tokens_per_request")
    data = []
    for index, text in enumerate(texts):
        vector = embedder.vector(text, model, dimensions)
        as_text = request.encoding_format == "base64"
        value = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = Usage(sum(tokens), 0)
    return encoded(model.name, data, usage, usage)


def encoded(model: str, data: list[dict[str, object]], usage: Usage, reported: Usage | None) -> Answer:
    """The answer as bytes. reported: what the usage says; None leaves it out."""
    document: dict[str, object] = {"object": "list", "data": data, "model": model}
    if reported is not None:
        document["usage"] = {"prompt_tokens": reported.prompt, "total_tokens": reported.prompt}
    body = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    return Answer(model, usage, reported, body)


def _read(request: EmbeddingsRequest, tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """The texts of a request and their token counts. Token arrays become the text that they stand for."""
    given = request.input
    if isinstance(given, str):
        inputs: list[str | list[int]] = [given]
    elif all(isinstance(item, int) for item in given):
        inputs = [[item for item in given if isinstance(item, int)]]
    else:
        inputs = [item for item in given if not isinstance(item, int)]
        if len(inputs) != len(given) or len({type(item) for item in inputs}) != 1:
            raise _invalid_input()
    if not all(inputs):
        raise _invalid_input()
    if isinstance(inputs[0], str):
        texts = [str(item) for item in inputs]
        return texts, [tokenizer.count(text) for text in texts]
    arrays = [item for item in inputs if isinstance(item, list)]
    try:
        return [tokenizer.decode(tokens) for tokens in arrays], [len(tokens) for tokens in arrays]
    except (KeyError, OverflowError, ValueError):
        raise _invalid_input() from None


def _invalid_input() -> Problem:
    return Problem(
        400, "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
    )

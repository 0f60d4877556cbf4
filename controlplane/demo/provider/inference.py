"""From the body of a chat completion or of embeddings to an encoded answer. Answers to repeated bodies come from memory."""

from __future__ import annotations

import hashlib

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import Answer, Usage
from controlplane.demo.provider.composition import CACHE_FROM_TOKENS, CACHE_STEP_TOKENS, PromptCache, compose
from controlplane.demo.provider.embeddings import Embedder, embeddings_answer
from controlplane.demo.provider.encoding import json_answer, stream_answer
from controlplane.demo.provider.memory import Memory
from controlplane.demo.provider.models import MODELS, Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import ChatRequest, EmbeddingsRequest, check_conversation, read
from controlplane.demo.provider.tokens import Tokenizer

CHAT = b"/v1/chat/completions"
EMBEDDINGS = b"/v1/embeddings"


class Inference:
    """The simulated models. Shared by the upstreams of a provider, so that they give the same answers."""

    def __init__(self, *, seed: int, answers_bytes_max: int, obfuscation: bool) -> None:
        self.seed = seed
        self.obfuscation = obfuscation
        self.memory: Memory[Answer] = Memory(answers_bytes_max)
        self.prompts = PromptCache()
        self.embedder = Embedder(seed)
        self._tokenizers: dict[str, Tokenizer] = {}

    def warm(self) -> None:
        """Loads the tokenizers, some tenths of a second, so that the first call does not wait for them."""
        for model in MODELS.values():
            self.tokenizer(model)

    def answer(self, path: bytes, body: bytes) -> Answer:
        """The answer to a body sent to one of the two paths. Raises Problem."""
        place = (path, body)
        known = self.memory.get(place)
        if known is not None:
            return known
        made = self._chat(body) if path == CHAT else self._embeddings(body)
        if repeatable(made.usage):
            self.memory.keep(place, made)
        return made

    def _chat(self, body: bytes) -> Answer:
        request = read(body, ChatRequest)
        model = MODELS.get(request.model)
        if model is None:
            raise problems.unknown_model(request.model)
        if model.kind != "chat":
            message = "This is not a chat model and thus not supported in the v1/chat/completions endpoint. Did you mean to use v1/completions?"
            raise Problem(404, message, param="model")
        check_conversation(request)
        tokenizer = self.tokenizer(model)
        made = compose(request, model, tokenizer, seed=self.seed, prompts=self.prompts)
        fingerprint = self.fingerprint(model)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        if not request.stream:
            return json_answer(
                made, made.usage, fingerprint=fingerprint, logprobs=logprobs, tokenizer=tokenizer, tier=request.tier
            )
        options = request.stream_options
        asked = options.include_obfuscation if options is not None else None
        return stream_answer(
            made,
            made.usage,
            fingerprint=fingerprint,
            logprobs=logprobs,
            tokenizer=tokenizer,
            tier=request.tier,
            include_usage=options is not None and options.include_usage,
            obfuscated=self.obfuscation if asked is None else asked,
        )

    def _embeddings(self, body: bytes) -> Answer:
        request = read(body, EmbeddingsRequest)
        model = MODELS.get(request.model)
        if model is None or model.kind != "embeddings":
            raise problems.unknown_model(request.model)
        return embeddings_answer(request, model, self.tokenizer(model), self.embedder)

    def tokenizer(self, model: Model) -> Tokenizer:
        """The tokenizer of a model."""
        found = self._tokenizers.get(model.encoding)
        if found is None:
            found = self._tokenizers[model.encoding] = Tokenizer(model.encoding)
        return found

    def fingerprint(self, model: Model) -> str | None:
        """The fingerprint of the system that serves a model; reasoning models have none."""
        if model.reasons:
            return None
        return "fp_" + hashlib.blake2b(f"{self.seed}/{model.name}".encode(), digest_size=5).hexdigest()


def repeatable(usage: Usage) -> bool:
    """Whether the next answer to the same body is the same: not while more of its prompt can still become cached."""
    if usage.prompt < CACHE_FROM_TOKENS:
        return True
    return usage.cached + CACHE_STEP_TOKENS > usage.prompt

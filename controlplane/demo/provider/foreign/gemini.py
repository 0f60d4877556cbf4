"""Gemini, as Google AI Studio serves it: content is generated, streamed, counted and embedded."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from controlplane.demo.faults import Fault
from controlplane.demo.provider import sabotage
from controlplane.demo.provider.answer import EVENTS, ID, Answer, Usage, plain
from controlplane.demo.provider.composition import Choice, Composition, compose, count_prompt
from controlplane.demo.provider.foreign.gemini_request import as_chat, texts_to_embed
from controlplane.demo.provider.foreign.shape import Json, PlainHeaders, shaped
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.tokens import Tokenizer

MODELS = {
    model.name: model
    for model in (
        Model("gemini-2.0-flash", 1738713600, context_tokens_max=1_048_576, output_tokens_max=8_192),
        Model("gemini-2.5-flash", 1750118400, context_tokens_max=1_048_576, output_tokens_max=65_536),
        Model("gemini-2.5-pro", 1750118400, context_tokens_max=1_048_576, output_tokens_max=65_536, reasons=True),
        Model(
            "gemini-embedding-001", 1752451200, "embeddings", context_tokens_max=2_048, dimensions=3_072, shortens=True
        ),
    )
}
CALL = re.compile(
    rb"/models/(?P<model>[^/:]+):(?P<verb>generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents)$"
)
LISTED = re.compile(rb"^/v1beta/models(?:/(?P<model>[^/:]+))?$")
_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_REASON = re.compile(rb'"finishReason": ?"\w+"')
_NUMBER = "<number>"


class GeminiWire:
    """The protocol of one upstream."""

    def __init__(self, headers: PlainHeaders, inference: Inference) -> None:
        self.headers = headers
        self._inference = inference

    def key(self, request: Request) -> bytes:
        """`x-goog-api-key`, or `key` in the query."""
        given = request.headers.get(b"x-goog-api-key", b"").strip()
        return given or parse_qs(request.query.decode("latin-1")).get("key", [""])[0].encode()

    def answer(self, request: Request, call_number: int) -> Answer:  # noqa: ARG002 - nothing is remembered of a call
        """The answer to a request. Raises Problem."""
        listed = LISTED.match(request.path)
        if listed is not None and request.method == b"GET":
            return _plain(_listed(listed["model"]))
        found = CALL.search(request.path)
        if found is None or request.method != b"POST":
            raise Problem(404, "The requested URL was not found on this server.")
        model = MODELS.get(unquote(found["model"].decode("latin-1")))
        if model is None:
            raise Problem(404, f"models/{found['model'].decode('latin-1')} is not found for API version v1beta.")
        framed = b"alt=sse" in request.query
        place = (request.path + (b"?sse" if framed else b""), request.body)
        known = self._inference.memory.get(place)
        if known is not None:
            return known
        made = self._made(model, found["verb"], _document(request.body), framed=framed)
        self._inference.memory.keep(place, made)
        return made

    def _made(self, model: Model, verb: bytes, document: Json, *, framed: bool) -> Answer:
        tokenizer = self._inference.tokenizer(model)
        if verb in (b"embedContent", b"batchEmbedContents"):
            return self._embedded(model, document, many=verb == b"batchEmbedContents")
        chat = as_chat(document, model)
        if verb == b"countTokens":
            return _plain({"totalTokens": count_prompt(chat, tokenizer)})
        made = compose(chat, model, tokenizer, seed=self._inference.seed, prompts=self._inference.prompts)
        if verb == b"generateContent":
            return _whole(made)
        return _streamed(made, tokenizer, framed=framed)

    def _embedded(self, model: Model, document: Json, *, many: bool) -> Answer:
        if model.kind != "embeddings":
            raise Problem(404, f"models/{model.name} is not supported for embedContent.")
        texts, dimensions = texts_to_embed(document, many=many)
        size = min(dimensions or model.dimensions, model.dimensions)
        vectors = [{"values": self._inference.embedder.vector(text, model, size).tolist()} for text in texts]
        usage = Usage(sum(map(self._inference.tokenizer(model).count, texts)), 0)
        body = msgspec.json.encode({"embeddings": vectors} if many else {"embedding": vectors[0]})
        return Answer(model.name, usage, None, body)

    def worded(self, problem: Problem) -> Problem:
        """Google's shape, and its words for keys."""
        status, message = problem.status, problem.message
        if status == 401:
            status = 400 if problem.code else 403
            message = (
                "API key not valid. Please pass a valid API key."
                if problem.code
                else "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other "
                "form of API consumer identity to call this API."
            )
        if problem.code == "context_length_exceeded":
            message = f"The input token count exceeds the maximum number of tokens allowed. ({message})"
        error = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
        return shaped(problem, {"error": error}, *problem.headers, status=status)

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:
        """The error that a fault answers instead of the truth."""
        return sabotage.refusal(fault, model=model, key=key.decode("latin-1"), organization="", limit=1)

    def filtered(self, answer: Answer) -> Answer:
        """The finish reason says that a filter stopped the answer."""
        reason = b'"finishReason":"SAFETY"'
        events = tuple(_REASON.sub(reason, event) for event in answer.events)
        return replace(answer, body=_REASON.sub(reason, answer.body), events=events)

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:
        """An error as an event, or as an element of the array."""
        body = self.worded(problem).body()
        if answer.content_type == EVENTS:
            return b"data: %b\r\n\r\n" % body
        return b"%b%b\n]" % (b"," if events else b"[", body)

    def model(self, request: Request) -> str:
        """The model in the path."""
        found = CALL.search(request.path)
        return unquote(found["model"].decode("latin-1")) if found else ""


def _document(body: bytes) -> Json:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])  # any JSON
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(400, "Invalid JSON payload received.") from None


def _whole(made: Composition) -> Answer:
    candidates = [
        {
            "content": {"parts": _parts(choice), "role": "model"},
            "finishReason": _FINISH[choice.finish_reason],
            "index": index,
        }
        for index, choice in enumerate(made.choices)
    ]
    document = {"candidates": candidates, "usageMetadata": _usage(made.usage)} | _named(made)
    body = _marked(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"
    return Answer(made.model.name, made.usage, made.usage, body, marked=True)


def _streamed(made: Composition, tokenizer: Tokenizer, *, framed: bool) -> Answer:
    """A chunk for each token; as events, or as the elements of one array. Only the first candidate is streamed."""
    choice = made.choices[0]
    chunks: list[Json] = []
    if choice.calls:
        chunks.append({"parts": _parts(choice), "role": "model"})
    pieces = [piece for piece in tokenizer.pieces(choice.tokens) if piece]
    chunks += ({"parts": [{"text": piece}], "role": "model"} for piece in pieces)
    chunks = chunks or [{"parts": [{"text": ""}], "role": "model"}]
    events = []
    for number, content in enumerate(chunks):
        last = number == len(chunks) - 1
        candidate: Json = (
            {"content": content} | ({"finishReason": _FINISH[choice.finish_reason]} if last else {}) | {"index": 0}
        )
        usage = _usage(made.usage) if last else _usage_so_far(made.usage)
        document = {"candidates": [candidate], "usageMetadata": usage} | _named(made)
        data = _marked(msgspec.json.encode(document))
        events.append(b"data: %b\r\n\r\n" % data if framed else b"%b%b" % (b"," if number else b"[", data))
    return Answer(
        made.model.name,
        made.usage,
        made.usage,
        content_type=EVENTS if framed else b"application/json; charset=UTF-8",
        events=tuple(events),
        steps=tuple(range(1, len(events) + 1)),
        produced=(*(made.usage.reasoning + number for number in range(1, len(events))), made.usage.completion),
        end=b"" if framed else b"\n]",
        marked=True,
        hidden=made.usage.reasoning,
    )


def _parts(choice: Choice) -> list[Json]:
    if choice.calls:
        return [{"functionCall": {"name": call.name, "args": _arguments(call.arguments)}} for call in choice.calls]
    return [{"text": choice.text or ""}]


def _arguments(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _usage(usage: Usage) -> Json:
    """Thoughts are no part of the candidates' tokens here."""
    document: Json = {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": usage.completion - usage.reasoning,
        "totalTokenCount": usage.prompt + usage.completion,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.prompt}],
    }
    if usage.cached:
        document["cachedContentTokenCount"] = usage.cached
    if usage.reasoning:
        document["thoughtsTokenCount"] = usage.reasoning
    return document


def _usage_so_far(usage: Usage) -> Json:
    return {"promptTokenCount": usage.prompt, "totalTokenCount": usage.prompt + usage.reasoning}


def _named(made: Composition) -> Json:
    return {"modelVersion": made.model.name, "responseId": _NUMBER}


def _marked(data: bytes) -> bytes:
    return data.replace(b'"<number>"', b'"%b"' % ID)


def _listed(name: bytes | None) -> Json:
    described = [
        {
            "name": f"models/{model.name}",
            "version": "001",
            "displayName": model.name,
            "inputTokenLimit": model.context_tokens_max,
            "outputTokenLimit": model.output_tokens_max,
            "supportedGenerationMethods": ["embedContent"]
            if model.kind == "embeddings"
            else ["generateContent", "countTokens"],
        }
        for model in MODELS.values()
    ]
    if name is None:
        return {"models": described}
    for model in described:
        if model["name"] == f"models/{name.decode('latin-1')}":
            return model
    raise Problem(404, f"models/{name.decode('latin-1')} is not found for API version v1beta.")


def _plain(document: Json) -> Answer:
    return plain(msgspec.json.encode(document))

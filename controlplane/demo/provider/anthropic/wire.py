"""Anthropic's protocol: messages, token counts and models, and Anthropic's way to say no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from controlplane.demo.faults import Fault
from controlplane.demo.provider.answer import Answer, moment, plain
from controlplane.demo.provider.anthropic import encoding, problems
from controlplane.demo.provider.anthropic.batches import BATCHES, MessageBatches
from controlplane.demo.provider.anthropic.composition import reply
from controlplane.demo.provider.anthropic.headers import AnthropicHeaders
from controlplane.demo.provider.anthropic.prompt import PrefixCache, Prefixes, prefixes, segments
from controlplane.demo.provider.anthropic.request import MessagesRequest, read
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.memory import Memory, Place
from controlplane.demo.provider.models import CLAUDE, CLAUDE_LISTED, Model
from controlplane.demo.provider.openai_wire import wrong_method
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import model_of

MESSAGES = b"/v1/messages"
COUNT = b"/v1/messages/count_tokens"
MODELS = b"/v1/models"
_PROMPTS_BYTES_MAX = 16 * 1024 * 1024
_PAGE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request that was read, and its prompt that was counted."""

    asked: MessagesRequest
    model: Model
    prefixes: Prefixes
    body_bytes: int

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return 3 * self.body_bytes + 128 * len(self.prefixes.totals)


class AnthropicWire:
    """The Messages API of one upstream."""

    def __init__(
        self,
        headers: AnthropicHeaders,
        inference: Inference,
        *,
        requests_per_minute: int,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
        batch_s: float,
        billed: Callable[[Answer], None],
    ) -> None:
        """batch_s: that a batch takes. billed: called with each answer that a batch has got."""
        self.headers = headers
        self._inference = inference
        self._requests_per_minute = requests_per_minute
        self._prefixes = PrefixCache(monotonic)
        self._prompts: Memory[_Prompt] = Memory(_PROMPTS_BYTES_MAX)
        self._billed = billed
        self._batches = MessageBatches(run=self._run, duration_s=batch_s, now_s=now_s, monotonic=monotonic)

    def key(self, request: Request) -> bytes:
        """`x-api-key`, or the bearer token of an OAuth client."""
        key = request.headers.get(b"x-api-key", b"").strip()
        if key:
            return key
        scheme, _, token = request.key.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else b""

    def answer(self, request: Request, call_number: int) -> Answer:
        """The answer to a request. Raises Problem."""
        path = request.path
        if b"anthropic-version" not in request.headers:
            raise problems.invalid("anthropic-version: header is required")
        if path in (MESSAGES, COUNT):
            if request.method != b"POST":
                raise wrong_method(request)
            return self._message(request) if path == MESSAGES else self._count(request)
        if path.startswith(BATCHES):
            return self._batches.answer(request, self.headers.answer_id(call_number))
        if path == MODELS or path.startswith(MODELS + b"/"):
            if request.method != b"GET":
                raise wrong_method(request)
            return _models(request)
        raise problems.problem(404, "Not found")

    def _message(self, request: Request) -> Answer:
        place = (request.path, request.body)
        known = self._inference.memory.get(place)
        if known is not None:
            return known
        prompt = self._prompt(place)
        cached = self._prefixes.use(prompt.prefixes, prompt.model, self.key(request))
        if prompt.prefixes.marks:  # what a prompt cache makes of it differs from call to call
            place = (b"%b %d %d %d" % (request.path, cached.read, cached.written_5m, cached.written_1h), request.body)
            known = self._inference.memory.get(place)
            if known is not None:
                return known
        tokenizer = self._inference.tokenizer(prompt.model)
        made = reply(
            prompt.asked,
            prompt.model,
            tokenizer,
            seed=self._inference.seed,
            prompt_tokens=prompt.prefixes.tokens,
            cached=cached,
        )
        answer = encoding.stream_answer(made) if prompt.asked.stream else encoding.json_answer(made)
        self._inference.memory.keep(place, answer)
        return answer

    def _run(self, body: bytes, request: Request, call_number: int) -> Answer:  # noqa: ARG002 - nothing is remembered of a call
        """Answers one request of a batch, and bills it. Raises Problem."""
        made = self._message(msgspec.structs.replace(request, path=MESSAGES, body=body))
        if made.streamed:
            raise problems.invalid("stream: Streaming is not supported in batches")
        self._billed(made)
        return made

    def _prompt(self, place: Place) -> _Prompt:
        """A prompt that was read and counted, perhaps before."""
        known = self._prompts.get(place)
        if known is not None:
            return known
        asked = read(place[1], ceiling=True)
        model = _model(asked.model)
        made = _Prompt(asked, model, prefixes(segments(asked, self._inference.tokenizer(model)), model), len(place[1]))
        if made.prefixes.marks:
            self._prompts.keep(place, made)
        return made

    def _count(self, request: Request) -> Answer:
        """How many tokens a prompt has: free of charge."""
        asked = read(request.body, ceiling=False)
        parts = segments(asked, self._inference.tokenizer(_model(asked.model)))
        return plain(msgspec.json.encode({"input_tokens": sum(part.tokens for part in parts)}))

    def worded(self, problem: Problem) -> Problem:
        """A problem in Anthropic's words."""
        return problems.worded(problem)

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:  # noqa: ARG002 - Anthropic's errors name neither
        """The error that a fault answers instead of the truth."""
        return problems.refusal(fault, organization=self.headers.organization, limit=self._requests_per_minute)

    def filtered(self, answer: Answer) -> Answer:
        """The stop reason says that a classifier stopped the answer."""
        return encoding.refused(answer)

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:  # noqa: ARG002 - its words are the same everywhere
        """An error as an event of a stream."""
        error = {"type": "error", "error": {"details": None, "type": problem.type, "message": problem.message}}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)

    def model(self, request: Request) -> str:
        """The `model` of the body."""
        return model_of(request.body)


def _model(name: str) -> Model:
    """A model by its name. Raises Problem."""
    found = CLAUDE.get(name)
    if found is None:
        raise problems.unknown_model(name)
    return found


def _models(request: Request) -> Answer:
    """The models a page at a time, or one of them."""
    name = request.path[len(MODELS) + 1 :].decode("latin-1")
    if name:
        return plain(msgspec.json.encode(_described(_model(name))))
    query = dict(part.partition("=")[::2] for part in request.query.decode("latin-1").split("&") if part)
    limit = int(query.get("limit", "20")) if query.get("limit", "20").isdigit() else 20
    if not 1 <= limit <= _PAGE_MAX:
        raise problems.invalid(f"limit: Input should be between 1 and {_PAGE_MAX}")
    listed = [model.name for model in CLAUDE_LISTED]
    start = listed.index(query["after_id"]) + 1 if query.get("after_id") in listed else 0
    page = CLAUDE_LISTED[start : start + limit]
    document = {
        "data": [_described(model) for model in page],
        "has_more": start + limit < len(CLAUDE_LISTED),
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }
    return plain(msgspec.json.encode(document))


def _described(model: Model) -> dict[str, object]:
    shown = " ".join(part.capitalize() for part in model.name.split("-") if not (part.isdigit() and len(part) == 8))
    return {
        "type": "model",
        "id": model.name,
        "display_name": shown,
        "created_at": moment(model.created).decode(),
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens_max,
        "max_tokens": model.output_tokens_max,
    }

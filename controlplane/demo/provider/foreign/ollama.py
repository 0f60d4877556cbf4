"""Ollama: models of one's own machine, without a key, in lines of JSON."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

import msgspec

from controlplane.demo.faults import Fault
from controlplane.demo.provider import sabotage
from controlplane.demo.provider.answer import MOMENT, Answer, Usage, plain
from controlplane.demo.provider.composition import Choice, compose
from controlplane.demo.provider.foreign.shape import Json, PlainHeaders, shaped
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem, wrong_method
from controlplane.demo.provider.request import (
    CalledFunction,
    ChatRequest,
    JsonSchema,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
    model_of,
)

PATHS = b"/api/"
LINES = b"application/x-ndjson"
MODELS = {
    model.name: model
    for model in (
        Model("llama3.1", 1721692800, context_tokens_max=131_072),
        Model("qwen2.5", 1726704000, context_tokens_max=32_768),
        Model("nomic-embed-text", 1707004800, "embeddings", context_tokens_max=8_192, dimensions=768, shortens=True),
    )
}
_REASON = re.compile(rb'"done_reason":"\w+"')
_TIME = "<time>"
_TOKEN_NS = 8_000_000  # told for each token; no time is really spent on it


class Turn(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: str
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[Json] | None = None
    tool_name: str = ""


class OllamaRequest(msgspec.Struct, frozen=True):
    """The body of /api/chat, /api/generate and /api/embed. Unknown fields are accepted."""

    model: str
    messages: list[Turn] | None = None
    prompt: str = ""
    system: str = ""
    input: str | list[str] | None = None
    stream: bool = True
    format: Literal["json", ""] | dict[str, Any] | None = None  # a JSON schema: any JSON
    options: Json | None = None
    tools: list[Tool] | None = None
    dimensions: int | None = None


class OllamaWire:
    """The protocol of one upstream."""

    def __init__(self, headers: PlainHeaders, inference: Inference) -> None:
        self.headers = headers
        self._inference = inference

    def key(self, request: Request) -> bytes:
        """No key is needed; one that is sent is looked at."""
        scheme, _, key = request.key.partition(b" ")
        return (key.strip() if scheme.lower() == b"bearer" else b"") or b"ollama"

    def answer(self, request: Request, call_number: int) -> Answer:  # noqa: ARG002 - nothing is remembered of a call
        """The answer to a request. Raises Problem."""
        name = request.path.removeprefix(PATHS)
        if name in (b"tags", b"version", b"ps"):
            return _plain(_listed(name))
        if request.method != b"POST":
            raise wrong_method(request.method.decode("latin-1"), request.path.decode("latin-1"))
        place = (request.path, request.body)
        known = self._inference.memory.get(place)
        if known is not None:
            return known
        made = self._made(name, request.body)
        self._inference.memory.keep(place, made)
        return made

    def _made(self, name: bytes, body: bytes) -> Answer:
        try:
            asked = msgspec.json.decode(body, type=OllamaRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem(400, str(error)) from None
        model = MODELS.get(asked.model.partition(":")[0])
        if model is None:
            raise Problem(404, f'model "{asked.model}" not found, try pulling it first')
        match name:
            case b"chat" | b"generate":
                return self._chat(asked, model, chat=name == b"chat")
            case b"embed" | b"embeddings":
                return self._embed(asked, model, plural=name == b"embed")
            case b"show":
                return _plain(_shown(model))
            case _:
                raise Problem(404, "404 page not found")

    def _chat(self, asked: OllamaRequest, model: Model, *, chat: bool) -> Answer:
        tokenizer = self._inference.tokenizer(model)
        request = _as_chat(asked, model)
        composed = compose(request, model, tokenizer, seed=self._inference.seed, prompts=self._inference.prompts)
        choice, usage = composed.choices[0], Usage(composed.usage.prompt, composed.usage.completion)
        last: Json = {"done_reason": "length" if choice.finish_reason == "length" else "stop", "done": True}
        last |= _durations(usage)
        if not asked.stream:
            body = _line(asked.model, _said(choice, choice.text or "", chat=chat), last)
            return Answer(model.name, usage, usage, body, marked=True)
        lines, steps = [], []
        more: Json = {"done": False}
        if choice.calls:
            lines.append(_line(asked.model, _said(choice, "", chat=chat), more))
            steps.append(1)
        for piece in tokenizer.pieces(choice.tokens):
            if piece:
                lines.append(_line(asked.model, _said(None, piece, chat=chat), more))
                steps.append(len(lines))
        lines.append(_line(asked.model, _said(None, "", chat=chat), last))
        steps.append(len(lines))
        return Answer(
            model.name,
            usage,
            usage,
            content_type=LINES,
            events=tuple(lines),
            steps=tuple(steps),
            produced=(*(min(step, usage.completion) for step in steps[:-1]), usage.completion),
            marked=True,
        )

    def _embed(self, asked: OllamaRequest, model: Model, *, plural: bool) -> Answer:
        if model.kind != "embeddings":
            raise Problem(501, "this model does not support embeddings")
        given = asked.input if plural else asked.prompt
        texts = [given] if isinstance(given, str) else given or []
        dimensions = min(asked.dimensions or model.dimensions, model.dimensions)
        vectors = [self._inference.embedder.vector(text, model, dimensions).tolist() for text in texts]
        tokenizer = self._inference.tokenizer(model)
        usage = Usage(sum(map(tokenizer.count, texts)), 0)
        if not plural:
            return Answer(model.name, usage, None, msgspec.json.encode({"embedding": vectors[0]}))
        document = {
            "model": asked.model,
            "embeddings": vectors,
            "total_duration": 14_143_917,
            "load_duration": 1_019_500,
        }
        body = msgspec.json.encode(document | {"prompt_eval_count": usage.prompt})
        return Answer(model.name, usage, usage, body)

    def worded(self, problem: Problem) -> Problem:
        """The message alone."""
        return shaped(problem, {"error": problem.message}, *problem.headers)

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:
        """The error that a fault answers instead of the truth."""
        return sabotage.refusal(fault, model=model, key=key.decode("latin-1"), organization="", limit=1)

    def filtered(self, answer: Answer) -> Answer:
        """Ollama has no filter; it says a reason that it has not."""
        reason = b'"done_reason":"content_filter"'
        events = tuple(_REASON.sub(reason, event) for event in answer.events)
        return replace(answer, body=_REASON.sub(reason, answer.body), events=events)

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:  # noqa: ARG002 - its words are the same everywhere
        """An error as a line of a stream."""
        return msgspec.json.encode({"error": problem.message}) + b"\n"

    def model(self, request: Request) -> str:
        """The `model` of the body."""
        return model_of(request.body)


def _as_chat(asked: OllamaRequest, model: Model) -> ChatRequest:
    """What decides the answer, in the words that the simulated models understand."""
    options = asked.options or {}
    turns = asked.messages
    if turns is None:
        turns = [*([Turn("system", asked.system)] if asked.system else []), Turn("user", asked.prompt)]
    form = asked.format
    wanted = ResponseFormat("json_schema", JsonSchema("answer", form)) if isinstance(form, dict) else None
    if form == "json":
        wanted = ResponseFormat("json_object")
    room = options.get("num_predict")
    return ChatRequest(
        model.name,
        [_message(turn) for turn in turns],
        max_tokens=room if isinstance(room, int) and room > 0 else None,
        stop=options.get("stop"),
        tools=asked.tools or None,
        response_format=wanted,
    )


def _message(turn: Turn) -> Message:
    calls = [
        ToolCall("", "function", CalledFunction(call["function"]["name"], str(call["function"].get("arguments"))))
        for call in turn.tool_calls or ()
    ]
    return Message(turn.role, turn.content, tool_calls=calls or None)


def _said(choice: Choice | None, text: str, *, chat: bool) -> Json:
    """What was said: as a message with its tool calls, or as the rest of a prompt."""
    if not chat:
        return {"response": text}
    message: Json = {"role": "assistant", "content": text}
    if choice is not None and choice.calls:
        calls = [{"function": {"name": call.name, "arguments": _arguments(call.arguments)}} for call in choice.calls]
        message["tool_calls"] = calls
    return {"message": message}


def _arguments(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _line(name: str, said: Json, state: Json) -> bytes:
    line = msgspec.json.encode({"model": name, "created_at": _TIME} | said | state) + b"\n"
    return line.replace(b'"created_at":"<time>"', b'"created_at":"%b"' % MOMENT, 1)


def _durations(usage: Usage) -> Json:
    spent = {"prompt_eval_duration": usage.prompt * _TOKEN_NS // 10, "eval_duration": usage.completion * _TOKEN_NS}
    return {
        "total_duration": sum(spent.values()) + 1_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": spent["prompt_eval_duration"],
        "eval_count": usage.completion,
        "eval_duration": spent["eval_duration"],
    }


def _listed(name: bytes) -> Json:
    if name == b"version":
        return {"version": "0.12.0"}
    details = {"format": "gguf", "family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M"}
    tagged = [f"{name}:latest" for name in MODELS]
    return {"models": [{"name": name, "model": name, "size": 4_661_224_676, "details": details} for name in tagged]}


def _shown(model: Model) -> Json:
    capabilities = ["embedding"] if model.kind == "embeddings" else ["completion", "tools"]
    return {
        "modelfile": f"FROM {model.name}",
        "parameters": "",
        "template": "{{ .System }}{{ .Tools }}{{ .Prompt }}",
        "details": {"format": "gguf", "family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M"},
        "model_info": {"general.architecture": "llama", "llama.context_length": model.context_tokens_max},
        "capabilities": capabilities,
    }


def _plain(document: Json) -> Answer:
    return plain(msgspec.json.encode(document))

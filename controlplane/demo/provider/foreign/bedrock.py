"""Amazon Bedrock's Converse API. Any model id is served; signatures are not checked."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote

import msgspec

from controlplane.demo.faults import Fault
from controlplane.demo.provider import sabotage
from controlplane.demo.provider.answer import JSON, Answer
from controlplane.demo.provider.anthropic.composition import Reply, Said, reply
from controlplane.demo.provider.anthropic.prompt import Cached, segments
from controlplane.demo.provider.anthropic.request import Block, Message, MessagesRequest, Tool, ToolChoice
from controlplane.demo.provider.foreign import event_stream
from controlplane.demo.provider.foreign.shape import Json, PlainHeaders, shaped
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem, wrong_method

PATHS = b"/model/"
TOKENS_DEFAULT = 4_096
_PATH = re.compile(rb"^/model/(?P<model>[^/]+)/(?P<verb>converse|converse-stream)$")
_CREDENTIAL = re.compile(rb"Credential=([^/,]+)")
_STOP = re.compile(rb'"stopReason": ?"\w+"')
_KINDS = {
    400: "ValidationException", 401: "UnrecognizedClientException", 403: "AccessDeniedException", 404: "ResourceNotFoundException",
    429: "ThrottlingException", 500: "InternalServerException", 503: "ServiceUnavailableException",
}  # fmt: skip


class BedrockWire:
    """The protocol of one upstream."""

    def __init__(self, headers: PlainHeaders, inference: Inference) -> None:
        self.headers = headers
        self._inference = inference

    def key(self, request: Request) -> bytes:
        """The access key that a request is signed with, or the bearer token."""
        signed = _CREDENTIAL.search(request.key)
        if signed is not None:
            return signed[1]
        scheme, _, key = request.key.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else b""

    def answer(self, request: Request, call_number: int) -> Answer:  # noqa: ARG002 - nothing is remembered of a call
        """The answer to a request. Raises Problem."""
        found = _PATH.match(request.path)
        if found is None:
            raise Problem(404, "Unknown operation")
        if request.method != b"POST":
            raise wrong_method(request.method.decode("latin-1"), request.path.decode("latin-1"))
        place = (request.path, request.body)
        known = self._inference.memory.get(place)
        if known is not None:
            return known
        model = Model(self.model(request), 0, context_tokens_max=200_000, output_tokens_max=64_000)
        try:
            asked = _as_messages(msgspec.json.decode(request.body), model.name)
        except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
            raise Problem(400, "The provided request is not valid") from None
        tokenizer = self._inference.tokenizer(model)
        tokens = sum(part.tokens for part in segments(asked, tokenizer))
        made = reply(asked, model, tokenizer, seed=self._inference.seed, prompt_tokens=tokens, cached=Cached())
        answer = _whole(made) if found["verb"] == b"converse" else _streamed(made)
        self._inference.memory.keep(place, answer)
        return answer

    def worded(self, problem: Problem) -> Problem:
        """The message, and in a header the kind of exception."""
        status = 403 if problem.status == 401 else problem.status
        kind = _KINDS.get(status, "ValidationException" if status < 500 else "InternalServerException")
        text = "The security token included in the request is invalid." if problem.status == 401 else problem.message
        if problem.code == "context_length_exceeded":
            text = "Input is too long for requested model."
        return shaped(problem, {"message": text}, ("x-amzn-errortype", kind), *problem.headers, status=status)

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:
        """The error that a fault answers instead of the truth."""
        return sabotage.refusal(fault, model=model, key=key.decode("latin-1"), organization="", limit=1)

    def filtered(self, answer: Answer) -> Answer:
        """The stop reason says that a filter stopped the answer."""
        if not answer.streamed:
            return replace(answer, body=_STOP.sub(b'"stopReason":"content_filtered"', answer.body))
        stop = event_stream.event("messageStop", b'{"stopReason":"content_filtered"}')
        return replace(answer, events=(*answer.events[:-2], stop, answer.events[-1]))

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:  # noqa: ARG002 - its words are the same everywhere
        """An exception as a frame."""
        return event_stream.exception("internalServerException", msgspec.json.encode({"message": problem.message}))

    def model(self, request: Request) -> str:
        """The model in the path."""
        found = _PATH.match(request.path)
        return unquote(found["model"].decode("latin-1")) if found else ""


def _as_messages(document: Json, model: str) -> MessagesRequest:
    """A request in the words that the simulated Claude understands."""
    inference = document.get("inferenceConfig") or {}
    tools = (document.get("toolConfig") or {}).get("tools") or []
    specs = [tool["toolSpec"] for tool in tools if "toolSpec" in tool]
    choice = (document.get("toolConfig") or {}).get("toolChoice") or {}
    return MessagesRequest(
        model=model,
        messages=[Message(one["role"], [_block(part) for part in one["content"]]) for one in document["messages"]],
        max_tokens=inference.get("maxTokens", TOKENS_DEFAULT),
        system=[Block("text", part["text"]) for part in document.get("system") or () if "text" in part] or None,
        tools=[Tool(spec["name"], spec.get("description", ""), spec["inputSchema"]["json"]) for spec in specs] or None,
        tool_choice=_tool_choice(choice),
        stop_sequences=inference.get("stopSequences"),
    )


def _tool_choice(choice: Json) -> ToolChoice | None:
    if "tool" in choice:
        return ToolChoice("tool", str(choice["tool"]["name"]))
    return ToolChoice("any") if "any" in choice else None


def _block(part: Json) -> Block:
    if "toolUse" in part:
        use = part["toolUse"]
        return Block("tool_use", id=use["toolUseId"], name=use["name"], input=use.get("input") or {})
    if "toolResult" in part:
        result = part["toolResult"]
        texts = [{"type": "text", "text": one.get("text") or str(one.get("json", ""))} for one in result["content"]]
        return Block("tool_result", tool_use_id=result["toolUseId"], content=texts)
    return Block("image") if "image" in part else Block("text", str(part.get("text", "")))


def _whole(made: Reply) -> Answer:
    content = [_content(block) for block in made.blocks]
    document = {
        "metrics": {"latencyMs": 1},
        "output": {"message": {"content": content, "role": "assistant"}},
        "stopReason": made.stop_reason,
        "usage": _usage(made),
    }
    return Answer(made.model.name, made.usage, made.usage, msgspec.json.encode(document), JSON)


def _streamed(made: Reply) -> Answer:
    events: list[bytes] = []
    steps: list[int] = []

    def add(kind: str, document: Json) -> None:
        events.append(event_stream.event(kind, msgspec.json.encode(document)))

    add("messageStart", {"role": "assistant"})
    for index, block in enumerate(made.blocks):
        place = {"contentBlockIndex": index}
        if block.type == "tool_use":
            add("contentBlockStart", place | {"start": {"toolUse": {"toolUseId": block.id, "name": block.name}}})
        for piece in block.pieces:
            if piece:
                delta = {"toolUse": {"input": piece}} if block.type == "tool_use" else {"text": piece}
                add("contentBlockDelta", place | {"delta": delta})
                steps.append(len(events))
        add("contentBlockStop", place)
    add("messageStop", {"stopReason": made.stop_reason})
    add("metadata", {"metrics": {"latencyMs": 1}, "usage": _usage(made)})
    steps.append(len(events))
    return Answer(
        made.model.name,
        made.usage,
        made.usage,
        content_type=event_stream.CONTENT_TYPE,
        events=tuple(events),
        steps=tuple(steps),
        produced=(*(min(number, made.usage.completion) for number in range(1, len(steps))), made.usage.completion),
    )


def _content(block: Said) -> Json:
    if block.type == "tool_use":
        return {
            "toolUse": {"input": msgspec.json.decode(block.text or "{}"), "name": block.name, "toolUseId": block.id}
        }
    return {"text": block.text}


def _usage(made: Reply) -> Json:
    usage = made.usage
    return {
        "inputTokens": usage.prompt,
        "outputTokens": usage.completion,
        "totalTokens": usage.prompt + usage.completion,
        "cacheReadInputTokens": 0,
        "cacheWriteInputTokens": 0,
    }

"""OpenAI's protocol: which path is answered by what, and OpenAI's way to say no."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec

from controlplane.demo.faults import Fault
from controlplane.demo.provider import models, problems, sabotage
from controlplane.demo.provider.answer import Answer, plain
from controlplane.demo.provider.endpoints import ENDPOINTS, Endpoint
from controlplane.demo.provider.headers import HeaderWriter
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import CHAT, EMBEDDINGS, Inference
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import model_of

_INFERRED = frozenset((CHAT, EMBEDDINGS))
_MODELS = b"/v1/models"
_FORM_MODEL = re.compile(rb'name="model"\r\n(?:[^\r]+\r\n)*\r\n([^\r]*)')
_FINISH = re.compile(rb'"finish_reason": ?"\w+"')
_FILTERED = {False: b'"finish_reason": "content_filter"', True: b'"finish_reason":"content_filter"'}


class OpenAiWire:
    """OpenAI's endpoints but for the Responses API, which builds on this."""

    def __init__(self, headers: HeaderWriter, inference: Inference, *, requests_per_minute: int) -> None:
        self.headers = headers
        self._inference = inference
        self._requests_per_minute = requests_per_minute

    def key(self, request: Request) -> bytes:
        """The bearer token."""
        scheme, _, key = request.key.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else b""

    def answer(self, request: Request, call_number: int) -> Answer:  # noqa: ARG002 - nothing is remembered of a call
        """The answer to a request. Raises Problem."""
        path = request.path
        if path in _INFERRED:
            if request.method != b"POST":
                raise wrong_method(request)
            return self._inference.answer(path, request.body)
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            return self._list(request)
        if request.method != b"POST":
            raise wrong_method(request)
        return self._remembered(request, endpoint)

    def _remembered(self, request: Request, endpoint: Endpoint) -> Answer:
        """An answer that only the body decides. Forms are not kept: their boundary is new each time."""
        place = (request.path, request.body)
        made = self._inference.memory.get(place)
        if made is None:
            made = endpoint(request, self._inference)
            if not request.headers.get(b"content-type", b"").startswith(b"multipart/"):
                self._inference.memory.keep(place, made)
        return made

    def worded(self, problem: Problem) -> Problem:
        """Problems are in OpenAI's words already."""
        return problem

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:
        """The error that a fault answers instead of the truth."""
        return sabotage.refusal(
            fault,
            model=model,
            key=key.decode("latin-1"),
            organization=self.headers.organization,
            limit=self._requests_per_minute,
        )

    def filtered(self, answer: Answer) -> Answer:
        """The finish reason says that a filter stopped the answer."""
        events = tuple(_FINISH.sub(_FILTERED[True], event) for event in answer.events)
        return replace(answer, body=_FINISH.sub(_FILTERED[False], answer.body), events=events)

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:  # noqa: ARG002 - its words are the same everywhere
        """An error as an event of a stream."""
        error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"

    def model(self, request: Request) -> str:
        """The `model` of the body, or of the form."""
        if request.headers.get(b"content-type", b"").startswith(b"multipart/"):
            found = _FORM_MODEL.search(request.body)
            return found[1].decode("latin-1") if found else ""
        return model_of(request.body)

    def _list(self, request: Request) -> Answer:
        """The models, or one of them."""
        path = request.path
        name = path[len(_MODELS) + 1 :].decode("latin-1") if path.startswith(_MODELS + b"/") else ""
        if path != _MODELS and not name:
            raise problems.unknown_url(request.method.decode("latin-1"), path.decode("latin-1"))
        if request.method != b"GET":
            raise wrong_method(request)
        return plain(models.one_body(name) if name else models.list_body())


def wrong_method(request: Request) -> Problem:
    """The path exists, for another method."""
    return problems.wrong_method(request.method.decode("latin-1"), request.path.decode("latin-1"))

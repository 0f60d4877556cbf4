"""Azure OpenAI: OpenAI's bodies under the name of a deployment, with the verdicts of Azure's content filter."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec

from controlplane.demo.provider.answer import Answer
from controlplane.demo.provider.foreign.shape import Json, shaped
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.openai_wire import OpenAiWire
from controlplane.demo.provider.problems import Problem

DEPLOYMENTS = b"/openai/deployments/"
LATEST = b"/openai/v1/"
_CATEGORIES = ("hate", "self_harm", "sexual", "violence")
_SAFE = msgspec.json.encode({name: {"filtered": False, "severity": "safe"} for name in _CATEGORIES})
_FINISH = re.compile(rb'"finish_reason": ?(?:"\w+"|null)')
_PROMPT = b'"prompt_filter_results":[{"prompt_index":0,"content_filter_results":%b}]' % _SAFE
_FIRST_EVENT = b',"model":"","choices":[],%b}\n\n' % _PROMPT


class AzureWire(OpenAiWire):
    """OpenAI's protocol on Azure's paths."""

    def key(self, request: Request) -> bytes:
        """`api-key`, or the bearer token of an identity."""
        return request.headers.get(b"api-key", b"").strip() or super().key(request)

    def model(self, request: Request) -> str:
        """The deployment in the path; it is named after its model here."""
        if request.path.startswith(DEPLOYMENTS):
            return request.path.split(b"/")[3].decode("latin-1")
        return super().model(request)

    def answer(self, request: Request, call_number: int) -> Answer:
        """The answer to a request. Raises Problem."""
        if request.path.startswith(LATEST):
            path, body = request.path.removeprefix(b"/openai"), request.body
        else:
            if b"api-version=" not in request.query:
                raise _problem(404, "404", "Resource not found")
            path = b"/v1/" + request.path.removeprefix(DEPLOYMENTS).partition(b"/")[2]
            body = _named(request.body, self.model(request))
        made = super().answer(msgspec.structs.replace(request, path=path, body=body), call_number)
        return _filtered(made) if path == b"/v1/chat/completions" else made

    def worded(self, problem: Problem) -> Problem:
        """Azure's words for what is its own; OpenAI's for what is wrong with a request."""
        if problem.status == 401:
            text = (
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active "
                "subscription and use a correct regional API endpoint for your resource."
            )
            return _problem(401, "401", text)
        if problem.code == "model_not_found":
            text = (
                "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, please "
                "wait a moment and try again."
            )
            return _problem(404, "DeploymentNotFound", text)
        if problem.code == "content_policy_violation":
            return _blocked(problem)
        if problem.status == 429:
            return shaped(problem, {"error": {"code": "429", "message": problem.message}}, *problem.headers)
        return problem


def _named(body: bytes, model: str) -> bytes:
    """The body with the deployment as its model."""
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return body  # the error is told by whom it concerns
    return msgspec.json.encode(document | {"model": model})


def _filtered(made: Answer) -> Answer:
    """A chat completion with the verdicts on prompt and answer."""

    def judged(found: re.Match[bytes]) -> bytes:
        return b'"content_filter_results":%b,%b' % (_SAFE, found[0])

    if made.streamed:
        events = (_FIRST_EVENT, *(_FINISH.sub(judged, event) for event in made.events))
        return replace(made, events=events, steps=tuple(step + 1 for step in made.steps))
    body = _FINISH.sub(judged, made.body)
    return replace(made, body=body.replace(b'"system_fingerprint"', _PROMPT + b',"system_fingerprint"'))


def _problem(status: int, code: str, message: str) -> Problem:
    return shaped(Problem(status, message, code=code), {"error": {"code": code, "message": message}})


def _blocked(problem: Problem) -> Problem:
    message = (
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt "
        "and retry."
    )
    verdict = {"hate": {"filtered": True, "severity": "high"}}
    error: Json = {"message": message, "type": None, "param": "prompt", "code": "content_filter", "status": 400}
    error["innererror"] = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": verdict}
    return shaped(problem, {"error": error})

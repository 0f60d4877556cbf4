"""The Responses API of one upstream: responses are made, remembered, asked for again, cancelled and deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qsl

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import EVENTS, Answer, filled, plain
from controlplane.demo.provider.composition import compose, count_prompt
from controlplane.demo.provider.headers import HeaderWriter
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference, repeatable
from controlplane.demo.provider.latency import Pace
from controlplane.demo.provider.memory import Memory
from controlplane.demo.provider.models import MODELS, Model
from controlplane.demo.provider.openai_wire import OpenAiWire, wrong_method
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import read
from controlplane.demo.provider.responses import encoding
from controlplane.demo.provider.responses.conversations import Conversations, page
from controlplane.demo.provider.responses.encoding import Made
from controlplane.demo.provider.responses.request import Item, ResponsesRequest, as_chat, input_items
from controlplane.demo.provider.responses.state import ITEMS_MAX, State, StoredResponse

RESPONSES = b"/v1/responses"
CONVERSATIONS = b"/v1/conversations"
_COUNT = "input_tokens"
_MADE_BYTES_MAX = 16 * 1024 * 1024
_TOO_LONG = "Your input exceeds the context window of this model. Please adjust your input and try again."


class ResponsesWire(OpenAiWire):
    """OpenAI's protocol on the paths below /v1/responses and /v1/conversations."""

    def __init__(
        self,
        headers: HeaderWriter,
        inference: Inference,
        *,
        requests_per_minute: int,
        pace: Pace,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(headers, inference, requests_per_minute=requests_per_minute)
        self._state = State()
        self._conversations = Conversations(self._state, now_s)
        self._made: Memory[Made] = Memory(_MADE_BYTES_MAX)
        self._pace = pace
        self._now_s = now_s
        self._monotonic = monotonic

    def answer(self, request: Request, call_number: int) -> Answer:
        """The answer to a request. Raises Problem."""
        path, method = request.path, request.method
        if path == RESPONSES:
            if method != b"POST":
                raise wrong_method(request)
            return self._create(request, call_number)
        query = dict(parse_qsl(request.query.decode("latin-1")))
        names = path.decode("latin-1").split("/")[3:]
        number = self.headers.answer_id(call_number).decode()
        if path.startswith(CONVERSATIONS):
            return _plain(self._conversations.answer(method, names, query, request.body, number))
        match (method, names):
            case (b"POST", ["input_tokens"]):
                return self._count(request)
            case (b"GET", [response_id]):
                return self._retrieve(response_id, query)
            case (b"DELETE", [response_id]):
                self._find(response_id)
                del self._state.responses[response_id]
                return _plain({"id": response_id, "object": "response", "deleted": True})
            case (b"POST", [response_id, "cancel"]):
                return self._cancel(response_id)
            case (b"GET", [response_id, "input_items"]):
                return _plain(page(self._input_items(response_id), query))
            case _:
                raise problems.unknown_url(method.decode("latin-1"), path.decode("latin-1"))

    def worded(self, problem: Problem) -> Problem:
        """Problems of a chat completion, in the words of this API."""
        if problem.code == "context_length_exceeded":
            return Problem(400, _TOO_LONG, param="input", code="context_length_exceeded")
        if problem.param == "max_completion_tokens":
            message = problem.message.replace("max_completion_tokens", "max_output_tokens")
            return Problem(problem.status, message, param="max_output_tokens", code=problem.code)
        if problem.param is not None and problem.param.startswith("messages"):
            return Problem(
                problem.status, problem.message.replace("'messages'", "'input'"), param="input", code=problem.code
            )
        return problem

    def filtered(self, answer: Answer) -> Answer:
        """The response is incomplete, for the reason `content_filter`."""
        return replace(answer, body=_filtered(answer.body, " "), end=_filtered(answer.end, ""))

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:
        """An error event, then the response as failed."""
        error = {"code": problem.code or problem.type, "message": problem.message}
        told = {"type": "error", "sequence_number": events} | error | {"param": problem.param}
        failed = answer.events[0].replace(b"response.created", b"response.failed")
        failed = failed.replace(b'"sequence_number":0', b'"sequence_number":%d' % (events + 1), 1)
        failed = failed.replace(b'"status":"in_progress"', b'"status":"failed"', 1)
        failed = failed.replace(b'"error":null', b'"error":' + msgspec.json.encode(error), 1)
        return b"event: error\ndata: %b\n\n%b" % (msgspec.json.encode(told), failed)

    # --- making ----------------------------------------------------------------------------------------------------------

    def _create(self, request: Request, call_number: int) -> Answer:
        place = (request.path, request.body)
        asked = read(request.body, ResponsesRequest)
        made = self._made.get(place)
        alone = not asked.previous_response_id and not asked.conversation_id
        items = input_items(asked.input)
        context = items if alone else self._context(asked, items)
        if made is None:
            model = _model(asked.model)
            tokenizer = self._inference.tokenizer(model)
            composition = compose(
                as_chat(asked, context), model, tokenizer, seed=self._inference.seed, prompts=self._inference.prompts
            )
            made = encoding.make(asked, composition, tokenizer)
            if alone and repeatable(made.usage):
                self._made.keep(place, made)
        number = self.headers.answer_id(call_number)
        self._remember(asked, made, items, context, number, call_number)
        if not asked.background or asked.stream:
            return made.answer
        queued = made.document | {"status": "queued", "output": [], "usage": None, "completed_at": None}
        body = encoding.laid_out(queued | {"incomplete_details": None})
        return replace(made.answer, body=body, reported=None, waits=False)

    def _context(self, asked: ResponsesRequest, items: list[Item]) -> list[Item]:
        """The items with their past in front of them."""
        if asked.previous_response_id and asked.conversation_id:
            message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Ensure you are only providing one of them."
            raise Problem(400, message, code="mutually_exclusive_parameters")
        if asked.conversation_id:
            return [*self._conversations.find(asked.conversation_id).items, *items]
        previous = self._state.responses.get(asked.previous_response_id or "")
        if previous is None:
            message = f"Previous response with id '{asked.previous_response_id}' not found."
            raise Problem(400, message, param="previous_response_id", code="previous_response_not_found")
        return [*previous.context, *previous.output, *items]

    def _remember(
        self,
        asked: ResponsesRequest,
        made: Made,
        items: list[Item],
        context: list[Item],
        number: bytes,
        call_number: int,
    ) -> None:
        """Keeps the response, unless it is not to be stored, and lets its conversation go on."""
        output = [item | {"id": item["id"].replace(encoding.MARK, number.decode())} for item in made.output]
        if asked.conversation_id:
            self._conversations.extend(self._conversations.find(asked.conversation_id), [*items, *output])
        if asked.store is False:
            return
        whole = made.whole
        stored = StoredResponse(
            number, self._now_s(), whole, items, context[-ITEMS_MAX:], output, background=bool(asked.background)
        )
        if made.answer.streamed:
            stored.events = (*made.answer.events, made.answer.end)
        if asked.background:
            stored.ready_at = self._monotonic() + self._pace.whole_s(call_number, made.usage.completion)
        self._state.keep_response(f"resp_{number.decode()}", stored)

    def _count(self, request: Request) -> Answer:
        """How many input tokens a request would have: free of charge."""
        asked = read(request.body, ResponsesRequest)
        items = input_items(asked.input)
        alone = not asked.previous_response_id and not asked.conversation_id
        chat = as_chat(asked, items if alone else self._context(asked, items))
        tokens = count_prompt(chat, self._inference.tokenizer(_model(asked.model)))
        return _plain({"object": "response.input_tokens", "input_tokens": tokens})

    # --- asking again ----------------------------------------------------------------------------------------------------

    def _find(self, response_id: str) -> StoredResponse:
        found = self._state.responses.get(response_id)
        if found is None:
            raise Problem(404, f"Response with id '{response_id}' not found.")
        return found

    def _retrieve(self, response_id: str, query: dict[str, str]) -> Answer:
        stored = self._find(response_id)
        if query.get("stream") != "true":
            return plain(self._body(stored))
        if not stored.events:
            raise Problem(400, "This response was not created with `stream=true` and cannot be streamed.")
        after = query.get("starting_after", "-1")
        start = int(after) + 1 if after.lstrip("-").isdigit() else 0
        events = b"".join(stored.events[start:])
        return plain(filled(events, stored.number, stored.created_s), content_type=EVENTS)

    def _body(self, stored: StoredResponse) -> bytes:
        """A response in the state that it has now."""
        whole = filled(stored.whole, stored.number, stored.created_s)
        working = stored.background and self._monotonic() < stored.ready_at
        if not stored.cancelled and not working:
            return whole
        document = msgspec.json.decode(whole)
        document |= {"status": "cancelled" if stored.cancelled else "in_progress", "output": [], "usage": None}
        return encoding.laid_out(document | {"completed_at": None, "incomplete_details": None})

    def _cancel(self, response_id: str) -> Answer:
        stored = self._find(response_id)
        if not stored.background:
            raise Problem(400, "Cannot cancel a synchronous response.")
        if self._monotonic() < stored.ready_at:
            stored.cancelled = True
        return plain(self._body(stored))

    def _input_items(self, response_id: str) -> list[Item]:
        stored = self._find(response_id)
        number = stored.number.decode()
        return [{"id": f"msg_{number}i{index:02x}"} | item for index, item in enumerate(stored.input)]


def _model(name: str) -> Model:
    model = MODELS.get(name)
    if model is None or model.kind != "chat":
        raise problems.unknown_model(name)
    return model


def _filtered(data: bytes, space: str) -> bytes:
    """The first status of a document is that of the response."""
    gap = space.encode()
    data = data.replace(b"response.completed", b"response.incomplete")
    data = data.replace(b'"status":' + gap + b'"completed"', b'"status":' + gap + b'"incomplete"', 1)
    empty, reason = b'"incomplete_details":' + gap + b"null", b'"incomplete_details":{"reason":"content_filter"}'
    return data.replace(empty, reason, 1)


def _plain(document: object) -> Answer:
    return plain(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")

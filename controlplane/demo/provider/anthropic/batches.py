"""Anthropic's batches of messages: made with their requests, worked on as time goes by, answered and billed when they end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from controlplane.demo.provider.answer import Answer, filled, moment, plain
from controlplane.demo.provider.anthropic import problems
from controlplane.demo.provider.batches.course import WINDOW_S, Course
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.problems import Problem

BATCHES = b"/v1/messages/batches"
JOBS_MAX = 1_000
KEPT_BYTES_MAX = 64 * 1024 * 1024  # of requests and results; the oldest batches give way
_LIST_MAX = 1_000
_LINES = b"application/x-jsonl"
_STANDARD, _BATCH = b'"service_tier":"standard"', b'"service_tier":"batch"'
_Run = Callable[[bytes, Request, int], Answer]
Document = dict[str, object]


class _Asked(msgspec.Struct):
    custom_id: str
    params: msgspec.Raw


class _Create(msgspec.Struct):
    requests: list[_Asked]


_decode = msgspec.json.Decoder(_Create).decode
_encode = msgspec.json.encode


@dataclass(slots=True)
class _Job:
    id: str
    number: bytes
    made_by: Request
    created_s: int
    course: Course
    requests: list[_Asked]
    size_bytes: int
    done: bool = False
    results: bytes = b""
    counts: dict[str, int] = field(
        default_factory=lambda: {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    )


class MessageBatches:
    """The batches of one upstream."""

    def __init__(
        self,
        *,
        run: _Run,
        duration_s: float,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """run: answers and bills one request, by its body, the request that made its batch, and its number. duration_s: of each batch."""
        self._run = run
        self._duration_s = duration_s
        self._now_s = now_s
        self._monotonic = monotonic
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._kept_bytes = 0
        self._answered = 0

    def answer(self, request: Request, number: bytes) -> Answer:
        """The answer to a request. Raises Problem."""
        self._advance()
        names = request.path[len(BATCHES) :].decode("latin-1").split("/")[1:]
        match (request.method, names):
            case (b"POST", []):
                return _plain(self._create(request, number))
            case (b"GET", []):
                return _plain(self._list(request))
            case (b"GET", [batch_id]):
                return _plain(self._described(self._find(batch_id), request))
            case (b"DELETE", [batch_id]):
                return _plain(self._delete(batch_id))
            case (b"GET", [batch_id, "results"]):
                return self._results(batch_id)
            case (b"POST", [batch_id, "cancel"]):
                return _plain(self._cancel(batch_id, request))
            case _:
                raise problems.problem(404, "Not found")

    def _create(self, request: Request, number: bytes) -> Document:
        try:
            asked = _decode(request.body).requests
        except (msgspec.DecodeError, RecursionError) as error:
            raise problems.invalid(f"requests: {error}") from error
        names = {one.custom_id for one in asked}
        if not asked:
            raise problems.invalid("requests: List should have at least 1 item after validation, not 0")
        if len(names) < len(asked):
            raise problems.invalid("requests: custom_id must be unique within a batch")
        course = Course(self._monotonic(), self._duration_s)
        batch_id = f"msgbatch_{number.decode()}"
        job = _Job(batch_id, number, request, self._now_s(), course, asked, len(request.body))
        self._jobs[job.id] = job
        self._kept_bytes += job.size_bytes
        self._make_room()
        job.counts["processing"] = len(asked)
        return self._described(job, request, fresh=True)

    def _make_room(self) -> None:
        while len(self._jobs) > JOBS_MAX or (self._kept_bytes > KEPT_BYTES_MAX and len(self._jobs) > 1):
            _, oldest = self._jobs.popitem(last=False)
            self._kept_bytes -= oldest.size_bytes

    def _list(self, request: Request) -> Document:
        query = dict(part.partition("=")[::2] for part in request.query.decode("latin-1").split("&") if part)
        said = query.get("limit", "20")
        if not said.isdigit() or not 1 <= int(said) <= _LIST_MAX:
            raise problems.invalid(f"limit: Input should be between 1 and {_LIST_MAX}")
        ids = list(reversed(self._jobs))
        start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
        shown = ids[start : start + int(said)]
        return {
            "data": [self._described(self._jobs[name], request) for name in shown],
            "has_more": start + int(said) < len(ids),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    def _results(self, batch_id: str) -> Answer:
        job = self._find(batch_id)
        if not job.done:
            raise problems.problem(404, f"Results for batch {batch_id} are not available yet.")
        return plain(job.results, content_type=_LINES)

    def _cancel(self, batch_id: str, request: Request) -> Document:
        job = self._find(batch_id)
        if job.done:
            raise problems.invalid(f"Batch {batch_id} cannot be canceled because it has already ended.")
        job.course.cancel(self._monotonic())
        return self._described(job, request, fresh=True)

    def _delete(self, batch_id: str) -> Document:
        job = self._find(batch_id)
        if not job.done:
            raise problems.invalid(f"Batch {batch_id} cannot be deleted because it is still processing.")
        self._kept_bytes -= job.size_bytes
        del self._jobs[batch_id]
        return {"id": batch_id, "type": "message_batch_deleted"}

    def _find(self, batch_id: str) -> _Job:
        found = self._jobs.get(batch_id)
        if found is None:
            raise problems.problem(404, f"Message batch {batch_id} not found.")
        return found

    def _advance(self) -> None:
        """Ends the batches whose time has come."""
        now = self._monotonic()
        for job in list(self._jobs.values()):
            if not job.done and job.course.ended(now):
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        """Answers what was done, and writes down what became of each request."""
        job.done = True
        done = int(len(job.requests) * job.course.share(job.course.end) + 1e-9)
        rest = "expired" if job.course.expires else "canceled"
        lines: list[bytes] = []
        for at, asked in enumerate(job.requests):
            self._answered += 1
            kind, result = self._result(job, asked) if at < done else (rest, b'{"type":"%b"}' % rest.encode())
            job.counts[kind] += 1
            lines.append(b'{"custom_id":%b,"result":%b}\n' % (_encode(asked.custom_id), result))
        job.counts["processing"] = 0
        job.results = b"".join(lines)
        job.size_bytes += len(job.results)
        self._kept_bytes += len(job.results)
        self._make_room()

    def _result(self, job: _Job, asked: _Asked) -> tuple[str, bytes]:
        """What became of a request, in a word and whole."""
        number = 2_000_000_000 + self._answered
        try:
            made = self._run(bytes(asked.params), job.made_by, number)
        except Problem as problem:
            error = problems.worded(problem).body(f"req_{self._answered:024d}")
            return "errored", b'{"type":"errored","error":%b}' % error
        body = filled(made.body, b"%b%04x" % (job.number, self._answered), self._now_s())
        return "succeeded", b'{"type":"succeeded","message":%b}' % body.replace(_STANDARD, _BATCH)

    def _described(self, job: _Job, request: Request, *, fresh: bool = False) -> Document:
        """The batch object. fresh: as the answer to its making or its cancelling, which never says that it has ended."""
        done = job.done and not fresh
        course = job.course
        waiting = {"processing": len(job.requests), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        cancelled = course.cancelled
        host = request.headers.get(b"host", b"api.anthropic.com").decode("latin-1")
        return {
            "id": job.id,
            "type": "message_batch",
            "processing_status": "ended" if done else "in_progress" if cancelled is None else "canceling",
            "request_counts": job.counts if done else waiting,
            "ended_at": moment(job.created_s + course.end - course.started).decode() if done else None,
            "created_at": moment(job.created_s).decode(),
            "expires_at": moment(job.created_s + WINDOW_S).decode(),
            "archived_at": None,
            "cancel_initiated_at": None
            if cancelled is None
            else moment(job.created_s + cancelled - course.started).decode(),
            "results_url": f"http://{host}/v1/messages/batches/{job.id}/results" if done else None,
        }


def _plain(document: Document) -> Answer:
    return plain(_encode(document))

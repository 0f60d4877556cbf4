"""OpenAI's batches: checked when they are made, worked on as time goes by, their lines answered when they end, and billed then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from controlplane.demo.provider.answer import Answer, filled
from controlplane.demo.provider.batches.course import WINDOW_S, Course
from controlplane.demo.provider.batches.files import Document, Files, StoredFile, page
from controlplane.demo.provider.problems import Problem

JOBS_MAX = 1_000
LINES_MAX = 50_000
ENDPOINTS = ("/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations")
_WORK_FROM, _WORK_TO = 0.1, 0.9  # of the time of a batch: it is validated before, and written down after
_Run = Callable[[str, bytes, bytes, int], Answer]


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Create(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_create = msgspec.json.Decoder(_Create).decode
_encode = msgspec.json.encode


@dataclass(slots=True)
class _Job:
    id: str
    number: str
    key: bytes
    created_s: int
    asked: _Create
    course: Course
    lines: list[_Line] = field(default_factory=list)
    errors: list[Document] = field(default_factory=list)
    done: bool = False
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    model: str | None = None
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # in, of which cached, out, of which reasoning


class Jobs:
    """The batches of one upstream."""

    def __init__(
        self,
        files: Files,
        *,
        run: _Run,
        duration_s: float,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """run: answers and bills one line, by its path, body, key and number. duration_s: that each batch takes."""
        self._files = files
        self._run = run
        self._duration_s = duration_s
        self._now_s = now_s
        self._monotonic = monotonic
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._answered = 0
        self.forgotten = 0

    def create(self, body: bytes, number: str, *, key: bytes) -> Document:
        """A new batch. Raises Problem."""
        try:
            asked = _decode_create(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Problem(400, f"Invalid request: {error}") from error
        if asked.endpoint not in ENDPOINTS:
            raise Problem(
                400, f"Invalid value: '{asked.endpoint}'. Supported values are: {ENDPOINTS}.", param="endpoint"
            )
        if asked.completion_window != "24h":
            message = f"Invalid value: '{asked.completion_window}'. Value must be one of the following: '24h'."
            raise Problem(400, message, param="completion_window", code="invalid_value")
        file = self._files.find(asked.input_file_id)
        if file.purpose != "batch":
            raise Problem(400, f"The file {file.id} was not uploaded with purpose 'batch'.", param="input_file_id")
        job = _Job(f"batch_{number}", number, key, self._now_s(), asked, Course(self._monotonic(), self._duration_s))
        job.lines, job.errors = _checked(file.content, asked.endpoint)
        self._jobs[job.id] = job
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)
            self.forgotten += 1
        return self._described(job, fresh=True)

    def described(self, batch_id: str) -> Document:
        """A batch as it is now. Raises Problem."""
        return self._described(self._find(batch_id))

    def listed(self, query: dict[str, str]) -> Document:
        """A page of the batches, the newest first. Raises Problem."""
        found = [self._described(job) for job in reversed(self._jobs.values())]
        return page(found, query, limit=20, limit_max=100)

    def cancel(self, batch_id: str) -> Document:
        """Stops a batch. Raises Problem."""
        job = self._find(batch_id)
        if job.course.ended(self._monotonic()) or job.errors:
            raise Problem(409, f"Cannot cancel a batch with status '{self._status(job)}'.")
        job.course.cancel(self._monotonic())
        return self._described(job)

    def advance(self) -> None:
        """Ends the batches whose time has come."""
        now = self._monotonic()
        for job in self._jobs.values():
            if not job.done and not job.errors and job.course.ended(now):
                self._finish(job)

    def _find(self, batch_id: str) -> _Job:
        found = self._jobs.get(batch_id)
        if found is None:
            raise Problem(404, f"No batch found with id '{batch_id}'.")
        return found

    def _done(self, job: _Job) -> int:
        """How many lines are done by now."""
        share = (job.course.share(self._monotonic()) - _WORK_FROM) / (_WORK_TO - _WORK_FROM)
        return int(len(job.lines) * min(1.0, max(0.0, share)) + 1e-9)

    def _finish(self, job: _Job) -> None:
        """Answers what was done, and writes it down."""
        job.done = True
        done = self._done(job)
        answers: list[bytes] = []
        errors: list[bytes] = []
        for line in job.lines[:done]:
            self._answered += 1
            self._answer(job, line, answers, errors)
        if job.course.expires:
            message = "This request could not be executed before the completion window expired."
            errors += [
                _encode(
                    {
                        "id": f"batch_req_{job.number}x{at}",
                        "custom_id": line.custom_id,
                        "response": None,
                        "error": {"code": "batch_expired", "message": message},
                    }
                )
                for at, line in enumerate(job.lines[done:])
            ]
            job.failed += len(job.lines) - done
        job.output_file_id = self._write(job, "output", answers)
        job.error_file_id = self._write(job, "error", errors)

    def _answer(self, job: _Job, line: _Line, answers: list[bytes], errors: list[bytes]) -> None:
        number = 1_000_000_000 + self._answered
        status, into = 200, answers
        try:
            made = self._run(line.url, bytes(line.body), job.key, number)
            body = filled(made.body, f"{job.number}{self._answered:04x}".encode(), self._now_s())
            job.completed += 1
            job.model = made.model
            usage = made.usage
            for at, count in enumerate((usage.prompt, usage.cached, usage.completion, usage.reasoning)):
                job.tokens[at] += count
        except Problem as problem:
            status, into, body = problem.status, errors, problem.body()
            job.failed += 1
        into.append(
            b'{"id":"batch_req_%b%04x","custom_id":%b,"response":{"status_code":%d,"request_id":"%032x","body":%b},"error":null}'
            % (
                job.number.encode(),
                self._answered,
                _encode(line.custom_id),
                status,
                number,
                msgspec.json.format(body, indent=-1),
            )
        )

    def _write(self, job: _Job, what: str, lines: list[bytes]) -> str | None:
        if not lines:
            return None
        file_id = f"file-{job.number}{what[0]}"
        content = b"\n".join(lines) + b"\n"
        self._files.keep(StoredFile(file_id, self._now_s(), f"{job.id}_{what}.jsonl", "batch_output", content))
        return file_id

    def _status(self, job: _Job) -> str:
        now = self._monotonic()
        if job.errors:
            return "failed"
        if job.course.cancelled is not None:
            return "cancelled" if job.done else "cancelling"
        if job.done:
            return "expired" if job.course.expires else "completed"
        share = job.course.share(now)
        return "validating" if share < _WORK_FROM else "in_progress" if share < _WORK_TO else "finalizing"

    def _described(self, job: _Job, *, fresh: bool = False) -> Document:
        """The batch object. fresh: as the answer to its making, which never says more than that it is validated."""
        status = "validating" if fresh else self._status(job)
        course, end_s = job.course, int(job.course.end - job.course.started)
        worked = status not in ("validating", "failed")
        ended = job.created_s + end_s
        begun = job.created_s + int(_WORK_FROM * course.duration_s)
        cancelled = None if course.cancelled is None else job.created_s + int(course.cancelled - course.started)
        counted = job.done and not fresh
        return {
            "id": job.id,
            "object": "batch",
            "endpoint": job.asked.endpoint,
            "model": job.model if counted else None,
            "errors": {"object": "list", "data": job.errors} if status == "failed" else None,
            "input_file_id": job.asked.input_file_id,
            "completion_window": job.asked.completion_window,
            "status": status,
            "output_file_id": None if fresh else job.output_file_id,
            "error_file_id": None if fresh else job.error_file_id,
            "created_at": job.created_s,
            "in_progress_at": begun if worked else None,
            "expires_at": job.created_s + WINDOW_S,
            "finalizing_at": ended if status in ("finalizing", "completed") else None,
            "completed_at": ended if status == "completed" else None,
            "failed_at": job.created_s if status == "failed" else None,
            "expired_at": ended if status == "expired" else None,
            "cancelling_at": cancelled,
            "cancelled_at": ended if status == "cancelled" else None,
            "request_counts": {
                "total": len(job.lines) if worked else 0,
                "completed": job.completed if counted else self._done(job) if worked else 0,
                "failed": job.failed if counted else 0,
            },
            "usage": _usage(job.tokens) if counted else _usage([0, 0, 0, 0]),
            "metadata": job.asked.metadata,
        }


def _usage(tokens: list[int]) -> Document:
    prompt, cached, completion, reasoning = tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def _checked(content: bytes, endpoint: str) -> tuple[list[_Line], list[Document]]:
    """The requests of a file, and what is wrong with it."""
    lines: list[_Line] = []
    errors: list[Document] = []
    seen: set[str] = set()
    for at, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = _decode_line(text)
        except (msgspec.DecodeError, RecursionError):
            errors.append(_error("invalid_json_line", "This line is not parseable as valid JSON.", at))
            continue
        if line.url != endpoint:
            errors.append(_error("invalid_url", f"The URL provided for this request does not match '{endpoint}'.", at))
        elif line.method != "POST":
            errors.append(_error("invalid_method", "Only POST is supported.", at))
        elif line.custom_id in seen:
            errors.append(_error("duplicate_custom_id", f"The custom_id '{line.custom_id}' is not unique.", at))
        seen.add(line.custom_id)
        lines.append(line)
    if not lines and not errors:
        errors.append(_error("empty_file", "The input file is empty.", None))
    if len(lines) > LINES_MAX:
        errors.append(_error("too_many_tasks", f"The batch holds more than {LINES_MAX} requests.", None))
    return lines, errors


def _error(code: str, message: str, line: int | None) -> Document:
    return {"code": code, "message": message, "param": None, "line": line}

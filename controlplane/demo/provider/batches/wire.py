"""OpenAI's files and batches of one upstream: a file of requests goes in, files of answers and of errors come out."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import Answer, plain
from controlplane.demo.provider.batches.files import PURPOSES, Files, StoredFile
from controlplane.demo.provider.batches.jobs import Jobs
from controlplane.demo.provider.headers import HeaderWriter
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.multipart import read_form
from controlplane.demo.provider.openai_wire import OpenAiWire
from controlplane.demo.provider.problems import Problem

FILES = b"/v1/files"
BATCHES = b"/v1/batches"
_CONTENT = b"application/octet-stream"


class BatchesWire(OpenAiWire):
    """OpenAI's protocol on the paths below /v1/files and /v1/batches."""

    def __init__(
        self,
        headers: HeaderWriter,
        inference: Inference,
        *,
        requests_per_minute: int,
        files: Files,
        jobs: Jobs,
        now_s: Callable[[], int],
    ) -> None:
        super().__init__(headers, inference, requests_per_minute=requests_per_minute)
        self._files = files
        self._jobs = jobs
        self._now_s = now_s

    def answer(self, request: Request, call_number: int) -> Answer:
        """The answer to a request. Raises Problem."""
        names = request.path.decode("latin-1").split("/")[2:]
        query = dict(parse_qsl(request.query.decode("latin-1")))
        number = self.headers.answer_id(call_number).decode()
        self._jobs.advance()
        match (request.method, names):
            case (b"POST", ["files"]):
                return _plain(self._upload(request, number))
            case (b"GET", ["files"]):
                return _plain(self._files.listed(query))
            case (b"GET", ["files", file_id]):
                return _plain(self._files.find(file_id).described())
            case (b"DELETE", ["files", file_id]):
                return _plain(self._files.delete(file_id))
            case (b"GET", ["files", file_id, "content"]):
                return plain(self._files.find(file_id).content, content_type=_CONTENT)
            case (b"POST", ["batches"]):
                return _plain(self._jobs.create(request.body, number, key=request.key))
            case (b"GET", ["batches"]):
                return _plain(self._jobs.listed(query))
            case (b"GET", ["batches", batch_id]):
                return _plain(self._jobs.described(batch_id))
            case (b"POST", ["batches", batch_id, "cancel"]):
                return _plain(self._jobs.cancel(batch_id))
            case _:
                raise problems.unknown_url(request.method.decode("latin-1"), request.path.decode("latin-1"))

    def model(self, request: Request) -> str:  # noqa: ARG002 - the seam's
        """None: a file has many."""
        return ""

    def _upload(self, request: Request, number: str) -> dict[str, object]:
        form = read_form(request)
        file = form.file("file")
        purpose = form.fields.get("purpose", "")
        if purpose not in PURPOSES:
            raise Problem(400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
        if purpose == "batch" and not file.name.endswith(".jsonl"):
            raise Problem(400, "Invalid file format for Batch API. Must be .jsonl")
        stored = StoredFile(f"file-{number}", self._now_s(), file.name, purpose, file.content)
        self._files.keep(stored)
        return stored.described()


def _plain(document: object) -> Answer:
    return plain(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")

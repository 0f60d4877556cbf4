"""Which protocol a request speaks: by its path, and where two protocols share one, by its headers."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.demo.provider.answer import Answer
from controlplane.demo.provider.anthropic.headers import AnthropicHeaders
from controlplane.demo.provider.anthropic.wire import AnthropicWire
from controlplane.demo.provider.batches.files import Files
from controlplane.demo.provider.batches.jobs import Jobs
from controlplane.demo.provider.batches.wire import BATCHES, FILES, BatchesWire
from controlplane.demo.provider.endpoints import ENDPOINTS
from controlplane.demo.provider.foreign import azure, bedrock, gemini, ollama
from controlplane.demo.provider.foreign.shape import PlainHeaders
from controlplane.demo.provider.headers import HeaderWriter
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import CHAT, EMBEDDINGS, Inference
from controlplane.demo.provider.latency import Pace
from controlplane.demo.provider.limits import Limits
from controlplane.demo.provider.openai_wire import OpenAiWire
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.responses.wire import CONVERSATIONS, RESPONSES, ResponsesWire
from controlplane.demo.provider.wire import Wire


class Wires:
    """The protocols of one upstream."""

    def __init__(
        self,
        identity: str,
        inference: Inference,
        *,
        limits: Limits,
        pace: Pace,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
        files_bytes_max: int,
        batch_s: float,
        billed: Callable[[Answer], None],
    ) -> None:
        """identity: makes the ids of this upstream its own, the same again for the same seed.

        batch_s: that a batch takes. billed: called with each answer that a batch has got.
        """
        self._billed = billed
        headers = HeaderWriter(identity, limits, now_s)
        self.organization = headers.organization
        openai = OpenAiWire(headers, inference, requests_per_minute=limits.requests_per_minute)
        anthropic = AnthropicWire(
            AnthropicHeaders(identity, limits, now_s),
            inference,
            requests_per_minute=limits.requests_per_minute,
            now_s=now_s,
            monotonic=monotonic,
            batch_s=batch_s,
            billed=billed,
        )
        self.exact: dict[bytes, Wire] = dict.fromkeys((CHAT, EMBEDDINGS, *ENDPOINTS), openai)
        responses = ResponsesWire(
            headers,
            inference,
            requests_per_minute=limits.requests_per_minute,
            pace=pace,
            now_s=now_s,
            monotonic=monotonic,
        )
        on_azure = azure.AzureWire(headers, inference, requests_per_minute=limits.requests_per_minute)
        files = Files(files_bytes_max)
        batches = BatchesWire(
            headers,
            inference,
            requests_per_minute=limits.requests_per_minute,
            files=files,
            jobs=Jobs(files, run=self._run, duration_s=batch_s, now_s=now_s, monotonic=monotonic),
            now_s=now_s,
        )
        self._openai = openai
        self._anthropic = anthropic
        self._begun: tuple[tuple[bytes, Wire], ...] = (
            (b"/v1/messages", anthropic),
            (RESPONSES, responses),
            (CONVERSATIONS, responses),
            (FILES, batches),
            (BATCHES, batches),
            (azure.DEPLOYMENTS, on_azure),
            (azure.LATEST, on_azure),
            (ollama.PATHS, ollama.OllamaWire(PlainHeaders(identity, now_s, id_name="x-request-id"), inference)),
            (bedrock.PATHS, bedrock.BedrockWire(PlainHeaders(identity, now_s, id_name="x-amzn-requestid"), inference)),
        )
        self._gemini = gemini.GeminiWire(PlainHeaders(identity, now_s, id_name="x-goog-request-id"), inference)

    def of(self, request: Request) -> Wire:
        """The protocol of a request; OpenAI's for a path that nobody knows."""
        if b"anthropic-version" in request.headers and request.path not in self.exact:
            return self._anthropic
        for beginning, wire in self._begun:
            if request.path.startswith(beginning):
                return wire
        if gemini.CALL.search(request.path) or gemini.LISTED.match(request.path):
            return self._gemini
        return self._openai

    def _run(self, path: str, body: bytes, key: bytes, call_number: int) -> Answer:
        """Answers one request of a batch, and bills it. Raises Problem."""
        request = Request(b"POST", path.encode(), b"", key, body, keep_alive=True, chunks_allowed=True)
        wire = self.exact.get(request.path) or self.of(request)
        try:
            made = wire.answer(request, call_number)
        except Problem as problem:
            raise wire.worded(problem) from problem
        if made.streamed:
            raise Problem(400, "Streaming is not supported in batches.", param="stream")
        self._billed(made)
        return made

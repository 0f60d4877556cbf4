"""One simulated upstream: requests in, OpenAI's answers out, faults where they are set, and the bill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.demo.faults import Fault, FaultKind, Faults
from controlplane.demo.provider import models, problems, sabotage
from controlplane.demo.provider.config import ProviderConfig
from controlplane.demo.provider.encoding import EVENT_CREATED, JSON_CREATED, JSON_START, Answer
from controlplane.demo.provider.exchange import Cut, DelayedReply, Ending, Settle, Silence, StreamReply
from controlplane.demo.provider.headers import HeaderWriter
from controlplane.demo.provider.http import Connection, Request, answer
from controlplane.demo.provider.inference import CHAT, EMBEDDINGS, Inference
from controlplane.demo.provider.latency import Pace
from controlplane.demo.provider.limits import Allowance, Limits
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import model_of
from controlplane.demo.provider.stats import UpstreamStats

_MODELS = b"/v1/models"
_KEYS_KNOWN_MAX = 10_000


class Upstream:
    """Answers the requests of one port."""

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        *,
        faults: Faults,
        inference: Inference,
        now_s: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.name = name
        self.port = 0  # set once the socket is bound
        self.stats = UpstreamStats()
        self._config = config
        self._faults = faults
        self._inference = inference
        self._now_s = now_s
        self._pace = Pace(config.latency, seed=config.seed)
        self._limits = Limits(
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            enforced=config.limits_enforced,
            now=monotonic,
        )
        self._headers = HeaderWriter(f"{config.seed}/{name}", self._limits, now_s)
        self._good_keys = None if config.api_keys is None else frozenset(key.encode() for key in config.api_keys)
        self._keys_known: set[bytes] = set()  # Authorization values that were found good
        self._calls = 0

    def reset_stats(self) -> None:
        """Starts counting again; calls in flight keep settling into the new counts."""
        self.stats = UpstreamStats(in_flight=self.stats.in_flight)

    def handle(self, connection: Connection, request: Request) -> None:
        """Answers, now or later."""
        self._calls += 1
        self.stats.requests += 1
        fault = self._fault(request) if self._faults else None
        try:
            if fault is not None and fault.kind is FaultKind.HANG:
                self.stats.in_flight += 1
                connection.begin(Silence(self._hung, 0))
                return
            if fault is not None:
                self._raise_refusal(fault, request)
            if request.key not in self._keys_known:
                self._check_key(request.key)
            if request.path == CHAT or request.path == EMBEDDINGS:
                self._infer(connection, request, fault)
            else:
                self._list(connection, request)
        except Problem as problem:
            self.stats.refuse(problem.status)
            extra = self._headers.failure(self._calls)
            connection.reply(answer(problem, keep_alive=request.keep_alive, extra=extra))

    # --- answers ---------------------------------------------------------------------------------------------------------

    def _infer(self, connection: Connection, request: Request, fault: Fault | None) -> None:
        """A chat completion or embeddings."""
        if request.method != b"POST":
            raise problems.wrong_method(_text(request.method), _text(request.path))
        made = self._inference.answer(request.path, request.body)
        allowance = self._allowance(request, made)
        cut: Cut | None = None
        delay_s = 0.0
        if fault is not None:
            made = sabotage.spoiled(made, fault)
            cut = sabotage.cut_of(fault)
            if fault.kind is FaultKind.SLOW_FIRST_TOKEN:
                delay_s = fault.delay_s
        counts = self.stats.model(made.model)
        counts.calls += 1
        if made.streamed:
            counts.streams += 1
            delay_s += self._pace.whole_s(self._calls, made.usage.reasoning + 1)  # it thinks before its first token
            self._stream(connection, request, made, allowance, delay_s=delay_s, cut=cut)
            return
        if not self._pace.instant:
            delay_s += self._pace.whole_s(self._calls, made.usage.completion)
        data = self._whole(request, made, allowance, delay_s)
        if delay_s == 0 and cut is None:
            self._bill(made, Ending.COMPLETED, made.usage.completion)
            connection.reply(data)
            return
        self.stats.in_flight += 1
        DelayedReply(
            connection,
            data,
            delay_s=delay_s,
            tokens=made.usage.completion,
            settle=self._settle(made),
            cut=cut,
            loop=asyncio.get_running_loop(),
        )

    def _whole(self, request: Request, made: Answer, allowance: Allowance, delay_s: float) -> bytes:
        """Head and body of an answer that is not streamed."""
        number = self._calls
        head = self._headers.success(number, allowance, delay_s=delay_s, keep_alive=request.keep_alive)
        body = made.tail
        if made.gap:
            body = b"%b%b%b%d%b" % (JSON_START, self._headers.answer_id(number), JSON_CREATED, self._now_s(), body)
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _stream(
        self,
        connection: Connection,
        request: Request,
        made: Answer,
        allowance: Allowance,
        *,
        delay_s: float,
        cut: Cut | None,
    ) -> None:
        number = self._calls
        keep_alive = request.keep_alive and request.chunks_allowed
        head = self._headers.success(number, allowance, delay_s=delay_s, keep_alive=keep_alive, stream=True)
        head += b"transfer-encoding: chunked\r\n\r\n" if request.chunks_allowed else b"\r\n"
        self.stats.in_flight += 1
        StreamReply(
            connection,
            made,
            head=head,
            stamp=b"%b%b%d" % (self._headers.answer_id(number), EVENT_CREATED, self._now_s()),
            pace=self._pace,
            call_number=number,
            delay_s=delay_s,
            per_write=self._config.events_per_write,
            chunked=request.chunks_allowed,
            settle=self._settle(made),
            cut=cut,
            loop=asyncio.get_running_loop(),
        )

    def _list(self, connection: Connection, request: Request) -> None:
        """The models, or one of them."""
        name = _text(request.path[len(_MODELS) + 1 :]) if request.path.startswith(_MODELS + b"/") else ""
        if request.path != _MODELS and not name:
            raise problems.unknown_url(_text(request.method), _text(request.path))
        if request.method != b"GET":
            raise problems.wrong_method(_text(request.method), _text(request.path))
        body = models.one_body(name) if name else models.list_body()
        head = self._headers.success(self._calls, None, delay_s=0, keep_alive=request.keep_alive)
        connection.reply(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    # --- who may ask, and how much ---------------------------------------------------------------------------------------

    def _check_key(self, authorization: bytes) -> None:
        """Raises Problem for a missing or unknown key; remembers a good one."""
        scheme, _, key = authorization.partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise problems.no_key()
        if self._good_keys is not None and key not in self._good_keys:
            raise problems.bad_key(_text(key))
        if len(self._keys_known) < _KEYS_KNOWN_MAX:
            self._keys_known.add(authorization)

    def _allowance(self, request: Request, made: Answer) -> Allowance:
        """What the rate limits leave. Raises Problem when they leave nothing."""
        allowance = self._limits.take(request.key, made.model, made.usage.prompt)
        if not allowance.granted:
            limit = self._limits.requests_per_minute if allowance.kind == "requests" else self._limits.tokens_per_minute
            raise problems.rate_limited(
                made.model,
                self._headers.organization,
                kind=allowance.kind,
                limit=limit,
                retry_after_s=allowance.retry_after_s,
            )
        return allowance

    # --- faults ----------------------------------------------------------------------------------------------------------

    def _fault(self, request: Request) -> Fault | None:
        fault = self._faults.pick(
            upstream=self.name,
            port=self.port,
            path=_text(request.path),
            key=_text(_key(request)),
            model=lambda: model_of(request.body),
        )
        if fault is not None:
            self.stats.by_fault[fault.kind] = self.stats.by_fault.get(fault.kind, 0) + 1
        return fault

    def _raise_refusal(self, fault: Fault, request: Request) -> None:
        problem = sabotage.refusal(
            fault,
            model=lambda: model_of(request.body),
            key=_text(_key(request)),
            organization=self._headers.organization,
            limit=self._limits.requests_per_minute,
        )
        if problem is not None:
            raise problem

    # --- the bill --------------------------------------------------------------------------------------------------------

    def _settle(self, made: Answer) -> Settle:
        """What an exchange calls once at its end."""

        def settle(ending: Ending, produced: int) -> None:
            self.stats.in_flight -= 1
            self._bill(made, ending, produced)

        return settle

    def _hung(self, _ending: Ending, _produced: int) -> None:
        self.stats.in_flight -= 1

    def _bill(self, made: Answer, ending: Ending, produced: int) -> None:
        counts = self.stats.model(made.model)
        if ending is Ending.COMPLETED:
            counts.completed += 1
            if made.reported is not None:
                counts.reported_prompt_tokens += made.reported.prompt
                counts.reported_completion_tokens += made.reported.completion
        elif ending is Ending.CANCELLED:
            counts.cancelled += 1
        else:
            counts.broken += 1
        counts.prompt_tokens += made.usage.prompt
        counts.cached_tokens += made.usage.cached
        counts.completion_tokens += produced
        counts.reasoning_tokens += min(produced, made.usage.reasoning)


def _key(request: Request) -> bytes:
    """The provider key itself."""
    return request.key.partition(b" ")[2].strip()


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")

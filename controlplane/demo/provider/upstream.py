"""One simulated upstream: requests in, answers of the protocol that they speak out, faults where they are set, and the bill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.demo.faults import Fault, FaultKind, Faults
from controlplane.demo.provider import problems, sabotage
from controlplane.demo.provider.answer import Answer, filled
from controlplane.demo.provider.config import ProviderConfig
from controlplane.demo.provider.exchange import Cut, DelayedReply, Ending, Settle, Silence, StreamReply
from controlplane.demo.provider.http import Connection, Request, answer
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.latency import Pace
from controlplane.demo.provider.limits import Allowance, Limits
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.stats import UpstreamStats
from controlplane.demo.provider.wire import Wire
from controlplane.demo.provider.wires import Wires

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
        self._now_s = now_s
        self._pace = Pace(config.latency, seed=config.seed)
        self._limits = Limits(
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            enforced=config.limits_enforced,
            now=monotonic,
        )
        self._wires = Wires(
            f"{config.seed}/{name}",
            inference,
            limits=self._limits,
            pace=self._pace,
            now_s=now_s,
            monotonic=monotonic,
            files_bytes_max=config.files_bytes_max,
            batch_s=config.batch_s * config.latency.scale,
            billed=self._bill_in_batch,
        )
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
        wire = self._wires.exact.get(request.path) or self._wires.of(request)
        fault = self._fault(request, wire) if self._faults else None
        try:
            if fault is not None and self._stopped(connection, request, wire, fault):
                return
            if request.key not in self._keys_known:
                self._check_key(request, wire)
            self._infer(connection, request, wire, fault)
        except Problem as raised:
            problem = wire.worded(raised)
            self.stats.refuse(problem.status)
            extra = wire.headers.failure(self._calls)
            request_id = wire.headers.request_id(self._calls)
            connection.reply(answer(problem, keep_alive=request.keep_alive, extra=extra, request_id=request_id))

    def worded(self, request: Request, problem: Problem) -> Problem:
        """A problem with a request that was not read to its end."""
        return self._wires.of(request).worded(problem)

    # --- answers ---------------------------------------------------------------------------------------------------------

    def _infer(self, connection: Connection, request: Request, wire: Wire, fault: Fault | None) -> None:
        """Answers what the wire makes of a request."""
        made = wire.answer(request, self._calls)
        if not made.model:
            connection.reply(self._whole(request, wire, made, None, 0))
            return
        allowance = self._allowance(request, made, wire)
        cut: Cut | None = None
        delay_s = 0.0
        if fault is not None:
            made, cut, delay_s = self._sabotaged(made, wire, fault)
        counts = self.stats.model(made.model)
        counts.calls += 1
        if made.streamed:
            counts.streams += 1
            delay_s += self._pace.whole_s(self._calls, made.hidden + 1)  # it thinks before its first token
            self._stream(connection, request, wire, made, allowance, delay_s=delay_s, cut=cut)
            return
        if made.waits and not self._pace.instant:
            delay_s += self._pace.whole_s(self._calls, made.usage.completion)
        data = self._whole(request, wire, made, allowance, delay_s)
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

    def _whole(self, request: Request, wire: Wire, made: Answer, allowance: Allowance | None, delay_s: float) -> bytes:
        """Head and body of an answer that is not streamed."""
        headers = wire.headers
        head = headers.success(
            self._calls, allowance, delay_s=delay_s, keep_alive=request.keep_alive, content_type=made.content_type
        )
        body = filled(made.body, headers.answer_id(self._calls), self._now_s()) if made.marked else made.body
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _stream(
        self,
        connection: Connection,
        request: Request,
        wire: Wire,
        made: Answer,
        allowance: Allowance,
        *,
        delay_s: float,
        cut: Cut | None,
    ) -> None:
        number = self._calls
        keep_alive = request.keep_alive and request.chunks_allowed
        head = wire.headers.success(
            number, allowance, delay_s=delay_s, keep_alive=keep_alive, content_type=made.content_type
        )
        head += b"transfer-encoding: chunked\r\n\r\n" if request.chunks_allowed else b"\r\n"
        self.stats.in_flight += 1
        StreamReply(
            connection,
            made,
            head=head,
            answer_id=wire.headers.answer_id(number),
            now_s=self._now_s(),
            pace=self._pace,
            call_number=number,
            delay_s=delay_s,
            per_write=self._config.events_per_write,
            chunked=request.chunks_allowed,
            settle=self._settle(made),
            cut=cut,
            loop=asyncio.get_running_loop(),
        )

    # --- who may ask, and how much ---------------------------------------------------------------------------------------

    def _check_key(self, request: Request, wire: Wire) -> None:
        """Raises Problem for a missing or unknown key; remembers a good one."""
        key = wire.key(request)
        if not key:
            raise problems.no_key()
        if self._good_keys is not None and key not in self._good_keys:
            raise problems.bad_key(key.decode("latin-1"))
        if request.key.endswith(key) and len(self._keys_known) < _KEYS_KNOWN_MAX:
            self._keys_known.add(request.key)

    def _allowance(self, request: Request, made: Answer, wire: Wire) -> Allowance:
        """What the rate limits leave. Raises Problem when they leave nothing."""
        allowance = self._limits.take(request.key or wire.key(request), made.model, made.usage.prompt)
        if not allowance.granted:
            limit = self._limits.requests_per_minute if allowance.kind == "requests" else self._limits.tokens_per_minute
            raise problems.rate_limited(
                made.model,
                self._wires.organization,
                kind=allowance.kind,
                limit=limit,
                retry_after_s=allowance.retry_after_s,
            )
        return allowance

    # --- faults ----------------------------------------------------------------------------------------------------------

    def _fault(self, request: Request, wire: Wire) -> Fault | None:
        fault = self._faults.pick(
            upstream=self.name,
            port=self.port,
            path=request.path.decode("latin-1"),
            key=wire.key(request).decode("latin-1"),
            model=lambda: wire.model(request),
        )
        if fault is not None:
            self.stats.by_fault[fault.kind] = self.stats.by_fault.get(fault.kind, 0) + 1
        return fault

    def _stopped(self, connection: Connection, request: Request, wire: Wire, fault: Fault) -> bool:
        """Whether a fault leaves no answer at all. Raises Problem for one that answers an error."""
        if fault.kind is FaultKind.HANG:
            self.stats.in_flight += 1
            connection.begin(Silence(self._hung, 0))
            return True
        if fault.kind is FaultKind.RESET:
            connection.reset()
            return True
        problem = wire.refusal(fault, model=wire.model(request), key=wire.key(request))
        if problem is not None:
            raise problem
        return False

    def _sabotaged(self, made: Answer, wire: Wire, fault: Fault) -> tuple[Answer, Cut | None, float]:
        """The answer as a fault leaves it, where it is cut off, and how late it comes. Raises Problem instead of an answer."""
        if fault.kind is FaultKind.CONTENT_FILTERED:
            return wire.filtered(made), None, 0.0
        if fault.kind is FaultKind.STREAM_ERROR:
            problem = wire.worded(problems.server_error())
            if not made.streamed:
                raise problem
            if made.content_type.startswith(b"audio/"):
                return made, Cut(fault.after_chunks, close=True), 0.0
            last = wire.broken(problem, made, fault.after_chunks)
            return made, Cut(fault.after_chunks, close=True, last=last), 0.0
        delay_s = fault.delay_s if fault.kind is FaultKind.SLOW_FIRST_TOKEN else 0.0
        return sabotage.spoiled(made, fault), sabotage.cut_of(fault), delay_s

    # --- the bill --------------------------------------------------------------------------------------------------------

    def _settle(self, made: Answer) -> Settle:
        """What an exchange calls once at its end."""

        def settle(ending: Ending, produced: int) -> None:
            self.stats.in_flight -= 1
            self._bill(made, ending, produced)

        return settle

    def _hung(self, _ending: Ending, _produced: int) -> None:
        self.stats.in_flight -= 1

    def _bill_in_batch(self, made: Answer) -> None:
        """A line of a batch: nobody can leave before it is done."""
        if made.model:
            self.stats.model(made.model).calls += 1
            self._bill(made, Ending.COMPLETED, made.usage.completion)

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
        usage = made.usage
        counts.prompt_tokens += usage.prompt
        counts.cached_tokens += usage.cached
        counts.cache_write_tokens += usage.written_5m + usage.written_1h
        counts.completion_tokens += produced
        counts.reasoning_tokens += min(produced, usage.reasoning)

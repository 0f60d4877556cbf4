"""One call on its way through the proxy, and the two seams it meets: stages that decide and transports that wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from controlplane.contract.pricing import NO_TOKENS, Tokens
from controlplane.contract.records import AttemptRecord, CacheState, CostState, Outcome

if TYPE_CHECKING:
    from proxy.dialects.dialect import RequestView
    from proxy.repeats import Known
    from proxy.runtime import Candidate, KeyIdentity, RouteEntry, Runtime

Headers = list[tuple[bytes, bytes]]
RateLimit = tuple[int, int, float]  # limit, remaining, seconds until the limit is whole again


class ChunkStream(Protocol):
    """The body of a streamed reply.

    `read` is safe to cancel: a chunk that was not returned is returned by the next `read`, whoever calls it.
    """

    async def read(self) -> bytes:
        """The next chunk: whole SSE events, never the protocol's last one (`Reply.ending`, which the pump writes); b"" when the protocol's end was seen.

        Raises StreamBroken when the stream cannot go on.
        """
        ...

    def close(self) -> None:
        """Gives the upstream connection up; safe to call twice. Never blocks."""
        ...


Sink = Callable[[bytes], bool]  # takes a chunk, or answers False and takes nothing


def tap(stream: ChunkStream, sink: Sink) -> None:
    """Has a stream that can do so hand its chunks to a sink while somebody waits in `read`: in the callback of its socket, without waking a task.

    A chunk that the sink does not take is returned by that `read`, like everything that is no ordinary chunk. A stream that wraps another
    and has no `tap` of its own is read as ever, and so is what it wraps.
    """
    divert: Callable[[Sink], None] | None = getattr(stream, "tap", None)
    if divert is not None:
        divert(sink)


class StreamBroken(Exception):
    """A stream that ended before its protocol says it may; carries the outcome and a message for the client.

    event: the upstream's own error event, forwarded as it came; b"" if it sent none.
    """

    def __init__(self, outcome: Outcome, message: str, *, event: bytes = b"") -> None:
        super().__init__(message)
        self.outcome = outcome
        self.event = event


class Reply:
    """An answer: our own or an upstream's, complete or streamed.

    Exactly one of `body` (complete) and `stream` is used. `tokens`, `finish_reason` and `complete` are known at once for a
    complete reply and grow while a stream is read; `complete` is True only when the protocol's end was seen without an error, and
    only such a reply may be stored.
    """

    __slots__ = (
        "age_s", "body", "complete", "deployment", "ending", "error_code", "finish_reason", "headers", "list_nanousd", "model", "outcome",
        "raw", "refusal", "source", "status", "stored_ttl_s", "stream", "tokens", "usage_known",
    )  # fmt: skip

    def __init__(
        self,
        status: int,
        headers: Headers,
        *,
        body: bytes = b"",
        stream: ChunkStream | None = None,
        source: str = "upstream",
        outcome: Outcome = Outcome.OK,
        error_code: str = "",
    ) -> None:
        self.status = status
        self.headers = headers  # to be forwarded to the client, hop-by-hop ones removed
        self.body = body
        self.stream = stream
        self.source = source  # "gateway", "upstream", "client": who is at fault if this is an error
        self.outcome = outcome
        self.error_code = error_code
        self.deployment = ""
        self.model = ""
        self.tokens: Tokens = NO_TOKENS
        self.usage_known = False
        self.list_nanousd: int | None = (
            None  # of its tokens at the price's standard class, where that was found already
        )
        self.finish_reason = ""
        self.complete = False
        self.raw = False  # of a stream: it is no events, so nothing of ours may stand in it
        self.ending = b""  # of a stream, once it has ended: the protocol's last event; b"": `data: [DONE]`
        self.refusal: object | None = None  # (line of the table, message), owned by refusals.py: shaped when it is sent
        self.age_s = -1.0  # >= 0: a stored reply of this age
        self.stored_ttl_s = 0


class Call:
    """Everything known about one client request; the stages fill it in from top to bottom, the settlement reads it."""

    __slots__ = (
        "aborted", "admitted", "agent", "answered", "attempts", "body", "cache", "cache_key", "cache_ttl_s", "call_id",
        "candidates", "channel", "client_gone", "context_tokens", "cost_nanousd", "cost_state", "deadline", "entered", "error_code",
        "fell_back", "first_token_us", "headers", "identity", "known", "operation", "outcome", "output_ceiling", "parts", "path",
        "patience", "peer", "price_version", "priority", "query", "quota_warning", "ratelimit_requests", "ratelimit_tokens",
        "refilled", "reply", "request_cache", "request_line", "reservation", "responding", "response_bytes", "response_kept",
        "route", "runtime", "saved_nanousd", "session", "settled", "shortage", "started_ns", "started_us", "status", "tags", "tally",
        "target", "tokens", "trace_id", "user", "view", "waited_ns",
    )  # fmt: skip

    request_line: tuple[bytes, bytes]  # method and target as they came; only of a call that is passed through
    target: bytes  # path and query at the upstream, where they depend on the call
    query: bytes  # of the request's target, for the upstream
    peer: str  # address of the connection; empty if that is not known
    fell_back: str  # why another model than the one asked for was tried; such an answer is nobody else's
    quota_warning: str  # which soft quotas it passed, and which sent it to another model
    context_tokens: int  # of what it builds on at its upstream; only of a call that does, once that was looked up
    response_kept: bytearray  # a stream's bytes; only where the tenant's policy stores payloads
    tally: object | None  # owned by stages/tally.py; only of a call that goes through it
    entered: int  # stages entered and not left
    responding: bool  # status and headers were handed to the server
    answered: bool  # the last bytes were handed to the server
    aborted: bool  # nobody wants the answer any more: upstream work is being cancelled

    def __init__(
        self,
        runtime: Runtime,
        operation: str,
        path: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        call_id: str,
        started_us: int,
        started_ns: int,
    ) -> None:
        self.runtime = runtime
        self.operation = operation
        self.path = path
        self.headers = headers  # lower-case names; the last of equal names
        self.body = body
        self.target = self.query = self.cache_key = b""
        self.call_id = call_id
        self.started_us = started_us  # wall clock
        self.started_ns = started_ns  # monotonic
        # identify
        self.identity: KeyIdentity | None = None
        self.agent = self.session = self.user = self.channel = self.priority = self.trace_id = self.peer = ""
        self.tags: dict[str, str] = {}
        # admit, reserve
        self.admitted: object = False  # owned by stages/admit.py: True, or the agent as which it was let in
        self.ratelimit_requests: RateLimit | None = None
        self.ratelimit_tokens: RateLimit | None = None
        # decode, guard
        self.known: Known | None = None  # the same body came before
        self.view: RequestView | None = None
        self.output_ceiling: int | None = None  # the tenant's, where the request names none: written into the body
        # route
        self.route: RouteEntry | None = None
        self.candidates: tuple[Candidate, ...] = ()
        self.deadline = 0.0  # monotonic seconds
        self.patience = 1.0  # the client's own timeout as a share of the route's; shortens the waits within it
        # reserve, cache
        self.reservation: object | None = None  # owned by stages/reserve.py
        self.shortage: Callable[[], Awaitable[None]] | None = None  # a refusal that more of a shared limit may lift
        self.refilled = 0  # one bit for each kind of limit for which it has waited once
        self.cache = CacheState.BYPASS
        self.cache_ttl_s = 0
        self.parts: object | None = None  # of an embeddings request, owned by transports/cache_items.py
        self.request_cache: object | None = None  # parsed Cache-Control of the request, owned by transports/cache.py
        # upstream
        self.attempts: list[AttemptRecord] = []
        self.waited_ns = 0  # spent waiting for upstreams or the client, not our overhead
        # pipeline, settlement
        self.entered = 0
        self.responding = self.answered = self.settled = self.client_gone = self.aborted = False
        self.reply: Reply | None = None
        self.outcome = Outcome.INTERNAL
        self.error_code = self.price_version = self.fell_back = self.quota_warning = ""
        self.status = self.first_token_us = self.response_bytes = 0
        self.tokens: Tokens = NO_TOKENS
        self.cost_nanousd = self.saved_nanousd = 0
        self.cost_state = CostState.FINAL


class Stage(Protocol):
    """One decision about a call. Never awaits, never blocks."""

    name: ClassVar[str]

    def enter(self, call: Call) -> Reply | None:
        """None: go on. A Reply: the call ends here with it."""
        ...


@runtime_checkable
class TakingStage(Stage, Protocol):
    """A stage that takes something for a call, and gives it back."""

    def leave(self, call: Call) -> None:
        """Undo or settle; once for each stage that was entered without a refusal, in reverse order."""
        ...


class Transport(Protocol):
    """One way to get a reply. It waits; it makes no policy."""

    async def send(self, call: Call) -> Reply:
        """The reply, complete or as an open stream. Cancelling it cancels the upstream work."""
        ...

    async def aclose(self) -> None:
        """Gives up what it holds; safe to call twice."""
        ...

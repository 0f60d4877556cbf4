"""One try on one deployment: what it carries while it runs, how it fails, and the record it leaves."""

from __future__ import annotations

import time
from typing import Protocol

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Item, Tokens
from controlplane.contract.records import AttemptError, AttemptRecord, CostState
from controlplane.contract.snapshot import Deployment
from proxy import meter
from proxy.call import Call, Reply
from proxy.dialects.dialect import RequestView
from proxy.dialects.hosted_tools import SEARCHED, Used
from proxy.dialects.openai_media import Drawn
from proxy.dialects.operations import OPERATIONS, dialect_of
from proxy.dialects.reported_cost import out_of_bounds
from proxy.load import DeploymentLoad
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate

_MISSING = frozenset((401, 403))
_SAID_CHARS_MAX = 500  # of an upstream's own error message, where we quote it
# About our account there, so none of the client's business: such a message often quotes the credential.
_OURS = frozenset((AttemptError.AUTH, AttemptError.QUOTA))
_QUOTA_CODES = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"))
# The request's own fault, as upstreams say it in a stream that they have begun with status 200.
_REQUESTS_OWN = frozenset(
    (
        "invalid_request_error", "context_length_exceeded", "string_above_max_length", "request_too_large", "invalid_prompt",
        "content_policy_violation", "content_filter", "moderation_blocked", "image_content_policy_violation", "invalid_image",
        "invalid_image_format", "invalid_image_mode", "invalid_image_url", "invalid_base64_image", "image_parse_error",
        "image_too_large", "image_too_small", "image_file_too_large", "empty_image_file", "unsupported_image_media_type",
    )
)  # fmt: skip
_SAID_NO = frozenset(
    (AttemptError.STATUS_429, AttemptError.STATUS_5XX, AttemptError.AUTH, AttemptError.QUOTA, AttemptError.REJECTED)
)
_UNBILLED = _SAID_NO | {AttemptError.CONNECT, AttemptError.FIRST_BYTE_TIMEOUT}


class AttemptFailed(Exception):
    """A try that brought no usable reply; carries the reason, and the upstream's own error reply if it sent one.

    Its text may be shown to the client, so it names no host, credential or anything else of ours; detail is for the operator.
    """

    def __init__(
        self,
        error: AttemptError,
        message: str,
        *,
        detail: str = "",
        reply: Reply | None = None,
        retry_after_s: float = 0.0,
        unsent: bool = False,
    ) -> None:
        """unsent: it ended with us, so it says nothing about the deployment."""
        super().__init__(message)
        self.error = error
        self.detail = detail or message
        self.reply = reply
        self.retry_after_s = retry_after_s
        self.unsent = unsent or (reply is not None and reply.refusal is not None)


def failed_by(
    error: AttemptError, message: str, *, said: str, reply: Reply | None = None, retry_after_s: float = 0.0
) -> AttemptFailed:
    """A try that the upstream ended with an error of its own, in its words where the client may read them."""
    said = said[:_SAID_CHARS_MAX]
    text = said if said and error not in _OURS else message
    return AttemptFailed(error, text, detail=f"{message}: {said}", reply=reply, retry_after_s=retry_after_s)


class Judge(Protocol):
    """Who wants to know how a try ended: the breaker of its deployment."""

    def report(self, error: AttemptError, *, latency_s: float, probe: bool) -> None:
        """Counts one finished try."""
        ...


class AttemptTransport(Protocol):
    """One way to make a try."""

    async def send(self, attempt: Attempt) -> Reply:
        """A complete reply, or a stream whose first content has come. Raises AttemptFailed."""
        ...

    async def aclose(self) -> None:
        """Gives up what it holds; safe to call twice."""
        ...


class Attempt:
    """One try. It is finished exactly once, whatever happens, and then leaves its record with the call."""

    __slots__ = (
        "_finished", "_metrics", "_passed", "_tokens_per_s", "call", "candidate", "drawn", "events", "first_byte_timeout_s", "first_token_us",
        "forced", "heard_us", "judge", "load", "patient", "probe", "reply", "reported_nanousd",
        "reported_ratio_max", "service_class", "started_ns", "started_us", "status", "tokens", "tokens_in", "used",
    )  # fmt: skip

    def __init__(self, call: Call, candidate: Candidate, *, metrics: ProxyMetrics, tokens_per_s: float) -> None:
        """tokens_per_s: the assumed speed of an upstream that never said what it used."""
        self._finished = False
        self._passed = False
        self._metrics = metrics
        self._tokens_per_s = tokens_per_s
        self.call = call
        self.candidate = candidate
        self.started_us = time.time_ns() // 1000
        self.started_ns = time.monotonic_ns()
        self.status = 0
        self.first_token_us = 0
        self.events = 0  # content seen, in about as many pieces as tokens
        self.tokens: Tokens | None = None  # None: the upstream has not said
        self.tokens_in: Tokens | None = None  # of a stream that broke off: what the upstream had said of the input
        self.heard_us: int | None = None  # sound that the upstream heard, where it says so
        self.reply: Reply | None = None
        self.reported_nanousd: int | None = None  # what the upstream says that it costs
        self.reported_ratio_max = 0.0  # how far that may be from our own figure
        self.probe = False
        self.service_class = ""  # the upstream's name for how it served; empty: the standard one
        self.used: Used = ()  # what the upstream's own tools did for this answer
        self.drawn: Drawn | None = None  # what it says of its pictures
        self.judge: Judge | None = None  # None: the try has not begun
        self.load: DeploymentLoad | None = None  # where it takes up a place, if anybody counts them
        self.forced = False  # goes past an open breaker
        self.patient = False  # waits where all places are taken
        self.first_byte_timeout_s = candidate.upstream.first_byte_timeout_s

    def restart(self) -> None:
        """The try begins only now: until here it has waited for a place."""
        self.started_us = time.time_ns() // 1000
        self.started_ns = time.monotonic_ns()

    def content_seen(self) -> None:
        """The first content has come: from here on the call is committed to this try.

        A probe has passed with it: the stream may go on for minutes, and a deployment that has recovered is not kept shut for so long.
        """
        now_ns = time.monotonic_ns()
        self.first_token_us = (now_ns - self.started_ns) // 1000
        if self.probe and self.judge is not None:
            self.judge.report(AttemptError.NONE, latency_s=self.first_token_us / 1e6, probe=True)
            self._passed = True
        self.call.first_token_us = (now_ns - self.call.started_ns) // 1000

    def fail(self, failure: AttemptFailed) -> None:
        """Ends the try as it failed; its judge hears only of what says something about the deployment."""
        if failure.unsent and self.judge is not None:
            self.judge.report(AttemptError.CANCELLED, latency_s=0.0, probe=self.probe)
            self.judge = None
        self.finish(failure.error)

    def finish(self, error: AttemptError) -> None:
        """Ends the try; safe to call again, only the first time counts."""
        if self._finished:
            return
        self._finished = True
        elapsed_ns = time.monotonic_ns() - self.started_ns
        deployment = self.candidate.deployment
        tokens, known = self.tokens, True
        if tokens is None:
            tokens, known = self._unreported(error, elapsed_ns / 1e9)
        items: tuple[Item, ...] = ()
        unit = "" if known else OPERATIONS[self.call.operation].unit
        if unit:
            tokens, items, cost, state, version = self._by_unit(unit, error)
        else:
            cost, state, version = meter.priced(tokens, deployment, service_class=self.service_class)
            if not known and state is CostState.FINAL:
                state = CostState.UNPRICED if deployment.price is None else CostState.ESTIMATED
        if self.candidate.searches and tokens.total and not self.used:
            self.used = SEARCHED
        if self.used:
            cost, state, items = meter.with_tools(cost, state, self.used, deployment.price)
        if items:
            self._metrics.items_found(items)
        record = AttemptRecord(
            deployment=deployment.id,
            upstream=deployment.upstream,
            model=deployment.model,
            started_us=self.started_us,
            latency_us=elapsed_ns // 1000,
            first_token_us=self.first_token_us,
            status=self.status,
            error=error,
            tokens=tokens,
            cost_nanousd=cost,
            cost_state=state,
            price_version=version,
            probe=self.probe,
            reported_nanousd=self.reported_nanousd,
            items=items,
        )
        self.call.attempts.append(record)
        self._metrics.attempt_finished(record)
        if self.reported_nanousd is not None:
            self._compare(self.reported_nanousd, cost, state)
        if self.reply is not None:
            self.reply.tokens = tokens
            self.reply.usage_known = known
            self.reply.list_nanousd = cost if known and not self.service_class and not items else None
        if self.judge is not None:
            latency_us = self.first_token_us or record.latency_us
            self.judge.report(error, latency_s=latency_us / 1e6, probe=self.probe and not self._passed)
        if self.load is not None:
            latency_us = self.first_token_us or record.latency_us
            self.load.finished(error, latency_s=latency_us / 1e6, output_tokens=tokens.total_output)

    def _by_unit(self, unit: str, error: AttemptError) -> tuple[Tokens, tuple[Item, ...], int, CostState, str]:
        """Tokens, items, cost, state and price version of a try that counted no tokens, but is billed by something else."""
        price = self.candidate.deployment.price
        item = meter.by_unit(self.call, price, unit=unit, heard_us=self.heard_us, drawn=self.drawn)
        version = "" if price is None else price.version
        if item is None:
            return NO_TOKENS, (), 0, CostState.UNPRICED, version
        state = CostState.FINAL if error is AttemptError.NONE else CostState.ESTIMATED
        return NO_TOKENS, (item,), *meter.with_items(0, state, (item,)), version

    def _compare(self, reported: int, own: int, state: CostState) -> None:
        """Counts a cost that the upstream names and that cannot be right, if ours is."""
        if state is CostState.FINAL and out_of_bounds(reported, own, ratio_max=self.reported_ratio_max):
            self._metrics.bound_hit("reported_cost_ratio_max")

    def _unreported(self, error: AttemptError, elapsed_s: float) -> tuple[Tokens, bool]:
        """The tokens of a try of which the upstream did not say what it used, and whether they are known all the same."""
        redirected = 300 <= self.status < 400  # nobody has worked on it
        worked = self.first_token_us if error in _SAID_NO else self.events  # an error in a stream is an event too
        if (error in _UNBILLED or redirected) and not worked:
            return NO_TOKENS, True
        view = self.call.view
        if view is not None and view.background and self.reply is not None:
            return NO_TOKENS, False  # it goes on there, and is booked when it is finished
        estimate = meter.estimated_tokens(
            self.call,
            self.candidate.deployment,
            events=self.events,
            elapsed_s=elapsed_s,
            tokens_per_s=self._tokens_per_s,
            tokens_in=self.tokens_in,
        )
        return estimate, False


def bounded(view: RequestView, ceiling: int | None, deployment: Deployment) -> tuple[RequestView, int | None]:
    """A request's own ceiling and ours for it, as they can be asked for in another language than the client's.

    A client whose protocol demands a ceiling names that of the models it knows, so more than this model can give means all of it.
    """
    most, asked = deployment.output_tokens_max, view.max_output_tokens
    if most is None:
        return view, ceiling
    if asked is not None and asked > most:
        view = msgspec.structs.replace(view, max_output_tokens=most)
    return view, None if ceiling is None else min(ceiling, most)


def error_of(status: int, code: str) -> AttemptError:
    """What an upstream's error status means for its deployment; code: of the error body, may be empty."""
    if status == 402 or (status in (400, 429) and code in _QUOTA_CODES):
        return AttemptError.QUOTA
    if status == 429:
        return AttemptError.STATUS_429
    if status in _MISSING:
        return AttemptError.AUTH
    if status >= 500 or status == 408:
        return AttemptError.STATUS_5XX
    if status >= 400:
        return AttemptError.REJECTED
    return AttemptError.NONE if status >= 200 and status < 300 else AttemptError.MALFORMED


def error_of_event(event: bytes, operation: str) -> tuple[AttemptError, str, str]:
    """What an error event inside a stream means, its code and its message; the event is in the words of the client's operation."""
    code, message = dialect_of(operation).read_error(data_of(event))
    if code in _QUOTA_CODES:
        return AttemptError.QUOTA, code, message
    if "rate_limit" in code or code == "429":
        return AttemptError.STATUS_429, code, message
    if code in _REQUESTS_OWN:
        return AttemptError.REJECTED, code, message
    return AttemptError.STATUS_5XX, code, message


def data_of(event: bytes) -> bytes:
    """What an event of one line of data carries."""
    return event.strip().partition(b"data:")[2].strip()

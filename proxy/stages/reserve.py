"""Holds what a call may cost at worst against its tenant's token limit and budgets, until the truth is known.

The worst case is an upper bound, not a guess, or a budget could be overspent:

- Input: the bytes of the body, plus a fixed count for each image. A token of text is at least one byte of UTF-8 (the tokenizers are byte-level),
  JSON escapes only lengthen text, and what a provider's chat template adds for each message or tool (a few tokens) is less than the
  JSON that a message or tool needs (`{"role":"user","content":""}` is 28 bytes). Audio comes inside the body. An image is a
  short URL, hence its own count from settings.
- What it builds on (`previous_response_id`, `conversation`, items kept at the upstream), which is billed as input: as it was written down with its
  owner (`proxy.transports.chains`). One look-up, which the pipeline waits for.
- Output: the client's own ceiling for an answer, else the tenant's, which the proxy writes into the body, else the deployment's; times
  the answers asked for.
- Money: both at the dearest price of their direction, and of all candidates the dearest. A model that an operator gave no price is not stopped by
  money. For what is passed through the figure of its upstream is held, where an operator has set one (`passthrough_usd_per_call`); without one, what
  has no known price may cost anything, and one nano-USD is held for it, so that it stops where nothing is left.

Who is over a ceiling is not always refused. First the cache is asked: a stored answer costs nothing. Memory is asked at once; where a tier
below may have one, the pipeline waits for it (`Call.shortage`) and comes back once. Then a quota may downgrade the call to another model, or
the route may name other models for this case; what they may cost is held instead. A soft quota lets the call pass with a warning. With a Redis the
ceiling on this worker is what it has leased; then a call that finds it too small says so, in the same way, and the pipeline asks for more
once before the refusal counts, once before the warning does, and once for each model that is to serve instead.

What is outside the bound: documents that a request names by file id, and attempts that fail after they have begun to cost. A call
that costs more than its reservation is booked in full and counted (`Ledger.exceeded_total`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

from controlplane.contract.pricing import Price, dearest_nanousd, picture_nanousd_max, worst_case_nanousd
from controlplane.contract.snapshot import QuotaAction, TenantPolicy, Unpriced
from proxy.call import Call, Reply
from proxy.dialects.dialect import RequestView
from proxy.dialects.hosted_request import HOSTING, hosted_nanousd_max, read_hosted
from proxy.dialects.operations import OPERATIONS
from proxy.dialects.service_class import may_ask_for_one
from proxy.ledger import Ledger, Refused, Reservation
from proxy.metrics import ProxyMetrics
from proxy.quotas.account import REQUESTS, TOKENS, Line, left_of, shown
from proxy.quotas.plan import Plan, Who
from proxy.refusals import NOT_READY, refuse
from proxy.runtime import Candidate, RouteEntry
from proxy.stages.counted import hold_request
from proxy.stages.over import refuse_over, refuse_unpriced

SOUND_BYTES_PER_S_MIN = 500  # no codec that is understood afterwards needs less
SOUND_TOKENS_MAX = 16_000  # what no setting says otherwise
_CHANGES_MAX = 5  # of the model, for one call
_CACHED_BYTES_MIN = 1_024  # providers cache prompts of so many tokens, and a token is a byte at least
_WAITED = 4  # for larger leases
_LOOKED = 8  # for a stored answer below memory
_CHAINED = 16  # for the size of what it builds on
_WARNED = 32  # for larger leases of soft quotas
_ELSEWHERE = 64  # for larger leases of a model that is to serve instead: a bit for each, from here on
_PASSTHROUGH = "passthrough"
_TAG = "heph-quota"  # on the record of a call that passed a soft quota or was downgraded

Stored = Callable[[Call], Reply | None]
Deeper = Callable[[Call], Callable[[], Awaitable[None]] | None]
Chain = Callable[[Call], Callable[[], Awaitable[None]]]
Order = Callable[[Call, RouteEntry], tuple[Candidate, ...]]
Refill = Callable[[tuple[tuple[Line, int], ...]], Awaitable[None]]


class Reserve:
    """The stage between a call and its tenant's money."""

    name: ClassVar[str] = "reserve"

    def __init__(
        self,
        ledger: Ledger,
        *,
        image_tokens_max: int,
        sound_tokens_max: int = SOUND_TOKENS_MAX,
        metrics: ProxyMetrics | None = None,
        stored: Stored = lambda call: None,  # noqa: ARG005 - a cache with nothing in it
        deeper: Deeper = lambda call: None,  # noqa: ARG005 - no tier below memory
        chain: Chain | None = None,
        order: Order = lambda call, entry: entry.plain or (),  # noqa: ARG005 - a route that leaves nothing to decide
        refill: Refill | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """image_tokens_max, sound_tokens_max: reserved for each image and each file with sound. now_us: the wall clock, Unix microseconds.

        stored: an answer from the cache's memory. deeper: what brings one up from the tiers below, after `stored`; None: nothing can.
        chain: what finds out how much a call builds on; None: nothing is kept here.
        order: the candidates of another route. refill: asks Redis for larger leases; None: there is no Redis.
        """
        self._ledger = ledger
        self._image_tokens_max = image_tokens_max
        self._sound_tokens_max = sound_tokens_max
        self._metrics = metrics
        self._stored = stored
        self._deeper = deeper
        self._chain = chain
        self._order = order
        self._refill = refill
        self._now_us = now_us

    def enter(self, call: Call) -> Reply | None:
        """Reserves where there is a limit. Candidates without a price are taken out where the tenant does not allow them."""
        identity, view = call.identity, call.view
        if identity is None or view is None:
            return None
        policy = identity.tenant
        if view.free:
            return self._count(call, view, policy)
        if policy.unpriced is Unpriced.REFUSE:
            refusal = _keep_priced(call, policy, view)
            if refusal is not None:
                return refusal
        now_us = self._now_us()
        plan = self._ledger.plan(policy, now_us=now_us)
        if plan.free:
            return None
        if view.continues and self._chain is not None and not call.refilled & _CHAINED:
            call.refilled |= _CHAINED
            call.shortage = self._chain(call)
            return refuse(NOT_READY, "what the request builds on was not looked up")
        held = self._hold(call, view, plan, now_us)
        if isinstance(held, Refused):
            return self._over(call, view, plan, held, now_us)
        if held.warnings and not call.refilled & _WAITED and self._waits(call, _WARNED):  # else it keeps what it has
            self._ledger.release(held)
            return refuse_over(policy, held.warnings[0], now_us=now_us)
        self._keep(call, held)
        return None

    def leave(self, call: Call) -> None:
        """Gives the reservation back. The call's record, booked right after with no `await` between, settles the truth."""
        held, call.reservation = call.reservation, None
        if isinstance(held, Reservation):
            if call.cost_nanousd > held.nanousd or call.tokens.total > held.tokens:
                self._ledger.exceeded_total += 1
            self._ledger.release(held)

    def _count(self, call: Call, view: RequestView, policy: TenantPolicy) -> Reply | None:
        """What costs nothing is a request all the same, and nothing besides."""
        now_us = self._now_us()
        plan = self._ledger.plan(policy, now_us=now_us)
        if not plan.counts_requests:
            return None
        who = _who(call, view) if plan.rules else None
        held = hold_request(self._ledger, self._refill, call, plan, who, now_us=now_us)
        if isinstance(held, Reply):
            return held
        call.reservation = held
        return None

    def _hold(
        self, call: Call, view: RequestView, plan: Plan, now_us: int, *, passed: tuple[str, ...] = ()
    ) -> Reservation | Refused:
        """Tries to hold the worst case of the call as it is routed now."""
        who = _who(call, view) if plan.rules else None
        tokens, nanousd = worst_case(
            call, view, image_tokens_max=self._image_tokens_max, sound_tokens_max=self._sound_tokens_max
        )
        accounts, lines = (plan.own, plan.lines) if who is None else self._ledger.meets(plan.policy, who, now_us=now_us)
        held = self._ledger.hold(accounts, lines, tokens=tokens, nanousd=nanousd, now_us=now_us, passed=passed)
        if lines is plan.lines:
            _show_limits(call, plan.shown_tokens, plan.shown_requests, now_us)
        else:
            _show_limits(call, shown(lines, TOKENS), shown(lines, REQUESTS), now_us)
        if self._refill is not None and any(line.lease is not None and line.lease.degraded for line in lines):
            call.quota_warning = "degraded"
        return held

    def _keep(self, call: Call, held: Reservation) -> None:
        call.reservation = held
        if held.warnings:
            self._mark(call, "soft", tuple(dict.fromkeys(one.scope for one in held.warnings)))

    def _over(self, call: Call, view: RequestView, plan: Plan, refused: Refused, now_us: int) -> Reply | None:
        """What a call gets instead, when a ceiling is in its way: a larger lease, a stored answer, another model, or a refusal."""
        if self._waits(call, _WAITED):
            return refuse_over(plan.policy, refused, now_us=now_us)
        reply = self._stored(call)
        if reply is not None:
            return reply
        if not call.refilled & _LOOKED:
            call.refilled |= _LOOKED
            call.shortage = self._deeper(call)
            if call.shortage is not None:
                return refuse_over(plan.policy, refused, now_us=now_us)
        return self._elsewhere(call, view, plan, refused, now_us)

    def _elsewhere(self, call: Call, view: RequestView, plan: Plan, refused: Refused, now_us: int) -> Reply | None:
        """Sends the call to the models that a quota or its route names for this case, until one has room; or refuses it."""
        asked, candidates, why = call.route, call.candidates, ""
        passed: tuple[str, ...] = ()
        fallbacks = () if asked is None else asked.route.fallbacks.budget
        first = refused
        for change in range(_CHANGES_MAX):
            if refused.action is QuotaAction.DOWNGRADE:
                alias, why = refused.to, "downgraded"
                passed += (refused.scope,)
            elif fallbacks:
                alias, why, fallbacks = fallbacks[0], "fell back", fallbacks[1:]
            else:
                break
            if not self._reroute(call, view, plan.policy, alias):
                continue
            held = self._hold(call, view, plan, now_us, passed=passed)
            bit = _ELSEWHERE << change
            over, once = (held, bit) if isinstance(held, Refused) else (next(iter(held.warnings), None), _WARNED)
            if over is not None and not call.refilled & bit and self._waits(call, once):
                if isinstance(held, Reservation):
                    self._ledger.release(held)
                call.route, call.candidates = asked, candidates  # from where it is sent here once more
                return refuse_over(plan.policy, over, now_us=now_us)
            if isinstance(held, Reservation):
                self._changed(call, why, first, held)
                return None
            refused = held
        if self._metrics is not None:
            self._metrics.bound_hit("quota_hard")
        return refuse_over(plan.policy, refused, now_us=now_us)

    def _waits(self, call: Call, once: int) -> bool:
        """Whether larger leases may change what the ledger has just said, and are waited for: once for each bit."""
        short = self._ledger.short
        if not short or self._refill is None or call.refilled & once:
            return False
        call.refilled |= once
        call.shortage = partial(self._refill, short)
        return True

    def _changed(self, call: Call, why: str, first: Refused, held: Reservation) -> None:
        """Another model serves: its answer is nobody's who asks for the first one."""
        call.fell_back = "budget"
        self._keep(call, held)
        self._mark(call, why, (first.scope,))
        if self._metrics is not None:
            self._metrics.fell_back("budget")

    def _reroute(self, call: Call, view: RequestView, policy: TenantPolicy, alias: str) -> bool:
        """Sends the call to another model, if that one can serve it."""
        entry, identity = call.runtime.routes.get(alias), call.identity
        if identity is not None and identity.models is not None and alias not in identity.models:
            return False
        if entry is not None and call.operation not in entry.serves:
            entry = entry.narrowed.get(call.operation)
        if entry is None or not entry.groups:
            return False
        call.route, call.candidates = entry, self._order(call, entry)
        return policy.unpriced is not Unpriced.REFUSE or _keep_priced(call, policy, view) is None

    def _mark(self, call: Call, how: str, quotas: tuple[str, ...]) -> None:
        """The same word in the answer's header, in the record's tags and in the metrics."""
        warning = f"{how} {', '.join(quotas)}"
        call.quota_warning = f"{call.quota_warning}; {warning}" if call.quota_warning else warning
        call.tags = call.tags | {_TAG: call.quota_warning}
        if self._metrics is not None:
            self._metrics.bound_hit("quota_soft" if how == "soft" else "quota_downgrade")


def worst_case(
    call: Call, view: RequestView, *, image_tokens_max: int, sound_tokens_max: int = SOUND_TOKENS_MAX
) -> tuple[int, int]:
    """The most tokens and nano-USD that one answer to this request can need at any of its candidates.

    Candidates without a price count with their tokens alone; what is passed through, with one nano-USD too.
    """
    files = view.image_parts * image_tokens_max + view.sound_parts * sound_tokens_max
    tokens_in = len(call.body) - view.file_bytes + files
    if view.continues:
        tokens_in += getattr(call, "context_tokens", 0)
    ceiling = call.output_ceiling if view.max_output_tokens is None else view.max_output_tokens
    unit = OPERATIONS[call.operation].unit
    hosted = read_hosted(call.body) if call.operation in HOSTING else None
    tokens_out_max = nanousd_max = nanousd_min = 0
    route = call.route
    spares = () if route is None else route.spares
    for candidate in (*call.candidates, *spares) if spares else call.candidates:  # wherever the call may end
        deployment, nanousd = candidate.deployment, 0
        tokens_out = (deployment.max_output_tokens if ceiling is None else ceiling) * view.n
        if tokens_out > tokens_out_max:
            tokens_out_max = tokens_out
        if candidate.dearest is not None and not unit and not hosted:
            nanousd = dearest_nanousd(tokens_in, tokens_out, candidate.dearest)
        elif deployment.price is not None:
            price = deployment.price
            nanousd = worst_case_nanousd(
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                price=price,
                any_class=bool(price.service) and may_ask_for_one(call.operation, call.body),
            )
            if unit:
                nanousd += _units_nanousd_max(unit, view, price)
            if hosted:
                nanousd += hosted_nanousd_max(hosted, price)
            if candidate.searches:
                nanousd += price.search or 0
        elif call.operation == _PASSTHROUGH:
            nanousd_min = 1
        if nanousd > nanousd_max:
            nanousd_max = nanousd
    if call.operation == _PASSTHROUGH and call.candidates:
        stated = call.candidates[0].upstream.passthrough_nanousd
        nanousd_max = nanousd_max if stated is None else stated
    at_once = 1 if route is None or route.route.hedge is None else 2  # tries that may run side by side
    return (tokens_in + tokens_out_max) * at_once, max(nanousd_max * at_once, nanousd_min)


def _units_nanousd_max(unit: str, view: RequestView, price: Price) -> int:
    """The most that what is not counted in tokens can cost."""
    if unit == "second":
        return (price.second or 0) * -(-view.file_bytes // SOUND_BYTES_PER_S_MIN)
    if unit == "character":
        return (price.character or 0) * view.characters
    return picture_nanousd_max(price, quality=view.quality, size=view.size) * view.n


def _who(call: Call, view: RequestView) -> Who:
    identity = call.identity
    model = view.model if call.route is None else call.route.route.alias
    return Who("" if identity is None else identity.key.id, call.agent, call.user, call.session, model, call.tags)


def _show_limits(call: Call, of_tokens: tuple[Line, ...], of_requests: tuple[Line, ...], now_us: int) -> None:
    """What the rate-limit headers say: the tightest ceiling of each kind."""
    if of_tokens:
        call.ratelimit_tokens = left_of(of_tokens, now_us)
    if of_requests:
        requests, door = left_of(of_requests, now_us), call.ratelimit_requests
        if requests is not None and (door is None or requests[1] < door[1]):
            call.ratelimit_requests = requests


def _keep_priced(call: Call, policy: TenantPolicy, view: RequestView) -> Reply | None:
    """Leaves only candidates whose price has every kind of token that the call can use; a refusal if there is none."""
    kinds = _kinds_possible(call.body, view)
    if call.operation in HOSTING:
        kinds += read_hosted(call.body).kinds
    lacking = ""
    priced: list[Candidate] = []
    for candidate in call.candidates:
        price = candidate.deployment.price
        needed = (*kinds, "search") if candidate.searches else kinds
        missing = None if price is None else _missing(price, needed)
        if price is not None and missing is None:
            priced.append(candidate)
        lacking = lacking or missing or ""
    if not priced:
        return refuse_unpriced(policy, view, lacking)
    call.candidates = tuple(priced)
    return None


def _missing(price: Price, kinds: tuple[str, ...]) -> str | None:
    return next((kind for kind in kinds if getattr(price, kind) is None), None)


def _kinds_possible(body: bytes, view: RequestView) -> tuple[str, ...]:
    """The kinds of token besides text in and out that an answer to this request may use, rather too many than too few."""
    kinds: list[str] = []
    if b'"cache_control"' in body:
        kinds += ["cache_read", "cache_write"]
        if b'"1h"' in body:
            kinds.append("cache_write_1h")
    elif len(body) - view.file_bytes >= _CACHED_BYTES_MIN and not view.free:
        kinds.append("cache_read")
    if view.sound_parts or b'"input_audio"' in body:
        kinds.append("audio_input")
    if b'"audio"' in body and b'"modalities"' in body:
        kinds.append("audio_output")
    return tuple(kinds)

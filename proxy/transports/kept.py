"""What upstreams keep under ids: responses, conversations, their items. Each is its tenant's alone, and is asked for where it was made.

All tenants of a deployment share one account at its upstream, where any id of that account can be read, continued, cancelled and deleted by whoever
names it. So no id leaves here that its tenant did not make through this proxy, and what is made is written down before the client can see
the end of it. An id that is unknown and one that is somebody else's get the same answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import CacheState, CostState
from proxy import meter, refusals
from proxy.call import Call, ChunkStream, Reply, StreamBroken, Transport
from proxy.dialects.dialect import Malformed
from proxy.dialects.events import data_of, events_in
from proxy.dialects.hosted_tools import used_in
from proxy.dialects.openai_usage import read_io_usage
from proxy.dialects.operations import OPERATIONS
from proxy.dialects.responses_state import Made, ids_given, made_by
from proxy.dialects.service_class import service_class_of
from proxy.ledger import SETTLES
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.runtime import Candidate, Runtime
from proxy.transports.chains import context_in, sizes_of
from proxy.transports.owners import Claim, Estimate, Owner, Owners, OwnersUnavailable, Unsettled
from proxy.transports.places import Places, pinned
from proxy.transports.promises import Promises
from proxy.view import read_view

KEPT_OPERATIONS = frozenset(name for name, row in OPERATIONS.items() if row.kept)
_ID = re.compile(r"[A-Za-z0-9_\-]{1,256}")
_NOUNS = {"previous_response_id": "Previous response", "conversation": "Conversation", "tools": "Container"}
_ENDED = frozenset(("completed", "incomplete", "cancelled", "failed"))
# What they list came from clients, under ids that those may have chosen: it makes nothing its reader's.
_LISTS = frozenset(("responses_input_items", "conversations_items_list", "conversations_items_get"))
_FULL_RETRY_S = 5.0
_CONFIRM_EVERY_S = 0.02
_UNPROMISED_MAX = 1_024
_GONE = 404
_LATE = (
    0.9  # of the time for which a response may be unsettled: then it is booked at an estimate, as long as it is known
)
_NAMED = frozenset(("responses_get", "responses_cancel", "responses_delete"))
_STORED = frozenset((CacheState.HIT, CacheState.STALE))


class Kept:
    """Holds every call on what upstreams keep against its owner, sends it there, and writes down what comes to be."""

    def __init__(
        self, inner: Transport, owners: Owners, settings: ProxySettings, metrics: ProxyMetrics, promises: Promises
    ) -> None:
        self._inner = inner
        self._owners = owners
        self._settings = settings
        self._metrics = metrics
        self._places: tuple[Runtime, Places] | None = None
        self.look: Callable[[Unsettled], Awaitable[None]] | None = None  # set by whoever settles what is unsettled
        self.promises = promises
        self.refused_total = 0  # ids that the tenant did not make
        self._claims: dict[str, tuple[Call, Unsettled]] = {}  # by call: what its record has the usage of
        self._doubtful: dict[str, Unsettled] = {}  # by call: claims of which nobody knows whether they were written
        self._confirming: asyncio.Task[None] | None = None
        self._unpromised: dict[str, None] = {}  # responses that could not be written down as unsettled
        self.estimated_total = 0  # responses in the background whose upstream never told what they used

    async def send(self, call: Call) -> Reply:
        """The reply of the deployment that holds what the call is about, or a refusal."""
        try:
            refused, owner = await (self._find(call) if OPERATIONS[call.operation].named else self._narrow(call))
        except Malformed as error:
            return refuse(refusals.MALFORMED, str(error), param=error.param)
        except OwnersUnavailable:
            message = "the proxy cannot look up right now whose these ids are; try again"
            return refuse(refusals.NOT_READY, message, retry_after_s=1.0)
        if refused is not None:
            return refused
        if owner is not None and owner.background and call.operation == "responses_delete" and self.look is not None:
            await self.look(_unsettled(call, call.path.rpartition("/")[2]))  # afterwards nobody could
        reply = await self._inner.send(call)
        if owner is not None and owner.background and _ends(call, reply):
            await self._shielded(self._write_off(call, call.path.removeprefix("/v1").split("/")[2]))
        if not 200 <= reply.status < 300 or reply.source != "upstream" or call.cache in _STORED:
            return reply
        owner = self._owner_of(call, reply, owner)
        if reply.stream is not None:
            reply.stream = stream = _KeptStream(self, call, reply, reply.stream, owner)
            try:
                await stream.begin()
            except BaseException:
                stream.close()
                raise
        elif call.operation.endswith("_delete"):
            await self._owners.forget(_tenant_of(call), [call.path.rpartition("/")[2]])
        else:
            await self.note(call, reply.body, owner)
        return reply

    async def aclose(self) -> None:
        """Closes the file of owners and the inner transport; safe to call twice."""
        await self._inner.aclose()
        confirming, self._confirming = self._confirming, None
        if confirming is not None:
            confirming.cancel()
            await asyncio.wait([confirming])
            await self.confirm()
        await self._owners.aclose()

    async def _narrow(self, call: Call) -> tuple[Reply | None, Owner | None]:
        """A new response: what it builds on must be its tenant's, and it goes where that is."""
        view, entry = call.view, call.route
        assert view is not None and entry is not None, "decode and route come first"  # noqa: S101, PT018
        if view.background:
            if self.promises.full:
                self._metrics.bound_hit("background_responses_max")
                message = "too many responses in the background are not finished; try again when some are"
                return refuse(refusals.OVERLOADED, message, retry_after_s=_FULL_RETRY_S), None
            call.route = pinned(entry, call.candidates)
        if not view.continues:
            return None, None
        refused, upstream = await self._upstream_of(call, view.continues)
        if refused is not None:
            return refused, None
        candidates = tuple(item for item in call.candidates if item.upstream.id == upstream)
        if not candidates:
            field = view.continues[0][0]
            message = f"`{field}` was made at an upstream that model `{view.model[:128]}` does not use now; go on with the model that made it"
            return refuse(refusals.MALFORMED, message, param=field), None
        call.candidates, call.route = candidates, pinned(entry, candidates)
        return None, None

    async def _find(self, call: Call) -> tuple[Reply | None, Owner | None]:
        """Something that is there already, by the ids of the path; or a new conversation, which needs a place."""
        call.view = view = read_view(call.operation, call.body)
        path = call.path.removeprefix("/v1")
        segments = path.split("/")[2:]
        if call.query.find(b"stream=true") >= 0:
            call.view = msgspec.structs.replace(view, stream=True)
        owner: Owner | None = None
        if segments:
            noun = "Response" if path.startswith("/responses") else "Conversation"
            if not all(_ID.fullmatch(segment) for segment in segments):
                return self._missing(noun, segments[0], None), None
            owner = (await self._owners.find(_tenant_of(call), segments[:1])).get(segments[0])
            candidate = None if owner is None else self._placed(call.runtime).at(owner, call.operation)
            if owner is None or candidate is None:
                return self._missing(noun, segments[0], None), None
        else:
            candidate = self._home(call)
            if candidate is None:
                message = "no model that this key may use is at an upstream that keeps conversations"
                return refuse(refusals.NO_ROUTE, message), None
        if view.continues:
            refused, upstream = await self._upstream_of(call, view.continues)
            if refused is None and upstream != candidate.upstream.id:
                refused = refuse(refusals.MALFORMED, "`items` names items of another upstream", param="items")
            if refused is not None:
                return refused, None
        call.target = path.encode() + (b"?" + call.query if call.query else b"")
        entry = self._placed(call.runtime).entries[candidate.deployment.id]
        call.candidates, call.route = (candidate,), pinned(entry, (candidate,))
        call.deadline = time.monotonic() + min(entry.route.timeout_s, self._settings.timeout_s_max)
        return None, owner

    async def _upstream_of(self, call: Call, named: Sequence[tuple[str, str]]) -> tuple[Reply | None, str]:
        """Where all that is named is kept; a refusal if any of it is not this tenant's, or if it is not in one place."""
        owners = await self._owners.find(_tenant_of(call), [name for _, name in named])
        for field, name in named:
            if name not in owners:
                return self._missing(_NOUNS.get(field, "Item"), name, field), ""
        call.context_tokens = context_in(owners.values())
        upstreams = {owner.upstream for owner in owners.values()}
        if len(upstreams) > 1:
            field = named[0][0]
            return refuse(
                refusals.MALFORMED, "the request builds on things kept at different upstreams", param=field
            ), ""
        return None, upstreams.pop()

    def _missing(self, noun: str, name: str, field: str | None) -> Reply:
        """The one answer for what is not there and what is somebody else's, in OpenAI's words."""
        self.refused_total += 1
        shown = name[:128] if name.isprintable() else "?"
        return refuse(refusals.NOT_FOUND, f"{noun} with id '{shown}' not found.", param=field)

    def _home(self, call: Call) -> Candidate | None:
        """Where a new conversation goes: to the model that `x-heph-model` names, else to the first that keeps conversations."""
        identity = call.identity
        allowed = None if identity is None else identity.models
        wanted = call.headers.get(b"x-heph-model", b"").decode("latin-1")
        for alias, entry in call.runtime.routes.items():
            if (wanted and alias != wanted) or (allowed is not None and alias not in allowed):
                continue
            for group in entry.groups:
                for candidate in group:
                    if candidate.endpoint is not None and call.operation in candidate.endpoint.wires:
                        return candidate
        return None

    def _owner_of(self, call: Call, reply: Reply, owner: Owner | None) -> Owner:
        """Who holds what this reply speaks of: whoever held it before, else the deployment that answered."""
        if owner is not None:
            return owner
        place = self._placed(call.runtime).candidates.get(reply.deployment)
        background = call.view is not None and call.view.background
        return Owner("" if place is None else place.upstream.id, reply.deployment, background)

    def _placed(self, runtime: Runtime) -> Places:
        if self._places is None or self._places[0] is not runtime:
            self._places = (runtime, Places(runtime))
        return self._places[1]

    async def note(self, call: Call, said: bytes, owner: Owner) -> None:
        """Writes down what an answer or an event of one says. A client that leaves meanwhile makes nothing nobody's, and nothing free."""
        made = made_by(said, kept=_is_kept(call))
        if call.operation in _LISTS:
            return
        if call.operation == "conversations_items_create" and (given := ids_given(call.body)):
            made = msgspec.structs.replace(made, ids=tuple(name for name in made.ids if name not in given))
        await self._shielded(self._remember(call, made, owner, said))

    async def _shielded(self, work: Coroutine[None, None, None]) -> None:
        """Does what must be done whether or not the client is there."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])  # bounded as each look-up is; the call is settled behind it
            raise

    async def _remember(self, call: Call, made: Made, owner: Owner, said: bytes) -> None:
        """Writes down what was made, and books what a response used that was made in the background."""
        tokens = read_io_usage(made.usage) if bytes(made.usage) else None
        if made.ids:
            output_max = 0 if tokens is not None or call.operation != "responses" else self._output_max(call, owner)
            sizes = sizes_of(call, made, owner, tokens, output_max=output_max)
            await self._owners.keep(_tenant_of(call), tuple(sizes), owner, sizes=sizes)
        if not (owner.background and made.id):
            return
        free = call.view is not None and call.view.free  # what it looks at was made by another call
        if made.status not in _ENDED:
            await self._unfinished(call, made.id, owner)
        elif tokens is None and made.status != "failed" and free:
            await self._write_off(call, made.id)
        elif await self._is_to_bill(call, made.id, free=free) and tokens is not None and free:
            self._bill(call, said, tokens)

    async def _unfinished(self, call: Call, name: str, owner: Owner) -> None:
        """A response that still runs: its maker promises to settle it, and whoever looks at it late writes it off."""
        if call.operation != "responses":
            await self._write_off(call, name, late=True)
            return
        item = msgspec.structs.replace(_unsettled(call, name), estimate=self._estimate(call, owner))
        if not await self._owners.promise(item) and len(self._unpromised) < _UNPROMISED_MAX:
            self._unpromised[name] = None
        self.promises.hold(call, item)

    async def _is_to_bill(self, call: Call, name: str, *, free: bool) -> bool:
        """Whether this call is the one whose record has what the response used; if not, it costs nothing."""
        unpromised = name in self._unpromised
        self._unpromised.pop(name, None)
        try:
            first = await self._claim(call, name)
            self.promises.settled(_unsettled(call, name))
        except OwnersUnavailable:
            self._metrics.bound_hit("state_wait_s")
            if not free and not unpromised:
                _bill_nothing(call)  # it is looked at later, and booked then
            return False
        if not first and not free:
            _bill_nothing(call)  # somebody who looked at it has booked it
        return first

    def _bill(self, call: Call, said: bytes, tokens: Tokens) -> None:
        """Puts what a response used on the last try of the call that found it finished."""
        place = self._placed(call.runtime).candidates.get(call.attempts[-1].deployment) if call.attempts else None
        if place is None:
            return
        cost, state, version = meter.priced(tokens, place.deployment, service_class=service_class_of(said))
        cost, state, items = meter.with_tools(cost, state, used_in(said), place.deployment.price)
        self._metrics.items_found(items)
        call.attempts[-1] = msgspec.structs.replace(
            call.attempts[-1], tokens=tokens, cost_nanousd=cost, cost_state=state, price_version=version, items=items
        )
        self._metrics.tokens_found(tokens)

    async def _claim(self, call: Call, name: str) -> bool:
        """Whether this call's record is to have what a response used. Raises OwnersUnavailable."""
        claim = Claim(self.promises.worker, self.promises.life, call.call_id)
        item = msgspec.structs.replace(_unsettled(call, name), claim=claim)
        try:
            first = await self._owners.settle(item, claim)
        except OwnersUnavailable:
            if len(self._doubtful) < _UNPROMISED_MAX:
                self._doubtful[call.call_id] = item
            self._begin_confirming()
            raise
        if first:
            call.tags = call.tags | {SETTLES: name}
            self._claims[call.call_id] = (call, item)
            self._begin_confirming()
        return first

    def _begin_confirming(self) -> None:
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.get_running_loop().create_task(self._confirm(), name="kept-claims")

    async def _confirm(self) -> None:
        """Ends claims as soon as their records are in the spool, for as long as there are any."""
        while self._claims or self._doubtful:
            await asyncio.sleep(_CONFIRM_EVERY_S)
            await self.confirm()

    async def confirm(self) -> None:
        """One round of that: a record is there as soon as its call is settled, with no `await` in between."""
        try:
            for call_id, (call, item) in list(self._claims.items()):
                if call.settled:
                    await self._owners.confirm(item)
                    self._claims.pop(call_id, None)
            for call_id, item in list(self._doubtful.items()):
                await self._owners.withdraw(item)
                self._doubtful.pop(call_id, None)
        except OwnersUnavailable:
            return  # later; and a next life knows from its ledger

    def _estimate(self, call: Call, owner: Owner) -> Estimate | None:
        """What to book for a response if nobody will ever say more: its input by its size, at most the output that it may have."""
        view = call.view
        if view is None:
            return None
        tokens_in = (len(call.body) - view.file_bytes) // meter.BYTES_PER_TOKEN + getattr(call, "context_tokens", 0)
        return Estimate(call.started_us, tokens_in, self._output_max(call, owner))

    def _output_max(self, call: Call, owner: Owner) -> int:
        """The longest answer that a response may have."""
        place, view = self._placed(call.runtime).candidates.get(owner.deployment), call.view
        if place is None or view is None:
            return 0
        asked = view.max_output_tokens if view.max_output_tokens is not None else call.output_ceiling
        return (place.deployment.max_output_tokens if asked is None else asked) * view.n

    async def _write_off(self, call: Call, name: str, *, late: bool = False) -> None:
        """Books an estimate for a response whose upstream will not tell what it used: it is deleted, gone, or cancelled without a word.

        Output as of an upstream that was left alone so long, at most what was reserved. late: only if its time is nearly over.
        Another host that began it does so itself when it finds it gone.
        """
        item_of, age_us = _unsettled(call, name), 0
        try:
            item = await self._owners.promised(item_of.tenant, name)
            if item is None or item.estimate is None:
                return
            age_us = max(0, call.started_us - item.estimate.made_us)
            if late and age_us < self._settings.background_settle_s_max * _LATE * 1e6:
                return
            first = await self._claim(call, name)
            self.promises.settled(item_of)
        except OwnersUnavailable:
            self._metrics.bound_hit("state_wait_s")
            return
        place = self._placed(call.runtime).candidates.get(call.attempts[-1].deployment) if call.attempts else None
        if not first or place is None:
            return
        output = min(item.estimate.output_max, int(age_us / 1e6 * self._settings.abandoned_tokens_per_s))
        tokens = Tokens(input=item.estimate.input, output=output)
        cost, state, version = meter.priced(tokens, place.deployment)
        state = CostState.ESTIMATED if state is CostState.FINAL else state
        call.attempts[-1] = msgspec.structs.replace(
            call.attempts[-1], tokens=tokens, cost_nanousd=cost, cost_state=state, price_version=version
        )
        self._metrics.tokens_found(tokens)
        self.estimated_total += 1


class _KeptStream:
    """The stream of a response: its id is written down before anything goes out, the ids of its items before its last event."""

    def __init__(self, kept: Kept, call: Call, reply: Reply, stream: ChunkStream, owner: Owner) -> None:
        self._kept = kept
        self._call = call
        self._reply = reply
        self._stream = stream
        self._owner = owner
        self._held: bytes | None = None  # read, and not yet given out
        self._broken: StreamBroken | None = None

    async def begin(self) -> None:
        """Writes down what the first events say, before the client is answered at all."""
        try:
            self._held = await self._next()
        except StreamBroken as broken:
            self._broken = broken
        else:
            await self._note(self._held)

    async def read(self) -> bytes:
        """The next events. Raises StreamBroken."""
        if self._broken is not None:
            raise self._broken
        if self._held is None:
            self._held = await self._next()
        chunk = self._held
        if not chunk:
            await self._note(self._reply.ending)
        self._held = None
        return chunk

    def close(self) -> None:
        """Gives the stream up; safe to call twice."""
        self._stream.close()

    async def _next(self) -> bytes:
        """The next events; what an upstream says of a response that failed is its last word too."""
        try:
            return await self._stream.read()
        except StreamBroken as broken:
            await self._note(broken.event)
            raise

    async def _note(self, events: bytes) -> None:
        for event in events_in(events):
            if b'"response"' in event and (data := data_of(event)) is not None:
                await self._kept.note(self._call, data, self._owner)


def _ends(call: Call, reply: Reply) -> bool:
    """Whether nobody can learn after this answer what a response used."""
    if reply.source != "upstream" or call.operation not in _NAMED:
        return False
    return reply.status == _GONE or (call.operation == "responses_delete" and 200 <= reply.status < 300)


def _bill_nothing(call: Call) -> None:
    """The call's last try costs nothing more."""
    if call.attempts:
        call.attempts[-1] = msgspec.structs.replace(call.attempts[-1], tokens=NO_TOKENS, cost_nanousd=0, items=())


def _unsettled(call: Call, name: str) -> Unsettled:
    assert call.identity is not None, "identify comes first"  # noqa: S101
    return Unsettled(call.identity.tenant.id, call.identity.key.id, name)


def _is_kept(call: Call) -> bool:
    return call.view is not None and call.view.kept


def _tenant_of(call: Call) -> str:
    assert call.identity is not None, "identify comes first"  # noqa: S101
    return call.identity.tenant.id

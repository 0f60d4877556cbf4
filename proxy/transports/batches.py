"""Files and batches at upstreams, OpenAI's and Anthropic's: each is its tenant's alone, and what a batch may cost is held until it is booked.

All tenants of a deployment share one account there. So a file or a batch is found only by the tenant that made it, lists show nothing of anybody
else's, and every line of a batch is checked before the upstream sees it. A batch that is made is written down as unsettled; when it has ended,
`proxy.batch_bills` reads its results and books them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import TenantPolicy
from proxy import refusals
from proxy.call import Call, Reply, Transport
from proxy.dialects.dialect import Malformed
from proxy.dialects.filed import (
    LINE_URLS,
    Filed,
    Requests,
    decode_create,
    decode_filed,
    decode_page,
    decode_requests,
    id_of,
    with_results_here,
)
from proxy.dialects.multipart import check_boundary, form_with_file, read_form
from proxy.dialects.operations import OPERATIONS, Protocol
from proxy.dialects.responses_state import written_anew
from proxy.ledger import OWN_CHANNEL, Refused
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.runtime import Candidate, Runtime
from proxy.transports.batch_plan import BatchPlan, LineRefused
from proxy.transports.owners import Batched, Owner, Owners, OwnersUnavailable, Promised, Unsettled
from proxy.transports.places import Places, pinned
from proxy.transports.promises import Promises
from proxy.view import read_view

SETTLEMENT = OWN_CHANNEL  # of calls that settle what tenants have used
_ID = re.compile(r"[A-Za-z0-9_\-]{1,256}")
_PAGE = 100  # items that an upstream is asked for at once
_PAGE_USUAL = 20
_RETRY_S = 5.0
_OK = 200
_LISTS = frozenset(("files_list", "batches_list", "messages_batches_list"))
_DELETES = frozenset(("files_delete", "messages_batches_delete"))
_TOLD = frozenset(("batches_get", "batches_cancel", "messages_batches_get", "messages_batches_cancel"))
_DOUBTFUL = frozenset(
    (
        AttemptError.STATUS_5XX,
        AttemptError.FIRST_BYTE_TIMEOUT,
        AttemptError.IDLE_TIMEOUT,
        AttemptError.DEADLINE,
        AttemptError.TRUNCATED,
        AttemptError.MALFORMED,
        AttemptError.CANCELLED,
    )
)
_encode = msgspec.json.Encoder().encode
Over = Callable[[TenantPolicy, Refused, int], Reply]

log = structlog.get_logger("proxy.batches")


class Batches:
    """Holds every call on files and batches against its owner, sends it there, and writes down what comes to be."""

    def __init__(
        self,
        inner: Transport,
        owners: Owners,
        settings: ProxySettings,
        metrics: ProxyMetrics,
        promises: Promises,
        *,
        over: Over,
    ) -> None:
        """over: what a client hears when a ceiling is in the way. The inner transport is somebody else's, who closes it."""
        self._inner = inner
        self._owners = owners
        self._settings = settings
        self._metrics = metrics
        self._promises = promises
        self._over = over
        self._places: tuple[Runtime, Places] | None = None
        self.look: Callable[[Unsettled], Awaitable[None]] | None = None  # of the worker that settles; of others, None
        self.refused_total = 0  # ids that the tenant did not make
        self.doubtful_total = 0  # batches that an upstream may have made without saying so

    async def send(self, call: Call) -> Reply:
        """The reply of the upstream that holds what the call is about, or a refusal."""
        operation = call.operation
        try:
            call.view = read_view(operation, call.body)
            if operation == "files_create":
                return await self._upload(call)
            if operation == "batches_create":
                return await self._create(call)
            if operation == "messages_batches_create":
                return await self._create_messages(call)
            if operation in _LISTS:
                return await self._list(call)
            return await self._named(call)
        except Malformed as error:
            return refuse(refusals.MALFORMED, str(error), param=error.param)
        except OwnersUnavailable:
            message = "the proxy cannot look up right now whose these ids are; try again"
            return refuse(refusals.NOT_READY, message, retry_after_s=1.0)
        finally:
            self._promises.let_go(call)

    async def aclose(self) -> None:
        """Nothing is held."""

    # --- making ----------------------------------------------------------------------------------------------------------

    async def _upload(self, call: Call) -> Reply:
        """A file of requests; each of its lines must be one that the key may make. No other file is taken here."""
        check_boundary(call.headers.get(b"content-type", b""), call.body)
        form = read_form(call.body)
        purpose = form.value(call.body, b"purpose")
        if purpose != "batch":
            message = "only files with `purpose: batch` are taken here; an operator can grant the upstream's own path as passthrough"
            return refuse(refusals.MALFORMED, message, param="purpose")
        files = [part for part in form.parts if part.filename is not None]
        if len(files) != 1 or files[0].name != b"file":
            return refuse(refusals.MALFORMED, "the form must hold one file, named `file`", param="file")
        plan = BatchPlan(call, self._settings, creates="batches_create")
        try:
            content = await plan.file(call.body[files[0].start : files[0].end])
            await self._check_kept(call, plan)
        except LineRefused as refused:
            return refused.reply("file")
        call.body = form_with_file(call.body, form, name=b"file", content=content)
        candidate = plan.candidate
        assert candidate is not None, "a file that passed has a line"  # noqa: S101
        reply = await self._send_to(call, candidate, once=True)
        if _is_good(reply) and (file_id := id_of(reply.body)):
            owner = Owner(candidate.upstream.id, candidate.deployment.id, batched=plan.batched)
            await self._owners.keep(_tenant_of(call), [file_id], owner)
            await self._mark(call, "files_list", owner)
        return reply

    async def _create(self, call: Call) -> Reply:
        """A batch of a file that was checked when it came."""
        try:
            asked = decode_create(call.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the body is no request for a batch: {error}") from error
        call.body = bytes(written_anew(call.body))
        owner = (await self._owners.find(_tenant_of(call), [asked.input_file_id])).get(asked.input_file_id)
        candidate = None if owner is None else self._placed(call.runtime).at(owner, call.operation)
        if owner is None or candidate is None or owner.batched is None:
            return self._missing(call, asked.input_file_id, param="input_file_id")
        if LINE_URLS.get(asked.endpoint) != owner.batched.operation:
            wanted = next(url for url, name in LINE_URLS.items() if name == owner.batched.operation)
            return refuse(refusals.MALFORMED, f"the requests of this file are for `{wanted}`", param="endpoint")
        return await self._begin(call, candidate, owner.batched)

    async def _create_messages(self, call: Call) -> Reply:
        """A batch with its requests."""
        try:
            asked = decode_requests(call.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the body is no batch of messages: {error}") from error
        plan = BatchPlan(call, self._settings, creates=call.operation)
        try:
            made = await plan.requests(asked.requests)
        except LineRefused as refused:
            return refused.reply("requests")
        call.body = _encode(Requests(made))
        candidate = plan.candidate
        assert candidate is not None, "a batch that passed has a request"  # noqa: S101
        return await self._begin(call, candidate, plan.batched)

    async def _begin(self, call: Call, candidate: Candidate, batched: Batched) -> Reply:
        """Holds what the batch may cost and makes it; once that is under way, a client that leaves stops nothing."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        allowed = call.identity.models
        barred = next(
            (item.alias for item in batched.models if allowed is not None and item.alias not in allowed), None
        )
        if barred is not None:
            return refuse(refusals.FORBIDDEN, f"model `{barred}` of this batch is not allowed for this key")
        if self._promises.full:
            self._metrics.bound_hit("background_responses_max")
            message = "too many batches and responses in the background are not finished; try again when some are"
            return refuse(refusals.OVERLOADED, message, retry_after_s=_RETRY_S)
        aliases = [model.alias for model in batched.models]
        refused = await self._promises.reserve(call, batched.nanousd, aliases=aliases)
        if refused is not None:
            self._metrics.bound_hit("quota_hard")
            return self._over(call.identity.tenant, refused, time.time_ns() // 1000)
        making = asyncio.ensure_future(self._make(call, candidate, batched))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])  # bounded by the call's deadline
            raise

    async def _make(self, call: Call, candidate: Candidate, batched: Batched) -> Reply:
        reply = await self._send_to(call, candidate, once=True)
        if not _is_good(reply) or not (batch_id := id_of(reply.body)):
            self._doubt(call, candidate, reply)
            return reply
        assert call.identity is not None, "identify comes first"  # noqa: S101
        owner = Owner(candidate.upstream.id, candidate.deployment.id)
        promised = Promised(
            batched,
            candidate.upstream.id,
            self._promises.worker,
            call.started_us // 1000,
            of_anthropic=_is_anthropic(call),
            agent=call.agent,
            session=call.session,
            user=call.user,
            tags=tuple(call.tags.items()),
        )
        item = Unsettled(_tenant_of(call), call.identity.key.id, batch_id, promised)
        await self._owners.promise(item)
        self._promises.hold(call, item)
        await self._owners.keep(_tenant_of(call), [batch_id], owner)
        await self._mark(call, "messages_batches_list" if _is_anthropic(call) else "batches_list", owner)
        return self._shown(call, reply)

    def _doubt(self, call: Call, candidate: Candidate, reply: Reply) -> None:
        """Counts an upstream that may have made a batch and did not say so: nobody will learn what it costs."""
        error = call.attempts[-1].error if call.attempts else AttemptError.CONNECT
        if error in _DOUBTFUL or _is_good(reply):
            self.doubtful_total += 1
            upstream, tenant = candidate.upstream.id, _tenant_of(call)
            log.warning("a batch may have been made whose id is not known", upstream=upstream, tenant=tenant)

    async def _mark(self, call: Call, list_: str, owner: Owner) -> None:
        """Notes that a tenant has something at an upstream, for its list."""
        await self._owners.keep(_tenant_of(call), [_marker(list_, owner.upstream)], Owner(owner.upstream, ""))

    async def _check_kept(self, call: Call, plan: BatchPlan) -> None:
        """What lines build on must be their tenant's, and at their upstream. Raises LineRefused."""
        if not plan.kept:
            return
        owners = await self._owners.find(_tenant_of(call), list({name for _, _, name in plan.kept}))
        for number, where, name in plan.kept:
            owner = owners.get(name)
            if owner is None or plan.candidate is None or owner.upstream != plan.candidate.upstream.id:
                self.refused_total += 1
                shown = name[:128] if name.isprintable() else "?"
                raise LineRefused(refusals.NOT_FOUND, number, f"`{where}` names '{shown}', which is not found")

    # --- asking for what is there ----------------------------------------------------------------------------------------

    async def _named(self, call: Call) -> Reply:
        """One file or batch, by the id of the path."""
        name = call.path.removeprefix("/v1").removeprefix("/messages").split("/")[2]
        owner: Owner | None = None
        if _ID.fullmatch(name):
            owner = (await self._owners.find(_tenant_of(call), [name])).get(name)
        candidate = None if owner is None else self._placed(call.runtime).at(owner, call.operation)
        if owner is None or candidate is None:
            return self._missing(call, name)
        if call.operation in _DELETES:
            refused = await self._settle_first(call, owner.batch or name)
            if refused is not None:
                return refused
        reply = await self._send_to(call, candidate)
        if not _is_good(reply):
            return reply
        if call.operation in _DELETES:
            await self._owners.forget(_tenant_of(call), [name])
        elif call.operation in _TOLD:
            await self._note(call, name, decode_filed(reply.body), owner)
            return self._shown(call, reply)
        return reply

    async def _settle_first(self, call: Call, batch: str) -> Reply | None:
        """Before the results of a batch are deleted, they must be booked: afterwards nobody could."""
        item = await self._owners.promised(_tenant_of(call), batch)
        if item is None:
            if not await self._owners.promised_elsewhere(_tenant_of(call), batch):
                return None
        elif item.batch is None:
            return None
        elif self.look is not None:
            await self.look(item)
            if await self._owners.promised(item.tenant, item.name) is None:
                return None
        else:
            await self._hurry(item)
        message = f"what batch '{batch}' has used is not booked yet; delete it when it has ended, some seconds later"
        return refuse(refusals.NOT_READY, message, retry_after_s=_RETRY_S)

    async def _note(self, call: Call, name: str, said: Filed, owner: Owner) -> None:
        """Writes down whose the files are that a batch has left, and has it booked soon if it has ended."""
        tenant = _tenant_of(call)
        if said.files:
            await self._owners.keep(tenant, said.files, Owner(owner.upstream, owner.deployment, batch=name))
        if said.ended and call.channel != SETTLEMENT:
            item = await self._owners.promised(tenant, name)
            if item is not None:
                await self._hurry(item)

    async def _hurry(self, item: Unsettled) -> None:
        """Has whoever settles look at a batch in its next round."""
        if item.batch is not None and not item.batch.ended:
            promised = msgspec.structs.replace(item.batch, ended=True)
            await self._owners.promise(msgspec.structs.replace(item, batch=promised))

    async def _list(self, call: Call) -> Reply:
        """A page of what is the tenant's own, out of the list of everybody's, of each upstream at which it has something."""
        query = dict(parse_qsl(call.query.decode("latin-1")))
        cursor = "after_id" if _is_anthropic(call) else "after"
        if "before_id" in query:
            raise Malformed("lists are read from the newest on: use `after_id`", "before_id")
        said = query.pop("limit", str(_PAGE_USUAL))
        if not said.isdigit() or len(said) > 6 or int(said) == 0:
            raise Malformed("`limit` must be a positive whole number", "limit")
        places = self._placed(call.runtime).each(call.operation)
        marks = await self._owners.find(
            _tenant_of(call), [_marker(call.operation, item.upstream.id) for item in places]
        )
        places = [item for item in places if _marker(call.operation, item.upstream.id) in marks]
        after = query.pop(cursor, "")
        if after:
            owner = (await self._owners.find(_tenant_of(call), [after])).get(after)
            at = next((n for n, item in enumerate(places) if owner and item.upstream.id == owner.upstream), None)
            if at is None:
                return self._missing(call, after, param=cursor)
            places = places[at:]
        found = _Found(min(int(said), _PAGE))
        for place in places:
            refused = await self._collect(call, place, query, {cursor: after} if after else {}, found)
            if refused is not None:
                return refused
            after = ""
            if found.more:
                break
        call.target = b""
        return _page(call, found)

    async def _collect(
        self, call: Call, place: Candidate, query: dict[str, str], start: dict[str, str], found: _Found
    ) -> Reply | None:
        """Adds an upstream's items until there are enough or no more; a refusal, or the upstream's own error."""
        cursor = "after_id" if _is_anthropic(call) else "after"
        while True:
            call.query = urlencode(query | {"limit": str(_PAGE)} | start).encode()
            reply = await self._send_to(call, place)
            if not _is_good(reply):
                return reply
            found.reply = reply
            page = decode_page(reply.body)
            ids = [id_of(item) for item in page.data]
            owners = await self._owners.find(_tenant_of(call), [name for name in ids if name])
            for name, item in zip(ids, page.data, strict=True):
                if name not in owners or owners[name].upstream != place.upstream.id:
                    continue
                if len(found.items) >= found.limit:
                    found.more = True
                    return None
                found.items.append(item)
            if not page.has_more or not ids:
                return None
            found.pages += 1
            if found.pages >= self._settings.batch_list_pages_max:
                self._metrics.bound_hit("batch_list_pages_max")
                found.more = True
                return None
            start = {cursor: ids[-1]}

    # --- the way there ---------------------------------------------------------------------------------------------------

    async def _send_to(self, call: Call, candidate: Candidate, *, once: bool = False) -> Reply:
        """What one upstream answers. once: it must not be asked twice, for it could do twice what it is asked."""
        entry = self._placed(call.runtime).entries[candidate.deployment.id]
        path = call.path.removeprefix("/v1")
        path = f"/v1{path}" if _is_anthropic(call) else path
        call.target = path.encode() + (b"?" + call.query if call.query else b"")
        call.candidates = (candidate,)
        call.route = pinned(entry, call.candidates, attempts_max=1 if once else None)
        call.deadline = time.monotonic() + min(entry.route.timeout_s, self._settings.timeout_s_max)
        return await self._inner.send(call)

    def _placed(self, runtime: Runtime) -> Places:
        if self._places is None or self._places[0] is not runtime:
            self._places = (runtime, Places(runtime))
        return self._places[1]

    def _missing(self, call: Call, name: str, *, param: str | None = None) -> Reply:
        """The one answer for what is not there and what is somebody else's."""
        self.refused_total += 1
        shown = name[:128] if name.isprintable() else "?"
        noun = "File" if param == "input_file_id" or "/files" in call.path else "Batch"
        return refuse(refusals.NOT_FOUND, f"{noun} with id '{shown}' not found.", param=param)

    def _shown(self, call: Call, reply: Reply) -> Reply:
        """The reply as the client may have it: results are fetched here, too."""
        if _is_anthropic(call):
            reply.body = with_results_here(reply.body)
        return reply


@dataclass(slots=True)
class _Found:
    """What of a list is the tenant's own. pages: looked through, of all upstreams."""

    limit: int
    items: list[msgspec.Raw] = field(default_factory=list)
    pages: int = 0
    more: bool = False
    reply: Reply | None = None


def _page(call: Call, found: _Found) -> Reply:
    """The page in the words of the client's protocol."""
    reply = found.reply or Reply(_OK, [(b"content-type", b"application/json")], source="gateway")
    items = [msgspec.Raw(with_results_here(item)) for item in found.items] if _is_anthropic(call) else found.items
    page: dict[str, object] = {} if _is_anthropic(call) else {"object": "list"}
    page |= {
        "data": items,
        "first_id": id_of(items[0]) if items else None,
        "last_id": id_of(items[-1]) if items else None,
        "has_more": found.more,
    }
    reply.body = _encode(page)
    return reply


def _marker(list_: str, upstream: str) -> str:
    """A name that no id can be: of what says that a tenant has something at an upstream."""
    return f"{list_}\0{upstream}"


def _is_good(reply: Reply) -> bool:
    return 200 <= reply.status < 300 and reply.source == "upstream"


def _is_anthropic(call: Call) -> bool:
    return OPERATIONS[call.operation].protocol is Protocol.ANTHROPIC


def _tenant_of(call: Call) -> str:
    assert call.identity is not None, "identify comes first"  # noqa: S101
    return call.identity.tenant.id

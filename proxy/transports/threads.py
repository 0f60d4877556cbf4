"""What Anthropic keeps between messages: threads, which go on from the id of their last message, and containers, in which code has run.

All tenants of a deployment share one account there, where either can be gone on with by whoever names it. So what a message leaves behind is
written down with its tenant and its upstream, and only they go on with it. Everybody else, and whoever asks for a thread that has ended or was
never kept, gets the vendor's own answer: `thread_not_found`, to which its clients send the whole conversation. So a model of another vendor may
answer a request that opens a thread, too: it keeps nothing, and is told everything the next time.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping

import msgspec

from controlplane.contract.pricing import Tokens
from proxy import refusals
from proxy.call import Call, ChunkStream, Reply, Transport
from proxy.dialects.events import data_of, events_in
from proxy.refusals import refuse
from proxy.runtime import Runtime
from proxy.transports.chains import CONTEXT_TOKENS_MAX
from proxy.transports.owners import Owner, Owners, OwnersUnavailable
from proxy.transports.places import Places, pinned, serves

_OPERATION = "messages"
_LOST = "thread_not_found"  # by which the vendor's clients know that they must send everything


class _Named(msgspec.Struct):
    id: str = ""
    container: _Named | None = None


class _Said(_Named):
    """A message, or an event that says something of the whole of it."""

    message: _Named | None = None
    delta: _Named | None = None


_decode = msgspec.json.Decoder(_Said).decode


class Threads:
    """Sends messages, and those that go on with what an upstream keeps only where that is."""

    def __init__(self, inner: Transport, owners: Owners) -> None:
        """inner, owners: belong to somebody else, who closes them."""
        self._inner = inner
        self._owners = owners
        self._places: tuple[Runtime, Places] | None = None

    def send(self, call: Call) -> Coroutine[object, object, Reply]:
        """The reply; most messages leave nothing behind and go on as they are."""
        view = call.view
        leaves = view is not None and (view.threaded or view.contained)
        return self._send(call) if leaves else self._inner.send(call)

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _send(self, call: Call) -> Reply:
        view, identity = call.view, call.identity
        assert view is not None and identity is not None, "the stages come first"  # noqa: S101, PT018
        refused = await self._narrow(call, dict(view.continues), identity.tenant.id) if view.continues else None
        if refused is not None:
            return refused
        reply = await self._inner.send(call)
        if not 200 <= reply.status < 300 or reply.source != "upstream" or reply.age_s >= 0:
            return reply
        made = self._placed(call.runtime).candidates.get(reply.deployment)
        if made is None or not serves(made, _OPERATION):
            return reply
        before = dict(view.continues).get("thread", "") if view.threaded else ""
        owner = Owner(made.upstream.id, reply.deployment)
        left = _Left(self._owners, identity.tenant.id, owner, before=before, threaded=view.threaded)
        if reply.stream is None:
            left.learn(reply.body)
            await left.note(reply.tokens)
        else:
            reply.stream = _LeavingStream(reply, reply.stream, left)
        return reply

    async def _narrow(self, call: Call, named: Mapping[str, str], tenant: str) -> Reply | None:
        """Leaves a call only the deployments at the upstream of all that it names; a refusal where there is none. named: id by field."""
        entry = call.route
        assert entry is not None, "route comes first"  # noqa: S101
        try:
            owners = await self._owners.find(tenant, list(named.values()))
        except OwnersUnavailable:
            owners = {}
            if "container" in named:
                message = "the proxy cannot look up right now whose this container is; try again"
                return refuse(refusals.NOT_READY, message, retry_after_s=1.0)
        upstreams = {owner.upstream for owner in owners.values()}
        here = [item for item in call.candidates if item.upstream.id in upstreams and serves(item, _OPERATION)]
        if "container" in named and (named["container"] not in owners or not here):
            message = f"Container with id '{_shown(named['container'])}' not found."
            return refuse(refusals.NOT_FOUND, message, param="container")
        if len(owners) < len(named) or len(upstreams) > 1 or not here:
            message = (
                f"no thread ends with message '{_shown(named['thread'])}'; send the whole conversation to begin another"
            )
            return refuse(refusals.NOT_FOUND, message, details=_LOST)
        call.candidates = tuple(here)
        call.route = pinned(entry, call.candidates)
        return None

    def _placed(self, runtime: Runtime) -> Places:
        if self._places is None or self._places[0] is not runtime:
            self._places = (runtime, Places(runtime))
        return self._places[1]


class _Left:
    """What a message leaves behind, to be written down when it has ended. before: the message that its thread went on from, from which no other can."""

    def __init__(self, owners: Owners, tenant: str, owner: Owner, *, before: str, threaded: bool) -> None:
        self._owners = owners
        self._tenant = tenant
        self._owner = owner
        self._before = before
        self._threaded = threaded
        self._name = ""
        self._container = ""

    def learn(self, data: bytes) -> None:
        """Takes the ids from a message, or from an event that says something of the whole of it."""
        try:
            said = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            return
        for part in (said, said.message, said.delta):
            if part is not None:
                self._name = self._name or part.id
                self._container = self._container if part.container is None else part.container.id

    async def note(self, tokens: Tokens) -> None:
        """The thread ends with this message now. tokens: of all of it, which the next turn begins with."""
        if self._container:
            await self._owners.keep(self._tenant, [self._container], self._owner)
        if not self._threaded or not self._name:
            return
        size = min(tokens.total, CONTEXT_TOKENS_MAX)
        await self._owners.keep(self._tenant, [self._name], self._owner, sizes={self._name: size})
        if self._before:
            await self._owners.forget(self._tenant, [self._before])


class _LeavingStream:
    """The stream of a message; what it leaves behind is written down before its last event goes out."""

    def __init__(self, reply: Reply, stream: ChunkStream, left: _Left) -> None:
        self._reply = reply
        self._stream = stream
        self._left = left
        self._noted = False

    async def read(self) -> bytes:
        """The next events. Raises StreamBroken."""
        chunk = await self._stream.read()
        if b'"message_' in chunk:
            for event in events_in(chunk):
                if b'"message_' in event and (data := data_of(event)) is not None:
                    self._left.learn(data)
        if not chunk and not self._noted:
            await self._left.note(self._reply.tokens)
            self._noted = True
        return chunk

    def close(self) -> None:
        """Gives the stream up; safe to call twice."""
        self._stream.close()


def _shown(name: str) -> str:
    return name[:128] if name.isprintable() else "?"

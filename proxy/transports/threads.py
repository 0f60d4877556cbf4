"""Conversations that Anthropic keeps between requests: a thread goes on from the id of its last message, which is its tenant's alone.

All tenants of a deployment share one account there, where any thread can be gone on with by whoever names its last message. So a message that
opens or continues a thread is written down with its tenant and its upstream, and only they go on with it. Everybody else, and whoever asks for
a thread that has ended or was never kept, gets the vendor's own answer: `thread_not_found`, to which its clients send the whole conversation.
So a model of another vendor may answer such a request, too: it keeps nothing, and is told everything the next time.
"""

from __future__ import annotations

from collections.abc import Coroutine

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


class _Begun(msgspec.Struct):
    """A message, or the event that begins its stream."""

    id: str = ""
    message: _Named | None = None


_decode = msgspec.json.Decoder(_Begun).decode


class Threads:
    """Sends messages, and those of threads only where their thread is."""

    def __init__(self, inner: Transport, owners: Owners) -> None:
        """inner, owners: belong to somebody else, who closes them."""
        self._inner = inner
        self._owners = owners
        self._places: tuple[Runtime, Places] | None = None

    def send(self, call: Call) -> Coroutine[object, object, Reply]:
        """The reply; most messages belong to no thread and go on as they are."""
        view = call.view
        return self._send(call) if view is not None and view.threaded else self._inner.send(call)

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _send(self, call: Call) -> Reply:
        view, entry, identity = call.view, call.route, call.identity
        assert view is not None and entry is not None and identity is not None, "the stages come first"  # noqa: S101, PT018
        before = view.continues[0][1] if view.continues else ""
        if before:
            try:
                owner = (await self._owners.find(identity.tenant.id, [before])).get(before)
            except OwnersUnavailable:
                owner = None
            places = [] if owner is None else [item for item in call.candidates if item.upstream.id == owner.upstream]
            candidates = tuple(item for item in places if serves(item, _OPERATION))
            if not candidates:
                return _lost(before)
            call.candidates, call.route = candidates, pinned(entry, candidates)
        reply = await self._inner.send(call)
        if not 200 <= reply.status < 300 or reply.source != "upstream":
            return reply
        made = self._placed(call.runtime).candidates.get(reply.deployment)
        if made is None or not serves(made, _OPERATION):
            return reply
        thread = _Thread(self._owners, identity.tenant.id, Owner(made.upstream.id, reply.deployment), before)
        if reply.stream is None:
            await thread.note(_id_of(reply.body), reply.tokens)
        else:
            reply.stream = _ThreadStream(reply, reply.stream, thread)
        return reply

    def _placed(self, runtime: Runtime) -> Places:
        if self._places is None or self._places[0] is not runtime:
            self._places = (runtime, Places(runtime))
        return self._places[1]


class _Thread:
    """What is to be written down when a turn has ended. before: the message that it went on from, from which no other can."""

    def __init__(self, owners: Owners, tenant: str, owner: Owner, before: str) -> None:
        self._owners = owners
        self._tenant = tenant
        self._owner = owner
        self._before = before

    async def note(self, name: str, tokens: Tokens) -> None:
        """The thread ends with this message now. tokens: of all of it, which the next turn begins with."""
        if not name:
            return
        size = min(tokens.total, CONTEXT_TOKENS_MAX)
        await self._owners.keep(self._tenant, [name], self._owner, sizes={name: size})
        if self._before:
            await self._owners.forget(self._tenant, [self._before])


class _ThreadStream:
    """The stream of a message, whose id is written down before its last event goes out."""

    def __init__(self, reply: Reply, stream: ChunkStream, thread: _Thread) -> None:
        self._reply = reply
        self._stream = stream
        self._thread = thread
        self._name = ""
        self._noted = False

    async def read(self) -> bytes:
        """The next events. Raises StreamBroken."""
        chunk = await self._stream.read()
        if chunk and not self._name:
            self._name = next(filter(None, map(_id_of_event, events_in(chunk))), "")
        if not chunk and not self._noted:
            await self._thread.note(self._name, self._reply.tokens)
            self._noted = True
        return chunk

    def close(self) -> None:
        """Gives the stream up; safe to call twice."""
        self._stream.close()


def _lost(before: str) -> Reply:
    """The one answer for what is not there and what is somebody else's."""
    shown = before[:128] if before.isprintable() else "?"
    message = f"no thread ends with message '{shown}'; send the whole conversation to begin another"
    return refuse(refusals.NOT_FOUND, message, details=_LOST)


def _id_of(body: bytes) -> str:
    """The id of a message; empty if it is none."""
    try:
        begun = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ""
    return begun.id if begun.message is None else begun.message.id


def _id_of_event(event: bytes) -> str:
    data = data_of(event) if b'"message_start"' in event else None
    return "" if data is None else _id_of(data)

"""One provider account that keeps responses and conversations, as all tenants of a deployment share it: whoever names an id gets it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import Budget, Deployment, KeyEntry, Route, Snapshot, TenantPolicy, Upstream
from tests.proxy.fakes import (
    PEPPER,
    PRICE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    ScriptedUpstream,
    Wire,
    World,
    answer,
    chunk,
)

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 15,
}
ANN, BOB = "sk-heph-ann", "sk-heph-bob"
Document = dict[str, object]


@dataclass
class Account:
    """What one upstream keeps. busy: responses made in the background are not finished while it is set.

    renames: items that are put into a conversation get ids of its own.
    """

    name: str = "a"
    things: dict[str, Document] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)  # method, target, body
    busy: bool = False
    renames: bool = True
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def script(self, wire: Wire, request: Received) -> None:
        """Answers one request."""
        method, target, _ = request.line.split(" ")
        path, _, query = target.removeprefix("/v1").partition("?")
        self.asked.append((method, target, request.body))
        document: Document = json.loads(request.body) if request.body else {}
        segments = path.strip("/").split("/")
        if path == "/responses" and method == "POST":
            made = self.response(document)
            await wire.send(self.stream(made) if document.get("stream") else answer(json.dumps(made).encode()))
            return
        if path == "/conversations":
            items = [dict(item, id=self._id("msg")) for item in document.get("items") or []]  # type: ignore[attr-defined]
            made = {"id": self._id("conv"), "object": "conversation", "created_at": 1, "metadata": {}}
            self.things[str(made["id"])] = made | {"items": items}
            await wire.send(answer(json.dumps(made).encode()))
            return
        await wire.send(self.named(method, segments, query, document))

    def response(self, document: Document) -> Document:
        """Makes a response, and keeps it unless it is not to be kept."""
        previous = document.get("previous_response_id")
        assert previous is None or previous in self.things, "the proxy let an unknown id through"
        waits = bool(document.get("background")) and self.busy
        text = {"type": "output_text", "text": f"made from {json.dumps(document.get('input'))}", "annotations": []}
        message = {
            "type": "message",
            "id": self._id("msg"),
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
        made: Document = {
            "id": self._id("resp"), "object": "response", "created_at": 1, "model": document["model"],
            "status": "queued" if waits else "completed", "output": [] if waits else [message], "usage": None if waits else USAGE,
            "previous_response_id": previous, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {},
            "conversation": None, "error": None, "incomplete_details": None, "instructions": None, "temperature": 1.0, "top_p": 1.0,
        }  # fmt: skip
        if document.get("store") is not False:
            self.things[str(made["id"])] = made
        return made

    def stream(self, made: Document) -> bytes:
        """A response as the events of its making."""
        text = made["output"][0]["content"][0]["text"]  # type: ignore[index]
        item = {"output_index": 0, "item_id": made["output"][0]["id"], "content_index": 0, "logprobs": []}  # type: ignore[index]
        begun = made | {"status": "in_progress", "output": [], "usage": None}
        kinds: list[tuple[str, Document]] = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            *(("response.output_text.delta", item | {"delta": word}) for word in str(text).split()),
            ("response.output_text.done", item | {"text": text}),
            ("response.completed", {"response": made}),
        ]
        events = b"".join(
            f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': n} | more)}\n\n".encode()
            for n, (kind, more) in enumerate(kinds)
        )
        return STREAM_HEAD + chunk(events) + STREAM_END

    def finish(self, id_: str) -> None:
        """What was made in the background is done."""
        message = {"type": "message", "id": self._id("msg"), "role": "assistant", "status": "completed", "content": []}
        self.things[id_] |= {"status": "completed", "output": [message], "usage": USAGE}

    def named(self, method: str, segments: list[str], query: str, document: Document) -> bytes:
        """Whatever is asked about something that is kept."""
        thing = self.things.get(segments[1])
        if thing is None:
            error = {"message": f"no {segments[1]}", "type": "invalid_request_error", "param": None, "code": None}
            return answer(json.dumps({"error": error}).encode(), 404)
        if segments[2:] and segments[2] in ("input_items", "items"):
            items: list[Document] = thing.setdefault("items", [])  # type: ignore[assignment]
            if method == "POST":
                given: list[Document] = document["items"]  # type: ignore[assignment]
                items += [item | {"id": self._id("msg")} if self.renames else item for item in given]
            found: Document = {"object": "list", "data": items, "first_id": None, "last_id": None, "has_more": False}
            return answer(json.dumps(found if len(segments) < 4 else items[0]).encode())
        if method == "DELETE":
            del self.things[segments[1]]
            return answer(json.dumps({"id": segments[1], "object": thing["object"], "deleted": True}).encode())
        if segments[2:] == ["cancel"]:
            thing["status"] = "cancelled"
        if "stream=true" in query:
            return self.stream(thing)
        return answer(json.dumps({name: value for name, value in thing.items() if name != "items"}).encode())

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self.name}{next(self._numbers):04d}"


async def two_tenants(
    world: World,
    *accounts: Account,
    models: tuple[str, ...] = ("gpt",),
    version: int = 1,
    budgets: tuple[Budget, ...] = (),
) -> None:
    """Ann's and Bob's tenants, and a model at each account; with one model, all accounts are its deployments."""
    if not world.upstreams:
        for account in accounts:
            await world.upstream(account.script)
    ports = [item.port for item in world.upstreams]
    world.worker.apply(snapshot(ports, models=models, version=version, budgets=budgets))


def snapshot(
    ports: list[int], *, models: tuple[str, ...] = ("gpt",), version: int = 1, budgets: tuple[Budget, ...] = ()
) -> Snapshot:
    """What `two_tenants` applies."""
    deployments = [Deployment(f"u{n}/m", f"u{n}", f"model-{n}", price=PRICE, order=n) for n in range(len(ports))]
    routes = (
        (Route(models[0], tuple(deployments)),)
        if len(models) == 1
        else tuple(Route(alias, (item,)) for alias, item in zip(models, deployments, strict=True))
    )
    return Snapshot(
        version=version,
        created_us=1,
        tenants=(TenantPolicy("ann", budgets=budgets), TenantPolicy("bob")),
        keys=tuple(
            KeyEntry(hash_key(f"sk-heph-{name}".encode(), PEPPER), f"key_{name}", name) for name in ("ann", "bob")
        ),
        upstreams=tuple(
            Upstream(f"u{n}", "openai", f"http://127.0.0.1:{port}/v1", "env:UP_KEY", connect_timeout_s=30.0)
            for n, port in enumerate(ports)
        ),
        routes=routes,
    )


async def restarted(account: Account) -> ScriptedUpstream:
    """The account behind a new address."""
    return await ScriptedUpstream(account.script).start()

"""What is asked of an upstream without a word of ours: whether it may be, and how the request goes out.

The tenant's `passthrough` grants decide, by upstream and by path; nobody has one unless an operator gave it, because behind it are the
operator's own credential and whatever else it opens. A path is refused if two readers could understand it differently: it goes
on byte for byte, and must not leave the upstream's base address or the grant.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar
from urllib.parse import unquote_to_bytes

from controlplane.contract.snapshot import Deployment, PassthroughGrant, Route
from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.hosted_tools import always_searches
from proxy.dialects.operations import PASSTHROUGH_PREFIX
from proxy.dialects.passthrough import read_passthrough
from proxy.refusals import refuse
from proxy.runtime import Candidate, Door, KeyIdentity, RouteEntry
from proxy.view import label
from proxy.wires import Wire

METHODS: frozenset[bytes] = frozenset((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"))
# The client's headers that go on. Everything else stays here, above all whatever may be a credential.
_FORWARDED = frozenset(
    (b"accept", b"accept-language", b"content-type", b"idempotency-key", b"traceparent", b"tracestate")
)
_PREFIXES = (b"openai-", b"anthropic-")
_TARGET = re.compile(rb"[!$&-;=?-\[\]_a-zA-Z~%@*+]+")  # printable ASCII without quotes, backslash, `#` and their like
_DECODINGS_MAX = 3


class PassThrough:
    """Turns a request for a path of an upstream into a call with one candidate."""

    name: ClassVar[str] = "pass_through"

    def __init__(self, *, timeout_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """timeout_s: how long such a call may take."""
        self._timeout_s = timeout_s
        self._monotonic = monotonic

    def enter(self, call: Call) -> Reply | None:
        """Refuses methods, paths, upstreams and keys that may not."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        method, target = call.request_line
        if method not in METHODS:
            message = f"a path of an upstream takes {', '.join(sorted(item.decode() for item in METHODS))}"
            return refuse(refusals.METHOD_NOT_ALLOWED, message)
        asked = _read_target(target)
        if asked is None:
            return refuse(
                refusals.MALFORMED,
                "the path after /passthrough/{upstream} must be plain: no `.` or `..`, no empty part, nothing encoded "
                "that would change its meaning",
            )
        upstream, path, raw_path = asked
        if call.identity.key.models is not None:
            message = "this key is limited to some models, which cannot be checked on a path that is passed through"
            return refuse(refusals.FORBIDDEN, message)
        door = call.runtime.doors.get(upstream)
        if door is None or not _granted(call.identity, upstream, path):
            message = f"this key's tenant has no `passthrough` to {path[:128]} of `{upstream[:128]}`; an operator can grant it"
            return refuse(refusals.FORBIDDEN, message)
        view = call.view = read_passthrough(call.body)
        alias, deployment = _deployment(door, view.model)
        wire = _wire(call, door, method, raw_path)
        endpoint = replace(door.endpoint, wires={call.operation: wire})
        searches = always_searches(deployment.model)
        candidate = Candidate(deployment, door.upstream, None, endpoint, searches=searches)
        call.candidates = (candidate,)
        call.route = RouteEntry(Route(alias, (deployment,), attempts_max=1), (call.candidates,), plain=call.candidates)
        call.deadline = self._monotonic() + self._timeout_s
        return None


def _read_target(target: bytes) -> tuple[str, str, bytes] | None:
    """The upstream's name, the decoded path below its base address and the same as it came, query included; None: not plain."""
    if not target.startswith(PASSTHROUGH_PREFIX) or _TARGET.fullmatch(target) is None:
        return None
    raw, mark, query = target[len(PASSTHROUGH_PREFIX) :].partition(b"?")
    first, slash, rest = raw.partition(b"/")
    if b"//" in slash + rest or not all(_is_plain(segment) for segment in rest.split(b"/")):
        return None
    try:
        upstream = unquote_to_bytes(first).decode()
        path = "/" + unquote_to_bytes(rest).decode()
    except UnicodeDecodeError:
        return None
    return (upstream, path, slash + rest + mark + query) if upstream else None


def _is_plain(segment: bytes) -> bool:
    """Whether a segment of a path means the same to everybody, however often it is decoded."""
    for _ in range(_DECODINGS_MAX):
        name = segment.partition(b";")[0]
        if name in (b".", b"..") or any(byte in b"/\\" or byte < 0x20 or byte == 0x7F for byte in segment):
            return False
        decoded = unquote_to_bytes(segment)
        if decoded == segment:
            return True
        segment = decoded
    return False


def _granted(identity: KeyIdentity, upstream: str, path: str) -> bool:
    return any(grant.upstream == upstream and _covers(grant, path) for grant in identity.tenant.passthrough)


def _covers(grant: PassthroughGrant, path: str) -> bool:
    """Whether a grant's paths hold this one: itself, or what lies below it."""
    if not grant.paths:
        return True
    return any(path == own or path.startswith(own.rstrip("/") + "/") for own in grant.paths)


def _deployment(door: Door, model: str) -> tuple[str, Deployment]:
    """The deployment of this model at the upstream, for its price, with its alias; or one that has no price."""
    known = door.deployments.get(model)
    if known is not None:
        return known
    own = Deployment(f"{door.upstream.id}/passthrough", door.upstream.id, label(model))
    return label(model), own


def _wire(call: Call, door: Door, method: bytes, raw_path: bytes) -> Wire:
    """The head of this very request."""
    lines = b"".join(
        b"%b: %b\r\n" % item for item in call.headers.items() if item[0] in _FORWARDED or item[0].startswith(_PREFIXES)
    )
    if door.default is not None and door.default[0] not in call.headers:
        lines += b"%b: %b\r\n" % door.default
    return Wire(
        head=b"%b %b%b HTTP/1.1\r\n%b%b" % (method, door.base_path, raw_path or b"/", door.lines, lines),
        lines=b"",
        dialect=door.dialect,
    )

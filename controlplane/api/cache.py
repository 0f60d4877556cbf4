"""Stored answers over HTTP: which of them must not be served again."""

from __future__ import annotations

import contextlib
from typing import Annotated

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.params import JSONBody

from controlplane.api.parts import PartsOf
from controlplane.api.views import CachedCount
from controlplane.catalog.invalidations import Selection
from controlplane.contract.snapshot import CacheInvalidation
from controlplane.errors import BadRequest, HephaestusError

_TAGS = ["cache"]
_Label = Annotated[str, msgspec.Meta(max_length=512)]


class InvalidationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which stored answers are meant: those that fit every selector which is set.

    tag: `name=value`, or `name` for any value. route: the alias that was asked for; model: the one that served. before_us: answers asked for
    earlier than this, now unless set. everything: must be said where no selector is. dry_run: only count.
    """

    tenant: _Label = ""
    tag: _Label = ""
    route: _Label = ""
    model: _Label = ""
    agent: _Label = ""
    before_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    everything: bool = False
    dry_run: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class InvalidationAnswer(msgspec.Struct, frozen=True):
    """What was done, or with `dry_run` would be: at most so many answers go. rule: none on a dry run. count: null if the store cannot tell now."""

    count: CachedCount | None
    rule: CacheInvalidation | None = None


class InvalidationList(msgspec.Struct, frozen=True):
    """Invalidations in force, oldest first."""

    invalidations: tuple[CacheInvalidation, ...]


@post("/api/v1/cache/invalidate", status_code=200, tags=_TAGS, summary="Invalidate stored answers")
async def invalidate(
    data: JSONBody[InvalidationRequest], parts: PartsOf, request: Request[object, object, State]
) -> InvalidationAnswer:
    """From the next snapshot on, within a second, no proxy serves what fits from any of its tiers."""
    selection = Selection(
        tenant=data.tenant,
        tag=data.tag,
        alias=data.route,
        model=data.model,
        agent=data.agent,
        before_us=data.before_us,
    )
    if selection.is_everything and not data.everything:
        raise BadRequest("no selector is set; say `everything` if all stored answers are meant")
    if selection.tag.startswith("="):
        raise BadRequest("a tag is `name=value`, or `name` for any value")
    if data.dry_run:
        return InvalidationAnswer(await parts.cache.count(selection))
    rule = await parts.cache.invalidate(selection, reason=data.reason, actor=request.state.actor)
    count = None
    with contextlib.suppress(HephaestusError):  # nobody waits for the store, or does without it, for a number
        count = await parts.cache.count(msgspec.structs.replace(selection, before_us=rule.before_us))
    return InvalidationAnswer(count, rule)


@get("/api/v1/cache/invalidations", tags=_TAGS, summary="Invalidations in force")
async def invalidations(parts: PartsOf) -> InvalidationList:
    """A rule is in force until no stored answer can be so old any more."""
    return InvalidationList(tuple(await parts.cache.active()))


ROUTES = (invalidate, invalidations)
